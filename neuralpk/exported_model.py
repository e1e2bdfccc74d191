"""A trained model as files for other programs: weights as safetensors, the rest as JSON, and the sha256 of both."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from neuralpk.atomic_files import replacing
from neuralpk.checkpoint_files import SECTION, CheckpointError, read_checkpoint

WEIGHTS, MODEL, SUMS = "weights.safetensors", "model.json", "SHA256SUMS"
EXPORTED = (WEIGHTS, MODEL, SUMS)
"""Files of an exported model."""

_FORMAT = 1
_LIGHTNING = "pytorch-lightning_version"  # what Lightning looks for in a checkpoint
_OF_TRAINING = ("estimator", "sha256")  # the state of a fit that could go on, and the sum of the checkpoint
_NEEDS = "safetensors files need safetensors: pip install 'neuralpk[safetensors]'"


def export_model(checkpoint: str | Path, folder: str | Path, unverified: bool = False) -> list[Path]:
    """Write what a checkpoint holds, but for the state of its training, into a folder.

    ``weights.safetensors`` has the weights and buffers by their names in the model; ``model.json`` the parts with their
    arguments (``parts``), the magnitudes of the data, the provenance and how the fit ended (``data``), shape and type
    of every tensor (``tensors``), and the version; ``SHA256SUMS`` is checked by ``sha256sum -c``.

    Args:
        checkpoint: of a training.
        folder: is made.
        unverified: also read a checkpoint without a sha256.

    Returns:
        The paths of `EXPORTED`.

    Raises:
        ImportError: safetensors is not installed.
        neuralpk.checkpoint_files.CheckpointError: no checkpoint of a training; damaged; without a sha256.
    """
    try:
        from safetensors.torch import save
    except ImportError as error:
        raise ImportError(_NEEDS) from error
    held = read_checkpoint(checkpoint, unverified=unverified)
    # weights that two parts share stand once for each: the format has no links
    weights = {name: value.detach().clone().contiguous() for name, value in held["state_dict"].items()}
    described = {
        "format": _FORMAT,
        "neuralpk": metadata.version("neuralpk"),
        _LIGHTNING: held[_LIGHTNING],
        "parts": held["hyper_parameters"],
        "data": {name: value for name, value in held[SECTION].items() if name not in _OF_TRAINING},
        "tensors": {
            name: {"shape": list(one.shape), "dtype": str(one.dtype).removeprefix("torch.")}
            for name, one in weights.items()
        },
    }
    content = {WEIGHTS: save(weights), MODEL: (json.dumps(described, indent=2) + "\n").encode()}
    sums = "".join(f"{hashlib.sha256(value).hexdigest()}  {name}\n" for name, value in content.items())
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in {**content, SUMS: sums.encode()}.items():
        with replacing(folder / name) as part:
            part.write_bytes(value)
    return [folder / name for name in EXPORTED]


def is_exported(path: str | Path) -> bool:
    """Whether a path is the folder of an exported model."""
    return (Path(path) / MODEL).is_file()


def read_exported(folder: str | Path) -> dict[str, Any]:
    """What a checkpoint of an exported model would hold; the files are verified first, and nothing in them is run.

    Raises:
        ImportError: safetensors is not installed.
        neuralpk.checkpoint_files.CheckpointError: a file that is missing or damaged; another format.
    """
    try:
        from safetensors.torch import load
    except ImportError as error:
        raise ImportError(_NEEDS) from error
    folder = Path(folder)
    missing = [name for name in EXPORTED if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(f"{folder} is no exported model: it has no {', '.join(missing)}")
    wanted = dict(line.split()[::-1] for line in (folder / SUMS).read_text(encoding="utf-8").splitlines())
    content = {name: (folder / name).read_bytes() for name in (WEIGHTS, MODEL)}
    for name, value in content.items():
        if wanted.get(name) != hashlib.sha256(value).hexdigest():
            raise CheckpointError(f"{folder / name} is damaged: its content does not have the sha256 in {SUMS}")
    described: Mapping[str, Any] = json.loads(content[MODEL])
    if described.get("format") != _FORMAT:
        raise CheckpointError(f"{folder / MODEL} has format {described.get('format')!r}; {_FORMAT} is read here")
    return {
        "state_dict": load(content[WEIGHTS]),
        "hyper_parameters": described["parts"],
        SECTION: described["data"],
        _LIGHTNING: described[_LIGHTNING],
    }
