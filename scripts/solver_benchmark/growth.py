"""How time and memory of a gradient step of neuralpk grow with the numbers of subjects, doses and observations."""

from __future__ import annotations

from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator
from rich.console import Console

from neuralpk.diagnostics.style import (
    BLUE,
    GREEN,
    GREY,
    LIGHT,
    ORANGE,
    PURPLE,
    VERMILLION,
    legend_on_top,
    log_scale,
    new_figure,
    set_range,
)
from solver_benchmark.measure import measure

Row = dict[str, Any]

BASE = {"n": 256, "doses": 28, "observations": 20}
RANGES = {
    "n": (50, 256, 1024, 4096),
    "doses": (1, 3, 10, 28, 100),
    "observations": (5, 10, 20, 50, 100),
}
NAMES = {"n": "subjects", "doses": "doses", "observations": "observations"}
COLOURS = (BLUE, ORANGE, GREEN, VERMILLION, PURPLE)


def grow(engines: list[str], devices: list[str], repeats: int, limit: float, console: Console) -> list[Row]:
    """Measure the engines on the workload `doses`; one number at a time varies from `BASE`.

    If an engine cannot take a step, larger numbers are not measured.
    """
    rows = []
    for device in devices:
        for engine in engines:
            for grown, values in RANGES.items():
                for value in values:
                    row: Row = {"workload": "doses", "device": device, "engine": engine, **BASE, grown: value}
                    with console.status(f"{engine}, {device}, {value} {NAMES[grown]}"):
                        row |= {"grown": grown} | measure(**row, repeats=repeats, limit=limit)
                    result = row["note"] or f"{row['ms']:.1f} ms, {row['peak_mb']:.0f} MB"
                    console.print(f"{engine}, {device}, {value} {NAMES[grown]}: {result}")
                    rows.append(row)
                    if row["ms"] is None:
                        break
    return rows


def draw(rows: list[Row]) -> Figure:
    """Time (upper panels) and memory (lower panels); a column for each number that varies."""
    figure, axes = new_figure(2, len(RANGES), height=5.6, sharex="col", sharey="row")
    solved = [row for row in rows if row["ms"] is not None]
    lines = dict(zip(dict.fromkeys((row["engine"], row["device"]) for row in solved), cycle(COLOURS), strict=False))
    for panels, key in zip(axes, ("ms", "peak_mb"), strict=True):
        # the memory of a process grows by pages and pools: differences below 1 MB are noise
        values = {id(row): max(row[key], 1.0 if key == "peak_mb" else 0.0) for row in solved}
        for axis, grown in zip(panels, RANGES, strict=True):
            _panel(axis, [row for row in solved if row["grown"] == grown], grown, values, lines)
        set_range(panels[0], "y", np.array(list(values.values())), log=True)
        for axis in panels:
            log_scale(axis, "y")
    for axis, grown in zip(axes[1], RANGES, strict=True):
        others = [f"{value} {NAMES[name]}" for name, value in BASE.items() if name != grown]
        axis.set_xlabel(f"{NAMES[grown].capitalize()}\n{', '.join(others)}")
    axes[0, 0].set_ylabel("Time of a gradient step (ms)")
    axes[1, 0].set_ylabel("Peak memory (MB)")
    legend_on_top(figure, list(axes.flat))
    return figure


def _panel(
    axis: Axes, rows: list[Row], grown: str, values: dict[int, float], lines: dict[tuple[str, str], str]
) -> None:
    """A curve for each engine and device, and a dashed one of growth in proportion."""
    several = len({device for _, device in lines}) > 1
    x = np.array(RANGES[grown], float)
    for (engine, device), colour in lines.items():
        own = [row for row in rows if (row["engine"], row["device"]) == (engine, device)]
        if not own:
            continue
        label = f"{engine}, {device}" if several else engine
        at, y = [row[grown] for row in own], [values[id(row)] for row in own]
        axis.plot(x, y[-1] * x / at[-1], color=LIGHT, lw=1.0, ls="--", zorder=1, label="in proportion")
        axis.plot(at, y, "o-", color=colour, ms=4, lw=1.4, label=label)
    axis.axvline(BASE[grown], color=GREY, lw=0.6, ls=":", zorder=0)
    set_range(axis, "x", x, log=True)
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(FixedLocator(list(RANGES[grown])))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter("{x:g}")
