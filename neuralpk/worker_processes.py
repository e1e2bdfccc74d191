"""Processes that share work: each begins once with what all of them need, and none outlives the one that began it."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait
from typing import Any

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for torch inside: sums of another number of threads have other last digits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def worker_processes(shared: Any, count: int, in_one: str) -> Iterator[ProcessPoolExecutor]:
    """Processes with a thread each, for functions that read `shared_work`.

    At an error inside, and at Ctrl-C, what a process is doing is finished, and what waits is not begun.

    Args:
        shared: sent to each process once.
        count: of processes.
        in_one: advice to work in one process, for messages: ``give processes=1``.

    Raises:
        RuntimeError: `shared` cannot be sent; the processes could not begin.
    """
    try:
        plain = pickle.dumps(shared)
    except (AttributeError, TypeError, pickle.PicklingError) as error:
        raise RuntimeError(f"this model cannot be sent to other processes ({error}): {in_one}") from error
    context = multiprocessing.get_context("spawn")  # a fork of a process that has threads may hang
    executor = ProcessPoolExecutor(count, context, _begin, (plain,))
    try:
        yield executor
    except BrokenProcessPool as error:
        raise RuntimeError(
            "another process could not begin, or was ended: what begins processes in a script must stand under "
            f"if __name__ == '__main__', and classes of one's own in a module; for want of memory, or else, {in_one}"
        ) from error
    finally:
        executor.shutdown(cancel_futures=True)


_shared: Any = None


def shared_work() -> Any:
    """In a worker process: what was sent to all of them."""
    return _shared


def _begin(plain: bytes) -> None:
    """Called once in every process."""
    global _shared
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process of a terminal; the first one decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    _shared = pickle.loads(plain)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
