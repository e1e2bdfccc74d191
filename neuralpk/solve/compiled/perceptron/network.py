"""The network and the slope that it gives, for a block of rows, and the gradients of both."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from neuralpk.solve.compiled.elementary import exp_in_place, tanh_in_place
from neuralpk.solve.compiled.matrix_product import ROWS, add_product, apart, within
from neuralpk.solve.compiled.perceptron.activation import activate, back_through
from neuralpk.solve.compiled.steps.field import collect, implement
from neuralpk.solve.compiled.steps.jit_options import inner, summing
from neuralpk.solve.compiled.steps.lanes import LANES
from neuralpk.solve.compiled.steps.stages import judge, place_stage, pull_back_stage
from neuralpk.solve.tsit5_coefficients import STAGES

Array = NDArray[Any]


class Network(NamedTuple):
    """A `neuralpk.dynamics.Perceptron` as arrays.

    Zeros extend the widths of the hidden layers to a multiple of 16, and the numbers of inputs and of outputs to a
    multiple of 4. Arrays that differ between subjects have a row for each subject and period.
    """

    shift: Array  # [subject·period, hidden]
    first: Array  # [state, hidden]
    hidden: Array  # [layer, from, to]
    hidden_back: Array  # [layer, to, from]
    bias: Array  # [layer, hidden]
    last: Array  # [output, hidden]
    last_bias: Array  # [output]
    matrix: Array  # [subject·period, state, state], or empty on all sides
    base: Array  # [subject·period, flow], or empty on all sides
    source: Array  # [flow]
    destination: Array  # [flow], -1 for a loss from the system
    activation: int
    scale: float  # the inputs are log(1 + y/scale); 0 for y itself


class Gradients(NamedTuple):
    """The arrays to which the reverse sweep adds; each has the shape of the quantity of that name."""

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


class Work(NamedTuple):
    """Values inside the network, a row for each evaluation; the rows of a layer are contiguous."""

    features: Array  # [row, state]
    values: Array  # [layer, row·hidden]
    derivatives: Array  # [layer, row·hidden] of the activation, except tanh; forward: empty
    back: Array  # [layer, row·hidden] gradient with respect to the values before the activation
    head: Array  # [row, output] gradient with respect to the outputs
    dots: Array  # [output or state, lane] sums over the width
    bend: Array  # [2, lane] of a flow: tanh of a fifth of its output, and the factor of its rate
    zeros: Array  # [hidden]
    # of the subjects in the lanes; block 0 is that of the lanes, block 1 of those that are gathered from them
    own: Array  # [block·lane] row of the subject and period in the arrays of Network
    shift: Array  # [block·lane, hidden]
    matrix: Array  # [block, state, state, lane], or without states
    base: Array  # [block, flow, lane], or without flows
    to_matrix: Array  # gradients with respect to these since the subject was put in
    to_base: Array


@inner
def _fill_blocks(rows):
    """`rows`, rounded up to a multiple of `ROWS`."""
    return (rows + ROWS - 1) // ROWS * ROWS


@summing
def _dots(a, b, count, out):
    """out[f, r] = Σ_c a[r, c]·b[f, c], with the rows of `a` contiguous."""
    apart()
    width = b.shape[1]
    for r in range(len(a) // width):
        row = a[r * width : (r + 1) * width]
        for f in range(count):
            total = a.dtype.type(0.0)
            for c in range(width):
                total += row[c] * b[f, c]
            out[f, r] = total


@inner
def _first_layer(net, work, at, shift, states):
    """Compute the first layer before its activation, in the rows from `at` on, at `states`.

    The number of lanes is that of the rows of `shift`, a multiple of 4.
    """
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


@inner
def _hidden_layers(net, work, rows):
    """Compute the activation of the first layer and the hidden layers after it, in the first `rows` rows."""
    within()
    width, values, derivatives, end = net.first.shape[1], work.values, work.derivatives, rows * net.first.shape[1]
    activate(net.activation, values[0, :end], derivatives[0, :end])
    for layer in range(net.hidden.shape[0]):
        add_product(
            values, (layer + 1) * values.shape[1], width, net.bias, layer * width, 0,
            values, layer * values.shape[1], width, 1, net.hidden, layer * width * width, width, rows, width, width,
        )  # fmt: skip
        activate(net.activation, values[layer + 1, :end], derivatives[layer + 1, :end])


@inner
def _bend(work, f, bias):
    """The factor of the rate of flow `f` in every lane."""
    within()
    bend, dots = work.bend, work.dots
    for lane in range(LANES):
        bend[0, lane] = (dots[f, lane] + bias) / 5.0
    tanh_in_place(bend, 0)
    for lane in range(LANES):
        bend[1, lane] = 5.0 * bend[0, lane]
    exp_in_place(bend, LANES)


@inner
def _slopes(net, work, block, rows, states, entering, out):
    """Write dy/dt at `states` to `out`, for the first `rows` subjects of a block, a multiple of 4."""
    within()
    dots, matrix, base, bend, last_bias = work.dots, work.matrix, work.base, work.bend, net.last_bias
    _first_layer(net, work, 0, work.shift[block * LANES : block * LANES + rows], states)
    _hidden_layers(net, work, rows)
    _dots(work.values[net.hidden.shape[0], : rows * net.first.shape[1]], net.last, last_bias.shape[0], dots)
    for d in range(len(states)):
        for lane in range(LANES):
            out[d, lane] = entering[d, lane]
    for d in range(matrix.shape[1]):
        for e in range(matrix.shape[2]):
            for lane in range(LANES):
                out[d, lane] += matrix[block, d, e, lane] * states[e, lane]
    for f in range(last_bias.shape[0]):
        if base.shape[1] == 0:
            for lane in range(LANES):
                out[f, lane] += dots[f, lane] + last_bias[f]
            continue
        source, destination = net.source[f], net.destination[f]
        _bend(work, f, last_bias[f])
        for lane in range(LANES):
            bend[0, lane] = base[block, f, lane] * bend[1, lane] * states[source, lane]
            out[source, lane] -= bend[0, lane]
        if destination >= 0:
            for lane in range(LANES):
                out[destination, lane] += bend[0, lane]


@inner
def _transposed_jacobian(net, work, at, block, rows, states, cotangent, out):
    """Write the transposed Jacobian of `_slopes` times `cotangent` to `out`, from the layers in the rows from `at`.

    The gradients with respect to the layers and the outputs stay in `work`, until `_to_weights` sums over all rows at
    once.
    """
    within()
    width, top, wide, outputs = net.first.shape[1], net.hidden.shape[0], net.last.shape[0], net.last_bias.shape[0]
    back, head, dots, start, end = work.back, work.head, work.dots, at * width, (at + rows) * width
    values, derivatives, matrix, base, bend = work.values, work.derivatives, work.matrix, work.base, work.bend
    to_matrix, to_base = work.to_matrix, work.to_base
    for d in range(out.shape[0]):
        for lane in range(LANES):
            out[d, lane] = 0.0
    if base.shape[1] > 0:
        _dots(values[top, start:end], net.last, outputs, dots)
    for f in range(outputs):
        if base.shape[1] == 0:
            for r in range(rows):
                head[at + r, f] = cotangent[f, r]
            continue
        source, destination = net.source[f], net.destination[f]
        _bend(work, f, net.last_bias[f])
        for lane in range(LANES):
            pull = -cotangent[source, lane]
            if destination >= 0:
                pull += cotangent[destination, lane]
            along = pull * bend[1, lane]
            to_base[block, f, lane] += along * states[source, lane]
            out[source, lane] += along * base[block, f, lane]
            slope = 1.0 - bend[0, lane] * bend[0, lane]
            bend[0, lane] = along * base[block, f, lane] * states[source, lane] * slope
        for r in range(rows):
            head[at + r, f] = bend[0, r]
    for d in range(matrix.shape[1]):
        for e in range(matrix.shape[2]):
            for lane in range(LANES):
                to_matrix[block, d, e, lane] += cotangent[d, lane] * states[e, lane]
                out[e, lane] += cotangent[d, lane] * matrix[block, d, e, lane]
    add_product(
        back, top * back.shape[1] + start, width, work.zeros, 0, 0,
        head, at * wide, wide, 1, net.last, 0, width, rows, outputs, width,
    )  # fmt: skip
    for layer in range(top, -1, -1):
        back_through(net.activation, back[layer, start:end], values[layer, start:end], derivatives[layer, start:end])
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


@inner
def _add(a, out):
    for c in range(len(a)):
        out[c] += a[c]


@inner
def _to_weights(net, work, rows, gradients):
    """Add the gradients with respect to the weights, from values and gradients in the first `rows` rows of `work`."""
    within()
    width, top, short, wide = net.first.shape[1], net.hidden.shape[0], net.first.shape[0], net.last.shape[0]
    values, back, own, head, layer_size = work.values, work.back, work.own, work.head, work.values.shape[1]
    to_shift, to_bias, to_last_bias = gradients.shift, gradients.bias, gradients.last_bias
    for r in range(rows):
        # the lanes of the last stage are gathered
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


def _make_work(field, states, back):
    kind, width, layers, flows = field.first.dtype, field.first.shape[1], len(field.hidden) + 1, field.base.shape[1]
    rows, of_matrix = (STAGES if back else 1) * LANES, field.matrix.shape[1]
    return Work(
        features=np.zeros((rows, len(field.first)), kind),
        values=np.zeros((layers, rows * width), kind),
        derivatives=np.zeros((layers, rows * width if back else 0), kind),
        back=np.zeros((layers, rows * width if back else 0), kind),
        head=np.zeros((rows, len(field.last)), kind),
        dots=np.zeros((max(len(field.first), len(field.last)), LANES)),
        bend=np.zeros((2, LANES)),
        zeros=np.zeros(width, kind),
        own=np.zeros(2 * LANES, np.int64),
        shift=np.zeros((2 * LANES, width), kind),
        matrix=np.zeros((2, of_matrix, of_matrix, LANES)),
        base=np.zeros((2, flows, LANES)),
        to_matrix=np.zeros((2, of_matrix, of_matrix, LANES)),
        to_base=np.zeros((2, flows, LANES)),
    )


def _put_in(field, work, lane, row):
    block, place = lane // LANES, lane % LANES
    work.own[lane] = row
    for c in range(field.shift.shape[1]):
        work.shift[lane, c] = field.shift[row, c]
    for d in range(work.matrix.shape[1]):
        for e in range(work.matrix.shape[2]):
            work.matrix[block, d, e, place] = field.matrix[row, d, e]
            work.to_matrix[block, d, e, place] = 0.0
    for f in range(work.base.shape[1]):
        work.base[block, f, place] = field.base[row, f]
        work.to_base[block, f, place] = 0.0


def _find_slopes(field, work, first, rows, states, entering, out):
    _slopes(field, work, first // LANES, _fill_blocks(rows), states, entering, out)


def _take_step(field, work, lanes, rtol, atol):
    for stage in range(1, STAGES):
        place_stage(lanes.state, lanes.h, lanes.k, stage, lanes.points)
        _slopes(field, work, 0, LANES, lanes.points[stage], lanes.entering, lanes.k[stage])
    judge(lanes, rtol, atol)


def _collect(field, work, lane, gradients):
    within()
    block, place, row = lane // LANES, lane % LANES, work.own[lane]
    for d in range(work.matrix.shape[1]):
        for e in range(work.matrix.shape[2]):
            gradients.matrix[row, d, e] += work.to_matrix[block, d, e, place]
    for f in range(work.base.shape[1]):
        gradients.base[row, f] += work.to_base[block, f, place]


@inner
def _pass_stages(net, work, lanes, ending):
    """Compute the layers of the stages of the lanes' steps, those of the last stage for the gathered lanes alone."""
    final, tail, points = STAGES - 1, _fill_blocks(ending), lanes.points
    for stage in range(STAGES if ending > 0 else final):
        place_stage(lanes.y, lanes.h, lanes.k, stage, points)
    for stage in range(final):
        _first_layer(net, work, stage * LANES, work.shift[:LANES], points[stage])
    if ending > 0:
        for r in range(ending):
            for d in range(points.shape[1]):  # no copy is needed: r is never larger than the lane
                points[final, d, r] = points[final, d, lanes.ends[r]]
        _first_layer(net, work, final * LANES, work.shift[LANES : LANES + tail], points[final])
    _hidden_layers(net, work, final * LANES + tail)


def _pull_step(field, work, lanes, ending, gradients):
    final, tail, pulls, to_point = STAGES - 1, _fill_blocks(ending), lanes.pulls, lanes.to_point
    _pass_stages(field, work, lanes, ending)
    if ending > 0:
        points = lanes.points[final]
        _transposed_jacobian(field, work, final * LANES, 1, tail, points, lanes.gathered, to_point)
        for r in range(ending):
            for d in range(to_point.shape[0]):
                lanes.state[d, lanes.ends[r]] += to_point[d, r]
            collect(field, work, LANES + r, gradients)
    pull_back_stage(lanes.state, lanes, final)
    for stage in range(final - 1, -1, -1):
        points = lanes.points[stage]
        _transposed_jacobian(field, work, stage * LANES, 0, LANES, points, pulls[stage], to_point)
        pull_back_stage(to_point, lanes, stage)
    _to_weights(field, work, final * LANES + tail, gradients)


implement(
    Network,
    make_work=_make_work,
    put_in=_put_in,
    find_slopes=_find_slopes,
    take_step=_take_step,
    pull_step=_pull_step,
    collect=_collect,
)
