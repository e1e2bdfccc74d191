"""Records: rows whose cells are sound, with EVID and MDV filled in, and the rules between their columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from neuralpk.cohort import IntArray
from neuralpk.tables.cells import MAX_CELL, cell_text, number_fault
from neuralpk.tables.faults import Findings, row_word
from neuralpk.tables.sheet import RESERVED, Sheet

BoolArray = NDArray[np.bool_]
Fault = tuple[str, str, BoolArray]
"""A rule, the column it is about, and the rows that break it."""

_CODES = {"MDV": (0, 1), "SS": (0, 2), "CENS": (-1, 1), "ADDL": (0, 10_000), "DVID": (0, 1_000), "CMT": (-1_000, 1_000)}


@dataclass(frozen=True)
class Records:
    """The rows of a sheet, each with its meaning.

    Args:
        sheet: the rows.
        evid: 0 to 4, filled in where it was missing, ``[row]``.
        mdv: 0 or 1, filled in where it was missing, ``[row]``.
    """

    sheet: Sheet
    evid: IntArray
    mdv: IntArray

    def __len__(self) -> int:
        return len(self.sheet)

    @property
    def dose(self) -> BoolArray:
        """Rows that give a dose."""
        return np.asarray((self.evid == 1) | (self.evid == 4))

    @property
    def measured(self) -> BoolArray:
        """Rows whose DV is read; a dose may stand on the same row."""
        return np.asarray((self.mdv == 0) & (self.dose | (self.evid == 0)))

    @property
    def observation(self) -> BoolArray:
        """Rows that give an observation record: a measured value or a wanted prediction."""
        return np.asarray(self.measured | (self.evid == 0) | (self.evid == 2))

    @cached_property
    def run(self) -> IntArray:
        """Number of the stretch of rows with one ID that each row belongs to."""
        ids = self.sheet.ids
        return np.concatenate([[0], np.cumsum(ids[1:] != ids[:-1])])

    def take(self, rows: IntArray) -> Records:
        """The rows in another order."""
        return Records(self.sheet.take(rows), self.evid[rows], self.mdv[rows])


def _report(faults: Iterator[Fault], sheet: Sheet, findings: Findings) -> BoolArray:
    """Note the faults; returns the rows that have any."""
    faulty = np.zeros(len(sheet), dtype=bool)
    for rule, column, rows in faults:
        values = sheet.column(column) if column != "ID" else np.full(len(sheet), np.nan)
        for row in np.flatnonzero(rows):
            place = {"line": int(sheet.lines[row]), "column": column, "id": sheet.ids[row]}
            findings.add(rule, **place, value=cell_text(values[row]))
        faulty |= rows
    return faulty


def _check_texts(sheet: Sheet, compartments: Sequence[str] | None, findings: Findings) -> BoolArray:
    """Put numbers in the place of compartment names and note every other text.

    Returns:
        The rows with a text among their events; one among the covariates leaves the events to be checked.
    """
    names = {name.casefold(): place for place, name in enumerate(compartments or (), start=1)}
    faulty = np.zeros(len(sheet), dtype=bool)
    for column, texts in sheet.texts.items():
        if column not in RESERVED and len(texts) > len(sheet) // 2:
            row, cell = next(iter(texts.items()))
            detail = f"{cell!r} is the first of {len(texts)} texts"
            findings.add("NPK-D40", line=int(sheet.lines[row]), column=column, value=cell, detail=detail)
            continue
        for row, cell in texts.items():
            if column == "CMT" and cell.strip().casefold() in names:
                sheet.numbers[column][row] = names[cell.strip().casefold()]
                continue
            rule = number_fault(cell)
            if rule == "NPK-D10" and (column == "CMT" or column not in RESERVED):
                rule = "NPK-D29" if column == "CMT" else "NPK-D40"
            findings.add(rule, line=int(sheet.lines[row]), column=column, id=sheet.ids[row], value=cell)
            faulty[row] |= column in RESERVED
    return faulty


def _cell_faults(sheet: Sheet) -> Iterator[Fault]:
    yield "NPK-D13", "ID", sheet.ids == ""
    lengths = {name: len(name) for name in set(sheet.ids)}
    yield "NPK-D07", "ID", np.array([lengths[name] > MAX_CELL for name in sheet.ids])
    for column, (low, high) in _CODES.items():
        values = sheet.column(column, missing=0.0)
        yield "NPK-D12", column, (values != np.round(values)) | (values < low) | (values > high)
    yield "NPK-D29", "CMT", sheet.column("CMT") < 0
    yield "NPK-D20", "EVID", ~np.isin(sheet.column("EVID", missing=0.0), (0, 1, 2, 3, 4, 101))


def sound_rows(sheet: Sheet, compartments: Sequence[str] | None, findings: Findings) -> Sheet:
    """Note every cell that breaks a rule by itself and leave its row out, so that no later rule trips over it."""
    faulty = _check_texts(sheet, compartments, findings)
    # a text stands as NaN in the numbers, and is not to be called missing as well
    missing_time = np.isnan(sheet.column("TIME"))
    missing_time[list(sheet.texts.get("TIME", {}))] = False
    faulty |= _report(iter([("NPK-D15", "TIME", missing_time)]), sheet, findings)
    faulty |= _report(_cell_faults(sheet), sheet, findings)
    return sheet.take(~faulty) if faulty.any() else sheet


def derive(sheet: Sheet) -> Records:
    """Fill in EVID and MDV where they are missing.

    Without EVID, AMT or a constant infusion at steady state makes a dose. Without MDV, DV counts where it is given,
    unless EVID says that the row is a dose and nothing else.
    """
    given = sheet.column("EVID")
    amount, value = sheet.column("AMT", missing=0.0), sheet.column("DV")
    dosed = (amount != 0) | ((sheet.column("SS") == 1) & (sheet.column("RATE") > 0))
    evid = np.where(np.isnan(given), dosed, np.where(given == 101, 1, given)).astype(np.int64)
    mdv = np.where(np.isnan(value) | (given > 0), 1, 0)
    stated = sheet.column("MDV")
    return Records(sheet, evid, np.where(np.isnan(stated), mdv, stated).astype(np.int64))


def _record_faults(records: Records) -> Iterator[Fault]:
    sheet, dose = records.sheet, records.dose
    amount, rate, duration, interval, additional, steady = (
        sheet.column(name, missing=0.0) for name in ("AMT", "RATE", "DUR", "II", "ADDL", "SS")
    )
    constant = (steady == 1) & (rate > 0) & (interval == 0) & (amount == 0)
    unknown = np.isnan(sheet.column("AMT")) & ~constant
    yield "NPK-D21", "DV", records.measured & np.isnan(sheet.column("DV"))
    yield "NPK-D22", "AMT", dose & (amount <= 0) & ~constant & ~unknown
    yield "NPK-D23", "AMT", dose & unknown
    yield "NPK-D24", "AMT", ~dose & (amount != 0)
    yield "NPK-D25", "RATE", dose & np.isin(rate, (-1, -2))
    yield "NPK-D30", "RATE", dose & (rate < 0) & ~np.isin(rate, (-1, -2))
    yield "NPK-D30", "DUR", dose & (duration < 0)
    yield "NPK-D30", "II", dose & (interval < 0)
    both = dose & (rate > 0) & (duration > 0)
    # 1e-6: a duration is often written with few digits less than double precision holds
    with np.errstate(over="ignore"):
        agree = np.abs(amount - duration * rate) <= 1e-6 * amount
    yield "NPK-D26", "DUR", both & ~agree
    yield "NPK-D27", "ADDL", dose & (additional > 0) & (interval == 0)
    yield "NPK-D28", "SS", dose & (steady > 0) & (interval == 0) & ~constant & (amount > 0)
    yield "NPK-D12", "DVID", records.observation & (sheet.column("DVID") == 0)
    censored, limit, value = sheet.column("CENS", missing=0.0), sheet.column("LIMIT"), sheet.column("DV")
    crossed = ((censored > 0) & (limit >= value)) | ((censored < 0) & (limit <= value))
    yield "NPK-D31", "LIMIT", records.measured & crossed


def _check_runs(records: Records, findings: Findings) -> None:
    """Note subjects whose rows do not follow one another."""
    sheet = records.sheet
    firsts = np.flatnonzero(np.diff(records.run, prepend=-1))
    ends = np.append(firsts[1:], len(sheet)) - 1
    unit, last = row_word(findings.file), dict[str, int]()
    for first, end in zip(firsts.tolist(), ends.tolist(), strict=True):
        name = sheet.ids[first]
        if name in last:
            detail = f"{unit}s {sheet.lines[first]} to {sheet.lines[end]} after {unit} {sheet.lines[last[name]]}"
            findings.add("NPK-D14", line=int(sheet.lines[first]), column="ID", id=name, value=name, detail=detail)
        last[name] = end


def _check_clock(records: Records, sort: bool, findings: Findings) -> Records:
    """Note where TIME decreases, or put the rows in order."""
    sheet, time = records.sheet, records.sheet.column("TIME")
    backwards = np.append(False, (time[1:] < time[:-1]) & (records.run[1:] == records.run[:-1]))
    reset = records.evid >= 3
    restart = backwards & (reset | np.append(False, reset[:-1]))
    for row in np.flatnonzero(restart if sort else backwards):
        rule = "NPK-D17" if restart[row] else "NPK-D16"
        before = f"{cell_text(time[row - 1])} in {row_word(findings.file)} {sheet.lines[row - 1]}"
        place = {"line": int(sheet.lines[row]), "column": "TIME", "id": sheet.ids[row]}
        value = cell_text(time[row])
        findings.add(rule, **place, value=value, detail=f"TIME {value} after {before}")
    if not (sort and backwards.any()):
        return records
    order = np.lexsort((time, records.run))
    findings.warn("NPK-D50", f"{(order != np.arange(len(order))).sum()} rows moved")
    return records.take(order)


def checked_records(sheet: Sheet, compartments: Sequence[str] | None, sort: bool, findings: Findings) -> Records:
    """The records of a sheet that break no rule.

    Raises:
        DataError: any fault, of the sheet or of its records.
    """
    records = derive(sound_rows(sheet, compartments, findings))
    if len(records):
        _report(_record_faults(records), records.sheet, findings)
        _check_runs(records, findings)
        records = _check_clock(records, sort, findings)
    findings.raise_any()
    return records
