"""What a trained model says of every record of a cohort, and what it would have measured instead."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from neuralpk import randomness
from neuralpk.batch import CohortBatch
from neuralpk.cohort import FloatArray
from neuralpk.inference.mode import most_probable
from neuralpk.models import LatentModel
from neuralpk.objectives import imagine
from neuralpk.reconstruction import unseen

_REPLICATE_STREAM = 1 << 47
_SOLVED_AT_ONCE = 20_000  # subjects × studies: bounds the memory


def place(model: LatentModel, batch: CohortBatch, polish: bool) -> Tensor:
    """Each subject's z given the context, ``[subject, latent]``: where the encoder puts it or, polished, the most
    probable one (MAP, the empirical Bayes estimate), found from there."""
    mean: Tensor = model.encoder(batch).mean
    return most_probable(model, batch, mean).z if polish else mean


def tabulate(model: LatentModel, batch: CohortBatch, ipred: Tensor) -> pd.DataFrame:
    """ID, TIME, DVID, DV, PRED and IPRED of every record.

    Args:
        model: predicts the typical patient.
        batch: the records.
        ipred: what is predicted for each of them, ``[subject, observation]``.
    """
    pred = model.predict(model.prior_mean(len(batch)), unseen(batch)).value
    row, column = batch.mask.nonzero(as_tuple=True)
    observed = torch.where(batch.observed, batch.value, torch.nan)
    columns = {"TIME": batch.time, "DVID": batch.endpoint + 1, "DV": observed, "PRED": pred, "IPRED": ipred}
    frame = {"ID": np.asarray(batch.ids)[row.cpu().numpy()]}
    return pd.DataFrame(frame | {name: values[row, column].cpu().numpy() for name, values in columns.items()})


def residuals(model: LatentModel, batch: CohortBatch, ipred: Tensor, known: bool) -> pd.DataFrame:
    """`tabulate` with IWRES, of every measured value.

    Args:
        model: as for `tabulate`.
        batch: as for `tabulate`.
        ipred: as for `tabulate`.
        known: whether the model has learned a residual error; without one IWRES is NaN.
    """
    table = tabulate(model, batch, ipred)
    iwres = model.error.standardise(batch.value, ipred, batch.endpoint)
    # a censored record holds a limit, not a value
    iwres = torch.where((batch.censored == 0) & known, iwres, torch.nan)
    table["IWRES"] = iwres[batch.mask].cpu().numpy()
    return table[table["DV"].notna()]


def replicates(model: LatentModel, batch: CohortBatch, samples: int, seed: int) -> FloatArray:
    """What studies like this one would measure, ``[sample, observation]``: z from its prior, with residual error.

    Args:
        model: draws the patients.
        batch: who is dosed and sampled.
        samples: how many such studies.
        seed: of the draws.
    """
    size, width = model.individual.latent_size, batch.time.shape[1]
    noise = randomness.normal(seed, _REPLICATE_STREAM, batch.index, samples * (size + width))
    noise = noise.reshape(len(batch), samples, -1).to(batch.time.dtype)
    values = []
    for part in torch.split(noise, max(1, _SOLVED_AT_ONCE // len(batch)), dim=1):
        drawn = part.flatten(0, 1)
        imagined = imagine(model, drawn[:, :size], drawn[:, size:], batch.repeat(part.shape[1]))
        values.append(imagined.value.reshape(len(batch), part.shape[1], width).transpose(0, 1))
    return np.asarray(torch.cat(values)[:, batch.observed].cpu().double().numpy(), np.float64)


def line_error(model: LatentModel, batch: CohortBatch, z: Tensor) -> Tensor:
    """Relative root mean square error of the lines from z against the truth, mean over subjects and endpoints."""
    assert batch.truth is not None
    # a subject's clock starts at its first record, and so does its true line
    lines = model.lines(z, batch, torch.maximum(batch.truth.times, batch.start[:, None]))
    wide = (lines - batch.truth.line).square().mean(1).sqrt() / batch.truth.line.square().mean(1).sqrt()
    return wide.nanmean()
