"""Individual parameters: which variables of a model are a typical value with a random effect and covariate effects.

A variable such as ``exp(tcl + eta.cl + cov.cl*log(WT/70))`` is a log-normal parameter, if theta, eta and coefficients
stand in no other line. All other thetas and etas are parameters of their own, and what is computed from them stays an
equation.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from neuralpk.dynamics.expression import Token
from neuralpk.parameters import (
    CovariateEffect,
    ExponentialEffect,
    LogitNormal,
    LogNormal,
    Normal,
    ParameterDistribution,
    PowerEffect,
)
from neuralpk.rxode2.initial_values import InitialValues, Theta, expit, exponential
from neuralpk.rxode2.model_block import FRACTION, INITIAL, LAG, ModelBlock
from neuralpk.rxode2.parameter_forms import Effect, Form, Forms, Logit, Product, Sum, as_product, has_numbers


@dataclass(frozen=True)
class IndividualParameter:
    """A parameter of the equations.

    Args:
        name: as in the model.
        token: where it stands.
        typical: in its unit.
        low: lower end of its interval.
        high: upper end.
        eta: its random effect, empty for none.
        fixed: whether the typical value keeps its value.
        effects: of covariates.
        label: what it is.
        replaces: key of the variable, or ``F depot``, whose expression it is; empty for a theta or an eta itself.
    """

    name: str
    token: Token
    typical: float
    low: float
    high: float
    eta: str
    fixed: bool
    effects: tuple[CovariateEffect, ...]
    label: str
    replaces: str

    @property
    def distribution(self) -> ParameterDistribution:
        """Its distribution between subjects, or the scale on which it is estimated."""
        if (self.low, self.high) == (0.0, math.inf):
            return LogNormal()
        return LogitNormal(self.low, self.high) if math.isfinite(self.high) else Normal()


class _Search:
    """The individual parameters of one model."""

    def __init__(self, model: ModelBlock, numbers: InitialValues, measured: set[str]) -> None:
        self.model, self.numbers, self.measured = model, numbers, measured
        self.expressions = dict(model.expressions())
        self.used = Counter(token.text for one in self.expressions.values() for token in one.names())
        self.used.update(measured)
        self.forms = Forms(numbers.thetas, numbers.etas, model.covariates)
        for key, expression in model.variables.items():
            self.forms.variables[key] = self.forms.of(expression)
        self.claimed: set[str] = set()
        self.found: dict[str, IndividualParameter] = {}

    def run(self) -> None:
        # the last lines first: where a parameter is computed in several, it is the result
        candidates = [*reversed(self.model.variables), *self._of_states()]
        for key in candidates:
            expression = self.expressions[key]
            direct = {token.text for token in expression.names()}
            known = {*self.numbers.thetas, *self.numbers.etas, *self.model.covariates}
            if direct & known and key not in self.claimed and key not in self.measured:
                self._try(key, self.forms.of(expression))

    def _of_states(self) -> list[str]:
        return [
            f"{kind} {state}"
            for kind in (FRACTION, LAG, INITIAL)
            for state, expression in self.model.of_states[kind].items()
            if expression.operation not in ("number", "name")
        ]

    def _try(self, key: str, form: Form) -> None:
        if isinstance(form, Sum) and not (form.thetas or form.etas):
            form = as_product(form)
        if isinstance(form, Product):
            total, natural = form.exponent, form.thetas
        elif isinstance(form, Logit | Sum):
            total, natural = form.exponent if isinstance(form, Logit) else form, ()
        else:
            return
        thetas = (*natural, *total.thetas)
        coefficients = [one.theta for one in total.effects if one.theta]
        covariates = [one.covariate for one in total.effects]
        names = [*thetas, *total.etas, *coefficients]
        if len(thetas) > 1 or len(total.etas) > 1 or not (thetas or total.etas):
            return
        if any(self.used[one] != 1 for one in names) or len(set(covariates)) < len(covariates):
            return
        logarithms = [self.numbers.thetas[one.theta].value for one in total.effects if one.of_logarithm]
        inside = self._inside(key)
        references = [one.reference for one in total.effects if one.kind == "power"]
        if inside is None or not all(value > 0 for value in (*logarithms, *references)):
            return
        theta = self.numbers.thetas[thetas[0]] if thetas else None
        place = self._place(form, total, theta, bool(natural))
        if place is None:
            return
        typical, low, high = place
        eta = total.etas[0] if total.etas else ""
        effects = tuple(self._effect(one) for one in total.effects)
        name = key.split(" ")[0] if key in self.model.variables else f"{key.replace(' ', '_').lower()}"
        fixed = theta is None or theta.fixed
        label = theta.label if theta is not None else ""
        token = self.model.places[key] if key in self.model.places else self.expressions[key].token
        self.claimed |= {key, *inside, *names}
        self.found[key] = IndividualParameter(name, token, typical, low, high, eta, fixed, effects, label, key)

    def _inside(self, key: str) -> set[str] | None:
        """Variables with a theta or an eta from which it is computed; None where one of them has another use."""
        found: set[str] = set()
        open_keys = [key]
        while open_keys:
            for token in self.expressions[open_keys.pop()].names():
                inner = token.text
                form = self.forms.variables.get(inner)
                if inner in self.model.variables and inner not in found and has_numbers(form):
                    if self.used[inner] != 1 or inner in self.claimed:
                        return None
                    found.add(inner)
                    open_keys.append(inner)
        return found

    def _place(self, form: Form, total: Sum, theta: Theta | None, natural: bool) -> tuple[float, float, float] | None:
        """Typical value and interval; None where there is no such parameter.

        Args:
            form: of the parameter.
            total: its sum on the scale of h.
            theta: of the typical value; None for none.
            natural: whether theta is a factor and not in the sum.
        """
        if theta is not None and form == Sum(thetas=total.thetas):
            return own_interval(theta, self.numbers)
        low, high, value = -math.inf, math.inf, 0.0 if theta is None or natural else theta.value
        exact = theta is not None and not natural and total.constant == 0
        if isinstance(form, Product):
            low, scale = 0.0, form.factor * (theta.value if theta is not None and natural else 1.0)
            typical = scale * (theta.exp() if exact and theta is not None else exponential(total.constant + value))
        elif isinstance(form, Logit):
            low, high = form.low, form.high
            shifted = total.constant + value
            typical = theta.expit(low, high) if exact and theta is not None else expit(shifted, low, high)
        else:
            typical = total.constant + value
        if not low < typical < high:
            return None
        positive = natural and theta is not None and (theta.low, theta.high) == (0.0, math.inf)
        if theta is not None and theta.bounded and not positive:
            _note_bounds(theta, self.numbers)
        return typical, low, high

    def _effect(self, effect: Effect) -> CovariateEffect:
        theta = self.numbers.thetas.get(effect.theta)
        if theta is not None and theta.bounded:
            _note_bounds(theta, self.numbers)
        value = 1.0 if theta is None else theta.value
        coefficient = effect.factor * (math.log(value) if effect.of_logarithm else value)
        fixed = theta is None or theta.fixed
        if effect.kind == "power":
            return PowerEffect(effect.covariate, effect.reference, coefficient, fixed)
        return ExponentialEffect(effect.covariate, effect.reference, coefficient / effect.divisor, fixed)


def _note_bounds(theta: Theta, numbers: InitialValues) -> None:
    note = f"the bounds ({theta.low:g}, {theta.high:g}) of {theta.token.text} (line {theta.token.line}) are not used"
    if note not in numbers.notes:
        numbers.notes.append(note)


def own_interval(theta: Theta, numbers: InitialValues) -> tuple[float, float, float]:
    """Value and interval of a theta that is a parameter of the equations itself."""
    finite = math.isfinite(theta.low), math.isfinite(theta.high)
    if theta.low < theta.value < theta.high and (all(finite) or (theta.low, theta.high) == (0.0, math.inf)):
        return theta.value, theta.low, theta.high
    if theta.bounded:
        _note_bounds(theta, numbers)
    positive = theta.low >= 0 and theta.value > 0
    return theta.value, 0.0 if positive else -math.inf, math.inf


def individual_parameters(model: ModelBlock, numbers: InitialValues, measured: set[str]) -> list[IndividualParameter]:
    """The parameters of a model, in the order in which their lines stand.

    Args:
        model: its statements.
        numbers: of ``ini()``.
        measured: keys of the variables that are endpoints.

    Raises:
        EquationError: a number of ``ini()`` that is not used.
    """
    search = _Search(model, numbers, measured)
    search.run()
    found = list(search.found.values())
    for name, theta in numbers.thetas.items():
        if name not in search.claimed:
            if not search.used[name]:
                raise theta.token.error(f"{name} is not used in model()")
            value, low, high = own_interval(theta, numbers)
            found.append(IndividualParameter(name, theta.token, value, low, high, "", theta.fixed, (), theta.label, ""))
    for name, eta in numbers.etas.items():
        if name not in search.claimed:
            if not search.used[name]:
                raise eta.token.error(f"{name} is not used in model()")
            found.append(IndividualParameter(name, eta.token, 0.0, -math.inf, math.inf, name, True, (), "", ""))
    return sorted(found, key=lambda one: (one.token.line, one.token.column))
