"""Linear systems without steps: the exponential of the rate matrix over every interval between two nodes."""

from dataclasses import replace

import torch
from torch import Tensor

from neuralpk.cohort_batch import theta_in
from neuralpk.dynamics import Dynamics
from neuralpk.solve.compiled import linear
from neuralpk.solve.event_nodes import Mesh


def integrate(dynamics: Dynamics, y0: Tensor, theta: Tensor, mesh: Mesh) -> Tensor:
    """State at the wanted times, ``[subject, time, state]``, of dy/dt = K(theta)·y + u(theta) + input.

    On the CPU by the compiled kernels, whose gradients are exact but cannot be differentiated again (torch raises an
    error); on other devices by `matrix_exponentials`.
    """
    if y0.device.type != "cpu":
        return matrix_exponentials(dynamics, y0, theta, mesh)
    k, input_ = dynamics.rate_matrix(theta), _input(dynamics, theta, mesh)
    period = torch.zeros_like(mesh.period) if k.shape[1] == 1 else mesh.period.clamp(max=k.shape[1] - 1)
    return linear.integrate(k, y0, replace(mesh, period=period, input=input_))


def _input(dynamics: Dynamics, theta: Tensor, mesh: Mesh) -> Tensor:
    """What enters after each node, ``[subject, node, state]``: infusions and the constant part of the slope."""
    forcing = dynamics.forcing(theta)
    return mesh.input if forcing is None else mesh.input + theta_in(forcing, mesh.period)


def _augmented(dynamics: Dynamics, theta: Tensor, input_: Tensor) -> Tensor:
    k = dynamics.rate_matrix(theta)
    return torch.nn.functional.pad(torch.cat([k, input_[..., None]], dim=-1), (0, 0, 0, 1))


def matrix_exponentials(dynamics: Dynamics, y0: Tensor, theta: Tensor, mesh: Mesh) -> Tensor:
    """As `integrate`, in operations of torch alone, which run on any device and can be differentiated again.

    The input joins the state as a constant component (Van Loan 1978)::

        exp( h·[[K, u], [0, 0]] )  =  [[exp(hK), ∫ exp(sK)u ds], [0, 1]]
    """
    block = _augmented(dynamics, theta_in(theta, mesh.period), _input(dynamics, theta, mesh))
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
