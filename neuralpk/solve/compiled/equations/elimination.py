"""Linear equations whose coefficients are values of a graph, solved by elimination.

Rows are not exchanged, since lanes would need different exchanges; `solves` tells whether the solution is right without
them. What is zero in every lane is not computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from neuralpk.solve.compiled.equations.expressions import Graph

Entries = dict[tuple[int, int], int]
"""Values by row and column; what is absent is zero."""

_SOLVED = 1e-10  # largest error of an equation, as a share of the sum of its terms


def entries(graph: Graph, rows: Sequence[Sequence[int]]) -> Entries:
    """The entries of a matrix that are not zero in every lane."""
    return {(r, c): a for r, row in enumerate(rows) for c, a in enumerate(row) if graph.number(a) != 0}


def elimination_order(pattern: Mapping[tuple[int, int], int], size: int) -> list[int]:
    """The order of rows and columns in which few new entries arise: next is the one coupled with fewest others."""
    coupled = {k: {r + c - k for r, c in pattern if k in (r, c) and r != c} for k in range(size)}
    order = []
    while coupled:
        k = min(coupled, key=lambda one: (len(coupled[one]), one))
        neighbours = coupled.pop(k)
        for one in neighbours:
            coupled[one] |= neighbours
            coupled[one] -= {k, one}
        order.append(k)
    return order


def factorise(graph: Graph, matrix: Entries, order: Sequence[int]) -> Entries:
    """The factors L·U: multipliers of L, entries of U, and on the diagonal the reciprocals of the pivots."""
    factors, one, zero = dict(matrix), graph.constant(1.0), graph.constant(0.0)
    for k, pivot in enumerate(order):
        later = order[k + 1 :]
        factors[pivot, pivot] = reciprocal = graph("div", one, factors.get((pivot, pivot), zero))
        for r in later:
            if (r, pivot) in factors:
                factors[r, pivot] = multiplier = graph("mul", factors[r, pivot], reciprocal)
                for c in later:
                    if (pivot, c) in factors:
                        product = graph("mul", multiplier, factors[pivot, c])
                        factors[r, c] = graph("sub", factors.get((r, c), zero), product)
    return factors


def substitute(graph: Graph, factors: Entries, order: Sequence[int], right: Sequence[int]) -> list[int]:
    """The solution x of L·U·x = right."""
    x = list(right)
    for k, pivot in enumerate(order):
        for r in order[k + 1 :]:
            if (r, pivot) in factors:
                x[r] = graph("sub", x[r], graph("mul", factors[r, pivot], x[pivot]))
    for k, pivot in reversed(list(enumerate(order))):
        for c in order[k + 1 :]:
            if (pivot, c) in factors:
                x[pivot] = graph("sub", x[pivot], graph("mul", factors[pivot, c], x[c]))
        x[pivot] = graph("mul", x[pivot], factors[pivot, pivot])
    return x


def substitute_transposed(graph: Graph, factors: Entries, order: Sequence[int], right: Sequence[int]) -> list[int]:
    """The solution x of (L·U)ᵀ·x = right."""
    x = list(right)
    for k, pivot in enumerate(order):
        x[pivot] = graph("mul", x[pivot], factors[pivot, pivot])
        for c in order[k + 1 :]:
            if (pivot, c) in factors:
                x[c] = graph("sub", x[c], graph("mul", factors[pivot, c], x[pivot]))
    for k, pivot in reversed(list(enumerate(order))):
        for r in order[k + 1 :]:
            if (r, pivot) in factors:
                x[pivot] = graph("sub", x[pivot], graph("mul", factors[r, pivot], x[r]))
    return x


def solves(graph: Graph, matrix: Entries, x: Sequence[int], right: Sequence[int]) -> int:
    """Whether matrix·x = right holds in every row, but for rounding."""
    holds = graph.constant(1.0)
    for r, given in enumerate(right):
        rest, terms = given, graph("abs", given)
        for (row, c), a in matrix.items():
            if row == r:
                product = graph("mul", a, x[c])
                rest, terms = graph("sub", rest, product), graph("add", terms, graph("abs", product))
        holds = graph("and", holds, graph("le", graph("abs", rest), graph("mul", graph.constant(_SOLVED), terms)))
    return holds
