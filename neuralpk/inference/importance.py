"""Importance sampling: draws of each patient's z, weighted to represent the posterior."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from neuralpk import randomness
from neuralpk.batch import CohortBatch
from neuralpk.inference.joint import log_joint
from neuralpk.inference.map import Mode
from neuralpk.population_model import PopulationModel

# degrees of freedom of the proposal: its tails are heavier than those of any posterior under a normal prior
_FREEDOM = 6


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
        return torch.logsumexp(self.log_weight, dim=1) - math.log(self.z.shape[1])

    @property
    def weight(self) -> Tensor:
        """Normalised, without gradient, ``[subject, sample]``."""
        return torch.softmax(self.log_weight.detach(), dim=1)

    @property
    def effective(self) -> Tensor:
        """Effective number of draws, 1/Σ w², ``[subject]`` (Kong 1992)."""
        return 1.0 / self.weight.square().sum(1)

    def resample(self, count: int) -> Tensor:
        """`count` draws of equal weight, ``[subject, count, latent]``."""
        chosen = randomness.systematic(self.weight, count)
        return self.z.gather(1, chosen[..., None].expand(-1, -1, self.z.shape[2]))


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
    size = mode.z.shape[1]
    normal, chi = noise[..., :size], noise[..., size:].square().sum(-1, keepdim=True)
    spread = normal * (_FREEDOM / chi).sqrt()
    factor = _root(mode.precision)
    z = mode.z[:, None] + torch.linalg.solve_triangular(factor.mT, spread.mT, upper=True).mT
    # the density of z under the proposal
    constant = math.lgamma((_FREEDOM + size) / 2) - math.lgamma(_FREEDOM / 2) - size / 2 * math.log(_FREEDOM * math.pi)
    log_det = factor.diagonal(dim1=1, dim2=2).log().sum(1, keepdim=True)
    log_q = constant + log_det - (_FREEDOM + size) / 2 * torch.log1p(spread.square().sum(-1) / _FREEDOM)
    return weigh(model, batch, z, log_q)


def _root(precision: Tensor) -> Tensor:
    """A lower triangle L with L·Lᵀ nearly the precision; the weights are right for any. In single precision the 1 of
    the prior is lost beside 10⁸ of the data, and what is left need not be positive."""
    size = precision.diagonal(dim1=1, dim2=2).sqrt()
    unit = precision / (size[:, :, None] * size[:, None, :])
    rounding = 10 * torch.finfo(unit.dtype).eps * torch.eye(unit.shape[1], dtype=unit.dtype, device=unit.device)
    root: Tensor = size[:, :, None] * torch.linalg.cholesky(unit + rounding)
    return root


def weigh(model: PopulationModel, batch: CohortBatch, z: Tensor, log_q: Tensor) -> Draws:
    """Given draws, weighed by the model as it stands."""
    value = log_joint(model, z.flatten(0, 1), batch.repeat(z.shape[1])).reshape(z.shape[:2])
    return Draws(z, log_q, value)
