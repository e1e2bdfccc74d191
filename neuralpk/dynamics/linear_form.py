"""Slopes that are linear in the states: which of them are, and their coefficients."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from neuralpk.dynamics.equation_text import TIME
from neuralpk.dynamics.expression import Expression
from neuralpk.dynamics.model_text import ModelText

Number = Tensor | float


CONSTANT = ""
"""The name of what is multiplied by no state, among the coefficients."""


class LinearForm:
    """constant + Σ coefficient·state, as the value of an expression: coefficients by the name of their state."""

    def __init__(self, coefficients: Mapping[str, Number]) -> None:
        self.coefficients = coefficients

    def __add__(self, other: LinearForm | Number) -> LinearForm:
        added = other.coefficients if isinstance(other, LinearForm) else {CONSTANT: other}
        sums = dict(self.coefficients)
        for name, coefficient in added.items():
            sums[name] = sums[name] + coefficient if name in sums else coefficient
        return LinearForm(sums)

    __radd__ = __add__

    def __neg__(self) -> LinearForm:
        return LinearForm({name: -one for name, one in self.coefficients.items()})

    def __sub__(self, other: LinearForm | Number) -> LinearForm:
        return self + -other

    def __rsub__(self, other: Number) -> LinearForm:
        return -self + other

    def __mul__(self, factor: Number) -> LinearForm:
        return LinearForm({name: factor * one for name, one in self.coefficients.items()})

    __rmul__ = __mul__

    def __truediv__(self, divisor: Number) -> LinearForm:
        return LinearForm({name: one / divisor for name, one in self.coefficients.items()})


@dataclass(frozen=True)
class LinearSlopes:
    """The structure of slopes that are linear in the states.

    Attributes:
        variables: those from which the slopes are computed.
        forced: whether a slope has a part that is multiplied by no state.
    """

    variables: tuple[str, ...]
    forced: bool


def linear_slopes(model: ModelText) -> LinearSlopes | None:
    """The structure of the slopes, if all are linear in the states with coefficients that do not depend on time."""
    parts: dict[str, _Parts] = {state: frozenset({state}) for state in model.states} | {TIME: None}
    for name, expression in model.variables.items():
        parts[name] = _parts(expression, parts)
    of_slopes = [_parts(slope, parts) for slope in model.slopes.values()]
    if None in of_slopes:
        return None
    needed = _names(model.slopes.values())
    for name, expression in reversed(model.variables.items()):
        if name in needed:
            needed |= _names([expression])
    forced = any(part is not None and CONSTANT in part for part in of_slopes)
    return LinearSlopes(tuple(name for name in model.variables if name in needed), forced)


def _names(expressions: Iterable[Expression]) -> set[str]:
    return {token.text for expression in expressions for token in expression.names()}


_Parts = frozenset[str] | None  # states, and CONSTANT, of which an expression is a sum; None where it is no such sum
_ALONE: _Parts = frozenset({CONSTANT})


def _parts(expression: Expression, known: Mapping[str, _Parts]) -> _Parts:
    """The parts of an expression; names that are not known are constants."""
    if expression.operation == "name":
        return known.get(expression.token.text, _ALONE)
    each = [_parts(argument, known) for argument in expression.arguments]
    if all(one == _ALONE for one in each):
        return _ALONE
    first, second = each[0], each[-1]
    if expression.operation in ("+", "-") and first is not None and second is not None:
        return first | second
    if expression.operation == "negative" or (expression.operation in ("*", "/") and second == _ALONE):
        return first
    return second if expression.operation == "*" and first == _ALONE else None
