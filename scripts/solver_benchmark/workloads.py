"""The two workloads that the engines solve, as plain arrays, with a reference in double precision.

Both are cohorts whose subjects are observed at different random times. The vector field has a linear part and a neural
network::

    dy/dt = matrix·y + (0, MLP(y1, y2, z)) + input,     MLP: 6 - tanh 64 - tanh 64 - 2,  z differs between subjects

y1 and y2 are the last two states, central and peripheral.

=========  ==================================================================================================
bolus      states central and peripheral, matrix −0.2·I, from (1, 0) over 24 h
doses      a depot before them, KA 0.8 /h, k10 0.1 /h, k12 0.2 /h, k21 0.15 /h, from (0, 0, 0); 1 into the
           depot every 12 h for 14 days, and an infusion of 2 into central from 150 to 152 h. All subjects
           have the same dose times: the easiest case for solvers that use the same times for all subjects
=========  ==================================================================================================
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
IntArray = NDArray[np.int64]

LATENT, HIDDEN = 4, 64
RTOL, ATOL = 1e-5, 1e-6
CHECKED = 256
"""Number of subjects, from the first on, for which the reference is computed."""


class Given(NamedTuple):
    """A dose: at once, or as an infusion of some duration."""

    time: float
    amount: float
    state: int
    duration: float = 0.0


class Segment(NamedTuple):
    """An interval without events: the jump at its start and the constant input during it, both ``[state]``."""

    start: float
    end: float
    jump: Array
    input: Array


@dataclass(frozen=True)
class Workload:
    """One cohort.

    Args:
        states: names of the states.
        matrix: linear part of the vector field, ``[state, state]``.
        y0: state at time 0, before any dose, ``[state]``.
        horizon: end of the last segment.
        given: doses of every subject.
        times: observations, increasing, ``[subject, observation]``.
        targets: values in the loss, ``[subject, observation, state]``.
        latents: z, ``[subject, latent]``.
        weights: weight and bias of each layer of the network.
    """

    states: tuple[str, ...]
    matrix: Array
    y0: Array
    horizon: float
    given: tuple[Given, ...]
    times: Array
    targets: Array
    latents: Array
    weights: tuple[Array, ...]

    @functools.cached_property
    def segments(self) -> list[Segment]:
        """The intervals between doses, for a solver that has to restart at each dose."""
        edges = {0.0, self.horizon, *(g.time for g in self.given), *(g.time + g.duration for g in self.given)}
        unit = np.eye(len(self.states), dtype=np.float32)
        segments = []
        for start, end in pairwise(sorted(edges)):
            jump, flow = np.zeros_like(unit[0]), np.zeros_like(unit[0])
            for dose in self.given:
                if dose.duration == 0.0 and dose.time == start:
                    jump += dose.amount * unit[dose.state]
                if dose.time <= start < dose.time + dose.duration:
                    flow += dose.amount / dose.duration * unit[dose.state]
            segments.append(Segment(start, end, jump, flow))
        return segments

    @functools.cached_property
    def slots(self) -> tuple[Array, tuple[IntArray, IntArray, IntArray]]:
        """The observations sorted into the segments, and the indices to read them back.

        Returns:
            Times ``[subject, segment, slot]``, padded with the end of the segment, which is the last slot of each;
            and the indices of the observations in an array of this shape, each ``[subject, observation]``.
        """
        starts, ends = np.array([(s.start, s.end) for s in self.segments], np.float32).T
        segment = np.searchsorted(starts, self.times, side="right") - 1
        slot = np.arange(self.times.shape[1]) - (segment[:, :, None] > segment[:, None, :]).sum(-1)
        subject = np.arange(len(self.times))[:, None].repeat(self.times.shape[1], 1)
        times = np.broadcast_to(ends[:, None], (len(self.times), len(ends), int(slot.max()) + 2)).copy()
        times[subject, segment, slot] = self.times
        return times, (subject, segment, slot)


def _weights() -> tuple[Array, ...]:
    """Weights of the network: normal, scaled by the number of inputs, smaller in the last layer; all biases are 0."""
    rng = np.random.default_rng(7)
    arrays: list[Array] = []
    for outputs, inputs, scale in ((HIDDEN, 2 + LATENT, 1.0), (HIDDEN, HIDDEN, 1.0), (2, HIDDEN, 0.3)):
        weight = scale * rng.standard_normal((outputs, inputs)) / np.sqrt(inputs)
        arrays += [weight.astype(np.float32), np.zeros(outputs, np.float32)]
    return tuple(arrays)


def _two_compartments(times: Array, k10: Array, k12: Array, k21: Array) -> Array:
    """Amounts after a bolus of 1 into central, ``[subject, observation, state]``; rates ``[subject]``."""
    half = (k10 + k12 + k21) / 2
    root = np.sqrt(half**2 - k10 * k21)
    fast, slow = (half + root)[:, None], (half - root)[:, None]
    down, up = np.exp(-fast * times), np.exp(-slow * times)
    central = ((fast - k21[:, None]) * down + (k21[:, None] - slow) * up) / (fast - slow)
    return np.stack([central, k12[:, None] * (up - down) / (fast - slow)], axis=-1)


def _bolus(subjects: int, doses: int, observations: int) -> Workload:
    del doses  # the dose is the initial state
    rng = np.random.default_rng(0)
    times = np.sort(24.0 * rng.random((subjects, observations)), axis=1).astype(np.float32)
    rates = [typical * np.exp(0.3 * rng.standard_normal(subjects)) for typical in (0.2, 0.3, 0.2)]
    targets = _two_compartments(times.astype(float), *rates).astype(np.float32)
    return Workload(
        states=("central", "peripheral"),
        matrix=-0.2 * np.eye(2, dtype=np.float32),
        y0=np.array([1.0, 0.0], np.float32),
        horizon=24.0,
        given=(),
        times=times,
        targets=targets,
        latents=rng.standard_normal((subjects, LATENT)).astype(np.float32),
        weights=_weights(),
    )


def _doses(subjects: int, doses: int, observations: int) -> Workload:
    rng = np.random.default_rng(0)
    horizon = 12.0 * doses
    times = np.sort(horizon * rng.random((subjects, observations)), axis=1).astype(np.float32)
    infusion = Given(6.0 + 12.0 * (12 * doses // 28), 2.0, 1, duration=2.0)
    return Workload(
        states=("depot", "central", "peripheral"),
        matrix=np.array([[-0.8, 0.0, 0.0], [0.8, -0.3, 0.15], [0.0, 0.2, -0.15]], np.float32),
        y0=np.zeros(3, np.float32),
        horizon=horizon,
        given=(*(Given(12.0 * k, 1.0, 0) for k in range(doses)), infusion),
        times=times,
        # random numbers: the values do not change the work of a step
        targets=rng.random((subjects, observations, 3)).astype(np.float32),
        latents=rng.standard_normal((subjects, LATENT)).astype(np.float32),
        weights=_weights(),
    )


MAKERS: dict[str, Callable[[int, int, int], Workload]] = {"bolus": _bolus, "doses": _doses}


def make(name: str, subjects: int, doses: int = 28, observations: int = 20) -> Workload:
    """A workload by its name; each call returns the same numbers."""
    return MAKERS[name](subjects, doses, observations)


def reference(workload: Workload, longest: float = 0.1) -> Array:
    """States of the first `CHECKED` subjects at their observations, ``[subject, observation, state]``, in float64.

    The classical fourth-order method with steps of at most `longest`; inside a step the cubic through the states and
    slopes at both ends (Hairer, Nørsett & Wanner 1993, II.6). Its error is about 1e-7, a hundredth of the tolerance.
    """
    latents, observed = workload.latents[:CHECKED].astype(float), workload.times[:CHECKED].astype(float)
    w1, b1, w2, b2, w3, b3 = (array.astype(float) for array in workload.weights)
    matrix = workload.matrix.astype(float).T
    shift = latents @ w1[:, 2:].T + b1

    def slope(y: Array, flow: Array) -> Array:
        dy = y @ matrix + flow
        dy[:, -2:] += np.tanh(np.tanh(y[:, -2:] @ w1[:, :2].T + shift) @ w2.T + b2) @ w3.T + b3
        return dy

    y = np.tile(workload.y0.astype(float), (len(latents), 1))
    states = np.full((*observed.shape, len(workload.states)), np.nan)
    for segment in workload.segments:
        y = y + segment.jump
        before = slope(y, segment.input)
        steps = int(np.ceil((segment.end - segment.start) / longest))
        h = (segment.end - segment.start) / steps
        for k in range(steps):
            second = slope(y + h / 2 * before, segment.input)
            third = slope(y + h / 2 * second, segment.input)
            last = slope(y + h * third, segment.input)
            y_next = y + h / 6 * (before + 2 * second + 2 * third + last)
            after = slope(y_next, segment.input)
            s = (observed - segment.start) / h - k
            subject, observation = np.nonzero((s >= 0) & (s < 1))
            at = s[subject, observation][:, None]
            states[subject, observation] = (
                (1 + 2 * at) * (1 - at) ** 2 * y[subject]
                + at * (1 - at) ** 2 * h * before[subject]
                + at**2 * (3 - 2 * at) * y_next[subject]
                + at**2 * (at - 1) * h * after[subject]
            )
            y, before = y_next, after
    return states
