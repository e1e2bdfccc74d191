"""Models: plain modules that encode, decode, solve and observe."""

from neuralpk.models.build import (
    DynamicsSettings,
    EncoderSettings,
    SolverSettings,
    build_dynamics,
    build_mechanism,
    build_model,
)
from neuralpk.models.individual import IndividualParameters
from neuralpk.models.latent_ode import Coordinate, LatentModel, LatentODE, Prediction
from neuralpk.models.latent_sde import LatentSDE
from neuralpk.models.recurrent import LatentODERNN, LatentRecurrence

__all__ = [
    "Coordinate",
    "DynamicsSettings",
    "EncoderSettings",
    "IndividualParameters",
    "LatentModel",
    "LatentODE",
    "LatentODERNN",
    "LatentRecurrence",
    "LatentSDE",
    "Prediction",
    "SolverSettings",
    "build_dynamics",
    "build_mechanism",
    "build_model",
]
