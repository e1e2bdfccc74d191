"""Context of a batch: which records the encoder sees, and which are scored."""

from __future__ import annotations

import dataclasses
from typing import Literal

import torch

from neuralpk import randomness
from neuralpk.cohort_batch import CohortBatch
from neuralpk.randomness import Stream

Context = Literal["all", "random", "first"]


def choose_context(batch: CohortBatch, context: Context, size: int, seed: int, draw: int) -> CohortBatch:
    """Decide what the encoder sees and what the loss scores.

    ``all``: it sees and is scored on everything measured. ``random``: it sees a random subset of one observation or
    more and is scored on everything. ``first``: it sees the first `size` observations and is scored on the rest.

    Args:
        batch: the subjects.
        context: one of these three.
        size: how many observations ``first`` means.
        seed: of the random subset.
        draw: counts the random subsets of a training, from 0.
    """
    if context == "all":
        return batch
    observed, width = batch.observed, batch.observed.shape[1]
    if context == "first":
        return batch.split(batch.first_seen(size).context)
    rank = torch.where(observed, randomness.uniform(seed, Stream.CONTEXT.at(2 * draw), batch.index, width), 2.0)
    rank = rank.argsort(1).argsort(1)
    share = randomness.uniform(seed, Stream.CONTEXT.at(2 * draw + 1), batch.index, 1)
    kept = 1 + (share * observed.sum(1, keepdim=True)).long()
    return dataclasses.replace(batch, context=observed & (rank < kept))
