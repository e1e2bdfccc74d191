"""log p(y, z): what the data and the population together say of a place in the latent space, and how sharply."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from neuralpk.batch import CohortBatch
from neuralpk.models import LatentModel

# of a prior standard deviation: far above the noise of a solve, far below what bends a line
_DIFFERENCE = 0.01


def given_context(batch: CohortBatch) -> CohortBatch:
    """The batch with the records that the encoder sees as the ones that count: a posterior knows no others."""
    return dataclasses.replace(batch, target=batch.context)


def log_prior(z: Tensor) -> Tensor:
    """log N(z; 0, I), ``[...]`` for z ``[..., latent]``."""
    return -0.5 * (z.square().sum(-1) + z.shape[-1] * math.log(2 * math.pi))


def log_joint(model: LatentModel, z: Tensor, batch: CohortBatch) -> Tensor:
    """log p(y | z) + log p(z) over the records of ``batch.target``, ``[subject]``; −inf where unsolved."""
    prediction = model.predict(z, batch)
    ok = prediction.trajectory.ok
    if bool(ok.all()):
        return model.error.log_likelihood(batch, prediction.value).sum(-1) + log_prior(z)
    # rows are left out, not masked: the derivative of a masked NaN is still NaN
    kept = ok.nonzero()[:, 0]
    out = z.new_full((len(z),), -torch.inf)
    return out.index_copy(0, kept, log_joint(model, z[kept], batch.select(kept))) if len(kept) else out


def gradient(model: LatentModel, z: Tensor, batch: CohortBatch) -> tuple[Tensor, Tensor]:
    """`log_joint` and its exact gradient in z, ``[subject]`` and ``[subject, latent]``."""
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        value = log_joint(model, z, batch)
        solved = torch.isfinite(value.detach())
        if not bool(solved.any()):  # nothing that could be differentiated
            return value.detach(), torch.zeros_like(z)
        (slope,) = torch.autograd.grad(value[solved].sum(), z)
    return value.detach(), slope


@torch.no_grad()
def information(model: LatentModel, z: Tensor, batch: CohortBatch) -> Tensor:
    """Expected curvature of −log p(y, z) (Fisher scoring), ``[subject, latent, latent]``, at least that of the prior::

        I + Σ_j i(f_j)·(∂f_j/∂z)(∂f_j/∂z)ᵀ

    with i(f) the information of one observation about its prediction. The slopes of f are differences: they steer a
    search and shape a proposal, and neither needs them exact.
    """
    size = z.shape[1]
    ends = torch.cat([z.new_zeros((1, size)), _DIFFERENCE * torch.eye(size, dtype=z.dtype, device=z.device)])
    value = model.predict((z[:, None] + ends).flatten(0, 1), batch.repeat(size + 1)).value
    value = value.reshape(len(z), size + 1, -1)
    slopes = (value[:, 1:] - value[:, :1]) / _DIFFERENCE
    known = model.error.information(value[:, 0], batch.endpoint)
    counted = batch.target & torch.isfinite(known) & torch.isfinite(slopes).all(1)
    scaled = torch.where(counted[:, None], slopes * torch.where(counted, known, 0.0).sqrt()[:, None], 0.0)
    return scaled @ scaled.mT + torch.eye(size, dtype=z.dtype, device=z.device)
