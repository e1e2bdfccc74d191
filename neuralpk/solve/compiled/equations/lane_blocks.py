"""The machine code of a field as one of the fields of the compiled steps: its arrays and its working memory."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from neuralpk.solve.compiled.matrix_product import within
from neuralpk.solve.compiled.steps.field import implement
from neuralpk.solve.compiled.steps.lanes import LANES

Array = NDArray[Any]


class Equations(NamedTuple):
    """A vector field: addresses of its `MachineCode`, parameters of each subject and period, and weights."""

    slope: int
    step: int
    pull_step: int
    own: Array  # [subject·period, parameter]
    shared: Array  # [weight]


class Gradients(NamedTuple):
    """The arrays to which the reverse sweep adds; each has the shape of the quantity of that name."""

    own: Array
    shared: Array
    initial: Array
    times: Array
    jump: Array
    input: Array
    since: Array


class Work(NamedTuple):
    """What the machine code reads and writes beside the states. Block 0 is that of the lanes, block 1 of those that are
    gathered from them."""

    row: Array  # [block·lane] row of the subject and period
    own: Array  # [block, parameter, lane]
    to_own: Array  # [parameter, lane]
    to_shared: Array  # [weight, lane]
    last: Array  # [state, lane] gradient with respect to the last slope
    tolerances: Array  # [2] forward: relative, absolute
    ending: Array  # [1] backward: number of lanes whose last slope counts


def _make_work(field, states, back):
    own, shared = max(field.own.shape[1], 1), max(len(field.shared), 1)
    return Work(
        row=np.zeros(2 * LANES, np.int64),
        own=np.zeros((2, own, LANES)),
        to_own=np.zeros((own, LANES)),
        to_shared=np.zeros((shared, LANES)),
        last=np.zeros((states, LANES)),
        tolerances=np.zeros(2),
        ending=np.zeros(1),
    )


@intrinsic
def _call(typing_context, address, arrays):
    """Call machine code with the memory of some contiguous arrays."""
    signature = types.void(address, arrays)

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer, given = ir.DoubleType().as_pointer(), enumerate(signature.args[1])
        blocks = [
            context.make_array(kind)(context, builder, builder.extract_value(arguments[1], k)) for k, kind in given
        ]
        data = [builder.bitcast(block.data, pointer) for block in blocks]
        function = ir.FunctionType(ir.VoidType(), [pointer] * len(data)).as_pointer()
        builder.call(builder.inttoptr(arguments[0], function), data)
        return context.get_dummy_value()

    return signature, emit


def _put_in(field, work, lane, row):
    within()
    work.row[lane] = row
    for k in range(field.own.shape[1]):
        work.own[lane // LANES, k, lane % LANES] = field.own[row, k]
    if lane < LANES:
        # until now the lane may have held no subject, and what has no meaning
        work.to_own[:, lane] = 0.0
        work.to_shared[:, lane] = 0.0


def _find_slopes(field, work, first, rows, states, entering, out):
    _call(field.slope, (states, work.own[first // LANES], field.shared, out))
    for d in range(out.shape[0]):
        for lane in range(LANES):
            out[d, lane] += entering[d, lane]


def _take_step(field, work, lanes, rtol, atol):
    within()
    own, tolerances = work.own[0], work.tolerances
    tolerances[0], tolerances[1] = rtol, atol
    blocks = (lanes.state, lanes.h, own, field.shared, lanes.entering, tolerances)
    _call(field.step, (*blocks, lanes.k, lanes.points, lanes.verdict))


def _keeps_slopes(field):
    return False


def _retrace(field, work, lanes):
    within()
    own, k, entering = work.own[0], lanes.k, lanes.entering
    work.tolerances[:] = 1.0  # there is no verdict to give
    _call(field.slope, (lanes.y, own, field.shared, k))  # the first slope, of a method that begins with it
    for d in range(entering.shape[0]):
        for lane in range(LANES):
            k[0, d, lane] += entering[d, lane]
    blocks = (lanes.y, lanes.h, own, field.shared, entering, work.tolerances)
    _call(field.step, (*blocks, k, lanes.points, lanes.verdict))


def _pull_step(field, work, lanes, ending, gradients):
    within()
    last = work.last
    last[:] = 0.0
    for r in range(ending):
        for d in range(last.shape[0]):
            last[d, lanes.ends[r]] = lanes.gathered[d, r]
    work.ending[0] = ending
    given = (lanes.y, lanes.h, work.own[0], field.shared, lanes.k, last, lanes.state, work.ending)
    pulls = (lanes.points, lanes.pulls, lanes.start_pull, lanes.to_size, work.to_own, work.to_shared)
    _call(field.pull_step, (*given, *pulls))


def _collect(field, work, lane, gradients):
    within()
    for k in range(gradients.own.shape[1]):
        gradients.own[work.row[lane], k] += work.to_own[k, lane]
    for k in range(gradients.shared.shape[0]):
        gradients.shared[k] += work.to_shared[k, lane]


implement(
    Equations,
    make_work=_make_work,
    put_in=_put_in,
    find_slopes=_find_slopes,
    take_step=_take_step,
    keeps_slopes=_keeps_slopes,
    retrace=_retrace,
    pull_step=_pull_step,
    collect=_collect,
)
