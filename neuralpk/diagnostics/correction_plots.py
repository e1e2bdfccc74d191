"""Figure of a learned correction over the state space."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from neuralpk.cohort import FloatArray
from neuralpk.diagnostics.style import BLACK, GREY, SMALL, TEXT, legend_on_top, new_figure

# of the extent of either axis: how far from the line a place still counts as one that the data covered
_NEAR = 0.08


def covered_region(x: FloatArray, y: FloatArray, path: FloatArray) -> NDArray[np.bool_]:
    """Which places of a grid lie within 8 % of its extent from a line through the state space, ``[y, x]``.

    Args:
        x: first state of the grid, ``[x]``.
        y: second state, ``[y]``.
        path: the line, ``[time, 2]``.
    """
    extent = np.array([np.ptp(x), np.ptp(y)])
    places = np.stack(np.meshgrid(x, y), axis=-1) / extent
    distance = np.linalg.norm(places[:, :, None] - path / extent, axis=-1).min(-1)
    return np.asarray(distance <= _NEAR)


def correction_maps(
    x: FloatArray,
    y: FloatArray,
    fields: Mapping[str, FloatArray],
    path: FloatArray,
    observed: FloatArray,
    names: tuple[str, str] = ("x", "y"),
    covering: FloatArray | None = None,
) -> Figure:
    """What was added to the slope of each of two states, by place: a row for each state, a column for each field.

    Colours of a row are one scale, taken where the data are; places that the data did not cover are faded.

    Args:
        x: first state of the grid, ``[x]``.
        y: second state, ``[y]``.
        fields: label to correction, ``[y, x, 2]``.
        path: fitted line through the state space, ``[time, 2]``; a row of NaN separates one line from the next.
        observed: measured pairs, ``[observation, 2]``.
        names: of the two states.
        covering: lines near which the data were, where there are more of them than `path` draws, ``[time, 2]``.

    Raises:
        ValueError: a field that is not on the grid.
    """
    for label, field in fields.items():
        if np.shape(field) != (len(y), len(x), 2):
            raise ValueError(f"{label}: a correction here is [y, x, 2] = {(len(y), len(x), 2)}, got {np.shape(field)}")
    covered = covered_region(x, y, path if covering is None else covering)
    figure, axes = new_figure(2, len(fields), height=5.6, sharex=True, sharey=True)
    for state, row in enumerate(axes):
        reach = max(float(np.abs(field[..., state][covered]).max()) for field in fields.values()) or 1.0
        levels = np.linspace(-reach, reach, 17)
        for panel, (label, field) in zip(row, fields.items(), strict=True):
            drawn = panel.contourf(x, y, field[..., state], levels, cmap="RdBu_r", extend="both")
            _data(panel, x, y, covered, path, observed)
            panel.set_title(label if state == 0 else "", fontsize=TEXT)
        bar = figure.colorbar(
            drawn, ax=list(row), shrink=0.9, aspect=25, ticks=[-reach, -reach / 2, 0, reach / 2, reach]
        )
        bar.ax.tick_params(labelsize=SMALL)
        bar.ax.set_yticklabels([f"{tick:.2g}".replace("-", "−") for tick in bar.get_ticks()])
        bar.set_label(f"added to d{names[state]}/dt", fontsize=TEXT)
        row[0].set_ylabel(names[1])
    for panel in axes[-1]:
        panel.set_xlabel(names[0])
    legend_on_top(figure, [axes[0, 0]])
    return figure


def _data(
    panel: Axes, x: FloatArray, y: FloatArray, covered: NDArray[np.bool_], path: FloatArray, observed: FloatArray
) -> None:
    """Fade what no data covered, and draw the data."""
    veil = np.zeros((*covered.shape, 4))
    veil[...] = (1.0, 1.0, 1.0, 0.65)
    veil[covered, 3] = 0.0
    half = (x[1] - x[0]) / 2, (y[1] - y[0]) / 2
    extent = (x[0] - half[0], x[-1] + half[0], y[0] - half[1], y[-1] + half[1])
    panel.imshow(veil, origin="lower", extent=extent, aspect="auto", interpolation="nearest", zorder=1.5)
    panel.contour(x, y, covered, [0.5], colors=GREY, linewidths=0.8, linestyles="--", zorder=1.6)
    panel.plot([], [], color=GREY, lw=0.8, ls="--", label="region that the data covered")
    panel.plot(path[:, 0], path[:, 1], color=BLACK, lw=1.2, label="fitted line")
    panel.plot(
        observed[:, 0], observed[:, 1], ls="none", marker="o", ms=3.5, mfc="white", mec=BLACK, mew=0.8, label="observed"
    )
    panel.set_xlim(x[0], x[-1])
    panel.set_ylim(y[0], y[-1])
