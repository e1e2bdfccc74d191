"""Chunks of subjects on several threads, which run at the same time because the kernels release Python's lock."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Result = TypeVar("Result")

_threads_before = 0  # of torch, before it was left one


def leave_torch_one_thread() -> None:
    """Torch computes on one thread from now on, the kernels on as many as torch had: of matrices as small as those of a
    patient a second thread of torch only waits for the first, and on a busy machine it waits long."""
    global _threads_before
    _threads_before = kernel_threads()
    torch.set_num_threads(1)


def kernel_threads() -> int:
    """Threads of the kernels."""
    return max(_threads_before, torch.get_num_threads())


def in_chunks(run: Callable[[int, int], Result], subjects: int, size: int) -> list[Result]:
    """Results of ``run(begin, end)`` for `size` subjects at a time, in order; on `kernel_threads`.

    The chunks do not depend on the number of threads, and so the sums over a chunk do not either.
    """
    bounds = [(begin, min(begin + size, subjects)) for begin in range(0, subjects, size)]
    threads = kernel_threads()
    if threads < 2 or len(bounds) < 2:
        return [run(*bound) for bound in bounds]
    return list(_pool(threads, os.getpid()).map(lambda bound: run(*bound), bounds))


@functools.cache
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """Threads that wait for work; a forked process has none of those of the process before it."""
    return ThreadPoolExecutor(threads, "kernels")
