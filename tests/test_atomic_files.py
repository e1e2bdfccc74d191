"""Files that are written whole or not at all, and folders that are tried before the work."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import lightning as L
import pandas as pd
import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from neuralpk.atomic_files import refuse_unwritable, replacing
from neuralpk.cli import bootstrap_command, main, table_commands
from neuralpk.cli.training import own_folders
from neuralpk.tables.batchwise_writing import write_frames

POPULATION = "dynamics: {compartments: 1}\ntypical: {CL: 4, V1: 25}\ncv: {CL: 30}\nerror: additive\nerror_sd: {a: .2}\n"
TABLE = "ID,TIME,AMT,DV\n1,0,100,.\n1,1,.,2.0\n1,4,.,1.5\n"


def test_a_file_is_put_in_its_place(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    with replacing(path) as part:
        part.write_text("first")
        assert part.parent == tmp_path and part.suffix == ".csv" and not path.exists()
    with replacing(path) as part:
        part.write_text("second")
        assert path.read_text() == "first"
    assert path.read_text() == "second"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError("wrong"), KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_error_leaves_what_was_there(error: BaseException, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("first")
    with pytest.raises(type(error)) as raised, replacing(path) as part:
        part.write_text("half")
        raise error
    assert path.read_text() == "first" and list(tmp_path.iterdir()) == [path]
    if isinstance(error, OSError):
        assert raised.value.filename == str(path)


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    code = (
        "import os, signal, sys\nfrom neuralpk.atomic_files import replacing\n"
        f"with replacing({str(path)!r}) as part:\n    part.write_text('half')\n    os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert left != path
    with replacing(path) as part:
        part.write_text("whole")
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_keeps_pointing_and_a_pipe_is_written_to(tmp_path: Path) -> None:
    path, link = tmp_path / "a.csv", tmp_path / "link.csv"
    path.write_text("first")
    link.symlink_to(path)
    with replacing(link) as part:
        part.write_text("second")
    assert link.is_symlink() and path.read_text() == "second"
    with replacing("/dev/null") as part:
        part.write_text("gone")
    assert Path("/dev/null").is_char_device()
    reader, writer = os.pipe()
    pipe = f"/proc/self/fd/{writer}"  # as of /dev/stdout before another command
    refuse_unwritable(pipe)
    with replacing(pipe) as part:
        part.write_text("third")
    assert os.read(reader, 10) == b"third"
    os.close(reader)
    os.close(writer)


def test_a_table_written_in_parts_is_whole_or_not_there(tmp_path: Path) -> None:
    def parts() -> Iterator[pd.DataFrame]:
        yield pd.DataFrame({"ID": [1]})
        raise ValueError("of the second part")

    for name in ("t.csv", "t.parquet"):
        with pytest.raises(ValueError, match="second part"):
            write_frames(parts(), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def full_disk() -> None:
    """No file beyond 20 kB, as on a disk that is nearly full."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))


def test_a_full_disk_is_noticed_before_the_work(tmp_path: Path) -> None:
    code = (
        f"from neuralpk.atomic_files import refuse_unwritable\nrefuse_unwritable({str(tmp_path / 'out' / 'a.csv')!r})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, preexec_fn=full_disk, check=False
    )
    assert "File too large" in done.stderr and "out/a.csv" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_by_a_trial(tmp_path: Path) -> None:
    refuse_unwritable(tmp_path / "a" / "b" / "c.csv")
    refuse_unwritable(tmp_path / "a" / "b", folder=True)
    assert list(tmp_path.iterdir()) == []


def in_the_way(path: Path) -> None:
    path.write_text("a file")


def a_folder(path: Path) -> None:
    (path / "individuals.csv").mkdir(parents=True)


@pytest.mark.parametrize(
    ("command", "prepare"),
    [("estimate", in_the_way), ("estimate", a_folder), ("reconstruct", in_the_way), ("bootstrap", in_the_way)],
)
def test_an_out_that_cannot_be_written_is_said_first(command: str, prepare, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    Path("p.yaml").write_text(POPULATION)
    Path("t.csv").write_text(TABLE)
    prepare(Path("out"))
    for module in (table_commands, bootstrap_command):
        monkeypatch.setattr(module, "read_model", lambda *_, **__: pytest.fail("computed first"))
    model = ["--model", "p.yaml" if command == "estimate" else "last.ckpt"]
    with pytest.raises(SystemExit) as stopped:
        main([command, *model, "--table", "t.csv", "--out", "out"])
    said = capsys.readouterr().err.strip().splitlines()
    assert stopped.value.code == 2 and len(said) == 1 and said[0].startswith(f"neuralpk {command}: --out out")


@pytest.mark.parametrize("command", ["simulate", "population"])
def test_a_folder_in_the_place_of_a_file(command: str, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    Path("out.csv").mkdir()
    with pytest.raises(SystemExit) as stopped:
        main([command, *([] if command == "simulate" else ["--model", "last.ckpt"]), "--out", "out.csv"])
    assert stopped.value.code == 2
    assert "a folder of this name is there" in capsys.readouterr().err


def take_a_folder(root: str, gate: object, found: object) -> None:
    logger = (TensorBoardLogger, CSVLogger)[os.getpid() % 2](root, name="")
    trainer = L.Trainer(logger=logger, accelerator="cpu", enable_checkpointing=False, enable_progress_bar=False)
    gate.wait()
    own_folders(trainer)
    found.put(trainer.log_dir)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_runs_that_start_together_get_folders_of_their_own(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    for pair in range(6):
        gate, found = context.Barrier(2), context.Queue()
        root = str(tmp_path / str(pair))
        processes = [context.Process(target=take_a_folder, args=(root, gate, found)) for _ in range(2)]
        for process in processes:
            process.start()
        folders = {found.get(timeout=60) for _ in processes}
        for process in processes:
            process.join()
        assert len(folders) == 2
