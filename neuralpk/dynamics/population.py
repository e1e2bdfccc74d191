"""Populations: of predator and prey, and of the susceptible, the infected and the recovered."""

import torch
from torch import Tensor

from neuralpk.dynamics.base import Dynamics
from neuralpk.dynamics.compartment import Compartments
from neuralpk.scaling import Scaling


class LotkaVolterra(Dynamics):
    """Predator and prey (Lotka 1925, Volterra 1926)::

        dx/dt = alpha·x − beta·x·y − kappa·x²        dy/dt = −gamma·y + delta·x·y

    Parameters: alpha, gamma (1/time), beta (1/time per predator), delta and kappa (1/time per prey), and the densities
    prey0, predator0 at the first record. Endpoint 1 is the prey, endpoint 2 the predator.

    Args:
        interaction: the terms in x·y are known; without them the equations are linear, for a correction to complete.
        crowding: the prey limit themselves by the term in x² (Verhulst 1838).
    """

    def __init__(self, interaction: bool = True, crowding: bool = False) -> None:
        super().__init__()
        self.states = ("prey", "predator")
        rates = ("alpha", "beta", "gamma", "delta") if interaction else ("alpha", "gamma")
        self.parameter_names = (*rates, *("kappa",) * crowding, "prey0", "predator0")
        self.endpoints = (0, 1)
        self.linear = not (interaction or crowding)

    def forward(self, t: Tensor, y: Tensor, theta: Tensor) -> Tensor:
        p = self.named(theta)
        prey, predator = y.unbind(-1)
        growth, death = p["alpha"], p["gamma"]
        if "beta" in p:
            growth, death = growth - p["beta"] * predator, death - p["delta"] * prey
        if "kappa" in p:
            growth = growth - p["kappa"] * prey
        return torch.stack([prey * growth, -predator * death], dim=-1)

    def initial_state(self, theta: Tensor) -> Tensor:
        return theta[..., -2:]

    def rate_matrix(self, theta: Tensor) -> Tensor:
        if not self.linear:
            return super().rate_matrix(theta)
        return torch.diag_embed(torch.stack([theta[..., 0], -theta[..., 1]], dim=-1))

    def guess(self, scaling: Scaling) -> dict[str, float]:
        prey, predator = scaling.value[0], scaling.value[-1]
        rate = 10.0 / scaling.time  # about two turns of the cycle within the series
        all_ = {"alpha": rate, "beta": rate / predator, "gamma": rate, "delta": rate / prey}
        all_ |= {"kappa": 0.1 * rate / prey, "prey0": prey, "predator0": predator}
        return {name: all_[name] for name in self.parameter_names}


class SIR(Compartments):
    """An epidemic in shares of a population (Kermack and McKendrick 1927)::

        ds/dt = −b·s·i        di/dt = b·s·i − k·i        dr/dt = k·i

    Parameters: b, k (1/time), and the share i0 that is infected at the first record, when the others are susceptible;
    b/k is reported as R0. Shares move along flows, so that s + i + r = 1 to rounding. Endpoint 1 is the infected
    share, endpoint 2 the recovered one.
    """

    def __init__(self) -> None:
        states = ("susceptible", "infected", "recovered")
        super().__init__(states, ((states[0], states[1]), (states[1], states[2])))
        self.parameter_names = ("b", "k", "i0")
        self.endpoints = (1, 2)

    def rates(self, t: Tensor, y: Tensor, theta: Tensor) -> Tensor:
        return torch.stack([theta[..., 0] * y[..., 1], theta[..., 1]], dim=-1)

    def initial_state(self, theta: Tensor) -> Tensor:
        infected = theta[..., 2]
        return torch.stack([1.0 - infected, infected, torch.zeros_like(infected)], dim=-1)

    def derived(self, theta: Tensor) -> dict[str, Tensor]:
        """The basic reproduction number R0 = b/k."""
        return {"R0": theta[..., 0] / theta[..., 1]}

    def guess(self, scaling: Scaling) -> dict[str, float]:
        return {"b": 20.0 / scaling.time, "k": 8.0 / scaling.time, "i0": 0.01}
