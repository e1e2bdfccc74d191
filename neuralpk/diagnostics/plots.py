"""Figures of fits: individual profiles, phase planes.

Every function returns a matplotlib `Figure` of its own and touches nothing global.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from neuralpk.cohort import FloatArray, Units
from neuralpk.diagnostics.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    TEXT,
    VERMILLION,
    dose_marks,
    fixed_margins,
    legend_on_top,
    log_scale,
    new_figure,
    note_hidden,
    set_range,
    time_axis,
    with_unit,
)

BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class Panel:
    """What `individual_panels` draws of one subject.

    Args:
        id: identifier, the title.
        times: fine grid of the lines, time unit, ``[grid]``.
        ipred: individual prediction, value unit, ``[grid]``.
        lower: lower end of its 90 % band, ``[grid]``.
        upper: upper end, ``[grid]``.
        observed_times: time unit, ``[observation]``.
        observed_values: value unit, NaN where nothing was measured, ``[observation]``.
        seen: which observations the encoder was shown; the others were held out, ``[observation]``.
        pred: population prediction, ``[grid]``.
        true: noise-free line of a simulated subject, ``[grid]``.
        dose_times: time unit, ``[dose]``.
        censored: which observations are limits, the value lying below, ``[observation]``.

    Raises:
        ValueError: lengths that differ.
    """

    id: str
    times: FloatArray
    ipred: FloatArray
    lower: FloatArray
    upper: FloatArray
    observed_times: FloatArray
    observed_values: FloatArray
    seen: BoolArray
    pred: FloatArray | None = None
    true: FloatArray | None = None
    dose_times: FloatArray | None = None
    censored: BoolArray | None = None

    def __post_init__(self) -> None:
        groups: dict[str, tuple[str, ...]] = {
            "times": ("ipred", "lower", "upper", "pred", "true"),
            "observed_times": ("observed_values", "seen", "censored"),
        }
        for first, others in groups.items():
            n = len(getattr(self, first))
            for name in others:
                array = getattr(self, name)
                if array is not None and np.shape(array) != (n,):
                    raise ValueError(f"subject {self.id}: {name} is {np.shape(array)} for {n} {first}")


def individual_panels(
    subjects: Sequence[Panel],
    units: Units,
    *,
    log: bool = False,
    columns: int = 5,
    shared: bool = True,
    quantity: str = "Concentration",
) -> Figure:
    """One small panel a subject: the individual prediction with its 90 % band, the samples, and what else is known.

    Args:
        subjects: at least one.
        units: of time and value, for the axes.
        log: logarithmic values.
        columns: panels in a row.
        shared: whether all panels have the same axes.
        quantity: what the values are.

    Raises:
        ValueError: no subject.
    """
    if not subjects:
        raise ValueError("individual panels need at least one subject")
    columns = min(columns, len(subjects))
    rows = -(-len(subjects) // columns)
    # one panel alone would be as tall as the page
    height = 0.8 + rows * min(1.9, 9.0 / columns) if columns > 2 else 0.8 + 3.2 * rows
    figure, axes = new_figure(rows, columns, height=height, sharex=shared, sharey=shared, fitted=False)
    for panel, one in zip(axes.flat, subjects, strict=False):
        _draw_panel(panel, one)
    _scale_panels(axes, subjects, log, shared)
    for panel in axes.flat[len(subjects) :]:
        panel.remove()
    for column in range(columns):
        last = max(k for k in range(column, len(subjects), columns))
        axes.flat[last].tick_params(labelbottom=True)
    figure.supxlabel(with_unit("Time", units.time), fontsize=TEXT + 1)
    figure.supylabel(with_unit(quantity, units.value), fontsize=TEXT + 1)
    legend_rows = legend_on_top(figure, list(axes.flat[: len(subjects)]))
    fixed_margins(figure, rows, columns, gap=0.2 if shared else 0.5, legend_rows=legend_rows)
    return figure


def _draw_panel(axes: Axes, subject: Panel) -> None:
    if not np.isnan(subject.lower).all():  # a model without a likelihood has no band
        axes.fill_between(subject.times, subject.lower, subject.upper, color=SKY, alpha=0.35, lw=0, label="90 % band")
    if subject.pred is not None:
        axes.plot(subject.times, subject.pred, color=ORANGE, lw=1.2, ls=":", label="PRED")
    axes.plot(subject.times, subject.ipred, color=BLUE, lw=1.6, label="IPRED")
    if subject.true is not None:
        axes.plot(subject.times, subject.true, color=BLACK, lw=1.0, ls=(0, (4, 2)), label="true curve")
    measured = ~np.isnan(subject.observed_values)
    limit = np.zeros_like(measured) if subject.censored is None else subject.censored.astype(bool)
    kinds = [
        ("seen", "o", subject.seen & ~limit, VERMILLION),
        ("held out", "o", ~subject.seen & ~limit, "white"),
        ("BLQ, seen", "v", subject.seen & limit, VERMILLION),
        ("BLQ, held out", "v", ~subject.seen & limit, "white"),
    ]
    for label, marker, chosen, face in kinds:
        chosen = chosen & measured
        if chosen.any():
            axes.plot(
                subject.observed_times[chosen],
                subject.observed_values[chosen],
                ls="none",
                marker=marker,
                ms=4.5,
                mfc=face,
                mec=VERMILLION,
                mew=1.1,
                label=label,
                zorder=4,
            )
    if subject.dose_times is not None and len(subject.dose_times):
        dose_marks(axes, subject.dose_times, 5)
    axes.set_title(subject.id, fontsize=TEXT, pad=3)


def _scale_panels(axes: NDArray[Any], subjects: Sequence[Panel], log: bool, shared: bool) -> None:
    def values(one: Panel) -> list[FloatArray]:
        drawn = [one.ipred, one.upper, one.observed_values, one.pred, one.true]
        # the lower band of a log axis may reach far below every sample and would squeeze all else
        return [array for array in drawn if array is not None] + ([] if log else [one.lower])

    def clock(one: Panel) -> list[FloatArray]:
        return [one.times, one.observed_times] + ([] if one.dose_times is None else [one.dose_times])

    for panel, one in zip(axes.flat, subjects, strict=False):
        group = subjects if shared else [one]
        set_range(panel, "x", *[array for member in group for array in clock(member)])
        set_range(panel, "y", *[array for member in group for array in values(member)], log=log)
        time_axis(panel, "", named=False)
        if log:
            log_scale(panel, "y")
            note_hidden(panel, one.observed_values)


def phase_plane(
    lines: Mapping[str, FloatArray], observed: FloatArray | None = None, names: tuple[str, str] = ("Prey", "Predator")
) -> Figure:
    """Two states against each other, such as prey and predator; a ring marks the start of a line, an arrow its way.

    Args:
        lines: label to trajectory, ``[grid, 2]``; NaN breaks a line.
        observed: measured pairs, ``[observation, 2]``.
        names: of the two states, units included.

    Raises:
        ValueError: a trajectory that is not of two states.
    """
    figure, axes = new_figure(1, 1, width=6.0, height=5.6)
    panel = axes[0, 0]
    if observed is not None:
        panel.plot(
            observed[:, 0], observed[:, 1], ls="none", marker="o", ms=6.5, mfc=GREY, mec="white", label="observed"
        )
    styles = [(BLUE, "-"), (VERMILLION, "--"), (GREEN, "-."), (PURPLE, ":"), (ORANGE, "-"), (BLACK, "--")]
    for k, (label, line) in enumerate(lines.items()):
        if np.ndim(line) != 2 or line.shape[1] != 2:
            raise ValueError(f"{label}: a phase plane draws [grid, 2], got {np.shape(line)}")
        colour, dashes = styles[k % len(styles)]
        panel.plot(line[:, 0], line[:, 1], color=colour, ls=dashes, lw=1.6, label=label)
        panel.plot(line[:1, 0], line[:1, 1], ls="none", marker="o", ms=7, mfc="white", mec=colour, mew=1.5)
        if len(line) > 1:
            place = max(1, len(line) // 8)
            panel.annotate(
                "",
                xy=(line[place, 0], line[place, 1]),
                xytext=(line[place - 1, 0], line[place - 1, 1]),
                arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 0, "mutation_scale": 16},
            )
    panel.set_xlabel(names[0])
    panel.set_ylabel(names[1])
    legend_on_top(figure, [panel])
    return figure
