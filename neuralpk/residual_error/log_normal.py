"""Log-normally distributed residual error."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution, LogNormal

from neuralpk.residual_error.base import POSITIVE, ResidualError, normal_tails, of_endpoint
from neuralpk.residual_error.normal import normal_log_density


class _LogNormal(LogNormal):
    def log_prob(self, value: Tensor) -> Tensor:
        log_value = value.log()
        return normal_log_density(log_value, self.loc, self.scale) - log_value


class LogNormalError(ResidualError):
    """log y = log f + b·e; predictions are held above a ten-thousandth of the typical value.

    Args:
        b: starting value of the standard deviation of log y; default 0.3.
        prior_sd: width of a prior around `b`, as of `ResidualError`.
        fixed: whether it keeps its value in a fit.
    """

    names = ("b",)

    def __init__(self, b: float | None = None, prior_sd: dict[str, float] | None = None, fixed: bool = False) -> None:
        super().__init__({"b": b}, prior_sd, fixed)

    def _held(self, prediction: Tensor, endpoint: Tensor) -> Tensor:
        return torch.maximum(prediction, of_endpoint(self.smallest, endpoint).clamp(min=POSITIVE))

    def _log(self, prediction: Tensor, endpoint: Tensor) -> Tensor:
        return torch.log(self._held(prediction, endpoint))

    def distribution(self, prediction: Tensor, endpoint: Tensor) -> Distribution:
        return _LogNormal(self._log(prediction, endpoint), self.by_endpoint("b", endpoint), validate_args=False)

    def log_tails(self, value: Tensor, prediction: Tensor, endpoint: Tensor) -> tuple[Tensor, Tensor]:
        return normal_tails(self.standardise(value, prediction, endpoint))

    def standardise(self, value: Tensor, prediction: Tensor, endpoint: Tensor) -> Tensor:
        return (self._log(value, endpoint) - self._log(prediction, endpoint)) / self.by_endpoint("b", endpoint)

    def simulate(self, prediction: Tensor, endpoint: Tensor, noise: Tensor) -> Tensor:
        return prediction * torch.exp(self.by_endpoint("b", endpoint) * noise)

    def information(self, prediction: Tensor, endpoint: Tensor) -> Tensor:
        return (self.by_endpoint("b", endpoint) * self._held(prediction, endpoint)).detach().square().reciprocal()
