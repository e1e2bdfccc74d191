"""From an event table to a cohort: `read_table`."""

from __future__ import annotations

import dataclasses
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pandas as pd

from neuralpk.cohort import Cohort, Units
from neuralpk.tables import frames, text_files
from neuralpk.tables.checked_records import checked_records
from neuralpk.tables.cohort_building import build
from neuralpk.tables.faults import DataWarning, Findings
from neuralpk.tables.frames import from_frame
from neuralpk.tables.layout import Layout
from neuralpk.tables.parquet_parts import TablePart
from neuralpk.tables.records import Records
from neuralpk.tables.sheet import Sheet

_log = logging.getLogger(__package__)


def _sheet(source: str | Path | pd.DataFrame | TablePart, layout: Layout, findings: Findings) -> Sheet:
    if isinstance(source, pd.DataFrame):
        return from_frame(source, layout, findings)
    if isinstance(source, TablePart):
        return from_frame(source.rows, layout, findings, source.first_row)
    path = Path(source)
    kind = text_files.ending(path)
    if path.suffix.lower() in frames.ENDINGS:
        return frames.read_binary(path, layout, findings)
    if kind not in text_files.ENDINGS:
        findings.add("NPK-D01", value=path.suffix, detail=f"the file ends in {path.suffix!r}")
        findings.raise_any()
    separator = layout.separator or ("\t" if kind in (".tsv", ".tab") else ",")
    return text_files.read_text(path, dataclasses.replace(layout, separator=separator), findings)


def read_records(
    source: str | Path | pd.DataFrame | TablePart, layout: Layout, units: Units, findings: Findings
) -> Records:
    """The records of a table, with everything that is to be said of them in the findings.

    Raises:
        DataError: a rule of `RULES` is broken.
    """
    sheet = _sheet(source, layout, findings)
    return checked_records(sheet.anonymous() if layout.anonymous else sheet, units.time, findings)


def read_table(
    path_or_frame: str | Path | pd.DataFrame | TablePart,
    *,
    columns: dict[str, str] | str | list[str] | None = None,
    covariates: list[str] | str | None = None,
    endpoint: str | None = None,
    occasion: str | None = None,
    lloq: float | str | None = None,
    map: dict[str, dict[str, str]] | str | list[str] | None = None,
    ignore: str | list[str] | None = None,
    separator: str | None = None,
    decimal: str = ".",
    dates: str | None = None,
    compartments: list[str] | None = None,
    units: Units = Units(),  # noqa: B008  # immutable
    sort: bool = False,
    impute: dict[str, str | float] | str | None = None,
    carry: str = "forward",
    needed: Mapping[str, float | None] = MappingProxyType({}),
) -> Cohort:
    """Read an event table; every fault in it is found before any is raised.

    ID, TIME and DV are needed; EVID, MDV, AMT, RATE, DUR (or TINF), II, ADDL, SS, CMT, DVID, CENS and LIMIT are read
    where they stand, in either case. Missing EVID and MDV are derived from AMT and DV. Records of equal time act in the
    order of their rows; an observation on the row of a dose is read before it. What is kept in an unusual way, or
    left out, is counted in a `DataWarning`; how the table was read goes to the logger ``neuralpk.tables``.

    Args:
        path_or_frame: a data frame, or a file: text (``.csv``, ``.txt``, ``.dat``, ``.tsv``, ``.tab``; also ``.gz``),
            ``.parquet``, ``.pq``, ``.xlsx``, ``.xpt`` or ``.sas7bdat``; or a part of a Parquet file (`ParquetParts`).
        columns: our names = theirs, where they differ: ``DV=LIDV,ID=SUBJ`` or ``{"DV": "LIDV"}``; ``adppk`` for the
            names of CDISC's ADPPK.
        covariates: which columns are covariates, ``WT,AGE`` or a list; ``all`` for every column of numbers that has no
            other meaning; none by default. A column of texts, as RACE, becomes a covariate ``RACE=LEVEL`` for each
            level, which is 1 or 0.
        endpoint: column that says which endpoint a value belongs to, by number or text, instead of DVID.
        occasion: column that says the occasion of each row, for variability between occasions; at its new value the
            clock may restart, instead of at that of OCC and PERIOD.
        lloq: column, or number, that is the limit of quantification of the values with CENS 1; by default DV is.
        map: codes to be read as others, ``SS:99=0,DV:9999=.`` or ``{"SS": {"99": "0"}}``.
        ignore: rows to leave out: ``FLAG == 1``, several with a comma (one is enough) or ``and``; ``@``, ``#`` and
            ``C`` for comments as in NONMEM.
        separator: between cells, ``comma``, ``semicolon``, ``tab`` or ``space``; by default what the name of the file
            says.
        decimal: sign in numbers, ``.`` or ``,``.
        dates: order of dates that do not begin with the year: ``dmy``, ``mdy``, ``ymd`` or ``ydm``.
        compartments: names that CMT uses, in the order of their numbers from 1.
        units: of the table; nothing is converted but times of day.
        sort: put the rows of each subject in order of TIME instead of refusing a table that is not.
        impute: what stands for a covariate that is missing in a whole subject, which is refused otherwise:
            ``WT=median,SEX=mode,AGE=40``, or ``median`` for all; of the subjects of this table.
        carry: a covariate that changes in time has its last value until the next one (``forward``), or the next value
            from the record before it on (``backward``, as in NONMEM).
        needed: covariates that a model reads, whatever `covariates` says, with the value for a subject in whom one is
            not recorded: None where such a subject is refused, NaN where it stays without a value.

    Returns:
        The subjects in the order of the table.

    Raises:
        DataError: a rule of `RULES` is broken.
        ValueError: an argument that cannot be.
        FileNotFoundError: no file at the path.
    """
    layout = Layout.of(
        columns=columns, covariates=covariates, endpoint=endpoint, occasion=occasion, lloq=lloq, map=map, ignore=ignore,
        separator=separator, decimal=decimal, dates=dates, compartments=compartments, sort=sort, impute=impute,
        carry=carry,
    )  # fmt: skip
    layout = dataclasses.replace(layout, optional=tuple(needed))
    findings = Findings(_file_name(path_or_frame))
    records = read_records(path_or_frame, layout, units, findings)
    cohort = build(records, units, needed, findings)
    if not (isinstance(path_or_frame, TablePart) and path_or_frame.first_subject):  # the first part has said it
        for message in findings.notes:
            _log.info("%s", message)
    for message in findings.warnings:
        warnings.warn(message, DataWarning, stacklevel=2)
    return cohort


def _file_name(source: str | Path | pd.DataFrame | TablePart) -> str:
    """Name of the file of a table, for messages; empty for a data frame."""
    if isinstance(source, TablePart):
        return source.file
    return "" if isinstance(source, pd.DataFrame) else Path(source).name
