"""Checkpoint files: what was changed, cut off or never was one is refused before anything in it is read or run."""

from __future__ import annotations

import io
import os
import random
import re
import zipfile
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from neuralpk.atomic_files import replacing
from neuralpk.checkpoint_files import CheckpointError, read_checkpoint, write_checkpoint
from neuralpk.checkpoint_io import VerifiedCheckpointIO
from neuralpk.datamodules import SimulatedPKDataModule
from neuralpk.dynamics import CompartmentModel
from neuralpk.encoders import SetEncoder
from neuralpk.objectives import ELBO
from neuralpk.solve import SolveError
from neuralpk.task import LatentTask


def trained(folder: Path, **options) -> L.Trainer:
    """One step by Lightning's Trainer with Lightning's own callback."""
    data = SimulatedPKDataModule(4, samples=4)
    task = LatentTask(CompartmentModel(1), encoder=SetEncoder(4), objective=ELBO())
    trainer = L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        default_root_dir=folder,
        callbacks=[ModelCheckpoint(dirpath=folder, filename="plain", save_last=True)],
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(task, data)
    return trainer


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("checkpoint")
    trained(folder)
    return folder / "plain.ckpt"


def refused(content: bytes, path: Path) -> str:
    """What is said of a file with this content: one sentence with its name, and no advice to run it."""
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as error:
        LatentTask.load_from_checkpoint(path)
    said = str(error.value)
    assert str(path) in said and "\n" not in said and "weights_only" not in said
    return said


def test_checkpoints_of_lightnings_own_callbacks_are_sealed(checkpoint: Path) -> None:
    for name in ("plain", "last"):
        assert b"sha256" in (checkpoint.parent / f"{name}.ckpt").read_bytes()[-80:]
    assert sorted(path.suffix for path in checkpoint.parent.iterdir()) == [".ckpt", ".ckpt"]  # no second file
    assert torch.load(checkpoint, weights_only=True)["state_dict"]
    assert zipfile.ZipFile(checkpoint).testzip() is None
    LatentTask.load_from_checkpoint(checkpoint)
    LatentTask.load_from_checkpoint(str(checkpoint))
    with checkpoint.open("rb") as file:
        LatentTask.load_from_checkpoint(file)


def test_a_flipped_bit_is_refused(checkpoint: Path) -> None:
    content = checkpoint.read_bytes()
    pick = random.Random(0)
    for _ in range(1000):
        position = pick.randrange(8 * len(content))
        changed = bytearray(content)
        changed[position // 8] ^= 1 << position % 8
        with pytest.raises(CheckpointError):
            read_checkpoint(io.BytesIO(changed))


def test_a_file_that_was_cut_off_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    content = checkpoint.read_bytes()
    for percent in range(100):
        refused(content[: len(content) * percent // 100], tmp_path / "cut.ckpt")


def other_files() -> dict[str, bytes]:
    """Files of other kinds."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("archive/data.pkl", bytes(10_000_000))
    return {
        "empty": b"",
        "text": b"hello",
        "zeros": bytes(1000),
        "head of an archive": b"PK\x03\x04" + bytes(100),
        "compressed archive": archive.getvalue(),
        "picture": b"\x89PNG\r\n\x1a\n" + bytes(50),
        "old pickle": b"\x80\x02}q\x00.",
    }


@pytest.mark.parametrize("name", other_files())
def test_another_file_is_refused(name: str, tmp_path: Path) -> None:
    content = other_files()[name]
    assert "is not a checkpoint" in refused(content, tmp_path / "other.ckpt")
    with pytest.raises(CheckpointError):
        read_checkpoint(tmp_path / "other.ckpt", unverified=True)


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is no file"):
        LatentTask.load_from_checkpoint(tmp_path)
    with pytest.raises(FileNotFoundError):
        LatentTask.load_from_checkpoint(tmp_path / "none.ckpt")


def without_sha256(checkpoint: Path) -> dict:
    """The content as another program would have written it."""
    content = torch.load(checkpoint, weights_only=True)
    del content["neuralpk"]["sha256"]
    return content


def test_another_writer_of_checkpoints_keeps_the_sha256_of_the_content(checkpoint: Path, tmp_path: Path) -> None:
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.strategy.connect(LatentTask.load_from_checkpoint(checkpoint))
    path = tmp_path / "by_hand.ckpt"
    trainer.save_checkpoint(path)
    LatentTask.load_from_checkpoint(path)
    for change in ("weight", "seed"):
        content = torch.load(path, weights_only=True)
        if change == "weight":
            content["state_dict"]["model.population.location"][0] += 1e-6
        else:
            content["hyper_parameters"]["seed"] += 1
        torch.save(content, tmp_path / "changed.ckpt")
        assert "damaged" in refused((tmp_path / "changed.ckpt").read_bytes(), tmp_path / "changed.ckpt")


def test_a_file_without_a_sha256_needs_the_users_word(checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "foreign.ckpt"
    torch.save(without_sha256(checkpoint), path)
    assert "--unverified" in refused(path.read_bytes(), path)
    found = LatentTask.load_from_checkpoint(path, unverified=True)
    for name, value in LatentTask.load_from_checkpoint(checkpoint).state_dict().items():
        assert torch.equal(found.state_dict()[name], value)
    with pytest.raises(CheckpointError, match="--unverified"):
        LatentTask(pretrained=str(path))
    LatentTask(pretrained=str(path), unverified=True)


@pytest.mark.filterwarnings("ignore:Be aware that when using")
def test_a_resumed_training_reads_verified_files_only(checkpoint: Path, tmp_path: Path) -> None:
    torch.save(without_sha256(checkpoint), tmp_path / "foreign.ckpt")
    data = SimulatedPKDataModule(4, samples=4)

    def go_on(path: Path, **options) -> None:
        trainer = L.Trainer(
            max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, **options,
        )  # fmt: skip
        trainer.fit(LatentTask(CompartmentModel(1), encoder=SetEncoder(4), objective=ELBO()), data, ckpt_path=path)

    with pytest.raises(CheckpointError, match="no sha256"):
        go_on(tmp_path / "foreign.ckpt")
    go_on(tmp_path / "foreign.ckpt", plugins=[VerifiedCheckpointIO(unverified=True)])
    go_on(checkpoint)


class Run:
    """Runs a command where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


PLACES = ["notes", "state_dict.x", "hyper_parameters.dynamics", "callbacks.x", "loops.x", "neuralpk.scaling"]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("forced", [False, True])
def test_what_a_checkpoint_holds_is_not_run(place: str, forced: bool, checkpoint: Path, tmp_path, monkeypatch) -> None:
    if forced:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    mark, path = tmp_path / "ran", tmp_path / "hostile.ckpt"
    content = torch.load(checkpoint, weights_only=True)
    *folders, last = place.split(".")
    node = content
    for name in folders:
        node = node[name]
    node[last] = Run(mark)
    write_checkpoint(content, path)  # anybody can seal a file
    for load in (LatentTask.load_from_checkpoint, lambda at: LatentTask(pretrained=str(at))):
        with pytest.raises(CheckpointError, match=re.escape(str(path))):
            load(path)
    with pytest.raises(ValueError, match="weights_only=False"):
        LatentTask.load_from_checkpoint(path, weights_only=False)
    assert not mark.exists()


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/last.ckpt", "file:///tmp/last.ckpt", "memory://last.ckpt"])
def test_a_url_is_no_checkpoint(url: str) -> None:
    with pytest.raises(CheckpointError, match="no local file"):
        LatentTask.load_from_checkpoint(url)
    with pytest.raises(CheckpointError, match="no local file"):
        LatentTask(pretrained=url)
    with pytest.raises(CheckpointError, match="no local file"):
        VerifiedCheckpointIO().load_checkpoint(url)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("state_dict.model.population.location", None),
        ("state_dict.model.population.location", torch.zeros(7)),
        ("state_dict.model.population.location", torch.full((2,), torch.nan)),
        ("state_dict.more", torch.zeros(1)),
        ("hyper_parameters", None),
        ("hyper_parameters", [1]),
        ("neuralpk", None),
        ("neuralpk", {"scaling": 1}),
    ],
)
def test_a_checkpoint_that_lacks_something_is_refused(path: str, value: object, checkpoint: Path, tmp_path) -> None:
    content = torch.load(checkpoint, weights_only=True)
    group, _, name = path.partition(".")
    node, name = (content, group) if not name else (content[group], name)
    node.pop(name) if value is None else node.__setitem__(name, value)
    write_checkpoint(content, tmp_path / "changed.ckpt")
    with pytest.raises(CheckpointError):
        LatentTask.load_from_checkpoint(tmp_path / "changed.ckpt")


def test_writing_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "last.ckpt"
    write_checkpoint({"state_dict": {"a": torch.zeros(3)}}, path)
    before = path.read_bytes()
    with replacing(path) as part:  # a list of checkpoints has whole ones only
        part.write_bytes(before)
        assert list(tmp_path.glob("*.ckpt")) == [path]
    monkeypatch.setattr(Path, "write_bytes", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match=r"No space left on device .* bytes of a checkpoint.*last.ckpt"):
        write_checkpoint({"state_dict": {"a": torch.ones(3)}}, path)
    assert path.read_bytes() == before
    assert [found.name for found in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_trainer_saves_no_weights_that_are_not_finite(tmp_path: Path) -> None:
    trainer = trained(tmp_path)
    with torch.no_grad():
        next(trainer.lightning_module.parameters()).view(-1)[0] = torch.inf
    before = (tmp_path / "last.ckpt").read_bytes()
    with pytest.raises(SolveError, match="not finite"):
        trainer.save_checkpoint(tmp_path / "last.ckpt")
    assert (tmp_path / "last.ckpt").read_bytes() == before
