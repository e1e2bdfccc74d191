"""Training without logs and checkpoints, for benchmarks."""

from typing import Any

import lightning as L

from neuralpk.datamodules import CohortDataModule
from neuralpk.task import LatentTask


def quiet_trainer(epochs: int, **options: Any) -> L.Trainer:
    """A trainer on the CPU that writes and shows nothing.

    Args:
        epochs: number of epochs.
        options: further ones of Lightning's trainer.
    """
    return L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


def train(task: LatentTask, data: CohortDataModule, epochs: int, covariance: bool = False) -> L.Trainer:
    """Train the task in place without validation, on the CPU; the trainer can save it.

    Args:
        task: to be trained.
        data: its subjects.
        epochs: number of epochs, each of ``data.passes_per_epoch`` passes over the subjects.
        covariance: whether to compute the uncertainty of the population afterwards; intervals then include it.
    """
    trainer = quiet_trainer(epochs, gradient_clip_val=5.0, limit_val_batches=0)
    task.build(data.scaling(), data.provenance())
    trainer.fit(task, data.train_dataloader())
    if covariance:
        task.covariance_step(data.part("train"))
    return trainer
