"""Trajectory: the solution of a system for a batch of subjects, and how the solve of each subject ended."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from neuralpk.solve.engines import Engine


class Status(enum.IntEnum):
    """How the solve of one subject ended."""

    OK = 0
    MAX_EVALUATIONS = 1
    STEP_UNDERFLOW = 2
    NON_FINITE = 3


class SolveError(RuntimeError):
    """A subject could not be solved; the message names it."""


class EngineFailure(SolveError):
    """Some subject of a batch cannot be integrated; the engine does not know which one."""

    def __init__(self, status: Status) -> None:
        super().__init__(f"{status.name.lower()} between two nodes")
        self.status = status


@dataclass(frozen=True)
class Trajectory:
    """The states of some subjects at some times, with how each solve ended and what it cost.

    Args:
        times: ``[subject, time]``.
        states: ``[subject, time, state]``; NaN for a subject that failed.
        theta: the parameters in force at each time, ``[subject, time, parameter]``.
        status: a `Status` of each subject, integer ``[subject]``.
        evaluations: of the vector field, forward: of one subject on average (`RungeKutta`), of all subjects at once
            (`TorchDiffEq`, `TorchSDE`); 0 where nothing was evaluated (`Exact`).
        engine: what solved it; None where no equation was solved.
    """

    times: Tensor
    states: Tensor
    theta: Tensor
    status: Tensor
    evaluations: int
    engine: Engine | None

    @classmethod
    def of(cls, times: Tensor, states: Tensor, theta: Tensor, evaluations: int = 0) -> Trajectory:
        """The trajectory of states that were computed without an engine, such as those of a recurrent network.

        Its status is NON_FINITE for subjects whose states are not all finite.
        """
        return Trajectory(times, states, theta, ended(states), evaluations, None)

    @property
    def ok(self) -> Tensor:
        """Which subjects were solved, bool ``[subject]``."""
        return self.status == Status.OK

    def check(self, ids: Sequence[str] | None = None) -> None:
        """Raise unless every subject was solved.

        Args:
            ids: names of the subjects; default: 1, 2, 3, …

        Raises:
            SolveError: the subjects, how they ended, the engine with its options, and what to try.
        """
        if not bool(self.status.any()):
            return
        names = [str(k + 1) for k in range(len(self.status))] if ids is None else ids
        failed = [
            f"{names[k]}: {Status(int(self.status[k])).name.lower()}" for k in self.status.nonzero().flatten().tolist()
        ]
        shown = "; ".join(failed[:10]) + (f" (+{len(failed) - 10} more)" if len(failed) > 10 else "")
        by = "" if self.engine is None else f" by {self.engine}"
        raise SolveError(
            f"{len(failed)} of {len(names)} subjects not solved{by}: {shown}. Check their doses and times; if these "
            "are right, use an engine with larger tolerances or more evaluations."
        )


def ended(states: Tensor) -> Tensor:
    """OK for subjects whose states ``[subject, time, state]`` are all finite, else NON_FINITE, ``[subject]``."""
    finite = torch.isfinite(states.detach().sum((1, 2)))  # one pass: a sum is finite only if all of it is
    return torch.where(finite, int(Status.OK), int(Status.NON_FINITE))
