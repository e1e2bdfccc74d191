"""The stages of a Runge–Kutta step: their states, the gradients of these, and the solution inside the step."""

from __future__ import annotations

import math

import numpy as np

from neuralpk.solve.compiled.elementary import exp_in_place, log_in_place
from neuralpk.solve.compiled.matrix_product import apart, tile, within
from neuralpk.solve.compiled.steps.jit_options import inner
from neuralpk.solve.compiled.steps.lanes import LANES
from neuralpk.solve.tsit5_coefficients import SAFETY, SHRINK, STAGES, A, E

_ZEROS = np.zeros(LANES)


@inner
def _weigh_slopes(weights, at, count, k, d, out, place):
    """Write Σ_e weights[e]·k[e, d] over the first `count` slopes, with the weights from `at` on, to `out` from `place`
    on."""
    within()
    states = k.shape[1]
    tile(
        1, LANES, out, place, 0, _ZEROS, 0, 0,
        weights, at, 0, 1, k, d * LANES, states * LANES, count,
    )  # fmt: skip


@inner
def place_stage(y, h, k, stage, out):
    """The state of `stage`; for the last stage, the state at the end of the step."""
    within()
    for d in range(y.shape[0]):
        if stage == 0:
            for lane in range(LANES):
                out[0, d, lane] = y[d, lane]
            continue
        _weigh_slopes(A, stage * STAGES, stage, k, d, out, (stage * y.shape[0] + d) * LANES)
        for lane in range(LANES):
            out[stage, d, lane] = y[d, lane] + h[lane] * out[stage, d, lane]


@inner
def pull_back_stage(pull, lanes, stage):
    """Gradients of `place_stage`, added to those of the start, the earlier slopes and the size of the step."""
    within()
    states, scratch, pulls, start_pull = pull.shape[0], lanes.scratch, lanes.pulls, lanes.start_pull
    for d in range(states):
        for lane in range(LANES):
            start_pull[d, lane] += pull[d, lane]
            scratch[0, lane] = lanes.h[lane] * pull[d, lane]
        if stage == 0:
            continue
        _weigh_slopes(A, stage * STAGES, stage, lanes.k, d, scratch, LANES)
        for lane in range(LANES):
            lanes.to_size[lane] += scratch[0, lane] * scratch[1, lane]
        for earlier in range(stage):
            at = (earlier * states + d) * LANES
            tile(1, LANES, pulls, at, 0, pulls, at, 0, A, stage * STAGES + earlier, 0, 0, scratch, 0, 0, 1)


@inner
def judge(lanes, rtol, atol):
    """The squared error of each step, and the squared distances of slopes and of states between its last two stages."""
    within()
    state, points, k, verdict, wrong = lanes.state, lanes.points, lanes.k, lanes.verdict, lanes.scratch
    states, final = state.shape[0], STAGES - 1
    for row in range(3):
        for lane in range(LANES):
            verdict[row, lane] = 0.0
    for d in range(states):
        _weigh_slopes(E, 0, STAGES, k, d, wrong, 0)
        for lane in range(LANES):
            ahead = points[final, d, lane]
            share = 1.0 / (atol + rtol * max(abs(state[d, lane]), abs(ahead)))
            verdict[0, lane] += (lanes.h[lane] * wrong[0, lane] * share) ** 2
            verdict[1, lane] += ((k[final, d, lane] - k[final - 1, d, lane]) * share) ** 2
            verdict[2, lane] += ((ahead - points[final - 1, d, lane]) * share) ** 2
    for lane in range(LANES):
        verdict[0, lane] /= states
        verdict[3, lane] = max(verdict[0, lane], 1e-20)
    log_in_place(verdict, 3 * LANES)
    for lane in range(LANES):
        verdict[3, lane] *= -0.1
    exp_in_place(verdict, 3 * LANES)
    for lane in range(LANES):
        verdict[3, lane] = SAFETY * verdict[3, lane] if math.isfinite(verdict[0, lane]) else SHRINK


@inner
def sum_stages(pulls, out):
    """The sum of all stages but the last."""
    apart()
    for d in range(out.shape[0]):
        for lane in range(LANES):
            total = 0.0
            for stage in range(pulls.shape[0] - 1):
                total += pulls[stage, d, lane]
            out[d, lane] = total


@inner
def weight_at(dense, stage, share):
    """The weight of a slope at a share of the step."""
    within()
    c0, c1, c2, c3 = dense[stage, 0], dense[stage, 1], dense[stage, 2], dense[stage, 3]
    return share * (c0 + share * (c1 + share * (c2 + share * c3)))


@inner
def weigh_stages(dense, share, change, out):
    """The weights of the slopes at a share of the step and, if `change`, their derivatives in the share."""
    for stage in range(dense.shape[0]):
        out[0, stage] = weight_at(dense, stage, share)
        if change:
            c0, c1, c2, c3 = dense[stage, 0], dense[stage, 1], dense[stage, 2], dense[stage, 3]
            out[1, stage] = c0 + share * (2.0 * c1 + share * (3.0 * c2 + share * 4.0 * c3))
