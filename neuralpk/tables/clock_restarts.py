"""A clock that restarts within a subject: each part is continued after the one before it, from empty compartments."""

from __future__ import annotations

import dataclasses

import numpy as np

from neuralpk.tables.cells import cell_text
from neuralpk.tables.faults import Findings, row_word
from neuralpk.tables.layout import OCCASIONS
from neuralpk.tables.records import BoolArray, Records

_FARTHEST = 1e9


def _new_occasion(records: Records) -> tuple[BoolArray, str]:
    """Rows whose occasion is another than that of the row before, and the columns that say so."""
    sheet = records.sheet
    names = ["occasion"] if sheet.layout.occasion else [name for name in OCCASIONS if name in sheet.labels]
    new = np.zeros(len(records), dtype=bool)
    for name in names:
        labels = sheet.labels[name]
        new[1:] |= (labels[1:] != labels[:-1]) & (labels[1:] != "")
    return new, sheet.layout.occasion or ", ".join(names)


def with_one_clock(records: Records, findings: Findings) -> Records:
    """The records with a clock that never goes back, with the faults noted where it may not.

    TIME may restart at EVID 3 or 4, after EVID 3, and with a new occasion: there a new part of the subject begins, in
    which nothing is left of the doses before. Its first record is put at the next whole time unit after the last one of
    the part before. With `Layout.sort` the rows are put in order instead, and nothing restarts.
    """
    sheet, time = records.sheet, records.sheet.column("TIME")
    sort = sheet.layout.sort
    same = np.append(False, records.run[1:] == records.run[:-1])
    backwards = np.append(False, time[1:] < time[:-1]) & same
    if not backwards.any():
        return records
    occasion, column = _new_occasion(records)
    after = np.append(False, records.evid[:-1] == 3)
    # beyond that a continued clock would lose the digits of the table's own
    near = np.maximum(np.abs(time), np.abs(np.append(0.0, time[:-1]))) < _FARTHEST
    allowed = near & ((records.evid >= 3) | after | (occasion & same))
    restart = backwards & allowed
    for row in np.flatnonzero(restart if sort else backwards & ~allowed):
        rule = "NPK-D17" if sort else "NPK-D16"
        before = f"{cell_text(time[row - 1])} in {row_word(findings.file)} {sheet.lines[row - 1]}"
        place = {"line": int(sheet.lines[row]), "column": "TIME", "id": sheet.ids[row]}
        value = cell_text(time[row])
        detail = f"TIME {value} after {before}"
        if records.dose[row] and time[row] == 0:
            detail += (
                ", at a dose: a time after the dose (TAD) is no TIME, which goes on from the first dose to the next"
            )
        findings.add(rule, **place, value=value, detail=detail)
    if sort:
        order = np.lexsort((time, records.run))
        findings.warn("NPK-D50", f"{(order != np.arange(len(order))).sum()} rows moved")
        return records.take(order)
    if not restart.any():
        return records
    starts = np.flatnonzero(restart)
    shift = np.zeros(len(records))
    for start in starts.tolist():
        # whole units, so that the fractions of the table stay as they are
        offset = np.floor(time[start - 1] + shift[start - 1] - time[start]) + 1.0
        end = start + int(np.argmax(np.append(records.run[start:] != records.run[start], True)))
        shift[start:end] = offset
    first = int(starts[0])
    by = f"EVID 3 or 4{f', {column}' if column else ''}"
    findings.warn(
        "NPK-D17",
        f"{len(starts)} × the clock restarts at {by} in {len(np.unique(records.run[starts]))} subjects, first ID "
        f"{sheet.ids[first]}, {row_word(findings.file)} {sheet.lines[first]}: TIME {cell_text(time[first])} is "
        f"{cell_text(time[first] + shift[first])} on the subject's clock",
    )
    emptied = restart & (records.evid < 3) & ~after
    return dataclasses.replace(records, sheet=sheet.with_numbers(TIME=time + shift), emptied=emptied)
