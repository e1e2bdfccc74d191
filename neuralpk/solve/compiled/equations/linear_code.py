"""Machine code of the linear equations of an implicit step, (I/γ − h·J)·x = right with the Jacobian J of a field."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from llvmlite import ir

from neuralpk.solve.compiled.equations.elimination import (
    Entries,
    elimination_order,
    entries,
    factorise,
    solves,
    substitute,
    substitute_transposed,
)
from neuralpk.solve.compiled.equations.expressions import Graph
from neuralpk.solve.compiled.equations.value_code import KINDS, TO_KINDS, Result, emit_values
from neuralpk.solve.rodas5p_coefficients import GAMMA


class LinearEquations(NamedTuple):
    """Sizes of the blocks that the functions use beside those of the field."""

    factors: int
    coefficients: int
    jacobian: tuple[tuple[int, int], ...]  # rows and columns of the entries of J, in the order of `outer`


def _kept(graph: Graph, kind: str, values: Entries) -> tuple[list[Result], Entries]:
    """What one function writes to a block, and the same entries as another reads them; constants are not stored."""
    results: list[Result] = []
    read: Entries = {}
    for place, a in values.items():
        read[place] = a
        if graph.number(a) is None:
            read[place] = graph.input(kind, len(results))
            results.append(Result(kind, len(results), a))
    return results, read


def emit_linear_equations(
    module: ir.Module, graph: Graph, slopes: Sequence[int], inputs: Sequence[tuple[str, int]]
) -> LinearEquations:
    """Functions on blocks of lanes:

    - ``factorise`` (state, own, shared, size, factor, coefficient): the equations and their factors;
    - ``solve`` (factor, right, out) and ``solve_transposed``: their solution and that of the transposed equations;
    - ``check`` (coefficient, right, solution, out): 1 where the solution is right, else 0;
    - ``pull_jacobian`` (state, own, shared, outer, to_size, to_state, to_own, to_shared): adds Σ outer·J to `to_size`
      and its gradient to the others.
    """
    states, zero = range(len(slopes)), graph.constant(0.0)
    jacobian = entries(graph, graph.jacobian(slopes, [graph.input("state", d) for d in states]))
    h = graph.input("size", 0)
    matrix = {place: graph("neg", graph("mul", h, a)) for place, a in jacobian.items()}
    for d in states:
        matrix[d, d] = graph("add", graph.constant(1.0 / GAMMA), matrix.get((d, d), zero))
    order = elimination_order(matrix, len(slopes))
    to_factors, factors = _kept(graph, "factor", factorise(graph, matrix, order))
    to_coefficients, coefficients = _kept(graph, "coefficient", matrix)
    right, solution = ([graph.input(kind, d) for d in states] for kind in ("right", "solution"))
    emit_values(module, graph, "factorise", (*KINDS, "size", "factor", "coefficient"), [*to_factors, *to_coefficients])
    for name, found in (
        ("solve", substitute(graph, factors, order, right)),
        ("solve_transposed", substitute_transposed(graph, factors, order, right)),
    ):
        emit_values(module, graph, name, ("factor", "right", "out"), [Result("out", d, a) for d, a in enumerate(found)])
    right_solution = Result("out", 0, solves(graph, coefficients, solution, right))
    emit_values(module, graph, "check", ("coefficient", "right", "solution", "out"), [right_solution])

    total = zero
    for k, a in enumerate(jacobian.values()):
        total = graph("add", total, graph("mul", graph.input("outer", k), a))
    pulls = graph.pulled_back([total], [graph.constant(1.0)], [graph.input(*each) for each in inputs])
    results = [Result(f"to_{kind}", k, a, True) for (kind, k), a in zip(inputs, pulls, strict=True)]
    arguments = (*KINDS, "outer", "to_size", *TO_KINDS)
    emit_values(module, graph, "pull_jacobian", arguments, [Result("to_size", 0, total, True), *results])
    return LinearEquations(len(to_factors), len(to_coefficients), tuple(jacobian))
