"""Scores of simulated subjects, whose outer products are the expected information."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from neuralpk import randomness
from neuralpk.cohort_batch import CohortBatch
from neuralpk.estimation.estimator import PopulationEstimator
from neuralpk.estimation.held_draws import HeldDraws
from neuralpk.inference import importance
from neuralpk.inference.uncertainty_draws import scores
from neuralpk.population_model import PopulationModel
from neuralpk.randomness import Stream

ENOUGH_SUBJECTS = 200  # the inverse of n outer products is too large by about (numbers that the data determine)/n
_DRAWS = 64  # of each
_ADAPTATIONS = 3  # of the proposals to the posterior of each


def expected_scores(model: PopulationModel, batch: CohortBatch, seed: int) -> Tensor:
    """Scores (`neuralpk.inference.uncertainty_draws.scores`) of subjects that are simulated by the model with the doses
    and times of some others, in such a unit that the sum of their outer products is the expected information of the
    others, ``[simulated subject, coordinate + weight]``.

    The outer products of the scores of the patients themselves estimate it too (Berndt et al. 1974), but of a few dozen
    patients too inexactly for as many weights: the regression of some scores on others then fits by chance, and the
    inverse is too large. Of simulated patients there are `ENOUGH_SUBJECTS`.

    Args:
        model: at its estimate.
        batch: the subjects; ``target`` says which records count. Of censored ones nothing is simulated.
        seed: of what is simulated and drawn.

    Raises:
        ValueError: no simulated subject could be solved.
    """
    copies = math.ceil(ENOUGH_SUBJECTS / len(batch))
    repeated = batch.repeat(copies)
    index = torch.arange(len(repeated), device=batch.device)
    repeated = dataclasses.replace(repeated, index=index, target=repeated.target & (repeated.censored == 0))
    size = model.latents(repeated).shape[1]
    normal = randomness.normal(seed, Stream.PARAMETER_DRAWS.at(2), index, size + repeated.time.shape[1])
    normal = normal.to(repeated.time.dtype)
    with torch.no_grad():
        simulated = model.simulate(normal[:, :size], normal[:, size:], repeated)
        solved = torch.isfinite(simulated.value).all(1).nonzero()[:, 0]
        if not len(solved):
            raise ValueError("no simulated patient could be solved: the information of the data is not known")
        simulated = simulated.select(solved)
        simulated = dataclasses.replace(simulated, context=simulated.target)
        estimator = PopulationEstimator(model, seed, (_DRAWS,))
        estimator.centres.begin_at(simulated.index, normal[solved, :size])
        exact = simulated.to(torch.float64)
        for number in range(_ADAPTATIONS):
            held = estimator.draw(exact, number, Stream.PROPOSALS, moves=False)
            estimator.centres.renew([held])
        drawn = posterior_draws(estimator.draw(exact, moves=False), estimator, simulated.time.dtype)
    found = scores(model, simulated, drawn)
    found = found[torch.isfinite(found).all(1)]
    return found * math.sqrt(len(batch) / len(found))


def posterior_draws(held: HeldDraws, estimator: PopulationEstimator, dtype: torch.dtype) -> importance.Draws:
    """Held draws as weighted draws of z under the model."""
    z, log_volume = held.z(estimator.numbers)
    log_weight = held.log_weight(estimator.numbers, estimator.numbers.get())
    log_q = held.log_q - log_volume
    log_joint = torch.where(torch.isfinite(log_q), log_weight + log_q, -torch.inf)
    parts = (z, log_q.nan_to_num(posinf=0.0), log_joint)
    return importance.Draws(*(part.to(dtype) for part in parts))
