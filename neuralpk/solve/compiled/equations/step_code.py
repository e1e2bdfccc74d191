"""Machine code of a whole step of the method of Tsitouras, forward and back, around that of a vector field."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from llvmlite import ir

from neuralpk.solve.compiled.elementary import FAST, INTEGER, NUMBER, VECTOR, constant, exp, library, log
from neuralpk.solve.compiled.equations.lane_memory import function, load, place
from neuralpk.solve.compiled.steps.lanes import LANES
from neuralpk.solve.tsit5_coefficients import SAFETY, SHRINK, STAGES, A, E

STEP = ("y", "h", "own", "shared", "entering", "tolerances", "k", "points", "verdict")
PULL_STEP = (
    *("y", "h", "own", "shared", "k", "last", "end", "ending"),
    *("points", "pulls", "start_pull", "to_size", "to_own", "to_shared"),
)
"""The blocks of a step and of its gradient, of every method."""


def weighted_sum(builder: ir.IRBuilder, terms: Iterable[tuple[float, Any]]) -> Any:
    """Σ weight·vector."""
    total = None
    for weight, vector in terms:
        if weight:
            term = builder.fmul(constant(weight), vector, flags=FAST)
            total = term if total is None else builder.fadd(total, term, flags=FAST)
    return constant(0.0) if total is None else total


def block(builder: ir.IRBuilder, base: Any, stage: int, states: int) -> Any:
    """The block of a stage in memory ``[stage, state, lane]``."""
    return builder.gep(base, [ir.Constant(INTEGER, stage * states * LANES)])


def room(builder: ir.IRBuilder, size: int) -> Any:
    """Memory ``[size, lane]`` for the time of a function."""
    return builder.bitcast(builder.alloca(ir.ArrayType(VECTOR, max(size, 1))), NUMBER.as_pointer())


def add(builder: ir.IRBuilder, base: Any, k: int, amount: Any) -> None:
    """Add to place k of a block."""
    at = place(builder, base, k)
    builder.store(builder.fadd(builder.load(at, align=8), amount), at, align=8)


def call(builder: ir.IRBuilder, name: str, *arguments: Any) -> None:
    """Call a function of the module."""
    builder.call(builder.module.globals[name], arguments)


def place_stage(
    builder: ir.IRBuilder, blocks: dict[str, Any], weights: Sequence[float], stage: int, states: int
) -> None:
    """The states of a stage: the start and the size of the step times the weighted sum of the slopes before."""
    h = load(builder, blocks["h"], 0)
    for d in range(states):
        slopes = ((weight, load(builder, blocks["k"], e * states + d)) for e, weight in enumerate(weights) if weight)
        moved = builder.fmul(h, weighted_sum(builder, slopes), flags=FAST)
        at = builder.fadd(load(builder, blocks["y"], d), moved, flags=FAST)
        builder.store(at, place(builder, blocks["points"], stage * states + d), align=8)


def pull_back_stage(
    builder: ir.IRBuilder, blocks: dict[str, Any], weights: Sequence[float], pull: Any, states: int
) -> None:
    """Add the gradient with respect to the states of a stage to those of the start, the slopes and the size."""
    h, grown = load(builder, blocks["h"], 0), load(builder, blocks["to_size"], 0)
    for d in range(states):
        amount = load(builder, pull, d)
        add(builder, blocks["start_pull"], d, amount)
        scaled = builder.fmul(h, amount)
        for earlier, weight in enumerate(weights):
            if weight:
                add(builder, blocks["pulls"], earlier * states + d, builder.fmul(constant(weight), scaled))
        slopes = ((weight, load(builder, blocks["k"], e * states + d)) for e, weight in enumerate(weights) if weight)
        grown = builder.fadd(grown, builder.fmul(scaled, weighted_sum(builder, slopes), flags=FAST), flags=FAST)
    builder.store(grown, place(builder, blocks["to_size"], 0), align=8)


def per_tolerance(builder: ir.IRBuilder, blocks: dict[str, Any], d: int, ahead: Any) -> Any:
    """1 / tolerated error of a state in a step that ends at `ahead`."""
    rtol, atol = (load(builder, blocks["tolerances"], which, one_for_all=True) for which in (0, 1))
    start, end = library(builder, "fabs", load(builder, blocks["y"], d)), library(builder, "fabs", ahead)
    larger = builder.select(builder.fcmp_unordered(">", start, end), start, end)
    return builder.fdiv(constant(1.0), builder.fadd(atol, builder.fmul(rtol, larger, flags=FAST), flags=FAST))


def squared(builder: ir.IRBuilder, a: Any, b: Any) -> Any:
    """(a·b)²."""
    product = builder.fmul(a, b)
    return builder.fmul(product, product)


def store_verdict(builder: ir.IRBuilder, blocks: dict[str, Any], error: Any, bent: Any, moved: Any) -> None:
    """The verdict ``[4, lane]`` of `neuralpk.solve.compiled.steps.lanes.Lanes`, from its first three rows."""
    least = builder.select(builder.fcmp_ordered("<", error, constant(1e-20)), constant(1e-20), error)
    change = builder.fmul(constant(SAFETY), exp(builder, builder.fmul(constant(-0.1), log(builder, least))))
    change = builder.select(builder.fcmp_ordered("<", error, constant(math.inf)), change, constant(SHRINK))
    for row, value in enumerate((error, bent, moved, change)):
        builder.store(value, place(builder, blocks["verdict"], row), align=8)


def emit_step(module: ir.Module, states: int) -> None:
    """The function ``step``: from the start y, the first slope and the size h of the step to its other slopes k, the
    states of all stages and the verdict."""
    builder, blocks = function(module, "step", STEP)
    own, shared, k, points = (blocks[name] for name in ("own", "shared", "k", "points"))
    for stage in range(1, STAGES):
        place_stage(builder, blocks, A[stage].tolist(), stage, states)
        out = block(builder, k, stage, states)
        call(builder, "slope", block(builder, points, stage, states), own, shared, out)
        for d in range(states):
            add(builder, out, d, load(builder, blocks["entering"], d))

    final = STAGES - 1
    error = bent = moved = constant(0.0)
    for d in range(states):
        ahead, before = (load(builder, points, stage * states + d) for stage in (final, final - 1))
        slopes = [load(builder, k, stage * states + d) for stage in range(STAGES)]
        share = per_tolerance(builder, blocks, d, ahead)
        wrong = builder.fmul(load(builder, blocks["h"], 0), weighted_sum(builder, zip(E.tolist(), slopes, strict=True)))
        error = builder.fadd(error, squared(builder, wrong, share))
        bent = builder.fadd(bent, squared(builder, builder.fsub(slopes[final], slopes[final - 1]), share))
        moved = builder.fadd(moved, squared(builder, builder.fsub(ahead, before), share))
    store_verdict(builder, blocks, builder.fmul(error, constant(1.0 / states)), bent, moved)
    builder.ret_void()


def emit_pull_step(module: ir.Module, states: int) -> None:
    """The function ``pull_step``: from the gradients with respect to the slopes (`pulls`, and `last` for the last) and
    to the state at the end of the step to those with respect to its start (`start_pull`, to which it adds, as to the
    others), its size, the parameters and the weights. The slopes and states of the stages are those that ``step`` has
    left."""
    builder, blocks = function(module, "pull_step", PULL_STEP)
    own, shared, points, end = (blocks[name] for name in ("own", "shared", "points", "end"))
    results = blocks["to_own"], blocks["to_shared"]
    to_point = room(builder, states)
    final = STAGES - 1
    with builder.if_then(builder.fcmp_ordered(">", builder.load(blocks["ending"]), ir.Constant(NUMBER, 0.0))):
        call(builder, "pull", block(builder, points, final, states), own, shared, blocks["last"], to_point, *results)
        for d in range(states):
            add(builder, end, d, load(builder, to_point, d))
    pull_back_stage(builder, blocks, A[final].tolist(), end, states)
    for stage in range(final - 1, -1, -1):
        cotangent = block(builder, blocks["pulls"], stage, states)
        at = block(builder, points, stage, states) if stage else blocks["y"]
        call(builder, "pull", at, own, shared, cotangent, to_point, *results)
        pull_back_stage(builder, blocks, A[stage].tolist(), to_point, states)
    builder.ret_void()
