"""The data of a training: a cohort split by subject, and what is seen of it; simulated cohorts. Without Lightning."""

from neuralpk.cohort_data.base import CohortData, FurtherSubjects
from neuralpk.cohort_data.seen_records import Context, choose_context
from neuralpk.cohort_data.simulated import (
    SimulatedData,
    SimulatedLotkaVolterraData,
    SimulatedPKData,
    SimulatedSIRData,
)

__all__ = [
    "CohortData",
    "Context",
    "FurtherSubjects",
    "SimulatedData",
    "SimulatedLotkaVolterraData",
    "SimulatedPKData",
    "SimulatedSIRData",
    "choose_context",
]
