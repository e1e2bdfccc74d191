"""Cumulative distribution and quantiles of a distribution that only has a density, accurate in its tails.

All integrals are by double-exponential quadrature (Takahasi and Mori 1974): in the variable t the integrand falls off
doubly exponentially at both ends, whatever the tails of the density, and equal steps in t converge exponentially.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Distribution

_STEP, _LAST = 1.0 / 16.0, 4.0
_COARSE = 2e-3  # allowed difference between steps 2h and h, whose own error is about its square
_MASS = 1e-5  # allowed error of the whole probability
_OFF_CENTRE = math.log(1e-6)  # least probability on either side of the centre
_KEPT = 100.0  # nodes that are e^-100 of the largest are left out: their derivative may be infinite
_SEARCH = 200
_LOG_ROOT_2PI = 0.5 * math.log(2.0 * math.pi)


class NoNumericalCdf(ValueError):
    """The density is one that cannot be integrated here: several separate peaks, or none near the centre."""


@dataclass(frozen=True)
class NumericalCdf:
    """Tail probabilities and quantiles by quadrature of ``distribution.log_prob``, differentiable in its parameters.

    What lies beyond a value on the side away from the centre is an integral, and the rest its complement: no small
    probability is a difference of large ones.

    Args:
        distribution: continuous, of shape ``[n]``, in float64, with one peak.
        centre: where its mass lies, ``[n]``; the density is smooth on either side of it.

    Raises:
        NoNumericalCdf: a discrete distribution; from every method, integrals that do not converge or do not add up to
            1.
    """

    distribution: Distribution
    centre: Tensor

    def __post_init__(self) -> None:
        support = self.distribution.support
        self._require(torch.tensor(support is None or not support.is_discrete), "is discrete")

    def log_tails(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """log P(y < value) and log P(y > value), each ``[n]``."""
        self._check_halves()
        lower, upper = self._ends()
        inside = (value > lower) & (value < upper)
        start = torch.where(inside, value, self.centre)
        below = start < self.centre
        outer = torch.where(below, lower, upper)
        tail = self._integral(start, outer, self._decay(start, outer))
        rest = torch.log1p(-tail.exp())
        log_lower, log_upper = torch.where(below, tail, rest), torch.where(below, rest, tail)
        nothing, all_ = torch.full_like(start, -torch.inf), torch.zeros_like(start)
        log_lower = torch.where(value <= lower, nothing, torch.where(value >= upper, all_, log_lower))
        log_upper = torch.where(value >= upper, nothing, torch.where(value <= lower, all_, log_upper))
        return log_lower, log_upper

    def standardise(self, value: Tensor) -> Tensor:
        """Phi^-1(F(value)), the quantile residual (Dunn and Smyth 1996), ``[n]``."""
        log_lower, log_upper = self.log_tails(value)
        below = log_lower < log_upper
        z = normal_quantile(torch.where(below, log_lower, log_upper))
        return torch.where(below, z, -z)

    def quantile(self, z: Tensor) -> Tensor:
        """F^-1(Phi(z)), ``[n]``, by Newton's method on `standardise` between two bounds."""
        with torch.no_grad():
            low, high = self._ends()
            width = self._width()
            y = self.centre + 0.4 * width * z  # exact for a normal density
            y = torch.where((y > low) & (y < high), y, self.centre)
            for _ in range(_SEARCH):
                distance = self.standardise(y) - z
                low, high = torch.where(distance < 0, y, low), torch.where(distance > 0, y, high)
                step = distance / self._slope(y, distance + z)
                moved = y - step
                good = torch.isfinite(moved) & (moved > low) & (moved < high)
                # outside: halfway to the bound, or twice as far from the centre where none has been met
                bound = torch.where(distance < 0, high, low)
                outward = self.centre + 2.0 * (y - self.centre) - torch.sign(distance) * width
                other = torch.where(torch.isfinite(bound), (y + bound) / 2.0, outward)
                done = distance.abs() <= 1e-12 * (1.0 + z.abs())
                small = torch.where(good, step.abs(), torch.inf) <= 1e-14 * (y.abs() + width)
                y = torch.where(done, y, torch.where(good, moved, other))
                if bool((done | small).all()):
                    break
            else:
                self._require(torch.tensor(False), "has a quantile that was not found")
            slope = self._slope(y, z)
        # one more step, now with its gradient: that of the implicit function F(y) = Phi(z)
        return y - (self.standardise(y) - z) / slope

    def nodes(self) -> tuple[Tensor, Tensor]:
        """Values and logarithms of their probabilities that stand for the distribution, each ``[node, n]``."""
        self._check_halves()
        with torch.no_grad():
            sides = [self._nodes(self.centre, end, self._width()) for end in self._ends()]
            y, log_weight = (torch.cat(part) for part in zip(*sides, strict=True))
            return y, self.distribution.log_prob(y) + log_weight

    def _check_halves(self) -> None:
        """The whole probability is 1, and the centre is not far out in a tail."""
        with torch.no_grad():
            halves = torch.stack([self._integral(self.centre, end, self._width()) for end in self._ends()])
        mass, least = halves.logsumexp(0), halves.amin(0)
        self._require((mass.abs() < _MASS).all(), f"integrates to {float(mass.exp().amin()):.6g}, not to 1")
        self._require((least > _OFF_CENTRE).all(), "has next to no probability on one side of the prediction")

    def _ends(self) -> tuple[Tensor, Tensor]:
        support = self.distribution.support
        ends = (getattr(support, "lower_bound", -math.inf), getattr(support, "upper_bound", math.inf))
        lower, upper = (torch.as_tensor(end).to(self.centre).expand_as(self.centre).detach() for end in ends)
        return lower, upper

    def _width(self) -> Tensor:
        """Length over which the density falls off around the centre."""
        with torch.no_grad():
            return torch.exp(-self.distribution.log_prob(self.centre))

    def _decay(self, value: Tensor, end: Tensor) -> Tensor:
        """Length over which the density falls off beyond a value."""
        with torch.no_grad():
            longest = self._width() + (value - self.centre).abs()
            step = torch.minimum(1e-4 * longest, torch.where(torch.isfinite(end), 0.5 * (end - value).abs(), torch.inf))
            log_p = self.distribution.log_prob(torch.stack([value, value + torch.where(end > value, step, -step)]))
            return 1.0 / torch.hypot((log_p[0] - log_p[1]) / step, 1.0 / longest)

    def _slope(self, y: Tensor, z: Tensor) -> Tensor:
        """Derivative of `standardise`, p(y)/phi(z)."""
        return torch.exp(self.distribution.log_prob(y) + 0.5 * z.square() + _LOG_ROOT_2PI)

    def _nodes(self, start: Tensor, end: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
        """Nodes from `start` to `end`, which may be infinite, and logarithms of their weights, each ``[node, n]``."""
        count = round(_LAST / _STEP)
        t = torch.arange(-count, count + 1, dtype=start.dtype, device=start.device)[:, None] * _STEP
        u = 0.5 * math.pi * torch.sinh(t)
        log_du = torch.log(0.5 * math.pi * torch.cosh(t) * _STEP)
        finite = torch.isfinite(end)
        # y = start ± width·e^u, or between two ends y = end + (start − end)/(1 + e^2u)
        far, log_far = start + torch.where(end > 0, width, -width) * torch.exp(u), width.log() + u + log_du
        limit = torch.where(finite, end, start)
        log_share = -torch.nn.functional.softplus(2.0 * u)
        near = limit + (start - limit) * log_share.exp()
        near = torch.where(near == limit, torch.nextafter(limit, start.detach()), near)
        log_near = (start - limit).abs().clamp(min=1e-300).log() + 2.0 * u + 2.0 * log_share + math.log(2.0) + log_du
        return torch.where(finite, near, far), torch.where(finite, log_near, log_far)

    def _integral(self, start: Tensor, end: Tensor, width: Tensor) -> Tensor:
        """Logarithm of the probability between two values, ``[n]``."""
        y, log_weight = self._nodes(start, end, width)
        with torch.no_grad():
            log_p = self.distribution.log_prob(y) + log_weight
            total = log_p.logsumexp(0)
            change = (total - log_p[::2].logsumexp(0) - math.log(2.0)).abs()
            # a part that is nothing beside the whole may be any nothing
            self._require(((change < _COARSE) | (total == -torch.inf)).all(), "has no smooth density")
        if not torch.is_grad_enabled():
            return total
        kept = log_p > log_p.amax(0) - _KEPT
        log_p = self.distribution.log_prob(torch.where(kept, y, start)) + log_weight
        return torch.where(kept, log_p, -torch.inf).logsumexp(0)

    def _require(self, condition: Tensor, what: str) -> None:
        if not bool(condition):
            raise NoNumericalCdf(f"the distribution {type(self.distribution).__name__} {what}")


def normal_quantile(log_p: Tensor) -> Tensor:
    """Phi^-1(exp(log_p)) for log_p up to log(1/2), also where exp(log_p) is no longer a number; differentiable."""
    kind, log_p = log_p.dtype, log_p.double()
    with torch.no_grad():
        p = log_p.exp()
        square = (-2.0 * log_p - 2.0 * _LOG_ROOT_2PI).clamp(min=1.0)
        far = -torch.sqrt((square - torch.log(square)).clamp(min=1e-3))
        z = torch.where(p > 1e-290, torch.special.ndtri(p.clamp(min=1e-290)), far)
        for _ in range(4):
            z = z - (torch.special.log_ndtr(z) - log_p) / _log_slope(z)
        z = torch.where(log_p == -torch.inf, -torch.inf, z)
        slope = _log_slope(z.clamp(min=-1e150))
    error = torch.where(torch.isfinite(log_p), torch.special.log_ndtr(z) - log_p, 0.0)
    return (z - error / slope).to(kind)


def _log_slope(z: Tensor) -> Tensor:
    """Derivative of log Phi."""
    return torch.exp(-0.5 * z.square() - _LOG_ROOT_2PI - torch.special.log_ndtr(z))
