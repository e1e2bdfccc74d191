"""Predator and prey."""

import torch
from torch import Tensor

from neuralpk.dynamics.dynamics_base import Dynamics
from neuralpk.scaling import Scaling


class LotkaVolterra(Dynamics):
    """Predator and prey (Lotka 1925, Volterra 1926)::

        dx/dt = alpha·x − beta·x·y − kappa·x²        dy/dt = −gamma·y + delta·x·y

    Parameters: alpha, gamma (1/time), beta (1/time per predator), delta and kappa (1/time per prey), and the densities
    prey0, predator0 at the first record. Endpoint 1 is the prey, endpoint 2 the predator.

    Args:
        predation: with the terms in x·y; without them the equations are linear and a correction can learn them.
        logistic: with the term in x², the logistic limit of the prey's growth (Verhulst 1838).
    """

    def __init__(self, predation: bool = True, logistic: bool = False) -> None:
        super().__init__()
        self.states = ("prey", "predator")
        rates = ("alpha", "beta", "gamma", "delta") if predation else ("alpha", "gamma")
        self.parameter_names = (*rates, *("kappa",) * logistic, "prey0", "predator0")
        self.endpoints = (0, 1)
        self.linear = not (predation or logistic)

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
        p = self.named(theta)
        return torch.stack([p["prey0"], p["predator0"]], dim=-1)

    def rate_matrix(self, theta: Tensor) -> Tensor:
        if not self.linear:
            return super().rate_matrix(theta)
        p = self.named(theta)
        return torch.diag_embed(torch.stack([p["alpha"], -p["gamma"]], dim=-1))

    def guess(self, scaling: Scaling) -> dict[str, float]:
        prey, predator = scaling.value[0], scaling.value[-1]
        rate = 10.0 / scaling.time  # about two periods of the cycle within the series
        values = {"alpha": rate, "beta": rate / predator, "gamma": rate, "delta": rate / prey}
        values |= {"kappa": 0.1 * rate / prey, "prey0": prey, "predator0": predator}
        return {name: values[name] for name in self.parameter_names}
