"""Vector field: dy/dt = f(t, y, theta), and how doses enter it."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from neuralpk.cohort_batch import CohortBatch
from neuralpk.dynamics.decoder_base import Decoder, Solver
from neuralpk.dynamics.fused_form import Perceptron

if TYPE_CHECKING:
    from neuralpk.solve import Trajectory


class Dynamics(Decoder):
    """A system of ordinary differential equations dy/dt = f(t, y, theta), one row of y and theta a subject.

    A vector field that uses a tensor with a gradient that is neither theta nor a registered parameter would lose that
    gradient in the adjoint method: the solver refuses it.

    Attributes:
        autonomous: whether f does not depend on t, so that a steady state under repeated doses exists.
        linear: whether f(t, y, theta) = K(theta)·y + u(theta), with K computed by `rate_matrix` and u by `forcing`.
        compiled: whether the vector field is translated into compiled code where that is possible; False for a field
            that computes derivatives by autograd, which cannot be translated.
        flows: pairs (source, destination) of states, destination None for out of the system, of a system of
            compartments; empty for other systems.
    """

    autonomous: bool = True
    linear: bool = False
    compiled: bool = True
    flows: tuple[tuple[str, str | None], ...] = ()

    @abstractmethod
    def forward(self, t: Tensor, y: Tensor, theta: Tensor) -> Tensor:
        """The vector field.

        Args:
            t: time since each subject's first record, ``[subject]``.
            y: state, ``[subject, state]``.
            theta: parameters, ``[subject, parameter]``.

        Returns:
            dy/dt, ``[subject, state]``.
        """

    def follow(self, theta: Tensor, batch: CohortBatch, times: Tensor | None, engine: Solver) -> Trajectory:
        return engine.solve(self, theta, batch, times)

    def lag(self, theta: Tensor) -> Tensor | None:
        """Time between the record of a dose and its arrival, ``[..., state]``; None for no lag."""
        return None

    def bioavailability(self, theta: Tensor) -> Tensor | None:
        """Fraction of a dose that arrives, ``[..., state]``; None where all of it arrives."""
        return None

    def infusion_rate(self, theta: Tensor) -> Tensor | None:
        """Rate of infusions with RATE -1, amount per time, ``[..., state]``; None where the model has none."""
        return None

    def infusion_duration(self, theta: Tensor) -> Tensor | None:
        """Duration of infusions with RATE -2, ``[..., state]``; None where the model has none."""
        return None

    def dose_unit(self, theta: Tensor) -> Tensor | None:
        """Increase of each state per unit of a dose that arrives in it, ``[..., state]``; None where states are
        amounts, so that it is 1."""
        return None

    def rate_matrix(self, theta: Tensor) -> Tensor:
        """K of a linear system, ``[..., state, state]``.

        Raises:
            TypeError: the dynamics is not linear.
        """
        raise TypeError(f"{type(self).__name__} is not linear in its state and has no rate matrix")

    def forcing(self, theta: Tensor) -> Tensor | None:
        """u of a linear system, its slope where all states are 0, ``[..., state]``; None for 0."""
        return None

    def perceptron(self, theta: Tensor) -> Perceptron | None:
        """The same vector field as tensors for the fused kernels, if it is a perceptron; None if it is not."""
        return None


def at_state(values: Tensor, state: int, states: int, fill: float) -> Tensor:
    """The `values` ``[...]`` at one state and `fill` at the others, ``[..., state]``."""
    others = torch.full_like(values, fill)
    return torch.stack([values if k == state else others for k in range(states)], dim=-1)
