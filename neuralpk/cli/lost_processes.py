"""A process of a training that is gone, named by those that are left."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import lightning as L

# of gloo: a process that is gone closes its connections, and the next sum over processes fails at once
_LOST = ("closed by peer", "reset by peer", "Broken pipe", "Timed out waiting")


@contextlib.contextmanager
def naming_lost_processes(trainer: L.Trainer) -> Iterator[None]:
    """Say in one sentence that another process of the training has ended.

    Args:
        trainer: what runs inside.

    Raises:
        ChildProcessError: another process has ended.
    """
    try:
        yield
    except RuntimeError as error:
        if trainer.world_size < 2 or not any(words in str(error) for words in _LOST):
            raise
        raise ChildProcessError(
            f"process {trainer.global_rank} of {trainer.world_size} stops: another one of this training was ended, or "
            "failed and said why; the training goes on from its last epoch with --ckpt_path, the file "
            "checkpoints/last.ckpt of its folder, and --overwrite"
        ) from error
