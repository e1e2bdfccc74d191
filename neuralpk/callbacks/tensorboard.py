"""What a training shows while it runs: curves of its numbers, its settings, figures of the validation subjects."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import lightning as L
import pandas as pd

from neuralpk.callbacks.logged_media import log_figures, log_text, takes_figures
from neuralpk.callbacks.tensorboard_runs import TensorBoardRuns, flat
from neuralpk.cohort import Units
from neuralpk.cohort_figures import first_seen, make_panels, phase_figure, quantity_of
from neuralpk.datamodules import CohortDataModule
from neuralpk.diagnostics.plots import individual_panels
from neuralpk.diagnostics.style import png
from neuralpk.evaluation.evaluation import PAGE
from neuralpk.evaluation.evaluation_figures import fit_figure
from neuralpk.individual_estimates import IndividualEstimates
from neuralpk.task import LatentTask

_VERSIONS = ("neuralpk", "torch", "lightning")


def parts_of(trainer: L.Trainer, module: L.LightningModule) -> tuple[LatentTask, CohortDataModule] | None:
    """Task and data module, where the run has them."""
    data = getattr(trainer, "datamodule", None)
    if isinstance(module, LatentTask) and isinstance(data, CohortDataModule):
        return module, data
    return None


def logged_step(trainer: L.Trainer) -> int:
    """The step under which Lightning writes the numbers of an epoch: the last of its batches, counted from 0."""
    return max(0, trainer.global_step - 1)


class Dashboard(L.Callback):
    """What a training shows while it runs, in every logger that takes it (`neuralpk.callbacks.logged_media`): the
    learning rate, the settings as a text and, in TensorBoard, as a row of its table; and every few epochs figures of
    the validation subjects. The figures after the last epoch are those of the `Report`.

    No path, user name or subject ID is in the texts and the settings.

    Args:
        every: epochs between figures.
        subjects: how many individual panels.
    """

    def __init__(self, every: int = 20, subjects: int = 10) -> None:
        if min(every, subjects) < 1:
            raise ValueError(f"every and subjects must be 1 or more, got {every} and {subjects}")
        self.every, self.subjects = every, subjects

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        parts = parts_of(trainer, pl_module)
        if parts is None or not trainer.is_global_zero:
            return
        settings = dict(flat({"model": parts[0].hparams, "data": _public(parts[1])}))
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardRuns):
                logger.start_session(settings)
        log_text(trainer.loggers, "settings", _table(settings), 0)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        rate = trainer.optimizers[0].param_groups[-1]["lr"]
        pl_module.log("learning_rate", rate, rank_zero_only=True)
        if (trainer.current_epoch + 1) % self.every == 0:
            self._draw(trainer, pl_module)

    def _draw(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        parts = parts_of(trainer, module)
        if parts is None or not trainer.is_global_zero or not any(map(takes_figures, trainer.loggers)):
            return
        task, data = parts
        shown, seen = data.part("val")[: self.subjects], first_seen(data)
        # as the validation estimates them: to search every MAP again and again would take longer than the training
        searched = task.objective.maximises_likelihood
        result = task.reconstruct(shown, draws=50, context=seen, population_known=True, map=searched)
        figures = patient_figures(task, data, result) | fit_figures(task.residuals(shown, context=seen), shown.units)
        log_figures(trainer.loggers, in_group("patients", figures), logged_step(trainer))


def patient_figures(task: LatentTask, data: CohortDataModule, result: IndividualEstimates) -> dict[str, bytes]:
    """Panels of subjects by endpoint, and of two states without doses also the one against the other, as PNG.

    Args:
        task: that estimated.
        data: its data module.
        result: estimates of subjects of it, with all they have been shown (`first_seen`).
    """
    cohort, endpoints = result.source.cohort, result.ipred.shape[2]
    figures = {}
    for endpoint in range(endpoints):
        name = "individual fits" if endpoints == 1 else f"individual fits {endpoint + 1}"
        panels = make_panels(cohort, result, endpoint, first_seen(data))
        quantity = quantity_of(cohort, task.model, endpoint)
        figures[name] = png(individual_panels(panels, cohort.units, shared=False, quantity=quantity))
    if endpoints == 2 and not any(subject.doses for subject in cohort):
        names = (quantity_of(cohort, task.model, 0), quantity_of(cohort, task.model, 1))
        figures["phase plane"] = png(phase_figure(cohort, result, names))
    return figures


def fit_figures(records: pd.DataFrame, units: Units) -> dict[str, bytes]:
    """Goodness of fit of every endpoint, as PNG.

    Args:
        records: `LatentTask.residuals` of subjects.
        units: of their table.
    """
    figures = {}
    for endpoint, own in records.groupby("DVID"):
        name = f"goodness of fit {endpoint}" if records["DVID"].nunique() > 1 else "goodness of fit"
        figures[name] = png(fit_figure(own, units, PAGE, log=False))
    return figures


def in_group(group: str, figures: Mapping[str, bytes]) -> dict[str, bytes]:
    """The same under names of a group, which a dashboard shows together."""
    return {f"{group}/{name}": content for name, content in figures.items()}


def _public(data: CohortDataModule) -> dict[str, Any]:
    """Settings of a data module, but where its table lies."""
    names = vars(L.LightningDataModule())
    return {
        name: value
        for name, value in vars(data).items()
        if not name.startswith("_") and name not in names and name != "table"
    }


def _table(settings: Mapping[str, Any]) -> str:
    rows = [f"| {name} | {value} |" for name, value in settings.items()]
    rows += [f"| {name} | {version(name)} |" for name in _VERSIONS]
    return "\n".join(["| setting | value |", "|---|---|", *rows])
