"""Commands from a model to a decision: the course of patients under regimens."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from neuralpk.atomic_files import replacing
from neuralpk.cli.csv_files import write_csv
from neuralpk.cli.faults import UsageError
from neuralpk.dosing import AdaptiveRule, SimulatedPatients, parse_regimens
from neuralpk.dosing import simulate_regimens as follow
from neuralpk.dosing.dosing_figures import regimen_figure
from neuralpk.dosing.model_patients import given_patients, simulated_population, typical_patient
from neuralpk.saved_model import SavedModel, read_model

_SHOWN = 5
_METRICS = ("AUC", "CMAX", "CTROUGH", "PABOVE", "DOSE", "CHANGES")
REGIMEN_FILES = ("curves.csv", "exposures.csv", "exposure_draws.csv", "regimens.png")


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
    with replacing(out / REGIMEN_FILES[-1]) as part:
        regimen_figure(found, log=log).savefig(part, dpi=200, format="png")
    first = list(dict.fromkeys(exposures["ID"]))[:_SHOWN]
    shown = exposures[exposures["ID"].isin(first) & exposures["METRIC"].isin(_METRICS)].sort_values("ID", kind="stable")
    print(shown.drop(columns="MEAN").to_string(index=False, float_format=lambda x: f"{x:.4g}"))
    print(f"{', '.join(str(out / name) for name in REGIMEN_FILES)}")


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
