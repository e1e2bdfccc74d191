"""Starting values of the population from the data alone: one curve for all subjects, fitted to all their samples."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from neuralpk import randomness
from neuralpk.cohort_batch import CohortBatch
from neuralpk.estimation.learned_numbers import LearnedNumbers
from neuralpk.parameters import LogitNormal, LogNormal
from neuralpk.population_model import PopulationModel
from neuralpk.randomness import Stream

_POINTS = 256
_SUBJECTS = 40  # in the search over points; all of them in the least squares
_SPREAD = math.log(12.0)  # of the search, on the scale of h, around the guess of the dynamics
_OTHER_SPREAD = 1.0
_CANDIDATES = 6
_CANDIDATES_APART = 1.0  # on the scale of h
_MOST_STARTS = 2
_STEPS = 15
_DIFFERENCE = 1e-3
_SUBJECT_SD = 0.4  # of the values of all subjects around one curve, on the scale of the residuals
_SMALL = 0.03  # of the typical value: below it a value counts by its difference, above it by its ratio
_EQUAL = 0.05  # of the residual variance: two fits closer than this are both kept
_SAME = 2e-3  # of the residual variance: two fits closer than this are the same curve
_APART = 0.3  # on the scale of h: the distance of two different fits


@dataclass(frozen=True)
class Start:
    """Numbers to start from.

    Args:
        vector: all learned numbers.
        same_curve: whether the typical patient has the same curve as with the first start.
        exchanged: the two parameters whose typical values have changed places since the first start, where all others
            are as in it; empty where that is not the only difference.
    """

    vector: Tensor
    same_curve: bool = False
    exchanged: tuple[str, ...] = ()


@torch.no_grad()
def starting_values(model: PopulationModel, numbers: LearnedNumbers, batch: CohortBatch) -> list[Start]:
    """One or two starts. There are two where different typical values fit the pooled samples alike; where they even
    give the same curve, as with absorption and elimination that have changed places (flip-flop), the one nearer to the
    guess of the dynamics is the first, else the one that fits better.

    All subjects get the same parameters. Residuals are differences of asinh(y/s), with s a small share of the typical
    value: of logarithms for large values, of the values for small ones. The square of that of a censored value is
    minus twice the logarithm of its probability, times a variance (Tobit 1958). Typical values that the user has given
    or fixed stay.

    1. Residual sum of squares at quasi-random points around the guess of the dynamics.
    2. Least squares (Levenberg–Marquardt) from the best of them.

    Args:
        model: as built, in float64.
        numbers: its learned numbers.
        batch: the subjects.
    """
    population = model.population
    location, start = numbers.of(population.location), numbers.get()
    given = {*population.typical_start, *population.fixed}
    free = [k for k, name in enumerate(population.names) if name not in given]
    if not location or not free:
        return [Start(start)]
    pooled = _Pooled(model, batch, free)
    centre = population.location.detach().clone()
    spread = torch.tensor(
        [
            _SPREAD if isinstance(getattr(kind, "inner", kind), LogNormal | LogitNormal) else _OTHER_SPREAD
            for kind in (population.distribution[population.names[k]] for k in free)
        ],
        dtype=centre.dtype,
        device=centre.device,
    )
    u = randomness.quasi_uniform(0, Stream.ESTIMATION.at(0), torch.tensor([0]), _POINTS, len(free))[0]
    points = centre[free] + (2 * u.to(centre) - 1) * spread
    points = torch.cat([centre[free][None], points])
    some = torch.linspace(0, len(batch) - 1, min(len(batch), _SUBJECTS)).round().long()
    squares = pooled.residuals(points, some).square().sum(1)
    best = _apart([points[k] for k in squares.argsort().tolist()], _CANDIDATES_APART)[:_CANDIDATES]
    found = sorted((pooled.least_squares(point) for point in best), key=lambda one: one[1])
    least = found[0][1]
    kept = _apart([point for point, value in found if value <= least * (1 + _EQUAL)], _APART)[:_MOST_STARTS]
    values = [value for point, value in found if any(point is one for one in kept)]
    same = len(values) > 1 and abs(values[1] - values[0]) < _SAME * least
    if same:
        kept.sort(key=lambda point: float((point - centre[free]).square().sum()))
    starts: list[Start] = []
    for point in kept:
        vector = start.clone()
        vector[[location[k] for k in free]] = point.double()
        exchanged = tuple(population.names[free[k]] for k in _exchanged(kept[0], point)) if same else ()
        starts.append(Start(vector, same and bool(starts), exchanged))
    return starts


def _exchanged(one: Tensor, other: Tensor) -> list[int]:
    """Positions of two numbers that have changed places between two points; empty where other numbers differ too."""
    places: list[int] = ((one - other).abs() > _APART / 2).nonzero()[:, 0].tolist()
    if len(places) != 2 or float((one[places] - other[places[::-1]]).abs().max()) > _APART / 2:
        return []
    return places


def _apart(points: list[Tensor], distance: float) -> list[Tensor]:
    """The points that are not close to an earlier one."""
    kept: list[Tensor] = []
    for point in points:
        if all(float((point - other).abs().max()) > distance for other in kept):
            kept.append(point)
    return kept


class _Pooled:
    """Residuals of curves that are the same for all subjects."""

    def __init__(self, model: PopulationModel, batch: CohortBatch, free: list[int]) -> None:
        self.model, self.batch, self.free = model, batch, free
        scale = model.value_scale.to(batch.value)[batch.endpoint] * _SMALL
        self.scale = torch.where(scale > 0, scale, 1.0)
        # a censored value is an interval; without those below the limit every curve would be too high where they are
        low = torch.where(batch.censored > 0, batch.limit, batch.value)
        high = torch.where(batch.censored < 0, batch.limit, batch.value)
        self.low, self.high = (torch.asinh(bound / self.scale) for bound in (low, high))
        self.censored = batch.censored != 0

    def residuals(self, points: Tensor, subjects: Tensor | None = None) -> Tensor:
        """Of every point ``[point, parameter]``, ``[point, subject · observation]``; large where a curve could not be
        solved."""
        rows = torch.arange(len(self.batch)) if subjects is None else subjects
        rows = rows.to(self.batch.device)
        part, population = self.batch.select(rows), self.model.population
        theta = population.location.detach().expand(len(points), -1).clone()
        theta[:, self.free] = points
        # the typical subject of each point, with the effects of covariates as they start
        shift = population.centre(part.covariates) - population.location  # [subject, period, parameter]
        x = theta[:, None, None] + shift
        latent = x.new_zeros((*x.shape[:-1], population.latent))
        individual = population.transform(torch.cat([x, latent], dim=-1))
        repeated = part.repeat(len(points))
        ordered = self.model.of_dynamics(individual.transpose(0, 1).flatten(0, 1), repeated)
        trajectory = self.model.dynamics.follow(ordered, repeated, None, self.model.engine)
        value = self.model.recorded(trajectory.states, trajectory.theta, repeated)
        value = value.reshape(len(rows), len(points), -1).transpose(0, 1)
        value = torch.asinh(value / self.scale[rows])
        above, below = (value - self.low[rows]) / _SUBJECT_SD, (self.high[rows] - value) / _SUBJECT_SD
        log_p = torch.special.log_ndtr(above) + torch.special.log_ndtr(below)
        of_censored = _SUBJECT_SD * (-2.0 * log_p).sqrt()
        found = torch.where(self.censored[rows], of_censored, value - self.high[rows])
        found = torch.where(part.target, found.nan_to_num(1e3), 0.0)
        return found.flatten(1)

    def least_squares(self, point: Tensor) -> tuple[Tensor, float]:
        """The point of the least squares nearby, and its sum of squares."""
        size, damping = len(self.free), 1e-2
        one = torch.eye(size, dtype=point.dtype, device=point.device)
        for _ in range(_STEPS):
            all_residuals = self.residuals(torch.cat([point[None], point + _DIFFERENCE * one]))
            residual = all_residuals[0]
            slopes = (all_residuals[1:] - residual) / _DIFFERENCE
            gram, gradient, value = slopes @ slopes.T, slopes @ residual, float(residual.square().sum())
            dampings = [damping * factor for factor in (0.1, 1.0, 10.0, 100.0)]
            trials = []
            for each in dampings:
                matrix = gram + each * torch.diag(gram.diagonal() + 1e-6)
                trials.append(point - torch.linalg.solve(matrix, gradient).clamp(-1.5, 1.5))
            values = self.residuals(torch.stack(trials)).square().sum(1)
            chosen = int(values.argmin())
            if not float(values[chosen]) < value * (1 - 1e-5):
                return point, value
            point, damping = trials[chosen], dampings[chosen]
        return point, float(self.residuals(point[None]).square().sum())
