"""Covariate effects that a network learns, beside effects of a known form.

`factor_viii`: the public protocol of constrained deep compartment models (Janssena/dcm-constrained): 756 simulated
males with two compartments, one dose and three samples each. A model is fitted to 20, 60 or 120 of them and predicts
the others by their covariates alone; the error is the root mean square difference from their true curves to 72 h, every
5 minutes. Number k of a split is the seed of its permutation.

`simulated`: studies of 100 patients with allometric weight, a factor 2 of a CYP status on CL, and two covariates
without any effect; the error is that of the logarithm of the concentration of 1,000 new patients. Number k of a study
is its seed.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

import neuralpk
from neuralpk import AdditiveError, CompartmentModel, PopulationParameters, ProportionalError
from neuralpk.cohort import Cohort, Dose, Subject
from neuralpk.cohort_batch import collate
from neuralpk.cohort_simulation import Design, Population, simulate_cohort
from neuralpk.fitting import FittedModel

# starting values of the published networks (CL, V1 of the constrained one in the middle of their ranges)
PUBLISHED_START = {"CL": 0.25, "V1": 3.35, "Q": 0.2, "V2": 1.0}
GRID = np.arange(1, 72 * 12 + 1) / 12


def factor_viii(path: Path) -> tuple[list[Subject], np.ndarray]:
    """The patients, and CL, V1, Q, V2, CL and V1 of the true typical patient, ``[patient, 6]``."""
    subjects, true = [], []
    for name, rows in pd.read_csv(path).groupby("ID", sort=False):
        dose, samples = rows[rows.MDV == 1].iloc[0], rows[rows.MDV == 0].sort_values("Time")
        given = (Dose(0.0, dose.Dose / 1000, duration=dose.Duration),)
        covariates = {"FFM": dose.FFM, "AGE": dose.Age}
        subjects.append(Subject(str(name), samples.Time.values, samples.DV.values, given, covariates=covariates))
        true.append(dose[["CL", "V1", "Q", "V2", "TVCL", "TVV1"]].to_numpy(float))
    return subjects, np.array(true)


def curves(model: Any, subjects: list[Subject], theta: torch.Tensor) -> np.ndarray:
    """Concentrations of parameters of a two-compartment model, ``[patient, time]``."""
    batch = collate(subjects, dtype=torch.float64)
    times = torch.tensor(GRID).expand(len(subjects), -1)
    solved = model.dynamics.follow(theta.double()[:, None], batch, times, model.engine)
    return model.observe(solved)[..., 0].numpy()


@torch.no_grad()
def of_split(subjects: list[Subject], true: np.ndarray, patients: int, split: int, kind: str) -> dict[str, Any]:
    """Errors of a model that is fitted to some of the patients."""
    order = np.random.default_rng(split).permutation(len(subjects))
    chosen, left = [subjects[k] for k in order[:patients]], [subjects[k] for k in order[patients:]]
    on = {"network": {"FFM+AGE": "network"}, "power": {"FFM": "power", "AGE": "power"}}[kind]
    parameters = PopulationParameters(
        PUBLISHED_START,
        typical_prior_sd={"Q": 0.5, "V2": 0.5},
        omega_prior_sd=0.7,
        fixed=["omega Q", "omega V2"],
        effects={"CL": on, "V1": on},
    )
    begin = time.process_time()
    with torch.enable_grad():
        fitted = neuralpk.fit(
            Cohort((*chosen,)), CompartmentModel(2), parameters=parameters, error=AdditiveError(), progress=False
        )
    seconds = time.process_time() - begin
    model = fitted.task.model.double()
    batch = collate(left, dtype=torch.float64)
    z = model.typical(len(left)).double()
    predicted, rest = curves(model, left, model.theta(z, batch)[:, 0]), true[order[patients:]]
    lines = curves(model, left, torch.tensor(rest[:, :4]))
    typical = curves(model, left, torch.tensor(rest[:, [4, 5, 2, 3]]))
    return {
        "patients": patients,
        "split": split,
        "kind": kind,
        "error": rms(predicted - lines),
        "error_of_typical": rms(predicted - typical),
        "least": rms(typical - lines),
        "converged": converged(fitted),
        "seconds": seconds,
    }


def rms(values: np.ndarray) -> float:
    """Root mean square."""
    return float(np.sqrt(np.square(values).mean()))


def converged(fitted: FittedModel) -> bool:
    """Whether a fit has converged."""
    return fitted.task.status is not None and fitted.task.status.converged


COVARIATES = {"WT": (40.0, 110.0), "CYP": 0.3, "AGE": (20.0, 80.0), "CRCL": (40.0, 120.0)}
TRUE = {"CL~WT": 0.75, "CL~CYP": float(np.log(2.0)), "V1~WT": 1.0}
FORMS: dict[str, dict[str, Any]] = {
    "known": {"CL": ["WT", "CYP"], "V1": ["WT"]},
    "all": {name: ["WT", "CYP", "AGE", "CRCL"] for name in ("CL", "V1")},
    "network": {name: {"WT+CYP+AGE+CRCL": "network"} for name in ("CL", "V1")},
}
POPULATION = Population(
    {"CL": 5.0, "V1": 50.0},
    {"CL": 0.3, "V1": 0.2},
    COVARIATES,
    {("CL", "WT"): 0.75, ("CL", "CYP"): TRUE["CL~CYP"], ("V1", "WT"): 1.0},
    {"WT": 70.0},
)
DESIGN = Design(((Dose(0.0, 100.0),),), (1.0, 3.0, 6.0, 12.0, 24.0))


def patients(seed: int, subjects: int, design: Design) -> Cohort:
    """Simulated patients."""
    error = ProportionalError.from_values(1, b=0.15)
    return simulate_cohort(CompartmentModel(1), POPULATION, design, error, subjects, seed)


@torch.no_grad()
def of_study(number: int) -> list[dict[str, Any]]:
    """Errors and estimates of the three models of one study."""
    cohort, new = patients(number, 100, DESIGN), patients(10_000, 1_000, DESIGN)
    found = []
    for form, effects in FORMS.items():
        begin = time.process_time()
        with torch.enable_grad():
            fitted = neuralpk.fit(
                cohort,
                CompartmentModel(1),
                parameters=PopulationParameters(effects=effects),
                error=ProportionalError(),
                progress=False,
            )
        seconds = time.process_time() - begin
        model = fitted.task.model.double()
        batch = collate(new.subjects, dtype=torch.float64)
        predicted = model.predict(model.typical(len(batch)).double(), batch).value.numpy()
        rows = fitted.population.set_index("PARAMETER")
        effects_found = [name for name in rows.index if "~" in name]
        found.append(
            {
                "study": number,
                "form": form,
                "error": rms(np.log(predicted) - np.log(lines(new))),
                "error_of_typical": rms(np.log(predicted) - np.log(lines(new, typical=True))),
                "estimates": {name: float(rows.ESTIMATE[name]) for name in effects_found},
                "covered": {
                    name: bool(rows.LO95[name] <= TRUE.get(name, 0.0) <= rows.HI95[name]) for name in effects_found
                },
                "converged": converged(fitted),
                "seconds": seconds,
            }
        )
    return found


def lines(cohort: Cohort, typical: bool = False) -> np.ndarray:
    """True concentrations at the times of the samples: of the patients, or of typical ones with their covariates."""
    values = []
    for subject in cohort:
        weight, status = subject.covariates["WT"] / 70.0, subject.covariates["CYP"]
        clearance, volume = 5.0 * weight**0.75 * 2.0**status, 50.0 * weight
        if not typical:
            assert subject.truth is not None
            clearance, volume = (subject.truth.parameters[name] for name in ("CL", "V1"))
        values.append(100.0 / volume * np.exp(-clearance / volume * subject.times))
    return np.array(values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", choices=("factor_viii", "simulated"))
    parser.add_argument("--table", type=Path, help="simulation-nhanes-chelle_additive.csv")
    parser.add_argument("--patients", type=int, nargs="+", default=[20, 60, 120])
    parser.add_argument("--kinds", nargs="+", default=["network"], choices=("network", "power"))
    parser.add_argument(
        "--numbers", type=int, nargs=2, default=(0, 20), help="first split or study, and the one after the last"
    )
    parser.add_argument(
        "--json", type=Path, required=True, help="file for all numbers; what is in it is not fitted again"
    )
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    found: list[dict[str, Any]] = json.loads(arguments.json.read_text()) if arguments.json.exists() else []
    numbers = range(*arguments.numbers)
    if arguments.which == "factor_viii":
        subjects, true = factor_viii(arguments.table)
        work = ((size, kind, k) for size in arguments.patients for kind in arguments.kinds for k in numbers)
        known = {(row["patients"], row["kind"], row["split"]) for row in found}
        for size, kind, k in work:
            if (size, kind, k) not in known:
                found.append(of_split(subjects, true, size, k, kind))
                report(found, arguments.json)
    else:
        known = {row["study"] for row in found}
        for k in numbers:
            if k not in known:
                found += of_study(k)
                report(found, arguments.json)
    groups = ["patients", "kind"] if arguments.which == "factor_viii" else ["form"]
    frame = pd.DataFrame(found)
    columns = [name for name in ("error", "error_of_typical", "least", "converged", "seconds") if name in frame]
    print(frame.groupby(groups)[columns].agg(["mean", "median", "count"]).to_string())


def report(found: list[dict[str, Any]], path: Path) -> None:
    """Print the last result and keep all."""
    print({name: value for name, value in found[-1].items() if name not in ("estimates", "covered")}, flush=True)
    path.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
