"""The equations of a population and of a residual error, as formulas with their numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from neuralpk.parameters import (
    CovariateEffect,
    ExponentialEffect,
    FactorEffect,
    LinearEffect,
    LogitNormal,
    LogNormal,
    Normal,
    NoVariability,
    ParameterDistribution,
    PopulationParameters,
    PowerEffect,
)
from neuralpk.parameters.covariates import MaturationEffect
from neuralpk.parameters.covariates import number as number_of
from neuralpk.report.dynamics_equations import EquationBlock
from neuralpk.report.mathml import (
    applied,
    brackets,
    element,
    equation,
    fraction,
    matrix,
    name,
    number,
    power,
    ratio,
    row,
    sign,
    sub,
)
from neuralpk.residual_error import (
    AdditiveError,
    CombinedError,
    ErrorByEndpoint,
    LogNormalError,
    ProportionalError,
    ResidualError,
)
from neuralpk.residual_error.student_t import StudentTError

_WIDEST_MATRIX = 8
_E = element("mi", "e")


def population_equations(population: PopulationParameters) -> EquationBlock:
    """The individual parameters by their typical values, covariate effects and random effects, and the distribution of
    these."""
    omega, kappa = population.omega_values(), population.kappa_values()
    effects: dict[str, list[CovariateEffect]] = {}
    for parameter, effect in population.effects_by_parameter():
        effects.setdefault(parameter, []).append(effect)
    formulas = []
    for parameter, value in population.typical_values().items():
        random = [sub("η", parameter)] if parameter in omega else []
        random += [sub("κ", parameter)] if parameter in kappa else []
        kind = population.distribution[parameter]
        kind = kind.inner if isinstance(kind, NoVariability) else kind
        formulas.append(_of_individual(name(parameter), kind, value, effects.get(parameter, []), random))
    said = []
    if omega:
        formulas.append(_normal("η", _omega_matrix(population, list(omega.values()))))
        said.append("η is the random effect of a patient")
        said += [f"those of {' and '.join(group)} have one standard deviation" for group in population.shared_omega]
    for parameter, value in kappa.items():
        formulas.append(_normal(sub("κ", parameter), power(number(value), number("2"))))
    if kappa:
        said.append("κ is that of an occasion of a patient" if said else "κ is the random effect of an occasion")
    note = ""
    if population.latent:
        note = f"{population.latent} latent dimensions of a patient, z, are standard normal"
        note += " and shifted by the covariates." if population.scaling.covariates else "."
    if len(omega) > _WIDEST_MATRIX:
        note = f"Ω is a matrix of {len(omega)} rows; its numbers are in the table. {note}".strip()
    return EquationBlock("Population", f"{', '.join(said)}." if said else "", tuple(formulas), note=note)


def _of_individual(
    left: Markup, kind: ParameterDistribution, typical: float, effects: Sequence[CovariateEffect], random: list[Markup]
) -> Markup:
    """The equation of one parameter of a patient."""
    if isinstance(kind, LogNormal):
        varied = [power(_E, _joined("+", random))] if random else []
        return equation(left, _joined("·", [number(typical), *(_factor(effect) for effect in effects), *varied]))
    shifts = [*(_shift(effect) for effect in effects), *random]
    if isinstance(kind, Normal):
        return equation(left, _joined("+", [number(typical), *shifts]))
    if isinstance(kind, LogitNormal):
        span = row(number(kind.high), sign("−"), left)

        def scale(value: str, above: str) -> Markup:
            return applied("log", fraction(row(value, sign("−"), number(kind.low)), above))

        right = scale(number(typical), row(number(kind.high), sign("−"), number(typical)))
        return equation(scale(left, span), _joined("+", [right, *shifts]))
    of = f"h of {type(kind).__name__}"
    return equation(applied(of, left), _joined("+", [applied(of, number(typical)), *shifts]))


def _joined(operator: str, parts: Sequence[Markup]) -> Markup:
    found: list[str] = []
    for part in parts:
        found += [sign(operator), part] if found else [part]
    return row(*found)


def _factor(effect: CovariateEffect) -> Markup:
    """What an effect multiplies a log-normal parameter by."""
    covariate = name(effect.covariates[0])
    if isinstance(effect, PowerEffect):
        return power(brackets(ratio(covariate, number(number_of(effect.reference)))), number(_number(effect)))
    if isinstance(effect, LinearEffect):
        return brackets(number("1"), sign("+"), number(_number(effect)), sign("·"), _distance(effect))
    if isinstance(effect, MaturationEffect):
        half, hill = (number(float(log.exp())) for log in (effect.log_half, effect.log_hill))
        share = fraction(power(covariate, hill), row(power(half, hill), sign("+"), power(covariate, hill)))
        if effect.reference is None:
            return share
        at = power(number(effect.reference), hill)
        return fraction(share, fraction(at, row(power(half, hill), sign("+"), at)))
    return power(_E, _shift(effect))


def _shift(effect: CovariateEffect) -> Markup:
    """What an effect adds on the scale of the random effect."""
    covariate = name(effect.covariates[0])
    if isinstance(effect, PowerEffect):
        return row(
            number(_number(effect)),
            sign("·"),
            applied("log", ratio(covariate, number(number_of(effect.reference)))),
        )
    if isinstance(effect, FactorEffect):
        return row(number(_number(effect)), sign("·"), covariate)
    if isinstance(effect, ExponentialEffect):
        return row(number(_number(effect)), sign("·"), _distance(effect))
    if isinstance(effect, LinearEffect | MaturationEffect):
        return applied("log", _factor(effect))
    inputs = [name(covariate) for covariate in effect.covariates]
    return applied("N" if "Network" in type(effect).__name__ else type(effect).__name__, *inputs)


def _number(effect: CovariateEffect) -> float:
    """The one coefficient of an effect, as it is reported."""
    held = effect.coefficients() | effect.fixed_coefficients()
    ((key, tensor),) = held.items()
    return number_of(effect.reported(key, tensor))


def _distance(effect: ExponentialEffect | LinearEffect) -> Markup:
    return brackets(name(effect.covariate), sign("−"), number(number_of(effect.reference)))


def _normal(left: str, variance: str) -> Markup:
    """A random effect of mean 0 and its variance."""
    symbol = left if isinstance(left, Markup) else element("mi", left)
    normal = row(element("mi", "N"), brackets(number("0"), sign(","), variance))
    return element("math", row(symbol, sign("∼"), normal), display="block")


def _omega_matrix(population: PopulationParameters, omega: list[float]) -> Markup:
    """The covariance matrix of the random effects, in the order of the parameters."""
    if len(omega) > _WIDEST_MATRIX:
        return element("mi", "Ω")
    names = list(population.omega_values())
    correlation = np.eye(len(omega))
    for (a, b), value in zip(population.pairs(), population.correlations().tolist(), strict=True):
        places = names.index(a), names.index(b)
        correlation[places] = correlation[places[::-1]] = value
    covariance = correlation * np.outer(omega, omega)
    if len(omega) == 1:
        return number(float(covariance[0, 0]))
    return matrix([[number(f"{value:.3g}") for value in line] for line in covariance])


def error_equations(error: ResidualError, outputs: Sequence[str], factor: str = "") -> EquationBlock:
    """How a value y is distributed around its prediction f.

    Args:
        error: of the model.
        outputs: name of each endpoint.
        factor: name of the parameter that multiplies the error of a patient; empty for none.
    """
    epsilon = element("mi", "ε")
    noise = row(name(factor), epsilon) if factor else epsilon
    models = error.models if isinstance(error, ErrorByEndpoint) else [error] * len(outputs)
    formulas, others = [], []
    for k, (one, output) in enumerate(zip(models, outputs, strict=False)):
        place = 0 if isinstance(error, ErrorByEndpoint) else k
        held = one.parameters_by_name() if one.numbers() else {}
        values = {key: value.detach().tolist() for key, value in held.items()}
        numbers = {key: number(value[min(place, len(value) - 1)]) for key, value in values.items() if value}
        if len(numbers) < len(one.names):
            continue
        right = _measured(one, numbers, noise)
        if right is None:
            said = ", ".join(f"{key} = {value[min(place, len(value) - 1)]:.4g}" for key, value in values.items())
            others.append(f"{output}: {type(one).__name__}, {said}")
            continue
        left = name("y") if len(outputs) == 1 else sub("y", output)
        formulas.append(equation(left, right))
    sentence = "y is a measured value, f its prediction and ε standard normal." if formulas else ""
    return EquationBlock("Residual error", sentence, tuple(formulas), note="; ".join(others))


def _measured(error: ResidualError, numbers: dict[str, Markup], noise: Markup) -> Markup | None:
    """The right side of the equation of a value; None for an error without a formula here."""
    f = element("mi", "f")
    if isinstance(error, AdditiveError):
        return row(f, sign("+"), numbers["a"], noise)
    if isinstance(error, ProportionalError):
        return row(f, sign("·"), brackets(number("1"), sign("+"), numbers["b"], noise))
    if isinstance(error, LogNormalError):
        return row(f, sign("·"), power(_E, row(numbers["b"], noise)))
    if isinstance(error, CombinedError | StudentTError):
        proportional = power(brackets(numbers["b"], f), number("2"))
        scale = element("msqrt", row(power(numbers["a"], number("2")), sign("+"), proportional))
        if isinstance(error, CombinedError):
            return row(f, sign("+"), scale, noise)
        return row(f, sign("+"), scale, sub("t", f"{error.freedom:g}"))
    return None
