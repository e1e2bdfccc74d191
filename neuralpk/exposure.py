"""Exposure over an interval: area, peak, trough and time above a threshold of curves that jump and bend at doses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from neuralpk.cohort import FloatArray

METRICS = ("AUC", "CMAX", "TMAX", "CMIN", "CTROUGH", "CAVG", "TABOVE", "PABOVE")
"""Area, highest value and its time since the start of the interval, lowest value, value at its end, mean, time above
the threshold, and that in percent of the interval."""

# of the time from one dose or end of an infusion to the next: what is fast comes right after it
_PANELS = (0.0, 0.03, 0.12, 0.35, 1.0)
NODES = 17
"""Nodes of Clenshaw and Curtis in each panel; its ends are among them."""


@dataclass(frozen=True)
class ExposureGrid:
    """Times at which a curve is read for its exposure over an interval.

    Args:
        interval: start and end.
        times: increasing, ``[time]``; the last of each piece between two events is just before the event.
        weights: of the quadrature, ``[time]``.
    """

    interval: tuple[float, float]
    times: FloatArray
    weights: FloatArray

    @classmethod
    def of(cls, interval: tuple[float, float], events: Sequence[float], nodes: int = NODES) -> ExposureGrid:
        """For an interval with doses and ends of infusions.

        Args:
            interval: start and end.
            events: times of doses and ends of infusions.
            nodes: of the quadrature in each of the four parts of the time from one event to the next.

        Raises:
            ValueError: an interval that does not go forward.
        """
        low, high = interval
        if not (np.isfinite(interval).all() and low < high):
            raise ValueError(f"the interval of the exposure goes from one time to a later one, not {low:g} to {high:g}")
        cuts = [low, *(event for event in sorted(set(events)) if low < event < high), high]
        points, weights = _clenshaw_curtis(nodes)
        times, all_weights = [], []
        for start, end in pairwise(cuts):
            # the value just before the dose at the end of the piece, far above the rounding of the times
            stop = end - max(1e-9 * (end - start), 1e-13 * abs(end))
            edges = start + np.array(_PANELS) * (stop - start)
            for left, right in pairwise(edges):
                times.append(left + points * (right - left))
                all_weights.append(weights * (right - left))
        return cls(interval, np.concatenate(times), np.concatenate(all_weights))

    def metrics(self, values: FloatArray, above: float | None = None) -> dict[str, FloatArray]:
        """Exposure of curves.

        Args:
            values: at the times, ``[..., time]``.
            above: threshold of TABOVE and PABOVE; None for neither.

        Returns:
            By name of `METRICS`, each ``[...]``.
        """
        length = self.interval[1] - self.interval[0]
        area = values @ self.weights
        peak, at = self._peak(values)
        found = {
            "AUC": area,
            "CMAX": peak,
            "TMAX": at - self.interval[0],
            "CMIN": values.min(-1),
            "CTROUGH": values[..., -1],
            "CAVG": area / length,
        }
        if above is not None:
            found["TABOVE"] = self._time_above(values - above)
            found["PABOVE"] = 100 * found["TABOVE"] / length
        return found

    def _peak(self, values: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Highest value and its time: of the parabola through the highest point and its neighbours, where it lies
        between them."""
        k = np.nan_to_num(values).argmax(-1)
        inner = np.clip(k, 1, len(self.times) - 2)
        t = [self.times[inner + step] for step in (-1, 0, 1)]
        y = [np.take_along_axis(values, (inner + step)[..., None], -1)[..., 0] for step in (-1, 0, 1)]
        with np.errstate(divide="ignore", invalid="ignore"):
            left, right = (y[1] - y[0]) / (t[1] - t[0]), (y[2] - y[1]) / (t[2] - t[1])
            bend = (right - left) / (t[2] - t[0])
            move = -(left + bend * (t[1] - t[0])) / (2 * bend)
            top = y[1] + move * (left + bend * (t[1] - t[0])) + bend * move**2
        # a jump or a bend lies where two points are next to each other in time: no parabola goes through it
        smooth = (t[1] - t[0] > 0.01 * (t[2] - t[0])) & (t[2] - t[1] > 0.01 * (t[2] - t[0]))
        used = (k == inner) & smooth & (bend < 0) & (t[1] + move > t[0]) & (t[1] + move < t[2])
        highest = np.take_along_axis(values, k[..., None], -1)[..., 0]
        return np.where(used, np.fmax(top, highest), highest), np.where(used, t[1] + move, self.times[k])

    def _time_above(self, over: FloatArray) -> FloatArray:
        """Length of time in which the line through the points lies above 0."""
        a, b, width = over[..., :-1], over[..., 1:], np.diff(self.times)
        with np.errstate(divide="ignore", invalid="ignore"):
            share = np.where((a > 0) & (b > 0), 1.0, np.where((a <= 0) & (b <= 0), 0.0, np.fmax(a, b) / np.abs(a - b)))
        share = np.where(np.isnan(a) | np.isnan(b), np.nan, share)
        return np.asarray((share * width).sum(-1))


def _clenshaw_curtis(count: int) -> tuple[FloatArray, FloatArray]:
    """Nodes in [0, 1] with both ends, and weights that integrate every polynomial of degree count − 1."""
    nodes = (1 - np.cos(np.pi * np.arange(count) / (count - 1))) / 2
    powers = np.arange(count)
    weights = np.linalg.solve(np.vander(2 * nodes - 1, increasing=True).T, (1 - (-1.0) ** (powers + 1)) / (powers + 1))
    return nodes, weights / 2
