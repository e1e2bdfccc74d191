"""Profile intervals: the values of a number with which the other numbers can still make the data nearly as likely."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from neuralpk.cohort_batch import CohortBatch
from neuralpk.estimation.estimator import PopulationEstimator
from neuralpk.estimation.held_draws import HeldDraws
from neuralpk.estimation.held_likelihood import HeldLikelihood
from neuralpk.estimation.learned_numbers import LearnedNumbers
from neuralpk.parameters import Coordinate

_DROP = 3.841459  # in −2LL: 95 % quantile of chi-square with one degree of freedom
_STEPS = 25
_SMALL_STEP = 0.3  # standard errors: the step after it would move the end by about 0.01 of them
_LONGEST_STEP = 2.5  # standard errors
_FARTHEST_STEP = 1.0  # of any number, on the scale of the search
_LEAST_INFORMATION = 1e-3
_KEPT = 0.4  # of the effective draws; with fewer there are new ones
_RENEWALS = 2  # of the draws in one place
_MOST_LOST = 3  # coordinates; with more, the draws say too little about other populations

Ends = dict[str, tuple[float, float]]


@torch.no_grad()
def profile_intervals(estimator: PopulationEstimator, batch: CohortBatch, information: Tensor) -> Ends:
    """Ends of the 95 % profile intervals of the coordinates, by name: where −2LL, minimised over all other numbers, is
    3.84 above its minimum. With priors, −2LL includes their log density.

    The lower end of an omega or kappa is 0 where −2LL at the smallest one (`neuralpk.estimation.learned_numbers`) is
    not 3.84 above its minimum. A coordinate is left out where an end is not found, and after four of these so are all
    that follow: draws then say little about other populations than theirs, as where parameters are hard to tell apart.

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
    search = _Search(estimator, batch, information)
    found: Ends = {}
    lost = 0
    for one in estimator.model.coordinates():
        profiled = _Profiled(one, numbers)
        low = search.end(profiled, -1)
        high = None if low is None else search.end(profiled, 1)
        if (
            low is not None
            and high is not None
            and profiled.value(low) <= profiled.value(vector) <= profiled.value(high)
        ):
            found[one.name] = profiled.value(low), profiled.value(high)
        elif (lost := lost + 1) > _MOST_LOST:
            break
    numbers.set(vector)
    return found


class _Profiled:
    """A coordinate as a function of the learned numbers.

    Args:
        one: the coordinate.
        numbers: the learned numbers.
    """

    def __init__(self, one: Coordinate, numbers: LearnedNumbers) -> None:
        self.one, self.numbers, self.positions = one, numbers, numbers.of(one.tensor)

    def value(self, at: Tensor) -> float:
        """On the scale on which it is learned; of a correlation the correlation, of an omega at its bound −inf."""
        if self.one.kind == "correlation":
            return float(self._correlation(at).detach())
        return -math.inf if self.at_bound(at) else float(at[self.positions[self.one.index]])

    def at_bound(self, at: Tensor) -> bool:
        """Whether it is an omega or kappa at its lower bound."""
        position = self.positions[self.one.index]
        return self.one.is_spread and float(at[position] - self.numbers.low[position]) < 1e-6

    def slope(self, at: Tensor) -> Tensor:
        """Its derivatives on the scale of the search, up to a factor, ``[number]``."""
        slope = torch.zeros_like(at)
        if self.one.kind == "correlation":
            with torch.enable_grad():
                (slope[self.positions],) = torch.autograd.grad(self._correlation(at), self.one.tensor)
        else:
            slope[self.positions[self.one.index]] = 1.0
        return slope

    def _correlation(self, at: Tensor) -> Tensor:
        self.numbers.set(at)
        return self.numbers.model.population.correlations()[self.one.index]


@dataclass(frozen=True)
class _Point:
    """The log likelihood and its derivatives somewhere.

    Args:
        vector: the learned numbers.
        value: log p(data) + log prior, less its maximum.
        score: first derivatives on the scale of the search, ``[number]``.
        information: minus the second derivatives, ``[number, number]``.
    """

    vector: Tensor
    value: float
    score: Tensor
    information: Tensor


@dataclass(frozen=True)
class _Draws:
    """Held draws of all subjects.

    Args:
        number: of the set of quasi-random numbers.
        held: the draws.
        likelihood: given these draws.
    """

    number: int
    held: HeldDraws
    likelihood: HeldLikelihood


class _Search:
    """Search for the ends of profile intervals.

    An end is the largest or the smallest value of the coordinate in the region where −2LL is at most 3.84 above its
    minimum. Each step goes to where that value would be if −2LL were quadratic (as Venzon and Moolgavkar 1988)::

        step = information⁻¹ · (score + mu·along)

    with `along` the derivatives of the coordinate, and mu such that −2LL is 3.84 above its minimum. The first two steps
    use the information at the estimate, later ones that of the place where they start. Where the effective draws have
    become few, new ones are drawn there.

    New draws come from proposals that were made from the draws before, which have other quasi-random numbers: there are
    two sets of these, in turn, and the maximum is known with both.

    Args:
        estimator: makes new draws.
        batch: the subjects, float64.
        information: at the estimate, on the scale of the search, ``[number, number]``.
    """

    def __init__(self, estimator: PopulationEstimator, batch: CohortBatch, information: Tensor) -> None:
        self.estimator, self.numbers, self.batch, self.information = estimator, estimator.numbers, batch, information
        self._at_estimate = self.numbers.get()
        self._maxima: dict[int, float] = {}  # of log p(data) + log prior by set of quasi-random numbers
        self.first = self._drawn(0, self._at_estimate)
        self.estimate, self.effective = self._point(self.first, self._at_estimate, exact=False)

    def end(self, profiled: _Profiled, sign: int) -> Tensor | None:
        """The learned numbers at the end of an interval; None where it is not found.

        Args:
            profiled: the coordinate.
            sign: 1 for the upper end, −1 for the lower.
        """
        draws, point = self.first, self.estimate
        for number in range(_STEPS):
            step, size = self._step(point, sign * profiled.slope(point.vector))
            shorter = min(1.0, _LONGEST_STEP / max(size, 1e-30), _FARTHEST_STEP / max(float(step.abs().max()), 1e-30))
            scaled = self.numbers.search_scale(point.vector)[0] + shorter * step
            aim = self._within(self.numbers.from_search_scale(scaled), self.numbers.low, self.numbers.high)
            vector = self._within(aim, draws.likelihood.low, draws.likelihood.high)
            if number and size < _SMALL_STEP and bool((aim == vector).all()):
                return vector
            point, effective = self._point(draws, vector, exact=number > 0)
            few = effective < _KEPT * self.effective
            for _ in range(_RENEWALS):
                if not few and bool((aim == vector).all()):
                    break
                draws = self._drawn_at(vector, draws)
                point, effective = self._point(draws, vector, exact=number > 0)
                few, aim = effective < _KEPT * self.effective, vector
            if few or not math.isfinite(point.value):
                return None
            if sign < 0 and profiled.at_bound(vector) and point.value >= -_DROP / 2:
                return vector
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
            room = 2 * point.value + _DROP + float(point.score @ up)
            length = float(along @ sideways)
            step = up + (math.sqrt(room / length) * sideways if room > 0 and length > 1e-12 else 0.0)
            outwards = ((vector <= numbers.low + 1e-9) & (step < 0)) | ((vector >= numbers.high - 1e-9) & (step > 0))
            if not bool((outwards & moving).any()):
                return step, math.sqrt(max(float(step[rows] @ torch.linalg.solve(known, step[rows])), 0.0))
            moving &= ~outwards

    def _point(self, draws: _Draws, vector: Tensor, exact: bool) -> tuple[_Point, float]:
        """With the second derivatives at the estimate unless `exact`; and the mean effective draws."""
        value, slope, effective = draws.likelihood.gradient(vector)
        information = self.information
        score = slope * self.numbers.search_scale(vector)[1]
        if exact:
            second = draws.likelihood.derivatives(vector)[2]
            information = self.numbers.on_search_scale(vector, slope, second)[2]
        return _Point(vector, value - self._maxima.get(draws.number, 0.0), score, information), effective

    def _drawn_at(self, vector: Tensor, draws: _Draws) -> _Draws:
        """New draws, around the posteriors in the population `vector`."""
        number = 1 - draws.number
        if number not in self._maxima:
            self._drawn(number, self._at_estimate, self.first.held)
        return self._drawn(number, vector, draws.held)

    def _drawn(self, number: int, vector: Tensor, before: HeldDraws | None = None) -> _Draws:
        """Draws with one of the two sets of quasi-random numbers, from the proposals as they are or after other draws
        have renewed these; the first of each set are at the estimate, and tell the maximum."""
        self.numbers.set(vector)
        if before is not None:
            self.estimator.centres.renew([before])
        held = self.estimator.draw(self.batch, number)
        draws = _Draws(number, held, self.estimator.likelihood([held]))
        if number not in self._maxima:
            # the maximum given these draws is not exactly at the estimate
            point, _ = self._point(draws, vector, exact=False)
            to_maximum = self._step(point, torch.zeros_like(point.score))[0]
            self._maxima[number] = point.value + 0.5 * float(point.score @ to_maximum)
        return draws
