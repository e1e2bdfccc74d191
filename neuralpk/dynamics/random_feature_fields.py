"""Networks with weights of each series, so that these have a posterior distribution."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from neuralpk.dynamics.compartments import CompartmentModel
from neuralpk.dynamics.corrections import Correction
from neuralpk.dynamics.dynamics_base import Dynamics
from neuralpk.dynamics.networks import latent_names
from neuralpk.scaling import Scaling


class RandomFeatures(nn.Module):
    """A slope that is linear in the latent dimensions, W and c, with random features of the state (Rahimi and Recht
    2007)::

        dy/dt = prior_sd · size/span · (W·h/√hidden + c)/norm,    h = tanh(A·y/size + b)

    A and b are drawn once and are not trained. z has the entries of W and c, standard normal before data: the field is
    then nearly a Gaussian process (Neal 1996). ``norm`` makes its standard deviation `prior_sd` where y = size.

    Args:
        states: number of states.
        hidden: number of features.
        prior_sd: standard deviation of the network's output before data, where every state has its size.

    Raises:
        ValueError: `hidden` below 1, or a `prior_sd` that is not positive.
    """

    inner: Tensor
    shift: Tensor
    time_scale: Tensor
    state_scale: Tensor

    def __init__(self, states: int, hidden: int, prior_sd: float) -> None:
        super().__init__()
        if hidden < 1 or not prior_sd > 0:
            raise ValueError(f"hidden must be at least 1 and prior_sd positive, got {hidden}, {prior_sd}")
        self.latent_size = states * (hidden + 1)
        self.register_buffer("inner", torch.randn((hidden, states)))
        # features change over the states that occur, which are positive and of order one
        centre = 2.0 * torch.rand((hidden, states))
        self.register_buffer("shift", -(self.inner * centre).sum(1))
        self.prior_sd = prior_sd
        self.register_buffer("time_scale", torch.tensor(1.0))
        self.register_buffer("state_scale", torch.ones(states))

    def build(self, time: float, size: tuple[float, ...]) -> None:
        """Set the span of the data and the size of every state."""
        self.time_scale.fill_(time)
        self.state_scale.copy_(torch.tensor(size, dtype=torch.float64))

    def forward(self, y: Tensor, z: Tensor) -> Tensor:
        """dy/dt ``[subject, state]`` for y ``[subject, state]`` and z ``[subject, latent]``."""
        hidden = torch.tanh(nn.functional.linear(y / self.state_scale, self.inner, self.shift))
        typical = torch.tanh(self.inner.sum(1) + self.shift)
        weights = z.reshape(*z.shape[:-1], y.shape[-1], -1)
        output: Tensor = (weights[..., 1:] @ hidden[..., None])[..., 0] / math.sqrt(len(self.shift)) + weights[..., 0]
        sd = self.prior_sd / (1.0 + typical.square().mean()).sqrt()
        return sd * output * self.state_scale / self.time_scale


class RandomFeatureField(Dynamics):
    """A differential equation of each series without any mechanism (`RandomFeatures`); the latent dimensions are the
    weights of its network.

    The states start at positive values of the series, which are parameters (``prey0``, …), and are observed as they
    are. It is meant for a single series without doses.

    Args:
        like: the dynamics whose states and endpoints these are; default two compartments.
        hidden: number of features.
        prior_sd: standard deviation of the network's output before data, where every state has its typical size; here
            of the slope, in sizes of the state per span of the data.

    Raises:
        ValueError: an option out of its range.
    """

    def __init__(self, like: Dynamics | None = None, hidden: int = 16, prior_sd: float = 1.0) -> None:
        super().__init__()
        like = CompartmentModel() if like is None else like
        self.states, self.endpoints = like.states, like.endpoints
        self.features = RandomFeatures(len(self.states), hidden, prior_sd)
        names = tuple(f"{state}0" for state in self.states)
        self.parameter_names = (*names, *latent_names(self.features.latent_size))

    def build(self, scaling: Scaling) -> None:
        self.features.build(scaling.time, self.state_size(scaling))

    def forward(self, t: Tensor, y: Tensor, theta: Tensor) -> Tensor:
        slope: Tensor = self.features(y, theta[..., len(self.states) :])
        return slope

    def initial_state(self, theta: Tensor) -> Tensor:
        return theta[..., : len(self.states)]

    def guess(self, scaling: Scaling) -> dict[str, float]:
        return dict(zip(self.parameter_names, self.state_size(scaling), strict=False))


class RandomFeatureSlope(Correction):
    """A correction of each series (`RandomFeatures`); the latent dimensions are the weights of its network.

    Args:
        hidden: number of features.
        prior_sd: standard deviation of the network's output before data, where every state has its typical size; here
            of the slope, in sizes of the state per span of the data.

    Raises:
        ValueError: an option out of its range.
    """

    def __init__(self, hidden: int = 16, prior_sd: float = 1.0) -> None:
        super().__init__()
        self.hidden, self.prior_sd = hidden, prior_sd

    def attach(self, mechanism: Dynamics) -> None:
        super().attach(mechanism)
        self.features = RandomFeatures(len(self.states), self.hidden, self.prior_sd)
        self.parameter_names = latent_names(self.features.latent_size)

    def build(self, scaling: Scaling) -> None:
        self.features.build(scaling.time, self.state_size(scaling))

    def forward(self, t: Tensor, y: Tensor, theta: Tensor) -> Tensor:
        slope: Tensor = self.features(y, theta)
        return slope
