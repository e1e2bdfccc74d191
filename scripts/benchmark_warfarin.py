"""Fit of a concentration and its effect at once: warfarin, 32 subjects (O'Reilly and Aggeler 1968), as nlmixr2data has
them, with transit absorption and a turnover model of prothrombin complex activity.

The table has the columns id, time, amt, dv, dvid (cp or pca) and evid.
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
from neuralpk.dynamics import Equations

MODEL = """
parameters: KTR = 1, KA = 1, CL = 0.1, V = 10, EMAX = 0.8 in (0, 1), EC50 = 0.5, KOUT = 0.05, E0 = 100
depot' = -KTR*depot
gut' = KTR*depot - KA*gut
central' = KA*gut - CL/V*central
cp = central/V
pca' = E0*KOUT*(1 - EMAX*cp/(EC50 + cp)) - KOUT*pca
pca(0) = E0
outputs: cp ~ combined, pca ~ additive
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, required=True, help="warfarin as CSV")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="file to write")
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    frame = pd.read_csv(args.table).rename(columns=str.upper)
    dynamics = Equations(MODEL)
    begin = time.process_time()
    fitted = neuralpk.fit(frame[["ID", "TIME", "AMT", "DV", "DVID", "EVID"]], dynamics, seed=args.seed, progress=False)
    seconds, population = time.process_time() - begin, fitted.population
    estimate, status = fitted.task.covariance, fitted.task.status
    assert estimate is not None and status is not None
    print(population.to_string(index=False))
    print(f"-2LL {-2 * estimate.log_likelihood:.2f} (± {2 * estimate.error:.2f}); {status.sentence}")
    print(f"{seconds:.0f} CPU seconds, standard errors and compilation included")
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
