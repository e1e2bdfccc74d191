"""Variability between occasions: how exactly a population fit finds it, and how the time of an estimate grows with the
number of occasions.

A study has 40 patients with a dose by mouth on each of three occasions a week apart, and six samples after each. Number
k of a study is the seed of its simulation.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.progress import track

import neuralpk
from neuralpk import CompartmentModel, PopulationParameters
from neuralpk.cohort import Cohort, Dose
from neuralpk.cohort_simulation import Design, Population, simulate_cohort
from neuralpk.diagnostics.style import BLACK, BLUE, new_figure
from neuralpk.estimation import log_likelihood
from neuralpk.individual_estimates import estimate_individuals, evaluation_batch
from neuralpk.inference.map import map_estimate
from neuralpk.population_model import PopulationModel
from neuralpk.residual_error import ProportionalError
from neuralpk.scaling import Scaling

TYPICAL = {"CL": 4.0, "V1": 40.0, "KA": 1.0}
OMEGA = {"CL": 0.3, "V1": 0.3, "KA": 0.3}
KAPPA = {"CL": 0.2, "V1": 0.2}
B = 0.1
TRUE = TYPICAL | {f"omega {k}": v for k, v in OMEGA.items()} | {f"kappa {k}": v for k, v in KAPPA.items()} | {"b": B}
WEEK, HOURS = 168.0, (0.5, 1.0, 2.0, 4.0, 8.0, 24.0)


def dynamics() -> CompartmentModel:
    return CompartmentModel(1, "first_order")


def study(number: int, patients: int = 40, occasions: int = 3, apart: float = WEEK) -> Cohort:
    """The cohort of a number."""
    begin = tuple(apart * k for k in range(occasions))
    times = tuple(start + hours for start in begin for hours in HOURS if hours <= apart)
    design = Design((tuple(Dose(start, 100.0) for start in begin),), times, occasions=begin, grid=(0.0, 1.0))
    error = ProportionalError.from_values(1, b=B)
    return simulate_cohort(dynamics(), Population(TYPICAL, OMEGA, kappa=KAPPA), design, error, patients, number)


def true_model(cohort: Cohort) -> PopulationModel:
    population = PopulationParameters(TYPICAL, OMEGA, kappa=KAPPA)
    return PopulationModel(dynamics(), population, ProportionalError(B)).build(Scaling.of(cohort), torch.float64)


def fit(number: int) -> dict[str, Any]:
    """Estimates, intervals and -2LL of a study, beside -2LL at the truth; CPU seconds."""
    cohort, begin = study(number), time.process_time()
    parameters = PopulationParameters(kappa=dict.fromkeys(KAPPA, 0.1))
    fitted = neuralpk.fit(cohort, dynamics(), parameters=parameters, error=ProportionalError(), progress=False)
    seconds = time.process_time() - begin
    status, estimate, truth = fitted.task.status, fitted.task.covariance, true_model(cohort)
    assert status is not None and estimate is not None
    at_truth, error = log_likelihood(truth, evaluation_batch(truth, cohort))
    intervals = {str(row["PARAMETER"]): [row["LO95"], row["HI95"]] for row in estimate.rows}
    for row in estimate.rows:
        if f"omega {row['PARAMETER']}" in TRUE:
            intervals[f"omega {row['PARAMETER']}"] = [row["OMEGA_LO95"], row["OMEGA_HI95"]]
    rows = {row["PARAMETER"]: row for row in estimate.rows}
    return {
        "study": number,
        "converged": status.converged,
        "status": status.sentence,
        "seconds": seconds,
        "m2ll": -2 * estimate.log_likelihood,
        "m2ll_error": 2 * estimate.error,
        "m2ll_truth": -2 * at_truth,
        "m2ll_truth_error": 2 * error,
        "estimates": fitted.task.model.reported_values(),
        "intervals": intervals,
        "shrinkage": {name: rows[name]["SHRINKAGE"] for name in (*OMEGA, *(f"kappa {name}" for name in KAPPA))},
    }


def growth(counts: list[int], patients: int, repeats: int) -> list[dict[str, float]]:
    """CPU seconds of the MAP search of some patients with daily doses, and of their estimates with intervals, by number
    of occasions."""
    found = []
    for count in counts:
        cohort = study(1, patients, count, apart=24.0)
        truth = true_model(cohort)
        batch = evaluation_batch(truth, cohort)
        start = batch.time.new_zeros((patients, truth.latents(batch).shape[1]))
        seconds: dict[str, list[float]] = {"map": [], "estimate": []}
        for _ in range(repeats + 1):
            begin = time.process_time()
            mode = map_estimate(truth, batch, start)
            middle = time.process_time()
            estimate_individuals(truth, cohort, [24.0], draws=200, population_known=True)
            seconds["map"].append(middle - begin)
            seconds["estimate"].append(time.process_time() - middle)
        best = {name: min(each[1:]) for name, each in seconds.items()}  # the first compiles
        found.append({"occasions": count, "converged": int(mode.converged.sum()), "patients": patients} | best)
        print(found[-1], flush=True)
    return found


def draw(rows: list[dict[str, Any]], times: list[dict[str, float]]) -> Figure:
    """Estimates of the standard deviations over the truth, and the time of a MAP search."""
    figure, ((left, right),) = new_figure(1, 2, height=3.0)
    names = [name for name in TRUE if name.startswith(("omega", "kappa"))]
    for place, name in enumerate(names):
        ratio = np.array([row["estimates"][name] for row in rows]) / TRUE[name]
        jitter = np.linspace(-0.15, 0.15, len(ratio))
        left.plot(place + jitter, ratio, "o", ms=3, color=BLUE, alpha=0.6)
        left.plot([place - 0.3, place + 0.3], [ratio.mean()] * 2, color=BLACK)
    left.axhline(1.0, color=BLACK, lw=0.7, ls=":")
    left.set_xticks(range(len(names)), [name.replace(" ", "\n") for name in names])
    left.set_ylabel("estimate / truth")
    right.plot([row["occasions"] for row in times], [row["map"] for row in times], "o-", color=BLUE)
    right.set_xlabel("occasions of each patient")
    right.set_ylabel("CPU time of the MAP search, s")
    right.set_ylim(bottom=0.0)
    return figure


def summarise(rows: list[dict[str, Any]]) -> None:
    """Print mean over truth, coverage and −2LL."""
    print(f"{len(rows)} studies, {sum(row['converged'] for row in rows)} converged")
    print(f"CPU seconds of a fit with its intervals: median {np.median([row['seconds'] for row in rows]):.0f}")
    for name, true in TRUE.items():
        found = np.array([row["estimates"][name] for row in rows]) / true
        inside = [row["intervals"][name][0] <= true <= row["intervals"][name][1] for row in rows]
        error = found.std(ddof=1) / math.sqrt(len(rows)) if len(rows) > 1 else math.nan
        print(f"{name}: mean {found.mean():.3f} of the truth (± {error:.3f}), coverage {100 * np.mean(inside):.0f} %")
    above = np.array([row["m2ll"] - row["m2ll_truth"] for row in rows])
    print(f"-2LL of the fit minus that at the truth: mean {above.mean():.2f}, largest {above.max():.2f}")
    for name in rows[0]["shrinkage"]:
        print(f"shrinkage of {name}: mean {np.mean([row['shrinkage'][name] for row in rows]):.0f} %")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=20)
    parser.add_argument("--first", type=int, default=1, help="number of the first study")
    parser.add_argument("--occasions", type=int, nargs="*", default=[2, 4, 6, 8, 10], help="of the timed estimates")
    parser.add_argument("--patients", type=int, default=40, help="of the timed estimates")
    parser.add_argument("--repeats", type=int, default=2, help="of the timed estimates; the least time counts")
    parser.add_argument("--json", type=Path, help="file for all numbers; studies that are in it are not fitted again")
    parser.add_argument("--figure", type=Path, help="file for the figure")
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    kept = json.loads(args.json.read_text()) if args.json and args.json.exists() else {"studies": [], "times": []}
    rows = {row["study"]: row for row in kept["studies"]}
    wanted = range(args.first, args.first + args.studies)
    for number in track([one for one in wanted if one not in rows], "fits"):
        rows[number] = fit(number)
        kept["studies"] = list(rows.values())
        if args.json:
            args.json.write_text(json.dumps(kept, indent=1))
        print(f"{number}: {rows[number]['seconds']:.0f} s, {rows[number]['status']}", flush=True)
    if args.occasions:
        kept["times"] = growth(args.occasions, args.patients, args.repeats)
        if args.json:
            args.json.write_text(json.dumps(kept, indent=1))
    if rows:
        summarise(list(rows.values()))
    if args.figure:
        draw(list(rows.values()), kept["times"]).savefig(args.figure, dpi=130)


if __name__ == "__main__":
    main()
