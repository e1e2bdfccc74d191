"""Checks of a model by what it simulates: visual predictive checks and normalised prediction distribution errors.

Simulations draw the random effects from their population distribution and add the residual error; simulations from
a subject's own posterior would look right under any model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuralpk.cohort import FloatArray
from neuralpk.diagnostics.below_quantification import ShareBelow
from neuralpk.diagnostics.metrics import coverage, crps_ensemble

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class VPC:
    """Quantiles of the data beside those of the simulations, bin by bin.

    Args:
        edges: of the bins, time unit, ``[bin + 1]``.
        centres: median observation time in each bin, ``[bin]``.
        counts: observations in each bin, ``[bin]``.
        quantiles: which ones, ``[quantile]``.
        observed: quantiles of the observed values, value unit, ``[quantile, bin]``.
        lower: 5 % over the simulations of each simulated quantile, ``[quantile, bin]``.
        median: 50 % likewise.
        upper: 95 % likewise.
        share: of the values below the limit of quantification; None where the data have none. Quantiles that lie
            below it are NaN then.
    """

    edges: FloatArray
    centres: FloatArray
    counts: IntArray
    quantiles: tuple[float, ...]
    observed: FloatArray
    lower: FloatArray
    median: FloatArray
    upper: FloatArray
    share: ShareBelow | None = None


@dataclass(frozen=True)
class Calibration:
    """How well simulations foretell what was measured.

    Args:
        observations: how many were foretold.
        cover90: share of them between the 5 % and the 95 % quantile of their simulations; 0.9 is right.
        crps: mean continuous ranked probability score of the simulations, value unit; lower is better.
        absolute: mean absolute error of their medians, the score of a forecast without spread.
        npde_mean: of the `npde`, 0 under the right model.
        npde_sd: likewise, 1 under the right model.
    """

    observations: int
    cover90: float
    crps: float
    absolute: float
    npde_mean: float
    npde_sd: float


def calibration(observed: FloatArray, simulated: FloatArray, errors: FloatArray) -> Calibration:
    """Score simulations of a study against its data.

    Args:
        observed: value unit, ``[observation]``.
        simulated: likewise, ``[sample, observation]``.
        errors: `npde` of both, ``[observation]``.

    Raises:
        ValueError: shapes that do not fit; no observation.
    """
    low, median, high = np.quantile(simulated, [0.05, 0.5, 0.95], axis=0)
    return Calibration(
        len(observed),
        coverage(low, high, observed, np.ones(observed.shape, bool)),
        float(crps_ensemble(simulated, observed).mean()),
        float(np.abs(median - observed).mean()),
        float(errors.mean()),
        float(errors.std()),
    )


def vpc_bins(times: FloatArray, count: int = 8) -> FloatArray:
    """Edges of at most `count` bins that hold about equally many observations, none empty.

    Edges lie halfway between neighbouring observation times, so observations of one nominal time stay together.

    Args:
        times: observation times of all subjects, time unit, ``[observation]``.
        count: at most so many bins.

    Returns:
        ``[bin + 1]``, increasing; the first and last are the first and last time.

    Raises:
        ValueError: no time, or a time that is not finite; fewer than one bin.
    """
    times = np.asarray(times, np.float64)
    if times.size == 0 or not np.isfinite(times).all():
        raise ValueError(f"bins need at least one time and only finite ones, got {times.size} times")
    if count < 1:
        raise ValueError(f"at least one bin, not {count}")
    distinct = np.unique(times)
    if len(distinct) == 1:
        # a single time has no width of its own
        return np.array([distinct[0] - 0.5, distinct[0] + 0.5])
    halfway = (distinct[:-1] + distinct[1:]) / 2
    if len(distinct) > count:
        below = np.searchsorted(np.sort(times), halfway)
        wanted = times.size * np.arange(1, count) / count
        halfway = np.unique(halfway[np.abs(below[:, None] - wanted).argmin(axis=0)])
    return np.concatenate([distinct[:1], halfway, distinct[-1:]])


def _bin_index(times: FloatArray, bins: FloatArray) -> IntArray:
    """Bin of each time; bins are closed on the left, the last on both sides."""
    if len(bins) < 2 or (np.diff(bins) <= 0).any():
        raise ValueError(f"bin edges must increase and be two or more, got {bins}")
    outside = ~((times >= bins[0]) & (times <= bins[-1]))
    if outside.any():
        raise ValueError(f"time {times[outside][0]} lies outside the bins {bins[0]} to {bins[-1]}: widen them")
    index = np.clip(np.searchsorted(bins, times, side="right") - 1, 0, len(bins) - 2)
    counts = np.bincount(index, minlength=len(bins) - 1)
    if not counts.all():
        k = int(np.argmin(counts))
        raise ValueError(f"bin {bins[k]} to {bins[k + 1]} holds no observation: merge it with a neighbour")
    return index


def _check_simulated(observed: FloatArray, simulated: FloatArray) -> None:
    if observed.ndim != 1 or simulated.ndim != 2 or simulated.shape[1] != len(observed):
        raise ValueError(
            f"observed must be [observation] and simulated [sample, observation], "
            f"got {observed.shape} and {simulated.shape}"
        )
    if not (np.isfinite(observed).all() and np.isfinite(simulated).all()):
        raise ValueError("observed and simulated values must be finite: leave records without a measurement out")


def vpc(
    times: FloatArray,
    observed: FloatArray,
    simulated: FloatArray,
    bins: FloatArray,
    quantiles: Sequence[float] = (0.05, 0.5, 0.95),
    below: BoolArray | None = None,
    limits: FloatArray | None = None,
) -> VPC:
    """Visual predictive check (Holford 2005, PAGE 14 abstr. 738): where the observed quantiles leave the 90 % bands of
    the simulated ones, the model does not describe the data.

    Args:
        times: time unit, ``[observation]``.
        observed: value unit, ``[observation]``.
        simulated: whole data sets under the model, ``[sample, observation]``; 500 or more for stable bands.
        bins: edges, time unit, ``[bin + 1]``.
        quantiles: which quantiles to compare.
        below: which observations are below their limit of quantification, ``[observation]``; None for none.
        limits: of quantification, value unit, minus infinity for none, ``[observation]``. Simulated values below
            them count as below, as observed ones do: they are lower than every other, and their share is compared.

    Raises:
        ValueError: shapes that do not fit; values that are not finite; an empty bin; a time outside the bins.
    """
    _check_simulated(observed, simulated)
    index, share = _bin_index(times, bins), None
    if below is not None and limits is not None and below.any():
        lower_than_limit = simulated < limits
        share = ShareBelow.of(below, lower_than_limit, index)
        observed = np.where(below, -np.inf, observed)
        simulated = np.where(lower_than_limit, -np.inf, simulated)
    seen, low, mid, high, centres = [], [], [], [], []
    for k in range(len(bins) - 1):
        inside = index == k
        seen.append(_quantiles(observed[inside], quantiles, 0))
        spread = _quantiles(_quantiles(simulated[:, inside], quantiles, 1), (0.05, 0.5, 0.95), 1)
        low.append(spread[0])
        mid.append(spread[1])
        high.append(spread[2])
        centres.append(np.median(times[inside]))
    return VPC(
        edges=np.asarray(bins, np.float64),
        centres=np.array(centres),
        counts=np.bincount(index),
        quantiles=tuple(quantiles),
        observed=_quantified(seen),
        lower=_quantified(low),
        median=_quantified(mid),
        upper=_quantified(high),
        share=share,
    )


def _quantiles(values: FloatArray, wanted: Sequence[float], axis: int) -> FloatArray:
    """Quantiles along an axis; with values below the limit (minus infinity) without interpolation."""
    method: Any = "linear" if np.isfinite(values).all() else "inverted_cdf"
    return np.asarray(np.quantile(values, wanted, axis=axis, method=method), np.float64)


def _quantified(rows: Sequence[FloatArray]) -> FloatArray:
    """``[quantile, bin]``, NaN for what lies below the limit."""
    values = np.array(rows, np.float64).T
    return np.where(np.isfinite(values), values, np.nan)


def prediction_corrected(
    times: FloatArray, observed: FloatArray, simulated: FloatArray, pred: FloatArray, bins: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Remove what doses and covariates explain: ``y · median(PRED of the bin) / PRED`` (Bergstrand et al. 2011,
    AAPS J 13:143, eq. 1 with lower bound 0), for a VPC across different doses or adaptive dosing.

    Args:
        times: time unit, ``[observation]``.
        observed: value unit, ``[observation]``.
        simulated: likewise, ``[sample, observation]``.
        pred: population prediction, likewise, ``[observation]``.
        bins: edges, time unit, ``[bin + 1]``.

    Returns:
        Corrected observations ``[observation]`` and simulations ``[sample, observation]``, for `vpc`.

    Raises:
        ValueError: as `vpc`; a population prediction that is not positive.
    """
    _check_simulated(observed, simulated)
    if pred.shape != observed.shape or not (pred > 0).all():
        k = int(np.argmin(pred > 0)) if pred.shape == observed.shape else 0
        raise ValueError(
            f"PRED must be positive and {observed.shape}, got shape {pred.shape} and {np.ravel(pred)[k : k + 1]} "
            f"at observation {k}: leave such records (before the dose) out of a prediction-corrected VPC"
        )
    factor = correction(times, pred, bins)
    return observed * factor, simulated * factor


def correction(times: FloatArray, pred: FloatArray, bins: FloatArray) -> FloatArray:
    """Factor of `prediction_corrected`, ``[observation]``, which limits of quantification take too."""
    index = _bin_index(times, bins)
    typical = np.array([np.median(pred[index == k]) for k in range(len(bins) - 1)])
    return np.asarray(typical[index] / pred, np.float64)


def npde(observed: FloatArray, simulated: FloatArray, subject: NDArray[Any]) -> FloatArray:
    """Normalised prediction distribution errors, independent N(0, 1) under the right model.

    A subject's observations and simulations are decorrelated by the Cholesky factor L of the simulated variance,
    ``y* = L⁻¹ (y − mean)``; the fraction of simulations below the observation, kept between 1/(2K) and 1 − 1/(2K),
    goes through the normal quantile (Brendel et al. 2006, Pharm Res 23:2036; Comets et al. 2008, Comput Methods
    Programs Biomed 90:154).

    Args:
        observed: value unit, ``[observation]``.
        simulated: likewise, ``[sample, observation]``. Take many more samples K than a subject has observations
            (1000 or more): the factor is estimated from them and fits them better than it fits the data.
        subject: whose each observation is, ``[observation]``.

    Returns:
        ``[observation]``, in the order given.

    Raises:
        ValueError: shapes that do not fit; values that are not finite; no more samples than a subject has
            observations; a simulated variance that is singular, such as that of a concentration that is always 0.
    """
    _check_simulated(observed, simulated)
    if np.shape(subject) != observed.shape:
        raise ValueError(f"subject must be {observed.shape} like observed, got {np.shape(subject)}")
    count = len(simulated)
    fraction = np.empty_like(observed)
    for who in np.unique(subject):
        mine = subject == who
        draws, mean = simulated[:, mine], simulated[:, mine].mean(axis=0)
        if count <= draws.shape[1]:
            raise ValueError(f"subject {who}: {count} samples for {draws.shape[1]} observations: simulate many more")
        white = _whiten(np.vstack([observed[mine], draws]) - mean, who)
        fraction[mine] = np.mean(white[1:] < white[0], axis=0)
    quantile = NormalDist().inv_cdf
    clipped = np.clip(fraction, 0.5 / count, 1 - 0.5 / count)
    return np.array([quantile(p) for p in clipped.tolist()], np.float64)


def _whiten(centred: FloatArray, who: object) -> FloatArray:
    """Decorrelate rows ``[1 + sample, observation]`` by the variance of all rows but the first."""
    scale = centred[1:].std(axis=0, ddof=1)
    if not (scale > 0).all():
        k = int(np.argmin(scale > 0))
        raise ValueError(f"subject {who}: simulations of its observation {k} are all equal: leave that record out")
    # unit variances first: concentrations over many decades would make the factorisation fail for no reason
    unit = centred / scale
    try:
        factor = np.linalg.cholesky(unit[1:].T @ unit[1:] / (len(unit) - 2))
    except np.linalg.LinAlgError as error:
        raise ValueError(
            f"subject {who}: the simulated variance is singular: simulate with residual error, or more samples"
        ) from error
    return np.asarray(np.linalg.solve(factor, unit.T).T, np.float64)
