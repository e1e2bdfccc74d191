"""log p(data) of a population as it stands."""

from __future__ import annotations

import torch
from torch import Tensor

from neuralpk.cohort_batch import CohortBatch
from neuralpk.inference import importance
from neuralpk.inference.map import maximise
from neuralpk.population_model import PopulationModel
from neuralpk.randomness import Stream

_DRAWS = 1000  # of each patient
_SOLVED_AT_ONCE = 20_000  # patients × draws: bounds the memory
_STEPS = 30


@torch.no_grad()
def log_likelihood(model: PopulationModel, batch: CohortBatch, z: Tensor, seed: int = 0) -> tuple[float, float]:
    """log p(data), every z integrated out by importance sampling around its most probable value, and its Monte-Carlo
    standard error.

    Args:
        model: the population.
        batch: the patients; the records of the context count.
        z: from which the maximum of each patient is searched, ``[subject, latent]``.
        seed: of the draws.
    """
    total, variance = 0.0, 0.0
    for part in torch.split(torch.arange(len(batch), device=batch.device), _SOLVED_AT_ONCE // _DRAWS):
        subjects = batch.select(part).trimmed().scored_on_context()
        mode = maximise(model, subjects, z[part], _STEPS)
        noise = importance.noise(seed, Stream.REPLICATES.at(0), subjects.index, _DRAWS, z.shape[1], z.dtype)
        drawn = importance.draw_widely(model, subjects, mode, mode, noise)
        total += float(drawn.log_likelihood.sum())
        weight = torch.exp(drawn.log_weight - drawn.log_likelihood[:, None])  # of mean 1
        variance += float((weight.var(1) / _DRAWS).sum())
    return total, variance**0.5
