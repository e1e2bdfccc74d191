"""torchdiffeq between the nodes of every subject: the reference.

Interval j between two nodes is solved for all subjects together on s in [0, 1],
dy/ds = h_j·(f(t_j + s·h_j, y, theta) + input_j), so that each subject has its own times; padding has length 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from neuralpk.cohort_batch import theta_in
from neuralpk.dynamics import Dynamics
from neuralpk.solve.event_nodes import Mesh
from neuralpk.solve.refuse_captured_tensors import refuse_captured_tensors
from neuralpk.solve.solve_result import EngineFailure, Status

if TYPE_CHECKING:
    from neuralpk.solve.engines import TorchDiffEq


Field = Callable[[Tensor, Tensor], Tensor]
"""(s, y) -> dy/ds."""


@dataclass
class _Counter:
    """Counter of the evaluations of the field, forward and backward, which stops a solve that takes too many."""

    limit: int
    total: int = 0

    def counted(self, field_: Field) -> Field:
        """The field of one interval; calling it raises an `EngineFailure` once the limit is passed. torchdiffeq itself
        only asserts, and does nothing under ``python -O``."""
        spent = {True: 0, False: 0}  # the adjoint goes forward without gradients and backward with, each to the limit

        def counted_(s: Tensor, y: Tensor) -> Tensor:
            sweep = torch.is_grad_enabled()
            self.total += 1
            spent[sweep] += 1
            if spent[sweep] > self.limit:
                raise EngineFailure(Status.MAX_EVALUATIONS)
            return field_(s, y)

        return counted_


def _largest_of_subjects(values: Tensor) -> Tensor:
    """RMS over the state of each subject, then the largest over subjects. In the default norm of torchdiffeq, a mean
    over the whole batch, many easy subjects hide the error of a hard one."""
    return values.square().mean(-1).sqrt().amax()


def _adjoint_norm(tensors: tuple[Tensor, ...]) -> Tensor:
    """The same for the adjoint's state: time, y, dL/dy, then the integrals dL/dparameter."""
    _, y, a, *parameters = tensors
    rms = [p.square().mean().sqrt() for p in parameters if p.numel()]
    return torch.stack([_largest_of_subjects(y), _largest_of_subjects(a), *rms]).amax()


def _options(engine: TorchDiffEq, longest: float, end: Tensor, norm: Callable[..., Tensor]) -> dict[str, Any]:
    if engine.fixed:
        assert engine.step is not None
        return {"step_size": 1.0 / max(1, math.ceil(longest / engine.step))}
    # a step that ends exactly at the end avoids the error of the dense output; most intervals between two records are
    # one step long, so that trying the whole interval first is cheaper than estimating a first step
    return {"norm": norm, "step_t": end, "first_step": torch.ones_like(end)[0]}


def _stretch(
    dynamics: Dynamics, y: Tensor, theta: Tensor, mesh: Mesh, node: int, engine: TorchDiffEq, counter: _Counter
) -> Tensor:
    """Solve from one node to the next."""
    import torchdiffeq  # SciPy's integrators come with it, for which the other engines do not wait

    start = mesh.times[:, node]
    # not `… - start`: tensors that the adjoint differentiates for must not depend on each other, or paths count twice
    h = mesh.times[:, node + 1] - mesh.times[:, node]
    longest = float(h.detach().amax())
    if longest <= 0.0:
        return y
    own, input_ = theta_in(theta, mesh.period[:, node : node + 1])[:, 0], mesh.input[:, node]

    @counter.counted
    def field_(s: Tensor, y: Tensor) -> Tensor:
        slope: Tensor = dynamics(start + s * h, y, own) + input_
        return h[:, None] * slope

    s = torch.tensor([0.0, 1.0], dtype=y.dtype, device=y.device)
    common: dict[str, Any] = {"rtol": engine.rtol, "atol": engine.atol, "method": engine.method}
    common["options"] = _options(engine, longest, s[1:], _largest_of_subjects)
    if engine.gradient != "adjoint" or not torch.is_grad_enabled():
        out: Tensor = torchdiffeq.odeint(field_, y, s, **common)
        return out[-1]
    # the adjoint only reaches these: weights, theta, and the times and inputs where they have a gradient
    tensors = (*dynamics.parameters(), own, start, h, input_)
    out = torchdiffeq.odeint_adjoint(
        field_,
        y,
        s,
        **common,
        adjoint_params=tuple(p for p in tensors if p.requires_grad),
        adjoint_options=_options(engine, longest, s[:1], _adjoint_norm),
    )
    return out[-1]


def integrate(dynamics: Dynamics, y0: Tensor, theta: Tensor, mesh: Mesh, engine: TorchDiffEq) -> tuple[Tensor, int]:
    """State at the wanted times, ``[subject, time, state]``, each of which is a node; evaluations of the field.

    Raises:
        EngineFailure: the evaluations ran out or the step size vanished for some subject.
    """
    if engine.gradient == "adjoint":
        refuse_captured_tensors(dynamics, y0, theta)
    counter = _Counter(engine.max_evaluations)
    y, states = y0, []
    for node in range(mesh.times.shape[1]):
        if node > 0:
            try:
                y = _stretch(dynamics, y, theta, mesh, node - 1, engine, counter)
            except AssertionError as error:  # how torchdiffeq reports a vanished step
                status = Status.NON_FINITE if "non-finite" in str(error) else Status.STEP_UNDERFLOW
                raise EngineFailure(status) from error
        y = torch.where(mesh.reset[:, node, None], 0.0, y) + mesh.jump[:, node]
        states.append(y)
    reached = torch.stack(states, dim=1).gather(1, mesh.wanted[..., None].expand(-1, -1, y.shape[1]))
    return reached, counter.total
