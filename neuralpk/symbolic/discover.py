"""From a hybrid that has learned to an equation that can be read."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from neuralpk.cohort_batch import CohortBatch
from neuralpk.dynamics import HybridDynamics
from neuralpk.solve import SolveError
from neuralpk.symbolic.best_subsets import best_subsets, criterion, without
from neuralpk.symbolic.equations import Equations
from neuralpk.symbolic.learn_correction import magnitudes, unit_ways
from neuralpk.symbolic.least_squares_through_solver import Fit, evaluate, minimise
from neuralpk.symbolic.library import Library
from neuralpk.symbolic.term_dynamics import TermDynamics


def discover(
    hybrid: HybridDynamics,
    theta: Tensor,
    batch: CohortBatch,
    library: Library,
    free: tuple[str, ...],
    most: int = 4,
    width: int = 64,
    refits: int = 6,
    rounds: int = 4,
) -> list[Equations]:
    """Find the terms that do what a learned correction does, for every series by itself.

    The whole differential equation is linearised about the hybrid's solution: what a term adds to the field changes the
    prediction of every record by its sensitivity, so that the terms that may replace the correction are a linear
    regression of the records. The best sets of terms are refitted through the solver and compared by the extended
    Bayesian information criterion; the linearisation is repeated about the winner until it stays the winner.

    Args:
        hybrid: mechanism plus learned correction.
        theta: parameters of the hybrid, float64 ``[row, parameter]``.
        batch: the series, in float64.
        library: candidate terms of every state.
        free: parameters of the mechanism that are estimated with the coefficients, such as the initial state.
        most: terms in all equations together.
        width: sets of each size that are grown by a further term.
        refits: sets that are refitted in each round.
        rounds: most rounds.

    Raises:
        neuralpk.solve.SolveError: no equation of a series could be solved.
    """
    search = _Search(hybrid, theta, batch, library, free, most, width, refits)
    for _ in range(rounds):
        if not search.go_on():
            break
    search.polish()
    return [search.equations(k) for k in range(len(batch))]


class _Search:
    """The best equation of every series so far, and where to look next."""

    def __init__(
        self,
        hybrid: HybridDynamics,
        theta: Tensor,
        batch: CohortBatch,
        library: Library,
        free: tuple[str, ...],
        most: int,
        width: int,
        refits: int,
    ) -> None:
        self.batch, self.most, self.width, self.refits = batch, most, width, refits
        self.free_names = free
        self.scale = magnitudes(hybrid, batch)
        self.records = batch.target.sum(1).double()
        self.hybrid = TermDynamics(hybrid.mechanism, library, hybrid.correction)
        self.plain = TermDynamics(hybrid.mechanism, library)
        self.free = torch.tensor([hybrid.mechanism.parameter_names.index(name) for name in free])
        self.coefficients = self.plain.sizes[2]
        nothing = theta.new_zeros((len(theta), self.coefficients))
        self.mechanism = theta[:, : self.plain.sizes[0]]
        self.start = torch.cat([theta, torch.ones_like(theta[:, :1]), nothing], dim=1)
        self.theta = torch.cat([self.mechanism, nothing], dim=1)
        self.support = torch.full((len(theta), most), -1)
        self.score = torch.full_like(self.records, torch.inf)
        self.lead = torch.full_like(self.records, torch.nan)
        self.open = torch.arange(len(theta))
        self.begun = False

    def go_on(self) -> bool:
        """One round; whether there are series whose winner is a new one."""
        rows = self.open
        supports, starts = self._propose(rows)
        fit = self._refit(rows, supports, starts)
        size = (supports >= 0).sum(-1)
        records = self.records[rows, None].expand_as(size)
        score = criterion(fit.squares.view(size.shape), records, size, self.coefficients)
        lowest, best = score.min(1)
        own = torch.arange(len(rows))
        improved = lowest < self.score[rows] - 1e-3
        found = supports[own, best]
        fresh = improved & (found != self.support[rows]).any(1)
        theta = fit.theta.view(*size.shape, -1)[own, best]
        at = rows[improved]
        self.theta[at], self.support[at], self.score[at] = theta[improved], found[improved], lowest[improved]
        others = (supports != self.support[rows][:, None]).any(-1)
        self.lead[rows] = score.where(others, torch.inf).amin(1) - self.score[rows]
        self.open, self.begun = rows[fresh], True
        return bool(len(self.open))

    def _propose(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Sets of terms that a regression about the present place holds for good, ``[row, set, most]`` with −1 where
        a set is smaller, and the parameters at which they are to be refitted from, ``[row, set, parameter]``."""
        dynamics, theta = (self.plain, self.theta) if self.begun else (self.hybrid, self.start)
        theta, m = theta[rows], len(self.free)
        first = theta.shape[1] - self.coefficients
        moved = torch.arange(first - (not self.begun), theta.shape[1])
        ways = unit_ways(theta.shape[1], torch.cat([self.free, moved]).expand(len(rows), -1))
        at = evaluate(dynamics, theta, ways, self.batch.select(rows), self.scale[rows])
        nuisance, design = at.slopes[..., :m], at.slopes[..., -self.coefficients :]
        # without the network, or without the present terms, the residuals would be these to first order
        leaving = (design @ theta[:, first:, None])[..., 0] if self.begun else at.slopes[..., m]
        target = at.residual + leaving
        clean = without(torch.cat([design, target[..., None]], dim=-1), nuisance)
        subsets = best_subsets(clean[..., :-1], clean[..., -1], self.most, self.width)
        return self._starts(rows, theta, subsets, design, nuisance, target)

    def _starts(
        self,
        rows: Tensor,
        theta: Tensor,
        subsets: list[tuple[Tensor, Tensor, Tensor]],
        design: Tensor,
        nuisance: Tensor,
        target: Tensor,
    ) -> tuple[Tensor, Tensor]:
        pad = torch.nn.functional.pad
        support = torch.cat([pad(s, (0, self.most - s.shape[-1]), value=-1) for s, _, _ in subsets], dim=1)
        value = torch.cat([pad(c, (0, self.most - c.shape[-1])) for _, c, _ in subsets], dim=1)
        squares = torch.cat([squares for _, _, squares in subsets], dim=1)
        size, records = (support >= 0).sum(-1), self.records[rows, None].expand_as(squares)
        score = criterion(squares, records, size, self.coefficients)
        best = score.topk(min(self.refits, score.shape[1]), dim=1, largest=False).indices
        support = support.gather(1, best[..., None].expand(-1, -1, self.most))
        value = value.gather(1, best[..., None].expand(-1, -1, self.most))
        coefficients = theta.new_zeros((*best.shape, self.coefficients + 1))
        coefficients.scatter_(2, support.where(support >= 0, self.coefficients), value)
        coefficients = coefficients[..., :-1]
        rest = target[..., None] - design @ coefficients.mT
        shift = torch.linalg.lstsq(nuisance, rest).solution.mT
        mechanism = theta[:, None, : self.plain.sizes[0]].expand(-1, best.shape[1], -1).clone()
        mechanism[..., self.free] += shift
        return support, torch.cat([mechanism, coefficients], dim=-1)

    def _refit(self, rows: Tensor, supports: Tensor, starts: Tensor, steps: int = 5) -> Fit:
        sets = supports.shape[1]
        places = torch.where(supports >= 0, supports + self.plain.sizes[0], -1).flatten(0, 1)
        free = torch.cat([places, self.free.expand(len(places), -1)], dim=1)
        ways = unit_ways(starts.shape[-1], free)
        batch, scale = self.batch.select(rows).repeat(sets), self.scale[rows].repeat_interleave(sets, dim=0)
        # enough to tell the sets apart; the winner is polished at the end
        return minimise(self.plain, starts.flatten(0, 1), ways, batch, scale, steps=steps)

    def polish(self) -> None:
        """Go on with the winners until nothing is gained."""
        rows = torch.arange(len(self.theta))
        fit = self._refit(rows, self.support[:, None], self.theta[:, None], steps=15)
        gain = criterion(fit.squares, self.records, (self.support >= 0).sum(1), self.coefficients) - self.score
        well = torch.isfinite(gain)
        self.theta = torch.where(well[:, None], fit.theta, self.theta)
        self.score, self.lead = self.score + gain.where(well, 0.0), self.lead - gain.where(well, 0.0)

    def equations(self, row: int) -> Equations:
        """The result of one series.

        Raises:
            neuralpk.solve.SolveError: nothing that was tried could be solved.
        """
        if not bool(torch.isfinite(self.score[row])):
            raise SolveError(f"{self.batch.ids[row]}: no set of terms could be solved; try a smaller library")
        support = self.support[row]
        chosen = support[support >= 0]
        places = torch.cat([chosen + self.plain.sizes[0], self.free])
        ways = unit_ways(self.theta.shape[1], places[None])
        which = torch.tensor([row])
        at = evaluate(self.plain, self.theta[which], ways, self.batch.select(which), self.scale[which])
        variance = float(at.squares) / max(int(self.records[row]) - len(places), 1)
        covariance = variance * torch.linalg.inv(at.slopes[0].mT @ at.slopes[0])
        names = tuple(self.plain.parameter_names[k] for k in places.tolist())
        lead = float(self.lead[row])
        return Equations(
            self.plain, self.theta[row], names, covariance, math.sqrt(variance), float(self.score[row]), lead
        )
