"""Gradient steps with the solvers in PyTorch, in the code that a user of each would write."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from solver_benchmark.workloads import ATOL, RTOL, Array, Workload


class Step(Protocol):
    """Runs one gradient step, or its solve alone, until it is finished; returns the states at the observations."""

    def __call__(self, gradient: bool = True) -> Tensor: ...


torch.set_num_threads(1)
torch.set_float32_matmul_precision("highest")


def device_peak() -> int:
    """Peak memory of tensors on the GPU, in bytes."""
    return torch.cuda.max_memory_allocated()


def stepper(parameters: Sequence[nn.Parameter], predict: Callable[[], Tensor], targets: Tensor) -> Step:
    """The gradient step around a prediction: mean squared error, backward, Adam.

    The learning rate of Adam is 0, so that every repeat solves the same equations.
    """
    adam = torch.optim.Adam(parameters, lr=0.0, fused=True)

    def step(gradient: bool = True) -> Tensor:
        adam.zero_grad()
        with torch.set_grad_enabled(gradient):
            states = predict()
        if gradient:
            (states - targets).square().mean().backward()
            adam.step()
        if states.is_cuda:
            torch.cuda.synchronize()
        return states.detach()

    return step


def slope(y: Tensor, z: Tensor, matrix: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """dy/dt of a workload without its input, ``[subject, state]``."""
    w1, b1, w2, b2, w3, b3 = weights
    others = y.shape[-1] - 2
    x = torch.tanh(nn.functional.linear(torch.cat([y[:, others:], z], dim=-1), w1, b1))
    x = nn.functional.linear(torch.tanh(nn.functional.linear(x, w2, b2)), w3, b3)
    return y @ matrix.T + (nn.functional.pad(x, (others, 0)) if others else x)


class Field(nn.Module):
    """The vector field with the input of a segment; it does not depend on t."""

    def __init__(self, workload: Workload, device: str, weights: nn.ParameterList, flow: Array) -> None:
        super().__init__()
        self.latents = torch.tensor(workload.latents, device=device)
        self.matrix = torch.tensor(workload.matrix, device=device)
        self.weights = weights
        self.flow = torch.tensor(flow, device=device) if flow.any() else None

    def forward(self, t: Tensor | float, y: Tensor) -> Tensor:
        dy = slope(y, self.latents, self.matrix, self.weights)
        return dy if self.flow is None else dy + self.flow


Solve = Callable[[nn.Module, Tensor, float, float, Tensor], Tensor]
"""(slope, y, start, end, times [subject, slot]) -> states ``[subject, slot, state]``; the last slot is at `end`."""


def _step(workload: Workload, device: str, solve: Solve) -> Step:
    """A gradient step with a solver that restarts at every dose."""
    weights = nn.ParameterList(torch.tensor(array, device=device) for array in workload.weights)
    times, where = workload.slots
    slots, index = torch.tensor(times, device=device), tuple(torch.tensor(i, device=device) for i in where)
    y0 = torch.tensor(workload.y0, device=device).expand(len(times), -1)
    jumps = [torch.tensor(segment.jump, device=device) for segment in workload.segments]
    fields = [Field(workload, device, weights, segment.input) for segment in workload.segments]

    def predict() -> Tensor:
        y, states = y0, []
        for k, segment in enumerate(workload.segments):
            y = y + jumps[k]
            states.append(solve(fields[k], y, segment.start, segment.end, slots[:, k]))
            y = states[-1][:, -1]
        return torch.stack(states, dim=1)[index]

    return stepper(list(weights), predict, torch.tensor(workload.targets, device=device))


def torchdiffeq(workload: Workload, device: str, adjoint: bool) -> Step:
    """torchdiffeq solves all subjects at the same times: here at the union of their times."""
    import torchdiffeq

    odeint = torchdiffeq.odeint_adjoint if adjoint else torchdiffeq.odeint
    subject = torch.arange(len(workload.times), device=device)[:, None]

    def solve(field: nn.Module, y: Tensor, start: float, end: float, times: Tensor) -> Tensor:
        union, where = torch.unique(times, return_inverse=True)
        union = torch.cat([union.new_tensor([start]), union])
        return odeint(field, y, union, rtol=RTOL, atol=ATOL, method="dopri5")[1:][where, subject]

    return _step(workload, device, solve)


def torchode(workload: Workload, device: str) -> Step:
    """torchode: every subject has its times and steps; the gradient is that of its operations, without compilation."""
    import torchode as to

    def solve(field: nn.Module, y: Tensor, start: float, end: float, times: Tensor) -> Tensor:
        term = to.ODETerm(field)
        controller = to.IntegralController(atol=ATOL, rtol=RTOL, term=term)
        solver = to.AutoDiffAdjoint(to.Dopri5(term=term), controller)
        bounds = (y.new_full((len(y),), bound) for bound in (start, end))
        solution = solver.solve(to.InitialValueProblem(y, *bounds, t_eval=times))
        if bool((solution.status != 0).any()):
            raise RuntimeError(f"torchode left {int((solution.status != 0).sum())} subjects unsolved")
        return solution.ys

    return _step(workload, device, solve)


# the method of Dormand & Prince 1980; the last row gives the end of the step
_STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)


def fixed(workload: Workload, device: str, longest: float) -> Step:
    """Dormand–Prince in equal steps of at most `longest`, with cubic interpolation: the time without error control."""

    def solve(field: nn.Module, y: Tensor, start: float, end: float, times: Tensor) -> Tensor:
        steps = -int(-(end - start) // longest)
        h = (end - start) / steps
        states, slopes = [y], [field(start, y)]
        for _ in range(steps):
            stages = [slopes[-1]]
            for row in _STAGES:
                own = sum(weight * stage for weight, stage in zip(row, stages, strict=True) if weight)
                state = states[-1] + h * own
                stages.append(field(start, state))
            states.append(state)
            slopes.append(stages[-1])
        y, dy = torch.stack(states, dim=1), h * torch.stack(slopes, dim=1)
        place = (times - start) / h
        step = place.long().clamp(max=steps - 1)
        s, left = (place - step)[..., None], step[..., None].expand(-1, -1, y.shape[-1])
        rise = y.gather(1, left + 1) - y.gather(1, left)
        first, last = dy.gather(1, left) - rise, rise - dy.gather(1, left + 1)
        return y.gather(1, left) + s * rise + s * (1 - s) * ((1 - s) * first + s * last)

    return _step(workload, device, solve)
