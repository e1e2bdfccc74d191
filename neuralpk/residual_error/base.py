"""Base class of residual errors."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from neuralpk.cdf_from_density import NoNumericalCdf, NumericalCdf, normal_quantile
from neuralpk.cohort_batch import CohortBatch
from neuralpk.part import Part
from neuralpk.scaling import Scaling

_SMALLEST = 1e-4  # of the typical value: below it a proportional error would claim to measure nothing exactly
POSITIVE = 1e-30  # has a logarithm, also in float32
_AT_ONCE = 10_000  # values in one quadrature: bounds the memory


@dataclass(frozen=True)
class ErrorNumber:
    """One parameter of a residual error.

    Args:
        name: in tables; with the number of the endpoint where there are several.
        tensor: holds its logarithm.
        place: of the number in the tensor.
        has_prior: whether its prior is not flat.
        fixed: whether it keeps its value in a fit.
    """

    name: str
    tensor: Tensor
    place: int
    has_prior: bool
    fixed: bool = False


class ResidualError(Part, nn.Module, ABC):
    """Distribution of an observed value y around its prediction f, with learned parameters, one set per endpoint.

    A subclass names its parameters and writes `distribution`. Everything else follows from that: the likelihood, with
    the probability of its interval for a censored value; quantile residuals; simulation; the Fisher information. What
    a distribution of torch has no closed form for is computed from its density (`neuralpk.cdf_from_density`); a
    subclass that knows closed forms overrides `log_tails`, `standardise`, `simulate` and `information`::

        class StudentError(ResidualError):
            names = ("s",)

            def distribution(self, prediction, endpoint):
                return StudentT(4.0, prediction, self.by_endpoint("s", endpoint))

    Args:
        values: starting values of the parameters by name, the same for every endpoint; for those left out or None, the
            `guess`.
        prior_sd: standard deviation of the logarithm of a parameter in a normal prior around its starting value, by
            name; those left out have a flat prior.
        fixed: whether the parameters keep their values in a fit.

    Attributes:
        names: of the parameters. All are positive; they are learned as logarithms.
        constants: names of further numbers of the constructor, which are not learned.
        outputs: output of the model that each endpoint reads, from 1; empty where endpoint k reads output k.
        log_values: logarithms of the parameters by name, each ``[endpoint]``; made by `build`.
        smallest: a ten-thousandth of the typical value, ``[endpoint]``; 0 without data.

    Raises:
        ValueError: a starting value or a width of a prior that is not positive or of a parameter that does not exist; a
            prior of a parameter without a starting value; a fixed parameter without a value.
    """

    names: ClassVar[tuple[str, ...]] = ()
    constants: ClassVar[tuple[str, ...]] = ()
    outputs: tuple[int, ...] = ()
    smallest: Tensor

    def __init__(
        self,
        values: Mapping[str, float | None] | None = None,
        prior_sd: Mapping[str, float] | None = None,
        fixed: bool = False,
    ) -> None:
        super().__init__()
        self.values = {name: float(value) for name, value in (values or {}).items() if value is not None}
        if not set(self.values) <= set(self.names) or not all(0 < v < math.inf for v in self.values.values()):
            raise ValueError(f"{type(self).__name__} takes positive {', '.join(self.names)}; got {self.values}")
        self.prior_sd = {name: float(sd) for name, sd in (prior_sd or {}).items()}
        for name, sd in self.prior_sd.items():
            if name not in self.names or not 0 < sd < math.inf:
                known = ", ".join(self.names)
                raise ValueError(f"prior_sd of {type(self).__name__} takes positive {known}; got {self.prior_sd}")
            if name not in self.values:
                raise ValueError(f"prior_sd.{name} is the width of a prior around {name}: give that too")
        self.fixed = fixed
        if fixed:
            self._need_values()
        self.log_values = nn.ParameterDict()
        self.register_buffer("smallest", torch.zeros(1))

    @classmethod
    def from_values(cls, endpoints: int = 1, **values: float) -> Self:
        """An error model with fixed parameters, the same for every endpoint: ``ProportionalError.from_values(b=0.2)``.

        Args:
            endpoints: how many there are.
            values: of all parameters, by name; further constants where they are not the default.

        Raises:
            ValueError: names other than those of this error model, or values that are not positive.
        """
        if not set(cls.names) <= set(values) <= {*cls.names, *cls.constants}:
            raise ValueError(f"{cls.__name__} takes positive {', '.join(cls.names)}; got {values}")
        # a subclass without a constructor takes them as a dictionary
        options: dict[str, Any] = {"values": values} if cls.__init__ is ResidualError.__init__ else {**values}
        error = cls(**options)
        return error.fix(endpoints)

    def fix(self, endpoints: int = 1) -> Self:
        """Fix the parameters at the values of the constructor: for simulation, which learns nothing.

        Args:
            endpoints: how many there are.

        Raises:
            ValueError: a parameter without a value.
        """
        self._need_values()
        self.fixed = True
        self.build(Scaling(value=(1.0,) * endpoints))
        self.smallest = torch.zeros_like(self.smallest)
        return self

    def _need_values(self) -> None:
        missing = [name for name in self.names if name not in self.values]
        if missing:
            raise ValueError(f"{type(self).__name__} needs a value for {', '.join(missing)}; got {self.values}")

    def build(self, scaling: Scaling) -> None:
        """Make the parameters for data of these magnitudes, at their starting values; fixed ones stay fixed.

        Args:
            scaling: magnitudes of the data; the typical value of each endpoint counts.
        """
        self.smallest = _SMALLEST * self.smallest.new_tensor(scaling.value)
        for name in self.names:
            start = [self.values.get(name, self.guess(name, value)) for value in scaling.value]
            self.log_values[name] = nn.Parameter(self.smallest.new_tensor(start).log(), not self.fixed)

    def guess(self, name: str, value: float) -> float:
        """Starting value of a parameter that the constructor was given none for: 0.3, a coefficient of variation.

        Args:
            name: of the parameter.
            value: typical observed value of the endpoint.
        """
        return 0.3

    def log_prior(self) -> Tensor:
        """log p(parameters) up to a constant, a scalar; 0 where the prior is flat."""
        total = self.smallest.new_zeros(())
        for name, sd in () if self.fixed else self.prior_sd.items():
            distance = (self.log_values[name] - math.log(self.values[name])) / sd
            total = total - 0.5 * distance.square().sum()
        return total

    def numbers(self) -> list[ErrorNumber]:
        """Every parameter of every endpoint; none before `build`."""
        return [
            ErrorNumber(name if len(logs) == 1 else f"{name}{k + 1}", logs, k, name in self.prior_sd, self.fixed)
            for name, logs in self.log_values.items()
            for k in range(len(logs))
        ]

    def parameters_by_name(self) -> dict[str, Tensor]:
        """Parameters by name, each ``[endpoint]``."""
        return {name: self.log_values[name].exp() for name in self.names}

    def by_endpoint(self, name: str, endpoint: Tensor) -> Tensor:
        """A parameter for each of the endpoints (from 0) ``[...]``.

        Raises:
            ValueError: before `build`.
        """
        if name not in self.log_values:
            raise ValueError(
                f"{type(self).__name__} has no parameter {name!r} yet: call build(scaling), make it with "
                f"{type(self).__name__}.from_values(…), or add the name to `names`"
            )
        return of_endpoint(self.log_values[name].exp(), endpoint)

    @abstractmethod
    def distribution(self, prediction: Tensor, endpoint: Tensor) -> Distribution:
        """Distribution of the observed value, continuous and of shape ``[...]``.

        Args:
            prediction: in the unit of the value, ``[...]``.
            endpoint: of each prediction, from 0, ``[...]``.
        """

    def log_likelihood(self, batch: CohortBatch, prediction: Tensor, factor: Tensor | None = None) -> Tensor:
        """log p(value | prediction) of every record, ``[..., subject, observation]``; 0 where nothing is scored.

        With a factor k the quantile residual of a record (`standardise`) is k times as large as under `distribution`:
        its standard deviation is k. Of normal and log-normal errors this is k times the standard deviation of y or of
        log y.

        A censored value contributes the probability of its interval (M3, Beal 2001): below the limit of
        quantification log P(y < LLOQ), between LIMIT and LLOQ log P(LIMIT < y < LLOQ).

        Args:
            batch: the records; ``target`` says which are scored.
            prediction: ``[..., subject, observation]``.
            factor: of the residual error, as `prediction`; None for 1.
        """
        scored, endpoint = batch.target, batch.endpoint.expand(prediction.shape)
        measured = scored & (batch.censored == 0)
        # what is not scored must not reach the logarithm of 0: its gradient would be 0·inf = NaN
        value = torch.where(measured, batch.value, prediction.detach().clamp(min=POSITIVE))
        log_p = self.distribution(prediction, endpoint).log_prob(value)
        if factor is not None:
            z = self.standardise(value, prediction, endpoint)
            log_p = log_p + 0.5 * (z.square() - (z / factor).square()) - factor.log()
        log_p = torch.where(measured, log_p, 0.0)
        censored = (scored & (batch.censored != 0)).expand(prediction.shape)
        if bool(censored.any()):
            records = (batch.value, batch.limit, batch.censored)
            bound, limit, side = (record.expand(prediction.shape)[censored] for record in records)
            own = None if factor is None else factor[censored]
            found = self._log_interval(bound, limit, side, prediction[censored], endpoint[censored], own)
            log_p = log_p.index_put((censored,), found)
        return log_p

    def _log_interval(
        self,
        bound: Tensor,
        limit: Tensor,
        side: Tensor,
        prediction: Tensor,
        endpoint: Tensor,
        factor: Tensor | None,
    ) -> Tensor:
        """Logarithm of the probability of censored values, ``[record]``: below `bound` where `side` is 1, above it
        where it is −1, and if there is a `limit` not beyond that."""

        def tails(value: Tensor) -> tuple[Tensor, Tensor]:
            if factor is None:
                return self.log_tails(value, prediction, endpoint)
            return normal_tails(self.standardise(value, prediction, endpoint) / factor)

        log_lower, log_upper = tails(bound)
        one_sided = torch.where(side > 0, log_lower, log_upper)
        with_limit = torch.isfinite(limit) & (limit != bound)
        if not bool(with_limit.any()):
            return one_sided
        limit = torch.where(with_limit, limit, bound)
        other_lower, other_upper = tails(limit)
        wider_lower, narrower_lower = torch.maximum(log_lower, other_lower), torch.minimum(log_lower, other_lower)
        wider_upper, narrower_upper = torch.maximum(log_upper, other_upper), torch.minimum(log_upper, other_upper)
        # a difference of the tails on that side of the prediction on which they are small
        left = wider_lower < wider_upper
        wider, narrower = torch.where(left, wider_lower, wider_upper), torch.where(left, narrower_lower, narrower_upper)
        # log(p1 − p2) from log p1 and log p2, which far from the prediction are thousands apart
        gap = torch.where(with_limit, (wider - narrower).clamp(min=1e-6), 1.0)
        return torch.where(with_limit, wider + torch.log(-torch.expm1(-gap)), one_sided)

    def log_tails(self, value: Tensor, prediction: Tensor, endpoint: Tensor) -> tuple[Tensor, Tensor]:
        """log P(y < value) and log P(y > value), each ``[...]``."""

        def tails(cdf: NumericalCdf, value: Tensor) -> Tensor:
            return torch.stack(cdf.log_tails(value))

        def closed(distribution: Distribution, value: Tensor) -> Tensor:
            p = distribution.cdf(value)
            return torch.stack([torch.log(p), torch.log1p(-p)])

        lower, upper = self._numerically(tails, closed, value, prediction, endpoint)
        return lower, upper

    def standardise(self, value: Tensor, prediction: Tensor, endpoint: Tensor) -> Tensor:
        """The quantile residual Phi^-1(F(value)) (Dunn and Smyth 1996), standard normal under the model; for a normal
        error (value − prediction)/sd, IWRES for an IPRED. All ``[...]``."""
        log_lower, log_upper = self.log_tails(value, prediction, endpoint)
        below = log_lower < log_upper
        z = normal_quantile(torch.where(below, log_lower, log_upper))
        return torch.where(below, z, -z)

    def simulate(self, prediction: Tensor, endpoint: Tensor, noise: Tensor) -> Tensor:
        """A value for each prediction, F^-1(Phi(noise)), with `noise` standard normal. All ``[...]``."""

        def closed(distribution: Distribution, noise: Tensor) -> Tensor:
            return distribution.icdf(torch.special.ndtr(noise))

        return self._numerically(NumericalCdf.quantile, closed, noise, prediction, endpoint)

    def information(self, prediction: Tensor, endpoint: Tensor) -> Tensor:
        """Fisher information of one observation about its prediction, E[(∂ log p(y | f)/∂f)²], ``[...]``; without
        gradient."""

        def expected(cdf: NumericalCdf, part: Tensor) -> Tensor:
            y, log_p = cdf.nodes()
            with torch.enable_grad():
                f = cdf.centre.detach().expand_as(y).clone().requires_grad_()
                log_density = self.distribution(f, part.expand(y.shape)).log_prob(y)
                # where nothing is left of the density, neither is its slope a number
                seen = torch.isfinite(log_p) & (log_p > log_p.amax(0) - 100.0)
                (slope,) = torch.autograd.grad(torch.where(seen, log_density, 0.0).sum(), f, materialize_grads=True)
            return torch.where(seen, log_p.exp() * slope.square(), 0.0).sum(0)

        with torch.no_grad():
            return self._numerically(expected, None, endpoint, prediction, endpoint)

    def _numerically(
        self,
        function: Callable[[NumericalCdf, Tensor], Tensor],
        closed: Callable[[Distribution, Tensor], Tensor] | None,
        argument: Tensor,
        prediction: Tensor,
        endpoint: Tensor,
    ) -> Tensor:
        """A function of the distributions of predictions, in float64, some at a time; NaN for what is not finite.

        Args:
            function: by quadrature of the density.
            closed: the same by the distribution's cdf or icdf, for a density that cannot be integrated.
            argument: its second argument, ``[...]``.
            prediction: ``[...]``.
            endpoint: ``[...]``.
        """
        wide = torch.broadcast_tensors(argument, prediction, endpoint)  # type: ignore[no-untyped-call]
        shape = wide[0].shape
        all_argument, all_f, all_of = (x.flatten() for x in wide)
        finite = torch.isfinite(all_f) & ~torch.isnan(all_argument)
        rows = finite.nonzero()[:, 0]
        parts = []
        for some in torch.split(rows, _AT_ONCE):
            f, of, x = all_f[some].double(), all_of[some], all_argument[some]
            x = x.double() if x.is_floating_point() else x
            distribution = self.distribution(f, of)
            try:
                found = function(NumericalCdf(distribution, f.detach()), x)
            except NoNumericalCdf as error:
                try:
                    if closed is None:
                        raise NotImplementedError
                    found = closed(distribution, x)
                except NotImplementedError:
                    raise ValueError(
                        f"{type(self).__name__}: {error}, so that its probabilities cannot be computed from its "
                        "density. Use a distribution with cdf and icdf, or override log_tails, simulate and information"
                    ) from None
            parts.append(found.to(prediction.dtype))
        lead = parts[0].shape[:-1] if parts else ()
        out = prediction.new_full((*lead, finite.numel()), torch.nan)
        if parts:
            out = out.index_copy(-1, rows, torch.cat(parts, dim=-1))
        return out.reshape(*lead, *shape)


def of_endpoint(values: Tensor, endpoint: Tensor) -> Tensor:
    """Values ``[endpoint]`` at endpoints from 0, ``[...]``; of a single one without looking it up, for speed."""
    return values.expand(endpoint.shape) if len(values) == 1 else values[endpoint]


def normal_tails(z: Tensor) -> tuple[Tensor, Tensor]:
    """log Phi(z) and log Phi(−z)."""
    return torch.special.log_ndtr(z), torch.special.log_ndtr(-z)
