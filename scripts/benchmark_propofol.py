"""Propofol in 1,031 patients of 30 studies: networks of covariates on all six parameters of three compartments.

A deep compartment model without random effects, trained on the population prediction itself. The error is the mean over
patients of the median absolute difference between the logarithms of prediction and measurement, in patients that were
left out. Fold k holds every fifth patient of the permutation of seed 0, from the k-th on.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from neuralpk import CompartmentModel, PopulationModel, PopulationParameters
from neuralpk.cohort import Cohort, Units
from neuralpk.cohort_batch import CohortBatch, collate
from neuralpk.residual_error import LogNormalError
from neuralpk.scaling import Scaling
from neuralpk.tables import read_table

FOLDS = 5
# L/min and L of an adult: the order of magnitude of all published models
START = {"CL": 1.8, "V1": 6.0, "Q": 1.5, "V2": 25.0, "Q3": 0.8, "V3": 250.0}
COVARIATES = ["PMA", "WGT", "HT", "MALE", "OPIOIDS"]
SPREAD = 0.3  # mean deviation of a Laplace distribution; a patient counts as one draw from it
SMOOTH = 0.02  # below this distance the absolute value is rounded


def patients(path: Path) -> Cohort:
    """The patients with a measured value: CP in mg/L, doses in mg, times in min."""
    frame = pd.read_csv(path)
    frame = frame[(frame.ISMEAS == 0) | (frame.CP > 0)]
    frame = frame.assign(
        DV=frame.CP,
        MDV=(frame.ISMEAS == 0).astype(int),
        MALE=(frame.M1F2 == 1).astype(float),
        OPIOIDS=(frame.NOADD1ADD2 == 2).astype(float),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cohort = read_table(frame, covariates=COVARIATES, units=Units("min", "mg", "mg/L"))
    return cohort[[k for k, subject in enumerate(cohort) if subject.observed.any()]]


def model_of(kind: str, cohort: Cohort) -> PopulationModel:
    """The model before the training: one set of parameters for all, powers of the weight, or networks."""
    effects: dict[str, Any] = {
        "constant": None,
        "power": {name: ["WGT"] for name in START},
        "network": {name: {"+".join(COVARIATES): "network"} for name in START},
    }[kind]
    parameters = PopulationParameters(dict(START), omega=0.0, effects=effects)
    return PopulationModel(CompartmentModel(3), parameters, LogNormalError()).build(Scaling.of(cohort), torch.float32)


def log_errors(model: PopulationModel, batch: CohortBatch) -> Tensor:
    """Logarithmic error of the population prediction, ``[patient, record]``; NaN where nothing was measured."""
    value = model.predict(model.typical(len(batch)), batch).value
    measured = torch.where(batch.observed, batch.value, 1.0)
    error = torch.log(value.clamp(min=1e-9) / measured)
    return torch.where(batch.observed, error, torch.nan)


def train(model: PopulationModel, cohort: Cohort, steps: int, rate: float) -> None:
    """Adam on the sum over patients of their mean absolute logarithmic error over SPREAD, minus the log prior of the
    networks' weights."""
    batches = collate(cohort, dtype=torch.float32).of_like_length()
    optimizer = torch.optim.Adam(model.population.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    begin = time.process_time()
    for step in range(steps):
        optimizer.zero_grad()
        total = 0.0
        for batch in batches:
            error = log_errors(model, batch)
            smooth = torch.where(batch.observed, (error.nan_to_num().square() + SMOOTH**2).sqrt(), 0.0)
            loss = (smooth.sum(1) / batch.observed.sum(1)).sum() / SPREAD
            loss.backward()
            total += float(loss.detach())
        prior = -model.population.log_prior()
        if prior.requires_grad:
            prior.backward()
        optimizer.step()
        schedule.step()
        if step % 20 == 0 or step == steps - 1:
            mean = total * SPREAD / len(cohort)
            print(
                f"{step}: mean {mean:.4f}, prior {float(prior.detach()):.1f}, {time.process_time() - begin:.0f} s",
                flush=True,
            )


@torch.no_grad()
def score(model: PopulationModel, cohort: Cohort) -> np.ndarray:
    """Median absolute logarithmic error of each patient, ``[patient]``."""
    found = [log_errors(model, collate([subject], dtype=torch.float32)).abs()[0] for subject in cohort]
    return np.array([np.nanmedian(one.numpy()) for one in found])


def of_fold(cohort: Cohort, fold: int, kind: str, steps: int, rate: float) -> dict[str, Any]:
    """Errors of a model that is trained on the patients of the other folds."""
    order = np.random.default_rng(0).permutation(len(cohort)).tolist()
    left = order[fold::FOLDS]
    others = sorted({*order} - {*left})
    begin, wall = time.process_time(), time.time()
    model = model_of(kind, cohort[others])
    train(model, cohort[others], steps, rate)
    return {
        "kind": kind,
        "fold": fold,
        "patients": len(left),
        "cpu": round(time.process_time() - begin),
        "wall": round(time.time() - wall),
        "trained": float(score(model, cohort[others]).mean()),
        "left_out": float(score(model, cohort[left]).mean()),
        "typical": model.population.typical_values(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/propofol/dataframe.csv"))
    parser.add_argument("--folds", type=int, nargs="*", default=[*range(FOLDS)])
    parser.add_argument("--kind", nargs="*", default=["network"], choices=["constant", "power", "network"])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--rate", type=float, default=0.03)
    given = parser.parse_args()
    torch.set_num_threads(1)
    cohort = patients(given.data)
    print(f"{len(cohort)} patients, {sum(int(s.observed.sum()) for s in cohort)} values")
    for kind in given.kind:
        rows = []
        for fold in given.folds:
            rows.append(of_fold(cohort, fold, kind, given.steps, given.rate))
            print(json.dumps(rows[-1]), flush=True)
        weights = [row["patients"] for row in rows]
        print(f"{kind}: {np.average([row['left_out'] for row in rows], weights=weights):.4f} in patients left out")


if __name__ == "__main__":
    main()
