"""Mechanism plus learned correction."""

import math
from dataclasses import replace

import torch
from torch import Tensor
from torch.autograd.functional import jvp

from neuralpk.dynamics.corrections import Correction, NeuralFlows, NeuralSlope
from neuralpk.dynamics.dynamics_base import Dynamics
from neuralpk.dynamics.fused_form import Perceptron
from neuralpk.dynamics.wrapper import Wrapper
from neuralpk.scaling import Scaling


class HybridDynamics(Wrapper):
    """A universal differential equation, dy/dt = mechanism(t, y, theta) + correction(t, y, z) (Rackauckas et al. 2020).

    The parameters are those of the mechanism, then those of the correction. Initial state, doses and observations are
    those of the mechanism. Where both parts are compartments, their rate constants add up, so that amounts stay
    positive and balanced; parameters such as CL are then those of the mechanism alone.

    Args:
        mechanism: the equations.
        correction: the learned part: a `Correction`, or any other dynamics on the same states. Default: `NeuralFlows`
            for a mechanism of compartments, else `NeuralSlope`.
        overlap: weight of `penalty`; 0 for none.

    Raises:
        ValueError: parts with different states or with a parameter of the same name; a negative `overlap`.
    """

    def __init__(self, mechanism: Dynamics, correction: Dynamics | None = None, overlap: float = 0.0) -> None:
        super().__init__(mechanism)
        if not 0 <= overlap < math.inf:
            raise ValueError(f"overlap must be at least 0, not {overlap}")
        if correction is None:
            correction = NeuralFlows() if mechanism.flows else NeuralSlope()
        if isinstance(correction, Correction) and not correction.attached:
            correction.attach(mechanism)
        if mechanism.states != correction.states:
            raise ValueError(f"states differ: mechanism {mechanism.states}, correction {correction.states}")
        both = set(mechanism.parameter_names) & set(correction.parameter_names)
        if both:
            raise ValueError(f"mechanism and correction both have parameters {', '.join(sorted(both))}: rename them")
        self.correction = correction
        self.overlap = overlap
        self.penalised = overlap > 0 or mechanism.penalised or correction.penalised
        self.parameter_names = (*mechanism.parameter_names, *correction.parameter_names)
        self.autonomous = mechanism.autonomous and correction.autonomous
        self.compiled = mechanism.compiled and correction.compiled

    @property
    def mechanism(self) -> Dynamics:
        """The equations to which the correction is added."""
        return self.inner

    def inner_theta(self, theta: Tensor) -> Tensor:
        return self._split(theta)[0]

    def _split(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        n = len(self.mechanism.parameter_names)
        return theta[..., :n], theta[..., n:]

    def forward(self, t: Tensor, y: Tensor, theta: Tensor) -> Tensor:
        of_mechanism, of_correction = self._split(theta)
        slope: Tensor = self.mechanism(t, y, of_mechanism) + self.correction(t, y, of_correction)
        return slope

    def perceptron(self, theta: Tensor) -> Perceptron | None:
        of_mechanism, of_correction = self._split(theta)
        learned = self.correction.perceptron(of_correction)
        if learned is None or learned.matrix is not None or not self.mechanism.linear:
            return None
        if self.mechanism.forcing(of_mechanism) is not None:
            return None
        matrix = self.mechanism.rate_matrix(of_mechanism)
        if learned.clock is not None:  # the time is the last state of the kernel; it has no part in the mechanism
            matrix = torch.nn.functional.pad(matrix, (0, 1, 0, 1))
        return replace(learned, matrix=matrix)

    def guess(self, scaling: Scaling) -> dict[str, float]:
        return super().guess(scaling) | self.correction.guess(scaling)

    def log_prior(self) -> Tensor | float:
        return super().log_prior() + self.correction.log_prior()

    def centre_prior(self) -> None:
        super().centre_prior()
        self.correction.centre_prior()

    def penalty(self, t: Tensor, y: Tensor, theta: Tensor, mask: Tensor) -> Tensor | None:
        """Penalties of both parts, and one for the overlap of the correction with the mechanism.

        The overlap is what other parameters of the mechanism could do. Along the solution of a subject, the correction
        c is projected on the span of the mechanism's sensitivities ∂f/∂log theta, by P; with every state in units of
        the mechanism's slope (root mean square over the times)::

            penalty = overlap/2 · Σ_times |P·c|² / states

        Its gradient goes to the correction only.
        """
        of_mechanism, of_correction = self._split(theta)
        parts = [super().penalty(t, y, theta, mask), self.correction.penalty(t, y, of_correction, mask)]
        if self.overlap > 0:
            parts.append(self._overlap(t, y, of_mechanism, of_correction, mask))
        penalties = [part for part in parts if part is not None]
        return torch.stack(penalties).sum(0) if penalties else None

    def _overlap(self, t: Tensor, y: Tensor, theta: Tensor, of_correction: Tensor, mask: Tensor) -> Tensor:
        theta, y, on = theta.detach(), y.detach(), mask[..., None].to(y.dtype)
        with torch.no_grad():
            slope, directions = self._sensitivities(t, y, theta)
            size = ((slope * on).square().sum(1) / on.sum(1).clamp(min=1.0)).sqrt().clamp(min=1e-12)
            directions = (directions / size[:, None, :, None] * on[..., None]).flatten(1, 2)
            # an orthonormal basis, without directions that are linear combinations of the others
            left, strength, _ = torch.linalg.svd(directions, full_matrices=False)
            basis = left * (strength > 1e-4 * strength[:, :1].clamp(min=1e-12))[:, None]
        learned = self.correction(t.flatten(), y.flatten(0, 1), of_correction.flatten(0, 1)).reshape(y.shape)
        projected = ((learned / size[:, None] * on).flatten(1)[:, None] @ basis)[:, 0]
        penalty: Tensor = 0.5 * self.overlap * projected.square().sum(-1) / len(self.states)
        return penalty

    def _sensitivities(self, t: Tensor, y: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        """The mechanism's slope ``[subject, time, state]`` and its derivatives in the logarithms of its parameters,
        ``[subject, time, state, parameter]``."""
        t, states, theta = t.flatten(), y.flatten(0, 1), theta.flatten(0, 1)
        columns = []
        for k in range(theta.shape[-1]):
            step = torch.zeros_like(theta)
            step[:, k] = theta[:, k]
            slope, column = jvp(lambda p: self.mechanism(t, states, p), theta, step)  # type: ignore[no-untyped-call]
            columns.append(column)
        return slope.reshape(y.shape), torch.stack(columns, dim=-1).reshape(*y.shape, -1)
