"""Two processes with everything a run has: callbacks, checkpoints, report, predictions; and their interruption."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from neuralpk.task import LatentTask

LINE = [
    "--data.subjects", "6", "--data.test_subjects", "4", "--data.samples", "4", "--data.passes_per_epoch", "2",
    "--model.dynamics", "CompartmentModel", "--model.encoder", "SetEncoder", "--model.encoder.hidden", "8",
    "--trainer.max_epochs", "2", "--trainer.check_val_every_n_epoch", "1", "--trainer.enable_progress_bar", "false",
    "--trainer.enable_model_summary", "false", "--trainer.devices", "2", "--trainer.strategy", "ddp",
]  # fmt: skip


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The command in two processes by gloo."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, "-m", "neuralpk", *words, *LINE]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=400, env=environment, check=False
    )


@pytest.mark.slow
def test_two_processes_with_callbacks_and_report(tmp_path: Path) -> None:
    done = run(tmp_path, "fit")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("neuralpk estimate --model") == 1
    (folder,) = (tmp_path / "lightning_logs").iterdir()  # one for both processes
    names = {path.name for path in folder.iterdir()}
    assert {"config.yaml", "population.csv", "pcvpc.png", "npde.png", "random_effects.png", "individuals.png"} <= names
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    last = str(folder / "checkpoints" / "last.ckpt")
    LatentTask.load_from_checkpoint(last)
    done = run(tmp_path, "predict", "--model", last)
    assert done.returncode == 0, done.stderr[-3000:]
    (table,) = {*tmp_path.rglob("records.csv")} - {folder / "records.csv"}
    assert pd.read_csv(table)["ID"].nunique() == 4  # of both processes
