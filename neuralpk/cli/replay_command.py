"""``neuralpk replay``: a training run again from what its folder says, and its weights compared bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from neuralpk.checkpoint_files import read_checkpoint
from neuralpk.cli import study_options, training
from neuralpk.cli.argument_tokens import Argument
from neuralpk.cli.faults import UsageError
from neuralpk.cli.merged_configuration import Configuration, Source
from neuralpk.cli.outputs import OVERWRITE
from neuralpk.run_record import RunRecord, sha256_of

_CONFIGURATION = "config.yaml"
_CHECKPOINT = Path("checkpoints", "last.ckpt")
REPLAY_FILES = (_CONFIGURATION, str(_CHECKPOINT))


def replay(run: Path, out: Path) -> None:
    """Run a training again with the configuration and the data of the folder of a run, and compare the weights of the
    two last checkpoints bit for bit. Versions and machines that differ are named: with others, weights may differ.

    Args:
        run: folder of the run, with config.yaml, run.json and checkpoints/last.ckpt. Start where the training was
            started, if paths in it are relative.
        out: folder of the new run.
    """
    if out.resolve() == run.resolve():
        raise UsageError("--out is the folder of the run itself: give another")
    record = RunRecord.read(run)
    there = _state(run / _CHECKPOINT)
    _refuse_changed(record, run / _CONFIGURATION)
    configuration = Configuration(training.options("fit"), training.defaults())
    configuration.read(run / _CONFIGURATION)
    node, _ = study_options.expanded("fit", [Argument("out", str(out))])
    configuration.take(node, Source())
    configuration.values[OVERWRITE.name] = True  # what is there has been refused before
    if record.checkpoint:
        configuration.values["ckpt_path"] = record.checkpoint
    training.run("fit", configuration)
    differences = record.differences(RunRecord.read(out))
    if differences:
        print(f"That training was run with {'; '.join(differences)}")
    numbers = _compare(there, _state(out / _CHECKPOINT), differences)
    print(f"The same weights, bit for bit: {numbers:,} numbers in {len(there[1])} tensors after {there[0]} steps")


def _refuse_changed(record: RunRecord, configuration: Path) -> None:
    """Refuse files that are no longer what they were.

    Raises:
        UsageError: which file.
    """
    for path, expected in {str(configuration): record.configuration, **record.files}.items():
        if not Path(path).is_file():
            raise UsageError(f"{path}, which the training read, is not there; start where the training was started")
        if sha256_of(Path(path)) != expected:
            raise UsageError(f"{path} is not what it was: its sha256 differs from that of the training")


def _state(path: Path) -> tuple[int, Mapping[str, Tensor]]:
    """Steps and weights of a checkpoint."""
    found = read_checkpoint(path, keys=("state_dict",))
    return int(found["global_step"]), found["state_dict"]


def _compare(there: tuple[int, Mapping[str, Tensor]], here: tuple[int, Mapping[str, Tensor]], why: list[str]) -> int:
    """Number of weights, which are the same.

    Raises:
        ValueError: weights that differ.
    """
    (steps, weights), (own_steps, own) = there, here
    if steps != own_steps:
        raise ValueError(f"that training was stopped after {steps} steps, and this one ended after {own_steps}")
    if weights.keys() != own.keys():
        raise ValueError(f"tensors differ: {', '.join(sorted(weights.keys() ^ own.keys()))}")
    changed = [name for name, one in weights.items() if not _same(one, own[name])]
    if changed:
        first = changed[0]
        apart = float((weights[first].double() - own[first].double()).abs().max())
        cause = "; versions or machine differ" if why else ""
        raise ValueError(
            f"{len(changed)} of {len(weights)} tensors differ, {first} by up to {apart:.3g}{cause}: the training was "
            "not reproduced"
        )
    return sum(one.numel() for one in weights.values())


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have the same bits."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return torch.equal(one.contiguous().view(-1).view(torch.uint8), other.contiguous().view(-1).view(torch.uint8))
