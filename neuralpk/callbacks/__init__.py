"""What is seen of a training: the only code that touches the logger, and the only unit besides the command line that
sees both the task and the data."""

from neuralpk.callbacks.dashboard import Dashboard
from neuralpk.callbacks.report import Report

__all__ = ["Dashboard", "Report"]
