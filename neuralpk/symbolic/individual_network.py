"""Correction by a network whose weights are parameters of each individual."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from neuralpk.dynamics import Dynamics


class IndividualNetwork(Dynamics):
    """A correction with its weights in theta, so that every series has a network for itself::

        correction = rate · scale · (V·tanh(W·y/scale + b) + c)

    Args:
        states: names of the states.
        scale: magnitude of each state, the unit of the network's inputs.
        rate: magnitude of a relative rate of change, per time.
        hidden: width.
    """

    scale: Tensor

    def __init__(self, states: Sequence[str], scale: Sequence[float], rate: float, hidden: int = 8) -> None:
        super().__init__()
        n = len(states)
        self.states, self.hidden, self.rate = tuple(states), hidden, rate
        self.shapes = ((hidden, n), (hidden, 1), (n, hidden), (n, 1))
        # words, since V1 is a volume of the mechanism
        names = ("inner_weight", "inner_bias", "outer_weight", "outer_bias")
        self.parameter_names = tuple(
            f"{name}{k}" for name, (a, b) in zip(names, self.shapes, strict=True) for k in range(a * b)
        )
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float64))

    def _layers(self, theta: Tensor) -> list[Tensor]:
        parts = torch.split(theta, [a * b for a, b in self.shapes], dim=-1)
        return [part.reshape(*part.shape[:-1], *shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def forward(self, t: Tensor, y: Tensor, theta: Tensor) -> Tensor:
        first, bias, second, constant = self._layers(theta)
        scale = self.scale.to(y.dtype)
        inner = torch.tanh(first @ (y / scale)[..., None] + bias)
        return self.rate * scale * (second @ inner + constant)[..., 0]

    def first_weights(self, rows: int, seed: int) -> Tensor:
        """Random inner and zero outer weights, so that the correction is 0 at first, ``[row, parameter]``."""
        draws = torch.randn(
            len(self.parameter_names), generator=torch.Generator().manual_seed(seed), dtype=torch.float64
        )
        inner = self.hidden * (len(self.states) + 1)
        draws[inner:] = 0.0
        return draws.expand(rows, -1).clone()
