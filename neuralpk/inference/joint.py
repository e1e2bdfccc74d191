"""Joint log-density log p(y, z) of the data and the random effects, with its gradient and expected curvature."""

from __future__ import annotations

import torch
from torch import Tensor

from neuralpk.cohort_batch import CohortBatch
from neuralpk.population_model import PopulationModel

# of a prior standard deviation: far above the noise of a solve, far below what bends a curve
_DIFFERENCE = 0.01
_NEIGHBOURS = 4  # occasions whose kappa each has differences of its own, in a row


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

        I + Σ_j i(f_j)·(∂f_j/∂z)(∂f_j/∂z)ᵀ + 2·(∂log k_j/∂z)(∂log k_j/∂z)ᵀ

    with i(f) the information of one observation about its prediction, and k the factor of its residual error. The
    derivatives are finite differences, which are accurate enough for the search and the proposal. Of many occasions
    every fourth is moved at once, so that their number does not change how many curves are solved: a record's
    dependence on an occasion four before its own counts as one on its own.
    """
    one = torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
    of_subject, of_occasions = one[: model.latent_size], one[model.latent_size :]
    apart, changing = _NEIGHBOURS, max(1, len(model.population.changing))
    by_occasion = of_occasions.reshape(len(of_occasions) // changing, changing, len(one))
    moved_at_once = [by_occasion[k::apart].sum(0) for k in range(min(apart, len(by_occasion)))]
    ends = torch.cat([one.new_zeros((1, len(one))), of_subject, *moved_at_once])
    prediction = model.predict((z[:, None] + _DIFFERENCE * ends).flatten(0, 1), batch.repeat(len(ends)))
    value = prediction.value.reshape(len(z), len(ends), -1)
    per_value = model.error.information(value[:, 0], batch.endpoint)
    if prediction.factor is not None:  # of a record about its factor as of a second record
        factor = prediction.factor.reshape(value.shape)
        value = torch.cat([value, factor.log()], dim=-1)
        per_value = torch.cat([per_value / factor[:, 0].square(), torch.full_like(per_value, 2.0)], dim=-1)
    slopes = (value[:, 1:] - value[:, :1]) / _DIFFERENCE
    copies = value.shape[-1] // batch.target.shape[-1]
    counted = batch.target.repeat(1, copies) & torch.isfinite(per_value) & torch.isfinite(slopes).all(1)
    if len(of_occasions):
        of_all, at_once = slopes[:, : len(of_subject)], slopes[:, len(of_subject) :]
        at_once = at_once.reshape(len(z), -1, changing, at_once.shape[2])
        latest, numbers = _latest_occasions(batch, apart).repeat(1, copies, 1), range(len(by_occasion))
        own = torch.stack([latest[..., k % apart] == k for k in numbers], dim=1)  # [subject, occasion, observation]
        parts = torch.stack([at_once[:, k % apart] for k in numbers], dim=1)
        slopes = torch.cat([of_all, torch.where(own[:, :, None], parts, 0.0).flatten(1, 2)], dim=1)
    scaled = torch.where(counted[:, None], slopes * torch.where(counted, per_value, 0.0).sqrt()[:, None], 0.0)
    return scaled @ scaled.mT + one


def _latest_occasions(batch: CohortBatch, apart: int) -> Tensor:
    """Of the occasions with each remainder modulo `apart` the last that has begun before a record, −1 for none,
    ``[subject, observation, apart]``."""
    latest, found = torch.full((len(batch), apart), -1, device=batch.device), []
    for occasion in batch.occasion.unbind(1):
        latest = latest.scatter(1, (occasion % apart)[:, None], occasion[:, None])
        found.append(latest)
    period = batch.period_at(batch.time, batch.row)
    return torch.stack(found, dim=1).gather(1, period[..., None].expand(-1, -1, apart))
