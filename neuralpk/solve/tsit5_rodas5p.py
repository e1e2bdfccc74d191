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
from neuralpk.solve import tsit5_coefficients

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


# Rodas5P: G. Steinebach, Construction of Rosenbrock–Wanner method Rodas5P and numerical benchmarks within the Julia
# Differential Equations package, BIT Numerical Mathematics 63 (2023), 27
_GAMMA = 0.21193756319429014
_A = (
    (),
    (3.0,),
    (2.849394379747939, 0.45842242204463923),
    (-6.954028509809101, 2.489845061869568, -10.358996098473584),
    (2.8029986275628964, 0.5072464736228206, -0.3988312541770524, -0.04721187230404641),
    (-7.502846399306121, 2.561846144803919, -11.627539656261098, -0.18268767659942256, 0.030198172008377946),
)
_COUPLING = (
    (),
    (-14.155112264123755,),
    (-17.97296035885952, -2.859693295451294),
    (147.12150275711716, -1.41221402718213, 71.68940251302358),
    (165.43517024871676, -0.4592823456491126, 42.90938336958603, -5.961986721573306),
    (24.854864614690072, -3.0009227002832186, 47.4931110020768, 5.5814197821558125, -0.6610691825249471),
    (30.91273214028599, -3.1208243349937974, 77.79954646070892, 34.28646028294783, -19.097331116725623,
     -28.087943162872662),
    (37.80277123390563, -3.2571969029072276, 112.26918849496327, 66.9347231244047, -40.06618937091002,
     -54.66780262877968, -9.48861652309627),
)  # fmt: skip
_C = (0.0, 0.6358126895828704, 0.4095798393397535, 0.9769306725060716, 0.4288403609558664, 1.0, 1.0, 1.0)
_D = (_GAMMA, -0.42387512638858027, -0.3384627126235924, 1.8046452872882734, 2.325825639765069, 0.0, 0.0, 0.0)
_H = np.array(
    [
        [25.948786856663858, -2.5579724845846235, 10.433815404888879, -2.3679251022685204,
         0.524948541321073, 1.1241088310450404, 0.4272876194431874, -0.17202221070155493],
        [-9.91568850695171, -0.9689944594115154, 3.0438037242978453, -24.495224566215796,
         20.176138334709044, 15.98066361424651, -6.789040303419874, -6.710236069923372],
        [11.419903575922262, 2.8879645146136994, 72.92137995996029, 80.12511834622643,
         -52.072871366152654, -59.78993625266729, -0.15582684282751913, 4.883087185713722],
    ]
)  # fmt: skip


class Rodas5P(Scheme):
    """The linearly implicit method Rodas5P, for stiff systems: stable however fast a part of the system decays.

    With J = df/dy, each stage solves (I/(h·γ) − J)·K_i = f(t + c_i·h, y + Σ_j a_ij·K_j) + Σ_j c_ij/h·K_j + h·d_i·df/dt.
    """

    evaluations = 8
    end = np.array([*_A[5], 1.0, 1.0, 1.0])
    error = np.eye(8)[7]
    # s·(end + (1 − s)·(H1 + s·(H2 + s·H3))), multiplied out
    dense = np.stack([end + _H[0], _H[1] - _H[0], _H[2] - _H[1], -_H[2]], axis=1)

    def increments(self, slope: Field, t: Tensor, y: Tensor, h: Tensor) -> Tensor:
        jacobian, drift = _derivatives(slope, t, y)
        eye = torch.eye(y.shape[1], dtype=y.dtype, device=y.device)
        # a singular matrix gives increments that are not finite: that step of that subject is rejected
        factors, pivots, _ = torch.linalg.lu_factor_ex(eye / (_GAMMA * h)[:, None, None] - jacobian)
        k: list[Tensor] = []
        point = y
        for stage in range(8):
            if stage < 6:
                point = y
                for weight, earlier in zip(_A[stage], k, strict=True):
                    point = point + weight * earlier
            else:
                point = point + k[-1]
            right = slope(t + _C[stage] * h, point) + (_D[stage] * h)[:, None] * drift
            for weight, earlier in zip(_COUPLING[stage], k, strict=True):
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
