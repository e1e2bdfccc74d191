"""States of a system with doses by SciPy, which starts anew at every event and at every wanted time."""

from itertools import pairwise

import numpy as np
from scipy.integrate import solve_ivp


def scipy_states(slope, y0, doses, times, lag=None, fraction=None, method="DOP853", rtol=3e-14, atol=1e-14):
    """``[time, state]``.

    Args:
        slope: dy/dt from t and y.
        y0: states at time 0.
        doses: as `neuralpk.cohort.Dose`: boluses, infusions of a duration, repeated or not.
        times: above 0.
        lag: of each compartment that has one, by its number from 1.
        fraction: that arrives in each compartment where not all does, by its number from 1.
        method: of `scipy.integrate.solve_ivp`, with its tolerances.
    """
    jumps, inputs = [], []
    for dose in doses:
        for k in range(dose.additional + 1):
            begin = dose.time + k * dose.interval + (lag or {}).get(dose.compartment, 0.0)
            amount = dose.amount * (fraction or {}).get(dose.compartment, 1.0)
            if dose.duration:
                inputs.append((begin, begin + dose.duration, dose.compartment - 1, amount / dose.duration))
            else:
                jumps.append((begin, dose.compartment - 1, amount))
    stops = sorted({0.0, *times, *(jump[0] for jump in jumps), *(end for one in inputs for end in one[:2])})
    y = np.array(y0, float)
    found = {}
    for begin, end in pairwise([*stops, None]):
        for time, state, amount in jumps:
            y[state] += amount * (time == begin)
        found[begin] = y.copy()
        if end is not None:
            rate = np.zeros_like(y)
            for first, last, state, amount in inputs:
                rate[state] += amount * (first <= begin and end <= last)
            solution = solve_ivp(
                lambda t, y, rate=rate: rate + slope(t, y), (begin, end), y, method, rtol=rtol, atol=atol
            )
            assert solution.success, solution.message
            y = solution.y[:, -1]
    return np.stack([found[time] for time in times])
