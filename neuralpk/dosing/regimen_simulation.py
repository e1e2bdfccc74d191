"""The course of patients under regimens: curves with bands, and exposure over an interval."""

from __future__ import annotations

import dataclasses
import warnings
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from neuralpk.cohort import FloatArray, Units
from neuralpk.cohort_batch import CohortBatch
from neuralpk.dosing.adaptive_rule import AdaptiveRule
from neuralpk.dosing.regimen import Regimen
from neuralpk.dosing.simulated_patients import SimulatedPatients
from neuralpk.exposure import ExposureGrid
from neuralpk.inference.quantiles import interval as middle
from neuralpk.population_model import PopulationModel
from neuralpk.randomness import Stream
from neuralpk.solve import Noise, SolveError

_SOLVED_AT_ONCE = 20_000  # rows: bounds the memory
_CURVE_POINTS = 300
_UNITS = {
    "AUC": "{time}*{value}", "CMAX": "{value}", "TMAX": "{time}", "CMIN": "{value}", "CTROUGH": "{value}",
    "CAVG": "{value}", "TABOVE": "{time}", "PABOVE": "%", "DOSE": "{amount}", "CHANGES": "",
}  # fmt: skip


@dataclass(frozen=True)
class Course:
    """What happens under one regimen.

    Args:
        regimen: what was given.
        interval: over which the exposure is computed, since the start of the regimen.
        curve: noise-free values, ``[subject, draw, time, endpoint]``.
        exposure: by name of `neuralpk.exposure.METRICS`, each ``[subject, draw, endpoint]``; with an adaptive
            rule also DOSE, the amount given in all, and CHANGES, how often the rule changed it.
    """

    regimen: Regimen
    interval: tuple[float, float]
    curve: FloatArray
    exposure: dict[str, FloatArray]


@dataclass(frozen=True)
class RegimenSimulation:
    """Courses of the same patients under several regimens.

    Args:
        patients: whose courses they are.
        times: of the curves since the start of the regimen, ``[time]``.
        courses: one for each regimen.
        above: threshold of the time above; None for none.
    """

    patients: SimulatedPatients
    times: FloatArray
    courses: list[Course]
    above: float | None = None

    @property
    def units(self) -> Units:
        """Of the model."""
        return self.patients.cohort.units

    def curves(self) -> pd.DataFrame:
        """REGIMEN, ID, DVID (with several endpoints), TIME since the start of the regimen, MEDIAN, LO90, HI90: over
        the draws of each patient, or over the patients of a population."""
        frames = []
        for course in self.courses:
            for name, values in self._grouped(course.curve):
                low, mid, high = _summary(values)
                for endpoint in range(values.shape[-1]):
                    frames.append(
                        pd.DataFrame(
                            {
                                "REGIMEN": course.regimen.name,
                                "ID": name,
                                "DVID": endpoint + 1,
                                "TIME": self.times,
                                "MEDIAN": mid[:, endpoint],
                                "LO90": low[:, endpoint],
                                "HI90": high[:, endpoint],
                            }
                        )
                    )
        found = pd.concat(frames, ignore_index=True)
        return found if found["DVID"].nunique() > 1 else found.drop(columns="DVID")

    def exposures(self) -> pd.DataFrame:
        """REGIMEN, ID, DVID (with several endpoints), METRIC, UNIT, START and END of its interval, MEDIAN, LO90, HI90,
        MEAN: as `curves`."""
        rows = []
        for course in self.courses:
            for metric, all_values in course.exposure.items():
                unit = _UNITS[metric].format(**self.units._asdict())
                for name, values in self._grouped(all_values):
                    low, mid, high = _summary(values)
                    for endpoint in range(values.shape[-1]):
                        rows.append(
                            {
                                "REGIMEN": course.regimen.name,
                                "ID": name,
                                "DVID": endpoint + 1,
                                "METRIC": metric,
                                "UNIT": unit,
                                "START": course.interval[0],
                                "END": course.interval[1],
                                "MEDIAN": mid[endpoint],
                                "LO90": low[endpoint],
                                "HI90": high[endpoint],
                                "MEAN": np.nanmean(values[..., endpoint]),
                            }
                        )
        found = pd.DataFrame(rows)
        return found if found["DVID"].nunique() > 1 else found.drop(columns="DVID")

    def draws(self) -> pd.DataFrame:
        """Exposure of every draw: REGIMEN, ID, DRAW, DVID (with several endpoints), and a column for each metric."""
        frames = []
        for course in self.courses:
            shape = next(iter(course.exposure.values())).shape
            subject, draw, endpoint = (axis.ravel() for axis in np.indices(shape))
            frame = pd.DataFrame({"REGIMEN": course.regimen.name, "ID": np.array(self.patients.cohort.ids)[subject]})
            frame["DRAW"], frame["DVID"] = draw + 1, endpoint + 1
            frames.append(frame.assign(**{name: values.ravel() for name, values in course.exposure.items()}))
        found = pd.concat(frames, ignore_index=True)
        return found if found["DVID"].nunique() > 1 else found.drop(columns="DVID")

    def _grouped(self, values: FloatArray) -> list[tuple[str, FloatArray]]:
        """Values of each patient ``[draw, ...]``, or those of the population as one."""
        if self.patients.kind == "population":
            return [("population", values.reshape(-1, *values.shape[2:]))]
        return list(zip(self.patients.cohort.ids, values, strict=True))


def simulate_regimens(
    patients: SimulatedPatients,
    regimens: Sequence[Regimen],
    *,
    until: float | None = None,
    interval: tuple[float, float] | None = None,
    above: float | None = None,
    starts: FloatArray | float | None = None,
    rule: AdaptiveRule | None = None,
    seed: int = 0,
) -> RegimenSimulation:
    """Follow patients under regimens.

    Args:
        patients: who.
        regimens: what is given, each to all of them.
        until: end of the curves since the start of the regimen; default the end of the last dosing interval.
        interval: over which the exposure is computed, since the start of the regimen; default the last dosing interval
            of each regimen, and the whole time for one without.
        above: threshold of the time above, value unit.
        starts: when the regimens start on the clock of the patients, after their doses so far; default time 0 of an
            empty body.
        rule: changes the doses of each patient by its troughs of the first endpoint.
        seed: of the paths of a stochastic dynamics.

    Raises:
        ValueError: no regimen; no end that is known.
        neuralpk.solve.SolveError: no patient could be solved.
    """
    if not regimens:
        raise ValueError("a simulation needs one regimen or more")
    ends = [regimen.end for regimen in regimens]
    last = max((end for end in ends if end is not None), default=None)
    horizon = until if until is not None else max(last or 0.0, interval[1] if interval else 0.0)
    if until is not None and not until > 0:
        raise ValueError(f"until is the end of the curves, a time after the start of the regimen, not {until:g}")
    if not horizon > 0:
        raise ValueError(
            "until when? The last dose of these regimens has no interval, so that their end must be given (until)"
        )
    if starts is not None:
        starts = np.broadcast_to(np.asarray(starts, float), (len(patients.cohort),)).copy()
    times = _curve_times(regimens, horizon)
    courses = []
    for regimen in regimens:
        over = interval or regimen.last_interval or (0.0, horizon)
        grid = ExposureGrid.of(over, regimen.events())
        wanted = np.concatenate([times, grid.times])
        values, more = course_values(patients, regimen, wanted, starts, rule, seed)
        metrics = grid.metrics(np.moveaxis(values[:, :, len(times) :], -2, -1), above)
        courses.append(Course(regimen, over, values[:, :, : len(times)], metrics | more))
    return RegimenSimulation(patients, times, courses, above)


def _curve_times(regimens: Sequence[Regimen], horizon: float) -> FloatArray:
    """Equal steps, and both sides of every dose."""
    events = {event for regimen in regimens for event in regimen.events() if 0 < event <= horizon}
    before = [event - max(1e-6 * horizon, 1e-12) for event in events]
    return np.unique(np.concatenate([np.linspace(0.0, horizon, _CURVE_POINTS), [*events], before]))


def course_values(
    patients: SimulatedPatients,
    regimen: Regimen,
    times: FloatArray,
    starts: FloatArray | None = None,
    rule: AdaptiveRule | None = None,
    seed: int = 0,
) -> tuple[FloatArray, dict[str, FloatArray]]:
    """Noise-free values of the patients under one regimen; arguments as of `simulate_regimens`.

    Args:
        patients: who.
        regimen: what is given.
        times: since the start of the regimen, ``[time]``.
        starts: when it starts on the clock of each patient, ``[subject]``; None for an empty body.
        rule: changes the doses of each patient.
        seed: of the paths of a stochastic dynamics.

    Returns:
        Values ``[subject, draw, time, endpoint]``, NaN where a course could not be solved, which a warning counts; and
        with a rule DOSE and CHANGES, ``[subject, draw, endpoint]``.

    Raises:
        neuralpk.solve.SolveError: no course could be solved.
    """
    batch = patients.batch(regimen, starts)
    begin = torch.zeros(len(batch), dtype=torch.float64) if starts is None else torch.as_tensor(starts)
    origin = torch.tensor(batch.origin, dtype=torch.float64) if batch.origin else torch.zeros(len(batch)).double()
    at = (begin - origin)[:, None] + torch.as_tensor(times)
    values, given, failed = [], [], 0
    for model, z in zip(patients.models, patients.latents(starts, seed), strict=True):
        samples = z.shape[1]
        of_model, doses_of_model = [], []
        for part in torch.split(torch.arange(len(batch)), max(1, _SOLVED_AT_ONCE // samples)):
            rows = batch.select(part).repeat(samples)
            flat, when = z[part].flatten(0, 1), at[part].repeat_interleave(samples, dim=0)
            if rule is not None:
                shift = (begin - origin)[part].repeat_interleave(samples)
                rows, changes = _adapted(model, flat, rows, regimen, shift, rule, seed)
                doses_of_model.append(_given(rows, shift, changes).reshape(len(part), samples, 2))
            value, ok = _values(model, flat, rows, when, seed)
            failed += int((~ok).sum())
            of_model.append(value.reshape(len(part), samples, *value.shape[1:]))
        values.append(torch.cat(of_model))
        if rule is not None:
            given.append(torch.cat(doses_of_model))
    found = torch.cat(values, dim=1).cpu().numpy()
    if failed:
        total = found.shape[0] * found.shape[1]
        if failed == total:
            raise SolveError(f"regimen {regimen.name!r}: none of {total} courses could be solved")
        warnings.warn(f"regimen {regimen.name!r}: {failed} of {total} courses could not be solved", stacklevel=3)
    if rule is None:
        return found, {}
    done = torch.cat(given, dim=1).numpy()[:, :, None].repeat(found.shape[-1], axis=2)
    return found, {"DOSE": done[..., 0], "CHANGES": done[..., 1]}


def _values(model: PopulationModel, z: Tensor, batch: CohortBatch, times: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Noise-free values ``[row, time, endpoint]``, NaN for a row that could not be solved, and which could."""
    noise = Noise(seed, Stream.SIMULATED_COURSES.at(1)) if model.dynamics.stochastic else None
    with torch.no_grad():
        trajectory = model.trajectory(z, batch, times, noise=noise)
        value = model.observe(trajectory)
    return value.masked_fill(~trajectory.ok[:, None, None], torch.nan), trajectory.ok


def _adapted(
    model: PopulationModel,
    z: Tensor,
    batch: CohortBatch,
    regimen: Regimen,
    begin: Tensor,
    rule: AdaptiveRule,
    seed: int,
) -> tuple[CohortBatch, Tensor]:
    """The batch with the doses that the rule leads to, and how often it changed those of each row."""
    rank = _of_regimen(batch, begin)
    planned = regimen.doses(weight=1.0)
    factor = begin.new_ones((len(batch), len(planned)))
    changes = torch.zeros(len(batch), dtype=torch.long)
    now = batch
    times = [dose.time for dose in planned]
    for last, time in pairwise(sorted(set(times))):
        due = range(bisect_left(times, time), bisect_right(times, time))
        just_before = max(1e-9 * (time - last), 1e-13 * time)
        when = (begin + time - just_before)[:, None]
        trough, _ = _values(model, z, now, when, seed)
        factor, changes = rule.apply(factor, due, trough[:, 0, 0], changes)
        of_dose = torch.where(rank >= 0, factor.gather(1, rank.clamp(min=0)), 1.0)
        doses = dataclasses.replace(batch.doses, amount=batch.doses.amount * of_dose)
        # what is not given at all is no record: one of amount 0 would be refused
        doses = dataclasses.replace(doses, mask=doses.mask & (doses.amount > 0))
        now = dataclasses.replace(batch, doses=doses)
    return now, changes


def _of_regimen(batch: CohortBatch, begin: Tensor) -> Tensor:
    """Which dose of the regimen each dose record is, from 0; −1 for those before it, ``[row, dose]``."""
    own = batch.doses.mask & (batch.doses.time >= begin[:, None] - 1e-9)
    return torch.where(own, own.long().cumsum(1) - 1, -1)


def _given(batch: CohortBatch, begin: Tensor, changes: Tensor) -> Tensor:
    """Amount given in the regimen and number of changes, ``[row, 2]``."""
    own = batch.doses.mask & (batch.doses.time >= begin[:, None] - 1e-9)
    return torch.stack([torch.where(own, batch.doses.amount, 0.0).sum(1), changes.double()], dim=1)


def _summary(values: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Ends of the middle 90 % and the median over the first axis."""
    tensor = torch.as_tensor(values)[None]
    low, high = middle(tensor)[:, 0].numpy()
    return low, np.nanmedian(values, axis=0), high
