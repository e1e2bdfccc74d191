"""What is seen of a training: figures and tables in TensorBoard, a report at its end. The only code that touches the
logger, and the only unit besides the command line that sees both the task and the data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pandas as pd
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from torch.utils.tensorboard import SummaryWriter

from neuralpk.cohort import Cohort, FloatArray, Subject
from neuralpk.datamodules import CohortDataModule
from neuralpk.evaluate.metrics import auc_relative_error, interpolate, line_rrmse
from neuralpk.evaluate.plots import Panel, goodness_of_fit, individual_panels
from neuralpk.evaluate.population_plots import latent_space
from neuralpk.reconstruction import Reconstruction
from neuralpk.tasks import LatentODETask

_LAYOUT = {
    "Training": {
        "loss": ["Multiline", ["train_loss", "val_loss"]],
        "parts of the loss": ["Multiline", ["train_fit", "train_kl", "val_fit", "val_kl"]],
        "learning rate": ["Multiline", ["learning_rate"]],
        "gradient norm": ["Multiline", ["gradient_norm"]],
    },
    "Reconstruction": {
        "error against the samples": ["Multiline", ["val_rmse", "val_log_rmse"]],
        "error against the true line": ["Multiline", ["val_line_rrmse"]],
    },
    "Solver": {
        "evaluations of the field": ["Multiline", ["val_evaluations"]],
        "subjects not solved": ["Multiline", ["train_failures", "val_failures"]],
    },
}


def _parts(trainer: L.Trainer, module: L.LightningModule) -> tuple[LatentODETask, CohortDataModule] | None:
    """Task and data module, where the run has them."""
    data = getattr(trainer, "datamodule", None)
    if isinstance(module, LatentODETask) and isinstance(data, CohortDataModule):
        return module, data
    return None


def _writers(trainer: L.Trainer) -> Iterator[SummaryWriter]:
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            yield logger.experiment


def first_seen(data: CohortDataModule) -> int | None:
    """How many of a subject's observations the encoder is shown in evaluation; None for all."""
    return data.context_size if data.evaluation_context == "first" else None


def _quantity(cohort: Cohort) -> str:
    return "Concentration" if any(subject.doses for subject in cohort) else "Density"


def make_panels(cohort: Cohort, result: Reconstruction, endpoint: int = 0, seen: int | None = None) -> list[Panel]:
    """What to draw of each subject: line and band of one endpoint, its samples, and the true line where known."""
    panels = []
    for k, subject in enumerate(cohort):
        own = subject.endpoints == endpoint + 1
        shown = np.cumsum(subject.observed) <= (len(own) if seen is None else seen)
        truth = subject.truth
        panels.append(
            Panel(
                id=subject.id,
                times=result.times[k],
                ipred=result.ipred[k, :, endpoint],
                lower=result.lower[k, :, endpoint],
                upper=result.upper[k, :, endpoint],
                pred=result.pred[k, :, endpoint],
                observed_times=subject.times[own],
                observed_values=subject.values[own],
                seen=shown[own],
                censored=subject.censored[own] > 0,
                true=None if truth is None else np.interp(result.times[k], truth.times, truth.line[:, endpoint]),
                dose_times=np.array([dose.time for record in subject.doses for dose in record.expand()]),
            )
        )
    return panels


def save_panels(cohort: Cohort, result: Reconstruction, folder: Path, seen: int | None = None) -> Iterator[Path]:
    """Draw `make_panels` of every endpoint into ``individuals.png`` (``individuals_1.png``, …) of a folder."""
    endpoints = result.ipred.shape[2]
    for endpoint in range(endpoints):
        path = folder / ("individuals.png" if endpoints == 1 else f"individuals_{endpoint + 1}.png")
        panels = make_panels(cohort, result, endpoint, seen)
        individual_panels(panels, cohort.units, shared=False, quantity=_quantity(cohort)).savefig(path, dpi=130)
        yield path


class Dashboard(L.Callback):
    """Figures of the validation subjects in TensorBoard every few epochs, a readable layout, hparams with results.

    Args:
        every: epochs between figures.
        subjects: how many individual panels.
    """

    def __init__(self, every: int = 5, subjects: int = 10) -> None:
        self.every, self.subjects = every, subjects

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for writer in _writers(trainer):
            writer.add_custom_scalars(_LAYOUT)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        rate = trainer.optimizers[0].param_groups[-1]["lr"]
        pl_module.log("learning_rate", rate, rank_zero_only=True)
        last = trainer.current_epoch + 1 == trainer.max_epochs
        if trainer.current_epoch % self.every == 0 or last:
            self._draw(trainer, pl_module, embed=last)

    def _draw(self, trainer: L.Trainer, module: L.LightningModule, embed: bool) -> None:
        parts = _parts(trainer, module)
        writers = list(_writers(trainer))
        if parts is None or not writers or not trainer.is_global_zero:
            return
        task, data = parts
        cohort = data.part("val")
        shown = cohort[: self.subjects]
        figures = {}
        result = task.reconstruct(shown, draws=50, context=first_seen(data))
        for endpoint in range(result.ipred.shape[2]):
            name = "individual fits" if result.ipred.shape[2] == 1 else f"individual fits/endpoint {endpoint + 1}"
            panels = make_panels(shown, result, endpoint, first_seen(data))
            figures[name] = individual_panels(panels, cohort.units, shared=False, quantity=_quantity(cohort))
        figures |= _cohort_figures(task, data, cohort)
        mean = task.latent(cohort, first_seen(data))
        figures["latent space"] = latent_space(mean)
        for writer in writers:
            for name, figure in figures.items():
                writer.add_figure(name, figure, trainer.global_step)
            if embed:
                writer.add_embedding(torch.as_tensor(mean), metadata=list(range(len(mean))), tag="latent space")

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        names = ("val_loss", "val_rmse", "val_log_rmse", "val_line_rrmse")
        final = {name: float(value) for name, value in trainer.callback_metrics.items() if name in names}
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and final:
                settings = {name: value for name, value in pl_module.hparams.items() if name != "scaling"}
                logger.log_hyperparams(dict(_flat(settings)), {f"final/{k}": v for k, v in final.items()})


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings as the flat numbers and words that TensorBoard's table shows."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif value is not None:
            yield prefix + name, value if isinstance(value, bool | int | float) else str(value)


def _cohort_figures(task: LatentODETask, data: CohortDataModule, cohort: Cohort) -> dict[str, Figure]:
    """Goodness of fit of every endpoint."""
    table = task.residuals(cohort, context=first_seen(data))
    figures = {}
    for endpoint, rows in table.groupby("DVID"):
        several = table["DVID"].nunique() > 1
        time, dv, pred, ipred, iwres = (rows[name].to_numpy() for name in ("TIME", "DV", "PRED", "IPRED", "IWRES"))
        name = f"goodness of fit/endpoint {endpoint}" if several else "goodness of fit"
        figures[name] = goodness_of_fit(time, dv, pred, ipred, iwres, cohort.units)
    return figures


def line_errors(
    data: CohortDataModule, task: LatentODETask, cohort: Cohort
) -> dict[str, tuple[FloatArray, FloatArray]]:
    """Errors of the first endpoint's line against the truth: relative RMSE and relative error of the AUC by subject,
    for the model, the typical subject of the true population, and the samples joined by straight lines."""
    truths = [subject.truth for subject in cohort if subject.truth is not None]
    if len(truths) < len(cohort):
        return {}
    times = truths[0].times
    true = np.stack([truth.line[:, 0] for truth in truths])
    result = task.reconstruct(cohort, times.tolist(), draws=0, context=first_seen(data))
    lines = {"model": result.ipred[..., 0]}
    typical = data.typical_lines(cohort)
    if typical is not None:
        lines["typical patient"] = typical[..., 0]
    lines["samples, interpolated"] = np.stack([_joined(subject, times) for subject in cohort])
    return {name: (line_rrmse(line, true), auc_relative_error(times, line, true)) for name, line in lines.items()}


def _joined(subject: Subject, times: FloatArray) -> FloatArray:
    kept = subject.observed & (subject.endpoints == 1)
    return interpolate(times, subject.times[kept], subject.values[kept])


def _keep_uncertainty(task: LatentODETask, checkpoint: str) -> None:
    """Write into a checkpoint how sure the population is, which is known only after the training."""
    saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
    saved["state_dict"]["model.uncertainty"] = task.model.uncertainty.cpu()
    torch.save(saved, checkpoint)


class Report(L.Callback):
    """At the end of a training: the population (``iwae``), a table of the errors, a figure of individual panels beside the checkpoints, and the
    commands that come next.

    Args:
        subjects: how many panels.
    """

    def __init__(self, subjects: int = 15) -> None:
        self.subjects = subjects
        self.console = Console(highlight=False, soft_wrap=True)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        parts = _parts(trainer, pl_module)
        if parts is None or not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        task, data = parts
        folder = Path(trainer.log_dir or trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        callback = trainer.checkpoint_callback
        last = getattr(callback, "last_model_path", "") or getattr(callback, "best_model_path", "")
        if task.objective == "iwae":
            self._population(data, task, folder)
            if last:
                _keep_uncertainty(task, last)
        self._errors(data, task)
        self._panels(data, task, folder)
        if last:
            self._next(folder, last)

    def _population(self, data: CohortDataModule, task: LatentODETask, folder: Path) -> None:
        estimate = task.estimate_population(data.part("train"))
        frame = pd.DataFrame(estimate.rows)
        frame.to_csv(folder / "population.csv", index=False)
        table = Table(title=f"Population of the {len(data.part('train'))} patients it learned from")
        table.add_column("parameter", overflow="fold")
        for column in ("estimate", "RSE", "95 % CI", "CV", "shrinkage"):
            table.add_column(column, justify="right", no_wrap=True)
        for row in frame.to_dict("records"):
            ends = f"{row['LO95']:.3g} to {row['HI95']:.3g}"
            varies = ["" if np.isnan(row[name]) else f"{row[name]:.0f} %" for name in ("CV", "SHRINKAGE")]
            table.add_row(row["PARAMETER"], f"{row['ESTIMATE']:.3g}", f"{row['RSE']:.0f} %", ends, *varies)
        self.console.print(table)
        likelihood = f"-2 log-likelihood {-2 * estimate.log_likelihood:.2f} (± {2 * estimate.error:.2f} Monte Carlo)"
        # every weight of a network counts as a parameter there, though a prior holds it: not a number to compare by
        learned = any(True for _ in task.model.dynamics.parameters())
        criteria = "" if learned else f", AIC {estimate.aic:.2f}, BIC {estimate.bic:.2f}"
        self.console.print(f"{likelihood}{criteria}; table: {folder / 'population.csv'}")

    def _errors(self, data: CohortDataModule, task: LatentODETask) -> None:
        for name, cohort in (("the patients it learned from", data.part("train")), ("new patients", data.part("test"))):
            if name == "new patients" and set(cohort.ids) <= set(data.part("train").ids):
                continue
            errors = line_errors(data, task, cohort)
            if not errors:
                continue
            table = Table(title=f"Error of the line against the truth, {len(cohort)} of {name}")
            table.add_column("reconstruction by", no_wrap=True)
            for column in ("line, rel. RMSE", "AUC, rel. RMSE", "AUC, mean error"):
                table.add_column(column, justify="right", no_wrap=True)
            for by, (line, auc) in errors.items():
                rmse = np.sqrt(np.mean(auc**2))
                table.add_row(by, f"{line.mean():.3f}", f"{100 * rmse:.1f} %", f"{100 * auc.mean():+.1f} %")
            self.console.print(table)

    def _panels(self, data: CohortDataModule, task: LatentODETask, folder: Path) -> None:
        cohort = data.part("val")[: self.subjects]
        result = task.reconstruct(cohort, context=first_seen(data))
        for path in save_panels(cohort, result, folder, first_seen(data)):
            self.console.print(f"Individual panels: {path}")

    def _next(self, folder: Path, checkpoint: str) -> None:
        for what, command in (
            ("open the dashboard", f"tensorboard --logdir {folder}"),
            (
                "load the model in Python",
                'python -c "from neuralpk.tasks import LatentODETask; '
                f"print(LatentODETask.load_from_checkpoint('{checkpoint}').model)\"",
            ),
            (
                "reconstruct your own patients",
                f"neuralpk reconstruct --checkpoint {checkpoint} --table T.csv --out DIR",
            ),
        ):
            self.console.print(f"To {what}:\n  {command}")
