"""The data as they were recorded: doses, subjects, cohorts.

Times, amounts and values carry the units of the cohort (`Units`); nothing in the package converts them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Covariate = float | tuple[tuple[float, float], ...]
"""A constant, or the steps of a piecewise constant function as ``((time, value), ...)``."""

MODELLED_RATE, MODELLED_DURATION = -1.0, -2.0
"""Values of the rate of a dose (RATE): the rate, or the duration, of its infusion is a parameter of the model."""

MOST_ADDITIONAL = 1_000
"""Additional doses of one record: each is an event of its own for the solver."""
MOST_OVERLAPPING = 100
"""Intervals that an infusion at steady state, or its lag, may last: so many infusions overlap."""


class Units(NamedTuple):
    """Units of a cohort, as they are to stand on axes and in tables."""

    time: str = "h"
    amount: str = "mg"
    value: str = "mg/L"

    @classmethod
    def of(cls, words: Sequence[str]) -> Units:
        """From the three units of time, amount and value.

        Raises:
            ValueError: fewer or more.
        """
        if len(words) != len(cls._fields):
            raise ValueError(f"units are three, of time, amount and value, as in h mg mg/L; got {' '.join(words)}")
        return cls(*words)


@dataclass(frozen=True)
class Dose:
    """One dose record, or a reset.

    Args:
        time: when the record stands, cohort time unit.
        amount: dose, cohort amount unit (AMT). 0 for a pure reset or a steady-state constant infusion.
        compartment: where it goes, counted from 1 (CMT).
        rate: infusion rate, amount per time (RATE); bioavailability then changes the duration. 0: not given. -1: a
            parameter of the model is the rate; -2: one is the duration.
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

    @property
    def infused_over(self) -> float:
        """Duration of the infusion as the record states it, bioavailability aside; 0 for a bolus, and where it is a
        parameter of the model."""
        return self.amount / self.rate if self.rate > 0 else self.duration

    @property
    def is_modelled(self) -> bool:
        """Whether the rate or the duration of its infusion is a parameter of the model."""
        return self.rate < 0

    @property
    def infusion_ends(self) -> list[float]:
        """When its infusion ends, and at steady state those that began before and still run; bioavailability aside."""
        over, interval = self.infused_over, self.interval
        running = math.ceil(over / interval) if self.steady_state and interval else 1
        return [self.time + over - k * interval for k in range(running)] if over else []

    def __post_init__(self) -> None:
        numbers = (self.time, self.amount, self.rate, self.duration, self.interval)
        if not all(np.isfinite(numbers)):
            raise ValueError(f"dose at {self.time}: time, amount, rate, duration and interval must be finite: {self}")
        rate = 0.0 if self.rate in (MODELLED_RATE, MODELLED_DURATION) else self.rate
        if min(self.amount, rate, self.duration, self.interval, self.additional) < 0:
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
        if self.additional > MOST_ADDITIONAL:
            raise ValueError(f"dose at {self.time}: {self.additional} additional doses; at most {MOST_ADDITIONAL:,}")
        lasts = self.infused_over
        if self.steady_state and self.interval and lasts > MOST_OVERLAPPING * self.interval:
            raise ValueError(
                f"dose at {self.time}: an infusion at steady state of {lasts / self.interval:,.0f} intervals; at most "
                f"{MOST_OVERLAPPING}. Check the units of rate and interval"
            )

    @property
    def resets(self) -> bool:
        """Whether the record ends everything that was given before: EVID 3, EVID 4 and SS 1."""
        return self.reset or self.steady_state == 1


def written_out(doses: Iterable[Dose]) -> list[Dose]:
    """Dose records of one subject with each additional dose (ADDL) as a record of its own, in order of time and row.

    A record that resets the system (EVID 3, EVID 4, SS 1) cancels the additional doses of the records before it which
    have not been given yet.
    """
    records = sorted(doses, key=lambda dose: (dose.time, dose.row))
    given: list[Dose] = []
    until = np.inf  # the next reset after the record
    for record in reversed(records):
        given.append(dataclasses.replace(record, additional=0) if record.additional else record)
        later = dataclasses.replace(given[-1], steady_state=0, reset=False) if record.additional else record
        for k in range(1, record.additional + 1):
            time = record.time + k * record.interval
            if time >= until:
                break
            given.append(dataclasses.replace(later, time=time))
        if record.resets:
            until = record.time
    return sorted(given, key=lambda dose: (dose.time, dose.row))


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


class Occasion(NamedTuple):
    """A stretch of the records of one subject on one occasion.

    Attributes:
        start: time of its first record.
        label: of the occasion; a label that comes again means the same occasion again.
        row: order of its first record among those of the same time; records with a smaller row belong to the stretch
            before.
    """

    start: float
    label: str
    row: int = 0


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
        occasions: in the order of time; the first reaches back to the first record. None given is one occasion.

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
    occasions: tuple[Occasion, ...] = ()

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
        object.__setattr__(self, "occasions", tuple(Occasion(*one) for one in self.occasions))
        if any(b[::2] <= a[::2] for a, b in pairwise(self.occasions)):
            raise ValueError(f"subject {self.id}: the occasions are not in the order of time: {self.occasions}")

    @property
    def start(self) -> float:
        """Where the subject's clock starts: its first record."""
        firsts = [*self.times[:1], *(dose.time for dose in self.doses[:1])]
        return float(min(firsts, default=0.0))

    @property
    def occasion_labels(self) -> tuple[str, ...]:
        """Every occasion once, in the order of time."""
        return tuple(dict.fromkeys(one.label for one in self.occasions)) or ("1",)

    @property
    def observed(self) -> NDArray[np.bool_]:
        """Which records hold a measured value, ``[observation]``."""
        return ~np.isnan(self.values)


@dataclass(frozen=True)
class Cohort(Sequence[Subject]):
    """Subjects that are analysed together. Indexing by an integer gives a `Subject`, by a slice or list a `Cohort`.

    Args:
        subjects: the subjects, each with an identifier of its own and the same covariates.
        units: of times, amounts and values.
        states_censoring: whether the data say of every value whether it is censored, as a table with CENS does.

    Raises:
        ValueError: an identifier that occurs twice; a covariate that some subjects lack.
    """

    subjects: tuple[Subject, ...]
    units: Units = Units()  # noqa: RUF009  # a NamedTuple cannot be changed
    states_censoring: bool = False

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

    def without_occasions(self) -> Cohort:
        """The cohort with one occasion for each subject."""
        if not any(subject.occasions for subject in self.subjects):
            return self
        return dataclasses.replace(
            self, subjects=tuple(dataclasses.replace(subject, occasions=()) for subject in self.subjects)
        )

    def hidden_from(self, time: float) -> Cohort:
        """The cohort with every value from a time on as not measured; a prediction is still wanted there."""
        values = [np.where(subject.times < time, subject.values, np.nan) for subject in self.subjects]
        pairs = zip(self.subjects, values, strict=True)
        return dataclasses.replace(self, subjects=tuple(dataclasses.replace(s, values=v) for s, v in pairs))

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
