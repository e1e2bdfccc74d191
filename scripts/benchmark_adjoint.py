"""Three gradients of a solve compared with the closed form: their errors and their memory.

`discrete` is the exact gradient of the steps taken (engine RungeKutta), `backprop` differentiates the operations of
torchdiffeq, `adjoint` integrates backwards in time with torchdiffeq. Double precision, one thread; the gradient is that
of the sum of the states at the horizon. The error is the largest relative error over the entries of the gradient. The
memory is the peak of a process, minus its memory before the solve.

    python scripts/benchmark_adjoint.py --figure docs/measurements/adjoint.png --json adjoint.json
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from solver_benchmark.measure import host_peak
from torch import Tensor

from neuralpk.cohort import Subject
from neuralpk.cohort_batch import CohortBatch, collate
from neuralpk.diagnostics.style import BLUE, GREEN, GREY, ORANGE, VERMILLION, legend_on_top, log_scale, new_figure
from neuralpk.dynamics import Dynamics
from neuralpk.solve import Engine, RungeKutta, SolveError, TorchDiffEq

Row = dict[str, Any]


class Swing(Dynamics):
    """dx/dt = omega·v, dv/dt = −omega·x: stable forwards and backwards in time."""

    states = ("x", "v")
    parameter_names = ("omega",)

    def forward(self, t: Tensor, y: Tensor, theta: Tensor) -> Tensor:
        return theta * torch.stack([y[..., 1], -y[..., 0]], dim=-1)


class Absorption(Dynamics):
    """dD/dt = −KA·D, dA/dt = KA·D − k·A: stable forwards, unstable backwards in time."""

    states = ("depot", "central")
    parameter_names = ("KA", "k")

    def forward(self, t: Tensor, y: Tensor, theta: Tensor) -> Tensor:
        absorbed, eliminated = (theta * y).unbind(-1)
        return torch.stack([-absorbed, absorbed - eliminated], dim=-1)


def swing_end(theta: Tensor, y0: Tensor, t: float) -> Tensor:
    """x + v at t."""
    x, v = y0.unbind(-1)
    cos, sin = torch.cos(theta[..., 0] * t), torch.sin(theta[..., 0] * t)
    return (x + v) * cos + (v - x) * sin


def absorption_end(theta: Tensor, y0: Tensor, t: float) -> Tensor:
    """D + A at t (Bateman 1910)."""
    ka, k = theta.unbind(-1)
    depot, central = y0.unbind(-1)
    slow, fast = torch.exp(-k * t), torch.exp(-ka * t)
    return depot * (fast + ka / (ka - k) * (slow - fast)) + central * slow


class System(NamedTuple):
    """A system, its initial state, and the sum of its states at any time in closed form."""

    dynamics: type[Dynamics]
    theta: tuple[float, ...]
    start: tuple[float, float]
    end: Callable[[Tensor, Tensor, float], Tensor]


SYSTEMS = {
    "oscillation, 1 rad/h": System(Swing, (1.0,), (1.0, 0.5), swing_end),
    "absorption of 1 /h": System(Absorption, (1.0, 0.1), (1.0, 0.2), absorption_end),
    "absorption of 50 /h (stiff)": System(Absorption, (50.0, 0.1), (1.0, 0.2), absorption_end),
}


class Way(NamedTuple):
    """A method for the gradient: an engine with options; `hourly`: with records every hour before the horizon."""

    engine: type[Engine]
    options: dict[str, Any]
    hourly: bool = False


WAYS = {
    "discrete": Way(RungeKutta, {}),
    "backprop": Way(TorchDiffEq, {"gradient": "backprop"}),
    "adjoint": Way(TorchDiffEq, {"gradient": "adjoint"}),
    "adjoint, records every hour": Way(TorchDiffEq, {"gradient": "adjoint"}, hourly=True),
}
TOLERANCES, HORIZONS = (1e-3, 1e-4, 1e-5, 1e-6, 1e-8), (1.0, 3.0, 10.0, 30.0)
TOLERANCE, HORIZON = 1e-6, 10.0


def _leaves(system: System, subjects: int) -> tuple[Tensor, Tensor]:
    values = (system.theta, system.start)
    theta, start = (torch.tensor([value] * subjects, dtype=torch.float64, requires_grad=True) for value in values)
    return theta, start


def _batch(horizon: float, hourly: bool, subjects: int) -> CohortBatch:
    records = np.append(np.arange(0.0, horizon, 1.0 if hourly else horizon), horizon)
    return collate([Subject("1", records, np.full(len(records), np.nan))], dtype=torch.float64).repeat(subjects)


def gradient(name: str, way: str, tolerance: float, horizon: float, subjects: int = 1) -> Tensor:
    """d(sum of the states at the horizon)/d(theta, y0), ``[subject, parameter + state]``.

    Raises:
        SolveError: in the forward or in the backward solve.
    """
    system, (engine, options, hourly) = SYSTEMS[name], WAYS[way]
    precise = engine(**options, rtol=tolerance, atol=tolerance)
    batch = _batch(horizon, hourly, subjects)
    theta, start = _leaves(system, subjects)
    solution = precise.solve(system.dynamics(), theta[:, None], batch, y0=start)
    solution.check(batch.ids)
    solution.states[:, -1].sum().backward()
    return torch.cat([theta.grad, start.grad], dim=1)


def closed_form(name: str, horizon: float) -> Tensor:
    """The same gradient, from the closed form."""
    system = SYSTEMS[name]
    theta, start = _leaves(system, 1)
    system.end(theta, start, horizon).sum().backward()
    return torch.cat([theta.grad, start.grad], dim=1)


def error_row(name: str, way: str, tolerance: float, horizon: float) -> Row:
    """The largest relative error of a gradient; if the solve failed, the reason."""
    row: Row = {
        "system": name,
        "gradient": way,
        "tolerance": tolerance,
        "horizon": horizon,
        "error": None,
        "note": None,
    }
    expected = closed_form(name, horizon)
    try:
        row["error"] = float(((gradient(name, way, tolerance, horizon) - expected) / expected).abs().max())
    except (SolveError, AssertionError) as failure:  # torchdiffeq asserts that a step is not too small
        row["note"] = str(failure).splitlines()[0]
    return row


def _memory(way: str, horizons: Sequence[float], subjects: int) -> list[float]:
    torch.set_num_threads(1)
    name, taken = next(iter(SYSTEMS)), []
    gradient(name, way, TOLERANCE, 1.0, subjects=2)  # loads and compiles everything that is needed
    before = host_peak()
    for horizon in sorted(horizons):  # a peak never decreases: so the smallest comes first
        gradient(name, way, TOLERANCE, horizon, subjects)
        taken.append((host_peak() - before) / 1e6)
    return taken


def memory_rows(way: str, horizons: Sequence[float], subjects: int) -> list[Row]:
    """Memory of the gradient for several oscillations at once, in MB, measured in a separate process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        taken = pool.apply(_memory, (way, horizons, subjects))
    return [{"gradient": way, "horizon": h, "peak_mb": mb} for h, mb in zip(sorted(horizons), taken, strict=True)]


def measure(tolerances: Sequence[float], horizons: Sequence[float], subjects: int) -> dict[str, list[Row]]:
    """Errors for every tolerance at one horizon and for every horizon at one tolerance; memory for every horizon."""
    settings = dict.fromkeys([*((t, HORIZON) for t in tolerances), *((TOLERANCE, h) for h in horizons)])
    errors = [error_row(name, way, *each) for name in SYSTEMS for way in WAYS for each in settings]
    return {"errors": errors, "memory": [row for way in WAYS for row in memory_rows(way, horizons, subjects)]}


def draw(rows: list[Row]) -> Figure:
    """Errors against the tolerance (upper panels) and the horizon (lower panels); a column for each system."""
    figure, axes = new_figure(2, len(SYSTEMS), height=5.4, sharey=True)
    for column, name in zip(axes.T, SYSTEMS, strict=True):
        own = [row for row in rows if row["system"] == name]
        _panel(column[0], [row for row in own if row["horizon"] == HORIZON], "tolerance")
        _panel(column[1], [row for row in own if row["tolerance"] == TOLERANCE], "horizon")
        column[0].set_title(name)
        column[0].set_xlabel(f"Tolerance (horizon {HORIZON:g} h)")
        column[1].set_xlabel(f"Horizon, h (tolerance {TOLERANCE:.0e})")
    for panel in axes[:, 0]:
        panel.set_ylabel("Relative error of the gradient")
    legend_on_top(figure, list(axes.flat))
    return figure


def _panel(axes: Axes, rows: list[Row], over: str) -> None:
    """Errors of each gradient; a missing gradient, or an error above a thousand, is a cross at the top."""
    bottom, top = 1e-10, 1e3
    for way, colour, marker in zip(WAYS, (BLUE, GREEN, VERMILLION, ORANGE), "os^v", strict=True):
        own = sorted((row[over], row["error"]) for row in rows if row["gradient"] == way and row["error"] is not None)
        x, y = np.array(own).reshape(-1, 2).T
        shown = y < top
        axes.plot(x[shown], np.maximum(y[shown], bottom), f"{marker}-", color=colour, ms=4, lw=1.3, label=way)
        lost = [row[over] for row in rows if row["gradient"] == way and not (row["error"] or 0.0) < top]
        lost += [row[over] for row in rows if row["gradient"] == way and row["error"] is None]
        axes.plot(lost, [top] * len(lost), "x", color=colour, ms=6, mew=1.6)
    axes.axhline(1.0, color=GREY, lw=0.8, ls=":")
    log_scale(axes, "x")
    axes.set_yscale("log")
    axes.set_ylim(bottom, 5 * top)


def table(rows: list[Row], memory: list[Row]) -> str:
    """Errors and memory by horizon, in Markdown."""
    horizons = sorted({row["horizon"] for row in memory})
    lines = ["| | gradient | " + " | ".join(f"{h:g} h" for h in horizons) + " |", "|---|---|" + "---|" * len(horizons)]
    for name in SYSTEMS:
        for way in WAYS:
            found = {r["horizon"]: r["error"] for r in rows if (r["system"], r["gradient"]) == (name, way) and _at(r)}
            lines.append(f"| {name} | {way} | " + " | ".join(_number(found[h]) for h in horizons) + " |")
    for way in WAYS:
        found = {r["horizon"]: r["peak_mb"] for r in memory if r["gradient"] == way}
        lines.append(f"| memory, MB | {way} | " + " | ".join(f"{found[h]:.0f}" for h in horizons) + " |")
    return "\n".join(lines)


def _at(row: Row) -> bool:
    return bool(row["tolerance"] == TOLERANCE)


def _number(error: float | None) -> str:
    return "no answer" if error is None else f"{error:.0e}" if math.isfinite(error) else "not finite"


def main() -> None:
    """Measure, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tolerances", type=float, nargs="+", default=TOLERANCES)
    parser.add_argument("--horizons", type=float, nargs="+", default=HORIZONS, help="hours")
    parser.add_argument("--subjects", type=int, default=2000, help="number of oscillations for the memory")
    parser.add_argument("--json", type=Path, help="file for the rows")
    parser.add_argument("--figure", type=Path, help="file for the figure")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = measure(options.tolerances, options.horizons, options.subjects)
    print(table(found["errors"], found["memory"]))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))
    if options.figure:
        draw(found["errors"]).savefig(options.figure)


if __name__ == "__main__":
    main()
