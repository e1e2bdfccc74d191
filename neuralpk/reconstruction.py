"""Every patient's line and parameters, with their uncertainty, from a trained model and the data alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from neuralpk import randomness
from neuralpk.batch import CohortBatch, collate
from neuralpk.cohort import Cohort, FloatArray, Subject
from neuralpk.models import LatentODE

_BAND_STREAM = 1 << 40  # apart from the training steps, whose number is their stream
_SOLVED_AT_ONCE = 20_000  # subjects × draws: bounds the memory


@dataclass(frozen=True)
class Reconstruction:
    """What a model says of each subject of a cohort.

    Args:
        ids: identifiers.
        times: where the lines are drawn, ``[subject, time]``; as long as the longest, padded by the last time.
        pred: population prediction, z at its prior mean, ``[subject, time, endpoint]``.
        ipred: individual prediction, z at the mean of q, ``[subject, time, endpoint]``.
        lower: lower end of the 90 % band of the line, over draws of z from q; NaN for an ``mse`` model, which has none.
        upper: upper end.
        parameters: name to (estimate, lower, upper), each ``[subject]``.
        mean: mean of q(z), ``[subject, latent]``.
    """

    ids: tuple[str, ...]
    times: FloatArray
    pred: FloatArray
    ipred: FloatArray
    lower: FloatArray
    upper: FloatArray
    parameters: dict[str, tuple[FloatArray, FloatArray, FloatArray]]
    mean: FloatArray

    def curves(self) -> pd.DataFrame:
        """ID, TIME, PRED, IPRED, LO90, HI90, one row a time; with several endpoints also DVID."""
        n, width, endpoints = self.ipred.shape
        kept = np.ones((n, width), bool)
        kept[:, 1:] = np.diff(self.times, axis=1) > 0
        where = np.nonzero(np.repeat(kept[..., None], endpoints, axis=2))
        frame = pd.DataFrame({"ID": np.asarray(self.ids)[where[0]], "TIME": self.times[where[0], where[1]]})
        if endpoints > 1:
            frame["DVID"] = where[2] + 1
        for name in ("pred", "ipred", "lower", "upper"):
            frame[{"lower": "LO90", "upper": "HI90"}.get(name, name.upper())] = getattr(self, name)[where]
        return frame

    def individuals(self) -> pd.DataFrame:
        """ID, then every parameter with its 90 % interval (``CL, CL_LO90, CL_HI90``)."""
        frame: dict[str, Any] = {"ID": np.asarray(self.ids)}
        for name, (estimate, lower, upper) in self.parameters.items():
            frame |= {name: estimate, f"{name}_LO90": lower, f"{name}_HI90": upper}
        return pd.DataFrame(frame)


def evaluation_batch(model: LatentODE, cohort: Cohort, context: int | None = None) -> CohortBatch:
    """A cohort as one batch for a trained model, in its precision and on its device.

    Args:
        model: whose covariates are kept.
        cohort: the patients.
        context: how many of each patient's first observations the encoder sees; None for all.

    Raises:
        ValueError: covariates that the model needs and the cohort lacks.
    """
    known = sorted(model.encoder.scaling.covariates)
    if not set(known) <= set(cohort.covariate_names):
        raise ValueError(f"the model needs the covariates {known}; the data have {list(cohort.covariate_names)}")
    batch = collate(cohort.with_covariates(known), dtype=model.value_scale.dtype).to(model.value_scale.device)
    if context is None:
        return batch
    return dataclasses.replace(batch, context=batch.context & (batch.context.long().cumsum(1) <= context))


@torch.no_grad()
def reconstruct(
    model: LatentODE,
    cohort: Cohort,
    times: Sequence[float] | None = None,
    draws: int = 200,
    context: int | None = None,
    seed: int = 0,
) -> Reconstruction:
    """Reconstruct a cohort.

    Args:
        model: a trained latent ODE.
        cohort: the patients; their truth, where there is one, is not read.
        times: where to draw the lines, on the data's clock; default 200 times over each patient's records.
        draws: draws of z from q for the 90 % intervals; 0 leaves them out, for a model without a posterior.
        context: how many of each patient's first observations the encoder sees; None for all.
        seed: of the draws.

    Raises:
        ValueError: covariates other than those the model was trained with.
        neuralpk.solve.SolveError: a patient that could not be solved.
    """
    batch = evaluation_batch(model, cohort, context)
    grid = torch.as_tensor(np.stack([_line_times(s, times) for s in cohort]), dtype=batch.time.dtype).to(batch.device)
    q, prior = model.encoder(batch), model.prior_mean(len(batch))
    lines = []
    for z in (prior, q.mean):
        trajectory = model.decode(z, batch, grid)
        trajectory.check(batch.ids, model.options)
        lines.append(model.read(trajectory))
    pred, ipred = lines
    estimate = _parameters(model, q.mean, batch)
    if draws:
        lower, upper, intervals = _bands(model, q.mean, q.sd, batch, grid, draws, seed)
    else:
        lower = upper = torch.full_like(ipred, torch.nan)
        intervals = {name: (torch.full_like(value, torch.nan),) * 2 for name, value in estimate.items()}
    return Reconstruction(
        ids=batch.ids,
        times=_numpy(grid),
        pred=_numpy(pred),
        ipred=_numpy(ipred),
        lower=_numpy(lower),
        upper=_numpy(upper),
        parameters={k: (_numpy(v), _numpy(intervals[k][0]), _numpy(intervals[k][1])) for k, v in estimate.items()},
        mean=_numpy(q.mean),
    )


def _bands(
    model: LatentODE, mean: Tensor, scale: Tensor, batch: CohortBatch, grid: Tensor, draws: int, seed: int
) -> tuple[Tensor, Tensor, dict[str, tuple[Tensor, Tensor]]]:
    """5 % and 95 % quantiles over draws of z from q, of the lines and of the parameters."""
    size = mean.shape[1]
    noise = randomness.normal(seed, _BAND_STREAM, batch.index, draws * size).to(mean.dtype)
    z = mean[:, None] + scale[:, None] * noise.reshape(-1, draws, size)
    ends = torch.tensor([0.05, 0.95], dtype=mean.dtype, device=mean.device)
    lines, parameters = [], []
    for part in torch.split(torch.arange(len(batch), device=mean.device), max(1, _SOLVED_AT_ONCE // draws)):
        repeated, drawn = batch.select(part).repeat(draws), z[part].flatten(0, 1)
        trajectory = model.decode(drawn, repeated, grid[part].repeat_interleave(draws, dim=0))
        trajectory.check(repeated.ids, model.options)  # a band without its failed draws would be too narrow
        line = model.read(trajectory)
        lines.append(line.reshape(len(part), draws, *line.shape[1:]).quantile(ends, dim=1))
        own = _parameters(model, drawn, repeated)
        parameters.append({k: v.reshape(len(part), draws).quantile(ends, dim=1) for k, v in own.items()})
    low, high = torch.cat(lines, dim=1)
    joined = {name: torch.cat([p[name] for p in parameters], dim=1) for name in parameters[0]}
    return low, high, {name: (value[0], value[1]) for name, value in joined.items()}


def _parameters(model: LatentODE, z: Tensor, batch: CohortBatch) -> dict[str, Tensor]:
    """Parameters at the first record by name, with those derived from them, each ``[subject]``."""
    theta = model.individual(z, batch.covariates)
    theta = theta if theta.dim() == 2 else theta[:, 0]
    return model.dynamics.named(theta) | model.dynamics.derived(theta)


def _numpy(values: Tensor) -> FloatArray:
    return np.asarray(values.detach().cpu().double().numpy(), np.float64)


def _line_times(subject: Subject, times: Sequence[float] | None) -> FloatArray:
    """200 times over a subject's records, or the wanted ones from its first record on."""
    if times is not None:
        return np.asarray(np.maximum(np.sort(np.asarray(times, float)), subject.start), np.float64)
    ends = [subject.start, *subject.times[-1:], *(dose.time for record in subject.doses for dose in record.expand())]
    return np.asarray(np.linspace(subject.start, max(ends), 200))
