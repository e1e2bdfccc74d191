"""Signals that stop a command, and the exit codes that say so: 130 for Ctrl-C (SIGINT), 143 for SIGTERM."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # tables are estimated without it
    import lightning as L

INTERRUPTED, TERMINATED = 130, 143


@contextlib.contextmanager
def exit_codes(trainer: L.Trainer) -> Iterator[None]:
    """Stop a training after its step at the first Ctrl-C, at once at the second, and exit with the code of the signal.

    Args:
        trainer: what runs inside.

    Raises:
        SystemExit: 130 or 143 where a signal has stopped it.
    """
    asked = False

    def after_the_step(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        signal.signal(signal.SIGINT, signal.default_int_handler)
        waits = trainer.training and callable(signal.getsignal(signal.SIGTERM))  # Lightning looks after every step
        if not waits:
            raise KeyboardInterrupt
        asked = True
        print("\nstopping after this step; Ctrl-C again stops at once", file=sys.stderr)
        signal.raise_signal(signal.SIGTERM)

    with handled(signal.SIGINT, after_the_step):
        try:
            yield
        except SystemExit:
            if not trainer.interrupted:
                raise
            raise SystemExit(TERMINATED if trainer.received_sigterm and not asked else INTERRUPTED) from None
        if trainer.received_sigterm:  # it came too late to stop anything
            raise SystemExit(INTERRUPTED if asked else TERMINATED)


@contextlib.contextmanager
def leaving_on_sigterm() -> Iterator[None]:
    """Exit with 143 at SIGTERM, so that files that are being written are removed.

    Raises:
        SystemExit: 143.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(TERMINATED)

    with handled(signal.SIGTERM, leave):
        yield


@contextlib.contextmanager
def handled(number: int, handler: Any) -> Iterator[None]:
    """A handler of a signal for a while; a signal that is ignored or has another handler stays as it is."""
    usual = (signal.SIG_DFL, signal.default_int_handler)
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(number) not in usual:
        yield
        return
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)
