"""The non-parametric bootstrap of a population fit: estimates from subjects drawn with replacement."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from neuralpk import randomness
from neuralpk.cohort import Cohort, Subject
from neuralpk.cohort_batch import CohortBatch
from neuralpk.estimation import NetworkEstimator, PopulationEstimator
from neuralpk.individual_estimates import evaluation_batch
from neuralpk.objectives import Objective
from neuralpk.population_model import PopulationModel
from neuralpk.randomness import Stream
from neuralpk.value_checks import bearable
from neuralpk.worker_processes import one_thread, shared_work, worker_processes

_STAGES = (256, 512)  # draws of each subject: the estimate is a start that needs no coarse steps
_NO_NUMBERS = ("REPLICATE", "CONVERGED", "REASON")
_IN_ONE = "give processes=1"


def bootstrap(
    model: PopulationModel,
    objective: Objective,
    cohort: Cohort,
    replicates: int = 200,
    seed: int = 0,
    processes: int | None = None,
    strata: str | None = None,
    progress: Callable[[Sequence[int]], Iterable[int]] = iter,
) -> pd.DataFrame:
    """Estimates of the population from replicates of a data set, each of as many subjects, drawn with replacement.

    Every replicate is fitted by `neuralpk.estimation.PopulationEstimator` from the estimate of the fit as its start.
    The same seed gives the same replicates, whatever the number of processes.

    Args:
        model: at its estimate; it stays as it is.
        objective: that it was fitted with.
        cohort: the subjects that it was fitted to.
        replicates: how many.
        seed: of the subjects that are drawn.
        processes: fit that many replicates at a time; None for the number of CPUs.
        strata: covariate; a replicate has as many subjects with each of its values as the cohort.
        progress: wraps the numbers of the replicates, for example in a progress bar.

    Returns:
        REPLICATE (from 1), CONVERGED, REASON (why not; empty otherwise), and every learned number by its name in
        tables, on its reported scale (omegas as standard deviations, correlations as such); NaN where a replicate
        failed.

    Raises:
        ValueError: a model or an objective without an estimator of the population; no replicate or process; a covariate
            that the cohort lacks.
        RuntimeError: other processes could not begin.
    """
    estimator = objective.estimator(model, None, seed, lambda own: [own])
    if estimator is None or isinstance(estimator, NetworkEstimator):
        raise ValueError(
            f"a bootstrap fits replicates by the estimator of the population, which {type(model.dynamics).__name__} "
            f"trained with {type(objective).__name__} does not have: it needs MarginalLikelihood, a population that is "
            "learned and dynamics without network weights"
        )
    if replicates < 1 or (processes is not None and processes < 1):
        raise ValueError(f"replicates and processes must be 1 or more, got {replicates} and {processes}")
    batch = evaluation_batch(model, bearable(model, cohort))
    work = _Replicates(model, batch, _strata(cohort, strata), seed)
    count = min(processes or os.cpu_count() or 1, replicates)
    with one_thread(), _fitted(work, replicates, count) as found:
        return pd.DataFrame([next(found) for _ in progress(range(replicates))])


def summarise(replicates: pd.DataFrame, model: PopulationModel) -> pd.DataFrame:
    """Median, standard error and 95 % interval of every number, over all replicates that did not fail.

    Args:
        replicates: of `bootstrap`.
        model: at its estimate.

    Returns:
        PARAMETER, ESTIMATE (of the fit), MEDIAN, SE (standard deviation of the replicates), LO95 and HI95 (their 2.5
        and 97.5 % percentiles) and REPLICATES, how many they are from.
    """
    numbers = replicates.drop(columns=list(_NO_NUMBERS))
    low, median, high = (numbers.quantile(share) for share in (0.025, 0.5, 0.975))
    found = {
        "ESTIMATE": pd.Series(model.reported_values()),
        "MEDIAN": median,
        "SE": numbers.std(),
        "LO95": low,
        "HI95": high,
    }
    table = pd.DataFrame(found | {"REPLICATES": numbers.notna().sum()})
    return table.loc[numbers.columns].rename_axis("PARAMETER").reset_index()


def outcome(replicates: pd.DataFrame) -> str:
    """How many replicates converged, did not, or failed, and why the first of these; a sentence."""
    converged = replicates["CONVERGED"]
    failed = replicates.drop(columns=list(_NO_NUMBERS)).isna().any(axis=1)
    text = f"{len(replicates)} replicates: {int(converged.sum())} converged"
    for word, which in (("did not converge", ~converged & ~failed), ("failed and are left out", failed)):
        if which.any():
            first = replicates[which].iloc[0]
            text += f", {int(which.sum())} {word} (replicate {first['REPLICATE']}: {first['REASON']})"
    return text


@dataclasses.dataclass(frozen=True)
class _Replicates:
    """What every process needs.

    Args:
        model: at the estimate.
        batch: all subjects.
        strata: positions of the subjects of each stratum.
        seed: of the bootstrap.
    """

    model: PopulationModel
    batch: CohortBatch
    strata: list[list[int]]
    seed: int

    def drawn(self, number: int) -> CohortBatch:
        """The subjects of a replicate (from 0). One that is drawn twice counts as two, with random numbers and a name
        of its own."""
        n = len(self.batch)
        u = randomness.uniform(self.seed, Stream.BOOTSTRAP.at(number), torch.tensor([0]), n)[0]
        rows: list[int] = []
        for stratum, part in zip(self.strata, torch.split(u, [len(one) for one in self.strata]), strict=True):
            chosen = (part * len(stratum)).long().clamp(max=len(stratum) - 1)
            rows += [stratum[k] for k in chosen.tolist()]
        index: Tensor = torch.arange(n, device=self.batch.device)
        batch = self.batch.select(torch.tensor(rows, device=self.batch.device))
        ids = tuple(f"{name} (drawn as {k + 1})" for k, name in enumerate(batch.ids))
        return dataclasses.replace(batch, ids=ids, index=index)

    def row(self, number: int) -> dict[str, Any]:
        """A row of the table."""
        numbers = dict.fromkeys(self.model.reported_values(), math.nan)
        converged, reason = False, ""
        try:
            estimator = PopulationEstimator(self.model, self.seed, _STAGES).begin_here()
            status = estimator.run(self.drawn(number))
            converged, reason = status.converged, status.reason
            numbers = estimator.model.reported_values()
        except (RuntimeError, ValueError, ArithmeticError) as error:  # one replicate must not end the others
            reason = f"{type(error).__name__}: {error}"
        return dict(zip(_NO_NUMBERS, (number + 1, converged, reason), strict=True)) | numbers


def _strata(cohort: Cohort, covariate: str | None) -> list[list[int]]:
    """Positions of the subjects with each value of a covariate; of all together without one."""
    if covariate is None:
        return [list(range(len(cohort)))]
    if covariate not in cohort.covariate_names:
        known = ", ".join(cohort.covariate_names) or "none"
        raise ValueError(f"strata is a covariate of the subjects, not {covariate!r}; there are {known}")
    values = np.array([_first(subject, covariate) for subject in cohort])
    return [np.nonzero(values == value)[0].tolist() for value in np.unique(values)]


def _first(subject: Subject, covariate: str) -> float:
    value = subject.covariates[covariate]
    return value[0][1] if isinstance(value, tuple) else value


@contextmanager
def _fitted(work: _Replicates, replicates: int, processes: int) -> Iterator[Iterator[dict[str, Any]]]:
    """The rows of all replicates in their order."""
    if processes == 1:
        yield map(work.row, range(replicates))
        return
    with worker_processes(work, processes, _IN_ONE) as executor:
        yield executor.map(_row, range(replicates))


def _row(number: int) -> dict[str, Any]:
    work: _Replicates = shared_work()
    return work.row(number)
