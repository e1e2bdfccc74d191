"""A callback, a logger and an optimiser of one's own: Lightning's and torch's base classes, nothing of neuralpk."""

import json
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.loggers.logger import Logger


class Counter(L.Callback):
    """Writes the number of steps into a file at the end."""

    def __init__(self, path: str = "steps.txt") -> None:
        self.path = path

    def on_train_end(self, trainer, pl_module):
        Path(self.path).write_text(str(trainer.global_step))


class LinesLogger(Logger):
    """One line of JSON for every call."""

    def __init__(self, path: str = "log.jsonl") -> None:
        super().__init__()
        self.path = path

    @property
    def name(self):
        return "lines"

    @property
    def version(self):
        return 0

    def log_metrics(self, metrics, step=None):
        with Path(self.path).open("a") as file:
            file.write(json.dumps({"step": step} | {k: float(v) for k, v in metrics.items()}) + "\n")

    def log_hyperparams(self, params, *args, **kwargs):
        pass


class SignDescent(torch.optim.Optimizer):
    """Steps of the learning rate against the sign of the gradient."""

    def __init__(self, params, lr: float = 1e-3) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    weight.sub_(group["lr"] * weight.grad.sign())
        return loss
