"""Normally distributed residual errors: additive, proportional, and both."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.distributions import Distribution, Normal

from neuralpk.residual_error.base import ResidualError, normal_tails, of_endpoint

_HALF_LOG_2_PI = 0.5 * math.log(2.0 * math.pi)


def normal_log_density(value: Tensor, mean: Tensor, sd: Tensor) -> Tensor:
    """log p(value) of N(mean, sd²), ``[...]``, in half the operations of `torch.distributions`: of millions of
    predictions each one is a pass through memory."""
    z = (value - mean) / sd
    return torch.addcmul(-sd.log() - _HALF_LOG_2_PI, z, z, value=-0.5)


class _Normal(Normal):
    def log_prob(self, value: Tensor) -> Tensor:
        return normal_log_density(value, self.loc, self.scale)


class NormalError(ResidualError, ABC):
    """y = f + sd(f)·e with e ~ N(0, 1). A subclass writes `sd`."""

    @abstractmethod
    def sd(self, prediction: Tensor, endpoint: Tensor) -> Tensor:
        """Standard deviation of an observation around a prediction, ``[...]``, in the unit of the value."""

    def distribution(self, prediction: Tensor, endpoint: Tensor) -> Distribution:
        return _Normal(prediction, self.sd(prediction, endpoint), validate_args=False)

    def log_tails(self, value: Tensor, prediction: Tensor, endpoint: Tensor) -> tuple[Tensor, Tensor]:
        return normal_tails(self.standardise(value, prediction, endpoint))

    def standardise(self, value: Tensor, prediction: Tensor, endpoint: Tensor) -> Tensor:
        return (value - prediction) / self.sd(prediction, endpoint)

    def simulate(self, prediction: Tensor, endpoint: Tensor, noise: Tensor) -> Tensor:
        return prediction + self.sd(prediction, endpoint) * noise

    def information(self, prediction: Tensor, endpoint: Tensor) -> Tensor:
        """1/s² + 2·(s'(f)/s)², of y ~ N(f, s(f)²), ``[...]``."""
        with torch.enable_grad():
            f = prediction.detach().requires_grad_()
            sd = self.sd(f, endpoint)
            (slope,) = torch.autograd.grad(sd.sum(), f, materialize_grads=True)
        return (1.0 + 2.0 * slope.square()) / sd.detach().square()


class AdditiveError(NormalError):
    """y = f + a·e.

    Args:
        a: starting value of the standard deviation, in the unit of the value; default 9 % of the typical value.
        prior_sd: width of a prior around `a`, as of `ResidualError`.
        fixed: whether it keeps its value in a fit.
    """

    names = ("a",)

    def __init__(self, a: float | None = None, prior_sd: dict[str, float] | None = None, fixed: bool = False) -> None:
        super().__init__({"a": a}, prior_sd, fixed)

    def guess(self, name: str, value: float) -> float:
        return 0.09 * value

    def sd(self, prediction: Tensor, endpoint: Tensor) -> Tensor:
        return self.by_endpoint("a", endpoint).expand_as(prediction)

    def information(self, prediction: Tensor, endpoint: Tensor) -> Tensor:
        return self.sd(prediction, endpoint).detach().square().reciprocal()


class ProportionalError(NormalError):
    """y = f·(1 + b·e).

    Args:
        b: starting value of the coefficient of variation; default 0.3.
        prior_sd: width of a prior around `b`, as of `ResidualError`.
        fixed: whether it keeps its value in a fit.
    """

    names = ("b",)

    def __init__(self, b: float | None = None, prior_sd: dict[str, float] | None = None, fixed: bool = False) -> None:
        super().__init__({"b": b}, prior_sd, fixed)

    def sd(self, prediction: Tensor, endpoint: Tensor) -> Tensor:
        return self.by_endpoint("b", endpoint) * torch.maximum(prediction.abs(), of_endpoint(self.smallest, endpoint))


class CombinedError(NormalError):
    """y = f + sqrt(a² + (b·f)²)·e: variances add, not standard deviations.

    Args:
        a: starting value of the additive standard deviation, in the unit of the value; default 9 % of the typical
            value.
        b: starting value of the coefficient of variation; default 0.3.
        prior_sd: widths of priors around `a` and `b`, as of `ResidualError`.
        fixed: whether both keep their values in a fit.
    """

    names = ("a", "b")

    def __init__(
        self,
        a: float | None = None,
        b: float | None = None,
        prior_sd: dict[str, float] | None = None,
        fixed: bool = False,
    ) -> None:
        super().__init__({"a": a, "b": b}, prior_sd, fixed)

    def guess(self, name: str, value: float) -> float:
        return 0.09 * value if name == "a" else 0.3

    def sd(self, prediction: Tensor, endpoint: Tensor) -> Tensor:
        return torch.sqrt(self.by_endpoint("a", endpoint) ** 2 + (self.by_endpoint("b", endpoint) * prediction) ** 2)
