"""Records that break no rule: every rule of a cell and between the columns of a row, and the order of the rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from neuralpk.cohort import MODELLED_DURATION, MODELLED_RATE, MOST_ADDITIONAL, MOST_OVERLAPPING
from neuralpk.tables.cells import MAX_CELL, cell_text, number_fault
from neuralpk.tables.classic_events import is_classic, with_plain_events
from neuralpk.tables.clock_restarts import with_one_clock
from neuralpk.tables.endpoints import with_endpoints
from neuralpk.tables.faults import Findings, row_word
from neuralpk.tables.layout import LIMITS, RESERVED
from neuralpk.tables.records import BoolArray, Records, derive, with_limits, with_limits_as_text
from neuralpk.tables.sheet import Sheet
from neuralpk.tables.suspect_values import check_values, warn_of_flags, warn_of_repeated_doses
from neuralpk.tables.text_levels import with_levels
from neuralpk.tables.times_of_day import with_elapsed_time

Fault = tuple[str, str, BoolArray]
"""A rule, the column it is about, and the rows that break it."""

_CODES = {
    "MDV": (0, 1), "SS": (0, 2), "CENS": (-1, 1), "ADDL": (0, MOST_ADDITIONAL), "DVID": (0, 1_000),
    "CMT": (-1_000, 1_000),
}  # fmt: skip
_MOST_DOSES = 10_000


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


def _check_texts(sheet: Sheet, findings: Findings) -> BoolArray:
    """Put numbers in the place of compartment names and note every other text.

    Returns:
        The rows with a text among their events; one among the covariates leaves the events to be checked.
    """
    names = {name.casefold(): place for place, name in enumerate(sheet.layout.compartments, start=1)}
    faulty = np.zeros(len(sheet), dtype=bool)
    of_clock = {finding.line for finding in findings.found if finding.rule == "NPK-D18"}
    for column, texts in sheet.texts.items():
        if column == "DVID" and sheet.layout.endpoint:
            continue
        if column == "CMT" and sheet.layout.endpoint.upper() == "CMT":
            # a text says the endpoint of a sample, and the compartment of a dose must still be known
            texts = {row: cell for row, cell in texts.items() if sheet.column("AMT", 0.0)[row] != 0}
        if column not in RESERVED and len(texts) > len(sheet) // 2:
            row, cell = next(iter(texts.items()))
            detail = f"{cell!r} is the first of {len(texts)} texts"
            findings.add("NPK-D40", line=int(sheet.lines[row]), column=column, value=cell, detail=detail)
            continue
        for row, cell in texts.items():
            if column == "CMT" and cell.strip().casefold() in names:
                sheet.numbers[column][row] = names[cell.strip().casefold()]
                continue
            faulty[row] |= column in RESERVED
            if column == "TIME" and int(sheet.lines[row]) in of_clock:
                continue
            rule = number_fault(cell, sheet.layout.decimal)
            if rule == "NPK-D10":
                own = {"CMT": "NPK-D29", "DVID": "NPK-D19", "EVID": "NPK-D20"}
                own |= dict.fromkeys(("MDV", "SS", "CENS", "ADDL"), "NPK-D12")
                rule = own.get(column, "NPK-D40" if column in sheet.covariates else rule)
            findings.add(rule, line=int(sheet.lines[row]), column=column, id=sheet.ids[row], value=cell)
    return faulty


def _cell_faults(sheet: Sheet) -> Iterator[Fault]:
    yield "NPK-D13", "ID", sheet.ids == ""
    lengths = {name: len(name) for name in set(sheet.ids)}
    yield "NPK-D07", "ID", np.array([lengths[name] > MAX_CELL for name in sheet.ids], dtype=bool)
    for column, (low, high) in _CODES.items():
        if column == "DVID" and sheet.layout.endpoint:
            continue
        values = sheet.column(column, missing=0.0)
        yield "NPK-D12", column, (values != np.round(values)) | (values < low) | (values > high)
    yield "NPK-D29", "CMT", sheet.column("CMT") < 0
    yield "NPK-D20", "EVID", ~(np.isin(sheet.column("EVID", missing=0.0), (0, 1, 2, 3, 4)) | is_classic(sheet))


def _without_units(sheet: Sheet, findings: Findings) -> Sheet:
    """The sheet without a first row that holds texts where all others have numbers; it is one fault."""
    units = {name: texts[0] for name, texts in sheet.texts.items() if name in ("TIME", "AMT", "DV") and [*texts] == [0]}
    if len(units) < 2 or len(sheet) == 1:
        return sheet
    name, unit = next(iter(units.items()))
    detail = (
        f"{', '.join(units.values())} may be the units of the columns: ignore='{name} == {unit}' leaves the row out"
    )
    findings.add("NPK-D10", line=int(sheet.lines[0]), column=name, value=unit, detail=detail)
    texts = {name: {row - 1: cell for row, cell in of.items() if row} for name, of in sheet.texts.items()}
    return replace(sheet.take(np.arange(1, len(sheet))), texts=texts)


def _gathered(sheet: Sheet, findings: Findings) -> Sheet:
    """The sheet with the rows of each subject put together, where that was asked for."""
    if not sheet.layout.sort:
        return sheet
    first = dict[str, int]()
    places = np.array([first.setdefault(name, row) for row, name in enumerate(sheet.ids)])
    order = np.argsort(places, kind="stable")
    moved = int((order != np.arange(len(order))).sum())
    if not moved:
        return sheet
    findings.warn("NPK-D50", f"{moved} rows moved to the others of their subject")
    return sheet.take(order)


def sound_rows(sheet: Sheet, findings: Findings) -> Sheet:
    """Note every cell that breaks a rule by itself and leave its row out, so that no later rule trips over it."""
    faulty = _check_texts(sheet, findings)
    # a text stands as NaN in the numbers, and is not to be called missing as well
    missing_time = np.isnan(sheet.column("TIME"))
    missing_time[list(sheet.texts.get("TIME", {}))] = False
    faulty |= _report(iter([("NPK-D15", "TIME", missing_time)]), sheet, findings)
    faulty |= _report(_cell_faults(sheet), sheet, findings)
    return with_plain_events(_gathered(sheet.take(~faulty) if faulty.any() else sheet, findings), findings)


def _record_faults(records: Records) -> Iterator[Fault]:
    sheet, dose, constant = records.sheet, records.dose, records.constant
    amount, rate, duration, interval, additional, steady = (
        sheet.column(name, missing=0.0) for name in ("AMT", "RATE", "DUR", "II", "ADDL", "SS")
    )
    unknown = np.isnan(sheet.column("AMT")) & ~constant
    yield "NPK-D21", "DV", records.measured & np.isnan(sheet.column("DV"))
    yield "NPK-D22", "AMT", dose & (amount <= 0) & ~constant & ~unknown & ~records.placebo
    yield "NPK-D23", "AMT", dose & unknown
    yield "NPK-D24", "AMT", ~dose & (amount != 0)
    modelled = np.isin(rate, (MODELLED_RATE, MODELLED_DURATION))
    yield "NPK-D25", "RATE", dose & modelled & (duration > 0)
    yield "NPK-D30", "RATE", dose & (rate < 0) & ~modelled
    yield "NPK-D30", "DUR", dose & (duration < 0)
    yield "NPK-D30", "II", dose & (interval < 0)
    both = dose & (rate > 0) & (duration > 0)
    # 1e-6: a duration is often written with few digits less than double precision holds
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        agree = np.abs(amount - duration * rate) <= 1e-6 * amount
        lasts = np.where(rate > 0, amount / rate, duration)
        yield "NPK-D32", "II", dose & (steady > 0) & (interval > 0) & (lasts > MOST_OVERLAPPING * interval)
    yield "NPK-D26", "DUR", both & ~agree
    yield "NPK-D27", "ADDL", dose & (additional > 0) & (interval == 0)
    yield "NPK-D28", "SS", dose & (steady > 0) & (interval == 0) & ~constant & (amount > 0)
    yield "NPK-D12", "DVID", records.observation & (sheet.column("DVID") == 0)
    censored, limit, value = sheet.column("CENS", missing=0.0), sheet.column("LIMIT"), sheet.column("DV")
    crossed = ((censored > 0) & (limit >= value)) | ((censored < 0) & (limit <= value))
    yield "NPK-D31", "LIMIT", records.measured & crossed
    if not sheet.layout.lloq or "lloq" in sheet.numbers:  # a number is the limit of every row
        named = ~np.isnan(sheet.column("lloq"))
        yield "NPK-D34", "DV", records.measured & (censored != 0) & (value == 0) & ~named
    unstated = np.isnan(sheet.column("MDV")) & (records.evid == 0) & np.isnan(value)
    yield "NPK-D34", "DV", unstated & (censored != 0)


def _check_counts(records: Records, findings: Findings) -> None:
    """Note subjects with more doses than a solver can hold."""
    sheet = records.sheet
    written = records.given * (1.0 + sheet.column("ADDL", missing=0.0))
    total = np.bincount(records.run, weights=written)
    for run in np.flatnonzero(total > _MOST_DOSES):
        row = int(np.argmax(records.run == run))
        detail = f"{int(total[run]):,} doses with their additional ones"
        findings.add("NPK-D33", line=int(sheet.lines[row]), column="ADDL", id=sheet.ids[row], detail=detail)


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


def checked_records(sheet: Sheet, time_unit: str, findings: Findings) -> Records:
    """The records of a sheet that break no rule.

    Raises:
        DataError: any fault, of the sheet or of its records.
    """
    sheet, limited = with_limits(with_elapsed_time(_without_units(sheet, findings), time_unit, findings))
    if sheet.layout.lloq:
        findings.note(f"limit of quantification by {sheet.layout.lloq}: {limited} values with CENS 1")
    sheet = with_levels(with_limits_as_text(sheet, findings), findings)
    records = derive(sound_rows(sheet, findings))
    if len(records):
        records = with_endpoints(records, findings)
        _report(_record_faults(records), records.sheet, findings)
        _suggest_limits(records, findings)
        _check_counts(records, findings)
        _check_runs(records, findings)
        check_values(records, findings)
        records = with_one_clock(records, findings)
        warn_of_flags(records, findings)
        warn_of_repeated_doses(records, findings)
    findings.raise_any()
    return records


def _suggest_limits(records: Records, findings: Findings) -> None:
    """Name the column that may hold the limits that DV lacks."""
    names = [name for name in LIMITS if name in records.sheet.labels]
    if names and any(finding.rule == "NPK-D34" for finding in findings.found):
        findings.add("NPK-D34", column=names[0], detail=f"column {names[0]} may hold it: lloq={names[0]}")
