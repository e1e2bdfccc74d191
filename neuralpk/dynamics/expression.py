"""Expressions as trees, with the places of the text where they stand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from neuralpk.dynamics.network_text import NetworkOptions

MOST_NESTED = 150
"""Most operations within each other: an expression is read and evaluated by recursion."""
TOO_NESTED = "too many operations within each other: give a part of them a name, in a line of its own"


class EquationError(ValueError):
    """A mistake in the text of a model, with its line and column."""

    def __init__(self, message: str, line: int, column: int, text: str) -> None:
        super().__init__(f"line {line}, column {column}: {message}\n  {text}\n  {' ' * (column - 1)}^")
        self.line, self.column = line, column


class Token(NamedTuple):
    """A piece of the text: kind, characters, line and column from 1, and its whole line."""

    kind: str
    text: str
    line: int
    column: int
    whole: str

    def error(self, message: str) -> EquationError:
        """A mistake at this place."""
        return EquationError(message, self.line, self.column, self.whole)

    def expected(self, what: str) -> EquationError:
        """A mistake at this place, where something else has to stand."""
        ends = self.kind in ("end", "newline")
        return self.error(f"{what} is expected here, {'and the line ends' if ends else f'not {self.text!r}'}")


@dataclass(frozen=True)
class Expression:
    """A number, a name, or an operation on other expressions; `token` is where it stands. A network has `options`, a
    number may have a unit."""

    operation: str
    arguments: tuple[Expression, ...]
    token: Token
    options: NetworkOptions | None = None
    unit: Token | None = None
    depth: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "depth", 1 + max((argument.depth for argument in self.arguments), default=0))
        if self.depth > MOST_NESTED:
            raise self.token.error(TOO_NESTED)

    def names(self) -> Iterator[Token]:
        """Names in it, in order, with repetitions."""
        if self.operation == "name":
            yield self.token
        for argument in self.arguments:
            yield from argument.names()

    def numbers_with_units(self) -> Iterator[str]:
        """Numbers in it that have a unit, with it, in order, with repetitions: ``70 [kg]``."""
        if self.unit is not None:
            yield f"{self.token.text} [{self.unit.text[1:-1].strip()}]"
        for argument in self.arguments:
            yield from argument.numbers_with_units()

    def networks(self) -> Iterator[Expression]:
        """Networks in it, in order."""
        for argument in self.arguments:
            yield from argument.networks()
        if self.options is not None:
            yield self
