"""Steady state under repeated doses: the state that one dosing interval maps onto itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from neuralpk.cohort_batch import CohortBatch
from neuralpk.dynamics import Dynamics
from neuralpk.solve.event_nodes import Inputs, Mesh

Integrate = Callable[[Tensor, Tensor, Mesh], Tensor]
"""(y0, theta, mesh) -> state at the wanted times."""

_ITERATIONS = 30


def _jacobian(residual: Callable[[Tensor], Tensor], y: Tensor, r: Tensor) -> Tensor:
    """dr/dy by central differences, ``[subject, state, state]``: exact up to rounding where r is linear in y, and
    available where autograd is not (inference mode)."""
    size = torch.maximum(y.abs(), r.abs()).amax(1, keepdim=True).clamp(min=torch.finfo(y.dtype).tiny ** 0.5)
    width = torch.finfo(y.dtype).eps ** (1 / 3) * size
    units = torch.eye(y.shape[1], dtype=y.dtype, device=y.device)
    columns = [(residual(y + width * unit) - residual(y - width * unit)) / (2 * width) for unit in units]
    return torch.stack(columns, dim=-1)


def _root(residual: Callable[[Tensor], Tensor], y: Tensor) -> Tensor:
    """Solve residual(y) = 0 by Newton's method, ``[subject, state]``; NaN where it does not converge.

    The last step is taken outside the search, with gradients: by the implicit function theorem it has the gradient
    dy/dtheta = −(dr/dy)⁻¹ dr/dtheta, independent of the steps of the search.
    """
    eps = torch.finfo(y.dtype).eps
    with torch.no_grad():
        for _ in range(_ITERATIONS):
            r = residual(y)
            jacobian = _jacobian(residual, y, r)
            step: Tensor = torch.linalg.solve_ex(jacobian, r)[0]
            y = y - step
            change = step.abs() / y.abs().amax(1, keepdim=True)
            # a step doubles the digits and one more follows; to ask for all digits would never end, for solver errors
            if bool((change <= eps**0.5).all()) or not bool(torch.isfinite(y).any()):
                break
        y = torch.where(change <= eps**0.5, y, torch.nan)
        jacobian = _jacobian(residual, y, residual(y))
    last: Tensor = torch.linalg.solve_ex(jacobian, residual(y))[0]
    return y - last


def _interval_mesh(dose: Inputs, interval: Tensor, phase: Tensor, states: int) -> Mesh:
    """One dosing interval at steady state, from a dose to the next; `wanted` are the phase and the end.

    An infusion longer than the interval overlaps with those before it: `whole` of them run throughout.
    """
    duration = dose.end - dose.start
    whole = torch.floor((duration / interval).detach())
    remainder = duration - whole * interval
    zero = torch.zeros_like(interval)
    times, order = torch.sort(torch.stack([zero, remainder, phase, interval], dim=1), dim=1, stable=True)
    overlapping = whole[:, None] + (times < remainder[:, None])
    compartment = torch.nn.functional.one_hot(dose.compartment, states).to(times.dtype)
    input_ = (overlapping * dose.rate[:, None])[..., None] * compartment[:, None]
    jump = torch.nn.functional.pad((dose.amount[:, None] * compartment)[:, None], (0, 0, 0, 3))
    none = torch.zeros_like(order)
    wanted = torch.argsort(order, dim=1)[:, 2:]
    return Mesh(times, none.bool(), jump, input_, none, wanted, times.gather(1, wanted))


def _periodic(dynamics: Dynamics, integrate: Integrate, theta: Tensor, dose: Inputs, interval: Tensor) -> Tensor:
    """State at the record of a steady-state dose, just before it acts, ``[subject, state]``."""
    states = len(dynamics.states)
    lag = dose.start - dose.record
    # a lag moves all doses: at the time of the record the last one acted an interval minus the lag ago
    phase = interval - torch.remainder(lag, interval)
    mesh = _interval_mesh(dose, interval, phase, states)

    whole = theta[:, None]
    y = _root(lambda y: integrate(y, whole, mesh)[:, 1] - y, theta.new_zeros((len(theta), states)))
    return y if dynamics.lag(theta) is None else integrate(y, whole, mesh)[:, 0]


def _constant(dynamics: Dynamics, theta: Tensor, dose: Inputs) -> Tensor:
    """State under a constant infusion at steady state, f(y) + rate = 0, ``[subject, state]``."""
    input_ = torch.nn.functional.one_hot(dose.compartment, len(dynamics.states)) * dose.rate[:, None]
    return _root(lambda y: dynamics(dose.record, y, theta) + input_, torch.zeros_like(input_))


def _flat(inputs: Inputs, chosen: Tensor) -> Inputs:
    """The chosen inputs, each as one subject: every field ``[chosen]``."""
    return Inputs(**{name: value[chosen] for name, value in vars(inputs).items()})


def steady_states(
    dynamics: Dynamics, integrate: Integrate, theta: Tensor, batch: CohortBatch, inputs: Inputs
) -> Tensor:
    """The state to which each steady-state record jumps, ``[subject, dose, state]``, 0 at the other records."""
    states = theta.new_zeros((*batch.doses.time.shape, len(dynamics.states)))
    at_dose = batch.theta_at(theta, batch.doses.time)
    for repeated in (True, False):
        chosen = batch.doses.at_steady_state & ((batch.doses.interval > 0) == repeated)
        if not bool(chosen.any()):
            continue
        dose, own, interval = _flat(inputs, chosen), at_dose[chosen], batch.doses.interval[chosen]
        reached = _periodic(dynamics, integrate, own, dose, interval) if repeated else _constant(dynamics, own, dose)
        states = states.masked_scatter(chosen[..., None].expand_as(states), reached)
    return states


def still_running(batch: CohortBatch, inputs: Inputs) -> Inputs | None:
    """Infusions of the doses before a steady-state record that have not ended at the record; None if all have ended.

    The dose k intervals earlier acted at start − k·interval and, if it is longer than that, continues for the rest.
    """
    chosen = (batch.doses.steady_state > 0) & inputs.mask & (batch.doses.interval > 0) & (inputs.rate > 0)
    if not bool(chosen.any()):
        return None
    interval = torch.where(chosen, batch.doses.interval, 1.0)
    count = int(torch.where(chosen, (inputs.end - inputs.record) / interval, 0.0).detach().amax().ceil())
    earlier = torch.arange(1, max(count, 1) + 1, device=interval.device, dtype=interval.dtype)
    copies = {name: value.repeat_interleave(len(earlier), dim=1) for name, value in vars(inputs).items()}
    shift = (interval[:, :, None] * earlier).flatten(1)
    end = copies["end"] - shift
    running = copies["mask"] & chosen.repeat_interleave(len(earlier), dim=1) & (end.detach() > copies["record"])
    return replace(Inputs(**copies), start=copies["record"], end=end, mask=running)
