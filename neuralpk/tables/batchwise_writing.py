"""Event tables of cohorts too large to hold: written batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from neuralpk.atomic_files import replacing
from neuralpk.cohort import Dose
from neuralpk.cohort_batch import CohortBatch
from neuralpk.tables.frames import is_parquet
from neuralpk.tables.writing import DOSE_COLUMNS, OCCASION, WHOLE, evid


def _of_doses(regimens: Sequence[Sequence[Dose]], arm: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
    """Columns of the dose records, ``[subject, dose record]``; TIME is NaN where a subject has fewer."""
    width = max(len(doses) for doses in regimens)
    getters: dict[str, Callable[[Dose], float]] = {n: attrgetter(field) for n, field in DOSE_COLUMNS.items()}
    getters |= {"TIME": attrgetter("time"), "CMT": attrgetter("compartment"), "EVID": evid}
    columns = {}
    for name, get in getters.items():
        table = np.full((len(regimens), width), np.nan)
        for row, doses in zip(table, regimens, strict=True):
            row[: len(doses)] = [get(dose) for dose in sorted(doses, key=lambda dose: (dose.time, dose.row))]
        columns[name] = table[arm]
    return columns


def batch_frame(
    batch: CohortBatch,
    regimens: Sequence[Sequence[Dose]],
    covariates: Sequence[str] = (),
    censored: bool = False,
    occasions: Sequence[float] = (),
) -> pd.DataFrame:
    """The event table of a batch in which subject i has regimen i modulo their number, as `to_frame` would write it.

    Which columns there are depends on the arguments alone and not on the numbers, so that batches fit together.

    Args:
        batch: measured at the same records as observed; doses are taken from the regimens.
        regimens: dose records of each arm, whose rows stand before those of the observations.
        covariates: names of the constant covariates, in the order of the batch.
        censored: whether values may be censored.
        occasions: time at which each occasion begins, the same for all subjects; they are numbered from 1.
    """
    n, width = batch.time.shape
    doses = _of_doses(regimens, batch.index.numpy() % len(regimens))
    time, observed = batch.time.numpy(), batch.mask.numpy()
    both = np.concatenate([doses["TIME"], np.where(observed, time, np.nan)], axis=1)
    order = np.argsort(both, axis=1, kind="stable")  # NaN last, doses first at equal times
    there = ~np.isnan(np.take_along_axis(both, order, axis=1))

    def column(given: NDArray[np.float64] | float, seen: NDArray[Any] | float) -> NDArray[np.float64]:
        parts = [np.broadcast_to(given, doses["TIME"].shape), np.broadcast_to(seen, (n, width))]
        kept: NDArray[np.float64] = np.take_along_axis(np.concatenate(parts, axis=1), order, axis=1)[there]
        return kept

    columns = {
        "ID": np.repeat(batch.index.numpy() + 1, there.sum(1)),
        "TIME": column(doses["TIME"], time),
        "EVID": column(doses["EVID"], 0.0),
        "MDV": column(1.0, 0.0),
    }
    for name, field in DOSE_COLUMNS.items():
        if any(getattr(dose, field) for arm in regimens for dose in arm):
            columns[name] = column(doses[name], 0.0)
    columns["CMT"] = column(doses["CMT"], np.nan)
    if batch.endpoint.any():
        columns["DVID"] = column(np.nan, batch.endpoint.numpy() + 1.0)
    columns["DV"] = column(np.nan, batch.value.numpy())
    if censored:
        columns["CENS"] = column(0.0, batch.censored.numpy())
    if len(occasions):
        columns[OCCASION] = column(_numbered(occasions, doses["TIME"]), _numbered(occasions, time))
    for k, name in enumerate(covariates):
        columns[name] = column(batch.covariates.numpy()[:, :1, k], batch.covariates.numpy()[:, :1, k])
    return pd.DataFrame(columns).astype({name: "Int64" for name in (*WHOLE, OCCASION) if name in columns})


def _numbered(occasions: Sequence[float], times: NDArray[np.float64]) -> NDArray[np.float64]:
    """Number of the occasion of each time, from 1."""
    return np.searchsorted(occasions[1:], times, side="right").astype(np.float64) + 1


def write_frames(frames: Iterable[pd.DataFrame], path: str | Path) -> None:
    """Write tables of equal columns one after the other into one file, CSV or, by its ending, Parquet.

    Raises:
        ValueError: Parquet without pyarrow.
    """
    with replacing(path) as part:
        if is_parquet(part):
            _write_parquet(frames, part)
            return
        with part.open("w", encoding="utf-8", newline="") as file:
            for k, frame in enumerate(frames):
                frame.to_csv(file, index=False, na_rep=".", lineterminator="\n", header=k == 0)


def _write_parquet(frames: Iterable[pd.DataFrame], path: Path) -> None:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ValueError("Parquet needs pyarrow: pip install 'neuralpk[parquet]', or write a .csv") from error
    writer = None
    try:
        for frame in frames:
            table = pa.Table.from_pandas(frame, preserve_index=False)
            writer = writer or pq.ParquetWriter(path, table.schema)
            writer.write_table(table)
    finally:
        if writer is not None:
            writer.close()
