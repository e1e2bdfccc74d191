"""The estimates of a method for each patient, and their errors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from neuralpk.cohort import Cohort, FloatArray
from tacrolimus_benchmark.simulation import WEIGHTS, areas, true_lines


@dataclass(frozen=True)
class Estimate:
    """The estimates of a method for each patient.

    Args:
        area: the AUC, ``[subject]``.
        ends: lower and upper end of the 90 % interval of the AUC, ``[2, subject]``, or None.
        lines: concentration curves at the nodes, ``[subject, node]``, or None.
    """

    area: FloatArray
    ends: FloatArray | None = None
    lines: FloatArray | None = None


def score(estimate: Estimate, people: Cohort) -> dict[str, float | None]:
    """Errors and calibration, in percent; None for what the method does not estimate."""
    true, area = true_lines(people), areas(true_lines(people), people)
    error = (estimate.area - area) / area
    covered = line = None
    if estimate.ends is not None:
        covered = 100 * float(np.mean((estimate.ends[0] <= area) & (area <= estimate.ends[1])))
    if estimate.lines is not None:
        line = 100 * float(np.mean(np.sqrt((estimate.lines - true) ** 2 @ WEIGHTS / (true**2 @ WEIGHTS))))
    rmspe, bias = 100 * float(np.sqrt(np.mean(error**2))), 100 * float(error.mean())
    return {"rmspe": rmspe, "bias": bias, "cover90": covered, "line_rrmse": line}
