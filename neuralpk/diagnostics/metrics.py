"""Errors, coverage, scores and residuals of predictions.

Means over ragged data are the sum over the observed points divided by their count, so neither padding nor the split
into batches changes them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from neuralpk.cohort import FloatArray

BoolArray = NDArray[np.bool_]


def _same_shape(**arrays: FloatArray | BoolArray) -> None:
    shapes = {name: np.shape(array) for name, array in arrays.items()}
    if len(set(shapes.values())) > 1:
        listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"arrays must have one shape, got {listed}")


def _any_observed(mask: BoolArray) -> int:
    count = int(np.count_nonzero(mask))
    if count == 0:
        raise ValueError(f"no observed point in a mask of shape {np.shape(mask)}: a mean over nothing is undefined")
    return count


def line_rrmse(predicted: FloatArray, true: FloatArray) -> FloatArray:
    """Relative error of a whole line, ``sqrt(mean_t (ĉ − c)²) / sqrt(mean_t c²)``.

    Args:
        predicted: line ĉ on the common grid, value unit, ``[subject, grid]``.
        true: noise-free line c, likewise.

    Returns:
        Without unit, ``[subject]``.

    Raises:
        ValueError: shapes that differ; a true curve that is zero throughout.
    """
    _same_shape(predicted=predicted, true=true)
    size = np.sqrt(np.mean(np.square(true), axis=-1))
    if not np.all(size > 0):
        raise ValueError(f"subject at index {int(np.argmin(size > 0))}: the true curve is zero, leave the subject out")
    return np.asarray(np.sqrt(np.mean(np.square(predicted - true), axis=-1)) / size, np.float64)


def auc_relative_error(times: FloatArray, predicted: FloatArray, true: FloatArray) -> FloatArray:
    """Relative error of the area under the line, ``(AUC(ĉ) − AUC(c)) / AUC(c)``, by the trapezoidal rule.

    Args:
        times: time unit, not decreasing, ``[grid]`` or ``[subject, grid]``.
        predicted: line ĉ, value unit, ``[subject, grid]``.
        true: noise-free line c, likewise.

    Returns:
        Without unit, signed, ``[subject]``.

    Raises:
        ValueError: shapes that differ; a true area that is not positive.
    """
    _same_shape(predicted=predicted, true=true)
    area = np.trapezoid(true, times, axis=-1)
    if not np.all(area > 0):
        k = int(np.argmin(area > 0))
        raise ValueError(f"subject at index {k}: the true AUC must be positive, got {np.ravel(area)[k]}")
    return np.asarray((np.trapezoid(predicted, times, axis=-1) - area) / area, np.float64)


def log_rmse(predicted: FloatArray, observed: FloatArray, mask: BoolArray) -> float:
    """Root mean square of ``ln ĉ − ln y`` over the observed points with a positive prediction.

    A prediction of zero or below has no logarithm and is left out of sum and count, such as the concentration at the
    time of an oral dose; a caller who wants it judged looks at an error on the natural scale beside this one.

    Args:
        predicted: ĉ, value unit.
        observed: y, likewise.
        mask: which entries were observed.

    Returns:
        Error in units of ln; about the coefficient of variation where small. NaN when no prediction is positive.

    Raises:
        ValueError: shapes that differ; nothing observed; an observed value that is not positive.
    """
    _same_shape(predicted=predicted, observed=observed, mask=mask)
    _any_observed(mask)
    wrong = mask & ~(observed > 0)
    if wrong.any():
        place = tuple(int(k) for k in np.argwhere(wrong)[0])
        raise ValueError(f"observed values must be positive for a logarithm, got {observed[place]} at {place}: mask it")
    used = mask & (predicted > 0)
    if not used.any():
        return float("nan")
    error = np.log(predicted[used]) - np.log(observed[used])
    return float(np.sqrt(np.sum(np.square(error)) / np.count_nonzero(used)))


def coverage(lower: FloatArray, upper: FloatArray, true: FloatArray, mask: BoolArray) -> float:
    """Fraction of the points within ``[lower, upper]``, bounds included; 0.9 is right for a 90 % interval.

    Args:
        lower: lower bound, value unit.
        upper: upper bound, likewise.
        true: what the interval should contain.
        mask: which entries count.

    Raises:
        ValueError: shapes that differ; nothing to count; a lower bound above its upper.
    """
    _same_shape(lower=lower, upper=upper, true=true, mask=mask)
    count = _any_observed(mask)
    crossed = mask & (lower > upper)
    if crossed.any():
        place = tuple(int(k) for k in np.argwhere(crossed)[0])
        raise ValueError(f"lower bound {lower[place]} above upper {upper[place]} at {place}: exchange the bounds")
    return float(np.count_nonzero(mask & (lower <= true) & (true <= upper)) / count)


def crps_ensemble(samples: FloatArray, observed: FloatArray, *, fair: bool = True) -> FloatArray:
    """Continuous ranked probability score of a forecast known by its samples, lower is better.

    Energy form ``E|X − y| − E|X − X'| / 2`` (Gneiting and Raftery 2007, J Am Stat Assoc 102:359, eq. 21). The second
    mean runs over all M² pairs of samples (the score of the ensemble as it stands) or, when `fair`, over the
    M(M − 1) pairs of different samples, which estimates the score of the distribution without bias (Ferro 2014,
    Q J R Meteorol Soc 140:1917).

    Args:
        samples: draws of the forecast, value unit, ``[sample, ...]``.
        observed: what happened, ``[...]``.
        fair: which of the two.

    Returns:
        Score in the value unit, ``[...]``.

    Raises:
        ValueError: shapes that do not fit; fewer than two samples when `fair`.
    """
    _same_shape(sample=samples[0], observed=observed)
    m = len(samples)
    if fair and m < 2:
        raise ValueError(f"the fair score needs at least 2 samples, got {m}")
    # with x sorted, sum_ij |x_i - x_j| = 2 sum_i (2 i - m - 1) x_i: m log m instead of m² terms
    weight = (2.0 * np.arange(1, m + 1) - m - 1).reshape(-1, *[1] * np.ndim(observed))
    spread = 2.0 * np.sum(weight * np.sort(samples, axis=0), axis=0) / (m * (m - 1) if fair else m * m)
    return np.asarray(np.mean(np.abs(samples - observed), axis=0) - spread / 2, np.float64)


@dataclass(frozen=True)
class Calibration:
    """How well simulations foretell what was measured.

    Args:
        observations: how many were foretold.
        cover90: share of them between the 5 % and the 95 % quantile of their simulations; 0.9 is right.
        crps: mean continuous ranked probability score of the simulations, value unit; lower is better.
        absolute: mean absolute error of their medians, the score of a forecast without spread.
        npde_mean: of the NPDE, 0 under the right model.
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
        errors: NPDE of both, ``[observation]``.

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


def shrinkage(eta_hat: FloatArray, omega: FloatArray) -> FloatArray:
    """Shrinkage of individual estimates to the population, ``1 − sd(eta_hat) / omega`` (Savic and Karlsson 2009,
    AAPS J 11:558); the standard deviation has n − 1 in its denominator.

    Args:
        eta_hat: individual random effects, ``[subject, parameter]``.
        omega: their standard deviations in the population, not variances, ``[parameter]``.

    Returns:
        0 where the data determine every subject, 1 where they say nothing, ``[parameter]``.

    Raises:
        ValueError: fewer than two subjects; an omega that is not positive.
    """
    if len(eta_hat) < 2:
        raise ValueError(f"shrinkage needs at least 2 subjects, got {len(eta_hat)}")
    if not np.all(np.asarray(omega) > 0):
        raise ValueError(f"omega must be positive, got {omega}: leave parameters without variability out")
    return np.asarray(1.0 - np.std(eta_hat, axis=0, ddof=1) / omega, np.float64)


def iwres(observed: FloatArray, ipred: FloatArray, sd: FloatArray) -> FloatArray:
    """Individual weighted residuals ``(y − IPRED) / sd``.

    Args:
        observed: y, value unit, NaN allowed where nothing was measured.
        ipred: individual prediction, likewise.
        sd: standard deviation of the residual error at the prediction, likewise.

    Raises:
        ValueError: shapes that differ; a standard deviation that is not positive where something was measured.
    """
    _same_shape(observed=observed, ipred=ipred, sd=sd)
    wrong = ~np.isnan(observed) & ~(sd > 0)
    if wrong.any():
        place = tuple(int(k) for k in np.argwhere(wrong)[0])
        raise ValueError(f"the residual sd must be positive, got {sd[place]} at {place}: leave the point out")
    divisor = np.where(sd > 0, sd, np.nan)
    return np.asarray((observed - ipred) / divisor, np.float64)


def interpolate(times: FloatArray, observed_times: FloatArray, observed_values: FloatArray) -> FloatArray:
    """The samples joined by straight lines and held constant outside them: what is had without a model.

    Args:
        times: where the line is wanted, ``[grid]``.
        observed_times: not decreasing, ``[observation]``.
        observed_values: value unit, ``[observation]``; replicates are averaged.

    Returns:
        ``[grid]``; 0 where there is no sample at all.
    """
    if len(observed_times) == 0:
        return np.zeros(len(times))
    at, place = np.unique(observed_times, return_inverse=True)
    mean = np.bincount(place, observed_values) / np.bincount(place)
    return np.interp(times, at, mean)
