"""Fields with compiled code, on the CPU: the connection between torch and the compiled steps."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable

from neuralpk.solve.compiled import steps
from neuralpk.solve.compiled.thread_chunks import in_chunks
from neuralpk.solve.event_nodes import Mesh
from neuralpk.solve.solve_result import Status

if TYPE_CHECKING:
    from neuralpk.solve.engines import RungeKutta

Array = NDArray[Any]
_CHUNK = 128  # subjects whose gradients are summed before those of others: the same sums on any number of threads


class CompiledField(ABC):
    """A vector field that the compiled steps can evaluate and differentiate.

    Attributes:
        tensors: what the field was made from, in the order of `to_tensors`; None for what it has not.
        arrays: the named tuple of its kind (`neuralpk.solve.compiled.steps.field`).
        own: those of the arrays that differ between subjects and have gradients, ``[subject·period, …]``, by name.
        shared: those that all subjects share and that have gradients, by name.
        method: whose steps it takes.
        stiff_steps: steps at the limit of stability after which a subject is stiff.
    """

    tensors: Sequence[Tensor | None]
    arrays: Any
    own: Mapping[str, Array]
    shared: Mapping[str, Array]
    method: steps.Method
    stiff_steps: int

    @abstractmethod
    def finite(self, subjects: int) -> Array:
        """Whether all numbers of each subject are finite, bool ``[subject]``."""

    @abstractmethod
    def gradients(self, **arrays: Array) -> Any:
        """The named tuple of the gradients of this kind: those of `own`, of `shared` and of the events."""

    @abstractmethod
    def to_tensors(self, own: Mapping[str, Array], shared: Mapping[str, Array]) -> list[Array | None]:
        """Gradients with respect to `tensors`."""


def as_array(tensor: Tensor) -> Array:
    """The numbers of a tensor, contiguous, without its gradient."""
    return np.ascontiguousarray(tensor.detach().numpy())


class _Solve(torch.autograd.Function):
    """Forward and reverse sweep as one operation of torch's graph."""

    @staticmethod
    def forward(
        ctx: Any, field: CompiledField, mesh: Mesh, engine: RungeKutta, ended: dict[str, Any], *tensors: Tensor
    ) -> Tensor:
        y0, n = tensors[0], len(tensors[0])
        clock = steps.Clock(**mesh.arrays, periods=len(next(iter(field.own.values()))) // max(n, 1))
        out = np.full((*clock.wanted.shape, y0.shape[1]), np.nan, clock.since.dtype)
        status = np.zeros(n, np.int64)
        initial, record, finite = as_array(y0), any(ctx.needs_input_grad), field.finite(n)
        if not finite.all():
            # a field may turn a NaN into a finite rate (a limit, a maximum): such subjects fail here
            initial = np.where(finite[:, None], initial, np.nan).astype(initial.dtype)
        limits = engine.rtol, engine.atol, engine.max_evaluations, field.stiff_steps

        def run(begin: int, end: int) -> tuple[steps.Steps, int]:
            result: tuple[steps.Steps, int] = steps.forward(
                field.arrays, field.method, clock, initial, begin, end, *limits, record, out, status
            )
            return result

        chunks = in_chunks(run, n, _CHUNK)
        status[~finite] = int(Status.NON_FINITE)
        ended["status"] = torch.from_numpy(status)
        ended["evaluations"] = sum(evaluations for _, evaluations in chunks)
        ctx.saved = (field, clock, [taken for taken, _ in chunks], status)
        return torch.from_numpy(out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
        field, clock, chunks, status = ctx.saved
        given = as_array(upstream)
        events = {name: getattr(clock, name) for name in ("times", "jump", "input", "since")}
        to_own = {name: np.zeros(array.shape, array.dtype) for name, array in (*field.own.items(), *events.items())}
        initial = np.zeros((len(status), given.shape[2]), given.dtype)

        def run(begin: int, end: int) -> dict[str, NDArray[Any]]:
            to_shared = {name: np.zeros(array.shape, array.dtype) for name, array in field.shared.items()}
            gradients = field.gradients(**to_own, **to_shared, initial=initial)
            taken = chunks[begin // _CHUNK]
            steps.backward(field.arrays, field.method, clock, taken, begin, end, given, status, gradients)
            return to_shared

        parts = in_chunks(run, len(status), _CHUNK)
        total = {name: functools.reduce(np.add, (part[name] for part in parts)) for name in field.shared}
        arrays = [initial, *(to_own[name] for name in events), *field.to_tensors(to_own, total)]
        found = zip(arrays, ctx.needs_input_grad[4:], strict=True)
        return (None,) * 4 + tuple(
            torch.from_numpy(np.ascontiguousarray(a)) if needed and a is not None else None for a, needed in found
        )


def covers(like: Tensor) -> bool:
    """Whether the compiled steps run where this tensor is."""
    return like.device.type == "cpu"


def integrate(field: CompiledField, y0: Tensor, mesh: Mesh, engine: RungeKutta) -> tuple[Tensor, Tensor, int]:
    """States at the wanted times ``[subject, time, state]``, status ``[subject]``, evaluations of the field."""
    ended: dict[str, Any] = {}
    tensors = (y0, mesh.times, mesh.jump, mesh.input, mesh.since)
    states: Tensor = _Solve.apply(  # type: ignore[no-untyped-call]
        field, mesh, engine, ended, *tensors, *field.tensors
    )
    return states, ended["status"], ended["evaluations"]
