"""Profile intervals: the values of a number with which the other numbers can still make the data nearly as likely."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from neuralpk.cohort_batch import CohortBatch
from neuralpk.estimation.estimator import PopulationEstimator
from neuralpk.estimation.held_draws import HeldDraws, HeldLikelihood
from neuralpk.parameters import Coordinate

_DROP = 3.841459  # in −2LL: 95 % quantile of chi-square with one degree of freedom
_STEPS = 25
_SMALL_STEP = 0.3  # standard errors: the step after it would move the end by about 0.01 of them
_LONGEST_STEP = 2.5  # standard errors
_FARTHEST_STEP = 1.0  # of any number, on the scale of the search
_LEAST_INFORMATION = 1e-3
_KEPT = 0.4  # of the effective draws; with fewer there are new ones

Ends = dict[str, tuple[float, float]]


@torch.no_grad()
def profile_intervals(estimator: PopulationEstimator, batch: CohortBatch, information: Tensor) -> Ends:
    """Ends of the 95 % profile intervals of the coordinates, by name: where −2LL, minimised over all other numbers, is
    3.84 above its minimum. With priors, −2LL includes their log density.

    The lower end of an omega is 0 where −2LL at the smallest omega (`neuralpk.estimation.learned_numbers`) is not 3.84
    above its minimum. A coordinate is left out where an end is not found.

    Args:
        estimator: at the estimate, where it is again afterwards, with proposals for it; its stage says how many draws.
        batch: the subjects, float64; every record that is a target counts.
        information: minus the second derivatives of log p(data) + log prior on the scale of the search
            (`LearnedNumbers.search_scale`), ``[number, number]``.

    Returns:
        Lower and upper end on the scale on which a coordinate is learned, of a correlation the correlation; of an
        omega −inf for 0.
    """
    numbers = estimator.numbers
    vector = numbers.get()
    search = _Search(estimator, estimator.draw(batch, curved=True), information)
    found: Ends = {}
    for one, along, read in _coordinates(estimator):
        low, high = search.end(lambda at, along=along: -along(at)), search.end(along)  # type: ignore[misc]
        if low is None or high is None:
            continue
        ends = read(low), read(high)
        if one.kind == "omega" and bool(low[k := numbers.of(one.tensor)[one.index]] <= numbers.low[k] + 1e-6):
            ends = -math.inf, ends[1]
        if ends[0] <= read(vector) <= ends[1]:
            found[one.name] = ends
    numbers.set(vector)
    return found


Along = Callable[[Tensor], Tensor]
Read = Callable[[Tensor], float]


def _coordinates(estimator: PopulationEstimator) -> Iterator[tuple[Coordinate, Along, Read]]:
    """Every coordinate with its derivatives in the learned numbers on the scale of the search, and its value."""
    numbers, population = estimator.numbers, estimator.model.population
    for one in estimator.model.coordinates():
        positions = numbers.of(one.tensor)
        if not positions:
            continue
        position = positions[one.index]
        if one.kind != "correlation":
            unit = torch.zeros(numbers.size, dtype=torch.float64, device=numbers.device)
            unit[position] = 1.0
            yield one, lambda _, unit=unit: unit, lambda at, k=position: float(at[k])  # type: ignore[misc]
            continue

        def along(at: Tensor, k: int = one.index, positions: list[int] = positions) -> Tensor:
            numbers.set(at)
            with torch.enable_grad():
                (slope,) = torch.autograd.grad(population.correlations()[k], population.factor_entries)
            found = torch.zeros_like(at)
            found[positions] = slope
            return found

        def read(at: Tensor, k: int = one.index) -> float:
            numbers.set(at)
            return float(population.correlations()[k])

        yield one, along, read


@dataclass(frozen=True)
class _Point:
    """The log likelihood and its derivatives somewhere.

    Args:
        vector: the learned numbers.
        value: log p(data) + log prior.
        score: first derivatives on the scale of the search, ``[number]``.
        information: minus the second derivatives, ``[number, number]``.
    """

    vector: Tensor
    value: float
    score: Tensor
    information: Tensor


class _Search:
    """Search for the ends of profile intervals.

    An end is the largest value of the coordinate in the region where −2LL is at most 3.84 above its minimum. Each step
    goes to the largest value in the region of the quadratic approximation (as Venzon and Moolgavkar 1988)::

        step = information⁻¹ · (score + mu·along),    mu ≥ 0 such that −2LL of the approximation is 3.84 above

    The first step uses the second derivatives at the estimate; where it is not enough, later ones use those where they
    start.
    """

    def __init__(self, estimator: PopulationEstimator, held: HeldDraws, information: Tensor) -> None:
        self.estimator, self.numbers, self.held, self.information = estimator, estimator.numbers, held, information
        self.likelihood, self.threshold = estimator.likelihood([held]), math.inf
        self.estimate, self.effective = self._point(self.likelihood, self.numbers.get(), exact=False)
        # the maximum given these draws is not exactly at the estimate
        to_maximum, _ = self._step(self.estimate, torch.zeros_like(self.estimate.score))
        self.threshold = self.estimate.value + 0.5 * float(self.estimate.score @ to_maximum) - _DROP / 2

    def end(self, along: Along) -> Tensor | None:
        """The learned numbers where a function of them is largest; None where that is not found.

        Args:
            along: derivatives of the function, on the scale of the search.
        """
        held, likelihood, point = self.held, self.likelihood, self.estimate
        for number in range(_STEPS):
            step, size = self._step(point, along(point.vector))
            shorter = min(1.0, _LONGEST_STEP / max(size, 1e-30), _FARTHEST_STEP / max(float(step.abs().max()), 1e-30))
            scaled = self.numbers.search_scale(point.vector)[0] + shorter * step
            aim = self._within(self.numbers.from_search_scale(scaled), self.numbers.low, self.numbers.high)
            vector = self._within(aim, likelihood.low, likelihood.high)
            if number and size < _SMALL_STEP and bool((aim == vector).all()):
                return vector
            point, effective = self._point(likelihood, vector, exact=number > 0)
            if effective < _KEPT * self.effective or bool((aim != vector).any()):
                held, likelihood = self._drawn_at(vector, held)
                point, effective = self._point(likelihood, vector, exact=number > 0)
            if not math.isfinite(point.value) or effective < _KEPT * self.effective:
                return None
        return None

    @staticmethod
    def _within(vector: Tensor, low: Tensor, high: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(vector, low), high)

    def _step(self, point: _Point, along: Tensor) -> tuple[Tensor, float]:
        """The step on the scale of the search, and its length in standard errors. A number at its bound stays there
        while the step would go outwards."""
        numbers, vector = self.numbers, point.vector
        moving = numbers.free.clone()
        while True:
            values, axes = torch.linalg.eigh(point.information[moving][:, moving])
            inverse = torch.zeros_like(point.information)
            known = (axes / values.abs().clamp(min=_LEAST_INFORMATION)) @ axes.T
            rows = moving.nonzero()[:, 0]
            inverse[rows[:, None], rows] = known
            up, sideways = inverse @ point.score, inverse @ along
            room = 2 * (point.value - self.threshold) + float(point.score @ up)
            length = float(along @ sideways)
            step = up + (math.sqrt(room / length) * sideways if room > 0 and length > 1e-12 else 0.0)
            outwards = ((vector <= numbers.low + 1e-9) & (step < 0)) | ((vector >= numbers.high - 1e-9) & (step > 0))
            if not bool((outwards & moving).any()):
                return step, math.sqrt(max(float(step[rows] @ torch.linalg.solve(known, step[rows])), 0.0))
            moving &= ~outwards

    def _point(self, likelihood: HeldLikelihood, vector: Tensor, exact: bool) -> tuple[_Point, float]:
        """With the second derivatives at the estimate unless `exact`; and the mean effective draws."""
        value, slope, effective = likelihood.gradient(vector)
        information = self.information
        score = slope * self.numbers.search_scale(vector)[1]
        if exact:
            second = likelihood.derivatives(vector)[2]
            information = self.numbers.on_search_scale(vector, slope, second)[2]
        return _Point(vector, value, score, information), effective

    def _drawn_at(self, vector: Tensor, held: HeldDraws) -> tuple[HeldDraws, HeldLikelihood]:
        """New draws, around the posteriors in the population `vector`."""
        self.numbers.set(vector)
        self.estimator.renew_proposals([held])
        drawn = self.estimator.draw(held.batch, curved=True)
        return drawn, self.estimator.likelihood([drawn])
