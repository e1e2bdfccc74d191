"""A recurrent network in continuous time, solved as a differential equation."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from neuralpk.decoders.start_and_readout import HiddenStates
from neuralpk.dynamics import CompartmentModel, Dynamics, Perceptron
from neuralpk.dynamics.networks import latent_names
from neuralpk.scaling import Scaling


class ContinuousTimeRNN(Dynamics):
    """A recurrent network in continuous time (Funahashi and Nakamura 1993); doses are jumps of its states::

        τ·dh/dt = −h + tanh(W·h + U·z + b)        A = amount·h

    Args:
        like: the dynamics whose endpoints and dosing compartments are copied; default two compartments.
        latent_size: dimension of z.
        hidden: number of hidden states.

    Raises:
        ValueError: fewer hidden states than compartments.
    """

    def __init__(self, like: Dynamics | None = None, latent_size: int = 4, hidden: int = 32) -> None:
        super().__init__()
        like = CompartmentModel() if like is None else like
        self.hidden_states = HiddenStates(like, latent_size, hidden)
        self.states, self.parameter_names = self.hidden_states.states, latent_names(latent_size)
        self.endpoints = like.endpoints
        self.recurrent, self.latent = nn.Linear(hidden, hidden, bias=False), nn.Linear(latent_size, hidden)
        # from the span of the data down to a thirtieth of it
        self.log_rate = nn.Parameter(torch.linspace(0.0, math.log(30.0), hidden))

    def build(self, scaling: Scaling) -> None:
        self.hidden_states.build(scaling, self.endpoints)

    def state_size(self, scaling: Scaling) -> tuple[float, ...]:
        return (scaling.amount,) * len(self.states)

    def rate(self) -> Tensor:
        """1/τ of every state, per time, ``[state]``."""
        return self.log_rate.exp() / self.hidden_states.time

    def forward(self, t: Tensor, y: Tensor, theta: Tensor) -> Tensor:
        amount = self.hidden_states.amount
        target = amount * torch.tanh(self.recurrent(y / amount) + self.latent(theta))
        slope: Tensor = (target - y) * self.rate()
        return slope

    def perceptron(self, theta: Tensor) -> Perceptron:
        rate, amount = self.rate(), self.hidden_states.amount
        weights = (self.recurrent.weight / amount, torch.diag(rate * amount))
        matrix = torch.diag(-rate).expand(*theta.shape[:-1], -1, -1)
        return Perceptron(self.latent(theta), weights, (torch.zeros_like(rate),), "tanh", matrix=matrix)

    def initial_state(self, theta: Tensor) -> Tensor:
        return self.hidden_states.amount * self.hidden_states.first(theta)

    def observe(self, y: Tensor, theta: Tensor) -> Tensor:
        return self.hidden_states.observe(y / self.hidden_states.amount)
