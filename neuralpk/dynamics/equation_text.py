"""Text of equations: its tokens, and its expressions as trees.

No text is evaluated by Python. Operations are those of a closed list.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable

from neuralpk.dynamics.expression import Expression, Token
from neuralpk.dynamics.network_text import NETWORK, NetworkOptions, check_together, read_option
from neuralpk.dynamics.operator_reader import OperatorReader

FUNCTIONS = {
    "exp": 1, "log": 1, "log10": 1, "log1p": 1, "expm1": 1, "sqrt": 1, "abs": 1, "tanh": 1, "sin": 1, "cos": 1,
    "pow": 2, "min": 2, "max": 2, "hill": 3, "where": 3,
}  # fmt: skip
"""Names of the functions and the number of their arguments."""
TIME = "t"
RESERVED = {
    *FUNCTIONS, NETWORK, TIME, "parameters", "covariates", "states", "outputs", "units", "lag", "alag", "F", "f", "and",
    "or", "not", "in",
}  # fmt: skip
"""Names that have a meaning of their own."""
_TOKEN = re.compile(
    r"(?P<number>(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?)|(?P<name>[A-Za-z_]\w*)"
    r"|(?P<unit>\[[^][]*\])|(?P<sign>\*\*|<=|>=|==|!=|[-+*/^()<>=,:'~])|(?P<space>\s+)|(?P<other>.)"
)


def tokens_of_line(line: str, number: int) -> list[Token]:
    """The tokens of a line without its comment, and one of the kind ``end``.

    Raises:
        EquationError: a character that has no meaning.
    """
    code = line.split("#", 1)[0]
    found = []
    for match in _TOKEN.finditer(code):
        kind = str(match.lastgroup) if match.lastgroup in ("name", "unit", "sign", "space", "other") else "number"
        token = Token(kind, match.group(), number, match.start() + 1, line)
        if kind == "other":
            raise token.error(f"the character {token.text!r} has no meaning here")
        if kind != "space":
            found.append(token)
    end = Token("end", "", number, len(code.rstrip()) + 1, line)
    return [*found, end]


class EquationReader(OperatorReader):
    """The tokens of one statement, read from left to right."""

    disjunction, conjunction, negation, both = ("or",), ("and",), "not", "'and'"

    def name(self, what: str) -> Token:
        """The next token, which has to be a name."""
        token = self.next
        if token.kind != "name":
            raise token.expected(f"the name of {what}")
        self.at += 1
        return token

    def signed_number(self) -> float:
        """A number, with a sign or without."""
        sign = -1.0 if self.take("-") else 1.0
        token = self.next
        if token.text in ("inf", "infinity"):
            self.at += 1
            return sign * float("inf")
        if token.kind != "number":
            raise token.expected("a number")
        self.at += 1
        return sign * float(token.text)

    def unit(self) -> Token | None:
        """The next token, if it is a unit in brackets."""
        token = self.next
        if token.kind != "unit":
            return None
        self.at += 1
        return token

    def interval(self, at: Token) -> tuple[float, float]:
        """Two ends, (low, high): all numbers, the positive ones, or those between two finite ends; `at` is the place of
        a mistake."""
        self.need("(")
        low = self.signed_number()
        self.need(",")
        high = self.signed_number()
        self.need(")")
        if math.isinf(low) != math.isinf(high) and (low, high) != (0.0, math.inf):
            raise at.error(f"an interval is (0, inf), (-inf, inf) or has two finite ends, not ({low:g}, {high:g})")
        return low, high

    def end(self) -> None:
        """Nothing may follow."""
        if self.next.kind != "end":
            raise self.next.expected("an operator or the end of the line")

    def value(self) -> Expression:
        token = self.next
        self.at += token.kind != "end"
        if token.kind == "number":
            return Expression("number", (), token, unit=self.unit())
        if token.text == "(":
            inside = self.expression()
            self.need(")")
            return inside
        if token.kind != "name" or token.text in ("and", "or", "not"):
            raise token.expected("a number, a name or '('")
        if not self.take("("):
            if token.text in FUNCTIONS or token.text == NETWORK:
                raise token.error(f"{token.text} is a function: write {token.text}(…)")
            return Expression("name", (), token)
        if token.text == NETWORK:
            return self._network(token)
        if token.text not in FUNCTIONS:
            raise token.error(f"there is no function {token.text!r}{hint(token.text, (*FUNCTIONS, NETWORK))}")
        arguments = [self.expression()]
        while self.take(","):
            arguments.append(self.expression())
        self.need(")")
        if len(arguments) != FUNCTIONS[token.text]:
            raise token.error(f"{token.text} takes {FUNCTIONS[token.text]} argument(s), not {len(arguments)}")
        return Expression(token.text, (*arguments,), token)

    def _network(self, token: Token) -> Expression:
        """Inputs, then options; a factor that differs between patients multiplies the output."""
        inputs: list[Expression] = []
        options, seen = NetworkOptions(), set[str]()
        while not inputs or self.take(","):
            if self.next.kind == "name" and self.tokens[self.at + 1].text == "=":
                if not inputs:
                    raise self.next.error("a network needs an input before its options: network(C, …)")
                options = read_option(self, options, seen)
            elif seen:
                raise self.next.error("the inputs of a network come before its options")
            else:
                inputs.append(self.expression())
        self.need(")")
        check_together(token, options)
        network = Expression(NETWORK, (*inputs,), token, options)
        if options.random is None:
            return network
        return Expression("*", (network, Expression("name", (), options.random)), token)


def hint(name: str, known: Iterable[str]) -> str:
    """``; did you mean 'CL'?`` for a name that is nearly one of those that are known; empty where none is near."""
    known = list(known)
    close = difflib.get_close_matches(name, known, 1) or [k for k in known if k.lower() == name.lower()]
    return f"; did you mean {close[0]!r}?" if close else ""
