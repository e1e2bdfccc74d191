"""Row-wise select, where and index_copy for frozen dataclasses of tensors whose first axis is the row."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Record = TypeVar("Record", bound="DataclassInstance")


def select(record: Record, rows: Tensor) -> Record:
    """Some of the rows."""
    return _each(lambda tensor: tensor[rows], record)


def choose(which: Tensor, a: Record, b: Record) -> Record:
    """Each row from `a` where `which` is true, else from `b`."""
    return _each(lambda x, y: torch.where(which.reshape(-1, *[1] * (x.dim() - 1)), x, y), a, b)


def put(record: Record, rows: Tensor, new: Record) -> Record:
    """A copy with some of the rows replaced by those of `new`."""
    return _each(lambda tensor, rows_of_new: tensor.index_copy(0, rows, rows_of_new), record, new)


def _each(function: Callable[..., Tensor], *records: Record) -> Record:
    """A function of the tensors of one name, for every name."""
    names = [field.name for field in dataclasses.fields(records[0])]
    return type(records[0])(*(function(*(getattr(record, name) for record in records)) for name in names))
