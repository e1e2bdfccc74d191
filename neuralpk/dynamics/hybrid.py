"""Mechanism plus learned correction."""

from dataclasses import replace

import torch
from torch import Tensor
from torch.autograd.functional import jvp

from neuralpk.dynamics.base import Dynamics
from neuralpk.dynamics.perceptron import Perceptron
from neuralpk.scaling import Scaling


class HybridDynamics(Dynamics):
    """dy/dt = mechanism(t, y, theta) + correction(t, y, z), a universal differential equation (Rackauckas 2020).

    The parameters of this dynamics are those of the mechanism, then those of the correction. The mechanism says how the
    system starts, how doses enter and what is observed. Where both parts are compartments, their rates add up, so that
    positivity and mass balance survive the correction; parameters such as CL are then those of the mechanism alone, to
    which the correction adds flows of its own.

    Args:
        mechanistic: the known part.
        correction: the learned part, on the same states.
        overlap: weight of `penalty`.

    Raises:
        ValueError: the parts differ in their states.
    """

    def __init__(self, mechanistic: Dynamics, correction: Dynamics, overlap: float = 0.0) -> None:
        super().__init__()
        if mechanistic.states != correction.states:
            raise ValueError(f"states differ: mechanism {mechanistic.states}, correction {correction.states}")
        self.mechanistic = mechanistic
        self.correction = correction
        self.overlap, self.penalised = overlap, overlap > 0
        self.states = mechanistic.states
        self.parameter_names = (*mechanistic.parameter_names, *correction.parameter_names)
        self.endpoints = mechanistic.endpoints
        self.autonomous = mechanistic.autonomous and correction.autonomous

    def _split(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        n = len(self.mechanistic.parameter_names)
        return theta[..., :n], theta[..., n:]

    def forward(self, t: Tensor, y: Tensor, theta: Tensor) -> Tensor:
        known, latent = self._split(theta)
        slope: Tensor = self.mechanistic(t, y, known) + self.correction(t, y, latent)
        return slope

    def perceptron(self, theta: Tensor) -> Perceptron | None:
        known, latent = self._split(theta)
        learned = self.correction.perceptron(latent)
        if learned is None or learned.matrix is not None or not self.mechanistic.linear:
            return None
        matrix = self.mechanistic.rate_matrix(known)
        if learned.clock is not None:  # of the time the mechanism knows nothing
            matrix = torch.nn.functional.pad(matrix, (0, 1, 0, 1))
        return replace(learned, matrix=matrix)

    def log_prior(self) -> Tensor | float:
        return self.mechanistic.log_prior() + self.correction.log_prior()

    def centre_prior(self) -> None:
        self.correction.centre_prior()

    def penalty(self, t: Tensor, y: Tensor, theta: Tensor, mask: Tensor) -> Tensor | None:
        """What the correction does that the mechanism could do with other parameters.

        Along the line of a subject, the correction c is projected on the span of the mechanism's own sensitivities
        ∂f/∂log theta; with every state in units of the mechanism's slope (root mean square over the line)::

            penalty = overlap/2 · Σ_times |P·c|² / states

        Its gradient reaches the correction alone. What is left of the correction is held by the prior of its weights.
        """
        if not self.penalised:
            return None
        known, latent = self._split(theta)
        known, y, on = known.detach(), y.detach(), mask[..., None].to(y.dtype)
        with torch.no_grad():
            slope, directions = self._sensitivities(t, y, known)
            size = ((slope * on).square().sum(1) / on.sum(1).clamp(min=1.0)).sqrt().clamp(min=1e-12)
            directions = (directions / size[:, None, :, None] * on[..., None]).flatten(1, 2)
            # turned into an orthonormal base; a direction that is none of its own is left out
            left, strength, _ = torch.linalg.svd(directions, full_matrices=False)
            base = left * (strength > 1e-4 * strength[:, :1].clamp(min=1e-12))[:, None]
        learned = self.correction(t.flatten(), y.flatten(0, 1), latent.flatten(0, 1)).reshape(y.shape)
        within = ((learned / size[:, None] * on).flatten(1)[:, None] @ base)[:, 0]
        held: Tensor = 0.5 * self.overlap * within.square().sum(-1) / len(self.states)
        return held

    def _sensitivities(self, t: Tensor, y: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        """The mechanism's slope ``[subject, time, state]`` and its derivatives in the logarithms of its parameters,
        ``[subject, time, state, parameter]``."""
        clock, place, own = t.flatten(), y.flatten(0, 1), theta.flatten(0, 1)
        columns = []
        for k in range(own.shape[-1]):
            step = torch.zeros_like(own)
            step[:, k] = own[:, k]
            slope, column = jvp(lambda p: self.mechanistic(clock, place, p), own, step)  # type: ignore[no-untyped-call]
            columns.append(column)
        return slope.reshape(y.shape), torch.stack(columns, dim=-1).reshape(*y.shape, -1)

    def initial_state(self, theta: Tensor) -> Tensor:
        return self.mechanistic.initial_state(self._split(theta)[0])

    def observe(self, y: Tensor, theta: Tensor) -> Tensor:
        return self.mechanistic.observe(y, self._split(theta)[0])

    def lag(self, theta: Tensor) -> Tensor | None:
        return self.mechanistic.lag(self._split(theta)[0])

    def bioavailability(self, theta: Tensor) -> Tensor | None:
        return self.mechanistic.bioavailability(self._split(theta)[0])

    def dose_unit(self, theta: Tensor) -> Tensor | None:
        return self.mechanistic.dose_unit(self._split(theta)[0])

    def derived(self, theta: Tensor) -> dict[str, Tensor]:
        return self.mechanistic.derived(self._split(theta)[0])

    def guess(self, scaling: Scaling) -> dict[str, float]:
        return self.mechanistic.guess(scaling) | self.correction.guess(scaling)
