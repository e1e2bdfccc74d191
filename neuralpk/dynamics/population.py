"""Populations of animals: predator and prey."""

import torch
from torch import Tensor

from neuralpk.dynamics.base import Dynamics
from neuralpk.scaling import Scaling


class LotkaVolterra(Dynamics):
    """Predator and prey (Lotka 1925, Volterra 1926)::

        dx/dt = alpha·x − beta·x·y        dy/dt = −gamma·y + delta·x·y

    Parameters: alpha, gamma (1/time), beta (1/time per predator), delta (1/time per prey), and the densities
    prey0, predator0 at the first record. Endpoint 1 is the prey, endpoint 2 the predator.
    """

    def __init__(self) -> None:
        super().__init__()
        self.states = ("prey", "predator")
        self.parameter_names = ("alpha", "beta", "gamma", "delta", "prey0", "predator0")
        self.endpoints = (0, 1)

    def forward(self, t: Tensor, y: Tensor, theta: Tensor) -> Tensor:
        alpha, beta, gamma, delta = theta[..., :4].unbind(-1)
        prey, predator = y.unbind(-1)
        return torch.stack([prey * (alpha - beta * predator), predator * (delta * prey - gamma)], dim=-1)

    def initial_state(self, theta: Tensor) -> Tensor:
        return theta[..., 4:6]

    def guess(self, scaling: Scaling) -> dict[str, float]:
        prey, predator = scaling.value[0], scaling.value[-1]
        rate = 10.0 / scaling.time  # about two turns of the cycle within the series
        rates = {"alpha": rate, "beta": rate / predator, "gamma": rate, "delta": rate / prey}
        return rates | {"prey0": prey, "predator0": predator}
