"""The fields between a mechanism and an equation: with a network of one's own, and with terms of a library."""

from __future__ import annotations

import torch
from torch import Tensor

from neuralpk.dynamics import Dynamics
from neuralpk.symbolic.library import Library


class OwnNetwork(Dynamics):
    """A correction whose weights are parameters of the subject, so that every series learns a network of its own::

        correction = rate · scale · (V·tanh(W·y/scale + b) + c)

    Args:
        states: names of the states.
        scale: magnitude of each state, in which the network sees it.
        rate: magnitude of a relative rate of change, per time.
        hidden: width.
    """

    scale: Tensor

    def __init__(self, states: tuple[str, ...], scale: Tensor, rate: float, hidden: int = 8) -> None:
        super().__init__()
        n = len(states)
        self.states, self.hidden, self.rate = states, hidden, rate
        self.shapes = ((hidden, n), (hidden, 1), (n, hidden), (n, 1))
        self.parameter_names = tuple(
            f"{name}{k}" for name, (a, b) in zip("WbVc", self.shapes, strict=True) for k in range(a * b)
        )
        self.register_buffer("scale", scale)

    def _layers(self, theta: Tensor) -> list[Tensor]:
        parts = torch.split(theta, [a * b for a, b in self.shapes], dim=-1)
        return [part.reshape(*part.shape[:-1], *shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def forward(self, t: Tensor, y: Tensor, theta: Tensor) -> Tensor:
        first, bias, second, constant = self._layers(theta)
        inner = torch.tanh(first @ (y / self.scale)[..., None] + bias)
        return self.rate * self.scale * (second @ inner + constant)[..., 0]

    def first_weights(self, rows: int, seed: int) -> Tensor:
        """Random inner and zero outer weights, so that the correction begins at zero, ``[row, parameter]``."""
        draws = torch.randn(
            len(self.parameter_names), generator=torch.Generator().manual_seed(seed), dtype=torch.float64
        )
        inner = self.hidden * (len(self.states) + 1)
        draws[inner:] = 0.0
        return draws.expand(rows, -1).clone()


class TermDynamics(Dynamics):
    """dy/dt = mechanism + share·correction + Σ_j coefficient_j·term_j(y), in every state the terms of a library.

    At share 1 and no coefficients it is the hybrid, at share 0 an equation. The parameters are those of the mechanism,
    those of the correction and its share where there is one, then the coefficients, the first state's first.

    Args:
        mechanistic: the known part.
        library: the terms.
        correction: the learned part; None for none.
    """

    def __init__(self, mechanistic: Dynamics, library: Library, correction: Dynamics | None = None) -> None:
        super().__init__()
        self.mechanistic, self.library, self.correction = mechanistic, library, correction
        self.states, self.endpoints = mechanistic.states, mechanistic.endpoints
        self.autonomous = mechanistic.autonomous and (correction is None or correction.autonomous)
        learned = () if correction is None else (*correction.parameter_names, "share")
        coefficients = tuple(f"{state}: {term}" for state in self.states for term in library.terms)
        self.parameter_names = (*mechanistic.parameter_names, *learned, *coefficients)
        self.sizes = [len(mechanistic.parameter_names), len(learned), len(coefficients)]

    def forward(self, t: Tensor, y: Tensor, theta: Tensor) -> Tensor:
        known, learned, coefficients = torch.split(theta, self.sizes, dim=-1)
        matrix = coefficients.reshape(*coefficients.shape[:-1], len(self.states), -1)
        slope: Tensor = self.mechanistic(t, y, known) + (matrix @ self.library.values(y)[..., None])[..., 0]
        if self.correction is not None:
            slope = slope + learned[..., -1:] * self.correction(t, y, learned[..., :-1])
        return slope

    def initial_state(self, theta: Tensor) -> Tensor:
        return self.mechanistic.initial_state(theta[..., : self.sizes[0]])

    def observe(self, y: Tensor, theta: Tensor) -> Tensor:
        return self.mechanistic.observe(y, theta[..., : self.sizes[0]])

    def lag(self, theta: Tensor) -> Tensor | None:
        return self.mechanistic.lag(theta[..., : self.sizes[0]])

    def bioavailability(self, theta: Tensor) -> Tensor | None:
        return self.mechanistic.bioavailability(theta[..., : self.sizes[0]])
