"""Visual predictive checks: percentiles of the data beside those of simulated studies, bin by bin."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from neuralpk.cohort import FloatArray
from neuralpk.diagnostics.below_quantification import BoolArray
from neuralpk.diagnostics.record_bins import IntArray

PERCENTILES = (5, 50, 95)
_BAND = (0.05, 0.5, 0.95)


def percentiles(values: FloatArray, below: BoolArray, bins: IntArray) -> FloatArray:
    """Percentiles of every study in every bin, ``[study, percentile, bin]``, and NaN where one lies below the limit of
    quantification.

    Args:
        values: ``[study, value]``.
        below: which lie below the limit; they are lower than every other, ``[study, value]``.
        bins: of each value, from 0, ``[value]``.
    """
    censored = bool(below.any())
    # without interpolation between a value and one that is only known to be lower
    method: Any = "inverted_cdf" if censored else "linear"
    known = np.where(below, -np.inf, values) if censored else values
    levels = [one / 100 for one in PERCENTILES]
    found = np.stack(
        [np.quantile(known[:, bins == k], levels, axis=1, method=method).T for k in range(int(bins.max()) + 1)], axis=2
    )
    return np.where(np.isfinite(found), found, np.nan)


def shares_below(below: BoolArray, bins: IntArray) -> FloatArray:
    """Share of values below the limit of quantification of every study in every bin, ``[study, bin]``."""
    return np.stack([below[:, bins == k].mean(axis=1) for k in range(int(bins.max()) + 1)], axis=1)


def corrected(values: FloatArray, pred: FloatArray, bins: IntArray) -> FloatArray:
    """Prediction-corrected values ``y · median(PRED of the bin) / PRED`` (Bergstrand et al. 2011, AAPS J 13:143),
    ``[study, value]``; for positive predictions."""
    typical = np.array([np.median(pred[bins == k]) for k in range(int(bins.max()) + 1)])
    return np.asarray(values * (typical[bins] / pred), np.float64)


def check_frame(x: FloatArray, values: FloatArray, below: BoolArray, bins: IntArray) -> pd.DataFrame:
    """One row for each bin: N, X (median), X_LOW, X_HIGH, then of each percentile the observed one and the median and
    90 % band of the simulated ones (P5_OBSERVED, P5_LO90, P5_MEDIAN, P5_HI90, P50_…, P95_…); where values lie below the
    limit of quantification the same of their share (BLQ_OBSERVED, …).

    Args:
        x: what the bins are along, ``[value]``.
        values: the data first, then simulated studies, ``[1 + study, value]``.
        below: likewise.
        bins: of each value, from 0, ``[value]``.
    """
    every = range(int(bins.max()) + 1)
    inside = [x[bins == k] for k in every]
    frame: dict[str, Any] = {
        "BIN": np.arange(len(inside)) + 1,
        "N": [len(own) for own in inside],
        "X": [float(np.median(own)) for own in inside],
        "X_LOW": [float(own.min()) for own in inside],
        "X_HIGH": [float(own.max()) for own in inside],
    }
    found = percentiles(values, below, bins)
    for k, name in enumerate(PERCENTILES):
        frame |= _columns(f"P{name}", found[:, k])
    if below[0].any():
        frame |= _columns("BLQ", shares_below(below, bins))
    return pd.DataFrame(frame)


def _columns(name: str, found: FloatArray) -> dict[str, FloatArray]:
    """The data and the band of the simulations, of ``[1 + study, bin]``; NaN where a part of the band lies below the
    limit."""
    ends = np.quantile(np.where(np.isnan(found[1:]), -np.inf, found[1:]), _BAND, axis=0, method="inverted_cdf")
    lower, middle, upper = np.where(np.isfinite(ends), ends, np.nan)
    parts: Sequence[FloatArray] = (found[0], lower, middle, upper)
    return {f"{name}_{part}": one for part, one in zip(("OBSERVED", "LO90", "MEDIAN", "HI90"), parts, strict=True)}


def outside(found: FloatArray) -> FloatArray:
    """Share of the percentiles of each study that leave the 90 % bands over all studies, ``[study]``, of
    ``[study, percentile, bin]``; NaN (below the limit) is lower than any number."""
    known = np.where(np.isnan(found), -np.inf, found)
    lower, upper = np.quantile(known, (_BAND[0], _BAND[2]), axis=0, method="inverted_cdf")
    return np.asarray(((known < lower) | (known > upper)).mean(axis=(1, 2)), np.float64)
