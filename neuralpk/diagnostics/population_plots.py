"""Figures of a population: latent space, npde and visual predictive check.

Every function returns a matplotlib `Figure` of its own and touches nothing global.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle

from neuralpk.cohort import FloatArray, Units
from neuralpk.diagnostics.below_quantification import BoolArray, ShareBelow
from neuralpk.diagnostics.simulation_checks import VPC
from neuralpk.diagnostics.style import (
    BLACK,
    BLUE,
    GREY,
    LIGHT,
    ORANGE,
    SKY,
    SMALL,
    TEXT,
    VERMILLION,
    histogram,
    legend_on_top,
    log_scale,
    new_figure,
    note_hidden,
    plain,
    running_median,
    set_range,
    time_axis,
    with_unit,
)


def npde_figure(
    times: FloatArray, pred: FloatArray, npde: FloatArray, units: Units, below: BoolArray | None = None
) -> Figure:
    """npde against time and PRED, and their histogram with the N(0, 1) that the right model gives.

    Args:
        times: time unit, ``[observation]``.
        pred: population prediction, value unit, ``[observation]``.
        npde: see `neuralpk.diagnostics.simulation_checks.npde`, ``[observation]``.
        units: for the axes.
        below: which observations were imputed, because they are below the limit of quantification, ``[observation]``.
    """
    figure, axes = new_figure(1, 3, height=3.5)
    censored = np.zeros(len(npde), bool) if below is None else below
    span = 1.1 * max(3.0, float(np.max(np.abs(npde), initial=0.0)))
    labels = (with_unit("Time", units.time), with_unit("PRED", units.value))
    for panel, x, label in zip(axes[0, :2], (times, pred), labels, strict=True):
        for level, dashes in ((-1.96, ":"), (0.0, "--"), (1.96, ":")):
            panel.axhline(level, color=GREY, lw=1.0, ls=dashes, zorder=1)
        points = {"ls": "none", "ms": 3.5, "alpha": 0.5}
        panel.plot(x[~censored], npde[~censored], marker="o", mfc=BLUE, mec="none", label="npde", **points)
        if censored.any():
            panel.plot(x[censored], npde[censored], marker="v", mfc="none", mec=BLUE, label="BLQ, imputed", **points)
        trend = running_median(x, npde)
        if len(trend[0]) > 1:
            panel.plot(*trend, color=VERMILLION, lw=1.8, label="running median")
        panel.set_ylim(-span, span)
        panel.set_xlabel(label)
        panel.set_ylabel("npde")
    time_axis(axes[0, 0], units.time)
    histogram(axes[0, 2], npde, 1.0, "N(0, 1)")
    axes[0, 2].set_xlabel("npde")
    axes[0, 2].set_ylabel("Density")
    if npde.size > 1:
        axes[0, 2].set_title(f"mean {plain(npde.mean())}, sd {plain(npde.std(ddof=1))}", fontsize=TEXT)
    legend_on_top(figure, [axes[0, 0], axes[0, 2]])
    return figure


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


def vpc_figure(
    vpc: VPC,
    times: FloatArray,
    observed: FloatArray,
    units: Units,
    log: bool = False,
    quantity: str = "Concentration",
    below: BoolArray | None = None,
) -> Figure:
    """Observed quantiles over the 90 % bands of the simulated ones; ticks at the top are the edges of the bins. With
    values below the limit of quantification a second panel has their share.

    Args:
        vpc: see `neuralpk.diagnostics.simulation_checks.vpc`.
        times: time unit, ``[observation]``.
        observed: value unit, ``[observation]``.
        units: for the axes.
        log: logarithmic values; observations that are not positive are counted instead of shown.
        quantity: what the values are.
        below: which observations are below their limit, ``[observation]``: no points.
    """
    figure, axes = new_figure(1 if vpc.share is None else 2, 1, width=8.0, height=4.8 if vpc.share is None else 7.6)
    panel = axes[0, 0]
    if below is not None:
        times, observed = times[~below], observed[~below]
    panel.plot(times, observed, ls="none", marker="o", ms=3, mfc=LIGHT, mec="none", zorder=1, label="observation")
    middle = int(np.argmin(np.abs(np.asarray(vpc.quantiles) - 0.5)))
    # a band between bin centres needs two of them
    single = len(vpc.centres) == 1
    x = vpc.edges if single else vpc.centres
    for k, quantile in enumerate(vpc.quantiles):
        lower, upper = (np.broadcast_to(a[k], x.shape) if single else a[k] for a in (vpc.lower, vpc.upper))
        typical = k == middle
        panel.fill_between(
            x,
            lower,
            upper,
            color=ORANGE if typical else SKY,
            alpha=0.45,
            lw=0,
            zorder=2,
            label=f"90 % band of simulated {'median' if typical else 'quantiles'}",
        )
        panel.plot(
            vpc.centres,
            vpc.observed[k],
            color=BLACK,
            lw=1.6 if typical else 1.2,
            ls="-" if typical else "--",
            marker="o",
            ms=3,
            zorder=3,
            label=f"observed {100 * quantile:g} %",
        )
    panel.plot(
        vpc.edges,
        np.ones(len(vpc.edges)),
        ls="none",
        marker="|",
        ms=8,
        color=GREY,
        transform=panel.get_xaxis_transform(),
        clip_on=False,
    )
    set_range(panel, "x", vpc.edges, times)
    set_range(panel, "y", observed, vpc.upper, vpc.observed, *([] if log else [vpc.lower]), log=log)
    if log:
        log_scale(panel, "y")
        note_hidden(panel, observed)
    time_axis(panel, units.time)
    panel.set_ylabel(with_unit(quantity, units.value))
    if vpc.share is not None:
        _share_panel(axes[1, 0], vpc, vpc.share)
        time_axis(axes[1, 0], units.time)
    legend_on_top(figure, [panel], columns=3)
    return figure


def _share_panel(panel: Axes, vpc: VPC, share: ShareBelow) -> None:
    """Share of the values below the limit of quantification, over its simulated band."""
    single = len(vpc.centres) == 1
    x = vpc.edges if single else vpc.centres
    lower, upper = (np.broadcast_to(end, x.shape) for end in (share.lower, share.upper))
    panel.fill_between(x, lower, upper, color=ORANGE, alpha=0.45, lw=0, zorder=2)
    panel.plot(vpc.centres, share.observed, color=BLACK, lw=1.6, marker="o", ms=3, zorder=3)
    set_range(panel, "x", vpc.edges)
    panel.set_ylim(0, max(0.05, 1.1 * float(max(share.observed.max(), share.upper.max()))))
    panel.set_ylabel("Share below LLOQ")
