"""Non-compartmental analysis of one concentration profile after one dose.

Names are those of CDISC (CMAX, AUCIFO, …). Formulas: Gabrielsson and Weiner 2016, Pharmacokinetic and Pharmacodynamic
Data Analysis, 5th ed., ch. 2.8; the results agree with those of the R package NonCompart (Bae 2018).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from neuralpk.cohort import FloatArray

Route = Literal["extravascular", "bolus", "infusion"]
AUCRule = Literal["linear", "linear-up/log-down"]

_TOLERANCE = 1e-4
"""Adjusted R² that differ by less count as equal, and the longer stretch wins (Phoenix WinNonlin, NonCompart)."""


@dataclass(frozen=True)
class NCA:
    """Result of `nca`. NaN: not determined by the data, or not defined for the route.

    Args:
        CMAX: highest observed value, value unit.
        TMAX: its time, the first of several, time unit.
        C0: value at time 0 after a bolus, observed or back-extrapolated, value unit.
        AUCLST: area to the last positive value, value · time.
        AUCIFO: area to infinity, extrapolated from the last positive value, value · time.
        AUCPEO: extrapolated part of AUCIFO, %.
        LAMZ: terminal rate constant, 1 / time.
        LAMZHL: terminal half-life, time.
        LAMZNPT: samples that determine LAMZ; 0 where it is not determined.
        CLFO: apparent clearance CL/F after an extravascular dose, amount / (value · time).
        VZFO: apparent terminal volume VZ/F after an extravascular dose, amount / value.
        CLO: clearance after an intravenous dose, amount / (value · time).
        VZO: terminal volume after an intravenous dose, amount / value.
    """

    CMAX: float
    TMAX: float
    C0: float
    AUCLST: float
    AUCIFO: float
    AUCPEO: float
    LAMZ: float
    LAMZHL: float
    LAMZNPT: int
    CLFO: float
    VZFO: float
    CLO: float
    VZO: float

    @property
    def extrapolated(self) -> bool:
        """Whether AUCIFO rests on extrapolation: more than 20 % of it, or it could not be determined."""
        return not self.AUCPEO <= 20.0


def nca(
    times: FloatArray,
    values: FloatArray,
    dose: float,
    *,
    route: Route = "extravascular",
    auc: AUCRule = "linear",
    infusion_duration: float = 0.0,
) -> NCA:
    """Analyse one profile after one dose at time 0, the body being empty before.

    A profile without a sample at time 0 starts at 0 there (extravascular, infusion) or at C0, back-extrapolated
    log-linearly through the first two samples where they fall, the first sample otherwise (bolus). A 0 measured at
    time 0 of a bolus was taken before it and is left out. Values of 0 stand for "below the limit of quantification".
    LAMZ: log-linear regression through the last 3 or more positive samples with the best adjusted R², samples after
    CMAX and after the end of an infusion only, CMAX itself included after a bolus.

    Args:
        times: time since the dose, increasing, time unit, ``[observation]``.
        values: measured values, value unit, ``[observation]``.
        dose: amount unit.
        route: how it was given.
        auc: trapezoidal rule; "linear-up/log-down" is logarithmic between falling positive values.
        infusion_duration: time unit; positive for an infusion and 0 otherwise.

    Raises:
        ValueError: an unknown route or rule; a dose that is not positive; times that do not increase or are negative;
            values that are negative or not finite; no positive value; a duration that does not fit the route.
    """
    times, values = _checked(times, values, dose, route, auc, infusion_duration)
    if route == "bolus" and times[0] == 0 and values[0] == 0:
        times, values = times[1:], values[1:]
    peak = int(np.argmax(values))
    first = peak if route == "bolus" else peak + 1
    usable = (np.arange(len(values)) >= first) & (values > 0) & (times >= infusion_duration)
    lamz, count = _terminal_slope(times[usable], np.log(values[usable]))

    c0 = _initial_value(times, values) if route == "bolus" else np.nan
    if times[0] > 0:
        start = c0 if route == "bolus" else 0.0
        area_times, area_values = np.append(0.0, times), np.append(start, values)
    else:
        area_times, area_values = times, values
    last = int(np.flatnonzero(area_values > 0)[-1]) + 1
    auclst = _area(area_times[:last], area_values[:last], auc)
    aucifo = auclst + area_values[last - 1] / lamz
    clearance, volume = dose / aucifo, dose / (aucifo * lamz)
    oral = route == "extravascular"
    return NCA(
        CMAX=float(values[peak]),
        TMAX=float(times[peak]),
        C0=float(c0),
        AUCLST=auclst,
        AUCIFO=float(aucifo),
        AUCPEO=float(100 * (1 - auclst / aucifo)),
        LAMZ=lamz,
        LAMZHL=float(np.log(2) / lamz),
        LAMZNPT=count,
        CLFO=float(clearance if oral else np.nan),
        VZFO=float(volume if oral else np.nan),
        CLO=float(np.nan if oral else clearance),
        VZO=float(np.nan if oral else volume),
    )


def _checked(
    times: FloatArray, values: FloatArray, dose: float, route: str, auc: str, infusion_duration: float
) -> tuple[FloatArray, FloatArray]:
    if route not in ("extravascular", "bolus", "infusion"):
        raise ValueError(f"route is 'extravascular', 'bolus' or 'infusion', not {route!r}")
    if auc not in ("linear", "linear-up/log-down"):
        raise ValueError(f"auc is 'linear' or 'linear-up/log-down', not {auc!r}")
    if not (np.isfinite(dose) and dose > 0):
        raise ValueError(f"the dose must be positive and finite, got {dose}")
    if not (infusion_duration > 0 if route == "infusion" else infusion_duration == 0):
        raise ValueError(f"an infusion, and nothing else, has a positive duration: {route} with {infusion_duration}")
    times, values = np.asarray(times, np.float64), np.asarray(values, np.float64)
    if times.ndim != 1 or times.shape != values.shape:
        raise ValueError(f"times and values must be [observation] of one length, got {times.shape} and {values.shape}")
    if not np.isfinite(times).all() or (np.diff(times) <= 0).any() or (times < 0).any():
        raise ValueError(f"times since the dose must increase from 0 or later, got {times}: sort, average replicates")
    if not np.isfinite(values).all() or (values < 0).any():
        raise ValueError(f"values must be finite and not negative, got {values}: leave missing ones out")
    if not (values > 0).any():
        raise ValueError("a profile needs at least one positive value")
    return times, values


def _initial_value(times: FloatArray, values: FloatArray) -> float:
    if times[0] > 0 and len(values) > 1 and values[0] > values[1] > 0:
        return float(values[0] * (values[0] / values[1]) ** (times[0] / (times[1] - times[0])))
    return float(values[0])


def _area(times: FloatArray, values: FloatArray, rule: AUCRule) -> float:
    width, left, right = np.diff(times), values[:-1], values[1:]
    pieces = width * (left + right) / 2
    if rule == "linear-up/log-down":
        falling = (right < left) & (right > 0)
        left, right = left[falling], right[falling]
        pieces[falling] = width[falling] * (left - right) / np.log(left / right)
    return float(pieces.sum())


def _terminal_slope(times: FloatArray, logs: FloatArray) -> tuple[float, int]:
    """Rate constant and number of points of the stretch to the last point with the best adjusted R²."""
    candidates = []
    for count in range(3, len(times) + 1):
        x, y = times[-count:] - times[-count:].mean(), logs[-count:] - logs[-count:].mean()
        slope = (x @ y) / (x @ x)
        if slope < 0:
            r2 = slope * (x @ y) / (y @ y)
            candidates.append((1 - (1 - r2) * (count - 1) / (count - 2), -float(slope), count))
    if not candidates:
        return float("nan"), 0
    best = max(adjusted for adjusted, _, _ in candidates)
    _, lamz, count = [fit for fit in candidates if best - fit[0] < _TOLERANCE][-1]
    return lamz, count
