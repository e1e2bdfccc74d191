"""Translation of a vector field in torch into a graph of scalars, from which compiled code is made.

The field runs once, for one subject, and its operations are recorded. Each is then done on the scalars of its tensors
(`neuralpk.solve.torch_operations`). A field with an operation outside that list, one whose course depends on a value,
and one that uses a tensor which is not registered as its parameter or buffer cannot be translated; it is solved by
torch.
"""

from __future__ import annotations

import functools
import operator
import warnings
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, functionalize
from torch.fx.experimental.proxy_tensor import make_fx

from neuralpk.dynamics import Dynamics
from neuralpk.solve.compiled.equations import Graph, MachineCode, compile_field
from neuralpk.solve.refuse_captured_tensors import refuse_captured_tensors
from neuralpk.solve.torch_operations import Symbols, Translator, Untranslatable

MOST_VALUES = 10_000
"""A larger graph is not compiled: it would take seconds, and matrix products of torch are better at it."""

_TOLERANCE = 1e-9  # between a field and its translation, in double precision, relative to the largest slope


@dataclass(frozen=True)
class Translation:
    """A compiled field.

    Args:
        code: the machine code.
        weights: names of the weights in the order of the shared inputs, each flattened.
        timed: whether it reads the time, as one more state.
        source: what it was compiled from, the arguments of `compile_field`.
    """

    code: MachineCode
    weights: tuple[str, ...]
    timed: bool
    source: tuple[Graph, Sequence[int], int, int] = field(repr=False, compare=False)

    @functools.cached_property
    def implicit(self) -> MachineCode | None:
        """The same field with implicit steps, compiled when it is first asked for; None, with a warning, where its
        Jacobian is too large for that."""
        graph, slopes, *_ = self.source
        states, before = [graph.input("state", d) for d in range(len(slopes))], len(graph)
        if any(graph.jacobian([slope], states) and len(graph) - before > MOST_VALUES for slope in slopes):
            warnings.warn(
                "stiff subjects are solved by torch, not by compiled code, which is slower: the Jacobian of the vector "
                f"field takes more than {MOST_VALUES:,} operations on numbers",
                stacklevel=2,
            )
            return None
        return compile_field(*self.source, implicit=True)


def _has_symbols(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(_has_symbols(item) for item in value)
    return isinstance(value, Symbols)


def _run(translator: Translator, module: torch.fx.GraphModule, given: Sequence[Any]) -> Any:
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
    translator = Translator()
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
    source = translator.graph, outputs, own, first
    translation = Translation(compile_field(*source), tuple(weights), timed, source)
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

    Raises:
        Untranslatable: they differ.
    """
    with torch.inference_mode(False), torch.enable_grad():
        y = y + torch.linspace(0.011, 0.019, y.numel(), dtype=y.dtype) * (1.0 + y.abs())
        theta = theta * torch.linspace(1.001, 1.002, theta.numel(), dtype=theta.dtype)
        y, theta = y.clone().requires_grad_(), theta.clone().requires_grad_()
        own = {name: weight.clone().requires_grad_() for name, weight in weights.items()}
        slope = field(t, y, theta, own, {name: buffer.clone() for name, buffer in buffers.items()})
        cotangent = torch.linspace(1.0, 2.0, slope.numel(), dtype=slope.dtype).reshape(slope.shape)
        leaves = [y, theta, *own.values()]
        found: Sequence[Tensor | None] = [None] * len(leaves)
        if slope.requires_grad:
            found = torch.autograd.grad(slope, leaves, cotangent, allow_unused=True)
    gradients = [torch.zeros_like(leaf) if g is None else g for g, leaf in zip(found, leaves, strict=True)]
    state = torch.cat([y, t[:, None]], dim=1) if translation.timed else y
    expected = slope[0], gradients[0][0], gradients[1][0], _flat(gradients[2:])
    result = translation.code.evaluate(*map(_numbers, (state[0], theta[0], _flat(own.values()), cotangent[0])))
    for right, got in zip(map(_numbers, expected), result, strict=True):
        limit = _TOLERANCE * max(float(np.abs(right).max(initial=0.0)), 1e-300)
        if np.isfinite(right).all() and not np.allclose(got[: len(right)], right, rtol=1e-6, atol=limit):
            raise Untranslatable("operations whose translation gives other numbers")


def _flat(tensors: Iterable[Tensor]) -> Tensor:
    """All numbers of some tensors, one after the other."""
    return torch.cat([torch.zeros(0, dtype=torch.float64), *(tensor.flatten() for tensor in tensors)])


def _numbers(tensor: Tensor) -> Any:
    return tensor.detach().numpy()


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


_ATOMS = frozenset({bool, int, float, str, type(None)})


def _plain(value: Any) -> bool:
    if type(value) in _ATOMS:  # most are, and this is asked at every solve
        return True
    if isinstance(value, tuple | list):
        return all(map(_plain, value))
    return isinstance(value, bool | int | float | str)


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
    """A new translation; None and a warning where there is none."""
    refuse_captured_tensors(dynamics, y, theta)
    try:
        return _translate(dynamics, y, theta)
    except Exception as error:  # whatever a field of somebody does while it is recorded, torch can still solve it
        reason = (
            str(error)
            if isinstance(error, Untranslatable)
            else f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
        )
        # a perceptron is translated for implicit steps alone
        solved = "is solved" if dynamics.perceptron(theta) is None else "with stiff subjects is solved"
        warnings.warn(
            f"{type(dynamics).__name__} {solved} by torch, not by compiled code, which is slower: its vector field "
            f"uses {reason}",
            stacklevel=2,
        )
    return None
