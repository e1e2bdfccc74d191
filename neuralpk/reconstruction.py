"""Every patient's line and parameters, with their uncertainty, from a trained model and the data alone."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from neuralpk import randomness
from neuralpk.batch import CohortBatch, collate
from neuralpk.cohort import Cohort, FloatArray, Subject
from neuralpk.inference import importance
from neuralpk.inference.interval import interval
from neuralpk.inference.joint import given_context
from neuralpk.inference.mode import maximise, most_probable
from neuralpk.inference.uncertainty import possible
from neuralpk.models import LatentModel

_BAND_STREAM = 1 << 40  # apart from the training steps, whose number is their stream
_SOLVED_AT_ONCE = 20_000  # subjects × draws: bounds the memory
_WEIGHED = 5  # weighted draws for each one that is kept
_NEARBY = 2  # steps from the most probable place of one population to that of another
_MOST_SILENT = 0.1  # of the populations: fewer may fail to draw a subject's lines


@dataclass(frozen=True)
class Reconstruction:
    """What a model says of each subject of a cohort.

    Args:
        ids: identifiers.
        times: where the lines are drawn, ``[subject, time]``; as long as the longest, padded by the last time.
        pred: population prediction, z at its prior mean, ``[subject, time, endpoint]``.
        ipred: individual prediction, z at its estimate, ``[subject, time, endpoint]``.
        lower: lower end of the 90 % band of the line, over draws of z; NaN for an ``mse`` model, which has none.
        upper: upper end.
        parameters: name to (estimate, lower, upper), each ``[subject]``.
        place: estimate of z, ``[subject, latent]``.
    """

    ids: tuple[str, ...]
    times: FloatArray
    pred: FloatArray
    ipred: FloatArray
    lower: FloatArray
    upper: FloatArray
    parameters: dict[str, tuple[FloatArray, FloatArray, FloatArray]]
    place: FloatArray

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


def evaluation_batch(model: LatentModel, cohort: Cohort, context: int | None = None) -> CohortBatch:
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


def unseen(batch: CohortBatch) -> CohortBatch:
    """A batch of whose samples nobody was told: for predictions from the population alone."""
    return dataclasses.replace(batch, context=torch.zeros_like(batch.context))


@torch.no_grad()
def reconstruct(
    model: LatentModel,
    cohort: Cohort,
    times: Sequence[float] | None = None,
    draws: int = 200,
    context: int | None = None,
    seed: int = 0,
    polish: bool = False,
    progress: Callable[[Sequence[Tensor]], Iterable[Tensor]] = iter,
) -> Reconstruction:
    """Reconstruct a cohort.

    The encoder answers at once: z at the mean of q, intervals from draws of q. Polished, z is the most probable one
    given the patient's data (MAP, the empirical Bayes estimate), found through the solver from there, and the intervals
    come from draws around it, weighted by importance, over all the populations that the training data allow.

    Args:
        model: a trained latent model.
        cohort: the patients; their truth, where there is one, is not read.
        times: where to draw the lines, on the data's clock; default 200 times over each patient's records.
        draws: draws of z for the 90 % intervals; 0 leaves them out, for a model without a posterior.
        context: how many of each patient's first observations the encoder sees; None for all.
        seed: of the draws.
        polish: go on from the encoder through the solver.
        progress: given the parts in which the patients are placed, hands them on one by one, and may show how far.

    Raises:
        ValueError: covariates other than those the model was trained with; fewer than 0 draws.
        neuralpk.solve.SolveError: a patient that could not be solved.
    """
    if draws < 0:
        raise ValueError(f"draws must be 0 or more, not {draws}")
    batch = evaluation_batch(model, cohort, context)
    grid = torch.as_tensor(np.stack([_line_times(s, times) for s in cohort]), dtype=batch.time.dtype).to(batch.device)
    parts = torch.split(torch.arange(len(batch), device=batch.device), max(1, _SOLVED_AT_ONCE // (draws or 1)))
    models = possible(model) if polish and draws else [model]
    places, bands = [], []
    for part in progress(parts):
        own = batch.select(part)
        z = _estimate(model, own, polish)
        places.append(z)
        if draws:
            count = -(-draws // len(models))
            drawn = [_draws(one, own, z, count, seed, _BAND_STREAM + k, polish) for k, one in enumerate(models)]
            bands.append(_bands(models, drawn, own, grid[part], seed))
    place = torch.cat(places)
    lines = []
    for z, known in ((model.prior_mean(len(batch)), unseen(batch)), (place, batch)):
        trajectory = model.decode(z, known, grid)
        trajectory.check(batch.ids, model.options)
        lines.append(model.read(trajectory))
    pred, ipred = lines
    estimate = _parameters(model, place, batch)
    if draws:
        lower, upper = torch.cat([band for band, _ in bands], dim=1)
        intervals = {name: torch.cat([own[name] for _, own in bands], dim=1) for name in estimate}
    else:
        lower = upper = torch.full_like(ipred, torch.nan)
        intervals = {name: torch.full((2, len(value)), torch.nan) for name, value in estimate.items()}
    return Reconstruction(
        ids=batch.ids,
        times=_numpy(grid),
        pred=_numpy(pred),
        ipred=_numpy(ipred),
        lower=_numpy(lower),
        upper=_numpy(upper),
        parameters={k: (_numpy(v), _numpy(intervals[k][0]), _numpy(intervals[k][1])) for k, v in estimate.items()},
        place=_numpy(place),
    )


def _estimate(model: LatentModel, batch: CohortBatch, polish: bool) -> Tensor:
    """Estimate of z, ``[subject, latent]``."""
    mean: Tensor = model.encoder(batch).mean
    if not polish:
        return mean
    mode = most_probable(model, batch, mean)
    if not bool(mode.converged.all()):
        names = [batch.ids[k] for k in (~mode.converged).nonzero()[:10, 0].tolist()]
        warnings.warn(
            f"subject {', '.join(names)}: the search for the most probable parameters did not come to its end; look at "
            "their doses, samples and units",
            stacklevel=3,
        )
    return mode.z


def _draws(
    model: LatentModel, batch: CohortBatch, place: Tensor, count: int, seed: int, stream: int, polish: bool
) -> Tensor:
    """Draws of z, ``[subject, sample, latent]``; NaN for a subject that this model holds for impossible."""
    size = place.shape[1]
    if not polish:
        q = model.encoder(batch)
        noise = randomness.normal(seed, stream, batch.index, count * size).to(q.mean.dtype)
        amortised: Tensor = q.mean[:, None] + q.sd[:, None] * noise.reshape(len(batch), count, size)
        return amortised
    given = given_context(batch)
    noise = importance.noise(seed, stream, batch.index, _WEIGHED * count, size, place.dtype)
    drawn = importance.draw(model, given, maximise(model, given, place, _NEARBY), noise)
    allowed = torch.isfinite(drawn.log_weight).any(1)
    return torch.where(allowed[:, None, None], drawn.resample(count), torch.nan)


def _bands(
    models: list[LatentModel], drawn: list[Tensor], batch: CohortBatch, grid: Tensor, seed: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """90 % intervals over the draws of z by every model, of the lines and of the parameters: first axis the two ends.
    Where a model cannot draw all its lines of a subject, the others speak for it, unless there are too few."""
    lines, parameters, silent = [], [], torch.zeros(len(batch), device=batch.device)
    for model, z in zip(models, drawn, strict=True):
        kept = torch.isfinite(z).all(2).all(1).nonzero()[:, 0]
        repeated = batch.select(kept).repeat(z.shape[1])
        flat = z[kept].flatten(0, 1)
        trajectory = model.draw(flat, repeated, grid[kept].repeat_interleave(z.shape[1], dim=0), seed)
        # without its failed draws alone a band would be too narrow
        solved = trajectory.ok.reshape(len(kept), z.shape[1]).all(1)
        silent[kept[~solved]] += 1
        if bool((silent > _MOST_SILENT * len(models)).any()):
            trajectory.check(repeated.ids, model.options)
        rows = solved.repeat_interleave(z.shape[1])
        line, own = model.read(trajectory)[rows], _parameters(model, flat, repeated)
        lines.append(_rows(line, kept[solved], z.shape[:2]))
        parameters.append({name: _rows(value[rows], kept[solved], z.shape[:2]) for name, value in own.items()})
    ends = {name: interval(torch.cat([own[name] for own in parameters], dim=1)) for name in parameters[0]}
    return interval(torch.cat(lines, dim=1)), ends


def _rows(values: Tensor, kept: Tensor, shape: Sequence[int]) -> Tensor:
    """Values of the kept subjects, ``[subject · sample, ...]``, among those of all, ``[subject, sample, ...]``."""
    out = values.new_full((*shape, *values.shape[1:]), torch.nan)
    return out.index_copy(0, kept, values.reshape(len(kept), *out.shape[1:]))


def _parameters(model: LatentModel, z: Tensor, batch: CohortBatch) -> dict[str, Tensor]:
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
