"""Sensitivities of a solution to its parameters: the sensitivity equations, solved together with the state."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from neuralpk.cohort_batch import CohortBatch
from neuralpk.dynamics import Dynamics, Wrapper
from neuralpk.solve import Engine


def along(
    function: Callable[[Tensor, Tensor], Tensor], y: Tensor, theta: Tensor, slopes: Tensor, ways: Tensor
) -> tuple[Tensor, Tensor]:
    """Value of a function of state and parameters, and its derivative in q for dy/dq = slopes and dtheta/dq = ways.

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


class Sensitivity(Wrapper):
    """dy/dt = f(t, y, theta) together with S = dy/dq, where dtheta/dq = D (Hairer et al., Solving ODEs I, I.14)::

        dS/dt = (∂f/∂y)·S + (∂f/∂theta)·D

    Where doses are converted by a `dose_unit`, which may depend on theta, the states are amounts x = y/unit instead, so
    that a dose changes x alone and not S. Its theta is that of the dynamics followed by D, ``[parameter, direction]``
    row by row.

    Args:
        dynamics: the equations, without lag or bioavailability of doses.
        directions: number of columns of D.
    """

    def __init__(self, dynamics: Dynamics, directions: int) -> None:
        super().__init__(dynamics)
        self.compiled = False  # the field differentiates another
        self.directions = directions
        slopes = tuple(f"d{state}/dq{k}" for state in dynamics.states for k in range(directions))
        self.states = (*dynamics.states, *slopes)
        ways = tuple(f"d{name}/dq{k}" for name in dynamics.parameter_names for k in range(directions))
        self.parameter_names = (*dynamics.parameter_names, *ways)

    def inner_theta(self, theta: Tensor) -> Tensor:
        return theta[..., : len(self.inner.parameter_names)]

    def dose_unit(self, theta: Tensor) -> None:
        return None  # states are amounts

    def _unit(self, theta: Tensor) -> Tensor | float:
        unit = self.inner.dose_unit(theta)
        return 1.0 if unit is None else unit

    def _split(self, y: Tensor, theta: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """State, parameters, S and D."""
        n, p = len(self.inner.states), len(self.inner.parameter_names)
        slopes, ways = y[..., n:], theta[..., p:]
        slopes = slopes.reshape(*slopes.shape[:-1], n, self.directions)
        return y[..., :n], theta[..., :p], slopes, ways.reshape(*ways.shape[:-1], p, self.directions)

    def forward(self, t: Tensor, y: Tensor, theta: Tensor) -> Tensor:
        def field(amount: Tensor, parameters: Tensor) -> Tensor:
            unit = self.inner.dose_unit(parameters)
            slope: Tensor = self.inner(t, amount if unit is None else unit * amount, parameters)
            return slope if unit is None else slope / unit

        value, slopes = along(field, *self._split(y, theta))
        return torch.cat([value, slopes.flatten(-2)], dim=-1)

    def initial_state(self, theta: Tensor) -> Tensor:
        def start(_: Tensor, parameters: Tensor) -> Tensor:
            return self.inner.initial_state(parameters) / self._unit(parameters)

        empty = theta.new_zeros((len(theta), len(self.states)))
        value, slopes = along(start, *self._split(empty, theta))
        return torch.cat([value, slopes.flatten(-2)], dim=-1)

    def read(self, y: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        """The noise-free value of an assay of each state, ``[row, time, state]``, and its slopes
        ``[row, time, state, direction]``, for y ``[row, time, state]`` and theta ``[row, parameter]``."""

        def value(amount: Tensor, parameters: Tensor) -> Tensor:
            return self.inner.observe(self._unit(parameters) * amount, parameters)

        return along(value, *self._split(y, theta[:, None]))

    def observe(self, y: Tensor, theta: Tensor) -> Tensor:
        unit = self._unit(self.inner_theta(theta))
        value = self.inner.observe(unit * self.inner_state(y), self.inner_theta(theta))
        return torch.cat([value, y[..., value.shape[-1] :]], dim=-1)


@torch.no_grad()
def predict_with_slopes(
    dynamics: Dynamics, theta: Tensor, ways: Tensor, batch: CohortBatch, engine: Engine
) -> tuple[Tensor, Tensor, Tensor]:
    """The prediction of every record and its slopes in some directions of the parameters.

    Args:
        dynamics: the equations.
        theta: ``[row, parameter]``.
        ways: D, ``[row, parameter, direction]``.
        batch: the records.
        engine: method of the solve; the slopes are computed to its tolerances too.

    Returns:
        Prediction ``[row, observation]``, slopes ``[row, observation, direction]``, and which rows were solved.

    Raises:
        ValueError: doses with a lag or bioavailability, whose times depend on parameters; a dose into a compartment
            that the equations do not have.
    """
    if dynamics.lag(theta) is not None or dynamics.bioavailability(theta) is not None:
        raise ValueError(
            f"{type(dynamics).__name__} has a lag or bioavailability, for which slopes are not computed: choose a "
            "model without"
        )
    if bool((batch.doses.rate < 0).any()):
        raise ValueError("infusions with RATE -1 or -2 end at times that depend on parameters: give their RATE or DUR")
    outside = ((batch.doses.compartment >= len(dynamics.states)) & batch.doses.mask).any(1)
    if bool(outside.any()):
        names = [batch.ids[k] for k in outside.nonzero().flatten().tolist()[:5]]
        raise ValueError(
            f"subject {', '.join(names)}: a dose into a compartment beyond the {len(dynamics.states)} of this model, "
            f"{', '.join(dynamics.states)} (CMT 1 to {len(dynamics.states)})"
        )
    field = Sensitivity(dynamics, ways.shape[-1])
    together = torch.cat([theta, ways.flatten(1)], dim=1)
    solution = engine.solve(field, together[:, None], batch)
    value, slopes = field.read(solution.states, together)
    at = torch.tensor(dynamics.endpoints, device=theta.device)[batch.endpoint][..., None]
    picked = slopes.gather(2, at[..., None].expand(-1, -1, 1, slopes.shape[-1]))[..., 0, :]
    return value.gather(2, at)[..., 0], picked, solution.ok
