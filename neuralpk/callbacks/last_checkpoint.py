"""The checkpoint of the last epoch."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.callbacks import ModelCheckpoint


class LastCheckpoint(ModelCheckpoint):
    """Writes ``last.ckpt`` at the end of every epoch.

    With a monitored metric, Lightning's own ``save_last`` writes the epoch in which the metric was best instead. A
    class of its own, so that its state is kept apart from that of a `ModelCheckpoint` beside it.

    Args:
        options: of `lightning.pytorch.callbacks.ModelCheckpoint`, without a metric.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(filename="last", save_on_train_epoch_end=True, enable_version_counter=False, **options)
