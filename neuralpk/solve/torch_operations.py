"""Operations of torch (ATen) on tensors whose elements are values of a graph of scalars."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neuralpk.solve.compiled.equations import Graph

Positions = NDArray[np.int64]
Operation = str | Callable[..., int]
"""On single values: the name of one of the graph, or a function of the graph and the values."""


class Untranslatable(Exception):
    """Why a field is not translated."""


@dataclass(frozen=True)
class Symbols:
    """A tensor whose elements are values of a graph."""

    at: Positions


class Translator:
    """Operations of torch on the scalars of a graph."""

    def __init__(self) -> None:
        self.graph = Graph()

    def inputs(self, kind: str, shape: Sequence[int], first: int = 0) -> Symbols:
        """Inputs of a kind from `first` on, as a tensor of this shape."""
        size = math.prod(shape)
        at = np.array([self.graph.input(kind, first + k) for k in range(size)], np.int64)
        return Symbols(at.reshape(tuple(shape)))

    def lift(self, value: Any) -> Positions:
        """The positions of a tensor, a number or symbols."""
        if isinstance(value, Symbols):
            return value.at
        array = np.asarray(value.detach().numpy() if isinstance(value, Tensor) else value)
        flat = [self.graph.constant(float(number)) for number in array.ravel()]
        return np.array(flat, np.int64).reshape(array.shape)

    def each(self, operation: Operation, *values: Any) -> Symbols:
        """An operation on every element of some tensors of shapes that fit."""
        graph = self.graph
        done = partial(graph, operation) if isinstance(operation, str) else partial(operation, graph)
        arrays = np.broadcast_arrays(*(self.lift(value) for value in values))
        flat = [done(*map(int, row)) for row in zip(*(array.ravel() for array in arrays), strict=True)]
        return Symbols(np.array(flat, np.int64).reshape(arrays[0].shape))

    def reduce(self, value: Any, axes: Any, keep: bool, operation: str, start: float) -> Symbols:
        """An operation that joins all elements along some axes."""
        at = self.lift(value)
        axes = range(at.ndim) if axes is None or axes == [] else [axes] if isinstance(axes, int) else axes
        chosen = sorted(axis % at.ndim for axis in axes) if at.ndim else []
        rest = [axis for axis in range(at.ndim) if axis not in chosen]
        moved = at.transpose([*rest, *chosen]).reshape(*(at.shape[axis] for axis in rest), -1)
        empty = self.graph.constant(start)
        out = np.empty(moved.shape[:-1], np.int64)
        for place in np.ndindex(out.shape):
            out[place] = reduce(partial(self.graph, operation), map(int, moved[place]), empty)
        shape = [1 if axis in chosen else at.shape[axis] for axis in range(at.ndim)]
        return Symbols(out.reshape(shape) if keep else out)

    def product(self, a: Any, b: Any) -> Symbols:
        """A matrix product, also of batches and of vectors."""
        left, right = self.lift(a), self.lift(b)
        row, column = left.ndim == 1, right.ndim == 1
        left = left[None] if row else left
        right = right[:, None] if column else right
        terms = self.each("mul", Symbols(left[..., :, :, None]), Symbols(right[..., None, :, :]))
        out = self.reduce(terms, [-2], False, "add", 0.0).at
        out = out[..., 0] if column else out
        return Symbols(out[0] if row and not column else out[..., 0] if row else out)

    def call(self, name: str, arguments: Sequence[Any], options: Mapping[str, Any]) -> Any:
        """An operation of torch (ATen) by its name.

        Raises:
            Untranslatable: it is not in the list.
        """
        if name in _UNARY:
            return self.each(_UNARY[name], arguments[0])
        if name in _BINARY:
            return self.each(_BINARY[name], arguments[0], self._scaled(arguments[1], options))
        if name in _OTHERS:
            return _OTHERS[name](self, *arguments, **options)
        raise Untranslatable(f"the operation {name}")

    def _scaled(self, value: Any, options: Mapping[str, Any]) -> Any:
        alpha = options.get("alpha", 1)
        return value if alpha == 1 else self.each("mul", value, alpha)


def _larger(g: Graph, a: int, b: int) -> int:
    return g("where", g("lt", a, b), b, a)


def _smaller(g: Graph, a: int, b: int) -> int:
    return g("where", g("lt", b, a), b, a)


def _maximum(g: Graph, a: int, b: int) -> int:
    """As in torch: NaN if one of both is, and equal numbers share the derivative."""
    half = g.constant(0.5)
    middle = g("add", g("mul", half, a), g("mul", half, b))
    return g("where", g("lt", a, b), b, g("where", g("lt", b, a), a, middle))


def _minimum(g: Graph, a: int, b: int) -> int:
    return g("neg", _maximum(g, g("neg", a), g("neg", b)))


def _sigmoid(g: Graph, x: int) -> int:
    half = g.constant(0.5)
    return g("add", half, g("mul", half, g("tanh", g("mul", half, x))))


def _softplus(g: Graph, x: int) -> int:
    zero = g.constant(0.0)
    return g("add", _larger(g, x, zero), g("log1p", g("exp", g("neg", g("abs", x)))))


def _or(g: Graph, a: int, b: int) -> int:
    return g("not", g("and", g("not", a), g("not", b)))


# the graph has these operations too, under the same names
_SAME_UNARY = ("neg", "exp", "log", "log1p", "expm1", "sqrt", "tanh", "sin", "cos", "abs")
_SAME_BINARY = ("add", "sub", "mul", "div", "pow", "lt", "le", "eq")
_UNARY: dict[str, Operation] = {
    **{name: name for name in _SAME_UNARY},
    "reciprocal": lambda g, x: g("div", g.constant(1.0), x),
    "square": lambda g, x: g("mul", x, x),
    "rsqrt": lambda g, x: g("div", g.constant(1.0), g("sqrt", x)),
    "log2": lambda g, x: g("mul", g.constant(1 / math.log(2.0)), g("log", x)),
    "log10": lambda g, x: g("mul", g.constant(1 / math.log(10.0)), g("log", x)),
    "exp2": lambda g, x: g("exp", g("mul", g.constant(math.log(2.0)), x)),
    "sigmoid": _sigmoid,
    "silu": lambda g, x: g("mul", x, _sigmoid(g, x)),
    "relu": lambda g, x: g("where", g("le", x, g.constant(0.0)), g.constant(0.0), x),
    **dict.fromkeys(("logical_not", "bitwise_not"), "not"),
    "to_truth": lambda g, x: g("not", g("not", x)),
    **dict.fromkeys(("clone", "alias", "contiguous", "_to_copy", "lift_fresh_copy", "lift_fresh"), lambda g, x: x),
}  # fmt: skip
_BINARY: dict[str, Operation] = {
    **{name: name for name in _SAME_BINARY},
    "rsub": lambda g, a, b: g("sub", b, a),
    "gt": lambda g, a, b: g("lt", b, a),
    "ge": lambda g, a, b: g("le", b, a),
    "ne": lambda g, a, b: g("not", g("eq", a, b)),
    "maximum": _maximum,
    "minimum": _minimum,
    "clamp_min": _larger,
    "clamp_max": _smaller,
    **dict.fromkeys(("logical_and", "bitwise_and"), "and"),
    **dict.fromkeys(("logical_or", "bitwise_or"), _or),
}  # fmt: skip


def _clamp(self: Translator, x: Any, min: Any = None, max: Any = None) -> Symbols:
    x = x if min is None else self.each(_larger, x, min)
    return x if max is None else self.each(_smaller, x, max)


def _join(self: Translator, parts: Sequence[Any], dim: int = 0) -> Symbols:
    filled = [self.lift(part) for part in parts]
    return Symbols(np.concatenate([part for part in filled if part.shape != (0,)], axis=dim))


def _index(self: Translator, x: Symbols, indices: Sequence[Tensor | None]) -> Symbols:
    # numpy and torch place the indexed axes alike
    return Symbols(x.at[tuple(slice(None) if i is None else i.numpy() for i in indices)])


def _slice(
    self: Translator, x: Symbols, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Symbols:
    where: list[slice] = [slice(None)] * x.at.ndim
    where[dim] = slice(start, end, step)
    return Symbols(x.at[tuple(where)])


def _put_slice(
    self: Translator, x: Any, part: Any, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Symbols:
    out = self.lift(x).copy()
    where: list[slice] = [slice(None)] * out.ndim
    where[dim] = slice(start, end, step)
    out[tuple(where)] = self.lift(part)
    return Symbols(out)


def _put_index(self: Translator, x: Any, part: Any, dim: int, index: int) -> Symbols:
    out = self.lift(x).copy()
    where: list[Any] = [slice(None)] * out.ndim
    where[dim] = index
    out[tuple(where)] = self.lift(part)
    return Symbols(out)


def _split(self: Translator, x: Symbols, sizes: Any, dim: int = 0) -> list[Symbols]:
    length = x.at.shape[dim]
    sizes = [min(sizes, length - k) for k in range(0, length, sizes)] if isinstance(sizes, int) else sizes
    return [Symbols(part) for part in np.split(x.at, np.cumsum(sizes)[:-1], axis=dim)]


def _squeeze(self: Translator, x: Symbols, dims: Any = None) -> Symbols:
    dims = range(x.at.ndim) if dims is None else [dims] if isinstance(dims, int) else dims
    return Symbols(np.squeeze(x.at, tuple(d for d in dims if x.at.shape[d] == 1)))


def _expand(self: Translator, x: Symbols, shape: Sequence[int], implicit: bool = False) -> Symbols:
    have = (1,) * (len(shape) - x.at.ndim) + x.at.shape
    return Symbols(np.broadcast_to(x.at, [own if wish == -1 else wish for wish, own in zip(shape, have, strict=True)]))


def _pad(self: Translator, x: Symbols, pad: Sequence[int], value: float = 0.0) -> Symbols:
    pairs = list(zip(pad[::2], pad[1::2], strict=True))[::-1]
    widths = [(0, 0)] * (x.at.ndim - len(pairs)) + pairs
    return Symbols(np.pad(x.at, widths, constant_values=self.graph.constant(value)))


def _add_product(self: Translator, bias: Any, a: Any, b: Any) -> Symbols:
    return self.each("add", self.product(a, b), bias)


def _softplus_of(self: Translator, x: Any, beta: float = 1.0, threshold: float = 20.0) -> Symbols:
    return self.each("div", self.each(_softplus, self.each("mul", x, beta)), beta)


def _mean(self: Translator, x: Any, dim: Any = None, keepdim: bool = False) -> Symbols:
    total = self.reduce(x, dim, keepdim, "add", 0.0)
    count = self.lift(x).size // max(total.at.size, 1)
    return self.each("div", total, float(count))


_OTHERS: dict[str, Callable[..., Any]] = {
    "where": lambda self, c, a, b: self.each("where", c, a, b),
    "clamp": _clamp,
    "hardtanh": lambda self, x, low=-1.0, high=1.0: _clamp(self, x, low, high),
    "softplus": _softplus_of,
    "sum": lambda self, x, dim=None, keepdim=False: self.reduce(x, dim, keepdim, "add", 0.0),
    "prod": lambda self, x, dim=None, keepdim=False: self.reduce(x, dim, keepdim, "mul", 1.0),
    "mean": _mean,
    **dict.fromkeys(("mm", "bmm", "matmul", "dot", "mv"), Translator.product),
    "addmm": _add_product,
    "baddbmm": _add_product,
    "cat": _join,
    "stack": lambda self, parts, dim=0: Symbols(np.stack([self.lift(part) for part in parts], axis=dim)),
    **dict.fromkeys(("view", "_unsafe_view", "reshape"), lambda self, x, shape: Symbols(x.at.reshape(shape))),
    "unsqueeze": lambda self, x, dim: Symbols(np.expand_dims(x.at, dim)),
    "squeeze": _squeeze,
    "expand": _expand,
    "permute": lambda self, x, dims: Symbols(x.at.transpose(dims)),
    "transpose": lambda self, x, a, b: Symbols(x.at.swapaxes(a, b)),
    "t": lambda self, x: Symbols(x.at.T),
    "select": lambda self, x, dim, index: Symbols(np.take(x.at, index, axis=dim)),
    "slice": _slice,
    "select_scatter": _put_index,
    "slice_scatter": _put_slice,
    "index": _index,
    "index_select": lambda self, x, dim, index: Symbols(np.take(x.at, index.numpy(), axis=dim)),
    "gather": lambda self, x, dim, index: Symbols(np.take_along_axis(x.at, index.numpy(), axis=dim)),
    "unbind": lambda self, x, dim=0: [Symbols(part) for part in np.moveaxis(x.at, dim, 0)],
    **dict.fromkeys(("split", "split_with_sizes"), _split),
    "flip": lambda self, x, dims: Symbols(np.flip(x.at, dims)),
    "constant_pad_nd": _pad,
    "copy": lambda self, x, source, *_: Symbols(np.broadcast_to(self.lift(source), self.lift(x).shape)),
    "fill": lambda self, x, value: Symbols(np.broadcast_to(self.lift(value), self.lift(x).shape)),
    "zeros_like": lambda self, x, **_: torch.zeros(x.at.shape, dtype=torch.float64),
    "ones_like": lambda self, x, **_: torch.ones(x.at.shape, dtype=torch.float64),
    "full_like": lambda self, x, value, **_: torch.full(x.at.shape, value, dtype=torch.float64),
    "new_zeros": lambda self, x, shape, **_: torch.zeros(shape, dtype=torch.float64),
    "new_ones": lambda self, x, shape, **_: torch.ones(shape, dtype=torch.float64),
    "new_full": lambda self, x, shape, value, **_: torch.full(shape, value, dtype=torch.float64),
}  # fmt: skip
