"""Figures of individual parameters: where the patients lie in the latent space, and estimates against the truth.

Every function returns a matplotlib `Figure` of its own and touches nothing global.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Circle

from neuralpk.cohort import FloatArray
from neuralpk.diagnostics.style import (
    BLUE,
    GREY,
    SKY,
    SMALL,
    TEXT,
    identity_line,
    legend_on_top,
    new_figure,
    with_unit,
)


def latent_space(mean: FloatArray, values: FloatArray | None = None, label: str = "") -> Figure:
    """Where the subjects lie in the latent space, within the circles of the N(0, I) prior at 1 and 2 sd.

    More than two dimensions are turned onto the two principal directions of the cloud, about the prior mean, so that
    the circles keep their meaning.

    Args:
        mean: posterior means, ``[subject, latent]``.
        values: what colours the points, ``[subject]``.
        label: of the colours, unit included.

    Raises:
        ValueError: no subject or no dimension; values that do not fit.
    """
    subjects, latent = np.shape(mean)
    if subjects == 0 or latent == 0:
        raise ValueError(f"a latent space needs subjects and dimensions, got {np.shape(mean)}")
    if values is not None and np.shape(values) != (subjects,):
        raise ValueError(f"colours are {np.shape(values)} for {subjects} subjects")
    figure, axes = new_figure(1, 1, width=6.6 if values is not None else 5.6, height=5.6)
    panel = axes[0, 0]
    points, names = _principal(mean)
    paper = {"boxstyle": "square,pad=0.15", "fc": "white", "ec": "none"}
    for radius in (1, 2):
        panel.add_patch(Circle((0, 0), radius, fill=False, ec=GREY, lw=1.0, ls="--", zorder=1))
        panel.text(
            0, radius, f"{radius} sd", color=GREY, fontsize=SMALL, ha="center", va="center", zorder=4, bbox=paper
        )
    colours: dict[str, Any] = {"c": BLUE} if values is None else {"c": values, "cmap": "cividis"}
    drawn = panel.scatter(points[:, 0], points[:, 1], s=28, edgecolors="white", linewidths=0.5, zorder=3, **colours)
    if values is not None:
        bar = figure.colorbar(drawn, ax=panel, shrink=0.8)
        bar.set_label(label, fontsize=TEXT)
        bar.ax.tick_params(labelsize=SMALL)
        bar.outline.set_visible(False)
    reach = max(2.4, 1.1 * float(np.abs(points).max()))
    panel.set(xlim=(-reach, reach), ylim=(-reach, reach), xlabel=names[0], ylabel=names[1])
    panel.set_aspect("equal")
    return figure


def _principal(mean: FloatArray) -> tuple[FloatArray, tuple[str, str]]:
    """Two coordinates of each subject and their names."""
    latent = mean.shape[1]
    if latent == 1:
        return np.column_stack([mean[:, 0], np.zeros(len(mean))]), ("latent 1", "")
    if latent == 2:
        return mean, ("latent 1", "latent 2")
    _, size, directions = np.linalg.svd(mean - mean.mean(axis=0))
    part = np.zeros(latent)
    part[: len(size)] = 100 * np.square(size) / max(float(np.square(size).sum()), np.finfo(float).tiny)
    # one subject has no spread of which a component could be a share
    shares = [f" ({share:.0f} %)" if size.any() else "" for share in part]
    return mean @ directions[:2].T, (f"principal component 1{shares[0]}", f"principal component 2{shares[1]}")


def parameter_recovery(
    true: Mapping[str, FloatArray],
    estimated: Mapping[str, FloatArray],
    intervals: Mapping[str, tuple[FloatArray, FloatArray]] | None = None,
    units: Mapping[str, str] | None = None,
) -> Figure:
    """Estimated against true individual parameters of simulated subjects, one log-log panel a parameter.

    Args:
        true: name to the subjects' own values, positive, ``[subject]``.
        estimated: name to their estimates, likewise; its names are drawn.
        intervals: name to lower and upper bound, each ``[subject]``.
        units: name to unit, for the axes.

    Raises:
        ValueError: nothing to draw; a parameter without a true value; lengths that differ; values not positive.
    """
    if not estimated:
        raise ValueError("parameter recovery needs at least one parameter")
    for name, values in estimated.items():
        if name not in true or np.shape(true[name]) != np.shape(values):
            raise ValueError(f"{name}: {np.size(values)} estimates for {np.size(true.get(name, []))} true values")
        if not (np.all(true[name] > 0) and np.all(values > 0)):
            raise ValueError(f"{name}: true and estimated values must be positive for logarithmic axes")
    columns = min(3, len(estimated))
    rows = -(-len(estimated) // columns)
    size = 3.0 if columns > 2 else 3.6
    figure, axes = new_figure(rows, columns, width=size * columns, height=0.4 + (size + 0.3) * rows)
    for panel, (name, values) in zip(axes.flat, estimated.items(), strict=False):
        bounds = None if intervals is None else intervals.get(name)
        if bounds is not None:
            panel.vlines(true[name], *bounds, color=SKY, lw=1.0, alpha=0.6, zorder=2, label="interval")
        panel.plot(
            true[name], values, ls="none", marker="o", ms=4, mfc=BLUE, mec="white", mew=0.4, zorder=3, label="subject"
        )
        identity_line(panel, true[name], values, *(bounds or ()), log=True)
        unit = (units or {}).get(name, "")
        panel.set_title(name, fontsize=TEXT + 1)
        panel.set_xlabel(with_unit("true", unit))
        panel.set_ylabel(with_unit("estimated", unit))
    for panel in axes.flat[len(estimated) :]:
        panel.remove()
    legend_on_top(figure, [axes.flat[0]])
    return figure
