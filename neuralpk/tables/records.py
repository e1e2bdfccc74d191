"""Records: the rows of a sheet, each with its meaning."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from neuralpk.cohort import FloatArray, IntArray
from neuralpk.tables.cells import number
from neuralpk.tables.faults import Findings
from neuralpk.tables.sheet import Sheet

BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class Records:
    """The rows of a sheet, each with its meaning.

    Args:
        sheet: the rows.
        evid: 0 to 4, filled in where it was missing, ``[row]``.
        mdv: 0 or 1, filled in where it was missing, ``[row]``.
        emptied: rows before which the compartments are emptied, because the clock restarts there, ``[row]``.
    """

    sheet: Sheet
    evid: IntArray
    mdv: IntArray
    emptied: BoolArray = field(default_factory=lambda: np.zeros(0, dtype=bool))

    def __post_init__(self) -> None:
        if len(self.emptied) < len(self.sheet):
            object.__setattr__(self, "emptied", np.zeros(len(self.sheet), dtype=bool))

    def __len__(self) -> int:
        return len(self.sheet)

    @property
    def dose(self) -> BoolArray:
        """Rows that give a dose, or a placebo."""
        return np.asarray((self.evid == 1) | (self.evid == 4))

    @property
    def constant(self) -> BoolArray:
        """Rows of a constant infusion at steady state."""
        column = self.sheet.column
        asked = (column("SS") == 1) & (column("RATE") > 0) & (column("II", 0.0) == 0)
        return np.asarray(self.dose & asked & (column("AMT", 0.0) == 0))

    @property
    def placebo(self) -> BoolArray:
        """Rows of a dose with AMT 0."""
        nothing = (self.sheet.column("AMT") == 0) & ~(self.sheet.column("RATE") > 0)
        return np.asarray(self.dose & nothing)

    @property
    def reset(self) -> BoolArray:
        """Rows that empty the compartments: EVID 3 and 4, and a steady state of nothing."""
        return np.asarray((self.evid >= 3) | (self.placebo & (self.sheet.column("SS") == 1)))

    @property
    def given(self) -> BoolArray:
        """Rows that give a dose record of the cohort: a dose of something, or a reset."""
        return np.asarray((self.dose & ~self.placebo) | self.reset)

    @property
    def measured(self) -> BoolArray:
        """Rows whose DV is read; a dose may stand on the same row."""
        return np.asarray((self.mdv == 0) & (self.dose | (self.evid == 0)))

    @property
    def observation(self) -> BoolArray:
        """Rows that give an observation record: a measured value or a wanted prediction; a placebo is one, so that the
        clock of its subject begins as that of the others."""
        return np.asarray(self.measured | (self.evid == 0) | (self.evid == 2) | (self.placebo & ~self.reset))

    @cached_property
    def run(self) -> IntArray:
        """Number of the stretch of rows with one ID that each row belongs to."""
        ids = self.sheet.ids
        return np.concatenate([[0], np.cumsum(ids[1:] != ids[:-1])])

    def take(self, rows: IntArray) -> Records:
        """The rows in another order."""
        return dataclasses.replace(
            self, sheet=self.sheet.take(rows), evid=self.evid[rows], mdv=self.mdv[rows], emptied=self.emptied[rows]
        )


def derive(sheet: Sheet) -> Records:
    """Fill in EVID and MDV where they are missing.

    Without EVID, AMT or a constant infusion at steady state makes a dose. Without MDV, DV counts where it is given,
    unless EVID says that the row is a dose and nothing else.
    """
    given = sheet.column("EVID")
    amount, value = sheet.column("AMT", missing=0.0), sheet.column("DV")
    dosed = (amount != 0) | ((sheet.column("SS") == 1) & (sheet.column("RATE") > 0))
    evid = np.where(np.isnan(given), dosed, given).astype(np.int64)
    mdv = np.where(np.isnan(value) | (given > 0), 1, 0)
    stated = sheet.column("MDV")
    return Records(sheet, evid, np.where(np.isnan(stated), mdv, stated).astype(np.int64))


def with_limits_as_text(sheet: Sheet, findings: Findings) -> Sheet:
    """The sheet with ``<0.5`` in DV as a value below the limit 0.5 (CENS 1), and ``>50`` as one above 50 (CENS -1),
    where CENS does not say otherwise."""
    texts, decimal = dict(sheet.texts.get("DV", {})), sheet.layout.decimal
    value, stated = sheet.column("DV").copy(), sheet.column("CENS", 0.0)
    censored = stated.copy()
    counts = {"<": 0, ">": 0}
    for row, cell in list(texts.items()):
        sign, limit = cell.strip()[:1], number(cell.strip()[1:], decimal)
        code = {"<": 1.0, ">": -1.0}.get(sign, np.nan)
        if limit is None or np.isnan(code * limit) or stated[row] not in (code, 0.0):
            continue
        value[row], censored[row] = limit, code
        counts[sign] += 1
        del texts[row]
    found = ", ".join(f"{count} × {sign}NUMBER" for sign, count in counts.items() if count)
    if not found:
        return sheet
    findings.warn("NPK-D64", f"DV has {found}")
    kept = {name: of for name, of in sheet.texts.items() if name != "DV"} | ({"DV": texts} if texts else {})
    return dataclasses.replace(sheet.with_numbers(DV=value, CENS=censored), texts=kept)


def with_limits(sheet: Sheet) -> tuple[Sheet, int]:
    """The sheet with the limit of quantification as the DV of the rows with CENS 1, where a limit was named, and how
    many rows have got it."""
    asked = sheet.layout.lloq
    if not asked:
        return sheet, 0
    limit: FloatArray = sheet.column("lloq") if "lloq" in sheet.numbers else np.full(len(sheet), float(asked))
    below = (sheet.column("CENS") == 1) & ~np.isnan(limit)
    return sheet.with_numbers(DV=np.where(below, limit, sheet.column("DV"))), int(below.sum())
