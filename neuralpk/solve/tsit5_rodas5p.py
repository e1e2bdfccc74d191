"""One step of the explicit method Tsit5 and of the implicit method Rodas5P, for many subjects at once, each with its
step size.

A step gives increments K_i; it ends at y + Σ_i end_i·K_i, its error is about Σ_i error_i·K_i, and at the fraction s of
the step the solution is y + Σ_i K_i·Σ_p dense_ip·s^(p+1).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from neuralpk.dynamics import Dynamics
from neuralpk.solve import rodas5p_coefficients, tsit5_coefficients

Field = Callable[[Tensor, Tensor], Tensor]
"""(t, y) -> dy/dt of some subjects."""


def field(dynamics: Dynamics, theta: Tensor, input_: Tensor) -> Field:
    """The vector field of some subjects between two nodes."""

    def slope(t: Tensor, y: Tensor) -> Tensor:
        dy: Tensor = dynamics(t, y, theta) + input_
        return dy

    return slope


class Scheme(ABC):
    """A one-step method of order 5 with an error estimate and a dense output of order 4."""

    evaluations: int
    end: np.ndarray
    error: np.ndarray
    dense: np.ndarray

    @abstractmethod
    def increments(self, slope: Field, t: Tensor, y: Tensor, h: Tensor) -> Tensor:
        """``[subject, stage, state]`` for t, h ``[subject]`` and y ``[subject, state]``."""

    def stiffness(self, increments: Tensor, scale: Tensor) -> Tensor:
        """Estimate of h·|largest eigenvalue|, ``[subject]``; 0 for a method whose stability does not limit h. `scale`
        is the tolerated error of each state: states that decay fast soon become small, and their errors limit h."""
        return increments.new_zeros(len(increments))


def combine(weights: np.ndarray, increments: Tensor) -> Tensor:
    """Σ_i weights_i·K_i, ``[subject, state]``."""
    return torch.einsum(
        "s,nsd->nd", torch.as_tensor(weights, dtype=increments.dtype, device=increments.device), increments
    )


def inside(scheme: Scheme, y: Tensor, increments: Tensor, share: Tensor) -> Tensor:
    """The solution at the fractions ``[subject, time]`` of a step, ``[subject, time, state]``."""
    powers = torch.stack([share, share**2, share**3, share**4], dim=-1)
    dense = torch.as_tensor(scheme.dense, dtype=y.dtype, device=y.device)
    return y[:, None] + (powers @ dense.T) @ increments


class Tsit5(Scheme):
    """The explicit method of Tsitouras (2011), with the coefficients of `neuralpk.solve.tsit5_coefficients`."""

    evaluations = tsit5_coefficients.STAGES
    end, error, dense = tsit5_coefficients.B, tsit5_coefficients.E, tsit5_coefficients.DENSE

    def increments(self, slope: Field, t: Tensor, y: Tensor, h: Tensor) -> Tensor:
        k: list[Tensor] = []
        for row, c in zip(tsit5_coefficients.A, tsit5_coefficients.C, strict=True):
            point = y
            for weight, earlier in zip(row.tolist(), k, strict=False):
                if weight:
                    point = point + weight * earlier
            k.append(h[:, None] * slope(t + float(c) * h, point))
        return torch.stack(k, dim=1)

    def stiffness(self, increments: Tensor, scale: Tensor) -> Tensor:
        # the sixth and the seventh stage have the same time and different states
        bent = ((increments[:, 6] - increments[:, 5]) / scale).norm(dim=1)
        moved = (combine(tsit5_coefficients.A[6] - tsit5_coefficients.A[5], increments) / scale).norm(dim=1)
        return torch.where(moved > 0, bent / moved, 0.0)


class Rodas5P(Scheme):
    """The linearly implicit method Rodas5P, for stiff systems: stable however fast a part of the system decays.

    With J = df/dy, each stage solves (I/(h·γ) − J)·K_i = f(t + c_i·h, y + Σ_j a_ij·K_j) + Σ_j c_ij/h·K_j + h·d_i·df/dt.
    """

    evaluations = rodas5p_coefficients.STAGES
    end, error, dense = rodas5p_coefficients.B, rodas5p_coefficients.E, rodas5p_coefficients.DENSE

    def increments(self, slope: Field, t: Tensor, y: Tensor, h: Tensor) -> Tensor:
        jacobian, drift = _derivatives(slope, t, y)
        eye = torch.eye(y.shape[1], dtype=y.dtype, device=y.device)
        # a singular matrix gives increments that are not finite: that step of that subject is rejected
        shifted = eye / (rodas5p_coefficients.GAMMA * h)[:, None, None] - jacobian
        factors, pivots, _ = torch.linalg.lu_factor_ex(shifted)
        k: list[Tensor] = []
        for stage in range(self.evaluations):
            point = y
            for weight, earlier in zip(rodas5p_coefficients.A[stage].tolist(), k, strict=False):
                point = point + weight * earlier
            right = slope(t + float(rodas5p_coefficients.C[stage]) * h, point)
            right = right + (float(rodas5p_coefficients.D[stage]) * h)[:, None] * drift
            for weight, earlier in zip(rodas5p_coefficients.COUPLING[stage].tolist(), k, strict=False):
                right = right + (weight / h)[:, None] * earlier
            k.append(torch.linalg.lu_solve(factors, pivots, right[..., None])[..., 0])
        return torch.stack(k, dim=1)


def _derivatives(slope: Field, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """df/dy ``[subject, state, state]`` and df/dt ``[subject, state]``, differentiable where gradients are on."""
    differentiable = torch.is_grad_enabled()
    with torch.inference_mode(False), torch.enable_grad():
        if not differentiable:
            t, y = t.detach().clone().requires_grad_(), y.detach().clone().requires_grad_()
        else:
            t, y = t + torch.zeros_like(t, requires_grad=True), y + torch.zeros_like(y, requires_grad=True)
        rows = []
        for component in slope(t, y).unbind(1):
            found = torch.autograd.grad(
                component.sum(), (y, t), create_graph=differentiable, retain_graph=True, allow_unused=True
            )
            rows.append([torch.zeros_like(x) if g is None else g for g, x in zip(found, (y, t), strict=True)])
    jacobian, drift = torch.stack([row for row, _ in rows], dim=1), torch.stack([row for _, row in rows], dim=1)
    return (jacobian, drift) if differentiable else (jacobian.detach(), drift.detach())
