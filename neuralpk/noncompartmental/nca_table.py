"""Non-compartmental analysis of an event table, or of curves under its doses, as a table of CDISC parameters."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from neuralpk.cohort import Cohort, Units
from neuralpk.noncompartmental.cdisc_names import PARAMETERS, unit_of
from neuralpk.noncompartmental.profile_analysis import (
    AUCRule,
    Route,
    analyse_dosing_interval,
    analyse_single_dose,
)
from neuralpk.noncompartmental.profiles import Below, Profile, profiles, profiles_of_curves
from neuralpk.tables import read_table

_NAMED = 10
_KEYS = ["ID", "DVID", "DOSE", "TIME", "AMT", "ROUTE"]
_NOT_GEOMETRIC = ("TMAX", "TMIN", "TLST", "LAMZNPT", "LAMZLL", "LAMZUL", "R2ADJ")

Terminal = Sequence[float] | Mapping[str, Sequence[float]] | None


def nca(
    table: str | Path | pd.DataFrame | Cohort,
    *,
    curves: pd.DataFrame | None = None,
    value: str = "IPRED",
    route: Route = "extravascular",
    auc: AUCRule = "linear-up/log-down",
    below: Below = "missing",
    terminal: Terminal = None,
    steady_from: float | None = None,
    units: Units = Units(),  # noqa: B008  # immutable
    **reading: Any,
) -> pd.DataFrame:
    """Analyse every profile of a table: one for each dose, from the dose to the next.

    After the first dose: CMAX, TMAX, AUCLST, AUCIFO, LAMZ, clearance and volume, … (`analyse_single_dose`). Where a
    dosing interval is known (the next dose, II, or the interval before the last dose): AUCTAU, CMIN, CTROUGH, CAVG,
    FLUCP, SWING, … (`analyse_dosing_interval`), at steady state the clearance dose / AUCTAU, and beside a first dose
    of the same amount and interval the ratios of accumulation ARAUC and ARCMAX.

    Values below the limit of quantification (CENS 1) are 0 before the first measurable one of their profile. A sample
    at the time of a dose ends the interval before and, unless the dose is a bolus, begins the next. Replicates are
    averaged.

    Args:
        table: event table or cohort, with the doses and, without `curves`, the samples.
        curves: curves or simulated values to analyse instead of the samples, with ID, TIME, a column of values and,
            with several endpoints, DVID; such as of ``neuralpk reconstruct``.
        value: the column of values of the curves.
        route: of doses without rate and duration: "extravascular" or "bolus"; the others are infusions.
        auc: trapezoidal rule, "linear-up/log-down" or "linear".
        below: what a value below the limit is after the first measurable one: "missing" or "zero".
        terminal: times since the dose of the samples that determine LAMZ, for all subjects or by subject; None for the
            stretch of three or more with the best adjusted R².
        steady_from: time from which on doses are at steady state; doses with SS always are.
        units: of the table.
        reading: how the table is read, as of `neuralpk.tables.read_table`.

    Returns:
        One row for each parameter: ID, DVID, DOSE (its number in the subject), TIME and AMT of the dose, ROUTE,
        PPTESTCD, PPTEST, PPSTRESN (NaN: not determined by the data), PPSTRESU. What could not be analysed is said in
        one warning.

    Raises:
        ValueError: no profile; an argument that cannot be; a column that is missing; a subject of `terminal` or of
            `curves` that is not in the table.
        neuralpk.tables.DataError: a rule of event tables is broken.
    """
    _refuse(route, auc, below)
    cohort = table if isinstance(table, Cohort) else read_table(table, units=units, **reading)
    notes: list[str] = []
    if curves is not None:
        everybody = cohort.ids
        cohort = profiles_of_curves(cohort, _lines(curves, value))
        absent = [name for name in everybody if name not in cohort.ids]
        if absent:
            notes.append(f"no curve of subject {_listed(absent)}")
    if isinstance(terminal, Mapping):
        terminal = {str(name): times for name, times in terminal.items()}
        unknown = [name for name in terminal if name not in cohort.ids]
        if unknown:
            raise ValueError(f"terminal names subject {', '.join(unknown)}, who is not in the table")
    rows: list[dict[str, Any]] = []
    no_slope: list[str] = []
    firsts: dict[tuple[str, int], dict[str, float]] = {}
    for profile in profiles(cohort, route, below, steady_from, notes):
        found = _analyse(profile, auc, terminal.get(profile.id) if isinstance(terminal, Mapping) else terminal)
        key = (profile.id, profile.endpoint)
        if profile.first:
            firsts[key] = found | {"AMT": profile.dose}
        elif key in firsts:
            found |= _accumulation(found, firsts[key], profile.dose)
        if not found["LAMZNPT"]:
            dose = f" dose {profile.number}" if profile.number > 1 else ""
            endpoint = f" DVID {profile.endpoint}" if profile.endpoint > 1 else ""
            no_slope.append(f"subject {profile.id}{dose}{endpoint}")
        rows += [_row(profile, code, found[code], cohort.units) for code in PARAMETERS if code in found]
    if not rows:
        raise ValueError(f"no profile could be analysed: {'; '.join(notes[:_NAMED]) or 'the table has no value'}")
    if no_slope:
        notes.insert(
            0, f"LAMZ and what rests on it not determined (no falling line through samples): {_listed(no_slope)}"
        )
    if notes:
        more = f"; and {len(notes) - _NAMED} more" if len(notes) > _NAMED else ""
        warnings.warn("; ".join(notes[:_NAMED]) + more, stacklevel=2)
    frame = pd.DataFrame(rows)
    return frame if frame["DVID"].nunique() > 1 else frame.drop(columns="DVID")


def wide(parameters: pd.DataFrame) -> pd.DataFrame:
    """The table of `nca` with one row for each profile and a column for each PPTESTCD."""
    keys = [name for name in _KEYS if name in parameters]
    order = [code for code in PARAMETERS if code in set(parameters["PPTESTCD"])]
    subjects = parameters.drop_duplicates(keys)[keys]
    values = parameters.pivot(index=keys, columns="PPTESTCD", values="PPSTRESN")[order].reset_index()
    values.columns.name = None
    return subjects.merge(values, on=keys, how="left").reset_index(drop=True)


def summarise(parameters: pd.DataFrame) -> pd.DataFrame:
    """The table of `nca` over subjects: for each dose and PPTESTCD the number of values N, MEAN, SD, geometric mean
    GMEAN with its coefficient of variation GCV (%), MEDIAN, MIN and MAX; no geometric ones for times and counts."""
    keys = [*(["DVID"] if "DVID" in parameters else []), "DOSE", "ROUTE", "PPTESTCD", "PPTEST", "PPSTRESU"]
    rows = []
    for key, group in parameters.groupby(keys, sort=False, dropna=False):
        values = group["PPSTRESN"].dropna().to_numpy()
        positive = len(values) > 0 and bool((values > 0).all()) and group["PPTESTCD"].iloc[0] not in _NOT_GEOMETRIC
        logs = np.log(values) if positive else np.array([np.nan])
        several = len(values) > 1
        rows.append(
            dict(zip(keys, key, strict=True))
            | {
                "N": len(values),
                "MEAN": values.mean() if len(values) else np.nan,
                "SD": values.std(ddof=1) if several else np.nan,
                "GMEAN": np.exp(logs.mean()),
                "GCV": 100 * np.sqrt(np.expm1(logs.var(ddof=1))) if several and positive else np.nan,
                "MEDIAN": np.median(values) if len(values) else np.nan,
                "MIN": values.min() if len(values) else np.nan,
                "MAX": values.max() if len(values) else np.nan,
            }
        )
    return pd.DataFrame(rows)


def _refuse(route: str, auc: str, below: str) -> None:
    for name, given, known in (
        ("route", route, ("extravascular", "bolus")),
        ("auc", auc, ("linear-up/log-down", "linear")),
        ("below", below, ("missing", "zero")),
    ):
        if given not in known:
            hint = "; a dose with RATE or DUR is an infusion" if name == "route" else ""
            raise ValueError(f"{name} is {' or '.join(known)}, not {given!r}{hint}")


def _lines(curves: pd.DataFrame, value: str) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    missing = [name for name in ("ID", "TIME", value) if name not in curves]
    if missing:
        raise ValueError(f"the curves have no column {', '.join(missing)}; they have {', '.join(map(str, curves))}")
    endpoints = curves["DVID"] if "DVID" in curves else pd.Series(1, curves.index)
    kept = curves.assign(DVID=endpoints)[curves[value].notna()]
    return {
        str(name): (
            group["TIME"].to_numpy(np.float64),
            group[value].to_numpy(np.float64),
            group["DVID"].to_numpy(np.int64),
        )
        for name, group in kept.groupby("ID", sort=False)
    }


def _analyse(profile: Profile, auc: AUCRule, terminal: Sequence[float] | None) -> dict[str, float]:
    common: dict[str, Any] = {
        "route": profile.route,
        "auc": auc,
        "infusion_duration": profile.duration,
        "terminal": terminal,
    }
    found: dict[str, float] = {}
    # NaN and infinity are results here: not determined
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        try:
            if np.isfinite(profile.tau):
                found |= analyse_dosing_interval(
                    profile.times,
                    profile.values,
                    profile.dose,
                    profile.tau,
                    steady_state=profile.steady,
                    empty_before=profile.first,
                    **common,
                )
            if profile.first or not found:
                found |= analyse_single_dose(profile.times, profile.values, profile.dose, **common)
        except ValueError as error:
            raise ValueError(f"subject {profile.id}, dose {profile.number}: {error}") from error
    return found


def _accumulation(found: Mapping[str, float], first: Mapping[str, float], dose: float) -> dict[str, float]:
    """Ratios to the first dose, where amount and interval are the same."""
    if first["AMT"] != dose or not np.isclose(first.get("TAU", np.nan), found.get("TAU", np.nan)):
        return {}
    return {"ARAUC": found["AUCTAU"] / first["AUCTAU"], "ARCMAX": found["CMAX"] / first["CMAX"]}


def _row(profile: Profile, code: str, value: float, units: Units) -> dict[str, Any]:
    return {
        "ID": profile.id,
        "DVID": profile.endpoint,
        "DOSE": profile.number,
        "TIME": profile.start,
        "AMT": profile.dose,
        "ROUTE": profile.route,
        "PPTESTCD": code,
        "PPTEST": PARAMETERS[code][0],
        "PPSTRESN": float(value),
        "PPSTRESU": unit_of(code, units),
    }


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (f" (+{len(names) - _NAMED} more)" if len(names) > _NAMED else "")
