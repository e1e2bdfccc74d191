"""Patients of a saved model: typical, simulated, or given ones by their posterior."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from neuralpk.cohort import Cohort, Subject
from neuralpk.dosing.simulated_patients import SimulatedPatients
from neuralpk.population_model import PopulationModel
from neuralpk.saved_model import SavedModel, SavedTask


def typical_patient(saved: SavedModel, covariates: Mapping[str, float] | None = None) -> SimulatedPatients:
    """The typical patient of a model.

    Args:
        saved: the model.
        covariates: of the patient; those left out have their reference value (`reference_covariates`).

    Raises:
        ValueError: a covariate that the model does not read, or that has no reference value and is not given.
    """
    known = reference_covariates(saved, covariates)
    return SimulatedPatients.typical(_model(saved, known), known, saved.units)


def simulated_population(
    saved: SavedModel,
    count: int,
    covariates: Mapping[str, float] | None = None,
    people: Cohort | None = None,
    seed: int = 0,
) -> SimulatedPatients:
    """Patients drawn from the population of a model.

    Args:
        saved: the model.
        count: how many.
        covariates: the same for all; as of `typical_patient`.
        people: patients who give their covariates in turn; None for the same covariates for all.
        seed: of the draws.

    Raises:
        ValueError: as `typical_patient`.
    """
    if people is not None:
        return SimulatedPatients.population(saved.population_model(people), count, people, seed=seed)
    known = reference_covariates(saved, covariates)
    return SimulatedPatients.population(_model(saved, known), count, known, saved.units, seed)


def given_patients(saved: SavedModel, cohort: Cohort, draws: int = 500, seed: int = 0) -> SimulatedPatients:
    """Patients by draws from their posterior given their samples; one whose records hold no sample is drawn from the
    population.

    Args:
        saved: the model.
        cohort: the patients, with doses and samples so far.
        draws: of each patient.
        seed: of the draws.
    """
    found = saved.draw(cohort, draws, seed=seed)
    return SimulatedPatients(cohort, found.models, found.z)


def reference_covariates(saved: SavedModel, given: Mapping[str, float] | None = None) -> dict[str, float]:
    """Covariates of the typical patient: those given, else the default of the equations, the reference of the effect,
    the centre of the training data, 0 for a covariate that is 0 or 1, and the level that others are compared with.

    Raises:
        ValueError: a covariate that the model does not read, or that has no reference value and is not given.
    """
    given = dict(given or {})
    # the body weight is also read by amounts per kg
    unknown = set(given) - {*saved.covariates, *saved.needed, "WT"}
    if unknown:
        read = ", ".join([*saved.covariates, *saved.needed]) or "none"
        raise ValueError(f"the model does not read the covariate {', '.join(sorted(unknown))}; it reads: {read}")
    return {name: _reference(saved, name) for name in (*saved.covariates, *saved.needed) if name not in given} | given


def _reference(saved: SavedModel, name: str) -> float:
    default = saved.needed.get(name)
    if default is not None:
        return default
    if isinstance(saved, SavedTask):
        scaling = saved.task().model.scaling
        assert scaling is not None
        scale = scaling.covariate(name)
        return float(round(scale.centre)) if scale.binary else scale.centre
    published = saved.published()
    effects = [published.effect(*key) for key in published.effects]
    known = {covariate: value for effect in effects for covariate, value in effect.references().items()}
    if name in known:
        value = known[name]
        return 0.0 if isinstance(value, str) else value
    if "=" in name:  # the level of a text that the others are compared with
        return 1.0
    raise ValueError(f"the covariate {name} has no reference value in the model: give one, as in {{{name}: 70}}")


def _model(saved: SavedModel, covariates: Mapping[str, float]) -> PopulationModel:
    nothing = np.empty(0)
    return saved.population_model(Cohort((Subject("1", nothing, nothing, covariates=dict(covariates)),), saved.units))
