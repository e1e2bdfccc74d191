"""Chunks of subjects on several threads, which run at the same time because the kernels release Python's lock."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Result = TypeVar("Result")


def in_chunks(run: Callable[[int, int], Result], subjects: int, size: int) -> list[Result]:
    """Results of ``run(begin, end)`` for `size` subjects at a time, in order; on as many threads as torch may use.

    The chunks do not depend on the number of threads, and so the sums over a chunk do not either.
    """
    bounds = [(begin, min(begin + size, subjects)) for begin in range(0, subjects, size)]
    threads = min(torch.get_num_threads(), len(bounds))
    if threads < 2:
        return [run(*bound) for bound in bounds]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(lambda bound: run(*bound), bounds))
