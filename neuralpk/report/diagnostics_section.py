"""The figures of an evaluation, each with what it shows in words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from neuralpk.evaluation import Evaluation
from neuralpk.evaluation.evaluation import COLUMN, PAGE
from neuralpk.report.tables_and_figures import ReportFigure, digits, svg

_LINES = {"P5": "5th percentile", "P50": "median", "P95": "95th percentile", "BLQ": "share below the limit"}
_OF_ALL, _OF_RECORDS = ("random_effects", "covariates"), ("goodness_of_fit", "npde")
_TITLES = {
    "goodness_of_fit": "Goodness of fit",
    "vpc": "Visual predictive check",
    "pcvpc": "Prediction-corrected visual predictive check",
    "npde": "Normalised prediction distribution errors",
    "random_effects": "Random effects",
    "covariates": "Random effects against covariates",
}
_READINGS = {
    "goodness_of_fit": "Where the model is right, values lie around the dashed line and residuals around 0, without a "
    "trend.",
    "vpc": "Lines: percentiles 5, 50 and 95 of the data. Bands: the middle 90 % of the same percentiles of simulated "
    "studies. Lines inside their bands speak for the model.",
    "pcvpc": "As above, with each value multiplied by the typical prediction of its bin over its own prediction: doses "
    "and covariates do not spread the values.",
    "npde": "Where the model is right, they are standard normal, at every time and prediction.",
    "random_effects": "Histograms of the estimates with the distribution of the population. Large shrinkage says that "
    "the samples tell little about the parameter of a patient.",
    "covariates": "A trend is variability that the covariate could explain.",
}


def diagnostic_figures(
    evaluation: Evaluation, data: dict[str, pd.DataFrame], shown: Callable[[str, Sequence[Any]], Iterable[Any]]
) -> list[ReportFigure]:
    """Every figure but the individual panels, by endpoint where there are several.

    Args:
        evaluation: of the model on the table.
        data: takes the frames of the figures by name.
        shown: wraps the figures that are drawn, to show how far the work is.
    """
    names = [name for name in evaluation.figures if name in _TITLES]
    pairs = [(name, endpoint) for name in names for endpoint in _endpoints_of(name, evaluation)]
    return [_drawn(evaluation, name, endpoint, data) for name, endpoint in shown("draw", pairs)]


def _endpoints_of(name: str, evaluation: Evaluation) -> tuple[int, ...]:
    return evaluation.endpoints[:1] if name in _OF_ALL else evaluation.endpoints


def _drawn(evaluation: Evaluation, name: str, endpoint: int, data: dict[str, pd.DataFrame]) -> ReportFigure:
    several = len(_endpoints_of(name, evaluation)) > 1
    stem = f"{name}_{endpoint}" if several else name
    title = _TITLES[name] + (f", endpoint {endpoint}" if several else "")
    frame = evaluation.data(name, endpoint=endpoint)
    file = "random_effects" if name in _OF_ALL else "records" if name in _OF_RECORDS else stem
    data.setdefault(file, evaluation.records if file == "records" else frame)
    log = name not in (*_OF_ALL, "npde") and _wide(evaluation.records, endpoint)
    drawings = {
        kind: svg(evaluation.figure(name, endpoint=endpoint, log=log, width=width), f"{stem}-{kind}")
        for kind, width in (("wide", PAGE), ("narrow", COLUMN))
    }
    return ReportFigure(stem, title, _TEXTS[name](evaluation, frame), drawings, file, _READINGS[name])


def _wide(records: pd.DataFrame, endpoint: int) -> bool:
    """Whether the values span more than a factor of 20, so that a logarithmic axis shows them better."""
    values = records.loc[records["DVID"] == endpoint, "DV"].dropna()
    positive = values[values > 0]
    return len(positive) == len(values) > 0 and positive.quantile(0.98) > 20 * positive.quantile(0.02)


def _fit_text(evaluation: Evaluation, frame: pd.DataFrame) -> str:
    said = [f"{len(frame)} measured values of {frame['ID'].nunique()} patients"]
    errors = evaluation.errors[evaluation.errors["DVID"] == frame["DVID"].iloc[0]] if len(frame) else evaluation.errors
    for row in errors.to_dict("records"):
        kind = {"PRED": "Population prediction", "IPRED": "Individual prediction"}[row["PREDICTION"]]
        bias, error = digits(row["BIAS_PERCENT"], 3), digits(row["RMSE_PERCENT"], 3)
        said.append(f"{kind}: bias {bias} %, root mean square error {error} %")
    for name in ("IWRES", "CWRES"):
        values = frame[name].dropna() if name in frame else pd.Series(dtype=float)
        if len(values) > 1:
            outside = 100 * float((values.abs() > 1.96).mean())
            said.append(
                f"{name}: mean {digits(values.mean(), 2)}, standard deviation {digits(values.std(), 3)}, "
                f"{digits(outside, 2)} % outside ±1.96, correlation with time "
                f"{_correlation(frame['TIME'], frame[name])}"
            )
    return ". ".join(said) + "."


def _correlation(x: pd.Series, y: pd.Series) -> str:
    known = x.notna() & y.notna()
    if known.sum() < 3 or x[known].nunique() < 2 or y[known].nunique() < 2:
        return "–"
    found = round(float(np.corrcoef(x[known].astype(float), y[known].astype(float))[0, 1]), 2)
    return f"{found + 0.0:.2f}".replace("-", "−")


def _check_text(evaluation: Evaluation, frame: pd.DataFrame) -> str:
    said = [f"{len(frame)} bins of time from {digits(frame['X_LOW'].min(), 3)} to {digits(frame['X_HIGH'].max(), 3)}"]
    for name, word in _LINES.items():
        if f"{name}_OBSERVED" not in frame:
            continue
        observed, low, high = (frame[f"{name}_{end}"] for end in ("OBSERVED", "LO90", "HI90"))
        known = observed.notna() & low.notna()
        inside = ((observed >= low - 1e-12) & (observed <= high + 1e-12) & known).sum()
        said.append(f"observed {word} inside its 90 % band in {inside} of {known.sum()} bins")
    return "; ".join(said) + "."


def _npde_text(evaluation: Evaluation, frame: pd.DataFrame) -> str:
    values = frame["NPDE"].dropna()
    if len(values) < 2:
        return "No errors."
    p = "" if np.isnan(evaluation.npde_p) else f"; global test p = {digits(evaluation.npde_p, 2)}"
    return f"{len(values)} errors: mean {digits(values.mean(), 2)}, standard deviation {digits(values.std(), 3)}{p}."


def _effects_text(evaluation: Evaluation, frame: pd.DataFrame) -> str:
    said = [
        f"{row['PARAMETER']}: standard deviation {digits(row['SD'], 3)} of the estimates and "
        f"{digits(row['OMEGA'], 3)} of the population, shrinkage {digits(row['SHRINKAGE'], 2)} %"
        for row in evaluation.shrinkage.to_dict("records")
    ]
    return ". ".join(said) + "."


def _covariates_text(evaluation: Evaluation, frame: pd.DataFrame) -> str:
    said = []
    for effect in evaluation.shrinkage["PARAMETER"]:
        of = [
            f"{name} {_correlation(frame[name], frame[f'ETA_{effect}'])}"
            for name in evaluation.covariates
            if pd.api.types.is_numeric_dtype(frame[name])
        ]
        said.append(f"Correlation of η {effect} with {', '.join(of)}" if of else "")
    return ". ".join(filter(None, said)) + "."


_TEXTS: dict[str, Callable[[Evaluation, pd.DataFrame], str]] = {
    "goodness_of_fit": _fit_text,
    "vpc": _check_text,
    "pcvpc": _check_text,
    "npde": _npde_text,
    "random_effects": _effects_text,
    "covariates": _covariates_text,
}
