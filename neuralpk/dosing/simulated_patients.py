"""Patients whose course under a regimen is simulated: a typical one, a population, or given ones by their posterior."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neuralpk import randomness
from neuralpk.cohort import Cohort, FloatArray, Occasion, Subject, Units, written_out
from neuralpk.cohort_batch import CohortBatch
from neuralpk.dosing.regimen import Regimen
from neuralpk.individual_estimates import evaluation_batch
from neuralpk.inference.uncertainty_draws import drawn_models
from neuralpk.population_model import PopulationModel
from neuralpk.randomness import Stream

WEIGHT = "WT"
"""Covariate that amounts per kg read."""
_REGIMEN = " regimen"  # label of its occasion; labels of tables have no blanks around them


@dataclass(frozen=True)
class SimulatedPatients:
    """Draws of the parameters of patients.

    Args:
        cohort: the patients: covariates and, for given ones, doses and samples so far.
        models: the model under each draw of the population's own parameters; one where these are certain.
        z: by model, ``[subject, sample, latent]``.
        kind: ``typical``: the uncertainty of one typical patient; ``population``: all draws together are patients of
            one population; ``patients``: each has draws of its own.
    """

    cohort: Cohort
    models: list[PopulationModel]
    z: list[Tensor]
    kind: str = "patients"

    def __post_init__(self) -> None:
        # a sum of several doses keeps its digits
        models = [copy.deepcopy(model).double().requires_grad_(False) for model in self.models]
        object.__setattr__(self, "models", models)
        object.__setattr__(self, "z", [z.detach().double() for z in self.z])

    @classmethod
    def typical(
        cls, model: PopulationModel, covariates: Mapping[str, float] | None = None, units: Units | None = None
    ) -> SimulatedPatients:
        """The typical patient, with the uncertainty of the population where it was computed.

        Args:
            model: the population.
            covariates: of the patient.
            units: of the model.
        """
        nothing = np.empty(0)
        cohort = Cohort((Subject("typical", nothing, nothing, covariates=dict(covariates or {})),), units or Units())
        models = drawn_models(model)
        return cls(cohort, models, [one.typical(1)[:, None] for one in models], "typical")

    @classmethod
    def population(
        cls,
        model: PopulationModel,
        count: int,
        covariates: Mapping[str, float] | Cohort | None = None,
        units: Units | None = None,
        seed: int = 0,
    ) -> SimulatedPatients:
        """Patients drawn from the population as it stands, its own uncertainty left aside.

        Args:
            model: the population.
            count: how many.
            covariates: the same for all, or patients who give theirs in turn.
            units: of the model; those of the patients where these are given.
            seed: of the draws.

        Raises:
            ValueError: no patient.
        """
        if count < 1:
            raise ValueError(f"a population has one patient or more, not {count}")
        z = randomness.normal(seed, Stream.SIMULATED_COURSES.at(0), torch.arange(count), model.latent_size)
        nothing = np.empty(0)
        if isinstance(covariates, Cohort):
            rows = [_constant(subject) for subject in covariates]
            people = [Subject(str(k + 1), nothing, nothing, covariates=rows[k % len(rows)]) for k in range(count)]
            return cls(Cohort(tuple(people), covariates.units), [model], [z[:, None]], "population")
        alike = Subject("population", nothing, nothing, covariates=dict(covariates or {}))
        return cls(Cohort((alike,), units or Units()), [model], [z[None]], "population")

    def latents(self, starts: FloatArray | None, seed: int) -> list[Tensor]:
        """z of the draws under a regimen, by model, ``[subject, draw, latent]``. With variability between occasions the
        regimen is an occasion of its own, whose kappa is drawn; that of the typical patient is 0.

        Args:
            starts: as of `batch`; without them the occasions so far are none of the patients'.
            seed: of the draws.
        """
        model = self.models[0]
        changing, stream = len(model.population.changing), Stream.SIMULATED_COURSES.at(2)
        if not changing or self.kind == "typical":
            return self.z
        index, first, found = torch.arange(len(self.cohort)), 0, []
        for z in self.z:
            normal = randomness.normal(seed, stream, index, (first + z.shape[1]) * changing)
            kappa = normal.reshape(len(index), -1, changing)[:, first:].to(z)
            found.append(torch.cat([z if starts is not None else z[..., : model.latent_size], kappa], dim=-1))
            first += z.shape[1]
        return found

    def groups(self) -> list[str]:
        """Names of what is summarised: the patients, or the population as a whole."""
        return ["population"] if self.kind == "population" else list(self.cohort.ids)

    def next_doses(self) -> FloatArray:
        """When the next dose of each patient is due, ``[subject]``: the first that is planned after its last sample,
        else one interval after its last dose; 0 for a patient without doses and samples.

        Raises:
            ValueError: a patient whose interval is not known.
        """
        found = []
        for subject in self.cohort:
            doses, last = written_out(subject.doses), float(max(subject.times[-1:], default=-np.inf))
            planned = [dose.time for dose in doses if dose.time > last and len(subject.times)]
            gap = doses[-1].interval or (doses[-1].time - doses[-2].time if len(doses) > 1 else 0.0) if doses else 0.0
            if planned:
                found.append(planned[0])
            elif doses and not gap:
                raise ValueError(
                    f"subject {subject.id}: one dose does not say when the next is due; give its time (start)"
                )
            else:
                found.append(doses[-1].time + gap if doses else max(last, 0.0))
        return np.array(found)

    def batch(self, regimen: Regimen, starts: FloatArray | None) -> CohortBatch:
        """The patients under a regimen, ready to be followed; its times count from `origin`.

        Args:
            regimen: what is given.
            starts: when it starts on the clock of each patient, after the doses so far, ``[subject]``; None for time
                0 of an empty body.

        Raises:
            ValueError: an amount per kg for a patient without WT; a covariate that the model needs; a start before the
                first record of a patient.
        """
        self._warn_of_doses_at_once(regimen)
        people = []
        for k, subject in enumerate(self.cohort):
            start = 0.0 if starts is None else float(starts[k])
            if starts is None:
                constant = _constant(subject)
                given = regimen.doses(start, constant.get(WEIGHT))
                # a record without a value: the clock begins with the regimen
                own: dict[str, Any] = {"covariates": constant, "occasions": (Occasion(0.0, _REGIMEN),)}
                people.append(Subject(subject.id, np.array([0.0]), np.array([np.nan]), given, **own))
                continue
            if start < subject.start:
                raise ValueError(
                    f"subject {subject.id}: the regimen starts at {start:g}, before the first record at "
                    f"{subject.start:g}"
                )
            given = regimen.doses(start, _at(subject.covariates.get(WEIGHT), start))
            before = [dose for dose in written_out(subject.doses) if dose.time < start]
            late = subject.times >= start
            values = np.where(late, np.nan, subject.values)
            so_far = subject.occasions or (Occasion(subject.start, subject.occasion_labels[0]),)
            occasions = (*(one for one in so_far if one.start < start), Occasion(start, _REGIMEN))
            people.append(dataclasses.replace(subject, doses=(*before, *given), values=values, occasions=occasions))
        batch = evaluation_batch(self.models[0], dataclasses.replace(self.cohort, subjects=tuple(people)))
        return batch.unseen() if starts is None else batch

    def _warn_of_doses_at_once(self, regimen: Regimen) -> None:
        """Say that a regimen does not use the rate or the duration that the model has for infusions."""
        dynamics = self.models[0].dynamics
        at_once = {course.compartment for course in regimen.courses if not (course.duration or course.rate)}
        numbered = enumerate(dynamics.states, start=1)
        states = [name for k, name in numbered if k in at_once and name in dynamics.with_rate + dynamics.with_duration]
        if states:
            warnings.warn(
                f"doses of a regimen into {', '.join(states)} are given at once, without the rate or the duration that "
                "the model has for infusions; ask for it by 'modelled rate' or 'modelled duration', or state a "
                "duration, as in 'infusion 2 h'",
                stacklevel=3,
            )


def _constant(subject: Subject) -> dict[str, float]:
    """The last value of every covariate."""
    return {name: value[-1][1] if isinstance(value, tuple) else value for name, value in subject.covariates.items()}


def _at(value: float | Sequence[tuple[float, float]] | None, time: float) -> float | None:
    """A covariate at a time, its last value carried forward."""
    if value is None or isinstance(value, float | int):
        return value
    return next((v for t, v in reversed(value) if t <= time), value[0][1])
