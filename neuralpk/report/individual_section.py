"""A page for each patient: plots, covariates, parameters, and how well the patient is described."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from neuralpk.cohort import Cohort, Subject, Units, written_out
from neuralpk.diagnostics.plots import Panel
from neuralpk.evaluation import Evaluation
from neuralpk.report.individual_plots import individual_plot, number_and_unit
from neuralpk.report.tables_and_figures import ReportTable, digits


@dataclass(frozen=True)
class IndividualCard:
    """Page of one patient.

    Args:
        id: identifier.
        covariates: values by name, several of one that changes.
        fit: root mean square of the residuals, by which the worst come first: IWRES, of a model without a residual
            error relative to the mean value; 0 without values.
        plots: with linear and with logarithmic values, of each endpoint.
        text: covariates, doses and errors in words.
        table: parameters; None for a patient who could not be solved.
    """

    id: str
    covariates: Mapping[str, list[float]]
    fit: float
    plots: list[Markup]
    text: str
    table: ReportTable | None


@dataclass(frozen=True)
class IndividualSection:
    """Individuals of a report.

    Args:
        cards: of every patient, in the order of the table.
        covariates: by which they can be filtered.
        data: names of the frames of the section.
    """

    cards: list[IndividualCard]
    covariates: tuple[str, ...]
    data: tuple[str, ...]


def individual_section(evaluation: Evaluation, cohort: Cohort, data: dict[str, pd.DataFrame]) -> IndividualSection:
    """Pages of all patients.

    Args:
        evaluation: of the model on the cohort.
        cohort: the patients.
        data: takes the frames of the section by name.
    """
    data |= {"curves": evaluation.curves, "individuals": evaluation.individuals, "records": evaluation.records}
    curves = dict(iter(evaluation.curves.groupby("ID", sort=False)))
    records = dict(iter(evaluation.records.groupby("ID", sort=False)))
    values = {row["ID"]: row for row in evaluation.individuals.to_dict("records")}
    nothing = evaluation.records.iloc[:0]
    cards = [
        _card(subject, curves[subject.id], records.get(subject.id, nothing), values[subject.id], evaluation)
        for subject in cohort
        if subject.id in values
    ]
    return IndividualSection(cards, tuple(cohort.covariate_names), ("individuals", "curves", "records"))


def _card(
    subject: Subject, curves: pd.DataFrame, records: pd.DataFrame, values: Mapping[Any, Any], evaluation: Evaluation
) -> IndividualCard:
    covariates = {name: _levels(subject, name) for name in subject.covariates}
    error = _relative_error(records)
    fit = float(np.sqrt(np.square(records["IWRES"].dropna()).mean())) if records["IWRES"].notna().any() else error
    plots = []
    endpoints = sorted(curves["DVID"].unique())
    for endpoint in endpoints:
        panel = _panel(subject, curves[curves["DVID"] == endpoint], int(endpoint))
        of = f", endpoint {endpoint}" if len(endpoints) > 1 else ""
        own = evaluation.units_of(int(endpoint))
        title = f"Individual {subject.id}{of}: {_in_words(panel, own)}"
        plots += [individual_plot(panel, own, title, log) for log in (False, True)]
    table = _table(values, subject.id)
    text = _text(subject, covariates, records, error, evaluation.units, table is None)
    return IndividualCard(subject.id, covariates, round(fit, 4) if fit == fit else 0.0, plots, text, table)


def _levels(subject: Subject, name: str) -> list[float]:
    given = subject.covariates[name]
    found = [value for _, value in given] if isinstance(given, tuple) else [float(given)]
    return [float(f"{value:.6g}") for value in dict.fromkeys(found)]


def _relative_error(records: pd.DataFrame) -> float:
    """Root mean square of IPRED − DV over the mean of DV."""
    known = records[records["IRES"].notna()]
    scale = float(known["DV"].abs().mean()) if len(known) else float("nan")
    return float(np.sqrt(np.square(known["IRES"]).mean())) / scale if scale else float("nan")


def _panel(subject: Subject, curves: pd.DataFrame, endpoint: int) -> Panel:
    own = (subject.endpoints == endpoint) & subject.observed
    times, pred, ipred, lower, upper = (
        curves[name].to_numpy(float) for name in ("TIME", "PRED", "IPRED", "LO90", "HI90")
    )
    return Panel(
        id=subject.id,
        times=times,
        ipred=ipred,
        lower=lower,
        upper=upper,
        pred=pred,
        observed_times=subject.times[own],
        observed_values=subject.values[own],
        seen=own[own],
        censored=subject.censored[own] > 0,
        dose_times=np.array([dose.time for dose in written_out(subject.doses) if dose.amount or dose.rate]),
    )


def _in_words(panel: Panel, units: Units) -> str:
    values = panel.observed_values
    if not len(values):
        return "no samples"
    low, high = digits(values.min(), 3), digits(values.max(), 3)
    most = digits(np.nanmax(panel.ipred), 3) if np.isfinite(panel.ipred).any() else "–"
    return f"{len(values)} samples from {low} to {high} {units.value}, individual prediction up to {most}"


def _text(
    subject: Subject,
    covariates: Mapping[str, list[float]],
    records: pd.DataFrame,
    error: float,
    units: Units,
    unsolved: bool,
) -> str:
    said = [f"{name} {' → '.join(f'{value:g}' for value in values)}" for name, values in covariates.items()]
    doses = [dose for dose in written_out(subject.doses) if dose.amount or dose.rate]
    amounts = sorted({dose.amount for dose in doses if dose.amount})
    given = f"{len(doses)} dose{'s' if len(doses) != 1 else ''}"
    if amounts:
        ends = f"{amounts[0]:g}" if len(amounts) == 1 else f"{amounts[0]:g} to {amounts[-1]:g}"
        given += f" of {ends} {units.amount}".rstrip()
    said += [given, f"{len(records)} value{'s' if len(records) != 1 else ''}"]
    if error == error:
        said.append(f"error of the individual prediction {digits(100 * error, 2)} %")
    weighted = records[records["IWRES"].notna()]
    if len(weighted):
        worst = weighted.iloc[int(weighted["IWRES"].abs().argmax())]
        said.append(f"largest IWRES {digits(worst['IWRES'], 2)} at {number_and_unit(worst['TIME'], units.time)}")
    if unsolved:
        said.append("the equations could not be solved for this patient")
    return "; ".join(said) + "."


def _table(values: Mapping[Any, Any], name: str) -> ReportTable | None:
    estimates = [key for key in values if key != "ID" and not str(key).endswith(("_LO90", "_HI90"))]
    drawn = any(np.isfinite(values.get(f"{key}_LO90", np.nan)) for key in estimates)
    rows = []
    for key in estimates:
        low, high = values.get(f"{key}_LO90", np.nan), values.get(f"{key}_HI90", np.nan)
        between = f"{digits(low, 3)} to {digits(high, 3)}" if np.isfinite(low) else "–"
        rows.append((str(key).replace("ETA_", "η "), digits(values[key], 3), *([between] if drawn else [])))
    solved = any(np.isfinite(values[key]) for key in estimates)
    heads = ("", "estimate", *(["90 % interval"] if drawn else []))
    return ReportTable(f"Estimates of {name}", heads, rows) if solved else None
