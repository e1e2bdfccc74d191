"""Elementary functions of eight numbers at once, as instructions of LLVM without a branch.

Each is right to a few units in the last place (`tests/test_compiled_fields.py`). The library of C would compute
one number after the other.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from neuralpk.solve.compiled.steps.lanes import LANES

NUMBER, INTEGER = ir.DoubleType(), ir.IntType(64)
VECTOR, INTEGERS = ir.VectorType(NUMBER, LANES), ir.VectorType(INTEGER, LANES)
FAST = ("contract",)  # a product and a sum may be rounded once

# ln 2 as a sum of two numbers; the first has zeros at its end, so that its product with a small whole number is exact
_LN2_HIGH, _LN2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10
_EXP_LARGEST, _EXP_SMALLEST = 709.782712893384, -708.0
_EXP_TERMS, _LOG_TERMS = 14, 12


def constant(number: float) -> ir.Constant:
    """A number in every lane."""
    return ir.Constant(VECTOR, [float(number)] * LANES)


def whole(number: int) -> ir.Constant:
    """A whole number in every lane."""
    return ir.Constant(INTEGERS, [number] * LANES)


def _polynomial(builder: ir.IRBuilder, x: Any, coefficients: list[float]) -> Any:
    """Σ_k coefficients_k·x^k."""
    total = constant(coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        total = builder.fadd(builder.fmul(total, x, flags=FAST), constant(coefficient), flags=FAST)
    return total


def library(builder: ir.IRBuilder, name: str, x: Any) -> Any:
    """A function of one argument that LLVM has: sqrt, fabs, rint, sin, cos."""
    full = f"llvm.{name}.v{LANES}f64"
    function = builder.module.globals.get(full) or ir.Function(builder.module, ir.FunctionType(VECTOR, [VECTOR]), full)
    return builder.call(function, [x])


def _shared(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of vectors that a module has once, however often it is called: the code stays small."""

    @functools.wraps(function)
    def call(builder: ir.IRBuilder, *arguments: Any) -> Any:
        name = f"{function.__name__}.of.lanes"  # that of the library of C may be in the same module
        made = builder.module.globals.get(name)
        if made is None:
            made = ir.Function(builder.module, ir.FunctionType(VECTOR, [VECTOR] * len(arguments)), name)
            made.linkage = "internal"
            made.attributes.add("noinline")
            inside = ir.IRBuilder(made.append_basic_block("entry"))
            inside.ret(function(inside, *made.args))
            # Numba gives the flags of a caller, such as that sums may be reordered, to all instructions without flags
            for instruction in (one for block in made.blocks for one in block.instructions):
                if instruction.opname in ("fadd", "fsub", "fmul", "fdiv") and not instruction.flags:
                    instruction.flags = [*FAST]
        return builder.call(made, arguments)

    return call


def _parts_of_exp(builder: ir.IRBuilder, x: Any) -> tuple[Any, Any]:
    """e^r − 1 and 2^k with x = k·ln 2 + r, |r| at most half of ln 2."""
    k = library(builder, "rint", builder.fmul(x, constant(1.0 / math.log(2.0))))
    r = builder.fsub(x, builder.fmul(k, constant(_LN2_HIGH)))
    r = builder.fsub(r, builder.fmul(k, constant(_LN2_LOW)))
    minus_one = builder.fmul(r, _polynomial(builder, r, [1.0 / math.factorial(n) for n in range(1, _EXP_TERMS)]))
    bits = builder.shl(builder.add(builder.fptosi(k, INTEGERS), whole(1023)), whole(52))
    return minus_one, builder.bitcast(bits, VECTOR)


def _within(builder: ir.IRBuilder, x: Any, low: float, high: float) -> Any:
    """x cut off at two numbers; NaN stays NaN."""
    x = builder.select(builder.fcmp_ordered("<", x, constant(low)), constant(low), x)
    return builder.select(builder.fcmp_ordered(">", x, constant(high)), constant(high), x)


@_shared
def exp(builder: ir.IRBuilder, x: Any) -> Any:
    """e^x."""
    minus_one, power = _parts_of_exp(builder, _within(builder, x, _EXP_SMALLEST, 709.0))
    result = builder.fadd(builder.fmul(power, minus_one, flags=FAST), power, flags=FAST)
    result = builder.select(builder.fcmp_ordered("<", x, constant(_EXP_SMALLEST)), constant(0.0), result)
    # between 709 and the largest number the power of two would have no number of its own
    rest = builder.fsub(_within(builder, x, 709.0, _EXP_LARGEST), constant(709.0))
    beyond, two = _parts_of_exp(builder, rest)
    factor = builder.fadd(builder.fmul(two, beyond), two)
    result = builder.select(builder.fcmp_ordered(">", x, constant(709.0)), builder.fmul(result, factor), result)
    return builder.select(builder.fcmp_ordered(">", x, constant(_EXP_LARGEST)), constant(math.inf), result)


@_shared
def expm1(builder: ir.IRBuilder, x: Any) -> Any:
    """e^x − 1, also for small x."""
    minus_one, power = _parts_of_exp(builder, _within(builder, x, -50.0, 700.0))
    result = builder.fadd(builder.fmul(power, minus_one, flags=FAST), builder.fsub(power, constant(1.0)), flags=FAST)
    return builder.select(builder.fcmp_ordered(">", x, constant(700.0)), exp(builder, x), result)


@_shared
def log(builder: ir.IRBuilder, x: Any) -> Any:
    """The natural logarithm; −inf at 0, NaN below."""
    small = builder.fcmp_ordered("<", x, constant(2.0**-1022))
    bits = builder.bitcast(builder.select(small, builder.fmul(x, constant(2.0**54)), x), INTEGERS)
    # the power of two that leaves a factor between √½ and √2
    half = whole(0x3FE6A09E667F3BCD)
    k = builder.ashr(builder.sub(bits, half), whole(52))
    factor = builder.bitcast(builder.sub(bits, builder.shl(k, whole(52))), VECTOR)
    power = builder.sitofp(k, VECTOR)
    power = builder.select(small, builder.fsub(power, constant(54.0)), power)
    s = builder.fdiv(builder.fsub(factor, constant(1.0)), builder.fadd(factor, constant(1.0)))
    square = builder.fmul(s, s)
    series = _polynomial(builder, square, [2.0 / (2 * n + 1) for n in range(1, _LOG_TERMS)])
    low = builder.fadd(builder.fmul(builder.fmul(s, square), series), builder.fmul(power, constant(_LN2_LOW)))
    result = builder.fadd(builder.fadd(builder.fmul(constant(2.0), s), low), builder.fmul(power, constant(_LN2_HIGH)))
    result = builder.select(builder.fcmp_ordered("==", x, constant(0.0)), constant(-math.inf), result)
    result = builder.select(builder.fcmp_ordered("==", x, constant(math.inf)), x, result)
    return builder.select(builder.fcmp_ordered(">=", x, constant(0.0)), result, constant(math.nan))


@_shared
def log1p(builder: ir.IRBuilder, x: Any) -> Any:
    """log(1 + x), also for small x."""
    sum_ = builder.fadd(constant(1.0), x)
    lost = builder.fsub(x, builder.fsub(sum_, constant(1.0)))
    result = builder.fadd(log(builder, sum_), builder.fdiv(lost, sum_))
    finite = builder.fcmp_ordered("<", sum_, constant(math.inf))
    usual = builder.and_(finite, builder.fcmp_ordered(">", sum_, constant(0.0)))
    return builder.select(usual, result, log(builder, sum_))


@_shared
def tanh(builder: ir.IRBuilder, x: Any) -> Any:
    """The hyperbolic tangent."""
    grown = expm1(builder, builder.fmul(constant(2.0), _within(builder, x, -20.0, 20.0)))
    return builder.fdiv(grown, builder.fadd(grown, constant(2.0)))


@_shared
def power(builder: ir.IRBuilder, x: Any, n: Any) -> Any:
    """x^n = exp(n·log x) for x ≥ 0; NaN below, but for a whole constant n, which is no power of this kind."""
    result = exp(builder, builder.fmul(n, log(builder, x)))
    return builder.select(builder.fcmp_ordered("==", n, constant(0.0)), constant(1.0), result)


def _in_place(function: Callable[..., Any]) -> Any:
    """A function of vectors for kernels: ``f(array, at)`` replaces the eight numbers of an array from `at` on."""

    @intrinsic
    def replace(typing_context, array, at):
        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
            place = builder.bitcast(builder.gep(data, [arguments[1]]), VECTOR.as_pointer())
            builder.store(function(builder, builder.load(place, align=8)), place, align=8)
            return context.get_dummy_value()

        return types.void(array, types.intp), emit

    return replace


exp_in_place, log_in_place, tanh_in_place = _in_place(exp), _in_place(log), _in_place(tanh)
