"""Vector fields with neural networks, conditioned on the position of a subject in the latent space."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from neuralpk.dynamics.base import Dynamics
from neuralpk.dynamics.compartment import Compartments
from neuralpk.dynamics.perceptron import Perceptron
from neuralpk.dynamics.weight_prior import WeightPrior
from neuralpk.scaling import Scaling


def mlp(inputs: int, hidden: int, layers: int, outputs: int, bias: bool = True) -> nn.Sequential:
    """A perceptron with `layers` hidden layers of width `hidden` and SiLU in between (smooth, as a solver's order
    needs); without `bias` the last layer has none."""
    sizes = [inputs, *[hidden] * layers]
    body = [m for a, b in pairwise(sizes) for m in (nn.Linear(a, b), nn.SiLU())]
    return nn.Sequential(*body, nn.Linear(sizes[-1], outputs, bias))


def _linear_layers(network: nn.Sequential) -> tuple[list[Tensor], list[Tensor]]:
    layers = [layer for layer in network if isinstance(layer, nn.Linear)]
    return [layer.weight for layer in layers], [layer.bias for layer in layers]


def latent_names(size: int) -> tuple[str, ...]:
    """Names of the components of z: z1, z2, …"""
    return tuple(f"z{k}" for k in range(1, size + 1))


class NeuralCompartments(Compartments):
    """Compartments whose rates a network bends: dA/dt = K(A, theta)·A, with every rate positive by construction.

    Each subject has the parameters of linear compartments (CL, V1, Q, V2, …), log-normal in the population, and a
    network of the amounts and of the place multiplies the rate constants that follow from them::

        rate_f = base_f(CL, V1, …) · g_f(A)/g_f(0),    g = exp(5·tanh(x/5))
        x = network(log(1 + A/amount), log(base/guess), z)

    So there is no negative concentration, no drug without a dose, and C → 0, since every compartment leads to central
    and central has a way out. The parameters are those of the field where little drug is left.

    Args:
        base: the linear compartments; how doses enter and what is observed is theirs too.
        latent_size: latent dimensions beside those of the parameters of `base`.
        scaling: magnitudes of the data, from which the guesses of the parameters come.
        hidden: width of the network.
        layers: number of hidden layers.
        bend: standard deviation of log g(A)/g(0), with a typical dose (or `unit`) in every compartment and, of a field
            that reads it, at the end of the data's span, before any data are seen (`log_prior`): 0.5 expects rates to
            change by a half or so.
        unit: of the states, in which the network sees them; None for the typical dose.
        time: the network also reads the time, as log(1 + t/time).

    Raises:
        ValueError: `base` is not linear.
    """

    reference: Tensor
    amount_scale: Tensor
    time_scale: Tensor

    def __init__(
        self,
        base: Compartments,
        latent_size: int,
        scaling: Scaling,
        hidden: int = 32,
        layers: int = 1,
        bend: float = 0.5,
        unit: float | None = None,
        time: bool = False,
    ) -> None:
        if not base.linear:
            raise ValueError(f"a network bends the rate constants of linear compartments; {base} has none")
        super().__init__(base.states, base.flows)
        self.base, self.autonomous = base, not time
        self.named_size = len(base.parameter_names)
        self.parameter_names = (*base.parameter_names, *latent_names(latent_size))
        self.endpoints = base.endpoints
        # what a last bias adds to x(A) it adds to x(0)
        read, place = len(base.states) + time, len(base.flows) + latent_size
        self.network = mlp(read + place, hidden, layers, len(base.flows), bias=False)
        # a network that starts at zero leaves the base rates as they are: the field begins as a compartment model
        for weight in self.network[-1].parameters():
            nn.init.zeros_(weight)
        guess = torch.tensor(list(base.guess(scaling).values()))
        self.register_buffer("reference", self._base_rates(guess))
        empty = torch.zeros(read + place)
        typical = torch.cat([torch.full((read,), math.log(2.0)), empty[read:]])
        self.weight_prior = WeightPrior(self.network, bend, typical, empty)
        self.register_buffer("amount_scale", torch.tensor(scaling.amount if unit is None else unit))
        self.register_buffer("time_scale", torch.tensor(scaling.time))

    def log_prior(self) -> Tensor:
        return self.weight_prior.forward(self.network)

    def centre_prior(self) -> None:
        self.weight_prior.centre(self.network)

    def _own(self, theta: Tensor) -> Tensor:
        return theta[..., : self.named_size]

    def _base_rates(self, theta: Tensor) -> Tensor:
        own = self._own(theta)
        return self.base.rates(own[..., 0], own, own)  # linear compartments read neither t nor y

    def _place(self, theta: Tensor) -> Tensor:
        """What the network reads of a subject beside its amounts."""
        return torch.cat([torch.log(self._base_rates(theta) / self.reference), theta[..., self.named_size :]], dim=-1)

    def _unbent(self, theta: Tensor) -> Tensor:
        """The base rates over what the network makes of them in the empty system at its start."""
        place = self._place(theta)
        empty = place.new_zeros((*place.shape[:-1], len(self.states) + (not self.autonomous)))
        x = torch.cat([empty, place], dim=-1)
        for layer in self.network:
            x = _alone(x, layer.weight, layer.bias) if isinstance(layer, nn.Linear) else layer(x)
        return self._base_rates(theta) / _bent(x)

    def rates(self, t: Tensor, y: Tensor, theta: Tensor) -> Tensor:
        amount = torch.log1p((y / self.amount_scale).clamp(min=0.0))
        clock = [] if self.autonomous else [torch.log1p(t / self.time_scale)[..., None]]
        return self._unbent(theta) * _bent(self.network(torch.cat([amount, *clock, self._place(theta)], dim=-1)))

    def perceptron(self, theta: Tensor) -> Perceptron:
        states = len(self.states) + (not self.autonomous)
        (first, *weights), (bias, *biases) = _linear_layers(self.network)
        biases[-1] = weights[-1].new_zeros(len(self.flows))
        shift = _alone(self._place(theta), first[:, states:], bias)
        flows = [(self.states.index(a), -1 if b is None else self.states.index(b)) for a, b in self.flows]
        weights = [first[:, :states], *weights]
        # the kernel takes the logarithm of all that it reads in the unit of an amount
        clock = None if self.autonomous else self.amount_scale / self.time_scale
        base = self._unbent(theta)
        return Perceptron(shift, (*weights,), (*biases,), "silu", self.amount_scale, None, base, (*flows,), clock)

    def initial_state(self, theta: Tensor) -> Tensor:
        return self.base.initial_state(self._own(theta))

    def observe(self, y: Tensor, theta: Tensor) -> Tensor:
        return self.base.observe(y, self._own(theta))

    def lag(self, theta: Tensor) -> Tensor | None:
        return self.base.lag(self._own(theta))

    def bioavailability(self, theta: Tensor) -> Tensor | None:
        return self.base.bioavailability(self._own(theta))

    def dose_unit(self, theta: Tensor) -> Tensor | None:
        return self.base.dose_unit(self._own(theta))

    def derived(self, theta: Tensor) -> dict[str, Tensor]:
        return self.base.derived(self._own(theta))

    def guess(self, scaling: Scaling) -> dict[str, float]:
        return self.base.guess(scaling)


def _alone(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A linear layer, summed in double and rounded: else its last digits would depend on the size of the batch."""
    sums = nn.functional.linear(x.double(), weight.double(), None if bias is None else bias.double())
    return sums.to(x.dtype)


def _bent(x: Tensor) -> Tensor:
    # bounded, so that no step of the training can make the system arbitrarily stiff
    return torch.exp(5.0 * torch.tanh(x / 5.0))


def observed_sizes(dynamics: Dynamics, scaling: Scaling) -> list[float]:
    """Size of every state that is read as it is: of its own endpoint, or of the first where it has none."""
    read = dict(zip(dynamics.endpoints, scaling.value, strict=False))
    return [read.get(k, scaling.value[0]) for k in range(len(dynamics.states))]


class NeuralField(Dynamics):
    """The plain neural differential equation, dy/dt = network(y, z) or network(t, y, z): nothing is known but the data
    (Chen et al. 2018).

    Dosed, the states start empty, doses jump into them and an assay reads y/base_V1. Not dosed, the states start at
    positive values of each subject's own (``prey0``, …) and are read as they are.

    Args:
        states: names of the states.
        endpoints: the state at which each endpoint is observed.
        latent_size: dimension of z, in which the field differs between subjects.
        scaling: magnitudes of the data, in which the network sees the state and gives its slope.
        dosed: whether the states come from doses.
        hidden: width of the network.
        layers: number of hidden layers.
        correction: the slope alone; a mechanism says how the states start and are read.
        bend: size of the network's output at a typical state before any data are seen (`log_prior`); None for a flat
            prior.
        time: the network also reads the time.
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
        correction: bool = False,
        bend: float | None = None,
        time: bool = False,
    ) -> None:
        super().__init__()
        self.states = states
        self.endpoints = endpoints
        self.dosed, self.autonomous = dosed, not time
        own = () if correction else ("base_V1",) if dosed else tuple(f"{state}0" for state in states)
        self.own = len(own)
        self.parameter_names = (*own, *latent_names(latent_size))
        self.network = mlp(len(states) + time + latent_size, hidden, layers, len(states))
        # at rest first: a random field may carry the states away before it has learned anything
        for weight in self.network[-1].parameters():
            nn.init.zeros_(weight)
        typical = torch.cat([torch.ones(len(states) + time), torch.zeros(latent_size)])
        self.weight_prior = None if bend is None else WeightPrior(self.network, bend, typical)
        self.register_buffer("time_scale", torch.tensor(scaling.time))
        self.register_buffer("state_scale", torch.tensor(self._scale(scaling)))

    def _scale(self, scaling: Scaling) -> list[float]:
        return [scaling.amount] * len(self.states) if self.dosed else observed_sizes(self, scaling)

    def forward(self, t: Tensor, y: Tensor, theta: Tensor) -> Tensor:
        clock = [] if self.autonomous else [(t / self.time_scale)[..., None]]
        slope: Tensor = self.network(torch.cat([y / self.state_scale, *clock, theta[..., self.own :]], dim=-1))
        return slope * self.state_scale / self.time_scale

    def log_prior(self) -> Tensor | float:
        return 0.0 if self.weight_prior is None else self.weight_prior.forward(self.network)

    def centre_prior(self) -> None:
        if self.weight_prior is not None:
            self.weight_prior.centre(self.network)

    def perceptron(self, theta: Tensor) -> Perceptron:
        scale, slope = self.state_scale, self.state_scale / self.time_scale
        clock = None
        if not self.autonomous:  # the time is a component of which the network's slope is 0
            clock = 1.0 / self.time_scale
            scale, slope = torch.cat([scale, scale.new_ones(1)]), torch.cat([slope, slope.new_zeros(1)])
        (first, *weights), (bias, *biases) = _linear_layers(self.network)
        last, end = weights[-1], biases[-1]
        if clock is not None:
            last, end = torch.nn.functional.pad(last, (0, 0, 0, 1)), torch.nn.functional.pad(end, (0, 1))
        shift = torch.nn.functional.linear(theta[..., self.own :], first[:, len(scale) :], bias)
        # the scales of the state go into the first and the last layer
        weights = [first[:, : len(scale)] / scale, *weights[:-1], slope[:, None] * last]
        return Perceptron(shift, (*weights,), (*biases[:-1], slope * end), "silu", clock=clock)

    def initial_state(self, theta: Tensor) -> Tensor:
        return super().initial_state(theta) if self.dosed else theta[..., : self.own]

    def observe(self, y: Tensor, theta: Tensor) -> Tensor:
        return y / theta[..., :1] if self.dosed else y

    def guess(self, scaling: Scaling) -> dict[str, float]:
        values = [scaling.amount / scaling.value[0]] if self.dosed else self._scale(scaling)
        return dict(zip(self.parameter_names[: self.own], values, strict=False))
