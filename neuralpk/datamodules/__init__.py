"""LightningDataModules: cohorts, simulated or read from a table, split by subject and batched."""

from neuralpk.datamodules.base import CohortDataModule
from neuralpk.datamodules.batches import BatchDataset, Context, GlobalBatchSampler, choose_context
from neuralpk.datamodules.simulated import LotkaVolterraDataModule, PKDataModule, SimulatedDataModule, SIRDataModule
from neuralpk.datamodules.table import TableDataModule

__all__ = [
    "BatchDataset",
    "CohortDataModule",
    "Context",
    "GlobalBatchSampler",
    "LotkaVolterraDataModule",
    "PKDataModule",
    "SIRDataModule",
    "SimulatedDataModule",
    "TableDataModule",
    "choose_context",
]
