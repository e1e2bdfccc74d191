"""Perceptron fields on the CPU: Runge–Kutta steps of each subject's own size, and their reverse sweep.

Some subjects at a time (`LANES`) go through the same stage together, each at its own place of its own clock; one that
is done makes room for the next. So the network's matrices meet a block of rows, and yet no subject's steps depend on
another. What is remembered of a step is its start and the slopes of its stages, which tell where the stages stood: the
reverse sweep computes the hidden layers of all of them again, at once. States and step sizes are in double precision,
the network in that of its weights.
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
