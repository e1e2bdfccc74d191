"""A training that is stopped: what is saved, under which name, and that going on gives the training never stopped."""

from __future__ import annotations

import random
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from neuralpk.callbacks import LastCheckpoint
from neuralpk.datamodules import SimulatedPKDataModule
from neuralpk.dynamics import CompartmentModel
from neuralpk.encoders import SetEncoder
from neuralpk.objectives import ELBO, MarginalLikelihood
from neuralpk.solve import SolveError
from neuralpk.task import LatentTask

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*_queue|.*fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:subject .* the most probable"),
]


class Interrupt(L.Callback):
    """Ctrl-C, or an error, in a hook of a step."""

    def __init__(self, step: int, hook: str, error: BaseException) -> None:
        self.step, self.hook, self.error = step, hook, error

    def _stop(self, trainer: L.Trainer, hook: str) -> None:
        if trainer.global_step == self.step and hook == self.hook and not trainer.sanity_checking:
            raise self.error

    def on_train_batch_start(self, trainer, *_) -> None:
        self._stop(trainer, "start")

    def on_after_backward(self, trainer, *_) -> None:
        self._stop(trainer, "backward")

    def on_before_optimizer_step(self, trainer, *_) -> None:
        self._stop(trainer, "optimizer")

    def on_train_batch_end(self, trainer, *_) -> None:
        self._stop(trainer, "end")

    def on_validation_batch_start(self, trainer, *_) -> None:
        self._stop(trainer, "validation")


def fit(
    folder: Path,
    *more: L.Callback,
    go_on: Path | None = None,
    workers: int = 0,
    encoder: bool = True,
    batch_size: int = 3,
    epochs: int = 3,
    **options,
) -> L.Trainer:
    """Eight subjects, three batches in a pass."""
    torch.manual_seed(0)
    data = SimulatedPKDataModule(
        8, samples=4, batch_size=batch_size, passes_per_epoch=2, num_workers=workers, context="random"
    )
    if encoder:
        task = LatentTask(CompartmentModel(1), encoder=SetEncoder(4), objective=ELBO())
    else:
        task = LatentTask(CompartmentModel(1), objective=MarginalLikelihood(draws=4, map_steps=1))
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        default_root_dir=folder,
        callbacks=[LastCheckpoint(), ModelCheckpoint(monitor="val_loss", filename="best"), *more],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **options,
    )
    trainer.fit(task, data, ckpt_path=go_on)
    return trainer


def saved(folder: Path, name: str) -> dict:
    return torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)


def assert_same_training(found: dict, wanted: dict) -> None:
    """Steps, weights and moments of the optimiser, to the bit."""
    assert found["global_step"] == wanted["global_step"]
    assert found["state_dict"].keys() == wanted["state_dict"].keys()
    for name, value in wanted["state_dict"].items():
        assert torch.equal(found["state_dict"][name], value), name
    for one, other in zip(found["optimizer_states"], wanted["optimizer_states"], strict=True):
        for key, moments in other["state"].items():
            for name, value in moments.items():
                assert torch.equal(one["state"][key][name], value), name


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Trainings that were never stopped, by their options."""
    torch.set_num_threads(1)
    made: dict[tuple, dict] = {}

    def of(**options) -> dict:
        key = tuple(sorted(options.items()))
        if key not in made:
            folder = tmp_path_factory.mktemp("straight")
            fit(folder, **options)
            made[key] = saved(folder, "last")
        return made[key]

    return of


def interrupted(
    folder: Path, step: int, hook: str, error: BaseException | None = None, more: tuple[L.Callback, ...] = (), **options
) -> None:
    with pytest.raises(SystemExit if error is None else type(error)):
        fit(folder, *more, Interrupt(step, hook, error or KeyboardInterrupt()), **options)


STEPS = 18


@pytest.mark.parametrize(
    ("step", "hook"),
    [
        (1, "start"), (5, "backward"), (6, "start"), (8, "start"), (8, "backward"), (8, "optimizer"), (8, "end"),
        (11, "backward"), (12, "end"), (12, "validation"), (17, "optimizer"),
    ],
)  # fmt: skip
def test_going_on_after_an_interruption_gives_the_same_training(step: int, hook: str, tmp_path, straight) -> None:
    wanted = straight()
    assert wanted["global_step"] == STEPS
    interrupted(tmp_path / "part", step, hook)
    fit(tmp_path / "rest", go_on=tmp_path / "part" / "checkpoints" / "interrupted.ckpt")
    assert_same_training(saved(tmp_path / "rest", "last"), wanted)


@pytest.mark.parametrize("hook", ["backward", "end"])
def test_an_epoch_without_validation_ends_as_well(hook: str, tmp_path, straight) -> None:
    wanted = straight(check_val_every_n_epoch=2)
    interrupted(tmp_path / "part", 6, hook, check_val_every_n_epoch=2)
    fit(tmp_path / "rest", go_on=tmp_path / "part" / "checkpoints" / "interrupted.ckpt", check_val_every_n_epoch=2)
    assert_same_training(saved(tmp_path / "rest", "last"), wanted)


@pytest.mark.parametrize("step", [4, 8])
def test_gradients_that_were_accumulated_come_again(step: int, tmp_path, straight) -> None:
    wanted = straight(accumulate_grad_batches=2)
    interrupted(tmp_path / "part", step, "backward", accumulate_grad_batches=2)
    fit(tmp_path / "rest", go_on=tmp_path / "part" / "checkpoints" / "interrupted.ckpt", accumulate_grad_batches=2)
    assert_same_training(saved(tmp_path / "rest", "last"), wanted)


def test_an_epoch_that_was_cut_short_begins_anew(tmp_path, straight) -> None:
    wanted = straight(limit_train_batches=4)
    interrupted(tmp_path / "part", 8, "start", limit_train_batches=4)  # between two epochs
    fit(tmp_path / "rest", go_on=tmp_path / "part" / "checkpoints" / "interrupted.ckpt", limit_train_batches=4)
    assert_same_training(saved(tmp_path / "rest", "last"), wanted)


def test_a_training_that_was_stopped_twice(tmp_path, straight) -> None:
    interrupted(tmp_path / "a", 4, "backward")
    interrupted(tmp_path / "b", 9, "optimizer", go_on=tmp_path / "a" / "checkpoints" / "interrupted.ckpt")
    fit(tmp_path / "c", go_on=tmp_path / "b" / "checkpoints" / "interrupted.ckpt")
    assert_same_training(saved(tmp_path / "c", "last"), straight())


@pytest.mark.parametrize("hook", ["start", "backward"])
def test_the_estimator_of_the_population_goes_on(hook: str, tmp_path, straight) -> None:
    wanted = straight(encoder=False, epochs=1)
    interrupted(tmp_path / "part", 4, hook, encoder=False, epochs=1)
    fit(tmp_path / "rest", go_on=tmp_path / "part" / "checkpoints" / "interrupted.ckpt", encoder=False, epochs=1)
    assert_same_training(saved(tmp_path / "rest", "last"), wanted)


class Noise(L.Callback):
    """Gradients with noise from the global random numbers, as parts of one's own may have."""

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        for weight in pl_module.parameters():
            if weight.grad is not None:
                weight.grad += 0.1 * torch.randn_like(weight) * (1 + np.random.rand()) * random.random()  # noqa: NPY002


@pytest.mark.parametrize("step", [1, 8])
def test_global_random_numbers_are_those_of_the_step(step: int, tmp_path) -> None:
    fit(tmp_path / "straight", Noise())
    torch.randn(3), random.random()
    interrupted(tmp_path / "part", step, "backward", more=(Noise(),))
    fit(tmp_path / "rest", Noise(), go_on=tmp_path / "part" / "checkpoints" / "interrupted.ckpt")
    assert_same_training(saved(tmp_path / "rest", "last"), saved(tmp_path / "straight", "last"))


def test_with_worker_processes(tmp_path, straight) -> None:
    interrupted(tmp_path / "part", 8, "backward", workers=2)
    fit(tmp_path / "rest", go_on=tmp_path / "part" / "checkpoints" / "interrupted.ckpt", workers=2)
    assert_same_training(saved(tmp_path / "rest", "last"), straight())


@pytest.mark.parametrize("error", [None, RuntimeError("of a callback")])
def test_what_was_saved_before_stays(error, tmp_path) -> None:
    fit(tmp_path, epochs=2)
    before = {name: (tmp_path / "checkpoints" / f"{name}.ckpt").read_bytes() for name in ("best", "last")}
    interrupted(tmp_path, 14, "backward", error, go_on=tmp_path / "checkpoints" / "last.ckpt")
    for name, content in before.items():
        assert (tmp_path / "checkpoints" / f"{name}.ckpt").read_bytes() == content
    assert saved(tmp_path, "interrupted")["global_step"] == 14


class Spoil(L.Callback):
    """A weight that becomes NaN after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer, pl_module, *_) -> None:
        if trainer.global_step == self.step:
            with torch.no_grad():
                next(pl_module.parameters()).view(-1)[0] = torch.nan


@pytest.mark.parametrize("step", [8, 12])  # inside an epoch, and in its last step
@pytest.mark.filterwarnings("ignore:not saved")
def test_weights_that_are_not_finite_overwrite_nothing(step: int, tmp_path) -> None:
    with pytest.raises(SolveError, match="not finite at step"):
        fit(tmp_path, Spoil(step))
    found = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert found == ["best.ckpt", "last.ckpt"]
    for name in ("best", "last"):
        content = saved(tmp_path, name)
        assert content["global_step"] == 6
        assert all(bool(value.isfinite().all()) for value in content["state_dict"].values())
