"""Commands from a model to a decision: the course of patients under regimens, and the dose that reaches a target."""

from __future__ import annotations

import re
import sys
import warnings
from pathlib import Path
from typing import Any, Literal

from neuralpk.atomic_files import replacing
from neuralpk.cli.csv_files import write_csv
from neuralpk.cli.faults import UsageError
from neuralpk.dosing import AdaptiveRule, SimulatedPatients, parse_regimens
from neuralpk.dosing import simulate_regimens as follow
from neuralpk.dosing.dose_selection import NOTE, select_doses
from neuralpk.dosing.model_patients import given_patients, simulated_population, typical_patient
from neuralpk.dosing.prior_predictive import data_p_values, unlike_population
from neuralpk.dosing.target import Target
from neuralpk.saved_model import SavedModel, read_model

_SHOWN = 5
_SENTENCES = 20
_METRICS = ("AUC", "CMAX", "CTROUGH", "PABOVE", "DOSE", "CHANGES")
REGIMEN_FILES = ("curves.csv", "exposures.csv", "exposure_draws.csv", "regimens.png")
DOSE_FILES = ("doses.csv", "candidates.csv", "doses.png")


def simulate_regimens(
    model: Path,
    regimen: str,
    out: Path,
    who: Literal["typical", "population", "patients"] | None = None,
    table: Path | None = None,
    subjects: int = 500,
    patient: dict[str, float] | None = None,
    until: float | None = None,
    interval: list[float] | None = None,
    above: float | None = None,
    start: float | None = None,
    adapt: str | None = None,
    draws: int = 200,
    seed: int = 0,
    log: bool = False,
    unverified: bool = False,
    **reading: Any,
) -> None:
    """Follow patients under regimens by a model: curves with 90 % bands and exposure.

    Args:
        model: checkpoint of a training, or population file.
        regimen: what is given, "100 mg q12h x 6, infusion 2 h"; several with | between them.
        out: folder for curves.csv and exposures.csv (median and 90 % interval), exposure_draws.csv (every draw) and
            the figure regimens.png.
        who: the typical patient, a simulated population, or the patients of the table given their samples; null for
            the patients where there is a table and the typical patient where there is none.
        table: event table of the patients; with --who population they give their covariates.
        subjects: of a simulated population.
        patient: covariates, {WT: 80}; those left out have their reference values.
        until: end of the curves; null for the end of the last dosing interval.
        interval: start and end of the exposure since the start of the regimen; null for the last dosing interval.
        above: threshold of the time above, in the unit of the values.
        start: time of the table at which the regimen starts, after the doses so far; null for an empty body.
        adapt: changes doses by troughs, "trough > 20 : dose x 0.5" (also skip; at most N times).
        draws: of each given patient.
        seed: of the draws.
        log: draw the values on a logarithmic scale.
        unverified: also read a checkpoint without a sha256.
        reading: how the table is read.
    """
    saved = read_model(model, unverified)
    print(saved.description)
    given = parse_regimens(regimen, saved.units)
    rule = AdaptiveRule.parse(adapt, saved.units) if adapt else None
    over = _pair(interval)
    weight = any(one.by_weight for one in given)
    people = _patients(saved, who, table, subjects, patient, draws, seed, weight, reading)
    if start is not None and people.kind != "patients":
        raise UsageError("--start is a time of the patients of a --table")
    found = follow(people, given, until=until, interval=over, above=above, starts=start, rule=rule, seed=seed)
    exposures = found.exposures()
    for frame, name in zip((found.curves(), exposures, found.draws()), REGIMEN_FILES, strict=False):
        write_csv(frame, out / name)
    from neuralpk.dosing.dosing_figures import regimen_figure  # Matplotlib, for which the work does not wait

    with replacing(out / REGIMEN_FILES[-1]) as part:
        regimen_figure(found, log=log).savefig(part, dpi=200, format="png")
    first = list(dict.fromkeys(exposures["ID"]))[:_SHOWN]
    shown = exposures[exposures["ID"].isin(first) & exposures["METRIC"].isin(_METRICS)].sort_values("ID", kind="stable")
    print(shown.drop(columns="MEAN").to_string(index=False, float_format=lambda x: f"{x:.4g}"))
    lengths = {round(course.interval[1] - course.interval[0], 9) for course in found.courses}
    if len(lengths) > 1:
        said = " and ".join(f"{length:g}" for length in sorted(lengths))
        print(
            f'Last dosing intervals of {said} {saved.units.time}: --interval "[24, 48]" compares over the same times.'
        )
    print(f"{', '.join(str(out / name) for name in REGIMEN_FILES)}")


def dose(
    model: Path,
    target: str,
    doses: str,
    every: str,
    out: Path,
    table: Path | None = None,
    limit: str | None = None,
    when: Literal["steady", "next"] | int = "steady",
    infusion: float = 0.0,
    compartment: int = 1,
    loading: str | None = None,
    at_least: float = 50.0,
    greatest_daily: float | None = None,
    start: float | None = None,
    patient: dict[str, float] | None = None,
    subjects: int = 1000,
    draws: int = 500,
    seed: int = 0,
    unverified: bool = False,
    **reading: Any,
) -> None:
    """Find the dose and interval that reach a target most probably, among those that can be given and under limits;
    for research.

    Args:
        model: checkpoint of a training, or population file.
        target: "AUC24 400-600", "trough > 10", "Cmax 20-30", "time above 4 > 50 %", "DVID 2 trough > 30".
        doses: that can be given, 500:2000:250 (first, last, step) or 500,750,1000.
        every: intervals between doses, 8,12,24.
        out: folder for doses.csv (the choice of each patient), candidates.csv (every dose and interval with its
            probabilities) and the figure doses.png.
        table: event table of the patients with their doses and samples so far; null for the population.
        limit: what must hold with a probability, "trough < 20 with 95%"; several with ; between them, or each with a
            --limit of its own.
        when: steady for steady state, next for the interval after the next dose, or a number of doses from now.
        infusion: duration of each dose; 0 for none.
        compartment: where doses go, counted from 1.
        loading: loading doses, as doses; the target is to be reached in the first interval.
        at_least: probability in percent below which no dose reaches the target.
        greatest_daily: most amount in a day; null for no bound.
        start: time of the table at which the next dose is given; null for when it is due.
        patient: covariates where there is no table, {WT: 80}; those left out have their reference values.
        subjects: drawn from the population where there is no table.
        draws: of each patient of the table.
        seed: of the draws.
        unverified: also read a checkpoint without a sha256.
        reading: how the table is read.
    """
    saved = read_model(model, unverified)
    print(saved.description)
    wanted = Target.parse(target, saved.units)
    limits = [Target.parse(one, saved.units, limit=True) for one in re.split("[;,]", limit or "") if one.strip()]
    if start is not None and table is None:
        raise UsageError("--start is a time of the patients of a --table")
    if start is not None and when == "steady" and not loading:
        raise UsageError("--start says when the next dose is given: it goes with --when next, --when 3 or --loading")
    if 0 < at_least < 1:
        raise UsageError(f"--at_least is in percent: {100 * at_least:g}, not {at_least:g}")
    who = "population" if table is None else "patients"
    people = _patients(saved, who, table, subjects, patient, draws, seed, False, reading)
    found = select_doses(
        people,
        wanted,
        _numbers("doses", doses),
        _numbers("every", every),
        limits=limits,
        when=when,
        infusion=infusion,
        compartment=compartment,
        starts=start,
        loading=_numbers("loading", loading) if loading else (),
        at_least=at_least / 100,
        greatest_daily=greatest_daily,
        seed=seed,
    )
    chosen = found.chosen()
    if table is not None:
        chosen["P_DATA"] = data_p_values(saved.population_model(people.cohort), people.cohort, seed=seed)
        said = unlike_population(people.cohort.ids, chosen["P_DATA"].to_numpy())
        if said:
            warnings.warn(said, stacklevel=2)
    write_csv(chosen, out / DOSE_FILES[0])
    write_csv(found.candidates, out / DOSE_FILES[1])
    from neuralpk.dosing.dosing_figures import dose_figure  # Matplotlib, for which the work does not wait

    with replacing(out / DOSE_FILES[2]) as part:
        dose_figure(found).savefig(part, dpi=200, format="png")
    sentences = found.sentences()
    print("\n".join(sentences[:_SENTENCES]))
    if len(sentences) > _SENTENCES:
        print(f"… {len(sentences) - _SENTENCES} more in {out / DOSE_FILES[0]}")
    print(", ".join(str(out / name) for name in DOSE_FILES))
    print(NOTE, file=sys.stderr)


def _numbers(name: str, text: str) -> list[float]:
    """``500:2000:250`` or ``8,12,24``."""
    try:
        if ":" in text:
            first, last, step = (float(part) for part in text.split(":"))
            count = round((last - first) / step)
            if step <= 0 or count < 0 or abs(first + count * step - last) > 1e-6 * step:
                raise ValueError
            return [first + k * step for k in range(count + 1)]
        return [float(part) for part in text.strip("[] ").replace(",", " ").split()]
    except (ValueError, ZeroDivisionError) as error:
        raise UsageError(
            f"--{name} takes 500:2000:250 (first, last, and a step that leads there) or 500,750,1000; got {text!r}"
        ) from error


def _pair(interval: list[float] | None) -> tuple[float, float] | None:
    if interval is None:
        return None
    if len(interval) != 2:
        raise UsageError(f"--interval takes a start and an end, [48, 72]; got {interval}")
    return interval[0], interval[1]


def _patients(
    saved: SavedModel,
    who: str | None,
    table: Path | None,
    subjects: int,
    patient: dict[str, float] | None,
    draws: int,
    seed: int,
    weight: bool,
    reading: dict[str, Any],
) -> SimulatedPatients:
    """Who is simulated; what is known of them is printed."""
    who = who or ("typical" if table is None else "patients")
    if who == "patients" and table is None:
        raise UsageError("--who patients needs their --table")
    if table is not None and (who == "typical" or patient):
        raise UsageError("--table holds patients with covariates of their own: leave out --patient and --who typical")
    if table is None and reading.get("covariates"):
        raise UsageError("--covariates says how a --table is read; those of one patient are --patient {WT: 80}")
    if table is not None:
        also = ["WT"] if weight and "WT" not in saved.covariates else []
        cohort = saved.read_table(table, also, **reading)
        if who == "population":
            return simulated_population(saved, subjects, people=cohort, seed=seed)
        return given_patients(saved, cohort, draws, seed)
    if who == "population":
        people = simulated_population(saved, subjects, patient, seed=seed)
    else:
        people = typical_patient(saved, patient)
    covariates = people.cohort[0].covariates
    if covariates:
        print("Covariates: " + ", ".join(f"{name} {value:g}" for name, value in covariates.items()))
    return people
