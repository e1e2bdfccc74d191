"""Population parameters: distributions, covariate effects, and the numbers of both that are learned."""

from neuralpk.parameters.covariates import (
    CovariateEffect,
    FactorEffect,
    LinearEffect,
    NetworkEffect,
    PowerEffect,
    chosen_effect,
    power_or_factor,
)
from neuralpk.parameters.distributions import LogitNormal, LogNormal, Normal, NoVariability, ParameterDistribution
from neuralpk.parameters.population import PopulationParameters
from neuralpk.parameters.reported_numbers import Coordinate

__all__ = [
    "Coordinate",
    "CovariateEffect",
    "FactorEffect",
    "LinearEffect",
    "LogNormal",
    "LogitNormal",
    "NetworkEffect",
    "NoVariability",
    "Normal",
    "ParameterDistribution",
    "PopulationParameters",
    "PowerEffect",
    "chosen_effect",
    "power_or_factor",
]
