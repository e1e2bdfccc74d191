"""`solve`: the one door to the engines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from neuralpk.batch import CohortBatch
from neuralpk.dynamics import Dynamics
from neuralpk.solve import exact, reference, runge_kutta
from neuralpk.solve.mesh import Mesh, build_mesh, dose_inputs, join_inputs, period_at, theta_at
from neuralpk.solve.options import Engine, SolveError, SolverOptions, Status
from neuralpk.solve.reference import EngineFailure, Evaluations
from neuralpk.solve.steady_state import Integrate, steady_states, still_running


@dataclass(frozen=True)
class Trajectory:
    """A solution with its evidence.

    Args:
        times: ``[subject, time]``.
        states: ``[subject, time, state]``; NaN for a subject that failed.
        theta: the parameters in force at each time, ``[subject, time, parameter]``.
        status: how each subject ended, a `Status`, integer ``[subject]``.
        count: evaluations of the field for all subjects at once (torchdiffeq, whose adjoint adds to them when it goes
            backwards), or for a subject on average (runge_kutta).
        engine: what solved it; ``recurrence`` where a network stepped, ``torchsde`` for the paths of a stochastic
            dynamics.
    """

    times: Tensor
    states: Tensor
    theta: Tensor
    status: Tensor
    count: Evaluations
    engine: Engine | Literal["recurrence", "torchsde"]

    @property
    def ok(self) -> Tensor:
        """Which subjects were solved, bool ``[subject]``."""
        return self.status == Status.OK

    def check(self, ids: Sequence[str], options: SolverOptions) -> None:
        """Raise unless every subject was solved.

        Raises:
            SolveError: naming the subjects, how they ended, method, tolerances, and what to try.
        """
        failed = [
            f"{ids[k]}: {Status(int(self.status[k])).name.lower()}" for k in self.status.nonzero().flatten().tolist()
        ]
        if failed:
            shown = "; ".join(failed[:10]) + (f" (+{len(failed) - 10} more)" if len(failed) > 10 else "")
            how = f"{self.engine} {options.method}" if options.method else self.engine
            raise SolveError(
                f"{len(failed)} of {len(ids)} subjects not solved by {how} at rtol {options.rtol:g}, "
                f"atol {options.atol:g}: {shown}. Look at their doses and times; loosen the tolerances or raise "
                f"max_evaluations ({options.max_evaluations}) if their data are right."
            )


def _isolate(
    run: Callable[[Tensor], tuple[Tensor, Tensor]], subjects: Tensor, status: Tensor
) -> list[tuple[Tensor, Tensor]]:
    """Solve the subjects together; where that fails, find those to blame by halving and solve the rest without them.

    `run` gives the states of some subjects, and how each of them ended. Masking a failed subject out of the result is
    not enough: its NaN would still reach the gradient of every weight.
    """
    if len(subjects) == 0:
        return []
    try:
        states, ended = run(subjects)
    except EngineFailure as failure:
        if len(subjects) == 1:
            status[subjects] = int(failure.status)
            return []
        middle = len(subjects) // 2
        return _isolate(run, subjects[:middle], status) + _isolate(run, subjects[middle:], status)
    status[subjects] = ended
    well = ended == Status.OK
    return [(subjects, states)] if bool(well.all()) else _isolate(run, subjects[well], status)


def _door(dynamics: Dynamics, y0: Tensor, theta: Tensor, batch: CohortBatch, times: Tensor, o: SolverOptions) -> None:
    n = len(batch)
    if theta.dim() not in (2, 3) or len(theta) != n or theta.shape[-1] != len(dynamics.parameter_names):
        raise ValueError(
            f"theta must be [subject, parameter] or [subject, period, parameter] with {n} subjects and the parameters "
            f"{', '.join(dynamics.parameter_names)}; got {tuple(theta.shape)}"
        )
    if y0.shape != (n, len(dynamics.states)):
        raise ValueError(f"y0 must be [subject, state] = {(n, len(dynamics.states))}, got {tuple(y0.shape)}")
    kinds = {y0.dtype, theta.dtype, times.dtype, batch.time.dtype}
    if len(kinds) > 1 or not kinds <= {torch.float32, torch.float64}:
        raise ValueError(f"y0, theta, times and batch must share float32 or float64, got {sorted(map(str, kinds))}")
    if o.engine != "exact" and theta.dtype == torch.float32 and o.rtol < 1e-6:
        raise ValueError(f"rtol {o.rtol:g} is below what float32 resolves; use at least 1e-6, or float64")
    if len(times) != n or not bool(torch.isfinite(times.sum())):
        raise ValueError(f"times must be finite, [subject, time] with {n} subjects, got {tuple(times.shape)}")
    outside = ((batch.dose_compartment >= len(dynamics.states)) & batch.dose_mask).any(1)
    if bool(outside.any()):
        names = [batch.ids[k] for k in outside.nonzero().flatten().tolist()[:5]]
        raise ValueError(
            f"subject {', '.join(names)}: a dose into a compartment beyond the {len(dynamics.states)} of this model, "
            f"{', '.join(dynamics.states)} (CMT 1 to {len(dynamics.states)})"
        )
    if not dynamics.autonomous and bool(((batch.dose_steady_state > 0) & batch.dose_mask).any()):
        raise ValueError(f"{type(dynamics).__name__} changes with time and has no steady state; write the doses out")
    early = (times < batch.start[:, None]).any(1)
    if bool(early.any()):
        names = [batch.ids[k] for k in early.nonzero().flatten().tolist()[:5]]
        raise ValueError(f"times before the first record of subject {', '.join(names)}: a clock starts there")


def solve(
    dynamics: Dynamics,
    y0: Tensor,
    theta: Tensor,
    batch: CohortBatch,
    times: Tensor | None = None,
    options: SolverOptions | None = None,
) -> Trajectory:
    """Solve dy/dt = f(t, y, theta) for every subject of a batch, each on its own clock, with its doses as events.

    A bolus is a jump of the state, an infusion a constant input from its start to its end; neither is smoothed into
    the field. A subject's line does not depend on its batch mates (to the tolerance), and one that cannot be solved
    does not spoil the others' values or gradients.

    Args:
        dynamics: the vector field, with lag and bioavailability of the doses.
        y0: state at the first record, ``[subject, state]``.
        theta: parameters, ``[subject, parameter]``, or ``[subject, period, parameter]`` where they change with
            time-varying covariates or occasions.
        batch: doses and clocks.
        times: where the state is wanted, ``[subject, time]``, in any order, repeated or not; after the doses of the
            same time. Default: the records of the batch, before or after a dose of the same time as they stand.
        options: engine, method, tolerances, gradient.

    Returns:
        The states, with a status for each subject. Differentiable in y0, theta and the weights of the dynamics.

    Raises:
        ValueError: shapes, dtypes or times that do not fit; a field that closes over a tensor (adjoint only).
        TypeError: the exact engine was asked for a dynamics that is not linear.
    """
    options = options or SolverOptions()
    rows = batch.row if times is None else torch.full_like(times, torch.iinfo(torch.int64).max, dtype=torch.int64)
    times = batch.time if times is None else times
    _door(dynamics, y0, theta, batch, times, options)
    engine = options.engine_for(dynamics.linear)
    count = Evaluations(options.max_evaluations)

    def integrate(y0: Tensor, theta: Tensor, mesh: Mesh) -> tuple[Tensor, Tensor]:
        if engine == "runge_kutta":
            states, ended, evaluations = runge_kutta.integrate(dynamics, y0, theta, mesh, options)
            count.total += round(evaluations / len(y0))
            return states, ended
        if engine == "exact":
            states = exact.integrate(dynamics, y0, theta, mesh)
        else:
            states = reference.integrate(dynamics, y0, theta, mesh, options, count)
        finite = torch.isfinite(states.detach().sum((1, 2)))  # one pass: a sum is finite if all of it is
        return states, torch.where(finite, int(Status.OK), int(Status.NON_FINITE))

    def run(subjects: Tensor) -> tuple[Tensor, Tensor]:
        every = len(subjects) == len(batch)
        start, own, wanted, order = (part if every else part[subjects] for part in (y0, theta, times, rows))
        given = batch if every else batch.select(subjects)
        stop = engine == "torchdiffeq"
        mesh = _mesh(dynamics, lambda *each: integrate(*each)[0], own, given, wanted, order, stop)
        return integrate(start, own, mesh)

    status = torch.zeros(len(batch), dtype=torch.int64, device=y0.device)
    parts = _isolate(run, torch.arange(len(batch), device=y0.device), status)
    if len(parts) == 1 and len(parts[0][0]) == len(batch):
        states = parts[0][1]
    else:
        states = y0.new_full((*times.shape, len(dynamics.states)), torch.nan)
        for subjects, solved in parts:
            states = states.index_copy(0, subjects, solved)
    return Trajectory(times, states, theta_at(theta, period_at(batch, times)), status, count, engine)


def _mesh(
    dynamics: Dynamics,
    integrate: Integrate,
    theta: Tensor,
    batch: CohortBatch,
    times: Tensor,
    rows: Tensor,
    stop: bool,
) -> Mesh:
    """Doses with their lag and bioavailability, steady states filled in, sorted into every subject's clock."""
    inputs = dose_inputs(dynamics, theta, batch)
    if not bool((batch.dose_steady_state > 0).any()):
        return build_mesh(batch, inputs, len(dynamics.states), times, rows, None, stop)
    steady = steady_states(dynamics, integrate, theta, batch, inputs)
    earlier = still_running(batch, inputs)
    inputs = inputs if earlier is None else join_inputs(inputs, earlier)
    return build_mesh(batch, inputs, len(dynamics.states), times, rows, steady, stop)
