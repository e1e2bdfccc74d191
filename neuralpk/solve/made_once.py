"""What follows from the tensors of a batch alone and is made once: a training solves the same batch at every step."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from neuralpk.cohort_batch import CohortBatch

Made = TypeVar("Made")


def made_once(
    batch: CohortBatch, name: str, of: Any, tensors: Sequence[Tensor | None], make: Callable[[], Made]
) -> Made:
    """The result of `make`, kept with a batch until something changes from which it was made.

    Changes of a tensor in place are noticed, unless they are made through its `data` or through a NumPy array that
    shares its memory. Nothing is kept where a tensor requires a gradient, which belongs to one backward pass, and of
    tensors of inference mode, whose changes leave no trace.

    Args:
        batch: with which it is kept, under `name`.
        name: of the result.
        of: what it was made from beside tensors; it can be compared.
        tensors: from which it was made.
        make: makes it; where it raises, nothing is kept.
    """
    given = [tensor for tensor in tensors if tensor is not None]
    if any(tensor.requires_grad or tensor.is_inference() for tensor in given):
        return make()
    key, versions = (of, torch.is_inference_mode_enabled()), [tensor._version for tensor in given]
    kept = batch.__dict__.get(name)
    if kept is not None and kept[:2] == (key, versions) and all(map(operator.is_, kept[2], tensors)):
        return cast(Made, kept[3])
    made = make()
    batch.__dict__[name] = (key, versions, tensors, made)
    return made
