"""``neuralpk warm-up``: the kernels of the solver, compiled before somebody waits for them."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from neuralpk.cohort import Dose
from neuralpk.dynamics import CompartmentModel, Dynamics, NeuralField
from neuralpk.scaling import Scaling
from neuralpk.solve import solve
from neuralpk.solve.compiled.kernels_on_disk import folder

_DOSES = [[Dose(0.0, 100.0, interval=12.0, additional=1), Dose(30.0, 100.0, rate=50.0)]]
_TIMES = [0.5, 2.0, 6.0, 13.0, 24.0, 36.0]
_PRECISIONS = {"single": torch.float32, "double": torch.float64}
_MODELS: tuple[tuple[str, Dynamics, list[float]], ...] = (
    ("linear compartments", CompartmentModel(2, "first_order"), [4.0, 70.0, 8.0, 50.0, 1.0]),
    ("equations", CompartmentModel(1, "none", "michaelis_menten"), [10.0, 1.0, 20.0]),
    ("networks", NeuralField(latent_size=1, hidden=16), [40.0, 0.5]),
)
"""Of every kind of kernel a model that needs it, with its parameters."""


def warm_up() -> None:
    """Compile the kernels of the solver, and keep them for every later run of this user: else the first run that needs
    a kernel waits for it. Kernels that are there already take no time."""
    began = time.perf_counter()
    for name, dynamics, values in _MODELS:
        dynamics.build(Scaling())
        for precision, dtype in _PRECISIONS.items():
            print(f"kernels of {name}, {precision} precision: ", end="", flush=True)
            start = time.perf_counter()
            _use(dynamics.to(dtype), torch.tensor([values], dtype=dtype))
            print(f"{time.perf_counter() - start:.1f} s", flush=True)
    print(f"{time.perf_counter() - began:.1f} s in all; kept in {folder()}")


def _use(dynamics: Dynamics, theta: Tensor) -> None:
    """Solve, and differentiate the solution."""
    theta.requires_grad_()
    with torch.enable_grad():
        found = solve(dynamics, theta, torch.tensor([_TIMES], dtype=theta.dtype), _DOSES)
        found.check()
        torch.autograd.grad(found.states.square().mean(), theta)
