"""Export: a model with its population as a function for rxode2 and nlmixr2."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from itertools import chain, count

from neuralpk.dynamics.compartments import CompartmentModel
from neuralpk.dynamics.equation_text import TIME
from neuralpk.dynamics.expression import Expression
from neuralpk.dynamics.model_text import ModelText, read_model
from neuralpk.dynamics.symbols import as_text
from neuralpk.parameters import (
    CovariateEffect,
    ExponentialEffect,
    FactorEffect,
    LogitNormal,
    LogNormal,
    Normal,
    PowerEffect,
)
from neuralpk.parameters.covariates import number
from neuralpk.population_model import PopulationModel
from neuralpk.published_population import PublishedPopulation
from neuralpk.rxode2.compartment_text import names_in_text
from neuralpk.rxode2.expression_text import r_text
from neuralpk.rxode2.model_block import reserved_name
from neuralpk.rxode2.rxode_model import RxodeModel

_ERRORS = {
    "additive": "add({a})",
    "proportional": "prop({b})",
    "combined": "add({a}) + prop({b})",
    "log_normal": "lnorm({b})",
    "student": "add({a}) + prop({b}) + t({freedom})",
}
_NUMBERS = {"a": "add.sd", "b": "prop.sd", "freedom": "nu"}


def export_rxode2(model: RxodeModel | PublishedPopulation | PopulationModel, name: str = "") -> str:
    """Write a model as a function for rxode2 and nlmixr2.

    Args:
        model: an imported model, a population file, or a fitted model; its dynamics are `Equations` or a
            `CompartmentModel`.
        name: of the function; default that of an imported model, else ``model``.

    Returns:
        The text of the function, in R.

    Raises:
        ValueError: a part that such a function cannot have, by name.
    """
    if isinstance(model, PopulationModel):
        model = _of_model(model)
    if isinstance(model, PublishedPopulation):
        model = RxodeModel.of_population(model)
    return _Function(model, name or model.name or "model").text()


def _of_model(model: PopulationModel) -> RxodeModel:
    """A fitted model, with what a population file does not hold: fixed numbers, which correlations are estimated and
    which omegas are one number."""
    found, population = RxodeModel.of_population(PublishedPopulation.from_model(model)), model.population
    renamed = names_in_text(model.dynamics) if isinstance(model.dynamics, CompartmentModel) else {}

    def written(names: Iterable[str]) -> tuple[str, ...]:
        return tuple(renamed.get(name, name) for name in names)

    paired = {one for pair in population.pairs() for one in pair}
    effects: dict[str, tuple[CovariateEffect, ...]] = {}
    for parameter, effect in population.effects_by_parameter():
        (name,) = written([parameter])
        effects[name] = (*effects.get(name, ()), effect.fitted())
    fixed_omegas = written(name for name in population.varying if f"omega {name}" in population.fixed)
    fixed_values = written(name for name in population.names if name in population.fixed)
    return replace(
        found,
        fixed=(*fixed_values, *(f"omega {name}" for name in fixed_omegas)),
        correlated=written(name for name in population.varying if name in paired),
        effects=effects,
        shared_omega=tuple(written(group) for group in population.shared_omega),
    )


class _Function:
    """The lines of a function."""

    def __init__(self, model: RxodeModel, name: str) -> None:
        self.model, self.name = model, name
        self.text_of: ModelText = read_model(model.text)
        self.taken: set[str] = set()
        own = (*self.text_of.states, *self.text_of.parameters, *self.text_of.variables)
        for covariate in (*self.text_of.covariates, *self._covariates_of_effects()):
            if reserved_name(covariate) or not re.fullmatch(r"[A-Za-z.][\w.]*", covariate):
                raise ValueError(f"a function of rxode2 cannot have a covariate {covariate!r}: rename the column")
            self.taken.add(covariate)
        self.names = {one: self._free(one) for one in own}
        self.etas: dict[str, str] = {}  # names of the random effects, by parameter
        self.initial: list[str] = []
        self.lines: list[str] = []

    def _covariates_of_effects(self) -> Iterable[str]:
        return (name for effects in self.model.effects.values() for one in effects for name in one.covariates)

    def _free(self, wanted: str) -> str:
        """A name of R that nothing else has."""
        name = wanted.lstrip("_") or "x"
        name = f"x{name}" if name[0].isdigit() else name
        candidates = chain((name, f"{name}."), (f"{name}.{k}" for k in count(1)))
        found = next(one for one in candidates if one not in self.taken and not reserved_name(one))
        self.taken.add(found)
        return found

    def text(self) -> str:
        """The function."""
        for parameter in self.text_of.parameters:
            self._parameter(parameter)
        self._random_effects()
        self._equations()
        for assay in self.model.errors:
            self._error(assay.output)
        said = [f"  {key} <- {_quoted(words)}" for key, words in self.model.description.items()]
        units = self.model.units
        said.append(
            f"  units <- list(time = {_quoted(units.time)}, dosing = {_quoted(units.amount)}, concentration = "
            f"{_quoted(units.value)})"
        )
        ini = [f"    {line}" for line in self.initial]
        lines = [f"    {line}" for line in self.lines]
        return "\n".join(
            [f"{self.name} <- function() {{", *said, "  ini({", *ini, "  })", "  model({", *lines, "  })", "}", ""]
        )

    def _number(self, name: str, value: str, fixed: bool, label: str = "") -> None:
        said = f"; label({_quoted(label)})" if label else ""
        self.initial.append(f"{name} <- {f'fix({value})' if fixed else value}{said}")

    def _parameter(self, parameter: str) -> None:
        model, name = self.model, self.names[parameter]
        typical, kind = model.typical[parameter], model.distributions[parameter]
        written = _digits(typical)
        form = "{}"
        if type(kind) is LogNormal:
            written, form = f"log({written})", "exp({})"
        elif type(kind) is LogitNormal:
            bounds = f"{_digits(kind.low)}, {_digits(kind.high)}"
            written, form = f"logit({written}, {bounds})", f"expit({{}}, {bounds})"
        elif type(kind) is not Normal:
            raise ValueError(f"{parameter} has the distribution {type(kind).__name__}, which rxode2 does not have")
        terms = []
        if parameter in model.omega:
            self.etas[parameter] = self._free(f"eta.{name}")
            terms.append(self.etas[parameter])
        # a random effect that is a parameter of its own has no typical value
        if not (terms and type(kind) is Normal and typical == 0 and parameter in model.fixed):
            theta = self._free(f"t{name}")
            self._number(theta, written, parameter in model.fixed, model.labels.get(parameter, ""))
            terms.insert(0, theta)
        for effect in model.effects.get(parameter, ()):
            terms.append(self._effect(name, effect))
        self.lines.append(f"{name} <- {form.format(' + '.join(terms))}")

    def _effect(self, parameter: str, effect: CovariateEffect) -> str:
        if isinstance(effect, PowerEffect):
            reference = number(effect.reference)
            value, of = number(effect.exponent), f"log({effect.covariate}/{_digits(reference)})"
        elif isinstance(effect, FactorEffect):
            value, of = number(effect.log_factor), effect.covariate
        elif isinstance(effect, ExponentialEffect):
            reference = number(effect.reference)
            of = effect.covariate if reference == 0 else f"({effect.covariate} - {_digits(reference)})"
            value = number(effect.reported("slope", effect.scaled_slope))
        else:
            raise ValueError(f"{parameter} has the covariate effect {type(effect).__name__}, which has no formula here")
        coefficient = self._free(f"{parameter}.{effect.covariate}")
        self._number(coefficient, _digits(value), effect.fixed)
        return f"{coefficient}*{of}"

    def _random_effects(self) -> None:
        model = self.model
        in_block = {*model.correlated, *(one for pair in model.correlation for one in pair)}
        block = [name for name in model.omega if name in in_block]
        for parameters in (*([name] for name in model.omega if name not in in_block), block):
            if not parameters:
                continue
            fixed = [name for name in parameters if f"omega {name}" in model.fixed]
            if fixed and len(fixed) < len(parameters):
                raise ValueError(f"omega {fixed[0]} is fixed and correlated with one that is not: rxode2 fixes a block")
            rows = [(a, b) for k, a in enumerate(parameters) for b in parameters[: k + 1]]
            numbers = ", ".join(_digits(self._covariance(a, b)) for a, b in rows)
            value = f"c({numbers})" if len(rows) > 1 else numbers
            etas = " + ".join(self.etas[name] for name in parameters)
            self.initial.append(f"{etas} ~ {f'fix({value})' if fixed else value}")
        for group in model.shared_omega:
            said = " and ".join(self.etas[name] for name in group)
            self.initial.append(f"# {said} have one variance; a fit of this function estimates one of each")

    def _covariance(self, a: str, b: str) -> float:
        correlation: Mapping[tuple[str, str], float] = self.model.correlation
        if a == b:
            return _variance(self.model.omega[a])
        share = correlation.get((a, b), correlation.get((b, a), 0.0))
        product = self.model.omega[a] * self.model.omega[b]
        return _shortest(share * product, lambda one: one / product == share)

    def _equations(self) -> None:
        text, names = self.text_of, self.names
        if text.units:
            units = ", ".join(f"{names.get(name, name)} [{unit}]" for name, unit in text.units.items())
            self.lines.append(f"# units: {units}")
        every = (text.slopes, text.variables, text.initial, text.lags, text.fractions, text.rates, text.durations)
        if any(token.text == TIME for given in every for one in given.values() for token in one.names()):
            self.lines.append(f"# {TIME} counts from the first record of a subject")
        for variable, expression in text.variables.items():
            self._equation(names[variable], expression)
        for form, given in (
            ("d/dt({})", text.slopes),
            ("{}(0)", text.initial),
            ("alag({})", text.lags),
            ("f({})", text.fractions),
            ("rate({})", text.rates),
            ("dur({})", text.durations),
        ):
            for state, expression in given.items():
                self._equation(form.format(names[state]), expression)

    def _equation(self, left: str, right: Expression) -> None:
        units = ", ".join(dict.fromkeys(right.numbers_with_units()))
        self.lines.append(f"{left} <- {r_text(right, self.names)}{units and f'  # {units}'}")

    def _error(self, output: str) -> None:
        (assay,) = (one for one in self.model.errors if one.output == output)
        error, name = str(assay.error), self.names[output]
        prefix = "" if len(self.model.errors) == 1 else f"{name}."
        thetas = {}
        for key, value in assay.values.items():
            wanted = "lnorm.sd" if error == "log_normal" else _NUMBERS[key]
            thetas[key] = self._free(f"{prefix}{wanted}")
            self._number(thetas[key], _digits(value), output in self.model.fixed_errors or key == "freedom")
        if assay.lloq is not None:
            said = f"values of {name} below {_digits(assay.lloq)} are censored: here CENS of the data says it"
            self.lines.append(f"# {said}")
        self.lines.append(f"{name} ~ {_ERRORS[error].format(**thetas)}")


def _digits(value: float) -> str:
    """A number that reads back as itself."""
    if not math.isfinite(value):
        raise ValueError(f"a model with the number {value} cannot be written")
    return as_text(value)


def _variance(sd: float) -> float:
    return _shortest(sd * sd, lambda one: math.sqrt(one) == sd)


def _shortest(value: float, reads_back: Callable[[float], bool]) -> float:
    """The shortest rounded value from which the import computes the exact number; the value where there is none."""
    candidates = (float(f"{value:.{digits}g}") for digits in (14, 15, 16))
    return next(filter(reads_back, candidates), value)


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
