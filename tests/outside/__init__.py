"""A small package as a stranger would write it: one of everything that neuralpk lets its users bring."""

from outside.decoder import OralDose
from outside.distribution import SquareRootNormal
from outside.dynamics import ParallelElimination
from outside.effect import Maturation
from outside.encoder import AverageEncoder
from outside.error import RobustError
from outside.objective import HuberError
from outside.training import Counter, LinesLogger, SignDescent

__all__ = [
    "AverageEncoder",
    "Counter",
    "HuberError",
    "LinesLogger",
    "Maturation",
    "OralDose",
    "ParallelElimination",
    "RobustError",
    "SignDescent",
    "SquareRootNormal",
]
