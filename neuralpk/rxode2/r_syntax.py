"""Text in the language R as trees: the part of its grammar in which rxode2 and nlmixr2 models are written.

No text is evaluated. A tree is an `Expression`: its operation is ``number``, ``name``, ``string``, ``call`` (the token
is the name of the function), ``named`` (an argument NAME = value), ``block``, ``if``, ``function``, ``negative``,
``!``, or the sign of an operator; ``<-`` is any assignment.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from neuralpk.dynamics.equation_text import EquationError, Expression, Token

_TOKEN = re.compile(
    r"(?P<comment>#[^\n]*)|(?P<newline>\n)|(?P<space>[ \t\r\f\ufeff]+)"
    r"|(?P<number>(?:0[xX][0-9a-fA-F]+|(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)L?)"
    r"|(?P<string>\"(?:\\.|[^\"\\])*\"|'(?:\\.|[^'\\])*')"
    r"|(?P<name>`[^`\n]+`|[A-Za-z.][A-Za-z0-9._]*)"
    r"|(?P<sign>%[^%\n]*%|<<-|<-|->>|->|<=|>=|==|!=|&&|\|\||\|>|\*\*|:::|::|[-+*/^<>=!&|~(){}\[\],;$@:?])"
    r"|(?P<other>.)",
    re.DOTALL,
)
_COMPARISONS = ("<", "<=", ">", ">=", "==", "!=")
_LOOPS = ("for", "while", "repeat", "break", "next")
_AFTER_VALUE = {
    "[": "an element of a vector, […],",
    "::": "a name of another package, ::,",
    ":::": "a name of another package, :::,",
    "@": "a slot, @,",
    ":": "a sequence, a:b,",
    "|>": "a pipe, |>,",
    "?": "the operator ?",
    "<<-": "the assignment <<-",
    "->": "the assignment ->",
    "->>": "the assignment ->>",
}
_TOO_NESTED = "too many operations within each other: give a part of them a name, in a line of its own"


def refusal(token: Token, what: str, why: str = "has no counterpart here") -> EquationError:
    """Why a part of a model is not read, at the place of `token`."""
    return token.error(f"{what} {why}")


def _tokens(text: str) -> list[Token]:
    lines = text.split("\n")
    found, line, start = list[Token](), 1, 0
    for match in _TOKEN.finditer(text):
        kind, words = str(match.lastgroup), match.group()
        token = Token(kind, words.strip("`"), line, match.start() - start + 1, lines[line - 1].rstrip("\r"))
        if kind == "other":
            ends = words in "\"'"
            raise token.error(
                "the text that begins here does not end" if ends else f"the character {words!r} has no meaning here"
            )
        if kind not in ("space", "comment"):
            found.append(token)
        if "\n" in words:
            line += words.count("\n")
            start = match.start() + words.rindex("\n") + 1
    return [*found, Token("end", "", line, len(lines[-1]) + 1, lines[-1])]


class _Reader:
    """The tokens of a text, read from left to right. A line ends a statement, but not within parentheses."""

    def __init__(self, tokens: list[Token]) -> None:
        self.tokens, self.at = tokens, 0
        self.within = [False]  # whether the innermost bracket is a parenthesis

    @property
    def next(self) -> Token:
        if self.within[-1]:
            self.skip_lines()
        return self.tokens[self.at]

    def skip_lines(self) -> None:
        while self.tokens[self.at].kind == "newline":
            self.at += 1

    def take(self, *signs: str) -> Token | None:
        token = self.next
        if token.kind in ("sign", "name") and token.text in signs:
            self.at += 1
            return token
        return None

    def need(self, sign: str) -> Token:
        found = self.take(sign)
        if found is None:
            raise self.next.error(f"{sign!r} is expected here, {_seen(self.next)}")
        return found

    # ---- statements

    def statements(self, end: str) -> tuple[Expression, ...]:
        """Statements up to a closing brace, or to the end of the text."""
        found: list[Expression] = []
        while True:
            while self.next.kind == "newline" or self.next.text == ";":
                self.at += 1
            if self.next.kind == "end" and end:
                raise self.next.error(f"{end!r} is expected here, and the text ends")
            if self.next.kind == "end" or (end and self.next.text == end):
                return (*found,)
            found.append(self.statement())
            after = self.next
            if not (after.kind in ("newline", "end") or after.text == ";" or (end and after.text == end)):
                if after.text in _AFTER_VALUE:
                    raise refusal(after, _AFTER_VALUE[after.text], "is not read")
                raise after.error(f"an operator or the end of the line is expected here, {_seen(after)}")

    def statement(self) -> Expression:
        left = self.formula()
        if token := self.take("<-", "="):
            self.skip_lines()
            return Expression("<-", (left, self.statement()), token)
        return left

    def formula(self) -> Expression:
        left = self.condition()
        if token := self.take("~"):
            self.skip_lines()
            return Expression("~", (left, self.condition()), token)
        return left

    # ---- expressions, from the weakest operator to the strongest

    def condition(self) -> Expression:
        return self._joined(("|", "||"), lambda: self._joined(("&", "&&"), self._negation))

    def _joined(self, signs: tuple[str, ...], part: Callable[[], Expression]) -> Expression:
        left = part()
        while token := self.take(*signs):
            self.skip_lines()
            left = Expression(token.text, (left, part()), token)
        return left

    def _negation(self) -> Expression:
        if token := self.take("!"):
            return Expression("!", (self._negation(),), token)
        left = self._sum()
        if token := self.take(*_COMPARISONS):
            self.skip_lines()
            left = Expression(token.text, (left, self._sum()), token)
            if self.next.text in _COMPARISONS:
                raise self.next.error("two comparisons in a row: join them by &&")
        return left

    def _sum(self) -> Expression:
        return self._joined(("+", "-"), lambda: self._joined(("*", "/"), self._special))

    def _special(self) -> Expression:
        left = self._sign()
        if self.next.text.startswith("%"):
            raise refusal(self.next, f"the operator {self.next.text}")
        return left

    def _sign(self) -> Expression:
        if token := self.take("-"):
            return Expression("negative", (self._sign(),), token)
        if self.take("+"):
            return self._sign()
        return self._power()

    def _power(self) -> Expression:
        base = self._value()
        if token := self.take("^", "**"):
            self.skip_lines()
            return Expression("^", (base, self._sign()), token)
        return base

    def _value(self) -> Expression:
        """A value, with the calls and components that follow it."""
        value = self._atom()
        while self.next.kind == "sign":
            if self.next.text == "(":
                if value.operation != "name":
                    raise self.next.error("an operator is expected here, not '('")
                value = Expression("call", self._arguments(), value.token)
            elif token := self.take("$"):
                value = Expression("$", (value, self._atom()), token)
            else:
                break
        return value

    def _arguments(self) -> tuple[Expression, ...]:
        self.need("(")
        self.within.append(True)
        found = []
        while self.next.text != ")":
            name = self.next
            following = self.tokens[self.at + 1]
            if name.kind in ("name", "string") and following.text == "=":
                self.at += 2
                found.append(Expression("named", (self.formula(),), name))
            else:
                found.append(self.formula())
            if not self.take(","):
                break
        self.need(")")
        self.within.pop()
        return (*found,)

    def _atom(self) -> Expression:
        token = self.next
        if token.kind in ("number", "string"):
            self.at += 1
            return Expression(token.kind, (), token)
        if token.kind == "name":
            self.at += 1
            if token.text == "if":
                return self._if(token)
            if token.text == "function":
                arguments = self._arguments()
                self.skip_lines()
                return Expression("function", (*arguments, self.formula()), token)
            if token.text in _LOOPS:
                raise refusal(token, f"{token.text!r}", "is not read: a loop has no counterpart here")
            return Expression("name", (), token)
        if self.take("("):
            self.within.append(True)
            inside = self.formula()
            self.need(")")
            self.within.pop()
            return inside
        if self.take("{"):
            self.within.append(False)
            inside = Expression("block", self.statements("}"), token)
            self.need("}")
            self.within.pop()
            return inside
        raise token.error(f"a number, a name or '(' is expected here, {_seen(token)}")

    def _if(self, token: Token) -> Expression:
        self.need("(")
        self.within.append(True)
        condition = self.formula()
        self.need(")")
        self.within.pop()
        self.skip_lines()
        parts = [condition, self.statement()]
        before = self.at
        self.skip_lines()
        if self.take("else"):
            self.skip_lines()
            parts.append(self.statement())
        else:
            self.at = before
        return Expression("if", (*parts,), token)


def _seen(token: Token) -> str:
    if token.kind in ("end", "newline"):
        return "and the line ends"
    return f"not {token.text!r}"


def read_statements(text: str) -> tuple[Expression, ...]:
    """The statements of a text.

    Args:
        text: in R.

    Raises:
        EquationError: what is no R, or a part of R that no model needs, with its line and column.
    """
    tokens = _tokens(text)
    reader = _Reader(tokens)
    try:
        return reader.statements("")
    except RecursionError:
        raise tokens[min(reader.at, len(tokens) - 1)].error(_TOO_NESTED) from None


def string_of(expression: Expression) -> str:
    """The characters of a string.

    Raises:
        EquationError: another expression.
    """
    if expression.operation != "string":
        raise expression.token.error("a text in quotes is expected here")
    return re.sub(r"\\(.)", r"\1", expression.token.text[1:-1])
