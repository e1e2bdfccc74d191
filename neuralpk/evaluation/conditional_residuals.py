"""WRES and CWRES: residuals of all records of a patient together, weighted by the linearised model."""

from __future__ import annotations

import torch
from torch import Tensor

from neuralpk.cohort_batch import CohortBatch
from neuralpk.population_model import PopulationModel

_DIFFERENCE = 0.01  # of a prior standard deviation, to either side
_SOLVED_AT_ONCE = 20_000  # subjects × differences: bounds the memory


@torch.no_grad()
def conditional_residuals(model: PopulationModel, batch: CohortBatch, z: Tensor) -> Tensor:
    """Residuals of every patient under the model that is linearised at z (FOCE without interaction in the gradient;
    Hooker, Staatz and Karlsson 2007, Pharm Res 24:2187)::

        CWRES = C^(−1/2) (y − E)      E = f(z) − G z      C = G Gᵀ + diag(σ²(f(z)))      G = ∂f/∂z

    with the symmetric square root of C, as in NONMEM, so that each residual stays with its record. At the most probable
    z they are CWRES, at z = 0 WRES. z has the covariance I; random effects between occasions are components of it. σ²
    is the inverse of the information of a value about its prediction, for a normal residual error its variance.

    Args:
        model: the population model, with a likelihood.
        batch: the patients.
        z: where the model is linearised, ``[subject, latent]``.

    Returns:
        ``[subject, observation]``, independent and standard normal under a model that is linear in z with an additive
        error; NaN for censored values and for what was not measured.
    """
    size = z.shape[1]
    parts = torch.split(torch.arange(len(batch), device=batch.device), max(1, _SOLVED_AT_ONCE // (2 * size + 1)))
    return torch.cat([_residuals(model, batch.select(part), z[part]) for part in parts])


def _residuals(model: PopulationModel, batch: CohortBatch, z: Tensor) -> Tensor:
    one = torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
    steps = _DIFFERENCE * torch.cat([one.new_zeros((1, len(one))), one, -one])
    prediction = model.predict((z[:, None] + steps).flatten(0, 1), batch.repeat(len(steps)))
    value = prediction.value.reshape(len(z), len(steps), -1).double()
    predicted, ahead, behind = value[:, 0], value[:, 1 : 1 + len(one)], value[:, 1 + len(one) :]
    slope = ((ahead - behind) / (2 * _DIFFERENCE)).mT  # [subject, observation, latent]
    variance = 1 / model.error.information(predicted.to(z), batch.endpoint).double()
    if prediction.factor is not None:
        variance = variance * prediction.factor.reshape(value.shape)[:, 0].double().square()
    expected = predicted - (slope @ z.double()[..., None])[..., 0]
    counted = batch.observed & (batch.censored == 0) & torch.isfinite(variance) & torch.isfinite(slope).all(2)
    # what is left out has no covariance with the others, and a variance of their size
    slope = torch.where(counted[..., None], slope, 0.0)
    usual = (torch.where(counted, variance, 0.0).sum(1) / counted.sum(1)).nan_to_num(1.0)[:, None]
    covariance = slope @ slope.mT + torch.diag_embed(torch.where(counted, variance, usual))
    residual = torch.where(counted, batch.value.double() - expected, 0.0)
    # unit variances would change the root; one factor for a whole patient does not, and keeps its numbers near 1
    scale = covariance.diagonal(dim1=1, dim2=2).mean(1).sqrt()[:, None]
    values, axes = torch.linalg.eigh(covariance / scale[..., None].square())
    smallest = torch.finfo(values.dtype).eps * values.amax(1, keepdim=True)
    white = axes @ ((axes.mT @ (residual / scale)[..., None]) / values.clamp(min=smallest).sqrt()[..., None])
    return torch.where(counted, white[..., 0], torch.nan)
