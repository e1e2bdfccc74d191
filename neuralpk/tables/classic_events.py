"""Classic event codes of RxODE (EVID 101, 10101, …) as what they say: compartment, infusion, steady state."""

from __future__ import annotations

import numpy as np

from neuralpk.tables.faults import Findings
from neuralpk.tables.records import BoolArray
from neuralpk.tables.sheet import Sheet

_STEADY = (1, 10, 20)
"""Last two digits of a code: a plain dose, SS 1, SS 2."""


def is_classic(sheet: Sheet) -> BoolArray:
    """Rows whose EVID is a classic code."""
    codes = sheet.column("EVID", missing=0.0)
    return np.asarray((codes > 100) & (codes < 10_000_000) & (codes == np.round(codes)))


def with_plain_events(sheet: Sheet, findings: Findings) -> Sheet:
    """The sheet with classic codes written as EVID 1 with CMT, SS, RATE and AMT.

    A classic code has the digits k i cc ss: compartment k·100 + cc, i 1 for an infusion, ss 01 for a plain dose, 10 for
    SS 1 and 20 for SS 2. The AMT of an infusion is its rate, and a second record with the negative rate ends it.
    """
    codes, classic = sheet.column("EVID", missing=0.0), is_classic(sheet)
    if not classic.any():
        return sheet
    code = np.where(classic, codes, 0).astype(np.int64)
    kind, steady = code // 10_000 % 10, code % 100
    compartment = code // 100_000 * 100 + code // 100 % 100
    stated, amount = sheet.column("CMT"), sheet.column("AMT", missing=0.0)
    plain = classic & (kind == 0) & np.isin(steady, _STEADY) & (compartment > 0)
    infused = classic & (kind == 1) & (steady == 1) & (compartment > 0)
    wrong = classic & ~plain & ~infused
    wrong |= classic & ~np.isnan(stated) & (stated != 0) & (stated != compartment)
    durations, ends = np.zeros(len(sheet)), np.zeros(len(sheet), dtype=bool)
    open_: dict[tuple[str, int, float], list[int]] = {}
    time = sheet.column("TIME")
    for row in np.flatnonzero(infused):
        key = (sheet.ids[row], int(code[row]), abs(float(amount[row])))
        if amount[row] > 0:
            open_.setdefault(key, []).append(int(row))
        elif open_.get(key):
            start = open_[key].pop(0)
            durations[start], ends[row] = time[row] - time[start], True
        else:
            wrong[row] = True
    for rows in open_.values():
        wrong[rows] = True
    for row in np.flatnonzero(wrong):
        findings.add("NPK-D20", line=int(sheet.lines[row]), column="EVID", id=sheet.ids[row], value=str(code[row]))
    said = ", ".join(str(value) for value in np.unique(code[classic]))
    findings.warn("NPK-D20", f"{int(classic.sum())} × classic code ({said})")
    infused &= ~ends
    given = plain | infused
    kept = ~ends & ~wrong
    old_ss = sheet.column("SS", missing=0.0)
    read = sheet.with_numbers(
        EVID=np.where(given, 1.0, sheet.column("EVID")),
        CMT=np.where(given, compartment, stated),
        SS=np.where(given & (steady != 1), steady // 10, old_ss),
        RATE=np.where(infused, amount, sheet.column("RATE", missing=0.0)),
        AMT=np.where(infused, amount * durations, sheet.column("AMT")),
    )
    return read.take(kept)
