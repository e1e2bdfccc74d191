"""Dynamics: dy/dt = f(t, y, theta)."""

from neuralpk.dynamics.base import Dynamics
from neuralpk.dynamics.compartment import Absorption, CompartmentModel, Compartments, Elimination
from neuralpk.dynamics.hybrid import HybridDynamics
from neuralpk.dynamics.neural import NeuralCompartments, NeuralField
from neuralpk.dynamics.perceptron import Activation, Perceptron
from neuralpk.dynamics.population import LotkaVolterra
from neuralpk.dynamics.stochastic import (
    FluctuatingClearance,
    OrnsteinUhlenbeck,
    StochasticDynamics,
    StochasticLotkaVolterra,
)

__all__ = [
    "Absorption",
    "Activation",
    "CompartmentModel",
    "Compartments",
    "Dynamics",
    "Elimination",
    "FluctuatingClearance",
    "HybridDynamics",
    "LotkaVolterra",
    "NeuralCompartments",
    "NeuralField",
    "OrnsteinUhlenbeck",
    "Perceptron",
    "StochasticDynamics",
    "StochasticLotkaVolterra",
]
