"""Two processes with everything a run has: callbacks, checkpoints, report, predictions; and their interruption."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from neuralpk.cli.lost_processes import naming_lost_processes
from neuralpk.task import LatentTask

LINE = [
    "--data.subjects", "6", "--data.test_subjects", "4", "--data.samples", "4", "--data.passes_per_epoch", "2",
    "--model.dynamics", "CompartmentModel", "--model.encoder", "SetEncoder", "--model.encoder.hidden", "8",
    "--trainer.max_epochs", "2", "--trainer.check_val_every_n_epoch", "1", "--trainer.enable_progress_bar", "false",
    "--trainer.enable_model_summary", "false", "--trainer.devices", "2", "--trainer.strategy", "ddp",
]  # fmt: skip


def environment() -> dict[str, str]:
    """With a name and a free port by which the processes find each other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    return os.environ | {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The command in two processes by gloo."""
    command = [sys.executable, "-m", "neuralpk", *words, *LINE]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=400, env=environment(), check=False
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


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are looked up in /proc")
@pytest.mark.parametrize("killed", [0, 1])
def test_a_process_that_is_killed_ends_the_other_with_a_sentence(killed: int, tmp_path: Path) -> None:
    """The SIGKILL comes after the first epoch of 2,000."""
    command = [sys.executable, "-m", "neuralpk", "fit", *LINE, "--trainer.max_epochs", "2000", "--out", "run"]
    with (tmp_path / "said").open("w") as said:
        first = subprocess.Popen(command, cwd=tmp_path, env=environment(), stdout=said, stderr=said)
        try:
            while not (tmp_path / "run" / "checkpoints" / "last.ckpt").exists():
                assert first.poll() is None, (tmp_path / "said").read_text()
                time.sleep(0.1)
            (second,) = Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text().split()
            os.kill(first.pid if killed == 0 else int(second), signal.SIGKILL)
            began = time.monotonic()
            code = first.wait(30)
            while killed == 0 and _lives(int(second)):
                assert time.monotonic() - began < 30
                time.sleep(0.1)
        finally:
            first.kill()
    assert code == (-signal.SIGKILL if killed == 0 else 1)
    assert f"process {1 - killed} of 2 stops: another one of this training was ended" in (tmp_path / "said").read_text()


def _lives(number: int) -> bool:
    """Whether a process goes on; one that has ended may still be in the table of processes."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("size", "text", "named"),
    [
        (2, "[pair.cc:537] Read error [127.0.0.1]:5511: Connection reset by peer.", True),
        (2, "mat1 and mat2 shapes cannot be multiplied", False),
        (1, "Connection reset by peer", False),
    ],
)
def test_an_error_of_the_connection_means_that_another_process_has_ended(size: int, text: str, named: bool) -> None:
    trainer = SimpleNamespace(world_size=size, global_rank=0)
    with pytest.raises(ChildProcessError if named else RuntimeError), naming_lost_processes(trainer):
        raise RuntimeError(text)
