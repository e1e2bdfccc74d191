"""Linear systems, dy/dt = K·y + input between the nodes of every subject: solutions and gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neuralpk.solve.compiled import rate_matrix_exponential as modes
from neuralpk.solve.compiled.kernels_on_disk import kept
from neuralpk.solve.compiled.thread_chunks import in_chunks
from neuralpk.solve.event_nodes import Mesh

_CHUNK = 512  # subjects that a thread solves at a time

Array = NDArray[Any]
_kernel = kept(nogil=True, error_model="numpy", fastmath={"contract"})


@modes.kernel
def _series_room(n):
    """Working memory of the Taylor series."""
    return (
        np.empty((6, max(n + 1, 4), n + 1)),
        np.empty((modes.TERMS, n + 1)),
        np.empty((modes.SQUARINGS + 1, n + 1, n + 1)),
    )


@modes.kernel
def _last(wanted, s):
    """The last node after which a state of subject s is wanted."""
    last = 0
    for t in range(wanted.shape[1]):
        last = max(last, wanted[s, t])
    return last


@modes.kernel
def _follows(wanted, wanted_times, s, t):
    """Whether the wanted time t and the one before it come after the same node: a series is then short from there."""
    return t > 0 and wanted[s, t] == wanted[s, t - 1] and wanted_times[s, t] >= wanted_times[s, t - 1]


@_kernel
def _decompose(first, end, k, modal, rate, right, left):
    """The modes of K in each period, and whether they may be used, for the subjects `first` to `end` − 1."""
    n = k.shape[2]
    work = np.empty((5, n, n))
    for s in range(first, end):
        for p in range(k.shape[1]):
            modal[s, p] = modes.decompose(k[s, p], rate[s, p], right[s, p], left[s, p], work)


@_kernel
def _forward(
    first, end, times, reset, jump, input_, period, wanted, wanted_times, k, y0, modal, rate, right, left, states, out
):
    """States just after the nodes and at the wanted times, for the subjects `first` to `end` − 1."""
    n, count = y0.shape[1], wanted.shape[1]
    work, terms, powers = _series_room(n)
    after, at, flow = np.empty(n), np.empty((times.shape[1], n)), np.empty((times.shape[1], n))
    since, exponents, sums = np.empty(count), np.empty(count), np.empty((n, count))
    for s in range(first, end):
        nodes = _last(wanted, s) + 1
        driven, all_modal = False, True
        for t in range(count):
            since[t] = wanted_times[s, t] - times[s, wanted[s, t]]
        # first the nodes, one by one; then, unless every period has modes, the wanted times, one by one
        leg = 0
        while leg < nodes + (0 if all_modal else count):
            t = leg - nodes
            node = leg - 1 if t < 0 else wanted[s, t]
            h = times[s, leg] - times[s, node] if t < 0 else since[t]
            p = period[s, node]
            if t < 0 and reset[s, leg]:
                modes.fill(after, 0.0)
            elif leg == 0:
                for i in range(n):
                    after[i] = y0[s, i]
            elif h == 0.0:
                for i in range(n):
                    after[i] = states[s, node, i]
            elif modal[s, p]:
                modes.modal_step(rate, right, s, p, at, flow, node, h, after)
            elif _follows(wanted, wanted_times, s, t):
                h = wanted_times[s, t] - wanted_times[s, t - 1]
                modes.series_step(k[s, p], out[s, t - 1], input_[s, node], h, after, work, terms, powers)
            else:
                modes.series_step(k[s, p], states[s, node], input_[s, node], h, after, work, terms, powers)
            for i in range(n):
                if t < 0:
                    states[s, leg, i] = after[i] + jump[s, leg, i]
                else:
                    out[s, t, i] = after[i]
            if t < 0:
                p = period[s, leg]
                all_modal &= modal[s, p]
                if modal[s, p]:
                    driven |= modes.enter(left, s, p, states, input_, leg, at, flow)
            leg += 1
        if all_modal:
            for p in range(k.shape[1]):
                modes.modal_read(rate, right, s, p, period, at, flow, driven, wanted, since, out, exponents, sums)


@_kernel
def _backward(
    first, end, times, reset, jump, input_, period, wanted, wanted_times, k, y0, modal, rate, right, left, states,
    out, a, dtimes, djump, dinput, dwanted_times, dk, dy0,
):  # fmt: skip
    """Gradients for the subjects `first` to `end` − 1, from a = dL/d(`out`), the states at the wanted times.

    What a series started from another wanted time contributes is added to a. The arrays of the gradients contain zeros
    at the start. ``djump`` collects the gradient with respect to the state after each node, which is also that with
    respect to the jump there.
    """
    n = y0.shape[1]
    work, terms, powers = _series_room(n)
    adjoint, before, after, dmodes = np.empty(n), np.empty(n), np.empty(n), np.empty((k.shape[1], n, n))
    vectors, at, flow = np.empty((4, n)), np.empty((times.shape[1], n)), np.empty((times.shape[1], n))
    for s in range(first, end):
        for p in range(len(dmodes)):
            for i in range(n):
                modes.fill(dmodes[p, i], 0.0)
        nodes = _last(wanted, s) + 1
        for node in range(nodes):
            if modal[s, period[s, node]]:
                modes.enter(left, s, period[s, node], states, input_, node, at, flow)
        for leg in range(nodes + wanted.shape[1] - 1, -1, -1):
            t = leg - nodes
            if t < 0:
                node, h = leg - 1, times[s, leg] - times[s, leg - 1]
            else:
                node, h = wanted[s, t], wanted_times[s, t] - times[s, wanted[s, t]]
            for i in range(n):
                adjoint[i] = djump[s, leg, i] if t < 0 else a[s, t, i]
            if t < 0 and reset[s, leg]:
                continue
            if leg == 0:
                for i in range(n):
                    dy0[s, i] = adjoint[i]
                continue
            p = period[s, node]
            follows = _follows(wanted, wanted_times, s, t) and not modal[s, p]
            if modal[s, p]:
                modes.modal_pull(
                    rate, right, left, s, p, at, flow, node, h, adjoint, after, before, dinput, dmodes, vectors
                )
            else:
                y, u, du = states[s, node], input_[s, node], dinput[s, node]
                if follows:
                    y, h = out[s, t - 1], wanted_times[s, t] - wanted_times[s, t - 1]
                modes.series_pull(k[s, p], y, u, h, adjoint, after, before, du, dk[s, p], work, terms, powers)
            dh = 0.0
            for i in range(n):
                slope = input_[s, node, i]
                for j in range(n):
                    slope += k[s, p, i, j] * after[j]
                dh += adjoint[i] * slope
                if follows:
                    a[s, t - 1, i] += before[i]
                else:
                    djump[s, node, i] += before[i]
            if follows:
                dwanted_times[s, t - 1] -= dh
            else:
                dtimes[s, node] -= dh
            if t < 0:
                dtimes[s, leg] += dh
            else:
                dwanted_times[s, t] += dh
        for p in range(len(dmodes)):
            if modal[s, p]:
                modes.modal_gradient(right[s, p], left[s, p], dmodes[p], dk[s, p])


def _in_chunks(kernel: Callable[..., None], subjects: int, *arrays: Array) -> None:
    in_chunks(lambda first, end: kernel(first, end, *arrays), subjects, _CHUNK)


def _array(tensor: Tensor) -> Array:
    """The tensor as a contiguous array in double precision, so that large times lose no digits."""
    tensor = tensor.detach()
    array: Array = (tensor.double() if tensor.is_floating_point() else tensor).contiguous().numpy()
    return array


class _Linear(torch.autograd.Function):
    """The kernels as one operation of torch, which can be differentiated once."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> Tensor:
        arrays = [_array(tensor) for tensor in tensors]
        nodes, wanted, k = arrays[2].shape, arrays[5].shape, arrays[7]
        found = (np.empty(k.shape[:2], np.bool_), np.empty(k.shape[:3]), np.empty(k.shape), np.empty(k.shape))
        states, out = np.empty(nodes), np.empty((*wanted, nodes[2]))
        _in_chunks(_decompose, len(k), k, *found)
        _in_chunks(_forward, len(k), *arrays, *found, states, out)
        ctx.save_for_backward(*tensors)
        ctx.found = (*found, states, out.copy())
        return torch.from_numpy(out).to(tensors[-1].dtype)

    @staticmethod
    def backward(ctx: Any, a: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True: the gradients would be treated as constants, without a warning
            raise RuntimeError(
                "the compiled exact engine can be differentiated once; for second derivatives call "
                "neuralpk.solve.exact.matrix_exponentials"
            )
        tensors = ctx.saved_tensors
        times, _, jump, input_, _, _, wanted_times, k, y0 = tensors
        grads = [np.zeros(tensor.shape) for tensor in (times, jump, input_, wanted_times, k, y0)]
        _in_chunks(_backward, len(k), *map(_array, tensors), *ctx.found, _array(a).copy(), *grads)
        dtimes, djump, dinput, dwanted_times, dk, dy0 = (torch.from_numpy(grad).to(y0.dtype) for grad in grads)
        return dtimes, None, djump, dinput, None, None, dwanted_times, dk, dy0


def integrate(k: Tensor, y0: Tensor, mesh: Mesh) -> Tensor:
    """State at the wanted times, ``[subject, time, state]``, of dy/dt = K·y + input; exact up to rounding.

    It can be differentiated once in K, y0 and the jumps, inputs and times of the mesh. Memory grows with subjects ×
    nodes × states: no matrix is stored for each node.

    Args:
        k: K in each period, ``[subject, period, state, state]``.
        y0: state at the first record, ``[subject, state]``.
        mesh: the nodes of every subject; its periods are those of k.
    """
    states: Tensor = _Linear.apply(
        mesh.times, mesh.reset, mesh.jump, mesh.input, mesh.period, mesh.wanted, mesh.wanted_times, k, y0
    )
    return states
