"""Corrections: learned terms that `HybridDynamics` adds to the vector field of a mechanism."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from neuralpk.dynamics.compartments import RateConstants, flow_indices
from neuralpk.dynamics.dynamics_base import Dynamics
from neuralpk.dynamics.fused_form import Perceptron
from neuralpk.dynamics.networks import RateNetwork, SlopeNetwork, latent_names
from neuralpk.scaling import Scaling


class Correction(Dynamics):
    """A vector field on the states of a mechanism, which it gets from `attach`; the mechanism does all else.

    A subclass extends `attach`: there it sets `parameter_names` and makes the networks whose sizes follow from the
    states.
    """

    states: tuple[str, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        # in a tuple, so that the mechanism is not registered as a part of its correction
        self._mechanism: tuple[Dynamics, ...] = ()

    @property
    def attached(self) -> bool:
        """Whether it has been attached to a mechanism."""
        return bool(self._mechanism)

    def attach(self, mechanism: Dynamics) -> None:
        """Take over the states and endpoints of the mechanism; `HybridDynamics` calls it, once."""
        self._mechanism = (mechanism,)
        self.states, self.endpoints, self.dosed = mechanism.states, mechanism.endpoints, mechanism.dosed

    def state_size(self, scaling: Scaling) -> tuple[float, ...]:
        return self._mechanism[0].state_size(scaling)


class NeuralFlows(Correction):
    """Further flows between the compartments of a mechanism, with rate constants of a network (`RateNetwork`)::

        correction = K(A, base, z)·A,    rate_f = base_f · g_f(A)/g_f(0)

    They keep amounts positive and their sum from increasing. The base rate constants (``base_central_out``, …) are
    parameters of each subject; they start at a hundredth of those of a compartment model.

    Args:
        latent_size: latent dimensions in addition to the base rate constants.
        hidden: width of the network.
        layers: number of its hidden layers.
        prior_sd: standard deviation of the network's output before data, where every state has its typical size; here
            of log g(A)/g(0).
        time: whether the time is an input of the network.
        extra_flows: pairs (source, destination) in addition to the flows of the mechanism; destination None for out of
            the system.

    Raises:
        ValueError: an option out of its range; when attached, a mechanism without flows or an extra flow between
            compartments that it does not have.
    """

    def __init__(
        self,
        latent_size: int = 0,
        hidden: int = 32,
        layers: int = 1,
        prior_sd: float = 0.5,
        time: bool = False,
        extra_flows: Sequence[Sequence[str | None]] = (),
    ) -> None:
        super().__init__()
        self.latent_names = latent_names(latent_size)
        self.hidden, self.layers, self.prior_sd, self.autonomous = hidden, layers, prior_sd, not time
        self.extra_flows = extra_flows

    def attach(self, mechanism: Dynamics) -> None:
        if not mechanism.flows:
            raise ValueError(
                f"NeuralFlows correct compartments; {type(mechanism).__name__} has no flows: use NeuralSlope"
            )
        super().attach(mechanism)
        self.base = RateConstants(mechanism.states, (*mechanism.flows, *self.extra_flows))
        self.flows = self.base.flows
        self.parameter_names = (*self.base.parameter_names, *self.latent_names)
        indices, time = flow_indices(self.states, self.flows), not self.autonomous
        self.rate_network = RateNetwork(
            len(self.states), indices, len(self.latent_names), self.hidden, self.layers, self.prior_sd, time
        )

    def build(self, scaling: Scaling) -> None:
        super().build(scaling)
        reference = self.rate_network.reference.new_tensor(list(self.base.guess(scaling).values()))
        self.rate_network.build(scaling.time, self.state_size(scaling)[self.endpoints[0]], reference)

    def rates(self, t: Tensor, y: Tensor, theta: Tensor) -> Tensor:
        """Rate constant of every flow, per time, ``[subject, flow]``."""
        rates: Tensor = self.rate_network(t, y, *self._split(theta))
        return rates

    def forward(self, t: Tensor, y: Tensor, theta: Tensor) -> Tensor:
        return self.base.slope(self.rates(t, y, theta), y)

    def perceptron(self, theta: Tensor) -> Perceptron:
        return self.rate_network.perceptron(*self._split(theta))

    def log_prior(self) -> Tensor:
        return self.rate_network.log_prior()

    def centre_prior(self) -> None:
        self.rate_network.centre_prior()

    def guess(self, scaling: Scaling) -> dict[str, float]:
        return self.base.guess(scaling)

    def _split(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Base rate constants and latent dimensions."""
        return theta[..., : len(self.flows)], theta[..., len(self.flows) :]


class NeuralSlope(Correction):
    """A slope of every state from a network of state, latent dimensions and, if wanted, time (`SlopeNetwork`)::

        correction = size/span · network(y/size, t/span, z)

    Args:
        latent_size: dimension of z, in which the correction differs between subjects.
        hidden: width of the network.
        layers: number of its hidden layers.
        prior_sd: standard deviation of the network's output before data, where every state has its typical size; here
            of the slope, in sizes of the state per span of the data. None for a flat prior of the weights.
        time: whether the time is an input of the network.

    Raises:
        ValueError: an option out of its range.
    """

    def __init__(
        self,
        latent_size: int = 4,
        hidden: int = 32,
        layers: int = 2,
        prior_sd: float | None = 1.0,
        time: bool = False,
    ) -> None:
        super().__init__()
        self.parameter_names = latent_names(latent_size)
        self.hidden, self.layers, self.prior_sd, self.autonomous = hidden, layers, prior_sd, not time

    def attach(self, mechanism: Dynamics) -> None:
        super().attach(mechanism)
        states, latent = len(self.states), len(self.parameter_names)
        self.slope_network = SlopeNetwork(states, latent, self.hidden, self.layers, self.prior_sd, not self.autonomous)

    def build(self, scaling: Scaling) -> None:
        self.slope_network.build(scaling.time, self.state_size(scaling))

    def forward(self, t: Tensor, y: Tensor, theta: Tensor) -> Tensor:
        slope: Tensor = self.slope_network(t, y, theta)
        return slope

    def perceptron(self, theta: Tensor) -> Perceptron:
        return self.slope_network.perceptron(theta)

    def log_prior(self) -> Tensor | float:
        return self.slope_network.log_prior()

    def centre_prior(self) -> None:
        self.slope_network.centre_prior()
