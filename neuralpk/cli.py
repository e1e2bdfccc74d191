"""The command line: ``neuralpk fit | validate | test | predict | simulate | reconstruct``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import lightning as L
import torch
from jsonargparse import auto_cli
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

from neuralpk.callbacks import Dashboard, Report
from neuralpk.datamodules import CohortDataModule, LotkaVolterraDataModule, PKDataModule
from neuralpk.tables import write_table
from neuralpk.tasks import LatentODETask

PRESETS = tuple(sorted(item.name.removesuffix(".yaml") for item in (resources.files("neuralpk") / "presets").iterdir()))
"""Names of the presets inside the package."""

_USAGE = f"""usage: neuralpk COMMAND [--preset NAME | --config FILE] [options]     (COMMAND --help lists them)

  fit           train a model; without options the main job, preset two_compartment
  validate      measure a checkpoint on the validation subjects   --ckpt_path FILE
  test          measure a checkpoint on the test subjects         --ckpt_path FILE
  predict       predictions of a checkpoint                       --ckpt_path FILE
  simulate      write a simulated cohort as an event table        --out FILE
  reconstruct   lines and parameters of your own patients         --checkpoint FILE --table FILE --out DIR

presets: {", ".join(PRESETS)}
"""


class _SaveConfig(SaveConfigCallback):
    """Save the configuration without the path of a checkpoint: read back later, its ``ckpt_path: null`` would undo the
    one given on the command line, and an untrained model would be measured."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.config = self.config.clone()
        self.config.pop("ckpt_path", None)
        super().setup(trainer, pl_module, stage)


class NeuralPKCLI(LightningCLI):
    """One `LightningCLI`: data and task from a preset or file, the scaling of the data handed to the task."""

    def parse_arguments(self, parser: LightningArgumentParser, args: Sequence[str]) -> None:  # type: ignore[override]
        """Parse the arguments that presets have been put into, rather than those of the process."""
        self.config = parser.parse_args(args)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.link_arguments("data", "model.scaling", compute_fn=_scaling, apply_on="instantiate")

    def before_instantiate_classes(self) -> None:
        """Refuse to measure a model that was not trained."""
        name = str(self.subcommand)
        if name != "fit" and not self.config[name].get("ckpt_path"):
            sys.exit(
                f"neuralpk {name}: which checkpoint? Give --ckpt_path FILE, after any --config (a saved configuration "
                "that holds `ckpt_path: null` would take it back)."
            )


def _scaling(data: CohortDataModule) -> dict[str, object]:
    return data.scaling()


def preset_path(name: str) -> str:
    """Path of a preset.

    Raises:
        SystemExit: no preset of that name.
    """
    if name not in PRESETS:
        sys.exit(f"neuralpk: no preset {name!r}; there are {', '.join(PRESETS)}")
    return str(resources.files("neuralpk") / "presets" / f"{name}.yaml")


def _with_preset(arguments: list[str]) -> list[str]:
    """``--preset NAME`` as ``--config``, first, so that what follows overrides it; the main job where none is named."""
    names = []
    while "--preset" in arguments:
        place = arguments.index("--preset")
        names += arguments[place + 1 : place + 2]
        del arguments[place : place + 2]
    named = any(a in ("--config", "-c", "--help", "-h") or a.startswith("--config=") for a in arguments)
    if not names and not named:
        names = ["two_compartment"]
    return [argument for name in names for argument in ("--config", preset_path(name))] + arguments


def lightning(arguments: Sequence[str]) -> NeuralPKCLI:
    """Run ``fit``, ``validate``, ``test`` or ``predict``."""
    command, *rest = arguments
    return NeuralPKCLI(
        LatentODETask,
        CohortDataModule,
        subclass_mode_data=True,
        save_config_callback=_SaveConfig,
        save_config_kwargs={"overwrite": True},
        seed_everything_default=0,
        trainer_defaults=dict(trainer_defaults()),
        args=[command, *_with_preset(rest)],
    )


def trainer_defaults() -> dict[str, object]:
    """What every run gets: a progress bar, the last and the best checkpoint, the dashboard and the report."""
    return {
        "logger": {
            "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
            "init_args": {"save_dir": "lightning_logs", "name": None, "default_hp_metric": False},
        },
        "callbacks": [
            RichProgressBar(),
            ModelCheckpoint(monitor="val_loss", filename="best", save_last=True, save_on_exception=True),
            Dashboard(),
            Report(),
        ],
    }


def simulate(data: PKDataModule | LotkaVolterraDataModule, out: Path) -> None:
    """Write a simulated cohort as an event table.

    Args:
        data: what to simulate.
        out: CSV file to write.
    """
    cohort = data.make_cohort()
    write_table(cohort, out)
    print(f"{len(cohort)} subjects written to {out}")


def reconstruct(checkpoint: Path, table: Path, out: Path, draws: int = 200) -> None:
    """Reconstruct the patients of an event table.

    Args:
        checkpoint: a checkpoint of a `LatentODETask`.
        table: CSV or Parquet file with the columns ID, TIME, AMT, DV, … of an event table.
        out: folder for curves.csv (ID, TIME, PRED, IPRED, LO90, HI90) and individuals.csv (every parameter with its
            90 % interval).
        draws: draws from the posterior behind the intervals.
    """
    task = LatentODETask.load_from_checkpoint(checkpoint, map_location="cpu")
    result = task.reconstruct(table, draws=draws)
    out.mkdir(parents=True, exist_ok=True)
    result.curves().to_csv(out / "curves.csv", index=False)
    result.individuals().to_csv(out / "individuals.csv", index=False)
    print(f"{len(result.ids)} subjects: {out / 'curves.csv'}, {out / 'individuals.csv'}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the command ``neuralpk``."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    # with matrices this small a second thread only waits for the first, and on a busy machine it waits long
    torch.set_num_threads(1)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_USAGE)
    elif arguments[0] == "simulate":
        auto_cli(simulate, args=arguments[1:], as_positional=False)
    elif arguments[0] == "reconstruct":
        auto_cli(reconstruct, args=arguments[1:], as_positional=False)
    else:
        lightning(arguments)
