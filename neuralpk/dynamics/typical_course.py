"""How the states of a dynamics move after a typical dose, roughly: for the magnitudes of what depends on them."""

from __future__ import annotations

import torch
from torch import Tensor

from neuralpk.dynamics.dynamics_base import Dynamics
from neuralpk.scaling import Scaling

_STEPS, _FIRST = 64, 1e-4  # steps of a geometric grid, and its first time as a share of the span


@torch.no_grad()
def typical_course(dynamics: Dynamics, theta: Tensor, scaling: Scaling) -> tuple[Tensor, Tensor]:
    """Times ``[time]`` and states ``[time, state]`` after a median dose into the first state, over the data's span.

    The linearly implicit Euler method, whose steps are stable for stiff equations too: right to some 10 %, which is
    enough for a magnitude. It ends before a state that is no number.

    Args:
        dynamics: the equations, in double precision.
        theta: its parameters, ``[parameter]``.
        scaling: magnitudes of the data.
    """
    start = dynamics.initial_state(theta[None])[0]
    dose = torch.zeros_like(start)
    dose[0] = scaling.amount
    y, n = start + dose, len(start)
    times = scaling.time * torch.logspace(torch.tensor(_FIRST).log10().item(), 0.0, _STEPS, dtype=theta.dtype)
    states, before, parameters = [y], torch.zeros((), dtype=theta.dtype), theta.expand(n + 1, -1)
    for at in times:
        step, before = at - before, at
        shift = 1e-6 * (1.0 + y.abs())
        slopes = dynamics(at.expand(n + 1), torch.cat([y[None], y + torch.diag(shift)]), parameters)
        jacobian = (slopes[1:] - slopes[0]).T / shift
        move = torch.linalg.solve_ex(torch.eye(n, dtype=theta.dtype) - step * jacobian, step * slopes[0])[0]
        y = y + move
        if not bool(torch.isfinite(y).all()):
            break
        states.append(y)
    return torch.cat([torch.zeros(1, dtype=theta.dtype), times])[: len(states)], torch.stack(states)
