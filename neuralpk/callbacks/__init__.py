"""Callbacks of a training: the TensorBoard dashboard, the last checkpoint, the report at the end of a fit."""

from neuralpk.callbacks.last_checkpoint import LastCheckpoint
from neuralpk.callbacks.report import Report
from neuralpk.callbacks.tensorboard import Dashboard

__all__ = ["Dashboard", "LastCheckpoint", "Report"]
