"""What the table of a report holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from neuralpk.diagnostics.style import with_unit
from neuralpk.report.tables_and_figures import ReportFigure, ReportTable, digits, svg
from neuralpk.table_check import TableCheck
from neuralpk.table_figure import draw

_COLUMNS = {"low": "lowest", "median": "median", "high": "highest"}


@dataclass(frozen=True)
class DataSection:
    """Data of a report.

    Args:
        tables: counts, endpoints, covariates.
        figure: the values.
        warnings: what was left out or read in an unusual way, and why.
        notes: how the table was read.
    """

    tables: list[ReportTable]
    figure: ReportFigure
    warnings: list[str]
    notes: list[str]


def data_section(check: TableCheck, data: dict[str, pd.DataFrame]) -> DataSection:
    """The data of a table without faults.

    Args:
        check: of the table.
        data: takes the frames of the figures by name.
    """
    cohort, content = check.cohort, check.content
    assert cohort is not None
    units = cohort.units
    unit = units.value if {*content["endpoints"]} <= {"1"} else ""  # of other endpoints it is not known
    tables = [
        ReportTable("Content", ("", "number"), _counts(content, units.amount)),
        ReportTable("Spread over the patients", ("", *_COLUMNS.values()), _spreads(content, units.time, units.amount)),
        ReportTable(
            with_unit("Endpoints", unit),
            ("DVID", "values", *_COLUMNS.values(), "below the limit"),
            [
                (str(endpoint), f"{of['values']:,}", *_span(of), f"{100 * of['below_limit']:.1f} %")
                for endpoint, of in content["endpoints"].items()
            ],
        ),
    ]
    if content["covariates"]:
        rows = [
            (name, *_span(of), f"{100 * of['missing']:.1f} %", f"{of['changes_in']:,}")
            for name, of in content["covariates"].items()
        ]
        heads = ("covariate", *_COLUMNS.values(), "missing rows", "patients in whom it changes")
        tables.append(ReportTable("Covariates", heads, rows))
    rows = [
        (subject.id, time, value, endpoint, below)
        for subject in cohort
        for time, value, endpoint, below in zip(
            subject.times, subject.values, subject.endpoints, subject.censored, strict=True
        )
        if value == value
    ]
    data["data"] = pd.DataFrame(rows, columns=["ID", "TIME", "DV", "DVID", "CENS"])
    doses = ", ".join(f"{count:,} × {kind}" for kind, count in content["doses"].items()) or "none"
    values = data["data"]["DV"]
    span = f"from {digits(values.min(), 3)} to {digits(values.max(), 3)} {unit}".rstrip()
    text = (
        f"{content['values']:,} values of {content['subjects']:,} patients against the time since the first record of "
        f"each, coloured by the first dose; {span}, "
        f"median {digits(values.median(), 3)}; doses: {doses}."
    )
    figure = ReportFigure("data", "All values", text, {"all": svg(draw(cohort, check.arms), "data")}, "data")
    said = [line.partition(": ") for line in check.notes]
    return DataSection(tables, figure, [_mended(line) for line in check.warnings], [rest for _, _, rest in said])


def _mended(warning: str) -> str:
    """A warning without the name of the file, which the whole section is about."""
    rule, _, rest = warning.partition(" ")
    return f"{rest.partition(': ')[2]} ({rule})"


def _span(numbers: Mapping[str, float]) -> list[str]:
    return [digits(numbers[name]) for name in _COLUMNS]


def _counts(content: Mapping[str, Any], amount: str) -> list[tuple[str, str]]:
    rows = [
        ("patients", f"{content['subjects']:,}"),
        ("records", f"{content['records']:,}"),
        ("measured values", f"{content['values']:,}"),
        ("wanted predictions", f"{content['wanted_predictions']:,}"),
    ]
    rows += [(f"doses: {kind}", f"{count:,}") for kind, count in content["doses"].items()]
    return rows + [(f"arm {name}", f"{count:,}") for name, count in content["arms"].items()]


def _spreads(content: Mapping[str, Any], time: str, amount: str) -> list[tuple[str, ...]]:
    rows = [
        ("values of a patient", *_span(content["samples_of_a_subject"])),
        (with_unit("time from the first to the last record", time), *_span(content["time_of_a_subject"])),
    ]
    return rows + ([(with_unit("amount of a dose", amount), *_span(content["amounts"]))] if content["doses"] else [])
