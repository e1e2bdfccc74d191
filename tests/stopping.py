"""An interruption of a training at a step of one's choice."""

from pathlib import Path

import lightning as L


class Stop(L.Callback):
    """Save a checkpoint after a step, and end the training there."""

    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)
            trainer.should_stop = True
            trainer.fit_loop.epoch_loop.max_steps = self.step
