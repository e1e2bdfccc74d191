"""From a cohort to a NONMEM-style event table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from neuralpk.atomic_files import replacing
from neuralpk.cohort import Cohort, Covariate, Dose, FloatArray, Subject
from neuralpk.tables.cells import BLANKS, MAX_CELL, MISSING
from neuralpk.tables.layout import OCCASIONS, RESERVED

WHOLE = ("EVID", "MDV", "ADDL", "SS", "CMT", "DVID", "CENS")
"""Columns of whole numbers."""
DOSE_COLUMNS = {
    "AMT": "amount", "RATE": "rate", "DUR": "duration", "II": "interval", "ADDL": "additional", "SS": "steady_state",
}  # fmt: skip
"""Columns of a dose record, and the attributes of `Dose` that they hold."""
OCCASION = OCCASIONS[0]
"""Column of the labels of the occasions."""
_OPTIONAL = {**dict.fromkeys(DOSE_COLUMNS, 0), "DVID": 1, "CENS": 0, "LIMIT": np.nan}
"""Columns that are left out where every row has this value or none."""


def _value_at(covariate: Covariate, times: FloatArray) -> FloatArray:
    if not isinstance(covariate, tuple):
        return np.full(len(times), covariate)
    starts, values = np.array(covariate).T
    return np.asarray(values[np.maximum(np.searchsorted(starts, times, side="right") - 1, 0)])


def _occasions_at(subject: Subject, times: FloatArray, rows: FloatArray) -> list[str]:
    """Label of the occasion of each row; empty where the subject has none."""
    found = [subject.occasions[0].label if subject.occasions else ""] * len(times)
    for one in subject.occasions[1:]:
        begun = (times > one.start) | ((times == one.start) & (rows >= one.row))
        found = [one.label if after else label for after, label in zip(begun, found, strict=True)]
    return found


def evid(dose: Dose) -> int:
    """EVID of a dose record: 1 a dose, 3 a reset, 4 both."""
    return (4 if dose.amount or dose.rate else 3) if dose.reset else 1


def _columns(subject: Subject) -> dict[str, Any]:
    """The rows of one subject by column, in the order in which the records act."""
    doses = subject.doses
    record_times = {*subject.times.tolist(), *(dose.time for dose in doses)}
    steps = [value for value in subject.covariates.values() if isinstance(value, tuple)]
    changes = {time for step in steps for time, _ in step} | {one.start for one in subject.occasions}
    between = sorted({time for time in changes if time > subject.start} - record_times)
    n, extra = len(subject.times), len(between)
    times = np.concatenate([[dose.time for dose in doses], subject.times, between])
    rows = np.concatenate([[dose.row for dose in doses], subject.rows, np.full(extra, np.inf)])
    observation = np.arange(len(times)) >= len(doses)
    # a dose does not act on an observation of its own row
    order = np.lexsort((~observation, rows, times))

    def column(given: list[Any], seen: Any, padding: float) -> FloatArray:
        return np.concatenate([given, seen, np.full(extra, padding)]).astype(np.float64)[order]

    missing = [np.nan] * len(doses)
    occasions = _occasions_at(subject, times, rows)
    compartments = np.where(subject.compartments == 0, np.nan, subject.compartments)
    return {
        "ID": np.full(len(times), subject.id, dtype=object),
        "TIME": times[order],
        "EVID": column([evid(dose) for dose in doses], np.where(subject.observed, 0, 2), 2),
        "MDV": column([1] * len(doses), ~subject.observed, 1),
        **{name: column([getattr(dose, of) for dose in doses], np.zeros(n), 0.0) for name, of in DOSE_COLUMNS.items()},
        "CMT": column([dose.compartment for dose in doses], compartments, np.nan),
        "DVID": column(missing, subject.endpoints, 1),
        "DV": column(missing, subject.values, np.nan),
        "CENS": column([0] * len(doses), subject.censored, 0),
        "LIMIT": column(missing, subject.limits, np.nan),
        OCCASION: np.array(occasions, dtype=object)[order],
        **{name: _value_at(value, times[order]) for name, value in sorted(subject.covariates.items())},
    }


def _check_names(cohort: Cohort) -> None:
    """Refuse names that would read back as something else."""
    labels = [one.label for subject in cohort for one in subject.occasions]
    for name in (*cohort.ids, *cohort.covariate_names, *dict.fromkeys(labels)):
        if name in MISSING or name.strip(BLANKS) != name or len(name) > MAX_CELL or {*name} & {"\n", "\r", "\0"}:
            raise ValueError(f"the name {name!r} cannot stand in an event table. Rename it.")
    reserved = {*RESERVED, "TINF", *([OCCASION] if labels else [])}
    taken = reserved & {name.upper() for name in cohort.covariate_names}
    if taken:
        raise ValueError(f"covariates {sorted(taken)} have names of the event table. Rename them.")


def to_frame(cohort: Cohort) -> pd.DataFrame:
    """The event table of a cohort, one row a record, in the order in which the records act.

    `neuralpk.tables.read_table` (with ``occasion="OCC"`` where there are occasions) gives the cohort back, but for the
    units and the truth of simulated subjects. A covariate or an occasion that begins between two records gets a row
    with EVID 2, which reads back as a wanted prediction.

    Args:
        cohort: at least one subject.

    Returns:
        ID, TIME, EVID, MDV, AMT, RATE, DUR, II, ADDL, SS, CMT, DVID, DV, CENS, LIMIT, OCC and the covariates; columns
        that say nothing are left out.

    Raises:
        ValueError: no subject; an identifier or a covariate name that an event table cannot hold.
    """
    if not len(cohort):
        raise ValueError("a table needs at least one subject, and the cohort is empty")
    _check_names(cohort)
    parts = [_columns(subject) for subject in cohort]
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    for name, idle in _OPTIONAL.items():
        if (np.isnan(columns[name]) | (columns[name] == idle)).all():
            del columns[name]
    if OCCASION not in cohort.covariate_names and not any(subject.occasions for subject in cohort):
        del columns[OCCASION]
    frame = pd.DataFrame(columns)
    return frame.astype({name: "Int64" for name in WHOLE if name in frame})


def write_table(cohort: Cohort, path: str | Path) -> None:
    """Write the event table of a cohort as CSV, each number with the digits that give it back exactly.

    Args:
        cohort: as for `to_frame`.
        path: where to write; missing values are ``.``.

    Raises:
        ValueError: as for `to_frame`.
    """
    with replacing(path) as part:
        to_frame(cohort).to_csv(part, index=False, na_rep=".", lineterminator="\n", encoding="utf-8")
