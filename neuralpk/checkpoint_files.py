"""Checkpoint files: sealed with the sha256 of their bytes, and verified before anything in them is read."""

from __future__ import annotations

import contextlib
import hashlib
import io
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import torch

from neuralpk.atomic_files import replacing

# A file of torch is a zip archive. Its last record ends with a comment, whose length stands in the two bytes before it;
# there the seal lies, and every reader of zip archives (torch's too) passes over it.
_MARK = b"neuralpk sha256 "
_SEAL = len(_MARK) + 64
_ARCHIVE = b"PK\x03\x04"  # how a zip archive begins
_DIGEST = "sha256"  # in the section
_WRONG = "its content does not have the sha256 that was saved with it"

SECTION = "neuralpk"
"""Section of a checkpoint with what is neither weights nor arguments of the task."""

KEYS = ("state_dict", "hyper_parameters", SECTION)
"""Dictionaries in a checkpoint of a `neuralpk.task.LatentTask`: weights, parts, and what it knows of its data."""


class CheckpointError(ValueError):
    """A file that is no checkpoint, is damaged, or cannot be verified."""


def sealed(content: bytes) -> bytes:
    """The bytes of a zip archive with the sha256 of all of them in its comment."""
    assert content.endswith(bytes(2)), "an archive without a comment"
    content = content[:-2] + _SEAL.to_bytes(2, "little")
    return content + _MARK + hashlib.sha256(content).hexdigest().encode()


def checkpoint_bytes(checkpoint: dict[str, Any]) -> bytes:
    """The content of the file of a checkpoint, with its seal."""
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    return sealed(buffer.getvalue())


def write_checkpoint(checkpoint: dict[str, Any], path: str | Path) -> None:
    """Write a checkpoint with its seal, beside its place and then put there.

    Raises:
        OSError: no room or no rights; it names the path and the bytes.
    """
    content = checkpoint_bytes(checkpoint)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with replacing(path) as part:
            part.write_bytes(content)
    except OSError as error:
        said = f"{error.strerror} ({len(content):,} bytes of a checkpoint)"
        raise OSError(error.errno, said, error.filename) from error


def read_checkpoint(
    path: str | Path | IO[bytes],
    map_location: Any = "cpu",
    unverified: bool = False,
    name: str = "",
    keys: Sequence[str] = KEYS,
) -> dict[str, Any]:
    """Read a checkpoint: numbers, texts and lists of them; nothing in it is ever run.

    Args:
        path: of a local file, or an open one.
        map_location: of `torch.load`.
        unverified: also take a file without a sha256, such as one of another program.
        name: of an open file, for messages.
        keys: dictionaries that it has to hold.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: no checkpoint; damaged; without a sha256; not a local file.
    """
    found, content = checkpoint_content(path)
    name = name or found
    whole = _has_seal(name, content)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch, about foreign files
            checkpoint: dict[str, Any] = torch.load(io.BytesIO(content), map_location=map_location, weights_only=True)
    except MemoryError:  # says nothing of the file
        raise
    except Exception as error:  # the reader of pickles raises whatever the bytes make it raise
        raise CheckpointError(f"{name} is no checkpoint of neuralpk: it holds more than numbers and texts") from error
    if not whole:
        _verify_content(name, checkpoint, unverified)
    missing = [key for key in keys if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get(key), dict)]
    if missing:
        raise CheckpointError(f"{name} is no checkpoint of neuralpk: it has no {', '.join(missing)}")
    return checkpoint


@contextlib.contextmanager
def making_task(name: str) -> Iterator[None]:
    """Make a task, or its parts, of what a verified checkpoint holds.

    Args:
        name: of the file.

    Raises:
        CheckpointError: something that is missing, or of another kind or shape than its parts have.
    """
    try:
        yield
    except (RuntimeError, KeyError, TypeError, AttributeError, IndexError) as error:
        said = f"{type(error).__name__}: {error}".split()
        raise CheckpointError(f"{name} does not hold the task it names: {' '.join(said)[:300]}") from error


def content_sha256(checkpoint: Mapping[str, Any]) -> str:
    """sha256 of what a checkpoint holds, in whatever file: kept in its section ``neuralpk``, for files that another
    writer than `write_checkpoint` has made."""
    digest = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, Mapping):
            for key, inside in value.items():
                if key != _DIGEST:
                    add(key)
                    add(inside)
        elif isinstance(value, list | tuple):
            digest.update(f"[{len(value)}]".encode())
            for inside in value:
                add(inside)
        elif torch.is_tensor(value):
            digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        else:
            digest.update(f"{value!r};".encode())

    add(checkpoint)
    return digest.hexdigest()


def add_sha256(checkpoint: Mapping[str, Any]) -> None:
    """Keep the sha256 of what a checkpoint holds in its section ``neuralpk``; called when the rest is there."""
    checkpoint[SECTION][_DIGEST] = content_sha256(checkpoint)


def is_archive(path: str | Path) -> bool:
    """Whether a file begins as a checkpoint does.

    Raises:
        FileNotFoundError: no such file.
        OSError: a file that cannot be read.
    """
    with Path(path).open("rb") as file:
        return file.read(len(_ARCHIVE)) == _ARCHIVE


def checkpoint_content(path: str | Path | IO[bytes]) -> tuple[str, bytes]:
    """Name and bytes of a local file, which nobody has verified.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: not a local file.
    """
    if not isinstance(path, str | Path):
        return str(getattr(path, "name", "the checkpoint")), path.read()
    if "://" in str(path):
        raise CheckpointError(f"{path} is no local file: download it, from somebody you trust, and give its path")
    if not Path(path).exists():
        raise FileNotFoundError(2, "no such file", str(path))
    if not Path(path).is_file():
        raise CheckpointError(f"{path} is not a checkpoint: it is no file")
    try:
        return str(path), Path(path).read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error


def _has_seal(name: str, content: bytes) -> bool:
    """Whether a file has a seal, which is right; one without must be an archive at least."""
    body, mark = content[:-_SEAL], content[-_SEAL : len(content) - 64]
    if mark == _MARK:
        if hashlib.sha256(body).hexdigest().encode() != content[-64:]:
            raise CheckpointError(f"{name} is damaged: {_WRONG}")
        return True
    if not _is_whole_archive(content):
        raise CheckpointError(
            f"{name} is not a checkpoint of a training (those end in .ckpt), or it is damaged: cut off, empty or "
            "written over"
        )
    return False


def _verify_content(name: str, checkpoint: Any, unverified: bool) -> None:
    section = checkpoint.get(SECTION) if isinstance(checkpoint, dict) else None
    wanted = section.get(_DIGEST) if isinstance(section, dict) else None
    if wanted is not None and wanted != content_sha256(checkpoint):
        raise CheckpointError(f"{name} is damaged: {_WRONG}")
    if wanted is None and not unverified:
        raise CheckpointError(
            f"{name} has no sha256, so that damage could not be noticed: if you trust the file, give --unverified "
            "(in Python unverified=True)"
        )


def _is_whole_archive(content: bytes) -> bool:
    """Whether the bytes are a whole archive as torch writes it: records that are not compressed, each with its sum."""
    if not content.startswith(_ARCHIVE):
        return False
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            stored = all(record.compress_type == zipfile.ZIP_STORED for record in archive.infolist())
            return stored and not archive.comment and archive.testzip() is None
    except Exception:  # whatever broken bytes make the reader of archives raise
        return False


def non_finite(tensors: Mapping[str, Any]) -> list[str]:
    """Names of the tensors that hold a NaN or an infinity."""
    return [name for name, value in tensors.items() if torch.is_tensor(value) and not bool(value.isfinite().all())]
