"""The likelihood of a population as it is, every random effect integrated out, and its Monte-Carlo error."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from neuralpk.cohort_batch import CohortBatch
from neuralpk.estimation.estimator import PopulationEstimator
from neuralpk.estimation.held_draws import HeldDraws
from neuralpk.inference import importance
from neuralpk.population_model import PopulationModel
from neuralpk.randomness import Stream

_ADAPTATIONS = (64, 256, 256)  # draws of each subject, by which the proposals adapt to the posterior
_DRAWS = 512  # of each subject in a set
_FAR_FROM_NORMAL = 0.2  # share of effective draws; where it is smaller, proposals get kernels, and sets more draws
_KERNEL_ADAPTATIONS, _MOST_KERNEL_ADAPTATIONS = 3, 12  # before the effective draws are looked at; in all
_NOT_FOUND = 0.1  # share of effective draws; where it is smaller, kernels have not found all of a posterior
_MORE = 4  # times the draws, of subjects whose likelihood needs them
_SETS = 4  # of draws for the likelihood
_AT_ONCE = 500_000  # curves of a set: bounds the memory
_SMALL_ERROR = 0.04  # of log p(data)
_LARGE_VARIANCE = 2e-3  # of log p(y) of a subject: its sets disagree
_MOST_SHARE = 0.6  # of the subjects that get sets with more draws, so that these take a bounded time
# of a model with a network, whose curves take longer and whose likelihood nobody compares to a tenth
_NETWORK_DRAWS, _NETWORK_SETS = 256, 2


def log_likelihood(
    model: PopulationModel, batch: CohortBatch, draws: int | None = None, seed: int = 0, start: Tensor | None = None
) -> tuple[float, float]:
    """log p(data) of a population as it is, every z integrated out by importance sampling, and its Monte-Carlo
    standard error. Of a population that was fitted it is that of `standard_errors`.

    Args:
        model: the population; its numbers may all be fixed.
        batch: the subjects; the records of the context count.
        draws: of z for each subject in each set; default 512, of a model with a network 256.
        seed: of the draws.
        start: z from which the maximum of each subject is searched, ``[subject, latent]``; None for the typical
            patient.
    """
    estimator = likelihood_estimator(model, draws, seed)
    batch = batch.to(torch.float64).scored_on_context()
    if start is not None:
        estimator.centres.begin_at(batch.index, start)
    with torch.no_grad():
        adapt(estimator, batch)
        return estimated_log_likelihood(estimator, batch)


def likelihood_estimator(model: PopulationModel, draws: int | None, seed: int) -> PopulationEstimator:
    """Draws so many of each subject in a set."""
    in_set = draws or (_NETWORK_DRAWS if model.has_network else _DRAWS)
    return PopulationEstimator(model, seed, (*_ADAPTATIONS, in_set, _MORE * in_set, _MORE**2 * in_set))


def adapt(estimator: PopulationEstimator, batch: CohortBatch) -> None:
    """Adapt the proposals to the posterior of every subject, and give kernels to those that are far from normal."""
    for estimator.stage in range(len(_ADAPTATIONS)):
        held = estimator.draw(batch, estimator.stage, Stream.PROPOSALS, moves=False)
        estimator.centres.renew([held])
    estimator.stage = len(_ADAPTATIONS)
    if not estimator.model.has_network:
        _give_kernels(estimator, batch.select(_with_few_effective(estimator, held, _FAR_FROM_NORMAL)))


def _give_kernels(estimator: PopulationEstimator, batch: CohortBatch) -> None:
    """Proposals with kernels that have adapted to the posterior of every subject of a batch."""
    estimator.stage += 1
    for part in _parts(batch, _AT_ONCE // estimator.draws):
        for k in range(_MOST_KERNEL_ADAPTATIONS):
            held = estimator.draw(part, len(_ADAPTATIONS) + k, Stream.PROPOSALS, moves=False)
            estimator.centres.adapt([held], kernels=True)
            if k >= _KERNEL_ADAPTATIONS:
                part = part.select(_with_few_effective(estimator, held, _NOT_FOUND))
            if not len(part):
                break
    estimator.stage -= 1


def _parts(batch: CohortBatch, size: int) -> list[CohortBatch]:
    """The subjects in parts of at most so many; none of no subject."""
    rows = torch.arange(len(batch), device=batch.device)
    return [batch.select(part) for part in torch.split(rows, max(size, 1))] if len(batch) else []


def _with_few_effective(estimator: PopulationEstimator, held: HeldDraws, share: float) -> Tensor:
    """Rows of the subjects of whose draws less than a share is effective."""
    effective = importance.effective_draws(held.log_weight(estimator.numbers, estimator.numbers.get()))
    return (effective < share * held.log_q.shape[1]).nonzero()[:, 0]


def estimated_log_likelihood(
    estimator: PopulationEstimator, batch: CohortBatch, first: HeldDraws | None = None
) -> tuple[float, float]:
    """log p(data) and its Monte-Carlo standard error, from a few sets of draws of every subject. A subject whose sets
    disagree gets kernels; those with kernels get sets with more draws, and so do those with the largest errors, where
    the error of all is not small. What all sets miss, as in the tails of a curved posterior, the error does not know.

    Args:
        estimator: whose proposals have adapted.
        batch: the subjects.
        first: a set of their draws, if there is one.
    """
    numbers, stage, network = estimator.numbers, estimator.stage, estimator.model.has_network
    more = estimator.centres.have_kernels(batch.index).long()  # stages with more draws, of each subject
    begun = None if first is None else importance.log_mean_weight(first.log_weight(numbers, numbers.get()))
    mean, variance = batch.value.new_zeros(len(batch)), batch.value.new_zeros(len(batch))

    def draw(rows: Tensor, begun: Tensor | None = None) -> None:
        for number in sorted({*more[rows].tolist()}):
            estimator.stage = stage + number
            for some in torch.split(rows[more[rows] == number], max(_AT_ONCE // estimator.draws, 1)):
                of_first = None if begun is None or number else begun[some]
                mean[some], variance[some] = _sets(estimator, batch.select(some), of_first)
        estimator.stage = stage

    draw(torch.arange(len(batch), device=batch.device), begun)
    if not network:
        disagree = ((variance > _LARGE_VARIANCE) & (more == 0)).nonzero()[:, 0]
        _give_kernels(estimator, batch.select(disagree))
        more[disagree] = 1
        draw(disagree)
        worst = variance.argsort(descending=True)
        left = variance.sum() - variance[worst].cumsum(0)
        worst = worst[: min(int((left > _SMALL_ERROR**2 / 2).sum()) + 1, int(_MOST_SHARE * len(batch)))]
        if float(variance.sum()) > _SMALL_ERROR**2:
            more[worst] += 1
            draw(worst)
    return float(mean.sum()), float(variance.sum().sqrt())


def _sets(estimator: PopulationEstimator, batch: CohortBatch, begun: Tensor | None) -> tuple[Tensor, Tensor]:
    """log p(y) of every subject and its variance, from a few sets of draws, ``[subject]``.

    Args:
        estimator: in the stage with the number of draws.
        batch: the subjects.
        begun: log p(y) by the first set, ``[subject]``; None where it has not been drawn.
    """
    sets, vector = _NETWORK_SETS if estimator.model.has_network else _SETS, estimator.numbers.get()
    values = [] if begun is None else [begun]
    for k in range(len(values), sets):
        held = estimator.draw(batch, k, moves=False)
        values.append(importance.log_mean_weight(held.log_weight(estimator.numbers, vector)))
    found = torch.stack(values)
    mean = torch.logsumexp(found, dim=0) - math.log(sets)
    spread = (found - mean).exp().square().sum(0) - sets  # the sets are independent
    return mean, (spread / (sets - 1) / sets).nan_to_num(0.0).clamp(min=0.0)
