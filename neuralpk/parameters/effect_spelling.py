"""Covariate effects as people write them, in fits, configurations and population files alike."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from neuralpk.parameters.covariates import (
    CovariateEffect,
    ExponentialEffect,
    FactorEffect,
    LinearEffect,
    MaturationEffect,
    PowerEffect,
)
from neuralpk.parameters.network_effect import NetworkEffect
from neuralpk.part import describe, did_you_mean, make, option_names
from neuralpk.scaling import Scaling

Effects = Literal["all"] | dict[str, list[str | CovariateEffect] | dict[str, Any] | float | str]
"""``{PARAMETER: [COVARIATE, …]}``, ``{PARAMETER: {COVARIATE: …}}`` or ``{"PARAMETER~COVARIATE": …}``."""

KINDS: dict[str, type[CovariateEffect]] = {
    "power": PowerEffect,
    "exponential": ExponentialEffect,
    "linear": LinearEffect,
    "factor": FactorEffect,
    "maturation": MaturationEffect,
    "network": NetworkEffect,
}
"""Effects by the word that names them; ``categorical`` is a factor for each level of a text."""
_CATEGORICAL = "categorical"
_OF_COEFFICIENT = {
    "exponent": "power", "slope": "exponential", "change": "linear", "log_factor": "factor", "half": "maturation",
}  # fmt: skip
HOW = (
    "an effect is written PARAMETER: [COVARIATE, …] (learned, its kind by the values of the covariate), "
    "PARAMETER~COVARIATE: number (fixed), PARAMETER~COVARIATE: "
    f"{', '.join((*KINDS, _CATEGORICAL))} (learned), or PARAMETER~COVARIATE: {{exponent: 0.75, reference: 70}} (a "
    "starting value; with fixed: true it stays), with exponent, slope, change, log_factor or half"
)


@dataclass(frozen=True)
class ChosenEffect:
    """An effect whose kind follows from the training data.

    Args:
        covariate: its name.
        coefficient: where given, it is fixed.
        reference: of a text, the level that the others are compared with; None for the most frequent.
        categorical: whether it has to be a text.
    """

    covariate: str
    coefficient: float | None = None
    reference: str | None = None
    categorical: bool = False

    @property
    def covariates(self) -> tuple[str, ...]:
        """Names of the covariates that it reads."""
        return (self.covariate,)

    def effects(self, scaling: Scaling) -> list[CovariateEffect]:
        """A factor for each level of a text but the reference; a factor where all values are 0 or 1, a power where all
        are positive, else an exponential effect.

        Raises:
            ValueError: a covariate or a level that the training data do not have.
        """
        levels = levels_of(self.covariate, scaling)
        if levels and self.covariate not in scaling.covariates:
            return self._of_levels(levels)
        if self.categorical:
            scaling.covariate(self.covariate)
            raise ValueError(
                f"{self.covariate} has numbers: give its codes names to read them as levels, as in "
                f"map={self.covariate}:1=one,{self.covariate}:2=two"
            )
        fixed, scale = self.coefficient is not None, scaling.covariate(self.covariate)
        if scale.binary:
            return [FactorEffect(self.covariate, self.coefficient, fixed)]
        if scale.positive:
            return [PowerEffect(self.covariate, None, self.coefficient, fixed)]
        return [ExponentialEffect(self.covariate, None, self.coefficient, fixed)]

    def _of_levels(self, levels: Mapping[str, float]) -> list[CovariateEffect]:
        if self.coefficient is not None:
            raise ValueError(f"{self.covariate} has the levels {', '.join(levels)}: one number cannot be that of all")
        if len(levels) == 1:
            raise ValueError(f"{self.covariate} is {next(iter(levels))} in all training subjects: leave its effect out")
        reference = max(levels, key=lambda level: levels[level]) if self.reference is None else str(self.reference)
        if reference not in levels:
            raise ValueError(f"{self.covariate} has no level {reference!r}{did_you_mean(reference, [*levels])}")
        names = {level: f"{self.covariate}={level}" for level in levels if level != reference}
        return [FactorEffect(name, reference=reference) for name in names.values()]


def levels_of(covariate: str, scaling: Scaling) -> dict[str, float]:
    """Levels of a text with the share of the training data that has them; empty where there are none."""
    start = f"{covariate}="
    found = {name.removeprefix(start): scaling.covariate(name) for name in scaling.covariates if name.startswith(start)}
    return {level: scale.centre if scale.mean is None else scale.mean for level, scale in found.items()}


def power_or_factor(covariate: str, coefficient: float, reference: float | None) -> CovariateEffect:
    """Effect that a plain number stands for: the exponent of (c/reference), or without a reference the logarithm of the
    factor of a covariate that is 0 or 1. The number is fixed."""
    if reference is None:
        return FactorEffect(covariate, coefficient, fixed=True)
    return PowerEffect(covariate, reference, coefficient, fixed=True)


def effects_by_parameter(effects: object) -> Any:
    """Effects in all their spellings as ``{parameter: [ChosenEffect or CovariateEffect, …]}``; "all" stays.

    Raises:
        ValueError: a spelling that is none, by name.
    """
    if effects is None or effects == "all":
        return effects or {}
    if not isinstance(effects, Mapping):
        raise ValueError(f"effects is {effects!r}; {HOW}")
    found: dict[str, list[ChosenEffect | CovariateEffect]] = {}
    for key, value in effects.items():
        parameter, *covariates = (part.strip() for part in str(key).split("~"))
        if not parameter or len(covariates) > 1 or "" in covariates:
            raise ValueError(f"effects: {key!r} is no PARAMETER~COVARIATE; {HOW}")
        if covariates:
            items = [asked_effect(f"{parameter}~{covariates[0]}", covariates[0], value)]
        elif isinstance(value, Mapping):
            items = [asked_effect(f"{parameter}~{name}", str(name), one) for name, one in value.items()]
        elif isinstance(value, list | tuple):
            items = [_listed(str(key), one) for one in value]
        else:
            raise ValueError(f"effects.{key} is {value!r}; {HOW}")
        found.setdefault(parameter, []).extend(items)
    return found


def _listed(parameter: str, item: object) -> ChosenEffect | CovariateEffect:
    if isinstance(item, CovariateEffect):
        return item
    if isinstance(item, str):
        return ChosenEffect(item)
    if isinstance(item, Mapping) and "class_path" in item:
        return make(dict(item), CovariateEffect, f"effects.{parameter}")  # type: ignore[type-abstract]
    raise ValueError(f"effects.{parameter} has {item!r}; {HOW}")


def asked_effect(name: str, covariate: str, value: object) -> ChosenEffect | CovariateEffect:
    """One effect of a fit.

    Args:
        name: PARAMETER~COVARIATE, for messages.
        covariate: its name; several of a network with + between them.
        value: a number, a word of `KINDS`, a mapping of the numbers of an effect, or an effect.

    Raises:
        ValueError: a value that is none of these.
    """
    if isinstance(value, CovariateEffect):
        return value
    if value == _CATEGORICAL:
        return ChosenEffect(covariate, categorical=True)
    if isinstance(value, Mapping) and value.get("kind") == _CATEGORICAL:
        _refuse_unknown(name, value, ["kind", "reference"])
        return ChosenEffect(covariate, reference=value.get("reference"), categorical=True)
    if isinstance(value, str | Mapping):
        return effect_of(name, covariate, value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"effects.{name} must be a finite number, not {value!r}; {HOW}")
    return ChosenEffect(covariate, float(value))


def effect_of(name: str, covariate: str, value: str | Mapping[Any, Any]) -> CovariateEffect:
    """An effect from the word that names it, or from its numbers.

    Args:
        name: PARAMETER~COVARIATE, for messages.
        covariate: its name; several of a network with + between them.
        value: a word of `KINDS`; or the arguments of its class, with the word as ``kind`` where none of them says it.

    Raises:
        ValueError: a kind or an option that does not exist, or a value outside its range.
    """
    given: dict[str, Any] = {"kind": value} if isinstance(value, str) else {str(k): v for k, v in value.items()}
    if "class_path" in given:
        return make(given, CovariateEffect, f"effects.{name}")  # type: ignore[type-abstract]
    said = [kind for coefficient, kind in _OF_COEFFICIENT.items() if coefficient in given]
    kind = str(given.pop("kind", said[0] if len(said) == 1 else ""))
    if kind not in KINDS:
        hint = did_you_mean(kind, [*KINDS])
        raise ValueError(f"effects.{name} is {value!r}, of which no kind follows{hint}; {HOW}")
    made, covariates = KINDS[kind], covariate.split("+")
    _refuse_unknown(name, given, [one for one in option_names(made) if one not in ("covariate", "covariates")])
    for option, one in given.items():
        wrong = isinstance(one, bool) != (option == "fixed") or not isinstance(one, int | float | str | list)
        if wrong or (isinstance(one, str) and option != "reference"):
            raise ValueError(f"effects.{name}.{option} must be {'true or false' if option == 'fixed' else 'a number'}")
    first: Any = covariates if made is NetworkEffect else covariate
    try:
        return made(first, **given)
    except TypeError as error:
        raise ValueError(f"effects.{name}: {value!r} does not fit a {kind} effect") from error


def _refuse_unknown(name: str, given: Mapping[Any, Any], known: list[str]) -> None:
    for option in given:
        if option not in known:
            hint = did_you_mean(str(option), known)
            raise ValueError(f"effects.{name} has no option {option!r}{hint}; it has {', '.join(known)}")


def plain_effect(effect: CovariateEffect) -> Any:
    """A fitted effect as a population file holds it."""
    word = next((word for word, made in KINDS.items() if type(effect) is made), "")
    if not word:
        return describe(effect)
    given = {
        k: v for k, v in effect.arguments.items() if k not in ("covariate", "covariates", "fixed") and v is not None
    }
    said = any(coefficient in given for coefficient in _OF_COEFFICIENT)
    return given if said else {"kind": word} | given
