"""Joint log-density log p(y, z) of the data and the random effects, with its gradient and expected curvature."""

from __future__ import annotations

import torch
from torch import Tensor

from neuralpk.cohort_batch import CohortBatch
from neuralpk.population_model import PopulationModel

# of a prior standard deviation: far above the noise of a solve, far below what bends a curve
_DIFFERENCE = 0.01


def log_joint(model: PopulationModel, z: Tensor, batch: CohortBatch) -> Tensor:
    """log p(y | z) + log p(z) over the records of ``batch.target``, ``[subject]``; −inf where unsolved."""
    return model.log_likelihood(z, batch) + model.log_density(z)


def gradient(model: PopulationModel, z: Tensor, batch: CohortBatch) -> tuple[Tensor, Tensor]:
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
def information(model: PopulationModel, z: Tensor, batch: CohortBatch) -> Tensor:
    """Expected curvature of −log p(y, z) (Fisher scoring), ``[subject, latent, latent]``, at least that of the prior::

        I + Σ_j i(f_j)·(∂f_j/∂z)(∂f_j/∂z)ᵀ

    with i(f) the information of one observation about its prediction. ∂f/∂z are finite differences, which are
    accurate enough for the search and the proposal.
    """
    size = z.shape[1]
    ends = torch.cat([z.new_zeros((1, size)), _DIFFERENCE * torch.eye(size, dtype=z.dtype, device=z.device)])
    value = model.predict((z[:, None] + ends).flatten(0, 1), batch.repeat(size + 1)).value
    value = value.reshape(len(z), size + 1, -1)
    slopes = (value[:, 1:] - value[:, :1]) / _DIFFERENCE
    per_value = model.error.information(value[:, 0], batch.endpoint)
    counted = batch.target & torch.isfinite(per_value) & torch.isfinite(slopes).all(1)
    scaled = torch.where(counted[:, None], slopes * torch.where(counted, per_value, 0.0).sqrt()[:, None], 0.0)
    return scaled @ scaled.mT + torch.eye(size, dtype=z.dtype, device=z.device)
