"""Figures of individual parameters: random effects in their population, and estimates against the truth.

Every function returns a matplotlib `Figure` of its own and touches nothing global.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from neuralpk.cohort import FloatArray
from neuralpk.diagnostics.metrics import shrinkage
from neuralpk.diagnostics.style import (
    BLUE,
    GREY,
    SKY,
    SMALL,
    TEXT,
    VERMILLION,
    histogram,
    identity_line,
    legend_on_top,
    new_figure,
    plain,
    running_median,
    set_range,
    with_unit,
)


def eta_figure(
    eta: FloatArray,
    names: Sequence[str],
    omega: FloatArray,
    covariates: Mapping[str, FloatArray] | None = None,
) -> Figure:
    """Random effects with their population density and shrinkage, and against covariates below.

    A trend against a covariate is variability that the covariate would explain; large shrinkage hides it.

    Args:
        eta: individual random effects, ``[subject, parameter]``.
        names: of the parameters.
        omega: standard deviations of the random effects, ``[parameter]``.
        covariates: name, unit included, to ``[subject]``; a row each.

    Raises:
        ValueError: names, omega or covariates that do not fit eta.
    """
    subjects, count = np.shape(eta)
    if len(names) != count or np.shape(omega) != (count,):
        raise ValueError(f"{count} columns of eta need as many names and omega, got {len(names)}, {np.shape(omega)}")
    covariates = covariates or {}
    figure, axes = new_figure(
        1 + len(covariates), count, width=max(4.0, min(9.0, 3.0 * count)), height=0.5 + 2.3 * (1 + len(covariates))
    )
    shrunk = shrinkage(eta, omega) if subjects > 1 else np.full(count, np.nan)
    for k, name in enumerate(names):
        panel = axes[0, k]
        histogram(panel, eta[:, k], float(omega[k]), "population density")
        part = f": shrinkage {100 * shrunk[k]:.0f} %" if np.isfinite(shrunk[k]) else ""
        panel.set_title(f"{name}{part}", fontsize=TEXT)
        panel.set_xlabel(f"η {name}")
        panel.set_ylabel("Density" if k == 0 else "")
    for row, (covariate, values) in enumerate(covariates.items(), start=1):
        if np.shape(values) != (subjects,):
            raise ValueError(f"covariate {covariate}: shape {np.shape(values)} for {subjects} subjects")
        for k, name in enumerate(names):
            _against_covariate(axes[row, k], values, eta[:, k])
            axes[row, k].set_xlabel(covariate)
            axes[row, k].set_ylabel(f"η {name}")
    legend_on_top(figure, list(axes.flat))
    return figure


def _against_covariate(axes: Axes, values: FloatArray, eta: FloatArray) -> None:
    axes.axhline(0, color=GREY, lw=1.0, ls="--", zorder=1)
    axes.plot(values, eta, ls="none", marker="o", ms=4, mfc=BLUE, mec="none", alpha=0.55, label="subject")
    set_range(axes, "x", values)
    if len(np.unique(values)) <= 4:
        # categories, coded as numbers
        axes.set_xticks(np.unique(values))
    trend = running_median(values, eta, windows=8)
    if len(trend[0]) > 1:
        axes.plot(*trend, color=VERMILLION, lw=1.8, label="running median")
    if len(values) > 2 and np.ptp(values) > 0 and np.ptp(eta) > 0:
        axes.set_title(f"r = {plain(np.corrcoef(values, eta)[0, 1])}", fontsize=SMALL, color=GREY, pad=2)


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
