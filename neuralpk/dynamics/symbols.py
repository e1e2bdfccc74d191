"""Symbols: values that are not numbers but expressions of a model's text, and the functions of that language on them.

NumPy's and torch's functions of the same names work on symbols too.
"""

from __future__ import annotations

import linecache
import math
import numbers
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NoReturn

from neuralpk.dynamics.equation_text import FUNCTIONS
from neuralpk.dynamics.network_text import NETWORK

_HERE = str(Path(__file__).parent)
# how strongly an operator binds, from the weakest to the strongest, as in `neuralpk.dynamics.operator_reader`
_OR, _AND, _NOT, _COMPARISON, _SUM, _PRODUCT, _SIGN, _POWER, _ATOM = range(9)
_OPERATORS: dict[str, tuple[int, int, int]] = {  # own strength, and those that the two sides need
    "or": (_OR, _OR, _AND),
    "and": (_AND, _AND, _NOT),
    **dict.fromkeys(("<", "<=", ">", ">=", "==", "!="), (_COMPARISON, _SUM, _SUM)),
    **dict.fromkeys(("+", "-"), (_SUM, _SUM, _PRODUCT)),
    **dict.fromkeys(("*", "/"), (_PRODUCT, _PRODUCT, _SIGN)),
    "^": (_POWER, _ATOM, _SIGN),
}
_OF_LIBRARIES = {
    "absolute": "abs", "fabs": "abs", "maximum": "max", "fmax": "max",
    "minimum": "min", "fmin": "min",
}  # fmt: skip
"""Names that NumPy or torch has for functions of the language."""
_OPERATORS_OF_LIBRARIES = {
    "add": "+", "subtract": "-", "sub": "-", "multiply": "*", "mul": "*", "divide": "/", "true_divide": "/", "div": "/",
    "less": "<", "lt": "<", "less_equal": "<=", "le": "<=", "greater": ">", "gt": ">", "greater_equal": ">=",
    "ge": ">=", "equal": "==", "eq": "==", "not_equal": "!=", "ne": "!=", "power": "^", "pow": "^",
    "logical_and": "and", "logical_or": "or",
}  # fmt: skip


class FunctionError(ValueError):
    """What a function that is translated into a model's text cannot do, with the line in which it stands."""


class Symbol:
    """An expression; operations on it make others.

    Args:
        operation: ``name``, ``number``, an operator or a function of the language.
        arguments: symbols.
        text: of a name or a number; of a network its options.
    """

    __slots__ = ("arguments", "operation", "text")

    def __init__(self, operation: str, arguments: tuple[Symbol, ...] = (), text: str = "") -> None:
        self.operation, self.arguments, self.text = operation, arguments, text

    def __add__(self, other: Any) -> Symbol:
        return joined("+", self, other)

    def __radd__(self, other: Any) -> Symbol:
        return joined("+", other, self)

    def __sub__(self, other: Any) -> Symbol:
        return joined("-", self, other)

    def __rsub__(self, other: Any) -> Symbol:
        return joined("-", other, self)

    def __mul__(self, other: Any) -> Symbol:
        return joined("*", self, other)

    def __rmul__(self, other: Any) -> Symbol:
        return joined("*", other, self)

    def __truediv__(self, other: Any) -> Symbol:
        return joined("/", self, other)

    def __rtruediv__(self, other: Any) -> Symbol:
        return joined("/", other, self)

    def __pow__(self, other: Any) -> Symbol:
        return joined("^", self, other)

    def __rpow__(self, other: Any) -> Symbol:
        return joined("^", other, self)

    def __neg__(self) -> Symbol:
        return Symbol("negative", (self,))

    def __pos__(self) -> Symbol:
        return self

    def __abs__(self) -> Symbol:
        return Symbol("abs", (self,))

    def __lt__(self, other: Any) -> Symbol:
        return joined("<", self, other)

    def __le__(self, other: Any) -> Symbol:
        return joined("<=", self, other)

    def __gt__(self, other: Any) -> Symbol:
        return joined(">", self, other)

    def __ge__(self, other: Any) -> Symbol:
        return joined(">=", self, other)

    def __eq__(self, other: object) -> Symbol:  # type: ignore[override]
        return joined("==", self, other)

    def __ne__(self, other: object) -> Symbol:  # type: ignore[override]
        return joined("!=", self, other)

    def __and__(self, other: Any) -> Symbol:
        return joined("and", self, other)

    def __rand__(self, other: Any) -> Symbol:
        return joined("and", other, self)

    def __or__(self, other: Any) -> Symbol:
        return joined("or", self, other)

    def __ror__(self, other: Any) -> Symbol:
        return joined("or", other, self)

    def __invert__(self) -> Symbol:
        return Symbol("not", (self,))

    __hash__ = object.__hash__

    def __bool__(self) -> NoReturn:
        raise FunctionError(
            f"the course of the function depends on a value, in {place()}: write where(condition, yes, no), min, max "
            "and & | ~ of neuralpk.dynamics.symbols"
        )

    def __float__(self) -> NoReturn:
        raise FunctionError(
            f"a number is needed where a symbol stands, in {place()}: take the functions of neuralpk.dynamics.symbols "
            "or of numpy, not those of math"
        )

    def __index__(self) -> NoReturn:
        raise FunctionError(f"a whole number is needed where a symbol stands, in {place()}: a loop has a fixed length")

    def __iter__(self) -> NoReturn:
        raise FunctionError(f"a symbol is one number and has no elements, in {place()}")

    def __array_ufunc__(self, function: Any, method: str, *inputs: Any, **options: Any) -> Symbol:
        if method != "__call__" or options:
            raise FunctionError(f"numpy.{function.__name__}.{method} is not translated, in {place()}")
        return _of_library("numpy", function.__name__, inputs)

    def __array_function__(self, function: Any, types: Any, inputs: Any, options: Any) -> Symbol:
        return _of_library("numpy", function.__name__, (*inputs, *options.values()))

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, inputs: Any = (), options: Any = None) -> Symbol:
        return _of_library("torch", function.__name__, (*inputs, *(options or {}).values()))

    def __repr__(self) -> str:
        return written(self, {})


def symbol(value: Any) -> Symbol:
    """A symbol as it is, or that of a number.

    Raises:
        FunctionError: what is neither.
    """
    if isinstance(value, Symbol):
        return value
    if not isinstance(value, numbers.Real) or not math.isfinite(value):
        raise FunctionError(f"a symbol or a finite number is expected, not {value!r}, in {place()}")
    number = Symbol("number", text=as_text(abs(float(value))))
    return -number if value < 0 else number


def as_text(value: float) -> str:
    """A number with all its digits."""
    return repr(float(value)).removesuffix(".0")


def joined(operation: str, a: Any, b: Any) -> Symbol:
    """Two values with an operator between them."""
    return Symbol(operation, (symbol(a), symbol(b)))


def written(value: Symbol, names: dict[int, str], whole: bool = False) -> str:
    """The text of an expression.

    Args:
        value: the expression.
        names: of variables, by the identity of the expression for which each stands.
        whole: whether the expression itself is written although it has a name.
    """
    return _written(value, names, whole)[0]


def _written(value: Symbol, names: dict[int, str], whole: bool) -> tuple[str, int]:
    """Text, and how strongly its outermost operator binds."""
    if not whole and id(value) in names:
        return names[id(value)], _ATOM
    operation = value.operation
    if operation in ("name", "number"):
        return value.text, _ATOM

    def part(argument: Symbol, needed: int) -> str:
        text, strength = _written(argument, names, whole=False)
        return text if strength >= needed else f"({text})"

    if operation == "negative":
        return f"-{part(value.arguments[0], _SIGN)}", _SIGN
    if operation == "not":
        return f"not {part(value.arguments[0], _NOT)}", _NOT
    if operation in _OPERATORS:
        own, left, right = _OPERATORS[operation]
        space = " " if own <= _SUM else ""
        return f"{part(value.arguments[0], left)}{space}{operation}{space}{part(value.arguments[1], right)}", own
    arguments = ", ".join([*(part(argument, _OR) for argument in value.arguments), *filter(None, [value.text])])
    return f"{operation}({arguments})", _ATOM


def place() -> str:
    """Where the function is that is being translated: the innermost line outside of this package and the libraries."""
    frame = sys._getframe(1)
    while frame.f_back is not None and _inside(frame.f_code.co_filename):
        frame = frame.f_back
    file, number = frame.f_code.co_filename, frame.f_lineno
    line = linecache.getline(file, number).strip()
    return f"{file}, line {number}" + (f" ({line})" if line else "")


def _inside(file: str) -> bool:
    return file.startswith(_HERE) or "/numpy/" in file or "/torch/" in file


def _of_library(library: str, name: str, inputs: tuple[Any, ...]) -> Symbol:
    """A function of NumPy or torch as one of the language."""
    known = _OF_LIBRARIES.get(name, name)
    if name in _OPERATORS_OF_LIBRARIES and len(inputs) == 2:
        return joined(_OPERATORS_OF_LIBRARIES[name], *inputs)
    if name in ("negative", "neg"):
        return -symbol(inputs[0])
    if name == "square":
        return symbol(inputs[0]) ** 2
    if known in FUNCTIONS and len(inputs) == FUNCTIONS[known]:
        return Symbol(known, tuple(symbol(value) for value in inputs))
    raise FunctionError(
        f"{library}.{name} is not in the language of models, in {place()}; there are {', '.join(FUNCTIONS)}"
    )


def _of_one(name: str) -> Callable[[Any], Symbol]:
    return lambda x: Symbol(name, (symbol(x),))


exp, log, log10, log1p, expm1, sqrt = map(_of_one, ("exp", "log", "log10", "log1p", "expm1", "sqrt"))
tanh, sin, cos = map(_of_one, ("tanh", "sin", "cos"))


def min(a: Any, b: Any) -> Symbol:
    """The smaller of two numbers."""
    return Symbol("min", (symbol(a), symbol(b)))


def max(a: Any, b: Any) -> Symbol:
    """The larger of two numbers."""
    return Symbol("max", (symbol(a), symbol(b)))


def where(condition: Any, yes: Any, no: Any) -> Symbol:
    """One of two numbers."""
    return Symbol("where", (symbol(condition), symbol(yes), symbol(no)))


def hill(x: Any, half: Any, gamma: Any) -> Symbol:
    """x^gamma/(half^gamma + x^gamma), 0 for x ≤ 0."""
    return Symbol("hill", (symbol(x), symbol(half), symbol(gamma)))


def network(
    *inputs: Any,
    hidden: int = 8,
    monotone: Literal["increasing", "decreasing"] | None = None,
    zero_at: float | None = None,
    range: tuple[float, float] | None = None,
    prior_sd: float = 1.0,
    random: str | None = None,
) -> Symbol:
    """A network that is learned (`neuralpk.dynamics.network_terms.NetworkTerm`); each call is one of its own.

    Args:
        inputs: one or more.
        hidden: number of hidden units.
        monotone: whether the output increases or decreases with each input.
        zero_at: value of the first input at which the output is 0.
        range: ends of the output.
        prior_sd: standard deviation of the output before data, where every input has its typical size.
        random: name of a parameter that multiplies the output of each patient, of typical value 1.
    """
    ends = None if range is None else f"({as_text(range[0])}, {as_text(range[1])})"
    given = {"monotone": monotone, "zero_at": zero_at, "range": ends, "random": random}
    options = {"hidden": hidden} | {name: value for name, value in given.items() if value is not None}
    options |= {} if prior_sd == 1.0 else {"prior_sd": prior_sd}
    text = ", ".join(f"{name}={value}" for name, value in options.items())
    return Symbol(NETWORK, tuple(symbol(value) for value in inputs), text)
