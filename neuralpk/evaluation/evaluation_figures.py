"""Figures of an evaluation, readable at the width of a journal column.

Every function draws frames of an `Evaluation` and returns a matplotlib `Figure` of its own.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from neuralpk.cohort import FloatArray, Units
from neuralpk.diagnostics.record_bins import doses_repeat
from neuralpk.diagnostics.style import (
    BLACK,
    BLUE,
    GREY,
    LIGHT,
    ORANGE,
    SKY,
    VERMILLION,
    dose_marks,
    histogram,
    log_scale,
    new_figure,
    plain,
    running_median,
    set_range,
    time_axis,
    with_unit,
)

QUANTITIES = {"vpc": "Value", "pcvpc": "Prediction-corrected value"}
"""What is drawn in the two kinds of visual predictive check."""
_INCH = 25.4  # mm
_TEXT, _SMALL = 7.0, 6.0  # points
_THIN = (0.4, 1.0)  # points: edges and line of a histogram
_PANEL = 40.0  # mm: width of a panel with axes
_BESIDE = 10.0  # mm: of a panel, for its numbers and what stands beside them
_LETTER, _LINE = 1.3, 3.0  # mm: width of a letter, and height of a line of text
_LONGEST = 20  # letters of a name above a panel
_MANY = 500  # points of a panel, from which they are small and light


def _new(panels: int, width: float, height: float, *, rows: int = 0) -> tuple[Figure, list[Axes]]:
    """A figure and its panels, side by side as far as the width goes.

    Args:
        panels: how many.
        width: of the figure, mm.
        height: of a row of panels, mm.
        rows: 0 for as many as needed.
    """
    columns = min(panels, max(1, int(width / _PANEL)))
    rows = rows or -(-panels // columns)
    figure, axes = new_figure(rows, columns, width=width / _INCH, height=(rows * height + 9) / _INCH)
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.03)  # type: ignore[union-attr,call-arg]
    flat = list(axes.flat)
    for panel in flat[panels:]:
        panel.remove()
    return figure, flat[:panels]


def _finish(figure: Figure, panels: Sequence[Axes]) -> Figure:
    """Small texts everywhere, and one legend above, each mark named once."""
    unique: dict[str, Any] = {}
    for panel in panels:
        panel.tick_params(labelsize=_SMALL, length=2, width=0.6, pad=1.5)
        for text in (panel.xaxis.label, panel.yaxis.label, panel.title):
            text.set_fontsize(_TEXT)
        panel.xaxis.labelpad = panel.yaxis.labelpad = 2
        for spine in panel.spines.values():
            spine.set_linewidth(0.6)
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            unique.setdefault(label, handle)
    if unique:
        widest = 3.6 + 0.45 * max(len(label) for label in unique)
        fitting = max(1, int(72 * figure.get_figwidth() / (_SMALL * widest)))
        figure.legend(
            list(unique.values()),
            list(unique),
            loc="outside upper center",
            ncols=min(fitting, len(unique)),
            frameon=False,
            fontsize=_SMALL,
            handlelength=1.6,
            columnspacing=1.2,
        )
    return figure


def _points(axes: Axes, x: FloatArray, y: FloatArray, label: str = "data", marker: str = "o", **look: Any) -> None:
    many = len(x) > _MANY
    style: dict[str, Any] = {
        "mfc": BLUE,
        "mec": "none",
        "ms": 1.8 if many else 2.6,
        "alpha": 0.3 if many else 0.55,
    } | look
    axes.plot(x, y, ls="none", marker=marker, label=label, **style)


def _trend(axes: Axes, x: FloatArray, y: FloatArray) -> None:
    at, middle = running_median(x, y)
    if len(at) > 1:
        axes.plot(at, middle, color=VERMILLION, lw=1.2, label="running median")


def _below(frame: pd.DataFrame) -> NDArray[np.bool_]:
    return frame["CENS"].to_numpy() > 0 if "CENS" in frame else np.zeros(len(frame), bool)


def fit_figure(records: pd.DataFrame, units: Units, width: float, log: bool) -> Figure:
    """DV against PRED and IPRED; those of IWRES and CWRES that there are against predictions, time and time after
    dose."""
    residuals = [
        (y, x)
        for y, x in (
            ("IWRES", "IPRED"),
            ("IWRES", "TIME"),
            ("CWRES", "PRED"),
            ("CWRES", "TIME"),
            ("CWRES", "TAD"),
        )
        if y in records and records[y].notna().any() and (x != "TAD" or doses_repeat(records))
    ]
    figure, panels = _new(2 + len(residuals), width, 38)
    for panel, name in zip(panels, ("PRED", "IPRED"), strict=False):
        _identity_panel(panel, records, name, units, log)
    for panel, (residual, against) in zip(panels[2:], residuals, strict=True):
        _residual_panel(panel, records, residual, against, units)
    return _finish(figure, panels)


def compared_fit_figure(records: Mapping[str, pd.DataFrame], units: Units, width: float, log: bool) -> Figure:
    """DV against PRED above and IPRED below, a column for each model."""
    figure, axes = new_figure(2, len(records), width=width / _INCH, height=(2 * 40 + 9) / _INCH)
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.03)  # type: ignore[union-attr,call-arg]
    for column, (title, own) in enumerate(records.items()):
        for row, name in enumerate(("PRED", "IPRED")):
            _identity_panel(axes[row, column], own, name, units, log)
        axes[0, column].set_title(title)
    return _finish(figure, list(axes.flat))


def _identity_panel(panel: Axes, records: pd.DataFrame, name: str, units: Units, log: bool) -> None:
    """DV against a prediction."""
    below, dv, x = _below(records), records["DV"].to_numpy(float), records[name].to_numpy(float)
    _points(panel, x[~below], dv[~below])
    if below.any():
        _points(panel, x[below], dv[below], "BLQ, at its limit", "v", mfc="none", mec=VERMILLION, mew=0.6)
    for which in "xy":
        set_range(panel, which, x, dv, log=log)
        if log:
            log_scale(panel, which)
    panel.plot(panel.get_xlim(), panel.get_xlim(), color=GREY, lw=0.8, ls="--", zorder=1, label="identity")
    if not log:
        _trend(panel, x[~below], dv[~below])
    panel.set_xlabel(with_unit(name, units.value))
    panel.set_ylabel(with_unit("DV", units.value))


def _residual_panel(panel: Axes, records: pd.DataFrame, name: str, against: str, units: Units) -> None:
    """Standardised residuals with their trend and lines at 0 and ±1.96; those of values below the limit of
    quantification, which only the NPDE have, are marked."""
    own = records[records[name].notna() & records[against].notna()]
    x, y, below = own[against].to_numpy(float), own[name].to_numpy(float), _below(own)
    span = 1.1 * max(3.0, float(np.max(np.abs(y), initial=0.0)))
    for level, dashes in ((-1.96, ":"), (0.0, "--"), (1.96, ":")):
        panel.axhline(level, color=GREY, lw=0.7, ls=dashes, zorder=1)
    _points(panel, x[~below], y[~below])
    if below.any():
        _points(panel, x[below], y[below], "BLQ, imputed", "v", mfc="none", mec=BLUE, mew=0.5)
    _trend(panel, x, y)
    panel.set_ylim(-span, span)
    set_range(panel, "x", x)
    panel.set_ylabel(name)
    times = {"TIME": "Time", "TAD": "Time after dose"}
    panel.set_xlabel(with_unit(times.get(against, against), units.time if against in times else units.value))
    if against in times:
        time_axis(panel, "", named=False)


def npde_figure(records: pd.DataFrame, units: Units, width: float) -> Figure:
    """Histogram of the NPDE, their quantiles against those of N(0, 1), and they against time, predictions and, where
    doses repeat, time after dose."""
    against = ["TIME", "PRED", *(["TAD"] if doses_repeat(records) else [])]
    npde = records["NPDE"].dropna().to_numpy(float)
    figure, panels = _new(2 + len(against), width, 40)
    histogram(panels[0], npde, 1.0, "N(0, 1)", "data", *_THIN)
    panels[0].set_xlabel("NPDE")
    panels[0].set_ylabel("Density")
    ordered, n = np.sort(npde), len(npde)
    score = torch.special.ndtri((torch.arange(1, n + 1, dtype=torch.float64) - 0.5) / n).numpy()
    reach = 1.1 * max(3.0, float(np.max(np.abs(npde), initial=0.0)))
    panels[1].plot([-reach, reach], [-reach, reach], color=GREY, lw=0.8, ls="--", zorder=1, label="identity")
    _points(panels[1], score, ordered)
    panels[1].set(xlim=(-reach, reach), ylim=(-reach, reach), xlabel="Normal quantile", ylabel="NPDE")
    for panel, axis in zip(panels[2:], against, strict=True):
        _residual_panel(panel, records, "NPDE", axis, units)
    return _finish(figure, panels)


def random_effects_figure(frame: pd.DataFrame, shrinkage: pd.DataFrame, width: float) -> Figure:
    """Distribution of every random effect with the population's density, and its shrinkage."""
    figure, panels = _new(len(shrinkage), width, 38)
    for panel, row in zip(panels, shrinkage.itertuples(), strict=True):
        values = frame[f"ETA_{row.PARAMETER}"].dropna().to_numpy(float)
        histogram(panel, values, float(row.OMEGA), "population density", "data", *_THIN)  # type: ignore[arg-type]
        panel.set_xlabel(f"η {row.PARAMETER}")
        panel.set_ylabel("Density")
        found = float(row.SHRINKAGE)  # type: ignore[arg-type]
        panel.set_title("" if np.isnan(found) else f"shrinkage {found:.0f} %")
    return _finish(figure, panels)


def covariates_figure(frame: pd.DataFrame, effects: Sequence[str], covariates: Sequence[str], width: float) -> Figure:
    """Every random effect against every covariate, with their correlation; levels side by side. Patients without a
    value of the covariate are left out."""
    pairs = [(effect, covariate) for covariate in covariates for effect in effects]
    figure, panels = _new(len(pairs), width, 36)
    for panel, (effect, covariate) in zip(panels, pairs, strict=True):
        known = frame[frame[f"ETA_{effect}"].notna() & frame[covariate].notna()]
        y, values = known[f"ETA_{effect}"].to_numpy(float), known[covariate]
        panel.axhline(0, color=GREY, lw=0.7, ls="--", zorder=1)
        if pd.api.types.is_numeric_dtype(values) and values.nunique() > 4:
            x = values.to_numpy(float)
            _points(panel, x, y, "subject")
            _trend(panel, x, y)
            set_range(panel, "x", x)
            if np.ptp(x) > 0 and np.ptp(y) > 0:
                panel.set_title(f"r = {plain(float(np.corrcoef(x, y)[0, 1]))}")
        else:
            levels = sorted(values.unique(), key=str)
            for k, level in enumerate(levels):
                own = y[(values == level).to_numpy()]
                offset = np.linspace(-0.12, 0.12, len(own)) if len(own) > 1 else np.zeros(1)
                _points(panel, k + offset, own, "subject")
                panel.plot([k - 0.25, k + 0.25], [np.median(own)] * 2, color=VERMILLION, lw=1.2, label="median")
            # a dollar sign would begin a formula
            names = [f"{x:g}" if isinstance(x, float) else _short(str(x)).replace("$", r"\$") for x in levels]
            panel.set_xticks(range(len(levels)), names)
            panel.set_xlim(-0.6, len(levels) - 0.4)
        panel.set_xlabel(covariate)
        panel.set_ylabel(f"η {effect}")
    return _finish(figure, panels)


def vpc_figure(
    check: pd.DataFrame, points: pd.DataFrame, units: Units, width: float, log: bool, against: str, quantity: str
) -> Figure:
    """Percentiles of the data over the 90 % bands of the simulated ones, a panel for each stratum; below it the share
    of values below the limit of quantification."""
    strata = list(dict.fromkeys(check["STRATUM"]))
    share = "BLQ_OBSERVED" in check
    columns = min(len(strata), max(1, int(width / (0.9 * _PANEL))))
    blocks = -(-len(strata) // columns)
    rows = blocks * (1 + share)
    ratios = ([2, 1] if share else [1]) * blocks
    tall = 55 if len(strata) == 1 else 45
    titles = {stratum: _wrapped(stratum, width / columns - _BESIDE) for stratum in strata}
    title_lines = max(title.count("\n") for title in titles.values())
    height = (tall * (1.5 if share else 1) + _LINE * title_lines) * blocks + 12
    figure, axes = new_figure(rows, columns, width=width / _INCH, height=height / _INCH)
    axes[0, 0].get_gridspec().set_height_ratios(ratios)
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.03)  # type: ignore[union-attr,call-arg]
    used = []
    for k, stratum in enumerate(strata):
        row, column = divmod(k, columns)
        own, seen = check[check["STRATUM"] == stratum], points[points["STRATUM"] == stratum]
        panel = axes[(1 + share) * row, column]
        _vpc_panel(panel, own, seen, log)
        panel.set_title(titles[stratum])
        panel.set_ylabel(_wrapped(with_unit(quantity, units.value), tall - _BESIDE) if column == 0 else "")
        used.append(panel)
        if share:
            lower = axes[2 * row + 1, column]
            _band(lower, own, "BLQ", ORANGE)
            lower.set_ylim(0, max(0.05, 1.1 * float(own[["BLQ_OBSERVED", "BLQ_HI90"]].max().max())))
            lower.set_ylabel(_wrapped("Share below LLOQ", tall / 2 - _BESIDE) if column == 0 else "")
            set_range(lower, "x", seen["X"].to_numpy(float))
            used.append(lower)
        used[-1].set_xlabel(with_unit({"TIME": "Time", "TAD": "Time after dose"}.get(against, against), units.time))
    for panel in used:
        if against in ("TIME", "TAD"):
            time_axis(panel, "", named=False)
    for panel in axes.flat:
        if panel not in used:
            panel.remove()
    return _finish(figure, used)


_COLOURS = {"P5": SKY, "P50": ORANGE, "P95": SKY}


def _vpc_panel(panel: Axes, check: pd.DataFrame, points: pd.DataFrame, log: bool) -> None:
    x, y = points["X"].to_numpy(float), points["VALUE"].to_numpy(float)
    many = len(x) > _MANY
    _points(panel, x, y, "observation", mfc=LIGHT, alpha=1.0, ms=1.5 if many else 2.2, zorder=1)
    for name, colour in _COLOURS.items():
        _band(panel, check, name, colour)
    ends = [check[f"{name}_{part}"].to_numpy(float) for name in _COLOURS for part in ("OBSERVED", "HI90")]
    ends += [] if log else [check["P5_LO90"].to_numpy(float)]
    panel.plot(
        np.append(check["X_LOW"], check["X_HIGH"].iloc[-1]),
        np.ones(len(check) + 1),
        ls="none",
        marker="|",
        ms=4,
        mew=0.7,
        color=GREY,
        transform=panel.get_xaxis_transform(),
        clip_on=False,
    )
    set_range(panel, "x", x)
    set_range(panel, "y", y, *ends, log=log)
    if log:
        log_scale(panel, "y")


def _band(panel: Axes, check: pd.DataFrame, name: str, colour: str) -> None:
    """Band of one simulated percentile, with the observed one over it."""
    middle = name in ("P50", "BLQ")
    x = check["X"].to_numpy(float)
    lower, upper, seen = (check[f"{name}_{part}"].to_numpy(float) for part in ("LO90", "HI90", "OBSERVED"))
    if len(x) == 1:  # a band needs two places
        x, lower, upper = (np.repeat(one, 2) for one in (x, lower, upper))
        x = x + np.array([-0.5, 0.5]) * max(float(check["X_HIGH"].iloc[0] - check["X_LOW"].iloc[0]), 1e-9)
    what = {"P50": "50 %", "BLQ": "share"}.get(name, "5, 95 %")
    panel.fill_between(x, lower, upper, color=colour, alpha=0.45, lw=0, zorder=2, label=f"simulated {what}")
    _alone(panel, check["X"].to_numpy(float), check[f"{name}_LO90"], check[f"{name}_HI90"], colour)
    look: dict[str, Any] = {"color": BLACK, "lw": 1.1 if middle else 0.9, "ls": "-" if middle else "--"}
    panel.plot(check["X"], seen, marker="o", ms=2, zorder=3, label=f"observed {what}", **look)


def _alone(panel: Axes, x: FloatArray, lower: pd.Series[float], upper: pd.Series[float], colour: str) -> None:
    """Bands of bins whose neighbours have none, as lines: an area needs two places."""
    known = (lower.notna() & upper.notna()).to_numpy()
    beside = np.append(False, known[:-1]) | np.append(known[1:], False)
    own = known & ~beside & (len(x) > 1)
    panel.vlines(x[own], lower[own], upper[own], color=colour, alpha=0.6, lw=3, zorder=2)


def individuals_figure(
    curves: pd.DataFrame, records: pd.DataFrame, doses: pd.DataFrame, units: Units, width: float, log: bool
) -> Figure:
    """A panel for each patient: individual prediction with its 90 % band, population prediction, samples and doses."""
    ids = list(dict.fromkeys(curves["ID"]))
    columns = min(len(ids), max(1, int(width / 27)))
    rows = -(-len(ids) // columns)
    figure, axes = new_figure(rows, columns, width=width / _INCH, height=(27 * rows + 12) / _INCH)
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02)  # type: ignore[union-attr,call-arg]
    panels: list[Axes] = list(axes.flat)[: len(ids)]
    by_id: list[Mapping[Any, pd.DataFrame]] = [dict(list(frame.groupby("ID"))) for frame in (curves, records, doses)]
    for panel, name in zip(panels, ids, strict=True):
        line, seen, given = (frames.get(name) for frames in by_id)
        assert line is not None
        _individual(panel, line, seen, given, log)
        panel.set_title(_short(name), pad=2)
    for panel in axes.flat:
        if panel not in panels:
            panel.remove()
    figure.supxlabel(with_unit("Time", units.time), fontsize=_TEXT)
    figure.supylabel(with_unit("Value", units.value), fontsize=_TEXT)
    return _finish(figure, panels)


def _wrapped(text: str, length: float) -> str:
    """A text in lines of a length in mm: the layout leaves room for their height alone."""
    return textwrap.fill(text, max(11, int(length / _LETTER)))


def _short(name: str) -> str:
    """A name that fits above a panel: of a long one its ends."""
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST // 2]}…{name[1 - _LONGEST // 2 :]}"


def _individual(
    panel: Axes, line: pd.DataFrame, seen: pd.DataFrame | None, given: pd.DataFrame | None, log: bool
) -> None:
    at = line["TIME"].to_numpy(float)
    if line["LO90"].notna().any():
        panel.fill_between(at, line["LO90"], line["HI90"], color=SKY, alpha=0.35, lw=0, label="90 % band")
    panel.plot(at, line["PRED"], color=ORANGE, lw=0.8, ls=":", label="PRED")
    panel.plot(at, line["IPRED"], color=BLUE, lw=1.0, label="IPRED")
    values = [line[name].to_numpy(float) for name in ("PRED", "IPRED", "HI90")]
    if seen is not None:
        below = _below(seen)
        x, y = seen["TIME"].to_numpy(float), seen["DV"].to_numpy(float)
        values.append(y)
        look: dict[str, Any] = {"mec": VERMILLION, "mew": 0.7, "alpha": 1.0, "ms": 2.6, "zorder": 4}
        _points(panel, x[~below], y[~below], "DV", mfc=VERMILLION, **look)
        if below.any():
            _points(panel, x[below], y[below], "BLQ, at its limit", "v", mfc="none", **look)
    if given is not None:
        dose_marks(panel, given["TIME"].to_numpy(float), 2.5)
    set_range(panel, "x", at)
    set_range(panel, "y", *values, log=log)
    time_axis(panel, "", named=False)
    panel.xaxis.get_major_locator().set_params(nbins=3)  # type: ignore[call-arg]
    if log:
        log_scale(panel, "y")
