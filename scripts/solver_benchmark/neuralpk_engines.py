"""Gradient steps of neuralpk, through its public `solve`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from neuralpk import solve
from neuralpk.cohort import Cohort, Dose, Subject
from neuralpk.cohort_batch import CohortBatch, collate
from neuralpk.dynamics import Dynamics, Perceptron
from solver_benchmark.torch_engines import Step, device_peak, slope, stepper
from solver_benchmark.workloads import ATOL, LATENT, RTOL, Workload

__all__ = ["device_peak", "gradient_step"]


class BenchmarkDynamics(Dynamics):
    """The vector field of a workload; theta contains the latents of a subject."""

    matrix: Tensor

    def __init__(self, workload: Workload) -> None:
        super().__init__()
        self.states = workload.states
        self.parameter_names = tuple(f"z{k}" for k in range(1, LATENT + 1))
        self.register_buffer("matrix", torch.tensor(workload.matrix))
        self.weights = nn.ParameterList(map(torch.tensor, workload.weights))

    def forward(self, t: Tensor, y: Tensor, theta: Tensor) -> Tensor:
        return slope(y, theta, self.matrix, self.weights)

    def perceptron(self, theta: Tensor) -> Perceptron:
        w1, b1, w2, b2, w3, b3 = self.weights
        others = len(self.states) - 2  # states that the network neither reads nor changes
        return Perceptron(
            shift=nn.functional.linear(theta, w1[:, 2:], b1),
            weights=(nn.functional.pad(w1[:, :2], (others, 0)), w2, nn.functional.pad(w3, (0, 0, others, 0))),
            biases=(b2, nn.functional.pad(b3, (others, 0))),
            activation="tanh",
            matrix=self.matrix.expand(*theta.shape[:-1], -1, -1),
        )


def _batch(workload: Workload) -> CohortBatch:
    """The cohort; a record without a value at time 0, before the doses, makes every subject start at time 0."""
    doses = tuple(Dose(g.time, g.amount, g.state + 1, duration=g.duration, row=1) for g in workload.given)
    start = np.zeros(1)
    return collate(
        Cohort(
            Subject(str(k), np.append(start, times), np.full(1 + len(times), np.nan), doses)
            for k, times in enumerate(workload.times.astype(float))
        )
    )


def gradient_step(workload: Workload, device: str, engine: str, **options: Any) -> Step:
    """A gradient step with an engine of `neuralpk.solve`: the name of its class, and its options."""
    solver = getattr(solve, engine)(rtol=RTOL, atol=ATOL, **options)
    dynamics = BenchmarkDynamics(workload).to(device)
    batch = _batch(workload).to(device)
    theta, times = torch.tensor(workload.latents, device=device), torch.tensor(workload.times, device=device)
    y0 = torch.tensor(workload.y0, device=device).repeat(len(batch), 1)

    def predict() -> Tensor:
        trajectory = solver.solve(dynamics, theta[:, None], batch, times, y0=y0)
        trajectory.check(batch.ids)
        return trajectory.states

    return stepper(list(dynamics.parameters()), predict, torch.tensor(workload.targets, device=device))
