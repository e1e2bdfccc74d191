"""Bins of records along time, time after dose or a prediction."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from neuralpk.cohort import FloatArray

IntArray = NDArray[np.int64]

_LEAST = 5  # records in a bin
_APART = 2.0  # times its width: what lies so far from all else is one cluster of jittered times
_FLAT = 0.05  # of the range: gaps count relative to their distance from the smallest value and this


def bins_along(x: FloatArray, most: int = 8) -> IntArray:
    """Bins that hold about equally many records, with edges in gaps: records of one nominal time stay together, also
    where their times jitter.

    Each edge lies in the largest gap, relative to its place, within half a bin of where bins of equal counts would
    meet.

    Args:
        x: finite, ``[record]``.
        most: at most so many bins.

    Returns:
        Bin of each record, from 0 in the order of x, ``[record]``; no bin is empty.
    """
    order = np.argsort(x, kind="stable")
    ordered, count = x[order], max(1, min(most, len(x) // _LEAST))
    gaps = np.diff(ordered) / np.maximum(ordered[1:] - ordered[0] + _FLAT * (ordered[-1] - ordered[0]), 1e-300)
    cuts, half = set(), len(x) / (2 * count)
    for k in range(1, count):
        target = k * len(x) / count
        near = np.arange(max(1, int(np.ceil(target - half))), min(len(x) - 1, int(target + half)) + 1)
        largest = near[np.isclose(gaps[near - 1], gaps[near - 1].max())]
        best = int(largest[np.abs(largest - target).argmin()])
        if gaps[best - 1] > 0:
            cuts.add(best)
    kept = _without_split_clusters(_without_small_bins(sorted(cuts), gaps), ordered)
    found = np.empty(len(x), np.int64)
    found[order] = np.searchsorted(kept, np.arange(len(x)), side="right")
    return found


def _without_small_bins(cuts: list[int], gaps: FloatArray) -> list[int]:
    """The cuts without those that leave too few records on one side: of the two edges of a small bin the one in the
    smaller gap goes."""
    while cuts:
        edges = [0, *cuts, len(gaps) + 1]
        sizes = np.diff(edges)
        smallest = int(sizes.argmin())
        if sizes[smallest] >= _LEAST:
            break
        cuts.remove(min((edge for edge in edges[smallest : smallest + 2] if edge in cuts), key=lambda k: gaps[k - 1]))
    return cuts


def _without_split_clusters(cuts: list[int], ordered: FloatArray) -> list[int]:
    """The cuts without those inside a cluster: neighbouring bins of which each is wider than the gap to the next, and
    which are far from all others, are one."""
    edges = [0, *cuts, len(ordered)]
    for count in range(len(edges) - 1, 1, -1):  # bins that may be one, many before few
        for k in range(len(edges) - count):
            first, inner, last = edges[k], edges[k + 1 : k + count], edges[k + count]
            before = ordered[first] - ordered[first - 1] if first > 0 else np.inf
            behind = ordered[last] - ordered[last - 1] if last < len(ordered) else np.inf
            widths = [ordered[b - 1] - ordered[a] for a, b in pairwise([first, *inner, last])]
            touching = all(
                ordered[cut] - ordered[cut - 1] < max(pair) for cut, pair in zip(inner, pairwise(widths), strict=True)
            )
            if touching and _APART * (ordered[last - 1] - ordered[first]) <= min(before, behind) < np.inf:
                return _without_split_clusters([cut for cut in cuts if cut not in inner], ordered)
    return cuts


def bins_over_time(time: FloatArray, since: FloatArray, doses: IntArray, most: int = 12) -> IntArray:
    """Bins along time that do not put troughs and peaks together: within one or more dosing intervals, along the time
    after dose.

    Args:
        time: ``[record]``.
        since: time after dose, NaN before the first, ``[record]``.
        doses: number of doses before each record, ``[record]``.
        most: about so many bins.

    Returns:
        Bin of each record, from 0 in the order of their median times, ``[record]``.
    """
    if len(time) == 0 or doses.max() <= 1:
        return bins_along(time, most)
    key = np.zeros(len(time), np.int64)
    taken = 0
    for own in _intervals(doses, most):
        phase = np.where(np.isnan(since[own]), -1.0, since[own])
        share = round(most * own.sum() / len(time))
        inside = bins_along(phase, max(2, share))
        key[own] = taken + inside
        taken += int(inside.max()) + 1
    centres = np.array([np.median(time[key == k]) for k in range(taken)])
    return np.argsort(np.argsort(centres, kind="stable"), kind="stable")[key].astype(np.int64)


def _intervals(doses: IntArray, most: int) -> list[NDArray[np.bool_]]:
    """Groups of neighbouring dosing intervals, each with about a share of the records or more."""
    least, groups, start = max(2 * _LEAST, 2 * len(doses) // most), [], None
    numbers = np.unique(doses)
    for k, number in enumerate(numbers):
        start = number if start is None else start
        own = (doses >= start) & (doses <= number)
        left = int((doses > number).sum())
        if (own.sum() >= least and (left == 0 or left >= least)) or k == len(numbers) - 1:
            groups.append(own)
            start = None
    return groups


def doses_repeat(records: pd.DataFrame) -> bool:
    """Whether doses repeat: a time after dose that is not the time after the first dose."""
    known = records[records["TAD"].notna()]
    origin = known["TIME"] - known["TAD"]
    spread = origin.groupby(known["ID"]).agg(np.ptp)
    return bool((spread > 1e-6 * max(1e-300, float(np.ptp(records["TIME"].to_numpy(float))))).any())
