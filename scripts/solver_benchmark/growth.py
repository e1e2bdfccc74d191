"""How time and memory of a gradient step of neuralpk grow with subjects, doses and observations."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console

from neuralpk.evaluate.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    VERMILLION,
    legend_on_top,
    log_scale,
    new_figure,
    set_range,
)
from solver_benchmark.measure import measure

BASE = {"n": 256, "doses": 28, "observations": 20}
RANGES = {
    "n": (50, 256, 1024, 4096, 16384),
    "doses": (1, 3, 10, 28, 100),
    "observations": (5, 10, 20, 50, 100),
}
_NAMES = {"n": "Subjects", "doses": "Doses", "observations": "Observations"}


def grow(engines: list[str], devices: list[str], repeats: int, limit: float, console: Console) -> list[dict[str, Any]]:
    """Measure each engine, one thing growing at a time from `BASE`; past the limit nothing larger is tried."""
    rows = []
    for device in devices:
        for engine in engines:
            for what, values in RANGES.items():
                for value in values:
                    row = {"workload": "doses", "device": device, "engine": engine, **BASE, what: value}
                    with console.status(f"{engine}, {device}: {value} {_NAMES[what].lower()}"):
                        row |= {"grown": what} | measure(**row, repeats=repeats, limit=limit)
                    result = row["note"] or f"{row['ms']:.1f} ms, {row['peak_mb']:.0f} MB"
                    console.print(f"{engine}, {device}, {value} {_NAMES[what].lower()}: {result}")
                    rows.append(row)
                    if row["ms"] is None:
                        break
    return rows


def draw(rows: list[dict[str, Any]]) -> Figure:
    """Time above, memory below; a column for each thing that grows."""
    figure, axes = new_figure(2, len(RANGES), height=5.6, sharey="row")
    solved = [row for row in rows if row["ms"] is not None]
    lines = list(dict.fromkeys((row["engine"], row["device"]) for row in solved))
    colours = dict(zip(lines, (BLUE, ORANGE, GREEN, VERMILLION, PURPLE, BLACK), strict=False))
    for panels, (key, name) in zip(
        axes, (("ms", "Time a gradient step (ms)"), ("peak_mb", "Peak memory (MB)")), strict=True
    ):
        for axis, what in zip(panels, RANGES, strict=True):
            for line in lines:
                own = [row for row in solved if row["grown"] == what and (row["engine"], row["device"]) == line]
                label = ", ".join(line) if len({device for _, device in lines}) > 1 else line[0]
                axis.plot(
                    [row[what] for row in own],
                    [row[key] for row in own],
                    "o-",
                    color=colours[line],
                    ms=4,
                    lw=1.4,
                    label=label,
                )
            set_range(axis, "x", np.array(RANGES[what], float), log=True)
            log_scale(axis, "x")
            axis.set_xticks(RANGES[what])
    return figure
