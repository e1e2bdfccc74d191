"""Values below the limit of quantification: what a fit finds with all values, without those below the limit, and with
their probability in place of the value.

A study has 50 patients with two compartments, a bolus and eight samples each; 30 % of the samples are below the limit.
Number k of a study is the seed of its simulation. Each study is fitted three times: as it is before the limit, with the
values below it left out, and with them censored (M3, Beal 2001).

`--pooled FIRST LAST` makes one fit of the patients of several studies instead, with all values or with them censored,
and prints the standard errors.
"""

from __future__ import annotations

import argparse
import dataclasses
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
from neuralpk import CompartmentModel, PopulationParameters, ProportionalError
from neuralpk.cohort import Cohort, Dose
from neuralpk.cohort_simulation import Design, Population, simulate_cohort
from neuralpk.fitting import FittedModel

TYPICAL = {"CL": 5.0, "V1": 30.0, "Q": 4.0, "V2": 60.0}
OMEGA = {"CL": 0.3, "V1": 0.3, "Q": 0.3, "V2": 0.3}
B, DOSE, LIMIT = 0.1, 100.0, 0.24
TIMES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 24.0, 36.0)
KINDS = ("all", "dropped", "censored")


def study(number: int, limit: float | None) -> Cohort:
    """The cohort of a number, with its values below a limit censored."""
    design = Design(((Dose(0.0, DOSE),),), TIMES, lloq=limit, grid=(0.0, 1.0))
    error = ProportionalError.from_values(1, b=B)
    return simulate_cohort(CompartmentModel(2), Population(TYPICAL, OMEGA), design, error, 50, number)


def dropped(cohort: Cohort) -> Cohort:
    """The cohort without its censored values."""
    kept = (
        dataclasses.replace(one, values=np.where(one.censored > 0, np.nan, one.values), censored=0 * one.censored)
        for one in cohort
    )
    return dataclasses.replace(cohort, subjects=tuple(kept))


def half_life(values: dict[str, float]) -> float:
    """Of the terminal phase, h."""
    k10, k12, k21 = values["CL"] / values["V1"], values["Q"] / values["V1"], values["Q"] / values["V2"]
    total = k10 + k12 + k21
    return math.log(2.0) * 2 / (total - math.sqrt(total**2 - 4 * k10 * k21))


def fit(number: int) -> dict[str, Any]:
    """Typical values that the three fits of a study find."""
    censored = study(number, LIMIT)
    cohorts = {"all": study(number, None), "dropped": dropped(censored), "censored": censored}
    row: dict[str, Any] = {"study": number}
    row["below"] = float(np.mean([one.censored.mean() for one in censored]))
    for kind, cohort in cohorts.items():
        begin = time.process_time()
        fitted = neuralpk.fit(
            cohort, CompartmentModel(2), parameters=PopulationParameters(), error=ProportionalError(), progress=False
        )
        status, found = fitted.task.status, fitted.task.model.population.typical_values()
        assert status is not None
        row[kind] = found | {"half-life": half_life(found), "converged": status.converged}
        row[kind]["seconds"] = round(time.process_time() - begin, 1)
    return row


def fit_pooled(first: int, last: int, limit: float | None) -> FittedModel:
    """One fit of the patients of several studies."""
    people = [dataclasses.replace(one, id=f"{k}-{one.id}") for k in range(first, last + 1) for one in study(k, limit)]
    return neuralpk.fit(
        Cohort((*people,)),
        CompartmentModel(2),
        parameters=PopulationParameters(),
        error=ProportionalError(),
        progress=False,
    )


def summarise(rows: list[dict[str, Any]]) -> None:
    """Print the bias and the root mean square error of every number, in per cent of the truth."""
    print(f"{len(rows)} studies, {100 * np.mean([row['below'] for row in rows]):.1f} % of the values below the limit")
    truth = TYPICAL | {"half-life": half_life(TYPICAL)}
    for name, true in truth.items():
        texts = []
        for kind in KINDS:
            error = 100 * (np.array([row[kind][name] for row in rows]) / true - 1)
            of_bias = error.std(ddof=1) / math.sqrt(len(rows)) if len(rows) > 1 else math.nan
            texts.append(f"{kind} {error.mean():+.1f} ± {of_bias:.1f}, RMSE {np.sqrt(np.square(error).mean()):.1f}")
        print(f"{name}: {'; '.join(texts)}")
    for kind in KINDS:
        converged = sum(row[kind]["converged"] for row in rows)
        print(f"{kind}: {converged} converged, CPU {np.median([row[kind]['seconds'] for row in rows]):.1f} s (median)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=200)
    parser.add_argument("--first", type=int, default=1, help="number of the first study")
    parser.add_argument("--json", type=Path, help="file for all numbers; studies that are in it are not fitted again")
    parser.add_argument("--pooled", type=int, nargs=2, help="first and last study of one fit")
    parser.add_argument("--censored", action="store_true", help="its values below the limit are censored")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    if args.pooled:
        fitted = fit_pooled(*args.pooled, LIMIT if args.censored else None)
        print(fitted.population.to_string(index=False))
        return
    rows = json.loads(args.json.read_text()) if args.json and args.json.exists() else []
    known = {row["study"] for row in rows}
    for number in range(args.first, args.first + args.studies):
        if number not in known:
            rows.append(fit(number))
            print(json.dumps(rows[-1]), flush=True)
            if args.json:
                args.json.write_text(json.dumps(rows, indent=1))
    summarise(rows)


if __name__ == "__main__":
    main()
