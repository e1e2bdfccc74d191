"""A gated recurrent unit that steps from event to event."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from neuralpk.cohort_batch import CohortBatch
from neuralpk.decoders.event_sequence import EventClock, sampling_ticks, wanted_times
from neuralpk.decoders.start_and_readout import HiddenStates
from neuralpk.dynamics import CompartmentModel, Decoder, Solver
from neuralpk.dynamics.networks import latent_names
from neuralpk.scaling import Scaling
from neuralpk.solve import Trajectory

Gap = Literal["ignored", "input", "decay"]
_STEPPED_AT_ONCE = 200_000  # subjects × times: bounds the memory


def log_share(share: Tensor, smallest: float) -> Tensor:
    """log(1 + share/smallest)/log(1 + 1/smallest), from 0 at 0 to 1 at 1: an input for shares of different size."""
    return torch.log1p(share / smallest) / math.log1p(1.0 / smallest)


class GatedCell(nn.Module):
    """One step of a gated recurrent unit (GRU; Cho et al. 2014) with its inputs::

        h ← GRU(h; dose, its compartment and duration, z, gap)

    Args:
        compartments: number of compartments into which doses can go.
        latent_size: dimension of z.
        hidden: number of hidden states.
        gap: how the time since the last step enters (`GRU`).
    """

    amount: Tensor
    time: Tensor

    def __init__(self, compartments: int, latent_size: int, hidden: int, gap: Gap = "ignored") -> None:
        super().__init__()
        self.compartments, self.gap = compartments, gap
        self.cell = nn.GRUCell(compartments + 1 + latent_size + (2 if gap == "input" else 0), hidden)
        if gap == "decay":
            self.log_decay = nn.Parameter(torch.linspace(0.0, math.log(100.0), hidden))
        self.register_buffer("amount", torch.tensor(1.0))
        self.register_buffer("time", torch.tensor(1.0))

    def build(self, scaling: Scaling) -> None:
        """Set the magnitudes of the data."""
        self.amount.fill_(scaling.amount)
        self.time.fill_(scaling.time)

    def doses(self, clock: EventClock) -> Tensor:
        """The input of the cell for every event, ``[subject, event, compartment + 1]``; 0 without a dose."""
        size = log_share(clock.amount / self.amount, 0.01)
        where = nn.functional.one_hot(clock.compartment, self.compartments).to(size.dtype)
        return torch.cat([size[..., None] * where, (clock.duration / self.time)[..., None]], dim=-1)

    def forward(self, h: Tensor, gap: Tensor, dose: Tensor, theta: Tensor) -> Tensor:
        """The hidden states after an event, ``[row, state]``.

        Args:
            h: after the last event, ``[row, state]``.
            gap: time since then, ``[row]``.
            dose: the input at this event, ``[row, compartment + 1]``.
            theta: ``[row, parameter]``.
        """
        share, inputs = gap[:, None] / self.time, [dose, theta]
        if self.gap == "decay":
            h = h * torch.exp(-self.log_decay.exp() * share)
        elif self.gap == "input":
            inputs += [share, log_share(share, 0.001)]
        moved: Tensor = self.cell(torch.cat(inputs, dim=-1), h)
        return moved


class GatedDecoder(Decoder):
    """A decoder with hidden states that a `GatedCell` moves at events; how they move between is left to subclasses.

    Args:
        like: the decoder whose endpoints and dosing compartments are copied.
        latent_size: dimension of z.
        hidden: number of hidden states.
        gap: how the time since the last event enters (`GRU`).

    Raises:
        ValueError: fewer hidden states than compartments.
    """

    def __init__(self, like: Decoder, latent_size: int, hidden: int, gap: Gap = "ignored") -> None:
        super().__init__()
        self.hidden_states = HiddenStates(like, latent_size, hidden)
        self.states, self.parameter_names = self.hidden_states.states, latent_names(latent_size)
        self.endpoints = like.endpoints
        self.cell = GatedCell(len(like.states), latent_size, hidden, gap)

    def build(self, scaling: Scaling) -> None:
        self.hidden_states.build(scaling, self.endpoints)
        self.cell.build(scaling)

    def state_size(self, scaling: Scaling) -> tuple[float, ...]:
        return (1.0,) * len(self.states)

    def initial_state(self, theta: Tensor) -> Tensor:
        return self.hidden_states.first(theta)

    def observe(self, y: Tensor, theta: Tensor) -> Tensor:
        return self.hidden_states.observe(y)


class GRU(GatedDecoder):
    """A gated recurrent unit in the role of a differential equation: h steps from event to event of a subject (GRU;
    Cho et al. 2014).

    Events are the doses of a subject and the times of its records, one tick for several records at one time, which is
    how recurrent networks are run over irregular series. So predictions depend on the sampling times of a subject, but
    not on the values found.

    For a time between events, one further step without a dose is made from the last event before it; it branches off,
    so that no prediction depends on the other times asked for. The prediction of a record is that of its tick.

    Args:
        like: the dynamics whose endpoints and dosing compartments are copied; default two compartments.
        latent_size: dimension of z.
        hidden: number of hidden states.
        gap: how the time Δt between two events enters. ``ignored``: not at all, the network counts events. ``input``:
            Δt is one of its inputs. ``decay``: h decays to h·exp(−w·Δt) before a step, with w > 0 learned for each
            state (Che et al. 2018).

    Raises:
        ValueError: fewer hidden states than compartments; a `gap` that is not in this list.
    """

    def __init__(
        self, like: Decoder | None = None, latent_size: int = 4, hidden: int = 32, gap: Gap = "ignored"
    ) -> None:
        if gap not in ("ignored", "input", "decay"):
            raise ValueError(f"gap must be ignored, input or decay, not {gap!r}")
        super().__init__(CompartmentModel() if like is None else like, latent_size, hidden, gap)

    def follow(self, theta: Tensor, batch: CohortBatch, times: Tensor | None, engine: Solver) -> Trajectory:
        times, order = wanted_times(batch, times)
        clock = EventClock.of(batch, self.cell.compartments, sampling_ticks(batch))
        states, since = self._advance(theta, batch, clock)
        last = clock.before(times, order)
        at_times = batch.theta_at(theta, times)
        parts = torch.split(torch.arange(times.shape[1], device=times.device), max(1, _STEPPED_AT_ONCE // len(batch)))
        branched = torch.cat(
            [self._branch(states, since, times[:, k], last[:, k], at_times[:, k]) for k in parts], dim=1
        )
        return Trajectory.of(times, branched, at_times, clock.time.shape[1] + 1)

    def _advance(self, theta: Tensor, batch: CohortBatch, clock: EventClock) -> tuple[Tensor, Tensor]:
        """The states before the first and after each event, ``[subject, event + 1, state]``, and the times of these."""
        happens = torch.isfinite(clock.time)
        time = torch.where(happens, clock.time, batch.start[:, None])
        at_events, doses = batch.theta_at(theta, time), self.cell.doses(clock)
        since = torch.cat([batch.start[:, None], time], dim=1)
        gap = torch.where(happens, since.diff(dim=1), 0.0)
        first = h = self.initial_state(theta[:, 0])
        states = [h]
        for k in range(time.shape[1]):
            moved = self.cell(h, gap[:, k], doses[:, k], at_events[:, k])
            moved = torch.where(clock.reset[:, k, None], first, moved)
            h = torch.where(happens[:, k, None], moved, h)
            states.append(h)
        return torch.stack(states, dim=1), since

    def _branch(self, states: Tensor, since: Tensor, times: Tensor, last: Tensor, theta: Tensor) -> Tensor:
        """One step from the last event, ``[subject, time, state]``."""
        gap = times - since.gather(1, last)
        from_ = states.gather(1, last[..., None].expand(-1, -1, states.shape[-1]))
        dose = times.new_zeros((times.numel(), self.cell.compartments + 1))
        h: Tensor = self.cell(from_.flatten(0, 1), gap.flatten(), dose, theta.flatten(0, 1))
        return h.reshape(*times.shape, -1)
