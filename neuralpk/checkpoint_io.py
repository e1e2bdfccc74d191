"""How a Trainer of Lightning writes and reads checkpoints: sealed, and verified before anything in them is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fsspec
import lightning as L
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.plugins.io.wrapper import _WrappingCheckpointIO

from neuralpk.checkpoint_files import checkpoint_bytes, read_checkpoint, write_checkpoint


class VerifiedCheckpointIO(TorchCheckpointIO):
    """Checkpoints with a sha256 inside, in every Trainer that trains a `neuralpk.task.LatentTask`.

    Args:
        unverified: also read a file without a sha256; ``Trainer(plugins=[VerifiedCheckpointIO(unverified=True)])``.
    """

    def __init__(self, unverified: bool = False) -> None:
        self.unverified = unverified

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint; in a local folder beside its place and then put there.

        Raises:
            OSError: no room or no rights.
        """
        if "://" not in str(path):
            write_checkpoint(checkpoint, path)
            return
        with fsspec.open(str(path), "wb", **(storage_options or {})) as file:
            file.write(checkpoint_bytes(checkpoint))

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint, numbers and texts only.

        Raises:
            FileNotFoundError: no such file.
            neuralpk.checkpoint_files.CheckpointError: no checkpoint; damaged; without a sha256; not a local file.
            ValueError: `weights_only` of False.
        """
        refuse_pickles(weights_only)
        return read_checkpoint(path, map_location, self.unverified, keys=("state_dict",))


def refuse_pickles(weights_only: bool | None) -> None:
    """Refuse to run what a checkpoint may hold.

    Raises:
        ValueError: `weights_only` of False.
    """
    if weights_only is False:
        raise ValueError("weights_only=False would run the code in a checkpoint: neuralpk reads numbers and texts only")


def verify_checkpoints(trainer: L.Trainer, unverified: bool = False) -> None:
    """Let a Trainer write and read checkpoints by `VerifiedCheckpointIO`; a plug-in of the user's own is kept.

    Args:
        trainer: whose strategy reads and writes.
        unverified: of `VerifiedCheckpointIO`.
    """
    holder: Any = trainer.strategy
    while isinstance(holder.checkpoint_io, _WrappingCheckpointIO):
        holder = holder.checkpoint_io
    if holder.checkpoint_io is None or type(holder.checkpoint_io) is TorchCheckpointIO:
        holder.checkpoint_io = VerifiedCheckpointIO(unverified)
    elif unverified and isinstance(holder.checkpoint_io, VerifiedCheckpointIO):
        holder.checkpoint_io.unverified = True
