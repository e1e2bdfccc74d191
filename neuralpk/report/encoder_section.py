"""What the encoder of a model contributed: errors with it and without it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from neuralpk.cohort import Cohort
from neuralpk.evaluation import Evaluation
from neuralpk.individual_estimates import estimate_individuals
from neuralpk.report.tables_and_figures import ReportTable, digits
from neuralpk.task import LatentTask


@dataclass(frozen=True)
class EncoderSection:
    """The encoder of a model.

    Args:
        lines: what it is and what it contributed, in words.
        table: errors of the predictions with and without it.
    """

    lines: list[str]
    table: ReportTable


def encoder_section(
    task: LatentTask, evaluation: Evaluation, cohort: Cohort, data: dict[str, pd.DataFrame]
) -> EncoderSection:
    """Errors of the predictions of the measured values by the population alone, by the encoder alone, and by the search
    for the most probable parameters, begun at the encoder and begun at the typical patient.

    Args:
        task: with an encoder.
        evaluation: of the model on the cohort.
        cohort: the patients.
        data: takes the frame of the section by name.
    """
    encoder = task.encoder
    assert encoder is not None
    objective = task.objective
    own = evaluation.records
    found = {"population, no samples read": own["PRED"], "encoder alone": _of_encoder(task, cohort)}
    if objective.searches_map:
        found["search, begun at the encoder"] = own["IPRED"]
        found["search, begun at the typical patient"] = _without_encoder(task, cohort)
    dv = own["DV"].to_numpy(float)
    known = own["IRES"].notna().to_numpy()
    size = float(np.abs(dv[known]).mean()) if known.any() else float("nan")
    errors = {name: values.to_numpy(float)[known] - dv[known] for name, values in found.items()}
    relative = {name: 100 * float(np.sqrt(np.nanmean(np.square(error)))) / size for name, error in errors.items()}
    bias = {name: 100 * float(np.nanmean(error)) / size for name, error in errors.items()}
    data["encoder"] = pd.DataFrame(
        {"PREDICTION": list(errors), "RMSE_PERCENT": list(relative.values()), "BIAS_PERCENT": list(bias.values())}
    )
    rows = [(name, digits(relative[name], 3), digits(bias[name], 2)) for name in errors]
    weights = sum(weight.numel() for weight in encoder.parameters())
    names = list(relative)
    lines = [
        f"{type(encoder).__name__} with {weights:,} weights reads the doses, samples and covariates of a patient and "
        f"gives a distribution of the latent variables. {_share(relative[names[0]], relative[names[1]])}"
    ]
    if objective.searches_map:
        lines.append(_of_search(relative[names[2]], relative[names[3]]))
    note = f"Of {int(known.sum()):,} measured values above their limit, relative to their mean."
    heads = ("prediction by", "root mean square error, %", "bias, %")
    return EncoderSection(lines, ReportTable("Errors of the predictions", heads, rows, note=note, data="encoder"))


def _share(without: float, with_it: float) -> str:
    change = 100 * (1 - with_it / without)
    if abs(change) < 1:
        return "It alone does not lower the error of the population prediction."
    word = "lowers" if change >= 0 else "raises"
    return f"It alone {word} the error of the population prediction by {digits(abs(change), 2)} %."


def _of_search(with_it: float, without: float) -> str:
    if abs(with_it - without) <= 0.01 * without:
        return (
            "The search for the most probable parameters ends at the same error, whether it begins at the encoder or "
            "at the typical patient."
        )
    word = "lower" if with_it < without else "higher"
    return f"The search that begins at the encoder ends at a {word} error than the one from the typical patient."


def _of_encoder(task: LatentTask, cohort: Cohort) -> pd.Series:
    return _measured(task.reconstruct(cohort, draws=0, map=False).records())


def _without_encoder(task: LatentTask, cohort: Cohort) -> pd.Series:
    was = task.training
    found = estimate_individuals(task.model.eval(), cohort, encoder=None, draws=0)
    task.model.train(was)
    return _measured(found.records())


def _measured(records: pd.DataFrame) -> pd.Series:
    return records.loc[records["DV"].notna(), "IPRED"].reset_index(drop=True)
