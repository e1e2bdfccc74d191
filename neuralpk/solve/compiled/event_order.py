"""The order of the events of every subject: integers, computed without gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neuralpk.solve.compiled.kernels_on_disk import kept

Array = NDArray[Any]


@kept(nogil=True, error_model="numpy")
def _sort(at, orders, present, order, where):
    """Sort the columns of every subject by time, `orders` and column; absent columns come last."""
    for s in range(at.shape[0]):
        count = 0
        for column in range(at.shape[1]):
            if not present[s, column]:
                continue
            # insertion sort: the columns are blocks of a few doses each, which are nearly sorted already
            place, time, own = count, at[s, column], orders[s, column]
            while place > 0:
                other = order[s, place - 1]
                if at[s, other] < time or (at[s, other] == time and orders[s, other] <= own):
                    break
                order[s, place] = other
                place -= 1
            order[s, place] = column
            count += 1
        for column in range(at.shape[1]):
            if not present[s, column]:
                order[s, count] = column
                count += 1
        for place in range(at.shape[1]):
            where[s, order[s, place]] = place


@kept(nogil=True, error_model="numpy")
def _follow(at, orders, present, order, times, rows, node):
    """Find the last node at or before each wanted time, by bisection."""
    for s in range(at.shape[0]):
        count = 0
        for column in range(at.shape[1]):
            count += present[s, column]
        for t in range(times.shape[1]):
            low, high = 0, count
            while high - low > 1:
                middle = (low + high) // 2
                column = order[s, middle]
                before = at[s, column] < times[s, t]
                if before or (at[s, column] == times[s, t] and orders[s, column] <= rows[s, t]):
                    low = middle
                else:
                    high = middle
            node[s, t] = low


def _keys(at: Tensor, orders: Tensor) -> tuple[Array, Array]:
    return at.detach().double().contiguous().numpy(), orders.contiguous().numpy()


def sort(at: Tensor, orders: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """Sort the events by time, then by `orders`, then by column; absent events come last.

    All arguments are ``[subject, event]``.

    Returns:
        The event at each position of the order, and the position of each event.
    """
    order, where = np.empty(at.shape, np.int64), np.empty(at.shape, np.int64)
    _sort(*_keys(at, orders), present.contiguous().numpy(), order, where)
    return torch.from_numpy(order), torch.from_numpy(where)


def follow(at: Tensor, orders: Tensor, present: Tensor, order: Tensor, times: Tensor, rows: Tensor) -> Tensor:
    """Position of the last event at or before each wanted time, ``[subject, time]``.

    `order` is the first result of `sort`. An event at the same time as a wanted time counts as before it unless the
    event's `orders` is larger than the wanted time's `rows`.
    """
    node = np.empty(times.shape, np.int64)
    _follow(*_keys(at, orders), present.contiguous().numpy(), order.numpy(), *_keys(times, rows), node)
    return torch.from_numpy(node)
