"""Callbacks and the logger of a training: dashboard, last and best checkpoint, report at the end of a fit."""

from neuralpk.callbacks.best_checkpoint import BestCheckpoint
from neuralpk.callbacks.last_checkpoint import LastCheckpoint
from neuralpk.callbacks.report import Report
from neuralpk.callbacks.tensorboard import Dashboard
from neuralpk.callbacks.tensorboard_runs import TensorBoardRuns

__all__ = ["BestCheckpoint", "Dashboard", "LastCheckpoint", "Report", "TensorBoardRuns"]
