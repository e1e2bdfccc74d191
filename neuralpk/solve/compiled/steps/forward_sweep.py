"""Adaptive Runge–Kutta steps of each subject, and their record for the reverse sweep."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from neuralpk.solve.compiled.kernels_on_disk import kept
from neuralpk.solve.compiled.matrix_product import apart, within
from neuralpk.solve.compiled.steps.field import keeps_slopes, make_work, put_in, take_step
from neuralpk.solve.compiled.steps.first_step import start_lines
from neuralpk.solve.compiled.steps.jit_options import inner
from neuralpk.solve.compiled.steps.lanes import LANES, count_live, make_lanes
from neuralpk.solve.compiled.steps.node_events import enter
from neuralpk.solve.compiled.steps.stages import weigh_stages
from neuralpk.solve.solve_result import Status
from neuralpk.solve.tsit5_coefficients import GROW, SHRINK, STABILITY, STIFF

Array = NDArray[Any]
_OK, _MAX_EVALUATIONS, _STEP_UNDERFLOW, _NON_FINITE = (
    int(s) for s in (Status.OK, Status.MAX_EVALUATIONS, Status.STEP_UNDERFLOW, Status.NON_FINITE)
)


class Steps(NamedTuple):
    """The accepted steps of a chunk of subjects, in the order in which they were taken."""

    state: Array  # [step, state] at the start of the step
    slopes: Array  # [step, stage·state], or [step, 0] of a field that does not keep them
    place: Array  # [step, 2]: start, as time since the node before; size
    mark: Array  # [step, 4]: node; first and last + 1 of the wanted times inside; the subject's step before
    last: Array  # [subject] its last step
    taken: Array  # [1] number of steps; the rows after them have no meaning


@inner
def _read_out(method, clock, lanes, lane, i, h, whole, out):
    """Compute the states at the wanted times inside the step; `whole` if it ends at the next node."""
    within()
    state, points, k, weights = lanes.state, lanes.points, lanes.k, lanes.weights
    start, j, q = lanes.place[0, lane], lanes.node[lane], lanes.seen[lane]
    while q < clock.wanted.shape[1]:
        m = clock.order[i, q]
        since = float(clock.since[i, m])
        if clock.wanted[i, m] != j or (since > start + h and not whole):
            break
        share = min((since - start) / h, 1.0)
        weigh_stages(method.dense, share, False, weights)
        for d in range(state.shape[0]):
            total = 0.0
            for stage in range(k.shape[0]):
                total += weights[0, stage] * k[stage, d, lane]
            out[i, m, d] = points[points.shape[0] - 1, d, lane] if share >= 1.0 else state[d, lane] + h * total
        q += 1
    lanes.seen[lane] = q


@inner
def _refill(clock, lanes, initial, upcoming, end, out):
    """Put the next subjects into the empty lanes; returns the subject after them."""
    within()
    for lane in range(LANES):
        while lanes.subject[lane] < 0 and upcoming < end:
            i = upcoming
            upcoming += 1
            for d in range(initial.shape[1]):
                lanes.state[d, lane] = initial[i, d]
            lanes.node[lane], lanes.seen[lane], lanes.step[lane], lanes.size[lane] = -1, 0, -1, 0.0
            lanes.tally[0, lane], lanes.tally[1, lane] = 0, 0
            if enter(clock, i, lane, lanes.node, lanes.seen, lanes.state, lanes.place, out):
                lanes.subject[lane], lanes.flag[lane] = i, True
    return upcoming


@inner
def _remember(lanes, lane, steps, start, h, seen_before):
    """Record an accepted step."""
    within()
    s, states = steps.taken[0], lanes.state.shape[0]
    for d in range(states):
        steps.state[s, d] = lanes.state[d, lane]
        for stage in range(steps.slopes.shape[1] // states):
            steps.slopes[s, stage * states + d] = lanes.k[stage, d, lane]
    steps.place[s, 0], steps.place[s, 1] = start, h
    steps.mark[s, 0], steps.mark[s, 1] = lanes.node[lane], seen_before
    steps.mark[s, 2], steps.mark[s, 3] = lanes.seen[lane], lanes.step[lane]
    lanes.step[lane] = s
    steps.taken[0] += 1


@inner
def _stiff(lanes, lane, h, bent, moved, most):
    """Whether stability, not accuracy, has limited the last `most` steps."""
    tally = lanes.tally
    if moved > 0.0 and h * h * bent > STABILITY * STABILITY * moved:
        tally[0, lane] += 1
        tally[1, lane] = 0
    else:
        tally[1, lane] += 1
        if tally[1, lane] == 6:
            tally[0, lane] = 0
    return tally[0, lane] == most


@inner
def _settle(method, clock, lanes, steps, begin, limit, stiff_steps, record, out, status):
    """Accept the steps whose error is small enough, and choose the sizes of the next steps."""
    within()
    subject, state, points, place, size, k = lanes.subject, lanes.state, lanes.points, lanes.place, lanes.size, lanes.k
    stages, end = k.shape[0], points.shape[0] - 1
    for lane in range(LANES):
        i, h = subject[lane], lanes.h[lane]
        if i < 0:
            continue
        lanes.tally[2, lane] += stages - method.overlap
        error, bent, moved = lanes.verdict[0, lane], lanes.verdict[1, lane], lanes.verdict[2, lane]
        finite, change, ended = math.isfinite(error), lanes.verdict[3, lane], _OK
        if not error <= 1.0:
            size[lane] = h * max(SHRINK, change)
            if place[0, lane] + 0.01 * size[lane] == place[0, lane] or size[lane] < 1e-13 * place[1, lane]:
                ended = _STEP_UNDERFLOW if finite else _NON_FINITE
        else:
            start, seen_before = place[0, lane], lanes.seen[lane]
            whole = h >= place[1, lane] - start
            _read_out(method, clock, lanes, lane, i, h, whole, out)
            if record:
                _remember(lanes, lane, steps, start, h, seen_before)
            for d in range(state.shape[0]):
                state[d, lane], k[0, d, lane] = points[end, d, lane], k[stages - 1, d, lane]
            place[0, lane] = start + h
            grown = h * min(GROW, max(SHRINK, change))
            size[lane] = max(grown, size[lane]) if whole else grown
            if _stiff(lanes, lane, h, bent, moved, stiff_steps):
                ended = STIFF
            elif lanes.seen[lane] == clock.wanted.shape[1] or (
                whole and not enter(clock, i, lane, lanes.node, lanes.seen, state, place, out)
            ):
                steps.last[i - begin] = lanes.step[lane]
                subject[lane] = -1
            elif whole:
                lanes.flag[lane] = True
        if ended == _OK and subject[lane] >= 0 and lanes.tally[2, lane] > limit:
            ended = _MAX_EVALUATIONS
        if ended != _OK:
            status[i] = ended
            subject[lane] = -1


@inner
def _advance(field, method, clock, work, lanes, steps, initial, begin, upcoming, end, tolerances, limits, out, status):
    """Take steps until all subjects are solved or the record is full.

    Returns the subject after those in the lanes, whether any subject is left, and the evaluations of the vector field.
    """
    stages, place, size, h, evaluations = lanes.k.shape[0], lanes.place, lanes.size, lanes.h, 0
    (rtol, atol), (limit, stiff_steps, record) = tolerances, limits
    while True:
        upcoming = _refill(clock, lanes, initial, upcoming, end, out)
        live = count_live(lanes)
        if live == 0:
            return upcoming, False, evaluations
        if steps.taken[0] + LANES > len(steps.place):
            return upcoming, True, evaluations
        evaluations += start_lines(field, method, clock, work, lanes, rtol, atol) + (stages - method.overlap) * live
        for lane in range(LANES):
            left, wished = place[1, lane] - place[0, lane], size[lane]
            # two steps of equal size rather than one and a small rest
            h[lane] = wished if 2.0 * wished <= left else left if wished >= left else min(wished, 0.5 * left)
        take_step(field, work, lanes, rtol, atol)
        _settle(method, clock, lanes, steps, begin, limit, stiff_steps, record, out, status)


@kept(nogil=True, error_model="numpy")
def forward(field, method, clock, initial, begin, end, rtol, atol, limit, stiff_steps, record, out, status):
    """Solve the subjects `begin` to `end` − 1: states at the wanted times to `out`, how each solve ended to `status`.

    Returns the accepted steps (none if `record` is false) and the evaluations of the vector field by all subjects.
    """
    states, stages, room = initial.shape[1], len(method.dense), LANES + (32 * (end - begin) if record else 0)
    work, lanes = make_work(field, states, False), make_lanes(states, method)
    steps = Steps(
        np.empty((room, states)),
        np.empty((room, stages * states if keeps_slopes(field) else 0)),
        np.empty((room, 2)),
        np.empty((room, 4), np.int32),
        np.full(end - begin, -1),
        np.zeros(1, np.int64),
    )
    for lane in range(2 * LANES):  # empty lanes are evaluated too, without an effect
        put_in(field, work, lane, begin * clock.periods)

    # the loop over steps is a function of its own, so that no reference is counted inside of it
    upcoming, evaluations, limits = begin, 0, (limit, stiff_steps, record)
    while True:
        upcoming, left, more = _advance(
            field, method, clock, work, lanes, steps, initial, begin, upcoming, end, (rtol, atol), limits, out, status
        )
        evaluations += more
        if not left:
            return steps, evaluations
        longer = _longer(steps.state), _longer(steps.slopes), _longer(steps.place), _longer(steps.mark)
        steps = Steps(*longer, steps.last, steps.taken)


@njit(nogil=True)
def _longer(array):
    apart()
    out = np.empty((2 * array.shape[0], array.shape[1]), array.dtype)
    for r in range(array.shape[0]):
        for c in range(array.shape[1]):
            out[r, c] = array[r, c]
    return out
