"""Values that are not what they seem: codes of missing, covariates that copy DV, flags that nobody reads."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from neuralpk.cohort import FloatArray
from neuralpk.tables.cells import cell_text
from neuralpk.tables.faults import Findings
from neuralpk.tables.layout import FLAGS
from neuralpk.tables.records import BoolArray, Records

_NEGATIVE = (-9.0, -99.0, -999.0, -9999.0, -99999.0)
_POSITIVE = (999.0, 9999.0, 99999.0, 999999.0)
_BEYOND = 3.0  # times the largest other value
_DISTINCT = 8  # values in one order by chance: 1 in 40,320


def missing_codes(values: FloatArray) -> Iterator[tuple[float, BoolArray]]:
    """Codes of missing among the values, each with its rows: a negative code among values that are not, or a large one
    that stands there repeatedly and far above all others."""
    others = values[~np.isnan(values) & ~np.isin(values, (*_NEGATIVE, *_POSITIVE))]
    if not len(others):
        return
    for code in (*_NEGATIVE, *_POSITIVE):
        rows = values == code
        if not rows.any():
            continue
        if code < 0 and (others >= 0).all() and (code != -9 or rows.sum() > 1):
            yield code, rows
        if code > 0 and rows.sum() > 1 and code > _BEYOND * np.abs(others).max():
            yield code, rows


def _copies(covariate: FloatArray, value: FloatArray) -> bool:
    """Whether a covariate is a function of the value that never falls: DV itself, its logarithm, DV in another unit."""
    known = ~np.isnan(covariate) & ~np.isnan(value)
    covariate, value = covariate[known], value[known]
    distinct = len(np.unique(value))
    if distinct >= 3 and (covariate == value).all():
        return True
    order = np.lexsort((covariate, value))
    rises = bool((np.diff(covariate[order]) >= 0).all())
    return distinct >= _DISTINCT and rises and len(np.unique(covariate)) >= 0.8 * distinct


def check_values(records: Records, findings: Findings) -> None:
    """Note codes of missing in DV and the covariates, and covariates that copy DV."""
    sheet, measured = records.sheet, records.measured
    value = np.where(measured, sheet.column("DV"), np.nan)
    for name in ("DV", *sheet.covariates):
        of = np.where(sheet.column("CENS", 0.0) == 0, value, np.nan) if name == "DV" else sheet.column(name)
        for code, rows in missing_codes(of):
            for row in np.flatnonzero(rows):
                place = {"line": int(sheet.lines[row]), "column": name, "id": sheet.ids[row]}
                said = cell_text(code)
                findings.add("NPK-D35", **place, value=said, detail=f"{name} is {said}: map={name}:{said}=.")
    for name in sheet.covariates:
        if _copies(sheet.column(name), value):
            findings.add("NPK-D42", column=name, detail=f"{name} rises with DV, row by row")


def warn_of_repeated_doses(records: Records, findings: Findings) -> None:
    """Say where AMT stands beside the DV of every sample, which gives as many doses."""
    sheet, measured = records.sheet, records.measured
    amounts = np.where(measured & records.dose & np.isnan(sheet.column("EVID")), sheet.column("AMT", 0.0), 0.0)
    runs, own = records.run[measured], amounts[measured]
    samples = np.bincount(runs)
    least, most = np.full(len(samples), np.inf), np.zeros(len(samples))
    np.minimum.at(least, runs, own)
    np.maximum.at(most, runs, own)
    same = (samples > 2) & (least == most) & (most > 0)
    if same.any():
        repeated = int(samples[same].sum())
        findings.warn("NPK-D63", f"AMT stands on all samples of a subject, which gives {repeated:,} doses")


def warn_of_flags(records: Records, findings: Findings) -> None:
    """Say which columns hold what CENS should."""
    sheet = records.sheet
    if "CENS" in sheet.numbers:
        return
    for name in FLAGS:
        labels = sheet.labels.get(name)
        if labels is None or name in sheet.covariates:
            continue
        marked = np.array([label not in ("", "0", "0.0", "N", "n") for label in labels]) & (records.evid == 0)
        if marked.any():
            other = set(labels[marked].tolist()) - {"1", "1.0"}
            codes = f", map={name}:{min(other)}=1" if other else ""
            findings.warn("NPK-D61", f"column {name} marks {int(marked.sum())} samples: columns=CENS={name}{codes}")
