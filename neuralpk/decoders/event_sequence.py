"""Doses and ticks of every subject in the order of time."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from neuralpk.cohort_batch import CohortBatch, Doses
from neuralpk.solve.event_nodes import sorted_by

_LAST = torch.iinfo(torch.int64).max


@dataclass(frozen=True)
class EventClock:
    """Doses and ticks of each subject in the order of time; ``inf`` where a subject has fewer events than others.

    Args:
        time: ``[subject, event]``.
        order: order among events of the same time, ``[subject, event]``: the row of a dose; ticks come last.
        amount: amount of a dose, ``[subject, event]``; 0 at a tick.
        duration: of its infusion, 0 for a bolus, ``[subject, event]``.
        compartment: where the dose goes, integer ``[subject, event]``.
        reset: whether the states return to their first value, bool ``[subject, event]``.
    """

    time: Tensor
    order: Tensor
    amount: Tensor
    duration: Tensor
    compartment: Tensor
    reset: Tensor

    @classmethod
    def of(cls, batch: CohortBatch, compartments: int, ticks: Tensor) -> EventClock:
        """The events of a batch.

        Args:
            batch: for the doses.
            compartments: number of compartments into which doses can go.
            ticks: times of the other events, ``[subject, tick]``; inf for none.

        Raises:
            ValueError: a dose at steady state, or into a compartment that does not exist.
        """
        doses = batch.doses
        wrong = doses.mask & ((doses.steady_state > 0) | (doses.compartment >= compartments))
        if bool(wrong.any()):
            names = [batch.ids[k] for k in wrong.any(1).nonzero()[:5, 0].tolist()]
            raise ValueError(
                f"subject {', '.join(names)}: a recurrent network takes doses into compartments (CMT) 1 to "
                f"{compartments} and has no steady state (SS); write the earlier doses out"
            )
        rate = torch.where(doses.rate > 0, doses.rate, 1.0)
        duration = torch.where(doses.rate > 0, doses.amount / rate, doses.duration)
        time = torch.cat([torch.where(doses.mask, doses.time, torch.inf), ticks], dim=1)
        order = torch.cat([doses.row, torch.full_like(ticks, _LAST, dtype=torch.int64)], dim=1)
        at = sorted_by(order, time)[:, : int(torch.isfinite(time).sum(1).max())]
        reset = doses.reset & doses.mask
        of_doses = (doses.amount, duration, doses.compartment, reset)
        columns = (torch.nn.functional.pad(column, (0, ticks.shape[1])).gather(1, at) for column in of_doses)
        return cls(time.gather(1, at), order.gather(1, at), *columns)

    def before(self, times: Tensor, order: Tensor) -> Tensor:
        """Number of events before each of the times ``[subject, time]``, with their order among events of that time."""
        wanted = times.shape[1]
        # wanted times first: a record and a dose of the same row are taken in this order
        at = sorted_by(torch.cat([order, self.order], dim=1), torch.cat([times, self.time], dim=1))
        passed = (at >= wanted).long().cumsum(1)
        return torch.empty_like(at).scatter_(1, at, passed)[:, :wanted]


def wanted_times(batch: CohortBatch, times: Tensor | None) -> tuple[Tensor, Tensor]:
    """The times at which states are wanted, and their order among events of the same time: that of the records of the
    batch, or, for other times, after the doses."""
    if times is None:
        return batch.time, batch.row
    return times, torch.full_like(times, _LAST - 1, dtype=torch.int64)


def sampling_ticks(batch: CohortBatch) -> Tensor:
    """The sampling times of each subject, each once, ``[subject, tick]``; inf for none."""
    again = torch.zeros_like(batch.mask)
    again[:, 1:] = batch.time[:, 1:] == batch.time[:, :-1]
    return torch.where(batch.mask & ~again, batch.time, torch.inf)


def without_doses(batch: CohortBatch, start: Tensor) -> CohortBatch:
    """The subjects from the time `start` ``[subject]`` on, without their doses."""
    none = Doses.none(len(batch), batch.time.dtype, batch.device)
    return dataclasses.replace(batch, start=start, doses=none)
