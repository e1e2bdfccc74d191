"""A table before any model: what was read, what is wrong, and a picture by dose and arm."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from neuralpk.cohort import Cohort, FloatArray, Subject, Units
from neuralpk.diagnostics import style
from neuralpk.tables import DataError, Finding
from neuralpk.tables.cohort_building import build
from neuralpk.tables.faults import Findings, summary
from neuralpk.tables.layout import Layout
from neuralpk.tables.records import Records
from neuralpk.tables.table_reading import read_records

_COLOURS = (style.BLUE, style.ORANGE, style.GREEN, style.VERMILLION, style.PURPLE, style.SKY)
_MOST_PANELS = 9


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
            found += ["", f"{len(self.faults):,} faults:", *(f"  {line}" for line in summary(self.faults))]
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


def _dose_of(subject: Subject) -> float:
    """First amount that is given, 0 for none."""
    return next((dose.amount for dose in subject.doses if dose.amount), 0.0)


def _levels(cohort: Cohort) -> dict[str, str]:
    """Dose level of each subject: its first amount, in at most six groups."""
    first = {subject.id: _dose_of(subject) for subject in cohort}
    distinct = sorted(set(first.values()))
    if len(distinct) <= len(_COLOURS):
        return {name: f"{amount:g}" for name, amount in first.items()}
    edges = np.quantile(list(first.values()), np.linspace(0, 1, 5))
    group = {
        name: int(np.clip(np.searchsorted(edges, amount, side="right") - 1, 0, 3)) for name, amount in first.items()
    }
    within = {k: [first[name] for name in group if group[name] == k] for k in range(4)}
    return {name: f"{min(within[k]):.3g} to {max(within[k]):.3g}" for name, k in group.items()}


def draw(cohort: Cohort, arms: Mapping[str, str]) -> Figure:
    """Values of every subject against the time since its first record, a panel for each endpoint and arm, coloured by
    the first dose; values below the limit as open triangles.

    Args:
        cohort: the subjects, with at least one measured value.
        arms: arm of each subject; empty for one.
    """
    levels = _levels(cohort)
    first = {levels[subject.id]: _dose_of(subject) for subject in sorted(cohort, key=_dose_of, reverse=True)}
    order = sorted(first, key=lambda level: first[level])
    colour = {level: _COLOURS[k % len(_COLOURS)] for k, level in enumerate(order)}
    endpoints = sorted({int(e) for s in cohort for e in np.unique(s.endpoints[s.observed])})
    names = list(dict.fromkeys(arms.get(name, "") for name in cohort.ids))
    panels = [(endpoint, arm) for endpoint in endpoints for arm in names][:_MOST_PANELS]
    columns = min(len(names) if len(names) > 1 else len(panels), 3)
    rows = -(-len(panels) // columns)
    figure, axes = style.new_figure(rows, columns, width=style.WIDTH, height=3.2 * rows + 0.8)
    logarithmic = {endpoint: _is_wide(cohort, endpoint) for endpoint in endpoints}
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, (endpoint, arm) in zip(axes.flat, panels, strict=False):
        own = [subject for subject in cohort if arms.get(subject.id, "") == arm]
        _draw_panel(axis, own, endpoint, {s.id: colour[levels[s.id]] for s in own}, cohort.units)
        every = _values(cohort, endpoint)
        # the arms of an endpoint have one scale
        style.set_range(axis, "y", every, log=logarithmic[endpoint])
        if logarithmic[endpoint]:
            style.log_scale(axis, "y")
            style.note_hidden(axis, _values(own, endpoint))
        style.set_range(axis, "x", *[s.times - s.start for s in cohort])
        style.time_axis(axis, cohort.units.time)
        axis.set_xlabel(style.with_unit("Time since the first record", cohort.units.time))
        title = [f"arm {arm}"] if arm else []
        title += [f"endpoint {endpoint}"] if len(endpoints) > 1 else []
        measured = sum(bool((s.observed & (s.endpoints == endpoint)).any()) for s in own)
        axis.set_title(", ".join([*title, f"{measured} subjects"]), fontsize=style.TEXT)
    shown = axes.flat[0]
    for level in order:
        label = f"first dose {level} {cohort.units.amount}".strip() if first[level] else "no dose"
        shown.plot([], [], color=colour[level], lw=1.6, marker="o", ms=3, label=label)
    if any((subject.censored > 0).any() for subject in cohort):
        shown.plot([], [], color=style.GREY, lw=0, marker="v", mfc="white", ms=4, label="below the limit")
    style.legend_on_top(figure, list(axes.flat[: len(panels)]), columns=4)
    return figure


def _values(subjects: Iterable[Subject], endpoint: int) -> FloatArray:
    """The values of an endpoint."""
    return np.concatenate([s.values[s.observed & (s.endpoints == endpoint)] for s in subjects])


def _is_wide(cohort: Cohort, endpoint: int) -> bool:
    """Whether the values span more than a factor of 20, so that a logarithmic axis shows them better."""
    values = _values(cohort, endpoint)
    positive = values[values > 0]
    return len(positive) > 0.8 * len(values) and bool(np.quantile(positive, 0.98) > 20 * np.quantile(positive, 0.02))


def _draw_panel(axis: Any, subjects: list[Subject], endpoint: int, colour: Mapping[str, str], units: Units) -> None:
    many = len(subjects) > 60
    for subject in subjects:
        own = subject.observed & (subject.endpoints == endpoint)
        t, y, below = subject.times[own] - subject.start, subject.values[own], subject.censored[own] > 0
        line = {"color": colour[subject.id], "alpha": 0.35 if many else 0.7, "lw": 0.6 if many else 0.9}
        axis.plot(t, y, **line, zorder=2)
        axis.plot(t[~below], y[~below], **line | {"lw": 0}, marker="o", ms=1.6 if many else 2.6, zorder=2)
        axis.plot(t[below], y[below], lw=0, marker="v", ms=4, mfc="white", mec=colour[subject.id], mew=0.8, zorder=3)
    axis.set_ylabel(style.with_unit("DV", units.value if endpoint == 1 else ""))
