"""Machine code of a whole step of the method of Tsitouras, forward and back, around that of a vector field."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from llvmlite import ir

from neuralpk.solve.compiled.equations.elementary import FAST, INTEGER, NUMBER, VECTOR, constant, exp, library, log
from neuralpk.solve.compiled.equations.lane_memory import function, load, place
from neuralpk.solve.compiled.steps.lanes import LANES
from neuralpk.solve.tsit5_coefficients import SAFETY, SHRINK, STAGES, A, E


def _sum(builder: ir.IRBuilder, terms: Iterable[tuple[float, Any]]) -> Any:
    """Σ weight·vector."""
    total = None
    for weight, vector in terms:
        if weight:
            term = builder.fmul(constant(weight), vector, flags=FAST)
            total = term if total is None else builder.fadd(total, term, flags=FAST)
    return constant(0.0) if total is None else total


def _block(builder: ir.IRBuilder, base: Any, stage: int, states: int) -> Any:
    """The block of a stage in memory ``[stage, state, lane]``."""
    return builder.gep(base, [ir.Constant(INTEGER, stage * states * LANES)])


def _call(builder: ir.IRBuilder, name: str, *arguments: Any) -> None:
    builder.call(builder.module.globals[name], arguments)


def _place_stage(builder: ir.IRBuilder, blocks: dict[str, Any], stage: int, states: int) -> None:
    """The states of a stage, from the start and the slopes before it."""
    h = load(builder, blocks["h"], 0)
    for d in range(states):
        slopes = ((A[stage, e], load(builder, blocks["k"], e * states + d)) for e in range(stage))
        moved = builder.fmul(h, _sum(builder, slopes), flags=FAST)
        at = builder.fadd(load(builder, blocks["y"], d), moved, flags=FAST)
        builder.store(at, place(builder, blocks["points"], stage * states + d), align=8)


def emit_step(module: ir.Module, states: int) -> None:
    """The function ``step``: from the start y, the first slope and the size h of the step to its other slopes k, the
    states of all stages and the verdict ``[4, lane]`` of `neuralpk.solve.compiled.steps.lanes.Lanes`."""
    names = ("y", "h", "own", "shared", "entering", "tolerances", "k", "points", "verdict")
    builder, blocks = function(module, "step", names)
    own, shared, k, points = (blocks[name] for name in ("own", "shared", "k", "points"))
    for stage in range(1, STAGES):
        _place_stage(builder, blocks, stage, states)
        out = _block(builder, k, stage, states)
        _call(builder, "slope", _block(builder, points, stage, states), own, shared, out)
        for d in range(states):
            slope = builder.fadd(load(builder, out, d), load(builder, blocks["entering"], d))
            builder.store(slope, place(builder, out, d), align=8)

    final = STAGES - 1
    rtol, atol = (load(builder, blocks["tolerances"], which, one_for_all=True) for which in (0, 1))
    error = bent = moved = constant(0.0)
    for d in range(states):
        ahead, before = (load(builder, points, stage * states + d) for stage in (final, final - 1))
        slopes = [load(builder, k, stage * states + d) for stage in range(STAGES)]
        start, end = library(builder, "fabs", load(builder, blocks["y"], d)), library(builder, "fabs", ahead)
        larger = builder.select(builder.fcmp_unordered(">", start, end), start, end)
        per_scale = builder.fdiv(constant(1.0), builder.fadd(atol, builder.fmul(rtol, larger, flags=FAST), flags=FAST))
        wrong = builder.fmul(load(builder, blocks["h"], 0), _sum(builder, zip(E.tolist(), slopes, strict=True)))
        distances = (wrong, builder.fsub(slopes[final], slopes[final - 1]), builder.fsub(ahead, before))
        squares = []
        for distance in distances:
            ratio = builder.fmul(distance, per_scale)
            squares.append(builder.fmul(ratio, ratio))
        error = builder.fadd(error, squares[0])
        bent, moved = builder.fadd(bent, squares[1]), builder.fadd(moved, squares[2])
    error = builder.fmul(error, constant(1.0 / states))
    least = builder.select(builder.fcmp_ordered("<", error, constant(1e-20)), constant(1e-20), error)
    change = builder.fmul(constant(SAFETY), exp(builder, builder.fmul(constant(-0.1), log(builder, least))))
    change = builder.select(builder.fcmp_ordered("<", error, constant(math.inf)), change, constant(SHRINK))
    for row, value in enumerate((error, bent, moved, change)):
        builder.store(value, place(builder, blocks["verdict"], row), align=8)
    builder.ret_void()


def emit_pull_step(module: ir.Module, states: int) -> None:
    """The function ``pull_step``: from the gradients with respect to the slopes (`pulls`, and `last` for the last) and
    to the state at the end of the step to those with respect to its start (`start_pull`, to which it adds, as to the
    others), its size, the parameters and the weights."""
    given = ("y", "h", "own", "shared", "k", "last", "end", "ending")
    names = (*given, "points", "pulls", "start_pull", "to_size", "to_own", "to_shared")
    builder, blocks = function(module, "pull_step", names)
    own, shared, points = (blocks[name] for name in ("own", "shared", "points"))
    results = blocks["to_own"], blocks["to_shared"]
    to_point = builder.bitcast(builder.alloca(ir.ArrayType(VECTOR, states)), blocks["y"].type)
    final = STAGES - 1
    for stage in range(final):
        _place_stage(builder, blocks, stage, states)
    with builder.if_then(builder.fcmp_ordered(">", builder.load(blocks["ending"]), ir.Constant(NUMBER, 0.0))):
        _place_stage(builder, blocks, final, states)
        _call(builder, "pull", _block(builder, points, final, states), own, shared, blocks["last"], to_point, *results)
        for d in range(states):
            at_end = builder.fadd(load(builder, blocks["end"], d), load(builder, to_point, d))
            builder.store(at_end, place(builder, blocks["end"], d), align=8)
    h = load(builder, blocks["h"], 0)
    for stage in range(final, -1, -1):
        pull = blocks["end"] if stage == final else to_point
        if stage < final:
            cotangent = _block(builder, blocks["pulls"], stage, states)
            _call(builder, "pull", _block(builder, points, stage, states), own, shared, cotangent, to_point, *results)
        grown = load(builder, blocks["to_size"], 0)
        for d in range(states):
            amount = load(builder, pull, d)
            start = place(builder, blocks["start_pull"], d)
            builder.store(builder.fadd(builder.load(start, align=8), amount), start, align=8)
            scaled = builder.fmul(h, amount)
            for earlier in range(stage):
                if A[stage, earlier]:
                    share = builder.fmul(constant(A[stage, earlier]), scaled)
                    at = place(builder, blocks["pulls"], earlier * states + d)
                    builder.store(builder.fadd(builder.load(at, align=8), share), at, align=8)
            slopes = ((A[stage, e], load(builder, blocks["k"], e * states + d)) for e in range(stage))
            grown = builder.fadd(grown, builder.fmul(scaled, _sum(builder, slopes), flags=FAST), flags=FAST)
        builder.store(grown, place(builder, blocks["to_size"], 0), align=8)
    builder.ret_void()
