"""Endpoints: which quantity a value is of, by DVID or by a column that is named."""

from __future__ import annotations

import dataclasses

import numpy as np

from neuralpk.tables.cells import MISSING, number
from neuralpk.tables.faults import Findings
from neuralpk.tables.layout import ENDPOINTS
from neuralpk.tables.records import BoolArray, Records


def with_endpoints(records: Records, findings: Findings) -> Records:
    """The records with the number of the endpoint in DVID, where a column was named for it; other columns that look
    like one are suggested and not taken."""
    sheet = records.sheet
    if not sheet.layout.endpoint:
        _suggest(records, findings)
        return records
    labels, measured = sheet.labels["endpoint"], records.measured
    found = list(dict.fromkeys(labels[measured & (labels != "")].tolist()))
    plain = [number(label) for label in found]
    if all(value is not None for value in plain):
        found = [label for _, label in sorted(zip(plain, found, strict=True))]
    codes = {label: place for place, label in enumerate(found, start=1)}
    for row in np.flatnonzero(measured & (labels == "")):
        place = {"line": int(sheet.lines[row]), "column": sheet.layout.endpoint, "id": sheet.ids[row]}
        findings.add("NPK-D19", **place, detail=f"no endpoint in {sheet.layout.endpoint}")
    said = ", ".join(f"{place} is {label}" for label, place in codes.items())
    findings.note(f"endpoints by {sheet.layout.endpoint}: {said}")
    columns = {"DVID": np.array([float(codes.get(label, 1)) for label in labels])}
    if sheet.layout.endpoint.upper() == "CMT":  # it says what is measured, and no longer where
        columns["CMT"] = np.where(records.observation & ~records.dose, np.nan, sheet.column("CMT"))
    return dataclasses.replace(records, sheet=sheet.with_numbers(**columns))


def _several(labels: np.ndarray, measured: BoolArray) -> list[str]:
    found = list(dict.fromkeys(label for label in labels[measured].tolist() if label not in MISSING))
    return found if 1 < len(found) <= 20 else []


def _suggest(records: Records, findings: Findings) -> None:
    sheet, measured = records.sheet, records.measured
    if "DVID" in sheet.numbers:
        return
    for name in ENDPOINTS:
        if name in sheet.labels and (found := _several(sheet.labels[name], measured)):
            findings.warn("NPK-D60", f"column {name} has {', '.join(found[:6])}")
    compartments = sheet.column("CMT")[measured]
    of_each = {int(c): int((compartments == c).sum()) for c in np.unique(compartments[~np.isnan(compartments)])}
    if len(of_each) > 1:
        findings.warn("NPK-D60", "values under " + ", ".join(f"CMT {c} ({n})" for c, n in of_each.items()))
