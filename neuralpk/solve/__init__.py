"""Solving dy/dt = f(t, y, theta), with noise or without, for many subjects at once, with doses as events."""

from neuralpk.solve.engines import Auto, Engine, Exact, RungeKutta, TorchDiffEq, TorchSDE
from neuralpk.solve.solve_functions import solve, solve_paths
from neuralpk.solve.solve_result import SolveError, Status, Trajectory
from neuralpk.solve.stochastic_paths import Guide, Noise, Paths, Selection

__all__ = [
    "Auto",
    "Engine",
    "Exact",
    "Guide",
    "Noise",
    "Paths",
    "RungeKutta",
    "Selection",
    "SolveError",
    "Status",
    "TorchDiffEq",
    "TorchSDE",
    "Trajectory",
    "solve",
    "solve_paths",
]
