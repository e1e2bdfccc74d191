"""Population fits of a public comparison of NONMEM, nlmixr2 FOCEI and SAEM (nlmixr2/nlmixr2test): -2LL, estimates and
time of what `neuralpk.fit` ships, from its own starting values, beside the exact -2LL at the others' estimates.

The folder holds ``<structure>.csv`` with ``rich_reference.csv`` and ``sparse_sets*.csv`` with
``sparse_reference*.csv``.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from rich.progress import track

import neuralpk
from neuralpk import CompartmentModel
from neuralpk.cohort import Cohort
from neuralpk.estimation import PopulationEstimator, log_likelihood
from neuralpk.individual_estimates import evaluation_batch
from neuralpk.population_model import PopulationModel
from neuralpk.residual_error import error_class
from neuralpk.scaling import Scaling
from neuralpk.tables import read_table

COLUMNS = ("ID", "TIME", "AMT", "RATE", "DV", "MDV", "EVID", "CMT", "SS", "II")
NAMES = {"CL": "CL", "V": "V1", "VM": "VMAX", "KM": "KM", "Q": "Q", "V2": "V2", "KA": "KA"}


def dynamics_of(structure: str) -> CompartmentModel:
    """Of a name such as ``Oral_2CPTMM``."""
    return CompartmentModel(
        2 if "2CPT" in structure else 1,
        "first_order" if structure.startswith("Oral") else "none",
        "michaelis_menten" if structure.endswith("MM") else "linear",
    )


def reference_order(structure: str) -> list[str]:
    """Names of the logarithms in the columns of estimates, in their order."""
    names = ["VM", "KM", "V"] if structure.endswith("MM") else ["CL", "V"]
    names += ["Q", "V2"] if "2CPT" in structure else []
    names += ["KA"] if structure.startswith("Oral") else []
    return [NAMES[name] for name in names]


def rich_runs(folder: Path, wanted: list[int] | None) -> Iterator[tuple[dict[str, Any], str, Cohort, pd.Series]]:
    """Key, structure, cohort and reference of every run."""
    reference = pd.read_csv(folder / "rich_reference.csv", dtype={"run": str})
    for _, row in reference.iterrows():
        if wanted is not None and int(row["run"]) not in wanted:
            continue
        frame = pd.read_csv(folder / f"{row['data']}.csv")
        for period in (0, 1):
            if f"SD.EQ.{period}" in row["ignore"]:
                frame = frame[frame["SD"] != period]
        if "SS" in frame:
            frame["SS"] = frame["SS"].replace(99, 0)
        yield {"run": int(row["run"])}, row["data"], read_table(frame[[c for c in COLUMNS if c in frame]]), row


def sparse_sets(
    folder: Path, wanted: list[int] | None, error: str = "proportional"
) -> Iterator[tuple[dict[str, Any], str, Cohort, pd.DataFrame]]:
    """Key, structure, cohort and references of every set. Of a log-normal error, concentrations that the table has
    rounded to 0 are left out, and said."""
    frames = pd.concat([pd.read_csv(path) for path in sorted(folder.glob("sparse_sets*.csv"))])
    references = pd.concat([pd.read_csv(path) for path in sorted(folder.glob("sparse_reference*.csv"))])
    for number, frame in frames.groupby("SET"):
        if wanted is None or number in wanted:
            columns = [c for c in COLUMNS if c in frame]
            rounded = (frame["EVID"] == 0) & (pd.to_numeric(frame["DV"], errors="coerce") <= 0)
            if error == "log_normal" and rounded.any():
                print(f"set {number}: {rounded.sum()} concentrations of 0 left out")
                frame = frame[~rounded]
            yield {"set": int(number)}, "Oral_1CPT", read_table(frame[columns]), references[references["SET"] == number]


def exact(
    cohort: Cohort, structure: str, error: str, typical: dict[str, float], omega: dict[str, float] | None, sd: float
) -> float:
    """-2LL at the estimates of another program; with its Omega, or where that is not given with the likeliest."""
    parameters = neuralpk.PopulationParameters(typical=typical, omega=omega or 0.3)
    model = PopulationModel(dynamics_of(structure), parameters, error_class(error)(sd))
    model.build(Scaling.of(cohort), torch.float64)
    batch = evaluation_batch(model, cohort)
    if omega is None:
        model.population.location.requires_grad_(False)
        model.error.requires_grad_(False)
        PopulationEstimator(model).run(batch)
    return -2 * log_likelihood(model, batch)[0]


def rich_reference(cohort: Cohort, structure: str, error: str, row: pd.Series) -> dict[str, float]:
    names, found = reference_order(structure), {}
    *theta, sd = map(float, row["theta"].split())
    # an omega that NONMEM left near 0 is the smallest that is a random effect here
    omega = {n: max(math.sqrt(float(v)), 1e-3) for n, v in zip(names, row["omega_variance"].split(), strict=True)}
    typical = dict(zip(names, np.exp(theta).tolist(), strict=True))
    found["nonmem"] = exact(cohort, structure, error, typical, omega, sd)
    for method in ("focei", "saem"):
        text = row.get(f"nlmixr2_{method}_theta")
        if isinstance(text, str):
            *theta, sd = map(float, text.split())
            typical = dict(zip(names, np.exp(theta).tolist(), strict=True))
            found[method] = exact(cohort, structure, error, typical, None, sd)
    return found


def sparse_reference(cohort: Cohort, structure: str, error: str, rows: pd.DataFrame) -> dict[str, float]:
    found = {}
    for row in rows.to_dict("records"):
        typical = {NAMES[name]: math.exp(row[f"log_{name}"]) for name in ("CL", "V", "KA")}
        omega = {NAMES[name]: max(row[f"omega_{name}"], 1e-3) for name in ("CL", "V", "KA")}
        found[row["method"]] = exact(cohort, structure, error, typical, omega, row["prop_sd"])
    return found


def fit(cohort: Cohort, structure: str, error: str, seed: int) -> dict[str, Any]:
    """Fit with what ships; CPU seconds without imports."""
    begin = time.process_time()
    fitted = neuralpk.fit(cohort, dynamics_of(structure), error=error_class(error)(), seed=seed, progress=False)
    seconds = time.process_time() - begin
    estimate, status = fitted.task.covariance, fitted.task.status
    assert estimate is not None and status is not None
    estimates, errors, intervals = {}, {}, {}
    for row in fitted.population.to_dict("records"):
        name = row["PARAMETER"]
        estimates[name], errors[name] = row["ESTIMATE"], row["ESTIMATE"] * row["RSE"] / 100
        intervals[name] = [row["LO95"], row["HI95"], row["INTERVAL"]]
        if not math.isnan(row["OMEGA"]):
            estimates[f"omega_{name}"] = row["OMEGA"]
            errors[f"omega_{name}"] = row["OMEGA"] * row["OMEGA_RSE"] / 100
            intervals[f"omega_{name}"] = [row["OMEGA_LO95"], row["OMEGA_HI95"], row["OMEGA_INTERVAL"]]
    return {
        "converged": status.converged,
        "status": status.sentence,
        "seconds": seconds,
        "m2ll": -2 * estimate.log_likelihood,
        "m2ll_error": 2 * estimate.error,
        "smallest_effective": status.smallest_effective,
        "estimates": estimates,
        "se": errors,
        "intervals": intervals,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the comparison")
    parser.add_argument("--runs", type=int, nargs="*", help="rich runs; all without --runs and --sets")
    parser.add_argument("--sets", type=int, nargs="*", help="sparse sets")
    parser.add_argument("--error", default="proportional", help="residual error of the fits: proportional, log_normal")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--no-reference", action="store_true", help="without -2LL at the others' estimates")
    parser.add_argument("--json", type=Path, help="file to write")
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    both = args.runs is None and args.sets is None
    jobs: list[tuple[Any, Callable[..., dict[str, float]]]] = []
    if both or args.runs is not None:
        jobs += [(job, rich_reference) for job in rich_runs(args.data, args.runs or None)]
    if both or args.sets is not None:
        jobs += [(job, sparse_reference) for job in sparse_sets(args.data, args.sets or None, args.error)]
    rows = []
    for structure in {job[1] for job, _ in jobs}:  # compiled kernels are loaded once
        warm = next(job[2] for job, _ in jobs if job[1] == structure)
        model = PopulationModel(dynamics_of(structure)).build(Scaling.of(warm))
        batch = evaluation_batch(model, warm[:2])
        PopulationEstimator(model, stages=(64,)).add(batch)
    for (key, structure, cohort, reference), of_reference in track(jobs, "fits"):
        row = key | fit(cohort, structure, args.error, args.seed)
        if not args.no_reference:
            row["reference"] = of_reference(cohort, structure, args.error, reference)
        rows.append(row)
        others = "".join(f", {name} {value:.2f}" for name, value in row.get("reference", {}).items())
        print(
            f"{key}: {row['seconds']:.1f} s, -2LL {row['m2ll']:.2f} (± {row['m2ll_error']:.2f}){others}; "
            f"{row['status']}; " + ", ".join(f"{name} {value:.4g}" for name, value in row["estimates"].items()),
            flush=True,
        )
        if args.json:
            args.json.write_text(json.dumps(rows, indent=1))
    summarise(rows)


def summarise(rows: list[dict[str, Any]]) -> None:
    """Print medians over fits, and for sets bias, RRMSE and coverage against the values they were simulated with."""
    seconds = np.array([row["seconds"] for row in rows])
    print(f"{len(rows)} fits, {sum(row['converged'] for row in rows)} converged")
    print(f"CPU seconds: median {np.median(seconds):.1f}, most {seconds.max():.1f}, sum {seconds.sum():.0f}")
    above = {
        name: max(row["m2ll"] - row["reference"][name] for row in rows if name in row.get("reference", {}))
        for name in {name for row in rows for name in row.get("reference", {})}
    }
    for name, value in above.items():
        print(f"-2LL minus that at the estimates of {name}, largest: {value:+.2f}")
    sets = [row for row in rows if "set" in row]
    for name, true in ({"CL": 4.0, "V1": 70.0, "KA": 1.0, "b": 0.2}).items() if sets else ():
        found = np.array([row["estimates"][name] for row in sets]) / true - 1
        inside = [row["intervals"][name][0] <= true <= row["intervals"][name][1] for row in sets]
        rrmse = 100 * np.sqrt(np.mean(found**2))
        print(f"{name}: bias {100 * found.mean():+.1f} %, RRMSE {rrmse:.1f} %, coverage {100 * np.mean(inside):.0f} %")


if __name__ == "__main__":
    main()
