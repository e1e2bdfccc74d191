"""Importance sampling: draws of each patient's z, weighted to represent the posterior."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from neuralpk import randomness
from neuralpk.cohort_batch import CohortBatch
from neuralpk.inference.joint import log_joint
from neuralpk.inference.map import Mode, root, spread
from neuralpk.population_model import PopulationModel

# degrees of freedom of the proposal: its tails are heavier than those of any posterior under a normal prior
_FREEDOM = 6
# of the draws: around the mode, more widely around a second one, around the typical patient
_SHARES = (0.55, 0.3, 0.15)


@dataclass(frozen=True)
class Draws:
    """Weighted draws of z.

    Args:
        z: ``[subject, sample, latent]``.
        log_q: log density of the proposal there, ``[subject, sample]``.
        log_joint: log p(y, z), ``[subject, sample]``; −inf where a line could not be solved. Carries the gradient in
            the weights of the model.
    """

    z: Tensor
    log_q: Tensor
    log_joint: Tensor

    @property
    def log_weight(self) -> Tensor:
        """log p(y, z) − log q(z), ``[subject, sample]``."""
        return self.log_joint - self.log_q

    @property
    def log_likelihood(self) -> Tensor:
        """log p(y), z integrated out, ``[subject]``: the logarithm of the mean weight."""
        return log_mean_weight(self.log_weight)

    @property
    def weight(self) -> Tensor:
        """Normalised, without gradient, ``[subject, sample]``."""
        return torch.softmax(self.log_weight.detach(), dim=1)

    @property
    def effective(self) -> Tensor:
        """Effective number of draws, 1/Σ w², ``[subject]`` (Kong 1992)."""
        return effective_draws(self.log_weight.detach())

    def resample(self, count: int) -> Tensor:
        """`count` draws of equal weight, ``[subject, count, latent]``."""
        chosen = randomness.systematic(self.weight, count)
        return self.z.gather(1, chosen[..., None].expand(-1, -1, self.z.shape[2]))


def log_mean_weight(log_weight: Tensor) -> Tensor:
    """Logarithm of the mean weight, which estimates log p(y), ``[subject]`` of ``[subject, sample]``."""
    return torch.logsumexp(log_weight, dim=1) - math.log(log_weight.shape[1])


def effective_draws(log_weight: Tensor) -> Tensor:
    """Effective number of draws, 1/Σ w² of the normalised weights (Kong 1992), ``[subject]`` of
    ``[subject, sample]``."""
    return 1.0 / torch.softmax(log_weight, dim=1).square().sum(1)


def noise(seed: int, stream: int, index: Tensor, draws: int, latent: int, dtype: torch.dtype) -> Tensor:
    """Standard normal numbers for `draw`, ``[subject, sample, latent + degrees of freedom]``."""
    width = latent + _FREEDOM
    return randomness.normal(seed, stream, index, draws * width).reshape(len(index), draws, width).to(dtype)


def draw(model: PopulationModel, batch: CohortBatch, mode: Mode, noise: Tensor) -> Draws:
    """Draw from a multivariate t around the mode with the covariance of Laplace's approximation, and weigh.

    Args:
        model: the generative model.
        batch: ``target`` says which records count.
        mode: of every subject.
        noise: from `noise`.
    """
    return weigh(model, batch, *_mixture([(mode.z, mode.precision)], (1.0,), noise, model.latents(batch)))


def draw_widely(model: PopulationModel, batch: CohortBatch, mode: Mode, other: Mode, noise: Tensor) -> Draws:
    """As `draw`, for a posterior that Laplace's approximation may not describe: it may have a second mode, an edge or a
    curved ridge. Some draws are around the other mode, with standard deviations halfway between those of Laplace's
    approximation and those of the prior on the logarithmic scale; some are around the typical patient with the
    covariance of the prior.

    Args:
        model: the generative model.
        batch: ``target`` says which records count.
        mode: of every subject.
        other: its second mode, or the same where there is none.
        noise: from `noise`.
    """
    prior = torch.eye(mode.z.shape[1], dtype=mode.z.dtype, device=mode.z.device).expand_as(mode.precision)
    centres = [(mode.z, mode.precision), (other.z, _square_root(other.precision)), (torch.zeros_like(mode.z), prior)]
    return weigh(model, batch, *_mixture(centres, _SHARES, noise, model.latents(batch)))


def _square_root(precision: Tensor) -> Tensor:
    """Of precisions, each at least that of the prior."""
    values, axes = torch.linalg.eigh(precision)
    found: Tensor = axes @ torch.diag_embed(values.clamp(min=1.0).sqrt()) @ axes.mT
    return found


def _mixture(
    centres: Sequence[tuple[Tensor, Tensor]], shares: Sequence[float], noise: Tensor, own: Tensor
) -> tuple[Tensor, Tensor]:
    """Draws from a mixture of multivariate t distributions and their log density, ``[subject, sample, latent]`` and
    ``[subject, sample]``. Every part has its share of the draws. Latents that a subject does not have are drawn from
    their standard normal distribution, so that they change no weight.

    Args:
        centres: mean and precision of each part, ``[subject, latent]`` and ``[subject, latent, latent]``.
        shares: of the draws.
        noise: from `noise`.
        own: which latents each subject has, bool ``[subject, latent]``.
    """
    size, draws = centres[0][0].shape[1], noise.shape[1]
    normal, chi = noise[..., :size], noise[..., size:].square().sum(-1, keepdim=True)
    standard = torch.where(own[:, None], normal * (_FREEDOM / chi).sqrt(), normal)
    counts = [round(share * draws) for share in shares[1:]]
    counts = [draws - sum(counts), *counts]
    z = torch.cat(
        [
            mean[:, None] + spread(precision, part)
            for (mean, precision), part in zip(centres, torch.split(standard, counts, dim=1), strict=True)
        ],
        dim=1,
    )
    densities = [
        _log_density(z, *centre, own) + math.log(count / draws)
        for centre, count in zip(centres, counts, strict=True)
        if count
    ]
    return z, torch.logsumexp(torch.stack(densities), dim=0)


def _log_density(z: Tensor, mean: Tensor, precision: Tensor, own: Tensor) -> Tensor:
    """Of the multivariate t in a subject's own latents and the standard normal in the others, ``[subject, sample]``."""
    size, factor = own.sum(1, keepdim=True).to(z), root(precision)
    square = ((z - mean[:, None]) @ factor).square()
    of_others = torch.where(own[:, None], 0.0, square).sum(-1) + (z.shape[2] - size) * math.log(2 * math.pi)
    constant = torch.lgamma((_FREEDOM + size) / 2) - math.lgamma(_FREEDOM / 2) - size / 2 * math.log(_FREEDOM * math.pi)
    log_det = factor.diagonal(dim1=1, dim2=2).log().sum(1, keepdim=True)
    of_own = torch.where(own[:, None], square, 0.0).sum(-1)
    return constant + log_det - (_FREEDOM + size) / 2 * torch.log1p(of_own / _FREEDOM) - of_others / 2


def weigh(model: PopulationModel, batch: CohortBatch, z: Tensor, log_q: Tensor) -> Draws:
    """Given draws, weighed by the model as it stands."""
    value = log_joint(model, z.flatten(0, 1), batch.repeat(z.shape[1])).reshape(z.shape[:2])
    return Draws(z, log_q, value)
