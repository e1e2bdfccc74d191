"""Population parameters: distributions, covariate effects, and the numbers of both that are learned."""

from neuralpk.parameters.covariates import (
    CovariateEffect,
    ExponentialEffect,
    FactorEffect,
    LinearEffect,
    MaturationEffect,
    PowerEffect,
)
from neuralpk.parameters.distributions import LogitNormal, LogNormal, Normal, NoVariability, ParameterDistribution
from neuralpk.parameters.effect_spelling import Effects, effect_of, plain_effect, power_or_factor
from neuralpk.parameters.network_effect import NetworkEffect
from neuralpk.parameters.population import RESIDUAL, PopulationParameters
from neuralpk.parameters.reported_numbers import Coordinate

__all__ = [
    "RESIDUAL",
    "Coordinate",
    "CovariateEffect",
    "Effects",
    "ExponentialEffect",
    "FactorEffect",
    "LinearEffect",
    "LogNormal",
    "LogitNormal",
    "MaturationEffect",
    "NetworkEffect",
    "NoVariability",
    "Normal",
    "ParameterDistribution",
    "PopulationParameters",
    "PowerEffect",
    "effect_of",
    "plain_effect",
    "power_or_factor",
]
