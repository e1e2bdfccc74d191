"""The command simulate without a model: a simulated cohort as an event table."""

from __future__ import annotations

from pathlib import Path

from rich.progress import track

from neuralpk.cohort_data import SimulatedData
from neuralpk.tables.batchwise_writing import write_frames


def simulate(data: SimulatedData, out: Path, seed: int | None = None) -> None:
    """Write a simulated cohort as an event table, part by part: it may be larger than the memory. The course of
    patients under regimens, by a model: neuralpk simulate --model --help.

    Args:
        data: what to simulate.
        out: CSV or Parquet file (.parquet, .pq) to write.
        seed: of the patients; null for that of the data.
    """
    data.seed = data.seed if seed is None else seed
    subjects, size = data.subjects + data.test_subjects, 10_000
    write_frames(track(data.frames(size), "simulate", total=-(-subjects // size), disable=subjects <= size), out)
    print(f"{subjects} subjects written to {out}")
