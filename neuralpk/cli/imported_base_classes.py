"""The classes that the command line is made for: all that it takes from the layers above the models."""

from neuralpk.datamodules import CohortDataModule as DataModule
from neuralpk.datamodules import SimulatedDataModule
from neuralpk.task import LatentTask as Task

__all__ = ["DataModule", "SimulatedDataModule", "Task"]
