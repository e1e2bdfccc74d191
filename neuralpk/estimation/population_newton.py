"""Newton's method for the population, on held draws."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from neuralpk.estimation.held_likelihood import HeldLikelihood

_LONGEST_STEP = 1.0  # of any number, on the learned scale
_KEPT = 0.4  # of the effective draws: beyond, the draws say little about the new population
_LEAST_CURVATURE = 1e-3
_MOST_DAMPING = 1e8


@dataclass(frozen=True)
class Ascent:
    """What a search on held draws came to.

    Args:
        vector: the learned numbers.
        start: log p(data) where it began.
        end: log p(data) where it ended.
        promise: score · information⁻¹ · score at the beginning: the gain in −2LL that a quadratic function would give.
        curvature: minus the second derivatives at the beginning on the scale of the search
            (`LearnedNumbers.search_scale`), ``[number, number]``.
        bound: numbers at a bound that the likelihood pushes against, bool ``[number]``.
    """

    vector: Tensor
    start: float
    end: float
    promise: float
    curvature: Tensor
    bound: Tensor


def ascend(likelihood: HeldLikelihood, vector: Tensor, tolerance: float, steps: int) -> Ascent:
    """Newton's method with the damping of Levenberg (1944), until the gain of a step is small or the effective number
    of draws has become small.

    Directions in which the likelihood curves upwards are taken with the absolute value of the curvature. A number at
    its bound stays there while the derivative pushes it outwards; for an omega at its lower bound that is the sign of
    the derivative in the variance. Numbers that are fixed stay where they are.

    Args:
        likelihood: of the held draws.
        vector: where to begin.
        tolerance: gain of the last step, in units of log p.
        steps: most steps.
    """
    numbers = likelihood.numbers
    low, high = likelihood.low, likelihood.high
    vector = torch.minimum(torch.maximum(vector, low), high)
    first_value, all_draws = likelihood.value(vector)
    damping, value, report = 1e-3, first_value, None
    for _ in range(steps):
        value, slope, second = likelihood.derivatives(vector)
        scaled, score, curvature = numbers.on_search_scale(vector, slope, second)
        bound = ((vector <= low + 1e-9) & (score < 0)) | ((vector >= high - 1e-9) & (score > 0))
        moving = numbers.free & ~bound
        values, axes = torch.linalg.eigh(curvature[moving][:, moving])
        along, values = axes.T @ score[moving], values.abs().clamp(min=_LEAST_CURVATURE)
        if report is None:
            report = float((along.square() / values).sum()), curvature, bound
        while True:
            step = torch.zeros_like(vector)
            step[moving] = axes @ (along / (values * (1 + damping)))
            step = step * min(1.0, _LONGEST_STEP / float(step.abs().max().clamp(min=1e-30)))
            trial = torch.minimum(torch.maximum(numbers.from_search_scale(scaled + step), low), high)
            new, effective = likelihood.value(trial)
            if new >= value - 1e-9 and effective > _KEPT * all_draws:
                break
            damping = max(10 * damping, 1e-2)
            if damping > _MOST_DAMPING:
                trial, new, effective = vector, value, all_draws
                break
        gain, value, vector, damping = new - value, new, trial, 0.2 * damping
        if gain < tolerance or effective < 1.25 * _KEPT * all_draws:
            break
    assert report is not None
    numbers.set(vector)
    return Ascent(vector, first_value, value, *report)
