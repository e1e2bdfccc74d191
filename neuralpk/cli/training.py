"""``fit``, ``validate``, ``test`` and ``predict``: one `LightningCLI` that is given a finished configuration."""

from __future__ import annotations

import logging
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import lightning as L
import pandas as pd
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar, RichProgressBar
from lightning.pytorch.cli import LightningCLI, LRSchedulerTypeUnion, SaveConfigCallback, instantiate_class
from lightning.pytorch.loggers import Logger, TensorBoardLogger

from neuralpk.callbacks import Dashboard, LastCheckpoint, Report
from neuralpk.cli.faults import UsageError, sentence
from neuralpk.cli.merged_configuration import Configuration, Node
from neuralpk.cli.signatures import REQUIRED, Option, find, options_of, path_of
from neuralpk.datamodules import CohortDataModule
from neuralpk.task import LatentTask

COMMANDS = ("fit", "validate", "test", "predict")
_GIVEN_BY_LIGHTNING = ("self", "model", "train_dataloaders", "val_dataloaders", "dataloaders", "datamodule")
_NAMED_BY_LIGHTNING = ("best", "last", "hpc", "registry")  # checkpoints that Lightning finds itself
_LOGS = "lightning_logs"


def options(command: str) -> dict[str, Option]:
    """Options of one of the four commands."""
    found = {
        "seed_everything": Option("seed_everything", bool | int, 0, "seed of everything random outside data and model"),
        "data": Option("data", CohortDataModule, REQUIRED, "data module: simulated patients, or those of a table"),
        "model": Option("model", fixed=LatentTask, description="the model and how it is trained"),
        "trainer": Option("trainer", fixed=L.Trainer, description="Lightning's trainer"),
        "optimizer": Option(
            "optimizer", torch.optim.Optimizer | None, None, "instead of the model's optimizer", skipped=("params",)
        ),
        "lr_scheduler": Option(
            "lr_scheduler", LRSchedulerTypeUnion | None, None, "schedule of that optimizer", skipped=("optimizer",)
        ),
    }
    return found | options_of(L.Trainer, _GIVEN_BY_LIGHTNING, command)


def defaults() -> Node:
    """What every run starts from: a folder of TensorBoard's."""
    logger = {"class_path": path_of(TensorBoardLogger), "init_args": {"name": None, "default_hp_metric": False}}
    return {"trainer": {"logger": logger}}


def complete(configuration: Configuration) -> None:
    """Fill in what depends on other options: where loggers write.

    Raises:
        UsageError: an option of the trainer that Lightning does not look at before it is too late.
    """
    trainer = configuration.values.setdefault("trainer", {})
    if trainer.get("accumulate_grad_batches", 1) < 1:  # Lightning divides by it
        raise UsageError("--trainer.accumulate_grad_batches must be 1 or more")
    root = trainer.get("default_root_dir")
    ours = defaults()["trainer"]["logger"]
    if trainer.get("logger") is True:
        trainer["logger"] = ours
    elif trainer.get("barebones") and trainer.get("logger") == ours:
        trainer["logger"] = False
    loggers = trainer.get("logger")
    for node in loggers if isinstance(loggers, list) else [loggers]:
        if isinstance(node, Mapping) and "class_path" in node:
            inner = node["init_args"]
            named = inner.get("name", _LOGS)  # the loggers' own default is that name
            if "save_dir" in options_of(_logger(node)) and "save_dir" not in inner:
                parts = [str(root)] if root else []
                inner["save_dir"] = str(Path(*parts, *([] if named == _LOGS else [_LOGS])))


def _logger(node: Mapping[str, Any]) -> type:
    return find(node["class_path"], [Logger], "trainer.logger", False)


class SaveConfiguration(SaveConfigCallback):
    """Save the configuration without the path of a checkpoint: read back later, its ``ckpt_path: null`` would undo the
    one given on the command line, and an untrained model would be measured."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Save ``config.yaml`` in the folder of the run."""
        self.config = self.config.clone()
        for name in ("ckpt_path", "weights_only"):
            self.config.pop(name, None)
        self.save_to_log_dir = trainer.log_dir is not None
        super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Save ``config.yaml`` for a logger that has no folder of its own."""
        if trainer.log_dir is None:
            folder = Path(trainer.default_root_dir)
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / self.config_filename
            self.parser.save(self.config, path, skip_none=False, overwrite=True, multifile=False)


class NeuralPKCLI(LightningCLI):
    """One `LightningCLI` for one command.

    Args:
        command: ``fit``, ``validate``, ``test`` or ``predict``.
        values: the finished configuration.
        print_config: print what would be run instead of running it.
    """

    def __init__(self, command: str, values: Node, print_config: bool = False) -> None:
        self.command, self.print_config = command, print_config
        super().__init__(
            LatentTask,
            CohortDataModule,
            subclass_mode_data=True,
            load_from_checkpoint_support=False,  # a task describes its parts in the checkpoint by itself
            save_config_callback=SaveConfiguration,
            save_config_kwargs={"overwrite": True},
            seed_everything_default=0,
            trainer_defaults={"callbacks": default_callbacks()},
            parser_kwargs={"exit_on_error": False},
            args={"subcommand": command, command: values},
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # called of an object everywhere
        """The one command: the parsers of the others are not needed."""
        return {self.command: LightningCLI.subcommands()[self.command]}

    def parse_arguments(self, parser: Any, args: Any) -> None:
        """Take the finished configuration."""
        self.config = parser.parse_object(args)
        if self.print_config:
            print(self._parser(self.command).dump(self.config[self.command], skip_none=False))
            sys.exit(0)

    def instantiate_classes(self) -> None:
        """Make data module, task and trainer.

        Raises:
            UsageError: a value that one of them does not take.
        """
        try:
            super().instantiate_classes()
        except (ValueError, TypeError, MisconfigurationException) as error:
            raise UsageError(sentence(error)) from error

    def after_instantiate_classes(self) -> None:
        """Read the data before a folder is made for the run."""
        self.datamodule.read_for(self.model)
        if type(self.datamodule).prepare_data is L.LightningDataModule.prepare_data:
            self.datamodule.setup()

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """The trainer, with our callbacks except those that the user's options exclude.

        Raises:
            UsageError: options that do not fit together or do not fit this machine.
        """
        given = self._get(self.config_init, "trainer")
        added = given.get("callbacks") or []
        bars = [c for c in (added if isinstance(added, list) else [added]) if isinstance(c, ProgressBar)]
        bare = bool(given.get("barebones"))
        unwanted: list[type] = []
        if given.get("enable_progress_bar") is False or bars or bare:
            unwanted.append(RichProgressBar)
        if given.get("enable_checkpointing") is False or bare:
            unwanted.append(ModelCheckpoint)
        if bare:
            self.save_config_callback = None  # it would make the folder that is not wanted
        callbacks = [c for c in self.trainer_defaults["callbacks"] if not isinstance(c, tuple(unwanted))]
        self.trainer_defaults["callbacks"] = callbacks
        try:
            return super().instantiate_trainer(**kwargs)
        except (MisconfigurationException, ValueError, RuntimeError, ModuleNotFoundError) as error:
            raise UsageError(_of_the_trainer(error, given)) from error

    def _add_configure_optimizers_method_to_model(self, subcommand: str | None) -> None:
        """The optimiser that was asked for, made when the weights exist: Lightning would make it before."""
        wanted, schedule = (self._get(self.config_init, name) for name in ("optimizer", "lr_scheduler"))
        if not wanted:
            return

        def configure_optimizers() -> Any:
            optimizer = instantiate_class(self.model.parameters(), wanted)
            scheduler = instantiate_class(optimizer, schedule) if schedule else None
            return self.configure_optimizers(self.model, optimizer, scheduler)

        self.model.configure_optimizers = configure_optimizers

    def predict(self, **kwargs: Any) -> None:
        """Predict, and write ``predictions.csv`` into the folder of the run."""
        frames = self.trainer.predict(**kwargs)
        folder = Path(self.trainer.log_dir or ".")
        folder.mkdir(parents=True, exist_ok=True)
        pd.concat(cast(list[pd.DataFrame], frames)).to_csv(folder / "predictions.csv", index=False)
        print(f"Predictions: {folder / 'predictions.csv'}")


def _of_the_trainer(error: Exception, given: Mapping[str, Any]) -> str:
    text = sentence(error)
    accelerator = given.get("accelerator")
    if isinstance(accelerator, str) and accelerator not in ("cpu", "auto") and (
        "backend found" in text or "can not run on your system" in text
    ):  # fmt: skip
        return f"--trainer.accelerator {accelerator}: this machine has none that torch can use; give cpu or auto"
    return f"--trainer: {text}"


def default_callbacks() -> list[L.Callback]:
    """What every run gets: a progress bar, the last and the best checkpoint, the dashboard and the report."""
    return [
        RichProgressBar(),
        LastCheckpoint(save_on_exception=True),
        ModelCheckpoint(monitor="val_loss", filename="best"),
        Dashboard(),
        Report(),
    ]


def run(command: str, configuration: Configuration, print_config: bool = False) -> NeuralPKCLI:
    """Run a command.

    Raises:
        UsageError: no checkpoint for a command that measures one; a value that does not fit.
    """
    complete(configuration)
    values = configuration.finish()
    path = values.get("ckpt_path")
    if path is not None:
        values["ckpt_path"] = str(path)
        values.setdefault("weights_only", True)
        if str(path) not in _NAMED_BY_LIGHTNING:
            check_checkpoint(path)
    elif command != "fit":
        raise UsageError("which checkpoint? Give --checkpoint FILE")
    if command != "fit":
        # the checkpoint has what it took from there
        values.setdefault("model", {}).pop("pretrained", None)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_no_advertisement)
    try:
        return NeuralPKCLI(command, values, print_config)
    except MisconfigurationException as error:
        raise UsageError(sentence(error)) from error


def _no_advertisement(record: logging.LogRecord) -> bool:
    return "Tip:" not in record.getMessage()


def check_checkpoint(path: str | Path) -> None:
    """Refuse what is no checkpoint before anything is read from it.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file of another kind.
    """
    if str(path).startswith(("http://", "https://")):
        return
    if not Path(path).is_file():
        raise FileNotFoundError(2, "no such file", str(path))
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is not a checkpoint of a training (those end in .ckpt)")
