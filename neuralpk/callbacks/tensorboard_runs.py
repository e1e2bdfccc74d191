"""TensorBoard with training, validation and test as runs of their own."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from lightning.pytorch.loggers import TensorBoardLogger
from lightning_utilities.core.rank_zero import rank_zero_only
from tensorboard.plugins.hparams.summary_v2 import HParam, Metric, hparams_config_pb, hparams_pb
from torch.utils.tensorboard import SummaryWriter

STAGES = ("train", "val", "test")
_GROUPS = {
    "loss": ("loss", "fit", "kl", "penalty", "encoder"),
    "error": ("rmse", "log_rmse", "curve_rrmse"),
    "solver": ("evaluations", "failures"),
    "training": ("learning_rate", "gradient_norm"),
}
_TAGS = {name: f"{group}/{'total' if name == 'loss' else name}" for group, names in _GROUPS.items() for name in names}
_RESULTS = (("val", "loss/total"), ("val", "error/rmse"), ("val", "error/log_rmse"), ("val", "error/curve_rrmse"))


class TensorBoardRuns(TensorBoardLogger):
    """Lightning's logger of TensorBoard, with ``train_…``, ``val_…`` and ``test_…`` in runs of their own in its folder.

    TensorBoard gives each run a colour and draws what has one name into one chart: ``train_loss`` and ``val_loss`` are
    two lines of the chart ``loss/total``. The charts are grouped as loss, error, population, solver and training. A
    series that is 0 throughout, such as the number of patients that could not be solved, is left out, and so is the
    number of the epoch, which is no result.

    Args:
        save_dir: folder of all runs.
        name: folder of this series of runs; None for none.
        version: folder of this run; None for the next ``version_…``.
        options: of Lightning's `TensorBoardLogger`.
    """

    def __init__(
        self, save_dir: str, name: str | None = "lightning_logs", version: int | str | None = None, **options: Any
    ) -> None:
        super().__init__(save_dir, name, version, **{"default_hp_metric": False} | options)
        self._runs: dict[str, SummaryWriter] = {}
        self._zeros: dict[tuple[str, str], list[int | None]] = {}
        self._shown: set[tuple[str, str]] = set()

    def _writer(self, run: str) -> SummaryWriter:
        """Writer of the run of a stage; "" for the folder itself."""
        if not run:
            return cast(SummaryWriter, self.experiment)
        if run not in self._runs:
            self._runs[run] = SummaryWriter(str(Path(self.log_dir, run)), **self._kwargs)
        return self._runs[run]

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Write numbers, each into its run under its name there."""
        plain = {name: value for name, value in metrics.items() if name != "epoch"}
        for name, value in plain.items():
            run, tag = place(name)
            key = (run, tag)
            if float(value) == 0.0 and key not in self._shown:
                self._zeros.setdefault(key, []).append(step)
                continue
            self._shown.add(key)
            for before in self._zeros.pop(key, []):  # it was not always 0
                self._writer(run).add_scalar(tag, 0.0, before)
            self._writer(run).add_scalar(tag, float(value), step)

    @rank_zero_only
    def start_session(self, settings: Mapping[str, float | bool | str]) -> None:
        """Begin a row of the table of settings (HParams), whose results are the last values of the validation."""
        writer = self.experiment._get_file_writer()
        results = [Metric(tag, group=run, display_name=tag) for run, tag in _RESULTS]
        # a row of its own for every run: those of the same settings would be averaged
        row = f"{self.version} {time.time_ns()}"
        for summary in (hparams_config_pb([HParam(name) for name in settings], results), hparams_pb(settings, row)):
            writer.add_summary(summary)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Close all files."""
        for writer in self._runs.values():
            writer.close()
        self._runs = {}
        super().finalize(status)


def place(name: str) -> tuple[str, str]:
    """Run and name of a number of Lightning's: ``val_loss`` is ``loss/total`` in the run ``val``."""
    for stage in STAGES:
        if name.startswith(f"{stage}_"):
            own = name.removeprefix(f"{stage}_")
            return stage, _TAGS.get(own, f"noise/{own}" if own.startswith("sigma") else own)
    return "", _TAGS.get(name, name)


def flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float | bool | str]]:
    """Nested settings as numbers and words with a name each. Left out: what is not set, and texts with a dot or a slash
    that are no class, which may be paths."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from flat(value, prefix if name == "init_args" else f"{prefix}{name}.")
        elif isinstance(value, bool | int | float):
            yield prefix + name, value
        elif isinstance(value, str) and name == "class_path":
            yield prefix.removesuffix("."), value.rpartition(".")[2]
        elif isinstance(value, str) and value.replace("_", "").isalnum():
            yield prefix + name, value
        elif isinstance(value, list | tuple) and all(isinstance(one, bool | int | float) for one in value) and value:
            yield prefix + name, ", ".join(map(str, value))
