"""Vector fields that are neural networks, conditioned on the position z of a subject in the latent space."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from neuralpk.dynamics.base import Dynamics
from neuralpk.dynamics.compartment import Compartments, mammillary_flows
from neuralpk.scaling import Scaling


def mlp(inputs: int, hidden: int, layers: int, outputs: int) -> nn.Sequential:
    """A perceptron with `layers` hidden layers of width `hidden` and SiLU in between (smooth, as a solver's order
    needs)."""
    sizes = [inputs, *[hidden] * layers]
    body = [m for a, b in pairwise(sizes) for m in (nn.Linear(a, b), nn.SiLU())]
    return nn.Sequential(*body, nn.Linear(sizes[-1], outputs))


def latent_names(size: int) -> tuple[str, ...]:
    """Names of the components of z: z1, z2, …"""
    return tuple(f"z{k}" for k in range(1, size + 1))


class VolumeHead(nn.Module):
    """Volume of distribution as a function of the latent: V(z) = V0·exp(w·z + b), V0 = dose size / observed size."""

    reference: Tensor

    def __init__(self, latent_size: int, scaling: Scaling, own: int = 0) -> None:
        super().__init__()
        self.log = nn.Linear(latent_size, 1)
        self.log.weight = nn.Parameter(0.3 * torch.eye(latent_size)[[own % latent_size]])
        nn.init.zeros_(self.log.bias)
        self.register_buffer("reference", torch.tensor(scaling.amount / scaling.value[0]))

    def forward(self, z: Tensor) -> Tensor:
        """``[..., 1]`` for z ``[..., latent]``."""
        return self.reference * torch.exp(self.log(z))


class NeuralCompartments(Compartments):
    """Compartments whose rates a network computes: dA/dt = K(A, z)·A, with every rate positive by construction.

    With x = W·z + b + network(A, z), the rate of each flow is rate0·exp(5·tanh(x/5)), within a factor of 150 of a rate0
    of 4/T (16/T into central), T the observed span. So there is no negative concentration, no drug without a dose,
    and C → 0, since every compartment leads to central and central has a way out.

    Args:
        states: central and what surrounds it, as for `mammillary_flows`.
        latent_size: dimension of z, which is this dynamics' theta.
        scaling: magnitudes of the data; amounts enter the network as log(1 + A/amount).
        hidden: width of the network.
        layers: number of hidden layers.
        negligible: rate0 is a hundredth of that, as a correction to a mechanistic model should start.

    Endpoint 1 is the concentration A_central/V(z).
    """

    rate: Tensor
    amount_scale: Tensor

    def __init__(
        self,
        states: tuple[str, ...],
        latent_size: int,
        scaling: Scaling,
        hidden: int = 32,
        layers: int = 2,
        negligible: bool = False,
    ) -> None:
        flows = mammillary_flows(states)
        super().__init__(states, flows)
        self.parameter_names = latent_names(latent_size)
        self.endpoints = (states.index("central"),)
        self.network = mlp(len(states) + latent_size, hidden, layers, len(flows))
        self.direct = nn.Linear(latent_size, len(flows))
        # each rate starts with a latent of its own, and a spread between subjects that is usual for a parameter
        self.direct.weight = nn.Parameter(0.3 * torch.eye(latent_size)[[k % latent_size for k in range(len(flows))]])
        nn.init.zeros_(self.direct.bias)
        self.network[-1].weight = nn.Parameter(torch.zeros(len(flows), hidden))
        self.volume = VolumeHead(latent_size, scaling, own=len(flows))
        # the way into central is usually the fastest; all others start equal
        inlet = torch.tensor([states.index(a) < states.index("central") for a, _ in flows])
        rate = torch.where(inlet, 16.0, 4.0) / scaling.time * (0.01 if negligible else 1.0)
        self.register_buffer("rate", rate)
        self.register_buffer("amount_scale", torch.tensor(scaling.amount))

    def rates(self, t: Tensor, y: Tensor, theta: Tensor) -> Tensor:
        amount = torch.log1p((y / self.amount_scale).clamp(min=0.0))
        x = self.direct(theta) + self.network(torch.cat([amount, theta], dim=-1))
        # bounded, so that no step of the training can make the system arbitrarily stiff
        rates: Tensor = self.rate * torch.exp(5.0 * torch.tanh(x / 5.0))
        return rates

    def observe(self, y: Tensor, theta: Tensor) -> Tensor:
        concentration: Tensor = y / self.volume(theta)
        return concentration

    def population_parameters(self) -> list[nn.Parameter]:
        return [*self.direct.parameters(), *self.volume.parameters()]


class NeuralField(Dynamics):
    """The plain neural differential equation, dy/dt = network(y, z): nothing is known but the data.

    Args:
        states: names of the states.
        endpoints: the state at which each endpoint is observed.
        latent_size: dimension of z, which is this dynamics' theta.
        scaling: magnitudes of the data, in which the network sees the state and gives its slope.
        dosed: doses jump into the states, which start empty and are observed over a volume V(z); otherwise the state
            at the first record is positive and learned from z, y(0) = value·exp(W·z + b).
        hidden: width of the network.
        layers: number of hidden layers.
    """

    time_scale: Tensor
    state_scale: Tensor

    def __init__(
        self,
        states: tuple[str, ...],
        endpoints: tuple[int, ...],
        latent_size: int,
        scaling: Scaling,
        dosed: bool = True,
        hidden: int = 32,
        layers: int = 2,
    ) -> None:
        super().__init__()
        self.states = states
        self.parameter_names = latent_names(latent_size)
        self.endpoints = endpoints
        self.network = mlp(len(states) + latent_size, hidden, layers, len(states))
        self.volume = VolumeHead(latent_size, scaling) if dosed else None
        self.first = None if dosed else nn.Linear(latent_size, len(states))
        value = (*scaling.value, *[scaling.value[-1]] * len(states))[: len(states)]
        scale = [scaling.amount] * len(states) if dosed else list(value)
        self.register_buffer("time_scale", torch.tensor(scaling.time))
        self.register_buffer("state_scale", torch.tensor(scale))

    def forward(self, t: Tensor, y: Tensor, theta: Tensor) -> Tensor:
        slope: Tensor = self.network(torch.cat([y / self.state_scale, theta], dim=-1))
        return slope * self.state_scale / self.time_scale

    def initial_state(self, theta: Tensor) -> Tensor:
        if self.first is None:
            return super().initial_state(theta)
        return self.state_scale * torch.exp(self.first(theta))

    def observe(self, y: Tensor, theta: Tensor) -> Tensor:
        return y if self.volume is None else y / self.volume(theta)

    def population_parameters(self) -> list[nn.Parameter]:
        heads = [head for head in (self.volume, self.first) if head is not None]
        return [weight for head in heads for weight in head.parameters()]
