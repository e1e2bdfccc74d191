"""Theophylline and indomethacin, leave-one-subject-out: error of PRED, and of IPRED from the first k samples.

Every fold trains on the other subjects alone. For the subject left out, PRED is scored on all samples, and IPRED, the
MAP estimate from the first k samples, on the other samples. The score is the root mean square of
log(prediction/observation) over samples with TIME > 0 and DV > 0: of all subjects together, and in the column "by
subject" of each subject, of which the mean is taken. The column "posterior, by subject" scores the mean of the log
predictions over draws of the subject's posterior and of the population's uncertainty, which is the prediction with the
least expected error of this kind.

``--shown 4 --above-zero`` is the protocol of a published foundation model for pharmacokinetics: the first four samples
above 0 are seen. ``--allometry`` scales CL of theophylline by WT^0.75 and V1 by WT; its doses were chosen by weight.
"""

import argparse
import json
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path

import lightning as L
import pandas as pd
import torch
from quiet_training import train
from rich.console import Console
from rich.progress import track
from rich.table import Table

from neuralpk.cohort import Cohort
from neuralpk.datamodules import TableDataModule
from neuralpk.dynamics import CompartmentModel, Decoder, HybridDynamics, NeuralCompartments, NeuralField
from neuralpk.encoders import SetEncoder
from neuralpk.objectives import MarginalLikelihood
from neuralpk.parameters import PopulationParameters
from neuralpk.residual_error import CombinedError, ProportionalError
from neuralpk.solve import Auto
from neuralpk.task import LatentTask

# error of PRED with published population parameters, without individual information
PUBLISHED = {"theophylline": 0.341, "indomethacin": 0.281}
MODELS = {
    "theophylline": (lambda: CompartmentModel(1, "first_order"), CombinedError),
    "indomethacin": (lambda: CompartmentModel(2), ProportionalError),
}
ALLOMETRY = {"CL": {"WT": 0.75}, "V1": {"WT": 1.0}}
DRAWS = 2000
DYNAMICS: dict[str, Callable[[CompartmentModel], Decoder]] = {
    "mechanistic": lambda mechanism: mechanism,
    "neural": NeuralCompartments,
    "hybrid": HybridDynamics,
    "free": NeuralField,
}


def run_fold(
    name: str,
    dynamics: str,
    fold: int,
    folds: int,
    shown: int,
    above_zero: bool,
    allometry: bool,
    epochs: int,
    seed: int,
) -> pd.DataFrame:
    """Predictions for the subject of one fold; only samples above 0 count as shown where `above_zero` says so."""
    L.seed_everything(seed, verbose=False)
    effects = ALLOMETRY if allometry and name == "theophylline" else {}
    covariates = ["WT"] if effects else []
    data = TableDataModule(
        name, covariates=covariates, folds=folds, fold=fold, context="random", passes_per_epoch=20, seed=seed
    )
    mechanism, error = MODELS[name]
    task = LatentTask(
        DYNAMICS[dynamics](mechanism()),
        error=error(),
        parameters=PopulationParameters(effects=effects),
        encoder=None if dynamics == "mechanistic" else SetEncoder(),
        engine=Auto() if dynamics == "mechanistic" else Auto(rtol=1e-4, atol=1e-4),
        objective=MarginalLikelihood(),
        seed=seed,
    )
    train(task, data, epochs, covariance=True)
    test = data.part("test")
    if above_zero:
        counted = (task.residuals(test)["DV"] > 0).cumsum()
        shown = int((counted < shown).sum()) + 1
    table = task.residuals(test, context=shown)
    posterior = mean_of_log(task, test, shown, len(table))
    return table.assign(POSTERIOR=posterior, SEEN=[k < shown for k in range(len(table))])


@torch.no_grad()
def mean_of_log(task: LatentTask, test: Cohort, shown: int, records: int) -> list[float]:
    """Geometric mean of the predictions of one subject over draws of its posterior, at each record."""
    drawn = task.draw(test, DRAWS, context=shown)
    predictions = [model.predict(z, batch.scored_on_all()).value for model, z, batch in drawn.flat()]
    logs = torch.cat(predictions)[:, :records].double().log()
    mean: list[float] = logs.nanmean(0).exp().tolist()
    return mean


def log_rmse(table: pd.DataFrame, prediction: str) -> float:
    """Root mean square of log(prediction/DV) where TIME and DV are above 0."""
    scored = table[(table["TIME"] > 0) & (table["DV"] > 0)]
    ratio = (scored[prediction] / scored["DV"]).map(math.log)
    return math.sqrt((ratio**2).mean())


def main() -> None:
    """Run the folds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dynamics", nargs="+", default=["mechanistic"], choices=list(DYNAMICS))
    parser.add_argument("--folds", type=int, help="number of folds; default: all")
    parser.add_argument("--shown", type=int, default=5, help="number of first samples that are seen")
    parser.add_argument("--above-zero", action="store_true", help="count only samples above 0 as shown")
    parser.add_argument("--allometry", action="store_true", help="scale CL and V1 of theophylline by weight")
    parser.add_argument("--epochs", type=int, default=15, help="number of epochs, each of 20 passes over the subjects")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    rows, how = [], (options.shown, options.above_zero, options.allometry)
    for name, folds in (("theophylline", 12), ("indomethacin", 6)):
        for dynamics in options.dynamics:
            for seed in range(options.seeds):
                start = time.perf_counter()
                parts = [
                    run_fold(name, dynamics, fold, folds, *how, options.epochs, seed)
                    for fold in track(range(options.folds or folds), f"{name}, {dynamics}, seed {seed}")
                ]
                table = pd.concat(parts)
                row = {"data": name, "dynamics": dynamics, "seed": seed, "shown": options.shown}
                row |= {"pred": log_rmse(table, "PRED"), "ipred": log_rmse(table[~table["SEEN"]], "IPRED")}
                row |= {"pred_unseen": log_rmse(table[~table["SEEN"]], "PRED"), "published": PUBLISHED[name]}
                for key, prediction in (("by_subject", "IPRED"), ("posterior", "POSTERIOR")):
                    row[key] = sum(log_rmse(part[~part["SEEN"]], prediction) for part in parts) / len(parts)
                rows.append(row | {"seconds": round(time.perf_counter() - start, 1)})
    printed = Table(title=f"Leave-one-subject-out, log-RMSE; the first {options.shown} samples are seen")
    scores = ("PRED", "PRED unseen", "IPRED unseen", "by subject", "posterior, by subject", "published")
    for column in ("data", "dynamics", "seed", *scores, "s"):
        printed.add_column(column, no_wrap=True)
    for row in rows:
        numbers = (
            f"{row[key]:.3f}" for key in ("pred", "pred_unseen", "ipred", "by_subject", "posterior", "published")
        )
        printed.add_row(row["data"], row["dynamics"], str(row["seed"]), *numbers, str(row["seconds"]))
    Console(width=130).print(printed)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
