"""How a system is to be solved, and how a solve can end."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Literal, get_args

Engine = Literal["auto", "exact", "runge_kutta", "torchdiffeq"]
Gradient = Literal["discrete", "adjoint", "backprop"]
ADAPTIVE = ("dopri5", "dopri8")
FIXED = ("euler", "midpoint", "heun2", "heun3", "rk4")


class Status(enum.IntEnum):
    """How the solve of one subject ended."""

    OK = 0
    MAX_EVALUATIONS = 1
    STEP_UNDERFLOW = 2
    NON_FINITE = 3
    STIFF = 4  # for the explicit method; `solve` goes on with the implicit one


class SolveError(RuntimeError):
    """A subject could not be solved; the message names it."""


@dataclass(frozen=True)
class SolverOptions:
    """Options of `solve`.

    Args:
        engine: ``exact`` (matrix exponential; linear dynamics only); ``runge_kutta`` (adaptive steps of order 5 for
            each subject by itself, implicit ones for a subject that is stiff, fused for neural fields);
            ``torchdiffeq`` (the reference); or ``auto``: exact where the dynamics is linear, else runge_kutta, or
            torchdiffeq where a gradient or method is asked for that only it has.
        gradient: ``discrete`` is the exact gradient of the steps taken, from a reverse sweep over them (exact and
            runge_kutta); ``adjoint`` integrates a(t) = dL/dy(t) backwards (Pontryagin 1962; Chen et al. 2018);
            ``backprop`` differentiates torchdiffeq's own operations. None: the engine's own, of torchdiffeq backprop.
        method: of torchdiffeq: ``dopri5`` (None) or ``dopri8`` adapt their steps to the tolerances; ``euler``,
            ``midpoint``, ``heun2``, ``heun3``, ``rk4`` take steps of at most `step`.
        rtol: relative tolerance of the adaptive methods, for each subject by itself.
        atol: absolute tolerance, in the unit of the state.
        step: largest step of the fixed-step methods, in the cohort's time unit.
        max_evaluations: most evaluations of the field between two nodes of the clock, forward and backward each.

    Raises:
        ValueError: an unknown name; a tolerance or step that is not positive; a gradient or method that the engine does
            not have.
    """

    engine: Engine = "auto"
    gradient: Gradient | None = None
    method: str | None = None
    rtol: float = 1e-5
    atol: float = 1e-6
    step: float | None = None
    max_evaluations: int = 10_000

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("engine", self.engine, get_args(Engine)),
            ("gradient", self.gradient, (None, *get_args(Gradient))),
            ("method", self.method, (None, *ADAPTIVE, *FIXED)),
        ):
            if value not in allowed:
                raise ValueError(f"{name} is one of {', '.join(map(str, allowed))}; not {value!r}")
        if not (self.rtol > 0 and self.atol > 0):
            raise ValueError(f"tolerances must be positive, got rtol {self.rtol}, atol {self.atol}")
        if self.method in FIXED and not (self.step or 0.0) > 0:
            raise ValueError(f"method {self.method!r} takes fixed steps: give a positive step, not {self.step}")
        if self.engine == "runge_kutta" and (self.gradient in ("adjoint", "backprop") or self.method):
            raise ValueError(f"engine 'runge_kutta' has no {self.gradient or self.method!r}; engine 'torchdiffeq' has")
        if self.gradient == "discrete" and (self.engine == "torchdiffeq" or self.method):
            raise ValueError("gradient 'discrete' is not of torchdiffeq and its methods; use 'backprop' or 'adjoint'")

    def engine_for(self, linear: bool) -> Engine:
        """The engine of a dynamics that is or is not linear."""
        if self.engine != "auto":
            return self.engine
        if linear:
            return "exact"
        return "torchdiffeq" if self.method or self.gradient in ("adjoint", "backprop") else "runge_kutta"
