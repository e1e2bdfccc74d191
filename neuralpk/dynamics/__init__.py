"""Dynamics: dy/dt = f(t, y, theta)."""

from neuralpk.dynamics.base import Dynamics, StateSpace
from neuralpk.dynamics.compartment import Absorption, CompartmentModel, Compartments, Elimination
from neuralpk.dynamics.hybrid import HybridDynamics
from neuralpk.dynamics.neural import NeuralCompartments, NeuralField
from neuralpk.dynamics.perceptron import Activation, Perceptron
from neuralpk.dynamics.population import LotkaVolterra
from neuralpk.dynamics.recurrent import ContinuousTimeRNN, GatedRecurrence, JumpingField

__all__ = [
    "Absorption",
    "Activation",
    "CompartmentModel",
    "Compartments",
    "ContinuousTimeRNN",
    "Dynamics",
    "Elimination",
    "GatedRecurrence",
    "HybridDynamics",
    "JumpingField",
    "LotkaVolterra",
    "NeuralCompartments",
    "NeuralField",
    "Perceptron",
    "StateSpace",
]
