"""The command line: ``neuralpk fit | validate | test | predict | simulate | reconstruct | estimate``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, cast

import lightning as L
import pandas as pd
import torch
import yaml
from jsonargparse import auto_cli
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from rich.progress import track

from neuralpk.callbacks import Dashboard, Report
from neuralpk.callbacks.figures import save_panels
from neuralpk.datamodules import CohortDataModule, LotkaVolterraDataModule, PKDataModule, SIRDataModule
from neuralpk.published import read_population
from neuralpk.reconstruction import Reconstruction
from neuralpk.reconstruction import reconstruct as reconstruct_cohort
from neuralpk.solve import SolveError
from neuralpk.tables import read_table
from neuralpk.tables.streaming import write_frames
from neuralpk.tasks import LatentODETask

PRESETS = tuple(sorted(item.name.removesuffix(".yaml") for item in (resources.files("neuralpk") / "presets").iterdir()))
"""Names of the presets inside the package."""

_UNWATCHED = 100  # patients whose estimates are there before one has looked
_PANELS = 15

_USAGE = f"""usage: neuralpk COMMAND [--preset NAME | --config FILE] [options]     (COMMAND --help lists them)

  fit           train a model; without options the main job, preset two_compartment
  validate      measure a checkpoint on the validation subjects   --ckpt_path FILE
  test          measure a checkpoint on the test subjects         --ckpt_path FILE
  predict       predictions of a checkpoint                       --ckpt_path FILE
  simulate      write a simulated cohort, of any size, as a table  --out FILE
  reconstruct   lines and parameters of your own patients         --checkpoint FILE --table FILE --out DIR
  estimate      the same by a published population, without training   --population FILE --table FILE --out DIR

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
        if name != "fit":
            self.config[name].model.pretrained = None  # the checkpoint has what it took from there

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """The trainer, without our progress bar where none is wanted."""
        if self._get(self.config_init, "trainer").get("enable_progress_bar") is False:
            callbacks = self.trainer_defaults["callbacks"]
            self.trainer_defaults["callbacks"] = [c for c in callbacks if not isinstance(c, RichProgressBar)]
        return super().instantiate_trainer(**kwargs)

    def predict(self, **kwargs: Any) -> None:
        """Predict, and write ``predictions.csv`` into the folder of the run."""
        frames = self.trainer.predict(**kwargs)
        folder = Path(self.trainer.log_dir or ".")
        folder.mkdir(parents=True, exist_ok=True)
        pd.concat(cast(list[pd.DataFrame], frames)).to_csv(folder / "predictions.csv", index=False)
        print(f"Predictions: {folder / 'predictions.csv'}")


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


def _split_presets(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The presets that ``--preset NAME`` or ``--preset=NAME`` names, and the other arguments.

    Raises:
        SystemExit: ``--preset`` without a name.
    """
    presets, others, rest = [], [], iter(arguments)
    for argument in rest:
        if argument == "--preset":
            presets.append(next(rest, ""))
        elif argument.startswith("--preset="):
            presets.append(argument.removeprefix("--preset="))
        else:
            others.append(argument)
    return [preset_path(name) for name in presets], others


def _with_preset(arguments: Sequence[str]) -> list[str]:
    """``--preset NAME`` as ``--config``, first, so that what follows overrides it. Where none is named: what was saved
    with the checkpoint, so that it is measured on its own data, else the main job."""
    paths, others = _split_presets(arguments)
    named = any(a in ("--config", "-c", "--help", "-h") or a.startswith("--config=") for a in others)
    if not paths and not named:
        paths = [_config_beside(others) or preset_path("two_compartment")]
    return [argument for path in paths for argument in ("--config", path)] + others


def _config_beside(arguments: Sequence[str]) -> str | None:
    """The configuration in the folder of the run that ``--ckpt_path`` comes from, where there is one."""
    for name, value in zip(arguments, [*arguments, ""][1:], strict=True):
        path = value if name == "--ckpt_path" else name.removeprefix("--ckpt_path=") if "--ckpt_path=" in name else ""
        saved = Path(path).parent.parent / "config.yaml"
        if path and saved.is_file():
            return str(saved)
    return None


def lightning(arguments: Sequence[str]) -> NeuralPKCLI:
    """Run ``fit``, ``validate``, ``test`` or ``predict``."""
    command, *rest = arguments
    return NeuralPKCLI(
        LatentODETask,
        CohortDataModule,
        subclass_mode_data=True,
        load_from_checkpoint_support=False,  # a checkpoint names no code to run: it loads by the class that is asked
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


def simulate(data: PKDataModule | LotkaVolterraDataModule | SIRDataModule, out: Path) -> None:
    """Write a simulated cohort as an event table, part by part: it may be larger than the memory.

    Args:
        data: what to simulate.
        out: CSV or Parquet file to write.
    """
    subjects, size = data.subjects + data.test_subjects, 10_000
    write_frames(track(data.frames(size), "simulate", total=-(-subjects // size), disable=subjects <= size), out)
    print(f"{subjects} subjects written to {out}")


def _simulate(arguments: Sequence[str]) -> None:
    """Run `simulate` on the data of a preset, the main job where neither a preset nor data are named.

    Raises:
        SystemExit: a preset of measured data.
    """
    paths, others = _split_presets(arguments)
    named = any(a.split("=")[0] in ("--data", "--config") for a in others)
    if not paths and not named:
        paths = [preset_path("two_compartment")]
    data = {}
    for path in paths:
        data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))["data"]
        if "table" in data["init_args"]:
            sys.exit(f"neuralpk simulate: preset {Path(path).stem!r} holds measured data; there is nothing to simulate")
    auto_cli(simulate, args=others, as_positional=False, set_defaults={"data": data} if data else None)


def reconstruct(checkpoint: Path, table: Path, out: Path, draws: int = 200, polish: bool | None = None) -> None:
    """Reconstruct the patients of an event table.

    Args:
        checkpoint: a checkpoint of a `LatentODETask`.
        table: CSV or Parquet file with the columns ID, TIME, AMT, DV, … of an event table.
        out: folder for curves.csv (ID, TIME, PRED, IPRED, LO90, HI90) and individuals.csv (every parameter with its
            90 % interval).
        draws: draws from the posterior behind the intervals.
        polish: go on from the encoder through the solver to the most probable parameters; by default as the model was
            trained, which is true for ``iwae``.
    """
    task = LatentODETask.load_from_checkpoint(checkpoint, map_location="cpu")
    print(f"The model was {task.track}")
    _write(task.reconstruct(table, draws=draws, polish=polish), out)


def estimate(population: Path, table: Path, out: Path, draws: int = 200) -> None:
    """Estimate the patients of an event table by a published population model, without any training.

    Args:
        population: YAML file of the model: dynamics, typical, omega or cv, effects, references, error, error_sd.
        table: CSV or Parquet file with the columns ID, TIME, AMT, DV, … of an event table.
        out: folder for curves.csv and individuals.csv, as of ``reconstruct``, and the figure individuals.png of the
            first patients.
        draws: draws from the posterior behind the intervals.
    """
    published = read_population(population)
    cohort = read_table(table, units=published.units)
    few = len(cohort) <= _UNWATCHED
    result = reconstruct_cohort(
        published.model(cohort),
        cohort,
        draws=draws,
        polish=True,
        progress=lambda parts: track(parts, "estimate", disable=few),
    )
    _write(result, out)
    for path in save_panels(cohort[:_PANELS], result, out):
        print(f"Individual panels: {path}")


def _write(result: Reconstruction, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    result.curves().to_csv(out / "curves.csv", index=False)
    result.individuals().to_csv(out / "individuals.csv", index=False)
    print(f"{len(result.ids)} subjects: {out / 'curves.csv'}, {out / 'individuals.csv'}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the command ``neuralpk``.

    Raises:
        SystemExit: what the user can mend (data, options, files, a solve that failed), in words on the error stream.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    # with matrices this small a second thread only waits for the first, and on a busy machine it waits long
    torch.set_num_threads(1)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_USAGE)
        return
    command, *rest = arguments
    try:
        if command == "simulate":
            _simulate(rest)
        elif command == "reconstruct":
            auto_cli(reconstruct, args=rest, as_positional=False)
        elif command == "estimate":
            auto_cli(estimate, args=rest, as_positional=False)
        elif command in ("fit", "validate", "test", "predict"):
            lightning(arguments)
        else:
            sys.exit(f"neuralpk: no command {command!r}\n{_USAGE}")
    except (ValueError, SolveError, FileNotFoundError) as error:
        sys.exit(f"neuralpk {command}: {error}")
