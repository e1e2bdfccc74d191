"""A table before any model: what was read, and what is wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd

from neuralpk.cohort import Cohort, Subject, Units
from neuralpk.tables import DataError, Finding
from neuralpk.tables.cohort_building import build
from neuralpk.tables.faults import Findings, summary
from neuralpk.tables.layout import Layout
from neuralpk.tables.records import Records
from neuralpk.tables.table_reading import read_records


@dataclass(frozen=True)
class TableCheck:
    """What `check_table` found.

    Args:
        table: name of the file; empty for a data frame.
        faults: rules that are broken; with any, there is no cohort.
        warnings: what is read in an unusual way, or left out.
        notes: how the table was read.
        content: subjects, records, values, doses by kind, endpoints, covariates, arms.
        cohort: the subjects; None for a table with faults.
        arms: arm of each subject, by its identifier.
    """

    table: str
    faults: list[Finding]
    warnings: list[str]
    notes: list[str]
    content: dict[str, Any] = field(default_factory=dict)
    cohort: Cohort | None = None
    arms: dict[str, str] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """As a dictionary of numbers, texts and lists."""
        faults = [asdict(finding) for finding in self.faults]
        said = {"table": self.table, "faults": faults, "warnings": self.warnings, "notes": self.notes}
        return said | {"content": self.content}

    def lines(self) -> list[str]:
        """As a text."""
        found = [self.table or "data frame"]
        found += [f"  {line}" for line in _content_lines(self.content)]
        found += [f"  {note.partition(': ')[2]}" for note in self.notes]
        if self.warnings:
            found += ["", "Read in an unusual way:", *(f"  {warning}" for warning in self.warnings)]
        if self.faults:
            found += [
                "",
                f"{len(self.faults):,} fault{'s' * (len(self.faults) != 1)}:",
                *(f"  {line}" for line in summary(self.faults)),
            ]
        return [*found, "" if self.faults else "\nNo rule is broken."]


def check_table(
    table: str | Path | pd.DataFrame,
    *,
    arm: str | None = None,
    units: Units = Units(),  # noqa: B008  # immutable
    needed: Mapping[str, float | None] = MappingProxyType({}),
    anonymous: bool = False,
    **layout: Any,
) -> TableCheck:
    """Read a table and say what is in it; a fault is a finding and no error.

    Args:
        table: a data frame, or the path of a file.
        arm: column of the arms of the study.
        units: of the table.
        needed: covariates that a model reads, as of `neuralpk.tables.read_table`.
        anonymous: name subjects by their order in the table, and not the file.
        layout: how the table is read, as of `neuralpk.tables.read_table`: `columns`, `covariates`, `map`, …

    Raises:
        FileNotFoundError: no file at the path.
        ValueError: an argument that cannot be.
        TypeError: an argument that `read_table` does not have.
    """
    labels = (arm,) if arm else ()
    read_as = replace(Layout.of(**layout), labels=labels, optional=tuple(needed), anonymous=anonymous)
    name = "" if isinstance(table, pd.DataFrame) or anonymous else Path(table).name
    findings = Findings(name)
    try:
        records = read_records(table, read_as, units, findings)
        cohort = build(records, units, needed, findings)
    except DataError as error:
        return TableCheck(name, error.findings, findings.warnings, findings.notes)
    arms = _arms(records, arm)
    content = _content(records, cohort, arms)
    return TableCheck(name, [], findings.warnings, findings.notes, content, cohort, arms)


def _arms(records: Records, arm: str | None) -> dict[str, str]:
    if not arm:
        return {}
    pairs = zip(records.sheet.ids, records.sheet.labels[arm], strict=True)
    return {name: label for name, label in reversed(list(pairs)) if label}


def _kind(subject: Subject) -> Counter[str]:
    kinds: Counter[str] = Counter()
    for dose in subject.doses:
        if dose.amount == 0 and dose.rate == 0:
            kinds["reset"] += 1
            continue
        kind = "infusion" if dose.rate or dose.duration else "bolus or oral dose"
        kinds[kind + (" at steady state" if dose.steady_state else "")] += 1
        kinds["additional dose (ADDL)"] += dose.additional
    return +kinds


def _range(values: np.ndarray) -> dict[str, float]:
    return {"low": float(values.min()), "median": float(np.median(values)), "high": float(values.max())}


def _content(records: Records, cohort: Cohort, arms: Mapping[str, str]) -> dict[str, Any]:
    sheet = records.sheet
    values = np.concatenate([subject.values for subject in cohort])
    endpoints = np.concatenate([subject.endpoints for subject in cohort])
    below = np.concatenate([subject.censored for subject in cohort]) > 0
    measured = ~np.isnan(values)
    spans = np.array([subject.times[-1] - subject.start for subject in cohort])
    covariates: dict[str, Any] = {}
    for name in sheet.covariates:
        known = sheet.numbers[name][~np.isnan(sheet.numbers[name])]
        steps = [isinstance(subject.covariates[name], tuple) for subject in cohort]
        missing = float(np.isnan(sheet.numbers[name]).mean())
        covariates[name] = _range(known) | {"missing": missing, "changes_in": int(sum(steps))}
    return {
        "subjects": len(cohort),
        "records": len(records),
        "values": int(measured.sum()),
        "wanted_predictions": int((~measured).sum()),
        "samples_of_a_subject": _range(np.array([float(subject.observed.sum()) for subject in cohort])),
        "time_of_a_subject": _range(spans),
        "doses": dict(sum((_kind(subject) for subject in cohort), Counter())),
        "amounts": _range(np.array([d.amount for s in cohort for d in s.doses if d.amount] or [0.0])),
        "endpoints": {
            str(endpoint): _range(values[own]) | {"values": int(own.sum()), "below_limit": float(below[own].mean())}
            for endpoint in np.unique(endpoints[measured])
            for own in [measured & (endpoints == endpoint)]
        },
        "covariates": covariates,
        "arms": dict(Counter(arms[name] for name in cohort.ids if name in arms)),
    }


def _content_lines(content: Mapping[str, Any]) -> list[str]:
    if not content:
        return []

    def span(numbers: Mapping[str, float]) -> str:
        return f"{numbers['low']:g} to {numbers['high']:g}, median {numbers['median']:g}"

    doses = ", ".join(f"{count:,} × {kind}" for kind, count in content["doses"].items()) or "none"
    lines = [
        f"subjects: {content['subjects']:,}   records: {content['records']:,}   values: {content['values']:,}"
        f"   wanted predictions: {content['wanted_predictions']:,}",
        f"values of a subject: {span(content['samples_of_a_subject'])}",
        f"time of a subject: {span(content['time_of_a_subject'])}",
        f"doses: {doses}" + (f"; AMT {span(content['amounts'])}" if content["doses"] else ""),
    ]
    for endpoint, of in content["endpoints"].items():
        below = f", {100 * of['below_limit']:.1f} % below the limit" if of["below_limit"] else ""
        lines.append(f"endpoint {endpoint}: {of['values']:,} values, {span(of)}{below}")
    for name, of in content["covariates"].items():
        gaps = f", missing in {100 * of['missing']:.1f} % of the rows" if of["missing"] else ""
        steps = f", changes in {of['changes_in']} subjects" if of["changes_in"] else ""
        lines.append(f"covariate {name}: {span(of)}{gaps}{steps}")
    if content["arms"]:
        lines.append("arms: " + ", ".join(f"{name} ({count})" for name, count in content["arms"].items()))
    return lines
