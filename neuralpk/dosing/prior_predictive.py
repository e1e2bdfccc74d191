"""Whether patients are like the population of a model: the probability of data at least as unlikely as theirs."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from neuralpk import randomness
from neuralpk.cohort import Cohort, FloatArray
from neuralpk.diagnostics.below_quantification import quantification_limits
from neuralpk.individual_estimates import evaluation_batch
from neuralpk.inference.importance import log_mean_weight
from neuralpk.population_model import PopulationModel
from neuralpk.randomness import Stream
from neuralpk.value_checks import bearable

UNLIKE = 0.01
"""Patients with a smaller p are named in a warning."""


@torch.no_grad()
def data_p_values(
    model: PopulationModel, cohort: Cohort, simulated: int = 199, draws: int = 200, seed: int = 0
) -> FloatArray:
    """Prior predictive p of the samples of each patient::

        p = (1 + #{−log p(y_s) >= −log p(y)}) / (1 + simulated)        y_s ~ p(y), the same times and doses

    log p(y) is the logarithm of the mean likelihood over draws of the population, the same for y and for all y_s, so
    that p is uniform for a patient of the population, however few the draws are. A value below the limit of
    quantification counts by its probability, also among the y_s, with the limits of
    `neuralpk.diagnostics.below_quantification.quantification_limits`. Values above a limit (CENS −1) are left out.

    Args:
        model: the population.
        cohort: the patients.
        simulated: data sets of each patient.
        draws: of the population, for the likelihood.
        seed: of both.

    Returns:
        ``[subject]``; NaN for a patient without samples and under a dynamics with noise.
    """
    found = np.full(len(cohort), np.nan)
    if not model.has_likelihood:
        return found
    cohort = model.read_cohort(bearable(model, cohort))
    batch, count = evaluation_batch(model, cohort).unseen(), simulated + draws
    of_subject = np.cumsum([int(subject.observed.sum()) for subject in cohort])[:-1]
    limits = np.split(quantification_limits(cohort), of_subject)
    z = randomness.normal(seed, Stream.SIMULATED_COURSES.at(2), torch.arange(count), model.latent_size)
    for k in range(len(batch)):
        subject = batch.select(torch.tensor([k], device=batch.device)).trimmed()
        scored = subject.observed & (subject.censored != -1)
        if not bool(scored.any()):
            continue
        limit = torch.full_like(subject.value, -torch.inf)
        limit[subject.observed] = torch.as_tensor(limits[k]).to(limit)
        subject = subject.scored_on(scored)
        prediction = model.predict(z.to(batch.time), subject.repeat(count))
        predicted, factor = prediction.value, prediction.factor
        noise = randomness.normal(seed, Stream.SIMULATED_COURSES.at(3), torch.arange(simulated), predicted.shape[1])
        noise = noise.to(predicted) if factor is None else noise.to(predicted) * factor[:simulated]
        drawn = model.error.simulate(predicted[:simulated], subject.endpoint.expand(simulated, -1), noise)
        values = torch.cat([subject.value, torch.where(scored, torch.maximum(drawn, limit), 0.0)])
        below = torch.cat([subject.censored, (drawn < limit).to(subject.censored)])
        rows = subject.repeat((simulated + 1) * draws)
        rows = dataclasses.replace(
            rows, value=values.repeat_interleave(draws, dim=0), censored=below.repeat_interleave(draws, dim=0)
        )
        of_rows = None if factor is None else factor[simulated:].repeat(simulated + 1, 1)
        likelihood = model.error.log_likelihood(rows, predicted[simulated:].repeat(simulated + 1, 1), of_rows).sum(1)
        likelihood = torch.where(likelihood.isnan(), -torch.inf, likelihood).reshape(simulated + 1, draws)
        unlikely = -log_mean_weight(likelihood)
        found[k] = (1 + int((unlikely[1:] >= unlikely[0]).sum())) / (1 + simulated)
    return found


def unlike_population(ids: tuple[str, ...], p: FloatArray) -> str:
    """A warning that names the patients with p below `UNLIKE`; empty for none."""
    named = [f"{name} (p = {one:.3f})" for name, one in zip(ids, p, strict=True) if one < UNLIKE]
    if not named:
        return ""
    return (
        f"subject {', '.join(named[:10])}: the data are unlike the population of the model, and what follows from them "
        "may be wrong; look at their doses, samples, units and covariates"
    )
