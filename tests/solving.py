"""Solving for the subjects of a batch with parameters that need not have periods."""

from typing import Any

from torch import Tensor

from neuralpk.cohort_batch import CohortBatch
from neuralpk.dynamics import Dynamics
from neuralpk.solve import Auto, Engine, RungeKutta, TorchDiffEq, Trajectory


def solve_batch(
    dynamics: Dynamics,
    theta: Tensor,
    batch: CohortBatch,
    times: Tensor | None = None,
    engine: Engine | None = None,
    y0: Tensor | None = None,
) -> Trajectory:
    """As `Engine.solve`, also for theta ``[subject, parameter]``."""
    theta = theta if theta.dim() == 3 else theta[:, None]
    return (engine or Auto()).solve(dynamics, theta, batch, times, y0)


def engine_with(gradient: str, method: str | None = None, step: float | None = None, **options: Any) -> Engine:
    """The engine that has a gradient, ``discrete``, ``backprop`` or ``adjoint``; the step where the method has one."""
    if gradient == "discrete":
        return RungeKutta(**options)
    method = method or "dopri5"
    return TorchDiffEq(method, gradient, step=step if method == "rk4" else None, **options)
