"""The data: doses, subjects and cohorts as they were recorded, and the padded batch the networks and solvers read.

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
``node``         breaks of a subject's own clock: events and wanted times (``neuralpk.solve.mesh``)
``sample``       Monte-Carlo draws
===============  =====================================================================================

Times, amounts and values carry the units of the cohort (`Units`); nothing in the package converts them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, overload

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Covariate = float | tuple[tuple[float, float], ...]
"""A constant, or the steps of a piecewise constant function as ``((time, value), ...)``."""


class Units(NamedTuple):
    """Units of a cohort, as they are to stand on axes and in tables."""

    time: str = "h"
    amount: str = "mg"
    value: str = "mg/L"


@dataclass(frozen=True)
class Dose:
    """One dose record, or a reset.

    Args:
        time: when the record stands, cohort time unit.
        amount: dose, cohort amount unit (AMT). 0 for a pure reset or a steady-state constant infusion.
        compartment: where it goes, counted from 1 (CMT).
        rate: infusion rate, amount per time (RATE); bioavailability then changes the duration. 0: not given.
        duration: infusion duration, time (DUR); bioavailability then changes the rate. 0: not given.
        interval: time between additional or steady-state doses (II).
        additional: number of further identical doses (ADDL).
        steady_state: 0, 1 (resets to steady state) or 2 (steady state is added to the present state) (SS).
        reset: empty every compartment and stop every infusion first (EVID 3 and 4).
        row: order among records at the same time; the dose acts on observations of the same time with a larger row.

    Raises:
        ValueError: a value that no dose can have, named with the rule it breaks.
    """

    time: float
    amount: float = 0.0
    compartment: int = 1
    rate: float = 0.0
    duration: float = 0.0
    interval: float = 0.0
    additional: int = 0
    steady_state: int = 0
    reset: bool = False
    row: int = 0

    def __post_init__(self) -> None:
        numbers = (self.time, self.amount, self.rate, self.duration, self.interval)
        if not all(np.isfinite(numbers)):
            raise ValueError(f"dose at {self.time}: time, amount, rate, duration and interval must be finite: {self}")
        if min(self.amount, self.rate, self.duration, self.interval, self.additional) < 0:
            raise ValueError(f"dose at {self.time}: nothing in a dose may be negative: {self}")
        if self.compartment < 1:
            raise ValueError(f"dose at {self.time}: compartments are counted from 1, not {self.compartment}")
        if self.rate and self.duration:
            raise ValueError(f"dose at {self.time}: give rate {self.rate} or duration {self.duration}, not both")
        if self.steady_state not in (0, 1, 2):
            raise ValueError(f"dose at {self.time}: steady_state is 0, 1 or 2, not {self.steady_state}")
        if self.additional and not self.interval:
            raise ValueError(f"dose at {self.time}: {self.additional} additional doses need an interval above 0")
        constant = self.steady_state == 1 and self.rate > 0 and self.interval == 0
        if self.amount == 0 and not (self.reset or constant):
            raise ValueError(f"dose at {self.time}: amount 0 only for a reset or a steady-state constant infusion")
        if self.steady_state and not (self.interval or (constant and self.amount == 0)):
            raise ValueError(f"dose at {self.time}: steady state needs an interval above 0")

    def expand(self) -> list[Dose]:
        """The record and its additional doses, each as a dose of its own."""
        if not self.additional:
            return [self]
        first = dataclasses.replace(self, additional=0)
        later = dataclasses.replace(first, steady_state=0, reset=False)
        return [first] + [
            dataclasses.replace(later, time=self.time + k * self.interval) for k in range(1, self.additional + 1)
        ]


@dataclass(frozen=True)
class Truth:
    """What only a simulation knows of a subject; for evaluation, never an input of the encoder.

    Args:
        times: ``[grid]``.
        line: noise-free observed quantity, ``[grid, endpoint]``.
        parameters: the subject's own parameters by name.
    """

    times: FloatArray
    line: FloatArray
    parameters: Mapping[str, float]


def _array(values: ArrayLike | None, n: int, default: float, kind: type) -> NDArray[Any]:
    return np.full(n, default, kind) if values is None else np.atleast_1d(np.asarray(values, kind))


@dataclass(frozen=True)
class Subject:
    """One subject: what was given, what was seen, and when.

    Args:
        id: identifier, unique in its cohort.
        times: times of the observation records, not decreasing, ``[observation]``.
        values: observed values (DV); NaN where a prediction is wanted but nothing was measured.
        doses: dose records.
        compartments: where each is read, counted from 1; 0 leaves it to the endpoint (CMT).
        endpoints: which endpoint each belongs to, counted from 1 (DVID).
        censored: 1 left-censored with the LLOQ in `values`, -1 right-censored, 0 not (CENS).
        limits: other end of a censoring interval, NaN for none (LIMIT).
        rows: order among records at the same time; the default is after every dose.
        covariates: constants, or steps in time, by name.
        truth: for simulated subjects.

    Raises:
        ValueError: lengths that differ, times that decrease, a non-finite time, an infinite value.
    """

    id: str
    times: FloatArray
    values: FloatArray
    doses: tuple[Dose, ...] = ()
    compartments: IntArray = None  # type: ignore[assignment]  # filled below, so that readers always meet an array
    endpoints: IntArray = None  # type: ignore[assignment]
    censored: IntArray = None  # type: ignore[assignment]
    limits: FloatArray = None  # type: ignore[assignment]
    rows: IntArray = None  # type: ignore[assignment]
    covariates: Mapping[str, Covariate] = field(default_factory=dict)
    truth: Truth | None = None

    def __post_init__(self) -> None:
        n = np.size(self.times)
        last = max((dose.row for dose in self.doses), default=0)
        defaults = {"times": np.nan, "values": np.nan, "limits": np.nan}
        defaults |= {"compartments": 0, "endpoints": 1, "censored": 0, "rows": last + 1}
        for name, default in defaults.items():
            kind = float if name in ("times", "values", "limits") else np.int64
            object.__setattr__(self, name, _array(getattr(self, name), n, default, kind))
            if len(getattr(self, name)) != n:
                raise ValueError(f"subject {self.id}: {len(getattr(self, name))} {name} for {n} times")
        object.__setattr__(self, "doses", tuple(sorted(self.doses, key=lambda dose: (dose.time, dose.row))))
        if not np.isfinite(self.times).all():
            raise ValueError(f"subject {self.id}: observation times must be finite, got {self.times}")
        backwards = self.times[1:] < self.times[:-1]
        if backwards.any():
            k = int(np.argmax(backwards))
            raise ValueError(
                f"subject {self.id}: time {self.times[k + 1]} after {self.times[k]}; sort the observations"
            )
        if np.isinf(self.values).any():
            raise ValueError(f"subject {self.id}: an observed value is infinite")

    @property
    def start(self) -> float:
        """Where the subject's clock starts: its first record."""
        firsts = [*self.times[:1], *(dose.time for dose in self.doses[:1])]
        return float(min(firsts, default=0.0))

    @property
    def observed(self) -> NDArray[np.bool_]:
        """Which records hold a measured value, ``[observation]``."""
        return ~np.isnan(self.values)


@dataclass(frozen=True)
class Cohort(Sequence[Subject]):
    """Subjects that are analysed together. Indexing by an integer gives a `Subject`, by a slice or list a `Cohort`.

    Raises:
        ValueError: an identifier that occurs twice; a covariate that some subjects lack.
    """

    subjects: tuple[Subject, ...]
    units: Units = Units()  # noqa: RUF009  # a NamedTuple cannot be changed

    def __post_init__(self) -> None:
        object.__setattr__(self, "subjects", tuple(self.subjects))
        ids = [subject.id for subject in self.subjects]
        if len(set(ids)) < len(ids):
            twice = sorted({i for i in ids if ids.count(i) > 1})
            raise ValueError(f"subjects occur more than once: {', '.join(twice[:5])}")
        names = {tuple(sorted(subject.covariates)) for subject in self.subjects}
        if len(names) > 1:
            raise ValueError(f"subjects differ in their covariates: {sorted(names)}. Give every subject each of them.")

    @overload
    def __getitem__(self, index: int) -> Subject: ...
    @overload
    def __getitem__(self, index: slice | Sequence[int]) -> Cohort: ...
    def __getitem__(self, index: int | slice | Sequence[int]) -> Subject | Cohort:
        if isinstance(index, slice):
            return dataclasses.replace(self, subjects=self.subjects[index])
        if isinstance(index, Sequence):
            return dataclasses.replace(self, subjects=tuple(self.subjects[i] for i in index))
        return self.subjects[index]

    def __len__(self) -> int:
        return len(self.subjects)

    def __iter__(self) -> Iterator[Subject]:
        return iter(self.subjects)

    @property
    def ids(self) -> tuple[str, ...]:
        """Identifiers, in order."""
        return tuple(subject.id for subject in self.subjects)

    @property
    def covariate_names(self) -> tuple[str, ...]:
        """Names of the covariates, sorted: the order of the covariate axis."""
        return tuple(sorted(self.subjects[0].covariates)) if self.subjects else ()

    def with_covariates(self, names: Sequence[str]) -> Cohort:
        """The cohort with some of its covariates only.

        Raises:
            ValueError: a name that is not a covariate here.
        """
        if set(names) - set(self.covariate_names):
            raise ValueError(f"covariates here are {list(self.covariate_names)}, not {list(names)}")
        kept = [{name: subject.covariates[name] for name in names} for subject in self.subjects]
        pairs = zip(self.subjects, kept, strict=True)
        return dataclasses.replace(self, subjects=tuple(dataclasses.replace(s, covariates=c) for s, c in pairs))


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
