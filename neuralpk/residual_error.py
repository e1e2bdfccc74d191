"""Residual error: the distribution of an observed value around the prediction."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, LogNormal, Normal

from neuralpk.batch import CohortBatch
from neuralpk.scaling import Scaling

_SMALLEST = 1e-4  # of the typical value: below it a proportional error would claim to measure nothing exactly
_POSITIVE = 1e-30  # has a logarithm, also in float32


class ResidualError(nn.Module, ABC):
    """y = f + noise, with learned standard deviations, one set for each endpoint.

    Args:
        scaling: size of the observed values, from which the first guesses come.
        relative: first guess of the standard deviation, as a fraction of the value.
    """

    names: tuple[str, ...]
    smallest: Tensor

    def __init__(self, scaling: Scaling | None = None, relative: float = 0.3) -> None:
        super().__init__()
        value = torch.tensor((scaling or Scaling()).value)
        self.register_buffer("smallest", _SMALLEST * value)
        self.log_sd = nn.ParameterDict()
        for name in self.names:
            start = relative * value * 0.3 if name == "a" else torch.full_like(value, relative)
            self.log_sd[name] = nn.Parameter(start.log())

    @classmethod
    def known(cls, endpoints: int = 1, **values: float) -> ResidualError:
        """An error model with given standard deviations, the same for every endpoint: `ProportionalError.known(b=0.2)`.

        Raises:
            ValueError: names other than those of this error model, or values that are not positive.
        """
        error = cls(Scaling(value=(1.0,) * endpoints))
        if sorted(values) != sorted(cls.names) or min(values.values()) <= 0:
            raise ValueError(f"{cls.__name__} takes positive {', '.join(cls.names)}; got {values}")
        for name, value in values.items():
            error.log_sd[name].data.fill_(value).log_()
        error.smallest.zero_()
        return error.requires_grad_(False)

    def parameters_by_name(self) -> dict[str, Tensor]:
        """Standard deviations by name, each ``[endpoint]``."""
        return {name: self.log_sd[name].exp() for name in self.names}

    def _sd(self, name: str, endpoint: Tensor) -> Tensor:
        sd: Tensor = self.log_sd[name].exp()
        return sd[endpoint]

    @abstractmethod
    def sd(self, prediction: Tensor, endpoint: Tensor) -> Tensor:
        """Standard deviation of an observation around a prediction, ``[...]``, in the unit of the value."""

    def distribution(self, prediction: Tensor, endpoint: Tensor) -> Distribution:
        """Distribution of the observed value, for predictions and endpoints (from 0) of equal shape ``[...]``."""
        return Normal(prediction, self.sd(prediction, endpoint), validate_args=False)

    def standardise(self, value: Tensor, prediction: Tensor, endpoint: Tensor) -> Tensor:
        """The weighted residual (value − prediction)/sd, standard normal under the model; IWRES for an IPRED."""
        return (value - prediction) / self.sd(prediction, endpoint)

    def simulate(self, prediction: Tensor, endpoint: Tensor, noise: Tensor) -> Tensor:
        """A value for each prediction, given standard normal noise of its shape."""
        return prediction + self.sd(prediction, endpoint) * noise

    def information(self, prediction: Tensor, endpoint: Tensor) -> Tensor:
        """Fisher information of one observation about its prediction, ``[...]``: of y ~ N(f, s(f)²) it is
        1/s² + 2·(s'(f)/s)²."""
        with torch.enable_grad():
            f = prediction.detach().requires_grad_()
            sd = self.sd(f, endpoint)
            (slope,) = torch.autograd.grad(sd.sum(), f, materialize_grads=True)
        return (1.0 + 2.0 * slope.square()) / sd.detach().square()

    def log_likelihood(self, batch: CohortBatch, prediction: Tensor) -> Tensor:
        """log p(value | prediction) of every record, ``[..., subject, observation]``; 0 where nothing is scored.

        A censored value contributes the probability of its interval (M3, Beal 2001): below the limit of
        quantification log Phi((LLOQ − f)/sd), between LIMIT and LLOQ the difference of two such terms.
        """
        # what is not scored must not reach the logarithm of 0: its gradient would be 0·inf = NaN
        scored = batch.target
        value = torch.where(scored, batch.value, prediction.detach().clamp(min=_POSITIVE))
        log_p = self.distribution(prediction, batch.endpoint).log_prob(value)
        if bool((batch.censored != 0).any()):
            log_p = torch.where(batch.censored == 0, log_p, self._log_interval(batch, prediction))
        return torch.where(scored, log_p, 0.0)

    def _log_interval(self, batch: CohortBatch, prediction: Tensor) -> Tensor:
        side = batch.censored.to(prediction.dtype)
        bound = self.standardise(batch.value, prediction, batch.endpoint)
        limit = torch.where(torch.isfinite(batch.limit), batch.limit, batch.value)
        other = self.standardise(limit, prediction, batch.endpoint)
        near, far = torch.special.log_ndtr(side * bound), torch.special.log_ndtr(side * other)
        with_limit = torch.isfinite(batch.limit) & (batch.limit != batch.value)
        # log(Φ1 − Φ2) from log Φ1 and log Φ2, which far from the prediction are thousands apart
        gap = torch.where(with_limit, (near - far).clamp(min=1e-6), 1.0)
        return torch.where(with_limit, near + torch.log(-torch.expm1(-gap)), near)


class AdditiveError(ResidualError):
    """y = f + a·e."""

    names = ("a",)

    def sd(self, prediction: Tensor, endpoint: Tensor) -> Tensor:
        return self._sd("a", endpoint).expand_as(prediction)

    def information(self, prediction: Tensor, endpoint: Tensor) -> Tensor:
        return self.sd(prediction, endpoint).detach().square().reciprocal()


class ProportionalError(ResidualError):
    """y = f·(1 + b·e)."""

    names = ("b",)

    def sd(self, prediction: Tensor, endpoint: Tensor) -> Tensor:
        return self._sd("b", endpoint) * torch.maximum(prediction.abs(), self.smallest[endpoint])


class CombinedError(ResidualError):
    """y = f + sqrt(a² + (b·f)²)·e: variances add, not standard deviations."""

    names = ("a", "b")

    def sd(self, prediction: Tensor, endpoint: Tensor) -> Tensor:
        return torch.sqrt(self._sd("a", endpoint) ** 2 + (self._sd("b", endpoint) * prediction) ** 2)


class LogNormalError(ResidualError):
    """log y = log f + b·e; predictions are held above a ten-thousandth of the typical value."""

    names = ("b",)

    def _held(self, prediction: Tensor, endpoint: Tensor) -> Tensor:
        return torch.maximum(prediction, self.smallest[endpoint].clamp(min=_POSITIVE))

    def _log(self, prediction: Tensor, endpoint: Tensor) -> Tensor:
        return torch.log(self._held(prediction, endpoint))

    def sd(self, prediction: Tensor, endpoint: Tensor) -> Tensor:
        variance = self._sd("b", endpoint) ** 2
        return prediction * torch.exp(variance / 2) * torch.sqrt(torch.expm1(variance))

    def distribution(self, prediction: Tensor, endpoint: Tensor) -> Distribution:
        return LogNormal(self._log(prediction, endpoint), self._sd("b", endpoint), validate_args=False)

    def standardise(self, value: Tensor, prediction: Tensor, endpoint: Tensor) -> Tensor:
        return (self._log(value, endpoint) - self._log(prediction, endpoint)) / self._sd("b", endpoint)

    def information(self, prediction: Tensor, endpoint: Tensor) -> Tensor:
        return (self._sd("b", endpoint) * self._held(prediction, endpoint)).detach().square().reciprocal()

    def simulate(self, prediction: Tensor, endpoint: Tensor, noise: Tensor) -> Tensor:
        return prediction * torch.exp(self._sd("b", endpoint) * noise)


ERRORS: dict[str, type[ResidualError]] = {
    "additive": AdditiveError,
    "proportional": ProportionalError,
    "combined": CombinedError,
    "log_normal": LogNormalError,
}
"""The error models by the name that a configuration gives them."""
