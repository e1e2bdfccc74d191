"""``fit``, ``validate``, ``test`` and ``predict``: one `LightningCLI` that is given a finished configuration."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import lightning as L
import pandas as pd
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar, RichProgressBar
from lightning.pytorch.cli import LightningCLI, LRSchedulerTypeUnion, SaveConfigCallback, instantiate_class
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning_utilities.core.rank_zero import rank_zero_only

from neuralpk.atomic_files import refuse_unwritable, replacing
from neuralpk.callbacks import BestCheckpoint, Dashboard, LastCheckpoint, Report, TensorBoardRuns
from neuralpk.checkpoint_files import read_checkpoint
from neuralpk.checkpoint_io import verify_checkpoints
from neuralpk.cli.faults import UsageError, sentence
from neuralpk.cli.lost_processes import naming_lost_processes
from neuralpk.cli.merged_configuration import Configuration, Node, Source
from neuralpk.cli.outputs import OVERWRITE, refuse_results, results_of_a_run
from neuralpk.cli.signatures import REQUIRED, Option, find, options_of, path_of
from neuralpk.cli.stop_signals import exit_codes
from neuralpk.datamodules import CohortDataModule
from neuralpk.run_record import RunRecord
from neuralpk.task import LatentTask

COMMANDS = ("fit", "validate", "test", "predict")
_GIVEN_BY_LIGHTNING = ("self", "model", "train_dataloaders", "val_dataloaders", "dataloaders", "datamodule")
_NAMED_BY_LIGHTNING = ("best", "last", "hpc")  # checkpoints that Lightning finds itself
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
    if command == "fit":
        found[OVERWRITE.name] = OVERWRITE
    found["unverified"] = Option("unverified", bool, False, "also read a checkpoint without a sha256")
    # numbers and texts only, always: no option
    return found | options_of(L.Trainer, (*_GIVEN_BY_LIGHTNING, "weights_only"), command)


def defaults() -> Node:
    """What every run starts from: a folder of TensorBoard's."""
    logger = {"class_path": path_of(TensorBoardRuns), "init_args": {"name": None}}
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


def _chosen_folder(values: Mapping[str, Any]) -> Path | None:
    """The folder of a run that was named by ``--out``."""
    logger = values["trainer"].get("logger")
    inner = logger.get("init_args", {}) if isinstance(logger, Mapping) else {}
    return Path(inner["save_dir"]) if inner.get("version") == "" else None


def _logger(node: Mapping[str, Any]) -> type:
    return find(node["class_path"], [Logger], "trainer.logger", False)


class SaveConfiguration(SaveConfigCallback):
    """Save the configuration without the path of a checkpoint: read back later, its ``ckpt_path: null`` would undo the
    one given on the command line, and an untrained model would be measured."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Save ``config.yaml``, and what it is run with, in the folder of the run."""
        self.values = self.config.as_dict()
        self.config = self.config.clone()
        for name in ("ckpt_path", "weights_only"):
            self.config.pop(name, None)
        self.save_to_log_dir = False
        self.folder = Path(trainer.log_dir or trainer.default_root_dir)  # all processes together: rank 0 tells it
        super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Save ``config.yaml`` and the record of the run; called in one process."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / self.config_filename
        with replacing(path) as part:
            part.write_text(self.parser.dump(self.config, skip_none=False), encoding="utf-8")
        RunRecord.of(path, self.values, torch.get_num_threads()).write(self.folder)


class NeuralPKCLI(LightningCLI):
    """One `LightningCLI` for one command.

    Args:
        command: ``fit``, ``validate``, ``test`` or ``predict``.
        values: the finished configuration.
        print_config: print what would be run instead of running it.
        unverified: also read a checkpoint without a sha256.
        replaced: folder whose results are removed before the training; None for none.
        callbacks: instead of `default_callbacks`.
    """

    def __init__(
        self,
        command: str,
        values: Node,
        print_config: bool = False,
        unverified: bool = False,
        replaced: Path | None = None,
        callbacks: list[L.Callback] | None = None,
    ) -> None:
        self.command, self.print_config, self.unverified, self.replaced = command, print_config, unverified, replaced
        super().__init__(
            LatentTask,
            CohortDataModule,
            subclass_mode_data=True,
            load_from_checkpoint_support=False,  # a task describes its parts in the checkpoint by itself
            save_config_callback=SaveConfiguration,
            save_config_kwargs={"overwrite": True},
            seed_everything_default=0,
            trainer_defaults={"callbacks": default_callbacks() if callbacks is None else callbacks},
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
            self.config[self.command].pop("weights_only", None)
            print(self._parser(self.command).dump(self.config[self.command], skip_none=False))
            sys.exit(0)

    def _parse_ckpt_path(self) -> None:
        """The parts of the checkpoint are in the configuration already; Lightning would import what it names."""

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
        """Read the data and build the model for them before a folder is made for the run, or results are removed."""
        self.datamodule.read_for(self.model)
        if type(self.datamodule).prepare_data is L.LightningDataModule.prepare_data:
            self.datamodule.setup()
            self.model.build_for(self.datamodule)
        fast: int = self.trainer.fast_dev_run  # type: ignore[attr-defined]
        if not fast and getattr(rank_zero_only, "rank", 0) == 0:
            try:
                self._remove_results()
                own_folders(self.trainer)
            except OSError as error:
                raise UsageError(f"the folder of the run: {sentence(error)}") from error

    def _remove_results(self) -> None:
        """Remove the results that are to be replaced, except the checkpoint that the training goes on from."""
        resumed = self.config[self.command].get("ckpt_path")
        for path in [] if self.replaced is None else results_of_a_run(self.replaced):
            if resumed is None or not path.samefile(str(resumed)):
                path.unlink()

    def _run_subcommand(self, subcommand: str) -> None:
        with exit_codes(self.trainer), naming_lost_processes(self.trainer):
            super()._run_subcommand(subcommand)

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
            trainer = super().instantiate_trainer(**kwargs)
            verify_checkpoints(trainer, self.unverified)
            return trainer
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
        """Predict, and write the table of records, ``records.csv``, into the folder of the run."""
        # all processes together: each has its share of the patients
        frames = [one for own in of_all_processes(self.trainer.predict(**kwargs)) for one in own]
        folder = Path(self.trainer.log_dir or ".")
        if not self.trainer.is_global_zero:
            return
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / "records.csv") as part:
            pd.concat(cast(list[pd.DataFrame], frames)).to_csv(part, index=False)
        print(f"Records: {folder / 'records.csv'}")


def _of_the_trainer(error: Exception, given: Mapping[str, Any]) -> str:
    text = sentence(error)
    accelerator = given.get("accelerator")
    if isinstance(accelerator, str) and accelerator not in ("cpu", "auto") and (
        "backend found" in text or "can not run on your system" in text
    ):  # fmt: skip
        return f"--trainer.accelerator {accelerator}: this machine has none that torch can use; give cpu or auto"
    return f"--trainer: {text}"


def own_folders(trainer: L.Trainer) -> None:
    """Make the folder of the run before its training, so that one that starts at the same moment gets another.

    Raises:
        OSError: no room or no rights.
    """
    if not trainer.loggers:
        refuse_unwritable(trainer.default_root_dir, folder=True)
    for logger in trainer.loggers:
        if not isinstance(logger, TensorBoardLogger | CSVLogger):
            continue
        refuse_unwritable(logger.root_dir, folder=True)
        while logger._version is None:
            version = logger._get_next_version()
            with contextlib.suppress(FileExistsError):  # of the one that was quicker
                Path(logger.root_dir, f"version_{version}").mkdir(parents=True)
                logger._version = version


def of_all_processes(own: Any) -> list[Any]:
    """The same object of every process, in their order."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [own]
    found: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, own)
    return found


def default_callbacks() -> list[L.Callback]:
    """What every run gets: a progress bar, the last and the best checkpoint, the dashboard and the report."""
    return [
        RichProgressBar(),
        LastCheckpoint(),
        BestCheckpoint(),
        Dashboard(),
        Report(),
    ]


def run(
    command: str,
    configuration: Configuration,
    print_config: bool = False,
    callbacks: list[L.Callback] | None = None,
) -> NeuralPKCLI:
    """Run a command.

    Args:
        command: which.
        configuration: of it.
        print_config: print what would be run instead of running it.
        callbacks: instead of `default_callbacks`.

    Raises:
        UsageError: no checkpoint for a command that measures one; a value that does not fit.
        FileNotFoundError: no such checkpoint.
        CheckpointError: a file that is none, is damaged or has no sha256.
    """
    complete(configuration)
    overwrite = bool(configuration.values.pop(OVERWRITE.name, False))
    folder = _chosen_folder(configuration.values)
    if command == "fit" and folder is not None and not print_config:
        refuse_results(folder, results_of_a_run(folder), overwrite)
    path, unverified = configuration.values.get("ckpt_path"), bool(configuration.values.pop("unverified", False))
    if path is not None and str(path) not in _NAMED_BY_LIGHTNING:
        parts = read_checkpoint(str(path), unverified=unverified, keys=("state_dict", "hyper_parameters"))
        configuration.take({"model": parts["hyper_parameters"]}, Source(str(path)))
    values = configuration.finish()
    if path is not None:
        values["ckpt_path"] = str(path)
    elif command != "fit":
        raise UsageError("which checkpoint? Give --model FILE")
    model = values.get("model", {})
    if command == "fit" and path is None and model.get("dynamics") is None and model.get("pretrained") is None:
        raise UsageError(
            "which dynamics? Give --structure NAME (--structure help lists them) or --model.dynamics CLASS"
        )
    if command != "fit":
        # the checkpoint has what it took from there
        values.setdefault("model", {}).pop("pretrained", None)
    elif unverified and values["model"].get("pretrained") is not None:
        values["model"]["unverified"] = True
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_no_advertisement)
    try:
        return NeuralPKCLI(command, values, print_config, unverified, folder if overwrite else None, callbacks)
    except MisconfigurationException as error:
        raise UsageError(sentence(error)) from error


def _no_advertisement(record: logging.LogRecord) -> bool:
    return "Tip:" not in record.getMessage()
