"""Products of small matrices with the vector instructions of the processor.

A tile of some rows × 16 (or 32) columns of the result stays in registers while the inner index runs, so that every
number loaded is used in several multiplications. The compiler does not find this form by itself. Every number of the
result is the same sum in the same order on every processor.
"""

from __future__ import annotations

from typing import Any

from llvmlite import binding, ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

ROWS, COLUMNS = 4, 16


def _has_avx512() -> bool:
    try:
        return bool(binding.get_host_cpu_features().get("avx512f"))
    except RuntimeError:  # of a processor that LLVM does not know
        return False


_AVX512 = _has_avx512()
_BITS = 512 if _AVX512 else 256  # of a vector
# the rows and vectors of a tile fill the registers; so many sums at once hide the latency of each addition
_TALL = 8 if _AVX512 else 6
_WIDE = 2 * COLUMNS if _AVX512 else COLUMNS  # columns of a tile in single precision


@intrinsic(prefer_literal=True)
def tile(
    typing_context,
    rows,
    columns,
    out,
    at,
    row_stride,
    first,
    first_at,
    first_row,
    x,
    x_at,
    x_row,
    x_inner,
    w,
    w_at,
    w_inner,
    inner,
):
    """out[r, c] = first[r, c] + Σ_k x[r, k]·w[k, c], a number of rows and columns; positions and strides count
    elements."""
    place = types.intp
    ahead, behind = (rows, columns, out, place, place, first, place, place), (x, place, place, place, w)
    signature = types.void(*ahead, *behind, place, place, place)

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        out_type, first_type, x_type, w_type = (signature.args[k] for k in (2, 5, 8, 12))
        _, _, out_, at_, row_, first_, fat_, frow_, x_, xat_, xrow_, xinner_, w_, wat_, winner_, inner_ = arguments
        number = context.get_value_type(out_type.dtype)
        width = out_type.dtype.bitwidth
        lanes = _BITS // width
        vector, integer, starts = ir.VectorType(number, lanes), ir.IntType(64), range(0, columns.literal_value, lanes)
        name = f"llvm.fma.v{lanes}f{width}"
        fused = cgutils.get_or_insert_function(builder.module, ir.FunctionType(vector, [vector] * 3), name)
        pairs = ((out_type, out_), (first_type, first_), (x_type, x_), (w_type, w_))
        data = [context.make_array(kind)(context, builder, value).data for kind, value in pairs]
        out_data, first_data, x_data, w_data = data

        def count(k: int) -> Any:
            return ir.Constant(integer, k)

        def vector_at(base: Any, offset: Any) -> Any:
            return builder.bitcast(builder.gep(base, [offset]), vector.as_pointer())

        def load(base: Any, offset: Any) -> Any:
            value = builder.load(vector_at(base, offset))
            value.align = width // 8
            return value

        def spread(value: Any) -> Any:
            empty = ir.Constant(vector, ir.Undefined)
            first = builder.insert_element(empty, value, ir.Constant(ir.IntType(32), 0))
            return builder.shuffle_vector(first, empty, ir.Constant(ir.VectorType(ir.IntType(32), lanes), None))

        def offsets(at: Any, row: Any) -> list[Any]:
            places = [(r, c) for r in range(rows.literal_value) for c in starts]
            return [builder.add(builder.add(at, builder.mul(row, count(r))), count(c)) for r, c in places]

        sums = [load(first_data, offset) for offset in offsets(fat_, frow_)]
        before = builder.block
        loop, after = builder.append_basic_block("tile"), builder.append_basic_block("tile.end")
        builder.branch(loop)
        builder.position_at_end(loop)
        k = builder.phi(integer)
        k.add_incoming(count(0), before)
        running = [builder.phi(vector) for _ in sums]
        for phi, value in zip(running, sums, strict=True):
            phi.add_incoming(value, before)
        w_row = builder.add(wat_, builder.mul(k, winner_))
        loaded = [load(w_data, builder.add(w_row, count(c))) for c in starts]
        x_column = builder.add(xat_, builder.mul(k, xinner_))
        new = []
        for r in range(rows.literal_value):
            value = spread(builder.load(builder.gep(x_data, [builder.add(x_column, builder.mul(xrow_, count(r)))])))
            new += [
                builder.call(fused, [value, column, running[r * len(loaded) + c]]) for c, column in enumerate(loaded)
            ]
        following = builder.add(k, count(1))
        k.add_incoming(following, loop)
        for phi, value in zip(running, new, strict=True):
            phi.add_incoming(value, loop)
        builder.cbranch(builder.icmp_signed("<", following, inner_), loop, after)
        builder.position_at_end(after)
        for offset, value in zip(offsets(at_, row_), new, strict=True):
            stored = builder.store(value, vector_at(out_data, offset))
            stored.align = width // 8
        return context.get_dummy_value()

    return signature, emit


@intrinsic
def apart(typing_context):
    """Forbid the inlining of the function that calls this: inlined, it would be compiled again for every caller."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.function.attributes.add("noinline")
        return context.get_dummy_value()

    return types.void(), emit


@intrinsic
def in_whole_vectors(typing_context):
    """Let the loops of the function that calls this use the widest vectors of the processor; the compiler may choose
    half of their width otherwise."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        # its own `add` takes only attributes without a value
        set.add(builder.function.attributes, f'"prefer-vector-width"="{_BITS}"')
        return context.get_dummy_value()

    return types.void(), emit


@intrinsic
def within(typing_context):
    """Force the inlining of the function that calls this, so that its arguments are not copied for the call."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.function.attributes.add("alwaysinline")
        return context.get_dummy_value()

    return types.void(), emit


@njit(nogil=True, no_cpython_wrapper=True, no_cfunc_wrapper=True, _nrt=False)
def add_product(
    out, at, row, first, first_at, first_row, x, x_at, x_row, x_inner, w, w_at, w_inner, rows, inner, columns
):
    """out = first + x·w, with `rows` a multiple of 4, `columns` of 16 and `inner` at least 1.

    All are contiguous arrays of one type and of any shape, with the elements

    - (r, c) of `out` at ``at + r·row + c``;
    - (r, c) of `first` at ``first_at + r·first_row + c``: `out` itself, or one row for all with ``first_row`` 0;
    - (r, k) of `x` at ``x_at + r·x_row + k·x_inner``, so that x may be stored transposed;
    - (k, c) of `w` at ``w_at + k·w_inner + c``.
    """
    apart()
    wide = _WIDE if out.itemsize == 4 else COLUMNS
    r = 0
    while r < rows:
        tall = (rows - r) % _TALL == 0
        c = 0
        while c < columns:
            out_at, first_here, x_here = at + r * row + c, first_at + r * first_row + c, x_at + r * x_row
            broad = wide > COLUMNS and columns - c >= wide
            if tall and broad:
                tile(
                    _TALL, _WIDE, out, out_at, row, first, first_here, first_row,
                    x, x_here, x_row, x_inner, w, w_at + c, w_inner, inner,
                )  # fmt: skip
            elif tall:
                tile(
                    _TALL, COLUMNS, out, out_at, row, first, first_here, first_row,
                    x, x_here, x_row, x_inner, w, w_at + c, w_inner, inner,
                )  # fmt: skip
            else:
                tile(
                    ROWS, COLUMNS, out, out_at, row, first, first_here, first_row,
                    x, x_here, x_row, x_inner, w, w_at + c, w_inner, inner,
                )  # fmt: skip
            c += wide if tall and broad else COLUMNS
        r += _TALL if tall else ROWS
