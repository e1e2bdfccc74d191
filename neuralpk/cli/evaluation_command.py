"""``neuralpk evaluate``: a model judged on a table."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from neuralpk.cli.faults import UsageError
from neuralpk.cli.progress_bar import progress_bar
from neuralpk.cli.unsolved_patients import refuse_unsolved
from neuralpk.cohort import Units
from neuralpk.evaluation import FIGURES, Comparison, Evaluation
from neuralpk.evaluation import evaluate as judge
from neuralpk.evaluation.comparison import COMPARISON_FILES
from neuralpk.evaluation.evaluation import TABLES, VERDICT
from neuralpk.saved_model import read_model

EVALUATION_FILES = (*TABLES, *(f"{name}.png" for name in FIGURES), VERDICT, *COMPARISON_FILES)
_COMPARED = "compared"
_SHOWN = 10


def evaluate(
    model: Path,
    table: Path,
    out: Path,
    compare: Path | None = None,
    strata: list[str] | str | None = None,
    against: Literal["TIME", "TAD"] | None = None,
    log: bool = False,
    simulations: int = 500,
    patients: int | None = None,
    draws: int | None = None,
    likelihood: bool = False,
    map_estimate: bool | None = None,
    seed: int = 0,
    unverified: bool = False,
    units: list[str] | None = None,
    **reading: Any,
) -> None:
    """Judge a model on an event table: residuals, random effects, visual predictive checks and a verdict.

    Args:
        model: checkpoint of a training, or population file.
        table: event table of the patients.
        out: folder for records.csv (DV, PRED, IPRED, RES, IWRES, WRES, CWRES, NPDE, TAD, …), parameters.csv,
            random_effects.csv, shrinkage.csv, errors.csv (bias and RMSE), checks.csv, vpc.csv, pcvpc.csv, curves.csv,
            unseen_covariates.csv, a PNG of every figure, and verdict.json; with --compare also comparison.csv, its
            figures, and a folder of the other model, compared.
        compare: file of a second model to judge on the same table, side by side.
        strata: columns, as in ARM SEX, by which the visual predictive checks are drawn in panels.
        against: of the visual predictive checks, TIME or TAD (time after dose); null for TIME, and TAD beside it where
            doses repeat.
        log: draw the values on a logarithmic scale.
        simulations: simulated studies of the same design.
        patients: judge on so many patients, drawn at random; a Parquet file may then be of any length. Null for all.
        draws: from the posterior of each patient, for the intervals of the curves; null for 200 for up to 200 patients
            of a model without a network, else none.
        likelihood: compute −2 log p(data), AIC and BIC, as with --compare.
        map_estimate: go on from the encoder to the MAP estimate; null for what the model was trained with.
        seed: of all that is drawn.
        unverified: also read a checkpoint without a sha256.
        units: of time, amount and value of the table; null for those of the model.
        reading: how the table is read.
    """
    columns = [part.strip() for part in strata.split(",")] if isinstance(strata, str) else list(strata or [])
    if simulations < 100:
        raise UsageError(f"--simulations must be 100 or more, not {simulations}")
    models = [model] if compare is None else [model, compare]
    evaluations = []
    for saved, folder in zip([read_model(file, unverified) for file in models], (out, out / _COMPARED), strict=False):
        print(saved.description)
        found = judge(
            saved,
            table,
            simulations=simulations,
            strata=columns,
            patients=patients,
            draws=draws,
            likelihood=likelihood or compare is not None,
            map_estimate=map_estimate,
            seed=seed,
            progress=progress_bar,
            units=Units.of(units) if units else None,
            **reading,
        )
        paths = found.write(folder, columns, against, log)
        _remove_others(folder, paths)
        _print(found)
        print(f"{len(paths)} files in {folder}: {', '.join(path.name for path in paths)}")
        evaluations.append(found)
    if len(evaluations) == 2:
        both = Comparison(evaluations[0], evaluations[1], _names(models))
        print(both.table.to_string(index=False, na_rep="", float_format=_number))
        print(both.sentence)
        print(", ".join(str(path) for path in both.write(out, log)))
    else:
        _remove_others(out / _COMPARED, [])
    refuse_unsolved(evaluations[0].unsolved)


def _names(models: Sequence[Path]) -> tuple[str, str]:
    """Of two models: their files, or A and B where those have one name."""
    first, second = (path.name for path in models)
    return (first, second) if first != second else ("A", "B")


def _remove_others(folder: Path, paths: Sequence[Path]) -> None:
    """Remove what is left of results that were replaced, such as figures by another column."""
    own = re.compile(rf"({'|'.join(FIGURES)})(_[0-9]+)?(_page[0-9]+)?(_by_.+)?(_TAD)?\.png")
    for path in folder.iterdir() if folder.is_dir() else ():
        if (path.name in EVALUATION_FILES or own.fullmatch(path.name)) and path not in paths:
            path.unlink()
    if not paths and folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _number(value: float) -> str:
    return f"{value:.4g}"


def _print(found: Evaluation) -> None:
    """The verdict, and what it rests on."""
    print(found.errors.to_string(index=False, float_format=_number))
    if len(found.checks):
        columns = [*(["DVID"] if len(found.endpoints) > 1 else []), "STATISTIC", "LIMIT", "P", "P_ADJUSTED", "PASSED"]
        print(found.checks[["CHECK", *columns]].to_string(index=False, float_format=_number))
        print(f"Global test of the NPDE: p = {found.npde_p:.3g}")
    if found.likelihood:
        print(", ".join(f"{name} {value:.6g}" for name, value in found.likelihood.items()))
    for name, own in found.unseen_covariates.groupby("COVARIATE"):
        ids = list(own["ID"])
        more = f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else ""
        low, high = own["SEEN_LOW"].iloc[0], own["SEEN_HIGH"].iloc[0]
        print(
            f"{name} outside the {low:g} to {high:g} that the model has seen: subject {', '.join(ids[:_SHOWN])}{more}"
        )
    for remark in found.remarks:
        print(f"Note: {remark}")
    print(found.sentence)
