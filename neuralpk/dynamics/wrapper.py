"""Base class of dynamics that contain another dynamics."""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor

from neuralpk.dynamics.dynamics_base import Dynamics
from neuralpk.scaling import Scaling


class Wrapper(Dynamics):
    """A dynamics that contains another one, `inner`, and has the same initial state, doses and observations.

    A subclass says which parameters the inner dynamics gets (`inner_theta`) and what the vector field is: `forward`,
    and `rate_matrix`, `forcing` and `perceptron` where they exist. All else is that of the inner dynamics unless it is
    overridden. Its states are those of the inner dynamics, or these followed by further ones, which start at 0, take no
    dose and are observed as they are.

    Args:
        inner: the dynamics inside.
    """

    inner: Dynamics

    def __init__(self, inner: Dynamics) -> None:
        super().__init__()
        self.wrap(inner)

    def wrap(self, inner: Dynamics) -> None:
        """Take over the inner dynamics and its attributes."""
        self.inner = inner
        self.states, self.parameter_names = inner.states, inner.parameter_names
        self.covariates = inner.covariates
        self.endpoints, self.assays, self.flows = inner.endpoints, inner.assays, inner.flows
        self.with_rate, self.with_duration = inner.with_rate, inner.with_duration
        self.ranges, self.fixed, self.compiled = inner.ranges, inner.fixed, inner.compiled
        self.units = inner.units
        self.dosed, self.penalised, self.autonomous = inner.dosed, inner.penalised, inner.autonomous

    @abstractmethod
    def inner_theta(self, theta: Tensor) -> Tensor:
        """The parameters of the inner dynamics, ``[..., inner parameter]``."""

    def inner_state(self, y: Tensor) -> Tensor:
        """The states of the inner dynamics, ``[..., inner state]``: the first ones."""
        return y[..., : len(self.inner.states)]

    def _with_others(self, values: Tensor | None, fill: float) -> Tensor | None:
        """Values ``[..., inner state]``, with `fill` at the further states."""
        further = len(self.states) - len(self.inner.states)
        return values if values is None or not further else torch.nn.functional.pad(values, (0, further), value=fill)

    def state_size(self, scaling: Scaling) -> tuple[float, ...]:
        size = self.inner.state_size(scaling)
        return size + (1.0,) * (len(self.states) - len(size))

    def guess(self, scaling: Scaling) -> dict[str, float]:
        guess = self.inner.guess(scaling)
        return {name: guess[name] for name in self.parameter_names if name in guess}

    def initial_state(self, theta: Tensor) -> Tensor:
        start = self.inner.initial_state(self.inner_theta(theta))
        return torch.nn.functional.pad(start, (0, len(self.states) - start.shape[-1]))

    def observe(self, y: Tensor, theta: Tensor) -> Tensor:
        value = self.inner.observe(self.inner_state(y), self.inner_theta(theta))
        return torch.cat([value, y[..., value.shape[-1] :]], dim=-1)

    def derived(self, theta: Tensor) -> dict[str, Tensor]:
        return self.inner.derived(self.inner_theta(theta))

    def log_prior(self) -> Tensor | float:
        return self.inner.log_prior()

    def centre_prior(self) -> None:
        self.inner.centre_prior()

    def magnitudes(self) -> list[Tensor]:
        return self.inner.magnitudes()

    def penalty(self, t: Tensor, y: Tensor, theta: Tensor, mask: Tensor) -> Tensor | None:
        return self.inner.penalty(t, self.inner_state(y), self.inner_theta(theta), mask)

    def lag(self, theta: Tensor) -> Tensor | None:
        return self._with_others(self.inner.lag(self.inner_theta(theta)), 0.0)

    def bioavailability(self, theta: Tensor) -> Tensor | None:
        return self._with_others(self.inner.bioavailability(self.inner_theta(theta)), 1.0)

    def infusion_rate(self, theta: Tensor) -> Tensor | None:
        return self._with_others(self.inner.infusion_rate(self.inner_theta(theta)), math.nan)

    def infusion_duration(self, theta: Tensor) -> Tensor | None:
        return self._with_others(self.inner.infusion_duration(self.inner_theta(theta)), math.nan)

    def dose_unit(self, theta: Tensor) -> Tensor | None:
        return self._with_others(self.inner.dose_unit(self.inner_theta(theta)), 1.0)
