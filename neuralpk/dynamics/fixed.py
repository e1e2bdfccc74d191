"""A dynamics of which some parameters are known."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from neuralpk.dynamics.base import Dynamics
from neuralpk.dynamics.perceptron import Perceptron
from neuralpk.scaling import Scaling


class FixedParameters(Dynamics):
    """The same equations with some parameters held at known values: what is left of theta is learned.

    Args:
        dynamics: the equations.
        values: of the known parameters, by name.

    Raises:
        ValueError: a name that is no parameter of the dynamics.
    """

    values: Tensor

    def __init__(self, dynamics: Dynamics, values: Mapping[str, float]) -> None:
        super().__init__()
        names = dynamics.parameter_names
        if set(values) - set(names):
            raise ValueError(f"fixed names {sorted(set(values) - set(names))}; this dynamics has {', '.join(names)}")
        self.dynamics = dynamics
        self.states, self.endpoints = dynamics.states, dynamics.endpoints
        self.autonomous, self.linear = dynamics.autonomous, dynamics.linear
        self.parameter_names = tuple(name for name in names if name not in values)
        known = [name for name in names if name in values]
        self.register_buffer("values", torch.tensor([values[name] for name in known]))
        joined = (*self.parameter_names, *known)
        self.order = [joined.index(name) for name in names]

    def whole(self, theta: Tensor) -> Tensor:
        """All parameters in the order of the equations, ``[..., parameter]``."""
        known = self.values.to(theta.dtype).expand(*theta.shape[:-1], -1)
        return torch.cat([theta, known], dim=-1)[..., self.order]

    def forward(self, t: Tensor, y: Tensor, theta: Tensor) -> Tensor:
        slope: Tensor = self.dynamics(t, y, self.whole(theta))
        return slope

    def initial_state(self, theta: Tensor) -> Tensor:
        return self.dynamics.initial_state(self.whole(theta))

    def observe(self, y: Tensor, theta: Tensor) -> Tensor:
        return self.dynamics.observe(y, self.whole(theta))

    def lag(self, theta: Tensor) -> Tensor | None:
        return self.dynamics.lag(self.whole(theta))

    def bioavailability(self, theta: Tensor) -> Tensor | None:
        return self.dynamics.bioavailability(self.whole(theta))

    def dose_unit(self, theta: Tensor) -> Tensor | None:
        return self.dynamics.dose_unit(self.whole(theta))

    def derived(self, theta: Tensor) -> dict[str, Tensor]:
        return self.dynamics.derived(self.whole(theta))

    def log_prior(self) -> Tensor | float:
        return self.dynamics.log_prior()

    def centre_prior(self) -> None:
        self.dynamics.centre_prior()

    def guess(self, scaling: Scaling) -> dict[str, float]:
        guess = self.dynamics.guess(scaling)
        return {name: guess[name] for name in self.parameter_names if name in guess}

    def rate_matrix(self, theta: Tensor) -> Tensor:
        return self.dynamics.rate_matrix(self.whole(theta))

    def perceptron(self, theta: Tensor) -> Perceptron | None:
        return self.dynamics.perceptron(self.whole(theta))
