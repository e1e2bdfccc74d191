"""The stages of a Runge–Kutta step: their states, the gradients of these, and the solution inside the step."""

from __future__ import annotations

import math

from neuralpk.solve.compiled.matrix_product import apart, within
from neuralpk.solve.compiled.steps.jit_options import inner
from neuralpk.solve.compiled.steps.lanes import LANES
from neuralpk.solve.tsit5_coefficients import SAFETY, SHRINK, STAGES, A, E


@inner
def place_stage(y, h, k, stage, out):
    """The state of `stage`; for the last stage, the state at the end of the step."""
    apart()
    for d in range(y.shape[0]):
        for lane in range(LANES):
            total = 0.0
            for earlier in range(stage):
                total += A[stage, earlier] * k[earlier, d, lane]
            out[stage, d, lane] = y[d, lane] + h[lane] * total


@inner
def pull_back_stage(pull, h, k, stage, pulls, start_pull, to_size):
    """Gradients of `place_stage`, added to those of the start, the earlier slopes and the size of the step."""
    apart()
    for d in range(pull.shape[0]):
        for lane in range(LANES):
            given, total = pull[d, lane], 0.0
            start_pull[d, lane] += given
            for earlier in range(stage):
                share = A[stage, earlier] * given
                pulls[earlier, d, lane] += h[lane] * share
                total += share * k[earlier, d, lane]
            to_size[lane] += h[lane] * total


@inner
def judge(lanes, rtol, atol):
    """The squared error of each step, and the squared distances of slopes and of states between its last two stages."""
    apart()
    state, points, k, verdict = lanes.state, lanes.points, lanes.k, lanes.verdict
    for lane in range(LANES):
        error, bent, moved, states = 0.0, 0.0, 0.0, state.shape[0]
        for d in range(states):
            y, ahead, wrong = state[d, lane], points[STAGES - 1, d, lane], 0.0
            for stage in range(STAGES):
                wrong += E[stage] * k[stage, d, lane]
            scale = atol + rtol * max(abs(y), abs(ahead))
            error += (lanes.h[lane] * wrong / scale) ** 2 / states
            bent += ((k[STAGES - 1, d, lane] - k[STAGES - 2, d, lane]) / scale) ** 2
            moved += ((ahead - points[STAGES - 2, d, lane]) / scale) ** 2
        verdict[0, lane], verdict[1, lane], verdict[2, lane] = error, bent, moved
        verdict[3, lane] = SAFETY * max(error, 1e-20) ** -0.1 if math.isfinite(error) else SHRINK


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
