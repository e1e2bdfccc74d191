"""Multilayer perceptrons as vector fields of the compiled steps.

The matrices of the network multiply a block of rows, one for each lane. The reverse sweep computes the hidden layers of
all stages of a step at once. The network is in the precision of its weights.
"""

from neuralpk.solve.compiled.perceptron.activation import SILU, SOFTPLUS, TANH
from neuralpk.solve.compiled.perceptron.network import Gradients, Network

__all__ = ["SILU", "SOFTPLUS", "TANH", "Gradients", "Network"]
