"""Networks inside a model's text: functions of a few inputs with one output."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from neuralpk.dynamics.network_text import NetworkOptions
from neuralpk.dynamics.networks import bounded_factor
from neuralpk.dynamics.weight_prior import WeightPrior

_SLOPE = 1.5  # of a hidden unit at its centre
_CENTRES = (-0.25, 2.75)  # of the hidden units, in asinh of an input over its size: those of a positive input
_MIDDLE = 1.25  # to which 0 is moved of an input with both signs
_FIRST_OUTER = 0.1  # weight of each hidden unit of a monotone network


class _SquaredLinear(nn.Linear):
    """A linear layer that increases with each input: its weights are squares. The bias is plain."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight.square(), self.bias)


class _PositiveLinear(nn.Linear):
    """A linear layer that increases with each input, by the magnitudes of its weights: it is linear in them, so that a
    normal approximation of their posterior is one of the output too, and each can be exactly 0. The bias is plain."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight.abs(), self.bias)


def _asinh(x: Tensor) -> Tensor:
    """asinh of any x without a difference of large numbers; torch's own is not among the compiled operations."""
    size = torch.where(x < 0, -x, x)
    logarithm = torch.log(size + torch.sqrt(size.square() + 1.0))
    return torch.where(x < 0, -logarithm, logarithm)


class NetworkTerm(nn.Module):
    """A network of one hidden layer that stands in an equation::

        x = asinh(inputs/size),    u = prior_sd·(V·tanh(W·x + b) + c),    output = u

    ``size`` is the typical magnitude of each input (`build`). With `zero_at` the first input is counted from there and
    the output of the network at 0 is subtracted, so that it is exactly 0. A monotone network has squares in W and
    magnitudes in V. With a range, the output is::

        (0, inf)                       exp(5·tanh(u/5)), so at first 1
        (low, high)                    between both by the logistic function of u; at first the middle, or 0 at zero_at
        one end 0, with zero_at        the part of u on that side of 0; below the other end by end·tanh(u/end)

    At first the hidden units have their centres along the range of the inputs, and V is 0, or small in a monotone
    network. The prior of the weights is that of all networks here (`WeightPrior`).

    Args:
        name: of the line in which it stands.
        inputs: number of inputs.
        options: of the text.
    """

    size: Tensor
    shift: Tensor

    def __init__(self, name: str, inputs: int, options: NetworkOptions) -> None:
        super().__init__()
        self.name, self.zero_at, self.prior_sd = name, options.zero_at, options.prior_sd
        self.low, self.high, self.zero_at_end = options.low, options.high, options.zero_at_end
        self.sign = -1.0 if options.monotone == "decreasing" else 1.0
        monotone = bool(options.monotone)
        first = (_SquaredLinear if monotone else nn.Linear)(inputs, options.hidden)
        # a bias of the last layer would cancel where the output at zero_at is subtracted
        bias = options.zero_at is None
        last = (_PositiveLinear if monotone else nn.Linear)(options.hidden, 1, bias)
        self.network = nn.Sequential(first, nn.Tanh(), last)
        self._start(first, last, monotone)
        typical = torch.full((inputs,), math.asinh(1.0))
        empty = None if options.zero_at is None else torch.cat([torch.zeros(1), typical[1:]])
        self.weight_prior = WeightPrior(self.network, 1.0, typical, empty)
        self.register_buffer("size", torch.ones(inputs))
        self.register_buffer("shift", torch.zeros(inputs))

    @torch.no_grad()
    def _start(self, first: nn.Linear, last: nn.Linear, monotone: bool) -> None:
        """Starting weights; torch has drawn directions."""
        hidden, inputs = first.weight.shape
        # one input: evenly along its range; several: a direction and a place for each unit
        direction = first.weight / first.weight.norm(dim=1, keepdim=True)
        direction = direction.abs() if monotone or inputs == 1 else direction
        low, high = _CENTRES
        step = (high - low) / hidden
        even = low + step * (torch.arange(hidden) + torch.rand(hidden))
        centre = torch.stack([even[torch.randperm(hidden)] if k else even for k in range(inputs)], dim=1)
        slope = _SLOPE * direction
        first.weight.copy_(slope.sqrt() if monotone else slope)
        first.bias.copy_(-(slope * centre).sum(1))
        for weight in last.parameters():
            weight.zero_()
        if monotone:
            last.weight.fill_(_FIRST_OUTER)

    def build(self, size: Sequence[float], signed: Sequence[bool]) -> None:
        """Set the typical magnitude of each input and whether it has both signs, ``[input]``; the first one is counted
        from `zero_at`."""
        self.size.copy_(torch.tensor(size, dtype=torch.float64))
        shift = _MIDDLE * torch.tensor(signed, dtype=self.shift.dtype, device=self.shift.device)
        if not torch.equal(shift, self.shift):
            self.weight_prior.move(shift - self.shift, self.network)
            self.shift.copy_(shift)

    def forward(self, *inputs: Tensor) -> Tensor:
        """The output ``[...]`` for inputs whose shapes broadcast to it."""
        first = inputs[0] if not self.zero_at else inputs[0] - self.zero_at
        together = torch.broadcast_tensors(first, *inputs[1:])  # type: ignore[no-untyped-call]
        x = _asinh(torch.stack(together, dim=-1) / self.size) + self.shift
        features: Tensor = self.network[:-1](x)
        if self.zero_at is not None:
            zero = torch.zeros_like(x[..., :1]) + self.shift[:1]
            features = features - self.network[:-1](torch.cat([zero, x[..., 1:]], dim=-1))
        output: Tensor = self.network[-1:](features)
        return self._in_range(self.sign * self.prior_sd * output[..., 0])

    def _in_range(self, u: Tensor) -> Tensor:
        low, high = self.low, self.high
        if math.isinf(low) and math.isinf(high):
            return u
        if self.zero_at_end:
            end = high if low == 0.0 else low
            u = u.clamp(min=0.0) if low == 0.0 else u.clamp(max=0.0)
            return u if math.isinf(end) else end * torch.tanh(u / end)
        if math.isinf(high):
            return bounded_factor(u)
        if self.zero_at is None:
            return low + (high - low) * torch.sigmoid(u)
        share = -low / (high - low)  # of the range that lies below 0
        centre = math.log(share / (1.0 - share))
        # the same operation on both sides of the difference: exactly 0 for u = 0
        return (high - low) * (torch.sigmoid(u + centre) - torch.sigmoid(torch.zeros_like(u) + centre))

    def log_prior(self) -> Tensor:
        """Log prior density of the weights."""
        return self.weight_prior.forward(self.network)

    def centre_prior(self) -> None:
        """Move the centre of the prior density to the present weights."""
        self.weight_prior.centre(self.network)

    def magnitudes(self) -> list[Tensor]:
        """Weights that count by their magnitude alone."""
        last = self.network[-1]
        return [last.weight] if isinstance(last, _PositiveLinear) else []
