"""Mesh: the events of each subject in the order in which they happen.

Doses, resets and changes of covariates of a subject become its *nodes*, sorted by time and, at equal times, by the row
of their record. Between two nodes only the differential equation with a constant input acts; the states at the wanted
times are read between nodes. The order of the nodes is decided without gradients; their times have gradients, because a
lag or the end of an infusion may depend on parameters.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neuralpk.cohort import MODELLED_DURATION, MODELLED_RATE
from neuralpk.cohort_batch import CohortBatch
from neuralpk.dynamics import Dynamics
from neuralpk.solve.compiled import event_order as compiled


@dataclass(frozen=True)
class Mesh:
    """The nodes of every subject. After the last real node come padding nodes at the same time, which do nothing.

    Args:
        times: time of each node since the first record, ``[subject, node]``.
        reset: empty the state at the node, before the jump, bool ``[subject, node]``.
        jump: added to the state at the node, ``[subject, node, state]``.
        input: constant input after the node and until the next, ``[subject, node, state]``.
        period: index of the theta in force after the node, integer ``[subject, node]``.
        wanted: node after whose jump each wanted time is read, integer ``[subject, time]``.
        wanted_times: each wanted time, since the first record, ``[subject, time]``.
    """

    times: Tensor
    reset: Tensor
    jump: Tensor
    input: Tensor
    period: Tensor
    wanted: Tensor
    wanted_times: Tensor

    @functools.cached_property
    def since(self) -> Tensor:
        """Time from its node to each wanted time, ``[subject, time]``."""
        return self.wanted_times - self.times.gather(1, self.wanted)

    @functools.cached_property
    def one_period(self) -> bool:
        """Whether the first theta is in force at all nodes."""
        return not bool(self.period.any())

    @functools.cached_property
    def arrays(self) -> dict[str, NDArray[Any]]:
        """The numbers of the tensors, of `since` and of `order`, by name."""
        names = ("times", "reset", "jump", "input", "period", "wanted", "since")
        numbers = {name: np.ascontiguousarray(getattr(self, name).detach().numpy()) for name in names}
        return numbers | {"order": self.order}

    @functools.cached_property
    def order(self) -> NDArray[np.int64]:
        """The wanted times of each subject in the order in which they are reached, ``[subject, time]``."""
        wanted, since = self.wanted.numpy(), self.since.detach().numpy()
        later = (wanted[:, 1:] > wanted[:, :-1]) | ((wanted[:, 1:] == wanted[:, :-1]) & (since[:, 1:] >= since[:, :-1]))
        if later.all():  # most often they are sorted already
            return np.tile(np.arange(wanted.shape[1]), (len(wanted), 1))
        return np.ascontiguousarray(np.lexsort((since, wanted)))

    def select(self, subjects: Tensor) -> Mesh:
        """The nodes of some subjects."""
        return Mesh(**{f.name: getattr(self, f.name)[subjects] for f in dataclasses.fields(self)})


def with_clock(mesh: Mesh, rate: Tensor) -> Mesh:
    """The same nodes with the time as one more state, which grows at a constant rate and is not reset."""
    started = torch.zeros_like(mesh.reset)
    started[:, 0] = True
    now = torch.where(mesh.reset | started, rate * mesh.times, 0.0)
    jump = torch.cat([mesh.jump, now[..., None]], dim=-1)
    entering = torch.cat([mesh.input, rate.expand(*mesh.times.shape, 1)], dim=-1)
    return dataclasses.replace(mesh, jump=jump, input=entering)


@dataclass(frozen=True)
class Inputs:
    """What enters the compartments: boluses and infusions as they act, with lag and bioavailability applied.

    ``start`` and ``end`` are times (equal for a bolus), ``amount`` jumps in at the start, ``rate`` flows in between;
    ``order`` sorts records of the same time and ``record`` is the time of the record, before any lag.
    All are ``[subject, input]``.
    """

    start: Tensor
    end: Tensor
    amount: Tensor
    rate: Tensor
    compartment: Tensor
    order: Tensor
    record: Tensor
    mask: Tensor


def _of_compartment(values: Tensor | None, compartment: Tensor, otherwise: float) -> Tensor | float:
    """``values [subject, dose, state]`` at the compartment of each dose, ``[subject, dose]``."""
    return otherwise if values is None else values.gather(-1, compartment[..., None])[..., 0]


def dose_inputs(dynamics: Dynamics, theta: Tensor, batch: CohortBatch) -> Inputs:
    """The doses of a batch as they act: lag delays them, bioavailability scales them.

    For an infusion with a RATE, bioavailability F changes the duration, F·AMT/RATE; for one with a duration, the rate.
    This holds too where the rate or the duration is a parameter of the model; with one that cannot be, a rate that is
    not above 0 or a duration below 0, the subject has no solution.
    """
    at_dose = batch.theta_at(theta, batch.doses.time, batch.doses.row)
    compartment = batch.doses.compartment
    lag = _of_compartment(dynamics.lag(at_dose), compartment, 0.0)
    amount = batch.doses.amount * _of_compartment(dynamics.bioavailability(at_dose), compartment, 1.0)
    stated_rate, stated_duration = batch.doses.rate.clamp(min=0.0), batch.doses.duration
    for code, of_states in ((MODELLED_RATE, dynamics.infusion_rate), (MODELLED_DURATION, dynamics.infusion_duration)):
        modelled = batch.doses.rate == code
        values = of_states(at_dose) if bool(modelled.any()) else None
        if values is not None and code == MODELLED_RATE:
            stated_rate = torch.where(modelled, _of_compartment(values, compartment, 0.0), stated_rate)
        elif values is not None:
            stated_duration = torch.where(modelled, _of_compartment(values, compartment, 0.0), stated_duration)
    possible = (stated_rate > 0) | (batch.doses.rate != MODELLED_RATE)
    possible &= (stated_duration >= 0) | (batch.doses.rate != MODELLED_DURATION)
    amount = torch.where(possible, amount, torch.nan)
    with_rate, with_duration = stated_rate > 0, stated_duration > 0
    infused = with_rate | with_duration
    # the inner where keeps a division by zero out of the gradient of the branch that is not taken
    duration = torch.where(with_rate, amount / torch.where(with_rate, stated_rate, 1.0), stated_duration)
    by_duration = amount / torch.where(with_duration, stated_duration, 1.0)
    rate = torch.where(with_rate, stated_rate, torch.where(with_duration, by_duration, 0.0))
    start = batch.doses.time + lag
    unit = _of_compartment(dynamics.dose_unit(at_dose), compartment, 1.0)
    return Inputs(
        start=start,
        end=start + duration,
        amount=torch.where(infused, 0.0, amount) * unit,
        rate=rate * unit,
        compartment=compartment,
        order=batch.doses.row,
        record=batch.doses.time,
        # a reset alone, and the record of a constant infusion at steady state, add nothing by themselves
        mask=batch.doses.mask & (batch.doses.amount > 0),
    )


def join_inputs(first: Inputs, second: Inputs) -> Inputs:
    """Both sets of inputs."""
    pairs = {f.name: (getattr(first, f.name), getattr(second, f.name)) for f in dataclasses.fields(Inputs)}
    return Inputs(**{name: torch.cat(pair, dim=1) for name, pair in pairs.items()})


def sorted_by(minor: Tensor, major: Tensor) -> Tensor:
    """Order of the columns by the major key, then the minor one, then the present order, ``[subject, column]``."""
    order = torch.argsort(minor, dim=1, stable=True)
    return order.gather(1, torch.argsort(major.gather(1, order), dim=1, stable=True))


def build_mesh(
    batch: CohortBatch,
    inputs: Inputs,
    states: int,
    times: Tensor,
    rows: Tensor | None,
    steady: Tensor | None = None,
    stop: bool = False,
) -> Mesh:
    """Sort everything that happens to each subject by time.

    Args:
        batch: for resets, periods and the start.
        inputs: what enters.
        states: number of states.
        times: wanted times, ``[subject, time]``.
        rows: order of the wanted times among records of the same time, ``[subject, time]``; None for after all of
            them.
        steady: state to which a steady-state record jumps, ``[subject, dose, state]``.
        stop: whether every wanted time is a node too, for an engine that cannot read states between nodes.
    """
    n = len(times)
    latest = torch.iinfo(torch.int64).max
    start = batch.start[:, None]
    last = torch.maximum(times.amax(1, keepdim=True), start)
    is_reset = (batch.doses.reset | (batch.doses.steady_state == 1)) & batch.doses.mask
    every = torch.ones_like(batch.period_start, dtype=torch.bool)
    infused = inputs.mask & (inputs.rate > 0)
    first = torch.full_like(batch.period_start, -latest, dtype=torch.int64)  # a period begins before any record in it
    blocks = [  # time, order among records of the same time, whether it exists
        (start, first[:, :1], every[:, :1]),
        (batch.doses.time, batch.doses.row, is_reset | (batch.doses.steady_state > 0)),
        (inputs.start, inputs.order, inputs.mask),
        (inputs.end, inputs.order, infused),
        (batch.period_start, first, every),
        (last, torch.full_like(first[:, :1], latest - 1), every[:, :1]),
    ]
    rows = torch.full_like(times, latest, dtype=torch.int64) if rows is None else rows
    rows = rows.clamp(max=latest - 2)
    if stop:
        blocks.append((times, rows, torch.ones_like(times, dtype=torch.bool)))
    at, orders, present = (torch.cat(column, dim=1) for column in zip(*blocks, strict=True))
    # what is absent, or comes after the last wanted time, is sorted to the end and does nothing
    present = present & (at.detach() <= last)
    at = torch.where(present, torch.maximum(at, start), last)
    orders = torch.where(present, orders, latest)
    order, where = _sorted(at, orders, present)
    nodes = int(present.sum(1).max())
    # what is absent shares one column after the nodes, which is removed below
    where = where.clamp(max=nodes)
    _, record_at, start_at, end_at, _, _, *stops = torch.split(where, [b[0].shape[1] for b in blocks], dim=1)
    wanted = stops[0] if stop else _followed(at, orders, present, order, times, rows)

    node_times = at.gather(1, order[:, :nodes])
    is_reset = is_reset & (record_at < nodes)
    reset = torch.zeros((n, nodes + 1), dtype=torch.bool, device=at.device).scatter(1, record_at, is_reset)
    alive = inputs.mask & (inputs.start.detach() <= last)
    if bool(is_reset.any()):
        alive = alive & ~_cancelled(is_reset, batch, record_at, inputs, start_at)
        end_at = torch.minimum(end_at, _next_reset(reset).gather(1, start_at))
    amount = torch.where(alive, inputs.amount, 0.0)
    jump = _at_nodes(start_at, inputs.compartment, amount, nodes, states)
    if steady is not None:
        jump = jump.scatter_add(1, record_at[..., None].expand(-1, -1, states), steady)
    input_ = _running(inputs, alive & infused, start_at, end_at, nodes, states)
    # the field gets the time since the first record, so that shifting all times of a table changes nothing else
    return Mesh(
        times=node_times - start,
        reset=reset[:, :nodes],
        jump=jump[:, :nodes],
        input=input_[:, :nodes],
        period=batch.period_at(node_times),
        wanted=wanted,
        wanted_times=times - start,
    )


def _sorted(at: Tensor, orders: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """The column at each position of the order, and the position of each column."""
    if at.device.type == "cpu":
        return compiled.sort(at, orders, present)
    order = sorted_by(orders, at.detach())
    positions = torch.arange(order.shape[1], device=at.device).expand(len(at), -1)
    return order, torch.empty_like(order).scatter_(1, order, positions)


def _followed(at: Tensor, orders: Tensor, present: Tensor, order: Tensor, times: Tensor, rows: Tensor) -> Tensor:
    """The node after which each wanted time is read, ``[subject, time]``."""
    if at.device.type == "cpu":
        return compiled.follow(at, orders, present, order, times, rows)
    nodes = at.shape[1]
    together = sorted_by(torch.cat([orders, rows], dim=1), torch.cat([at, times], dim=1).detach())
    node = (together < nodes).long().cumsum(1) - 1
    return torch.empty_like(together).scatter_(1, together, node)[:, nodes:]


def _cancelled(is_reset: Tensor, batch: CohortBatch, record_at: Tensor, inputs: Inputs, start_at: Tensor) -> Tensor:
    """Lagged inputs that have not arrived when a later record resets the system: NONMEM cancels them."""
    reset_time = torch.where(is_reset, batch.doses.time, torch.inf)[:, None, :]
    later = (reset_time > inputs.record[:, :, None]) | (
        (reset_time == inputs.record[:, :, None]) & (batch.doses.row[:, None, :] > inputs.order[:, :, None])
    )
    before_arrival = record_at[:, None, :] < start_at[:, :, None]
    return (is_reset[:, None, :] & later & before_arrival).any(-1)


def _next_reset(reset: Tensor) -> Tensor:
    """The first node after each at which the system is reset; one past the last where no reset follows."""
    nodes = reset.shape[1]
    at = torch.where(reset, torch.arange(nodes, device=reset.device), nodes)
    later = torch.nn.functional.pad(at[:, 1:], (0, 1), value=nodes)
    return later.flip(1).cummin(1).values.flip(1)


def _at_nodes(node: Tensor, compartment: Tensor, values: Tensor, nodes: int, states: int) -> Tensor:
    """Sum of the values ``[subject, input]`` at each node and compartment, ``[subject, node + 1, state]``."""
    out = values.new_zeros((len(node), (nodes + 1) * states))
    return out.scatter_add_(1, node * states + compartment, values).view(len(node), nodes + 1, states)


def _running(inputs: Inputs, running: Tensor, start_at: Tensor, end_at: Tensor, nodes: int, states: int) -> Tensor:
    """Input after each node, ``[subject, node + 1, state]``: rates that have begun minus rates that have ended.

    A running sum, so that memory grows with nodes and not with nodes times doses. It is computed in double
    precision, and is exactly zero where no infusion runs: a rounding error would flow in for ever.
    """
    if not bool(running.any()):
        return inputs.rate.new_zeros(()).expand(len(start_at), nodes + 1, states)
    # only the columns in which somebody has an infusion
    columns = running.any(0).nonzero().flatten()
    rate = torch.where(running, inputs.rate, 0.0)[:, columns].double()
    ones = running[:, columns].long()
    node = torch.cat([start_at[:, columns], end_at[:, columns]], dim=1)
    compartment = inputs.compartment[:, columns].repeat(1, 2)
    change = _at_nodes(node, compartment, torch.cat([rate, -rate], dim=1), nodes, states)
    count = _at_nodes(node, compartment, torch.cat([ones, -ones], dim=1), nodes, states)
    return torch.where(count.cumsum(1) > 0, change.cumsum(1), 0.0).to(inputs.rate.dtype)
