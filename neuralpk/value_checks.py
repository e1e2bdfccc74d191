"""Measured values that a model cannot bear: before a fit those that its likelihood has no place for, after an estimate
those that do not belong to the population."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neuralpk.cohort import Cohort, Subject
from neuralpk.cohort_batch import CohortBatch, collate
from neuralpk.population_model import PopulationModel
from neuralpk.residual_error import ErrorByEndpoint, ProportionalError, ResidualError

_FAR_RESIDUAL = 6.0  # standard deviations of the residual error
_FAR_SUBJECT = 5.0  # standard deviations of the random effects
_NAMED = 5


def bearable(model: PopulationModel, cohort: Cohort) -> Cohort:
    """The cohort without the values that the residual error has no density for, where these come before any dose.

    A residual error of positive values (log-normal) has no density at 0: before the first dose such a value is left out
    and counted in a warning, later it is refused. Under a proportional error it has one, but no information; that, and
    drug before the first dose, where the prediction is 0, is said in a warning.

    Args:
        model: what is fitted, or estimates.
        cohort: its data, read as its dynamics states that they are recorded.

    Raises:
        ValueError: a value at or below 0 after a dose, under a residual error of positive values.
    """
    cohort = model.read_cohort(cohort)
    if not isinstance(model.error, ErrorByEndpoint):
        return _bearable(model.dynamics.dosed, model.error, cohort, None)
    for endpoint, error in enumerate(model.error.models, start=1):
        cohort = _bearable(model.dynamics.dosed, error, cohort, endpoint)
    return cohort


def refuse_without_doses(model: PopulationModel, cohort: Cohort) -> None:
    """Refuse a fit to subjects of whom none has a dose, where the model then predicts 0 everywhere.

    Raises:
        ValueError: such subjects.
    """
    given = any(dose.amount > 0 or dose.rate > 0 for subject in cohort for dose in subject.doses)
    if model.dynamics.dosed and not given and any(subject.observed.any() for subject in cohort):
        some = model.read_cohort(cohort[[*range(min(len(cohort), _NAMED))]])
        with torch.no_grad():
            batch = collate(some, dtype=model.value_scale.dtype)
            moves = bool((model.predict(model.typical(len(batch)), batch).value != 0).any())
        if not moves:
            raise ValueError(
                f"no subject has a dose, and without one {type(model.dynamics).__name__} predicts 0: the table needs "
                "AMT in a row of its own at the time of each dose (or the name of its column, as in columns=AMT=DOSE)"
            )


def _bearable(dosed: bool, error: ResidualError, cohort: Cohort, endpoint: int | None) -> Cohort:
    """`bearable` for the values of one endpoint, or of all that have one error."""
    positive = _of_positive_values(error)
    if not (positive or isinstance(error, ProportionalError)):
        return cohort
    kind = type(error).__name__
    left_out: list[str] = []
    refused: list[str] = []
    weak: list[str] = []
    early: list[str] = []
    subjects: list[Subject] = []
    for subject in cohort:
        measured = subject.observed & (subject.censored == 0)
        if endpoint is not None:
            measured = measured & (subject.endpoints == endpoint)
        before = _before_any_dose(subject) if dosed else np.zeros(len(measured), dtype=bool)
        low = measured & (subject.values <= 0)
        early += _said(subject, measured & before & (subject.values > 0))
        if positive:
            left_out += _said(subject, low & before)
            refused += _said(subject, low & ~before)
            if (low & before).any():
                subject = dataclasses.replace(subject, values=np.where(low & before, np.nan, subject.values))
        else:
            weak += _said(subject, low)
        subjects.append(subject)
    if refused:
        raise ValueError(
            f"{_listed(refused)}: {kind} has no density at or below 0. Below the limit of quantification: the limit in "
            "DV and 1 in CENS; missing: map=DV:0=.; or a CombinedError"
        )
    for found, what in (
        (left_out, f"left out: before the first dose, where {kind} has no density at or below 0"),
        (weak, f"DV at or below 0 under {kind}: hardly counts. Below the limit of quantification: CENS 1"),
        (early, f"measured before the first dose, where the prediction is 0: {kind} has no place for it"),
    ):
        if found:
            warnings.warn(f"{_listed(found)}: {what}", stacklevel=3)
    return dataclasses.replace(cohort, subjects=tuple(subjects))


def warn_of_far_values(model: PopulationModel, batch: CohortBatch, z: Tensor) -> None:
    """Name residuals beyond 6 standard deviations, and subjects beyond 5 of the population.

    Args:
        model: the population.
        batch: the subjects, whose context is looked at.
        z: their estimates, ``[subject, latent]``.
    """
    residual = model.residual(batch, model.predict(z, batch))
    far = batch.context & batch.observed & (batch.censored == 0) & (residual.abs() > _FAR_RESIDUAL)
    times = batch.on_data_clock(batch.time)
    found = [
        f"subject {batch.ids[i]} (TIME {float(times[i, j]):g}, DV {float(batch.value[i, j]):g}, "
        f"{float(residual[i, j]):.0f} sd)"
        for i, j in far.nonzero().tolist()
    ]
    if found:
        warnings.warn(f"{_listed(found)}: residual beyond {_FAR_RESIDUAL:g} standard deviations", stacklevel=3)
    names = _names(model, batch)
    found = [
        f"subject {batch.ids[i]} ({names[k]}, {float(z[i, k]):.1f} {'kappa' if k >= model.latent_size else 'omega'})"
        for i, k in (z.abs() > _FAR_SUBJECT).nonzero().tolist()
    ]
    if found:
        warnings.warn(
            f"{_listed(found)}: more than {_FAR_SUBJECT:g} standard deviations from the population. Look at their "
            "doses, samples and units",
            stacklevel=3,
        )


def _names(model: PopulationModel, batch: CohortBatch) -> list[str]:
    """Of the components of z."""
    population = model.population
    of_latents = [f"latent {k + 1}" for k in range(len(population.varying), model.latent_size)]
    count = batch.occasions.shape[1]
    of_occasions = [f"{name} on occasion {k + 1}" for k in range(count) for name in population.changing]
    return [*population.varying, *of_latents, *of_occasions]


def _of_positive_values(error: ResidualError) -> bool:
    """Whether the residual error has a density for values above 0 alone."""
    if not error.log_values and error.names:
        return False
    place = next(iter(error.log_values.values()), torch.zeros(1))
    one = torch.ones(1, dtype=place.dtype, device=place.device)
    try:
        support = error.distribution(one, torch.zeros(1, dtype=torch.int64, device=place.device)).support
        if support is None:
            return False
        inside: Tensor = support.check(torch.zeros_like(one))  # type: ignore[no-untyped-call]
        return not bool(inside.all())
    except (NotImplementedError, AttributeError):
        return False


def _before_any_dose(subject: Subject) -> NDArray[np.bool_]:
    given = [dose for dose in subject.doses if dose.amount > 0 or dose.rate > 0]
    if not given:
        return np.ones(len(subject.times), dtype=bool)
    first = given[0]
    return np.asarray((subject.times < first.time) | ((subject.times == first.time) & (subject.rows < first.row)))


def _said(subject: Subject, rows: NDArray[np.bool_]) -> Iterator[str]:
    for k in np.flatnonzero(rows):
        place = f"sample {k + 1}, TIME {subject.times[k]:g}, DV {subject.values[k]:g}"
        yield f"subject {subject.id} ({place})"


def _listed(found: list[str]) -> str:
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    return ", ".join(found[:_NAMED]) + more
