"""Theophylline and indomethacin, leave-one-subject-out: error of PRED, and of IPRED from the first k samples.

Every fold trains on the other subjects alone. PRED is scored on all samples of the subject left out, IPRED, the most
probable line given the first k, on the others; root mean square of log(prediction/observation), samples with TIME > 0
and DV > 0.
"""

import argparse
import json
import logging
import math
import time
from pathlib import Path

import lightning as L
import pandas as pd
import torch
from quiet_training import train
from rich.console import Console
from rich.progress import track
from rich.table import Table

from neuralpk.datamodules import TableDataModule
from neuralpk.tasks import LatentODETask

# published population parameters alone, no individual information
PUBLISHED = {"theophylline": 0.341, "indomethacin": 0.281}
MODELS = {
    "theophylline": {"dynamics": {"compartments": 1, "absorption": "first_order"}, "error": "combined"},
    "indomethacin": {"dynamics": {"compartments": 2}, "error": "proportional"},
}


def run_fold(name: str, field: str, fold: int, folds: int, shown: int, epochs: int, seed: int) -> pd.DataFrame:
    """Predictions for the subject of one fold."""
    L.seed_everything(seed, verbose=False)
    data = TableDataModule(
        name, covariates=[], folds=folds, fold=fold, context="random", passes_per_epoch=20, seed=seed
    )
    settings = MODELS[name]
    solver = {} if field == "mechanistic" else {"rtol": 1e-4, "atol": 1e-4}
    task = LatentODETask(
        scaling=data.scaling(),
        dynamics=settings["dynamics"] | {"field": field},
        error=settings["error"],
        solver=solver,
        objective="iwae",
        seed=seed,
    )
    train(task, data, epochs)
    table = task.residuals(data.part("test"), context=shown)
    return table.assign(SEEN=range(len(table)), SHOWN=shown).assign(SEEN=lambda t: t["SEEN"] < shown)


def log_rmse(table: pd.DataFrame, prediction: str) -> float:
    """Root mean square of log(prediction/DV) where TIME and DV are above 0."""
    scored = table[(table["TIME"] > 0) & (table["DV"] > 0)]
    ratio = (scored[prediction] / scored["DV"]).map(math.log)
    return math.sqrt((ratio**2).mean())


def main() -> None:
    """Run the folds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fields", nargs="+", default=["mechanistic"])
    parser.add_argument("--shown", type=int, default=5, help="samples shown to the encoder")
    parser.add_argument("--epochs", type=int, default=15, help="of 20 passes over the subjects")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    rows = []
    for name, folds in (("theophylline", 12), ("indomethacin", 6)):
        for field in options.fields:
            for seed in range(options.seeds):
                start = time.perf_counter()
                parts = [
                    run_fold(name, field, fold, folds, options.shown, options.epochs, seed)
                    for fold in track(range(folds), f"{name}, {field}, seed {seed}")
                ]
                table = pd.concat(parts)
                row = {"data": name, "field": field, "seed": seed, "shown": options.shown}
                row |= {"pred": log_rmse(table, "PRED"), "ipred": log_rmse(table[~table["SEEN"]], "IPRED")}
                row |= {"pred_unseen": log_rmse(table[~table["SEEN"]], "PRED"), "published": PUBLISHED[name]}
                rows.append(row | {"seconds": round(time.perf_counter() - start, 1)})
    printed = Table(title=f"Leave-one-subject-out, log-RMSE; {options.shown} samples shown to the encoder")
    for column in ("data", "field", "seed", "PRED", "PRED unseen", "IPRED unseen", "published", "s"):
        printed.add_column(column, no_wrap=True)
    for row in rows:
        numbers = (f"{row[key]:.3f}" for key in ("pred", "pred_unseen", "ipred", "published"))
        printed.add_row(row["data"], row["field"], str(row["seed"]), *numbers, str(row["seconds"]))
    Console(width=100).print(printed)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
