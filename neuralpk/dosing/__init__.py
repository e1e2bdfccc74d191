"""From a model to a decision: regimens, the course of patients under them, exposure.

``regimen`` the text and the class; ``simulated_patients`` a typical patient, a population, given patients;
``model_patients`` those of a saved model; ``regimen_simulation`` curves with bands and exposure; ``adaptive_rule``
doses that follow troughs; ``exposure`` areas, peaks, troughs; ``dosing_figures`` figures.
"""

from neuralpk.dosing.adaptive_rule import AdaptiveRule
from neuralpk.dosing.regimen import Course, Regimen, parse_regimens
from neuralpk.dosing.regimen_simulation import RegimenSimulation, simulate_regimens
from neuralpk.dosing.simulated_patients import SimulatedPatients

__all__ = [
    "AdaptiveRule",
    "Course",
    "Regimen",
    "RegimenSimulation",
    "SimulatedPatients",
    "parse_regimens",
    "simulate_regimens",
]
