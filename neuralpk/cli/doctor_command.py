"""``neuralpk doctor``: versions, devices, and the accuracy of solutions and gradients on this machine."""

from __future__ import annotations

import os
import time
from importlib import metadata

import torch
from packaging.requirements import Requirement
from torch import Tensor

from neuralpk.cohort import Dose
from neuralpk.dynamics import CompartmentModel
from neuralpk.run_record import machine, versions
from neuralpk.solve import Auto, Engine, Exact, RungeKutta, solve
from neuralpk.solve.compiled.thread_chunks import kernel_threads

_DOSES = [[Dose(0.0, 100.0), Dose(12.0, 100.0, rate=50.0)]]
_TIMES = torch.tensor([0.5, 2.0, 6.0, 13.0, 24.0], dtype=torch.float64)
_TIGHT = RungeKutta(1e-11, 1e-12)
_STEP = 1e-4  # of a difference, relative
_LARGEST_ERROR = 1e-3  # of a gradient, relative: a hundred times the default tolerance
_MODELS: tuple[tuple[str, CompartmentModel, list[float], Engine], ...] = (
    ("two compartments, oral", CompartmentModel(2, "first_order"), [4.0, 70.0, 8.0, 50.0, 1.0], Exact()),
    (
        "Michaelis-Menten elimination",
        CompartmentModel(1, "none", "michaelis_menten"),
        [10.0, 1.0, 20.0],
        _TIGHT,
    ),
)


def doctor() -> None:
    """Print versions, devices and threads, solve two models with their gradients, and say what is wrong.

    Raises:
        ValueError: a version that neuralpk does not support, or gradients that are wrong.
    """
    found = versions()
    print("\n".join(f"{name:<12} {version}" for name, version in found.items()))
    print(f"{'machine':<12} {machine()}, {os.cpu_count()} cores, {kernel_threads()} used by the kernels of a command")
    devices = [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())]
    print(f"{'GPU':<12} {', '.join(devices) or 'none that torch can use'}")
    wrong = unsupported(found)
    for name, dynamics, values, tight in _MODELS:
        began = time.perf_counter()
        error = gradient_error(dynamics, torch.tensor([values], dtype=torch.float64), tight)
        seconds = time.perf_counter() - began
        print(f"{name}: gradient within {error:.1e} of differences of an exact solution ({seconds:.1f} s)")
        if not error <= _LARGEST_ERROR:
            wrong.append(f"the gradient of {name} is off by {error:.1e}")
    if wrong:
        raise ValueError("; ".join(wrong))
    print("Nothing is wrong")


def unsupported(found: dict[str, str]) -> list[str]:
    """Versions that neuralpk does not support, a sentence each.

    Args:
        found: versions by name of the package.
    """
    asked = [Requirement(text) for text in metadata.requires("neuralpk") or []]
    wanted = {one.name: one.specifier for one in asked if one.marker is None}
    return [
        f"{name} {version} is not supported: neuralpk needs {name}{wanted[name]}"
        for name, version in found.items()
        if name in wanted and not wanted[name].contains(version, prereleases=True)
    ]


def gradient_error(dynamics: CompartmentModel, theta: Tensor, tight: Engine) -> float:
    """Relative error of the gradient of a mean concentration in single precision at the default tolerance, beside
    differences of accurate solutions in double precision.

    Args:
        dynamics: the model.
        theta: float64, ``[1, parameter]``.
        tight: the engine of the accurate solutions.
    """
    single = theta.float().requires_grad_(True)
    (slope,) = torch.autograd.grad(_mean_value(dynamics, single, Auto()), single)
    differences = torch.zeros_like(theta)
    for k in range(theta.shape[1]):
        step = torch.zeros_like(theta)
        step[0, k] = _STEP * theta[0, k]
        ahead, behind = (_mean_value(dynamics, theta + sign * step, tight) for sign in (1, -1))
        differences[0, k] = (ahead - behind) / (2 * step[0, k])
    # relative to what each parameter is: volumes are large and their derivatives small
    return float(((slope.double() - differences) * theta).norm() / (differences * theta).norm())


def _mean_value(dynamics: CompartmentModel, theta: Tensor, engine: Engine) -> Tensor:
    found = solve(dynamics, theta, _TIMES.to(theta.dtype), _DOSES, engine=engine)
    found.check()
    return dynamics.observe(found.states, found.theta).mean()
