"""Checks of a model by a fixed rule: each statistic of the data against the same statistic of simulated studies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from neuralpk.cohort import FloatArray
from neuralpk.diagnostics.record_bins import IntArray

LEVEL = 0.05
"""Probability that a right model fails any of the checks."""


class Check(NamedTuple):
    """A statistic of the data and of every simulated study; large values speak against the model.

    Attributes:
        name: what is checked.
        endpoint: DVID.
        meaning: of the statistic, in words.
        statistic: of the data first, ``[1 + study]``.
    """

    name: str
    endpoint: int
    meaning: str
    statistic: FloatArray


def npde_checks(npde: FloatArray, endpoint: int) -> list[Check]:
    """Mean 0, variance 1 and normal distribution of the NPDE, as in the global test of Comets et al. (2008, Comput
    Methods Programs Biomed 90:154), with the null distribution of simulated studies.

    Args:
        npde: of the data first, ``[1 + study, value]``.
        endpoint: DVID.
    """
    count = npde.shape[1]
    if count < 3:
        return []
    mean, variance = npde.mean(axis=1), npde.var(axis=1, ddof=1)
    return [
        Check("npde mean", endpoint, "mean of the NPDE, 0 under the model, in standard errors", _away(mean)),
        Check("npde variance", endpoint, "logarithm of their variance, in standard errors", _away(np.log(variance))),
        Check("npde normality", endpoint, "1 − W' of Shapiro and Francia", 1 - _shapiro_francia(npde)),
    ]


def trend_check(npde: FloatArray, bins: IntArray, against: str, endpoint: int) -> list[Check]:
    """Means of the NPDE bin by bin, which differ from 0 where the structure of the model is wrong, and their variances,
    which differ from 1 where its variability is.

    Args:
        npde: of the data first, ``[1 + study, value]``.
        bins: of each value, from 0, ``[value]``.
        against: what the bins are along.
        endpoint: DVID.
    """
    inside = [npde[:, bins == k] for k in range(int(bins.max()) + 1)]
    if len(inside) < 2:
        return []
    means = np.stack([_away(own.mean(axis=1)) for own in inside], axis=1)
    spreads = np.stack([_away(own.std(axis=1)) for own in inside if own.shape[1] > 2] or [means[:, 0] * 0], axis=1)
    words = f"sum over bins of {against} of the squared distance of"
    return [
        Check(f"npde trend over {against}", endpoint, f"{words} their mean NPDE from 0", np.square(means).sum(axis=1)),
        Check(f"npde spread over {against}", endpoint, f"{words} their sd from 1", np.square(spreads).sum(axis=1)),
    ]


def _away(values: FloatArray) -> FloatArray:
    """Distance of each study from the mean over all of them, in standard deviations, ``[study]``."""
    sd = values.std()
    return np.asarray(np.abs(values - values.mean()) / (sd if sd > 0 else 1.0), np.float64)


def _shapiro_francia(values: FloatArray) -> FloatArray:
    """W' of every row: squared correlation of the ordered values with normal scores (1972, JASA 67:215)."""
    n = values.shape[1]
    ordered = np.sort(values, axis=1)
    score = torch.special.ndtri((torch.arange(1, n + 1, dtype=torch.float64) - 0.375) / (n + 0.25)).numpy()
    centred = ordered - ordered.mean(axis=1, keepdims=True)
    size = np.square(centred).sum(axis=1) * np.square(score).sum()
    return np.asarray(np.square(centred @ score) / np.where(size > 0, size, 1.0), np.float64)


def judge(checks: Sequence[Check]) -> pd.DataFrame:
    """Judge all checks together: CHECK, DVID, STATISTIC, LIMIT, P, P_ADJUSTED, PASSED, MEANING.

    P is the share of all studies, the data among them, with a statistic at least as large. P_ADJUSTED is the share of
    studies whose smallest P over all checks is at most as large as this P (single-step minP; Westfall and Young 1993),
    so that a right model fails any check with probability `LEVEL`, however the checks depend on each other. A check has
    passed where P_ADJUSTED ≥ `LEVEL`. LIMIT is the smallest statistic of a study that would have failed.
    """
    columns = ["CHECK", "DVID", "STATISTIC", "LIMIT", "P", "P_ADJUSTED", "PASSED", "MEANING"]
    if not checks:
        return pd.DataFrame(columns=columns)
    statistics = np.stack([check.statistic for check in checks], axis=1)
    p = _upper_shares(statistics)
    smallest = np.sort(p.min(axis=1))
    adjusted = np.searchsorted(smallest, p[0], side="right") / len(smallest)
    rows = []
    for k, check in enumerate(checks):
        fails = np.searchsorted(smallest, p[:, k], side="right") / len(smallest) < LEVEL
        limit = statistics[fails, k].min() if fails.any() else np.inf
        said = (check.name, check.endpoint, check.statistic[0], limit, p[0, k], adjusted[k], adjusted[k] >= LEVEL)
        rows.append((*said, check.meaning))
    return pd.DataFrame(rows, columns=columns)


def enough_studies(checks: int) -> int:
    """Number of simulated studies with which one of so many checks can fail, however they depend on each other: each
    is largest in one study."""
    return math.ceil(checks / LEVEL)


def _upper_shares(values: FloatArray) -> FloatArray:
    """Share of the rows with a value at least as large, for every entry of ``[study, check]``."""
    ordered = np.sort(values, axis=0)
    pairs = [np.searchsorted(one, own, side="left") for one, own in zip(ordered.T, values.T, strict=True)]
    return 1 - np.stack(pairs, axis=1) / len(values)
