"""Instructions of the values of a graph: each value becomes one instruction on eight numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from llvmlite import ir

from neuralpk.solve.compiled import elementary
from neuralpk.solve.compiled.elementary import FAST, NUMBER, VECTOR, constant
from neuralpk.solve.compiled.equations.expressions import COMPARISONS, Graph, Value
from neuralpk.solve.compiled.equations.lane_memory import function, load, place

KINDS = ("state", "own", "shared")
"""Kinds of the inputs of a vector field."""
TO_KINDS = tuple(f"to_{kind}" for kind in KINDS)
"""The blocks of the gradients with respect to them."""

_ARITHMETIC = {"add": "fadd", "sub": "fsub", "mul": "fmul", "div": "fdiv"}


class Result(NamedTuple):
    """A value that a function writes to place k of a block, or adds to what is there."""

    block: str
    k: int
    value: int
    added: bool = False


class _Emitter:
    """Instructions of the values of a graph."""

    def __init__(self, builder: ir.IRBuilder, graph: Graph, blocks: dict[str, Any]) -> None:
        self.builder, self.graph, self.blocks = builder, graph, blocks
        self.made: dict[int, Any] = {}

    def of(self, a: int) -> Any:
        """A value as numbers."""
        made = self.made[a]
        return self.builder.uitofp(made, VECTOR) if made.type.element != NUMBER else made

    def truth(self, a: int) -> Any:
        """A value as truths."""
        made = self.made[a]
        return made if made.type.element != NUMBER else self.builder.fcmp_unordered("!=", made, constant(0.0))

    def make(self, outputs: Sequence[int]) -> None:
        """The instructions for what the outputs need, in order."""
        for a in self.graph.needed(outputs):
            self.made[a] = self._emit(self.graph.values[a])

    def _emit(self, value: Value) -> Any:
        builder, operation = self.builder, value.operation
        if operation == "constant":
            return constant(value.number)
        if operation == "input":
            return load(builder, self.blocks[value.kind], int(value.number), value.kind == "shared")
        if operation == "where":
            condition, yes, no = value.arguments
            return builder.select(self.truth(condition), self.of(yes), self.of(no))
        if operation in ("and", "not"):
            truths = [self.truth(a) for a in value.arguments]
            return builder.and_(*truths) if operation == "and" else builder.not_(*truths)
        x, *rest = (self.of(a) for a in value.arguments)
        if operation in COMPARISONS:
            return builder.fcmp_ordered({"lt": "<", "le": "<=", "eq": "=="}[operation], x, *rest)
        if operation in _ARITHMETIC:
            return getattr(builder, _ARITHMETIC[operation])(x, *rest, flags=FAST)
        if operation == "neg":
            return builder.fneg(x)
        if operation == "pow":
            return elementary.power(builder, x, *rest)
        if operation in ("sqrt", "abs", "sin", "cos"):
            return elementary.library(builder, {"abs": "fabs"}.get(operation, operation), x)
        return getattr(elementary, operation)(builder, x)


def emit_values(
    module: ir.Module, graph: Graph, name: str, arguments: Sequence[str], results: Sequence[Result]
) -> None:
    """A function that computes values of a graph.

    Args:
        module: to which it is added.
        graph: the values.
        name: of the function.
        arguments: its blocks: those of the inputs, which have the names of their kinds, and those of the results.
        results: what it writes.
    """
    builder, blocks = function(module, name, arguments)
    emitter = _Emitter(builder, graph, blocks)
    emitter.make([result.value for result in results])
    for block, k, value, added in results:
        if added and graph.number(value) == 0:
            continue
        at, numbers = place(builder, blocks[block], k), emitter.of(value)
        if added:
            numbers = builder.fadd(builder.load(at, align=8), numbers)
        builder.store(numbers, at, align=8)
    builder.ret_void()
