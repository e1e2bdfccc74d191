"""`solve` and `solve_paths`: solve a system, with noise or without."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from neuralpk.cohort import Dose
from neuralpk.cohort_batch import CohortBatch, Doses
from neuralpk.dynamics import Dynamics, StochasticDynamics
from neuralpk.solve.engines import Auto, Engine, TorchSDE
from neuralpk.solve.solve_result import Trajectory
from neuralpk.solve.stochastic_paths import Guide, Noise, Paths, Selection


def solve(
    dynamics: Dynamics,
    theta: Tensor,
    times: Tensor,
    doses: Doses | Sequence[Sequence[Dose]] | None = None,
    *,
    start: Tensor | None = None,
    period_start: Tensor | None = None,
    y0: Tensor | None = None,
    engine: Engine | None = None,
) -> Trajectory:
    """Solve dy/dt = f(t, y, theta) at some times, for many subjects at once, each with its doses as events.

    A dose of 100 mg into the central compartment of two patients, with clearances of 2 and 4 L/h::

        import torch
        from neuralpk.cohort import Dose
        from neuralpk.dynamics import CompartmentModel
        from neuralpk.solve import solve

        model = CompartmentModel(1)
        theta = torch.tensor([[2.0, 10.0], [4.0, 10.0]])  # CL, V1
        times = torch.tensor([[0.0, 1.0, 2.0], [0.0, 1.0, 2.0]])
        solution = solve(model, theta, times, [[Dose(0.0, 100.0)], [Dose(0.0, 100.0)]])
        solution.check()
        concentration = model.observe(solution.states, solution.theta)[..., 0]

    Args:
        dynamics: the vector field, with lag and bioavailability of the doses.
        theta: parameters, ``[subject, parameter]``, or ``[subject, period, parameter]`` where they change in time.
        times: where the state is wanted, ``[subject, time]``, in any order, repeated or not; after the doses of the
            same time. A ``[time]`` serves for all subjects.
        doses: of each subject, as `Doses` or as one sequence of `Dose` for each subject; None for no dose.
        start: time of the initial state, ``[subject]``; default: the earliest of the doses and times of each subject.
        period_start: where each period begins, ``[subject, period]``; needed where theta has several periods.
        y0: state at the start, ``[subject, state]``; default: ``dynamics.initial_state``.
        engine: method with its options; default: `neuralpk.solve.Auto`.

    Returns:
        The states, with a status for each subject (`Trajectory.check` raises where one could not be solved).
        Differentiable in theta, y0, times and the weights of the dynamics.

    Raises:
        ValueError: shapes, dtypes or times that do not fit; a dynamics that the engine cannot solve.
    """
    if theta.dim() not in (2, 3):
        raise ValueError(
            f"theta must be [subject, parameter] or [subject, period, parameter], got {tuple(theta.shape)}"
        )
    theta = theta[:, None] if theta.dim() == 2 else theta
    n = len(theta)
    times = times.expand(n, -1) if times.dim() == 1 else times
    if times.dim() != 2 or len(times) != n or times.shape[1] == 0:
        raise ValueError(f"times must be [subject, time] with {n} subjects and a time, got {tuple(times.shape)}")
    if doses is not None and not isinstance(doses, Doses):
        doses = Doses.of(doses, times.dtype).to(times.device)
    if doses is not None and len(doses) != n:
        raise ValueError(f"doses must have one sequence for each of the {n} subjects, got {len(doses)}")
    if theta.shape[1] > 1 and (period_start is None or period_start.shape != theta.shape[:2]):
        found = None if period_start is None else tuple(period_start.shape)
        raise ValueError(
            f"theta has {theta.shape[1]} periods: pass period_start [subject, period] = {tuple(theta.shape[:2])}, "
            f"not {found}"
        )
    for name, value in (("start", start), ("period_start", period_start)):
        if value is not None and len(value) != n:
            raise ValueError(f"{name} must have {n} subjects, got {tuple(value.shape)}")
    batch = CohortBatch.unmeasured(times, doses, start, period_start)
    return (engine or Auto()).solve(dynamics, theta, batch, times, y0)


def solve_paths(
    dynamics: StochasticDynamics,
    theta: Tensor,
    batch: CohortBatch,
    times: Tensor | None = None,
    engine: Engine | None = None,
    noise: Noise | None = None,
    guide: Guide | None = None,
    selection: Selection | None = None,
    y0: Tensor | None = None,
) -> Paths:
    """Solve dY = f dt + g dW for every subject of a batch, with its doses as jumps.

    Heun's method in steps of at most ``engine.step``, whose weak order for additive noise is 2. Gradients by
    ``backprop`` (`torchsde.sdeint`) and by ``adjoint`` (`torchsde.sdeint_adjoint`) are both exact for the steps taken:
    one step of Heun's method from the state is one of the reversible method of Kidger et al. (2021).

    Args:
        dynamics: drift, diffusion, and how doses enter.
        theta: parameters, ``[subject, period, parameter]``.
        batch: doses, periods and start of each subject.
        times: where the state is wanted, ``[subject, time]``. Default: the records of the batch.
        engine: `TorchSDE`; `Auto`, the default, is `TorchSDE` with its default step.
        noise: the Brownian motions; None takes W = 0, the path of the drift alone.
        guide: of an approximate posterior; None solves the dynamics itself.
        selection: among the samples of each subject, at the records of the batch; None continues each of them. As usual
            its derivative is left out of the gradient, because it would make the variance of the gradient very large
            (Maddison et al. 2017).
        y0: state at the first record, ``[subject, state]``; default: ``dynamics.initial_state``.

    Raises:
        ValueError: shapes, dtypes or times that do not fit; a steady-state dose; another engine; a drift that uses a
            tensor which the adjoint would not reach.
    """
    engine = TorchSDE() if engine is None or isinstance(engine, Auto) else engine
    if not isinstance(engine, TorchSDE):
        raise ValueError(f"{type(engine).__name__} cannot draw paths of {type(dynamics).__name__}; use TorchSDE()")
    return engine.paths(dynamics, theta, batch, times, noise, guide, selection, y0)
