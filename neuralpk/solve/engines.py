"""Engines: the methods that solve a system, each an object with its options."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from neuralpk.cohort_batch import CohortBatch, Doses
from neuralpk.dynamics import Dynamics, StochasticDynamics, check_doses
from neuralpk.part import Part
from neuralpk.solve import adaptive_integrator, exact, stochastic_paths, torchdiffeq_steps
from neuralpk.solve.event_nodes import Mesh, build_mesh, dose_inputs, join_inputs
from neuralpk.solve.made_once import made_once
from neuralpk.solve.solve_result import EngineFailure, Status, Trajectory, ended
from neuralpk.solve.steady_state import Integrate, earlier_doses, steady_states

Gradient = Literal["backprop", "adjoint"]
Adaptive = Literal["dopri5", "dopri8"]
Fixed = Literal["euler", "midpoint", "heun2", "heun3", "rk4"]


class Solved(NamedTuple):
    """States at the wanted times ``[subject, time, state]``, `Status` ``[subject]``, evaluations of the field."""

    states: Tensor
    status: Tensor
    evaluations: int


@dataclass(frozen=True)
class Engine(Part, ABC):
    """A method that solves dy/dt = f(t, y, theta) with doses as events."""

    def refuse(self, dynamics: Dynamics, dtype: torch.dtype) -> None:
        """Check whether this engine can solve a dynamics.

        Raises:
            ValueError: it cannot, with the reason and an engine that can.
        """
        if isinstance(dynamics, StochasticDynamics):
            raise ValueError(
                f"{type(self).__name__} solves ordinary differential equations and {type(dynamics).__name__} is "
                "stochastic; use solve_paths with TorchSDE()"
            )

    @abstractmethod
    def solve(
        self,
        dynamics: Dynamics,
        theta: Tensor,
        batch: CohortBatch,
        times: Tensor | None = None,
        y0: Tensor | None = None,
    ) -> Trajectory:
        """Solve dy/dt = f(t, y, theta) for every subject of a batch, with its doses as events.

        A bolus is a jump of the state, an infusion a constant input from its start to its end; neither is smoothed into
        the field. The solution of a subject does not depend on the other subjects of the batch (to the tolerance), and
        a subject that cannot be solved changes neither the values nor the gradients of the others.

        Args:
            dynamics: the vector field, with lag and bioavailability of the doses.
            theta: parameters, ``[subject, period, parameter]``; one period serves for all periods of the batch.
            batch: doses, periods and start of each subject; its measured values are not read.
            times: where the state is wanted, ``[subject, time]``, in any order, repeated or not; after the doses of the
                same time. Default: the records of the batch, each before or after a dose of the same time as its row.
            y0: state at the first record, ``[subject, state]``; default: ``dynamics.initial_state``.

        Returns:
            The states, with a status for each subject. Differentiable in theta, y0 and the weights of the dynamics.

        Raises:
            ValueError: shapes, dtypes or times that do not fit; a dynamics that this engine cannot solve; a field that
                uses a tensor which its gradient would not reach.
        """


@dataclass(frozen=True)
class NodeEngine(Engine):
    """An engine that solves from node to node: the events of a subject and, where it `stops`, its wanted times."""

    @property
    def stops(self) -> bool:
        """Whether every wanted time has to be a node, because the engine cannot read states between two nodes."""
        return False

    @abstractmethod
    def integrate(self, dynamics: Dynamics, y0: Tensor, theta: Tensor, mesh: Mesh) -> Solved:
        """Solve from node to node.

        Args:
            dynamics: the vector field.
            y0: state before the first node, ``[subject, state]``.
            theta: ``[subject, period, parameter]``.
            mesh: events and wanted times.

        Raises:
            EngineFailure: some subject cannot be solved and the engine does not know which one.
        """

    def solve(
        self,
        dynamics: Dynamics,
        theta: Tensor,
        batch: CohortBatch,
        times: Tensor | None = None,
        y0: Tensor | None = None,
    ) -> Trajectory:
        rows, times = wanted(batch, times)
        y0 = initial_state(dynamics, theta, y0)
        kinds = check_inputs(dynamics, y0, theta, batch, times)
        self.refuse(dynamics, theta.dtype)
        evaluations = 0

        def integrate(y0: Tensor, theta: Tensor, mesh: Mesh) -> Solved:
            nonlocal evaluations
            solved = self.integrate(dynamics, y0, theta, mesh)
            evaluations += solved.evaluations
            return solved

        def run(subjects: Tensor | None) -> tuple[Tensor, Tensor]:
            start, part, at, order, of, own = y0, theta, times, rows, batch, kinds
            if subjects is not None:
                start, part, at, of = y0[subjects], theta[subjects], times[subjects], batch.select(subjects)
                order, own = None if rows is None else rows[subjects], _kinds_of(of.doses)
            mesh = _mesh(dynamics, own, lambda *each: integrate(*each).states, part, of, at, order, self.stops)
            return integrate(start, part, mesh)[:2]

        states, status = _isolate(run, times, len(dynamics.states))
        return Trajectory(times, states, batch.theta_at(theta, times, rows), status, evaluations, self)


@dataclass(frozen=True)
class Exact(NodeEngine):
    """The matrix exponential between two events, for linear dynamics: no steps and no tolerance."""

    def refuse(self, dynamics: Dynamics, dtype: torch.dtype) -> None:
        super().refuse(dynamics, dtype)
        if not dynamics.linear:
            raise ValueError(
                f"Exact solves linear dynamics and {type(dynamics).__name__} is not linear; use RungeKutta()"
            )

    def integrate(self, dynamics: Dynamics, y0: Tensor, theta: Tensor, mesh: Mesh) -> Solved:
        states = exact.integrate(dynamics, y0, theta, mesh)
        return Solved(states, ended(states), 0)


@dataclass(frozen=True)
class RungeKutta(NodeEngine):
    """Adaptive steps of order 5 for each subject by itself: explicit (Tsit5), and implicit (Rodas5P) for a subject that
    is stiff; compiled code where the field can be compiled. The gradient is the exact one of the steps taken.

    Args:
        rtol: relative tolerance of the error of a step.
        atol: absolute tolerance, in the unit of the state.
        max_evaluations: most evaluations of the field between two events.

    Raises:
        ValueError: a tolerance or a number that is not positive.
    """

    rtol: float = 1e-5
    atol: float = 1e-6
    max_evaluations: int = 10_000

    def __post_init__(self) -> None:
        _check_limits(self)

    def refuse(self, dynamics: Dynamics, dtype: torch.dtype) -> None:
        super().refuse(dynamics, dtype)
        _check_precision(self.rtol, dtype)

    def integrate(self, dynamics: Dynamics, y0: Tensor, theta: Tensor, mesh: Mesh) -> Solved:
        states, status, evaluations = adaptive_integrator.integrate(dynamics, y0, theta, mesh, self)
        return Solved(states, status, round(evaluations / len(y0)))


@dataclass(frozen=True)
class TorchDiffEq(NodeEngine):
    """The methods of torchdiffeq, with steps shared by all subjects: the reference against which others are tested.

    Args:
        method: ``dopri5`` or ``dopri8`` adapt their steps to the tolerances, for the subject with the largest error;
            ``euler``, ``midpoint``, ``heun2``, ``heun3``, ``rk4`` take steps of at most `step`.
        gradient: ``backprop`` differentiates the operations of the solve; ``adjoint`` integrates a(t) = dL/dy(t)
            backwards (Pontryagin 1962; Chen et al. 2018).
        rtol: relative tolerance of the adaptive methods.
        atol: absolute tolerance, in the unit of the state.
        step: largest step of the fixed-step methods, in the time unit of the cohort.
        max_evaluations: most evaluations of the field between two events, forward and backward each.

    Raises:
        ValueError: an unknown method or gradient; a number that is not positive; a fixed-step method without a step;
            an adaptive method with one.
    """

    method: Adaptive | Fixed = "dopri5"
    gradient: Gradient = "backprop"
    rtol: float = 1e-5
    atol: float = 1e-6
    step: float | None = None
    max_evaluations: int = 10_000

    def __post_init__(self) -> None:
        _check_name("method", self.method, (*get_args(Adaptive), *get_args(Fixed)))
        _check_name("gradient", self.gradient, get_args(Gradient))
        _check_limits(self)
        if self.fixed and not 0 < (self.step or 0.0) < math.inf:
            raise ValueError(f"method {self.method!r} takes fixed steps: pass a positive step, not {self.step}")
        if not self.fixed and self.step is not None:
            raise ValueError(f"method {self.method!r} chooses its steps by the tolerances and has no step {self.step}")

    @property
    def fixed(self) -> bool:
        """Whether the method takes fixed steps."""
        return self.method in get_args(Fixed)

    @property
    def stops(self) -> bool:
        return True

    def refuse(self, dynamics: Dynamics, dtype: torch.dtype) -> None:
        super().refuse(dynamics, dtype)
        _check_precision(self.rtol, dtype)

    def integrate(self, dynamics: Dynamics, y0: Tensor, theta: Tensor, mesh: Mesh) -> Solved:
        states, evaluations = torchdiffeq_steps.integrate(dynamics, y0, theta, mesh, self)
        return Solved(states, ended(states), evaluations)


@dataclass(frozen=True)
class TorchSDE(Engine):
    """Heun's method for stochastic differential equations, by torchsde.

    `solve` takes the path without noise, W = 0; `neuralpk.solve.solve_paths` draws paths.

    Args:
        step: largest step, in the time unit of the cohort; default: a fortieth of the longest time asked for.
        gradient: ``backprop`` differentiates the operations of the solve (`torchsde.sdeint`), ``adjoint`` reconstructs
            them backwards (`torchsde.sdeint_adjoint`); both are exact for the steps taken.

    Raises:
        ValueError: an unknown gradient; a step that is not positive.
    """

    step: float | None = None
    gradient: Gradient = "backprop"

    def __post_init__(self) -> None:
        _check_name("gradient", self.gradient, get_args(Gradient))
        if self.step is not None and not 0 < self.step < math.inf:
            raise ValueError(f"step must be positive, not {self.step}")

    def refuse(self, dynamics: Dynamics, dtype: torch.dtype) -> None:
        if not isinstance(dynamics, StochasticDynamics):
            raise ValueError(
                f"TorchSDE solves stochastic differential equations and {type(dynamics).__name__} has no noise; use "
                "Auto()"
            )

    def solve(
        self,
        dynamics: Dynamics,
        theta: Tensor,
        batch: CohortBatch,
        times: Tensor | None = None,
        y0: Tensor | None = None,
    ) -> Trajectory:
        return self.paths(dynamics, theta, batch, times, y0=y0)

    def paths(
        self,
        dynamics: Dynamics,
        theta: Tensor,
        batch: CohortBatch,
        times: Tensor | None = None,
        noise: stochastic_paths.Noise | None = None,
        guide: stochastic_paths.Guide | None = None,
        selection: stochastic_paths.Selection | None = None,
        y0: Tensor | None = None,
    ) -> stochastic_paths.Paths:
        """A path of every subject; arguments as of `neuralpk.solve.solve_paths`."""
        self.refuse(dynamics, theta.dtype)
        assert isinstance(dynamics, StochasticDynamics)  # has just been checked
        rows, times = wanted(batch, times)
        y0 = initial_state(dynamics, theta, y0)
        check_inputs(dynamics, y0, theta, batch, times)
        return stochastic_paths.integrate(dynamics, y0, theta, batch, times, rows, self, noise, guide, selection)


@dataclass(frozen=True)
class Auto(Engine):
    """The engine that fits the dynamics: `Exact` where it is linear, `TorchSDE` where it is stochastic, otherwise
    `RungeKutta` with these options.

    Args:
        rtol: as for `RungeKutta`.
        atol: as for `RungeKutta`.
        max_evaluations: as for `RungeKutta`.

    Raises:
        ValueError: a tolerance or a number that is not positive.
    """

    rtol: float = 1e-5
    atol: float = 1e-6
    max_evaluations: int = 10_000

    def __post_init__(self) -> None:
        _check_limits(self)

    def chosen(self, dynamics: Dynamics) -> Engine:
        """The engine of a dynamics."""
        if isinstance(dynamics, StochasticDynamics):
            return TorchSDE()
        return Exact() if dynamics.linear else RungeKutta(self.rtol, self.atol, self.max_evaluations)

    def refuse(self, dynamics: Dynamics, dtype: torch.dtype) -> None:
        self.chosen(dynamics).refuse(dynamics, dtype)

    def solve(
        self,
        dynamics: Dynamics,
        theta: Tensor,
        batch: CohortBatch,
        times: Tensor | None = None,
        y0: Tensor | None = None,
    ) -> Trajectory:
        return self.chosen(dynamics).solve(dynamics, theta, batch, times, y0)


def wanted(batch: CohortBatch, times: Tensor | None) -> tuple[Tensor | None, Tensor]:
    """The order of the wanted times among records of the same time, None for after all of them, and the times; each
    ``[subject, time]``."""
    return (batch.row, batch.time) if times is None else (None, times)


def initial_state(dynamics: Dynamics, theta: Tensor, y0: Tensor | None) -> Tensor:
    """The state at the first record, ``[subject, state]``: `y0`, or that of the dynamics."""
    if theta.dim() != 3 or theta.shape[1] == 0 or theta.shape[-1] != len(dynamics.parameter_names):
        raise ValueError(
            f"theta must be [subject, period, parameter] with the parameters {', '.join(dynamics.parameter_names)}; "
            f"got {tuple(theta.shape)}"
        )
    return dynamics.initial_state(theta[:, 0]) if y0 is None else y0


class _KindsOfDose(NamedTuple):
    """Whether some doses are at steady state, and whether the model has the rate or the duration of some."""

    steady_state: bool
    modelled: bool


def _kinds_of(doses: Doses) -> _KindsOfDose:
    return _KindsOfDose(bool((doses.steady_state > 0).any()), bool((doses.rate < 0).any()))


def check_inputs(dynamics: Dynamics, y0: Tensor, theta: Tensor, batch: CohortBatch, times: Tensor) -> _KindsOfDose:
    """Check shapes, dtypes, times and doses of a solve.

    Raises:
        ValueError: what does not fit, with the subjects where it is about some of them.
    """
    n, doses = len(batch), batch.doses
    if theta.shape[0] != n:
        raise ValueError(f"theta must be [subject, period, parameter] with {n} subjects; got {tuple(theta.shape)}")
    if y0.shape != (n, len(dynamics.states)):
        raise ValueError(f"y0 must be [subject, state] = {(n, len(dynamics.states))}, got {tuple(y0.shape)}")
    kinds = {y0.dtype, theta.dtype, times.dtype, batch.time.dtype, doses.time.dtype}
    if len(kinds) > 1 or not kinds <= {torch.float32, torch.float64}:
        raise ValueError(
            f"y0, theta, times, doses and batch must share float32 or float64, got {sorted(map(str, kinds))}"
        )
    if times.shape[0] != n:
        raise ValueError(f"times must be [subject, time] with {n} subjects, got {tuple(times.shape)}")
    of = dynamics.states, dynamics.autonomous, tuple(dynamics.with_rate), tuple(dynamics.with_duration)
    read = times, batch.start, doses.compartment, doses.mask, doses.rate, doses.steady_state
    return made_once(batch, "_kinds_of_dose", of, read, lambda: _check_events(dynamics, batch, times))


def _check_events(dynamics: Dynamics, batch: CohortBatch, times: Tensor) -> _KindsOfDose:
    """Check times and doses of a solve.

    Raises:
        ValueError: what does not fit, with the subjects where it is about some of them.
    """
    doses = batch.doses
    if not bool(torch.isfinite(times.sum())):
        raise ValueError("times must be finite")
    outside = ((doses.compartment >= len(dynamics.states)) & doses.mask).any(1)
    if bool(outside.any()):
        raise ValueError(
            f"subject {_first_ids(batch, outside)}: a dose into a compartment beyond the {len(dynamics.states)} of "
            f"this model, {', '.join(dynamics.states)} (CMT 1 to {len(dynamics.states)})"
        )
    check_doses(dynamics, doses)
    if not dynamics.autonomous and bool(doses.at_steady_state.any()):
        raise ValueError(f"{type(dynamics).__name__} changes with time and has no steady state; write the doses out")
    early = (times < batch.start[:, None]).any(1)
    if bool(early.any()):
        raise ValueError(
            f"times before the first record of subject {_first_ids(batch, early)}: the initial state holds at the "
            "first record, and nothing is solved before it"
        )
    return _kinds_of(doses)


def _first_ids(batch: CohortBatch, chosen: Tensor) -> str:
    return ", ".join(batch.ids[k] for k in chosen.nonzero().flatten().tolist()[:5])


def _check_name(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is one of {', '.join(allowed)}; not {value!r}")


def _check_limits(engine: RungeKutta | TorchDiffEq | Auto) -> None:
    if not (0 < engine.rtol < math.inf and 0 < engine.atol < math.inf):
        raise ValueError(f"tolerances must be positive and finite, got rtol {engine.rtol}, atol {engine.atol}")
    if engine.max_evaluations < 1:
        raise ValueError(f"max_evaluations must be 1 or more, not {engine.max_evaluations}")


def _check_precision(rtol: float, dtype: torch.dtype) -> None:
    if dtype == torch.float32 and rtol < 1e-6:
        raise ValueError(f"rtol {rtol:g} is below what float32 resolves; use at least 1e-6, or float64")


def _isolate(
    run: Callable[[Tensor | None], tuple[Tensor, Tensor]], times: Tensor, states: int
) -> tuple[Tensor, Tensor]:
    """Solve the subjects together; where that fails, find those that cannot be solved by halving and solve the others
    without them.

    `run` returns the states of some subjects, None for all of them, and how each of them ended. Masking a failed
    subject out of the result is not enough: its NaN would still reach the gradient of every weight.

    Returns:
        The states ``[subject, time, state]``, NaN for those that failed, and how each subject ended.
    """
    n = len(times)
    everybody = torch.arange(n, device=times.device)
    parts: list[tuple[Tensor, Tensor]] = []
    status = torch.zeros_like(everybody)
    left: list[Tensor | None] = [None] if n else []
    while left:
        subjects = left.pop()
        try:
            found, ended_ = run(subjects)
        except EngineFailure as failure:
            subjects = everybody if subjects is None else subjects
            if len(subjects) == 1:
                status[subjects] = int(failure.status)
            else:
                left += subjects.tensor_split(2)[::-1]
            continue
        every = not bool(ended_.any())
        if every and subjects is None:
            return found, ended_
        well, subjects = ended_ == Status.OK, everybody if subjects is None else subjects
        status[subjects] = ended_
        if every:
            parts.append((subjects, found))
        elif bool(well.any()):
            left.append(subjects[well])
    out = times.new_full((*times.shape, states), torch.nan)
    for subjects, found in parts:
        out = out.index_copy(0, subjects, found)
    return out, status


def _mesh(
    dynamics: Dynamics,
    kinds: _KindsOfDose,
    integrate: Integrate,
    theta: Tensor,
    batch: CohortBatch,
    times: Tensor,
    rows: Tensor | None,
    stop: bool,
) -> Mesh:
    """Doses with their lag and bioavailability, steady states filled in, sorted into the events of every subject."""
    states = len(dynamics.states)
    of_theta = any(f(theta) is not None for f in (dynamics.lag, dynamics.bioavailability, dynamics.dose_unit))
    if not (kinds.steady_state or kinds.modelled or of_theta):  # the mesh does not depend on theta
        return made_once(
            batch,
            "_mesh",
            (states, stop),
            (times, rows, batch.start, batch.period_start, *vars(batch.doses).values()),
            lambda: build_mesh(batch, dose_inputs(dynamics, theta, batch), states, times, rows, None, stop),
        )
    inputs = dose_inputs(dynamics, theta, batch)
    if not kinds.steady_state:
        return build_mesh(batch, inputs, states, times, rows, None, stop)
    steady = steady_states(dynamics, integrate, theta, batch, inputs)
    earlier = earlier_doses(batch, inputs)
    inputs = inputs if earlier is None else join_inputs(inputs, earlier)
    return build_mesh(batch, inputs, states, times, rows, steady, stop)
