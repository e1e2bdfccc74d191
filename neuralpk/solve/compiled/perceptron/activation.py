"""The activation between the layers of a network, with vector instructions, and its gradient."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from neuralpk.solve.compiled.elementary import tanh_in_place
from neuralpk.solve.compiled.matrix_product import apart, in_whole_vectors
from neuralpk.solve.compiled.steps.jit_options import summing
from neuralpk.solve.compiled.steps.lanes import LANES

TANH, SILU, SOFTPLUS = range(3)


def _tanh(x: Any) -> Any:
    """tanh(x).

    In single precision it is the rational approximation of Eigen, degree 13 over degree 6, which a loop computes with
    vector instructions and which is right to three units in the last place.
    """
    raise NotImplementedError


@overload(_tanh, inline="always")
def _tanh_of_type(x):
    if x != types.float32:
        return lambda x: math.tanh(x)
    edge = np.float32(7.9)
    o1, o2, o3 = np.float32(-2.76076847742355e-16), np.float32(2.00018790482477e-13), np.float32(-8.60467152213735e-11)
    o4 = np.float32(5.12229709037114e-08)
    o5, o6, o7 = np.float32(1.48572235717979e-05), np.float32(6.37261928875436e-04), np.float32(4.89352455891786e-03)
    u1, u2 = np.float32(1.19825839466702e-06), np.float32(1.18534705686654e-04)
    u3, u4 = np.float32(2.26843463243900e-03), np.float32(4.89352518554385e-03)

    def rational(x):
        v = min(max(x, -edge), edge)
        q = v * v
        above = ((((((o1 * q + o2) * q + o3) * q + o4) * q + o5) * q + o6) * q + o7) * v
        return above / (((u1 * q + u2) * q + u3) * q + u4)

    return rational


def _tanh_of_all(values: Any) -> Any:
    """tanh of every value, in place; their number is a multiple of eight."""
    raise NotImplementedError


@overload(_tanh_of_all, inline="always")
def _tanh_of_all_of_type(values):
    def single(values):
        for c in range(len(values)):
            values[c] = _tanh(values[c])

    def double(values):
        for c in range(0, len(values), LANES):
            tanh_in_place(values, c)

    return single if values.dtype == types.float32 else double


@summing
def activate(kind, values, slopes):
    """Apply the activation in place.

    Its derivative is written to `slopes`, if this has entries; not for tanh, whose derivative follows from its value.
    """
    apart()
    in_whole_vectors()
    half, keep = values.dtype.type(0.5), len(slopes) > 0
    one = values.dtype.type(1.0)
    if kind == TANH:
        _tanh_of_all(values)
    elif kind == SILU:
        for c in range(len(values)):
            x = values[c]
            share = half + half * _tanh(half * x)
            values[c] = x * share
            if keep:
                slopes[c] = share * (one + x * (one - share))
    else:
        for c in range(len(values)):
            x = values[c]
            values[c] = max(x, values.dtype.type(0.0)) + math.log1p(math.exp(-abs(x)))
            if keep:
                slopes[c] = half + half * _tanh(half * x)


@summing
def back_through(kind, back, values, slopes):
    """Turn the gradient with respect to activated values into that with respect to the values before, in place."""
    apart()
    in_whole_vectors()
    one = values.dtype.type(1.0)
    if kind == TANH:
        for c in range(len(back)):
            back[c] *= one - values[c] * values[c]
    else:
        for c in range(len(back)):
            back[c] *= slopes[c]
