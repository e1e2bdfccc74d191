"""Perceptron fields on the CPU: Runge–Kutta steps of each subject's own size, and their reverse sweep.

Some subjects at a time (`LANES`) go through the same stage together, each at its own place of its own clock; one that
is done makes room for the next. So the network's matrices meet a block of rows, and yet no subject's steps depend on
another. What is remembered of a step is its start; the reverse sweep computes the stages again. States and step sizes
are in double precision, the network in that of its weights.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numba import njit, types
from numba.extending import overload
from numpy.typing import NDArray

from neuralpk.solve.compiled.tile import ROWS, add_product, apart
from neuralpk.solve.options import Status
from neuralpk.solve.tableau import (
    DENSE,
    GROW,
    SAFETY,
    SHRINK,
    STABILITY,
    STAGES,
    STIFF_STEPS,
    A,
    B,
    E,
)

Array = NDArray[Any]
TANH, SILU, SOFTPLUS = range(3)
LANES = 8
_OK, _MAX_EVALUATIONS, _STEP_UNDERFLOW, _NON_FINITE, _STIFF = (
    int(s) for s in (Status.OK, Status.MAX_EVALUATIONS, Status.STEP_UNDERFLOW, Status.NON_FINITE, Status.STIFF)
)


class Network(NamedTuple):
    """A `neuralpk.dynamics.Perceptron` as arrays. Widths of hidden layers are filled up with zeros to a multiple of 16,
    the short sides of the first and the last layer to one of 4; the subjects' own arrays have a row for each period."""

    shift: Array  # [subject·period, hidden]
    first: Array  # [state, hidden]
    hidden: Array  # [layer, from, to]
    hidden_back: Array  # [layer, to, from]
    bias: Array  # [layer, hidden]
    last: Array  # [output, hidden]
    last_bias: Array  # [output]
    matrix: Array  # [subject·period, state, state], or no row
    base: Array  # [subject·period, flow], or no row
    source: Array  # [flow]
    destination: Array  # [flow], -1 for out of the system
    activation: int
    scale: float  # of the logarithm, 0 for none


class Clock(NamedTuple):
    """A `neuralpk.solve.mesh.Mesh` as arrays, with the wanted times in the order in which they are met."""

    times: Array  # [subject, node]
    reset: Array  # [subject, node]
    jump: Array  # [subject, node, state]
    input: Array  # [subject, node, state]
    period: Array  # [subject, node]
    wanted: Array  # [subject, time] node after which it is read
    since: Array  # [subject, time] and how long after
    order: Array  # [subject, time]
    periods: int


class Steps(NamedTuple):
    """The accepted steps of some subjects, in the order in which they were taken; each points to the one before it."""

    state: Array  # [step, state] at its start
    place: Array  # [step, 2]: start since the node before, size
    mark: Array  # [step, 4]: node, first and last + 1 of the wanted times read in it, the step before
    last: Array  # [subject] of the chunk


class Work(NamedTuple):
    """What happens inside the network, a row for each evaluation; shared by forward and backward."""

    features: Array  # [row, state]
    values: Array  # [layer, row, hidden]
    derivatives: Array  # [layer, row, hidden] of the activation
    back: Array  # [layer, row, hidden] what came back to it before the activation
    outputs: Array  # [row, output] of the bend of a flow
    head: Array  # [row, output] what came back to it
    own: Array  # [row] place of the subject and period in its own arrays
    zeros: Array  # [hidden]


class Lanes(NamedTuple):
    """Where some subjects are that go through the stages together."""

    subject: Array  # [lane], -1 for none
    node: Array  # [lane] after which it is
    seen: Array  # [lane] wanted times before it
    step: Array  # [lane] the last step taken, -1 for none
    tally: Array  # [lane, 3] forward: steps in a row at the edge of stability, away from it; evaluations
    flag: Array  # [lane] forward: no slope yet; backward: the step ends its stretch
    state: Array  # [lane, state]; backward: what came back to it
    other: Array  # [lane, state] forward: state ahead; backward: slope at the start of the step after
    place: Array  # [lane, 2] since the node, length of the stretch
    size: Array  # [lane, 2] of the next step, of the one being tried
    k: Array  # [lane, stage, state]
    active: Array  # [row] lane
    ends: Array  # [row] backward: rows whose step ends its stretch
    rows: Array  # [6, row, state] scratch of one evaluation
    stages: Array  # [2, stage, row, state] scratch of the reverse sweep
    pulls: Array  # [row, stage, state] what came back to each stage


class Gradients(NamedTuple):
    """What the reverse sweep adds to, shaped as what it is the gradient of."""

    shift: Array
    first: Array
    hidden: Array
    bias: Array
    last: Array
    last_bias: Array
    matrix: Array
    base: Array
    initial: Array
    times: Array
    jump: Array
    input: Array
    since: Array


def make_work(net: Network, rows: int) -> Work:
    """Room for `rows` evaluations."""
    kind, width, layers = net.first.dtype, net.first.shape[1], len(net.hidden) + 1
    return Work(
        features=np.zeros((rows, len(net.first)), kind),
        values=np.zeros((layers, rows, width), kind),
        derivatives=np.zeros((layers, rows, width), kind),
        back=np.zeros((layers, rows, width), kind),
        outputs=np.zeros((rows, len(net.last))),
        head=np.zeros((rows, len(net.last)), kind),
        own=np.zeros(rows, np.int64),
        zeros=np.zeros(width, kind),
    )


def make_lanes(states: int) -> Lanes:
    """No subject in any lane."""
    return Lanes(
        subject=np.full(LANES, -1),
        node=np.full(LANES, -1),
        seen=np.full(LANES, -1),
        step=np.full(LANES, -1),
        tally=np.zeros((LANES, 3), np.int64),
        flag=np.zeros(LANES, np.bool_),
        state=np.zeros((LANES, states)),
        other=np.zeros((LANES, states)),
        place=np.zeros((LANES, 2)),
        size=np.zeros((LANES, 2)),
        k=np.zeros((LANES, STAGES, states)),
        active=np.zeros(LANES, np.int64),
        ends=np.zeros(LANES, np.int64),
        rows=np.zeros((6, LANES, states)),
        stages=np.zeros((2, STAGES, LANES, states)),
        pulls=np.zeros((LANES, STAGES, states)),
    )


def _tanh(x: Any) -> Any:
    raise NotImplementedError


@overload(_tanh, inline="always")
def _tanh_of_type(x):
    if x != types.float32:
        return lambda x: math.tanh(x)
    edge = np.float32(7.9)
    over = np.array([-2.76076847742355e-16, 2.00018790482477e-13, -8.60467152213735e-11, 5.12229709037114e-08])
    o1, o2, o3, o4 = (np.float32(v) for v in over)
    o5, o6, o7 = np.float32(1.48572235717979e-05), np.float32(6.37261928875436e-04), np.float32(4.89352455891786e-03)
    u1, u2 = np.float32(1.19825839466702e-06), np.float32(1.18534705686654e-04)
    u3, u4 = np.float32(2.26843463243900e-03), np.float32(4.89352518554385e-03)

    def rational(x):
        v = min(max(x, -edge), edge)
        q = v * v
        above = ((((((o1 * q + o2) * q + o3) * q + o4) * q + o5) * q + o6) * q + o7) * v
        return above / (((u1 * q + u2) * q + u3) * q + u4)

    return rational


@njit(nogil=True, fastmath={"contract", "reassoc", "nsz", "arcp"}, error_model="numpy")
def _activate(kind, values, slopes, begin, end, keep):
    """The activation of some rows in place and, where asked for, its derivative."""
    apart()
    half = values.dtype.type(0.5)
    one = values.dtype.type(1.0)
    for r in range(begin, end):
        if kind == TANH:
            for c in range(values.shape[1]):
                values[r, c] = _tanh(values[r, c])
            if keep:
                for c in range(values.shape[1]):
                    slopes[r, c] = one - values[r, c] * values[r, c]
        elif kind == SILU:
            for c in range(values.shape[1]):
                x = values[r, c]
                share = half + half * _tanh(half * x)
                values[r, c] = x * share
                if keep:
                    slopes[r, c] = share * (one + x * (one - share))
        else:
            for c in range(values.shape[1]):
                x = values[r, c]
                values[r, c] = max(x, values.dtype.type(0.0)) + math.log1p(math.exp(-abs(x)))
                if keep:
                    slopes[r, c] = half + half * _tanh(half * x)


@njit(nogil=True, fastmath={"contract", "reassoc", "nsz", "arcp"}, error_model="numpy")
def _dot(a, i, b, j):
    total = a.dtype.type(0.0)
    for c in range(a.shape[1]):
        total += a[i, c] * b[j, c]
    return total


@njit(nogil=True, error_model="numpy")
def _slopes(net, work, rows, at, state, entering, keep, out):
    """dy/dt of `rows` subjects into `out`; what happens at each layer is left in the rows of `work` from `at` on."""
    apart()
    states, width = state.shape[1], net.first.shape[1]
    padded, short = (rows + ROWS - 1) // ROWS * ROWS, net.first.shape[0]
    values, layer_size, start = work.values, work.values.shape[1] * width, at * width
    for r in range(padded):
        if r < rows:
            for d in range(states):
                y = state[r, d]
                work.features[at + r, d] = y if net.scale == 0.0 else math.log1p(max(y, 0.0) / net.scale)
        own = work.own[at + r] if r < rows else 0
        for c in range(width):
            values[0, at + r, c] = net.shift[own, c]
    add_product(
        values,
        start,
        width,
        values,
        start,
        width,
        work.features,
        at * short,
        short,
        1,
        net.first,
        0,
        width,
        padded,
        states,
        width,
    )
    _activate(net.activation, values[0], work.derivatives[0], at, at + rows, keep)
    for layer in range(net.hidden.shape[0]):
        add_product(
            values,
            (layer + 1) * layer_size + start,
            width,
            net.bias,
            layer * width,
            0,
            values,
            layer * layer_size + start,
            width,
            1,
            net.hidden,
            layer * width * width,
            width,
            padded,
            width,
            width,
        )
        _activate(net.activation, values[layer + 1], work.derivatives[layer + 1], at, at + rows, keep)
    top = values[net.hidden.shape[0]]
    for r in range(rows):
        own = work.own[at + r]
        for d in range(states):
            slope = entering[r, d]
            if net.matrix.shape[0] > 0:
                for e in range(states):
                    slope += net.matrix[own, d, e] * state[r, e]
            out[r, d] = slope
        for f in range(net.last_bias.shape[0]):
            x = _dot(top, at + r, net.last, f) + net.last_bias[f]
            if net.base.shape[0] == 0:
                out[r, f] += x
            else:
                bend = math.tanh(x / 5.0)
                work.outputs[at + r, f] = bend
                flow = net.base[own, f] * math.exp(5.0 * bend) * state[r, net.source[f]]
                out[r, net.source[f]] -= flow
                if net.destination[f] >= 0:
                    out[r, net.destination[f]] += flow


@njit(nogil=True, error_model="numpy")
def _pull_back(net, work, rows, at, state, cotangent, gradients, out):
    """The transposed Jacobian of `_slopes` times `cotangent`, added to `out`. What came back to each layer and to the
    outputs stays in the rows of `work`, until `_to_weights` sums over all of them at once."""
    apart()
    states, width, top = state.shape[1], net.first.shape[1], net.hidden.shape[0]
    padded, wide = (rows + ROWS - 1) // ROWS * ROWS, net.last.shape[0]
    back, layer_size, start = work.back, work.back.shape[1] * width, at * width
    for r in range(padded):
        for f in range(wide):
            work.head[at + r, f] = 0.0
    for r in range(rows):
        own = work.own[at + r]
        for f in range(net.last_bias.shape[0]):
            if net.base.shape[0] == 0:
                work.head[at + r, f] = cotangent[r, f]
                continue
            source, bend = net.source[f], work.outputs[at + r, f]
            rate, base = math.exp(5.0 * bend), net.base[own, f]
            pull = -cotangent[r, source]
            if net.destination[f] >= 0:
                pull += cotangent[r, net.destination[f]]
            gradients.base[own, f] += pull * rate * state[r, source]
            out[r, source] += pull * rate * base
            work.head[at + r, f] = pull * base * rate * state[r, source] * (1.0 - bend * bend)
        if net.matrix.shape[0] > 0:
            for d in range(states):
                for e in range(states):
                    gradients.matrix[own, d, e] += cotangent[r, d] * state[r, e]
                    out[r, e] += cotangent[r, d] * net.matrix[own, d, e]
    add_product(
        back,
        top * layer_size + start,
        width,
        work.zeros,
        0,
        0,
        work.head,
        at * wide,
        wide,
        1,
        net.last,
        0,
        width,
        padded,
        net.last_bias.shape[0],
        width,
    )
    for layer in range(top, -1, -1):
        for r in range(at, at + rows):
            for c in range(width):
                back[layer, r, c] *= work.derivatives[layer, r, c]
        if layer > 0:
            add_product(
                back,
                (layer - 1) * layer_size + start,
                width,
                work.zeros,
                0,
                0,
                back,
                layer * layer_size + start,
                width,
                1,
                net.hidden_back,
                (layer - 1) * width * width,
                width,
                padded,
                width,
                width,
            )
    for r in range(rows):
        for d in range(states):
            pull = float(_dot(back[0], at + r, net.first, d))
            if net.scale == 0.0:
                out[r, d] += pull
            elif state[r, d] > 0.0:
                out[r, d] += pull / (net.scale + state[r, d])


@njit(nogil=True, error_model="numpy")
def _to_weights(net, work, rows, gradients):
    """What the first `rows` rows of `work` give to the weights: products of the values with what came back."""
    apart()
    width, top, short, wide = net.first.shape[1], net.hidden.shape[0], net.first.shape[0], net.last.shape[0]
    values, back, layer_size = work.values, work.back, work.values.shape[1] * width
    for r in range(rows):
        own = work.own[r]
        for c in range(width):
            gradients.shift[own, c] += back[0, r, c]
        for layer in range(top):
            for c in range(width):
                gradients.bias[layer, c] += back[layer + 1, r, c]
        for f in range(net.last_bias.shape[0]):
            gradients.last_bias[f] += work.head[r, f]
    add_product(
        gradients.first,
        0,
        width,
        gradients.first,
        0,
        width,
        work.features,
        0,
        1,
        short,
        back,
        0,
        width,
        short,
        rows,
        width,
    )
    for layer in range(top):
        place = layer * width * width
        add_product(
            gradients.hidden,
            place,
            width,
            gradients.hidden,
            place,
            width,
            values,
            layer * layer_size,
            1,
            width,
            back,
            (layer + 1) * layer_size,
            width,
            width,
            rows,
            width,
        )
    add_product(
        gradients.last,
        0,
        width,
        gradients.last,
        0,
        width,
        work.head,
        0,
        1,
        wide,
        values,
        top * layer_size,
        width,
        wide,
        rows,
        width,
    )


@njit(nogil=True, error_model="numpy")
def _enter(clock, i, lane, node, seen, state, place, out):
    """Go on to the next stretch that has a length, through the nodes before it; whether there is one, and anything is
    still wanted in it or later. ``place[lane]`` becomes (0, length of the stretch)."""
    apart()
    nodes, wanted = clock.times.shape[1], clock.wanted.shape[1]
    while True:
        node[lane] += 1
        j = node[lane]
        for d in range(state.shape[1]):
            state[lane, d] = clock.jump[i, j, d] + (0.0 if clock.reset[i, j] else state[lane, d])
        length = 0.0 if j + 1 >= nodes else float(clock.times[i, j + 1]) - float(clock.times[i, j])
        while seen[lane] < wanted:
            m = clock.order[i, seen[lane]]
            if clock.wanted[i, m] != j or (clock.since[i, m] > 0.0 and length > 0.0):
                break
            for d in range(state.shape[1]):
                out[i, m, d] = state[lane, d]
            seen[lane] += 1
        if seen[lane] == wanted:
            return False
        if length > 0.0:
            place[lane, 0], place[lane, 1] = 0.0, length
            return True
        if j + 1 >= nodes:
            return False


@njit(nogil=True, error_model="numpy")
def _probe(states, y, slope, rtol, atol):
    """How far to look for the curvature of the line."""
    near, steep = 0.0, 0.0
    for d in range(states):
        scale = atol + rtol * abs(y[d])
        near += (y[d] / scale) ** 2
        steep += (slope[d] / scale) ** 2
    return 1e-6 if near < 1e-10 or steep < 1e-10 else 0.01 * math.sqrt(near / steep)


@njit(nogil=True, error_model="numpy")
def _first_size(states, y, slope, probe, size, rtol, atol):
    """A first step from the state, its slope and the slope a small step further (Hairer et al., II.4)."""
    steepness, curvature = 0.0, 0.0
    for d in range(states):
        scale = atol + rtol * abs(y[d])
        steepness += (slope[d] / scale) ** 2 / states
        curvature += ((probe[d] - slope[d]) / scale / size) ** 2 / states
    largest = math.sqrt(max(steepness, curvature))
    if not largest > 1e-15:
        return max(1e-6, 1e-3 * size)
    return min(100.0 * size, (0.01 / largest) ** 0.2)


@njit(nogil=True, error_model="numpy", cache=True)
def forward(net, clock, work, lanes, initial, begin, end, rtol, atol, limit, record, out, status):
    """Solve subjects `begin` to `end`; states at the wanted times into `out`, how each ended into `status`.

    Returns the accepted steps (none where `record` is false) and the number of evaluations of the field by a subject.
    """
    states = initial.shape[1]
    subject, node, seen, trail, fresh = lanes.subject, lanes.node, lanes.seen, lanes.step, lanes.flag
    state, ahead, place, k, active = lanes.state, lanes.other, lanes.place, lanes.k, lanes.active
    point, entering, slope, before = lanes.rows[0], lanes.rows[1], lanes.rows[2], lanes.rows[3]
    capacity = 32 * (end - begin) if record else 1
    log_state, log_place = np.empty((capacity, states)), np.empty((capacity, 2))
    log_mark, logged = np.empty((capacity, 4), np.int64), 0
    last = np.full(end - begin, -1)
    upcoming, evaluations = begin, 0

    while True:
        for lane in range(LANES):
            while subject[lane] < 0 and upcoming < end:
                i = upcoming
                upcoming += 1
                for d in range(states):
                    state[lane, d] = initial[i, d]
                node[lane], seen[lane], trail[lane] = -1, 0, -1
                lanes.tally[lane, 0], lanes.tally[lane, 1], lanes.tally[lane, 2] = 0, 0, 0
                lanes.size[lane, 0] = 0.0
                if _enter(clock, i, lane, node, seen, state, place, out):
                    subject[lane], fresh[lane] = i, True
        rows = 0
        for lane in range(LANES):
            if subject[lane] >= 0:
                active[rows] = lane
                rows += 1
        if rows == 0:
            break

        # the slope at the start: the last stage of the step before, but after an event anew; and for the size of a
        # subject's first step the slope a little further on
        for probing in range(2):
            new = 0
            for r in range(rows):
                lane = active[r]
                if (lanes.size[lane, 0] < 0.0) if probing else fresh[lane]:
                    i = subject[lane]
                    work.own[new] = i * clock.periods + clock.period[i, node[lane]]
                    for d in range(states):
                        point[new, d] = state[lane, d] - (lanes.size[lane, 0] * k[lane, 0, d] if probing else 0.0)
                        entering[new, d] = clock.input[i, node[lane], d]
                    new += 1
            if new == 0:
                break
            _slopes(net, work, new, 0, point, entering, False, slope)
            evaluations += new
            new = 0
            for r in range(rows):
                lane = active[r]
                if probing and lanes.size[lane, 0] < 0.0:
                    lanes.size[lane, 0] = _first_size(
                        states, state[lane], k[lane, 0], slope[new], -lanes.size[lane, 0], rtol, atol
                    )
                    new += 1
                elif not probing and fresh[lane]:
                    fresh[lane], lanes.tally[lane, 2] = False, 1
                    for d in range(states):
                        k[lane, 0, d] = slope[new, d]
                    new += 1
                    if lanes.size[lane, 0] == 0.0:
                        lanes.size[lane, 0] = -min(_probe(states, state[lane], k[lane, 0], rtol, atol), place[lane, 1])

        for r in range(rows):
            lane = active[r]
            i = subject[lane]
            left = place[lane, 1] - place[lane, 0]
            # two steps of equal size rather than one and a rest
            lanes.size[lane, 1] = left if lanes.size[lane, 0] >= left else min(lanes.size[lane, 0], 0.5 * left)
            if 2.0 * lanes.size[lane, 0] <= left:
                lanes.size[lane, 1] = lanes.size[lane, 0]
            work.own[r] = i * clock.periods + clock.period[i, node[lane]]
            for d in range(states):
                entering[r, d] = clock.input[i, node[lane], d]
        for stage in range(1, STAGES):
            for r in range(rows):
                lane = active[r]
                for d in range(states):
                    total = 0.0
                    for earlier in range(stage):
                        total += A[stage, earlier] * k[lane, earlier, d]
                    point[r, d] = state[lane, d] + lanes.size[lane, 1] * total
            if stage == STAGES - 2:
                for r in range(rows):
                    for d in range(states):
                        before[r, d] = point[r, d]
            _slopes(net, work, rows, 0, point, entering, False, slope)
            for r in range(rows):
                for d in range(states):
                    k[active[r], stage, d] = slope[r, d]
        evaluations += (STAGES - 1) * rows

        for r in range(rows):
            lane = active[r]
            i, h = subject[lane], lanes.size[lane, 1]
            lanes.tally[lane, 2] += STAGES - 1
            error, bent, moved = 0.0, 0.0, 0.0
            for d in range(states):
                ahead[lane, d] = point[r, d]
                wrong = 0.0
                for stage in range(STAGES):
                    wrong += E[stage] * k[lane, stage, d]
                scale = atol + rtol * max(abs(state[lane, d]), abs(ahead[lane, d]))
                error += (h * wrong / scale) ** 2 / states
                bent += ((k[lane, 6, d] - k[lane, 5, d]) / scale) ** 2
                moved += ((ahead[lane, d] - before[r, d]) / scale) ** 2
            finite = math.isfinite(error)
            error = math.sqrt(error) if finite else 1e10
            ended = _OK
            if error > 1.0:
                lanes.size[lane, 0] = h * max(SHRINK, SAFETY * error**-0.2)
                if (
                    place[lane, 0] + 0.01 * lanes.size[lane, 0] == place[lane, 0]
                    or lanes.size[lane, 0] < 1e-13 * place[lane, 1]
                ):
                    ended = _STEP_UNDERFLOW if finite else _NON_FINITE
            else:
                start, seen_before = place[lane, 0], seen[lane]
                whole = h >= place[lane, 1] - start
                while seen[lane] < clock.wanted.shape[1]:
                    m = clock.order[i, seen[lane]]
                    since = float(clock.since[i, m])
                    if clock.wanted[i, m] != node[lane] or (since > start + h and not whole):
                        break
                    share = min((since - start) / h, 1.0)
                    for d in range(states):
                        if share >= 1.0:
                            out[i, m, d] = ahead[lane, d]
                            continue
                        total = 0.0
                        for stage in range(STAGES):
                            c = DENSE[stage]
                            weight = share * (c[0] + share * (c[1] + share * (c[2] + share * c[3])))
                            total += weight * k[lane, stage, d]
                        out[i, m, d] = state[lane, d] + h * total
                    seen[lane] += 1
                if record:
                    if logged == capacity:
                        log_state, log_place = _longer(log_state), _longer(log_place)
                        log_mark = _longer(log_mark)
                        capacity *= 2
                    for d in range(states):
                        log_state[logged, d] = state[lane, d]
                    log_place[logged, 0], log_place[logged, 1] = start, h
                    log_mark[logged, 0], log_mark[logged, 1] = node[lane], seen_before
                    log_mark[logged, 2], log_mark[logged, 3] = seen[lane], trail[lane]
                    trail[lane] = logged
                    logged += 1
                for d in range(states):
                    state[lane, d], k[lane, 0, d] = ahead[lane, d], k[lane, STAGES - 1, d]
                place[lane, 0] = start + h
                grown = h * min(GROW, max(SHRINK, SAFETY * max(error, 1e-10) ** -0.2))
                lanes.size[lane, 0] = max(grown, lanes.size[lane, 0]) if whole else grown
                if moved > 0.0 and h * math.sqrt(bent / moved) > STABILITY:
                    lanes.tally[lane, 0] += 1
                    lanes.tally[lane, 1] = 0
                else:
                    lanes.tally[lane, 1] += 1
                    if lanes.tally[lane, 1] == 6:
                        lanes.tally[lane, 0] = 0
                if lanes.tally[lane, 0] == STIFF_STEPS:
                    ended = _STIFF
                elif seen[lane] == clock.wanted.shape[1] or (
                    whole and not _enter(clock, i, lane, node, seen, state, place, out)
                ):
                    last[i - begin] = trail[lane]
                    subject[lane] = -1
                elif whole:
                    fresh[lane] = True
            if ended == _OK and subject[lane] >= 0 and lanes.tally[lane, 2] > limit:
                ended = _MAX_EVALUATIONS
            if ended != _OK:
                status[i] = ended
                subject[lane] = -1
    return Steps(log_state, log_place, log_mark, last), evaluations


@njit(nogil=True)
def _longer(array):
    apart()
    out = np.empty((2 * array.shape[0], array.shape[1]), array.dtype)
    for r in range(array.shape[0]):
        for c in range(array.shape[1]):
            out[r, c] = array[r, c]
    return out


@njit(nogil=True, error_model="numpy")
def _leave(clock, i, lane, node, until, cotangent, seen, upstream, gradients):
    """Go back through the nodes of subject `i` from ``node[lane]`` down to the one after `until`."""
    apart()
    states = cotangent.shape[1]
    while node[lane] > until:
        j = node[lane]
        while seen[lane] > 0:
            m = clock.order[i, seen[lane] - 1]
            if clock.wanted[i, m] != j:
                break
            for d in range(states):
                cotangent[lane, d] += upstream[i, m, d]
            seen[lane] -= 1
        for d in range(states):
            gradients.jump[i, j, d] = cotangent[lane, d]
            if clock.reset[i, j]:
                cotangent[lane, d] = 0.0
        node[lane] -= 1


@njit(nogil=True, error_model="numpy")
def _read(clock, steps, i, s, upstream, k, pulls, end_pull, start_pull, gradients):
    """Take in what came back to the wanted times inside step `s`: its stages `k` draw the line there, and get it."""
    apart()
    states, start, h, j = upstream.shape[2], steps.place[s, 0], steps.place[s, 1], steps.mark[s, 0]
    to_size, to_start = 0.0, 0.0
    for q in range(steps.mark[s, 1], steps.mark[s, 2]):
        m = clock.order[i, q]
        share = (float(clock.since[i, m]) - start) / h
        if share >= 1.0:
            for d in range(states):
                end_pull[d] += upstream[i, m, d]
            continue
        to_since = 0.0
        for stage in range(STAGES):
            c = DENSE[stage]
            weight = share * (c[0] + share * (c[1] + share * (c[2] + share * c[3])))
            change = c[0] + share * (2.0 * c[1] + share * (3.0 * c[2] + share * 4.0 * c[3]))
            for d in range(states):
                given = upstream[i, m, d]
                pulls[stage, d] += h * weight * given
                to_size += given * (weight - share * change) * k[stage, d]
                to_since += given * change * k[stage, d]
        for d in range(states):
            start_pull[d] += upstream[i, m, d]
        gradients.since[i, m] = to_since
        to_start -= to_since
    _to_times(clock, i, j, h * to_size + start * to_start, gradients)


@njit(nogil=True, error_model="numpy")
def _pull_of_next(clock, steps, i, s, upstream, out):
    """What the wanted times inside step `s` pull at its last stage, the first of the step after it."""
    h = steps.place[s, 1]
    for q in range(steps.mark[s, 1], steps.mark[s, 2]):
        m = clock.order[i, q]
        share = (float(clock.since[i, m]) - steps.place[s, 0]) / h
        if share < 1.0:
            c = DENSE[STAGES - 1]
            weight = share * (c[0] + share * (c[1] + share * (c[2] + share * c[3])))
            for d in range(upstream.shape[2]):
                out[d] += h * weight * upstream[i, m, d]


@njit(nogil=True, error_model="numpy")
def _to_times(clock, i, j, pull, gradients):
    """A step is a fixed share of its stretch: what its start and size get goes to the times at the stretch's ends."""
    length = float(clock.times[i, j + 1]) - float(clock.times[i, j])
    gradients.times[i, j] -= pull / length
    gradients.times[i, j + 1] += pull / length


@njit(nogil=True, error_model="numpy", cache=True)
def backward(net, clock, work, lanes, steps, begin, end, upstream, status, gradients):
    """The reverse sweep over the steps of subjects `begin` to `end`: the gradient of Σ upstream·states, exact for the
    steps as they were taken. Sizes of steps are shares of their stretch, so that the times of its ends get theirs."""
    states = upstream.shape[2]
    subject, node, seen, step, closing = lanes.subject, lanes.node, lanes.seen, lanes.step, lanes.flag
    cotangent, following, active, ends = lanes.state, lanes.other, lanes.active, lanes.ends
    points, k, own_k, own_pulls = lanes.stages[0], lanes.stages[1], lanes.k, lanes.pulls
    pulls, to_point, start_pull, end_pull = lanes.rows[0], lanes.rows[1], lanes.rows[2], lanes.rows[3]
    entering, entering_end = lanes.rows[4], lanes.rows[5]
    for r in range(STAGES * LANES):  # rows that only fill up a block belong to a subject of this chunk too
        work.own[r] = begin * clock.periods
    subject, node = np.full(LANES, -1), np.full(LANES, -1)
    seen, step = np.full(LANES, -1), np.full(LANES, -1)
    cotangent, following = np.zeros((LANES, states)), np.zeros((LANES, states))
    closing = np.zeros(LANES, np.bool_)  # whether the step ends its stretch: no step begins where its last stage stands
    points, k = np.zeros((STAGES, LANES, states)), np.zeros((STAGES, LANES, states))
    own_k, own_pulls = np.zeros((LANES, STAGES, states)), np.zeros((LANES, STAGES, states))
    pulls, to_point = np.zeros((LANES, states)), np.zeros((LANES, states))
    start_pull, end_pull = np.zeros((LANES, states)), np.zeros((LANES, states))
    active, ends = np.zeros(LANES, np.int64), np.zeros(LANES, np.int64)
    entering, entering_end = np.zeros((LANES, states)), np.zeros((LANES, states))
    upcoming = begin

    while True:
        for lane in range(LANES):
            while subject[lane] < 0 and upcoming < end:
                i = upcoming
                upcoming += 1
                if status[i] != _OK:
                    continue
                for d in range(states):
                    cotangent[lane, d] = 0.0
                step[lane], closing[lane] = steps.last[i - begin], True
                seen[lane] = clock.wanted.shape[1]
                node[lane] = clock.wanted[i, clock.order[i, seen[lane] - 1]]
                if step[lane] >= 0:
                    _leave(clock, i, lane, node, steps.mark[step[lane], 0], cotangent, seen, upstream, gradients)
                    subject[lane] = i
                else:
                    _leave(clock, i, lane, node, -1, cotangent, seen, upstream, gradients)
                    for d in range(states):
                        gradients.initial[i, d] = cotangent[lane, d]
        rows = 0
        for lane in range(LANES):
            if subject[lane] >= 0:
                active[rows] = lane
                rows += 1
        if rows == 0:
            break
        block = (rows + ROWS - 1) // ROWS * ROWS

        # the stages again; the last one only where no following step begins with it and something was read inside
        ending = 0
        for r in range(rows):
            lane = active[r]
            i, s = subject[lane], step[lane]
            j = steps.mark[s, 0]
            for stage in range(STAGES - 1):
                work.own[stage * block + r] = i * clock.periods + clock.period[i, j]
            for d in range(states):
                entering[r, d] = clock.input[i, j, d]
            if closing[lane] and steps.mark[s, 2] > steps.mark[s, 1]:
                work.own[(STAGES - 1) * block + ending] = i * clock.periods + clock.period[i, j]
                for d in range(states):
                    entering_end[ending, d] = clock.input[i, j, d]
                ends[ending] = r
                ending += 1
        for stage in range(STAGES - 1):
            for r in range(rows):
                s = step[active[r]]
                for d in range(states):
                    total = 0.0
                    for earlier in range(stage):
                        total += A[stage, earlier] * own_k[r, earlier, d]
                    points[stage, r, d] = steps.state[s, d] + steps.place[s, 1] * total
            _slopes(net, work, rows, stage * block, points[stage], entering, True, k[stage])
            for r in range(rows):
                for d in range(states):
                    own_k[r, stage, d] = k[stage, r, d]
        for e in range(ending):
            r = ends[e]
            s = step[active[r]]
            for d in range(states):
                total = 0.0
                for stage in range(STAGES - 1):
                    total += B[stage] * own_k[r, stage, d]
                points[STAGES - 1, e, d] = steps.state[s, d] + steps.place[s, 1] * total
        tail = (ending + ROWS - 1) // ROWS * ROWS
        if ending > 0:
            _slopes(net, work, ending, (STAGES - 1) * block, points[STAGES - 1], entering_end, True, k[STAGES - 1])

        for r in range(rows):
            for d in range(states):
                own_k[r, STAGES - 1, d] = following[active[r], d]
        for e in range(ending):
            for d in range(states):
                own_k[ends[e], STAGES - 1, d] = k[STAGES - 1, e, d]
        for r in range(rows):
            lane = active[r]
            i, s = subject[lane], step[lane]
            j = steps.mark[s, 0]
            for d in range(states):
                start_pull[r, d], end_pull[r, d] = 0.0, cotangent[lane, d]
                for stage in range(STAGES):
                    own_pulls[r, stage, d] = 0.0
            _read(clock, steps, i, s, upstream, own_k[r], own_pulls[r], end_pull[r], start_pull[r], gradients)
            seen[lane] = min(seen[lane], steps.mark[s, 1])
            earlier = steps.mark[s, 3]
            if earlier >= 0 and steps.mark[earlier, 0] == j:
                _pull_of_next(clock, steps, i, earlier, upstream, own_pulls[r, 0])
        if ending > 0:
            for e in range(ending):
                for d in range(states):
                    pulls[e, d], to_point[e, d] = own_pulls[ends[e], STAGES - 1, d], 0.0
            _pull_back(net, work, ending, (STAGES - 1) * block, points[STAGES - 1], pulls, gradients, to_point)
            for e in range(ending):
                s = step[active[ends[e]]]
                for d in range(states):
                    end_pull[ends[e], d] += to_point[e, d]
                    gradients.input[subject[active[ends[e]]], steps.mark[s, 0], d] += pulls[e, d]
        for r in range(rows):
            lane = active[r]
            h, to_size = steps.place[step[lane], 1], 0.0
            for d in range(states):
                start_pull[r, d] += end_pull[r, d]
                for stage in range(STAGES - 1):
                    own_pulls[r, stage, d] += h * B[stage] * end_pull[r, d]
                    to_size += end_pull[r, d] * B[stage] * own_k[r, stage, d]
            _to_times(clock, subject[lane], steps.mark[step[lane], 0], h * to_size, gradients)
        for stage in range(STAGES - 2, -1, -1):
            for r in range(rows):
                for d in range(states):
                    pulls[r, d], to_point[r, d] = own_pulls[r, stage, d], 0.0
            _pull_back(net, work, rows, stage * block, points[stage], pulls, gradients, to_point)
            for r in range(rows):
                lane = active[r]
                h, to_size = steps.place[step[lane], 1], 0.0
                for d in range(states):
                    start_pull[r, d] += to_point[r, d]
                    for earlier in range(stage):
                        own_pulls[r, earlier, d] += h * A[stage, earlier] * to_point[r, d]
                        to_size += to_point[r, d] * A[stage, earlier] * own_k[r, earlier, d]
                if stage > 0:
                    _to_times(clock, subject[lane], steps.mark[step[lane], 0], h * to_size, gradients)
        _to_weights(net, work, (STAGES - 1) * block + tail, gradients)

        for r in range(rows):
            lane = active[r]
            i, s = subject[lane], step[lane]
            j, earlier = steps.mark[s, 0], steps.mark[s, 3]
            for d in range(states):
                cotangent[lane, d], following[lane, d] = start_pull[r, d], own_k[r, 0, d]
                for stage in range(STAGES - 1):
                    gradients.input[i, j, d] += own_pulls[r, stage, d]
            step[lane] = earlier
            closing[lane] = earlier < 0 or steps.mark[earlier, 0] != j
            _leave(
                clock,
                i,
                lane,
                node,
                -1 if earlier < 0 else steps.mark[earlier, 0],
                cotangent,
                seen,
                upstream,
                gradients,
            )
            if earlier < 0:
                for d in range(states):
                    gradients.initial[i, d] = cotangent[lane, d]
                subject[lane] = -1
