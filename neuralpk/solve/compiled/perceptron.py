"""Perceptron fields on the CPU: Runge–Kutta steps of each subject's own size, and their reverse sweep.

Some subjects at a time (`LANES`) go through the same stage together, each at its own place of its own clock; one that
is done makes room for the next. So the network's matrices meet a block of rows, and yet no subject's steps depend on
another. What is remembered of a step is its start and the slopes of its stages, which tell where the stages stood: the
reverse sweep computes the hidden layers of all of them again, at once. States and step sizes are in double precision,
the network in that of its weights.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numba import njit, types
from numba.extending import overload
from numpy.typing import NDArray

from neuralpk.solve.compiled.kept import kept
from neuralpk.solve.compiled.tile import ROWS, add_product, apart, within
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
    slopes: Array  # [step, stage·state]
    place: Array  # [step, 2]: start since the node before, size
    mark: Array  # [step, 4]: node, first and last + 1 of the wanted times read in it, the step before
    last: Array  # [subject] of the chunk
    taken: Array  # [1] how many there are; what stands after them means nothing


class Work(NamedTuple):
    """What happens inside the network, a row for each evaluation; the rows of a layer stand one after the other."""

    features: Array  # [row, state]
    values: Array  # [layer, row·hidden]
    derivatives: Array  # [layer, row·hidden] of the activation, where its value does not tell; forward: no row
    back: Array  # [layer, row·hidden] what came back to it before the activation
    head: Array  # [row, output] what came back to it
    dots: Array  # [output or state, lane] sums over the width
    own: Array  # [lane] place of the subject and period in its own arrays; again for some lanes that move together
    shift: Array  # [lane, hidden] that of the network there
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
    to_point: Array  # [state, lane] and to where a stage stands; forward: the slopes of some lanes
    entering: Array  # [state, lane] rate of input
    gathered: Array  # [state, row] that of some lanes; backward: what came back to their last slope
    k: Array  # [stage, state, lane] slopes
    points: Array  # [stage, state, lane] where they are taken
    pulls: Array  # [stage, state, lane] backward: what came back to the slopes
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


def make_work(net: Network, rows: int, back: bool) -> Work:
    """Room for `rows` evaluations, and to go back through them."""
    kind, width, layers = net.first.dtype, net.first.shape[1], len(net.hidden) + 1
    return Work(
        features=np.zeros((rows, len(net.first)), kind),
        values=np.zeros((layers, rows * width), kind),
        derivatives=np.zeros((layers, rows * width if back else 0), kind),
        back=np.zeros((layers, rows * width if back else 0), kind),
        head=np.zeros((rows, len(net.last)), kind),
        dots=np.zeros((max(len(net.first), len(net.last)), LANES)),
        own=np.zeros(2 * LANES, np.int64),
        shift=np.zeros((2 * LANES, width), kind),
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
def _activate(kind, values, slopes):
    """The activation of some values in place and, where there is room and the value does not tell, its derivative."""
    apart()
    half, keep = values.dtype.type(0.5), len(slopes) > 0
    one = values.dtype.type(1.0)
    if kind == TANH:
        for c in range(len(values)):
            values[c] = _tanh(values[c])
    elif kind == SILU:
        for c in range(len(values)):
            x = values[c]
            share = half + half * _tanh(half * x)
            values[c] = x * share
            if keep:
                slopes[c] = share * (one + x * (one - share))
    else:
        for c in range(len(values)):
            x = values[c]
            values[c] = max(x, values.dtype.type(0.0)) + math.log1p(math.exp(-abs(x)))
            if keep:
                slopes[c] = half + half * _tanh(half * x)


@_sum
def _back_through(kind, back, values, slopes):
    """What came back to some values, to before their activation."""
    apart()
    one = values.dtype.type(1.0)
    if kind == TANH:
        for c in range(len(back)):
            back[c] *= one - values[c] * values[c]
    else:
        for c in range(len(back)):
            back[c] *= slopes[c]


@_sum
def _dots(a, b, count, out):
    """out[f, r] = Σ_c a[r, c]·b[f, c], with the rows of `a` one after the other."""
    apart()
    width = b.shape[1]
    for r in range(len(a) // width):
        row = a[r * width : (r + 1) * width]
        for f in range(count):
            total = a.dtype.type(0.0)
            for c in range(width):
                total += row[c] * b[f, c]
            out[f, r] = total


@_inner
def _own(net, work, lane, row):
    """Put a subject and period, at `row` of its own arrays, into a lane."""
    work.own[lane] = row
    for c in range(net.shift.shape[1]):
        work.shift[lane, c] = net.shift[row, c]


@_inner
def _first_layer(net, work, at, shift, states):
    """The first layer before its activation, in the rows from `at` on, of as many lanes as have a row in `shift`, a
    multiple of 4, at `states`."""
    within()
    width, short, features, scale = net.first.shape[1], net.first.shape[0], work.features, net.scale
    for d in range(len(states)):
        for r in range(LANES):
            y = states[d, r]
            features[at + r, d] = y if scale == 0.0 else math.log1p(max(y, 0.0) / scale)
    add_product(
        work.values, at * width, width, shift, 0, width,
        features, at * short, short, 1, net.first, 0, width, len(shift), len(states), width,
    )  # fmt: skip


@_inner
def _hidden_layers(net, work, rows):
    """The first activation of the first `rows` rows and the layers above it."""
    within()
    width, values, derivatives, end = net.first.shape[1], work.values, work.derivatives, rows * net.first.shape[1]
    _activate(net.activation, values[0, :end], derivatives[0, :end])
    for layer in range(net.hidden.shape[0]):
        add_product(
            values, (layer + 1) * values.shape[1], width, net.bias, layer * width, 0,
            values, layer * values.shape[1], width, 1, net.hidden, layer * width * width, width, rows, width, width,
        )  # fmt: skip
        _activate(net.activation, values[layer + 1, :end], derivatives[layer + 1, :end])


@_inner
def _slopes(net, work, own, shift, states, entering, out):
    """dy/dt at `states` into `out` for as many lanes as have a place in `own`, a multiple of 4."""
    apart()
    rows, dots = len(own), work.dots
    _first_layer(net, work, 0, shift, states)
    _hidden_layers(net, work, rows)
    _dots(work.values[net.hidden.shape[0], : rows * net.first.shape[1]], net.last, net.last_bias.shape[0], dots)
    for d in range(len(states)):
        for r in range(LANES):
            out[d, r] = entering[d, r]
    if net.matrix.shape[0] > 0:
        matrix = net.matrix
        for r in range(rows):
            row = own[r]
            for d in range(len(states)):
                slope = out[d, r]
                for e in range(len(states)):
                    slope += matrix[row, d, e] * states[e, r]
                out[d, r] = slope
    last_bias, base = net.last_bias, net.base
    for f in range(last_bias.shape[0]):
        if base.shape[0] == 0:
            for r in range(LANES):
                out[f, r] += dots[f, r] + last_bias[f]
            continue
        source, destination = net.source[f], net.destination[f]
        for r in range(rows):
            bend = math.tanh((dots[f, r] + last_bias[f]) / 5.0)
            flow = base[own[r], f] * math.exp(5.0 * bend) * states[source, r]
            out[source, r] -= flow
            if destination >= 0:
                out[destination, r] += flow


@_inner
def _pull_back(net, work, at, own, states, cotangent, gradients, out):
    """The transposed Jacobian of `_slopes` times `cotangent` into `out`, from the layers in the rows from `at` on. What
    came back to each layer and to the outputs stays there, until `_to_weights` sums over all of them at once."""
    within()
    width, top, wide, outputs = net.first.shape[1], net.hidden.shape[0], net.last.shape[0], net.last_bias.shape[0]
    back, head, dots, rows, start, end = work.back, work.head, work.dots, len(own), at * width, (at + len(own)) * width
    values, derivatives = work.values, work.derivatives
    for d in range(out.shape[0]):
        for r in range(LANES):
            out[d, r] = 0.0
    base = net.base
    if base.shape[0] > 0:
        _dots(values[top, start:end], net.last, outputs, dots)
    for f in range(outputs):
        if base.shape[0] == 0:
            for r in range(LANES):
                head[at + r, f] = cotangent[f, r]
            continue
        source, destination = net.source[f], net.destination[f]
        for r in range(rows):
            row, bend, y = own[r], math.tanh((dots[f, r] + net.last_bias[f]) / 5.0), states[source, r]
            rate, pull = math.exp(5.0 * bend), -cotangent[source, r]
            if destination >= 0:
                pull += cotangent[destination, r]
            gradients.base[row, f] += pull * rate * y
            out[source, r] += pull * rate * base[row, f]
            head[at + r, f] = pull * base[row, f] * rate * y * (1.0 - bend * bend)
    if net.matrix.shape[0] > 0:
        matrix, to_matrix = net.matrix, gradients.matrix
        for r in range(rows):
            row = own[r]
            for d in range(out.shape[0]):
                pull = cotangent[d, r]
                for e in range(out.shape[0]):
                    to_matrix[row, d, e] += pull * states[e, r]
                    out[e, r] += pull * matrix[row, d, e]
    add_product(
        back, top * back.shape[1] + start, width, work.zeros, 0, 0,
        head, at * wide, wide, 1, net.last, 0, width, rows, outputs, width,
    )  # fmt: skip
    for layer in range(top, -1, -1):
        _back_through(net.activation, back[layer, start:end], values[layer, start:end], derivatives[layer, start:end])
        if layer > 0:
            add_product(
                back, (layer - 1) * back.shape[1] + start, width, work.zeros, 0, 0,
                back, layer * back.shape[1] + start, width, 1,
                net.hidden_back, (layer - 1) * width * width, width, rows, width, width,
            )  # fmt: skip
    _dots(back[0, start:end], net.first, out.shape[0], dots)
    scale = net.scale
    for d in range(out.shape[0]):
        for r in range(LANES):
            y = states[d, r]
            if scale == 0.0:
                out[d, r] += dots[d, r]
            elif y > 0.0:
                out[d, r] += dots[d, r] / (scale + y)


@_inner
def _add(a, out):
    for c in range(len(a)):
        out[c] += a[c]


@_inner
def _to_weights(net, work, rows, gradients):
    """What the first `rows` rows of `work` give to the weights: products of the values with what came back."""
    within()
    width, top, short, wide = net.first.shape[1], net.hidden.shape[0], net.first.shape[0], net.last.shape[0]
    values, back, own, head, layer_size = work.values, work.back, work.own, work.head, work.values.shape[1]
    to_shift, to_bias, to_last_bias = gradients.shift, gradients.bias, gradients.last_bias
    for r in range(rows):
        # those of the last stage moved together
        row = own[r % LANES if r < (STAGES - 1) * LANES else r - (STAGES - 2) * LANES]
        _add(back[0, r * width : (r + 1) * width], to_shift[row])
        for f in range(to_last_bias.shape[0]):
            to_last_bias[f] += head[r, f]
    for layer in range(top):
        for r in range(rows):
            _add(back[layer + 1, r * width : (r + 1) * width], to_bias[layer])
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
        curvature += ((probe[d, row] - k[0, d, lane]) / scale / size) ** 2 / states
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
    state, points, k, slope = lanes.state, lanes.points, lanes.k, lanes.to_point
    entering, gathered, periods, evaluations = lanes.entering, lanes.gathered, clock.periods, 0
    for probing in range(2):
        new = 0
        for lane in range(LANES):
            if subject[lane] >= 0 and (size[lane] < 0.0 if probing else fresh[lane]):
                i, j = subject[lane], node[lane]
                row = i * periods + clock.period[i, j]
                _own(net, work, lane, row)
                _own(net, work, LANES + new, row)
                for d in range(state.shape[0]):
                    points[0, d, new] = state[d, lane] - (size[lane] * k[0, d, lane] if probing else 0.0)
                    entering[d, lane] = clock.input[i, j, d]
                    gathered[d, new] = entering[d, lane]
                new += 1
        if new == 0:
            break
        moved = slice(LANES, LANES + _block(new))
        _slopes(net, work, work.own[moved], work.shift[moved], points[0], gathered, slope)
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
                    k[0, d, lane] = slope[d, new]
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


@_inner
def _refill(clock, lanes, initial, upcoming, end, out):
    """Put the next subjects into the empty lanes; the one after them."""
    apart()
    for lane in range(LANES):
        while lanes.subject[lane] < 0 and upcoming < end:
            i = upcoming
            upcoming += 1
            for d in range(initial.shape[1]):
                lanes.state[d, lane] = initial[i, d]
            lanes.node[lane], lanes.seen[lane], lanes.step[lane], lanes.size[lane] = -1, 0, -1, 0.0
            lanes.tally[0, lane], lanes.tally[1, lane] = 0, 0
            if _enter(clock, i, lane, lanes.node, lanes.seen, lanes.state, lanes.place, out):
                lanes.subject[lane], lanes.flag[lane] = i, True
    return upcoming


@_inner
def _live(lanes):
    """How many lanes have a subject."""
    live = 0
    for lane in range(LANES):
        live += lanes.subject[lane] >= 0
    return live


@_inner
def _remember(lanes, lane, steps, start, h, seen_before):
    """Write down a step that is accepted."""
    apart()
    s, states = steps.taken[0], lanes.state.shape[0]
    for d in range(states):
        steps.state[s, d] = lanes.state[d, lane]
        for stage in range(STAGES):
            steps.slopes[s, stage * states + d] = lanes.k[stage, d, lane]
    steps.place[s, 0], steps.place[s, 1] = start, h
    steps.mark[s, 0], steps.mark[s, 1] = lanes.node[lane], seen_before
    steps.mark[s, 2], steps.mark[s, 3] = lanes.seen[lane], lanes.step[lane]
    lanes.step[lane] = s
    steps.taken[0] += 1


@_inner
def _stiff(lanes, lane, h, bent, moved):
    """Whether stability and not accuracy has been deciding on the steps."""
    tally = lanes.tally
    if moved > 0.0 and h * math.sqrt(bent / moved) > STABILITY:
        tally[0, lane] += 1
        tally[1, lane] = 0
    else:
        tally[1, lane] += 1
        if tally[1, lane] == 6:
            tally[0, lane] = 0
    return tally[0, lane] == FUSED_STIFF_STEPS


@_inner
def _settle(clock, lanes, steps, begin, rtol, atol, limit, record, out, status):
    """Accept the steps whose error is small enough, and the size of the next ones."""
    apart()
    subject, state, points, place, size, k = lanes.subject, lanes.state, lanes.points, lanes.place, lanes.size, lanes.k
    for lane in range(LANES):
        i, h = subject[lane], lanes.h[lane]
        if i < 0:
            continue
        lanes.tally[2, lane] += STAGES - 1
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
            start, seen_before = place[0, lane], lanes.seen[lane]
            whole = h >= place[1, lane] - start
            _read_out(clock, lanes, lane, i, h, whole, out)
            if record:
                _remember(lanes, lane, steps, start, h, seen_before)
            for d in range(state.shape[0]):
                state[d, lane], k[0, d, lane] = points[STAGES - 1, d, lane], k[STAGES - 1, d, lane]
            place[0, lane] = start + h
            grown = h * min(GROW, max(SHRINK, change))
            size[lane] = max(grown, size[lane]) if whole else grown
            if _stiff(lanes, lane, h, bent, moved):
                ended = _STIFF
            elif lanes.seen[lane] == clock.wanted.shape[1] or (
                whole and not _enter(clock, i, lane, lanes.node, lanes.seen, state, place, out)
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


@kept(nogil=True, error_model="numpy")
def forward(net, clock, work, lanes, initial, begin, end, rtol, atol, limit, record, out, status):
    """Solve subjects `begin` to `end`; states at the wanted times into `out`, how each ended into `status`.

    Returns the accepted steps (none where `record` is false) and the number of evaluations of the field by a subject.
    """
    states, room = initial.shape[1], LANES + (32 * (end - begin) if record else 0)
    steps = Steps(
        np.empty((room, states)),
        np.empty((room, STAGES * states)),
        np.empty((room, 2)),
        np.empty((room, 4), np.int64),
        np.full(end - begin, -1),
        np.zeros(1, np.int64),
    )
    place, size, h, own, shift = lanes.place, lanes.size, lanes.h, work.own[:LANES], work.shift[:LANES]
    upcoming, evaluations = begin, 0
    for lane in range(2 * LANES):  # an empty lane goes through the stages too, with no effect
        _own(net, work, lane, begin * clock.periods)

    while True:
        upcoming = _refill(clock, lanes, initial, upcoming, end, out)
        live = _live(lanes)
        if live == 0:
            break
        evaluations += _start(net, clock, work, lanes, rtol, atol) + (STAGES - 1) * live
        for lane in range(LANES):
            left, wished = place[1, lane] - place[0, lane], size[lane]
            # two steps of equal size rather than one and a rest
            h[lane] = wished if 2.0 * wished <= left else left if wished >= left else min(wished, 0.5 * left)
        for stage in range(1, STAGES):
            _point(lanes.state, h, lanes.k, stage, lanes.points)
            _slopes(net, work, own, shift, lanes.points[stage], lanes.entering, lanes.k[stage])
        if steps.taken[0] + LANES > len(steps.place):
            longer = _longer(steps.state), _longer(steps.slopes), _longer(steps.place), _longer(steps.mark)
            steps = Steps(*longer, steps.last, steps.taken)
        _settle(clock, lanes, steps, begin, rtol, atol, limit, record, out, status)
    return steps, evaluations


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


@_inner
def _take_up(clock, lanes, steps, begin, upcoming, end, upstream, status, gradients):
    """Put the next subjects that were solved into the empty lanes, at their last steps; the subject after them."""
    apart()
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
            _leave(clock, i, lane, lanes.node, until, lanes.state, lanes.seen, upstream, gradients)
            if s >= 0:
                lanes.subject[lane] = i
    return upcoming


@_inner
def _recall(net, clock, work, lanes, steps):
    """Where the stages of the lanes' steps stand. The last one only where no following step begins with it and
    something was read inside: the number of lanes of which that is so, which move together."""
    apart()
    y, h, k, mark, final, ending = lanes.y, lanes.h, lanes.k, steps.mark, STAGES - 1, 0
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
            for stage in range(STAGES):
                k[stage, d, lane] = steps.slopes[s, stage * y.shape[0] + d]
        if lanes.flag[lane]:
            row = i * clock.periods + clock.period[i, mark[s, 0]]
            _own(net, work, lane, row)
            if mark[s, 2] > mark[s, 1]:
                _own(net, work, LANES + ending, row)
                lanes.ends[ending] = lane
                ending += 1
    for stage in range(STAGES if ending > 0 else final):
        _point(y, h, k, stage, lanes.points)
    for r in range(ending):
        for d in range(y.shape[0]):  # in place: a lane moves down or stays
            lanes.points[final, d, r] = lanes.points[final, d, lanes.ends[r]]
    return ending


@_inner
def _read_back(clock, lanes, steps, ending, upstream, gradients):
    """Take in what came back to the wanted times inside the lanes' steps, and gather that to the last slopes that move
    together."""
    apart()
    mark, pulls = steps.mark, lanes.pulls
    for stage in range(STAGES):
        for d in range(pulls.shape[1]):
            for lane in range(LANES):
                pulls[stage, d, lane] = 0.0
    for lane in range(LANES):
        i, s = lanes.subject[lane], lanes.step[lane]
        if i < 0:
            continue
        if mark[s, 2] > mark[s, 1]:
            lanes.to_size[lane] = _read(clock, steps, lanes, lane, i, s, upstream, gradients.since)
            lanes.seen[lane] = min(lanes.seen[lane], mark[s, 1])
        earlier = mark[s, 3]
        if earlier >= 0 and mark[earlier, 0] == mark[s, 0]:
            _pull_of_next(clock, steps, lanes, lane, i, earlier, upstream)
    for d in range(pulls.shape[1]):
        for r in range(LANES):
            lanes.gathered[d, r] = pulls[STAGES - 1, d, lanes.ends[r]] if r < ending else 0.0


@_inner
def _to_ends(lanes, ending):
    """What came back to where the steps end, by way of the slopes there too."""
    for r in range(ending):
        for d in range(lanes.state.shape[0]):
            lanes.state[d, lanes.ends[r]] += lanes.to_point[d, r]
    for d in range(lanes.state.shape[0]):
        for lane in range(LANES):
            lanes.to_point[d, lane] = lanes.state[d, lane]


@_inner
def _hand_on(clock, lanes, steps, upstream, gradients):
    """Go to the steps before, and through the nodes in between."""
    apart()
    mark, pulls, cotangent, final = steps.mark, lanes.pulls, lanes.state, STAGES - 1
    for lane in range(LANES):
        i, s = lanes.subject[lane], lanes.step[lane]
        if i < 0:
            continue
        j, earlier = mark[s, 0], mark[s, 3]
        # a step is a fixed share of its stretch: what its start and size get goes to the times at its ends
        pull = lanes.to_size[lane] / (float(clock.times[i, j + 1]) - float(clock.times[i, j]))
        gradients.times[i, j] -= pull
        gradients.times[i, j + 1] += pull
        for d in range(cotangent.shape[0]):
            cotangent[d, lane] = lanes.start_pull[d, lane]
            total = pulls[final, d, lane] if lanes.flag[lane] else 0.0
            for stage in range(final):
                total += pulls[stage, d, lane]
            gradients.input[i, j, d] += total
        lanes.step[lane] = earlier
        lanes.flag[lane] = earlier < 0 or mark[earlier, 0] != j
        if lanes.flag[lane]:
            until = -1 if earlier < 0 else mark[earlier, 0]
            _leave(clock, i, lane, lanes.node, until, cotangent, lanes.seen, upstream, gradients)
            if earlier < 0:
                lanes.subject[lane] = -1


@kept(nogil=True, error_model="numpy")
def backward(net, clock, work, lanes, steps, begin, end, upstream, status, gradients):
    """The reverse sweep over the steps of subjects `begin` to `end`: the gradient of Σ upstream·states, exact for the
    steps as they were taken. Sizes of steps are shares of their stretch, so that the times of its ends get theirs."""
    final, points, pulls = STAGES - 1, lanes.points, lanes.pulls
    upcoming = begin
    while upcoming < end and status[upcoming] != _OK:
        upcoming += 1
    for lane in range(2 * LANES):  # an empty lane stands at zero with a subject that could be solved, to no effect
        _own(net, work, lane, min(upcoming, end - 1) * clock.periods)

    while True:
        upcoming = _take_up(clock, lanes, steps, begin, upcoming, end, upstream, status, gradients)
        if _live(lanes) == 0:
            break
        ending = _recall(net, clock, work, lanes, steps)
        tail = _block(ending)
        rows, moved = final * LANES + tail, slice(LANES, LANES + tail)
        for stage in range(STAGES):
            if stage < final or tail > 0:
                shift = work.shift[moved if stage == final else slice(0, LANES)]
                _first_layer(net, work, stage * LANES, shift, points[stage])
        _hidden_layers(net, work, rows)
        _read_back(clock, lanes, steps, ending, upstream, gradients)
        for stage in range(final, -1, -1):
            pull = lanes.gathered if stage == final else pulls[stage]
            if stage < final or tail > 0:
                own = work.own[moved if stage == final else slice(0, LANES)]
                _pull_back(net, work, stage * LANES, own, points[stage], pull, gradients, lanes.to_point)
            if stage == final:
                _to_ends(lanes, ending)
            _pull_at_point(lanes.to_point, lanes.h, lanes.k, stage, pulls, lanes.start_pull, lanes.to_size)
        _to_weights(net, work, rows, gradients)
        _hand_on(clock, lanes, steps, upstream, gradients)
