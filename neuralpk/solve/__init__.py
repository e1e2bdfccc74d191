"""Solving dy/dt = f(t, y, theta), with noise or without: each subject on its own clock, with doses as events."""

from neuralpk.solve.interface import Trajectory, solve
from neuralpk.solve.options import Engine, Gradient, SolveError, SolverOptions, Status
from neuralpk.solve.stochastic import Guide, Noise, Paths, Selection, solve_paths

__all__ = [
    "Engine",
    "Gradient",
    "Guide",
    "Noise",
    "Paths",
    "Selection",
    "SolveError",
    "SolverOptions",
    "Status",
    "Trajectory",
    "solve",
    "solve_paths",
]
