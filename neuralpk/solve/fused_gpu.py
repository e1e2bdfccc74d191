"""Fields that are multilayer perceptrons, on CUDA: the connection between torch and the Triton kernels.

The tests compare them with the other engines, on a GPU if one is available, otherwise in the interpreter of Triton.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from dataclasses import replace
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from neuralpk.dynamics import Perceptron
from neuralpk.solve import tsit5_coefficients
from neuralpk.solve.event_nodes import Mesh, sorted_by

if TYPE_CHECKING:
    from neuralpk.solve.engines import RungeKutta

_BLOCK = 16  # subjects of a program: the fewest rows of a product on the tensor cores
_PROGRAMS = 512  # of the reverse sweep at most, each with its own sum over its subjects: the same sums on any GPU
_STATES, _WIDTH, _LAYERS = 8, 128, 4  # the largest field whose activations stay on the chip
_STEPS, _MOST = 16, 1 << 23  # of an interval between two nodes, and of all, for which memory is allocated at first


@functools.cache
def _kernels() -> ModuleType:
    """The kernels; Triton is imported with them, and only where they are used."""
    return importlib.import_module("neuralpk.solve.compiled.perceptron_gpu")


@functools.cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None


@functools.cache
def _table(device: torch.device) -> Tensor:
    """The coefficients of the method, a column for each slope and one that is zero."""
    rows = np.concatenate([tsit5_coefficients.A, tsit5_coefficients.E[None], tsit5_coefficients.DENSE.T])
    return torch.tensor(np.pad(rows, ((0, 0), (0, 1))), dtype=torch.float32, device=device)


def _power(count: int, least: int) -> int:
    """The first power of two that is no less than either."""
    return max(least, 1 << (count - 1).bit_length())


def _filled(tensor: Tensor, *sizes: int) -> Tensor:
    """The tensor with zeros after it, up to these sizes of its last sides."""
    after = [side for size, old in zip(sizes, tensor.shape[-len(sizes) :], strict=True) for side in (size - old, 0)]
    return torch.nn.functional.pad(tensor.detach(), after[::-1]).contiguous()


class _Problem:
    """A field and its nodes in the form of the kernels, and the constants that they are compiled for."""

    def __init__(self, form: Perceptron, mesh: Mesh, y0: Tensor, tensors: tuple[Tensor, ...]) -> None:
        kernels, like = _kernels(), form.shift
        times, jump, input_, since = (tensor.detach().contiguous() for tensor in tensors)
        (first, *hidden, last), (*bias, last_bias) = form.weights, form.biases
        states, outputs, width = first.shape[1], len(last), _power(first.shape[0], 16)
        columns, none = _power(states, 2), like.new_zeros(1)
        shift = _filled(form.shift, width).reshape(-1, width)
        source, change = np.zeros((outputs, columns)), np.zeros((outputs, columns))
        if form.base is None:
            np.fill_diagonal(change, 1.0)
        for f, (begin, end) in enumerate(form.flows):
            source[f, begin], change[f, begin] = 1.0, -1.0
            if end >= 0:
                change[f, end] += 1.0
        self.net = kernels.Network(
            shift,
            _filled(first.T, states, width),
            torch.stack([_filled(w, width, width) for w in hidden]) if hidden else none,
            torch.stack([_filled(b, width) for b in bias]) if bias else none,
            _filled(last, outputs, width),
            last_bias.detach().contiguous(),
            none if form.matrix is None else form.matrix.detach().contiguous(),
            none if form.base is None else form.base.detach().contiguous(),
            torch.as_tensor(source, dtype=like.dtype, device=like.device),
            torch.as_tensor(change, dtype=like.dtype, device=like.device),
            none if form.scale is None else form.scale.detach().reshape(1),
        )
        n, (nodes, count) = len(y0), (times.shape[1], since.shape[1])
        whole = (tensor.to(torch.int32).contiguous() for tensor in (mesh.reset, mesh.period, mesh.wanted))
        reset, period, wanted = whole
        self.clock = kernels.Clock(
            times, reset, jump, input_, period, wanted, since, n, nodes, count, len(shift) // max(n, 1)
        )
        self.arguments = self.net, self.clock[:-4], *self.clock[-4:]  # the sizes each by itself
        # the clamped tanh of the kernel would turn a NaN latent into a finite rate: such subjects fail here
        lost = ~form.shift.detach().isfinite().flatten(1).all(dim=1, keepdim=True)
        self.initial, self.table = y0.detach().masked_fill(lost, torch.nan).contiguous(), _table(y0.device)
        self.form, self.blocks = form, -(-n // _BLOCK)
        self.constants = {
            "D": states,
            "COLUMNS": columns,
            "H": width,
            "LAYERS": len(hidden),
            "OUTPUTS": outputs,
            "ACTIVATION": {"tanh": kernels.TANH, "silu": kernels.SILU, "softplus": kernels.SOFTPLUS}[
                form.activation
            ].value,
            "LOGARITHM": form.scale is not None,
            "MATRIX": form.matrix is not None,
            "FLOWS": form.base is not None,
            "PRECISION": "ieee" if y0.is_cuda and torch.cuda.get_device_capability(y0.device) < (8, 0) else "tf32x3",
            "BLOCK": _BLOCK,
            "num_warps": 4 if width <= 32 else 8,
            "num_stages": 1,  # nothing is fetched ahead: the next weights are the same
        }

    def forward(self, engine: RungeKutta, record: bool) -> tuple[Tensor, Tensor, Tensor, Any]:
        """States, status, evaluations of each subject, and the steps."""
        n, count, states = self.clock.subjects, self.clock.count, self.constants["D"]
        like = self.initial
        status, evaluations, last = (torch.zeros(n, dtype=torch.int32, device=like.device) for _ in range(3))
        stretches = int((self.clock.times.diff(dim=1) > 0).sum())
        capacity = min(max(_STEPS * stretches, 1), _MOST) if record else 1
        while True:
            out = like.new_full((n, count, states), torch.nan)
            steps = _kernels().Steps(
                like.new_empty(capacity, tsit5_coefficients.STAGES + 1, states),
                like.new_empty(capacity, 2),
                torch.empty(capacity, 4, dtype=torch.int32, device=like.device),
                last,
                torch.zeros(1, dtype=torch.int32, device=like.device),
            )
            with torch.cuda.device_of(like):  # type: ignore[no-untyped-call]
                _kernels().forward[(self.blocks,)](
                    *self.arguments, steps, capacity, like, self.table, engine.rtol, engine.atol,
                    engine.max_evaluations, out, status, evaluations, RECORD=record, **self.constants,
                )  # fmt: skip
            # the same steps again, now that their number is known
            if not record or (taken := int(steps.taken)) <= capacity:
                return out, status, evaluations, steps
            capacity = taken

    def backward(self, steps: Any, status: Tensor, upstream: Tensor) -> Any:
        """The gradients of Σ upstream·states, those of the weights still a sum for each program."""
        programs = min(self.blocks, _PROGRAMS)
        shared = ("first", "hidden", "bias", "last", "last_bias")
        own = {name: torch.zeros_like(getattr(self.net, name)) for name in ("shift", "matrix", "base")}
        own |= {name: torch.zeros_like(getattr(self.clock, name)) for name in ("times", "jump", "input", "since")}
        sums = {name: (tensor := getattr(self.net, name)).new_zeros(programs, *tensor.shape) for name in shared}
        gradients = _kernels().Gradients(**own, **sums, initial=torch.zeros_like(self.initial))
        with torch.cuda.device_of(upstream):  # type: ignore[no-untyped-call]
            _kernels().backward[(programs,)](
                *self.arguments, steps, gradients, upstream, self.table, status, **self.constants
            )
        return gradients._replace(**{name: tensor.sum(0) for name, tensor in sums.items()})


class _Solve(torch.autograd.Function):
    """Forward and reverse sweep as one operation of torch's graph."""

    @staticmethod
    def forward(
        ctx: Any, form: Perceptron, mesh: Mesh, engine: RungeKutta, ended: dict[str, Any], *tensors: Tensor
    ) -> Tensor:
        problem = _Problem(form, mesh, tensors[0], tensors[1:5])
        out, status, evaluations, steps = problem.forward(engine, any(ctx.needs_input_grad))
        ended["status"], ended["evaluations"] = status.long(), int(evaluations.sum())
        ctx.saved = problem, status, steps
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
        problem, status, steps = ctx.saved
        to, form = problem.backward(steps, status, upstream.contiguous()), problem.form
        first, *hidden, last = form.weights
        weights = [to.first[:, : first.shape[0]].T]
        weights += [g[: w.shape[0], : w.shape[1]] for g, w in zip(to.hidden, hidden, strict=False)]
        weights += [to.last[:, : last.shape[1]]]
        biases = [g[: len(b)] for g, b in zip(to.bias, form.biases[:-1], strict=False)] + [to.last_bias]
        shift = to.shift[:, : form.shift.shape[-1]].reshape(form.shift.shape)
        matrix = None if form.matrix is None else to.matrix.view_as(form.matrix)
        base = None if form.base is None else to.base.view_as(form.base)
        own = (to.initial, to.times, to.jump, to.input, to.since, shift, matrix, base)
        return (None,) * 4 + (*own, *weights, *biases)


def covers(like: Tensor) -> bool:
    """Whether the kernels run where this tensor ``[subject, state]`` is, at its precision and with so many states."""
    on_nvidia = like.device.type == "cuda" and torch.version.cuda is not None
    return on_nvidia and like.dtype == torch.float32 and like.shape[-1] <= _STATES and _installed()


def fits(form: Perceptron) -> bool:
    """Whether the kernels have room for the layers of a field."""
    return form.weights[0].shape[0] <= _WIDTH and len(form.weights) <= _LAYERS + 1


def integrate(form: Perceptron, y0: Tensor, mesh: Mesh, engine: RungeKutta) -> tuple[Tensor, Tensor, int]:
    """States at the wanted times ``[subject, time, state]``, status ``[subject]``, evaluations of the field."""
    ended: dict[str, Any] = {}
    since = mesh.wanted_times - mesh.times.gather(1, mesh.wanted)
    order = sorted_by(since.detach(), mesh.wanted)
    clock = replace(mesh, wanted=mesh.wanted.gather(1, order))
    tensors = (y0, mesh.times, mesh.jump, mesh.input, since.gather(1, order), form.shift, form.matrix, form.base)
    met: Tensor = _Solve.apply(  # type: ignore[no-untyped-call]
        form, clock, engine, ended, *tensors, *form.weights, *form.biases
    )
    back = torch.argsort(order, dim=1)
    states = met.gather(1, back[..., None].expand_as(met))
    return states, ended["status"], ended["evaluations"]
