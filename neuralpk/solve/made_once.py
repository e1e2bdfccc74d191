"""What follows from the tensors of a batch alone and is made once: a training solves the same batch at every step."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar, cast

import torch
from torch import Tensor

from neuralpk.cohort_batch import CohortBatch

Made = TypeVar("Made")


def made_once(
    batch: CohortBatch, name: str, of: Hashable, tensors: Sequence[Tensor | None], make: Callable[[], Made]
) -> Made:
    """The result of `make`, kept with a batch until something changes from which it was made.

    Args:
        batch: with which it is kept, under `name`.
        name: of the result.
        of: what it was made from beside tensors.
        tensors: from which it was made; changes in place are noticed.
        make: makes it; where it raises, nothing is kept.
    """
    key = (of, torch.is_inference_mode_enabled(), *map(id, tensors))
    versions = [0 if tensor is None or tensor.is_inference() else tensor._version for tensor in tensors]
    kept = batch.__dict__.get(name)
    if kept is not None and kept[:2] == (key, versions):
        return cast(Made, kept[2])
    made = make()
    # with the tensors themselves, so that their identities stay theirs
    batch.__dict__[name] = (key, versions, made, tensors)
    return made
