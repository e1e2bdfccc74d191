"""Figures of regimens: curves with bands side by side, their exposure, and the candidates of a dose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from neuralpk.diagnostics import style
from neuralpk.dosing.dose_selection import DoseSelection
from neuralpk.dosing.regimen_simulation import RegimenSimulation

_COLOURS = (style.BLUE, style.ORANGE, style.GREEN, style.VERMILLION, style.PURPLE, style.SKY)
_WIDTH = 4.6
"""Inches: printed at the width of a journal column (3.4 inches) the texts are still 6.5 points."""
_MOST_PANELS = 8
_METRICS = ("AUC", "CMAX", "CTROUGH", "PABOVE")
_SINCE = "Time since the start of the regimen"
_WORDS = {"CTROUGH": "Trough", "PABOVE": "Time above", "TABOVE": "Time above"}


def regimen_figure(simulation: RegimenSimulation, endpoint: int = 1, log: bool = False) -> Figure:
    """Median and 90 % band of every regimen, a panel for each patient (the first eight); of one patient, or a
    population, also the exposure with 90 % intervals.

    Args:
        simulation: what is drawn.
        endpoint: which, counted from 1.
        log: logarithmic values.
    """
    curves = _of(simulation.curves(), endpoint)
    exposures = _of(simulation.exposures(), endpoint)
    names, units = list(dict.fromkeys(curves["ID"])), simulation.units
    shown = names[:_MOST_PANELS]
    columns = min(len(shown), 2)
    rows = -(-len(shown) // columns)
    metrics = [name for name in _METRICS if name in set(exposures["METRIC"])] if len(names) == 1 else []
    strip = 0.5 + 0.15 * len(simulation.courses)
    heights = [2.5 if columns == 1 else 1.7] * rows + [strip] * len(metrics)
    figure, axes = style.new_figure(rows + len(metrics), columns, width=_WIDTH, height=sum(heights) + 0.5)
    axes[0, 0].get_gridspec().set_height_ratios(heights)
    for panel in axes[:rows].flat[len(shown) :]:
        panel.set_visible(False)
    for panel, name in zip(axes[:rows].flat, shown, strict=False):
        own = curves[curves["ID"] == name]
        for colour, (regimen, line) in zip(_cycle(simulation), own.groupby("REGIMEN", sort=False), strict=False):
            t = line["TIME"].to_numpy()
            panel.plot(t, line["MEDIAN"], color=colour, lw=1.3, label=regimen, zorder=3)
            panel.fill_between(t, line["LO90"], line["HI90"], color=colour, alpha=0.2, lw=0, zorder=2)
        if simulation.above is not None:
            panel.axhline(simulation.above, color=style.GREY, lw=0.9, ls="--", zorder=1)
        ends = [curves[column].to_numpy() for column in ("LO90", "HI90", "MEDIAN")]
        style.set_range(panel, "y", *ends, log=log)
        if log:
            style.log_scale(panel, "y")
        style.set_range(panel, "x", own["TIME"].to_numpy())
        if units.time == "h":
            panel.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 1.2, 2.4, 4.8, 6, 10]))
        else:
            style.time_axis(panel, units.time, named=False)
        if len(names) > 1:
            panel.set_title(f"subject {name}", fontsize=style.TEXT)
    quantity = "Concentration" if endpoint == 1 else f"Endpoint {endpoint}"
    for k, panel in enumerate(axes[:rows].flat[: len(shown)]):
        if k + columns >= len(shown):
            panel.set_xlabel(style.with_unit("Time since start" if columns > 1 else _SINCE, units.time))
        if k % columns == 0:
            panel.set_ylabel(style.with_unit(quantity, units.value))
    for panel, metric in zip(axes[rows:, 0], metrics, strict=True):
        _draw_exposure(panel, exposures[exposures["METRIC"] == metric], _cycle(simulation), units.time)
    style.legend_on_top(figure, list(axes[:rows].flat), columns=2)
    return figure


def dose_figure(selection: DoseSelection) -> Figure:
    """Probability of the target of every candidate against the dose, a line for each interval, hollow where a limit is
    not kept, a ring around the choice; a panel for each patient (the first eight). Of one patient also the quantity of
    the target with its 90 % interval, and the range of the target."""
    frame, units = selection.candidates, selection.patients.cohort.units
    names = list(dict.fromkeys(frame["ID"]))
    shown = names[:_MOST_PANELS]
    columns = min(len(shown), 2)
    rows = -(-len(shown) // columns)
    extra = int(len(names) == 1)
    height = (2.2 if columns == 1 else 1.7) * (rows + extra) + 0.6
    figure, axes = style.new_figure(rows + extra, columns, width=_WIDTH, height=height)
    every = list(dict.fromkeys(frame["EVERY"]))
    colours = {tau: _COLOURS[k % len(_COLOURS)] for k, tau in enumerate(every)}
    panels = list(axes[:rows].flat)
    for panel in panels[len(shown) :]:
        panel.set_visible(False)
    for k, (panel, name) in enumerate(zip(panels, shown, strict=False)):
        own = frame[frame["ID"] == name]
        for tau, line in own.groupby("EVERY"):
            _draw_candidates(panel, line, line["PROB"].to_numpy(), colours[tau], f"every {tau:g} {units.time}")
        best = own[own["CHOSEN"]]
        panel.plot(best["DOSE"], best["PROB"], lw=0, marker="o", ms=10, mfc="none", mec=style.BLACK, label="chosen")
        panel.set_ylim(-0.05, 1.1)
        style.set_range(panel, "x", own["DOSE"].to_numpy())
        if k % columns == 0:
            panel.set_ylabel("Probability")
        if k + columns >= len(shown) and not extra:
            panel.set_xlabel(style.with_unit("Dose", units.amount))
        if len(names) > 1:
            panel.set_title(f"subject {name}", fontsize=style.TEXT)
    if selection.limits:
        panels[0].plot([], [], lw=0, marker="o", ms=4, mfc="white", mec=style.GREY, label="limit not kept")
    if extra:
        _draw_quantity(axes[-1, 0], selection, colours)
    style.legend_on_top(figure, panels, columns=3)
    return figure


def _draw_candidates(panel: Any, line: Any, values: np.ndarray, colour: str, label: str) -> None:
    dose, kept = line["DOSE"].to_numpy(), line["KEPT"].to_numpy(bool)
    panel.plot(dose, values, color=colour, lw=1.2, label=label, zorder=2)
    panel.plot(dose[kept], values[kept], color=colour, lw=0, marker="o", ms=4, zorder=3)
    panel.plot(dose[~kept], values[~kept], lw=0, marker="o", ms=4, mfc="white", mec=colour, zorder=3)


def _draw_quantity(panel: Any, selection: DoseSelection, colours: Mapping[float, str]) -> None:
    frame, target, units = selection.candidates, selection.target, selection.patients.cohort.units
    spread = np.ptp(frame["DOSE"].to_numpy()) / 150
    for k, tau in enumerate(colours):
        line = frame[frame["EVERY"] == tau]
        dose = line["DOSE"].to_numpy() + (k - (len(colours) - 1) / 2) * spread
        panel.vlines(dose, line["LO90"], line["HI90"], color=colours[tau], lw=1.2, zorder=2)
        panel.plot(dose, line["MEDIAN"], color=colours[tau], lw=0, marker="o", ms=3.5, zorder=3)
    highest = 1.05 * float(frame["HI90"].max())
    if np.isfinite(target.high):
        highest = min(highest, 4 * target.high)
    panel.axhspan(max(target.low, 0.0), min(target.high, highest), color=style.LIGHT, alpha=0.5, lw=0, zorder=1)
    panel.set_ylim(0.0, highest if highest > 0 else 1.0)
    style.set_range(panel, "x", frame["DOSE"].to_numpy())
    unit = {"AUC": f"{units.time}·{units.value}", "TABOVE": units.time, "PABOVE": "%"}.get(target.quantity, units.value)
    word = _WORDS.get(target.quantity, target.quantity)
    if target.per is not None:
        word = f"AUC in {target.per:g} {units.time}"
    panel.set_ylabel(style.with_unit(word, unit))
    panel.set_xlabel(style.with_unit("Dose", units.amount))


def _draw_exposure(panel: Any, rows: Any, colours: Sequence[str], time: str) -> None:
    """A line for each regimen: median and 90 % interval of one metric."""
    for k, (colour, row) in enumerate(zip(colours, rows.itertuples(), strict=False)):
        panel.plot([row.LO90, row.HI90], [k, k], color=colour, lw=2.0, solid_capstyle="butt")
        panel.plot([row.MEDIAN], [k], color=colour, marker="o", ms=4.5)
    panel.set_ylim(len(rows) - 0.4, -0.6)
    panel.set_yticks([])
    panel.spines["left"].set_visible(False)
    ends = rows[["LO90", "HI90", "MEDIAN"]].to_numpy()
    high = float(np.nanmax(ends))
    panel.set_xlim(0.0, 1.05 * high if high > 0 else 1.0)
    start, end = rows["START"].iloc[0], rows["END"].iloc[0]
    same = (rows["START"] == start).all() and (rows["END"] == end).all()
    over = f", {start:g} to {end:g} {time}" if same else ", last interval"
    metric = rows["METRIC"].iloc[0]
    word = "Time above the dashed line" if metric == "PABOVE" else _WORDS.get(metric, metric)
    panel.set_xlabel(style.with_unit(word, rows["UNIT"].iloc[0].replace("*", "·")) + over, fontsize=style.SMALL)


def _cycle(simulation: RegimenSimulation) -> list[str]:
    return [_COLOURS[k % len(_COLOURS)] for k in range(len(simulation.courses))]


def _of(frame: Any, endpoint: int) -> Any:
    return frame[frame["DVID"] == endpoint] if "DVID" in frame else frame
