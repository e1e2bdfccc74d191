"""Times of day and dates in TIME, as time since midnight of each subject's first day."""

from __future__ import annotations

import dataclasses
import datetime
import re

import numpy as np

from neuralpk.cohort import FloatArray
from neuralpk.tables.cells import cell_text, number
from neuralpk.tables.faults import Findings
from neuralpk.tables.layout import DATES
from neuralpk.tables.sheet import Sheet

_CLOCK = re.compile(r"(\d{1,2}):(\d{2})(?::(\d{2}(?:\.\d+)?))?(?: ?([AP])\.?M\.?)?", re.ASCII | re.IGNORECASE)
_DATE = re.compile(r"(\d{1,4})[-/.](\d{1,2})[-/.](\d{1,4})", re.ASCII)

UNITS = {"h": 3600.0, "hour": 3600.0, "hours": 3600.0, "min": 60.0, "minute": 60.0, "minutes": 60.0}
UNITS |= {"s": 1.0, "second": 1.0, "seconds": 1.0, "d": 86400.0, "day": 86400.0, "days": 86400.0}
"""Seconds in the units of time that clock times can be converted to."""


def _seconds(text: str) -> float | None:
    """Seconds since midnight."""
    found = _CLOCK.fullmatch(text.strip())
    if found is None:
        return None
    hours, minutes, seconds = int(found[1]), int(found[2]), float(found[3] or 0)
    if found[4]:
        if not 1 <= hours <= 12:
            return None
        hours = hours % 12 + (12 if found[4].upper() == "P" else 0)  # 12:30 AM is half past midnight
    return hours * 3600.0 + minutes * 60.0 + seconds if hours < 24 and minutes < 60 and seconds < 60 else None


def _day(text: str, order: str) -> int | None:
    """Number of a day: of a date, or the number itself."""
    text = re.sub(r"[T ]00:00(:00(\.0+)?)?$", "", text.strip())
    found = _DATE.fullmatch(text)
    if found is None:
        plain = number(text)
        return int(plain) if plain is not None and plain == plain and plain.is_integer() else None
    parts = found.groups()
    if len(parts[0]) == 4:
        order = "ydm" if order == "ydm" else "ymd"
    if not order:
        return None
    of = dict(zip(order, parts, strict=True))
    year = int(of["y"]) + (2000 if len(of["y"]) <= 2 and int(of["y"]) < 70 else 1900 if len(of["y"]) <= 2 else 0)
    try:
        return datetime.date(year, int(of["m"]), int(of["d"])).toordinal()
    except ValueError:
        return None


def _both(text: str, order: str) -> tuple[int, float] | None:
    """Day and seconds of ``2020-01-31 08:30``, ``2020-01-31T08:30:00`` or ``2020-01-31T08:30:00Z``."""
    date, gap, clock = re.sub(r"(\d)T(\d[\d:.]*)Z?", r"\1 \2", text.strip()).partition(" ")
    day, seconds = _day(date, order) if gap else None, _seconds(clock)
    return None if day is None or seconds is None or not _DATE.fullmatch(date) else (day, seconds)


def with_elapsed_time(sheet: Sheet, unit: str, findings: Findings) -> Sheet:
    """The sheet with times of day as numbers, where TIME has any; all rows must then be written alike."""
    texts = sheet.texts.get("TIME", {})
    order = sheet.layout.dates
    if not any(_seconds(text) is not None or _both(text, order or "ymd") is not None for text in texts.values()):
        return sheet
    name = next((name for name in DATES if name in sheet.labels), None)
    order = order or (DATES[name] if name else "")
    seconds = np.full(len(sheet), np.nan)
    faulty: dict[int, str] = {}
    cells = [texts.get(row, cell_text(value)) for row, value in enumerate(sheet.numbers["TIME"].tolist())]
    for row, cell in enumerate(cells):
        whole = _both(cell, order)
        clock = _seconds(cell)
        if whole is not None:
            seconds[row] = whole[0] * 86400.0 + whole[1]
        elif clock is not None and name is None:
            seconds[row] = clock
        elif clock is not None and name is not None:
            number_of_day = _day(sheet.labels[name][row], order)
            if number_of_day is None:
                faulty[row] = f"{name} is {sheet.labels[name][row]!r}"
            else:
                seconds[row] = number_of_day * 86400.0 + clock
        elif cell:
            faulty[row] = f"TIME is {cell!r} among times of day"
    for row, detail in faulty.items():
        findings.add("NPK-D18", line=int(sheet.lines[row]), column="TIME", id=sheet.ids[row], detail=detail)
    if unit.lower() not in UNITS:
        findings.add("NPK-D18", column="TIME", detail=f"times of day cannot be converted to the unit {unit!r}")
    day = 86400.0 * np.floor(_first_of_subject(sheet, seconds) / 86400.0)
    count = int(np.isfinite(seconds).sum())
    by = f" with the day of {name}" if name else ""
    if count:
        findings.warn("NPK-D18", f"{count} × time of day{by}, read as {unit} since midnight of the subject's first day")
    time: FloatArray = (seconds - day) / UNITS.get(unit.lower(), 3600.0)
    kept = {column: of for column, of in sheet.texts.items() if column != "TIME"}
    left = {row: cells[row] for row in faulty}
    return dataclasses.replace(sheet.with_numbers(TIME=time), texts=kept | ({"TIME": left} if left else {}))


def _first_of_subject(sheet: Sheet, seconds: FloatArray) -> FloatArray:
    """The first known time of the subject of each row."""
    first: dict[str, float] = {}
    for name, value in zip(sheet.ids, seconds.tolist(), strict=True):
        if value == value:
            first.setdefault(name, value)
    return np.array([first.get(name, 0.0) for name in sheet.ids])
