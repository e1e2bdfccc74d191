"""The checkpoint of the last epoch, and that of a training that was stopped."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import SIGTERMException

from neuralpk.checkpoint_files import non_finite

INTERRUPTED = "interrupted.ckpt"


class LastCheckpoint(ModelCheckpoint):
    """Writes ``last.ckpt`` at the end of every epoch, and ``interrupted.ckpt`` where the training was stopped.

    With a monitored metric, Lightning's own ``save_last`` writes the epoch in which the metric was best instead. A
    class of its own, so that its state is kept apart from that of a `ModelCheckpoint` beside it.

    A training that is stopped (Ctrl-C, SIGTERM, an error) is written after its last finished step, into a file of its
    own, unless it has weights that are not finite: the last and the best checkpoint stay what they were. A training
    that is resumed from it gives the weights of one that was never stopped.
    """

    def __init__(self) -> None:
        super().__init__(filename="last", save_on_train_epoch_end=True, enable_version_counter=False)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Write ``interrupted.ckpt``."""
        fast: int = trainer.fast_dev_run  # type: ignore[attr-defined]
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking or fast or not self.dirpath:
            return
        # of several processes one alone may have stopped, and the others would not come to where all save together
        if trainer.global_step == 0 or (trainer.world_size > 1 and not isinstance(exception, SIGTERMException)):
            return
        if broken := non_finite(dict(pl_module.named_parameters())):
            warnings.warn(f"not saved: {', '.join(broken[:5])} not finite at step {trainer.global_step}", stacklevel=2)
            return
        forget_unfinished(trainer)
        path = Path(self.dirpath, INTERRUPTED)
        try:
            trainer.save_checkpoint(path)
        except (OSError, ValueError, RuntimeError) as error:  # the training's own error is the one to be seen
            warnings.warn(f"the state at step {trainer.global_step} could not be saved: {error}", stacklevel=2)
            return
        if trainer.is_global_zero:
            print(f"stopped after step {trainer.global_step}; to go on: --ckpt_path {path}", file=sys.stderr)


def forget_unfinished(trainer: L.Trainer) -> None:
    """Set the counters of a training that was stopped inside a step to the last step of the optimiser, so that a
    resumed training begins with the batch that was not finished."""
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress
    last = progress.current.processed >= trainer.num_training_batches
    # gradients that were accumulated are not in a checkpoint: their batches come again
    lost = 0 if last else progress.current.processed % trainer.accumulate_grad_batches
    for counts in (progress.total, progress.current):
        finished = counts.processed - lost
        counts.ready = counts.started = counts.processed = counts.completed = finished
    progress.is_last_batch = last
    epochs: Any = trainer.fit_loop.epoch_progress
    if last and epochs.current.processed < epochs.current.ready:
        every = trainer.check_val_every_n_epoch
        if not trainer.enable_validation or (every is not None and (trainer.current_epoch + 1) % every):
            epochs.increment_processed()
            return
        # all of the validation comes again, since what it had summed up is not in a checkpoint
        validation: Any = trainer.fit_loop.epoch_loop.val_loop.batch_progress
        validation.reset()
        for counts in (validation.total, validation.current):
            counts.ready = counts.started = 1
