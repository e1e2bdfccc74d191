"""Import: from the function of a model to its equations, its population and its residual errors."""

from __future__ import annotations

import re
from itertools import chain, count
from pathlib import Path

from neuralpk.dynamics import Equations
from neuralpk.dynamics.equation_text import RESERVED, TIME
from neuralpk.dynamics.expression import EquationError, Expression
from neuralpk.dynamics.symbols import as_text
from neuralpk.residual_error import Assay
from neuralpk.rxode2.error_lines import ErrorLine, read_error_line
from neuralpk.rxode2.expression_text import equation_text
from neuralpk.rxode2.individual_parameters import IndividualParameter, individual_parameters
from neuralpk.rxode2.initial_values import InitialValues, read_initial_values
from neuralpk.rxode2.model_block import (
    DURATION,
    FRACTION,
    INITIAL,
    LAG,
    RATE,
    SLOPE,
    ModelBlock,
    read_model_block,
)
from neuralpk.rxode2.model_function import ModelFunction, read_model_function
from neuralpk.rxode2.rxode_model import RxodeModel


def import_rxode2(model: str | Path) -> RxodeModel:
    """Read a model that is written as a function of rxode2 or nlmixr2.

    Args:
        model: the text of the function in R, or the path of a file with it.

    Raises:
        FileNotFoundError: no file at the path.
        EquationError: a part of the function that is not read, by its name, with its line and column and why.
    """
    if isinstance(model, Path) or ("\n" not in model and model.endswith((".R", ".r"))):
        model = Path(model).read_text(encoding="utf-8")
    function = read_model_function(model)
    numbers = read_initial_values(function.initial)
    block = read_model_block(function.model, {*numbers.thetas, *numbers.etas})
    lines = [read_error_line(endpoint, numbers) for endpoint in block.endpoints]
    _take_out(lines, block, numbers)
    return _Translation(function, block, numbers, lines).made()


def _take_out(lines: list[ErrorLine], block: ModelBlock, numbers: InitialValues) -> None:
    """Take the numbers of the residual errors from those of the model."""
    used = {token.text: token for _, expression in block.expressions() for token in expression.names()}
    seen: set[str] = set()
    for line in lines:
        for name in line.thetas:
            if name in used:
                raise used[name].error(f"{name} is a standard deviation of the residual error and cannot be used here")
            theta = numbers.thetas[name]
            if name in seen:
                numbers.notes.append(f"{name} stands in several error lines; each has a number of its own in a fit")
            elif theta.low > 0 or theta.high < float("inf"):
                numbers.notes.append(f"the bounds ({theta.low:g}, {theta.high:g}) of {name} are not used")
            seen.add(name)
        if line.fixed and not line.all_fixed:
            numbers.notes.append(
                f"of the error of {line.endpoint.token.text} (line {line.endpoint.token.line}) "
                f"{', '.join(sorted(line.fixed))} is fixed; a fit estimates all its numbers"
            )
    for name in seen:
        del numbers.thetas[name]


class _Translation:
    """From the statements of a function to a model."""

    def __init__(
        self, function: ModelFunction, block: ModelBlock, numbers: InitialValues, lines: list[ErrorLine]
    ) -> None:
        self.function, self.block, self.numbers, self.lines = function, block, numbers, lines
        self.measured = [line.endpoint.value for line in lines]
        self.notes = [*function.notes, *block.notes]
        self.parameters = individual_parameters(block, numbers, {*self.measured} - {*block.states})
        self.replaced = {one.replaces: one for one in self.parameters if one.replaces}
        self.variables = {key: one for key, one in block.variables.items() if key not in self.replaced}
        self._leave_out_leading()
        self._leave_out_unused()
        self.names = self._names()

    def _used(self) -> set[str]:
        """Names in the expressions that are not individual parameters."""
        expressions = [*self.variables.values()]
        for kind, given in self.block.of_states.items():
            expressions += [one for state, one in given.items() if f"{kind} {state}" not in self.replaced]
        return {token.text for one in expressions for token in one.names()} | {*self.measured}

    def _leave_out_leading(self) -> None:
        """Leave out the variables that only lead to an individual parameter."""
        of_covariates = self._of_covariates()
        while True:
            used = self._used()
            # what led to a parameter holds numbers that are now its own
            gone = [
                key
                for key, one in self.variables.items()
                if key not in used and (key in of_covariates or self._holds_claimed(one))
            ]
            if not gone:
                return
            for key in gone:
                del self.variables[key]

    def _holds_claimed(self, expression: Expression) -> bool:
        own = {one.name for one in self.parameters if not one.replaces}
        numbers = ({*self.numbers.thetas} | {*self.numbers.etas}) - own
        gone = {*self.block.variables} - {*self.variables} - {*self.replaced}
        return any(token.text in numbers or token.text in gone for token in expression.names())

    def _of_covariates(self) -> set[str]:
        """Variables that depend on covariates and numbers alone."""
        found: set[str] = set()
        for key, expression in self.variables.items():
            if all(token.text in self.block.covariates or token.text in found for token in expression.names()):
                found.add(key)
        return found

    def _leave_out_unused(self) -> None:
        """Parameters that no equation uses."""
        used = self._used()
        for one in list(self.parameters):
            if one.replaces in self.block.variables and one.replaces not in used:
                self.notes.append(f"{one.name} (line {one.token.line}) is not used in any equation and is left out")
                self.parameters.remove(one)

    # ---- names

    def _names(self) -> dict[str, str]:
        """What states, parameters and variables are called in the equations, by their keys."""
        names: dict[str, str] = {}
        taken: set[str] = {TIME, *RESERVED}
        in_equations = self._used()
        for covariate, token in self.block.covariates.items():
            if covariate in in_equations:
                if covariate in taken or not re.fullmatch(r"[A-Za-z_]\w*", covariate):
                    raise token.error(f"a covariate {covariate!r} cannot be named in our equations: rename the column")
                taken.add(covariate)

        seen, renamed = {*self.measured, *self.replaced}, list[str]()

        def give(key: str, wanted: str) -> None:
            legal = re.sub(r"^(?=\d|_)|\W", "_", wanted).lstrip("_") or "x"
            legal = f"x{legal}" if legal[0].isdigit() else legal
            candidates = chain((legal, f"{legal}_"), (f"{legal}_{k}" for k in count(1)))
            names[key] = next(one for one in candidates if one not in taken)
            taken.add(names[key])
            if names[key] != wanted and (key in seen or " " not in key):
                renamed.append(f"{wanted} is {names[key]}")

        for state in self.block.states:
            give(state, state)
        last = {*self.block.last.values()}
        keys = [one.replaces or one.name for one in self.parameters]
        keys += [key for key in self.variables if key not in keys]
        for key in sorted(keys, key=lambda key: key not in last and " " in key):
            parameter = self.replaced.get(key)
            give(key, parameter.name if parameter is not None else key.split(" ")[0])
        if renamed:
            self.notes.append(f"names that differ: {', '.join(renamed)}")
        return names

    def called(self, parameter: IndividualParameter) -> str:
        """What a parameter is called in the equations."""
        return self.names[parameter.replaces or parameter.name]

    # ---- text

    def text(self) -> str:
        """The equations."""
        self._check()
        lines = [f"# {line}" for line in (self.function.name, *self.function.said.values()) if line]
        for one in self.parameters:
            positive = (one.low, one.high) == (0.0, float("inf"))
            interval = "" if positive else f" in ({as_text(one.low)}, {as_text(one.high)})"
            comment = f"  # {' '.join(one.label.split())}" if one.label else ""
            lines.append(f"parameters: {self.called(one)} = {as_text(one.typical)}{interval}{comment}")
        covariates = [name for name in self.block.covariates if name in self._used()]
        if covariates:
            lines.append(f"covariates: {', '.join(covariates)}")
        lines.append(f"states: {', '.join(self.names[state] for state in self.block.states)}")
        for key, expression in self.variables.items():
            lines.append(f"{self.names[key]} = {equation_text(expression, self.names)}")
        forms = {SLOPE: "{}'", INITIAL: "{}(0)", LAG: "lag({})", FRACTION: "F({})"}
        forms |= {RATE: "rate({})", DURATION: "duration({})"}
        for kind, form in forms.items():
            for state in self.block.states:
                if state in self.block.of_states[kind]:
                    key = f"{kind} {state}"
                    expression = self.block.of_states[kind][state]
                    value = self.names[key] if key in self.replaced else equation_text(expression, self.names)
                    lines.append(f"{form.format(self.names[state])} = {value}")
        lines.append(f"outputs: {', '.join(map(self._output, self.lines))}")
        return "\n".join(lines) + "\n"

    def _output(self, line: ErrorLine) -> str:
        """An output with its residual error; without it where it is fixed, because a text has starting values."""
        name = self.names[line.endpoint.value]
        if line.all_fixed:
            return name
        return f"{name} ~ {line.error}({', '.join(f'{key} = {as_text(value)}' for key, value in line.values.items())})"

    def _check(self) -> None:
        """Refuse what equations cannot have, where it stands in the function."""
        timed, varying = {TIME}, {TIME, *self.block.states}
        for key, expression in self.variables.items():
            for found in (timed, varying):
                if any(token.text in found for token in expression.names()):
                    found.add(key)
        for line in self.lines:
            if line.endpoint.value in timed:
                raise line.endpoint.token.error(
                    f"{line.endpoint.token.text} depends on the time itself, and what is measured cannot: add a "
                    "compartment d/dt(clock) = 1 and use clock"
                )
        what = {INITIAL: "an initial value", LAG: "a lag", FRACTION: "a bioavailability"}
        for kind, said in what.items():
            for expression in self.block.of_states[kind].values():
                for token in expression.names():
                    if token.text in varying:
                        name = token.text.split(" ")[0]
                        raise token.error(f"{said} depends on parameters alone, and {name} changes with time")

    # ---- numbers

    def made(self) -> RxodeModel:
        """The model."""
        text = self.text()
        try:
            Equations(text)
        except EquationError as mistake:
            place = self.function.model.token
            raise place.error(f"the equations of this model are refused: {mistake}") from None
        named = {self.called(one): one for one in self.parameters}
        of_eta = {one.eta: name for name, one in named.items() if one.eta}
        sd = {name: self.numbers.etas[one.eta].sd for name, one in named.items() if one.eta}
        omega = {name: value for name, value in sd.items() if value > 0}
        fixed = [name for name, one in named.items() if one.fixed]
        fixed += [f"omega {name}" for name in omega if self.numbers.etas[named[name].eta].fixed]
        blocks = [[of_eta[eta] for eta in block if of_eta.get(eta) in omega] for block in self.numbers.blocks]
        blocks = [block for block in blocks if len(block) > 1]
        if len(blocks) > 1:
            self.notes.append("a fit estimates the correlations of all random effects in a block with any other block")
        correlation = {
            (of_eta[a], of_eta[b]): value
            for (a, b), value in self.numbers.correlations.items()
            if a in of_eta and b in of_eta
        }
        outputs = [self.names[line.endpoint.value] for line in self.lines]
        self._say_endpoints()
        return RxodeModel(
            name=self.function.name,
            text=text,
            typical={name: one.typical for name, one in named.items()},
            omega=omega,
            correlation=correlation,
            correlated=tuple(name for block in blocks for name in block),
            effects={name: one.effects for name, one in named.items() if one.effects},
            distributions={name: one.distribution for name, one in named.items()},
            fixed=(*fixed,),
            errors=(*(Assay(name, line.error, line.values) for name, line in zip(outputs, self.lines, strict=True)),),
            fixed_errors=tuple(name for name, line in zip(outputs, self.lines, strict=True) if line.all_fixed),
            units=self.function.units,
            description=self.function.said,
            labels={name: " ".join(one.label.split()) for name, one in named.items() if one.label},
            notes=(*dict.fromkeys((*self.notes, *self.numbers.notes)),),
        )

    def _say_endpoints(self) -> None:
        if self.block.covariates:
            self.notes.append(f"columns of covariates: {', '.join(self.block.covariates)}")
        if len(self.lines) > 1:
            called = [self.names[line.endpoint.value] + (f" ({line.name})" if line.name else "") for line in self.lines]
            self.notes.append("endpoints: " + ", ".join(f"DVID {k} is {name}" for k, name in enumerate(called, 1)))
        states = ", ".join(f"{k} {self.names[state]}" for k, state in enumerate(self.block.states, 1))
        self.notes.append(f"compartments (CMT): {states}")
