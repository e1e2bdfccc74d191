"""The slope at the start of an interval between two nodes, and the size of a subject's first step."""

from __future__ import annotations

import math

from neuralpk.solve.compiled.matrix_product import within
from neuralpk.solve.compiled.steps.field import find_slopes, put_in
from neuralpk.solve.compiled.steps.jit_options import inner
from neuralpk.solve.compiled.steps.lanes import LANES


@inner
def _probe(lane, y, k, rtol, atol):
    """The size of a trial step, from which the curvature of the solution is estimated."""
    near, steep = 0.0, 0.0
    for d in range(y.shape[0]):
        scale = atol + rtol * abs(y[d, lane])
        near += (y[d, lane] / scale) ** 2
        steep += (k[0, d, lane] / scale) ** 2
    return 1e-6 if near < 1e-10 or steep < 1e-10 else 0.01 * math.sqrt(near / steep)


@inner
def _first_size(lane, y, k, row, probe, size, rtol, atol):
    """The size of the first step, from the state, its slope and the slope after a trial step (Hairer et al., II.4)."""
    steepness, curvature, states = 0.0, 0.0, y.shape[0]
    for d in range(states):
        scale = atol + rtol * abs(y[d, lane])
        steepness += (k[0, d, lane] / scale) ** 2 / states
        curvature += ((probe[d, row] - k[0, d, lane]) / scale / size) ** 2 / states
    largest = math.sqrt(max(steepness, curvature))
    if not largest > 1e-15:
        return max(1e-6, 1e-3 * size)
    return min(100.0 * size, (0.01 / largest) ** 0.2)


@inner
def start_lines(field, method, clock, work, lanes, rtol, atol):
    """Compute the slope at the start of an interval between two nodes, and the size of a subject's first step.

    Only lanes that need it are evaluated; they are gathered in the first rows. Returns the number of evaluations.
    """
    within()
    subject, node, fresh, place, size = lanes.subject, lanes.node, lanes.flag, lanes.place, lanes.size
    state, points, k, slope = lanes.state, lanes.points, lanes.k, lanes.to_point
    entering, gathered, periods, evaluations = lanes.entering, lanes.gathered, clock.periods, 0
    for probing in range(2):
        new = 0
        for lane in range(LANES):
            if subject[lane] >= 0 and (size[lane] < 0.0 if probing else fresh[lane]):
                i, j = subject[lane], node[lane]
                row = i * periods + clock.period[i, j]
                put_in(field, work, lane, row)
                put_in(field, work, LANES + new, row)
                for d in range(state.shape[0]):
                    points[0, d, new] = state[d, lane] - (size[lane] * k[0, d, lane] if probing else 0.0)
                    entering[d, lane] = clock.input[i, j, d]
                    gathered[d, new] = entering[d, lane]
                new += 1
        if new == 0:
            break
        find_slopes(field, work, LANES, new, points[0], gathered, slope)
        evaluations += new
        new = 0
        for lane in range(LANES):
            if subject[lane] < 0:
                continue
            if probing:
                if size[lane] < 0.0:
                    size[lane] = _first_size(lane, state, k, new, slope, -size[lane], rtol, atol)
                    new += 1
            elif fresh[lane]:
                fresh[lane], lanes.tally[2, lane] = False, method.overlap
                for d in range(state.shape[0]):
                    k[0, d, lane] = slope[d, new]
                new += 1
                if size[lane] == 0.0:
                    size[lane] = -min(_probe(lane, state, k, rtol, atol), place[1, lane])
    return evaluations
