"""An epidemic: susceptible, infected, recovered."""

import torch
from torch import Tensor

from neuralpk.dynamics.compartments import Compartments
from neuralpk.scaling import Scaling


class SIR(Compartments):
    """An epidemic, as shares of a population (Kermack and McKendrick 1927)::

        ds/dt = −b·s·i        di/dt = b·s·i − k·i        dr/dt = k·i

    Parameters: b, k (1/time), and the share i0 that is infected at the first record, when the others are susceptible;
    b/k is reported as R0. Shares move along flows, so that s + i + r = 1 up to rounding. Endpoint 1 is the infected
    share, endpoint 2 the recovered one.
    """

    dosed = False

    def __init__(self) -> None:
        states = ("susceptible", "infected", "recovered")
        super().__init__(states, ((states[0], states[1]), (states[1], states[2])))
        self.parameter_names = ("b", "k", "i0")
        self.endpoints = (1, 2)

    def rates(self, t: Tensor, y: Tensor, theta: Tensor) -> Tensor:
        p = self.named(theta)
        return torch.stack([p["b"] * y[..., 1], p["k"]], dim=-1)

    def initial_state(self, theta: Tensor) -> Tensor:
        infected = theta[..., 2]
        return torch.stack([1.0 - infected, infected, torch.zeros_like(infected)], dim=-1)

    def derived(self, theta: Tensor) -> dict[str, Tensor]:
        """The basic reproduction number R0 = b/k."""
        return {"R0": theta[..., 0] / theta[..., 1]}

    def guess(self, scaling: Scaling) -> dict[str, float]:
        return {"b": 20.0 / scaling.time, "k": 8.0 / scaling.time, "i0": 0.01}
