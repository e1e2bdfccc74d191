"""What a stranger's package brings (tests/outside) is trained, saved, resumed and used through all three doors."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import lightning as L
import pandas as pd
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint
from outside import (
    AverageEncoder,
    Counter,
    HuberError,
    LinesLogger,
    Maturation,
    OralDose,
    ParallelElimination,
    RobustError,
    SignDescent,
    SquareRootNormal,
)

from neuralpk.callbacks import Dashboard, Report
from neuralpk.cli import main
from neuralpk.datamodules import SimulatedPKDataModule
from neuralpk.objectives import ELBO, MarginalLikelihood
from neuralpk.parameters import PopulationParameters
from neuralpk.residual_error import ProportionalError
from neuralpk.tables import write_table
from neuralpk.task import LatentTask

DATA = {
    "subjects": 6,
    "samples": 5,
    "compartments": 1,
    "typical": {"CL": 4.0, "V1": 70.0},
    "covariates": {"AGE": [0.5, 18.0]},
    "grid": [0.25, 72.0, 20],
    "passes_per_epoch": 2,
}
EFFECT = {"CL": [Maturation("AGE", half=2.0)]}
# one task for each thing that is brought; the rest is what ships
TASKS = {
    "field": lambda: LatentTask(ParallelElimination(), encoder=AverageEncoder(8), objective=ELBO()),
    "encoder and error": lambda: LatentTask(
        "CompartmentModel", error=RobustError(5.0), encoder=AverageEncoder(8), objective=MarginalLikelihood(4, 2)
    ),
    "objective": lambda: LatentTask(ParallelElimination(), encoder=AverageEncoder(8), objective=HuberError(0.3)),
    "distribution and effect": lambda: LatentTask(
        ParallelElimination(),
        PopulationParameters(distributions={"V1": SquareRootNormal()}, omega=0.2, effects=EFFECT),
        objective=MarginalLikelihood(4, 2),
    ),
    "decoder": lambda: LatentTask(OralDose(), error=ProportionalError(), objective=MarginalLikelihood(4, 2)),
}


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


def trainer(folder: Path, epochs: int, *callbacks: L.Callback, logger: object = False) -> L.Trainer:
    saved = ModelCheckpoint(folder, filename="best", monitor="val_loss", save_last=True, save_top_k=-1)
    return L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=logger,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[saved, *callbacks],
        gradient_clip_val=5.0,
        log_every_n_steps=1,
    )


@pytest.mark.parametrize("brought", TASKS)
def test_in_python_it_trains_resumes_loads_and_estimates(brought: str, tmp_path: Path) -> None:
    data = SimulatedPKDataModule(**DATA)
    torch.manual_seed(0)
    straight = TASKS[brought]()
    trainer(tmp_path / "straight", 4).fit(straight, data)
    torch.manual_seed(0)
    first = TASKS[brought]()
    trainer(tmp_path / "half", 2).fit(first, SimulatedPKDataModule(**DATA))
    resumed = TASKS[brought]()
    report = [Dashboard(every=10), Report(subjects=2)] if brought != "objective" else []
    trainer(tmp_path / "rest", 4, *report).fit(
        resumed, SimulatedPKDataModule(**DATA), ckpt_path=tmp_path / "half" / "last.ckpt", weights_only=True
    )
    assert resumed.global_step == straight.global_step == 8
    loaded = LatentTask.load_from_checkpoint(tmp_path / "rest" / "last.ckpt", weights_only=True)
    for name, value in resumed.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value, equal_nan=True, rtol=0, atol=0, msg=name)
    result = loaded.reconstruct(data.part("train"), draws=20)
    other = resumed.reconstruct(data.part("train"), draws=20)
    pd.testing.assert_frame_equal(result.individuals(), other.individuals(), check_exact=True)
    people = result.individuals()
    assert people.drop(columns=[c for c in people if "90" in c]).notna().all(axis=None)
    if brought != "objective":
        assert (people["CL_LO90"] <= people["CL_HI90"]).all()


def test_from_yaml_with_callback_logger_and_optimiser() -> None:
    config = {
        "data": {"class_path": "neuralpk.datamodules.SimulatedPKDataModule", "init_args": DATA},
        "model": {
            "dynamics": {"class_path": "outside.ParallelElimination", "init_args": {"slowest": 0.2}},
            "parameters": {
                "class_path": "PopulationParameters",
                "init_args": {
                    "omega": 0.2,
                    "distributions": {"V1": {"class_path": "outside.SquareRootNormal"}},
                    "effects": {"CL": [{"class_path": "outside.Maturation", "init_args": {"half": 2.0}}]},
                },
            },
            "error": {"class_path": "outside.RobustError"},
            "encoder": {"class_path": "outside.AverageEncoder", "init_args": {"hidden": 8}},
            "objective": {"class_path": "MarginalLikelihood", "init_args": {"draws": 4, "map_steps": 2}},
        },
        "optimizer": {"class_path": "outside.SignDescent", "init_args": {"lr": 0.002}},
        "trainer": {
            "max_epochs": 2,
            "accelerator": "cpu",
            "enable_progress_bar": False,
            "log_every_n_steps": 1,
            "default_root_dir": "run",
            "logger": {"class_path": "outside.LinesLogger"},
            "callbacks": [{"class_path": "outside.Counter"}],
        },
    }
    Path("mine.yaml").write_text(yaml.safe_dump(config))
    main(["fit", "--config", "mine.yaml"])
    assert Path("steps.txt").read_text() == "4"
    logged = [json.loads(row) for row in Path("log.jsonl").read_text().splitlines()]
    assert any("val_loss" in row for row in logged)
    (last,) = Path().rglob("last.ckpt")
    task = LatentTask.load_from_checkpoint(last, weights_only=True)
    assert isinstance(task.model.dynamics, ParallelElimination) and task.model.dynamics.slowest == 0.2
    assert isinstance(task.model.error, RobustError)


@pytest.mark.slow  # four processes, each of which imports torch
def test_on_the_command_line_in_another_process(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "neuralpk"]
    fit = [
        *("fit", "--import", "outside", "--data.subjects", "4", "--data.test_subjects", "0", "--data.samples", "5"),
        *("--data.passes_per_epoch", "2", "--model.dynamics", "ParallelElimination", "--model.dynamics.slowest", "0.3"),
        *("--model.encoder", "AverageEncoder", "--model.encoder.hidden", "8", "--model.error", "RobustError"),
        *(
            "--trainer.max_epochs",
            "1",
            "--trainer.callbacks+=outside.Counter",
            "--trainer.logger",
            "outside.LinesLogger",
        ),
        *("--optimizer", "outside.SignDescent", "--optimizer.lr", "0.001", "--trainer.default_root_dir", "run"),
    ]
    done = subprocess.run([*command, *fit], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert Path("steps.txt").exists() and Path("log.jsonl").exists()
    (last,) = Path().rglob("last.ckpt")
    write_table(SimulatedPKDataModule(**(DATA | {"subjects": 2, "covariates": {}})).part("train"), "mine.csv")
    use = ["reconstruct", "--model", str(last), "--table", "mine.csv", "--out", "out", "--draws", "20"]
    refused = subprocess.run([*command, *use], capture_output=True, text=True, check=False)
    assert refused.returncode != 0
    assert "--import outside" in refused.stderr and "Traceback" not in refused.stderr
    assert not Path("out").exists()
    done = subprocess.run([*command, *use, "--import", "outside"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert {"CL", "VMAX", "KM", "V1"} <= set(pd.read_csv("out/individuals.csv"))


def test_a_local_class_trains_and_is_asked_for_again(tmp_path: Path) -> None:
    class Local(ParallelElimination):
        pass

    task = LatentTask(Local(), objective=MarginalLikelihood(4, 2))
    run = trainer(tmp_path, 1)
    run.fit(task, SimulatedPKDataModule(**DATA))
    with pytest.raises(ValueError, match=r"load_from_checkpoint\(path, dynamics=…\)"):
        LatentTask.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    loaded = LatentTask.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True, dynamics=Local())
    assert isinstance(loaded.model.dynamics, Local)


def test_its_logger_callback_and_optimiser_work_in_python(tmp_path: Path) -> None:
    class Signed(LatentTask):
        def configure_optimizers(self):
            return SignDescent(self.parameters(), lr=0.001)

    task = Signed("CompartmentModel", encoder=AverageEncoder(8))
    run = trainer(tmp_path, 1, Counter(), Dashboard(), logger=LinesLogger())
    run.fit(task, SimulatedPKDataModule(subjects=4, passes_per_epoch=2))
    assert isinstance(run.optimizers[0], SignDescent)
    assert Path("steps.txt").read_text() == "2" and Path("log.jsonl").exists()
