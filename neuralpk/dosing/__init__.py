"""From a model to a decision: regimens, the course of patients under them, the dose that reaches a target.

``regimen`` the text and the class; ``simulated_patients`` a typical patient, a population, given patients;
``model_patients`` those of a saved model; ``regimen_simulation`` curves with bands and exposure; ``adaptive_rule``
doses that follow troughs; ``exposure`` areas, peaks, troughs; ``target`` targets and limits as texts;
``dose_selection`` candidates and the choice; ``prior_predictive`` patients unlike the population; ``dosing_figures``
figures.
"""

from neuralpk.dosing.adaptive_rule import AdaptiveRule
from neuralpk.dosing.dose_selection import DoseSelection, select_doses
from neuralpk.dosing.regimen import Course, Regimen, parse_regimens
from neuralpk.dosing.regimen_simulation import RegimenSimulation, simulate_regimens
from neuralpk.dosing.simulated_patients import SimulatedPatients
from neuralpk.dosing.target import Target

__all__ = [
    "AdaptiveRule",
    "Course",
    "DoseSelection",
    "Regimen",
    "RegimenSimulation",
    "SimulatedPatients",
    "Target",
    "parse_regimens",
    "select_doses",
    "simulate_regimens",
]
