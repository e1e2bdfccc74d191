"""Expressions of scalars: a graph in which every value occurs once, and its derivatives.

A value is a constant, an input, or an operation on earlier values. Equal operations on equal values are one value, so
that common subexpressions are computed once, and products with 0 or 1 are simplified as they are made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple


class Value(NamedTuple):
    """One value of a graph: the operation, the positions of its arguments, and the number of a constant or input."""

    operation: str
    arguments: tuple[int, ...] = ()
    number: float = 0.0
    kind: str = ""  # of an input: "state", "own" (differs between subjects), "shared" (a weight), or another's name


_UNARY = {
    "neg": lambda a: -a,
    "exp": math.exp,
    "log": math.log,
    "log1p": math.log1p,
    "expm1": math.expm1,
    "sqrt": math.sqrt,
    "tanh": math.tanh,
    "sin": math.sin,
    "cos": math.cos,
    "abs": abs,
}
_BINARY = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "pow": lambda a, b: a**b,
    "lt": lambda a, b: float(a < b),
    "le": lambda a, b: float(a <= b),
    "eq": lambda a, b: float(a == b),
    "and": lambda a, b: float(a != 0 and b != 0),
}
COMPARISONS = ("lt", "le", "eq", "and", "not")


class Graph:
    """Values in the order in which they were made: arguments come before what is computed from them."""

    def __init__(self) -> None:
        self.values: list[Value] = []
        self._places: dict[Value, int] = {}

    def __len__(self) -> int:
        return len(self.values)

    def _place(self, value: Value) -> int:
        found = self._places.get(value)
        if found is None:
            found = self._places[value] = len(self.values)
            self.values.append(value)
        return found

    def constant(self, number: float) -> int:
        """A number; +0.0 and -0.0 are one."""
        return self._place(Value("constant", (), float(number) + 0.0))

    def input(self, kind: str, k: int) -> int:
        """Input k of a kind."""
        return self._place(Value("input", (), float(k), kind))

    def number(self, a: int) -> float | None:
        """The number of a constant; None for other values."""
        value = self.values[a]
        return value.number if value.operation == "constant" else None

    def __call__(self, operation: str, *arguments: int) -> int:
        """The value of an operation, simplified where that changes no finite result."""
        numbers = [self.number(a) for a in arguments]
        folded = self._folded(operation, numbers)
        if folded is not None:
            return self.constant(folded)
        simple = self._simple(operation, arguments, numbers)
        if simple is not None:
            return simple
        if operation in ("add", "mul", "eq", "and"):
            arguments = (*sorted(arguments),)
        return self._place(Value(operation, arguments))

    def _folded(self, operation: str, numbers: Sequence[float | None]) -> float | None:
        if any(number is None for number in numbers):
            return None
        known = [float(number) for number in numbers if number is not None]
        try:
            if operation == "where":
                return known[1] if known[0] else known[2]
            if operation == "not":
                return float(not known[0])
            result = (_UNARY if len(known) == 1 else _BINARY)[operation](*known)
        except (ArithmeticError, ValueError):
            return None  # the machine gives inf or NaN
        return float(result) if isinstance(result, float | int) else None

    def _simple(self, operation: str, arguments: Sequence[int], numbers: Sequence[float | None]) -> int | None:
        a, b = arguments[0], arguments[-1]
        m, n = numbers[0], numbers[-1]
        if operation == "add":
            return b if m == 0 else a if n == 0 else None
        if operation == "sub":
            return a if n == 0 else self("neg", b) if m == 0 else self.constant(0.0) if a == b else None
        if operation == "mul":
            if m == 0 or n == 0:
                return self.constant(0.0)
            if m == 1 or n == 1:
                return b if m == 1 else a
            return self("neg", b) if m == -1 else self("neg", a) if n == -1 else None
        if operation == "div":
            return a if n == 1 else self.constant(0.0) if m == 0 else None
        if operation == "pow" and n is not None:
            return self._power(a, n)
        if operation == "neg" and self.values[a].operation == "neg":
            return self.values[a].arguments[0]
        if operation == "where":
            if m is not None:
                return arguments[1] if m else b
            return b if arguments[1] == b else None
        return None

    def _power(self, a: int, n: float) -> int | None:
        """x^n by products, for whole and half numbers up to 8."""
        if n == 0.5:
            return self("sqrt", a)
        if n != int(n) or abs(n) > 8:
            return None
        result, square, rest = self.constant(1.0), a, int(abs(n))
        while rest:
            result = self("mul", result, square) if rest % 2 else result
            square, rest = (self("mul", square, square), rest // 2) if rest > 1 else (square, 0)
        return result if n >= 0 else self("div", self.constant(1.0), result)

    def needed(self, outputs: Iterable[int]) -> list[int]:
        """The values from which the outputs are computed, in order."""
        found: set[int] = set()
        todo = list(outputs)
        while todo:
            a = todo.pop()
            if a not in found:
                found.add(a)
                todo.extend(self.values[a].arguments)
        return sorted(found)

    def pulled_back(self, outputs: Sequence[int], cotangents: Sequence[int], inputs: Sequence[int]) -> list[int]:
        """Σ_k cotangents_k · ∂outputs_k/∂input for every input: the reverse mode."""
        total: dict[int, int] = {}

        def give(a: int, amount: int) -> None:
            total[a] = self("add", total[a], amount) if a in total else amount

        for output, cotangent in zip(outputs, cotangents, strict=True):
            give(output, cotangent)
        for a in reversed(self.needed(outputs)):
            if a not in total or self.number(total[a]) == 0:
                continue
            value, pull = self.values[a], total[a]
            for k, argument in enumerate(value.arguments):
                slope = self.derivative(a, k)
                if slope is not None:
                    give(argument, self("mul", pull, slope))
        zero = self.constant(0.0)
        return [total.get(a, zero) for a in inputs]

    def jacobian(self, outputs: Sequence[int], inputs: Sequence[int]) -> list[list[int]]:
        """∂outputs_r/∂inputs_c, ``[output][input]``."""
        return [self.pulled_back([output], [self.constant(1.0)], inputs) for output in outputs]

    def derivative(self, a: int, k: int) -> int | None:
        """The derivative of a value with respect to its argument k; None where it is 0."""
        operation, arguments, *_ = self.values[a]
        if operation in COMPARISONS or self.number(arguments[k]) is not None:
            return None
        rule = _DERIVATIVES[operation][k]
        return None if rule is None else rule(self, a, *arguments)


def _one(g: Graph, *_: int) -> int:
    return g.constant(1.0)


def _minus_one(g: Graph, *_: int) -> int:
    return g.constant(-1.0)


def _sign(g: Graph, _: int, x: int) -> int:
    zero = g.constant(0.0)
    below = g("where", g("lt", x, zero), g.constant(-1.0), zero)
    return g("where", g("lt", zero, x), g.constant(1.0), below)


def _of_exponent(g: Graph, a: int, x: int, n: int) -> int:
    zero = g.constant(0.0)  # x^n·log x goes to 0 at x = 0, where the product is not a number
    return g("where", g("lt", zero, x), g("mul", a, g("log", x)), zero)


# of each operation, by argument: of the graph, the value and its arguments
_DERIVATIVES: dict[str, tuple[Callable[..., int] | None, ...]] = {
    "add": (_one, _one),
    "sub": (_one, _minus_one),
    "mul": (lambda g, a, x, y: y, lambda g, a, x, y: x),
    "div": (lambda g, a, x, y: g("div", _one(g), y), lambda g, a, x, y: g("neg", g("div", a, y))),
    "pow": (lambda g, a, x, n: g("mul", n, g("pow", x, g("sub", n, _one(g)))), _of_exponent),
    "where": (
        None,
        lambda g, a, c, x, y: g("where", c, _one(g), g.constant(0.0)),
        lambda g, a, c, x, y: g("where", c, g.constant(0.0), _one(g)),
    ),
    "neg": (_minus_one,),
    "exp": (lambda g, a, x: a,),
    "expm1": (lambda g, a, x: g("add", a, _one(g)),),
    "log": (lambda g, a, x: g("div", _one(g), x),),
    "log1p": (lambda g, a, x: g("div", _one(g), g("add", _one(g), x)),),
    "sqrt": (lambda g, a, x: g("div", g.constant(0.5), a),),
    "tanh": (lambda g, a, x: g("sub", _one(g), g("mul", a, a)),),
    "sin": (lambda g, a, x: g("cos", x),),
    "cos": (lambda g, a, x: g("neg", g("sin", x)),),
    "abs": (_sign,),
}
