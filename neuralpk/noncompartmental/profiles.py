"""Profiles of a cohort: the samples of each subject cut at its doses, on the clock of each dose."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Literal

import numpy as np

from neuralpk.cohort import Cohort, FloatArray, Subject, written_out
from neuralpk.noncompartmental.profile_analysis import Route

Below = Literal["missing", "zero"]


@dataclass(frozen=True)
class Profile:
    """Samples of one endpoint of one subject from one dose on.

    Args:
        id: of the subject.
        endpoint: counted from 1.
        number: of the dose in its subject, counted from 1.
        start: time of the dose on the clock of the data.
        dose: amount.
        route: how it was given.
        duration: of an infusion, 0 otherwise.
        tau: length of the dosing interval; NaN after a single dose.
        first: whether the body was empty before.
        steady: whether the dose is at steady state.
        times: since the dose, increasing, ``[observation]``; those of the last dose may go on after tau.
        values: 0 for one below the limit of quantification, ``[observation]``.
    """

    id: str
    endpoint: int
    number: int
    start: float
    dose: float
    route: Route
    duration: float
    tau: float
    first: bool
    steady: bool
    times: FloatArray
    values: FloatArray


@dataclass(frozen=True)
class _Given:
    """Doses that are given at one time."""

    time: float
    row: int
    amount: float
    duration: float
    tau: float
    first: bool
    steady: bool
    analysed: bool = True


def profiles(
    cohort: Cohort, route: Route, below: Below, steady_from: float | None, notes: list[str]
) -> Iterator[Profile]:
    """Every profile of a cohort that has a dose and a sample above the limit of quantification.

    A sample at the time of a dose is the last of the interval before; where the dose is no bolus it is the first of
    the next too. A dose with a rate or a duration is an infusion.

    Args:
        cohort: the subjects.
        route: of the doses without rate and duration.
        below: what a value below the limit after the first measurable one of its profile is; before, it is 0.
        steady_from: time from which on doses are at steady state, besides those with SS.
        notes: what is left out is added here, a sentence for each subject.
    """
    for subject in cohort:
        given = list(_given(subject, steady_from, notes))
        if not any(one.analysed for one in given):
            notes.append(f"subject {subject.id}: no dose that could be analysed")
            continue
        for endpoint in sorted({int(k) for k in subject.endpoints[subject.observed]}):
            yield from _of_endpoint(subject, endpoint, given, route, below, notes)


def _given(subject: Subject, steady_from: float | None, notes: list[str]) -> Iterator[_Given]:
    doses = written_out(subject.doses)
    groups = [list(group) for _, group in groupby(doses, key=lambda dose: dose.time)]
    amounts = [group for group in groups if any(dose.amount > 0 for dose in group)]
    if any(dose.rate > 0 and dose.amount == 0 for dose in doses):
        notes.append(f"subject {subject.id}: a constant infusion at steady state is left out")
    before: _Given | None = None
    for k, group in enumerate(amounts):
        real = [dose for dose in group if dose.amount > 0]
        durations = {dose.infused_over for dose in real}
        time, amount, interval = real[0].time, sum(dose.amount for dose in real), real[0].interval
        modelled = any(dose.is_modelled for dose in real)
        if modelled or len(durations) > 1:
            what = "infusions without a rate or a duration (RATE -1, -2)" if modelled else "doses of several durations"
            notes.append(f"subject {subject.id}: {what} at TIME {time:g} are left out")
            before = None  # it ends the profile of the dose before
            yield _Given(time, real[0].row, amount, 0.0, np.nan, False, False, analysed=False)
            continue
        later = [other[0].time for other in amounts[k + 1 : k + 2]]
        # the last dose has the interval of the one before
        tau = later[0] - time if later else interval or (before.tau if before is not None else np.nan)
        emptied = any(dose.reset for dose in doses if before is not None and before.time < dose.time <= time)
        stated = any(dose.steady_state for dose in real)
        goes_on = before is not None and before.steady and not emptied
        # the additional doses of a record at steady state repeat it
        same = goes_on and before is not None and before.amount == amount and np.isclose(before.tau, time - before.time)
        steady = stated or same or (steady_from is not None and time >= steady_from)
        tau = interval if stated and interval else tau
        first = (k == 0 or emptied) and not stated
        before = _Given(time, real[0].row, amount, durations.pop(), tau, first, bool(steady))
        yield before


def _of_endpoint(
    subject: Subject, endpoint: int, given: list[_Given], route: Route, below: Below, notes: list[str]
) -> Iterator[Profile]:
    own = subject.observed & (subject.endpoints == endpoint)
    above = own & (subject.censored < 0)
    if above.any():
        notes.append(f"subject {subject.id}: {int(above.sum())} values above a limit (CENS -1) are left out")
    own &= subject.censored >= 0
    time, row, censored = subject.times[own], subject.rows[own], subject.censored[own] > 0
    value = np.where(censored, 0.0, subject.values[own])
    negative = value < 0
    if negative.any():
        notes.append(f"subject {subject.id}: {int(negative.sum())} negative values are left out")
    early = (time < given[0].time) & (value > 0)
    if early.any():
        notes.append(f"subject {subject.id}: {int(early.sum())} values before the first dose are left out")
    for k, one in enumerate(given):
        if not one.analysed:
            continue
        following = given[k + 1] if k + 1 < len(given) else None
        kind: Route = "infusion" if one.duration else route
        after = (time > one.time) | ((time == one.time) & (row > one.row))
        if kind != "bolus":
            after |= time == one.time
        inside = after & ~negative
        if following is not None:
            bolus = not following.duration and route == "bolus"
            inside &= (time < following.time) | ((time == following.time) & ((row < following.row) | (not bolus)))
        t, y = _usable(time[inside] - one.time, value[inside], censored[inside], below)
        profile = Profile(
            subject.id, endpoint, k + 1, one.time, one.amount, kind, one.duration, one.tau, one.first, one.steady, t, y
        )
        if (y > 0).any():
            yield profile
        elif inside.any():
            notes.append(f"subject {subject.id}, dose {k + 1}: no value above the limit of quantification")


def _usable(times: FloatArray, values: FloatArray, censored: np.ndarray, below: Below) -> tuple[FloatArray, FloatArray]:
    """Without the values below the limit that count as missing, replicates averaged."""
    if below == "missing" and (~censored).any():
        first = int(np.argmax(~censored))
        kept = ~censored | (np.arange(len(times)) < first)
        times, values = times[kept], values[kept]
    distinct = np.unique(times)
    return distinct, np.array([values[times == t].mean() for t in distinct])


def profiles_of_curves(cohort: Cohort, lines: dict[str, tuple[FloatArray, FloatArray, FloatArray]]) -> Cohort:
    """The cohort with the points of curves instead of its samples, each after the doses of its time.

    Args:
        cohort: whose doses count.
        lines: times, values and endpoints by subject.

    Raises:
        ValueError: curves of a subject that is not in the cohort.
    """
    unknown = [name for name in lines if name not in cohort.ids]
    if unknown:
        raise ValueError(f"curves of subject {', '.join(unknown[:5])}, who is not in the table with the doses")
    subjects = []
    for subject in cohort:
        if subject.id not in lines:
            continue
        times, values, endpoints = lines[subject.id]
        order = np.argsort(times, kind="stable")
        subjects.append(
            Subject(
                subject.id,
                times[order],
                values[order],
                subject.doses,
                endpoints=endpoints[order].astype(np.int64),
                covariates=subject.covariates,
            )
        )
    return replace(cohort, subjects=tuple(subjects))
