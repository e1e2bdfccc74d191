"""Callbacks and the logger of a training: dashboard, last checkpoint, report at the end of a fit."""

from neuralpk.callbacks.last_checkpoint import LastCheckpoint
from neuralpk.callbacks.report import Report
from neuralpk.callbacks.tensorboard import Dashboard
from neuralpk.callbacks.tensorboard_runs import TensorBoardRuns

__all__ = ["Dashboard", "LastCheckpoint", "Report", "TensorBoardRuns"]
