"""Dynamics between a hybrid and an equation: a mechanism, a share of a correction, and terms of a library."""

from __future__ import annotations

import torch
from torch import Tensor

from neuralpk.dynamics import Dynamics, Wrapper
from neuralpk.symbolic.library import Library


class TermDynamics(Wrapper):
    """dy/dt = mechanism + share·correction + Σ_j coefficient_j·term_j(y), in every state the terms of a library.

    At share 1 and coefficients 0 it is the hybrid, at share 0 an equation. The parameters are those of the mechanism,
    those of the correction and its share if it has one, then the coefficients, those of the first state first.

    Args:
        mechanism: the equations.
        library: the terms.
        correction: the learned part; None for none.
    """

    def __init__(self, mechanism: Dynamics, library: Library, correction: Dynamics | None = None) -> None:
        super().__init__(mechanism)
        self.library, self.correction = library, correction
        self.autonomous = mechanism.autonomous and (correction is None or correction.autonomous)
        learned = () if correction is None else (*correction.parameter_names, "share")
        coefficients = tuple(f"{state}: {term}" for state in self.states for term in library.terms)
        self.parameter_names = (*mechanism.parameter_names, *learned, *coefficients)
        self.sizes = [len(mechanism.parameter_names), len(learned), len(coefficients)]

    def inner_theta(self, theta: Tensor) -> Tensor:
        return theta[..., : self.sizes[0]]

    def forward(self, t: Tensor, y: Tensor, theta: Tensor) -> Tensor:
        of_mechanism, learned, coefficients = torch.split(theta, self.sizes, dim=-1)
        matrix = coefficients.reshape(*coefficients.shape[:-1], len(self.states), -1)
        slope: Tensor = self.inner(t, y, of_mechanism) + (matrix @ self.library.values(y)[..., None])[..., 0]
        if self.correction is not None:
            slope = slope + learned[..., -1:] * self.correction(t, y, learned[..., :-1])
        return slope

    def log_prior(self) -> Tensor | float:
        return super().log_prior() + (0.0 if self.correction is None else self.correction.log_prior())
