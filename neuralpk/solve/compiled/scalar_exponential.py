"""The exponential function in arithmetic alone: a loop over it uses vector instructions, over a library call it does
not."""

import math
from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

_intrinsic: Any = intrinsic  # adds the first argument of a call by itself, which type checkers do not know
_PER_LOG2 = 1.4426950408889634
_LOG2_HIGH, _LOG2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10  # their sum is log 2 to 84 bits (fdlibm)
_INTEGER = 6755399441055744.0  # 1.5·2⁵²: the last bits of x + this are the integer nearest to x
_TAYLOR = tuple(1 / math.factorial(k) for k in range(14))  # error below 2⁻⁵⁷ for |x| ≤ log(2)/2


@_intrinsic
def _as_float(context, bits):
    return types.float64(types.int64), lambda _, builder, __, values: builder.bitcast(values[0], ir.DoubleType())


@_intrinsic
def _as_bits(context, number):
    return types.int64(types.float64), lambda _, builder, __, values: builder.bitcast(values[0], ir.IntType(64))


@njit(inline="always")
def exp(x):
    """exp(x) = 2ⁿ·exp(r), |r| ≤ log(2)/2, to one unit in the last place; 0 below −708 and infinite above 709."""
    shifted = min(max(x, -708.0), 709.0) * _PER_LOG2 + _INTEGER
    n = shifted - _INTEGER
    r = (x - n * _LOG2_HIGH) - n * _LOG2_LOW
    series = _TAYLOR[13]
    for k in range(12, -1, -1):
        series = series * r + _TAYLOR[k]
    # n + 1023 in the bits of the exponent is 2ⁿ
    value = series * _as_float((_as_bits(shifted) + 1023) << 52)
    return 0.0 if x < -708.0 else (math.inf if x > 709.0 else value)
