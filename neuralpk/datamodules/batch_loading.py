"""Batches of a cohort: the same ones on any number of devices, and after an interruption."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from itertools import islice, pairwise
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, SequentialSampler

from neuralpk import randomness
from neuralpk.cohort import Cohort
from neuralpk.cohort_batch import CohortBatch, collate
from neuralpk.cohort_data.base import FurtherSubjects
from neuralpk.cohort_data.seen_records import Context, choose_context
from neuralpk.randomness import Stream


class BatchDataset(Dataset[CohortBatch]):
    """Whole batches of a cohort, asked for by (pass, subjects); with a `forecast` only what lies before that time is
    seen, and what follows is scored."""

    def __init__(self, cohort: Cohort, context: Context, size: int, seed: int, forecast: float | None = None) -> None:
        self.subjects = len(cohort)
        self.context, self.size, self.seed, self.forecast = context, size, seed, forecast
        self.whole = collate(cohort) if len(cohort) else None  # once: a batch is then a choice of rows

    def __getitem__(self, request: tuple[int, list[int]]) -> CohortBatch:
        draw, subjects = request
        batch = self._of(subjects)
        batch = choose_context(batch, self.context, self.size, self.seed, draw)
        if self.forecast is None:
            return batch
        before = batch.on_data_clock(batch.time) < self.forecast
        return dataclasses.replace(batch, context=batch.context & before, target=batch.observed & ~before)

    def _of(self, subjects: list[int]) -> CohortBatch:
        assert self.whole is not None
        return self.whole.select(torch.tensor(subjects)).trimmed()

    def __len__(self) -> int:
        return self.subjects


class StreamedBatches(BatchDataset):
    """Whole batches of a cohort and of further subjects, which are numbered after it and are not kept.

    Args:
        cohort: that is held.
        further: the others.
        read: what was done to the cohort, for the others.
        context: as of `BatchDataset`.
        size: as there.
        seed: as there.
    """

    def __init__(
        self,
        cohort: Cohort,
        further: FurtherSubjects,
        read: Callable[[Cohort], Cohort],
        context: Context,
        size: int,
        seed: int,
    ) -> None:
        super().__init__(cohort, context, size, seed)
        self.cohort, self.further, self.read = cohort, further, read
        self.subjects += len(further)

    def _of(self, subjects: list[int]) -> CohortBatch:
        held = len(self.cohort)
        index = [k for k in subjects if k < held]
        people = list(self.cohort[index])
        beyond = [k - held for k in subjects if k >= held]
        if beyond:
            numbers, further = self.further(beyond)
            people += [dataclasses.replace(one, truth=None) for one in self.read(further)]
            index += [held + number for number in numbers]
        return collate(people, index)


class GlobalBatchSampler(DistributedSampler[Any], SequentialSampler):
    """Batches that do not depend on the number of devices: each device takes its share of the same global batch.

    A `DistributedSampler` by type, so that Lightning keeps it and sets its epoch, and a `SequentialSampler` by type, so
    that it keeps it with ``overfit_batches`` too. Unlike the one it never repeats a subject to even out the shares;
    unlike the other it may shuffle.

    Args:
        subjects: number of subjects.
        batch_size: subjects in a batch, over all devices.
        passes: passes over the subjects in an epoch.
        shuffle: a new order in every pass.
        seed: of the order.
        rank: this device.
        devices: how many there are.
    """

    def __init__(
        self, subjects: int, batch_size: int, passes: int, shuffle: bool, seed: int, rank: int, devices: int
    ) -> None:
        super().__init__(range(subjects), num_replicas=devices, rank=rank)  # type: ignore[arg-type]
        self.subjects, self.batch_size, self.passes = subjects, max(batch_size, devices), passes
        self.ordered, self.own_seed = not shuffle, seed

    def _cuts(self) -> list[int]:
        cuts = [*range(0, self.subjects, self.batch_size), self.subjects]
        if len(cuts) > 2 and cuts[-1] - cuts[-2] < self.num_replicas:
            del cuts[-2]  # a last batch too small to give every device a subject joins the one before
        return cuts

    def __iter__(self) -> Iterator[tuple[int, list[int]]]:  # type: ignore[override]  # of whole batches
        cuts = self._cuts()
        for k in range(self.passes):
            number = self.epoch * self.passes + k
            order: Tensor | range = range(self.subjects)
            if not self.ordered:
                stream = Stream.ORDER.at(number)
                order = randomness.uniform(self.own_seed, stream, torch.tensor([0]), self.subjects)[0].argsort()
            for a, b in pairwise(cuts):
                yield number, [int(k) for k in order[a:b][self.rank :: self.num_replicas]]

    @property
    def batches_in_a_pass(self) -> int:
        """Number of batches that hold every subject once."""
        return len(self._cuts()) - 1

    def __len__(self) -> int:
        return self.passes * self.batches_in_a_pass


class ResumableLoader(DataLoader[CohortBatch]):
    """A loader that a resumed training continues where it was interrupted in the middle of an epoch.

    Attributes:
        finished: how many batches of the epoch the training has finished; one that was handed out counts when its step
            is done. None outside a Trainer, where it counts when the next one is asked for.
    """

    served = 0
    skipped = 0
    finished: Callable[[], int] | None = None

    def __iter__(self) -> Iterator[CohortBatch]:  # type: ignore[override]
        self.served, self.skipped = self.skipped, 0
        for batch in islice(super().__iter__(), self.served, None):
            self.served += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """How far the epoch is."""
        return {"served": self.served % len(self) if self.finished is None else self.finished()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Where the next epoch starts."""
        self.skipped = state["served"]


def as_is(batch: CohortBatch) -> CohortBatch:
    return batch
