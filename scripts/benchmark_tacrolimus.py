"""How well is a transplant patient's exposure to tacrolimus estimated from three samples, by several methods?

The simulation is a published one: a depot and three transit compartments, then two compartments; two formulations; 800
patients to learn from and 200 others to score on, sampled 0, 1 and 3 h after the last of seven doses. The target is the
area under the concentration curve (AUC) over the interval after that dose. Scenario 1 is as published. In scenario 2 a
haematocrit that acts on clearance is hidden. In scenario 3 elimination is saturable, which only the oracle knows.

One model, with the same settings in every scenario, is trained on the samples of the 800 patients alone. For the row
"recalibrated" its areas are multiplied by one factor for each formulation. The factors come from training patients with
their true AUC, which the regressions know too.
"""

import argparse
import itertools
import json
import logging
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from tacrolimus_benchmark.baselines import by_formula, by_regression, regressors
from tacrolimus_benchmark.estimate import Estimate, score
from tacrolimus_benchmark.model import EPOCHS, HALFWAY, by_draws, by_mode, known_model, learn, recalibrated
from tacrolimus_benchmark.simulation import simulate

from neuralpk.task import LatentTask


def run(scenario: int, seed: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Every estimator on one cohort."""
    people = simulate(scenario, options.train + options.test, seed)
    train, test = people[: options.train], people[options.train :]
    rows: list[dict[str, Any]] = []

    def add(name: str, make: Callable[[], Estimate]) -> Estimate:
        started = time.perf_counter()
        estimate = make()
        row = {"scenario": scenario, "seed": seed, "estimator": name} | score(estimate, test)
        rows.append(row | {"seconds": round(time.perf_counter() - started, 1)})
        return estimate

    models: list[LatentTask] = []

    def learned() -> Estimate:
        models.append(learn(train, seed, options.epochs))
        return by_draws(models[0].model, test, options.draws, seed, HALFWAY, models[0].encoder)

    def calibrated() -> Estimate:
        some = train[: options.test]
        found = by_draws(models[0].model, some, options.draws, seed, HALFWAY, models[0].encoder)
        return recalibrated(own, test, found, some)

    own = add("neuralpk", learned)
    add("neuralpk, recalibrated", calibrated)
    add("limited-sampling formula", lambda: by_formula(train, test))
    for name, make in regressors(seed).items():
        add(name, partial(by_regression, make, train, test))
    add("MAP, published linear model", lambda: by_mode(known_model(1, hidden=False), test))
    oracle = known_model(scenario, hidden=scenario == 2)
    add("Bayes, true generator", lambda: by_draws(oracle, test, options.draws, seed))
    return rows


def show(rows: list[dict[str, Any]], console: Console) -> None:
    """Print means over seeds with their range."""
    seeds = len({row["seed"] for row in rows})
    table = Table(title=f"AUC after the last dose, %: mean over {seeds} seed(s) (smallest to largest)")
    for column in ("scenario", "estimator", "RMSPE", "bias", "90 % interval covers", "curve", "s"):
        table.add_column(column, no_wrap=True)
    groups: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["scenario"], row["estimator"]), []).append(row)
    for (scenario, name), group in groups.items():
        cells = []
        for key in ("rmspe", "bias", "cover90", "line_rrmse"):
            found = [row[key] for row in group if row[key] is not None]
            cells.append(f"{np.mean(found):.1f} ({min(found):.1f} to {max(found):.1f})" if found else "")
        table.add_row(str(scenario), name, *cells, f"{np.median([row['seconds'] for row in group]):.0f}")
    console.print(table)


def main() -> None:
    """Run the scenarios and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--scenarios", nargs="+", type=int, default=[1, 2, 3], choices=[1, 2, 3])
    parser.add_argument("--train", type=int, default=800, help="number of patients to learn from")
    parser.add_argument("--test", type=int, default=200, help="number of patients to score on")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--draws", type=int, default=200, help="number of draws of each patient's parameters")
    parser.add_argument("--json", type=Path, help="file for all numbers")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    console = Console(width=130)
    if not regressors(0):
        console.print(
            "left out, without scikit-learn: boosting, MLP (pip install -r scripts/requirements-tacrolimus.txt)"
        )
    rows: list[dict[str, Any]] = []
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    for scenario, seed in track(list(itertools.product(options.scenarios, seeds)), "learn and score", console=console):
        rows += run(scenario, seed, options)
        if options.json:
            options.json.write_text(json.dumps(rows, indent=1))
    show(rows, console)


if __name__ == "__main__":
    main()
