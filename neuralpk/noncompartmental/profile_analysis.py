"""Non-compartmental analysis of one concentration profile, as arrays.

Names are those of CDISC (`neuralpk.noncompartmental.cdisc_names`). Formulas: Gabrielsson and Weiner 2016,
Pharmacokinetic and Pharmacodynamic Data Analysis, 5th ed., ch. 2.8; the results agree with those of the R package
NonCompart (Bae 2018).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from neuralpk.cohort import FloatArray

Route = Literal["extravascular", "bolus", "infusion"]
AUCRule = Literal["linear", "linear-up/log-down"]

_TOLERANCE = 1e-4
"""Adjusted R² that differ by less count as equal, and the longer stretch wins (Phoenix WinNonlin, NonCompart)."""
_LEAST_POINTS = 3


class _Slope(NamedTuple):
    """Terminal log-linear regression; NaN and 0 points where there is none."""

    rate: float
    level: float  # logarithm of the regression line at time 0
    points: int
    first: float
    last: float
    adjusted_r2: float


_NO_SLOPE = _Slope(np.nan, np.nan, 0, np.nan, np.nan, np.nan)


def analyse_single_dose(
    times: FloatArray,
    values: FloatArray,
    dose: float,
    *,
    route: Route = "extravascular",
    auc: AUCRule = "linear-up/log-down",
    infusion_duration: float = 0.0,
    terminal: Sequence[float] | None = None,
) -> dict[str, float]:
    """Analyse one profile after one dose at time 0, the body being empty before.

    A profile without a sample at time 0 starts at 0 there (extravascular, infusion) or at C0, back-extrapolated
    log-linearly through the first two samples where they fall, the first sample otherwise (bolus). A 0 measured at
    time 0 of a bolus was taken before it and is left out. Values of 0 stand for "below the limit of quantification".
    LAMZ: log-linear regression through the last 3 or more positive samples with the best adjusted R², samples after
    CMAX and after the end of an infusion only, CMAX itself included after a bolus; or through given samples.

    Args:
        times: time since the dose, increasing, time unit, ``[observation]``.
        values: measured values, value unit, ``[observation]``.
        dose: amount unit.
        route: how it was given.
        auc: trapezoidal rule; "linear-up/log-down" is logarithmic between falling positive values.
        infusion_duration: time unit; positive for an infusion and 0 otherwise.
        terminal: times of the samples that determine LAMZ, three or more; None for the best adjusted R².

    Returns:
        Parameter by its code: CMAX, TMAX, CLST, TLST, AUCLST, AUCIFO, AUCIFP, AUCPEO, AUMCLST, AUMCIFO, LAMZ, LAMZHL,
        LAMZNPT, LAMZLL, LAMZUL, R2ADJ; by route MRTEVLST, MRTEVIFO, CLFO and VZFO, or C0 and AUCPBEO, MRTIBIFO or
        MRTICIFO, CLO, VZO and VSSO. NaN: not determined by the data; LAMZNPT is 0 then.

    Raises:
        ValueError: an unknown route or rule; a dose that is not positive; times that do not increase or are negative;
            values that are negative or not finite; no positive value; a duration that does not fit the route;
            terminal times that are no samples.
    """
    times, values = _checked(times, values, dose, route, auc, infusion_duration)
    times, values = _after_bolus(times, values, route)
    peak = int(np.argmax(values))
    slope = _slope(times, values, route, infusion_duration, terminal)
    c0 = _initial_value(times, values) if route == "bolus" else 0.0
    area_times, area_values = times, values
    if times[0] > 0:
        area_times, area_values = np.append(0.0, times), np.append(c0, values)
    last = int(np.flatnonzero(area_values > 0)[-1]) + 1
    auclst, aumclst = areas(area_times[:last], area_values[:last], auc)
    clst, tlst = float(area_values[last - 1]), float(area_times[last - 1])
    aucifo = auclst + clst / slope.rate
    aumcifo = aumclst + clst * tlst / slope.rate + clst / slope.rate**2
    clearance, volume, residence = dose / aucifo, dose / (aucifo * slope.rate), aumcifo / aucifo
    found = {
        "CMAX": float(values[peak]),
        "TMAX": float(times[peak]),
        "CLST": clst,
        "TLST": tlst,
        "AUCLST": auclst,
        "AUCIFO": aucifo,
        "AUCIFP": auclst + float(np.exp(slope.level - slope.rate * tlst)) / slope.rate,
        "AUCPEO": 100 * (1 - auclst / aucifo),
        "AUMCLST": aumclst,
        "AUMCIFO": aumcifo,
        **_terminal(slope),
    }
    if route == "extravascular":
        return found | {"MRTEVLST": aumclst / auclst, "MRTEVIFO": residence, "CLFO": clearance, "VZFO": volume}
    if route == "bolus":
        early, _ = areas(area_times[:2], area_values[:2], auc) if times[0] > 0 else (0.0, 0.0)
        found |= {"C0": c0, "AUCPBEO": 100 * early / aucifo, "MRTIBIFO": residence}
    else:
        residence -= infusion_duration / 2
        found["MRTICIFO"] = residence
    return found | {"CLO": clearance, "VZO": volume, "VSSO": residence * clearance}


def analyse_dosing_interval(
    times: FloatArray,
    values: FloatArray,
    dose: float,
    tau: float,
    *,
    route: Route = "extravascular",
    auc: AUCRule = "linear-up/log-down",
    infusion_duration: float = 0.0,
    terminal: Sequence[float] | None = None,
    steady_state: bool = False,
    empty_before: bool = False,
) -> dict[str, float]:
    """Analyse one dosing interval [0, tau] after a dose at time 0.

    The value at tau is the sample there, else between two samples that of the trapezoidal rule, else that of LAMZ from
    the last positive sample. The value at 0 is the sample there, else C0 (bolus), else 0 (body empty before), else the
    value at tau (steady state). Samples after tau count for LAMZ and the value at tau only.

    Args:
        times: time since the dose, increasing, time unit, ``[observation]``; they may go on after tau.
        values: measured values, value unit, ``[observation]``.
        dose: amount unit.
        tau: length of the interval, time unit.
        route: how it was given.
        auc: trapezoidal rule.
        infusion_duration: time unit; positive for an infusion and 0 otherwise.
        terminal: times of the samples that determine LAMZ; None for the best adjusted R².
        steady_state: whether the interval repeats the one before; it has a clearance then, dose / AUCTAU.
        empty_before: whether the dose is the first.

    Returns:
        Parameter by its code: TAU, CMAX, TMAX, CMIN, TMIN, CTROUGH (the value at tau), AUCTAU, CAVG, FLUCP, SWING,
        LAMZ, LAMZHL, LAMZNPT, LAMZLL, LAMZUL, R2ADJ, AILAMZ; C0 after a bolus; at steady state CLFTAU or CLTAU. NaN:
        not determined by the data.

    Raises:
        ValueError: as `analyse_single_dose`; a tau that is not positive.
    """
    times, values = _checked(times, values, dose, route, auc, infusion_duration)
    if not (np.isfinite(tau) and tau > 0):
        raise ValueError(f"the dosing interval tau must be positive and finite, got {tau}")
    times, values = _after_bolus(times, values, route)
    slope = _slope(times, values, route, infusion_duration, terminal)
    end = _value_at(tau, times, values, slope.rate, auc)
    c0 = _initial_value(times, values) if route == "bolus" else np.nan
    start = c0 if route == "bolus" else 0.0 if empty_before else end if steady_state else np.nan
    inside = times < tau
    t, y = np.append(times[inside], tau), np.append(values[inside], end)
    if t[0] > 0:
        t, y = np.append(0.0, t), np.append(start, y)
    area, _ = areas(t, y, auc)
    # a back-extrapolated C0 is not an observation
    seen = (t > 0) | (times[0] == 0) | (route != "bolus")
    highest = int(np.nanargmax(np.where(seen, y, np.nan)))
    lowest = int(np.nanargmin(np.where(seen, y, np.nan)))
    cmax, cmin, average = float(y[highest]), float(y[lowest]), area / tau
    found = {
        "TAU": tau,
        "CMAX": cmax,
        "TMAX": float(t[highest]),
        "CMIN": cmin,
        "TMIN": float(t[lowest]),
        "CTROUGH": end,
        "AUCTAU": area,
        "CAVG": average,
        "FLUCP": 100 * (cmax - cmin) / average,
        "SWING": (cmax - cmin) / cmin if cmin > 0 else np.nan,
        **_terminal(slope),
        "AILAMZ": float(1 / -np.expm1(-slope.rate * tau)),
    }
    if route == "bolus":
        found["C0"] = c0
    if steady_state:
        found["CLFTAU" if route == "extravascular" else "CLTAU"] = dose / area
    return found


def areas(times: FloatArray, values: FloatArray, rule: AUCRule) -> tuple[float, float]:
    """Area under the values (AUC) and under time · values (AUMC) by a trapezoidal rule."""
    width, left, right = np.diff(times), values[:-1], values[1:]
    area = width * (left + right) / 2
    moment = width * (times[:-1] * left + times[1:] * right) / 2
    if rule == "linear-up/log-down":
        falling = (right < left) & (right > 0)
        a, b, w = left[falling], right[falling], width[falling]
        rate = np.log(a / b) / w
        area[falling] = (a - b) / rate
        moment[falling] = (times[:-1][falling] * a - times[1:][falling] * b) / rate + (a - b) / rate**2
    return float(area.sum()), float(moment.sum())


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


def _after_bolus(times: FloatArray, values: FloatArray, route: Route) -> tuple[FloatArray, FloatArray]:
    """Without a 0 at time 0 of a bolus, which was taken before it."""
    return (times[1:], values[1:]) if route == "bolus" and times[0] == 0 and values[0] == 0 else (times, values)


def _initial_value(times: FloatArray, values: FloatArray) -> float:
    if times[0] > 0 and len(values) > 1 and values[0] > values[1] > 0:
        return float(values[0] * (values[0] / values[1]) ** (times[0] / (times[1] - times[0])))
    return float(values[0])


def _value_at(time: float, times: FloatArray, values: FloatArray, rate: float, rule: AUCRule) -> float:
    """Value at a time: measured, between two samples by the trapezoidal rule, or after the last positive one by the
    terminal rate."""
    last = int(np.flatnonzero(values > 0)[-1])
    if time > times[last]:
        return float(values[last] * np.exp(-rate * (time - times[last])))
    right = int(np.searchsorted(times, time))
    if times[right] == time:
        return float(values[right])
    if right == 0:
        return float("nan")
    a, b = values[right - 1], values[right]
    share = (time - times[right - 1]) / (times[right] - times[right - 1])
    if rule == "linear-up/log-down" and 0 < b < a:
        return float(a * (b / a) ** share)
    return float(a + share * (b - a))


def _terminal(slope: _Slope) -> dict[str, float]:
    return {
        "LAMZ": slope.rate,
        "LAMZHL": float(np.log(2) / slope.rate),
        "LAMZNPT": slope.points,
        "LAMZLL": slope.first,
        "LAMZUL": slope.last,
        "R2ADJ": slope.adjusted_r2,
    }


def _slope(
    times: FloatArray, values: FloatArray, route: Route, infusion_duration: float, terminal: Sequence[float] | None
) -> _Slope:
    """The terminal regression through given samples, or through the stretch to the last positive one with the best
    adjusted R²."""
    if terminal is not None:
        at = [np.flatnonzero(np.isclose(times, time, rtol=1e-9, atol=1e-12) & (values > 0)) for time in terminal]
        missing = [f"{time:g}" for time, found in zip(terminal, at, strict=True) if not len(found)]
        if missing or len(terminal) < _LEAST_POINTS:
            said = f"no positive sample at {', '.join(missing)}" if missing else f"only {len(terminal)} of them"
            raise ValueError(f"LAMZ needs the times of {_LEAST_POINTS} or more positive samples; {said}")
        rows = np.unique(np.concatenate(at))
        return _regression(times[rows], np.log(values[rows])) or _NO_SLOPE
    peak = int(np.argmax(values))
    first = peak if route == "bolus" else peak + 1
    usable = (np.arange(len(values)) >= first) & (values > 0) & (times >= infusion_duration)
    t, logs = times[usable], np.log(values[usable])
    tried = (_regression(t[-count:], logs[-count:]) for count in range(_LEAST_POINTS, len(t) + 1))
    candidates = [one for one in tried if one is not None]
    if not candidates:
        return _NO_SLOPE
    best = max(one.adjusted_r2 for one in candidates)
    return [one for one in candidates if best - one.adjusted_r2 < _TOLERANCE][-1]


def _regression(times: FloatArray, logs: FloatArray) -> _Slope | None:
    """Of falling logarithms of values on time; None where they do not fall."""
    count = len(times)
    x, y = times - times.mean(), logs - logs.mean()
    slope = float((x @ y) / (x @ x))
    if slope >= 0:
        return None
    r2 = slope * float(x @ y) / float(y @ y)
    adjusted = 1 - (1 - r2) * (count - 1) / (count - 2)
    return _Slope(-slope, float(logs.mean() - slope * times.mean()), count, float(times[0]), float(times[-1]), adjusted)
