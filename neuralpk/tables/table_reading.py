"""From an event table to a cohort: `read_table`."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import pandas as pd

from neuralpk.cohort import Cohort, Units
from neuralpk.tables.checked_records import checked_records
from neuralpk.tables.cohort_building import build
from neuralpk.tables.faults import DataError, DataWarning, Findings
from neuralpk.tables.sheet import Sheet, from_frame, read_csv


def _read_parquet(path: Path, findings: Findings) -> pd.DataFrame:
    try:
        return pd.read_parquet(path)
    except ImportError as error:
        raise ImportError("Parquet files need pyarrow: pip install 'neuralpk[parquet]'") from error
    except (ValueError, OSError) as error:
        findings.add("NPK-D01", detail=str(error))
        raise DataError(findings.found) from error


def _sheet(
    source: str | Path | pd.DataFrame,
    columns: Mapping[str, str] | None,
    covariates: Sequence[str] | None,
    needed: Collection[str],
    findings: Findings,
) -> Sheet:
    if isinstance(source, pd.DataFrame):
        return from_frame(source, columns, covariates, needed, findings)
    path = Path(source)
    if path.suffix.lower() == ".parquet":
        return from_frame(_read_parquet(path, findings), columns, covariates, needed, findings)
    if path.suffix.lower() not in (".csv", ".txt"):
        findings.add("NPK-D01", value=path.suffix, detail=f"the file ends in {path.suffix!r}")
        findings.raise_any()
    return read_csv(path, columns, covariates, needed, findings)


def read_table(
    path_or_frame: str | Path | pd.DataFrame,
    *,
    columns: Mapping[str, str] | None = None,
    compartments: Sequence[str] | None = None,
    covariates: Sequence[str] | None = None,
    units: Units = Units(),  # noqa: B008  # immutable
    sort: bool = False,
    needed: Mapping[str, float | None] = MappingProxyType({}),
) -> Cohort:
    """Read an event table; every fault in it is found before any is raised.

    ID, TIME and DV are needed; EVID, MDV, AMT, RATE, DUR (or TINF), II, ADDL, SS, CMT, DVID, CENS and LIMIT are read
    where they stand, in either case. Missing EVID and MDV are derived from AMT and DV. Records of equal time act in the
    order of their rows; an observation on the row of a dose is read before it. What is kept in an unusual way, or
    left out, is counted in a `DataWarning`.

    Args:
        path_or_frame: CSV (``.csv``, ``.txt``, comma-separated), Parquet (``.parquet``) or a data frame.
        columns: names in the table to names here, for those that differ.
        compartments: names that CMT uses, in the order of their numbers from 1.
        covariates: which columns are covariates; None for every column that has no other meaning.
        units: of the table; nothing is converted.
        sort: put the rows of each subject in order of TIME instead of refusing a table that is not.
        needed: covariates that a model reads, whatever `covariates` says, with the value for a subject in whom one is
            not recorded; None where such a subject is refused.

    Returns:
        The subjects in the order of the table.

    Raises:
        DataError: a rule of `RULES` is broken.
        FileNotFoundError: no file at the path.
    """
    findings = Findings("" if isinstance(path_or_frame, pd.DataFrame) else Path(path_or_frame).name)
    sheet = _sheet(path_or_frame, columns, covariates, needed, findings)
    records = checked_records(sheet, compartments, sort, findings)
    cohort = build(records, units, needed, findings)
    for message in findings.warnings:
        warnings.warn(message, DataWarning, stacklevel=2)
    return cohort
