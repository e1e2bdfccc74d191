"""How a system is to be solved, and how a solve can end."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Literal

Engine = Literal["auto", "exact", "torchdiffeq"]
Gradient = Literal["adjoint", "backprop"]
ADAPTIVE = ("dopri5", "dopri8")
FIXED = ("euler", "midpoint", "heun2", "heun3", "rk4")


class Status(enum.IntEnum):
    """How the solve of one subject ended."""

    OK = 0
    MAX_EVALUATIONS = 1
    STEP_UNDERFLOW = 2
    NON_FINITE = 3


class SolveError(RuntimeError):
    """A subject could not be solved; the message names it."""


@dataclass(frozen=True)
class SolverOptions:
    """Options of `solve`.

    Args:
        engine: ``exact`` (matrix exponential; linear dynamics only), ``torchdiffeq``, or ``auto``: exact where the
            dynamics is linear.
        gradient: ``adjoint`` integrates a(t) = dL/dy(t) backwards (Pontryagin 1962; Chen et al. 2018), its memory
            does not grow with the steps; ``backprop`` differentiates the solver's own operations. The exact engine
            has its own gradient, exact as well.
        method: ``dopri5`` or ``dopri8`` adapt their steps to the tolerances; ``euler``, ``midpoint``, ``heun2``,
            ``heun3``, ``rk4`` take steps of at most `step`.
        rtol: relative tolerance of the adaptive methods, for each subject by itself.
        atol: absolute tolerance, in the unit of the state.
        step: largest step of the fixed-step methods, in the cohort's time unit.
        max_evaluations: most evaluations of the field between two nodes of the clock, forward and backward each.

    Raises:
        ValueError: an unknown name; a tolerance or step that is not positive.
    """

    engine: Engine = "auto"
    gradient: Gradient = "backprop"
    method: str = "dopri5"
    rtol: float = 1e-5
    atol: float = 1e-6
    step: float | None = None
    max_evaluations: int = 10_000

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("engine", self.engine, ("auto", "exact", "torchdiffeq")),
            ("gradient", self.gradient, ("adjoint", "backprop")),
            ("method", self.method, (*ADAPTIVE, *FIXED)),
        ):
            if value not in allowed:
                raise ValueError(f"{name} is one of {', '.join(allowed)}; not {value!r}")
        if not (self.rtol > 0 and self.atol > 0):
            raise ValueError(f"tolerances must be positive, got rtol {self.rtol}, atol {self.atol}")
        if self.method in FIXED and not (self.step or 0.0) > 0:
            raise ValueError(f"method {self.method!r} takes fixed steps: give a positive step, not {self.step}")
