"""What a training leaves to look at: the dashboard, the panels, the report and the commands in it."""

from __future__ import annotations

import io
import re
import shlex
import subprocess
import sys
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import plugin_data_pb2

from neuralpk.callbacks import Dashboard, Report
from neuralpk.cohort_figures import curve_errors, make_panels
from neuralpk.datamodules import SimulatedLotkaVolterraDataModule, SimulatedPKDataModule, TableDataModule
from neuralpk.dynamics import CompartmentModel, LotkaVolterra
from neuralpk.encoders import SetEncoder
from neuralpk.objectives import ELBO, SquaredError
from neuralpk.residual_error import LogNormalError
from neuralpk.solve import Auto
from neuralpk.task import LatentTask

SCALARS = [
    "train_loss",
    "train_fit",
    "train_kl",
    "train_failures",
    "val_loss",
    "val_fit",
    "val_kl",
    "val_failures",
    "val_rmse",
    "val_log_rmse",
    "val_curve_rrmse",
    "val_evaluations",
    "learning_rate",
    "gradient_norm",
]


def compartments() -> LatentTask:
    """Two compartments."""
    return LatentTask(CompartmentModel(), encoder=SetEncoder(), objective=ELBO())


def fit(data: L.LightningDataModule, task: LatentTask, folder: Path, epochs: int = 2) -> tuple[L.Trainer, str]:
    """A tiny training with everything to look at; also what the report printed."""
    report = Report(subjects=3)
    report.console = Console(file=io.StringIO(), width=200, highlight=False, soft_wrap=True)
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=TensorBoardLogger(folder, name=None, default_hp_metric=False),
        callbacks=[ModelCheckpoint(save_last=True), Dashboard(every=1, subjects=3), report],
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    trainer.fit(task, data)
    return trainer, report.console.file.getvalue()


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[L.Trainer, str, SimulatedPKDataModule, LatentTask]:
    """Two epochs on six patients."""
    torch.set_num_threads(1)
    data = SimulatedPKDataModule(subjects=6, test_subjects=3, samples=5, passes_per_epoch=2)
    task = compartments()
    trainer, printed = fit(data, task, tmp_path_factory.mktemp("run"))
    return trainer, printed, data, task


@pytest.fixture(scope="module")
def events(run) -> EventAccumulator:
    """The event file of the run."""
    trainer, *_ = run
    trainer.logger.experiment.flush()
    return EventAccumulator(trainer.log_dir, {"images": 0, "tensors": 0, "scalars": 0}).Reload()


@pytest.mark.parametrize("name", SCALARS)
def test_every_scalar_of_the_dashboard_is_logged_each_epoch(name: str, events: EventAccumulator) -> None:
    assert len(events.Scalars(name)) == 2


def test_the_layout_names_only_scalars_that_are_logged(events: EventAccumulator) -> None:
    (event,) = events.Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    assert [category.title for category in layout.category] == ["Training", "Reconstruction", "Solver"]
    named = {tag for category in layout.category for chart in category.chart for tag in chart.multiline.tag}
    assert named
    assert named <= set(events.Tags()["scalars"])


@pytest.mark.parametrize("name", ["individual fits", "goodness of fit", "latent space"])
def test_every_figure_is_drawn(name: str, events: EventAccumulator) -> None:
    images = events.Images(name)
    assert len(images) == 2
    assert images[0].encoded_image_string.startswith(b"\x89PNG")
    assert images[0].encoded_image_string != images[1].encoded_image_string


def test_the_latent_space_is_kept_for_the_projector(run) -> None:
    folder = Path(run[0].log_dir)
    (tensors,) = folder.glob("*/latent space/tensors.tsv")
    rows = tensors.read_text().strip().splitlines()
    assert len(rows) == 6
    assert len(rows[0].split("\t")) == 4  # CL, V1, Q, V2


def test_settings_are_beside_the_final_metrics(run, events: EventAccumulator) -> None:
    trainer, *_ = run
    final = {name for name in events.Tags()["scalars"] if name.startswith("final/")}
    assert final == {"final/val_loss", "final/val_rmse", "final/val_log_rmse", "final/val_curve_rrmse"}
    assert events.Scalars("final/val_rmse")[-1].value == pytest.approx(float(trainer.callback_metrics["val_rmse"]))
    assert "hp_metric" not in events.Tags()["scalars"]
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    start = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info
    assert start.hparams["objective.class_path"].string_value == "neuralpk.objectives.elbo.ELBO"
    assert start.hparams["dynamics.class_path"].string_value == "neuralpk.dynamics.compartments.CompartmentModel"
    assert start.hparams["learning_rate"].number_value == pytest.approx(run[3].learning_rate)


def test_the_panels_are_a_picture_beside_the_checkpoints(run) -> None:
    picture = Path(run[0].log_dir) / "individuals.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert f"Individual panels: {picture}" in run[1]


def test_the_report_compares_with_what_needs_no_model(run) -> None:
    printed = run[1]
    assert "6 of the training patients" in printed
    assert "3 of new patients" in printed
    for name in ("model", "typical patient", "samples, interpolated"):
        assert len(re.findall(rf"^│ {name} +│ +\d\.\d{{3}} │", printed, re.MULTILINE)) == 2, name


def test_the_errors_are_those_of_the_curves(run) -> None:
    _, _, data, task = run
    errors = curve_errors(data, task, data.part("test"))
    assert set(errors) == {"model", "typical patient", "samples, interpolated"}
    (result,) = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False).test(
        task, data, verbose=False
    )
    assert errors["model"][0].mean() == pytest.approx(result["test_curve_rrmse"], rel=1e-4)


def test_the_three_next_commands_are_printed_and_work(run, tmp_path) -> None:
    printed = run[1]
    commands = re.findall(r"^To [^\n]+:\n  ([^\n]+)$", printed, re.MULTILINE)
    assert [shlex.split(command)[0] for command in commands] == ["tensorboard", "python", "neuralpk"]
    board, load, own = map(shlex.split, commands)
    assert Path(board[board.index("--logdir") + 1]).is_dir()
    done = subprocess.run([sys.executable, *load[1:]], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "PopulationModel(" in done.stdout

    from neuralpk.cli import main
    from neuralpk.tables import write_table

    table, out = tmp_path / "T.csv", tmp_path / "out"
    write_table(run[2].part("test"), table)
    main([str(table) if a == "T.csv" else str(out) if a == "DIR" else a for a in own[1:]])
    assert {path.name for path in out.iterdir()} >= {"curves.csv", "individuals.csv", "records.csv", "exposure.csv"}


def test_measured_data_have_no_table_of_errors(tmp_path) -> None:
    data = TableDataModule("indomethacin", covariates=[], evaluation_context="first", context_size=4)
    task = LatentTask(CompartmentModel(), encoder=SetEncoder(), objective=SquaredError())
    trainer, printed = fit(data, task, tmp_path, epochs=1)
    assert "against the truth" not in printed
    assert (Path(trainer.log_dir) / "individuals.png").exists()


@pytest.mark.slow
def test_each_endpoint_has_its_own_panels(tmp_path) -> None:
    data = SimulatedLotkaVolterraDataModule(subjects=2, samples=4)
    task = LatentTask(
        LotkaVolterra(), error=LogNormalError(), engine=Auto(rtol=1e-3), encoder=SetEncoder(), objective=ELBO()
    )
    trainer, _ = fit(data, task, tmp_path, epochs=1)
    folder = Path(trainer.log_dir)
    assert (folder / "individuals_1.png").exists()
    assert (folder / "individuals_2.png").exists()
    images = EventAccumulator(str(folder)).Reload().Tags()["images"]
    assert {f"{name}/endpoint {k}" for name in ("individual fits", "goodness of fit") for k in (1, 2)} <= set(images)


@pytest.mark.filterwarnings("ignore:subject .* the most probable")  # of a model that was hardly trained
def test_panels_mark_what_the_encoder_saw() -> None:
    data = SimulatedPKDataModule(subjects=2, samples=6)
    cohort = data.part("train")
    task = compartments().build(data.scaling())
    panels = make_panels(cohort, task.reconstruct(cohort, draws=3, context=2), seen=2)
    assert [panel.seen.tolist() for panel in panels] == [[True, True, False, False, False, False]] * 2
    assert panels[0].true is not None


def test_a_run_without_a_logger_or_with_another_module_is_left_alone(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = SimulatedPKDataModule(subjects=2, samples=3)
    task = compartments().build(data.scaling())
    trainer = L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        callbacks=[Dashboard(), Report()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(task, train_dataloaders=data.train_dataloader())
    assert list(tmp_path.iterdir()) == []
