"""Linear systems over the clock of every subject, forward and back: dy/dt = K·y + input between the nodes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from neuralpk.solve.compiled import modes
from neuralpk.solve.mesh import Mesh

_CHUNK = 512  # subjects that a thread takes at a time

Array = NDArray[Any]
_kernel = njit(nogil=True, cache=True, error_model="numpy")


@_kernel
def _room(periods, n):
    """Working memory of a thread: the modes of every period and whether they may be used, and scratch."""
    return (
        (np.empty(periods, np.bool_), np.empty((periods, n)), np.empty((periods, n, n)), np.empty((periods, n, n))),
        (np.empty((5, n)), np.empty((5, n, n))),
        (np.empty((6, max(n + 1, 4), n + 1)), np.empty((modes.TERMS, n + 1))),
        np.empty((modes.SQUARINGS + 1, n + 1, n + 1)),
    )


@_kernel
def _step(k, period, y, u, h, out, room):
    """out = the state a time h after y under the input u."""
    (modal, rate, right, left), (vectors, _), (work, terms), powers = room
    if modal[period]:
        modes.modal_step(rate[period], right[period], left[period], y, u, h, out, vectors)
    else:
        modes.series_step(k[period], y, u, h, out, work, terms, powers)


@_kernel
def _states(times, reset, jump, input_, period, k, y0, last, states, room):
    """State just after each node up to the last, into ``states [node, state]``; the modes of every period into room."""
    (modal, rate, right, left), (_, matrices), _, _ = room
    for p in range(len(k)):
        modal[p] = modes.decompose(k[p], rate[p], right[p], left[p], matrices)
    states[0] = y0
    for node in range(last + 1):
        state = states[node]
        if node > 0 and not reset[node]:
            h = times[node] - times[node - 1]
            _step(k, period[node - 1], states[node - 1], input_[node - 1], h, state, room)
        if reset[node]:
            state[:] = 0.0
        for i in range(len(state)):
            state[i] += jump[node, i]


@_kernel
def _forward(first, end, times, reset, jump, input_, period, wanted, wanted_times, k, y0, out):
    """States at the wanted times of the subjects from first to before end."""
    n = y0.shape[1]
    room = _room(k.shape[1], n)
    states = np.empty((times.shape[1], n))
    for s in range(first, end):
        _states(times[s], reset[s], jump[s], input_[s], period[s], k[s], y0[s], wanted[s].max(), states, room)
        for t in range(wanted.shape[1]):
            node = wanted[s, t]
            h = wanted_times[s, t] - times[s, node]
            _step(k[s], period[s, node], states[node], input_[s, node], h, out[s, t], room)


@_kernel
def _pull(k, period, y, u, h, a, dy, du, dk, dmodes, end, room):
    """The adjoint a of the result of `_step`, pulled back: dy is set; du, dk and dmodes grow; dL/dh is returned."""
    (modal, rate, right, left), (vectors, _), (work, terms), powers = room
    _step(k, period, y, u, h, end, room)
    if modal[period]:
        modes.modal_pull(rate[period], right[period], left[period], y, u, h, a, dy, du, dmodes[period], vectors)
    else:
        modes.series_pull(k[period], y, u, h, a, dy, du, dk[period], work, terms, powers)
    dh = 0.0
    for i in range(len(y)):
        slope = u[i]
        for j in range(len(y)):
            slope += k[period, i, j] * end[j]
        dh += a[i] * slope
    return dh


@_kernel
def _backward(
    first, end, times, reset, jump, input_, period, wanted, wanted_times, k, y0,
    a, dtimes, djump, dinput, dwanted_times, dk, dy0,
):  # fmt: skip
    """Gradients of the subjects from first to before end for a = dL/d(states at the wanted times); they start at 0.

    ``djump`` collects the adjoint of the state after each node, which is that of the jump there.
    """
    n = y0.shape[1]
    room = _room(k.shape[1], n)
    modal, _, right, left = room[0]
    states, dmodes, before, after = np.empty((times.shape[1], n)), np.empty_like(k[0]), np.empty(n), np.empty(n)
    for s in range(first, end):
        last = wanted[s].max()
        _states(times[s], reset[s], jump[s], input_[s], period[s], k[s], y0[s], last, states, room)
        dmodes[:] = 0.0
        for t in range(wanted.shape[1]):
            node = wanted[s, t]
            h = wanted_times[s, t] - times[s, node]
            dh = _pull(
                k[s], period[s, node], states[node], input_[s, node], h, a[s, t],
                before, dinput[s, node], dk[s], dmodes, after, room,
            )  # fmt: skip
            dwanted_times[s, t] = dh
            dtimes[s, node] -= dh
            for i in range(n):
                djump[s, node, i] += before[i]
        for node in range(last, -1, -1):
            if reset[s, node]:
                continue
            if node == 0:
                dy0[s] = djump[s, 0]
                continue
            h = times[s, node] - times[s, node - 1]
            dh = _pull(
                k[s], period[s, node - 1], states[node - 1], input_[s, node - 1], h, djump[s, node],
                before, dinput[s, node - 1], dk[s], dmodes, after, room,
            )  # fmt: skip
            dtimes[s, node] += dh
            dtimes[s, node - 1] -= dh
            for i in range(n):
                djump[s, node - 1, i] += before[i]
        for p in range(len(modal)):
            if modal[p]:
                modes.modal_gradient(right[p], left[p], dmodes[p], dk[s, p])


def _in_chunks(run: Callable[..., None], subjects: int, *arrays: Array) -> None:
    """Call ``run(first, end, *arrays)`` on chunks of the subjects; how many threads share them changes no bit."""
    threads = min(torch.get_num_threads(), -(-subjects // _CHUNK))
    if threads <= 1:
        run(0, subjects, *arrays)
        return
    with ThreadPoolExecutor(threads) as pool:
        for done in [
            pool.submit(run, first, min(first + _CHUNK, subjects), *arrays) for first in range(0, subjects, _CHUNK)
        ]:
            done.result()


def _array(tensor: Tensor) -> Array:
    """As the kernels take it: contiguous, numbers in double precision (in float32 a long clock would lose its digits)."""
    tensor = tensor.detach()
    array: Array = (tensor.double() if tensor.is_floating_point() else tensor).contiguous().numpy()
    return array


class _Linear(torch.autograd.Function):
    """The kernels as one operation of torch, differentiable once."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors)
        times, _, _, _, _, wanted, _, _, y0 = tensors
        out = np.empty((*wanted.shape, y0.shape[1]))
        _in_chunks(_forward, len(times), *map(_array, tensors), out)
        return torch.from_numpy(out).to(y0.dtype)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, a: Tensor) -> tuple[Tensor | None, ...]:
        times, reset, jump, input_, period, wanted, wanted_times, k, y0 = ctx.saved_tensors
        of = (times, jump, input_, wanted_times, k, y0)
        grads = [np.zeros(tensor.shape) for tensor in of]
        _in_chunks(_backward, len(times), *map(_array, (*ctx.saved_tensors, a)), *grads)
        dtimes, djump, dinput, dwanted_times, dk, dy0 = (torch.from_numpy(g).to(y0.dtype) for g in grads)
        return dtimes, None, djump, dinput, None, None, dwanted_times, dk, dy0


def integrate(k: Tensor, y0: Tensor, mesh: Mesh) -> Tensor:
    """State at the wanted times, ``[subject, time, state]``, of dy/dt = K·y + input; exact but for rounding.

    Differentiable once in K, y0 and the jumps, inputs and times of the mesh; memory grows with subjects · nodes · states.

    Args:
        k: K in each period, ``[subject, period, state, state]``.
        y0: state at the first record, ``[subject, state]``.
        mesh: the clocks; its periods are those of k.
    """
    states: Tensor = _Linear.apply(
        mesh.times, mesh.reset, mesh.jump, mesh.input, mesh.period, mesh.wanted, mesh.wanted_times, k, y0
    )
    return states
