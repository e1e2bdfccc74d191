"""Files written beside their place and put there whole: what stood there stays until the new one is complete."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path

_TRIED = 64 * 1024  # bytes: a full disk still takes an empty file


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Write a file beside its place and put it there when the block has ended; an error leaves the old one.

    The temporary name lies in the same folder, so that the last step is one of the file system (`os.replace`), and
    ends as the file does, for writers that look at the ending; not that of a checkpoint, so that a list of checkpoints
    has whole ones only. What a killed process left there is removed.

    Args:
        path: of the file.

    Yields:
        The path to write to.

    Raises:
        OSError: no room, no rights, no folder; it names `path`.
    """
    path = Path(path)
    if path.exists() and not path.is_file():  # a pipe, a terminal: no file to replace
        yield path
        return
    path = path.resolve()  # of a link, what it points to
    part = path.with_name(f".{path.stem}.{os.getpid()}-{secrets.token_hex(4)}.part{_ending(path)}")
    try:
        _remove_left(path)
        yield part
        with part.open("rb") as written:
            os.fsync(written.fileno())
        part.replace(path)
    except OSError as error:
        raise _named(error, path) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def refuse_unwritable(path: str | Path, folder: bool = False) -> None:
    """Find out before the work whether a file, or files in a folder, can be written; nothing is left there.

    Args:
        path: of the file or folder, whose folders above need not exist yet.
        folder: whether it is a folder.

    Raises:
        OSError: no room, no rights, a file or a folder in the way; it names the path.
    """
    path = Path(path)
    if not folder and path.is_dir():
        raise OSError(errno.EISDIR, "a folder of this name is there", str(path))
    if not folder and path.exists() and not path.is_file():  # a pipe, a terminal: `replacing` writes to it directly
        return
    inside = path if folder else path.parent
    while not inside.exists() and inside != inside.parent:
        inside = inside.parent
    if not inside.is_dir():
        raise OSError(errno.ENOTDIR, f"{inside} is a file, not a folder", str(path))
    tried = inside / f".{os.getpid()}-{secrets.token_hex(4)}.part"
    try:
        with tried.open("wb") as file:
            file.write(bytes(_TRIED))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise _named(error, path) from error
    finally:
        with contextlib.suppress(OSError):
            tried.unlink(missing_ok=True)


def _named(error: OSError, path: Path) -> OSError:
    """The error with the name that the user knows."""
    return OSError(error.errno or 0, error.strerror or str(error), str(path))


def _ending(path: Path) -> str:
    return "" if path.suffix == ".ckpt" else path.suffix


def _remove_left(path: Path) -> None:
    """Remove what processes that have ended left of this file."""
    pattern = re.compile(re.escape(f".{path.stem}.") + r"(\d+)-[0-9a-f]{8}\.part" + re.escape(_ending(path)))
    for found in path.parent.iterdir():
        match = pattern.fullmatch(found.name)
        if match and not _runs(int(match[1])):
            found.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
