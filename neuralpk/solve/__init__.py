"""Solving dy/dt = f(t, y, theta) for many subjects, each on its own clock, with doses as events."""

from neuralpk.solve.interface import Trajectory, solve
from neuralpk.solve.options import Engine, Gradient, SolveError, SolverOptions, Status

__all__ = ["Engine", "Gradient", "SolveError", "SolverOptions", "Status", "Trajectory", "solve"]
