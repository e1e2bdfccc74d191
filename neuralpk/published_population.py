"""Published population models: the numbers of a paper or of a fit as a file, and a model that needs no training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast, get_args

import torch

from neuralpk.atomic_files import replacing
from neuralpk.cohort import Cohort, Units
from neuralpk.cohort_simulation import omega_from_cv
from neuralpk.dynamics import Absorption, CompartmentModel, Decoder, Elimination
from neuralpk.parameters import (
    RESIDUAL,
    CovariateEffect,
    Effects,
    ExponentialEffect,
    FactorEffect,
    LinearEffect,
    LogNormal,
    NetworkEffect,
    NoVariability,
    ParameterDistribution,
    PopulationParameters,
    PowerEffect,
    effect_of,
    plain_effect,
    power_or_factor,
)
from neuralpk.parameters.covariates import number
from neuralpk.part import describe, make
from neuralpk.plain_yaml import plain_yaml_text, read_yaml_text
from neuralpk.population_model import PopulationModel
from neuralpk.residual_error import ERROR_NAMES, ErrorByEndpoint, ResidualError, assays_read, error_class
from neuralpk.scaling import CovariateScale, Scaling
from neuralpk.solve import Auto

_KEYS = (
    "dynamics",
    "typical",
    "omega",
    "cv",
    "correlation",
    "effects",
    "outputs",
    "references",
    "distributions",
    "kappa",
    "occasions",
    "error",
    "error_sd",
    "units",
)
_NEEDED = ("dynamics", "typical", "error", "error_sd")
_DYNAMICS: dict[str, tuple[object, ...]] = {
    "compartments": (1, 2, 3),
    "absorption": get_args(Absorption),
    "elimination": get_args(Elimination),
    "transits": tuple(range(1, 21)),
    "lag": (False, True),
}
_ALIASES = {"VC": "V1", "VP": "V2"}
# nobody varies a hundred-thousandfold, nor by less than a percent: such numbers were meant in the other unit
_LARGEST_OMEGA, _SMALLEST_CV = 5.0, 1.0
_LARGEST_B = 3.0  # a proportional error of 300 %: percents were meant


@dataclass(frozen=True)
class PublishedPopulation:
    """Population model with all its numbers::

        theta_i = typical · exp(eta_i) · Π (c/reference)^effect · Π exp(effect·b)        eta_i ~ N(0, Omega)

    with continuous covariates c and covariates b that are 0 or 1. Other effects and distributions are those of
    `neuralpk.parameters`. On each occasion k of a patient kappa_ik ~ N(0, kappa²) is added to eta_i.

    Args:
        dynamics: compartments, absorption, elimination, transits and lag of a `CompartmentModel`, or ``class_path`` and
            ``init_args`` of other equations.
        typical: value of every parameter of the dynamics, in its order.
        omega: standard deviation of eta by parameter; those left out do not vary. RUV is a parameter too, the factor of
            the residual error, also of `kappa`, `correlation` and `effects`.
        correlation: (parameter, parameter) to the correlation of their etas; those left out have none.
        effects: (parameter, covariate) to the exponent of (c/reference), or for a 0-or-1 covariate the logarithm of its
            factor; or to another `CovariateEffect`.
        references: reference value by covariate, of all effects that are numbers and have one.
        error: short name of the residual error (`neuralpk.residual_error.ERROR_NAMES`); of endpoints with errors
            of their own one by endpoint.
        outputs: output of the dynamics that each endpoint reads, from 1; empty where endpoint k reads output k.
        error_sd: its standard deviations, ``a`` in the unit of the value, ``b`` relative; one dictionary by endpoint
            where `error` has several names.
        units: of the patients' table.
        distributions: by parameter; those left out are log-normal.
        kappa: standard deviation of kappa by parameter; those left out are the same on all occasions of a patient.
        occasions: column of the patients' table that says the occasion of each row; None for OCC.
    """

    dynamics: Mapping[str, Any]
    typical: Mapping[str, float]
    omega: Mapping[str, float]
    correlation: Mapping[tuple[str, str], float]
    effects: Mapping[tuple[str, str], float | CovariateEffect]
    references: Mapping[str, float]
    error: str | Sequence[str]
    error_sd: Mapping[str, float] | Sequence[Mapping[str, float]]
    units: Units = Units()  # noqa: RUF009  # a NamedTuple cannot be changed
    distributions: Mapping[str, ParameterDistribution] = field(default_factory=dict)
    kappa: Mapping[str, float] = field(default_factory=dict)
    occasions: str | None = None
    outputs: Sequence[int] = ()

    @classmethod
    def from_model(cls, model: PopulationModel, units: Units | None = None) -> PublishedPopulation:
        """The population of a fitted model; as `from_parts`."""
        return cls.from_parts(model.dynamics, model.population, model.error, units)

    def held(self) -> PopulationParameters:
        """The numbers as the fixed part of a larger model, such as that of a pharmacodynamics fitted after its
        pharmacokinetics: typical values, omega, kappa and effects keep their values, and parameters that are not here
        are estimated as usual.

        Raises:
            ValueError: correlated random effects, which cannot be held.
        """
        if self.correlation:
            pairs = ", ".join(f"{a}~{b}" for a, b in self.correlation)
            raise ValueError(f"correlations cannot be held, and here are {pairs}: fit without them")
        asked: dict[str, list[CovariateEffect]] = {}
        for (parameter, covariate), effect in self.effects.items():
            if not isinstance(effect, CovariateEffect):
                effect = power_or_factor(covariate, effect, self.references.get(covariate))
            asked.setdefault(parameter, []).append(effect)
        omega = dict.fromkeys(self.typical, 0.0) | dict(self.omega)
        spreads = [*(f"omega {name}" for name in self.omega), *(f"kappa {name}" for name in self.kappa)]
        return PopulationParameters(
            dict(self.typical),
            omega,
            distributions=dict(self.distributions),
            effects=cast(Effects, asked),
            fixed=[*self.typical, *spreads],
            kappa=dict(self.kappa),
            occasions=self.occasions,
        )

    def held_errors(self) -> list[ResidualError]:
        """The residual error of each endpoint with its numbers fixed, for an `ErrorByEndpoint` of a larger model."""
        if isinstance(self.error, str):
            pairs = [(self.error, cast(Mapping[str, float], self.error_sd))]
        else:
            pairs = [*zip(self.error, cast(Sequence[Mapping[str, float]], self.error_sd), strict=True)]
        options: list[tuple[str, dict[str, Any]]] = [(name, dict(values)) for name, values in pairs]
        return [error_class(name)(**values, fixed=True) for name, values in options]

    @classmethod
    def from_parts(
        cls,
        dynamics: Decoder,
        parameters: PopulationParameters,
        error: ResidualError,
        units: Units | None = None,
    ) -> PublishedPopulation:
        """The population of the fitted parts of a model.

        Args:
            dynamics: equations without learned weights.
            parameters: the fitted population.
            error: the fitted residual error.
            units: of the table that it was fitted to.

        Raises:
            ValueError: a part that a population file cannot hold, by name.
        """
        errors = _errors_of(error)
        fitted = [(name, effect.fitted()) for name, effect in parameters.effects_by_parameter()]
        powers = [effect for _, effect in fitted if isinstance(effect, PowerEffect)]
        references = {effect.covariate: number(effect.reference) for effect in reversed(powers)}
        effects: dict[tuple[str, str], float | CovariateEffect] = {}
        for parameter, effect in fitted:
            covariate = "+".join(effect.covariates)
            if isinstance(effect, PowerEffect) and references[covariate] == number(effect.reference):
                effects[parameter, covariate] = number(effect.exponent)
            elif isinstance(effect, FactorEffect) and covariate not in references and effect.level is None:
                effects[parameter, covariate] = number(effect.log_factor)
            else:
                effects[parameter, covariate] = effect
        pairs = zip(parameters.pairs(), parameters.correlations(), strict=True)
        return cls(
            dynamics=_dynamics_of(dynamics),
            typical={name: value for name, value in parameters.typical_values().items() if name != RESIDUAL},
            omega=parameters.omega_values(),
            correlation={pair: number(value) for pair, value in pairs},
            effects=effects,
            references=references,
            error=[name for name, _ in errors] if len(errors) > 1 else errors[0][0],
            error_sd=[values for _, values in errors] if len(errors) > 1 else errors[0][1],
            units=units or Units(),
            distributions=_uncommon(parameters.distribution),
            kappa=parameters.kappa_values(),
            occasions=parameters.occasion_column,
            outputs=error.outputs,
        )

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> PublishedPopulation:
        """From the dictionary of a YAML file, where variability is ``omega`` or, in percent, ``cv``, the names of
        parameters may be VC and VP for V1 and V2, and an effect is written ``PARAMETER~COVARIATE: number``.

        Raises:
            ValueError: a key or value that is missing, unknown or out of its range, by name.
        """
        _refuse_unknown("population", plain, _KEYS)
        missing = [name for name in _NEEDED if name not in plain]
        if missing or ("omega" in plain) == ("cv" in plain):
            raise ValueError(
                f"a population needs {', '.join(_NEEDED)} and one of omega and cv; it has {', '.join(map(str, plain))}"
            )
        dynamics = _dynamics(plain["dynamics"])
        decoder = equations(dynamics)
        parameters = decoder.population_names
        distributions = _distributions(plain.get("distributions", {}), parameters)
        typical = _of_parameters("typical", _numbers("typical", plain["typical"]), parameters)
        for name, value in typical.items():
            kind = distributions.get(name) or LogNormal()
            if not bool(torch.isfinite(kind.inverse(torch.tensor(value, dtype=torch.float64)))):
                raise ValueError(f"typical.{name} must be {kind.support}, not {value}")
        if len(typical) < len(parameters):
            raise ValueError(
                f"typical lacks {', '.join(p for p in parameters if p not in typical)}; these dynamics have "
                f"{', '.join(parameters)} (V1 is always the central volume)"
            )
        every = (*parameters, RESIDUAL)
        omega = _variability("omega" if "omega" in plain else "cv", plain, every)
        kappa = _variability("kappa", plain, every) if "kappa" in plain else {}
        occasions = plain.get("occasions")
        if occasions is not None and not (kappa and isinstance(occasions, str) and occasions):
            raise ValueError(f"occasions is the column of the occasions that kappa is for; got {occasions!r}, {kappa}")
        references = _numbers("references", plain.get("references", {}))
        effects = _effects(plain.get("effects", {}), every, references)
        outputs = _outputs(plain.get("outputs", []), plain["error"], decoder)
        unused = set(references) - {covariate for _, covariate in effects}
        if unused:
            raise ValueError(f"references name {', '.join(sorted(unused))}, which no effect has")
        return cls(
            dynamics=dynamics,
            typical={name: typical[name] for name in parameters},
            omega=omega,
            correlation=_correlation(plain.get("correlation", {}), omega, every),
            effects=effects,
            references=references,
            error=_error(plain["error"], decoder, outputs),
            outputs=outputs,
            error_sd=_error_sd(plain["error"], plain["error_sd"]),
            units=_units(plain.get("units", {})),
            distributions=distributions,
            kappa=kappa,
            occasions=occasions,
        )

    def to_plain(self) -> dict[str, Any]:
        """The dictionary of a population file, which `from_plain` reads."""
        plain: dict[str, Any] = {
            "dynamics": dict(self.dynamics),
            "typical": dict(self.typical),
            "omega": dict(self.omega),
            "correlation": {f"{a}~{b}": value for (a, b), value in self.correlation.items()},
            "effects": {
                f"{parameter}~{covariate}": _plain(one) for (parameter, covariate), one in self.effects.items()
            },
            "references": dict(self.references),
            "distributions": {name: describe(kind) for name, kind in self.distributions.items()},
            "kappa": dict(self.kappa),
            "occasions": self.occasions,
            "outputs": list(self.outputs),
            "error": self.error if isinstance(self.error, str) else list(self.error),
            "error_sd": dict(sd) if isinstance(sd := self.error_sd, Mapping) else [dict(one) for one in sd],
            "units": self.units._asdict(),
        }
        return {name: value for name, value in plain.items() if value or name in (*_NEEDED, "omega")}

    def effect(self, parameter: str, covariate: str) -> CovariateEffect:
        """One of `effects` as an object."""
        effect = self.effects[parameter, covariate]
        if isinstance(effect, CovariateEffect):
            return effect
        return power_or_factor(covariate, effect, self.references.get(covariate))

    @property
    def count(self) -> int:
        """How many numbers it holds: as many as were estimated, or more, for it does not say which were fixed or
        shared."""
        effects = [self.effect(*key) for key in self.effects]
        coefficients = sum(len(one.coefficients() | one.fixed_coefficients()) for one in effects)
        weights = sum(one.weight.numel() for one in effects if isinstance(one, NetworkEffect))
        spreads = sum(value > 0 for value in (*self.omega.values(), *self.kappa.values()))
        numbers = len(self.typical) + spreads + len(self.correlation) + coefficients + weights
        return numbers + len(self.residual_error().numbers())

    @property
    def covariates(self) -> list[str]:
        """Names of the covariates that the effects read."""
        effects = [self.effect(*key) for key in self.effects]
        # whoever reads a table has to know the level that the others are compared with
        levels = {
            f"{one.covariate.split('=')[0]}={one.level}"
            for one in effects
            if isinstance(one, FactorEffect) and one.level is not None
        }
        return sorted({name for effect in effects for name in effect.covariates} | levels)

    @property
    def occasion_column(self) -> str | None:
        """Column of the patients' table that says the occasions; None where no parameter differs between them."""
        return (self.occasions or "OCC") if any(value > 0 for value in self.kappa.values()) else None

    def residual_error(self) -> ResidualError:
        """The residual error, with its numbers fixed."""
        if isinstance(self.error, str):
            return error_class(self.error).from_values(1, **cast(Mapping[str, float], self.error_sd))
        numbers = cast(Sequence[Mapping[str, float]], self.error_sd)
        pairs = zip(self.error, numbers, strict=True)
        errors = [error_class(name).from_values(1, **values) for name, values in pairs]
        return ErrorByEndpoint(errors, list(self.outputs) or None).fix()

    @property
    def has_factor(self) -> bool:
        """Whether the residual error differs between subjects or occasions, or with covariates."""
        names = {*self.omega, *self.kappa, *(name for name, _ in self.effects)}
        return RESIDUAL in names

    def model(self, cohort: Cohort, scaling: Scaling | None = None) -> PopulationModel:
        """The population model for some patients, in float64 and with every number fixed.

        Args:
            cohort: whose covariates are checked, and whose values say below which prediction a proportional error stops
                shrinking.
            scaling: magnitudes that say it instead; None for those of the patients.

        Raises:
            ValueError: a covariate that the patients lack, that is not positive where it has a reference, or neither 0
                nor 1 where it has none.
        """
        effects = {key: self.effect(*key) for key in self.effects}
        dynamics = equations(self.dynamics)
        used = sorted({*dynamics.covariates, *self.covariates})
        for effect in effects.values():
            _refuse_values(effect, cohort)
        centres = {name: CovariateScale(self.references.get(name, 0.0), 1.0, name in self.references) for name in used}
        measured = any(subject.observed.any() for subject in cohort)
        scaling = (scaling or (Scaling.of(cohort) if measured else Scaling()))._replace(covariates=centres)
        population = PopulationParameters.from_values(
            {**self.typical, RESIDUAL: 1.0} if self.has_factor else self.typical,
            self.omega, effects, self.correlation, self.references, self.distributions,
            kappa=self.kappa, occasions=self.occasion_column,
        )  # fmt: skip
        model = PopulationModel(dynamics, population, self.residual_error(), Auto(rtol=1e-6, atol=1e-8))
        return model.build(scaling, torch.float64).requires_grad_(False).eval()


def _refuse_values(effect: CovariateEffect, cohort: Cohort) -> None:
    for covariate in effect.covariates:
        if covariate not in cohort.covariate_names:
            known = ", ".join(cohort.covariate_names) or "none"
            raise ValueError(f"effects name the covariate {covariate!r}; the patients' covariates: {known}")
        for subject in cohort:
            given = subject.covariates[covariate]
            for value in [v for _, v in given] if isinstance(given, tuple) else [given]:
                fault = effect.fault(value)
                if fault:
                    hint = (
                        f". Give references.{covariate} for one that enters as ({covariate}/reference)."
                        if isinstance(effect, FactorEffect)
                        else ""
                    )
                    raise ValueError(f"subject {subject.id}: {covariate} is {value:g}; {fault}{hint}")


def write_population(population: PublishedPopulation, path: Path, note: str = "") -> None:
    """Write a population as a YAML file, which `read_population` reads.

    Args:
        population: to be written.
        path: of the file.
        note: a comment in the first line, such as whether the fit has converged; empty for none.
    """
    text = plain_yaml_text(population.to_plain())
    with replacing(path) as part:
        part.write_text((f"# {note}\n" if note else "") + text, encoding="utf-8")


def read_population(path: Path) -> PublishedPopulation:
    """Read a population from a YAML file.

    Raises:
        FileNotFoundError: no file at the path.
        ValueError: no YAML, a key twice, or as `PublishedPopulation.from_plain`.
    """
    try:
        plain = read_yaml_text(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path.name} is not a text in UTF-8: {error}") from error
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from error
    if not isinstance(plain, Mapping):
        raise ValueError(f"{path.name} holds no population: it has {', '.join(_KEYS)}, one a line with a colon")
    return PublishedPopulation.from_plain(plain)


def _refuse_unknown(group: str, given: object, allowed: tuple[str, ...]) -> None:
    if not isinstance(given, Mapping):
        raise ValueError(f"{group} holds names with values ({', '.join(allowed)}), not {given!r}")
    unknown = [str(name) for name in given if name not in allowed]
    if unknown:
        raise ValueError(f"{group} has no key {', '.join(unknown)}; there are {', '.join(allowed)}")


def _numbers(group: str, given: object, above: float = -math.inf) -> dict[str, float]:
    """A finite number above a bound by name."""
    if not isinstance(given, Mapping):
        raise ValueError(f"{group} holds names with numbers (NAME: number), not {given!r}")
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"{group}.{name} must be a finite number, not {value!r}")
        if not value > above:
            raise ValueError(f"{group}.{name} must be above {above:g}, not {value}")
    return {str(name): float(value) for name, value in given.items()}


def _of_parameters(group: str, numbers: Mapping[str, float], parameters: tuple[str, ...]) -> dict[str, float]:
    """The numbers by the names that the dynamics has for its parameters."""
    named: dict[str, float] = {}
    for name, value in numbers.items():
        own = _ALIASES.get(name, name)
        if own not in parameters:
            raise ValueError(
                f"{group} names {name!r}; these dynamics have {', '.join(parameters)} (V1 is always the central volume)"
            )
        if own in named:
            raise ValueError(f"{group} names {own} twice: {', '.join(numbers)} ({name} is {own})")
        named[own] = value
    return named


def _dynamics(given: object) -> dict[str, Any]:
    if isinstance(given, Mapping) and "class_path" in given:
        return dict(given)
    _refuse_unknown("dynamics", given, tuple(_DYNAMICS))
    for name, value in cast(Mapping[str, object], given).items():
        if value not in _DYNAMICS[name]:
            raise ValueError(f"dynamics.{name} is one of {', '.join(map(str, _DYNAMICS[name]))}; not {value!r}")
    return dict(cast(Mapping[str, Any], given))


def equations(dynamics: Mapping[str, Any]) -> Decoder:
    """The dynamics that a population file describes.

    Raises:
        ValueError: a class that is not imported or is no dynamics, or an option that it does not have.
    """
    if "class_path" in dynamics:
        return make(dict(dynamics), Decoder, "dynamics")  # type: ignore[type-abstract]
    absorption = dynamics.get("absorption", "none")
    return CompartmentModel(
        dynamics.get("compartments", 2),
        absorption,
        dynamics.get("elimination", "linear"),
        dynamics.get("transits", 3),
        lag=("central" if absorption == "none" else "depot") if dynamics.get("lag", False) else None,
    )


def _variability(group: str, plain: Mapping[str, Any], parameters: tuple[str, ...]) -> dict[str, float]:
    """Standard deviations of random effects by parameter, of the group omega, cv or kappa."""
    if isinstance(plain[group], list):
        raise ValueError(
            f"{group} holds one number by parameter (CL: 0.3), the standard deviation of its eta; of a full covariance "
            f"matrix the rest goes under correlation (CL~V1: 0.5), got {plain[group]!r}"
        )
    given = _of_parameters(group, _numbers(group, plain[group]), parameters)
    for name, value in given.items():
        if value < 0:
            raise ValueError(f"{group}.{name} must not be negative, got {value}")
        if group != "cv" and value > _LARGEST_OMEGA:
            of = "eta" if group == "omega" else "kappa"
            raise ValueError(f"{group}.{name} is the standard deviation of {of}, not {value}; percents go under cv")
        if group == "cv" and 0 < value < _SMALLEST_CV:
            raise ValueError(f"cv.{name} is in percent: {100 * value:g} rather than {value}; or give omega")
    return given if group != "cv" else {name: omega_from_cv(percent) for name, percent in given.items()}


def _correlation(
    given: object, omega: Mapping[str, float], parameters: tuple[str, ...]
) -> dict[tuple[str, str], float]:
    found: dict[tuple[str, str], float] = {}
    for name, value in _numbers("correlation", given).items():
        pair = tuple(_ALIASES.get(part.strip(), part.strip()) for part in name.split("~"))
        if len(pair) != 2 or pair[0] == pair[1] or not set(pair) <= set(parameters):
            raise ValueError(f"correlation is written PARAMETER~PARAMETER, as in CL~V1; not {name!r}")
        if any(not omega.get(one, 0.0) > 0 for one in pair):
            raise ValueError(f"correlation.{name}: {' and '.join(pair)} must both vary (omega or cv above 0)")
        if not -1 < value < 1:
            raise ValueError(f"correlation.{name} must be between -1 and 1, not {value:g}")
        if pair in found or pair[::-1] in found:
            raise ValueError(f"correlation names {pair[0]}~{pair[1]} twice")
        found[pair[0], pair[1]] = value
    return found


def _effects(
    given: object, parameters: tuple[str, ...], references: Mapping[str, float]
) -> dict[tuple[str, str], float | CovariateEffect]:
    if not isinstance(given, Mapping):
        raise ValueError(f"effects holds names with numbers (NAME: number), not {given!r}")
    effects: dict[tuple[str, str], float | CovariateEffect] = {}
    for name, value in given.items():
        parameter, *covariates = (part.strip() for part in str(name).split("~"))
        if len(covariates) != 1 or not covariates[0]:
            raise ValueError(f"effects are written PARAMETER~COVARIATE, as in CL~WT; not {name!r}")
        ((own, _),) = _of_parameters("effects", {parameter: 0.0}, parameters).items()
        if (own, covariates[0]) in effects:
            raise ValueError(f"effects name {own}~{covariates[0]} twice")
        if isinstance(value, Mapping | str):
            effects[own, covariates[0]] = _effect(str(name), value, covariates[0], references)
            continue
        (effects[own, covariates[0]],) = _numbers("effects", {name: value}).values()
        if not references.get(covariates[0], 1.0) > 0:
            raise ValueError(f"references.{covariates[0]} must be above 0, not {references[covariates[0]]}")
    return effects


def _effect(
    name: str, value: str | Mapping[Any, Any], covariate: str, references: Mapping[str, float]
) -> CovariateEffect:
    """An effect of a population file, with all its numbers."""
    given = dict(value) if isinstance(value, Mapping) else {"kind": value}
    if "class_path" in given or "weights" in given:
        return effect_of(name, covariate, given)
    if covariate in references and not {"half", "log_factor"} & set(given):
        given.setdefault("reference", references[covariate])
    made = effect_of(name, covariate, given | {"fixed": True})
    if isinstance(made, PowerEffect | ExponentialEffect | LinearEffect) and made.from_data:
        raise ValueError(f"effects.{name} needs a reference: references.{covariate}, or reference beside its number")
    return made


def _plain(effect: float | CovariateEffect) -> Any:
    """An effect as a population file holds it."""
    return plain_effect(effect) if isinstance(effect, CovariateEffect) else effect


def _distributions(given: object, parameters: tuple[str, ...]) -> dict[str, ParameterDistribution]:
    if not isinstance(given, Mapping):
        raise ValueError(f"distributions holds names with classes (NAME: Normal), not {given!r}")
    names = _of_parameters("distributions", dict.fromkeys(map(str, given), 0.0), parameters)
    kinds = [
        make(value, ParameterDistribution, f"distributions.{name}")  # type: ignore[type-abstract]
        for name, value in given.items()
    ]
    return dict(zip(names, kinds, strict=True))


def _uncommon(distribution: Mapping[str, ParameterDistribution]) -> dict[str, ParameterDistribution]:
    """Those that are not log-normal; variability or none is what omega says."""
    inner = {name: kind.inner if isinstance(kind, NoVariability) else kind for name, kind in distribution.items()}
    return {name: kind for name, kind in inner.items() if type(kind) is not LogNormal}


def _dynamics_of(dynamics: Decoder) -> dict[str, Any]:
    """The dynamics block of a population file."""
    if any(True for _ in dynamics.parameters()):
        raise ValueError(
            f"a population file holds equations; {type(dynamics).__name__} has learned weights, which only its "
            "checkpoint holds"
        )
    if type(dynamics) is not CompartmentModel:
        return cast(dict[str, Any], describe(dynamics))
    size = sum(state in ("central", "peripheral", "peripheral2") for state in dynamics.states)
    described: dict[str, Any] = {"compartments": size, "absorption": dynamics.absorption}
    described["elimination"] = dynamics.elimination
    if dynamics.absorption == "transit":
        described["transits"] = len(dynamics.states) - size - 1
    if dynamics.lag_compartment is not None:
        described["lag"] = True
    rebuilt = cast(CompartmentModel, equations(described))
    if rebuilt.parameter_names != dynamics.parameter_names or rebuilt.lag_compartment != dynamics.lag_compartment:
        return cast(dict[str, Any], describe(dynamics))
    return described


def _errors_of(error: ResidualError) -> list[tuple[str, dict[str, float]]]:
    """Short name and numbers of the error of every endpoint.

    Raises:
        ValueError: an error model without a short name.
    """
    names: dict[type[ResidualError], str] = {error_class(name): name for name in ERROR_NAMES}
    models = error.models if isinstance(error, ErrorByEndpoint) else [error]
    found: list[tuple[str, dict[str, float]]] = []
    for one in models:
        if type(one) not in names:
            raise ValueError(
                f"a population file holds an error {', '.join(ERROR_NAMES)}; this model has {type(one).__name__}"
            )
        constants = {name: float(getattr(one, name)) for name in one.constants}
        parameters = one.parameters_by_name() if one.numbers() else {}
        rows = {name: [number(value) for value in values] for name, values in parameters.items()}
        for k in range(max((len(row) for row in rows.values()), default=0)):
            found.append((names[type(one)], {name: row[k] for name, row in rows.items()} | constants))
    return found


def _outputs(given: object, error: object, dynamics: Decoder) -> tuple[int, ...]:
    """The output that each endpoint reads; empty for its own."""
    if not given:
        return ()
    count, most = len(error) if isinstance(error, list) else 1, len(dynamics.endpoints)
    fits = isinstance(given, list) and len(given) == count > 1
    if not fits or not all(type(one) is int and 1 <= one <= most for one in cast(list[object], given)):
        raise ValueError(
            f"outputs holds the output from 1 to {most} that each name under error is for, as in [1, 1] for two assays "
            f"of one output; got {given!r} for {count}"
        )
    return tuple(cast(list[int], given))


def _error(given: object, dynamics: Decoder, outputs: tuple[int, ...]) -> str | list[str]:
    """The name of the error, or one name by endpoint; it is that of the text, where the text says it."""
    several = isinstance(given, list) and len(given) > 1
    names = [str(name) for name in given] if isinstance(given, list) and several else [str(given)]
    for name in names:
        error_class(name)
    if not outputs and len(names) > len(dynamics.endpoints):
        raise ValueError(f"error has {len(names)} names; these dynamics have {len(dynamics.endpoints)} endpoints")
    for name, assay in zip(names, assays_read(dynamics.assays, outputs), strict=False):
        if assay.error not in (None, name):
            raise ValueError(f"error of {assay.output} is {name}; the text of the dynamics says {assay.error}")
    return names if several else names[0]


def _error_sd(error: object, given: object) -> dict[str, float] | list[dict[str, float]]:
    if not isinstance(error, list):
        return _numbers_of_error(str(error), "error_sd", given)
    if not isinstance(given, list) or len(given) != len(error):
        raise ValueError(f"error has {len(error)} names, one by endpoint, and error_sd needs as many groups in a list")
    pairs = enumerate(zip(error, given, strict=True), start=1)
    return [_numbers_of_error(str(name), f"error_sd[{k}]", numbers) for k, (name, numbers) in pairs]


def _numbers_of_error(error: str, group: str, given: object) -> dict[str, float]:
    cls = error_class(error)
    numbers = _numbers(group, given, above=0.0)
    if not set(cls.names) <= set(numbers) <= {*cls.names, *cls.constants}:
        raise ValueError(f"{group} of a {error} error holds {' and '.join(cls.names)}; not {', '.join(numbers) or '-'}")
    if numbers.get("b", 0.0) > _LARGEST_B:
        raise ValueError(f"{group}.b is a share of the prediction, 0.2 for 20 %; not {numbers['b']:g}")
    return numbers


def _units(given: object) -> Units:
    _refuse_unknown("units", given, Units._fields)
    units = cast(Mapping[str, str], given)
    for name, unit in units.items():
        if not isinstance(unit, str):
            raise ValueError(f"units.{name} is a word such as mg, not {unit!r}")
    return Units(**units)
