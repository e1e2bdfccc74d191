"""Batches of a cohort as padded tensors: what the networks and the solvers read.

The table of shapes. Axes always stand in this order, and each has one name throughout the package:

===============  =====================================================================================
axis             meaning
===============  =====================================================================================
``subject``      a patient, an animal, a series; the batch axis
``dose``         dose records of a subject, additional doses (ADDL) written out; padded, ``doses.mask``
``observation``  observation records of a subject; padded, ``mask``
``period``       periods of constant covariates on one occasion; padded by repeating the last
``occasion``     occasions of a subject; padded, ``occasions``
``covariate``    covariates, in the order of ``covariate_names``
``grid``         times at which the true concentration curve of a simulated subject was computed
``endpoint``     what is observed (DVID): one concentration, or prey and predator
``state``        components of the differential equation (compartments, species)
``parameter``    parameters of the differential equation
``latent``       dimensions of the latent space
``node``         events of a subject between which nothing but the equation acts (``neuralpk.solve.event_nodes``)
``sample``       Monte-Carlo samples
===============  =====================================================================================
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from neuralpk.cohort import Cohort, Dose, Occasion, Subject, written_out

_Batch = TypeVar("_Batch", "Doses", "CohortBatch")
_MANY_DOSES = 10_000  # with their padding; fewer are no burden
_MOST_PADDING = 3  # times the doses
BEFORE_ANY_RECORD = -1
"""Row of a period that begins before all records of its time."""


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
        moved = TruthBatch(self.times.to(*args, **kwargs), self.line.to(*args, **kwargs), parameters)
        same = all(value is self.parameters[name] for name, value in parameters.items())
        return self if same and moved.times is self.times and moved.line is self.line else moved

    def select(self, subjects: Tensor) -> TruthBatch:
        """Of some of the subjects."""
        parameters = {name: value[subjects] for name, value in self.parameters.items()}
        return TruthBatch(self.times[subjects], self.line[subjects], parameters)


@dataclass
class Doses:
    """The dose records of some subjects, additional doses (ADDL) written out, in the order of time and row.

    Every field is ``[subject, dose]``. Padding is finite everywhere and False in ``mask``. Times and amounts have the
    units of the cohort.

    Args:
        time: of the record.
        amount: AMT.
        rate: of an infusion, amount per time; 0 where none is stated.
        duration: of an infusion; 0 where none is stated.
        interval: between steady-state doses (II).
        compartment: counted from 0, integer.
        steady_state: 0, 1 or 2 (SS), integer.
        reset: whether the compartments are emptied first, bool.
        row: order among records of the same time, integer.
        mask: a record, not padding, bool.
    """

    time: Tensor
    amount: Tensor
    rate: Tensor
    duration: Tensor
    interval: Tensor
    compartment: Tensor
    steady_state: Tensor
    reset: Tensor
    row: Tensor
    mask: Tensor

    @classmethod
    def of(cls, rows: Sequence[Sequence[Dose]], dtype: torch.dtype = torch.float32) -> Doses:
        """The doses of each subject, in any order; additional doses are written out.

        Args:
            rows: one sequence of doses for each subject.
            dtype: of the floating-point tensors.
        """
        ordered = [written_out(row) for row in rows]

        def column(name: str, kind: torch.dtype = dtype) -> Tensor:
            return _pad([[getattr(dose, name) for dose in row] for row in ordered], kind)

        return cls(
            time=column("time"),
            amount=column("amount"),
            rate=column("rate"),
            duration=column("duration"),
            interval=column("interval"),
            compartment=(column("compartment", torch.int64) - 1).clamp(min=0),
            steady_state=column("steady_state", torch.int64),
            reset=column("reset", torch.bool),
            row=column("row", torch.int64),
            mask=_pad([[True] * len(row) for row in ordered], torch.bool),
        )

    @classmethod
    def none(cls, subjects: int, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None) -> Doses:
        """No dose at all, for a number of subjects."""
        return cls.of([()] * subjects, dtype).to(device)

    def __len__(self) -> int:
        return len(self.time)

    @property
    def at_steady_state(self) -> Tensor:
        """The records that start from a steady state, bool ``[subject, dose]``."""
        return self.mask & (self.steady_state > 0)

    def select(self, subjects: Tensor) -> Doses:
        """The doses of some of the subjects."""
        return self._each(lambda tensor: tensor[subjects])

    def repeat(self, samples: int) -> Doses:
        """Every subject `samples` times in a row."""
        return self._each(lambda tensor: tensor.repeat_interleave(samples, dim=0))

    def trimmed(self) -> Doses:
        """Without the columns that no subject fills."""
        most = int(self.mask.sum(1).max()) if len(self) else 0
        return self._each(lambda tensor: tensor[:, :most])

    def to(self, *args: Any, **kwargs: Any) -> Doses:
        """As `torch.Tensor.to`; a dtype changes the floating-point tensors only."""
        return _itself(self, self._each(lambda tensor: _moved(tensor, *args, **kwargs)))

    def _each(self, function: Callable[[Tensor], Tensor]) -> Doses:
        return Doses(*(function(getattr(self, item.name)) for item in dataclasses.fields(self)))


_OBSERVATION = {"axis": "observation"}  # of a field of `CohortBatch` with one column for each observation


@dataclass
class CohortBatch:
    """Padded tensors of some subjects. Padding is finite everywhere and masked out by ``mask`` and ``doses.mask``.

    Indices count from 0 here: ``compartment`` -1 means that the endpoint decides, ``endpoint`` 0 is DVID 1. Times of a
    subject count from its ``origin`` on the clock of the data: 0, or its first record where that is far from 0, such as
    hours since 1970, of which single precision would keep days.
    """

    ids: tuple[str, ...]
    index: Tensor  # [subject] key of the counter-based random numbers
    start: Tensor  # [subject]
    doses: Doses
    time: Tensor = field(metadata=_OBSERVATION)  # [subject, observation], as all that follow up to `target`
    value: Tensor = field(metadata=_OBSERVATION)
    limit: Tensor = field(metadata=_OBSERVATION)  # minus or plus infinity where there is none
    compartment: Tensor = field(metadata=_OBSERVATION)  # integer
    endpoint: Tensor = field(metadata=_OBSERVATION)  # integer
    censored: Tensor = field(metadata=_OBSERVATION)  # integer
    row: Tensor = field(metadata=_OBSERVATION)  # integer
    mask: Tensor = field(metadata=_OBSERVATION)  # bool: a record, not padding
    observed: Tensor = field(metadata=_OBSERVATION)  # bool: a record with a measured value
    context: Tensor = field(metadata=_OBSERVATION)  # bool: seen by the encoder
    target: Tensor = field(metadata=_OBSERVATION)  # bool: scored by the loss
    covariates: Tensor  # [subject, period, covariate]
    period_start: Tensor  # [subject, period]
    period_row: Tensor  # [subject, period] integer: records of the time of the start with a smaller row come before
    occasion: Tensor  # [subject, period] integer
    occasions: Tensor  # [subject, occasion] bool: an occasion of the subject, not padding
    truth: TruthBatch | None = None
    origin: tuple[float, ...] = ()  # of each subject; empty for 0

    @classmethod
    def unmeasured(
        cls,
        times: Tensor,
        doses: Doses | None = None,
        start: Tensor | None = None,
        period_start: Tensor | None = None,
        ids: Sequence[str] | None = None,
    ) -> CohortBatch:
        """Subjects without a measured value and without covariates, for predictions at some times.

        Args:
            times: ``[subject, observation]``.
            doses: of the same dtype; None for no dose.
            start: time at which each subject has its initial state, ``[subject]``; default: the earliest of its doses
                and times.
            period_start: where each period begins, ``[subject, period]``; default: one period.
            ids: names for messages; default: 1, 2, 3, …
        """
        doses = Doses.none(len(times), times.dtype, times.device) if doses is None else doses
        if start is None:
            dosed = torch.where(doses.mask, doses.time, torch.inf)
            start = torch.cat([times, dosed], dim=1).amin(1)
        whole, every = torch.zeros_like(times, dtype=torch.int64), torch.ones_like(times, dtype=torch.bool)
        period_start = start[:, None] if period_start is None else period_start
        period = torch.zeros_like(period_start, dtype=torch.int64)
        return cls(
            ids=tuple(str(k + 1) for k in range(len(times))) if ids is None else tuple(ids),
            index=torch.arange(len(times), device=times.device),
            start=start,
            doses=doses,
            time=times,
            value=torch.zeros_like(times),
            limit=torch.full_like(times, torch.inf),
            compartment=whole - 1,
            endpoint=whole,
            censored=whole,
            row=torch.full_like(whole, torch.iinfo(torch.int64).max),
            mask=every,
            observed=~every,
            context=~every,
            target=~every,
            covariates=times.new_zeros((*period_start.shape, 0)),
            period_start=period_start,
            period_row=period + BEFORE_ANY_RECORD,
            occasion=period,
            occasions=every.new_ones((len(times), 1)),
        )

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def device(self) -> torch.device:
        """Device of the tensors."""
        return self.time.device

    def on_data_clock(self, times: Tensor) -> Tensor:
        """Times ``[subject, time]`` of the batch as the data have them, in double precision where they are far from
        0."""
        if not self.origin:
            return times
        digits = times.detach().cpu().numpy().astype(str).astype(np.float64)  # 0.3, not 0.30000001
        return torch.as_tensor(digits + np.array(self.origin)[:, None]).to(times.device)

    def unseen(self) -> CohortBatch:
        """The same without a record in the context: for predictions from the population alone."""
        return dataclasses.replace(self, context=torch.zeros_like(self.context))

    def first_seen(self, count: int | None) -> CohortBatch:
        """The same with the first `count` observed records of each subject as its context; None for all."""
        seen = self.observed if count is None else self.observed & (self.observed.long().cumsum(1) <= count)
        return dataclasses.replace(self, context=seen)

    def scored_on(self, records: Tensor) -> CohortBatch:
        """The same with these records as the target, bool ``[subject, observation]``."""
        return dataclasses.replace(self, target=records)

    def scored_on_context(self) -> CohortBatch:
        """The same with the context as the target: a posterior is made of the records in the context."""
        return self.scored_on(self.context)

    def scored_on_all(self) -> CohortBatch:
        """The same with the records in the context or the target as the target."""
        return self.scored_on(self.context | self.target)

    def split(self, seen: Tensor) -> CohortBatch:
        """The same with these records as the context, bool ``[subject, observation]``, and all other observed ones as
        the target."""
        return dataclasses.replace(self, context=seen, target=self.observed & ~seen)

    def until(self, elapsed: float) -> CohortBatch:
        """The same with records removed from context and target that come later than `elapsed`, in the unit of time,
        after the subject's first record."""
        early = self.time - self.start[:, None] <= elapsed
        return dataclasses.replace(self, context=self.context & early, target=self.target & early)

    def period_at(self, times: Tensor, rows: Tensor | None = None) -> Tensor:
        """Index of the period in which each time lies, ``[subject, time]``; a period includes its start.

        Args:
            times: ``[subject, time]``.
            rows: order of records among those of the same time, ``[subject, time]``; by default after all of them.
        """
        if self.period_start.shape[1] == 1:
            return torch.zeros_like(times, dtype=torch.int64)
        starts, times = self.period_start.detach(), times.detach().contiguous()
        started = torch.searchsorted(starts, times, right=True)
        if rows is not None and bool((self.period_row > BEFORE_ANY_RECORD).any()):
            later = (starts[:, None] == times[..., None]) & (self.period_row[:, None] > rows[..., None])
            # the padding repeats the last period, which has begun where one of them has
            started = started - later.sum(-1)
        return started.clamp(min=1) - 1

    def theta_at(self, theta: Tensor, times: Tensor, rows: Tensor | None = None) -> Tensor:
        """The parameters in force at some times, ``[subject, time, parameter]``.

        Args:
            theta: ``[subject, period, parameter]``; one period serves for all of them.
            times: ``[subject, time]``.
            rows: as of `period_at`.
        """
        if theta.shape[1] == 1:  # as `theta_in`, without a search for the periods
            return theta.expand(-1, times.shape[1], -1)
        return theta_in(theta, self.period_at(times, rows))

    def repeat(self, samples: int) -> CohortBatch:
        """Every subject `samples` times in a row, without its truth: ``[subject · sample]``."""
        tensors = {name: getattr(self, name).repeat_interleave(samples, dim=0) for name in self._tensors()}
        ids = tuple(i for i in self.ids for _ in range(samples))
        origin = tuple(t for t in self.origin for _ in range(samples))
        return CohortBatch(ids=ids, doses=self.doses.repeat(samples), origin=origin, **tensors)

    def select(self, subjects: Tensor) -> CohortBatch:
        """Some of the subjects."""
        tensors = {name: getattr(self, name)[subjects] for name in self._tensors()}
        ids = tuple(self.ids[k] for k in subjects.tolist())
        origin = tuple(self.origin[k] for k in subjects.tolist()) if self.origin else ()
        truth = None if self.truth is None else self.truth.select(subjects)
        return CohortBatch(ids=ids, doses=self.doses.select(subjects), truth=truth, origin=origin, **tensors)

    def trimmed(self) -> CohortBatch:
        """Without the columns of doses and observations that no subject fills."""
        most = max(int(self.mask.sum(1).max()), 1)
        cut: dict[str, Any] = {
            item.name: getattr(self, item.name)[:, :most]
            for item in dataclasses.fields(self)
            if item.metadata.get("axis") == "observation"
        }
        return dataclasses.replace(self, doses=self.doses.trimmed(), **cut)

    def of_like_length(self) -> list[CohortBatch]:
        """The batch, unless most of its doses would be padding: then its subjects in batches of those with half to all
        of a number of doses, which is a power of two."""
        count = self.doses.mask.sum(1)
        padded = self.doses.mask.numel()
        if padded < _MANY_DOSES or padded < _MOST_PADDING * int(count.sum()):
            return [self]
        power = count.clamp(min=1).double().log2().ceil()
        return [self.select((power == k).nonzero()[:, 0]).trimmed() for k in sorted(set(power.tolist()))]

    def clone(self) -> CohortBatch:
        """A copy that shares no memory."""
        return self.select(torch.arange(len(self), device=self.device))

    def to(self, *args: Any, **kwargs: Any) -> CohortBatch:
        """As `torch.Tensor.to`; a dtype changes the floating-point tensors only."""
        tensors: dict[str, Any] = {name: _moved(getattr(self, name), *args, **kwargs) for name in self._tensors()}
        truth = None if self.truth is None else self.truth.to(*args, **kwargs)
        moved = dataclasses.replace(self, doses=self.doses.to(*args, **kwargs), truth=truth, **tensors)
        return _itself(self, moved)

    def _tensors(self) -> list[str]:
        """Names of the fields that are tensors."""
        return [item.name for item in dataclasses.fields(self) if item.name not in ("ids", "doses", "truth", "origin")]


def theta_in(theta: Tensor, period: Tensor) -> Tensor:
    """The parameters of some periods.

    Args:
        theta: ``[subject, period, parameter]``; its last period also serves for every later one.
        period: index, ``[subject, time]``.

    Returns:
        ``[subject, time, parameter]``.
    """
    if theta.shape[1] == 1:
        return theta.expand(-1, period.shape[1], -1)
    last = torch.tensor(theta.shape[1] - 1, device=theta.device)
    return theta.gather(1, torch.minimum(period, last)[..., None].expand(-1, -1, theta.shape[-1]))


def _moved(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    # a dtype among the arguments would turn integers and masks into floats
    moved = tensor.to(*args, **kwargs)
    return moved if tensor.is_floating_point() else moved.to(dtype=tensor.dtype)


def _itself(before: _Batch, moved: _Batch) -> _Batch:
    """The object before, with what is kept with it, where nothing has moved."""
    fields = [item.name for item in dataclasses.fields(before)]
    return before if all(getattr(before, name) is getattr(moved, name) for name in fields) else moved


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


class _Period(NamedTuple):
    """Constant covariates on one occasion."""

    start: float
    row: int
    occasion: int
    values: list[float]


def _periods(subject: Subject, names: Sequence[str]) -> list[_Period]:
    """The periods of constant covariates on one occasion: the last value is carried forward, and before the first
    record of a covariate its first value is used."""
    steps = {
        name: value if isinstance(value, tuple) else ((subject.start, value),)
        for name, value in subject.covariates.items()
    }
    later = {(time, BEFORE_ANY_RECORD) for step in steps.values() for time, _ in step if time > subject.start}
    occasions = [(one.start, _first_row(subject, one), one.label) for one in subject.occasions[1:]]
    starts = [(subject.start, BEFORE_ANY_RECORD), *sorted(later | {one[:2] for one in occasions})]
    labels = subject.occasion_labels
    found = []
    for start in starts:
        values = [next((v for t, v in reversed(steps[name]) if t <= start[0]), steps[name][0][1]) for name in names]
        label = next((name for *at, name in reversed(occasions) if tuple(at) <= start), labels[0])
        found.append(_Period(*start, labels.index(label), values))
    return found


def _first_row(subject: Subject, occasion: Occasion) -> int:
    """The row from which on records of its first time are of an occasion."""
    rows = [*subject.rows[subject.times == occasion.start], *(d.row for d in subject.doses if d.time == occasion.start)]
    return occasion.row if any(row < occasion.row for row in rows) else BEFORE_ANY_RECORD


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
    origin = [_origin(subject) for subject in subjects]
    subjects = [_from(subject, start) for subject, start in zip(subjects, origin, strict=True)]
    names = sorted(subjects[0].covariates)
    periods = [_periods(subject, names) for subject in subjects]

    def observation_field(name: str, kind: torch.dtype = dtype, fill: float | None = 0) -> Tensor:
        return _pad([getattr(subject, name) for subject in subjects], kind, fill)

    observed = observation_field("observed", torch.bool)
    censored = observation_field("censored", torch.int64)
    limit = observation_field("limits")
    return CohortBatch(
        ids=tuple(subject.id for subject in subjects),
        index=torch.as_tensor(np.arange(len(subjects)) if index is None else np.asarray(index, np.int64)),
        start=torch.tensor([subject.start for subject in subjects], dtype=dtype),
        doses=Doses.of([subject.doses for subject in subjects], dtype),
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
        covariates=_pad([[period.values for period in of] for of in periods], dtype, None),
        period_start=_pad([[period.start for period in of] for of in periods], dtype, None),
        period_row=_pad([[period.row for period in of] for of in periods], torch.int64, None),
        occasion=_pad([[period.occasion for period in of] for of in periods], torch.int64, None),
        occasions=_pad([np.ones(len(subject.occasion_labels), bool) for subject in subjects], torch.bool),
        truth=_collate_truth(subjects, dtype),
        origin=tuple(origin) if any(origin) else (),
    )


def _origin(subject: Subject) -> float:
    """The first record of a subject whose clock begins farther from 0 than it runs, else 0."""
    last = max([subject.start, *subject.times[-1:], *(dose.time for dose in written_out(subject.doses))])
    return subject.start if abs(subject.start) > last - subject.start else 0.0


def _from(subject: Subject, origin: float) -> Subject:
    """The subject on a clock that begins at `origin`, in double precision."""
    if not origin:
        return subject
    truth = subject.truth
    return dataclasses.replace(
        subject,
        times=subject.times - origin,
        doses=tuple(dataclasses.replace(dose, time=dose.time - origin) for dose in subject.doses),
        covariates={
            name: tuple((time - origin, v) for time, v in value) if isinstance(value, tuple) else value
            for name, value in subject.covariates.items()
        },
        occasions=tuple(one._replace(start=one.start - origin) for one in subject.occasions),
        truth=None if truth is None else dataclasses.replace(truth, times=truth.times - origin),
    )


def _at_least_one(field_: Tensor) -> Tensor:
    """A padded column where nobody was observed, so that reductions over observations stay defined."""
    return field_ if field_.shape[1] else field_.new_zeros((len(field_), 1))
