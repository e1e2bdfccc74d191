"""Residual error with outliers."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution, StudentT

from neuralpk.residual_error.base import ResidualError


class StudentTError(ResidualError):
    """y = f + sqrt(a² + (b·f)²)·t, with t of Student's distribution: `CombinedError` with outliers (Lange, Little and
    Taylor 1989).

    Args:
        a: starting value of the additive scale, in the unit of the value; default 9 % of the typical value.
        b: starting value of the proportional scale; default 0.3.
        freedom: degrees of freedom, fixed; the fewer, the heavier the tails.
        prior_sd: widths of priors around `a` and `b`, as of `ResidualError`.
        fixed: whether both keep their values in a fit.

    Raises:
        ValueError: degrees of freedom that are not positive.
    """

    names = ("a", "b")
    constants = ("freedom",)

    def __init__(
        self,
        a: float | None = None,
        b: float | None = None,
        freedom: float = 4.0,
        prior_sd: dict[str, float] | None = None,
        fixed: bool = False,
    ) -> None:
        super().__init__({"a": a, "b": b}, prior_sd, fixed)
        if not freedom > 0:
            raise ValueError(f"the degrees of freedom must be positive, got {freedom}")
        self.freedom = freedom

    def guess(self, name: str, value: float) -> float:
        return 0.09 * value if name == "a" else 0.3

    def distribution(self, prediction: Tensor, endpoint: Tensor) -> Distribution:
        scale = torch.hypot(self.by_endpoint("a", endpoint), self.by_endpoint("b", endpoint) * prediction)
        return StudentT(self.freedom, prediction, scale, validate_args=False)
