"""A network of which every series has its own weights, so that they have a posterior."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from neuralpk.dynamics.base import Dynamics
from neuralpk.dynamics.neural import latent_names, observed_sizes
from neuralpk.scaling import Scaling


class FeatureField(Dynamics):
    """dy/dt = W·h + c with a hidden layer h = tanh(A·y/scale + b) whose weights are drawn once (Rahimi and Recht 2007).

    What is learned, W and c, is the latent of the series: normal before any data are seen, so that the field is nearly
    a Gaussian process (Neal 1996), and the posterior of z is that of the network. It is meant for a single series.

    Args:
        states: names of the states; they start at values of the series (``prey0``, …) and are read as they are.
        endpoints: the state at which each endpoint is observed.
        scaling: magnitudes of the data, in which the network sees the state and gives its slope.
        hidden: width of the hidden layer.
        bend: standard deviation of the slope before any data are seen, in sizes of the state over the span of the data.
        correction: the slope alone; a mechanism says how the states start and are read.
    """

    inner: Tensor
    shift: Tensor
    time_scale: Tensor
    state_scale: Tensor

    def __init__(
        self,
        states: tuple[str, ...],
        endpoints: tuple[int, ...],
        scaling: Scaling,
        hidden: int = 16,
        bend: float = 1.0,
        correction: bool = False,
    ) -> None:
        super().__init__()
        self.states, self.endpoints, self.bend = states, endpoints, bend
        own = () if correction else tuple(f"{state}0" for state in states)
        self.own = len(own)
        self.parameter_names = (*own, *latent_names(len(states) * (hidden + 1)))
        self.register_buffer("inner", torch.randn((hidden, len(states))))
        # bends lie over the states that occur, which are of order one and positive
        centre = 2.0 * torch.rand((hidden, len(states)))
        self.register_buffer("shift", -(self.inner * centre).sum(1))
        self.register_buffer("time_scale", torch.tensor(scaling.time))
        self.register_buffer("state_scale", torch.tensor(observed_sizes(self, scaling)))

    def forward(self, t: Tensor, y: Tensor, theta: Tensor) -> Tensor:
        hidden = torch.tanh(torch.nn.functional.linear(y / self.state_scale, self.inner, self.shift))
        weights = theta[..., self.own :].reshape(*theta.shape[:-1], len(self.states), -1)
        slope: Tensor = (weights[..., 1:] @ hidden[..., None])[..., 0] / math.sqrt(len(self.shift)) + weights[..., 0]
        return self.bend * slope * self.state_scale / self.time_scale

    def initial_state(self, theta: Tensor) -> Tensor:
        return theta[..., : self.own]

    def guess(self, scaling: Scaling) -> dict[str, float]:
        return dict(zip(self.parameter_names[: self.own], observed_sizes(self, scaling), strict=False))
