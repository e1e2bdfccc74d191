"""Dynamics: dy/dt = f(t, y, theta)."""

from neuralpk.dynamics.base import Dynamics
from neuralpk.dynamics.compartment import Absorption, CompartmentModel, Compartments, ConcentrationModel, Elimination
from neuralpk.dynamics.features import FeatureField
from neuralpk.dynamics.fixed import FixedParameters
from neuralpk.dynamics.hybrid import HybridDynamics
from neuralpk.dynamics.neural import NeuralCompartments, NeuralField
from neuralpk.dynamics.perceptron import Activation, Perceptron
from neuralpk.dynamics.population import SIR, LotkaVolterra

__all__ = [
    "SIR",
    "Absorption",
    "Activation",
    "CompartmentModel",
    "Compartments",
    "ConcentrationModel",
    "Dynamics",
    "Elimination",
    "FeatureField",
    "FixedParameters",
    "HybridDynamics",
    "LotkaVolterra",
    "NeuralCompartments",
    "NeuralField",
    "Perceptron",
]
