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

from neuralpk.solve.compiled.kept import kept
from neuralpk.solve.compiled.tile import ROWS, add_product, apart
from neuralpk.solve.options import Status
from neuralpk.solve.tableau import (
    DENSE,
    FUSED_STIFF_STEPS,
    GROW,
    SAFETY,
    SHRINK,
    STABILITY,
    STAGES,
    A,
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
    dots: Array  # [output or state, lane] sums over the width
    own: Array  # [row] place of the subject and period in its own arrays
    zeros: Array  # [hidden]


class Lanes(NamedTuple):
    """Where some subjects are that go through the stages together. The lane comes last: loops over it are short, of a
    fixed length, and over neighbours. A lane without a subject goes along, with numbers that lead to nothing."""

    subject: Array  # [lane], -1 for none
    node: Array  # [lane] after which it is
    seen: Array  # [lane] wanted times before it
    step: Array  # [lane] the last step taken, -1 for none
    tally: Array  # [3, lane] forward: steps in a row at the edge of stability, away from it; evaluations
    flag: Array  # [lane] forward: no slope yet; backward: the step ends its stretch
    ends: Array  # [row] backward: lanes whose last stage is evaluated
    place: Array  # [2, lane] forward: since the node, length of the stretch
    size: Array  # [lane] forward: of the next step
    h: Array  # [lane] of this step
    to_size: Array  # [lane] backward: what came back to it, times it
    state: Array  # [state, lane]; backward: what came back to it
    y: Array  # [state, lane] backward: at the start of the step
    start_pull: Array  # [state, lane] what came back to it
    to_point: Array  # [state, lane] and to where a stage stands
    entering: Array  # [state, lane] rate of input
    gathered: Array  # [state, row] that of some lanes
    k: Array  # [stage, state, lane] slopes
    points: Array  # [stage, state, lane] where they are taken
    pulls: Array  # [stage, state, lane] backward: what came back to the slopes
    spare: Array  # [stage, state, lane]
    weights: Array  # [2, stage] of the dense output


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
        dots=np.zeros((max(len(net.first), len(net.last)), LANES)),
        own=np.zeros(rows, np.int64),
        zeros=np.zeros(width, kind),
    )


def make_lanes(states: int) -> Lanes:
    """No subject in any lane."""
    by_state, by_stage = (states, LANES), (STAGES, states, LANES)
    return Lanes(
        subject=np.full(LANES, -1),
        node=np.full(LANES, -1),
        seen=np.full(LANES, -1),
        step=np.full(LANES, -1),
        tally=np.zeros((3, LANES), np.int64),
        flag=np.zeros(LANES, np.bool_),
        ends=np.zeros(LANES, np.int64),
        place=np.zeros((2, LANES)),
        size=np.zeros(LANES),
        h=np.zeros(LANES),
        to_size=np.zeros(LANES),
        state=np.zeros(by_state),
        y=np.zeros(by_state),
        start_pull=np.zeros(by_state),
        to_point=np.zeros(by_state),
        entering=np.zeros(by_state),
        gathered=np.zeros(by_state),
        k=np.zeros(by_stage),
        points=np.zeros(by_stage),
        pulls=np.zeros(by_stage),
        spare=np.zeros(by_stage),
        weights=np.zeros((2, STAGES)),
    )


def _tanh(x: Any) -> Any:
    """tanh(x); in single precision by the rational approximation of Eigen (odd degree 13 over 6), which a loop computes
    on vectors and which is right to three units in the last place."""
    raise NotImplementedError


@overload(_tanh, inline="always")
def _tanh_of_type(x):
    if x != types.float32:
        return lambda x: math.tanh(x)
    edge = np.float32(7.9)
    o1, o2, o3 = np.float32(-2.76076847742355e-16), np.float32(2.00018790482477e-13), np.float32(-8.60467152213735e-11)
    o4 = np.float32(5.12229709037114e-08)
    o5, o6, o7 = np.float32(1.48572235717979e-05), np.float32(6.37261928875436e-04), np.float32(4.89352455891786e-03)
    u1, u2 = np.float32(1.19825839466702e-06), np.float32(1.18534705686654e-04)
    u3, u4 = np.float32(2.26843463243900e-03), np.float32(4.89352518554385e-03)

    def rational(x):
        v = min(max(x, -edge), edge)
        q = v * v
        above = ((((((o1 * q + o2) * q + o3) * q + o4) * q + o5) * q + o6) * q + o7) * v
        return above / (((u1 * q + u2) * q + u3) * q + u4)

    return rational


# inner functions are called by compiled ones only, which hold the arrays: without counting references to all of them
_ONLY_CALLED = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True, "_nrt": False}
_inner = njit(nogil=True, error_model="numpy", **_ONLY_CALLED)
_sum = njit(nogil=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz", "arcp"}, **_ONLY_CALLED)


@_sum
def _activate(kind, values, slopes, layer, begin, end, keep):
    """The activation of some rows in place and, where asked for, its derivative."""
    apart()
    half = values.dtype.type(0.5)
    one = values.dtype.type(1.0)
    for r in range(begin, end):
        if kind == TANH:
            for c in range(values.shape[2]):
                values[layer, r, c] = _tanh(values[layer, r, c])
            if keep:
                for c in range(values.shape[2]):
                    slopes[layer, r, c] = one - values[layer, r, c] * values[layer, r, c]
        elif kind == SILU:
            for c in range(values.shape[2]):
                x = values[layer, r, c]
                share = half + half * _tanh(half * x)
                values[layer, r, c] = x * share
                if keep:
                    slopes[layer, r, c] = share * (one + x * (one - share))
        else:
            for c in range(values.shape[2]):
                x = values[layer, r, c]
                values[layer, r, c] = max(x, values.dtype.type(0.0)) + math.log1p(math.exp(-abs(x)))
                if keep:
                    slopes[layer, r, c] = half + half * _tanh(half * x)


@_sum
def _dots(rows, a, layer, at, b, count, out):
    """out[f, r] = Σ_c a[layer, at + r, c]·b[f, c]."""
    apart()
    for r in range(rows):
        for f in range(count):
            total = a.dtype.type(0.0)
            for c in range(a.shape[2]):
                total += a[layer, at + r, c] * b[f, c]
            out[f, r] = total


@_inner
def _slopes(net, work, rows, at, states, stage, entering, keep, out):
    """dy/dt at ``states[stage]`` into ``out[stage]`` for the first `rows` lanes, a multiple of 4; what happens at each
    layer is left in the rows of `work` from `at` on."""
    apart()
    width, top, short, outputs = net.first.shape[1], net.hidden.shape[0], net.first.shape[0], net.last_bias.shape[0]
    values, own, features, shift, scale = work.values, work.own, work.features, net.shift, net.scale
    layer_size, start = values.shape[1] * width, at * width
    for d in range(states.shape[1]):
        for r in range(LANES):
            y = states[stage, d, r]
            features[at + r, d] = y if scale == 0.0 else math.log1p(max(y, 0.0) / scale)
    for r in range(rows):
        row = own[at + r]
        for c in range(width):
            values[0, at + r, c] = shift[row, c]
    add_product(
        values, start, width, values, start, width,
        work.features, at * short, short, 1, net.first, 0, width, rows, states.shape[1], width,
    )  # fmt: skip
    _activate(net.activation, values, work.derivatives, 0, at, at + rows, keep)
    for layer in range(top):
        add_product(
            values, (layer + 1) * layer_size + start, width, net.bias, layer * width, 0,
            values, layer * layer_size + start, width, 1, net.hidden, layer * width * width, width, rows, width, width,
        )  # fmt: skip
        _activate(net.activation, values, work.derivatives, layer + 1, at, at + rows, keep)
    dots, bends = work.dots, work.outputs
    _dots(rows, values, top, at, net.last, outputs, dots)
    for d in range(states.shape[1]):
        for r in range(LANES):
            out[stage, d, r] = entering[d, r]
    if net.matrix.shape[0] > 0:
        matrix = net.matrix
        for r in range(rows):
            row = own[at + r]
            for d in range(states.shape[1]):
                slope = out[stage, d, r]
                for e in range(states.shape[1]):
                    slope += matrix[row, d, e] * states[stage, e, r]
                out[stage, d, r] = slope
    last_bias, base = net.last_bias, net.base
    for f in range(outputs):
        if base.shape[0] == 0:
            for r in range(LANES):
                out[stage, f, r] += dots[f, r] + last_bias[f]
            continue
        source, destination = net.source[f], net.destination[f]
        for r in range(rows):
            bend = math.tanh((dots[f, r] + last_bias[f]) / 5.0)
            bends[at + r, f] = bend
            flow = base[own[at + r], f] * math.exp(5.0 * bend) * states[stage, source, r]
            out[stage, source, r] -= flow
            if destination >= 0:
                out[stage, destination, r] += flow


@_inner
def _pull_back(net, work, rows, at, states, stage, cotangent, gradients, out):
    """The transposed Jacobian of `_slopes` times ``cotangent[stage]`` into `out`. What came back to each layer and to
    the outputs stays in the rows of `work`, until `_to_weights` sums over all of them at once."""
    apart()
    width, top, wide, outputs = net.first.shape[1], net.hidden.shape[0], net.last.shape[0], net.last_bias.shape[0]
    back, derivatives, head, own, dots = work.back, work.derivatives, work.head, work.own, work.dots
    layer_size, start = back.shape[1] * width, at * width
    for d in range(out.shape[0]):
        for r in range(LANES):
            out[d, r] = 0.0
    base = net.base
    for f in range(outputs):
        if base.shape[0] == 0:
            for r in range(LANES):
                head[at + r, f] = cotangent[stage, f, r]
            continue
        source, destination = net.source[f], net.destination[f]
        for r in range(rows):
            row, bend, y = own[at + r], work.outputs[at + r, f], states[stage, source, r]
            rate, pull = math.exp(5.0 * bend), -cotangent[stage, source, r]
            if destination >= 0:
                pull += cotangent[stage, destination, r]
            gradients.base[row, f] += pull * rate * y
            out[source, r] += pull * rate * base[row, f]
            head[at + r, f] = pull * base[row, f] * rate * y * (1.0 - bend * bend)
    if net.matrix.shape[0] > 0:
        matrix, to_matrix = net.matrix, gradients.matrix
        for r in range(rows):
            row = own[at + r]
            for d in range(out.shape[0]):
                pull = cotangent[stage, d, r]
                for e in range(out.shape[0]):
                    to_matrix[row, d, e] += pull * states[stage, e, r]
                    out[e, r] += pull * matrix[row, d, e]
    add_product(
        back, top * layer_size + start, width, work.zeros, 0, 0,
        head, at * wide, wide, 1, net.last, 0, width, rows, outputs, width,
    )  # fmt: skip
    for layer in range(top, -1, -1):
        for r in range(at, at + rows):
            for c in range(width):
                back[layer, r, c] *= derivatives[layer, r, c]
        if layer > 0:
            add_product(
                back, (layer - 1) * layer_size + start, width, work.zeros, 0, 0,
                back, layer * layer_size + start, width, 1,
                net.hidden_back, (layer - 1) * width * width, width, rows, width, width,
            )  # fmt: skip
    _dots(rows, back, 0, at, net.first, out.shape[0], dots)
    scale = net.scale
    for d in range(out.shape[0]):
        for r in range(LANES):
            y = states[stage, d, r]
            if scale == 0.0:
                out[d, r] += dots[d, r]
            elif y > 0.0:
                out[d, r] += dots[d, r] / (scale + y)


@_inner
def _to_weights(net, work, rows, gradients):
    """What the first `rows` rows of `work` give to the weights: products of the values with what came back."""
    apart()
    width, top, short, wide = net.first.shape[1], net.hidden.shape[0], net.first.shape[0], net.last.shape[0]
    values, back, own, head, layer_size = work.values, work.back, work.own, work.head, work.values.shape[1] * width
    to_shift, to_bias, to_last_bias = gradients.shift, gradients.bias, gradients.last_bias
    for r in range(rows):
        row = own[r]
        for c in range(width):
            to_shift[row, c] += back[0, r, c]
        for f in range(to_last_bias.shape[0]):
            to_last_bias[f] += head[r, f]
    for layer in range(top):
        for r in range(rows):
            for c in range(width):
                to_bias[layer, c] += back[layer + 1, r, c]
    add_product(
        gradients.first, 0, width, gradients.first, 0, width,
        work.features, 0, 1, short, back, 0, width, short, rows, width,
    )  # fmt: skip
    for layer in range(top):
        place = layer * width * width
        add_product(
            gradients.hidden, place, width, gradients.hidden, place, width,
            values, layer * layer_size, 1, width, back, (layer + 1) * layer_size, width, width, rows, width,
        )  # fmt: skip
    add_product(
        gradients.last, 0, width, gradients.last, 0, width,
        head, 0, 1, wide, values, top * layer_size, width, wide, rows, width,
    )  # fmt: skip


@_inner
def _point(y, h, k, stage, out):
    """Where `stage` stands; where the step ends, for the last stage."""
    apart()
    for d in range(y.shape[0]):
        for lane in range(LANES):
            total = 0.0
            for earlier in range(stage):
                total += A[stage, earlier] * k[earlier, d, lane]
            out[stage, d, lane] = y[d, lane] + h[lane] * total


@_inner
def _pull_at_point(pull, h, k, stage, pulls, start_pull, to_size):
    """Reverse of `_point`: what came back to it goes to the start, the stages before it and the size of the step."""
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


@_inner
def _enter(clock, i, lane, node, seen, state, place, out):
    """Go on to the next stretch that has a length, through the nodes before it; whether there is one, and anything is
    still wanted in it or later. ``place[:, lane]`` becomes (0, length of the stretch)."""
    apart()
    nodes, wanted = clock.times.shape[1], clock.wanted.shape[1]
    while True:
        node[lane] += 1
        j = node[lane]
        for d in range(state.shape[0]):
            state[d, lane] = clock.jump[i, j, d] + (0.0 if clock.reset[i, j] else state[d, lane])
        length = 0.0 if j + 1 >= nodes else float(clock.times[i, j + 1]) - float(clock.times[i, j])
        while seen[lane] < wanted:
            m = clock.order[i, seen[lane]]
            if clock.wanted[i, m] != j or (clock.since[i, m] > 0.0 and length > 0.0):
                break
            for d in range(state.shape[0]):
                out[i, m, d] = state[d, lane]
            seen[lane] += 1
        if seen[lane] == wanted:
            return False
        if length > 0.0:
            place[0, lane], place[1, lane] = 0.0, length
            return True
        if j + 1 >= nodes:
            return False


@_inner
def _probe(lane, y, k, rtol, atol):
    """How far to look for the curvature of the line."""
    near, steep = 0.0, 0.0
    for d in range(y.shape[0]):
        scale = atol + rtol * abs(y[d, lane])
        near += (y[d, lane] / scale) ** 2
        steep += (k[0, d, lane] / scale) ** 2
    return 1e-6 if near < 1e-10 or steep < 1e-10 else 0.01 * math.sqrt(near / steep)


@_inner
def _first_size(lane, y, k, row, probe, size, rtol, atol):
    """A first step from the state, its slope and the slope a small step further (Hairer et al., II.4)."""
    steepness, curvature, states = 0.0, 0.0, y.shape[0]
    for d in range(states):
        scale = atol + rtol * abs(y[d, lane])
        steepness += (k[0, d, lane] / scale) ** 2 / states
        curvature += ((probe[0, d, row] - k[0, d, lane]) / scale / size) ** 2 / states
    largest = math.sqrt(max(steepness, curvature))
    if not largest > 1e-15:
        return max(1e-6, 1e-3 * size)
    return min(100.0 * size, (0.01 / largest) ** 0.2)


@_inner
def _start(net, clock, work, lanes, rtol, atol):
    """The slope where a line starts or starts anew after an event, and for the size of a subject's first step the slope
    a little further on; the number of evaluations. Lanes in need of it move together into the first rows."""
    apart()
    subject, node, fresh, place, size = lanes.subject, lanes.node, lanes.flag, lanes.place, lanes.size
    state, points, k, slope, own = lanes.state, lanes.points, lanes.k, lanes.pulls, work.own
    entering, gathered, periods, evaluations = lanes.entering, lanes.gathered, clock.periods, 0
    for probing in range(2):
        new = 0
        for lane in range(LANES):
            if subject[lane] >= 0 and (size[lane] < 0.0 if probing else fresh[lane]):
                i, j = subject[lane], node[lane]
                own[lane] = i * periods + clock.period[i, j]
                own[LANES + new] = own[lane]
                for d in range(state.shape[0]):
                    points[0, d, new] = state[d, lane] - (size[lane] * k[0, d, lane] if probing else 0.0)
                    entering[d, lane] = clock.input[i, j, d]
                    gathered[d, new] = entering[d, lane]
                new += 1
        if new == 0:
            break
        _slopes(net, work, _block(new), LANES, points, 0, gathered, False, slope)
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
                fresh[lane], lanes.tally[2, lane] = False, 1
                for d in range(state.shape[0]):
                    k[0, d, lane] = slope[0, d, new]
                new += 1
                if size[lane] == 0.0:
                    size[lane] = -min(_probe(lane, state, k, rtol, atol), place[1, lane])
    return evaluations


@_inner
def _block(rows):
    """The rows of a product that has room for so many."""
    return (rows + ROWS - 1) // ROWS * ROWS


@_inner
def _weights(share, change, out):
    """The weights of the stages at a share of the step, or how fast they change with it."""
    for stage in range(STAGES):
        c0, c1, c2, c3 = DENSE[stage, 0], DENSE[stage, 1], DENSE[stage, 2], DENSE[stage, 3]
        out[0, stage] = share * (c0 + share * (c1 + share * (c2 + share * c3)))
        if change:
            out[1, stage] = c0 + share * (2.0 * c1 + share * (3.0 * c2 + share * 4.0 * c3))


@_inner
def _read_out(clock, lanes, lane, i, h, whole, out):
    """The states at the wanted times inside the step, which may be the whole rest of its stretch."""
    apart()
    state, points, k, weights = lanes.state, lanes.points, lanes.k, lanes.weights
    start, j, q = lanes.place[0, lane], lanes.node[lane], lanes.seen[lane]
    while q < clock.wanted.shape[1]:
        m = clock.order[i, q]
        since = float(clock.since[i, m])
        if clock.wanted[i, m] != j or (since > start + h and not whole):
            break
        share = min((since - start) / h, 1.0)
        _weights(share, False, weights)
        for d in range(state.shape[0]):
            total = 0.0
            for stage in range(STAGES):
                total += weights[0, stage] * k[stage, d, lane]
            out[i, m, d] = points[STAGES - 1, d, lane] if share >= 1.0 else state[d, lane] + h * total
        q += 1
    lanes.seen[lane] = q


@_inner
def _judge(lanes, lane, h, rtol, atol):
    """The error of a step, and how much the slope changed over the distance between its last two stages."""
    state, points, k = lanes.state, lanes.points, lanes.k
    error, bent, moved, states = 0.0, 0.0, 0.0, state.shape[0]
    for d in range(states):
        y, ahead, wrong = state[d, lane], points[STAGES - 1, d, lane], 0.0
        for stage in range(STAGES):
            wrong += E[stage] * k[stage, d, lane]
        scale = atol + rtol * max(abs(y), abs(ahead))
        error += (h * wrong / scale) ** 2 / states
        bent += ((k[STAGES - 1, d, lane] - k[STAGES - 2, d, lane]) / scale) ** 2
        moved += ((ahead - points[STAGES - 2, d, lane]) / scale) ** 2
    return error, bent, moved


@kept(nogil=True, error_model="numpy")
def forward(net, clock, work, lanes, initial, begin, end, rtol, atol, limit, record, out, status):
    """Solve subjects `begin` to `end`; states at the wanted times into `out`, how each ended into `status`.

    Returns the accepted steps (none where `record` is false) and the number of evaluations of the field by a subject.
    """
    states = initial.shape[1]
    subject, node, seen, trail, fresh = lanes.subject, lanes.node, lanes.seen, lanes.step, lanes.flag
    state, points, place, size, k = lanes.state, lanes.points, lanes.place, lanes.size, lanes.k
    tally, entering, h_all = lanes.tally, lanes.entering, lanes.h
    capacity = 32 * (end - begin) if record else 1
    log_state, log_place = np.empty((capacity, states)), np.empty((capacity, 2))
    log_mark, logged = np.empty((capacity, 4), np.int64), 0
    last = np.full(end - begin, -1)
    upcoming, evaluations = begin, 0
    for row in range(2 * LANES):  # an empty lane goes through the stages too, with no effect
        work.own[row] = begin * clock.periods

    while True:
        live = 0
        for lane in range(LANES):
            while subject[lane] < 0 and upcoming < end:
                i = upcoming
                upcoming += 1
                for d in range(states):
                    state[d, lane] = initial[i, d]
                node[lane], seen[lane], trail[lane] = -1, 0, -1
                tally[0, lane], tally[1, lane], tally[2, lane] = 0, 0, 0
                size[lane] = 0.0
                if _enter(clock, i, lane, node, seen, state, place, out):
                    subject[lane], fresh[lane] = i, True
            live += subject[lane] >= 0
        if live == 0:
            break
        evaluations += _start(net, clock, work, lanes, rtol, atol) + (STAGES - 1) * live
        for lane in range(LANES):
            left, h = place[1, lane] - place[0, lane], size[lane]
            # two steps of equal size rather than one and a rest
            h_all[lane] = h if 2.0 * h <= left else left if h >= left else min(h, 0.5 * left)
        for stage in range(1, STAGES):
            _point(state, h_all, k, stage, points)
            _slopes(net, work, LANES, 0, points, stage, entering, False, k)

        for lane in range(LANES):
            i, h = subject[lane], h_all[lane]
            if i < 0:
                continue
            tally[2, lane] += STAGES - 1
            error, bent, moved = _judge(lanes, lane, h, rtol, atol)
            finite = math.isfinite(error)
            error = math.sqrt(error) if finite else 1e10
            ended = _OK
            change = SAFETY * max(error, 1e-10) ** -0.2
            if error > 1.0:
                size[lane] = h * max(SHRINK, change)
                if place[0, lane] + 0.01 * size[lane] == place[0, lane] or size[lane] < 1e-13 * place[1, lane]:
                    ended = _STEP_UNDERFLOW if finite else _NON_FINITE
            else:
                start, seen_before = place[0, lane], seen[lane]
                whole = h >= place[1, lane] - start
                _read_out(clock, lanes, lane, i, h, whole, out)
                if record:
                    if logged == capacity:
                        log_state, log_place = _longer(log_state), _longer(log_place)
                        log_mark = _longer(log_mark)
                        capacity *= 2
                    for d in range(states):
                        log_state[logged, d] = state[d, lane]
                    log_place[logged, 0], log_place[logged, 1] = start, h
                    log_mark[logged, 0], log_mark[logged, 1] = node[lane], seen_before
                    log_mark[logged, 2], log_mark[logged, 3] = seen[lane], trail[lane]
                    trail[lane] = logged
                    logged += 1
                for d in range(states):
                    state[d, lane], k[0, d, lane] = points[STAGES - 1, d, lane], k[STAGES - 1, d, lane]
                place[0, lane] = start + h
                grown = h * min(GROW, max(SHRINK, change))
                size[lane] = max(grown, size[lane]) if whole else grown
                if moved > 0.0 and h * math.sqrt(bent / moved) > STABILITY:
                    tally[0, lane] += 1
                    tally[1, lane] = 0
                else:
                    tally[1, lane] += 1
                    if tally[1, lane] == 6:
                        tally[0, lane] = 0
                if tally[0, lane] == FUSED_STIFF_STEPS:
                    ended = _STIFF
                elif seen[lane] == clock.wanted.shape[1] or (
                    whole and not _enter(clock, i, lane, node, seen, state, place, out)
                ):
                    last[i - begin] = trail[lane]
                    subject[lane] = -1
                elif whole:
                    fresh[lane] = True
            if ended == _OK and subject[lane] >= 0 and tally[2, lane] > limit:
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


@_inner
def _leave(clock, i, lane, node, until, cotangent, seen, upstream, gradients):
    """Go back through the nodes of subject `i` from ``node[lane]`` down to the one after `until`."""
    apart()
    states = cotangent.shape[0]
    while node[lane] > until:
        j = node[lane]
        while seen[lane] > 0:
            m = clock.order[i, seen[lane] - 1]
            if clock.wanted[i, m] != j:
                break
            for d in range(states):
                cotangent[d, lane] += upstream[i, m, d]
            seen[lane] -= 1
        for d in range(states):
            gradients.jump[i, j, d] = cotangent[d, lane]
            if clock.reset[i, j]:
                cotangent[d, lane] = 0.0
        node[lane] -= 1
    if until < 0:
        for d in range(states):
            gradients.initial[i, d] = cotangent[d, lane]
            cotangent[d, lane] = 0.0


@_inner
def _read(clock, steps, lanes, lane, i, s, upstream, to_since):
    """Take in what came back to the wanted times inside step `s`: its stages draw the line there, and get it. What the
    size and the start of the step get: a product with the size, so a share of it."""
    apart()
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
        _weights(share, True, weights)
        along, inside = 0.0, 0.0
        for d in range(upstream.shape[2]):
            given = float(upstream[i, m, d])
            start_pull[d, lane] += given
            for stage in range(STAGES):
                pulls[stage, d, lane] += h * weights[0, stage] * given
                along += given * weights[1, stage] * k[stage, d, lane]
                inside += given * weights[0, stage] * k[stage, d, lane]
        to_since[i, m] = along
        total += h * (inside - share * along) - start * along
    return total


@_inner
def _pull_of_next(clock, steps, lanes, lane, i, s, upstream):
    """What the wanted times inside step `s` pull at its last stage, the first of the step after it."""
    h, pulls, weights = steps.place[s, 1], lanes.pulls, lanes.weights
    for q in range(steps.mark[s, 1], steps.mark[s, 2]):
        m = clock.order[i, q]
        share = (float(clock.since[i, m]) - steps.place[s, 0]) / h
        if share < 1.0:
            _weights(share, False, weights)
            for d in range(upstream.shape[2]):
                pulls[0, d, lane] += h * weights[0, STAGES - 1] * upstream[i, m, d]


@kept(nogil=True, error_model="numpy")
def backward(net, clock, work, lanes, steps, begin, end, upstream, status, gradients):
    """The reverse sweep over the steps of subjects `begin` to `end`: the gradient of Σ upstream·states, exact for the
    steps as they were taken. Sizes of steps are shares of their stretch, so that the times of its ends get theirs."""
    states, final = upstream.shape[2], STAGES - 1
    subject, node, seen, step, closing = lanes.subject, lanes.node, lanes.seen, lanes.step, lanes.flag
    y, h, k, points, pulls = lanes.y, lanes.h, lanes.k, lanes.points, lanes.pulls
    cotangent, start_pull, to_point, to_size = lanes.state, lanes.start_pull, lanes.to_point, lanes.to_size
    entering, gathered, spare, ends, own = lanes.entering, lanes.gathered, lanes.spare, lanes.ends, work.own
    mark, upcoming = steps.mark, begin
    while upcoming < end and status[upcoming] != _OK:
        upcoming += 1
    for row in range(STAGES * LANES):  # an empty lane stands at zero with a subject that could be solved, to no effect
        own[row] = min(upcoming, end - 1) * clock.periods

    while True:
        live = 0
        for lane in range(LANES):
            while subject[lane] < 0 and upcoming < end:
                i = upcoming
                upcoming += 1
                if status[i] != _OK:
                    continue
                s = steps.last[i - begin]
                step[lane], closing[lane], seen[lane] = s, True, clock.wanted.shape[1]
                node[lane] = clock.wanted[i, clock.order[i, seen[lane] - 1]]
                _leave(clock, i, lane, node, mark[s, 0] if s >= 0 else -1, cotangent, seen, upstream, gradients)
                if s >= 0:
                    subject[lane] = i
            live += subject[lane] >= 0
        if live == 0:
            break

        # the stages again; the last one only where no following step begins with it and something was read inside
        ending = 0
        for lane in range(LANES):
            i, s = subject[lane], step[lane]
            h[lane], to_size[lane] = 0.0, 0.0
            if i >= 0:
                h[lane] = steps.place[s, 1]
                if closing[lane]:
                    j = mark[s, 0]
                    row = i * clock.periods + clock.period[i, j]
                    for stage in range(final):
                        own[stage * LANES + lane] = row
                    for d in range(states):
                        entering[d, lane] = clock.input[i, j, d]
                    if mark[s, 2] > mark[s, 1]:
                        own[final * LANES + ending], ends[ending] = row, lane
                        ending += 1
            for d in range(states):
                y[d, lane] = steps.state[s, d] if i >= 0 else 0.0
                k[final, d, lane] = k[0, d, lane]
                start_pull[d, lane] = 0.0
        for stage in range(STAGES):
            for d in range(states):
                for lane in range(LANES):
                    pulls[stage, d, lane] = 0.0
        for stage in range(final):
            _point(y, h, k, stage, points)
            _slopes(net, work, LANES, stage * LANES, points, stage, entering, True, k)
        tail = _block(ending)
        if ending > 0:
            _point(y, h, k, final, spare)
            for r in range(ending):
                for d in range(states):
                    points[final, d, r] = spare[final, d, ends[r]]
                    gathered[d, r] = entering[d, ends[r]]
            _slopes(net, work, tail, final * LANES, points, final, gathered, True, spare)
            for r in range(ending):
                for d in range(states):
                    k[final, d, ends[r]] = spare[final, d, r]

        for lane in range(LANES):
            i, s = subject[lane], step[lane]
            if i < 0:
                continue
            if mark[s, 2] > mark[s, 1]:
                to_size[lane] = _read(clock, steps, lanes, lane, i, s, upstream, gradients.since)
                seen[lane] = min(seen[lane], mark[s, 1])
            earlier = mark[s, 3]
            if earlier >= 0 and mark[earlier, 0] == mark[s, 0]:
                _pull_of_next(clock, steps, lanes, lane, i, earlier, upstream)
        if ending > 0:
            for d in range(states):
                for r in range(LANES):
                    spare[final, d, r] = pulls[final, d, ends[r]] if r < ending else 0.0
            _pull_back(net, work, tail, final * LANES, points, final, spare, gradients, to_point)
            for r in range(ending):
                for d in range(states):
                    cotangent[d, ends[r]] += to_point[d, r]
        _pull_at_point(cotangent, h, k, final, pulls, start_pull, to_size)
        for stage in range(final - 1, -1, -1):
            _pull_back(net, work, LANES, stage * LANES, points, stage, pulls, gradients, to_point)
            _pull_at_point(to_point, h, k, stage, pulls, start_pull, to_size)
        _to_weights(net, work, final * LANES + tail, gradients)

        for lane in range(LANES):
            i, s = subject[lane], step[lane]
            if i < 0:
                continue
            j, earlier = mark[s, 0], mark[s, 3]
            # a step is a fixed share of its stretch: what its start and size get goes to the times at its ends
            pull = to_size[lane] / (float(clock.times[i, j + 1]) - float(clock.times[i, j]))
            gradients.times[i, j] -= pull
            gradients.times[i, j + 1] += pull
            for d in range(states):
                cotangent[d, lane] = start_pull[d, lane]
                total = pulls[final, d, lane] if closing[lane] else 0.0
                for stage in range(final):
                    total += pulls[stage, d, lane]
                gradients.input[i, j, d] += total
            step[lane] = earlier
            closing[lane] = earlier < 0 or mark[earlier, 0] != j
            if closing[lane]:
                until = -1 if earlier < 0 else mark[earlier, 0]
                _leave(clock, i, lane, node, until, cotangent, seen, upstream, gradients)
                if earlier < 0:
                    subject[lane] = -1
