"""The optimiser of a training in which the estimator moves all that is learned."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class MovedByEstimator(torch.optim.Optimizer):
    """Optimiser that moves nothing: a Trainer needs one to count steps, and the estimator does the rest. Its learning
    rate, which callbacks read, is 1 and means nothing.

    Args:
        numbers: what the estimator moves.
    """

    def __init__(self, numbers: Iterable[Tensor]) -> None:
        super().__init__(numbers, {"lr": 1.0})

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Evaluate the closure."""
        if closure is None:
            return None
        with torch.enable_grad():
            return closure()
