"""Dynamics: dy/dt = f(t, y, theta)."""

from neuralpk.dynamics.base import Dynamics, StateSpace
from neuralpk.dynamics.compartment import (
    Absorption,
    CompartmentModel,
    Compartments,
    ConcentrationModel,
    Elimination,
    RateConstants,
)
from neuralpk.dynamics.features import FeatureField
from neuralpk.dynamics.fixed import FixedParameters
from neuralpk.dynamics.hybrid import HybridDynamics
from neuralpk.dynamics.neural import NeuralCompartments, NeuralField
from neuralpk.dynamics.perceptron import Activation, Perceptron
from neuralpk.dynamics.population import SIR, LotkaVolterra
from neuralpk.dynamics.recurrent import ContinuousTimeRNN, GatedRecurrence, JumpingField
from neuralpk.dynamics.stochastic import (
    FluctuatingClearance,
    OrnsteinUhlenbeck,
    StochasticDynamics,
    StochasticLotkaVolterra,
)

__all__ = [
    "SIR",
    "Absorption",
    "Activation",
    "CompartmentModel",
    "Compartments",
    "ConcentrationModel",
    "ContinuousTimeRNN",
    "Dynamics",
    "Elimination",
    "FeatureField",
    "FixedParameters",
    "FluctuatingClearance",
    "GatedRecurrence",
    "HybridDynamics",
    "JumpingField",
    "LotkaVolterra",
    "NeuralCompartments",
    "NeuralField",
    "OrnsteinUhlenbeck",
    "Perceptron",
    "RateConstants",
    "StateSpace",
    "StochasticDynamics",
    "StochasticLotkaVolterra",
]
