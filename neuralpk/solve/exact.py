"""Linear systems without a step-size error: the matrix exponential of every stretch between two nodes."""

import torch
from torch import Tensor

from neuralpk.dynamics import Dynamics
from neuralpk.solve.mesh import Mesh, theta_at


def _augmented(dynamics: Dynamics, theta: Tensor, input_: Tensor) -> Tensor:
    k = dynamics.rate_matrix(theta)
    return torch.nn.functional.pad(torch.cat([k, input_[..., None]], dim=-1), (0, 0, 0, 1))


def integrate(dynamics: Dynamics, y0: Tensor, theta: Tensor, mesh: Mesh) -> Tensor:
    """State at the wanted times, ``[subject, time, state]``, of dy/dt = K(theta)·y + input.

    The input joins the state as a constant component (Van Loan 1978)::

        exp( h·[[K, u], [0, 0]] )  =  [[exp(hK), ∫ exp(sK)u ds], [0, 1]]
    """
    block = _augmented(dynamics, theta_at(theta, mesh.period), mesh.input)
    h = mesh.times[:, 1:] - mesh.times[:, :-1]
    propagator = torch.linalg.matrix_exp(block[:, :-1] * h[..., None, None])[:, :, :-1]
    y, states = y0, []
    for node in range(mesh.times.shape[1]):
        if node > 0:
            step = propagator[:, node - 1]
            y = (step[..., :-1] @ y[..., None])[..., 0] + step[..., -1]
        y = torch.where(mesh.reset[:, node, None], 0.0, y) + mesh.jump[:, node]
        states.append(y)
    subject = torch.arange(len(y), device=y.device)[:, None]
    since = mesh.wanted_times - mesh.times.gather(1, mesh.wanted)
    last = torch.linalg.matrix_exp(block[subject, mesh.wanted] * since[..., None, None])[:, :, :-1]
    read: Tensor = (last[..., :-1] @ torch.stack(states, dim=1)[subject, mesh.wanted, :, None])[..., 0] + last[..., -1]
    return read
