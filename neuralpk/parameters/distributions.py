"""Distributions of a parameter between subjects, by the transform under which its random effect is normal."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from neuralpk.part import Part


class ParameterDistribution(Part, ABC):
    """Distribution of one parameter between subjects.

    The random effect eta is normal on the scale of h^-1(theta), and so are the shifts by covariates::

        theta = h(h^-1(typical) + shift(covariates) + eta)        eta ~ N(0, omega²)

    A new distribution is a subclass with `transform` and `inverse`. Neither has learned numbers.

    Attributes:
        varies: whether the parameter has a random effect.
        support: the values that theta can take, in words, for messages.
    """

    varies: bool = True
    support: str = "a value that inverse() maps to a finite number"

    @abstractmethod
    def transform(self, x: Tensor) -> Tensor:
        """theta = h(x), ``[...]``, of values on the unconstrained scale, ``[...]``."""

    @abstractmethod
    def inverse(self, theta: Tensor) -> Tensor:
        """x = h^-1(theta), ``[...]``."""


class LogNormal(ParameterDistribution):
    """Log-normal distribution, theta = typical · exp(shift + eta): the default of positive parameters."""

    support = "above 0"

    def transform(self, x: Tensor) -> Tensor:
        return x.exp()

    def inverse(self, theta: Tensor) -> Tensor:
        return theta.log()


class Normal(ParameterDistribution):
    """Normal distribution, theta = typical + shift + eta: for parameters that may be zero or negative."""

    support = "a finite number"

    def transform(self, x: Tensor) -> Tensor:
        return x

    def inverse(self, theta: Tensor) -> Tensor:
        return theta


class LogitNormal(ParameterDistribution):
    """Logit-normal distribution between two bounds, for fractions such as a bioavailability::

        theta = low + (high − low) / (1 + exp(−x))        x = logit(typical) + shift + eta

    Args:
        low: lower bound, in the unit of the parameter.
        high: upper bound.

    Raises:
        ValueError: bounds that are not in order.
    """

    def __init__(self, low: float = 0.0, high: float = 1.0) -> None:
        if not low < high:
            raise ValueError(f"LogitNormal: low must be below high, got low {low} and high {high}")
        self.low, self.high = low, high
        self.support = f"between {low:g} and {high:g}"

    def transform(self, x: Tensor) -> Tensor:
        return self.low + (self.high - self.low) * torch.sigmoid(x)

    def inverse(self, theta: Tensor) -> Tensor:
        return torch.logit((theta - self.low) / (self.high - self.low))


class NoVariability(ParameterDistribution):
    """Parameter without a random effect: it has a learned typical value and may have covariate effects.

    Args:
        inner: the scale on which the typical value is learned and covariates act; default log-normal.
    """

    varies = False

    def __init__(self, inner: ParameterDistribution | None = None) -> None:
        self.inner = inner or LogNormal()
        self.support = self.inner.support

    def transform(self, x: Tensor) -> Tensor:
        return self.inner.transform(x)

    def inverse(self, theta: Tensor) -> Tensor:
        return self.inner.inverse(theta)


def of_range(low: float, high: float) -> ParameterDistribution:
    """The usual distribution of a parameter on an open interval: log-normal above 0, logit-normal between two bounds,
    normal without bounds.

    Raises:
        ValueError: another interval.
    """
    if (low, high) == (0.0, math.inf):
        return LogNormal()
    if math.isfinite(low) and math.isfinite(high):
        return LogitNormal(low, high)
    if not (math.isfinite(low) or math.isfinite(high)):
        return Normal()
    raise ValueError(f"an interval is (0, inf), (-inf, inf) or has two finite ends, not ({low:g}, {high:g})")
