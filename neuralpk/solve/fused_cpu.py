"""Fields that are multilayer perceptrons, on the CPU: the connection between torch and the compiled kernels."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable

from neuralpk.dynamics import Perceptron
from neuralpk.solve.compiled import perceptron as kernel
from neuralpk.solve.compiled.thread_chunks import in_chunks
from neuralpk.solve.event_nodes import Mesh
from neuralpk.solve.solve_result import Status
from neuralpk.solve.tsit5_coefficients import STAGES

if TYPE_CHECKING:
    from neuralpk.solve.engines import RungeKutta

_CHUNK = 64  # subjects whose gradients are summed before those of others: the same sums on any number of threads
_ACTIVATIONS = {"tanh": kernel.TANH, "silu": kernel.SILU, "softplus": kernel.SOFTPLUS}


def _filled(array: NDArray[Any], *sizes: int) -> NDArray[Any]:
    """The array with zeros after it, each side up to a multiple of its size."""
    shape = tuple(side + -side % size for side, size in zip(array.shape, sizes, strict=True))
    if shape == array.shape:
        return np.ascontiguousarray(array)
    out = np.zeros(shape, array.dtype)
    out[tuple(slice(side) for side in array.shape)] = array
    return out


def _order(wanted: NDArray[Any], since: NDArray[Any]) -> NDArray[Any]:
    """The order in which the wanted times of a subject are reached; most often they are sorted already."""
    later = (wanted[:, 1:] > wanted[:, :-1]) | ((wanted[:, 1:] == wanted[:, :-1]) & (since[:, 1:] >= since[:, :-1]))
    if later.all():
        return np.tile(np.arange(wanted.shape[1]), (len(wanted), 1))
    return np.ascontiguousarray(np.lexsort((since, wanted)))


def _array(tensor: Tensor) -> NDArray[Any]:
    return np.ascontiguousarray(tensor.detach().numpy())


def _rows(tensor: Tensor | None, dtype: Any, sides: int) -> NDArray[Any]:
    """``[subject, (period,) …]`` as ``[subject·period, …]``; no row where the tensor is None."""
    if tensor is None:
        return np.zeros((0,) * (sides + 1), dtype)
    return _array(tensor.reshape(-1, *tensor.shape[tensor.dim() - sides :]))


def _network(form: Perceptron) -> kernel.Network:
    first, *hidden, last = (_array(weight) for weight in form.weights)
    *bias, last_bias = (_array(b) for b in form.biases)
    width, kind = first.shape[0] + -first.shape[0] % 16, first.dtype
    stacked = np.zeros((len(hidden), width, width), kind)
    biases = np.zeros((len(hidden), width), kind)
    for k, (weight, b) in enumerate(zip(hidden, bias, strict=True)):
        stacked[k, : weight.shape[0], : weight.shape[1]] = weight
        biases[k, : len(b)] = b
    flows = np.array(form.flows, np.int64).reshape(-1, 2)
    return kernel.Network(
        shift=_filled(_rows(form.shift, kind, 1), 1, 16),
        first=_filled(first.T, 4, 16),
        hidden=np.ascontiguousarray(stacked.transpose(0, 2, 1)),
        hidden_back=stacked,
        bias=biases,
        last=_filled(last, 4, 16),
        last_bias=last_bias,
        matrix=_rows(form.matrix, kind, 2),
        base=_rows(form.base, kind, 1),
        source=np.ascontiguousarray(flows[:, 0]),
        destination=np.ascontiguousarray(flows[:, 1]),
        activation=_ACTIVATIONS[form.activation],
        scale=0.0 if form.scale is None else float(form.scale),
    )


class _Solve(torch.autograd.Function):
    """Forward and reverse sweep as one operation of torch's graph."""

    @staticmethod
    def forward(
        ctx: Any, form: Perceptron, mesh: Mesh, engine: RungeKutta, ended: dict[str, Any], *tensors: Tensor
    ) -> Tensor:
        y0, times, jump, input_, since = tensors[:5]
        net = _network(form)
        wanted, since_ = _array(mesh.wanted), _array(since)
        clock = kernel.Clock(
            _array(times),
            _array(mesh.reset),
            _array(jump),
            _array(input_),
            _array(mesh.period),
            wanted,
            since_,
            _order(wanted, since_),
            len(net.shift) // max(len(y0), 1),
        )
        out = np.full((*wanted.shape, y0.shape[1]), np.nan, since_.dtype)
        status = np.zeros(len(y0), np.int64)
        initial, record = _array(y0), any(ctx.needs_input_grad)
        # the clamped tanh of the kernel would turn a NaN latent into a finite rate: such subjects fail here
        lost = np.logical_not(np.isfinite(net.shift.reshape(len(y0), -1)).all(axis=1))
        initial = np.where(lost[:, None], np.nan, initial).astype(initial.dtype)

        def run(begin: int, end: int) -> tuple[kernel.Steps, int]:
            room = kernel.make_work(net, kernel.LANES, back=False), kernel.make_lanes(y0.shape[1])
            limits = engine.rtol, engine.atol, engine.max_evaluations
            result: tuple[kernel.Steps, int] = kernel.forward(
                net, clock, *room, initial, begin, end, *limits, record, out, status
            )
            return result

        chunks = in_chunks(run, len(y0), _CHUNK)
        status[lost] = int(Status.NON_FINITE)
        ended["status"] = torch.from_numpy(status)
        ended["evaluations"] = sum(evaluations for _, evaluations in chunks)
        ctx.saved = (form, net, clock, [steps for steps, _ in chunks], status)
        return torch.from_numpy(out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
        form, net, clock, chunks, status = ctx.saved
        given, states = _array(upstream), upstream.shape[2]
        own = {
            "shift": net.shift,
            "matrix": net.matrix,
            "base": net.base,
            "times": clock.times,
            "jump": clock.jump,
            "input": clock.input,
            "since": clock.since,
        }
        shared = {name: getattr(net, name) for name in ("first", "hidden", "bias", "last", "last_bias")}
        to_own = {name: np.zeros_like(array) for name, array in own.items()}
        initial = np.zeros((len(status), states), given.dtype)

        def run(begin: int, end: int) -> dict[str, NDArray[Any]]:
            to_shared = {name: np.zeros_like(array) for name, array in shared.items()}
            gradients = kernel.Gradients(**to_own, **to_shared, initial=initial)
            room = kernel.make_work(net, STAGES * kernel.LANES, back=True), kernel.make_lanes(states)
            kernel.backward(net, clock, *room, chunks[begin // _CHUNK], begin, end, given, status, gradients)
            return to_shared

        parts = in_chunks(run, len(status), _CHUNK)
        total = {name: functools.reduce(np.add, (part[name] for part in parts)) for name in shared}
        first, *hidden, last = form.weights
        weights = [total["first"].T[: first.shape[0], : first.shape[1]]]
        weights += [w.T[: h.shape[0], : h.shape[1]] for w, h in zip(total["hidden"], hidden, strict=True)]
        weights += [total["last"][: last.shape[0], : last.shape[1]]]
        biases = [b[: len(h)] for b, h in zip(total["bias"], form.biases, strict=False)] + [total["last_bias"]]
        shift = to_own["shift"][:, : form.shift.shape[-1]].reshape(form.shift.shape)
        optional = [
            None if tensor is None else to_own[name].reshape(tensor.shape)
            for name, tensor in (("matrix", form.matrix), ("base", form.base))
        ]
        arrays = [initial, *(to_own[name] for name in ("times", "jump", "input", "since")), shift, *optional]
        arrays += [*weights, *biases]
        return (None,) * 4 + tuple(None if a is None else torch.from_numpy(np.ascontiguousarray(a)) for a in arrays)


def covers(like: Tensor) -> bool:
    """Whether the kernels run where this tensor is."""
    return like.device.type == "cpu"


def integrate(form: Perceptron, y0: Tensor, mesh: Mesh, engine: RungeKutta) -> tuple[Tensor, Tensor, int]:
    """States at the wanted times ``[subject, time, state]``, status ``[subject]``, evaluations of the field."""
    ended: dict[str, Any] = {}
    since = mesh.wanted_times - mesh.times.gather(1, mesh.wanted)
    tensors = (y0, mesh.times, mesh.jump, mesh.input, since, form.shift, form.matrix, form.base)
    states: Tensor = _Solve.apply(  # type: ignore[no-untyped-call]
        form, mesh, engine, ended, *tensors, *form.weights, *form.biases
    )
    return states, ended["status"], ended["evaluations"]
