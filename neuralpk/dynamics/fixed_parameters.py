"""A dynamics in which some parameters have fixed values."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from neuralpk.dynamics.dynamics_base import Dynamics
from neuralpk.dynamics.fused_form import Perceptron
from neuralpk.dynamics.wrapper import Wrapper


class FixedParameters(Wrapper):
    """The same equations with fixed values of some parameters, equal for all subjects; theta has the others.

    Args:
        dynamics: the equations.
        values: the fixed values, by name of the parameter.

    Raises:
        ValueError: a name that is no parameter of the dynamics.
    """

    values: Tensor

    def __init__(self, dynamics: Dynamics, values: Mapping[str, float]) -> None:
        names = dynamics.parameter_names
        if set(values) - set(names):
            raise ValueError(f"fixed names {sorted(set(values) - set(names))}; this dynamics has {', '.join(names)}")
        super().__init__(dynamics)
        self.linear = dynamics.linear
        self.parameter_names = tuple(name for name in names if name not in values)
        self.covariates = {name: value for name, value in dynamics.covariates.items() if name not in values}
        self.fixed = tuple(name for name in dynamics.fixed if name not in values)
        fixed = [name for name in names if name in values]
        self.register_buffer("values", torch.tensor([float(values[name]) for name in fixed]))
        joined = (*self.parameter_names, *fixed)
        self.order = [joined.index(name) for name in names]

    def inner_theta(self, theta: Tensor) -> Tensor:
        fixed = self.values.to(theta.dtype).expand(*theta.shape[:-1], -1)
        return torch.cat([theta, fixed], dim=-1)[..., self.order]

    def forward(self, t: Tensor, y: Tensor, theta: Tensor) -> Tensor:
        slope: Tensor = self.inner(t, y, self.inner_theta(theta))
        return slope

    def rate_matrix(self, theta: Tensor) -> Tensor:
        return self.inner.rate_matrix(self.inner_theta(theta))

    def forcing(self, theta: Tensor) -> Tensor | None:
        return self.inner.forcing(self.inner_theta(theta))

    def perceptron(self, theta: Tensor) -> Perceptron | None:
        return self.inner.perceptron(self.inner_theta(theta))
