"""Simulated cohorts in batches: `SimulatedPKDataModule` serves `SimulatedPKData` with its options; so do the others."""

from __future__ import annotations

from neuralpk.cohort_data.simulated import (
    SimulatedData,
    SimulatedLotkaVolterraData,
    SimulatedPKData,
    SimulatedSIRData,
)
from neuralpk.datamodules.base import CohortDataModule


class SimulatedDataModule(SimulatedData, CohortDataModule):
    __doc__ = SimulatedData.__doc__


class SimulatedPKDataModule(SimulatedPKData, SimulatedDataModule):
    __doc__ = SimulatedPKData.__doc__


class SimulatedLotkaVolterraDataModule(SimulatedLotkaVolterraData, SimulatedDataModule):
    __doc__ = SimulatedLotkaVolterraData.__doc__


class SimulatedSIRDataModule(SimulatedSIRData, SimulatedDataModule):
    __doc__ = SimulatedSIRData.__doc__
