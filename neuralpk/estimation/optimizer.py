"""The estimator of the population as an optimiser of torch, so that any Trainer drives and saves it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from neuralpk.estimation.estimator import PopulationEstimator


class PopulationNewton(torch.optim.Optimizer):
    """Optimiser whose state is that of a `PopulationEstimator`.

    Its `step` evaluates the closure alone, in which the task adds a batch of subjects to the estimator; the task calls
    the estimator's own `step` when all subjects have been added.

    Args:
        estimator: of the population.
    """

    def __init__(self, estimator: PopulationEstimator) -> None:
        super().__init__(estimator.target.population_weights(), {})
        self.estimator = estimator

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Evaluate the closure."""
        if closure is None:
            return None
        with torch.enable_grad():
            return closure()

    def state_dict(self) -> dict[str, Any]:
        """The state of the estimator."""
        return super().state_dict() | {"estimator": self.estimator.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the state of an estimator."""
        self.estimator.load_state_dict(state_dict["estimator"])
