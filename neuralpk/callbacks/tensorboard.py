"""Figures and layout of TensorBoard during a training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.tensorboard import SummaryWriter

from neuralpk.cohort_figures import first_seen, fit_figures, latent_estimates, make_panels, phase_figure, quantity_of
from neuralpk.datamodules import CohortDataModule
from neuralpk.diagnostics.plots import individual_panels
from neuralpk.diagnostics.population_plots import latent_space
from neuralpk.task import LatentTask

_LAYOUT = {
    "Training": {
        "loss": ["Multiline", ["train_loss", "val_loss"]],
        "parts of the loss": [
            "Multiline",
            ["train_fit", "train_kl", "train_encoder", "val_fit", "val_kl", "val_encoder"],
        ],
        "learning rate": ["Multiline", ["learning_rate"]],
        "gradient norm": ["Multiline", ["gradient_norm"]],
    },
    "Reconstruction": {
        "error against the samples": ["Multiline", ["val_rmse", "val_log_rmse"]],
        "error against the true curve": ["Multiline", ["val_curve_rrmse"]],
    },
    "Solver": {
        "evaluations of the field": ["Multiline", ["val_evaluations"]],
        "subjects not solved": ["Multiline", ["train_failures", "val_failures"]],
    },
}


def parts_of(trainer: L.Trainer, module: L.LightningModule) -> tuple[LatentTask, CohortDataModule] | None:
    """Task and data module, where the run has them."""
    data = getattr(trainer, "datamodule", None)
    if isinstance(module, LatentTask) and isinstance(data, CohortDataModule):
        return module, data
    return None


def writers_of(trainer: L.Trainer) -> Iterator[SummaryWriter]:
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            yield logger.experiment


class Dashboard(L.Callback):
    """Figures of the validation subjects in TensorBoard every few epochs, a readable layout, hparams with results.

    Args:
        every: epochs between figures.
        subjects: how many individual panels.
    """

    def __init__(self, every: int = 5, subjects: int = 10) -> None:
        if min(every, subjects) < 1:
            raise ValueError(f"every and subjects must be 1 or more, got {every} and {subjects}")
        self.every, self.subjects = every, subjects

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for writer in writers_of(trainer):
            writer.add_custom_scalars(_LAYOUT)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        rate = trainer.optimizers[0].param_groups[-1]["lr"]
        pl_module.log("learning_rate", rate, rank_zero_only=True)
        last = trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs
        if trainer.current_epoch % self.every == 0 or last:
            self._draw(trainer, pl_module, embed=last)

    def _draw(self, trainer: L.Trainer, module: L.LightningModule, embed: bool) -> None:
        parts = parts_of(trainer, module)
        writers = list(writers_of(trainer))
        if parts is None or not writers or not trainer.is_global_zero:
            return
        task, data = parts
        cohort = data.part("val")
        shown = cohort[: self.subjects]
        figures = {}
        result = task.reconstruct(shown, draws=50, context=first_seen(data), population_known=True)
        for endpoint in range(result.ipred.shape[2]):
            name = "individual fits" if result.ipred.shape[2] == 1 else f"individual fits/endpoint {endpoint + 1}"
            panels = make_panels(shown, result, endpoint, first_seen(data))
            figures[name] = individual_panels(panels, cohort.units, shared=False, quantity=quantity_of(cohort))
        if result.ipred.shape[2] == 2 and not any(subject.doses for subject in cohort):
            first, second = (task.model.dynamics.states[k].capitalize() for k in task.model.dynamics.endpoints[:2])
            figures["phase plane"] = phase_figure(shown, result, (first, second))
        figures |= fit_figures(task, data, cohort)
        mean = latent_estimates(task, cohort, first_seen(data)).cpu().double()
        figures["latent space"] = latent_space(mean.numpy())
        for writer in writers:
            for name, figure in figures.items():
                writer.add_figure(name, figure, trainer.global_step)
            if embed:
                writer.add_embedding(mean, metadata=list(range(len(mean))), tag="latent space")

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        names = ("val_loss", "val_rmse", "val_log_rmse", "val_curve_rrmse")
        final = {name: float(value) for name, value in trainer.callback_metrics.items() if name in names}
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and final:
                logger.log_hyperparams(dict(_flat(pl_module.hparams)), {f"final/{k}": v for k, v in final.items()})


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings as the flat numbers and words that TensorBoard's table shows."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif value is not None:
            yield prefix + name, value if isinstance(value, bool | int | float) else str(value)
