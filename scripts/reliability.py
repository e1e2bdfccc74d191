"""Counts of reliability: interruptions, damage, hostile files, runs that start together.

    python scripts/reliability.py --json reliability.json [--only C2]

Prints a line for each goal, and writes {goal, passed, tried, seconds} of each. It goes on where it stopped, trial by
trial; a goal ends for this time after half an hour.

    C1  killed while checkpoints are written, 200: what stands there is whole, and nothing else is left
    C2  a training stopped inside a step and resumed, 256: the weights of one that was never stopped, to the bit
    C3  SIGTERM and SIGINT inside a step, twice, in a save, a validation, a solve, 6: exit code, last step kept, resumed
    C4  weights that are not finite, 6: nothing is written over
    C6  a checkpoint with a flipped bit, cut off, or another file, 10,000: refused
    C7  two runs that start together, 30: a folder each
    E1  hostile checkpoints, 20: refused, and nothing is run
    E2  hostile configurations, 10: refused, and nothing is run
    F4  `neuralpk replay`, 4: the weights of the training, to the bit
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import json
import logging
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger

from neuralpk.atomic_files import replacing
from neuralpk.callbacks import LastCheckpoint
from neuralpk.checkpoint_files import CheckpointError, read_checkpoint, sealed, write_checkpoint
from neuralpk.cli import main as neuralpk
from neuralpk.cli.stop_signals import INTERRUPTED, TERMINATED, exit_codes
from neuralpk.cli.training import own_folders
from neuralpk.datamodules import SimulatedPKDataModule
from neuralpk.dynamics import CompartmentModel, FluctuatingClearance, NeuralCompartments
from neuralpk.encoders import SetEncoder
from neuralpk.objectives import ELBO, MarginalLikelihood, PathELBO
from neuralpk.path_guide import PathGuide
from neuralpk.solve import SolveError
from neuralpk.task import LatentTask

_LIMIT = 1800  # seconds of a goal at a time
_SAVED_EVERY = 10  # seconds
_NOISES = ("torch", "numpy", "python", "torchsde")


class _Noise(L.Callback):
    """Gradients with noise from one of the global generators."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def on_before_optimizer_step(self, trainer: L.Trainer, module: L.LightningModule, _: Any) -> None:
        for weight in module.parameters():
            if weight.grad is None or self.kind == "torchsde":
                continue
            drawn = {
                "torch": lambda weight=weight: torch.rand_like(weight),
                "numpy": lambda: np.random.rand(),  # noqa: NPY002  # the global one is meant
                "python": random.random,
            }[self.kind]()
            weight.grad *= 0.5 + drawn


class _Stop(L.Callback):
    """Ctrl-C in the middle of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_after_backward(self, trainer: L.Trainer, _: L.LightningModule) -> None:
        if trainer.global_step == self.step:
            raise KeyboardInterrupt


class _Signal(L.Callback):
    """Signals at one place of a training; the steps that were finished are in a file."""

    def __init__(self, place: str, sent: tuple[signal.Signals, ...], steps: Path) -> None:
        self.place, self.sent, self.steps = place, sent, steps

    def _at(self, place: str, trainer: L.Trainer) -> None:
        if place == self.place and trainer.global_step >= 12:
            sent, self.sent = self.sent, ()
            for one in sent:
                os.kill(os.getpid(), one)

    def on_train_start(self, trainer: L.Trainer, module: Any) -> None:
        follow = module.model.dynamics.follow

        def long(*arguments: Any) -> Any:
            if self.place == "solve" and trainer.global_step >= 12 and self.sent:
                (number,), self.sent = self.sent, ()
                if os.fork() == 0:  # it comes from outside, inside compiled code or not
                    time.sleep(0.2)
                    os.kill(os.getppid(), number)
                    os._exit(0)
                began = time.monotonic()
                while time.monotonic() - began < 0.5:
                    follow(*arguments)
            return follow(*arguments)

        module.model.dynamics.follow = long

    def on_after_backward(self, trainer: L.Trainer, _: L.LightningModule) -> None:
        self._at("step", trainer)

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.steps.write_text(str(trainer.global_step))

    def on_validation_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        self._at("validation", trainer)

    def on_save_checkpoint(self, trainer: L.Trainer, *_: Any) -> None:
        self._at("save", trainer)


class _Spoil(L.Callback):
    """A weight or a moment of the optimiser that becomes NaN or infinite after a step."""

    def __init__(self, what: str, value: float) -> None:
        self.what, self.value = what, value

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        if trainer.global_step == 12:
            weight = next(one for one in module.parameters() if one.requires_grad)
            moments = trainer.optimizers[0].state[weight]
            with torch.no_grad():
                (weight if self.what == "weight" else moments[self.what]).view(-1)[0] = self.value


def _task(noise: str) -> LatentTask:
    if noise == "torchsde":
        dynamics = FluctuatingClearance(CompartmentModel(1), 0.3)
        return LatentTask(dynamics, encoder=SetEncoder(8), guide=PathGuide(), objective=PathELBO())
    objective = MarginalLikelihood(draws=4, map_steps=1) if noise == "torch" else ELBO()
    return LatentTask(NeuralCompartments(), encoder=SetEncoder(8), objective=objective)


def _fit(folder: Path, noise: str, workers: int, *more: L.Callback, go_on: Path | None = None) -> dict[str, Any]:
    """32 steps in four epochs; what is in last.ckpt."""
    torch.manual_seed(0)
    data = SimulatedPKDataModule(8, samples=4, batch_size=2, passes_per_epoch=2, num_workers=workers, context="random")
    trainer = L.Trainer(
        max_epochs=4,
        accelerator="cpu",
        logger=False,
        default_root_dir=folder,
        callbacks=[LastCheckpoint(), ModelCheckpoint(monitor="val_loss", filename="best"), _Noise(noise), *more],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    with exit_codes(trainer):
        trainer.fit(_task(noise), data, ckpt_path=go_on)
    return read_checkpoint(folder / "checkpoints" / "last.ckpt")


@functools.cache
def _straight(noise: str, workers: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        return _fit(Path(folder), noise, workers)


@functools.cache
def _content() -> bytes:
    """A checkpoint of a tiny training."""
    with tempfile.TemporaryDirectory() as folder:
        _fit(Path(folder), "numpy", 0)
        return (Path(folder) / "checkpoints" / "last.ckpt").read_bytes()


def _equal(one: Any, other: Any) -> bool:
    if torch.is_tensor(one):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(_equal(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other)


def resumed(number: int, folder: Path) -> bool:
    """C2: stop after step 0 to 31, with 0 and 2 workers, with four kinds of noise."""
    step, workers, noise = number % 32, 2 * (number // 32 % 2), _NOISES[number // 64]
    wanted = _straight(noise, workers)
    with contextlib.suppress(SystemExit):
        _fit(folder / "part", noise, workers, _Stop(step))
    stopped = folder / "part" / "checkpoints" / "interrupted.ckpt"
    found = _fit(folder / "rest", noise, workers, go_on=stopped if step else None)
    return (stopped.exists() or step == 0) and _same_training(found, wanted)


def _same_training(found: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Steps, weights and moments of the optimiser, to the bit."""
    same = ("global_step", "state_dict", "optimizer_states", "lr_schedulers")
    return all(_equal(found[key], wanted[key]) for key in same)


_STOPS: tuple[tuple[str, tuple[signal.Signals, ...], int], ...] = (
    ("step", (signal.SIGTERM,), TERMINATED),
    ("step", (signal.SIGINT,), INTERRUPTED),
    ("step", (signal.SIGTERM, signal.SIGTERM), TERMINATED),
    ("save", (signal.SIGTERM,), TERMINATED),
    ("validation", (signal.SIGTERM,), TERMINATED),
    ("solve", (signal.SIGTERM,), TERMINATED),
)


def signalled(number: int, folder: Path) -> bool:
    """C3: a process that trains is sent signals, and the training resumed from what it has saved."""
    place, sent, code = _STOPS[number]
    steps = folder / "steps"
    context = multiprocessing.get_context("fork")
    process = context.Process(target=_fit, args=(folder / "part", "numpy", 0, _Signal(place, sent, steps)))
    process.start()
    process.join()
    stopped = folder / "part" / "checkpoints" / "interrupted.ckpt"
    kept = read_checkpoint(stopped)["global_step"]
    found = _fit(folder / "rest", "numpy", 0, go_on=stopped)
    kept_last = kept == int(steps.read_text()) < 32
    return process.exitcode == code and kept_last and _same_training(found, _straight("numpy", 0))


def killed(number: int, folder: Path) -> bool:
    """C1: a process that writes one checkpoint after the other is killed after 1 to 100 ms."""
    path, content = folder / "last.ckpt", read_checkpoint(io.BytesIO(_content()))
    write_checkpoint(content, path)
    child = os.fork()
    if child == 0:
        while True:
            write_checkpoint(content, path)
    time.sleep(random.Random(number).uniform(0.001, 0.1))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    read_checkpoint(path)
    with replacing(path) as part:  # the next that writes there clears up
        part.write_bytes(_content())
    return [found.name for found in folder.iterdir()] == ["last.ckpt"]


def spoiled(number: int, folder: Path) -> bool:
    """C4: what was saved before stays, and is finite."""
    what, value = ("weight", "exp_avg", "exp_avg_sq")[number % 3], (np.nan, np.inf)[number // 3]
    try:
        _fit(folder, "numpy", 0, _Spoil(what, value))
    except SolveError:
        kept = [read_checkpoint(path) for path in (folder / "checkpoints").iterdir()]
        weights = [one for content in kept for one in content["state_dict"].values()]
        return len(kept) == 2 and all(bool(one.isfinite().all()) for one in weights)
    return False


def damaged(number: int, folder: Path) -> bool:
    """C6: flipped bits, files that were cut off, other files."""
    content, pick = _content(), random.Random(number)
    if number < 9800:
        position = pick.randrange(8 * len(content))
        changed = bytearray(content)
        changed[position // 8] ^= 1 << position % 8
    elif number < 9900:
        changed = bytearray(content[: len(content) * (number - 9800) // 100])
    else:
        changed = bytearray(pick.randbytes(pick.randrange(5000)))
    with contextlib.suppress(CheckpointError):
        read_checkpoint(io.BytesIO(bytes(changed)))
        return False
    return True


def _start(root: str, gate: Any, found: Any) -> None:
    trainer = L.Trainer(logger=TensorBoardLogger(root, name=None), accelerator="cpu", enable_checkpointing=False)
    gate.wait()
    own_folders(trainer)
    found.put(trainer.log_dir)


def together(number: int, folder: Path) -> bool:
    """C7: two runs that start at the same moment."""
    context = multiprocessing.get_context("fork")
    gate, found = context.Barrier(2), context.Queue()
    runs = [context.Process(target=_start, args=(str(folder), gate, found)) for _ in range(2)]
    for run in runs:
        run.start()
    folders = {found.get(timeout=60) for _ in runs}
    for run in runs:
        run.join()
    return len(folders) == 2


class _Run:
    """Makes a file where it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, ("touch ran",)


def _hostile(number: int) -> bytes | str:
    content = read_checkpoint(io.BytesIO(_content()))
    places: list[Callable[[], Any]] = [
        lambda: content.update(notes=_Run()),
        lambda: content["state_dict"].update(x=_Run()),
        lambda: content["hyper_parameters"].update(dynamics=_Run()),
        lambda: content["hyper_parameters"].update(
            dynamics={"class_path": "os.system", "init_args": {"command": "ls"}}
        ),
        lambda: content["hyper_parameters"].update(dynamics={"class_path": "hostile_module.Model"}),
        lambda: content["hyper_parameters"].update(_instantiator="os.system"),
        lambda: content["hyper_parameters"].update(_class_path="hostile_module.Model"),
        lambda: content.update(hparams_type=_Run()),
        lambda: content["neuralpk"].update(scaling=_Run()),
        lambda: content.update(loops=_Run()),
        lambda: content.pop("state_dict"),
        lambda: content.pop("hyper_parameters"),
        lambda: content.pop("neuralpk"),
        lambda: content["state_dict"].update(more=torch.zeros(1)),
        lambda: content["state_dict"].update({k: v.new_zeros(7, 3) for k, v in content["state_dict"].items()}),
        lambda: content["state_dict"].update({k: v * torch.nan for k, v in content["state_dict"].items()}),
    ]
    if number >= len(places):
        url = f"file://{Path('hostile.ckpt').absolute()}"
        return [url, b"", _content()[:-100], sealed(b"PK\x05\x06" + bytes(18))][number - len(places)]
    places[number]()
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return sealed(buffer.getvalue())


def _refuses(words: list[str]) -> bool:
    """Whether the command ends with words on the error stream, without having run anything of the files here."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            neuralpk(words)
    except SystemExit as left:
        quiet = not Path("ran").exists() and "hostile_module" not in sys.modules
        return left.code in (1, 2) and quiet and f"neuralpk {words[0]}: " in said.getvalue()
    return False


def hostile_checkpoint(number: int, folder: Path) -> bool:
    """E1: every command that reads one, also with TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD."""
    made = _hostile(number)
    path = "hostile.ckpt" if isinstance(made, bytes) else made
    Path("hostile.ckpt").write_bytes(made if isinstance(made, bytes) else _content())
    Path("hostile_module.py").write_text("open('ran', 'w')\n")
    Path("t.csv").write_text("ID,TIME,AMT,DV\n1,0,100,.\n1,1,.,2.0\n")
    os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"
    sys.path.insert(0, str(folder))
    try:
        data = ["--data.subjects", "4", "--data.test_subjects", "0", "--trainer.logger", "false"]
        reads = [["estimate", "--model", path, "--table", "t.csv", "--out", "out"]]
        reads += [[command, "--ckpt_path", path, *data] for command in ("test", "fit")]
        return all(_refuses(words) for words in reads)
    finally:
        sys.path.remove(str(folder))
        del os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"]


def replayed(number: int, folder: Path) -> bool:
    """F4: a training on simulated patients or on a table, from its start or from a checkpoint of another."""
    simulated, resumed = number % 2 == 0, number >= 2
    Path("t.csv").write_text(
        "ID,TIME,AMT,DV\n" + "".join(f"{k},0,100,.\n{k},1,.,{4 + k / 5}\n{k},6,.,{2 + k / 9}\n" for k in range(8))
    )
    data = "--data.subjects 8 --data.test_subjects 0" if simulated else "--data TableDataModule --data.table t.csv"
    line = f"fit --model.dynamics NeuralCompartments --model.encoder SetEncoder --model.objective ELBO {data}"
    line += " --trainer.enable_progress_bar false --trainer.enable_model_summary false"
    # where they differ, the command says so and exits
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        if resumed:
            neuralpk(f"{line} --trainer.max_epochs 1 --out begun".split())
            line += " --ckpt_path begun/checkpoints/last.ckpt"
        neuralpk(f"{line} --trainer.max_epochs 3 --out run".split())
        neuralpk(["replay", "run", "--out", "again"])
    there, again = (read_checkpoint(Path(name, "checkpoints", "last.ckpt")) for name in ("run", "again"))
    return there["global_step"] > 0 and all(_equal(again[key], there[key]) for key in ("global_step", "state_dict"))


_CONFIGURATIONS = (
    "model: {dynamics: {class_path: os.system, init_args: {command: touch ran}}}",
    "trainer: {callbacks: [{class_path: subprocess.Popen, init_args: {args: touch ran}}]}",
    "model: {dynamics: {class_path: hostile_module.Model}}",
    'data: !!python/object/apply:os.system ["touch ran"]',
    "a: &a [x,x,x,x]\nb: &b [*a,*a,*a,*a]\nc: [*b,*b,*b,*b]",
    "model: {learning_rate: 0.1}\nmodel: {learning_rate: 0.2}",
    "nonsense: 1",
    "model: {learning: 0.1}",
    "model: {learning_rate: -1}",
    "x: " + "y" * 10_000_000,
)


def hostile_configuration(number: int, folder: Path) -> bool:
    """E2: asked for by --config."""
    Path("c.yaml").write_text(_CONFIGURATIONS[number])
    Path("hostile_module.py").write_text("open('ran', 'w')\n")
    sys.path.insert(0, str(folder))
    try:
        return _refuses(["fit", "--config", "c.yaml", "--trainer.fast_dev_run", "true"])
    finally:
        sys.path.remove(str(folder))


GOALS: dict[str, tuple[int, Callable[[int, Path], bool]]] = {
    "C1": (200, killed),
    "C2": (256, resumed),
    "C3": (6, signalled),
    "C4": (6, spoiled),
    "C6": (10_000, damaged),
    "C7": (30, together),
    "E1": (20, hostile_checkpoint),
    "E2": (10, hostile_configuration),
    "F4": (4, replayed),
}


def count(goal: str, row: dict[str, Any], save: Callable[[], None]) -> None:
    """The trials of a goal that are left.

    Args:
        goal: its name.
        row: what was counted before; it is changed.
        save: writes all rows.
    """
    number, trial = GOALS[goal]
    began = saved = time.monotonic()
    before = row["seconds"]
    while row["tried"] < number and time.monotonic() - began < _LIMIT:
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            try:
                passed = trial(row["tried"], Path(folder))
            except (Exception, SystemExit) as error:  # a trial that breaks is a goal missed, not the end of the count
                print(f"{goal} {row['tried']}: {type(error).__name__}: {error}", file=sys.stderr)
                passed = False
        if not passed:
            print(f"{goal} {row['tried']}: missed", file=sys.stderr)
        row["passed"] += passed
        row["tried"] += 1
        row["seconds"] = round(before + time.monotonic() - began, 1)
        if time.monotonic() - saved > _SAVED_EVERY:
            save()
            saved = time.monotonic()


def run(path: Path, only: str | None) -> None:
    """Count, from where it stopped."""
    rows = json.loads(path.read_text()) if path.exists() else []

    def save() -> None:
        with replacing(path) as part:
            part.write_text(json.dumps(rows, indent=1))

    for goal in GOALS if only is None else [only]:
        row = next((row for row in rows if row["goal"] == goal), None)
        if row is None:
            row = {"goal": goal, "passed": 0, "tried": 0, "seconds": 0.0}
            rows.append(row)
        count(goal, row, save)
        save()
        print(
            f"{goal}: {row['passed']} of {row['tried']} passed, {GOALS[goal][0]} wanted, {row['seconds']} s", flush=True
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=GOALS, help="one goal")
    parser.add_argument("--json", type=Path, default=Path("reliability.json"), help="where the counts are kept")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    run(arguments.json.absolute(), arguments.only)
