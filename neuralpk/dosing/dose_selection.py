"""The dose and interval that reach a target most probably, among those that can be given and under limits.

For research: what is computed here is no medical advice and no medical device.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch

from neuralpk.cohort import FloatArray
from neuralpk.dosing.regimen import Course, Regimen, time_in
from neuralpk.dosing.regimen_simulation import course_values
from neuralpk.dosing.simulated_patients import SimulatedPatients
from neuralpk.dosing.target import Target
from neuralpk.exposure import ExposureGrid
from neuralpk.inference.quantiles import interval as middle

NOTE = "For research: no medical advice, and no medical device."
_LINEAR = 1e-6  # of the highest value: curves that lie so near to a straight line in the dose are one

When = Literal["steady", "next"] | int


@dataclass(frozen=True)
class DoseSelection:
    """Every candidate with its probabilities, and the choice for every patient.

    Args:
        patients: for whom.
        target: what is to be reached.
        limits: what must hold.
        candidates: one row for each patient, dose and interval: ID, DOSE, EVERY, PROB (of the target), LIMIT_1, …
            (probability of each limit), KEPT (whether every limit has its probability), MEDIAN, LO90, HI90 (of the
            quantity of the target), CHOSEN.
        loading: the same for loading doses before the chosen regimen; empty where none is asked for.
        at_least: probability of the target below which it is not reached.
        starts: when the next dose is given on the clock of each patient, ``[subject]``; None where it does not count.
    """

    patients: SimulatedPatients
    target: Target
    limits: tuple[Target, ...]
    candidates: pd.DataFrame
    loading: pd.DataFrame
    at_least: float
    starts: FloatArray | None = None

    def chosen(self) -> pd.DataFrame:
        """One row for each patient: ID, START (of the next dose, where it counts), DOSE, EVERY, PROB, REACHED (a
        candidate keeps the limits and has at least the wanted probability), MEDIAN, LO90, HI90, and LOADING (the chosen
        DOSE where none is better) and its PROB_LOADING where asked for. DOSE is empty where no candidate keeps the
        limits."""
        rows = self.candidates[self.candidates["CHOSEN"]].set_index("ID")
        found = rows.reindex(self.patients.groups())
        found["REACHED"] = found["PROB"] >= self.at_least
        if self.starts is not None:
            found["START"] = self.starts
        columns = [
            *(["START"] if "START" in found else []),
            "DOSE",
            "EVERY",
            "PROB",
            "REACHED",
            "MEDIAN",
            "LO90",
            "HI90",
        ]
        if len(self.loading):
            load = self.loading[self.loading["CHOSEN"]].set_index("ID").reindex(found.index)
            found = found.assign(LOADING=load["DOSE"], PROB_LOADING=load["PROB"])
            columns += ["LOADING", "PROB_LOADING"]
        return found[columns].rename_axis("ID").reset_index()

    def sentences(self) -> list[str]:
        """What was found, one sentence for each patient."""
        return [self._sentence(row) for row in self.chosen().to_dict("records")]

    def _sentence(self, row: Mapping[Any, Any]) -> str:
        who = "" if self.patients.kind != "patients" else f"subject {row['ID']}: "
        units = self.patients.cohort.units
        if np.isnan(row["DOSE"]):
            said = "; ".join(limit.name for limit in self.limits)
            return f"{who}no dose reaches {self.target.name}: none of the candidates keeps {said}"
        since = f" from {row['START']:g} {units.time} on" if "START" in row else ""
        dose = f"{row['DOSE']:g} {units.amount} every {row['EVERY']:g} {units.time}"
        dose += "" if "LOADING" in row else since
        reach = f"{100 * row['PROB']:.0f} % (median {row['MEDIAN']:.4g}, 90 % {row['LO90']:.4g} to {row['HI90']:.4g})"
        if not row["PROB"]:
            own = self.candidates[(self.candidates["ID"] == row["ID"]) & self.candidates["KEPT"]]["MEDIAN"]
            tried = "candidates that keep the limits" if self.limits else "candidates"
            return (
                f"{who}no dose reaches {self.target.name}: none of the {tried} does so in any draw; the lowest median "
                f"is {own.min():.4g}, the highest {own.max():.4g}"
            )
        if not row["REACHED"]:
            wanted = f"{100 * self.at_least:g} %"
            return f"{who}no dose reaches {self.target.name} with {wanted}; the most probable is {dose} with {reach}"
        loading, first = "", row.get("LOADING")
        if first is not None and np.isnan(first):
            said = "; ".join(limit.name for limit in self.limits)
            loading = f"; in the first interval{since} no dose keeps {said}"
        elif first is not None:
            same = "no loading dose" if first == row["DOSE"] else f"a loading dose of {first:g} {units.amount}"
            loading = f"; in the first interval{since} {same} does so with {100 * row['PROB_LOADING']:.0f} %"
        return f"{who}{dose} reaches {self.target.name} with {reach}{loading}"


def select_doses(
    patients: SimulatedPatients,
    target: Target,
    doses: Sequence[float],
    every: Sequence[float],
    *,
    limits: Iterable[Target] = (),
    when: When = "steady",
    infusion: float = 0.0,
    compartment: int = 1,
    starts: FloatArray | float | None = None,
    loading: Sequence[float] = (),
    at_least: float = 0.5,
    greatest_daily: float | None = None,
    seed: int = 0,
) -> DoseSelection:
    """Find the dose and interval with the highest probability of a target among those that keep all limits; of equal
    ones the lowest amount per time.

    Args:
        patients: for whom: given ones by their posterior, or the population.
        target: what is to be reached in a dosing interval.
        doses: amounts that can be given.
        every: intervals, time unit.
        limits: what must hold with a probability, in the same dosing interval.
        when: the interval: "steady" at steady state, "next" after the next dose, or after the n-th from now.
        infusion: duration, time unit; 0 for none.
        compartment: where it goes, counted from 1.
        starts: when the next dose is given on the clock of the patients; default when it is due
            (`SimulatedPatients.next_doses`). At steady state that of the loading dose.
        loading: amounts of a loading dose, which is to reach the target in the first interval; the chosen dose itself
            is a candidate too.
        at_least: probability of the target below which no dose reaches it.
        greatest_daily: most amount in 24 h of the candidates, not of a loading dose; None for no bound.
        seed: of the paths of a stochastic dynamics.

    Raises:
        ValueError: no candidate; a number that cannot be; a target or limit of an output that the model lacks.
        neuralpk.solve.SolveError: no course could be solved.
    """
    doses, every, limits = sorted(set(doses)), sorted(set(every)), tuple(limits)
    if not doses or not every or min(doses) < 0 or min(every) <= 0 or (loading and min(loading) < 0):
        raise ValueError(f"doses are 0 or above and intervals above 0; got doses {doses}, every {every}")
    if starts is not None and when == "steady" and not loading:
        raise ValueError("starts: a steady state does not start at a time; leave it out, or ask for the next interval")
    if not (when in ("steady", "next") or (isinstance(when, int) and when >= 1)):
        raise ValueError(f"when is 'steady', 'next' or a number of doses, not {when!r}")
    if not 0 <= at_least <= 1:
        raise ValueError(f"at_least is a probability between 0 and 1, not {at_least}")
    greatest_rate = np.inf if greatest_daily is None else greatest_daily / time_in(24.0, "h", patients.cohort.units)
    given = patients.kind == "patients" and (when != "steady" or bool(loading))
    begin = None
    if given:
        begin = (
            patients.next_doses()
            if starts is None
            else np.broadcast_to(np.asarray(starts, float), len(patients.cohort))
        )
        begin = np.array(begin)
    rows = []
    for tau in every:
        allowed = [dose for dose in doses if dose / tau <= greatest_rate * (1 + 1e-9)]
        if not allowed:
            continue
        course = Course(1.0, tau, 1, infusion, 0.0, compartment, steady_state=when == "steady")
        count = when if isinstance(when, int) else 1
        if count > 1:
            course = Course(1.0, tau, count, infusion, 0.0, compartment)
        start = None if when == "steady" else begin
        rows += _candidates(patients, course, allowed, target, limits, start, seed)
    if not rows:
        raise ValueError(f"no dose of {doses[0]:g} or more every {max(every):g} stays within {greatest_daily:g} a day")
    candidates = _choose(pd.DataFrame(rows))
    extra: list[dict[str, object]] = []
    if loading:
        chosen = candidates[candidates["CHOSEN"]]
        for tau in every:
            group = chosen[chosen["EVERY"] == tau]
            if not len(group):
                continue
            course = Course(1.0, tau, 1, infusion, 0.0, compartment)
            # the maintenance dose itself is a candidate: no loading dose
            own = dict(zip(group["ID"], group["DOSE"], strict=True))
            found = _candidates(patients, course, sorted({*loading, *own.values()}), target, limits, begin, seed)
            extra += [r for r in found if r["ID"] in own and (r["DOSE"] in loading or r["DOSE"] == own[r["ID"]])]
    load = _choose(pd.DataFrame(extra)) if extra else pd.DataFrame()
    return DoseSelection(patients, target, limits, candidates, load, at_least, begin)


def _candidates(
    patients: SimulatedPatients,
    course: Course,
    doses: Sequence[float],
    target: Target,
    limits: Sequence[Target],
    starts: FloatArray | None,
    seed: int,
) -> list[dict[str, object]]:
    """A row for each patient and dose of one interval."""
    last = course.times[-1]
    grid = ExposureGrid.of((last, course.end), Regimen((course,)).events())
    rows: list[dict[str, object]] = []
    for dose, curve in _curves(patients, course, doses, grid, starts, seed):
        values = _grouped(patients, target.values(grid, curve))
        kept = [_grouped(patients, limit.values(grid, curve)) for limit in limits]
        for k, name in enumerate(patients.groups()):
            low, high = middle(torch.as_tensor(values[k])[None])[:, 0].tolist()
            row: dict[str, object] = {"ID": name, "DOSE": dose, "EVERY": course.interval}
            row["PROB"] = float(target.holds(values[k]).mean())
            row["KEPT"] = True
            for number, (limit, held) in enumerate(zip(limits, kept, strict=True), start=1):
                probability = float(limit.holds(held[k]).mean())
                row[f"LIMIT_{number}"] = probability
                row["KEPT"] = bool(row["KEPT"]) and probability >= (limit.probability or 0.0)
            rows.append(row | {"MEDIAN": float(np.nanmedian(values[k])), "LO90": low, "HI90": high})
    return rows


def _curves(
    patients: SimulatedPatients,
    course: Course,
    doses: Sequence[float],
    grid: ExposureGrid,
    starts: FloatArray | None,
    seed: int,
) -> Iterable[tuple[float, FloatArray]]:
    """Each dose with its curves ``[subject, draw, time, endpoint]``. Where three of them lie on a straight line in the
    dose, as in a linear system, the others are not solved."""

    def solved(dose: float) -> FloatArray:
        amount = Course(
            dose, course.interval, course.count, course.duration, 0.0, course.compartment, course.steady_state
        )
        name = f"{dose:g} every {course.interval:g}"
        return course_values(patients, Regimen((amount,), name), grid.times, starts, seed=seed)[0]

    if len(doses) <= 3:
        return ((dose, solved(dose)) for dose in doses)
    low, high = doses[0], doses[-1]
    middle_dose = doses[len(doses) // 2]
    first, last, between = solved(low), solved(high), solved(middle_dose)
    slope = (last - first) / (high - low)
    away = np.abs(first + (middle_dose - low) * slope - between)
    if np.nanmax(away) <= _LINEAR * np.nanmax(np.abs(last)):
        return ((dose, first + (dose - low) * slope) for dose in doses)
    known = {low: first, middle_dose: between, high: last}
    return ((dose, known[dose] if dose in known else solved(dose)) for dose in doses)


def _grouped(patients: SimulatedPatients, values: FloatArray) -> FloatArray:
    """Values ``[subject, draw]`` as ``[group, draw]``."""
    return values.reshape(1, -1) if patients.kind == "population" else values


def _choose(rows: pd.DataFrame) -> pd.DataFrame:
    """The table with CHOSEN."""
    rate = (rows["DOSE"] / rows["EVERY"]).round(9)
    ranked = rows.assign(RATE=rate)[rows["KEPT"]].sort_values(["PROB", "RATE", "EVERY"], ascending=[False, True, False])
    best = ranked.drop_duplicates("ID").index
    ordered = rows.assign(CHOSEN=rows.index.isin(best))
    limits = [name for name in rows if str(name).startswith("LIMIT_")]
    columns = ["ID", "DOSE", "EVERY", "PROB", *limits, "KEPT", "MEDIAN", "LO90", "HI90", "CHOSEN"]
    place = {name: k for k, name in enumerate(dict.fromkeys(rows["ID"]))}
    return ordered[columns].sort_values("ID", key=lambda ids: ids.map(place), kind="stable").reset_index(drop=True)
