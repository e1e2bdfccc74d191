"""A training without logs, checkpoints or validation: what a benchmark repeats many times."""

import lightning as L

from neuralpk.datamodules import CohortDataModule
from neuralpk.tasks import LatentODETask


def train(task: LatentODETask, data: CohortDataModule, epochs: int) -> L.Trainer:
    """Train the task in place, on the CPU; the trainer can save it."""
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        gradient_clip_val=5.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    trainer.fit(task, data)
    return trainer
