"""Text of a model: its statements, one a line, and what they say together."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from neuralpk.dynamics.equation_text import RESERVED, TIME, EquationReader, hint, tokens_of_line
from neuralpk.dynamics.expression import TOO_NESTED, Expression, Token
from neuralpk.dynamics.network_text import NetworkOptions
from neuralpk.dynamics.units import check_units, read_unit
from neuralpk.residual_error import ERROR_NAMES, Assay, error_class

_OF_DOSES = {
    "lag": "a lag",
    "F": "a bioavailability",
    "rate": "the rate of an infusion",
    "duration": "the duration of an infusion",
}
"""What is given of the doses into a state."""
_DOSE_WORDS = {**{name: name for name in _OF_DOSES}, "alag": "lag", "f": "F", "dur": "duration"}


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
    rates: dict[str, Expression]
    durations: dict[str, Expression]
    variables: dict[str, Expression]  # in an order in which each can be computed from those before it
    outputs: tuple[str, ...]
    assays: tuple[Assay, ...]  # of the outputs
    networks: dict[str, Expression]  # by the name of the line in which each stands
    fixed: tuple[str, ...]  # parameters whose typical value is known
    units: dict[str, str]  # as they are written, of the names that have one


def _assay(line: EquationReader, output: str) -> Assay:
    """How an output is measured: ``error(NAME = number, …) lloq number``, from behind its ~."""
    token = line.name("a residual error")
    if token.text not in ERROR_NAMES:
        raise token.error(
            f"there is no residual error {token.text!r}{hint(token.text, ERROR_NAMES)}; there are "
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
                nearly = hint(name.text, known)
                raise name.error(f"the {token.text} error has no {name.text!r}{nearly}; it has {', '.join(known)}")
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
        tokens = tokens_of_line(line, number)
        if tokens[0].kind != "end":
            try:
                model.read(EquationReader(tokens))
            except RecursionError:
                raise tokens[0].error(TOO_NESTED) from None
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
        self.units: dict[str, tuple[Token, Token]] = {}  # name and unit, by name
        self.of_state: dict[str, dict[str, tuple[Token, Expression]]] = {kind: {} for kind in ("(0)", *_OF_DOSES)}

    def read(self, line: EquationReader) -> None:
        """One statement."""
        first = line.next
        lists = {
            "parameters": self._parameter, "covariates": self._covariate, "states": self._listed,
            "outputs": self._output, "units": self._named_unit,
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
        elif first.text in _DOSE_WORDS and line.tokens[1].text == "(":
            line.at = 2
            name = line.name("a state")
            line.need(")")
            self._of_state(line, _DOSE_WORDS[first.text], name)
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

    def _parameter(self, line: EquationReader) -> None:
        name = line.name("a parameter")
        self._define(name)
        line.need("=")
        at = line.next
        start, low, high = line.signed_number(), 0.0, float("inf")
        self._unit(line, name)
        if line.take("in"):
            low, high = line.interval(at)
        if not low < start < high:
            raise at.error(
                f"{name.text} = {start:g} is not between {low:g} and {high:g}: write {name.text} = … in (…, …)"
            )
        self.parameters[name.text] = Parameter(name, start, low, high)

    def _covariate(self, line: EquationReader) -> None:
        name = line.name("a covariate")
        self._define(name)
        at, value = line.next, None
        if line.take("="):
            at, value = line.next, line.signed_number()
            if math.isinf(value):
                raise at.error(f"the value of {name.text} where it is not recorded is a finite number")
        self._unit(line, name)
        self.covariates[name.text] = value

    def _unit(self, line: EquationReader, name: Token) -> bool:
        """The unit of a name, if one stands here."""
        unit = line.unit()
        if unit is None:
            return False
        if name.text in self.units:
            raise unit.error(f"the unit of {name.text} is given already, in line {self.units[name.text][1].line}")
        read_unit(unit)
        self.units[name.text] = (name, unit)
        return True

    def _named_unit(self, line: EquationReader) -> None:
        name = line.name("a state, a variable or the time t")
        if not self._unit(line, name):
            raise line.next.expected(f"the unit of {name.text}, such as [mg/L],")

    def _listed(self, line: EquationReader) -> None:
        name = line.name("a state")
        if name.text in self.listed:
            raise name.error(f"{name.text} is listed twice")
        self.listed[name.text] = name

    def _output(self, line: EquationReader) -> None:
        name = line.name("an output")
        if name.text in self.outputs:
            raise name.error(f"{name.text} is an output already")
        self.outputs[name.text] = name
        self.assays.append(_assay(line, name.text) if line.take("~") else Assay(name.text))

    def _slope(self, line: EquationReader, name: Token) -> None:
        self._define(name)
        line.need("=")
        self.slopes[name.text] = (name, line.expression())

    def _of_state(self, line: EquationReader, kind: str, name: Token) -> None:
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
                    raise token.error(f"there is no state {name!r}{hint(name, states)}")
        networks = self._networks()
        factors = tuple(self._factor(expression.options) for expression in networks.values() if expression.options)
        fixed = tuple(name for name in factors if name)
        self._check_names(states)
        order = self._ordered()
        varying = self._depending(order, {*states, TIME})
        inconstant = self._depending(order, {*states, TIME, *self.parameters, *self.covariates})
        for expression in networks.values():
            for argument in expression.arguments:
                if not any(token.text in inconstant for token in argument.names()):
                    raise argument.token.error(
                        "an input of a network changes with time or between patients, and this is a constant"
                    )
        timed = self._depending(order, {TIME})
        for kind, what in (("(0)", "an initial value"), *_OF_DOSES.items()):
            for expression in self._given(kind).values():
                for token in expression.names():
                    if token.text in varying:
                        raise token.error(
                            f"{what} depends on parameters and covariates alone, and {token.text} changes with time"
                        )
        outputs = (*self.outputs,)
        for name, token in self.outputs.items():
            if name not in states and name not in self.variables:
                raise token.error(f"there is no state or variable {name!r}{hint(name, (*states, *self.variables))}")
            if name in timed:
                raise token.error(f"an output cannot depend on {TIME}; write a state clock' = 1 and use it instead")
        if not outputs:
            raise last.error("which value is measured? Write outputs: NAME, …")
        for name, (token, _) in self.units.items():
            known = (TIME, *states, *self.variables, *self.parameters, *self.covariates)
            if name not in known:
                raise token.error(f"there is no state or variable {name!r}{hint(name, known)}")
        model = ModelText(
            parameters=self.parameters,
            covariates=self.covariates,
            states=states,
            slopes={name: self.slopes[name][1] for name in states},
            initial=self._given("(0)"),
            lags=self._given("lag"),
            fractions=self._given("F"),
            rates=self._given("rate"),
            durations=self._given("duration"),
            variables={name: self.variables[name] for name in order},
            outputs=outputs,
            assays=(*self.assays,),
            networks=networks,
            fixed=fixed,
            units={name: unit.text[1:-1].strip() for name, (_, unit) in self.units.items()},
        )
        if self.units or any(any(expression.numbers_with_units()) for expression in self._all()):
            check_units(model, {name: unit for name, (_, unit) in self.units.items()}, self.defined, TIME)
        return model

    def _given(self, kind: str) -> dict[str, Expression]:
        """What is given of some states, by their names."""
        return {name: expression for name, (_, expression) in self.of_state[kind].items()}

    def _all(self) -> Iterator[Expression]:
        yield from (expression for _, expression in self._lines())

    def _lines(self) -> Iterator[tuple[str, Expression]]:
        """Expressions with the name on their left side."""
        yield from ((name, expression) for name, (_, expression) in self.slopes.items())
        yield from self.variables.items()
        for kind in self.of_state.values():
            yield from ((name, expression) for name, (_, expression) in kind.items())

    def _networks(self) -> dict[str, Expression]:
        """Networks by the name of their line; a number follows it from the second of a name on."""
        found: dict[str, Expression] = {}
        for name, expression in self._lines():
            for network in expression.networks():
                number = 1 + sum(one == name or one.startswith(f"{name} ") for one in found)
                found[name if number == 1 else f"{name} {number}"] = network
        return found

    def _factor(self, options: NetworkOptions) -> str | None:
        """Declare the parameter that multiplies the output of a network, of typical value 1."""
        if options.random is None:
            return None
        self._define(options.random)
        self.parameters[options.random.text] = Parameter(options.random, 1.0, 0.0, math.inf)
        return options.random.text

    def _check_names(self, states: tuple[str, ...]) -> None:
        known = {*self.parameters, *self.covariates, *self.variables, *states, TIME}
        used = set()
        for expression in self._all():
            for token in expression.names():
                used.add(token.text)
                if token.text not in known:
                    raise token.error(
                        f"{token.text!r} is not known{hint(token.text, known)}. Parameters are declared by "
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
