"""What every dynamics offers: dy/dt = f(t, y, theta), and how its states are entered and observed."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from neuralpk.dynamics.perceptron import Perceptron
from neuralpk.scaling import Scaling


class StateSpace(nn.Module):
    """States that start somewhere and are read by assays, however they move in between; one row a subject.

    Everything that differs between subjects comes in through `theta`; the module's own weights are shared.

    Attributes:
        states: names of the components of y.
        parameter_names: names of the components of theta.
        endpoints: the state at which each endpoint (DVID 1, 2, …) is observed, counted from 0.
        penalised: whether ``penalty`` holds something against the field.
    """

    states: tuple[str, ...]
    parameter_names: tuple[str, ...]
    endpoints: tuple[int, ...] = (0,)
    penalised: bool = False

    def named(self, theta: Tensor) -> dict[str, Tensor]:
        """The parameters by name, each ``[...]`` for a theta ``[..., parameter]``."""
        return dict(zip(self.parameter_names, theta.unbind(-1), strict=True))

    def initial_state(self, theta: Tensor) -> Tensor:
        """State at the first record of a subject, ``[subject, state]``: empty unless the dynamics says otherwise."""
        return theta.new_zeros((*theta.shape[:-1], len(self.states)))

    def observe(self, y: Tensor, theta: Tensor) -> Tensor:
        """What an assay reads in each state, ``[..., state]`` for y ``[..., state]`` and theta ``[..., parameter]``."""
        return y

    def derived(self, theta: Tensor) -> dict[str, Tensor]:
        """Other parameters that follow from theta and are reported beside it, each ``[...]``."""
        return {}

    def log_prior(self) -> Tensor | float:
        """log p(weights) up to a constant: what is believed of a learned field before it has seen data."""
        return 0.0

    def centre_prior(self) -> None:
        """From now on expect, before any data, the weights that the field has now, rather than none."""

    def penalty(self, t: Tensor, y: Tensor, theta: Tensor, mask: Tensor) -> Tensor | None:
        """What a training holds against the field along its lines, ``[subject]``; None for nothing.

        Args:
            t: ``[subject, time]``.
            y: ``[subject, time, state]``.
            theta: ``[subject, time, parameter]``.
            mask: which times count, bool ``[subject, time]``.
        """
        return None

    def guess(self, scaling: Scaling) -> dict[str, float]:
        """Positive starting values of the mechanistic parameters for data of this magnitude, by name."""
        return {}


class Dynamics(StateSpace, ABC):
    """A system of ordinary differential equations dy/dt = f(t, y, theta), one row of y and theta a subject.

    A field that closes over another tensor would lose that tensor's gradient in the adjoint method: `solve` refuses it.

    Attributes:
        autonomous: whether f reads nothing of t, so that a steady state under repeated doses exists.
        linear: whether f(t, y, theta) = K(theta)·y, with K given by ``rate_matrix``.
    """

    autonomous: bool = True
    linear: bool = False

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

    def lag(self, theta: Tensor) -> Tensor | None:
        """Time between a dose record and its arrival, ``[..., state]``; None for none."""
        return None

    def bioavailability(self, theta: Tensor) -> Tensor | None:
        """Fraction of a dose that arrives, ``[..., state]``; None for all of it."""
        return None

    def dose_unit(self, theta: Tensor) -> Tensor | None:
        """What a unit of a dose that arrives adds to each state, ``[..., state]``; None where states are amounts."""
        return None

    def rate_matrix(self, theta: Tensor) -> Tensor:
        """K of a linear system, ``[..., state, state]``.

        Raises:
            TypeError: the dynamics is not linear.
        """
        raise TypeError(f"{type(self).__name__} is not linear in its state and has no rate matrix")

    def perceptron(self, theta: Tensor) -> Perceptron | None:
        """The same field laid open for the fused kernels, where it is a perceptron; None where it is not."""
        return None


def place(values: Tensor, state: int, states: int, fill: float) -> Tensor:
    """Put ``values [...]`` at one state and `fill` at the others, ``[..., state]``."""
    others = torch.full_like(values, fill)
    return torch.stack([values if k == state else others for k in range(states)], dim=-1)
