"""Fit of a concentration and its effect at once: warfarin, 32 subjects (O'Reilly and Aggeler 1968), as nlmixr2data has
them, with transit absorption and a turnover model of prothrombin complex activity.

`--sequential` fits the concentrations of this model first, and then both with the population and the residual error of
the concentrations held (PPP&D). `--concentrations` fits the concentrations alone, by another model: one compartment,
first-order absorption with a lag, a power of the weight on CL and V1.

The table has the columns id, time, amt, dv, dvid (1 or cp for the concentration), evid and wt.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from pathlib import Path

import pandas as pd
import torch

import neuralpk
from neuralpk import PopulationParameters
from neuralpk.dynamics import Equations, structure
from neuralpk.estimation import log_likelihood
from neuralpk.fitting import FittedModel
from neuralpk.individual_estimates import evaluation_batch
from neuralpk.residual_error import AdditiveError, ErrorByEndpoint, error_class

JOINT = ["ID", "TIME", "AMT", "DV", "DVID", "EVID"]
PK = """
parameters: KTR = 1, KA = 1, CL = 0.1, V = 10
depot' = -KTR*depot
gut' = KTR*depot - KA*gut
central' = KA*gut - CL/V*central
cp = central/V
"""
PD = """
parameters: EMAX = 0.8 in (0, 1), EC50 = 0.5, KOUT = 0.05, E0 = 100
pca' = E0*KOUT*(1 - EMAX*cp/(EC50 + cp)) - KOUT*pca
pca(0) = E0
"""
# of a fit of the concentrations alone; without it the search may begin where absorption and elimination have changed
# places (flip-flop)
START = {"CL": 0.13, "V1": 8.0, "KA": 1.0, "LAG": 0.8}


def fit_concentrations(frame: pd.DataFrame, error: str, between: bool, seed: int) -> FittedModel:
    """The fit of the concentrations alone.

    Args:
        frame: the table.
        error: short name of the residual error.
        between: whether the residual error differs between the subjects.
        seed: of the fit.
    """
    rows = frame[frame["DVID"].astype(str).isin(["1", "cp"])]
    omega = {"CL": 0.3, "V1": 0.2, "KA": 0.5, "LAG": 0.3} | ({"RUV": 0.3} if between else {})
    return neuralpk.fit(
        rows[["ID", "TIME", "AMT", "DV", "EVID", "WT"]],
        structure("one_compartment_oral_lag"),
        parameters=PopulationParameters(START, omega, effects={"CL": ["WT"], "V1": ["WT"]}),
        error=error_class(error)(),
        seed=seed,
        progress=False,
    )


def fit_sequentially(frame: pd.DataFrame, seed: int) -> FittedModel:
    """The fit of both, with the population and the residual error of the concentrations held."""
    effect = frame["DVID"].astype(str).isin(["2", "pca"]) & frame["EVID"].eq(0)
    pk = neuralpk.fit(frame[~effect], Equations(f"{PK}outputs: cp ~ combined"), seed=seed, progress=False)
    assert pk.task.status is not None
    print(f"concentrations: {pk.task.status.sentence}")
    error = ErrorByEndpoint([*pk.held_errors(), AdditiveError()])
    both = Equations(f"{PK}{PD}outputs: cp, pca")
    return neuralpk.fit(frame, both, parameters=pk.held(), error=error, seed=seed, progress=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, required=True, help="warfarin as CSV")
    parser.add_argument("--sequential", action="store_true", help="the effect after the concentrations")
    parser.add_argument("--concentrations", action="store_true", help="concentrations alone, with weight")
    parser.add_argument("--error", default="combined", help="residual error of the concentrations alone")
    parser.add_argument("--between", action="store_true", help="their residual error differs between subjects")
    parser.add_argument("--draws", type=int, help="draws of each subject behind a further -2LL of these")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="file to write")
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    frame = pd.read_csv(args.table).rename(columns=str.upper)
    begin = time.process_time()
    if args.concentrations:
        fitted = fit_concentrations(frame, args.error, args.between, args.seed)
    elif args.sequential:
        fitted = fit_sequentially(frame[JOINT], args.seed)
    else:
        model_of_both = Equations(f"{PK}{PD}outputs: cp ~ combined, pca ~ additive")
        fitted = neuralpk.fit(frame[JOINT], model_of_both, seed=args.seed, progress=False)
    seconds, population = time.process_time() - begin, fitted.population
    estimate, status = fitted.task.covariance, fitted.task.status
    assert estimate is not None and status is not None
    print(population.to_string(index=False))
    print(f"-2LL {-2 * estimate.log_likelihood:.2f} (± {2 * estimate.error:.2f}); {status.sentence}")
    print(f"{seconds:.0f} CPU seconds, standard errors and compilation included")
    if args.draws:
        assert fitted._cohort is not None
        model = fitted.task.model.double()
        found, error = log_likelihood(model, evaluation_batch(model, fitted._cohort), args.draws, args.seed)
        print(f"-2LL with {args.draws} draws {-2 * found:.2f} (± {2 * error:.2f})")
    if args.json:
        row = {
            "seed": args.seed,
            "converged": status.converged,
            "m2ll": -2 * estimate.log_likelihood,
            "m2ll_error": 2 * estimate.error,
            "seconds": seconds,
            "estimates": dict(zip(population["PARAMETER"], population["ESTIMATE"], strict=True)),
        }
        args.json.write_text(json.dumps(row, indent=1))


if __name__ == "__main__":
    main()
