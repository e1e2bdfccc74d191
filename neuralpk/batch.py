"""Cohorts as the networks and solvers read them: padded tensors.

The table of shapes. Axes always stand in this order, and each has one name throughout the package:

===============  =====================================================================================
axis             meaning
===============  =====================================================================================
``subject``      a patient, an animal, a series; the batch axis
``dose``         dose records of a subject, additional doses (ADDL) written out; padded, ``dose_mask``
``observation``  observation records of a subject; padded, ``mask``
``period``       stretches of constant covariates; padded by repeating the last
``covariate``    covariates, in the order of ``covariate_names``
``grid``         times at which the true line of a simulated subject is known
``endpoint``     what is observed (DVID): one concentration, or prey and predator
``state``        components of the differential equation (compartments, species)
``parameter``    parameters of the differential equation
``latent``       position in the latent space
``node``         breaks of a subject's own clock: events (``neuralpk.solve.mesh``)
``sample``       Monte-Carlo draws
===============  =====================================================================================
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from neuralpk.cohort import Cohort, Subject


@dataclass  # not frozen: Lightning's double precision writes converted tensors into a copy
class TruthBatch:
    """`Truth` of a batch, padded by repeating the last time: ``times [subject, grid]``,
    ``line [subject, grid, endpoint]``, ``parameters`` name to ``[subject]``."""

    times: Tensor
    line: Tensor
    parameters: dict[str, Tensor]

    def to(self, *args: Any, **kwargs: Any) -> TruthBatch:
        """As `torch.Tensor.to`."""
        parameters = {name: value.to(*args, **kwargs) for name, value in self.parameters.items()}
        return TruthBatch(self.times.to(*args, **kwargs), self.line.to(*args, **kwargs), parameters)

    def select(self, subjects: Tensor) -> TruthBatch:
        """Of some of the subjects."""
        parameters = {name: value[subjects] for name, value in self.parameters.items()}
        return TruthBatch(self.times[subjects], self.line[subjects], parameters)


# the fields of a batch that have a column for each observation
_OBSERVED = (
    "time",
    "value",
    "limit",
    "compartment",
    "endpoint",
    "censored",
    "row",
    "mask",
    "observed",
    "context",
    "target",
)


@dataclass
class CohortBatch:
    """Padded tensors of some subjects. Padding is finite everywhere and masked out by ``mask`` and ``dose_mask``.

    Indices count from 0 here: ``compartment`` -1 means that the endpoint decides, ``endpoint`` 0 is DVID 1.
    """

    ids: tuple[str, ...]
    index: Tensor  # [subject] key of the counter-based random numbers
    start: Tensor  # [subject]
    dose_time: Tensor  # [subject, dose]
    dose_amount: Tensor
    dose_rate: Tensor
    dose_duration: Tensor
    dose_interval: Tensor
    dose_compartment: Tensor  # integer
    dose_steady_state: Tensor  # integer
    dose_reset: Tensor  # bool
    dose_row: Tensor  # integer
    dose_mask: Tensor  # bool
    time: Tensor  # [subject, observation]
    value: Tensor
    limit: Tensor  # minus or plus infinity where none was given
    compartment: Tensor  # integer
    endpoint: Tensor  # integer
    censored: Tensor  # integer
    row: Tensor  # integer
    mask: Tensor  # bool: a record, not padding
    observed: Tensor  # bool: a record with a measured value
    context: Tensor  # bool: seen by the encoder
    target: Tensor  # bool: scored by the loss
    covariates: Tensor  # [subject, period, covariate]
    period_start: Tensor  # [subject, period]
    truth: TruthBatch | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def device(self) -> torch.device:
        """Device of the tensors."""
        return self.time.device

    def repeat(self, samples: int) -> CohortBatch:
        """Every subject `samples` times in a row, without its truth: ``[subject · sample]``."""
        tensors = {
            item.name: getattr(self, item.name).repeat_interleave(samples, dim=0)
            for item in dataclasses.fields(self)
            if item.name not in ("ids", "truth")
        }
        return CohortBatch(ids=tuple(i for i in self.ids for _ in range(samples)), **tensors)

    def until(self, elapsed: float) -> CohortBatch:
        """The same with records hidden, from the encoder and from the loss, that come later than `elapsed`, in the unit
        of time, after the subject's first record."""
        early = self.time - self.start[:, None] <= elapsed
        return dataclasses.replace(self, context=self.context & early, target=self.target & early)

    def select(self, subjects: Tensor) -> CohortBatch:
        """Some of the subjects."""
        tensors = {
            item.name: getattr(self, item.name)[subjects]
            for item in dataclasses.fields(self)
            if item.name not in ("ids", "truth")
        }
        truth = None if self.truth is None else self.truth.select(subjects)
        return CohortBatch(ids=tuple(self.ids[k] for k in subjects.tolist()), truth=truth, **tensors)

    def trimmed(self) -> CohortBatch:
        """Without the columns of doses and observations that no subject fills."""
        doses, observations = int(self.dose_mask.sum(1).max()), max(int(self.mask.sum(1).max()), 1)
        cut: dict[str, Any] = {}
        for item in dataclasses.fields(self):
            if item.name.startswith("dose_"):
                cut[item.name] = getattr(self, item.name)[:, :doses]
            elif item.name in _OBSERVED:
                cut[item.name] = getattr(self, item.name)[:, :observations]
        return dataclasses.replace(self, **cut)

    def clone(self) -> CohortBatch:
        """A copy with tensors of its own."""
        return self.select(torch.arange(len(self), device=self.device))

    def to(self, *args: Any, **kwargs: Any) -> CohortBatch:
        """As `torch.Tensor.to`; a dtype changes the floating-point tensors only."""
        tensors: dict[str, Any] = {}
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if isinstance(value, TruthBatch):
                tensors[item.name] = value.to(*args, **kwargs)
            elif isinstance(value, Tensor):
                # a dtype among the arguments would turn integers and masks into floats
                moved = value.to(*args, **kwargs)
                tensors[item.name] = moved if value.is_floating_point() else moved.to(dtype=value.dtype)
        return dataclasses.replace(self, **tensors)


def _pad(rows: Sequence[ArrayLike], kind: torch.dtype, fill: float | bool | None = 0) -> Tensor:
    """Stack rows of unequal length; `fill` None repeats a row's last entry."""
    arrays = [np.asarray(row) for row in rows]
    width = max((len(array) for array in arrays), default=0)
    # through float64: a float32 detour would round the integers
    out = np.zeros((len(arrays), width, *(arrays[0].shape[1:] if arrays else ())))
    for target, array in zip(out, arrays, strict=True):
        target[: len(array)] = array
        if len(array) < width:
            target[len(array) :] = (array[-1] if len(array) else 0) if fill is None else fill
    return torch.as_tensor(out).to(kind)


def _periods(subject: Subject, names: Sequence[str]) -> tuple[list[float], list[list[float]]]:
    """Starts of the stretches of constant covariates and the values in them: the last value is carried forward,
    and before the first record of a covariate its first value holds."""
    steps = {
        name: value if isinstance(value, tuple) else ((subject.start, value),)
        for name, value in subject.covariates.items()
    }
    later = {time for step in steps.values() for time, _ in step if time > subject.start}
    starts = [subject.start, *sorted(later)]
    values = [
        [next((v for t, v in reversed(steps[name]) if t <= start), steps[name][0][1]) for name in names]
        for start in starts
    ]
    return starts, values


def _collate_truth(subjects: Sequence[Subject], dtype: torch.dtype) -> TruthBatch | None:
    truths = [subject.truth for subject in subjects if subject.truth is not None]
    if len(truths) < len(subjects) or not truths:
        return None
    names = truths[0].parameters
    return TruthBatch(
        times=_pad([truth.times for truth in truths], dtype, None),
        line=_pad([truth.line for truth in truths], dtype, None),
        parameters={k: torch.tensor([truth.parameters[k] for truth in truths], dtype=dtype) for k in names},
    )


def collate(
    subjects: Cohort | Sequence[Subject], index: Sequence[int] | None = None, dtype: torch.dtype = torch.float32
) -> CohortBatch:
    """Put subjects into one padded batch; the encoder sees and the loss scores every measured value.

    Args:
        subjects: at least one.
        index: key of each subject for the counter-based random numbers; default 0, 1, 2, …
        dtype: of the floating-point tensors.

    Raises:
        ValueError: no subject.
    """
    if len(subjects) == 0:
        raise ValueError("a batch needs at least one subject")
    names = sorted(subjects[0].covariates)
    doses = [[dose for record in s.doses for dose in record.expand()] for s in subjects]
    doses = [sorted(row, key=lambda dose: (dose.time, dose.row)) for row in doses]
    periods = [_periods(subject, names) for subject in subjects]

    def dose_field(name: str, kind: torch.dtype = dtype) -> Tensor:
        return _pad([[getattr(dose, name) for dose in row] for row in doses], kind)

    def observation_field(name: str, kind: torch.dtype = dtype, fill: float | None = 0) -> Tensor:
        return _pad([getattr(subject, name) for subject in subjects], kind, fill)

    observed = observation_field("observed", torch.bool)
    censored = observation_field("censored", torch.int64)
    limit = observation_field("limits")
    return CohortBatch(
        ids=tuple(subject.id for subject in subjects),
        index=torch.as_tensor(np.arange(len(subjects)) if index is None else np.asarray(index, np.int64)),
        start=torch.tensor([subject.start for subject in subjects], dtype=dtype),
        dose_time=dose_field("time"),
        dose_amount=dose_field("amount"),
        dose_rate=dose_field("rate"),
        dose_duration=dose_field("duration"),
        dose_interval=dose_field("interval"),
        dose_compartment=(dose_field("compartment", torch.int64) - 1).clamp(min=0),
        dose_steady_state=dose_field("steady_state", torch.int64),
        dose_reset=dose_field("reset", torch.bool),
        dose_row=dose_field("row", torch.int64),
        dose_mask=_pad([[True] * len(row) for row in doses], torch.bool),
        time=_pad([s.times if len(s.times) else [s.start] for s in subjects], dtype, None),
        value=torch.nan_to_num(_at_least_one(observation_field("values")), nan=0.0),
        limit=_at_least_one(torch.where(limit.isnan(), torch.where(censored > 0, -torch.inf, torch.inf), limit)),
        compartment=_at_least_one(observation_field("compartments", torch.int64) - 1),
        endpoint=_at_least_one((observation_field("endpoints", torch.int64) - 1).clamp(min=0)),
        censored=_at_least_one(censored),
        row=_at_least_one(observation_field("rows", torch.int64)),
        mask=_at_least_one(_pad([np.ones(len(s.times), bool) for s in subjects], torch.bool)),
        observed=_at_least_one(observed),
        context=_at_least_one(observed.clone()),
        target=_at_least_one(observed.clone()),
        covariates=_pad([values for _, values in periods], dtype, None),
        period_start=_pad([starts for starts, _ in periods], dtype, None),
        truth=_collate_truth(subjects, dtype),
    )


def _at_least_one(field_: Tensor) -> Tensor:
    """A padded column where nobody was observed, so that reductions over observations stay defined."""
    return field_ if field_.shape[1] else field_.new_zeros((len(field_), 1))
