"""Coverage of the 95 % intervals of population fits: studies simulated by the sparse design of the public comparison
nlmixr2/nlmixr2test, each fitted by `neuralpk.fit` as it ships.

A study has 120 subjects, a fourth of them with a single oral dose of 10, 30, 60 or 120 mg each, and four samples a
subject at random times within 24 h. Number k of a study is the seed of its simulation.
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

import neuralpk
from neuralpk import CompartmentModel
from neuralpk.cohort import Cohort
from neuralpk.datamodules import SimulatedPKDataModule
from neuralpk.residual_error import LogNormalError

TRUE = {"CL": 4.0, "V1": 70.0, "KA": 1.0, "omega CL": 0.3, "omega V1": 0.3, "omega KA": 0.3, "b": 0.2}
TYPICAL = ("CL", "V1", "KA")
TIMED = 20  # studies whose intervals are computed twice, for the time that profiles take


def study(number: int) -> Cohort:
    """The cohort of a number."""
    data = SimulatedPKDataModule(
        subjects=120,
        compartments=1,
        absorption="first_order",
        typical={name: TRUE[name] for name in TYPICAL},
        omega={name: TRUE[f"omega {name}"] for name in TYPICAL},
        doses=[10.0, 30.0, 60.0, 120.0],
        times=[0.0, 24.0],
        samples=4,
        continuous=True,
        error="log_normal",
        error_sd={"b": TRUE["b"]},
        seed=number,
    )
    return data.part("train")


def fit(number: int) -> dict[str, Any]:
    """Estimates and intervals by both methods, with CPU seconds."""
    cohort, begin = study(number), time.process_time()
    fitted = neuralpk.fit(cohort, CompartmentModel(1, "first_order"), error=LogNormalError(), progress=False)
    seconds = time.process_time() - begin
    status, estimate = fitted.task.status, fitted.task.covariance
    assert status is not None and estimate is not None
    sds = estimate.covariance.diagonal().sqrt().tolist()
    found: dict[str, Any] = {"study": number, "converged": status.converged, "seconds": seconds}
    found |= {"bounds": list(status.bounds), "estimates": {}, "wald": {}, "profile": {}, "methods": {}}
    for one, sd in zip(fitted.task.model.coordinates(), sds, strict=True):
        found["estimates"][one.name] = math.exp(one.value)
        found["wald"][one.name] = [math.exp(one.value + sign * 1.96 * sd) for sign in (-1, 1)]
    for row in estimate.rows:
        name = str(row["PARAMETER"])
        found["profile"][name], found["methods"][name] = [row["LO95"], row["HI95"]], row["INTERVAL"]
        if name in TYPICAL:
            found["profile"][f"omega {name}"] = [row["OMEGA_LO95"], row["OMEGA_HI95"]]
            found["methods"][f"omega {name}"] = row["OMEGA_INTERVAL"]
    if number <= TIMED:
        begin = time.process_time()
        fitted.task.covariance_step(cohort)
        with_profiles, begin = time.process_time() - begin, time.process_time()
        fitted.task.status = None  # without a status the intervals are Wald intervals
        fitted.task.covariance_step(cohort)
        found["profile_seconds"] = with_profiles - (time.process_time() - begin)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, nargs=2, default=[1, 200], help="first and last number")
    parser.add_argument("--json", type=Path, help="file to write; studies that it has are not fitted again")
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    rows = json.loads(args.json.read_text()) if args.json and args.json.exists() else []
    done = {row["study"] for row in rows}
    for number in range(args.studies[0], args.studies[1] + 1):
        if number in done:
            continue
        rows.append(fit(number))
        if args.json:
            args.json.write_text(json.dumps(rows, indent=1))
        print(f"study {number}: {rows[-1]['seconds']:.1f} s, {rows[-1]['estimates']}", flush=True)
    summarise(rows)


def summarise(rows: list[dict[str, Any]]) -> None:
    """Print coverage, bias and times."""
    print(f"{len(rows)} studies, {sum(row['converged'] for row in rows)} converged")
    seconds = np.median([row["seconds"] for row in rows])
    of_profiles = [row["profile_seconds"] for row in rows if "profile_seconds" in row]
    if of_profiles:
        print(f"CPU seconds, median: a fit {seconds:.1f}, of that the profiles {np.median(of_profiles):.2f}")
    for name, true in TRUE.items():
        found = np.array([row["estimates"][name] for row in rows]) / true - 1
        text = f"{name}: bias {100 * found.mean():+.1f} %, RRMSE {100 * np.sqrt(np.mean(found**2)):.1f} %"
        for method in ("wald", "profile"):
            ends = np.array([row[method][name] for row in rows], dtype=float)
            below, above = np.mean(ends[:, 1] < true), np.mean(ends[:, 0] > true)
            inside = 1 - below - above
            error = 100 * math.sqrt(inside * (1 - inside) / len(rows))
            text += f"; {method} covers {100 * inside:.1f} ± {error:.1f} %"
            text += f" (ends too low {100 * below:.1f}, begins too high {100 * above:.1f})"
        print(f"{text}; {sum(row['methods'][name] == 'profile' for row in rows)} profiles")


if __name__ == "__main__":
    main()
