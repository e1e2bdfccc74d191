"""A dynamics that is written as its equations."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from neuralpk.dynamics.dynamics_base import Dynamics
from neuralpk.dynamics.equation_text import TIME
from neuralpk.dynamics.expression import Expression, Token
from neuralpk.dynamics.expression_value import as_tensor, value_of
from neuralpk.dynamics.function_text import OfParameters, Start, declared, text_of_function
from neuralpk.dynamics.linear_form import CONSTANT, LinearForm, Number, linear_slopes
from neuralpk.dynamics.model_text import ModelText, read_model
from neuralpk.dynamics.network_terms import NetworkTerm
from neuralpk.dynamics.typical_course import typical_course
from neuralpk.part import did_you_mean
from neuralpk.scaling import Scaling

_LIBRARY = resources.files("neuralpk.dynamics") / "library"


def _template(theta: Tensor) -> Tensor:
    """A tensor ``[...]`` of the shape of one parameter."""
    return theta[..., 0] if theta.shape[-1] else theta.sum(-1)


def library() -> list[str]:
    """Names of the models that ship with the package as equations."""
    return sorted(path.name.removesuffix(".txt") for path in _LIBRARY.iterdir() if path.name.endswith(".txt"))


class Equations(Dynamics):
    """A dynamics written as its equations, one a line::

        parameters: KA = 1, CL = 0.13, V = 8, LAG = 0.5, IMAX = 0.9 in (0, 1)
        depot' = -KA*depot                    # or: d/dt(depot) = -KA*depot
        central' = KA*depot - CL/V*central
        C = central/V                         # a variable; here the concentration
        R' = 2*(1 - IMAX*C/(3 + C)) - 0.1*R
        R(0) = 20                             # without such a line a state starts at 0
        lag(depot) = LAG
        F(depot) = 0.8                        # also rate(central) = R1 and duration(depot) = D1, for RATE -1 and -2
        outputs: C ~ proportional(b = 0.2) lloq 0.05, R      # what is measured: DVID 1, DVID 2

    - Parameters have a starting value. They are positive and log-normal between subjects unless an interval is given:
      ``IMAX = 0.9 in (0, 1)`` is logit-normal, ``E0 = -2 in (-inf, inf)`` normal.
    - States are numbered (CMT) in the order of their equations, or of a line ``states: …``.
    - Operators: ``+ - * / ^`` (or ``**``), comparisons, ``and or not``. Functions: exp, log, log10, log1p, expm1, sqrt,
      abs, tanh, sin, cos, pow(x, n), min, max, hill(x, EC50, gamma) and where(condition, yes, no).
    - An output may say its residual error (`neuralpk.residual_error.ERROR_NAMES`), with starting values in parentheses,
      and its limit of quantification: values below are censored where the table has no CENS.
    - ``network(C, A, hidden=8)`` is a network of one hidden layer (`NetworkTerm`), learned with all else.
    - ``t`` is the time since the first record of a subject.
    - ``covariates: WT, AGE = 40`` makes columns of the data names of the equations; the number is for a subject in whom
      the covariate is not recorded. They are the last components of theta.
    - Units are optional: ``CL = 5 [L/h]``, ``70 [kg]``, ``units: t [h], C [mg/L]``. Equations have to fit those given.
    - A variable that depends on parameters and covariates alone is reported with the parameters, as a derived quantity.

    The equations are compiled at their first use. Doses (bolus, infusion, lag, F, steady state), resets and covariates
    that change in time are those of every other dynamics.

    Args:
        text: the equations.
        file: a file with the equations.
        model: the name of a model of the library (`library`).

    Attributes:
        text: the equations.
        networks: the networks in them, each with the name of the variable or state in whose line it stands.

    Raises:
        EquationError: a mistake in the text, with its line and column.
        ValueError: not exactly one of the three; a file or a model that does not exist.
    """

    def __init__(self, text: str | None = None, file: str | None = None, model: str | None = None) -> None:
        super().__init__()
        if sum(given is not None for given in (text, file, model)) != 1:
            raise ValueError("Equations takes one of text, file and model")
        if file is not None:
            if not Path(file).is_file():
                raise ValueError(f"there is no file {file}")
            text = Path(file).read_text(encoding="utf-8")
        if model is not None:
            if model not in library():
                raise ValueError(
                    f"there is no model {model!r}{did_you_mean(model, library())}; there are {', '.join(library())}"
                )
            text = (_LIBRARY / f"{model}.txt").read_text(encoding="utf-8")
        assert text is not None  # one of the three was given
        # a checkpoint holds the equations, so that it can be loaded where there is no such file
        self.arguments = {"text": text}
        self.text = text
        self._model = read_model(text)
        m = self._model
        self.states, self.parameter_names = m.states, (*m.parameters, *m.covariates)
        self.covariates = m.covariates
        self.fixed, self.units = m.fixed, m.units
        self.ranges = {name: (p.low, p.high) for name, p in m.parameters.items() if (p.low, p.high) != (0.0, math.inf)}
        self.autonomous = not any(token.text == TIME for token in _names(m))
        self._linear_slopes = linear_slopes(m)
        self.linear = self._linear_slopes is not None
        self.dosed = not m.initial
        self._slots = _slots(m)
        self.endpoints = tuple(self._slots[name] for name in m.outputs)
        self.assays = m.assays
        self.with_rate, self.with_duration = tuple(m.rates), tuple(m.durations)
        self.networks = nn.ModuleList(
            NetworkTerm(name, len(one.arguments), one.options) for name, one in m.networks.items() if one.options
        )

    @classmethod
    def from_function(
        cls,
        function: Callable[..., Mapping[str, Any]],
        parameters: Mapping[str, Start],
        outputs: Sequence[str],
        initial: OfParameters | None = None,
        lag: OfParameters | None = None,
        bioavailability: OfParameters | None = None,
        rate: OfParameters | None = None,
        duration: OfParameters | None = None,
    ) -> Equations:
        """The dynamics of a Python function, which runs once, on symbols, and is written as text::

            def turnover(state, parameter, t):
                C = state.central/parameter.V
                return {"depot": -parameter.KA*state.depot, …}

            Equations.from_function(turnover, {"KA": 1.0, "IMAX": (0.9, 0, 1)}, outputs=["C", "response"])

        Its local variables are those of the text. Loops of a fixed length unroll. Arithmetic, powers, comparisons, ``&
        | ~``, the functions of `neuralpk.dynamics.symbols`, and those of numpy and torch with the same names are
        translated.

        Args:
            function: of the states, the parameters and, if it has a third argument, the time; states and parameters are
                read by name, ``state.central`` or ``state["central"]``. Returns the slope of each state by its name, in
                the order in which the states are numbered.
            parameters: starting values by name, or (start, low, high) of a parameter between two ends.
            outputs: names of states and local variables of the function: DVID 1, DVID 2, …
            initial: initial value by state: numbers, or a function of the parameters that returns them.
            lag: time between a dose and its arrival, likewise.
            bioavailability: share of a dose that arrives, likewise.
            rate: of infusions with RATE -1, likewise.
            duration: of infusions with RATE -2, likewise.

        Raises:
            FunctionError: what cannot be written as text, with the line in which it stands.
            EquationError: a text that is no model.
        """
        return cls(text_of_function(function, parameters, outputs, initial, lag, bioavailability, rate, duration))

    def _evaluate(self, expression: Expression, known: Mapping[str, Number]) -> Number:
        places = (one.token for one in self._model.networks.values())
        return value_of(expression, known, dict(zip(places, self.terms(), strict=True)))

    def terms(self) -> list[NetworkTerm]:
        """The networks, in the order of `networks`."""
        return [one for one in self.networks if isinstance(one, NetworkTerm)]

    def build(self, scaling: Scaling) -> None:
        super().build(scaling)
        time = self.units.get(TIME, scaling.units.time)
        if time != scaling.units.time:
            warnings.warn(
                f"the equations have the time in {time} and the data in {scaling.units.time}: the starting values and "
                "units of the parameters are those of the text; write them for the unit of the data, or name that unit "
                "(units) if it is another",
                stacklevel=2,
            )
        if len(self.networks):
            for term, (sizes, signed) in zip(self.terms(), self._input_ranges(scaling), strict=True):
                term.build(sizes, signed)

    def _input_ranges(self, scaling: Scaling) -> list[tuple[list[float], list[bool]]]:
        """Typical magnitude of every input of each network, and whether it has both signs: of a measured output the
        median of its values, of others a third of the largest value along the course of a typical patient at the
        starting values."""
        exact = copy.deepcopy(self).cpu().double()
        covariates = [scaling.covariate(name).centre for name in self.covariates]
        theta = torch.tensor([*self.guess(scaling).values(), *covariates], dtype=torch.float64)
        t, y = typical_course(exact, theta, scaling)
        measured = dict(zip(self._model.outputs, scaling.value, strict=False))
        found = []
        for term, one in zip(self.terms(), self._model.networks.values(), strict=True):
            inputs = exact.network_inputs(term.name, t, y, theta.expand(len(t), -1))
            sizes, signed = [], []
            for number, (argument, values) in enumerate(zip(one.arguments, inputs, strict=True)):
                zero = (term.zero_at or 0.0) if number == 0 else 0.0
                size = abs(measured.get(argument.token.text, zero) - zero) if argument.operation == "name" else 0.0
                distance = (values - zero).nan_to_num(0.0, 0.0, 0.0)
                size = size or float(distance.abs().max()) / 3.0
                if not size:
                    warnings.warn(
                        f"input {number + 1} of the network in {term.name!r} does not move at the starting values; the "
                        "network reads it in its own unit",
                        stacklevel=4,
                    )
                sizes.append(size or 1.0)
                signed.append(bool(distance.min() < -0.1 * distance.abs().max()))
            found.append((sizes, signed))
        return found

    def network_inputs(self, name: str, t: Tensor, y: Tensor, theta: Tensor) -> list[Tensor]:
        """The inputs of a network, each ``[...]``, by its name in `networks`.

        Args:
            name: of the network.
            t: time since the first record, ``[...]``.
            y: states, ``[..., state]``.
            theta: parameters, ``[..., parameter]``.

        Raises:
            ValueError: no network of this name.
        """
        if name not in self._model.networks:
            raise ValueError(f"there is no network {name!r}{did_you_mean(name, [*self._model.networks])}")
        known = self._known(theta, t, y)
        arguments = self._model.networks[name].arguments
        return [as_tensor(self._evaluate(argument, known), y[..., 0]) for argument in arguments]

    def term(self, name: str, **values: Tensor | float) -> Tensor:
        """The value of a variable of the text for given values of the names on which it depends, as in
        ``term("effect", C=torch.linspace(0, 5, 100))``.

        Args:
            name: of the variable.
            values: by name: states, variables, parameters, covariates, ``t``; their shapes broadcast. The factor of a
                network with ``random`` is 1 where it is left out.

        Raises:
            ValueError: no variable of this name; a value that is missing or not needed.
        """
        m = self._model
        if name not in m.variables:
            raise ValueError(f"there is no variable {name!r}{did_you_mean(name, [*m.variables])}")
        names = (*m.states, *self.parameter_names, *m.variables, TIME)
        unknown = [one for one in values if one not in names or one == name]
        if unknown:
            raise ValueError(f"{unknown[0]} has no value here{did_you_mean(unknown[0], [*names])}")
        like = next(iter(self.parameters()), torch.zeros(()))
        known: dict[str, Number] = {
            one: torch.as_tensor(value, dtype=like.dtype, device=like.device)
            for one, value in (dict.fromkeys(m.fixed, 1.0) | values).items()
        }
        self._add_variables(known)
        if name not in known:
            missing = dict.fromkeys(token.text for token in m.variables[name].names() if token.text not in known)
            raise ValueError(f"{name} depends on {', '.join(missing)}: give a value for each")
        return torch.as_tensor(known[name], dtype=like.dtype, device=like.device)

    def with_formula(self, name: str, formula: str, parameters: Mapping[str, Start]) -> Equations:
        """The model with a formula in place of a network and its factor::

            model.with_formula("effect", "EMAX*{x}/(EC50 + {x})", {"EMAX": (0.9, 0, 1), "EC50": 2.0})

        Args:
            name: of the network.
            formula: in the names of the text and those of the new parameters; ``{x}`` is the first input.
            parameters: starting values of the new parameters, or (start, low, high) of one between two ends.

        Raises:
            ValueError: no network of this name.
            EquationError: a text that is no model.
        """
        if name not in self._model.networks:
            raise ValueError(f"there is no network {name!r}{did_you_mean(name, [*self._model.networks])}")
        token = self._model.networks[name].token
        lines = self.text.splitlines()
        line, begin = lines[token.line - 1], token.column - 1
        first, end = _call(line, begin)
        source = line[line.index("(", begin) + 1 : first].strip()
        inside = formula.replace("{x}", source if source.isidentifier() else f"({source})")
        lines[token.line - 1] = f"{line[:begin]}({inside}){line[end:]}"
        if line[:begin].rstrip().endswith("=") and not line[end:].split("#")[0].strip():
            lines[token.line - 1] = f"{line[:begin]}{inside}{line[end:]}"
        return Equations("\n".join([*lines, declared(parameters), ""]))

    def log_prior(self) -> Tensor | float:
        return sum((term.log_prior() for term in self.terms()), 0.0)

    def centre_prior(self) -> None:
        for term in self.terms():
            term.centre_prior()

    def magnitudes(self) -> list[Tensor]:
        return [weight for term in self.terms() for weight in term.magnitudes()]

    def _known(self, theta: Tensor, t: Tensor | None = None, y: Tensor | None = None) -> dict[str, Number]:
        """The values of all names, as far as they follow from what is given."""
        known: dict[str, Number] = dict(self.named(theta))
        if y is not None:
            known |= dict(zip(self.states, y.unbind(-1), strict=True))
        if t is not None:
            known[TIME] = t
        self._add_variables(known)
        return known

    def _add_variables(self, known: dict[str, Number]) -> None:
        """Add the variables that follow from the values that are known."""
        for name, expression in self._model.variables.items():
            if name not in known and all(token.text in known for token in expression.names()):
                known[name] = self._evaluate(expression, known)

    def _at_states(self, values: Mapping[str, Expression], theta: Tensor, otherwise: float) -> Tensor:
        """Values ``[..., state]`` that depend on parameters and covariates alone."""
        if not values:
            return theta.new_full((*theta.shape[:-1], len(self.states)), otherwise)
        known, like = self._known(theta), _template(theta)
        found = (self._evaluate(values[name], known) if name in values else otherwise for name in self.states)
        return torch.stack([as_tensor(value, like) for value in found], dim=-1)

    def forward(self, t: Tensor, y: Tensor, theta: Tensor) -> Tensor:
        known = self._known(theta, t, y)
        slopes = (self._evaluate(expression, known) for expression in self._model.slopes.values())
        return torch.stack([as_tensor(slope, y[..., 0]) for slope in slopes], dim=-1)

    def _coefficients(self, theta: Tensor) -> list[Mapping[str, Number]]:
        """Those of every slope, if all are linear in the states (`LinearForm`)."""
        known: dict[str, Any] = dict(self.named(theta))
        known |= {name: LinearForm({name: 1.0}) for name in self.states}
        for name in self._linear_slopes.variables if self._linear_slopes else ():
            known[name] = self._evaluate(self._model.variables[name], known)
        slopes: list[Any] = [self._evaluate(expression, known) for expression in self._model.slopes.values()]
        return [slope.coefficients if isinstance(slope, LinearForm) else {CONSTANT: slope} for slope in slopes]

    def rate_matrix(self, theta: Tensor) -> Tensor:
        if not self.linear:
            return super().rate_matrix(theta)
        like = _template(theta)
        rows = [[as_tensor(row.get(name, 0.0), like) for name in self.states] for row in self._coefficients(theta)]
        return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)

    def forcing(self, theta: Tensor) -> Tensor | None:
        if self._linear_slopes is None or not self._linear_slopes.forced:
            return None
        constants = [as_tensor(row.get(CONSTANT, 0.0), _template(theta)) for row in self._coefficients(theta)]
        return torch.stack(constants, dim=-1)

    def initial_state(self, theta: Tensor) -> Tensor:
        return self._at_states(self._model.initial, theta, 0.0)

    def lag(self, theta: Tensor) -> Tensor | None:
        return self._at_states(self._model.lags, theta, 0.0) if self._model.lags else None

    def bioavailability(self, theta: Tensor) -> Tensor | None:
        return self._at_states(self._model.fractions, theta, 1.0) if self._model.fractions else None

    def infusion_rate(self, theta: Tensor) -> Tensor | None:
        return self._at_states(self._model.rates, theta, math.nan) if self._model.rates else None

    def infusion_duration(self, theta: Tensor) -> Tensor | None:
        return self._at_states(self._model.durations, theta, math.nan) if self._model.durations else None

    def observe(self, y: Tensor, theta: Tensor) -> Tensor:
        """The outputs, each at its place; the other states as they are, ``[..., state]``; further outputs after them.

        An output that depends on one state alone, such as central/V, takes the place of that state.
        """
        known = self._known(theta, None, y)
        values = list(y.unbind(-1)) + [y[..., 0]] * (max(self._slots.values()) + 1 - y.shape[-1])
        for name, slot in self._slots.items():
            values[slot] = as_tensor(known[name], y[..., 0])
        return torch.stack(values, dim=-1)

    def derived(self, theta: Tensor) -> dict[str, Tensor]:
        """The variables that depend on parameters and covariates alone."""
        known = self._known(theta)
        return {
            name: value for name, value in known.items() if name in self._model.variables and isinstance(value, Tensor)
        }

    def guess(self, scaling: Scaling) -> dict[str, float]:
        """The starting values of the text, whatever the data are."""
        return {name: parameter.start for name, parameter in self._model.parameters.items()}


def _call(line: str, begin: int) -> tuple[int, int]:
    """Where the first argument of a call ends, and the place behind the call."""
    depth, first = 0, -1
    for place in range(line.index("(", begin), len(line)):
        depth += {"(": 1, ")": -1}.get(line[place], 0)
        if first < 0 and (depth == 0 or (depth == 1 and line[place] == ",")):
            first = place
        if depth == 0:
            return first, place + 1
    raise AssertionError("the text has been read, so that its parentheses are in pairs")


def _names(model: ModelText) -> Iterable[Token]:
    for expression in (*model.slopes.values(), *model.variables.values()):
        yield from expression.names()


def _slots(model: ModelText) -> dict[str, int]:
    """The place of each output: that of the one state on which it depends, if no other output has it."""
    states = {name: {name} for name in model.states}
    for name, expression in model.variables.items():
        states[name] = set().union(*(states.get(token.text, set()) for token in expression.names()))
    slots: dict[str, int] = {}
    for name in model.outputs:
        own = model.states.index(min(states[name])) if len(states[name]) == 1 else -1
        further = len(model.states) + sum(slot >= len(model.states) for slot in slots.values())
        slots[name] = own if own >= 0 and own not in slots.values() else further
    return slots
