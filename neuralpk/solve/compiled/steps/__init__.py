"""Adaptive steps of a one-step method for any compiled vector field on the CPU, and their reverse sweep.

`LANES` subjects go through the same stage of a step together, each at a different time and with a different step size;
the next subject replaces one that is finished. So the field is evaluated for a block of subjects, while the steps of a
subject do not depend on the other subjects. The start of every step is stored, and of a perceptron the slopes of its
stages. From them the reverse sweep computes the stages again. States and step sizes are in double precision.
"""

from neuralpk.solve.compiled.steps.forward_sweep import Steps, forward
from neuralpk.solve.compiled.steps.lanes import LANES, Lanes, make_lanes
from neuralpk.solve.compiled.steps.method import RODAS5P, TSIT5, Method
from neuralpk.solve.compiled.steps.node_events import Clock
from neuralpk.solve.compiled.steps.reverse_sweep import backward

__all__ = ["LANES", "RODAS5P", "TSIT5", "Clock", "Lanes", "Method", "Steps", "backward", "forward", "make_lanes"]
