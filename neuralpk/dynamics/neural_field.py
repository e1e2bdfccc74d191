"""A vector field that is a network."""

from __future__ import annotations

from torch import Tensor

from neuralpk.dynamics.compartments import CompartmentModel
from neuralpk.dynamics.dynamics_base import Dynamics
from neuralpk.dynamics.fused_form import Perceptron
from neuralpk.dynamics.networks import SlopeNetwork, latent_names
from neuralpk.scaling import Scaling


class NeuralField(Dynamics):
    """The plain neural differential equation, dy/dt = network(y, z) or network(t, y, z), without any mechanism
    (Chen et al. 2018).

    With doses, the states are amounts that start at 0, and an assay reads y/base_V1. Without doses, the states start at
    positive values of each subject, which are parameters (``prey0``, …), and are observed as they are.

    Args:
        like: the dynamics whose states and endpoints these are, and whose doses enter; default two compartments.
        latent_size: dimension of z, in which the field differs between subjects.
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
        like: Dynamics | None = None,
        latent_size: int = 4,
        hidden: int = 32,
        layers: int = 2,
        prior_sd: float | None = None,
        time: bool = False,
    ) -> None:
        super().__init__()
        like = CompartmentModel() if like is None else like
        self.states, self.endpoints, self.dosed = like.states, like.endpoints, like.dosed
        self.autonomous = not time
        names = ("base_V1",) if self.dosed else tuple(f"{state}0" for state in self.states)
        self.named_size = len(names)
        self.parameter_names = (*names, *latent_names(latent_size))
        self.slope_network = SlopeNetwork(len(self.states), latent_size, hidden, layers, prior_sd, time)

    def build(self, scaling: Scaling) -> None:
        self.slope_network.build(scaling.time, self.state_size(scaling))

    def state_size(self, scaling: Scaling) -> tuple[float, ...]:
        return (scaling.amount,) * len(self.states) if self.dosed else super().state_size(scaling)

    def forward(self, t: Tensor, y: Tensor, theta: Tensor) -> Tensor:
        slope: Tensor = self.slope_network(t, y, theta[..., self.named_size :])
        return slope

    def perceptron(self, theta: Tensor) -> Perceptron:
        return self.slope_network.perceptron(theta[..., self.named_size :])

    def log_prior(self) -> Tensor | float:
        return self.slope_network.log_prior()

    def centre_prior(self) -> None:
        self.slope_network.centre_prior()

    def initial_state(self, theta: Tensor) -> Tensor:
        return super().initial_state(theta) if self.dosed else theta[..., : self.named_size]

    def observe(self, y: Tensor, theta: Tensor) -> Tensor:
        return y / theta[..., :1] if self.dosed else y

    def guess(self, scaling: Scaling) -> dict[str, float]:
        values = (scaling.amount / scaling.value[0],) if self.dosed else self.state_size(scaling)
        return dict(zip(self.parameter_names, values, strict=False))
