"""How a solution changes with its parameters: the sensitivity equations, solved beside the state."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from neuralpk.batch import CohortBatch
from neuralpk.dynamics import Dynamics
from neuralpk.solve import SolverOptions, solve


def along(
    function: Callable[[Tensor, Tensor], Tensor], y: Tensor, theta: Tensor, slopes: Tensor, ways: Tensor
) -> tuple[Tensor, Tensor]:
    """A function of state and parameters with its derivative by q, where y moves by slopes·q and theta by ways·q.

    Args:
        function: of y ``[..., state]`` and theta ``[..., parameter]``.
        y: the state.
        theta: the parameters.
        slopes: ``[..., state, direction]``.
        ways: ``[..., parameter, direction]``.

    Returns:
        Value ``[..., value]`` and derivative ``[..., value, direction]``, differentiable where gradients are on.
    """
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        q = y.new_zeros((*y.shape[:-1], slopes.shape[-1], 1)).requires_grad_()
        value = function(y + (slopes @ q)[..., 0], theta + (ways @ q)[..., 0])
        if not value.requires_grad:  # a function of neither, such as an empty initial state
            return value, value.new_zeros((*value.shape, slopes.shape[-1]))
        rows = [
            torch.autograd.grad(part.sum(), q, retain_graph=True, create_graph=again, materialize_grads=True)[0]
            for part in value.unbind(-1)
        ]
    derivative = torch.stack([row[..., 0] for row in rows], dim=-2)
    return (value, derivative) if again else (value.detach(), derivative.detach())


class Sensitivity(Dynamics):
    """dy/dt = f(t, y, theta) with S = dy/dq beside it, where dtheta/dq = D (Hairer et al., Solving ODEs I, I.14)::

        dS/dt = (∂f/∂y)·S + (∂f/∂theta)·D

    Its theta is that of the field followed by D, ``[parameter, direction]`` row by row.

    Args:
        dynamics: the field.
        directions: columns of D.
    """

    def __init__(self, dynamics: Dynamics, directions: int) -> None:
        super().__init__()
        self.dynamics, self.directions = dynamics, directions
        slopes = tuple(f"d{state}/dq{k}" for state in dynamics.states for k in range(directions))
        self.states = (*dynamics.states, *slopes)
        ways = tuple(f"d{name}/dq{k}" for name in dynamics.parameter_names for k in range(directions))
        self.parameter_names = (*dynamics.parameter_names, *ways)
        self.autonomous = dynamics.autonomous

    def _split(self, y: Tensor, theta: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """State, parameters, S and D."""
        n, p = len(self.dynamics.states), len(self.dynamics.parameter_names)
        slopes, ways = y[..., n:], theta[..., p:]
        slopes = slopes.reshape(*slopes.shape[:-1], n, self.directions)
        return y[..., :n], theta[..., :p], slopes, ways.reshape(*ways.shape[:-1], p, self.directions)

    def forward(self, t: Tensor, y: Tensor, theta: Tensor) -> Tensor:
        value, slopes = along(lambda state, own: self.dynamics(t, state, own), *self._split(y, theta))
        return torch.cat([value, slopes.flatten(-2)], dim=-1)

    def initial_state(self, theta: Tensor) -> Tensor:
        nothing = theta.new_zeros((len(theta), len(self.states)))
        value, slopes = along(lambda _, own: self.dynamics.initial_state(own), *self._split(nothing, theta))
        return torch.cat([value, slopes.flatten(-2)], dim=-1)

    def read(self, y: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        """What an assay reads in each state, ``[row, time, state]``, and its slopes ``[row, time, state, direction]``,
        for y ``[row, time, state]`` and theta ``[row, parameter]``."""
        return along(self.dynamics.observe, *self._split(y, theta[:, None]))


@torch.no_grad()
def predict_with_slopes(
    dynamics: Dynamics, theta: Tensor, ways: Tensor, batch: CohortBatch, options: SolverOptions
) -> tuple[Tensor, Tensor, Tensor]:
    """The prediction of every record and its slopes in some directions of the parameters.

    Args:
        dynamics: the field.
        theta: ``[row, parameter]``.
        ways: D, ``[row, parameter, direction]``.
        batch: the records.
        options: of the solver; the slopes are held to its tolerances too.

    Returns:
        Prediction ``[row, observation]``, slopes ``[row, observation, direction]``, and which rows were solved.

    Raises:
        ValueError: doses with a lag or bioavailability, whose jumps have slopes of their own.
    """
    if dynamics.lag(theta) is not None or dynamics.bioavailability(theta) is not None:
        raise ValueError(f"{type(dynamics).__name__} has a lag or bioavailability; slopes here are of fields without")
    field = Sensitivity(dynamics, ways.shape[-1])
    together = torch.cat([theta, ways.flatten(1)], dim=1)
    solution = solve(field, field.initial_state(together), together, batch, options=options)
    value, slopes = field.read(solution.states, together)
    at = torch.tensor(dynamics.endpoints, device=theta.device)[batch.endpoint][..., None]
    picked = slopes.gather(2, at[..., None].expand(-1, -1, 1, slopes.shape[-1]))[..., 0, :]
    return value.gather(2, at)[..., 0], picked, solution.ok
