"""Exposure of each patient: area, peak and trough from the first to the last record, and by dosing interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from neuralpk.cohort import FloatArray, Subject, written_out
from neuralpk.cohort_batch import CohortBatch
from neuralpk.exposure import NODES, ExposureGrid
from neuralpk.population_model import PopulationModel

if TYPE_CHECKING:
    from neuralpk.path_guide import PathGuide

_WHOLE = ("AUC", "CMAX", "TMAX", "CMIN")
_MOST_NODES = 20_000  # of a subject; with more events the quadrature between two of them is coarser
_SOLVED_AT_ONCE = 2_000_000  # subjects × times: bounds the memory


@dataclass(frozen=True)
class _Intervals:
    """Dosing intervals of one subject: number of the dose (0 before the first), its amount, and the quadrature; and
    the first record."""

    start: float
    numbers: list[int]
    amounts: list[float]
    grids: list[ExposureGrid]

    @property
    def times(self) -> FloatArray:
        """The first record, then those of all quadratures in order."""
        return np.concatenate([np.array([self.start]), *(grid.times for grid in self.grids)])


@torch.no_grad()
def exposure(
    model: PopulationModel,
    batch: CohortBatch,
    subjects: Sequence[Subject],
    z: Tensor,
    guide: PathGuide | None = None,
) -> pd.DataFrame:
    """Exposure of each subject and endpoint along the individual prediction.

    Args:
        model: that predicts.
        batch: the subjects, as the model reads them.
        subjects: the same.
        z: individual estimate, ``[subject, latent]``; NaN for one that could not be solved.
        guide: of a stochastic dynamics.

    Returns:
        ID, DVID, DOSE (0: from the first to the last record; else the number of the dose, whose interval ends at the
        next dose or the last record), START, END, AMT, AUC, CMAX, TMAX (since START) and CMIN.
    """
    rows: list[dict[str, object]] = []
    parts = [_intervals(subject) for subject in subjects]
    longest = max((len(part.times) for part in parts), default=0)
    together = max(1, _SOLVED_AT_ONCE // max(1, longest))
    for chosen in torch.split(torch.arange(len(batch), device=batch.device), together):
        own = [parts[k] for k in chosen.tolist()]
        some = batch.select(chosen)
        values = _curves(model, some, own, z[chosen], guide)
        for k, part in enumerate(own):
            rows += _rows(some.ids[k], part, values[k])
    return pd.DataFrame(rows, columns=["ID", "DVID", "DOSE", "START", "END", "AMT", *_WHOLE])


def _intervals(subject: Subject) -> _Intervals:
    given = [dose for dose in written_out(subject.doses) if dose.amount > 0 or dose.rate > 0]
    last = max([*subject.times[-1:], *(dose.time for dose in given)], default=subject.start)
    starts = sorted({dose.time for dose in given if dose.time < last})
    cuts = [subject.start, *(start for start in starts if start > subject.start), last]
    ends = [end for dose in given for end in dose.infusion_ends if subject.start < end < last]
    pieces = max(1, len(cuts) - 1 + len(set(ends) - set(cuts)))
    nodes = int(np.clip(_MOST_NODES / (4 * pieces), 3, NODES))
    kept = [(low, high) for low, high in pairwise(cuts) if high > low]
    amounts = [sum(dose.amount for dose in given if dose.time == low) for low, _ in kept]
    first = starts[0] if starts else np.inf
    numbers = np.cumsum([low >= first for low, _ in kept], dtype=int).tolist()
    return _Intervals(subject.start, numbers, amounts, [ExposureGrid.of(pair, ends, nodes) for pair in kept])


def _curves(
    model: PopulationModel, batch: CohortBatch, parts: Sequence[_Intervals], z: Tensor, guide: PathGuide | None
) -> FloatArray:
    """Individual predictions at the times of the quadratures, padded by the last, ``[subject, time, endpoint]``."""
    width = max(len(part.times) for part in parts)
    padded = [_padded(part.times, width) for part in parts]
    wanted = torch.as_tensor(np.stack(padded))
    grid = (wanted - batch.on_data_clock(wanted.new_zeros((len(batch), 1)))).to(batch.time)
    solved = ~z.isnan().any(1)
    trajectory = model.trajectory(torch.where(solved[:, None], z, 0.0), batch, grid, guide)
    values = model.observe(trajectory).masked_fill(~(solved & trajectory.ok)[:, None, None], torch.nan)
    return np.asarray(values.cpu().double().numpy())


def _padded(times: FloatArray, width: int) -> FloatArray:
    return np.concatenate([times, np.full(width - len(times), times[-1])])


def _rows(name: str, part: _Intervals, values: FloatArray) -> list[dict[str, object]]:
    found: list[dict[str, object]] = []
    for endpoint in range(values.shape[1]):
        own, at = [], 1
        for number, amount, grid in zip(part.numbers, part.amounts, part.grids, strict=True):
            metrics = grid.metrics(values[at : at + len(grid.times), endpoint])
            at += len(grid.times)
            row = {"DOSE": number, "START": grid.interval[0], "END": grid.interval[1], "AMT": amount}
            own.append(row | {metric: float(metrics[metric]) for metric in _WHOLE})
        if not own:
            continue
        peak = max(own, key=lambda row: row["CMAX"])
        whole = {"DOSE": 0, "START": own[0]["START"], "END": own[-1]["END"], "AMT": sum(row["AMT"] for row in own)}
        whole |= {"AUC": sum(row["AUC"] for row in own), "CMAX": peak["CMAX"], "CMIN": min(row["CMIN"] for row in own)}
        whole["TMAX"] = peak["START"] + peak["TMAX"] - own[0]["START"]
        intervals = [row for row in own if row["DOSE"]]
        found += [{"ID": name, "DVID": endpoint + 1} | row for row in [whole, *intervals]]
    return found
