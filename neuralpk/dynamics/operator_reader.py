"""Reader of the operators of an expression, for languages that differ in their signs and values."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

from neuralpk.dynamics.expression import Expression, Token

COMPARISONS = ("<", "<=", ">", ">=", "==", "!=")


class OperatorReader(ABC):
    """The tokens of a text, read from left to right by recursive descent.

    A subclass reads values (`value`). Operations of the trees are ``negative``, ``not``, ``pow``, and the signs of the
    other operators as they stand.

    Args:
        tokens: of the text; the last one is of the kind ``end``.

    Attributes:
        disjunction: signs of "or".
        conjunction: signs of "and".
        negation: sign of "not".
        both: how a message says "and".
    """

    disjunction: ClassVar[tuple[str, ...]]
    conjunction: ClassVar[tuple[str, ...]]
    negation: ClassVar[str]
    both: ClassVar[str]

    def __init__(self, tokens: list[Token]) -> None:
        self.tokens, self.at = tokens, 0

    @property
    def next(self) -> Token:
        """The token that is read next."""
        return self.tokens[self.at]

    def take(self, *texts: str) -> Token | None:
        """The next token, if it is one of these signs or names; else None, and nothing is taken."""
        token = self.next
        if token.kind in ("sign", "name") and token.text in texts:
            self.at += 1
            return token
        return None

    def need(self, text: str) -> Token:
        """The next token, which has to be this one.

        Raises:
            EquationError: another one.
        """
        found = self.take(text)
        if found is None:
            raise self.next.expected(repr(text))
        return found

    def take_operator(self, *signs: str) -> Token | None:
        """As `take`, for an operator between two values."""
        return self.take(*signs)

    def expression(self) -> Expression:
        """Operators from the weakest to the strongest: or, and, not, comparisons, + −, * /, sign, power.

        Raises:
            EquationError: what is no expression, with its line and column.
        """
        return self._joined(self.disjunction, lambda: self._joined(self.conjunction, self._negation))

    def _joined(self, signs: tuple[str, ...], part: Callable[[], Expression]) -> Expression:
        left = part()
        while token := self.take_operator(*signs):
            left = Expression(token.text, (left, part()), token)
        return left

    def _negation(self) -> Expression:
        if token := self.take(self.negation):
            return Expression("not", (self._negation(),), token)
        left = self._sum()
        if token := self.take_operator(*COMPARISONS):
            left = Expression(token.text, (left, self._sum()), token)
            if self.next.text in COMPARISONS:
                raise self.next.error(f"two comparisons in a row: join them by {self.both}")
        return left

    def _sum(self) -> Expression:
        return self._joined(("+", "-"), lambda: self._joined(("*", "/"), self.signed))

    def signed(self) -> Expression:
        """A power, with any number of signs before it."""
        if token := self.take("-"):
            return Expression("negative", (self.signed(),), token)
        if self.take("+"):
            return self.signed()
        return self._power()

    def _power(self) -> Expression:
        base = self.value()
        if token := self.take_operator("^", "**"):
            return Expression("pow", (base, self.signed()), token)  # a^-b^c is a^(-(b^c))
        return base

    @abstractmethod
    def value(self) -> Expression:
        """What stands between operators: a number, a name, a call, an expression in parentheses."""
