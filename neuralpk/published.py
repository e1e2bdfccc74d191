"""Published population models: from the numbers of a paper to a model that estimates patients without any training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

import yaml

from neuralpk.cohort import Cohort, Units
from neuralpk.dynamics import Absorption, Elimination
from neuralpk.encoders import PriorEncoder
from neuralpk.models import DynamicsSettings, IndividualParameters, LatentODE, build_mechanism
from neuralpk.residual_error import ERRORS
from neuralpk.scaling import Scaling
from neuralpk.simulate import omega_from_cv
from neuralpk.solve import SolverOptions

_KEYS = ("dynamics", "typical", "omega", "cv", "correlation", "effects", "references", "error", "error_sd", "units")
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


@dataclass(frozen=True)
class PublishedPopulation:
    """Who the patients of a published model are::

        theta_i = typical · exp(eta_i) · Π (c/reference)^effect · Π exp(effect·b)        eta_i ~ N(0, Omega)

    with continuous covariates c and covariates b that are 0 or 1.

    Args:
        dynamics: compartments, absorption, elimination, transits and lag of `DynamicsSettings`.
        typical: value of every parameter of the dynamics, in its order.
        omega: standard deviation of eta by parameter; those left out do not vary.
        correlation: (parameter, parameter) to the correlation of their etas; those left out have none.
        effects: (parameter, covariate) to the exponent of (c/reference), or for a 0-or-1 covariate the logarithm of its
            factor.
        references: reference value of every continuous covariate.
        error: residual error, ``additive``, ``proportional``, ``combined`` or ``log_normal``.
        error_sd: its standard deviations, ``a`` in the unit of the value, ``b`` relative.
        units: of the patients' table.
    """

    dynamics: DynamicsSettings
    typical: Mapping[str, float]
    omega: Mapping[str, float]
    correlation: Mapping[tuple[str, str], float]
    effects: Mapping[tuple[str, str], float]
    references: Mapping[str, float]
    error: str
    error_sd: Mapping[str, float]
    units: Units = Units()  # noqa: RUF009  # a NamedTuple cannot be changed

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
        parameters = build_mechanism(dynamics).parameter_names
        typical = _of_parameters("typical", _numbers("typical", plain["typical"], above=0.0), parameters)
        if len(typical) < len(parameters):
            raise ValueError(
                f"typical lacks {', '.join(p for p in parameters if p not in typical)}; these dynamics have "
                f"{', '.join(parameters)} (V1 is always the central volume)"
            )
        omega = _variability(plain, parameters)
        references = _numbers("references", plain.get("references", {}), above=0.0)
        effects = _effects(plain.get("effects", {}), parameters)
        unused = set(references) - {covariate for _, covariate in effects}
        if unused:
            raise ValueError(f"references name {', '.join(sorted(unused))}, which no effect has")
        return cls(
            dynamics=dynamics,
            typical={name: typical[name] for name in parameters},
            omega=omega,
            correlation=_correlation(plain.get("correlation", {}), omega, parameters),
            effects=effects,
            references=references,
            error=plain["error"],
            error_sd=_error_sd(plain["error"], plain["error_sd"]),
            units=_units(plain.get("units", {})),
        )

    def model(self, cohort: Cohort) -> LatentODE:
        """The model for some patients, in float64, with every number fixed and an encoder that reads nothing.

        Args:
            cohort: whose covariates are checked, and whose values say below which prediction a proportional error stops
                shrinking.

        Raises:
            ValueError: a covariate that the patients lack, that is not positive where it has a reference, or neither 0
                nor 1 where it has none.
        """
        used = sorted({covariate for _, covariate in self.effects})
        for covariate in used:
            self._refuse_values(covariate, cohort)
        centres = {name: (self.references.get(name, 0.0), 1.0, name in self.references) for name in used}
        measured = any(subject.observed.any() for subject in cohort)
        scaling = (Scaling.of(cohort) if measured else Scaling())._replace(covariates=centres)
        individual = IndividualParameters.known(self.typical, self.omega, self.effects, scaling, self.correlation)
        error = ERRORS[self.error](scaling).double().requires_grad_(False)
        for name, value in self.error_sd.items():
            error.log_sd[name].fill_(math.log(value))
        options = SolverOptions(rtol=1e-6, atol=1e-8)
        encoder = PriorEncoder(scaling, individual.latent_size)
        model = LatentODE(encoder, individual, build_mechanism(self.dynamics), error, options)
        return model.double().requires_grad_(False).eval()

    def _refuse_values(self, covariate: str, cohort: Cohort) -> None:
        if covariate not in cohort.covariate_names:
            known = ", ".join(cohort.covariate_names) or "none"
            raise ValueError(f"effects name the covariate {covariate!r}; the patients' covariates: {known}")
        reference = self.references.get(covariate)
        for subject in cohort:
            given = subject.covariates[covariate]
            for value in [v for _, v in given] if isinstance(given, tuple) else [given]:
                if reference is None and value not in (0, 1):
                    raise ValueError(
                        f"subject {subject.id}: {covariate} is {value:g}; without a reference a covariate is 0 or 1. "
                        f"Give references.{covariate} for one that enters as ({covariate}/reference)."
                    )
                if reference is not None and not value > 0:
                    raise ValueError(
                        f"subject {subject.id}: {covariate} is {value:g}; it must be positive to enter as "
                        f"({covariate}/{reference:g})"
                    )


def read_population(path: Path) -> PublishedPopulation:
    """Read a population from a YAML file.

    Raises:
        FileNotFoundError: no file at the path.
        ValueError: no YAML, or as `PublishedPopulation.from_plain`.
    """
    try:
        plain = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path.name} is not YAML: {error}") from error
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
        if isinstance(value, str):
            raise ValueError(f"{group}.{name} must be a number, not {value!r} (YAML wants 1.0e-3 for 1e-3)")
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


def _dynamics(given: object) -> DynamicsSettings:
    _refuse_unknown("dynamics", given, tuple(_DYNAMICS))
    for name, value in cast(Mapping[str, object], given).items():
        if value not in _DYNAMICS[name]:
            raise ValueError(f"dynamics.{name} is one of {', '.join(map(str, _DYNAMICS[name]))}; not {value!r}")
    return cast(DynamicsSettings, dict(cast(Mapping[str, object], given)))


def _variability(plain: Mapping[str, Any], parameters: tuple[str, ...]) -> dict[str, float]:
    group = "omega" if "omega" in plain else "cv"
    if isinstance(plain[group], list):
        raise ValueError(
            f"{group} holds one number by parameter (CL: 0.3), the standard deviation of its eta; of a full covariance "
            f"matrix the rest goes under correlation (CL~V1: 0.5), got {plain[group]!r}"
        )
    given = _of_parameters(group, _numbers(group, plain[group]), parameters)
    for name, value in given.items():
        if value < 0:
            raise ValueError(f"{group}.{name} must not be negative, got {value}")
        if group == "omega" and value > _LARGEST_OMEGA:
            raise ValueError(f"omega.{name} is the standard deviation of eta, not {value}; percents go under cv")
        if group == "cv" and 0 < value < _SMALLEST_CV:
            raise ValueError(f"cv.{name} is in percent: {100 * value:g} rather than {value}; or give omega")
    return given if group == "omega" else {name: omega_from_cv(percent) for name, percent in given.items()}


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


def _effects(given: object, parameters: tuple[str, ...]) -> dict[tuple[str, str], float]:
    effects = {}
    for name, strength in _numbers("effects", given).items():
        parameter, *covariates = (part.strip() for part in name.split("~"))
        if len(covariates) != 1 or not covariates[0]:
            raise ValueError(f"effects are written PARAMETER~COVARIATE, as in CL~WT; not {name!r}")
        (own,) = _of_parameters("effects", {parameter: strength}, parameters)
        if (own, covariates[0]) in effects:
            raise ValueError(f"effects name {own}~{covariates[0]} twice")
        effects[own, covariates[0]] = strength
    return effects


def _error_sd(error: object, given: object) -> dict[str, float]:
    if error not in tuple(ERRORS):
        raise ValueError(f"error is one of {', '.join(ERRORS)}; not {error!r}")
    names = ERRORS[str(error)].names
    numbers = _numbers("error_sd", given, above=0.0)
    if sorted(numbers) != sorted(names):
        raise ValueError(f"error_sd of a {error} error holds {' and '.join(names)}; not {', '.join(numbers) or '-'}")
    return numbers


def _units(given: object) -> Units:
    _refuse_unknown("units", given, Units._fields)
    units = cast(Mapping[str, str], given)
    for name, unit in units.items():
        if not isinstance(unit, str):
            raise ValueError(f"units.{name} is a word such as mg, not {unit!r}")
    return Units(**units)
