"""Linear systems without a step-size error: the matrix exponential of every stretch between two nodes."""

import torch
from torch import Tensor

from neuralpk.dynamics import Dynamics
from neuralpk.solve.mesh import Mesh, theta_at


def integrate(dynamics: Dynamics, y0: Tensor, theta: Tensor, mesh: Mesh) -> Tensor:
    """State after every node, ``[subject, node, state]``, of dy/dt = K(theta)·y + input.

    The input joins the state as a constant component (Van Loan 1978)::

        exp( h·[[K, u], [0, 0]] )  =  [[exp(hK), ∫ exp(sK)u ds], [0, 1]]
    """
    h = mesh.times[:, 1:] - mesh.times[:, :-1]
    k = dynamics.rate_matrix(theta_at(theta, mesh.period[:, :-1]))
    block = torch.nn.functional.pad(torch.cat([k, mesh.input[:, :-1, :, None]], dim=-1), (0, 0, 0, 1))
    propagator = torch.linalg.matrix_exp(block * h[..., None, None])[:, :, :-1]
    y, states = y0, []
    for node in range(mesh.times.shape[1]):
        if node > 0:
            step = propagator[:, node - 1]
            y = (step[..., :-1] @ y[..., None])[..., 0] + step[..., -1]
        y = torch.where(mesh.reset[:, node, None], 0.0, y) + mesh.jump[:, node]
        states.append(y)
    return torch.stack(states, dim=1)
