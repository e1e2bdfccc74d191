"""What a training leaves to look at: the dashboard, the panels, the report and the commands in it."""

from __future__ import annotations

import io
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import CustomProgress
from lightning.pytorch.loggers import CSVLogger, Logger
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from neuralpk.callbacks import BestCheckpoint, Dashboard, Report, TensorBoardRuns
from neuralpk.callbacks.logged_media import log_figures, log_text
from neuralpk.callbacks.report import _end_progress
from neuralpk.callbacks.tensorboard import _public
from neuralpk.callbacks.tensorboard_runs import flat
from neuralpk.cohort_figures import curve_errors, make_panels
from neuralpk.datamodules import SimulatedLotkaVolterraDataModule, SimulatedPKDataModule, TableDataModule
from neuralpk.diagnostics.metrics import line_rrmse
from neuralpk.diagnostics.parameter_plots import latent_space
from neuralpk.diagnostics.style import png
from neuralpk.dynamics import CompartmentModel, LotkaVolterra
from neuralpk.encoders import SetEncoder
from neuralpk.objectives import ELBO, MarginalLikelihood, SquaredError
from neuralpk.parameters import PopulationParameters
from neuralpk.residual_error import LogNormalError
from neuralpk.scaling import Scaling
from neuralpk.solve import Auto
from neuralpk.task import LatentTask

SCALARS = {
    "train": ["loss/total", "loss/fit", "loss/kl"],
    "val": ["loss/total", "loss/fit", "loss/kl", "error/rmse", "error/log_rmse", "error/curve_rrmse"],
    ".": ["training/learning_rate", "training/gradient_norm"],
}


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
        logger=TensorBoardRuns(str(folder), name=None),
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


def read(folder: Path | str) -> EventAccumulator:
    """The event file of a run."""
    return EventAccumulator(str(folder), {"images": 0, "tensors": 0, "scalars": 0}).Reload()


@pytest.fixture(scope="module")
def events(run) -> dict[str, EventAccumulator]:
    """Event files by run."""
    folder = Path(run[0].log_dir)
    return {name: read(folder / name) for name in SCALARS}


@pytest.mark.parametrize(("stage", "tag"), [(stage, tag) for stage, tags in SCALARS.items() for tag in tags])
def test_every_scalar_is_in_its_run_each_epoch(stage: str, tag: str, events: dict[str, EventAccumulator]) -> None:
    assert [event.step for event in events[stage].Scalars(tag)] == [1, 3]


@pytest.mark.parametrize(
    ("estimator", "validation", "saved"), [(object(), 0.0, True), (object(), 0.5, False), (None, 0.0, False)]
)
def test_the_last_state_of_a_population_fit_without_held_out_subjects_is_its_best(
    estimator: object, validation: float, saved: bool
) -> None:
    callback = BestCheckpoint()
    callback.best_k_models, callback.kth_best_model_path = {"best.ckpt": torch.tensor(1.0)}, "best.ckpt"
    trainer = SimpleNamespace(
        datamodule=SimulatedPKDataModule(subjects=4, validation=validation),
        lightning_module=SimpleNamespace(estimator=estimator),
        strategy=SimpleNamespace(reduce_boolean_decision=bool),
    )
    assert callback.check_monitor_top_k(trainer, torch.tensor(2.0)) is saved
    assert callback.check_monitor_top_k(trainer, torch.tensor(0.5))
    assert not callback.check_monitor_top_k(trainer, torch.tensor(torch.nan))


def test_no_series_is_zero_throughout_or_counts_epochs(events: dict[str, EventAccumulator]) -> None:
    for one in events.values():
        tags = one.Tags()["scalars"]
        assert tags
        assert not any("epoch" in tag for tag in tags)
        assert all(any(event.value for event in one.Scalars(tag)) for tag in tags)
        assert all("/" in tag for tag in tags)  # no group of one chart


def test_a_series_that_is_no_longer_zero_begins_with_its_zeros(tmp_path) -> None:
    logger = TensorBoardRuns(str(tmp_path))
    for step, value in enumerate([0.0, 0.0, 2.0, 0.0]):
        logger.log_metrics({"train_failures": value, "epoch": step}, step)
    logger.finalize("success")
    (tag,) = read(Path(logger.log_dir, "train")).Tags()["scalars"]
    assert tag == "solver/failures"
    assert [event.value for event in read(Path(logger.log_dir, "train")).Scalars(tag)] == [0.0, 0.0, 2.0, 0.0]


@pytest.mark.parametrize("name", ["individual fits", "goodness of fit"])
def test_figures_are_drawn_while_it_trains_and_at_the_end(name: str, events: dict[str, EventAccumulator]) -> None:
    images = events["."].Images(f"patients/{name}")
    assert [image.step for image in images] == [1, 3, 3]
    assert images[0].encoded_image_string.startswith(b"\x89PNG")
    assert images[0].encoded_image_string != images[1].encoded_image_string


def test_the_latent_space_is_kept_for_the_projector_with_what_colours_it(run, events) -> None:
    assert len(events["."].Images("patients/latent space")) == 1
    (folder,) = Path(run[0].log_dir).glob("*/latent space")
    rows = (folder / "tensors.tsv").read_text().strip().splitlines()
    assert len(rows) == 6
    assert len(rows[0].split("\t")) == 4  # CL, V1, Q, V2
    names, *metadata = (line.split("\t") for line in (folder / "metadata.tsv").read_text().strip().splitlines())
    assert {"CL", "V1", "Q", "V2", "first dose"} <= set(names)
    assert len(metadata) == 6
    assert {row[names.index("first dose")] for row in metadata} == {"10", "30", "60", "120"}


def test_settings_are_a_row_whose_results_are_those_of_the_validation(run, events) -> None:
    contents = [events["."].SummaryMetadata(f"_hparams_/{name}") for name in ("experiment", "session_start_info")]
    experiment, start = (plugin_data_pb2.HParamsPluginData.FromString(one.plugin_data.content) for one in contents)
    for metric in experiment.experiment.metric_infos:
        assert events[metric.name.group].Scalars(metric.name.tag)
    settings = start.session_start_info.hparams
    assert settings["model.objective"].string_value == "ELBO"
    assert settings["model.dynamics"].string_value == "CompartmentModel"
    assert settings["model.learning_rate"].number_value == pytest.approx(run[3].learning_rate)
    assert settings["data.subjects"].number_value == 6


def test_texts_hold_settings_and_verdict_without_paths_and_ids(run, events) -> None:
    texts = {
        name: events["."].Tensors(f"{name}/text_summary")[-1].tensor_proto.string_val[0].decode()
        for name in ("settings", "verdict")
    }
    assert "| model.objective | ELBO |" in texts["settings"]
    assert "| torch |" in texts["settings"]
    assert "learned from the study's own 6 subjects only" in texts["verdict"]
    assert "samples, interpolated" in texts["verdict"]
    folder = Path(run[0].log_dir)
    for text in texts.values():
        assert str(folder) not in text
        assert folder.parent.name not in text


def test_the_file_of_a_table_is_in_no_setting() -> None:
    data = TableDataModule("/home/jane/study_007.csv", columns={"DV": "LIDV"})
    settings = dict(flat({"data": _public(data)}))
    assert settings["data.passes_per_epoch"] == 1
    assert not any("jane" in str(value) or "study" in str(value) for value in settings.values())


class Pictures(Logger):
    """A logger with the face of Weights & Biases."""

    name, version = "pictures", 0

    def __init__(self) -> None:
        super().__init__()
        self.pictures: dict[str, int] = {}
        self.texts: list[str] = []

    def log_hyperparams(self, *_, **__) -> None:
        """Nothing."""

    def log_metrics(self, *_, **__) -> None:
        """Nothing."""

    def log_image(self, key: str, images: list, step: int) -> None:
        """As of `lightning.pytorch.loggers.WandbLogger`."""
        self.pictures[key] = images[0].width

    def log_text(self, key: str, columns: list, data: list, step: int) -> None:
        """Likewise."""
        self.texts += data[0]


def test_another_logger_gets_the_figures_and_texts() -> None:
    logger = Pictures()
    content = png(latent_space(np.zeros((3, 2))))
    log_figures([logger, CSVLogger("unused")], {"patients/latent space": content}, step=3)
    log_text([logger], "verdict", "- good", step=3)
    assert logger.pictures["patients/latent space"] > 500
    assert logger.texts == ["- good"]


def test_the_panels_are_a_picture_beside_the_checkpoints(run) -> None:
    picture = Path(run[0].log_dir) / "individuals.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert f"Figures of the patients: {picture}" in run[1]


def test_the_report_compares_with_what_needs_no_model(run) -> None:
    printed = run[1]
    assert "6 training patients" in printed
    assert "3 new patients" in printed
    for name in ("model", "typical, simulated", "samples, interpolated"):
        assert len(re.findall(rf"^│ {name} +│ +\d\.\d{{3}} │", printed, re.MULTILINE)) == 2, name


def test_the_errors_are_those_of_the_curves(run) -> None:
    _, _, data, task = run
    errors = curve_errors(data, task, data.part("test"))
    assert set(errors) == {"model", "typical, simulated", "samples, interpolated"}
    truths = [subject.truth for subject in data.part("test")]
    lines = task.reconstruct(data.part("test"), truths[0].times.tolist(), draws=0).ipred[..., 0]
    expected = line_rrmse(lines, np.stack([truth.line[:, 0] for truth in truths]))
    assert errors["model"][0][:, 0] == pytest.approx(expected, rel=1e-6)


def test_the_next_commands_run_as_they_are_printed(run) -> None:
    commands = re.findall(r"^To [^\n]+:\n  ([^\n]+)$", run[1], re.MULTILINE)
    assert [shlex.split(command)[0] for command in commands] == ["tensorboard", "python", "neuralpk", "neuralpk"]
    board, load, own, report = map(shlex.split, commands)
    assert Path(board[board.index("--logdir") + 1]).is_dir()
    done = subprocess.run([sys.executable, *load[1:]], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "'CL': " in done.stdout

    from neuralpk.cli import main

    main(own[1:])
    written = {path.name for path in Path(own[own.index("--out") + 1]).iterdir()}
    assert written >= {"curves.csv", "individuals.csv", "records.csv", "exposure.csv"}
    main([*report[1:], "--simulations", "100"])
    assert Path(report[report.index("--out") + 1]).read_text().startswith("<!doctype html>")


def test_a_model_of_the_elbo_shows_its_population_beside_the_truth(run) -> None:
    assert re.search(r"^│ CL +│ +\d\S* │ +4 │", run[1], re.MULTILINE)
    assert re.search(r"^│ b +│ +\d\S* │ +0.2 │", run[1], re.MULTILINE)


@pytest.mark.parametrize(
    ("simulated", "options", "shown"),
    [
        ({"omega": {"CL": 0.3, "V1": 0.3}}, {"shared_omega": [["CL", "V1"]]}, {"omega CL=V1": "0.3"}),
        ({"omega": {"CL": 0.3, "V1": 0.2}}, {"shared_omega": [["CL", "V1"]]}, {"omega CL=V1": "0.3, 0.2"}),
        ({"omega": {"CL": 0.3}}, {"shared_omega": [["CL", "V1"]]}, {"omega CL=V1": "0.3, 0"}),
        (
            {"omega": [[0.09, 0.03], [0.03, 0.04]], "kappa": {"CL": 0.1}, "occasions": [0.0, 6.0]},
            {"correlated": True, "kappa": {"CL": 0.2}},
            {"omega CL": "0.3", "omega V1": "0.2", "corr CL~V1": "0.5", "kappa CL": "0.1"},
        ),
    ],
)
def test_omegas_stand_beside_those_of_the_simulation(simulated: dict, options: dict, shown: dict[str, str]) -> None:
    data = SimulatedPKDataModule(3, 2, compartments=1, typical={"CL": 4.0, "V1": 20.0}, **simulated)
    task = LatentTask(CompartmentModel(1), PopulationParameters(**options), objective=MarginalLikelihood())
    task.build(Scaling.of(data.part("train")))
    report = Report()
    report.console = Console(file=io.StringIO(), width=200)
    report._values(data, task)
    rows = [re.split(r" *[│┃] *", line) for line in report.console.file.getvalue().splitlines()]
    found = {row[1]: row[3] for row in rows if len(row) == 5}
    assert found | shown == found


def test_the_progress_bar_is_closed_before_the_report() -> None:
    bar = RichProgressBar()
    bar.progress = CustomProgress(console=Console(file=io.StringIO(), force_terminal=True))
    bar.progress.start()
    trainer = L.Trainer(callbacks=[bar], accelerator="cpu", logger=False, enable_checkpointing=False)
    _end_progress(trainer)
    assert not bar.progress.live.is_started


def test_measured_data_have_no_table_of_errors(tmp_path) -> None:
    data = TableDataModule("indomethacin", covariates=[], evaluation_context="first", context_size=4)
    task = LatentTask(CompartmentModel(), encoder=SetEncoder(), objective=SquaredError())
    trainer, printed = fit(data, task, tmp_path, epochs=1)
    assert "against the truth" not in printed
    assert re.search(r"42 values of 6 test patients that no estimate was shown", printed)
    assert (Path(trainer.log_dir) / "individuals.png").exists()


@pytest.mark.slow
def test_each_endpoint_has_its_own_panels(tmp_path) -> None:
    data = SimulatedLotkaVolterraDataModule(subjects=2, samples=4)
    task = LatentTask(
        LotkaVolterra(), error=LogNormalError(), engine=Auto(rtol=1e-3), encoder=SetEncoder(), objective=ELBO()
    )
    trainer, printed = fit(data, task, tmp_path, epochs=1)
    folder = Path(trainer.log_dir)
    assert (folder / "individuals_1.png").exists()
    assert (folder / "individuals_2.png").exists()
    images = read(folder).Tags()["images"]
    named = {f"patients/{name} {k}" for name in ("individual fits", "goodness of fit") for k in (1, 2)}
    assert named | {"patients/phase plane"} <= set(images)
    assert "2 training series" in printed
    assert "prey, rel. RMSE" in printed
    assert "predator, rel. RMSE" in printed
    assert "patient" not in printed
    assert "AUC" not in printed


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
