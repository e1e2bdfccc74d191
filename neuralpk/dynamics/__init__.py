"""Dynamics: dy/dt = f(t, y, theta), and the base class of all decoders."""

from neuralpk.dynamics.compartments import (
    Absorption,
    CompartmentModel,
    Compartments,
    ConcentrationModel,
    Elimination,
    RateConstants,
)
from neuralpk.dynamics.corrections import Correction, NeuralFlows, NeuralSlope
from neuralpk.dynamics.decoder_base import Decoder, Solver, check_doses
from neuralpk.dynamics.dynamics_base import Dynamics
from neuralpk.dynamics.equations import Equations, library
from neuralpk.dynamics.expression import EquationError
from neuralpk.dynamics.fixed_parameters import FixedParameters
from neuralpk.dynamics.fused_form import Activation, Perceptron
from neuralpk.dynamics.hybrid import HybridDynamics
from neuralpk.dynamics.lotka_volterra import LotkaVolterra
from neuralpk.dynamics.network_terms import NetworkTerm
from neuralpk.dynamics.neural_compartments import NeuralCompartments
from neuralpk.dynamics.neural_field import NeuralField
from neuralpk.dynamics.random_feature_fields import RandomFeatureField, RandomFeatureSlope
from neuralpk.dynamics.sir import SIR
from neuralpk.dynamics.stochastic import (
    FluctuatingClearance,
    OrnsteinUhlenbeck,
    StochasticDynamics,
    StochasticLotkaVolterra,
)
from neuralpk.dynamics.structures import structure, structures
from neuralpk.dynamics.symbols import FunctionError, Symbol
from neuralpk.dynamics.wrapper import Wrapper

__all__ = [
    "SIR",
    "Absorption",
    "Activation",
    "CompartmentModel",
    "Compartments",
    "ConcentrationModel",
    "Correction",
    "Decoder",
    "Dynamics",
    "Elimination",
    "EquationError",
    "Equations",
    "FixedParameters",
    "FluctuatingClearance",
    "FunctionError",
    "HybridDynamics",
    "LotkaVolterra",
    "NetworkTerm",
    "NeuralCompartments",
    "NeuralField",
    "NeuralFlows",
    "NeuralSlope",
    "OrnsteinUhlenbeck",
    "Perceptron",
    "RandomFeatureField",
    "RandomFeatureSlope",
    "RateConstants",
    "Solver",
    "StochasticDynamics",
    "StochasticLotkaVolterra",
    "Symbol",
    "Wrapper",
    "check_doses",
    "library",
    "structure",
    "structures",
]
