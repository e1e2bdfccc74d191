"""Latent models whose states move in steps: from event to event, or from dose to dose with an ODE in between."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from neuralpk.batch import CohortBatch
from neuralpk.dynamics.recurrent import GatedRecurrence, JumpingField
from neuralpk.models.latent_ode import LatentModel
from neuralpk.solve import Status, Trajectory, solve
from neuralpk.solve.mesh import period_at, sorted_by, theta_at
from neuralpk.solve.reference import Evaluations

_LAST = torch.iinfo(torch.int64).max
_STEPPED_AT_ONCE = 200_000  # subjects × times: bounds the memory


@dataclass(frozen=True)
class EventClock:
    """Doses and ticks of each subject in the order in which they happen; ``inf`` where a subject has fewer.

    Args:
        time: ``[subject, event]``.
        order: place among what happens at the same time, ``[subject, event]``: the row of a dose; ticks come last.
        given: what the cell sees, ``[subject, event, input]``; zero at a tick.
        reset: whether the states start anew, bool ``[subject, event]``.
    """

    time: Tensor
    order: Tensor
    given: Tensor
    reset: Tensor

    @classmethod
    def of(cls, batch: CohortBatch, network: GatedRecurrence, ticks: Tensor) -> EventClock:
        """The clock of a batch.

        Args:
            batch: for the doses.
            network: turns a dose into its input.
            ticks: times of the other events, ``[subject, tick]``; inf for none.

        Raises:
            ValueError: a dose at steady state, or into a compartment that the network does not have.
        """
        wrong = batch.dose_mask & ((batch.dose_steady_state > 0) | (batch.dose_compartment >= network.inlets))
        if bool(wrong.any()):
            names = [batch.ids[k] for k in wrong.any(1).nonzero()[:5, 0].tolist()]
            raise ValueError(
                f"subject {', '.join(names)}: a recurrent network takes doses into compartments 1 to {network.inlets} "
                "and knows no steady state; write the doses out"
            )
        rate = torch.where(batch.dose_rate > 0, batch.dose_rate, 1.0)
        duration = torch.where(batch.dose_rate > 0, batch.dose_amount / rate, batch.dose_duration)
        given = network.given(batch.dose_amount, batch.dose_compartment, duration)
        time = torch.cat([torch.where(batch.dose_mask, batch.dose_time, torch.inf), ticks], dim=1)
        order = torch.cat([batch.dose_row, torch.full_like(ticks, _LAST, dtype=torch.int64)], dim=1)
        at = sorted_by(order, time)[:, : int(torch.isfinite(time).sum(1).max())]
        given = torch.nn.functional.pad(given, (0, 0, 0, ticks.shape[1]))
        reset = torch.nn.functional.pad(batch.dose_reset & batch.dose_mask, (0, ticks.shape[1]))
        inputs = at[..., None].expand(-1, -1, given.shape[-1])
        return cls(time.gather(1, at), order.gather(1, at), given.gather(1, inputs), reset.gather(1, at))

    def before(self, times: Tensor, order: Tensor) -> Tensor:
        """How many events come before each of the times ``[subject, time]``."""
        wanted = times.shape[1]
        # wanted times first: of two things on one row the sample is taken before the dose is given
        at = sorted_by(torch.cat([order, self.order], dim=1), torch.cat([times, self.time], dim=1))
        passed = (at >= wanted).long().cumsum(1)
        return torch.empty_like(at).scatter_(1, at, passed)[:, :wanted]


def _wanted(batch: CohortBatch, times: Tensor | None) -> tuple[Tensor, Tensor]:
    """The times at which states are wanted, and their order: after the doses of the same time where they are asked."""
    if times is None:
        return batch.time, batch.row
    return times, torch.full_like(times, _LAST - 1, dtype=torch.int64)


def _ticks(batch: CohortBatch) -> Tensor:
    """The times at which each subject was sampled, each once, ``[subject, tick]``; inf for none."""
    again = torch.zeros_like(batch.mask)
    again[:, 1:] = batch.time[:, 1:] == batch.time[:, :-1]
    return torch.where(batch.mask & ~again, batch.time, torch.inf)


def _pick(states: Tensor, at: Tensor) -> Tensor:
    """Of ``states [subject, event, state]`` those of ``at [subject, time]``, ``[subject, time, state]``."""
    return states.gather(1, at[..., None].expand(-1, -1, states.shape[-1]))


class LatentRecurrence(LatentModel):
    """A recurrent network instead of an ODE: nothing is solved, h steps from event to event.

    Events are a subject's doses and the times of its records, one tick where several stand at one time, as recurrent
    networks are run over irregular series. So the line depends on when its subject was sampled (not on what was found).

    What is wanted at a time is one step more, with nothing given, from the last event before it; it branches off, so
    that no value depends on what else was asked. The value at a record is therefore that of the tick that it makes.

    Args:
        encoder: samples -> q(z).
        individual: z -> theta.
        dynamics: the network.
        error: the residual error.
        options: of a solver; nothing here is solved.
    """

    dynamics: GatedRecurrence

    def follow(self, theta: Tensor, batch: CohortBatch, times: Tensor | None) -> Trajectory:
        times, order = _wanted(batch, times)
        clock = EventClock.of(batch, self.dynamics, _ticks(batch))
        states, since = self._advance(theta, batch, clock)
        last = clock.before(times, order)
        own = theta_at(theta, period_at(batch, times))
        parts = torch.split(torch.arange(times.shape[1], device=times.device), max(1, _STEPPED_AT_ONCE // len(batch)))
        branched = torch.cat([self._branch(states, since, times[:, k], last[:, k], own[:, k]) for k in parts], dim=1)
        finite = torch.isfinite(branched.detach().sum((1, 2)))
        status = torch.where(finite, int(Status.OK), int(Status.NON_FINITE))
        count = Evaluations(self.options.max_evaluations, clock.time.shape[1] + 1)
        return Trajectory(times, branched, own, status, count, "recurrence")

    def _advance(self, theta: Tensor, batch: CohortBatch, clock: EventClock) -> tuple[Tensor, Tensor]:
        """The states after each event, the first before any, ``[subject, event + 1, state]``, and since when."""
        happens = torch.isfinite(clock.time)
        time = torch.where(happens, clock.time, batch.start[:, None])
        own = theta_at(theta, period_at(batch, time))
        since = torch.cat([batch.start[:, None], time], dim=1)
        gap = torch.where(happens, since.diff(dim=1), 0.0)
        first = h = self.start(theta)
        states = [h]
        for k in range(time.shape[1]):
            moved = self.dynamics.step(h, gap[:, k], clock.given[:, k], own[:, k])
            moved = torch.where(clock.reset[:, k, None], first, moved)
            h = torch.where(happens[:, k, None], moved, h)
            states.append(h)
        return torch.stack(states, dim=1), since

    def _branch(self, states: Tensor, since: Tensor, times: Tensor, last: Tensor, theta: Tensor) -> Tensor:
        """One step from the last event, ``[subject, time, state]``."""
        gap = times - since.gather(1, last)
        given = times.new_zeros((times.numel(), self.dynamics.inlets + 1))
        h = self.dynamics.step(_pick(states, last).flatten(0, 1), gap.flatten(), given, theta.flatten(0, 1))
        return h.reshape(*times.shape, -1)


class LatentODERNN(LatentModel):
    """Between doses the hidden states follow an ODE network, which is solved; a dose is a step of a GRU."""

    dynamics: JumpingField

    def follow(self, theta: Tensor, batch: CohortBatch, times: Tensor | None) -> Trajectory:
        times, order = _wanted(batch, times)
        cell = self.dynamics.doses
        clock = EventClock.of(batch, cell, times[:, :0])
        last = clock.before(times, order)
        given = torch.where(torch.isfinite(clock.time), clock.time, batch.start[:, None])
        end = torch.cat([times, given], dim=1).amax(1, keepdim=True)
        bounds = torch.cat([batch.start[:, None], torch.minimum(clock.time, end), end], dim=1)
        first = h = self.start(theta)
        states, status, count = times.new_zeros((*times.shape, h.shape[1])), torch.zeros_like(last[:, 0]), 0
        for k in range(clock.time.shape[1] + 1):
            wanted = torch.cat([times, bounds[:, k + 1, None]], dim=1).clamp(bounds[:, k, None], bounds[:, k + 1, None])
            solved = solve(self.dynamics.field, h, theta, _undosed(batch, bounds[:, k]), wanted, self.options)
            states = torch.where((last == k)[..., None], solved.states[:, :-1], states)
            status, count = torch.maximum(status, solved.status), count + solved.count.total
            if k < clock.time.shape[1]:
                at = theta_at(theta, period_at(batch, bounds[:, k + 1, None]))[:, 0]
                moved = cell.step(solved.states[:, -1], torch.zeros_like(at[:, 0]), clock.given[:, k], at)
                h = torch.where(clock.reset[:, k, None], first, moved)
        own = theta_at(theta, period_at(batch, times))
        return Trajectory(times, states, own, status, Evaluations(self.options.max_evaluations, count), solved.engine)


def _undosed(batch: CohortBatch, start: Tensor) -> CohortBatch:
    """The subjects from a time on, without their doses."""
    doses: dict[str, Any] = {
        item.name: getattr(batch, item.name)[:, :0]
        for item in dataclasses.fields(batch)
        if item.name.startswith("dose_")
    }
    return dataclasses.replace(batch, start=start, **doses)
