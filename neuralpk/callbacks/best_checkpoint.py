"""The checkpoint of the best validation."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor


class BestCheckpoint(ModelCheckpoint):
    """Writes ``best.ckpt`` when ``val_loss`` is smaller than before.

    Of a population fit that is validated on the subjects it is fitted to, after every validation: such a fit rises to
    its maximum, so that the last state is the best one. A smaller loss before is that of a state that has not
    converged, by Monte Carlo error or because a prior, which the loss does not have, holds the maximum elsewhere.
    """

    def __init__(self) -> None:
        super().__init__(monitor="val_loss", filename="best")

    def check_monitor_top_k(self, trainer: L.Trainer, current: Tensor | None = None) -> bool:
        """Whether a validation is the best so far."""
        if current is not None and bool(torch.isfinite(current)) and _rises_to_its_maximum(trainer):
            return True
        return super().check_monitor_top_k(trainer, current)


def _rises_to_its_maximum(trainer: L.Trainer) -> bool:
    """Whether a population is fitted by an estimator to the subjects on which it is validated."""
    data: Any = getattr(trainer, "datamodule", None)
    fits = getattr(trainer.lightning_module, "estimator", None) is not None
    return fits and hasattr(data, "part") and data.part("val").ids == data.part("train").ids
