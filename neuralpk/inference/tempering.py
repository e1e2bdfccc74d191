"""Tempering: draws of a posterior that is far from normal, where importance weights leave too few effective draws."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from neuralpk import randomness
from neuralpk.cohort_batch import CohortBatch
from neuralpk.inference.joint import log_joint
from neuralpk.inference.map import Mode
from neuralpk.population_model import PopulationModel
from neuralpk.solve import SolveError

_KEPT = 0.5  # of the effective number of draws, from one temperature to the next
_ACCEPTED = 0.3  # of the moves: neither so long that few are accepted nor so short that they lead nowhere
_JITTER = 1e-9  # keeps the covariance of draws that have all but met positive


@dataclass(frozen=True)
class Particles:
    """Draws of z with equal weight.

    Args:
        z: ``[subject, sample, latent]``.
        log_joint: log p(y, z), ``[subject, sample]``.
        family: which of the first draws each descends from, ``[subject, sample]``.
        stride: length of a move, from 0 to 1 for a draw independent of the last, ``[subject]``.
        accepted: share of the last moves that were, ``[subject]``.
    """

    z: Tensor
    log_joint: Tensor
    family: Tensor
    stride: Tensor
    accepted: Tensor

    def select(self, chosen: Tensor) -> Particles:
        """Some of the draws, ``[subject, sample]``."""
        z = self.z.gather(1, chosen[..., None].expand(-1, -1, self.z.shape[2]))
        return replace(self, z=z, log_joint=self.log_joint.gather(1, chosen), family=self.family.gather(1, chosen))


@dataclass(frozen=True)
class _Normal:
    """A normal distribution of every subject, mean ``[subject, latent]``, covariance = factor·factorᵀ."""

    mean: Tensor
    factor: Tensor

    @classmethod
    def around(cls, mode: Mode) -> _Normal:
        """Laplace's approximation."""
        return cls(mode.z, torch.linalg.cholesky(torch.linalg.inv(mode.precision)))

    @classmethod
    def of(cls, z: Tensor) -> _Normal:
        """With the mean and covariance of draws ``[subject, sample, latent]``."""
        deviation = z - z.mean(1, keepdim=True)
        covariance = deviation.mT @ deviation / z.shape[1]
        jitter = _JITTER * torch.eye(z.shape[2], dtype=z.dtype, device=z.device)
        return cls(z.mean(1), torch.linalg.cholesky(covariance + jitter))

    def log_density(self, z: Tensor) -> Tensor:
        """``[subject, sample]``."""
        apart = torch.linalg.solve_triangular(self.factor, (z - self.mean[:, None]).mT, upper=False)
        constant = self.factor.diagonal(dim1=1, dim2=2).log().sum(1) + z.shape[2] / 2 * math.log(2 * math.pi)
        density: Tensor = -0.5 * apart.square().sum(1) - constant[:, None]
        return density

    def spread(self, noise: Tensor) -> Tensor:
        """Deviations from the mean for standard normal ``[subject, sample, latent]``."""
        return noise @ self.factor.mT


@torch.no_grad()
def temper(
    model: PopulationModel, batch: CohortBatch, mode: Mode, count: int, seed: int, stream: int, moves: int = 5
) -> Particles:
    """Draw from Laplace's approximation q and go by p_b(z) ∝ q(z)^(1−b)·p(y, z)^b from b = 0 to the posterior at b = 1:
    at each b the draws are selected by their weights and then moved (sequential Monte Carlo; Del Moral, Doucet and
    Jasra 2006). The next b is the one that leaves half of the draws effective.

    Args:
        model: the generative model.
        batch: ``target`` says which records count.
        mode: of every subject.
        count: how many draws.
        seed: of the random numbers.
        stream: ``Stream.TEMPERING.at(step)``; the steps after it are used too.
        moves: at each b.

    Raises:
        neuralpk.solve.SolveError: no draw around a subject's mode could be solved.
    """
    start = _Normal.around(mode)
    z = mode.z[:, None] + start.spread(_noise(seed, stream, batch, count, mode.z)[..., :-1])
    family = torch.arange(count, device=z.device).expand(len(z), -1)
    stride = torch.full_like(mode.log_joint, 0.5)
    found = Particles(z, _log_joint(model, batch, z), family, stride, torch.ones_like(stride))
    lost = [name for name, none in zip(batch.ids, (found.log_joint == -torch.inf).all(1), strict=True) if none]
    if lost:
        raise SolveError(f"{', '.join(lost)}: no draw around the mode could be solved; search it from another start")
    b = torch.zeros_like(stride)
    while bool((b < 1).any()):
        weight = found.log_joint - start.log_density(found.z)
        ahead = _next(weight, b)
        share = ((ahead - b)[:, None] * weight).nan_to_num(0.0, neginf=-torch.inf).softmax(1)
        found, b = found.select(randomness.systematic(share, count)), ahead
        stream = randomness.later(stream, moves + 1)

        def between(z: Tensor, joint: Tensor, b: Tensor = b[:, None]) -> Tensor:
            return (1 - b) * start.log_density(z) + b * joint

        found = _moved(model, batch, found, between, seed, stream, moves)
    return found


@torch.no_grad()
def move(
    model: PopulationModel, batch: CohortBatch, particles: Particles, seed: int, stream: int, moves: int
) -> Particles:
    """Move draws of the posterior, each by a Markov chain of its own: away from the others of its family, or after the
    model has changed a little.

    Args:
        model: the generative model as it stands.
        batch: ``target`` says which records count.
        particles: from `temper`.
        seed: of the random numbers.
        stream: ``Stream.TEMPERING.at(step)``; the steps after it are used too.
        moves: how many.
    """
    here = replace(particles, log_joint=_log_joint(model, batch, particles.z))
    return _moved(model, batch, here, lambda _, joint: joint, seed, stream, moves)


def effective(before: Particles, after: Particles) -> Tensor:
    """Effective number of draws after moves, ``[subject]``: N/(1 + r²·(Σ n²/N − 1)), where families of n draws were one
    draw before, at worst, and r is the largest correlation of a component of z before and after."""
    number = before.z.shape[1]
    size = torch.stack([torch.bincount(row).double().square().sum() / number for row in before.family])
    a, b = (one.z - one.z.mean(1, keepdim=True) for one in (before, after))
    r = (a * b).sum(1) / (a.square().sum(1) * b.square().sum(1)).sqrt()
    return number / (1 + r.square().amax(1) * (size - 1))


def _moved(
    model: PopulationModel,
    batch: CohortBatch,
    found: Particles,
    target: Callable[[Tensor, Tensor], Tensor],
    seed: int,
    stream: int,
    moves: int,
) -> Particles:
    """Moves that leave a density of z and log p(y, z) as it is: autoregressive about the mean of the draws, with their
    covariance, which of a normal target accepts every one (Cotter et al. 2013)."""
    accepted = torch.zeros_like(found.accepted)
    for k in range(moves):
        normal, far = _Normal.of(found.z), found.stride[:, None, None]
        noise = _noise(seed, randomness.later(stream, k), batch, found.z.shape[1], found.z)
        mean = normal.mean[:, None]
        z = mean + (1 - far.square()).sqrt() * (found.z - mean) + far * normal.spread(noise[..., :-1])
        joint = _log_joint(model, batch, z)
        gain = target(z, joint) - target(found.z, found.log_joint)
        gain = gain + normal.log_density(found.z) - normal.log_density(z)
        better = torch.special.log_ndtr(noise[..., -1]) < gain
        share = better.to(z.dtype).mean(1)
        accepted = accepted + share / moves
        stride = (found.stride * torch.exp(share - _ACCEPTED)).clamp(0.01, 1.0)
        z, joint = torch.where(better[..., None], z, found.z), torch.where(better, joint, found.log_joint)
        found = replace(found, z=z, log_joint=joint, stride=stride)
    return replace(found, accepted=accepted)


def _next(log_weight: Tensor, b: Tensor) -> Tensor:
    """The largest next b that leaves enough of the draws, ``[subject]``, by bisection."""
    least, low, high = _KEPT * log_weight.shape[1], b, torch.ones_like(b)
    trial = high
    for _ in range(40):
        share = ((trial - b)[:, None] * log_weight).nan_to_num(0.0, neginf=-torch.inf).softmax(1)
        enough = 1.0 / share.square().sum(1) >= least
        low, high = torch.where(enough, trial, low), torch.where(enough, high, trial)
        trial = (low + high) / 2
    # the end is reached, not approached
    return torch.where(low > b, low, high)


def _log_joint(model: PopulationModel, batch: CohortBatch, z: Tensor) -> Tensor:
    return log_joint(model, z.flatten(0, 1), batch.repeat(z.shape[1])).reshape(z.shape[:2])


def _noise(seed: int, stream: int, batch: CohortBatch, count: int, like: Tensor) -> Tensor:
    """Standard normal, ``[subject, sample, latent + 1]``."""
    size = like.shape[-1] + 1
    return randomness.normal(seed, stream, batch.index, count * size).reshape(len(batch), count, size).to(like.dtype)
