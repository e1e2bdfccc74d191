"""What a training was run with: versions, machine, and the sha256 of every file that its configuration names."""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from neuralpk.atomic_files import replacing

RUN_RECORD = "run.json"
"""Name of the file, beside ``config.yaml`` in the folder of a run."""

PACKAGES = ("neuralpk", "torch", "lightning", "torchdiffeq", "torchsde", "numpy", "pandas", "numba", "matplotlib")
"""Packages that the numbers and figures come from."""

_OURS = ("neuralpk", "torch", "lightning")
_AT_ONCE = 1 << 20  # bytes


@dataclass(frozen=True)
class RunRecord:
    """What a training was run with.

    Args:
        versions: of Python and of `PACKAGES`, by name.
        machine: operating system and processor.
        threads: of the CPU.
        configuration: sha256 of ``config.yaml``.
        files: sha256 of every file that the configuration names and of the modules of the user's own classes, by path.
        checkpoint: from which the training went on; empty for none.
    """

    versions: Mapping[str, str]
    machine: str
    threads: int
    configuration: str
    files: Mapping[str, str]
    checkpoint: str = ""

    @classmethod
    def of(cls, configuration: Path, values: Mapping[str, Any], threads: int) -> RunRecord:
        """Of a training that begins.

        Args:
            configuration: path of ``config.yaml``.
            values: what the training is configured with, as plain values.
            threads: of the CPU.
        """
        texts = sorted(set(_texts(values)))
        files = [text for text in texts if _is_file(text)]
        modules = (sys.modules.get(text.rpartition(".")[0]) for text in texts if text.split(".")[0] not in _OURS)
        files += sorted({str(module.__file__) for module in modules if module and getattr(module, "__file__", None)})
        hashes = {path: sha256_of(Path(path)) for path in files}
        checkpoint = str(values.get("ckpt_path") or "")
        return cls(versions(), machine(), threads, sha256_of(configuration), hashes, checkpoint)

    def write(self, folder: Path) -> None:
        """Write `RUN_RECORD` into the folder of a run."""
        with replacing(folder / RUN_RECORD) as part:
            part.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> RunRecord:
        """Of the folder of a run.

        Raises:
            ValueError: no record there, or none that can be read.
        """
        path = folder / RUN_RECORD
        if not path.is_file():
            raise ValueError(f"{folder} holds no {RUN_RECORD}: it is not the folder of a training by neuralpk fit")
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path} is damaged ({error})") from error

    def differences(self, other: RunRecord) -> list[str]:
        """In what versions and machines differ, a phrase each."""
        pairs = {
            name: (self.versions.get(name), other.versions.get(name)) for name in {*self.versions, *other.versions}
        }
        pairs |= {"machine": (self.machine, other.machine), "threads": (str(self.threads), str(other.threads))}
        return [
            f"{name} {there or 'none'}, here {here or 'none'}"
            for name, (there, here) in sorted(pairs.items())
            if there != here
        ]


def versions() -> dict[str, str]:
    """Versions of Python and of `PACKAGES`."""
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in PACKAGES}


def machine() -> str:
    """Operating system and processor."""
    return f"{platform.system()} {platform.machine()}"


def sha256_of(path: Path) -> str:
    """The sha256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(_AT_ONCE):
            digest.update(part)
    return digest.hexdigest()


def _texts(value: Any) -> Iterator[str]:
    """Every text inside plain values."""
    if isinstance(value, Mapping):
        for inside in value.values():
            yield from _texts(inside)
    elif isinstance(value, list | tuple):
        for inside in value:
            yield from _texts(inside)
    elif isinstance(value, str | Path):
        yield str(value)


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # a text that can be no path
        return False
