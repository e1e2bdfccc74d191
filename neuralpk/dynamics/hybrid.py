"""Mechanism plus learned correction."""

from dataclasses import replace

from torch import Tensor

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

    Raises:
        ValueError: the parts differ in their states.
    """

    def __init__(self, mechanistic: Dynamics, correction: Dynamics) -> None:
        super().__init__()
        if mechanistic.states != correction.states:
            raise ValueError(f"states differ: mechanism {mechanistic.states}, correction {correction.states}")
        self.mechanistic = mechanistic
        self.correction = correction
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
        return replace(learned, matrix=self.mechanistic.rate_matrix(known))

    def log_prior(self) -> Tensor | float:
        return self.mechanistic.log_prior() + self.correction.log_prior()

    def believe_weights(self) -> None:
        self.correction.believe_weights()

    def initial_state(self, theta: Tensor) -> Tensor:
        return self.mechanistic.initial_state(self._split(theta)[0])

    def observe(self, y: Tensor, theta: Tensor) -> Tensor:
        return self.mechanistic.observe(y, self._split(theta)[0])

    def lag(self, theta: Tensor) -> Tensor | None:
        return self.mechanistic.lag(self._split(theta)[0])

    def bioavailability(self, theta: Tensor) -> Tensor | None:
        return self.mechanistic.bioavailability(self._split(theta)[0])

    def derived(self, theta: Tensor) -> dict[str, Tensor]:
        return self.mechanistic.derived(self._split(theta)[0])

    def guess(self, scaling: Scaling) -> dict[str, float]:
        return self.mechanistic.guess(scaling) | self.correction.guess(scaling)
