"""Compartments whose rate constants a network changes."""

from __future__ import annotations

from torch import Tensor

from neuralpk.dynamics.compartments import CompartmentModel, Compartments, flow_indices
from neuralpk.dynamics.fused_form import Perceptron
from neuralpk.dynamics.networks import RateNetwork, latent_names
from neuralpk.dynamics.wrapper import Wrapper
from neuralpk.scaling import Scaling


class NeuralCompartments(Wrapper):
    """Compartments with rate constants that a network changes: dA/dt = K(A, theta)·A, all rate constants positive.

    Each subject has the parameters of linear compartments (CL, V1, Q, V2, …), and a network of the amounts and of the
    latent dimensions multiplies the rate constants that follow from them (`RateNetwork`)::

        rate_f = base_f(CL, V1, …) · g_f(A)/g_f(0),    g = exp(5·tanh(x/5))
        x = network(log(1 + A/unit), log(base/guess), z)

    So no concentration is negative, no drug appears without a dose, and C → 0 if every compartment leads to central
    and central has an elimination. The parameters are those of the system when little drug is left.

    The unit is the `state_size` of the state that endpoint 1 observes: of amounts, the median dose.

    Args:
        base: the linear compartments, whose doses and observations these are; default two compartments.
        latent_size: latent dimensions in addition to the parameters of `base`.
        hidden: width of the network.
        layers: number of its hidden layers.
        prior_sd: standard deviation of the network's output before data, where every state has its typical size; here
            of log g(A)/g(0), so that 0.5 expects rate constants to change by about a half.
        time: whether the time is an input of the network, as log(1 + t/span).

    Raises:
        ValueError: `base` is not linear; an option out of its range.
    """

    inner: Compartments

    def __init__(
        self,
        base: Compartments | None = None,
        latent_size: int = 0,
        hidden: int = 32,
        layers: int = 1,
        prior_sd: float = 0.5,
        time: bool = False,
    ) -> None:
        base = CompartmentModel() if base is None else base
        if not base.linear:
            raise ValueError(
                f"NeuralCompartments need the rate constants of linear compartments; {type(base).__name__} is not "
                "linear: choose elimination='linear', or correct it with HybridDynamics"
            )
        super().__init__(base)
        self.autonomous = not time
        self.parameter_names = (*base.parameter_names, *latent_names(latent_size))
        flows = flow_indices(base.states, base.flows)
        self.rate_network = RateNetwork(len(base.states), flows, latent_size, hidden, layers, prior_sd, time)

    def build(self, scaling: Scaling) -> None:
        super().build(scaling)
        guess = self.inner.guess(scaling)
        typical = self.rate_network.reference.new_tensor([guess[name] for name in self.inner.parameter_names])
        unit = self.state_size(scaling)[self.endpoints[0]]
        self.rate_network.build(scaling.time, unit, self.base_rates(typical))

    def inner_theta(self, theta: Tensor) -> Tensor:
        return theta[..., : len(self.inner.parameter_names)]

    def base_rates(self, theta: Tensor) -> Tensor:
        """Rate constants of the empty system, ``[..., flow]``."""
        named = self.inner_theta(theta)
        return self.inner.rates(named[..., 0], named, named)  # of linear compartments, which use neither t nor y

    def rates(self, t: Tensor, y: Tensor, theta: Tensor) -> Tensor:
        """Rate constant of every flow, per time, ``[subject, flow]``."""
        rates: Tensor = self.rate_network(t, y, self.base_rates(theta), self._latent(theta))
        return rates

    def forward(self, t: Tensor, y: Tensor, theta: Tensor) -> Tensor:
        return self.inner.slope(self.rates(t, y, theta), y)

    def perceptron(self, theta: Tensor) -> Perceptron:
        return self.rate_network.perceptron(self.base_rates(theta), self._latent(theta))

    def log_prior(self) -> Tensor | float:
        return super().log_prior() + self.rate_network.log_prior()

    def centre_prior(self) -> None:
        super().centre_prior()
        self.rate_network.centre_prior()

    def _latent(self, theta: Tensor) -> Tensor:
        return theta[..., len(self.inner.parameter_names) :]
