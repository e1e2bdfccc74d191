"""Translation of a vector field in torch into a graph of scalars, from which compiled code is made.

The field runs once, for one subject, and its operations are recorded. Each is then done on the scalars of its tensors.
A field with an operation outside the list, one whose course depends on a value, and one that uses a tensor which is not
registered as its parameter or buffer cannot be translated; it is solved by torch.
"""

from __future__ import annotations

import functools
import math
import operator
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, functionalize
from torch.fx.experimental.proxy_tensor import make_fx

from neuralpk.dynamics import Dynamics
from neuralpk.solve.compiled.equations import Graph, MachineCode, compile_field
from neuralpk.solve.refuse_captured_tensors import refuse_captured_tensors

MOST_VALUES = 10_000
"""A larger graph is not compiled: it would take seconds, and matrix products of torch are better at it."""

Positions = NDArray[np.int64]
_TOLERANCE = 1e-9  # between a field and its translation, in double precision, relative to the largest slope


class Untranslatable(Exception):
    """Why a field is not translated."""


@dataclass(frozen=True)
class Symbols:
    """A tensor whose elements are values of a graph."""

    at: Positions


@dataclass(frozen=True)
class Translation:
    """A compiled field.

    Args:
        code: the machine code.
        weights: names of the weights in the order of the shared inputs, each flattened.
        timed: whether it reads the time, as one more state.
    """

    code: MachineCode
    weights: tuple[str, ...]
    timed: bool


class _Translator:
    """Operations of torch on the scalars of a graph."""

    def __init__(self) -> None:
        self.graph = Graph()

    def inputs(self, kind: str, shape: Sequence[int], first: int = 0) -> Symbols:
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

    def each(self, operation: Callable[..., int], *values: Any) -> Symbols:
        """An operation on every element of some tensors of shapes that fit."""
        arrays = np.broadcast_arrays(*(self.lift(value) for value in values))
        flat = [operation(*map(int, row)) for row in zip(*(array.ravel() for array in arrays), strict=True)]
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
            out[place] = functools.reduce(functools.partial(self.graph, operation), map(int, moved[place]), empty)
        shape = [1 if axis in chosen else at.shape[axis] for axis in range(at.ndim)]
        return Symbols(out.reshape(shape) if keep else out)

    def product(self, a: Any, b: Any) -> Symbols:
        """A matrix product, also of batches and of vectors."""
        left, right = self.lift(a), self.lift(b)
        row, column = left.ndim == 1, right.ndim == 1
        left = left[None] if row else left
        right = right[:, None] if column else right
        terms = self.each(
            functools.partial(self.graph, "mul"), Symbols(left[..., :, :, None]), Symbols(right[..., None, :, :])
        )
        out = self.reduce(terms, [-2], False, "add", 0.0).at
        out = out[..., 0] if column else out
        return Symbols(out[0] if row and not column else out[..., 0] if row else out)

    def call(self, name: str, arguments: Sequence[Any], options: Mapping[str, Any]) -> Any:
        """An operation of torch (ATen) by its name."""
        graph = self.graph
        if name in _UNARY:
            return self.each(functools.partial(_UNARY[name], graph), arguments[0])
        if name in _BINARY:
            other = self._scaled(arguments[1], options)
            return self.each(functools.partial(_BINARY[name], graph), arguments[0], other)
        if name in _SHAPES:
            return _SHAPES[name](self, *arguments, **options)
        raise Untranslatable(f"the operation {name}")

    def _scaled(self, value: Any, options: Mapping[str, Any]) -> Any:
        alpha = options.get("alpha", 1)
        return value if alpha == 1 else self.each(functools.partial(self.graph, "mul"), value, alpha)


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


_OWN_UNARY = ("neg", "exp", "log", "log1p", "expm1", "sqrt", "tanh", "sin", "cos", "abs")  # of the graph, same names
_OWN_BINARY = ("add", "sub", "mul", "div", "pow", "lt", "le", "eq")
_UNARY: dict[str, Callable[[Graph, int], int]] = {
    **{name: functools.partial(lambda n, g, x: g(n, x), name) for name in _OWN_UNARY},
    "reciprocal": lambda g, x: g("div", g.constant(1.0), x),
    "square": lambda g, x: g("mul", x, x),
    "rsqrt": lambda g, x: g("div", g.constant(1.0), g("sqrt", x)),
    "log2": lambda g, x: g("mul", g.constant(1 / math.log(2.0)), g("log", x)),
    "log10": lambda g, x: g("mul", g.constant(1 / math.log(10.0)), g("log", x)),
    "exp2": lambda g, x: g("exp", g("mul", g.constant(math.log(2.0)), x)),
    "sigmoid": _sigmoid,
    "silu": lambda g, x: g("mul", x, _sigmoid(g, x)),
    "relu": lambda g, x: g("where", g("le", x, g.constant(0.0)), g.constant(0.0), x),
    "logical_not": lambda g, x: g("not", x),
    "to_truth": lambda g, x: g("not", g("not", x)),
    "bitwise_not": lambda g, x: g("not", x),
    **dict.fromkeys(("clone", "alias", "contiguous", "_to_copy", "lift_fresh_copy", "lift_fresh"), lambda g, x: x),
}  # fmt: skip
_BINARY: dict[str, Callable[[Graph, int, int], int]] = {
    **{name: functools.partial(lambda n, g, a, b: g(n, a, b), name) for name in _OWN_BINARY},
    "rsub": lambda g, a, b: g("sub", b, a),
    "gt": lambda g, a, b: g("lt", b, a),
    "ge": lambda g, a, b: g("le", b, a),
    "ne": lambda g, a, b: g("not", g("eq", a, b)),
    "maximum": _maximum,
    "minimum": _minimum,
    "clamp_min": _larger,
    "clamp_max": _smaller,
    **dict.fromkeys(("logical_and", "bitwise_and"), lambda g, a, b: g("and", a, b)),
    **dict.fromkeys(("logical_or", "bitwise_or"), _or),
}  # fmt: skip


def _clamp(self: _Translator, x: Any, min: Any = None, max: Any = None) -> Symbols:
    x = x if min is None else self.each(functools.partial(_larger, self.graph), x, min)
    return x if max is None else self.each(functools.partial(_smaller, self.graph), x, max)


def _join(self: _Translator, parts: Sequence[Any], dim: int = 0) -> Symbols:
    filled = [self.lift(part) for part in parts]
    return Symbols(np.concatenate([part for part in filled if part.shape != (0,)], axis=dim))


def _index(self: _Translator, x: Symbols, indices: Sequence[Tensor | None]) -> Symbols:
    # numpy and torch place the indexed axes alike
    return Symbols(x.at[tuple(slice(None) if i is None else i.numpy() for i in indices)])


def _slice(
    self: _Translator, x: Symbols, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Symbols:
    where: list[slice] = [slice(None)] * x.at.ndim
    where[dim] = slice(start, end, step)
    return Symbols(x.at[tuple(where)])


def _put_slice(
    self: _Translator, x: Any, part: Any, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Symbols:
    out = self.lift(x).copy()
    where: list[slice] = [slice(None)] * out.ndim
    where[dim] = slice(start, end, step)
    out[tuple(where)] = self.lift(part)
    return Symbols(out)


def _put_index(self: _Translator, x: Any, part: Any, dim: int, index: int) -> Symbols:
    out = self.lift(x).copy()
    where: list[Any] = [slice(None)] * out.ndim
    where[dim] = index
    out[tuple(where)] = self.lift(part)
    return Symbols(out)


def _split(self: _Translator, x: Symbols, sizes: Any, dim: int = 0) -> list[Symbols]:
    length = x.at.shape[dim]
    sizes = [min(sizes, length - k) for k in range(0, length, sizes)] if isinstance(sizes, int) else sizes
    return [Symbols(part) for part in np.split(x.at, np.cumsum(sizes)[:-1], axis=dim)]


def _squeeze(self: _Translator, x: Symbols, dims: Any = None) -> Symbols:
    dims = range(x.at.ndim) if dims is None else [dims] if isinstance(dims, int) else dims
    return Symbols(np.squeeze(x.at, tuple(d for d in dims if x.at.shape[d] == 1)))


def _expand(self: _Translator, x: Symbols, shape: Sequence[int], implicit: bool = False) -> Symbols:
    have = (1,) * (len(shape) - x.at.ndim) + x.at.shape
    return Symbols(np.broadcast_to(x.at, [own if wish == -1 else wish for wish, own in zip(shape, have, strict=True)]))


def _pad(self: _Translator, x: Symbols, pad: Sequence[int], value: float = 0.0) -> Symbols:
    pairs = list(zip(pad[::2], pad[1::2], strict=True))[::-1]
    widths = [(0, 0)] * (x.at.ndim - len(pairs)) + pairs
    return Symbols(np.pad(x.at, widths, constant_values=self.graph.constant(value)))


def _add_product(self: _Translator, bias: Any, a: Any, b: Any) -> Symbols:
    return self.each(functools.partial(self.graph, "add"), self.product(a, b), bias)


def _softplus_of(self: _Translator, x: Any, beta: float = 1.0, threshold: float = 20.0) -> Symbols:
    graph, scale = self.graph, self.graph.constant(beta)
    return self.each(lambda a: graph("div", _softplus(graph, graph("mul", a, scale)), scale), x)


def _mean(self: _Translator, x: Any, dim: Any = None, keepdim: bool = False) -> Symbols:
    total = self.reduce(x, dim, keepdim, "add", 0.0)
    count = self.lift(x).size // max(total.at.size, 1)
    return self.each(functools.partial(self.graph, "div"), total, float(count))


_SHAPES: dict[str, Callable[..., Any]] = {
    "where": lambda self, c, a, b: self.each(functools.partial(self.graph, "where"), c, a, b),
    "clamp": _clamp,
    "hardtanh": lambda self, x, low=-1.0, high=1.0: _clamp(self, x, low, high),
    "softplus": _softplus_of,
    "sum": lambda self, x, dim=None, keepdim=False: self.reduce(x, dim, keepdim, "add", 0.0),
    "prod": lambda self, x, dim=None, keepdim=False: self.reduce(x, dim, keepdim, "mul", 1.0),
    "mean": _mean,
    **dict.fromkeys(("mm", "bmm", "matmul", "dot", "mv"), _Translator.product),
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


def _has_symbols(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(_has_symbols(item) for item in value)
    return isinstance(value, Symbols)


def _run(translator: _Translator, module: torch.fx.GraphModule, given: Sequence[Any]) -> Any:
    """Do the recorded operations on scalars."""
    known: dict[torch.fx.Node, Any] = {}
    inputs = iter(given)
    for node in module.graph.nodes:
        if node.op == "placeholder":
            known[node] = next(inputs)
        elif node.op == "get_attr":
            # a literal of the code is copied at once; all else is a tensor that may change behind the translation
            if any("lift_fresh" not in str(user.target) for user in node.users):
                raise Untranslatable("a tensor that is neither a parameter nor a registered buffer")
            known[node] = getattr(module, node.target)
        elif node.op == "output":
            result = torch.fx.node.map_arg(node.args[0], known.__getitem__)
            return result[0] if isinstance(result, list | tuple) else result
        else:
            arguments = torch.fx.node.map_arg(node.args, known.__getitem__)
            options = torch.fx.node.map_arg(node.kwargs, known.__getitem__)
            if node.target is operator.getitem or not (_has_symbols(arguments) or _has_symbols(list(options.values()))):
                known[node] = node.target(*arguments, **options)
            else:
                name = node.target.overloadpacket.__name__
                if name == "_to_copy" and not options.get("dtype", torch.float64).is_floating_point:
                    name = "to_truth" if options["dtype"] == torch.bool else "rounding to whole numbers"
                dropped = ("dtype", "layout", "device", "pin_memory", "memory_format")
                kept = {key: value for key, value in options.items() if key not in dropped}
                known[node] = translator.call(name, arguments, kept)
            if len(translator.graph) > MOST_VALUES:
                raise Untranslatable(f"more than {MOST_VALUES:,} operations on numbers")
    raise AssertionError("a graph has an output")


def _double(tensor: Tensor) -> Tensor:
    return tensor.detach().double() if tensor.is_floating_point() else tensor.detach()


def _translate(dynamics: Dynamics, y: Tensor, theta: Tensor) -> Translation:
    """Translate and compile a field, and compare the result with the field at one state ``[1, state]``."""
    y, theta = _double(y[:1]), _double(theta[:1, 0])
    t = torch.full_like(y[:, 0], 0.5)
    weights = {name: _double(weight) for name, weight in dynamics.named_parameters()}
    buffers = {name: _double(buffer) for name, buffer in dynamics.named_buffers()}

    def field(t: Tensor, y: Tensor, theta: Tensor, weights: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
        return cast(Tensor, functional_call(dynamics, (weights, buffers), (t, y, theta)))

    with torch.inference_mode(False), torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        recorded = make_fx(functionalize(field, remove="mutations"))(t, y, theta, weights, buffers)
    translator = _Translator()
    states, own = y.shape[1], theta.shape[1]
    clock = translator.inputs("state", (1,), states)
    given: list[Any] = [clock, translator.inputs("state", y.shape), translator.inputs("own", theta.shape)]
    first = 0
    for weight in weights.values():
        given.append(translator.inputs("shared", weight.shape, first))
        first += weight.numel()
    slopes = translator.lift(_run(translator, recorded, [*given, *buffers.values()]))
    if slopes.shape != (1, states):
        raise Untranslatable(f"a slope of shape {slopes.shape} for one subject")
    outputs = [int(a) for a in slopes[0]]
    timed = int(clock.at[0]) in translator.graph.needed(outputs)
    if timed:
        outputs.append(translator.graph.constant(0.0))
    code = compile_field(translator.graph, outputs, own, first)
    translation = Translation(code, tuple(weights), timed)
    _compare(translation, field, t, y, theta, weights, buffers)
    return translation


def _compare(
    translation: Translation,
    field: Callable[..., Tensor],
    t: Tensor,
    y: Tensor,
    theta: Tensor,
    weights: dict[str, Tensor],
    buffers: dict[str, Tensor],
) -> None:
    """Compare slopes and gradients of a translation with those of torch at one point.

    The point is near the example and not the example itself, where a slope may be a difference of equal numbers (a
    system at rest) and a derivative may have two values (the larger of two equal numbers).
    """
    with torch.inference_mode(False), torch.enable_grad():
        y = y + torch.linspace(0.011, 0.019, y.numel(), dtype=y.dtype) * (1.0 + y.abs())
        theta = theta * torch.linspace(1.001, 1.002, theta.numel(), dtype=theta.dtype)
        y, theta = y.clone().requires_grad_(), theta.clone().requires_grad_()
        own = {name: weight.clone().requires_grad_() for name, weight in weights.items()}
        slope = field(t, y, theta, own, {name: buffer.clone() for name, buffer in buffers.items()})
        cotangent = torch.linspace(1.0, 2.0, slope.numel(), dtype=slope.dtype).reshape(slope.shape)
        leaves = [y, theta, *own.values()]
        found = (
            torch.autograd.grad(slope, leaves, cotangent, allow_unused=True)
            if slope.requires_grad
            else [None] * len(leaves)
        )
    expected = [torch.zeros_like(leaf) if g is None else g for g, leaf in zip(found, leaves, strict=True)]
    shared = torch.cat([weight.detach().flatten() for weight in own.values()]) if own else y.new_zeros(0)
    state = torch.cat([y, t[:, None]], dim=1) if translation.timed else y
    result = translation.code.evaluate(*(x.detach().numpy() for x in (state[0], theta[0], shared, cotangent[0])))
    pairs = zip(
        (slope[0], expected[0][0], expected[1][0], torch.cat([g.flatten() for g in expected[2:]]) if own else shared),
        result,
        strict=True,
    )
    for right, got in pairs:
        reference = right.detach().numpy()
        size = max(float(np.abs(reference).max(initial=0.0)), 1e-300)
        if np.isfinite(reference).all() and not np.allclose(
            got[: len(reference)], reference, rtol=1e-6, atol=_TOLERANCE * size
        ):
            raise Untranslatable("operations whose translation gives other numbers")


_Key = tuple[Any, ...]
_KNOWN: weakref.WeakKeyDictionary[nn.Module, tuple[_Key, Translation | None]] = weakref.WeakKeyDictionary()


class _Shared:
    """A translation that copies of a dynamics share. Intervals make a copy for every draw of a population.

    Args:
        content: what it holds for.
        translation: None for a field that cannot be translated.
    """

    def __init__(self, content: _Key | None = None, translation: Translation | None = None) -> None:
        self.content, self.translation = content, translation

    def __deepcopy__(self, memo: Any) -> _Shared:
        return self

    def __reduce__(self) -> Any:
        return _Shared, ()  # addresses have no meaning in another process


def _plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(_plain(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str)


def _key(dynamics: nn.Module, of_buffer: Callable[[Tensor], Any]) -> _Key:
    """What a translation holds for: the buffers, the shapes of the weights and the plain attributes of all parts."""
    found: list[Any] = []
    for part in dynamics.modules():
        found.extend(None if buffer is None else of_buffer(buffer) for buffer in part._buffers.values())
        found.extend(None if weight is None else weight.shape for weight in part._parameters.values())
        found.extend((name, str(value)) for name, value in vars(part).items() if name[0] != "_" and _plain(value))
    return (*found,)


def _identity(buffer: Tensor) -> tuple[int, int]:
    return id(buffer), 0 if buffer.is_inference() else buffer._version


def _content(buffer: Tensor) -> tuple[Any, bytes]:
    return buffer.shape, buffer.detach().numpy().tobytes()


def translated(dynamics: Dynamics, y: Tensor, theta: Tensor) -> Translation | None:
    """The compiled field of a dynamics; None where it is not to be compiled, and where it cannot be, with a warning.

    Args:
        dynamics: the vector field.
        y: states ``[subject, state]``, of which one serves as an example.
        theta: parameters ``[subject, period, parameter]``.

    Raises:
        ValueError: it uses a tensor with a gradient that is neither theta nor a registered parameter.
    """
    if not dynamics.compiled:
        return None
    key = _key(dynamics, _identity)
    known = _KNOWN.get(dynamics)
    if known is not None and known[0] == key:
        return known[1]
    if len(y) == 0:
        return None
    content = _key(dynamics, _content)
    shared = dynamics.__dict__.get("_translation")
    if not (isinstance(shared, _Shared) and shared.content == content):
        shared = dynamics.__dict__["_translation"] = _Shared(content, _translation_or_warning(dynamics, y, theta))
    _KNOWN[dynamics] = (key, shared.translation)
    return shared.translation


def _translation_or_warning(dynamics: Dynamics, y: Tensor, theta: Tensor) -> Translation | None:
    refuse_captured_tensors(dynamics, y, theta)
    try:
        return _translate(dynamics, y, theta)
    except Exception as error:  # whatever a field of somebody does while it is recorded, torch can still solve it
        reason = (
            str(error)
            if isinstance(error, Untranslatable)
            else f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
        )
        warnings.warn(
            f"{type(dynamics).__name__} is solved by torch, not by compiled code, which is slower: its vector field "
            f"uses {reason}",
            stacklevel=2,
        )
    return None
