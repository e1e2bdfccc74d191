"""Steady state under repeated doses: the state that one dosing interval maps onto itself."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from neuralpk.cohort import MOST_OVERLAPPING
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
    # a lag moves all doses: those on their way arrive later, and the last one arrived an interval minus the rest ago
    rest = lag - _on_their_way(lag, interval) * interval
    phase = torch.minimum((interval - rest).clamp(min=0), interval)
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
    at_dose = batch.theta_at(theta, batch.doses.time, batch.doses.row)
    for repeated in (True, False):
        chosen = batch.doses.at_steady_state & ((batch.doses.interval > 0) == repeated)
        if not bool(chosen.any()):
            continue
        dose, own, interval = _flat(inputs, chosen), at_dose[chosen], batch.doses.interval[chosen]
        if repeated:
            reached = _periodic(dynamics, integrate, own, dose, interval)
            # parameters under which so many doses overlap solve nothing: the subject fails, and is not solved wrongly
            overlapping = ((dose.end - dose.record) / interval).detach()
            reached = torch.where((overlapping <= MOST_OVERLAPPING)[:, None], reached, torch.nan)
        else:
            reached = _constant(dynamics, own, dose)
        states = states.masked_scatter(chosen[..., None].expand_as(states), reached)
    return states


def _on_their_way(lag: Tensor, interval: Tensor) -> Tensor:
    """How many doses before a steady-state record have been taken and not arrived yet, because the lag is longer than
    the interval; without gradient."""
    return torch.floor((lag / interval).detach())


def earlier_doses(batch: CohortBatch, inputs: Inputs) -> Inputs | None:
    """Doses taken before a steady-state record that act after it: those which have not arrived yet, and infusions that
    have not ended; None if there are none.

    The dose k intervals earlier arrives at start − k·interval, or arrived before the record and, if it is an infusion,
    continues for the rest.
    """
    chosen = batch.doses.at_steady_state & inputs.mask & (batch.doses.interval > 0)
    interval = torch.where(chosen, batch.doses.interval, 1.0)
    until = torch.where(chosen, (inputs.end - inputs.record) / interval, 0.0).detach()
    count = int(until.nan_to_num(0.0).clamp(max=MOST_OVERLAPPING).amax().ceil()) if bool(chosen.any()) else 0
    if count == 0:
        return None
    before = torch.arange(1, count + 1, device=interval.device, dtype=interval.dtype)
    width = inputs.start.shape[1]

    def copies(values: Tensor) -> Tensor:
        return values.repeat_interleave(count, dim=1)

    shift = copies(interval) * before.repeat(width)
    waiting = before.repeat(width) <= copies(_on_their_way(inputs.start - inputs.record, interval))
    start, end, record = copies(inputs.start) - shift, copies(inputs.end) - shift, copies(inputs.record)
    acts = copies(chosen) & (waiting | ((end.detach() > record) & (copies(inputs.rate) > 0)))
    kept = acts.any(0).nonzero()[:, 0]  # only the columns in which somebody has one
    if not len(kept):
        return None
    later = {"start": torch.where(waiting, start, record), "end": end, "mask": acts}
    every = {name: later[name] if name in later else copies(value) for name, value in vars(inputs).items()}
    return Inputs(**{name: value[:, kept] for name, value in every.items()})
