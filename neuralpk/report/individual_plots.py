"""Plot of one patient as a small SVG: curves, band, samples and doses, in the colours of the page.

A report has a plot for every patient, so that these are written directly: a figure of matplotlib takes a hundred times
as long and ten times the space.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from markupsafe import Markup, escape

from neuralpk.cohort import FloatArray, Units
from neuralpk.diagnostics.plots import Panel
from neuralpk.diagnostics.style import with_unit

_WIDTH, _HEIGHT = 360.0, 236.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 46.0, 8.0, 16.0, 36.0
_DECADES = 4.0  # of a logarithmic axis, at most
_DEVIATION = 0.15  # of a line that is drawn by fewer points, in units of the drawing
_MOST_DOSES = 60


class _Axis:
    """From values to places of the drawing.

    Args:
        low: smallest value.
        high: largest value.
        start: place of the smallest.
        end: place of the largest.
        log: whether the axis is logarithmic.
    """

    def __init__(self, low: float, high: float, start: float, end: float, log: bool = False) -> None:
        self.low, self.high, self.start, self.end, self.log = low, high, start, end, log

    def __call__(self, values: FloatArray) -> FloatArray:
        low, high = self.low, self.high
        if self.log:
            with np.errstate(invalid="ignore", divide="ignore"):
                values, low, high = np.log(np.maximum(values, low)), math.log(low), math.log(high)
        return self.start + (values - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """A few round values."""
        if self.log:
            exponents = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            few = math.log10(self.high / self.low) > 2
            found = [step * 10.0**power for power in exponents for step in ((1,) if few else (1, 2, 5))]
            return [value for value in found if self.low <= value <= self.high]
        rough = (self.high - self.low) / 4
        unit = 10.0 ** math.floor(math.log10(rough))
        step = unit * next(s for s in (1, 2, 2.5, 5, 10) if s * unit >= 0.999 * rough)
        first = math.ceil(self.low / step - 1e-9)
        return [step * k for k in range(first, math.floor(self.high / step + 1e-9) + 1)]


def individual_plot(panel: Panel, units: Units, title: str, log: bool = False) -> Markup:
    """One patient: individual and population prediction, 90 % interval, samples (below their limit of quantification
    as open triangles at it), doses as ticks at the top.

    Args:
        panel: curves and samples.
        units: for the axes.
        title: text alternative of the plot.
        log: whether the values stand on a logarithmic axis; what is not positive then lies at its lower end.
    """
    pred = np.full_like(panel.ipred, np.nan) if panel.pred is None else panel.pred
    lines = [panel.ipred, panel.upper, pred, panel.observed_values, *([] if log else [panel.lower])]
    y = _Axis(*_span(lines, log), _HEIGHT - _BOTTOM, _TOP, log)
    x = _Axis(*_span([panel.times, panel.observed_times], False, at_zero=False), _LEFT, _WIDTH - _RIGHT)
    parts = [_frame(x, y, units)]
    across = x(panel.times)
    if not np.isnan(panel.lower).all():
        lower, upper = y(panel.lower), y(panel.upper)
        known = ~np.isnan(lower + upper)
        outline = _path(across[known], upper[known]) + "L" + _path(across[known][::-1], lower[known][::-1])[1:] + "Z"
        parts.append(Markup('<path class="band" d="{}"/>').format(outline))
    for kind, values in (("pred", pred), ("ipred", panel.ipred)):
        known = ~np.isnan(values)
        if known.any():
            parts.append(Markup('<path class="{}" d="{}"/>').format(kind, _path(across[known], y(values)[known])))
    parts += _samples(panel, x, y, units)
    if panel.dose_times is not None:
        at = x(panel.dose_times[:_MOST_DOSES])
        path = "".join(f"M{a:.1f} {_TOP - 9:.0f}v7" for a in at if _LEFT - 1 <= a <= _WIDTH - _RIGHT + 1)
        parts.append(Markup('<path class="dose" d="{}"/>').format(path))
    opening = Markup('<svg viewBox="0 0 {:.0f} {:.0f}" role="img" aria-label="{}" class="{}">').format(
        _WIDTH, _HEIGHT, title, "log" if log else "linear"
    )
    return opening + Markup("").join(parts) + Markup("</svg>")


def _span(values: Iterable[FloatArray], log: bool, at_zero: bool = True) -> tuple[float, float]:
    """Ends of an axis around values."""
    pool = np.concatenate([np.ravel(one) for one in values])
    pool = pool[np.isfinite(pool) & ((pool > 0) | (not log))]
    low, high = (float(pool.min()), float(pool.max())) if pool.size else (0.1, 1.0)
    if log:
        low = max(low, high / 10**_DECADES)
        return low / 1.15, max(high, low * 1.5) * 1.15
    low = min(low, 0.0) if at_zero else low
    high = high if high > low else low + 1.0
    return low, high + (0.06 if at_zero else 0.02) * (high - low)


def _frame(x: _Axis, y: _Axis, units: Units) -> Markup:
    """Axes with their ticks and names."""
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    grid, texts = [f"M{_LEFT:.0f} {bottom:.0f}H{right:.0f}"], []
    for value in y.ticks():
        at = float(y(np.array(value)))
        grid.append(f"M{_LEFT:.0f} {at:.1f}H{right:.0f}")
        texts.append(
            Markup('<text x="{:.0f}" y="{:.1f}" text-anchor="end">{:g}</text>').format(_LEFT - 6, at + 4, value)
        )
    for value in x.ticks():
        at = float(x(np.array(value)))
        grid.append(f"M{at:.1f} {bottom:.0f}v4")
        texts.append(
            Markup('<text x="{:.1f}" y="{:.0f}" text-anchor="middle">{:g}</text>').format(at, bottom + 16, value)
        )
    middle = (_LEFT + right) / 2
    name = with_unit("Time", units.time)
    texts.append(
        Markup('<text x="{:.0f}" y="{:.0f}" text-anchor="middle">{}</text>').format(middle, _HEIGHT - 5, escape(name))
    )
    texts.append(
        Markup('<text x="11" y="{0:.0f}" text-anchor="middle" transform="rotate(-90 11 {0:.0f})">{1}</text>').format(
            (_TOP + bottom) / 2, escape(units.value)
        )
    )
    return Markup('<path class="grid" d="{}"/>').format("".join(grid)) + Markup("").join(texts)


def _samples(panel: Panel, x: _Axis, y: _Axis, units: Units) -> list[Markup]:
    """The measured values, each with its numbers as a tooltip."""
    found = []
    censored = panel.censored if panel.censored is not None else np.zeros(len(panel.observed_times), bool)
    across, up = x(panel.observed_times), y(panel.observed_values)
    for a, b, time, value, below in zip(across, up, panel.observed_times, panel.observed_values, censored, strict=True):
        if np.isnan(b):
            continue
        said = f"{number_and_unit(time, units.time)}: {'below ' if below else ''}{number_and_unit(value, units.value)}"
        mark = f'<path class="below" d="M{a - 4:.1f} {b - 3:.1f}h8l-4 7Z">' if below else ""
        mark = mark or f'<circle class="sample" cx="{a:.1f}" cy="{b:.1f}" r="3.2">'
        end = "</path>" if below else "</circle>"
        found.append(Markup(mark) + Markup("<title>{}</title>").format(said) + Markup(end))
    return found


def number_and_unit(value: float, unit: str) -> str:
    """A number with its unit, in words."""
    return f"{value:.4g} {unit}".rstrip()


def _path(x: FloatArray, y: FloatArray) -> str:
    """A line through points, by as few of them as draw it."""
    kept = _needed(x, y)
    return "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in zip(x[kept], y[kept], strict=True))


def _needed(x: FloatArray, y: FloatArray) -> list[int]:
    """Points without which a line would deviate (Douglas and Peucker 1973)."""
    kept, stretches = {0, len(x) - 1}, [(0, len(x) - 1)]
    while stretches:
        first, last = stretches.pop()
        if last - first < 2:
            continue
        inside = slice(first + 1, last)
        a, b = x[last] - x[first], y[last] - y[first]
        distance = np.abs(a * (y[inside] - y[first]) - b * (x[inside] - x[first])) / max(math.hypot(a, b), 1e-9)
        far = int(np.argmax(distance))
        if distance[far] > _DEVIATION:
            middle = first + 1 + far
            kept.add(middle)
            stretches += [(first, middle), (middle, last)]
    return sorted(kept)
