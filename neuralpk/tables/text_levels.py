"""Covariates that are texts: for each level a covariate that is 1 where the text says it, else 0."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from neuralpk.tables.faults import Findings
from neuralpk.tables.sheet import Sheet

_MOST_LEVELS = 50


def with_levels(sheet: Sheet, findings: Findings) -> Sheet:
    """The sheet with ``RACE=Asian``, ``RACE=White``, … instead of a named covariate RACE whose cells are texts.

    Where a model names its levels, every other text is a fault: the patient would be taken for one of the reference.
    """
    asked = sheet.layout.covariates or ()
    numbers, texts, covariates = dict(sheet.numbers), dict(sheet.texts), list(sheet.covariates)
    for column in sheet.covariates:
        known = [name.partition("=")[2] for name in asked if name.startswith(f"{column}=")]
        cells = {row: cell.strip() for row, cell in sheet.texts.get(column, {}).items()}
        as_numbers = np.flatnonzero(~np.isnan(sheet.numbers[column]))
        if known:
            wrong = {row: cell for row, cell in cells.items() if cell not in known}
            wrong |= {int(row): f"{sheet.numbers[column][row]:g}" for row in as_numbers}
            for row, cell in wrong.items():
                place = {"line": int(sheet.lines[row]), "column": column, "id": sheet.ids[row], "value": cell}
                findings.add("NPK-D43", **place, detail=f"{column} is {cell!r}; the model has {', '.join(known)}")
        elif column not in asked or not cells or len(as_numbers):
            continue
        levels = known or sorted(set(cells.values()))
        if len(levels) > _MOST_LEVELS:
            continue
        for level in levels:
            found = np.full(len(sheet), np.nan)
            found[[*cells]] = [float(cell == level) for cell in cells.values()]
            numbers[f"{column}={level}"] = found
        shares = ", ".join(f"{level} ({sum(cell == level for cell in cells.values())})" for level in levels)
        findings.note(f"{column} has the levels {shares} (rows); each is a covariate {column}=LEVEL that is 1 or 0")
        place_of = covariates.index(column)
        covariates[place_of : place_of + 1] = [f"{column}={level}" for level in levels]
        del numbers[column]
        texts.pop(column, None)
    return replace(sheet, numbers=numbers, texts=texts, covariates=tuple(covariates))
