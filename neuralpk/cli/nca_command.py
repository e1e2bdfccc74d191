"""``neuralpk nca``: non-compartmental analysis of a table, or of curves under its doses; without torch."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from neuralpk.atomic_files import refuse_unwritable
from neuralpk.cli.csv_files import write_csv
from neuralpk.cli.faults import UsageError
from neuralpk.cli.outputs import refuse_results
from neuralpk.cohort import Units
from neuralpk.noncompartmental import nca as analyse
from neuralpk.noncompartmental import summarise, wide

_SHOWN = (
    *("CMAX", "TMAX", "AUCLST", "AUCIFO", "LAMZHL", "CLFO", "CLO", "VZFO", "VZO"),
    *("AUCTAU", "CTROUGH", "CLFTAU", "CLTAU", "ARAUC"),
)


def nca(
    table: Path,
    out: Path,
    curves: Path | None = None,
    value: str = "IPRED",
    route: Literal["extravascular", "bolus"] = "extravascular",
    auc: Literal["linear-up/log-down", "linear"] = "linear-up/log-down",
    below: Literal["missing", "zero"] = "missing",
    terminal: list[float] | dict[str, list[float]] | None = None,
    steady_from: float | None = None,
    units: list[str] | None = None,
    overwrite: bool = False,
    **reading: Any,
) -> None:
    """Analyse every profile of an event table without a model: AUC, CMAX, half-life, clearance; per dosing interval
    with several doses.

    Args:
        table: file with the columns ID, TIME, AMT, DV, … of an event table.
        out: folder for nca.csv (a row for each profile), nca_long.csv (a row for each parameter, CDISC names with
            units) and nca_summary.csv (over subjects).
        curves: file with curves to analyse instead of the samples, such as curves.csv of ``reconstruct``.
        value: column of the curves.
        route: of doses without RATE and DUR; the others are infusions.
        auc: trapezoidal rule.
        below: what a value below the limit (CENS 1) is after the first measurable one; before, it is 0.
        terminal: times since the dose of the samples that determine lambda z, [4, 6, 8], or by subject
            {1: [4, 6, 8]}; null for the best adjusted R².
        steady_from: time from which on doses are at steady state; those with SS always are.
        units: of time, amount and value, [h, mg, mg/L].
        overwrite: replace results that are in that folder.
        reading: how the table is read.
    """
    paths = [out / name for name in ("nca.csv", "nca_long.csv", "nca_summary.csv")]
    for path in paths:
        refuse_unwritable(path)
    refuse_results(out, paths, overwrite)
    lines = None if curves is None else pd.read_csv(curves, dtype={"ID": str})
    try:
        given = Units.of(units) if units is not None else Units()
    except ValueError as error:
        raise UsageError(f"--units: {error}") from error
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = analyse(
            table,
            curves=lines,
            value=value,
            route=route,
            auc=auc,
            below=below,
            terminal=terminal,
            steady_from=steady_from,
            units=given,
            **reading,
        )
    if (found["ROUTE"] == "extravascular").any():
        print("Doses without RATE and DUR are analysed as extravascular; --route bolus for injections.")
    summary = summarise(found)
    for frame, path in zip((wide(found), found, summary), paths, strict=True):
        write_csv(frame, path)
    shown = summary[summary["PPTESTCD"].isin(_SHOWN) & summary["DOSE"].isin((1, summary["DOSE"].max()))]
    columns = [
        *(["DVID"] if "DVID" in shown else []),
        "DOSE",
        "PPTESTCD",
        "PPSTRESU",
        "N",
        "GMEAN",
        "GCV",
        "MEDIAN",
        "MIN",
        "MAX",
    ]
    print(shown[columns].to_string(index=False, float_format=lambda x: f"{x:.4g}", na_rep="-"))
    for one in said:
        print(f"warning: {one.message}")
    profiles = len(found.drop_duplicates(["ID", "DOSE"]))
    print(f"{found['ID'].nunique()} subjects, {profiles} profiles: {', '.join(map(str, paths))}")
