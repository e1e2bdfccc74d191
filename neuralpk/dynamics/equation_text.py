"""Text of a model: its grammar, and its statements as trees with the places where they stand.

No text is evaluated by Python. Operations are those of a closed list.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from neuralpk.residual_error import ERROR_NAMES, Assay, error_class

FUNCTIONS = {
    "exp": 1, "log": 1, "log10": 1, "log1p": 1, "expm1": 1, "sqrt": 1, "abs": 1, "tanh": 1, "sin": 1, "cos": 1,
    "pow": 2, "min": 2, "max": 2, "hill": 3, "where": 3,
}  # fmt: skip
"""Names of the functions and the number of their arguments."""
TIME = "t"
MOST_NESTED = 150
"""Most operations within each other: an expression is read and evaluated by recursion."""
_TOO_NESTED = "too many operations within each other: give a part of them a name, in a line of its own"
RESERVED = {
    *FUNCTIONS,
    TIME,
    "parameters",
    "covariates",
    "states",
    "outputs",
    "lag",
    "alag",
    "F",
    "f",
    "and",
    "or",
    "not",
    "in",
}
_TOKEN = re.compile(
    r"(?P<number>(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?)|(?P<name>[A-Za-z_]\w*)"
    r"|(?P<sign>\*\*|<=|>=|==|!=|[-+*/^()<>=,:'~])|(?P<space>\s+)|(?P<other>.)"
)
_COMPARISONS = ("<", "<=", ">", ">=", "==", "!=")


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


@dataclass(frozen=True)
class Expression:
    """A number, a name, or an operation on other expressions; `token` is where it stands."""

    operation: str
    arguments: tuple[Expression, ...]
    token: Token
    depth: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "depth", 1 + max((argument.depth for argument in self.arguments), default=0))
        if self.depth > MOST_NESTED:
            raise self.token.error(_TOO_NESTED)

    def names(self) -> Iterator[Token]:
        """Names in it, in order, with repetitions."""
        if self.operation == "name":
            yield self.token
        for argument in self.arguments:
            yield from argument.names()


@dataclass(frozen=True)
class Parameter:
    """A declared parameter: name, starting value, and the open interval in which it lies."""

    token: Token
    start: float
    low: float
    high: float


@dataclass
class ModelText:
    """The statements of a model, by the name on their left side."""

    parameters: dict[str, Parameter]
    covariates: dict[str, float | None]
    states: tuple[str, ...]
    slopes: dict[str, Expression]
    initial: dict[str, Expression]
    lags: dict[str, Expression]
    fractions: dict[str, Expression]
    variables: dict[str, Expression]  # in an order in which each can be computed from those before it
    outputs: tuple[str, ...]
    assays: tuple[Assay, ...]  # of the outputs


def _tokens(line: str, number: int) -> list[Token]:
    code = line.split("#", 1)[0]
    found = []
    for match in _TOKEN.finditer(code):
        kind = str(match.lastgroup) if match.lastgroup in ("name", "sign", "space", "other") else "number"
        token = Token(kind, match.group(), number, match.start() + 1, line)
        if kind == "other":
            raise token.error(f"the character {token.text!r} has no meaning here")
        if kind != "space":
            found.append(token)
    end = Token("end", "", number, len(code.rstrip()) + 1, line)
    return [*found, end]


class _Reader:
    """The tokens of one statement, read from left to right."""

    def __init__(self, tokens: list[Token]) -> None:
        self.tokens, self.at = tokens, 0

    @property
    def next(self) -> Token:
        return self.tokens[self.at]

    def take(self, *texts: str) -> Token | None:
        """The next token, if it is one of these; else None, and nothing is taken."""
        if self.next.kind != "end" and self.next.text in texts:
            self.at += 1
            return self.tokens[self.at - 1]
        return None

    def need(self, text: str) -> Token:
        """The next token, which has to be this one."""
        found = self.take(text)
        if found is None:
            raise self.next.error(f"{text!r} is expected here, {_seen(self.next)}")
        return found

    def name(self, what: str) -> Token:
        """The next token, which has to be a name."""
        token = self.next
        if token.kind != "name":
            raise token.error(f"the name of {what} is expected here, {_seen(token)}")
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
            raise token.error(f"a number is expected here, {_seen(token)}")
        self.at += 1
        return sign * float(token.text)

    def end(self) -> None:
        """Nothing may follow."""
        if self.next.kind != "end":
            raise self.next.error(f"an operator or the end of the line is expected here, {_seen(self.next)}")

    def expression(self) -> Expression:
        """Operators from the weakest to the strongest: or, and, not, comparisons, + −, * /, sign, power."""
        return self._joined(("or",), lambda: self._joined(("and",), self._negation))

    def _joined(self, signs: tuple[str, ...], part: Callable[[], Expression]) -> Expression:
        left = part()
        while token := self.take(*signs):
            left = Expression(token.text, (left, part()), token)
        return left

    def _negation(self) -> Expression:
        if token := self.take("not"):
            return Expression("not", (self._negation(),), token)
        left = self._sum()
        if token := self.take(*_COMPARISONS):
            left = Expression(token.text, (left, self._sum()), token)
            if self.next.text in _COMPARISONS:
                raise self.next.error("two comparisons in a row: join them by 'and'")
        return left

    def _sum(self) -> Expression:
        return self._joined(("+", "-"), lambda: self._joined(("*", "/"), self._sign))

    def _sign(self) -> Expression:
        if token := self.take("-"):
            return Expression("negative", (self._sign(),), token)
        if self.take("+"):
            return self._sign()
        return self._power()

    def _power(self) -> Expression:
        base = self._atom()
        if token := self.take("^", "**"):
            return Expression("pow", (base, self._sign()), token)  # a^-b^c is a^(-(b^c))
        return base

    def _atom(self) -> Expression:
        token = self.next
        self.at += token.kind != "end"
        if token.kind == "number":
            return Expression("number", (), token)
        if token.text == "(":
            inside = self.expression()
            self.need(")")
            return inside
        if token.kind != "name" or token.text in ("and", "or", "not"):
            raise token.error(f"a number, a name or '(' is expected here, {_seen(token)}")
        if not self.take("("):
            if token.text in FUNCTIONS:
                raise token.error(f"{token.text} is a function: write {token.text}(…)")
            return Expression("name", (), token)
        if token.text not in FUNCTIONS:
            raise token.error(f"there is no function {token.text!r}{_hint(token.text, FUNCTIONS)}")
        arguments = [self.expression()]
        while self.take(","):
            arguments.append(self.expression())
        self.need(")")
        if len(arguments) != FUNCTIONS[token.text]:
            raise token.error(f"{token.text} takes {FUNCTIONS[token.text]} argument(s), not {len(arguments)}")
        return Expression(token.text, (*arguments,), token)


def _seen(token: Token) -> str:
    return "and the line ends" if token.kind == "end" else f"not {token.text!r}"


def _hint(name: str, known: Iterable[str]) -> str:
    known = list(known)
    close = difflib.get_close_matches(name, known, 1) or [k for k in known if k.lower() == name.lower()]
    return f"; did you mean {close[0]!r}?" if close else ""


def _assay(line: _Reader, output: str) -> Assay:
    """How an output is measured: ``error(NAME = number, …) lloq number``, from behind its ~."""
    token = line.name("a residual error")
    if token.text not in ERROR_NAMES:
        raise token.error(
            f"there is no residual error {token.text!r}{_hint(token.text, ERROR_NAMES)}; there are "
            f"{', '.join(ERROR_NAMES)}"
        )
    cls, values = error_class(token.text), dict[str, float]()
    known = (*cls.names, *cls.constants)
    if line.take("(") and not line.take(")"):
        while True:
            name = line.name(f"a number of the {token.text} error")
            if name.text in values:
                raise name.error(f"{name.text} is given twice")
            if name.text not in known:
                hint = _hint(name.text, known)
                raise name.error(f"the {token.text} error has no {name.text!r}{hint}; it has {', '.join(known)}")
            line.need("=")
            at = line.next
            values[name.text] = line.signed_number()
            if not 0 < values[name.text] < math.inf:
                raise at.error(f"{name.text} must be a positive number")
            if not line.take(","):
                break
        line.need(")")
    lloq = None
    if line.take("lloq"):
        at = line.next
        lloq = line.signed_number()
        if not math.isfinite(lloq) or (token.text == "log_normal" and lloq <= 0):
            raise at.error("a limit of quantification is a number, and above 0 where the values are log-normal")
    return Assay(output, token.text, values, lloq)


def read_model(text: str) -> ModelText:
    """The statements of a model.

    Args:
        text: one statement a line; what follows a # is a comment.

    Raises:
        EquationError: a mistake, with its line and column.
    """
    model = _Statements()
    last = Token("end", "", 1, 1, "")
    for number, line in enumerate(text.splitlines(), 1):
        tokens = _tokens(line, number)
        if tokens[0].kind != "end":
            try:
                model.read(_Reader(tokens))
            except RecursionError:
                raise tokens[0].error(_TOO_NESTED) from None
            last = tokens[-1]
    try:
        return model.finished(last)
    except RecursionError:
        raise last.error("a chain of too many variables: write each after those from which it is computed") from None


class _Statements:
    """The statements read so far."""

    def __init__(self) -> None:
        self.defined: dict[str, Token] = {}  # names that stand on a left side
        self.parameters: dict[str, Parameter] = {}
        self.covariates: dict[str, float | None] = {}
        self.listed: dict[str, Token] = {}
        self.outputs: dict[str, Token] = {}
        self.assays: list[Assay] = []
        self.slopes: dict[str, tuple[Token, Expression]] = {}
        self.variables: dict[str, Expression] = {}
        self.of_state: dict[str, dict[str, tuple[Token, Expression]]] = {"(0)": {}, "lag": {}, "F": {}}

    def read(self, line: _Reader) -> None:
        """One statement."""
        first = line.next
        lists = {
            "parameters": self._parameter, "covariates": self._covariate, "states": self._listed,
            "outputs": self._output,
        }  # fmt: skip
        if first.text in lists and line.tokens[1].text == ":":
            line.at = 2
            read = lists[first.text]
            read(line)
            while line.take(","):
                read(line)
        elif first.text == "d" and line.tokens[1].text == "/" and line.tokens[2].text == "dt":
            line.at = 3
            line.need("(")
            name = line.name("a state")
            line.need(")")
            self._slope(line, name)
        elif first.text in ("lag", "alag", "F", "f") and line.tokens[1].text == "(":
            line.at = 2
            name = line.name("a state")
            line.need(")")
            self._of_state(line, "lag" if first.text in ("lag", "alag") else "F", name)
        else:
            name = line.name("a state or a variable")
            if line.take("'"):
                self._slope(line, name)
            elif line.take("("):
                zero = line.next
                if zero.text != "0":
                    raise zero.error(f"an initial value is written {name.text}(0) = …")
                line.at += 1
                line.need(")")
                self._of_state(line, "(0)", name)
            else:
                self._define(name)
                line.need("=")
                self.variables[name.text] = line.expression()
        line.end()

    def _define(self, name: Token) -> None:
        if name.text in RESERVED:
            raise name.error(f"{name.text!r} has a meaning of its own and cannot be a name")
        if name.text in self.defined:
            raise name.error(f"{name.text} is defined already, in line {self.defined[name.text].line}")
        self.defined[name.text] = name

    def _parameter(self, line: _Reader) -> None:
        name = line.name("a parameter")
        self._define(name)
        line.need("=")
        at = line.next
        start, low, high = line.signed_number(), 0.0, float("inf")
        if line.take("in"):
            line.need("(")
            low = line.signed_number()
            line.need(",")
            high = line.signed_number()
            line.need(")")
        if math.isinf(low) != math.isinf(high) and (low, high) != (0.0, math.inf):
            raise at.error(f"an interval is (0, inf), (-inf, inf) or has two finite ends, not ({low:g}, {high:g})")
        if not low < start < high:
            raise at.error(
                f"{name.text} = {start:g} is not between {low:g} and {high:g}: write {name.text} = … in (…, …)"
            )
        self.parameters[name.text] = Parameter(name, start, low, high)

    def _covariate(self, line: _Reader) -> None:
        name = line.name("a covariate")
        self._define(name)
        at, value = line.next, None
        if line.take("="):
            at, value = line.next, line.signed_number()
            if math.isinf(value):
                raise at.error(f"the value of {name.text} where it is not recorded is a finite number")
        self.covariates[name.text] = value

    def _listed(self, line: _Reader) -> None:
        name = line.name("a state")
        if name.text in self.listed:
            raise name.error(f"{name.text} is listed twice")
        self.listed[name.text] = name

    def _output(self, line: _Reader) -> None:
        name = line.name("an output")
        if name.text in self.outputs:
            raise name.error(f"{name.text} is an output already")
        self.outputs[name.text] = name
        self.assays.append(_assay(line, name.text) if line.take("~") else Assay(name.text))

    def _slope(self, line: _Reader, name: Token) -> None:
        self._define(name)
        line.need("=")
        self.slopes[name.text] = (name, line.expression())

    def _of_state(self, line: _Reader, kind: str, name: Token) -> None:
        known = self.of_state[kind]
        if name.text in known:
            raise name.error(f"it is given already, in line {known[name.text][0].line}")
        line.need("=")
        known[name.text] = (name, line.expression())

    def finished(self, last: Token) -> ModelText:
        """The whole model, once all names are known."""
        if not self.slopes:
            raise last.error("a model needs at least one equation: NAME' = …")
        for name, token in self.listed.items():
            if name not in self.slopes:
                raise token.error(f"the state {name} has no equation: write {name}' = …")
        if self.listed:
            for name, (token, _) in self.slopes.items():
                if name not in self.listed:
                    raise token.error(f"{name} is not in the list of states")
        states = (*self.listed,) or (*self.slopes,)
        for given in self.of_state.values():
            for name, (token, _) in given.items():
                if name not in states:
                    raise token.error(f"there is no state {name!r}{_hint(name, states)}")
        self._check_names(states)
        order = self._ordered()
        varying = self._depending(order, {*states, TIME})
        timed = self._depending(order, {TIME})
        for kind, what in (("(0)", "an initial value"), ("lag", "a lag"), ("F", "a bioavailability")):
            for expression in self._given(kind).values():
                for token in expression.names():
                    if token.text in varying:
                        raise token.error(
                            f"{what} depends on parameters and covariates alone, and {token.text} changes with time"
                        )
        outputs = (*self.outputs,)
        for name, token in self.outputs.items():
            if name not in states and name not in self.variables:
                raise token.error(f"there is no state or variable {name!r}{_hint(name, (*states, *self.variables))}")
            if name in timed:
                raise token.error(f"an output cannot depend on {TIME}; write a state clock' = 1 and use it instead")
        if not outputs:
            raise last.error("which value is measured? Write outputs: NAME, …")
        return ModelText(
            parameters=self.parameters,
            covariates=self.covariates,
            states=states,
            slopes={name: self.slopes[name][1] for name in states},
            initial=self._given("(0)"),
            lags=self._given("lag"),
            fractions=self._given("F"),
            variables={name: self.variables[name] for name in order},
            outputs=outputs,
            assays=(*self.assays,),
        )

    def _given(self, kind: str) -> dict[str, Expression]:
        """What is given of some states, by their names."""
        return {name: expression for name, (_, expression) in self.of_state[kind].items()}

    def _all(self) -> Iterator[Expression]:
        yield from (expression for _, expression in self.slopes.values())
        yield from self.variables.values()
        yield from (expression for kind in self.of_state.values() for _, expression in kind.values())

    def _check_names(self, states: tuple[str, ...]) -> None:
        known = {*self.parameters, *self.covariates, *self.variables, *states, TIME}
        used = set()
        for expression in self._all():
            for token in expression.names():
                used.add(token.text)
                if token.text not in known:
                    raise token.error(
                        f"{token.text!r} is not known{_hint(token.text, known)}. Parameters are declared by "
                        f"parameters: NAME = value, covariates by covariates: NAME"
                    )
        for name, parameter in self.parameters.items():
            if name not in used:
                raise parameter.token.error(f"the parameter {name} is not used in any equation")
        for name in self.covariates:
            if name not in used:
                raise self.defined[name].error(f"the covariate {name} is not used in any equation")

    def _ordered(self) -> list[str]:
        """The variables, each after those from which it is computed."""
        order: dict[str, None] = {}
        path: list[str] = []

        def visit(name: str, token: Token) -> None:
            if name in order:
                return
            if name in path:
                raise token.error(f"{name} depends on itself: {' <- '.join([*path[path.index(name) :], name])}")
            path.append(name)
            for inside in self.variables[name].names():
                if inside.text in self.variables:
                    visit(inside.text, inside)
            path.pop()
            order[name] = None

        for name in self.variables:
            visit(name, self.defined[name])
        return list(order)

    def _depending(self, order: list[str], on: set[str]) -> set[str]:
        """Some names, and the variables that depend on them."""
        found = {*on}
        for name in order:
            if any(token.text in found for token in self.variables[name].names()):
                found.add(name)
        return found
