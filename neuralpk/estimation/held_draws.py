"""Held draws: individual parameters of every subject that were drawn and solved once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from neuralpk.cohort_batch import CohortBatch
from neuralpk.estimation.finite_differences import differences
from neuralpk.estimation.held_predictions import HeldPredictions
from neuralpk.estimation.learned_numbers import LearnedNumbers
from neuralpk.estimation.network_shifts import NetworkShifts
from neuralpk.estimation.proposals import Proposal
from neuralpk.inference.importance import effective_draws, log_mean_weight
from neuralpk.population_model import PopulationModel

_STEP = 1e-3  # on the learned scale, for differences in float64
_SHARE, _LEAST_UNIT = 0.1, 1e-10  # of the steps of a prediction
_AT_ONCE = 2**17  # predictions of which derivatives are computed at once: they stay in the cache


@dataclass(frozen=True)
class HeldDraws:
    """Draws of the individual parameters of some subjects, with their predictions.

    With theta of the draws held, log p(y) of another population needs no solution of the dynamics::

        p(y) ≈ 1/K Σ_k p(y | theta_k)·p(theta_k)/q(theta_k)

    Args:
        batch: the subjects; ``target`` says which records count.
        unconstrained: theta on the scale of the random effects, at the first record and without kappa, and kappa of
            every occasion (`PopulationParameters.unconstrained`), ``[subject, draw, parameter]``.
        log_q: log density of the proposal of `unconstrained`, ``[subject, draw]``; inf for a draw without solution.
        predictions: of every draw.
    """

    batch: CohortBatch
    unconstrained: Tensor
    log_q: Tensor
    predictions: HeldPredictions

    @classmethod
    @torch.no_grad()
    def draw(
        cls, model: PopulationModel, numbers: LearnedNumbers, batch: CohortBatch, proposal: Proposal, wide: Tensor,
        seed: int, stream: int, draws: int, standardised: tuple[str, ...] = (), moves: bool = True,
    ) -> HeldDraws:  # fmt: skip
        """Draw from a proposal and solve.

        Args:
            model: the population model.
            numbers: its learned numbers.
            batch: the subjects.
            proposal: of z under the population `wide`.
            wide: vector of the population under which the proposal was made.
            seed: of the fit.
            stream: of the random numbers.
            draws: for each subject.
            standardised: parameters whose eta/omega is held.
            moves: whether the numbers that move predictions are to move.
        """
        at = numbers.get()
        numbers.set(wide)
        z, log_q = proposal.draw(seed, stream, batch.index, draws)
        held = model.population.unconstrained(z, batch.covariates[:, :1], batch.occasions[:, None])
        middle = model.population.unconstrained(
            proposal.centre[:, :1], batch.covariates[:, :1], batch.occasions[:, None]
        )
        log_volume = model.population.z_of(held, batch.covariates[:, :1], batch.occasions[:, None])[1]
        numbers.set(at)
        predictions = HeldPredictions.solve(numbers, batch, held, middle, standardised, moves)
        log_q = torch.where(predictions.solved, log_q + log_volume, torch.inf)
        return cls(batch, held, log_q, predictions)

    @cached_property
    def _distance(self) -> Tensor:
        """1, and the held parameters less their mean, ``[subject, draw, 1 + parameter]``."""
        distance = self.unconstrained - self.unconstrained.mean(1, keepdim=True)
        return torch.cat([torch.ones_like(distance[..., :1]), distance], dim=-1)

    def z(self, numbers: LearnedNumbers) -> tuple[Tensor, Tensor]:
        """z of the draws in the population as it is now, ``[subject, draw, latent]``, and log |dz/dx| with x the
        parameters that were held at the draw, ``[subject, 1]``."""
        to_z, log_volume = self._to_z(numbers)
        return self._distance @ to_z, log_volume

    def _to_z(self, numbers: LearnedNumbers) -> tuple[Tensor, Tensor]:
        """z is linear in what is held: the matrix that makes z of `_distance`, ``[subject, 1 + parameter, latent]``,
        and log |dz/dx|, ``[subject, 1]``."""
        batch, mean = self.batch, self.unconstrained.mean(1, keepdim=True)
        units = torch.eye(mean.shape[-1], dtype=mean.dtype, device=mean.device)
        held, log_held_volume = self.predictions.held_now(numbers, torch.cat([mean, mean + units], dim=1))
        z, log_volume = numbers.model.population.z_of(held, batch.covariates[:, :1], batch.occasions[:, None])
        to_z = torch.cat([z[:, :1], z[:, 1:] - z[:, :1]], dim=1)
        return to_z, (log_volume + log_held_volume).expand(len(to_z), 1)

    def _fit(self, numbers: LearnedNumbers) -> Tensor:
        """log p(y | theta) of every draw, ``[subject, draw]``."""
        value = self.predictions.values(numbers, self.unconstrained)
        width, factor = self.batch.target.shape[1], None
        if numbers.model.has_factor:
            value, factor = value[..., :width], value[..., width:].exp()
        found: Tensor = numbers.model.error.log_likelihood(self.batch, value, factor).sum(-1).T
        return found.nan_to_num(-torch.inf, posinf=-torch.inf)

    def _density(self, numbers: LearnedNumbers) -> Tensor:
        """log p(theta)/q(theta) of every draw, ``[subject, draw]``."""
        z, log_volume = self.z(numbers)
        return numbers.model.log_density(z) + log_volume - self.log_q

    @torch.no_grad()
    def log_weight(self, numbers: LearnedNumbers, vector: Tensor) -> Tensor:
        """log of p(y, theta)/q(theta) of every draw under the population `vector`, ``[subject, draw]``."""
        numbers.set(vector)
        return self._fit(numbers) + self._density(numbers)

    def derivatives(self, numbers: LearnedNumbers, vector: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Σ log p(y) over the subjects, with its first and second derivatives in the learned numbers.

        With w the share of a draw in the likelihood and l its log weight, of each subject (Louis 1982)::

            ∂² log p(y) = E_w[∂² l] + Cov_w[∂ l]

        p(y | theta) is expanded to the second order in the numbers that it depends on, by differences in float64 of the
        density of each record, which serve any residual error. The density of theta is differentiated exactly:
        log N(z; 0, I) is a quadratic form of what is held, so that a matrix for each subject stands for all of its
        draws.

        Returns:
            A scalar, ``[number]`` and ``[number, number]``.
        """
        movers = self.predictions.movers.numbers
        direct = numbers.of_error() + movers
        fit, slope, curvature = self._expansion(numbers, vector)
        numbers.set(vector)
        log_weight = fit + self._density(numbers).detach()
        share = torch.softmax(log_weight, dim=1).nan_to_num(0.0)  # 0 of a subject without a draw that can be
        with (
            torch.enable_grad(),
            NetworkShifts(numbers, self.batch.covariates[:, :1], movers) as shifts,
        ):
            moments = self._moments(share).requires_grad_()
            first, second, of_moments = shifts.derivatives(self._expected(numbers, moments), moments)
        scores = torch.stack([((self._distance @ one) * self._distance).sum(-1) for one in of_moments], dim=-1)
        scores[..., [shifts.others.index(k) for k in direct]] += slope
        mean = (share[:, None] @ scores)[:, 0]
        second += shifts.on_numbers((share[..., None] * scores).mT @ scores - mean[:, :, None] * mean[:, None])
        first[direct] += (share[..., None] * slope).sum((0, 1))
        rows = torch.tensor(direct, dtype=torch.long, device=first.device)
        second[rows[:, None], rows] += (share[..., None, None] * curvature).sum((0, 1))
        return log_mean_weight(log_weight).sum(), first, second

    def gradient(self, numbers: LearnedNumbers, vector: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The value and the first derivatives of `derivatives`, in less time, and the effective draws.

        Returns:
            A scalar, ``[number]`` and ``[subject]``.
        """
        direct = numbers.of_error() + self.predictions.movers.numbers
        fit, slope, _ = self._expansion(numbers, vector, second=False)
        numbers.set(vector)
        log_weight = fit + self._density(numbers).detach()
        share = torch.softmax(log_weight, dim=1).nan_to_num(0.0)  # 0 of a subject without a draw that can be
        with torch.enable_grad():
            first = numbers.gradient(self._expected(numbers, self._moments(share))).detach()
        first[direct] += (share[..., None] * slope).sum((0, 1))
        return log_mean_weight(log_weight).sum(), first, effective_draws(log_weight)

    def _moments(self, share: Tensor) -> Tensor:
        """Σ_k w_k·d_k·d_kᵀ of `_distance` d, ``[subject, 1 + parameter, 1 + parameter]``."""
        return (share[..., None] * self._distance).mT @ self._distance

    def _expected(self, numbers: LearnedNumbers, moments: Tensor) -> Tensor:
        """Σ_k w_k·log p(theta_k) with the shares w held, up to a constant: the sum over the subjects, a scalar."""
        to_z, log_volume = self._to_z(numbers)
        return log_volume.sum() - 0.5 * ((moments @ to_z) * to_z).sum()

    @torch.no_grad()
    def _expansion(self, numbers: LearnedNumbers, vector: Tensor, second: bool = True) -> tuple[Tensor, Tensor, Tensor]:
        """log p(y | theta), its slope and curvature in the numbers of the residual error and in those that move
        predictions, by the chain rule: ``[subject, draw]``, ``[subject, draw, number]``, ``[subject, draw, number,
        number]``; 0 where there is no solution. Without `second` the curvature is not to be used."""
        movers = self.predictions.movers.numbers
        at_once = max(_AT_ONCE // max(self.predictions.value[0].numel(), 1), 1)

        def moves(*steps: tuple[int, float]) -> Tensor:
            moved = vector.clone()
            for k, step in steps:
                moved[movers[k]] += step
            numbers.set(moved)
            return self.predictions.moves(numbers, self.unconstrained)

        by, slope_of_moves, curvature_of_moves = differences(moves, len(movers), _STEP, second)
        parts = [slice(k, k + at_once) for k in range(0, by.shape[1], at_once)]
        found = [self._expansion_in_moves(numbers, vector, by, part, second) for part in parts]
        fit, slope, curvature = (torch.cat(each, dim=1) for each in zip(*found, strict=True))
        if not movers:
            return fit, slope, curvature

        errors = len(numbers.of_error())
        chain = slope.new_zeros(
            (*slope.shape[:2], errors + by.shape[2], errors + len(movers))
        )  # [subject, draw, coordinate, number]
        chain[..., range(errors), range(errors)] = 1.0
        chain[..., errors:, errors:] = slope_of_moves.permute(1, 2, 3, 0)
        bent = torch.einsum("mnsdp,sdp->sdmn", curvature_of_moves, slope[..., errors:])
        curvature = chain.mT @ curvature @ chain
        curvature[..., errors:, errors:] += bent
        return fit, (slope[..., None, :] @ chain)[..., 0, :], curvature

    def _expansion_in_moves(
        self, numbers: LearnedNumbers, vector: Tensor, moves: Tensor, draws: slice, second: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`_expansion` of some draws, in the numbers of the residual error and in the moves themselves.

        The density of a record depends on its own prediction alone, and on the factor of the residual error where
        there is one: differences in these two serve any residual error.
        """
        errors, width = numbers.of_error(), self.batch.target.shape[1]
        value, bent = self.predictions.moved(moves, draws)
        slopes = self.predictions.slopes[:, draws] + bent
        # steps are a tenth of those that a move makes; the logarithm of a factor is of the magnitude of 1
        unit = value.abs() + slopes.abs().sum(0)
        unit[..., width:] += 1.0
        unit = (_SHARE * unit).clamp(min=_LEAST_UNIT)
        blocks = range(value.shape[2] // width if len(slopes) else 0)

        def log_p(*steps: tuple[int, float]) -> Tensor:
            moved, here = vector.clone(), value.clone()
            for k, step in steps:
                if k < len(errors):
                    moved[errors[k]] += step
                else:
                    block = slice((k - len(errors)) * width, (k - len(errors) + 1) * width)
                    here[..., block] += step * unit[..., block]
            numbers.set(moved)
            factor = here[..., width:].exp() if numbers.model.has_factor else None
            found = numbers.model.error.log_likelihood(self.batch, here[..., :width], factor)
            return found if blocks else found.sum(-1, keepdim=True)

        fit, slope, curvature = differences(log_p, len(errors) + len(blocks), _STEP, second)
        slope, curvature = slope.nan_to_num(0.0, 0.0, 0.0), curvature.nan_to_num(0.0, 0.0, 0.0)
        n, size = len(errors), len(errors) + len(slopes)
        first, both = fit.new_zeros((size, *fit.shape[:2])), fit.new_zeros((size, size, *fit.shape[:2]))
        first[:n], both[:n, :n] = slope[:n].sum(-1), curvature[:n, :n].sum(-1)
        if len(slopes):
            # of predictions and factors in the moves, [move, block, draw, subject, record]
            of_moves = (slopes / unit).reshape(*slopes.shape[:3], len(blocks), width).movedim(-2, 1)
            first[n:] = torch.einsum("bdso,pbdso->pds", slope[n:], of_moves)
            both[:n, n:] = torch.einsum("ebdso,pbdso->epds", curvature[:n, n:], of_moves)
            both[n:, :n] = both[:n, n:].transpose(0, 1)
            weighted = torch.einsum("bcdso,pcdso->pbdso", curvature[n:, n:], of_moves)
            both[n:, n:] = torch.einsum("pbdso,qbdso->pqds", weighted, of_moves)
            of_records = slope[n:].movedim(0, -2).flatten(-2) / unit
            both[n:, n:] += torch.einsum("dsw,pqdsw->pqds", of_records, self.predictions.bends[:, :, draws])
        total = fit.sum(-1).T.nan_to_num(-torch.inf, posinf=-torch.inf)
        return total, first.permute(2, 1, 0), both.permute(3, 2, 0, 1)


@dataclass(frozen=True)
class PosteriorDraws:
    """Draws of z of each subject from its posterior.

    Args:
        z: ``[subject, draw, latent]``.
        log_likelihood: log p(y) where they were drawn, ``[subject]``.
    """

    z: Tensor
    log_likelihood: Tensor
