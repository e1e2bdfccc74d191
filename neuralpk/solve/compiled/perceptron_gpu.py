"""Multilayer perceptrons as vector fields on the GPU: adaptive Runge–Kutta steps, and their reverse sweep.

A program solves a block of subjects, each at a different time and with a different step size; a finished subject waits
until its block is finished. The state and the slopes of a step are tiles with few columns, ``[subject, stage, state]``.
The first and the last layer, with few inputs or outputs, are loops over these; products between hidden layers use the
tensor cores. The slopes of every step are stored, so that the reverse sweep evaluates the network once for each slope.
All is in single precision.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from neuralpk.solve import tsit5_coefficients as tsit5
from neuralpk.solve.solve_result import Status

TANH, SILU, SOFTPLUS = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
SLOTS = tl.constexpr(8)  # slopes of a step; in the record of a step the last slot is the state at its start
LAST = tl.constexpr(tsit5.STAGES - 1)
ERROR, DENSE = tl.constexpr(7), tl.constexpr(8)  # rows of the table: 0 to 6 are A, 8 to 11 are the powers of the share
_MAX_EVALUATIONS, _STEP_UNDERFLOW = tl.constexpr(int(Status.MAX_EVALUATIONS)), tl.constexpr(int(Status.STEP_UNDERFLOW))
_NON_FINITE, _STIFF = tl.constexpr(int(Status.NON_FINITE)), tl.constexpr(tsit5.STIFF)
_SAFETY, _SHRINK, _GROW = (
    tl.constexpr(tsit5.SAFETY),
    tl.constexpr(tsit5.SHRINK),
    tl.constexpr(tsit5.GROW),
)
_STABILITY, _STIFF_STEPS = tl.constexpr(tsit5.STABILITY), tl.constexpr(tsit5.STIFF_STEPS)


class Network(NamedTuple):
    """A `neuralpk.dynamics.Perceptron`. Zeros extend the hidden layers to a width that is a power of two. Tensors that
    differ between subjects have a row for each subject and period."""

    shift: Any  # [subject·period, hidden]
    first: Any  # [state, hidden]
    hidden: Any  # [layer, to, from]
    bias: Any  # [layer, hidden]
    last: Any  # [output, hidden]
    last_bias: Any  # [output]
    matrix: Any  # [subject·period, state, state]
    base: Any  # [subject·period, output]
    source: Any  # [output, state]: 1 where the flow comes from
    change: Any  # [output, state]: factor of an output in each slope
    scale: Any  # [1]


class Clock(NamedTuple):
    """A `neuralpk.solve.event_nodes.Mesh` with the wanted times in the order in which they are reached. The four sizes
    come last, since each of them is a separate argument of a kernel."""

    times: Any  # [subject, node]
    reset: Any  # [subject, node]
    jump: Any  # [subject, node, state]
    input: Any  # [subject, node, state]
    period: Any  # [subject, node]
    wanted: Any  # [subject, time] node after which the state is read
    since: Any  # [subject, time] time from this node to the wanted time
    subjects: Any
    nodes: Any
    count: Any  # number of wanted times
    periods: Any


class Steps(NamedTuple):
    """The accepted steps of all subjects, in any order."""

    slopes: Any  # [step, slot, state]
    place: Any  # [step, 2]: start, as time since the node before; size
    mark: Any  # [step, 4]: node; first and last + 1 of the wanted times inside; the subject's step before
    last: Any  # [subject] its last step
    taken: Any  # [1] number of steps, which may be larger than the memory for them


class Gradients(NamedTuple):
    """The tensors to which the reverse sweep adds; for quantities that all subjects share, a sum for each program."""

    shift: Any
    first: Any
    hidden: Any
    bias: Any
    last: Any
    last_bias: Any
    matrix: Any
    base: Any
    initial: Any
    times: Any
    jump: Any
    input: Any
    since: Any


@triton.jit
def _any(rows):
    return tl.max(rows.to(tl.int32), 0) > 0


@triton.jit
def _tanh(x):
    return 2.0 / (1.0 + tl.exp(-2.0 * x)) - 1.0


@triton.jit
def _share(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def _activate(x, ACTIVATION: tl.constexpr):
    if ACTIVATION == TANH:
        out = _tanh(x)
    elif ACTIVATION == SILU:
        out = x * _share(x)
    else:
        out = tl.maximum(x, 0.0) + tl.log(1.0 + tl.exp(-tl.abs(x)))
    return out


@triton.jit
def _derivative(x, ACTIVATION: tl.constexpr):
    share = _share(x)
    if ACTIVATION == TANH:
        bend = _tanh(x)
        out = 1.0 - bend * bend
    elif ACTIVATION == SILU:
        out = share * (1.0 + x * (1.0 - share))
    else:
        out = share
    return out


@triton.jit
def _column(tile, index, COLUMNS: tl.constexpr):
    return tl.sum(tl.where(tl.arange(0, COLUMNS)[None, :] == index, tile, 0.0), 1)


@triton.jit
def _features(net, y, LOGARITHM: tl.constexpr):
    return tl.log(1.0 + tl.maximum(y, 0.0) / tl.load(net.scale)) if LOGARITHM else y


@triton.jit
def _layers(
    net, own, active, y, D: tl.constexpr, COLUMNS: tl.constexpr, H: tl.constexpr, LAYERS: tl.constexpr,
    ACTIVATION: tl.constexpr, LOGARITHM: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Every hidden layer before its activation. Nothing is loaded for rows that wait, since it may be NaN."""
    j = tl.arange(0, H)
    features = _features(net, y, LOGARITHM)
    x = tl.load(net.shift + own[:, None] * H + j[None, :], mask=active[:, None], other=0.0)
    for d in tl.static_range(D):
        x += _column(features, d, COLUMNS)[:, None] * tl.load(net.first + d * H + j)[None, :]
    layers = (x,)
    for layer in tl.static_range(LAYERS):
        weight = tl.load(net.hidden + layer * H * H + j[:, None] * H + j[None, :])
        bias = tl.load(net.bias + layer * H + j)
        x = tl.dot(_activate(x, ACTIVATION), tl.trans(weight), input_precision=PRECISION) + bias[None, :]
        layers += (x,)  # type: ignore[assignment]
    return layers


@triton.jit
def _matrix(net, own, active, D: tl.constexpr, COLUMNS: tl.constexpr):
    d = tl.arange(0, COLUMNS)
    place = own[:, None, None] * D * D + d[None, :, None] * D + d[None, None, :]
    inside = active[:, None, None] & (d[None, :, None] < D) & (d[None, None, :] < D)
    return tl.load(net.matrix + place, mask=inside, other=0.0)


@triton.jit
def _own(clock, i, node):
    return i * clock.periods + tl.load(clock.period + i * clock.nodes + tl.maximum(node, 0))


@triton.jit
def _slope(
    net, clock, i, active, node, y, D: tl.constexpr, COLUMNS: tl.constexpr, H: tl.constexpr, LAYERS: tl.constexpr,
    OUTPUTS: tl.constexpr, ACTIVATION: tl.constexpr, LOGARITHM: tl.constexpr, MATRIX: tl.constexpr,
    FLOWS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dy/dt of a block of subjects, each after its node."""
    j, d = tl.arange(0, H), tl.arange(0, COLUMNS)
    own = _own(clock, i, node)
    layers = _layers(net, own, active, y, D, COLUMNS, H, LAYERS, ACTIVATION, LOGARITHM, PRECISION)
    top = _activate(layers[LAYERS], ACTIVATION)
    row = (i * clock.nodes + tl.maximum(node, 0))[:, None] * D + d[None, :]
    slope = tl.load(clock.input + row, mask=d[None, :] < D, other=0.0)
    if MATRIX:
        slope += tl.sum(_matrix(net, own, active, D, COLUMNS) * y[:, None, :], 2)
    for f in tl.static_range(OUTPUTS):
        x = tl.sum(top * tl.load(net.last + f * H + j)[None, :], 1) + tl.load(net.last_bias + f)
        if FLOWS:
            source = tl.load(net.source + f * COLUMNS + d)
            base = tl.load(net.base + own * OUTPUTS + f, mask=active, other=0.0)
            x = base * tl.exp(5.0 * _tanh(x / 5.0)) * tl.sum(y * source[None, :], 1)
        slope += x[:, None] * tl.load(net.change + f * COLUMNS + d)[None, :]
    return slope


@triton.jit
def _weights(table, row):
    return tl.load(table + row * SLOTS + tl.arange(0, SLOTS))[None, :]


@triton.jit
def _inside(table, share):
    """Weights of the slopes in the solution at a share of the step, ``[subject, slot]``."""
    s = share[:, None]
    high = _weights(table, DENSE + 2) + s * _weights(table, DENSE + 3)
    return s * (_weights(table, DENSE) + s * (_weights(table, DENSE + 1) + s * high))


@triton.jit
def _change(table, share):
    """The derivative of `_inside` in the share."""
    s = share[:, None]
    high = 3.0 * _weights(table, DENSE + 2) + s * 4.0 * _weights(table, DENSE + 3)
    return _weights(table, DENSE) + s * (2.0 * _weights(table, DENSE + 1) + s * high)


@triton.jit
def _mix(weights, slopes):
    return tl.sum(weights[:, :, None] * slopes, 1)


@triton.jit
def _length(clock, i, node):
    """Time from a node to the next; 0 before the first and after the last node."""
    j = i * clock.nodes + tl.maximum(node, 0)
    inside = (node >= 0) & (node + 1 < clock.nodes)
    begin, end = tl.load(clock.times + j), tl.load(clock.times + j + 1, mask=inside, other=0.0)
    return tl.where(inside, end - begin, 0.0)


@triton.jit
def _enter(clock, i, moving, y, node, seen, length, out, D: tl.constexpr, COLUMNS: tl.constexpr):
    """Apply the events at the next nodes of some subjects, up to the next interval between two nodes that has a length.

    Returns the changed arguments, and which subjects still have wanted times in this interval or later.
    """
    d = tl.arange(0, COLUMNS)
    going = moving
    length = tl.where(moving, 0.0, length)
    while _any(moving):
        m = i * clock.count + tl.minimum(seen, clock.count - 1)
        here = moving & (seen < clock.count) & (tl.load(clock.wanted + m) == node)
        here = here & ((tl.load(clock.since + m) <= 0.0) | (length <= 0.0))
        tl.store(out + m[:, None] * D + d[None, :], y, mask=here[:, None] & (d[None, :] < D))
        seen += here.to(tl.int32)
        ended = moving & ((seen >= clock.count) | ((length <= 0.0) & (node + 1 >= clock.nodes) & (here == 0)))
        going = going & (ended == 0)
        moving = moving & (ended == 0) & (here | (length <= 0.0))
        on = moving & (here == 0)
        node += on.to(tl.int32)
        j = i * clock.nodes + tl.maximum(node, 0)
        kept = tl.where((tl.load(clock.reset + j) != 0)[:, None], 0.0, y)
        jump = tl.load(clock.jump + j[:, None] * D + d[None, :], mask=d[None, :] < D, other=0.0)
        y = tl.where(on[:, None], kept + jump, y)
        length = tl.where(on, _length(clock, i, node), length)
    return y, node, seen, length, going


@triton.jit
def _norm(values):
    return tl.sqrt(tl.sum(values * values, 1))


# sizes inside a tuple would be specialised: for the value 1, and for multiples of 16
@triton.jit(do_not_specialize=["subjects", "nodes", "count", "periods", "capacity", "limit"])
def forward(
    net, tensors, subjects, nodes, count, periods, steps, capacity, initial, table, rtol, atol, limit,
    out, status, evaluations,
    D: tl.constexpr, COLUMNS: tl.constexpr, H: tl.constexpr, LAYERS: tl.constexpr, OUTPUTS: tl.constexpr,
    ACTIVATION: tl.constexpr, LOGARITHM: tl.constexpr, MATRIX: tl.constexpr, FLOWS: tl.constexpr,
    PRECISION: tl.constexpr, RECORD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Solve a block of subjects: states at the wanted times; how each solve ended, its evaluations and its steps."""
    clock = Clock(*tensors, subjects, nodes, count, periods)  # type: ignore[call-arg]
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    real = row < clock.subjects
    i = tl.where(real, row, 0).to(tl.int64)  # rows after the last subject read the first subject, and write nothing
    d, slot = tl.arange(0, COLUMNS), tl.arange(0, SLOTS)
    y = tl.load(initial + i[:, None] * D + d[None, :], mask=d[None, :] < D, other=0.0)
    node, seen = tl.full((BLOCK,), -1, tl.int32), tl.zeros((BLOCK,), tl.int32)
    length, elapsed = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    trail, ended = tl.full((BLOCK,), -1, tl.int32), tl.zeros((BLOCK,), tl.int32)
    stiff, calm = tl.zeros((BLOCK,), tl.int32), tl.zeros((BLOCK,), tl.int32)
    y, node, seen, length, alive = _enter(clock, i, real, y, node, seen, length, out, D, COLUMNS)

    # size of the first step, from the slopes at the start and after a trial step (Hairer et al., Solving ODEs I, II.4)
    scale = atol + rtol * tl.abs(y)
    slope = _slope(
        net, clock, i, alive, node, y, D, COLUMNS, H, LAYERS, OUTPUTS, ACTIVATION, LOGARITHM, MATRIX, FLOWS, PRECISION
    )  # fmt: skip
    near, steep = _norm(y / scale), _norm(slope / scale)
    probe = tl.where((near < 1e-5) | (steep < 1e-5), 1e-6, 0.01 * near / tl.maximum(steep, 1e-5))
    probe = tl.where(alive, tl.minimum(probe, length), 1.0)
    further = _slope(
        net, clock, i, alive, node, y + probe[:, None] * slope,
        D, COLUMNS, H, LAYERS, OUTPUTS, ACTIVATION, LOGARITHM, MATRIX, FLOWS, PRECISION,
    )  # fmt: skip
    largest = tl.maximum(steep, _norm((further - slope) / scale) / probe) / tl.sqrt(D * 1.0)
    size = tl.exp2(0.2 * tl.log2(0.01 / tl.maximum(largest, 1e-15)))
    size = tl.minimum(100.0 * probe, tl.where(largest > 1e-15, size, tl.maximum(1e-6, 1e-3 * probe)))
    k = tl.where(slot[None, :, None] == 0, slope[:, None, :], 0.0)
    spent, total = alive.to(tl.int32), 2 * alive.to(tl.int32)
    fresh = real & (real == 0)

    while _any(alive):
        left = length - elapsed
        # two steps of equal size rather than one and a small rest
        h = tl.where(size >= left, left, tl.where(2.0 * size <= left, size, 0.5 * left))
        whole = h >= left
        ahead, before = y, y
        # the first slope is the last of the step before; after an event it is computed
        stage = 1 - _any(fresh).to(tl.int32)
        while stage <= LAST:
            before = ahead
            ahead = y + h[:, None] * _mix(_weights(table, stage), k)
            slope = _slope(
                net, clock, i, alive, node, ahead,
                D, COLUMNS, H, LAYERS, OUTPUTS, ACTIVATION, LOGARITHM, MATRIX, FLOWS, PRECISION,
            )  # fmt: skip
            new = (slot[None, :, None] == stage) & (fresh | (stage > 0))[:, None, None]
            k = tl.where(new, slope[:, None, :], k)
            stage += 1
        cost = (LAST + fresh.to(tl.int32)) * alive.to(tl.int32)
        spent, total = spent + cost, total + cost
        end = tl.sum(tl.where(slot[None, :, None] == LAST, k, 0.0), 1)
        previous = tl.sum(tl.where(slot[None, :, None] == LAST - 1, k, 0.0), 1)

        scale = atol + rtol * tl.maximum(tl.abs(y), tl.abs(ahead))
        error = tl.abs(h) * _norm(_mix(_weights(table, ERROR), k) / scale) / tl.sqrt(D * 1.0)
        finite = error < float("inf")
        error = tl.where(finite, error, 1e10)
        taken = alive & (error <= 1.0)
        factor = _SAFETY * tl.exp2(-0.2 * tl.log2(tl.maximum(error, 1e-10)))
        factor = tl.minimum(tl.where(taken, _GROW, 1.0), tl.maximum(_SHRINK, factor))
        size = tl.where(taken & whole, tl.maximum(h * factor, size), h * factor)

        seen_before, reading = seen, taken
        while _any(reading):
            m = i * clock.count + tl.minimum(seen, clock.count - 1)
            since = tl.load(clock.since + m)
            reading = reading & (seen < clock.count) & (tl.load(clock.wanted + m) == node)
            reading = reading & ((since <= elapsed + h) | whole)
            share = tl.minimum(tl.where(reading, (since - elapsed) / tl.where(reading, h, 1.0), 1.0), 1.0)
            value = tl.where((share < 1.0)[:, None], y + h[:, None] * _mix(_inside(table, share), k), ahead)
            tl.store(out + m[:, None] * D + d[None, :], value, mask=reading[:, None] & (d[None, :] < D))
            seen += reading.to(tl.int32)
        if RECORD:
            new_steps = taken.to(tl.int32)
            step = tl.atomic_add(steps.taken, tl.sum(new_steps, 0)) + tl.cumsum(new_steps, 0) - new_steps
            room = taken & (step < capacity)
            at = step.to(tl.int64)
            tile = tl.where(slot[None, :, None] == LAST + 1, y[:, None, :], k)
            place = at[:, None, None] * SLOTS * D + slot[None, :, None] * D + d[None, None, :]
            tl.store(steps.slopes + place, tile, mask=room[:, None, None] & (d[None, None, :] < D))
            tl.store(steps.place + 2 * at, elapsed, mask=room)
            tl.store(steps.place + 2 * at + 1, h, mask=room)
            tl.store(steps.mark + 4 * at, node, mask=room)
            tl.store(steps.mark + 4 * at + 1, seen_before, mask=room)
            tl.store(steps.mark + 4 * at + 2, seen, mask=room)
            tl.store(steps.mark + 4 * at + 3, trail, mask=room)
            trail = tl.where(taken, step, trail)

        moved, bent = _norm(ahead - before), _norm(end - previous)
        edge = taken & (moved > 0.0) & (tl.abs(h) * bent > _STABILITY * moved)
        stiff += edge.to(tl.int32)
        calm = tl.where(edge, 0, calm + taken.to(tl.int32))
        stiff = tl.where(calm == 6, 0, stiff)
        small = alive & (taken == 0) & ((elapsed + 0.01 * size == elapsed) | (size < 1e-13 * length))
        ended = tl.where(small, tl.where(finite, _STEP_UNDERFLOW, _NON_FINITE), ended)
        finished = taken & (seen >= clock.count)
        ended = tl.where(taken & (stiff >= _STIFF_STEPS), _STIFF, ended)
        ended = tl.where(alive & (finished == 0) & (ended == 0) & (spent > limit), _MAX_EVALUATIONS, ended)

        y = tl.where(taken[:, None], ahead, y)
        k = tl.where(taken[:, None, None] & (slot[None, :, None] == 0), end[:, None, :], k)
        elapsed = tl.where(taken, elapsed + h, elapsed)
        alive = alive & (finished == 0) & (ended == 0)
        arrived = alive & taken & whole
        y, node, seen, length, fresh = _enter(clock, i, arrived, y, node, seen, length, out, D, COLUMNS)
        alive = alive & ((arrived == 0) | fresh)
        elapsed, spent = tl.where(fresh, 0.0, elapsed), tl.where(fresh, 0, spent)

    tl.store(status + i, ended, mask=real)
    tl.store(evaluations + i, total, mask=real)
    if RECORD:
        tl.store(steps.last + i, trail, mask=real)


@triton.jit
def _add(place, value, mask=None):
    tl.store(place, tl.load(place, mask=mask) + value, mask=mask)


@triton.jit
def _pull_back(
    net, to, own, active, program, y, pull, D: tl.constexpr, COLUMNS: tl.constexpr, H: tl.constexpr,
    LAYERS: tl.constexpr, OUTPUTS: tl.constexpr, ACTIVATION: tl.constexpr, LOGARITHM: tl.constexpr,
    MATRIX: tl.constexpr, FLOWS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The transposed Jacobian of `_slope` times `pull`, and the same for the shift.

    The gradients with respect to the weights, the matrix and the base rates are added to `to`; a row whose pull is zero
    adds nothing.
    """
    j, d = tl.arange(0, H), tl.arange(0, COLUMNS)
    layers = _layers(net, own, active, y, D, COLUMNS, H, LAYERS, ACTIVATION, LOGARITHM, PRECISION)
    top = _activate(layers[LAYERS], ACTIVATION)
    out, back = tl.zeros_like(y), tl.zeros_like(top)
    if MATRIX:
        matrix = _matrix(net, own, active, D, COLUMNS)
        out += tl.sum(matrix * pull[:, :, None], 1)
        place = own[:, None, None] * D * D + d[None, :, None] * D + d[None, None, :]
        inside = active[:, None, None] & (d[None, :, None] < D) & (d[None, None, :] < D)
        _add(to.matrix + place, pull[:, :, None] * y[:, None, :], inside)
    for f in tl.static_range(OUTPUTS):
        weight = tl.load(net.last + f * H + j)
        head = tl.sum(pull * tl.load(net.change + f * COLUMNS + d)[None, :], 1)
        if FLOWS:
            bend = _tanh((tl.sum(top * weight[None, :], 1) + tl.load(net.last_bias + f)) / 5.0)
            source = tl.load(net.source + f * COLUMNS + d)[None, :]
            rate, amount = tl.exp(5.0 * bend), tl.sum(y * source, 1)
            base = tl.load(net.base + own * OUTPUTS + f, mask=active, other=0.0)
            _add(to.base + own * OUTPUTS + f, head * rate * amount, active)
            out += (head * rate * base)[:, None] * source
            head = head * rate * base * amount * (1.0 - bend * bend)
        back += head[:, None] * weight[None, :]
        _add(to.last + (program * OUTPUTS + f) * H + j, tl.sum(head[:, None] * top, 0))
        _add(to.last_bias + program * OUTPUTS + f, tl.sum(head, 0))
    back = back * _derivative(layers[LAYERS], ACTIVATION)
    for above in tl.static_range(LAYERS):
        below = layers[LAYERS - 1 - above]
        at = program * LAYERS + LAYERS - 1 - above
        square = j[:, None] * H + j[None, :]
        given = tl.dot(tl.trans(back), _activate(below, ACTIVATION), input_precision=PRECISION)
        _add(to.hidden + at * H * H + square, given)
        _add(to.bias + at * H + j, tl.sum(back, 0))
        weight = tl.load(net.hidden + (LAYERS - 1 - above) * H * H + square)
        back = tl.dot(back, weight, input_precision=PRECISION) * _derivative(below, ACTIVATION)
    features = _features(net, y, LOGARITHM)
    through = tl.zeros_like(y)
    for e in tl.static_range(D):
        _add(to.first + (program * D + e) * H + j, tl.sum(_column(features, e, COLUMNS)[:, None] * back, 0))
        along = tl.sum(back * tl.load(net.first + e * H + j)[None, :], 1)
        through += tl.where(d[None, :] == e, along[:, None], 0.0)
    if LOGARITHM:
        through = tl.where(y > 0.0, through / (tl.load(net.scale) + tl.maximum(y, 0.0)), 0.0)
    return out + through, back


@triton.jit
def _leave(clock, i, node, until, seen, cotangent, upstream, to, D: tl.constexpr, COLUMNS: tl.constexpr):
    """Gradients of the events of some subjects, from their nodes down to the node after `until`."""
    d = tl.arange(0, COLUMNS)
    while _any(node > until):
        m = i * clock.count + tl.maximum(seen - 1, 0)
        here = (node > until) & (seen > 0) & (tl.load(clock.wanted + m) == node)
        mask = here[:, None] & (d[None, :] < D)
        cotangent += tl.load(upstream + m[:, None] * D + d[None, :], mask=mask, other=0.0)
        seen -= here.to(tl.int32)
        off = (node > until) & (here == 0)
        j = i * clock.nodes + tl.maximum(node, 0)
        tl.store(to.jump + j[:, None] * D + d[None, :], cotangent, mask=off[:, None] & (d[None, :] < D))
        cotangent = tl.where((off & (tl.load(clock.reset + j) != 0))[:, None], 0.0, cotangent)
        node -= off.to(tl.int32)
    return node, seen, cotangent


@triton.jit(do_not_specialize=["subjects", "nodes", "count", "periods"])
def backward(
    net, tensors, subjects, nodes, count, periods, steps, to, upstream, table, status,
    D: tl.constexpr, COLUMNS: tl.constexpr, H: tl.constexpr, LAYERS: tl.constexpr, OUTPUTS: tl.constexpr,
    ACTIVATION: tl.constexpr, LOGARITHM: tl.constexpr, MATRIX: tl.constexpr, FLOWS: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The reverse sweep over the steps of some blocks of subjects.

    It computes the gradient of Σ upstream·states, exact for the steps that were taken. Step sizes are fixed shares of
    the time between two nodes, so that the times of the nodes have gradients too. The gradient with respect to the
    first slope of a step is added to that of the last slope of the step before, since they are the same slope.
    """
    clock = Clock(*tensors, subjects, nodes, count, periods)  # type: ignore[call-arg]
    program = tl.program_id(0).to(tl.int64)
    d, slot = tl.arange(0, COLUMNS), tl.arange(0, SLOTS)
    block = tl.program_id(0)
    while block * BLOCK < clock.subjects:
        row = block * BLOCK + tl.arange(0, BLOCK)
        i = tl.where(row < clock.subjects, row, 0).to(tl.int64)
        # a subject that failed adds nothing: its states and their derivatives may be NaN
        real = (row < clock.subjects) & (tl.load(status + i) == 0)
        step = tl.where(real, tl.load(steps.last + i), -1)
        node = tl.where(real, tl.load(clock.wanted + i * clock.count + clock.count - 1), -1)
        seen = tl.zeros((BLOCK,), tl.int32) + clock.count
        cotangent, owed = tl.zeros((BLOCK, COLUMNS), tl.float32), tl.zeros((BLOCK, COLUMNS), tl.float32)
        until = tl.load(steps.mark + 4 * step.to(tl.int64), mask=step >= 0, other=-1)
        node, seen, cotangent = _leave(clock, i, node, until, seen, cotangent, upstream, to, D, COLUMNS)
        while _any(step >= 0):
            active, at = step >= 0, tl.maximum(step, 0).to(tl.int64)
            place = at[:, None, None] * SLOTS * D + slot[None, :, None] * D + d[None, None, :]
            k = tl.load(steps.slopes + place, mask=active[:, None, None] & (d[None, None, :] < D), other=0.0)
            y = tl.sum(tl.where(slot[None, :, None] == LAST + 1, k, 0.0), 1)
            start = tl.load(steps.place + 2 * at, mask=active, other=0.0)
            h = tl.load(steps.place + 2 * at + 1, mask=active, other=1.0)
            first = tl.load(steps.mark + 4 * at + 1, mask=active, other=0)
            end = tl.load(steps.mark + 4 * at + 2, mask=active, other=0)
            step = tl.load(steps.mark + 4 * at + 3, mask=active, other=-1)
            until = tl.load(steps.mark + 4 * step.to(tl.int64), mask=step >= 0, other=-1)
            opening = active & (until != node)

            pulls = tl.where(slot[None, :, None] == LAST, owed[:, None, :], 0.0)
            start_pull, end_pull = tl.zeros((BLOCK, COLUMNS), tl.float32), tl.where(active[:, None], cotangent, 0.0)
            to_size, to_start = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
            seen = tl.where(active, tl.minimum(seen, first), seen)
            while _any(first < end):
                m = i * clock.count + tl.minimum(first, clock.count - 1)
                reading = first < end
                mask = reading[:, None] & (d[None, :] < D)
                given = tl.load(upstream + m[:, None] * D + d[None, :], mask=mask, other=0.0)
                gone = tl.load(clock.since + m) - start
                # not share < 1: GPUs do not round a quotient as IEEE 754 says, but gone == h must be the end of a step
                share, inside = tl.where(reading, gone / h, 1.0), reading & (gone < h)
                end_pull += tl.where(inside[:, None], 0.0, given)
                given = tl.where(inside[:, None], given, 0.0)
                weights, change = _inside(table, share), _change(table, share)
                start_pull += given
                pulls += (h[:, None] * weights)[:, :, None] * given[:, None, :]
                to_size += tl.sum(given * _mix(weights - share[:, None] * change, k), 1)
                along = tl.sum(given * _mix(change, k), 1)
                tl.store(to.since + m, along, mask=inside)
                to_start -= along
                first += 1

            own = _own(clock, i, node)
            to_input, to_shift = tl.zeros((BLOCK, COLUMNS), tl.float32), tl.zeros((BLOCK, H), tl.float32)
            last = 1 - _any(opening).to(tl.int32)
            stage = tl.full((), LAST, tl.int32)
            while stage >= last:
                weights = _weights(table, stage)
                mixed = _mix(weights, k)
                pull = tl.sum(tl.where(slot[None, :, None] == stage, pulls, 0.0), 1)
                pull = tl.where((opening | (stage > 0))[:, None], pull, 0.0)
                back, to_first = _pull_back(
                    net, to, own, active, program, y + h[:, None] * mixed, pull,
                    D, COLUMNS, H, LAYERS, OUTPUTS, ACTIVATION, LOGARITHM, MATRIX, FLOWS, PRECISION,
                )  # fmt: skip
                back += tl.where(stage == LAST, end_pull, 0.0)
                start_pull += back
                pulls += (h[:, None] * weights)[:, :, None] * back[:, None, :]
                to_size += tl.sum(back * mixed, 1)
                to_input, to_shift = to_input + pull, to_shift + to_first
                stage -= 1
                tl.debug_barrier()  # all additions are finished before any thread adds to the same number again

            cotangent = tl.where(active[:, None], start_pull, cotangent)
            owed = tl.sum(tl.where(slot[None, :, None] == 0, pulls, 0.0), 1)
            owed = tl.where((active & (opening == 0))[:, None], owed, 0.0)
            j = i * clock.nodes + tl.maximum(node, 0)
            to_times = (h * to_size + start * to_start) / tl.where(active, _length(clock, i, node), 1.0)
            _add(to.times + j, -to_times, active)
            _add(to.times + j + 1, to_times, active)
            _add(to.input + j[:, None] * D + d[None, :], to_input, active[:, None] & (d[None, :] < D))
            _add(to.shift + own[:, None] * H + tl.arange(0, H)[None, :], to_shift, active[:, None])
            tl.debug_barrier()
            node, seen, cotangent = _leave(clock, i, node, until, seen, cotangent, upstream, to, D, COLUMNS)
        tl.store(to.initial + i[:, None] * D + d[None, :], cotangent, mask=real[:, None] & (d[None, :] < D))
        block += tl.num_programs(0)
