"""Does the memory stay the same, and the speed, when a table or a training has ten times as many patients?

    python scripts/benchmark_scale.py [--subjects 2000 20000 200000] [--only estimate ...] [--processes 2] --json FILE
    python scripts/benchmark_scale.py --only --json FILE --figure docs/measurements/scale.png

Patients with one compartment and absorption, six samples each. Every row is a command or a training in a process of its
own; the memory is the largest resident set of it and of each process that it began. This process imports nothing large
and makes no table itself: what a process holds when it begins another counts as memory of that one.

    estimate            neuralpk estimate over a Parquet file, in parts of 1,000, without intervals
    estimate_intervals  the same with 90 % intervals from 100 draws
    evaluate            neuralpk evaluate on 1,000 patients drawn from the file
    train_file          a pass over the file, 1,000 patients held, in batches of 500
    train_simulated     as many patients simulated as they are trained on, 1,000 held, in batches of 500
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

POPULATION = """
dynamics: {compartments: 1, absorption: first_order}
typical: {KA: 1.0, CL: 4.0, V1: 40.0}
omega: {KA: 0.4, CL: 0.3, V1: 0.2}
error: proportional
error_sd: {b: 0.2}
"""
TIMES = [0.5, 1.0, 2.0, 3.0, 5.0, 8.0, 12.0, 16.0, 24.0]
HELD, BATCH, PART = 1000, 500, 1000
KINDS = ("estimate", "estimate_intervals", "evaluate", "train_file", "train_simulated")
DRAWN = {
    "estimate": "estimates (MAP)",
    "evaluate": "evaluate, 1,000 drawn",
    "train_file": "training, from the file",
    "train_simulated": "training, simulated",
}


def cohort(subjects: int, **options: object):
    """The patients, as a data module."""
    from neuralpk.datamodules import SimulatedPKDataModule

    return SimulatedPKDataModule(
        subjects,
        compartments=1,
        absorption="first_order",
        typical={"KA": 1.0, "CL": 4.0, "V1": 40.0},
        omega={"KA": 0.4, "CL": 0.3, "V1": 0.2},
        times=TIMES,
        samples=6,
        grid=[0.0, 24.0, 50],
        seed=1,
        **options,
    )


def train(table: Path | None, subjects: int) -> None:
    """One pass over the patients of a file, or over simulated ones."""
    import torch
    from quiet_training import quiet_trainer

    from neuralpk import ELBO, CompartmentModel, LatentTask, SetEncoder, TableDataModule

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", ".*does not have many workers")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    options = {"batch_size": BATCH, "validation": 0.1}
    data = (
        cohort(HELD, streamed=subjects - HELD, **options)
        if table is None
        else TableDataModule(str(table), held=HELD, seed=1, **options)
    )
    task = LatentTask(CompartmentModel(1, "first_order"), encoder=SetEncoder(), objective=ELBO(), learning_rate=0.003)
    trainer = quiet_trainer(1)
    trainer.fit(task, data)
    print(f"steps {trainer.global_step}, val_loss {float(trainer.callback_metrics['val_loss']):.3f}")


def write_table(path: Path, subjects: int) -> None:
    """Write the patients as a Parquet file."""
    from neuralpk.tables.batchwise_writing import write_frames

    write_frames(cohort(subjects).frames(), path)


def draw(rows: list[dict], path: Path) -> None:
    """Patients a second of CPU time, the start of the program included, and memory, against their number."""
    from neuralpk.diagnostics.style import BLUE, GREEN, ORANGE, VERMILLION, legend_on_top, new_figure

    figure, axes = new_figure(1, 2, height=2.8)
    speed, memory = axes.flat
    for (kind, label), colour in zip(DRAWN.items(), (BLUE, ORANGE, GREEN, VERMILLION), strict=True):
        own = sorted((row for row in rows if row["kind"] == kind), key=lambda row: row["subjects"])
        sizes = [row["subjects"] for row in own]
        if kind != "evaluate":  # which works on the patients that are drawn
            speed.plot(sizes, [row["subjects"] / row["cpu_seconds"] for row in own], "o-", color=colour)
        memory.plot(sizes, [row["peak_mb"] for row in own], "o-", color=colour, label=label)
    speed.set(xscale="log", yscale="log", xlabel="Patients", ylabel="Patients a second of CPU")
    speed.set_ylim(100, 10_000)
    memory.set(xscale="log", xlabel="Patients", ylabel="Largest resident set, MB")
    memory.set_ylim(0, 1.2 * memory.get_ylim()[1])
    legend_on_top(figure, [memory])
    figure.savefig(path, dpi=150)


def command(kind: str, folder: Path, subjects: int, processes: int) -> list[str]:
    """What a row runs."""
    table = folder / f"{subjects}.parquet"
    if kind.startswith("train"):
        source = str(table) if kind == "train_file" else "simulated"
        return [sys.executable, __file__, "--train", source, "--subjects", str(subjects)]
    name = "evaluate" if kind == "evaluate" else "estimate"
    more = {
        "estimate": ["--draws", "0", "--part_size", str(PART), "--processes", str(processes)],
        "estimate_intervals": ["--draws", "100", "--part_size", str(PART), "--processes", str(processes)],
        "evaluate": ["--patients", "1000", "--draws", "0"],
    }[kind]
    out = folder / f"{kind}-{subjects}"
    words = [name, "--model", str(folder / "pop.yaml"), "--table", str(table), "--out", str(out)]
    return [sys.executable, "-m", "neuralpk", *words, *more]


def measured(words: list[str]) -> tuple[float, float, float, str]:
    """Seconds on the clock, seconds of CPU, largest resident set in MB, and the last line that is printed."""
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(words, stdout=said, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - start
        said.seek(0)
        text = said.read().strip()
    if process.returncode:
        raise SystemExit(f"{' '.join(words)}\n{text}")
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, text.splitlines()[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subjects", type=int, nargs="+", default=[2000, 20_000, 200_000])
    parser.add_argument("--only", nargs="*", choices=KINDS, default=KINDS, help="rows; none draws those of --json")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="for the tables and results; by default one that is removed")
    parser.add_argument("--json", type=Path, help="file for the rows; those of other runs in it stay")
    parser.add_argument("--figure", type=Path, help="file for a figure of all rows")
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)  # of the process that writes a table
    parser.add_argument("--train", help=argparse.SUPPRESS)  # of the process of a row
    arguments = parser.parse_args()
    if arguments.train:
        train(None if arguments.train == "simulated" else Path(arguments.train), arguments.subjects[0])
        return
    if arguments.write:
        write_table(arguments.write, arguments.subjects[0])
        return
    rows = json.loads(arguments.json.read_text()) if arguments.json and arguments.json.exists() else []
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "pop.yaml").write_text(POPULATION)
        for subjects in arguments.subjects:
            table = folder / f"{subjects}.parquet"
            if arguments.only and not table.exists():
                own = [sys.executable, __file__, "--write", str(table), "--subjects", str(subjects)]
                subprocess.run(own, check=True)
            for kind in arguments.only:
                seconds, cpu, memory, said = measured(command(kind, folder, subjects, arguments.processes))
                row = {"kind": kind, "subjects": subjects, "seconds": round(seconds, 1), "cpu_seconds": round(cpu, 1)}
                row |= {"peak_mb": round(memory), "per_second": round(subjects / seconds)}
                print(f"{kind:20} {subjects:>8,} {row['seconds']:8} s {row['peak_mb']:6} MB  {said[:80]}", flush=True)
                rows = [r for r in rows if (r["kind"], r["subjects"]) != (kind, subjects)] + [row]
                if arguments.json:
                    arguments.json.write_text(json.dumps(rows, indent=1))
    if arguments.figure:
        draw(rows, arguments.figure)


if __name__ == "__main__":
    main()
