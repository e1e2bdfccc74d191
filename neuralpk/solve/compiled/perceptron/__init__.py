"""Multilayer perceptrons as vector fields on the CPU: adaptive Runge–Kutta steps, and their reverse sweep.

`LANES` subjects go through the same stage of a step together, each at a different time and with a different step size;
the next subject replaces one that is finished. So the matrices of the network multiply a block of rows, while the steps
of a subject do not depend on the other subjects. The start and the slopes of every step are stored. From them the
reverse sweep computes the states of all stages, and then the hidden layers of all stages at once. States and step sizes
are in double precision, the network in that of its weights.
"""

from neuralpk.solve.compiled.perceptron.activation import SILU, SOFTPLUS, TANH
from neuralpk.solve.compiled.perceptron.forward_sweep import Steps, forward
from neuralpk.solve.compiled.perceptron.lanes import LANES, Lanes, make_lanes
from neuralpk.solve.compiled.perceptron.network import Network, Work, make_work
from neuralpk.solve.compiled.perceptron.node_events import Clock
from neuralpk.solve.compiled.perceptron.reverse_sweep import Gradients, backward

__all__ = [
    "LANES",
    "SILU",
    "SOFTPLUS",
    "TANH",
    "Clock",
    "Gradients",
    "Lanes",
    "Network",
    "Steps",
    "Work",
    "backward",
    "forward",
    "make_lanes",
    "make_work",
]
