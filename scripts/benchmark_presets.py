"""Every simulated preset as it ships, on new subjects: errors of its curves and of its samples joined by lines.

    python scripts/benchmark_presets.py [NAME …]

A preset that does no better than the joined samples in an endpoint is named at the end, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch

from neuralpk.cli import PRESETS
from neuralpk.cli.entry import execute
from neuralpk.cohort_figures import curve_errors, quantity_of
from neuralpk.datamodules import SimulatedDataModule

JOINED = "samples, interpolated"


def measure(name: str, folder: Path) -> dict[str, tuple[float, float]] | None:
    """Errors of the model and of the joined samples by endpoint, mean over the new subjects; None for measured data."""
    cli = execute(["fit", "--preset", name, "--out", str(folder / name), "--trainer.enable_progress_bar", "false"])
    data, task = cli.datamodule, cli.model
    if not isinstance(data, SimulatedDataModule):
        return None
    cohort = data.part("test")
    errors = curve_errors(data, task, cohort)
    means = [errors[by][0].mean(axis=0) for by in ("model", JOINED)]
    return {
        quantity_of(cohort, task.model, k): (float(own), float(joined))
        for k, (own, joined) in enumerate(zip(*means, strict=True))
    }


def main() -> None:
    """Train the presets that are asked for, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("presets", nargs="*", default=sorted(PRESETS), help="default: all")
    asked = parser.parse_args().presets
    torch.set_num_threads(1)
    rows, worse = [], []
    with tempfile.TemporaryDirectory() as folder:
        for name in asked:
            began = time.process_time()
            found = measure(name, Path(folder)) or {}
            seconds = time.process_time() - began
            for quantity, (own, joined) in found.items():
                rows.append(f"| {name} | {quantity.lower()} | {own:.3f} | {joined:.3f} | {seconds:.0f} |")
                print(rows[-1], flush=True)
                if own >= joined:
                    worse.append(f"{name} ({quantity.lower()})")
    head = ["| preset | endpoint | model | samples, joined | CPU s |", "|---|---|---:|---:|---:|"]
    print("\n".join([*head, *rows]))
    if worse:
        sys.exit(f"no better than the joined samples: {', '.join(worse)}")


if __name__ == "__main__":
    main()
