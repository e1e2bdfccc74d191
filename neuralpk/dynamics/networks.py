"""Networks inside vector fields: slopes of states, and factors on rate constants, each with a prior of its weights."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from neuralpk.dynamics.fused_form import Perceptron
from neuralpk.dynamics.weight_prior import WeightPrior


def mlp(inputs: int, hidden: int, layers: int, outputs: int, bias: bool = True) -> nn.Sequential:
    """A multilayer perceptron with SiLU activations (smooth, as the order of a solver requires).

    Args:
        inputs: number of inputs.
        hidden: width of the hidden layers.
        layers: number of hidden layers.
        outputs: number of outputs.
        bias: whether the last layer has a bias.

    Raises:
        ValueError: a width or number of layers below 1.
    """
    if hidden < 1 or layers < 1:
        raise ValueError(f"a network needs hidden and layers of at least 1, got hidden {hidden}, layers {layers}")
    sizes = [inputs, *[hidden] * layers]
    body = [m for a, b in pairwise(sizes) for m in (nn.Linear(a, b), nn.SiLU())]
    return nn.Sequential(*body, nn.Linear(sizes[-1], outputs, bias))


def latent_names(size: int) -> tuple[str, ...]:
    """Names of the components of z: z1, z2, …

    Raises:
        ValueError: a negative number of them.
    """
    if size < 0:
        raise ValueError(f"latent_size must be at least 0, not {size}")
    return tuple(f"z{k}" for k in range(1, size + 1))


def _zero_outputs(network: nn.Sequential) -> None:
    for weight in network[-1].parameters():
        nn.init.zeros_(weight)


def _linear_layers(network: nn.Sequential) -> tuple[list[Tensor], list[Tensor]]:
    layers = [layer for layer in network if isinstance(layer, nn.Linear)]
    return [layer.weight for layer in layers], [layer.bias for layer in layers]


class SlopeNetwork(nn.Module):
    """A slope of every state from state, time and latent dimensions::

        dy/dt = size/span · network(y/size, t/span, z)

    Its output is 0 at first.

    Args:
        states: number of states.
        latent_size: dimension of z.
        hidden: width of the network.
        layers: number of its hidden layers.
        prior_sd: standard deviation of the network's output before data, where every state has its size; None for a
            flat prior of the weights.
        time: whether the time is an input.
    """

    time_scale: Tensor
    state_scale: Tensor

    def __init__(
        self, states: int, latent_size: int, hidden: int, layers: int, prior_sd: float | None, time: bool
    ) -> None:
        super().__init__()
        self.time = time
        self.network = mlp(states + time + latent_size, hidden, layers, states)
        # a random field could carry the states away before it has learned anything
        _zero_outputs(self.network)
        typical = torch.cat([torch.ones(states + time), torch.zeros(latent_size)])
        self.weight_prior = None if prior_sd is None else WeightPrior(self.network, prior_sd, typical)
        self.register_buffer("time_scale", torch.tensor(1.0))
        self.register_buffer("state_scale", torch.ones(states))

    def build(self, time: float, size: tuple[float, ...]) -> None:
        """Set the units of the network: the span of the data and the size of every state."""
        self.time_scale.fill_(time)
        self.state_scale.copy_(torch.tensor(size, dtype=torch.float64))

    def forward(self, t: Tensor, y: Tensor, z: Tensor) -> Tensor:
        """dy/dt ``[subject, state]`` for t ``[subject]``, y ``[subject, state]`` and z ``[subject, latent]``."""
        clock = [(t / self.time_scale)[..., None]] if self.time else []
        slope: Tensor = self.network(torch.cat([y / self.state_scale, *clock, z], dim=-1))
        return slope * self.state_scale / self.time_scale

    def log_prior(self) -> Tensor | float:
        """Log prior density of the weights."""
        return 0.0 if self.weight_prior is None else self.weight_prior.forward(self.network)

    def centre_prior(self) -> None:
        """Move the centre of the prior density to the present weights."""
        if self.weight_prior is not None:
            self.weight_prior.centre(self.network)

    def perceptron(self, z: Tensor) -> Perceptron:
        """The same field for the fused kernels, for z ``[..., latent]``."""
        scale, slope = self.state_scale, self.state_scale / self.time_scale
        clock = None
        if self.time:  # the time is a component of which the network's slope is 0
            clock = 1.0 / self.time_scale
            scale, slope = torch.cat([scale, scale.new_ones(1)]), torch.cat([slope, slope.new_zeros(1)])
        (first, *weights), (bias, *biases) = _linear_layers(self.network)
        last, end = weights[-1], biases[-1]
        if clock is not None:
            last, end = nn.functional.pad(last, (0, 0, 0, 1)), nn.functional.pad(end, (0, 1))
        shift = nn.functional.linear(z, first[:, len(scale) :], bias)
        # the scales of the state go into the first and the last layer
        weights = [first[:, : len(scale)] / scale, *weights[:-1], slope[:, None] * last]
        return Perceptron(shift, (*weights,), (*biases[:-1], slope * end), "silu", clock=clock)


class RateNetwork(nn.Module):
    """Factors on the rate constants of compartments, positive by construction::

        rate_f = base_f · g_f(A)/g_f(0),    g = exp(5·tanh(x/5))
        x = network(log(1 + A/unit), log(1 + t/span), log(base/reference), z)

    All factors are 1 at first, and always in the empty system at its start.

    Args:
        states: number of compartments.
        flows: source and destination of every flow, -1 for out of the system.
        latent_size: dimension of z.
        hidden: width of the network.
        layers: number of its hidden layers.
        prior_sd: standard deviation of log g(A)/g(0) before data, where every amount is one `unit` (and, for a field
            that depends on time, at the end of the data's span).
        time: whether the time is an input.
    """

    reference: Tensor
    amount_scale: Tensor
    time_scale: Tensor

    def __init__(
        self,
        states: int,
        flows: tuple[tuple[int, int], ...],
        latent_size: int,
        hidden: int,
        layers: int,
        prior_sd: float,
        time: bool,
    ) -> None:
        super().__init__()
        self.flows, self.time = flows, time
        self.varying = states + time  # inputs that change during a solve
        constant = len(flows) + latent_size
        # a bias of the last layer would cancel in g(A)/g(0)
        self.network = mlp(self.varying + constant, hidden, layers, len(flows), bias=False)
        _zero_outputs(self.network)
        empty = torch.zeros(self.varying + constant)
        typical = torch.cat([torch.full((self.varying,), math.log(2.0)), empty[self.varying :]])
        self.weight_prior = WeightPrior(self.network, prior_sd, typical, empty)
        self.register_buffer("reference", torch.ones(len(flows)))
        self.register_buffer("amount_scale", torch.tensor(1.0))
        self.register_buffer("time_scale", torch.tensor(1.0))

    def build(self, time: float, unit: float, reference: Tensor) -> None:
        """Set the units of the network: the span of the data, an amount, and rate constants ``[flow]``."""
        self.time_scale.fill_(time)
        self.amount_scale.fill_(unit)
        self.reference.copy_(reference)

    def forward(self, t: Tensor, y: Tensor, base: Tensor, z: Tensor) -> Tensor:
        """Rate constant of every flow, ``[subject, flow]``.

        Args:
            t: ``[subject]``.
            y: ``[subject, state]``.
            base: rate constants of the empty system, ``[subject, flow]``.
            z: ``[subject, latent]``.
        """
        amount = torch.log1p((y / self.amount_scale).clamp(min=0.0))
        clock = [torch.log1p(t / self.time_scale)[..., None]] if self.time else []
        constant = self._constant(base, z)
        return self._over_empty(base, constant) * bounded_factor(
            self.network(torch.cat([amount, *clock, constant], dim=-1))
        )

    def log_prior(self) -> Tensor:
        """Log prior density of the weights."""
        return self.weight_prior.forward(self.network)

    def centre_prior(self) -> None:
        """Move the centre of the prior density to the present weights."""
        self.weight_prior.centre(self.network)

    def perceptron(self, base: Tensor, z: Tensor) -> Perceptron:
        """The same field for the fused kernels."""
        (first, *weights), (bias, *biases) = _linear_layers(self.network)
        biases[-1] = weights[-1].new_zeros(len(self.flows))
        constant = self._constant(base, z)
        shift = _linear_in_double(constant, first[:, self.varying :], bias)
        weights = [first[:, : self.varying], *weights]
        # the kernel takes the logarithm of all inputs in the unit of an amount
        clock = self.amount_scale / self.time_scale if self.time else None
        over_empty = self._over_empty(base, constant)
        return Perceptron(
            shift, (*weights,), (*biases,), "silu", self.amount_scale, None, over_empty, self.flows, clock
        )

    def _constant(self, base: Tensor, z: Tensor) -> Tensor:
        """The inputs of the network that are constant during a solve."""
        return torch.cat([torch.log(base / self.reference), z], dim=-1)

    def _over_empty(self, base: Tensor, constant: Tensor) -> Tensor:
        """The base rate constants over the network's factors in the empty system at its start."""
        x = torch.cat([constant.new_zeros((*constant.shape[:-1], self.varying)), constant], dim=-1)
        for layer in self.network:
            x = _linear_in_double(x, layer.weight, layer.bias) if isinstance(layer, nn.Linear) else layer(x)
        return base / bounded_factor(x)


def _linear_in_double(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A linear layer, summed in double and rounded: else its last digits would depend on the size of the batch."""
    sums = nn.functional.linear(x.double(), weight.double(), None if bias is None else bias.double())
    return sums.to(x.dtype)


def bounded_factor(x: Tensor) -> Tensor:
    """exp(5·tanh(x/5)), a positive factor that is 1 for x = 0, ``[...]``."""
    # bounded, so that no step of the training can make the system arbitrarily stiff
    return torch.exp(5.0 * torch.tanh(x / 5.0))
