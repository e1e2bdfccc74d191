"""Machine code of a whole step of Rodas5P, forward and back, around that of a vector field.

With k = K/h of `neuralpk.solve.rodas5p_coefficients` and the time as a state, stage i solves
(I/γ − h·J)·k_i = f(y + h·Σ_j a_ij·k_j) + Σ_j c_ij·k_j. Like the slopes of an explicit method, the k are rates.
"""

from __future__ import annotations

import math

from llvmlite import ir

from neuralpk.solve.compiled.elementary import FAST, constant
from neuralpk.solve.compiled.equations.lane_memory import function, load, place
from neuralpk.solve.compiled.equations.linear_code import LinearEquations
from neuralpk.solve.compiled.equations.step_code import (
    PULL_STEP,
    STEP,
    add,
    block,
    call,
    per_tolerance,
    place_stage,
    pull_back_stage,
    room,
    squared,
    store_verdict,
    weighted_sum,
)
from neuralpk.solve.rodas5p_coefficients import COUPLING, STAGES, A, B, E


def emit_implicit_step(module: ir.Module, states: int, equations: LinearEquations) -> None:
    """The function ``step``: from the start y and the size h of the step to its k, the states of all stages and at the
    end, and the verdict. A step whose equations could not be solved has an infinite error."""
    builder, blocks = function(module, "step", STEP)
    own, shared, k, points = (blocks[name] for name in ("own", "shared", "k", "points"))
    factors, coefficients = room(builder, equations.factors), room(builder, equations.coefficients)
    right, solved = room(builder, states), room(builder, 1)
    call(builder, "factorise", blocks["y"], own, shared, blocks["h"], factors, coefficients)
    for stage in range(STAGES):
        place_stage(builder, blocks, A[stage].tolist(), stage, states)
        call(builder, "slope", block(builder, points, stage, states), own, shared, right)
        for d in range(states):
            coupled = enumerate(COUPLING[stage, :stage].tolist())
            terms = ((weight, load(builder, k, earlier * states + d)) for earlier, weight in coupled)
            add(builder, right, d, builder.fadd(load(builder, blocks["entering"], d), weighted_sum(builder, terms)))
        found = block(builder, k, stage, states)
        call(builder, "solve", factors, right, found)
        if stage == 0:
            call(builder, "check", coefficients, right, found, solved)
    place_stage(builder, blocks, B.tolist(), STAGES, states)

    error = constant(0.0)
    for d in range(states):
        terms = ((weight, load(builder, k, stage * states + d)) for stage, weight in enumerate(E.tolist()) if weight)
        wrong = builder.fmul(load(builder, blocks["h"], 0), weighted_sum(builder, terms))
        share = per_tolerance(builder, blocks, d, load(builder, points, STAGES * states + d))
        error = builder.fadd(error, squared(builder, wrong, share))
    error = builder.fmul(error, constant(1.0 / states))
    well = builder.fcmp_ordered(">", load(builder, solved, 0), constant(0.0))
    # the stability of this method does not limit the step: no distance of slopes is of interest
    store_verdict(builder, blocks, builder.select(well, error, constant(math.inf)), constant(0.0), constant(0.0))
    builder.ret_void()


def emit_implicit_pull_step(module: ir.Module, states: int, equations: LinearEquations) -> None:
    """The function ``pull_step``: from the gradients with respect to k (`pulls`) and to the state at the end of the
    step to those with respect to its start (`start_pull`, to which it adds, as to the others), its size, the parameters
    and the weights. In `pulls` it leaves the gradients with respect to f at each stage. The k and the states of the
    stages are those that ``step`` has left.

    With μ_i the solution of the transposed equations for the gradient of k_i, the gradient of f at stage i is μ_i, and
    that of J is h·Σ_i μ_i·k_iᵀ.
    """
    builder, blocks = function(module, "pull_step", PULL_STEP)
    own, shared, points = (blocks[name] for name in ("own", "shared", "points"))
    results = blocks["to_own"], blocks["to_shared"]
    factors, coefficients = room(builder, equations.factors), room(builder, equations.coefficients)
    to_right, to_point, outer = (room(builder, size) for size in (states, states, len(equations.jacobian)))
    call(builder, "factorise", blocks["y"], own, shared, blocks["h"], factors, coefficients)
    pull_back_stage(builder, blocks, B.tolist(), blocks["end"], states)
    for stage in range(STAGES - 1, -1, -1):
        pulls = block(builder, blocks["pulls"], stage, states)
        call(builder, "solve_transposed", factors, pulls, to_right)
        for d in range(states):
            amount = load(builder, to_right, d)
            builder.store(amount, place(builder, pulls, d), align=8)
            for earlier, weight in enumerate(COUPLING[stage, :stage].tolist()):
                add(builder, blocks["pulls"], earlier * states + d, builder.fmul(constant(weight), amount))
        call(builder, "pull", block(builder, points, stage, states), own, shared, pulls, to_point, *results)
        pull_back_stage(builder, blocks, A[stage].tolist(), to_point, states)

    h = load(builder, blocks["h"], 0)
    for p, (row, column) in enumerate(equations.jacobian):
        total = constant(0.0)
        for stage in range(STAGES):
            to_slope, rate = (load(builder, blocks[n], stage * states + d) for n, d in (("pulls", row), ("k", column)))
            total = builder.fadd(total, builder.fmul(to_slope, rate, flags=FAST), flags=FAST)
        builder.store(builder.fmul(h, total), place(builder, outer, p), align=8)
    call(builder, "pull_jacobian", blocks["y"], own, shared, outer, blocks["to_size"], blocks["start_pull"], *results)
    builder.ret_void()
