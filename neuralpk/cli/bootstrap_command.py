"""``neuralpk bootstrap``: a population fitted again to patients drawn with replacement."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from neuralpk.bootstrap import bootstrap as fit_replicates
from neuralpk.bootstrap import outcome, summarise
from neuralpk.cli.csv_files import write_csv
from neuralpk.cli.progress_bar import progress_bar
from neuralpk.saved_model import read_model

BOOTSTRAP_FILES = ("bootstrap.csv", "bootstrap_summary.csv")


def bootstrap(
    model: Path,
    table: Path,
    out: Path,
    replicates: int = 200,
    seed: int = 0,
    processes: int | None = None,
    strata: str | None = None,
    unverified: bool = False,
    **reading: Any,
) -> None:
    """Fit a trained model again to patients drawn from its table with replacement, for intervals of the population.

    Args:
        model: checkpoint of a training by maximum likelihood, without network weights.
        table: event table of the training.
        out: folder for bootstrap.csv (a row for each replicate) and bootstrap_summary.csv (median, standard error and
            95 % interval of every number).
        replicates: how many.
        seed: of the patients that are drawn.
        processes: fit that many replicates at a time; null for the number of CPUs.
        strata: covariate; a replicate has as many patients with each of its values as the table.
        unverified: also read a checkpoint without a sha256.
        reading: how the table is read.
    """
    saved = read_model(model, unverified)
    task = saved.task()
    cohort = saved.read_table(table, [strata] if strata else [], **reading)
    shown = partial(progress_bar, "bootstrap")
    found = fit_replicates(task.model, task.objective, cohort, replicates, seed, processes, strata, shown)
    write_csv(found, out / "bootstrap.csv")
    write_csv(summarise(found, task.model), out / "bootstrap_summary.csv")
    print(f"{outcome(found)}: {out / 'bootstrap.csv'}, {out / 'bootstrap_summary.csv'}")
