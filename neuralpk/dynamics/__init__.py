"""Dynamics: dy/dt = f(t, y, theta)."""

from neuralpk.dynamics.base import Dynamics
from neuralpk.dynamics.compartment import Absorption, CompartmentModel, Compartments, Elimination
from neuralpk.dynamics.hybrid import HybridDynamics
from neuralpk.dynamics.neural import NeuralCompartments, NeuralField
from neuralpk.dynamics.perceptron import Activation, Perceptron
from neuralpk.dynamics.population import LotkaVolterra

__all__ = [
    "Absorption",
    "Activation",
    "CompartmentModel",
    "Compartments",
    "Dynamics",
    "Elimination",
    "HybridDynamics",
    "LotkaVolterra",
    "NeuralCompartments",
    "NeuralField",
    "Perceptron",
]
