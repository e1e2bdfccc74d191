"""The table of the records of a cohort (DV, PRED, IPRED, IWRES, …), and replicates of the study."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from neuralpk import randomness
from neuralpk.cohort import FloatArray
from neuralpk.cohort_batch import CohortBatch
from neuralpk.population_model import PopulationModel, Prediction
from neuralpk.randomness import Stream
from neuralpk.solve import Noise

if TYPE_CHECKING:
    from neuralpk.path_guide import PathGuide

_SOLVED_AT_ONCE = 20_000  # subjects × studies: bounds the memory


@torch.no_grad()
def records(model: PopulationModel, batch: CohortBatch, individual: Prediction, has_error: bool = True) -> pd.DataFrame:
    """One row for each record: ID, TIME, DVID, DV, PRED, IPRED, IRES, IWRES, TAD; of data with censored values CENS and
    LLOQ; and the covariates of the model at the record.

    DV is NaN where only a prediction is wanted. Of a censored value DV is the limit, and IRES and IWRES are NaN. TAD is
    the time since the last dose before the record, NaN before the first.

    Args:
        model: predicts the typical patient.
        batch: the records.
        individual: individual prediction of each of them.
        has_error: whether the residual error was learned; without one IWRES is NaN.
    """
    pred = model.predict(model.typical(len(batch)), batch.unseen()).value
    row, column = batch.mask.nonzero(as_tuple=True)
    observed = torch.where(batch.observed, batch.value, torch.nan)
    measured = torch.where(batch.censored == 0, observed, torch.nan)
    ipred = individual.value
    iwres = model.residual(batch, individual)
    columns = {
        "TIME": batch.on_data_clock(batch.time),
        "DVID": batch.endpoint + 1,
        "DV": observed,
        "PRED": pred,
        "IPRED": ipred,
        "IRES": measured - ipred,
        "IWRES": torch.where(measured.isnan() | (not has_error), torch.nan, iwres),
        "TAD": _time_after_dose(batch),
    }
    if bool((batch.censored[batch.observed] != 0).any()):
        columns |= {"CENS": batch.censored, "LLOQ": torch.where(batch.censored > 0, observed, torch.nan)}
    columns |= _covariates(model, batch)
    frame = {"ID": np.asarray(batch.ids)[row.cpu().numpy()]}
    return pd.DataFrame(frame | {name: values[row, column].cpu().numpy() for name, values in columns.items()})


def _time_after_dose(batch: CohortBatch) -> Tensor:
    """Time of each record since the last dose before it, ``[subject, observation]``; NaN before the first."""
    time = batch.time[:, :, None]
    since = torch.where(_given_before(batch), time - batch.doses.time[:, None], torch.inf)
    least = torch.cat([since, torch.full_like(time, torch.inf)], dim=2).amin(2)
    return torch.where(least.isinf(), torch.nan, least)


def doses_before(batch: CohortBatch) -> Tensor:
    """Number of doses before each record, ``[subject, observation]``."""
    return _given_before(batch).sum(2)


def _given_before(batch: CohortBatch) -> Tensor:
    """Which doses were given before each record, bool ``[subject, observation, dose]``."""
    doses, time = batch.doses, batch.time[:, :, None]
    at = doses.time[:, None]
    before = (at < time) | ((at == time) & (doses.row[:, None] < batch.row[:, :, None]))
    given = doses.mask & ((doses.amount > 0) | (doses.rate > 0))
    return before & given[:, None]


def _covariates(model: PopulationModel, batch: CohortBatch) -> dict[str, Tensor]:
    """The covariates of the model at each record, by name, ``[subject, observation]``."""
    assert model.scaling is not None
    period, each = batch.period_at(batch.time), batch.covariates.unbind(-1)
    return {name: each[k].gather(1, period) for k, name in enumerate(sorted(model.scaling.covariates))}


@torch.no_grad()
def replicates(
    model: PopulationModel,
    batch: CohortBatch,
    samples: int,
    seed: int,
    progress: Callable[[Sequence[Tensor]], Iterable[Tensor]] = iter,
) -> FloatArray:
    """Measured values of simulated studies of the same design, ``[sample, observation]``: z from its prior, with
    residual error and, of a stochastic dynamics, with paths of its own; NaN for a simulated patient who could not be
    solved.

    Args:
        model: simulates the patients.
        batch: doses and sampling times.
        samples: number of studies.
        seed: of the draws.
        progress: wraps the iterable of parts of the studies, for example in a progress bar.
    """
    size, width = model.latents(batch).shape[1], batch.time.shape[1]
    noise = randomness.normal(seed, Stream.REPLICATES.at(0), batch.index, samples * (size + width))
    noise = noise.reshape(len(batch), samples, -1).to(batch.time.dtype)
    values = []
    for k, part in enumerate(progress(torch.split(noise, max(1, _SOLVED_AT_ONCE // len(batch)), dim=1))):
        drawn = part.flatten(0, 1)
        paths = Noise(seed, Stream.REPLICATES.at(k)) if model.dynamics.stochastic else None
        study = model.simulate(drawn[:, :size], drawn[:, size:], batch.repeat(part.shape[1]), paths)
        values.append(study.value.reshape(len(batch), part.shape[1], width).transpose(0, 1))
    return np.asarray(torch.cat(values)[:, batch.observed].cpu().double().numpy(), np.float64)


def curve_error(model: PopulationModel, batch: CohortBatch, z: Tensor, guide: PathGuide | None = None) -> Tensor:
    """Relative root mean square error of the curves from z against the truth, mean over subjects and endpoints.

    Raises:
        ValueError: a batch without its true curves.
    """
    if batch.truth is None:
        raise ValueError("the true curves of these subjects are not known; only simulated cohorts have them")
    # a subject's clock starts at its first record, and so does its true curve
    times = torch.maximum(batch.truth.times, batch.start[:, None])
    curves = model.observe(model.trajectory(z, batch, times, guide))
    relative = (curves - batch.truth.line).square().mean(1).sqrt() / batch.truth.line.square().mean(1).sqrt()
    return relative.nanmean()
