"""Results of a command that are there already: refused, unless they are to be replaced."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from neuralpk.cli.faults import UsageError
from neuralpk.cli.signatures import Option

OVERWRITE = Option("overwrite", bool, False, "replace results of that name which are there")

_OF_A_RUN = (
    *("checkpoints/*.ckpt", "events.out.tfevents.*", "train/events.out.tfevents.*", "val/events.out.tfevents.*"),
    *("config.yaml", "run.json", "hparams.yaml", "pop.yaml"),
    *("population.csv", "calibration.csv", "records.csv", "individuals.csv", "occasions.csv", "exposure.csv"),
    *("curves.csv", "metrics.csv", "pcvpc*.png", "npde*.png", "random_effects.png", "covariates.png"),
    *("covariate_effects.png", "individuals*.png", "goodness_of_fit*.png", "phase_plane*.png", "network_*.png"),
    "new_subjects.csv",
)
"""Patterns of the files that a training writes into its folder."""


def results_of_a_run(folder: Path) -> list[Path]:
    """Results of a training that lie in a folder."""
    return sorted(path for pattern in _OF_A_RUN for path in folder.glob(pattern))


def refuse_results(out: Path, found: Iterable[Path], overwrite: bool) -> None:
    """Refuse an ``--out`` with results.

    Raises:
        UsageError: a file of `found` exists, and `overwrite` is False.
    """
    there = [path for path in found if path.is_file()]
    if there and not overwrite:
        what = f"{out} is there already" if there == [out] else f"{out} holds results already ({there[0].name})"
        raise UsageError(f"--out {what}: give --overwrite to replace them, or another --out")
