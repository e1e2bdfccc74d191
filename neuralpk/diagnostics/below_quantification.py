"""Values below the limit of quantification in checks by simulation: their limits, values imputed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from neuralpk.cohort import Cohort, FloatArray, Subject

BoolArray = NDArray[np.bool_]


def quantification_limits(cohort: Cohort) -> FloatArray:
    """Limit of quantification of every measured value, ``[value]``; minus infinity where the data state none.

    Of a censored value it is the value that stands for it. Tables state it of no other: of these it is the limit of the
    nearest censored value of the same subject and endpoint, of a subject without one the most frequent limit of the
    endpoint; and never more than the value itself.
    """
    of_study = {
        endpoint: _most_frequent([subject.values[_below(subject, endpoint)] for subject in cohort])
        for endpoint in {int(one) for subject in cohort for one in subject.endpoints}
    }
    return np.concatenate([_of_subject(subject, of_study)[subject.observed] for subject in cohort])


def _below(subject: Subject, endpoint: int) -> BoolArray:
    return np.asarray(subject.observed & (subject.censored > 0) & (subject.endpoints == endpoint))


def _most_frequent(values: list[FloatArray]) -> float:
    every, counts = np.unique(np.concatenate(values), return_counts=True)
    return float(every[counts.argmax()]) if len(every) else -np.inf


def _of_subject(subject: Subject, of_study: dict[int, float]) -> FloatArray:
    limits = np.array([of_study[int(endpoint)] for endpoint in subject.endpoints], np.float64)
    for endpoint in np.unique(subject.endpoints):
        below = _below(subject, int(endpoint))
        if below.any():
            own = subject.endpoints == endpoint
            distance = np.abs(subject.times[own][:, None] - subject.times[below])
            limits[own] = subject.values[below][distance.argmin(axis=1)]
    censored = subject.censored > 0
    return np.where(censored, subject.values, np.fmin(limits, subject.values))


def imputed(
    observed: FloatArray, simulated: FloatArray, below: BoolArray, limits: FloatArray, uniform: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Values below the limit imputed from the model, in the data and in the simulations alike (Nguyen et al. 2012, J
    Pharmacokinet Pharmacodyn 39:499): each observed one becomes one of the simulated values below its limit, and the
    simulated ones below it change places at random, so that data and simulations know equally little below the limit.
    Where no simulated value is that low, the lowest is taken.

    Args:
        observed: value unit, ``[observation]``.
        simulated: likewise, ``[sample, observation]``.
        below: which are censored, ``[observation]``.
        limits: of quantification; minus infinity for none, ``[observation]``.
        uniform: random numbers in [0, 1), ``[1 + sample, observation]``.

    Returns:
        The data and the simulations.
    """
    found, drawn = observed.copy(), simulated.copy()
    for k in np.flatnonzero(np.isfinite(limits)):
        low = np.flatnonzero(simulated[:, k] < limits[k])
        shuffled = low[uniform[1:, k][low].argsort()]
        drawn[low, k] = simulated[shuffled, k]
        if below[k]:
            found[k] = simulated[low[int(uniform[0, k] * len(low))], k] if len(low) else simulated[:, k].min()
    return found, drawn
