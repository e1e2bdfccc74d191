"""How all figures look: size, colours, axes, and the few marks that several figures share.

Figures are built on `Figure` and an Agg canvas, never on pyplot: nothing global changes, and a figure is freed with
its last reference.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator
from numpy.typing import NDArray

from neuralpk.cohort import FloatArray

# Okabe and Ito 2008, Color Universal Design: distinct with every common colour vision
BLACK, GREY, LIGHT = "#1a1a1a", "#6e6e6e", "#c8c8c8"
BLUE, ORANGE, GREEN, VERMILLION, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"

WIDTH = 9.0
"""Inches; 900 pixels at 100 dpi, where the texts are still 8 points."""
TEXT, SMALL = 9.0, 8.0


def new_figure(
    rows: int,
    columns: int,
    *,
    width: float = WIDTH,
    height: float | None = None,
    sharex: bool = False,
    sharey: bool = False,
    fitted: bool = True,
) -> tuple[Figure, NDArray[Any]]:
    """A figure and its axes ``[row, column]``; height in inches, by default that of square panels. `fitted` lays it out
    by the extent of every text; without it the margins are given by `fixed_margins`."""
    size = (width, height if height is not None else width * rows / columns)
    figure = Figure(figsize=size, dpi=120, layout="constrained" if fitted else None)
    FigureCanvasAgg(figure)
    if fitted:
        figure.get_layout_engine().set(w_pad=0.06, h_pad=0.06)  # type: ignore[union-attr,call-arg]
    with rc_context({"text.parse_math": False}):  # names of patients and columns are no formulas
        axes = figure.subplots(rows, columns, squeeze=False, sharex=sharex, sharey=sharey)
    for axis in axes.flat:
        style_axes(axis)
    return figure, axes


def png(figure: Figure, dpi: int = 130) -> bytes:
    """The figure as a PNG, laid out and drawn once (`Figure.savefig` draws twice)."""
    buffer = io.BytesIO()
    figure.set_dpi(dpi)
    assert isinstance(figure.canvas, FigureCanvasAgg)
    figure.canvas.print_png(buffer)  # type: ignore[no-untyped-call]
    return buffer.getvalue()


def fixed_margins(figure: Figure, rows: int, columns: int, *, gap: float, legend_rows: int) -> None:
    """Lay out equal panels by margins in inches instead of by the extent of every text, which takes ten times as long.

    Args:
        figure: of `new_figure` with ``fitted=False``.
        rows: of panels.
        columns: of panels.
        gap: between columns, for the numbers of the y axis.
        legend_rows: above the panels.
    """
    width, height = figure.get_size_inches()
    left, right, bottom, top, between = 0.75, 0.12, 0.55, 0.3 + 0.2 * legend_rows, 0.5
    wide = (width - left - right - gap * (columns - 1)) / columns
    high = (height - bottom - top - between * (rows - 1)) / rows
    figure.subplots_adjust(
        left / width, bottom / height, 1 - right / width, 1 - top / height, gap / wide, between / high
    )


def style_axes(axes: Axes) -> None:
    """Two spines, small ticks, few of them."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(labelsize=SMALL, color=GREY, length=3, width=0.8)
    axes.title.set_fontsize(TEXT)
    axes.xaxis.label.set_fontsize(TEXT)
    axes.yaxis.label.set_fontsize(TEXT)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))


def time_axis(axes: Axes, unit: str, *, named: bool = True) -> None:
    """Time on the x axis; ticks in steps of 6 and 3 suit hours and days of sampling better than those of 5."""
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 3, 6, 10]))
    if named:
        axes.set_xlabel(with_unit("Time", unit))


def plain(value: float, digits: int = 2) -> str:
    """A number for a title, with a minus sign rather than a hyphen."""
    return f"{value:.{digits}f}".replace("-", "−")


def with_unit(name: str, unit: str) -> str:
    """Axis text such as "Time (h)"; without brackets where there is no unit."""
    return f"{name} ({unit})" if unit else name


def log_scale(axes: Axes, which: str) -> None:
    """Logarithmic `which` ("x" or "y") axis with plain numbers, more of them where it spans little."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log", nonpositive="mask")
    low, high = axis.get_view_interval()
    decades = np.log10(high / low)
    subs = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0) if decades < 0.7 else (1.0, 2.0, 5.0) if decades < 2.2 else (1.0,)
    axis.set_major_locator(LogLocator(subs=subs, numticks=8))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


def set_range(axes: Axes, which: str, *values: FloatArray, log: bool = False) -> None:
    """Limits around every finite value, positive ones only when `log`, with a margin of 5 %."""
    pool = np.concatenate([np.ravel(value) for value in values]) if values else np.empty(0)
    pool = pool[np.isfinite(pool) & ((pool > 0) | (not log))]
    if pool.size == 0:
        pool = np.array([1.0])
    low, high = float(pool.min()), float(pool.max())
    if log:
        low, high = (low / 1.5, high * 1.5) if high / low < 1.5 else (low, high)
        margin = (high / low) ** 0.05
        limits = (low / margin, high * margin)
    else:
        half = max(0.05 * (high - low), 1e-9 * max(abs(low), abs(high)), 0.0) or 0.5
        limits = (low - half, high + half)
    (axes.set_xlim if which == "x" else axes.set_ylim)(*limits)


def identity_line(axes: Axes, *values: FloatArray, log: bool = False) -> None:
    """Equal limits on both axes, around all values of either, and the line on which they agree."""
    for which in "xy":
        set_range(axes, which, *values, log=log)
        if log:
            log_scale(axes, which)
    axes.plot(axes.get_xlim(), axes.get_xlim(), color=GREY, lw=1.0, ls="--", zorder=1, label="identity")
    axes.set_box_aspect(1)


def running_median(x: FloatArray, y: FloatArray, windows: int = 12) -> tuple[FloatArray, FloatArray]:
    """Trend of a cloud: medians of y and of x in half-overlapping windows of equal count along x.

    Returns:
        Positions and medians, ``[window]``; empty below 10 points, where a trend would be noise.
    """
    keep = np.isfinite(x) & np.isfinite(y)
    x, y = x[keep], y[keep]
    if len(x) < 10:
        return np.empty(0), np.empty(0)
    order = np.argsort(x, kind="stable")
    size = max(5, 2 * len(x) // (windows + 1))
    starts = np.unique(np.linspace(0, len(x) - size, windows).astype(int))
    members = order[starts[:, None] + np.arange(size)]
    # points of one nominal time may fill several windows: one median for each position
    position = np.median(x[members], axis=1)
    distinct = np.unique(position)
    middle = np.array([np.median(y[members[position == p].ravel()]) for p in distinct])
    return distinct, middle


def normal_density(x: FloatArray, sd: float = 1.0) -> FloatArray:
    """Density of N(0, sd²)."""
    return np.asarray(np.exp(-0.5 * np.square(x / sd)) / (sd * np.sqrt(2 * np.pi)), np.float64)


def histogram(
    axes: Axes,
    values: FloatArray,
    sd: float,
    prior: str,
    label: str = "histogram",
    edge: float = 0.6,
    line: float = 1.4,
) -> None:
    """Density of the values with that of N(0, sd²) over it.

    Args:
        axes: the panel.
        values: ``[value]``.
        sd: of the normal density, in the unit of the values.
        prior: what the legend calls the density.
        label: what it calls the values.
        edge: width of the edges of the bars, in points.
        line: width of the line of the density, in points.
    """
    reach = max(3.5 * sd, 1.05 * float(np.max(np.abs(values), initial=0.0)))
    bins = np.linspace(-reach, reach, int(np.clip(2 * np.sqrt(len(values)), 9, 41)) | 1)
    axes.hist(values, bins=list(bins), density=True, color=SKY, alpha=0.7, edgecolor="white", lw=edge, label=label)
    x = np.linspace(-reach, reach, 201)
    axes.plot(x, normal_density(x, sd), color=BLACK, lw=line, label=prior)
    axes.set_xlim(-reach, reach)


def dose_marks(axes: Axes, times: FloatArray, size: float) -> None:
    """Triangles at the foot of a panel where doses were given; of times outside its range only those inside are seen.

    Args:
        axes: the panel.
        times: ``[dose]``.
        size: points.
    """
    axes.plot(
        times,
        np.full(len(times), 0.035),
        ls="none",
        marker="^",
        ms=size,
        mfc=PURPLE,
        mec="none",
        transform=axes.get_xaxis_transform(),
        label="dose",
        zorder=5,
    )


def note(axes: Axes, text: str) -> None:
    """A remark in the upper left corner, such as what a logarithmic axis cannot show."""
    axes.text(0.02, 0.98, text, transform=axes.transAxes, fontsize=SMALL, color=GREY, va="top", ha="left")


def note_hidden(axes: Axes, *values: FloatArray) -> None:
    """Say how many points a logarithmic axis leaves out."""
    hidden = np.zeros(values[0].shape, bool)
    for value in values:
        hidden |= value <= 0
    if hidden.any():
        note(axes, f"{int(hidden.sum())} not above 0, not shown")


def legend_on_top(figure: Figure, panels: Sequence[Axes], *, columns: int = 9) -> int:
    """One legend for all panels, above them, a mark that several of them hold named once; returns its rows."""
    unique: dict[str, Any] = {}
    for panel in panels:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            unique.setdefault(label, handle)
    # an entry is its mark, the gaps and the text, here in units of the text size
    widest = 4.8 + 0.55 * max(len(label) for label in unique)
    fitting = max(1, int(72 * figure.get_figwidth() / (TEXT * widest)))
    columns = min(columns, fitting, len(unique))
    figure.legend(
        list(unique.values()),
        list(unique),
        loc="outside upper center",
        ncols=columns,
        frameon=False,
        fontsize=TEXT,
    )
    return -(-len(unique) // columns)
