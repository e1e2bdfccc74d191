"""The reverse sweep: gradients, from the last recorded step to the first."""

from __future__ import annotations

from neuralpk.solve.compiled.kernels_on_disk import kept
from neuralpk.solve.compiled.matrix_product import within
from neuralpk.solve.compiled.steps.field import collect, make_work, pull_step, put_in, retrace
from neuralpk.solve.compiled.steps.jit_options import inner
from neuralpk.solve.compiled.steps.lanes import LANES, count_live, make_lanes
from neuralpk.solve.compiled.steps.node_events import leave
from neuralpk.solve.compiled.steps.stages import sum_stages, weigh_stages, weight_at
from neuralpk.solve.solve_result import Status

_OK = int(Status.OK)


@inner
def _read(method, clock, steps, lanes, lane, i, s, upstream, to_since):
    """Add the gradient of the states read inside step `s` to those of its slopes, its start and its end.

    Returns what they add to the gradient with respect to the logarithm of the time between the two nodes, of which the
    start and the size of the step are fixed shares.
    """
    within()
    start, h, weights = steps.place[s, 0], steps.place[s, 1], lanes.weights
    k, pulls, end_pull, start_pull, order = lanes.k, lanes.pulls, lanes.state, lanes.start_pull, clock.order
    total = 0.0
    for q in range(steps.mark[s, 1], steps.mark[s, 2]):
        m = order[i, q]
        share = (float(clock.since[i, m]) - start) / h
        if share >= 1.0:
            for d in range(upstream.shape[2]):
                end_pull[d, lane] += upstream[i, m, d]
            continue
        weigh_stages(method.dense, share, True, weights)
        along, inside = 0.0, 0.0
        for d in range(upstream.shape[2]):
            given = float(upstream[i, m, d])
            start_pull[d, lane] += given
            for stage in range(k.shape[0]):
                pulls[stage, d, lane] += h * weights[0, stage] * given
                along += given * weights[1, stage] * k[stage, d, lane]
                inside += given * weights[0, stage] * k[stage, d, lane]
        to_since[i, m] = along
        total += h * (inside - share * along) - start * along
    return total


@inner
def _pull_of_next(method, clock, steps, lanes, lane, i, s, upstream):
    """Add what the states read inside step `s` give to its last slope, which is the first slope of the lane's step."""
    h, pulls = steps.place[s, 1], lanes.pulls
    for q in range(steps.mark[s, 1], steps.mark[s, 2]):
        m = clock.order[i, q]
        share = (float(clock.since[i, m]) - steps.place[s, 0]) / h
        if share < 1.0:
            weight = h * weight_at(method.dense, method.dense.shape[0] - 1, share)
            for d in range(upstream.shape[2]):
                pulls[0, d, lane] += weight * upstream[i, m, d]


@inner
def _take_up(clock, lanes, steps, begin, upcoming, end, upstream, status, gradients):
    """Put the next solved subjects into the empty lanes, at their last steps; returns the subject after them."""
    within()
    for lane in range(LANES):
        while lanes.subject[lane] < 0 and upcoming < end:
            i = upcoming
            upcoming += 1
            if status[i] != _OK:
                continue
            s, wanted = steps.last[i - begin], clock.wanted.shape[1]
            lanes.step[lane], lanes.flag[lane], lanes.seen[lane] = s, True, wanted
            lanes.node[lane] = clock.wanted[i, clock.order[i, wanted - 1]]
            until = steps.mark[s, 0] if s >= 0 else -1
            leave(clock, i, lane, lanes.node, until, lanes.state, lanes.seen, upstream, gradients)
            if s >= 0:
                lanes.subject[lane] = i
    return upcoming


@inner
def _recall(field, method, clock, work, lanes, steps):
    """Put starts, sizes, slopes and rates of input of the lanes' steps back into the lanes.

    A last slope that is the first of the next step is needed only if the step ends at a node and states were read
    inside it. Returns the number of lanes of which this is so; they are gathered.
    """
    within()
    y, h, k, mark, ending = lanes.y, lanes.h, lanes.k, steps.mark, 0
    for lane in range(LANES):
        i, s = lanes.subject[lane], lanes.step[lane]
        lanes.h[lane], lanes.to_size[lane] = 0.0, 0.0
        for d in range(y.shape[0]):
            y[d, lane], lanes.start_pull[d, lane] = 0.0, 0.0
        if i < 0:
            continue
        h[lane] = steps.place[s, 1]
        for d in range(y.shape[0]):
            y[d, lane] = steps.state[s, d]
            for stage in range(steps.slopes.shape[1] // y.shape[0]):
                k[stage, d, lane] = steps.slopes[s, stage * y.shape[0] + d]
        if lanes.flag[lane]:
            for d in range(y.shape[0]):
                lanes.entering[d, lane] = clock.input[i, mark[s, 0], d]
            row = i * clock.periods + clock.period[i, mark[s, 0]]
            put_in(field, work, lane, row)
            if method.overlap and mark[s, 2] > mark[s, 1]:
                put_in(field, work, LANES + ending, row)
                lanes.ends[ending] = lane
                ending += 1
    return ending


@inner
def _read_back(method, clock, lanes, steps, ending, upstream, gradients):
    """Add the gradients of the states read inside the lanes' steps, and gather those of the last slopes."""
    within()
    mark, pulls = steps.mark, lanes.pulls
    for stage in range(pulls.shape[0]):
        for d in range(pulls.shape[1]):
            for lane in range(LANES):
                pulls[stage, d, lane] = 0.0
    for lane in range(LANES):
        i, s = lanes.subject[lane], lanes.step[lane]
        if i < 0:
            continue
        if mark[s, 2] > mark[s, 1]:
            lanes.to_size[lane] = _read(method, clock, steps, lanes, lane, i, s, upstream, gradients.since)
            lanes.seen[lane] = min(lanes.seen[lane], mark[s, 1])
        earlier = mark[s, 3]
        if method.overlap and earlier >= 0 and mark[earlier, 0] == mark[s, 0]:
            _pull_of_next(method, clock, steps, lanes, lane, i, earlier, upstream)
    for d in range(pulls.shape[1]):
        for r in range(LANES):
            lanes.gathered[d, r] = pulls[pulls.shape[0] - 1, d, lanes.ends[r]] if r < ending else 0.0


@inner
def _hand_on(field, method, clock, work, lanes, steps, upstream, gradients):
    """Go to the step before of each lane, with the gradients of the events in between."""
    within()
    mark, pulls, cotangent, final = steps.mark, lanes.pulls, lanes.state, lanes.pulls.shape[0] - 1
    sum_stages(pulls, lanes.to_point)
    for lane in range(LANES):
        i, s = lanes.subject[lane], lanes.step[lane]
        if i < 0:
            continue
        j, earlier = mark[s, 0], mark[s, 3]
        # start and size of a step are fixed shares of the time between two nodes: so the times of both get a gradient
        pull = lanes.to_size[lane] / (float(clock.times[i, j + 1]) - float(clock.times[i, j]))
        gradients.times[i, j] -= pull
        gradients.times[i, j + 1] += pull
        for d in range(cotangent.shape[0]):
            cotangent[d, lane] = lanes.start_pull[d, lane]
            last = 0.0 if method.overlap and not lanes.flag[lane] else pulls[final, d, lane]
            gradients.input[i, j, d] += lanes.to_point[d, lane] + last
        lanes.step[lane] = earlier
        lanes.flag[lane] = earlier < 0 or mark[earlier, 0] != j
        if lanes.flag[lane]:
            collect(field, work, lane, gradients)
            until = -1 if earlier < 0 else mark[earlier, 0]
            leave(clock, i, lane, lanes.node, until, cotangent, lanes.seen, upstream, gradients)
            if earlier < 0:
                lanes.subject[lane] = -1


@inner
def _go_back(field, method, clock, work, lanes, steps, begin, upcoming, end, upstream, status, gradients):
    """The steps of all subjects."""
    while True:
        upcoming = _take_up(clock, lanes, steps, begin, upcoming, end, upstream, status, gradients)
        if count_live(lanes) == 0:
            break
        ending = _recall(field, method, clock, work, lanes, steps)
        retrace(field, work, lanes)
        _read_back(method, clock, lanes, steps, ending, upstream, gradients)
        pull_step(field, work, lanes, ending, gradients)
        _hand_on(field, method, clock, work, lanes, steps, upstream, gradients)


@kept(nogil=True, error_model="numpy")
def backward(field, method, clock, steps, begin, end, upstream, status, gradients):
    """The reverse sweep over the steps of the subjects `begin` to `end` − 1.

    It computes the gradient of Σ upstream·states, exact for the steps that were taken. Step sizes are fixed shares of
    the time between two nodes, so that the times of the nodes have gradients too.
    """
    work, lanes = make_work(field, upstream.shape[2], True), make_lanes(upstream.shape[2], method)
    upcoming = begin
    while upcoming < end and status[upcoming] != _OK:
        upcoming += 1
    for lane in range(2 * LANES):  # empty lanes are evaluated too, at state 0 of a solved subject, without an effect
        put_in(field, work, lane, min(upcoming, end - 1) * clock.periods)
    # a function of its own, so that no reference is counted in the loop over steps
    _go_back(field, method, clock, work, lanes, steps, begin, upcoming, end, upstream, status, gradients)
