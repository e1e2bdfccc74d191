"""Recurrent networks: hidden states that start at a place of the latent space, move in steps or in time, are read."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from neuralpk.dynamics.base import Dynamics, StateSpace
from neuralpk.dynamics.neural import NeuralField, latent_names
from neuralpk.dynamics.perceptron import Perceptron
from neuralpk.scaling import Scaling

Gap = Literal["ignored", "given", "decay"]


class HiddenStates(StateSpace):
    """Hidden states h between both ends of a recurrent network; what an assay reads is positive by construction::

        h0 = tanh(lift(z))        value = size · exp(8·tanh(readout(h)/8))

    Args:
        named: names of the compartments into which doses may go; the first hidden states have these names.
        endpoints: the state at which each endpoint is observed.
        latent_size: dimension of z.
        scaling: magnitudes of the data.
        hidden: number of hidden states, at least as many as named.
    """

    size: Tensor
    amount: Tensor
    time: Tensor

    def __init__(
        self, named: tuple[str, ...], endpoints: tuple[int, ...], latent_size: int, scaling: Scaling, hidden: int
    ) -> None:
        super().__init__()
        self.states = (*named, *(f"h{k}" for k in range(len(named) + 1, hidden + 1)))
        self.endpoints, self.parameter_names = endpoints, latent_names(latent_size)
        n = len(self.states)
        self.lift, self.readout = nn.Linear(latent_size, n), nn.Linear(n, n)
        size = dict(zip(endpoints, scaling.value, strict=False))
        self.register_buffer("size", torch.tensor([size.get(k, scaling.value[0]) for k in range(n)]))
        self.register_buffer("amount", torch.tensor(scaling.amount))
        self.register_buffer("time", torch.tensor(scaling.time))

    def initial_state(self, theta: Tensor) -> Tensor:
        return torch.tanh(self.lift(theta))

    def observe(self, y: Tensor, theta: Tensor) -> Tensor:
        value: Tensor = self.size * torch.exp(8.0 * torch.tanh(self.readout(y) / 8.0))
        return value


def on_log_scale(share: Tensor, smallest: float) -> Tensor:
    """log(1 + share/smallest), from 0 at 0 to 1 at 1: shares of very different size as inputs of a network."""
    return torch.log1p(share / smallest) / math.log1p(1.0 / smallest)


class GatedRecurrence(HiddenStates):
    """A gated recurrent unit (GRU; Cho et al. 2014) that steps from event to event of a subject's clock::

        h_k = GRU(carried over the gap to event k: h_{k−1};  dose, its compartment and duration, gap, z)

    What it knows of the gap Δt between two events:

    - ``ignored``: nothing; it counts events.
    - ``given``: Δt is one of its inputs.
    - ``decay``: h decays to h·exp(−w·Δt) before the step, w > 0 learned for each state (Che et al. 2018).

    Args:
        named: names of the compartments into which doses may go.
        endpoints: the state at which each endpoint is observed.
        latent_size: dimension of z.
        scaling: magnitudes of the data.
        hidden: number of hidden states.
        gap: what it knows of time.
    """

    def __init__(
        self,
        named: tuple[str, ...],
        endpoints: tuple[int, ...],
        latent_size: int,
        scaling: Scaling,
        hidden: int = 32,
        gap: Gap = "ignored",
    ) -> None:
        super().__init__(named, endpoints, latent_size, scaling, hidden)
        self.inlets, self.gap = len(named), gap
        inputs = len(named) + 1 + latent_size + (2 if gap == "given" else 0)
        self.cell = nn.GRUCell(inputs, len(self.states))
        if gap == "decay":
            self.log_decay = nn.Parameter(torch.linspace(0.0, math.log(100.0), len(self.states)))

    def given(self, amount: Tensor, compartment: Tensor, duration: Tensor) -> Tensor:
        """A dose as the cell sees it, ``[..., compartment + 1]``; nothing is given where the amount is 0."""
        size = on_log_scale(amount / self.amount, 0.01)
        where = nn.functional.one_hot(compartment, self.inlets).to(size.dtype)
        return torch.cat([size[..., None] * where, (duration / self.time)[..., None]], dim=-1)

    def step(self, h: Tensor, gap: Tensor, given: Tensor, theta: Tensor) -> Tensor:
        """From one event to the next, ``[row, state]``.

        Args:
            h: after the last event, ``[row, state]``.
            gap: time since then, ``[row]``.
            given: what happens at this one, ``[row, compartment + 1]``.
            theta: ``[row, parameter]``.
        """
        share, inputs = gap[:, None] / self.time, [given, theta]
        if self.gap == "decay":
            h = h * torch.exp(-self.log_decay.exp() * share)
        elif self.gap == "given":
            inputs += [share, on_log_scale(share, 0.001)]
        moved: Tensor = self.cell(torch.cat(inputs, dim=-1), h)
        return moved


class JumpingField(StateSpace):
    """An ODE network whose doses are steps of a GRU (ODE-RNN; Rubanova et al. 2019)::

        between doses dh/dt = network(h, z)        at a dose h ← GRU(h; dose, its compartment and duration, z)

    Args:
        named: names of the compartments into which doses may go.
        endpoints: the state at which each endpoint is observed.
        latent_size: dimension of z.
        scaling: magnitudes of the data.
        hidden: number of hidden states, and width of the network.
        layers: number of its hidden layers.
        dosed: whether there are doses; without them nothing jumps.
    """

    def __init__(
        self,
        named: tuple[str, ...],
        endpoints: tuple[int, ...],
        latent_size: int,
        scaling: Scaling,
        hidden: int = 32,
        layers: int = 2,
        dosed: bool = True,
    ) -> None:
        super().__init__()
        self.doses = GatedRecurrence(named, endpoints, latent_size, scaling, hidden)
        self.doses.cell.requires_grad_(dosed)  # several devices expect a gradient of all that has one
        self.states, self.parameter_names = self.doses.states, self.doses.parameter_names
        self.endpoints = endpoints
        unitless = Scaling(time=scaling.time)
        self.field = NeuralField(
            self.states, endpoints, latent_size, unitless, hidden=hidden, layers=layers, correction=True
        )

    def initial_state(self, theta: Tensor) -> Tensor:
        return self.doses.initial_state(theta)

    def observe(self, y: Tensor, theta: Tensor) -> Tensor:
        return self.doses.observe(y, theta)


class ContinuousTimeRNN(HiddenStates, Dynamics):
    """A recurrent network in continuous time (Funahashi and Nakamura 1993), doses as jumps of its states::

        τ·dh/dt = −h + tanh(W·h + U·z + b)        A = amount·h

    Args:
        named: names of the compartments into which doses may go.
        endpoints: the state at which each endpoint is observed.
        latent_size: dimension of z.
        scaling: magnitudes of the data.
        hidden: number of hidden states.
    """

    def __init__(
        self, named: tuple[str, ...], endpoints: tuple[int, ...], latent_size: int, scaling: Scaling, hidden: int = 32
    ) -> None:
        super().__init__(named, endpoints, latent_size, scaling, hidden)
        n = len(self.states)
        self.recurrent, self.latent = nn.Linear(n, n, bias=False), nn.Linear(latent_size, n)
        # from the whole span of the data down to a thirtieth of it
        self.log_rate = nn.Parameter(torch.linspace(0.0, math.log(30.0), n))

    def _rate(self) -> Tensor:
        return self.log_rate.exp() / self.time

    def forward(self, t: Tensor, y: Tensor, theta: Tensor) -> Tensor:
        driven = self.amount * torch.tanh(self.recurrent(y / self.amount) + self.latent(theta))
        slope: Tensor = (driven - y) * self._rate()
        return slope

    def perceptron(self, theta: Tensor) -> Perceptron:
        rate = self._rate()
        weights = (self.recurrent.weight / self.amount, torch.diag(rate * self.amount))
        matrix = torch.diag(-rate).expand(*theta.shape[:-1], -1, -1)
        return Perceptron(self.latent(theta), weights, (torch.zeros_like(rate),), "tanh", matrix=matrix)

    def initial_state(self, theta: Tensor) -> Tensor:
        return self.amount * super().initial_state(theta)

    def observe(self, y: Tensor, theta: Tensor) -> Tensor:
        return super().observe(y / self.amount, theta)
