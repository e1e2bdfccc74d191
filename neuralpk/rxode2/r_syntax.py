"""Text in the language R as trees: the part of its grammar in which rxode2 and nlmixr2 models are written.

No text is evaluated. A tree is an `Expression`: its operation is ``number``, ``name``, ``string``, ``call`` (the token
is the name of the function), ``named`` (an argument NAME = value), ``block``, ``if``, ``function``, ``<-`` (any
assignment), or one of an `OperatorReader`.
"""

from __future__ import annotations

import re

from neuralpk.dynamics.expression import TOO_NESTED, EquationError, Expression, Token
from neuralpk.dynamics.operator_reader import OperatorReader

_TOKEN = re.compile(
    r"(?P<comment>#[^\n]*)|(?P<newline>\n)|(?P<space>[ \t\r\f\ufeff]+)"
    r"|(?P<number>(?:0[xX][0-9a-fA-F]+|(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)L?)"
    r"|(?P<string>\"(?:\\.|[^\"\\])*\"|'(?:\\.|[^'\\])*')"
    r"|(?P<name>`[^`\n]+`|[A-Za-z.][A-Za-z0-9._]*)"
    r"|(?P<sign>%[^%\n]*%|<<-|<-|->>|->|<=|>=|==|!=|&&|\|\||\|>|\*\*|:::|::|[-+*/^<>=!&|~(){}\[\],;$@:?])"
    r"|(?P<other>.)",
    re.DOTALL,
)
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


class _Reader(OperatorReader):
    """The tokens of a text, read from left to right. A line ends a statement, but not within parentheses."""

    disjunction, conjunction, negation, both = ("|", "||"), ("&", "&&"), "!", "&&"

    def __init__(self, tokens: list[Token]) -> None:
        super().__init__(tokens)
        self.within = [False]  # whether the innermost bracket is a parenthesis

    @property
    def next(self) -> Token:
        if self.within[-1]:
            self.skip_lines()
        return super().next

    def skip_lines(self) -> None:
        while self.tokens[self.at].kind == "newline":
            self.at += 1

    def take_operator(self, *signs: str) -> Token | None:
        token = self.take(*signs)
        if token is not None:
            self.skip_lines()  # a line does not end after an operator
        return token

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
                raise after.expected("an operator or the end of the line")

    def statement(self) -> Expression:
        left = self.formula()
        if token := self.take_operator("<-", "="):
            return Expression("<-", (left, self.statement()), token)
        return left

    def formula(self) -> Expression:
        left = self.expression()
        if token := self.take_operator("~"):
            return Expression("~", (left, self.expression()), token)
        return left

    # ---- expressions

    def signed(self) -> Expression:
        found = super().signed()
        if self.next.text.startswith("%"):
            raise refusal(self.next, f"the operator {self.next.text}")
        return found

    def value(self) -> Expression:
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
            if name.kind in ("name", "string") and self.tokens[self.at + 1].text == "=":
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
        if token.text == "(":
            return self._parenthesis()
        if self.take("{"):
            self.within.append(False)
            inside = Expression("block", self.statements("}"), token)
            self.need("}")
            self.within.pop()
            return inside
        raise token.expected("a number, a name or '('")

    def _parenthesis(self) -> Expression:
        self.need("(")
        self.within.append(True)
        inside = self.formula()
        self.need(")")
        self.within.pop()
        return inside

    def _if(self, token: Token) -> Expression:
        condition = self._parenthesis()
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
        raise tokens[min(reader.at, len(tokens) - 1)].error(TOO_NESTED) from None


def number_text(token: Token) -> str:
    """The digits of a number of R, as Python and our equations read them."""
    digits = token.text.rstrip("L")
    return str(int(digits, 16)) if digits[:2] in ("0x", "0X") else digits


def string_of(expression: Expression) -> str:
    """The characters of a string.

    Raises:
        EquationError: another expression.
    """
    if expression.operation != "string":
        raise expression.token.error("a text in quotes is expected here")
    return re.sub(r"\\(.)", r"\1", expression.token.text[1:-1])


def arguments_of(call: Expression, count: int) -> tuple[Expression, ...]:
    """The arguments of a call, which have no names.

    Raises:
        EquationError: another number of arguments, or one with a name.
    """
    if len(call.arguments) != count or any(one.operation == "named" for one in call.arguments):
        raise call.token.error(f"{call.token.text}() takes {count} argument(s) without names here")
    return call.arguments


def terms_of(expression: Expression) -> list[Expression]:
    """The terms of a sum, from left to right; of anything else itself."""
    if expression.operation == "+":
        return [one for part in expression.arguments for one in terms_of(part)]
    return [expression]
