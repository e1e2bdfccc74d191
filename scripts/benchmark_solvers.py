"""Time of one gradient step through a neural differential equation: the engines of neuralpk and of other libraries.

A step is the forward solve, the mean squared error, its gradient with respect to the weights of the network, and Adam.
All engines solve the same workloads (`solver_benchmark/workloads.py`) in float32 at rtol 1e-5 and atol 1e-6, each in a
separate process, on one thread or on the GPU. The time is the median of the repeats, after the compilation; the error
is the largest difference from a reference in float64.

    pip install -r scripts/requirements-peers.txt
    python scripts/benchmark_solvers.py
    python scripts/benchmark_solvers.py --devices cuda --forward --json rows.json
    python scripts/benchmark_solvers.py --growth --figure docs/solver_growth.png
"""

import argparse
import json
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from solver_benchmark.growth import draw, grow
from solver_benchmark.measure import ENGINES, RESULTS, measure, past
from solver_benchmark.workloads import MAKERS, make, reference

Row = dict[str, Any]


def compare(options: argparse.Namespace, console: Console) -> list[Row]:
    """Measure, and print the tables; an engine that exceeds the time limit is not measured on larger cohorts."""
    rows: list[Row] = []
    slow: set[tuple[str, str, str]] = set()
    size = {"doses": options.doses, "observations": options.observations}
    how = {"repeats": options.repeats, "limit": options.limit, "forward": options.forward}
    with tempfile.TemporaryDirectory() as folder:
        for workload in options.workloads:
            for n in sorted(options.sizes):
                expected = Path(folder) / f"{workload}_{n}.npy"
                np.save(expected, reference(make(workload, n, **size)))
                for device in options.devices:
                    for engine in options.engines:
                        row = {"workload": workload, "device": device, "n": n, "engine": engine}
                        if (workload, device, engine) in slow:
                            row |= dict.fromkeys(RESULTS) | {"note": past(options.limit)}
                        else:
                            with console.status(f"{workload}, {n} subjects, {device}: {engine}"):
                                row |= measure(**row, **size, **how, reference=expected)
                        if row["note"] == past(options.limit):
                            slow.add((workload, device, engine))
                        rows.append(row)
                        save(rows, options.json)
                    console.print(table(rows[-len(options.engines) :]))
    return rows


def table(rows: list[Row]) -> Table:
    """The rows of one workload, device and number of subjects."""
    peers = [row["ms"] for row in rows if row["ms"] is not None and ENGINES[row["engine"]].peer]
    first = rows[0]
    printed = Table(title=f"{first['workload']}, {first['n']} subjects, {first['device']}", title_justify="left")
    printed.add_column("engine", no_wrap=True)
    for column in ("ms", "÷ fastest peer", "forward ms", "max error", "first s", "peak MB"):
        printed.add_column(column, justify="right", no_wrap=True)
    printed.add_column("note")
    for row in rows:
        if row["ms"] is None:
            printed.add_row(row["engine"], "", "", "", "", "", "", row["note"])
            continue
        ratio = f"{row['ms'] / min(peers):.3g}" if peers else ""
        ahead = "" if row["forward_ms"] is None else _short(row["forward_ms"])
        numbers = (_short(row["ms"]), ratio, ahead, f"{row['max_error']:.1e}")
        printed.add_row(row["engine"], *numbers, f"{row['first_s']:.1f}", f"{row['peak_mb']:.0f}", "")
    return printed


def _short(ms: float) -> str:
    return f"{ms:.3g}" if ms < 100 else f"{ms:.0f}"


def save(rows: list[Row], path: Path | None) -> None:
    """Write the rows measured so far, so that they are not lost if the run is stopped."""
    if path is not None:
        path.write_text(json.dumps(rows, indent=1))


def versions() -> str:
    """Versions of the measured libraries."""
    installed = {d.name.lower(): d.version for d in metadata.distributions()}
    names = ("torch", "torchdiffeq", "torchode", "jax", "diffrax")
    return ", ".join(f"{name} {installed.get(name, '(not installed)')}" for name in names)


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", default=list(MAKERS), choices=list(MAKERS))
    parser.add_argument("--sizes", nargs="+", type=int, default=[50, 1024, 16384], help="numbers of subjects")
    here = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    parser.add_argument("--devices", nargs="+", default=here, choices=["cpu", "cuda"], help="default: all available")
    parser.add_argument("--engines", nargs="+", default=[""], help="beginnings of names; default: all engines")
    parser.add_argument("--doses", type=int, default=28, help="doses of each subject in the workload doses")
    parser.add_argument("--observations", type=int, default=20, help="observations of each subject")
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--limit", type=float, default=60.0, help="seconds that the first step may take")
    parser.add_argument("--forward", action="store_true", help="also time the solve alone, not with --growth")
    parser.add_argument("--json", type=Path, help="file for the rows")
    parser.add_argument("--growth", action="store_true", help="vary subjects, doses and observations")
    parser.add_argument(
        "--figure", type=Path, default=Path("solver_growth.png"), help="file for the figure of --growth"
    )
    options = parser.parse_args()
    chosen = [name for name in ENGINES if name.startswith(tuple(options.engines))]
    unknown = [prefix for prefix in options.engines if not any(name.startswith(prefix) for name in ENGINES)]
    if unknown:
        parser.error(f"no engine begins with {', '.join(unknown)}; there are {', '.join(ENGINES)}")
    options.engines = chosen

    console = Console(width=120)
    console.print(versions())
    console.print(f"GPU: {torch.cuda.get_device_name()}" if "cuda" in here else "No GPU available: CPU only.")
    if options.growth:
        engines = [name for name in chosen if ENGINES[name].library == "neuralpk"]
        rows = grow(engines, options.devices, options.repeats, options.limit, console)
        save(rows, options.json)
        if all(row["ms"] is None for row in rows):
            parser.exit(1, "Nothing to draw: none of these engines took a step.\n")
        draw(rows).savefig(options.figure)
        console.print(f"drawn: {options.figure}")
    else:
        compare(options, console)


if __name__ == "__main__":
    main()
