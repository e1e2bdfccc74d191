"""LightningDataModules: cohorts, simulated or read from a table, split by subject and batched."""

from neuralpk.cohort_data.seen_records import Context, choose_context
from neuralpk.datamodules.base import CohortDataModule
from neuralpk.datamodules.batch_loading import BatchDataset, GlobalBatchSampler
from neuralpk.datamodules.simulated import (
    SimulatedDataModule,
    SimulatedLotkaVolterraDataModule,
    SimulatedPKDataModule,
    SimulatedSIRDataModule,
)
from neuralpk.datamodules.table import TableDataModule

__all__ = [
    "BatchDataset",
    "CohortDataModule",
    "Context",
    "GlobalBatchSampler",
    "SimulatedDataModule",
    "SimulatedLotkaVolterraDataModule",
    "SimulatedPKDataModule",
    "SimulatedSIRDataModule",
    "TableDataModule",
    "choose_context",
]
