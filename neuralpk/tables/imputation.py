"""Covariates that are missing in a whole subject: the value that was asked for."""

from __future__ import annotations

import numpy as np

from neuralpk.cohort import FloatArray
from neuralpk.tables.faults import Findings
from neuralpk.tables.records import Records


def imputed_values(records: Records, rows: list[slice], findings: Findings) -> dict[str, float]:
    """Value of each covariate for the subjects in whom it is not recorded, where one was asked for.

    Args:
        records: of the table.
        rows: of each subject.
        findings: takes how many subjects get it.
    """
    sheet, asked = records.sheet, records.sheet.layout.impute
    found: dict[str, float] = {}
    for name in sheet.covariates:
        how = asked.get(name, asked.get(name.partition("=")[0], asked.get("")))
        firsts = [_first(sheet.numbers[name][one]) for one in rows]
        known = np.array([value for value in firsts if not np.isnan(value)])
        lacking = len(firsts) - len(known)
        if how is None or not lacking:
            continue
        if how in ("median", "mode"):
            if not len(known):
                continue
            found[name] = float(np.median(known)) if how == "median" else _mode(sheet.numbers, name, rows, known)
        else:
            found[name] = float(how)
        findings.warn("NPK-D62", f"{lacking} of {len(rows)} subjects with {name} = {found[name]:g} ({how})")
    return found


def _first(values: FloatArray) -> float:
    known = values[~np.isnan(values)]
    return float(known[0]) if len(known) else float("nan")


def _mode(numbers: dict[str, FloatArray], name: str, rows: list[slice], known: FloatArray) -> float:
    """The most frequent value; of a level of a text, whether it is the most frequent of its levels."""
    column, is_level, _ = name.partition("=")
    if not is_level:
        values, counts = np.unique(known, return_counts=True)
        return float(values[counts.argmax()])
    same = [one for one in numbers if one.startswith(f"{column}=")]
    subjects = [sum(_first(numbers[one][part]) == 1 for part in rows) for one in same]
    return float(same[int(np.argmax(subjects))] == name)
