"""The command line with the real model: every preset runs, and no command measures the wrong model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml

from neuralpk.cli import PRESETS, main, preset_path
from neuralpk.cli.entry import execute
from neuralpk.datamodules import SimulatedPKDataModule
from neuralpk.tables import read_table, write_table
from neuralpk.task import LatentTask

SCRIPTS = Path(__file__).parent.parent / "scripts"
FEWER = {"two_compartment": ["--data.subjects", "3", "--data.test_subjects", "2"]}
FEWER |= dict.fromkeys(("lotka_volterra", "lotka_volterra_augmented", "sir", "latent_sde"), FEWER["two_compartment"])
TINY = [
    *("--data.subjects", "4", "--data.test_subjects", "0", "--data.passes_per_epoch", "1"),
    *("--model.dynamics", "CompartmentModel", "--model.engine", "Auto", "--trainer.max_epochs", "1"),
]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


def refusal(capsys, *arguments: str) -> str:
    """Run a command that must fail; what it says on the error stream (an exit by message goes there)."""
    with pytest.raises(SystemExit) as refused:
        main(list(arguments))
    said = capsys.readouterr().err
    assert refused.value.code not in (0, None)
    assert "Traceback" not in said
    return said + str(refused.value.code)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A mechanistic model of two compartments after one epoch."""
    folder = tmp_path_factory.mktemp("model")
    main(["fit", *TINY, "--trainer.default_root_dir", str(folder)])
    (last,) = folder.rglob("last.ckpt")
    return last


# ---- presets


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_fits_validates_tests_and_predicts(preset: str) -> None:
    common = ["--preset", preset, "--trainer.fast_dev_run", "true", *FEWER.get(preset, [])]
    # fast_dev_run saves nothing: save what the preset made
    execute(["fit", *common]).trainer.save_checkpoint("made.ckpt")
    for command in ("validate", "test", "predict"):
        main([command, *common, "--model", "made.ckpt"])
    assert not Path("lightning_logs").exists()


def test_without_a_preset_it_is_the_main_job() -> None:
    cli = execute(["fit", "--trainer.fast_dev_run", "true", *FEWER["two_compartment"]])
    assert isinstance(cli.datamodule, SimulatedPKDataModule)
    assert isinstance(cli.model, LatentTask)


def test_presets_hold_no_unknown_keys() -> None:
    for preset in PRESETS:
        settings = yaml.safe_load(Path(preset_path(preset)).read_text(encoding="utf-8"))
        assert set(settings) == {"data", "model", "trainer"}


# ---- which model is measured


def test_a_saved_configuration_does_not_undo_the_checkpoint(capsys) -> None:
    main(["fit", *TINY])
    (config,) = Path("lightning_logs").glob("*/config.yaml")
    (last,) = Path("lightning_logs").glob("*/checkpoints/last.ckpt")
    assert "ckpt_path" not in yaml.safe_load(config.read_text())
    measured = []
    for name, shift in (("same.ckpt", 0.0), ("moved.ckpt", 1.0)):
        content = torch.load(last, weights_only=True)
        (typical,) = [name for name in content["state_dict"] if name == "model.population.location"]
        content["state_dict"][typical] += shift
        content["neuralpk"].pop("sha256", None)  # it is that of other numbers
        torch.save(content, name)
        capsys.readouterr()
        main(["test", "--unverified", "--model", name, "--config", str(config)])
        (row,) = [line for line in capsys.readouterr().out.splitlines() if "test_rmse" in line]
        measured.append(float(row.split("│")[2]))
    assert measured[0] != pytest.approx(measured[1], rel=0.05)


def test_a_second_run_without_a_logger_does_not_trip_over_the_first() -> None:
    for _ in range(2):
        main(["fit", *TINY, "--trainer.logger", "false"])
    assert Path("config.yaml").exists()


def test_out_is_the_folder_of_a_run_without_a_logger_too() -> None:
    main(["fit", *TINY, "--trainer.logger", "false", "--out", "run"])
    assert [path.name for path in Path().iterdir()] == ["run"]
    assert {"config.yaml", "checkpoints", "population.csv"} <= {path.name for path in Path("run").iterdir()}


def test_a_fault_in_the_data_ends_a_fit_in_words(capsys) -> None:
    Path("bad.csv").write_text("ID,TIME,AMT,DV\n1,0,100,.\n1,2,.,5\n1,1,.,4\n")
    said = refusal(capsys, "fit", "--preset", "theophylline", "--data.table", "bad.csv", "--data.folds", "0")
    assert "NPK-D16" in said
    said = refusal(capsys, "fit", "--preset", "theophylline", "--data.table", "none.csv", "--data.folds", "0")
    assert "none.csv" in said
    assert not Path("lightning_logs").exists()


# ---- simulate


def test_simulate_writes_the_cohort_of_a_preset() -> None:
    main(
        [
            "simulate",
            "--preset",
            "two_compartment",
            "--data.subjects",
            "10",
            "--data.test_subjects",
            "0",
            "--out",
            "c.csv",
        ]
    )
    assert read_table("c.csv").ids == tuple(str(i) for i in range(1, 11))
    main(["simulate", "--data.subjects", "10", "--data.test_subjects", "0", "--out", "d.csv"])
    assert Path("c.csv").read_bytes() == Path("d.csv").read_bytes()
    main(["simulate", "--preset=lotka_volterra", "--data.subjects", "2", "--data.test_subjects=0", "--out", "lv.csv"])
    assert set(pd.read_csv("lv.csv")["DVID"].dropna()) == {1, 2}


def test_simulate_takes_a_data_module_by_name() -> None:
    main(
        ["simulate", "--data", "SimulatedPKDataModule", "--data.subjects", "3", "--data.lloq", "0.1", "--out", "c.csv"]
    )
    frame = pd.read_csv("c.csv")
    assert frame["ID"].nunique() == 3
    assert frame["CENS"].sum() > 0


# ---- reconstruct


def test_reconstruct_writes_curves_and_individuals_of_new_patients(checkpoint: Path) -> None:
    write_table(SimulatedPKDataModule(subjects=3, seed=5).part("train"), Path("mine.csv"))
    main(["reconstruct", "--model", str(checkpoint), "--table", "mine.csv", "--out", "a/b", "--draws", "20"])
    curves, people = (pd.read_csv(f"a/b/{name}.csv") for name in ("curves", "individuals"))
    assert list(curves) == ["ID", "TIME", "PRED", "IPRED", "LO90", "HI90"]
    assert (curves.groupby("ID").size() >= 200).all()
    names = ["CL", "V1", "Q", "V2", "k10", "k12", "k21", "THALF", "ETA_CL", "ETA_V1", "ETA_Q", "ETA_V2"]
    assert list(people) == ["ID", *(f"{name}{end}" for name in names for end in ("", "_LO90", "_HI90"))]
    assert people.notna().all(axis=None)
    assert (people["CL_LO90"] < people["CL_HI90"]).all()


def test_reconstruct_maps_on_request(checkpoint: Path, monkeypatch) -> None:
    asked = []
    original = LatentTask.reconstruct
    monkeypatch.setattr(
        LatentTask, "reconstruct", lambda self, *a, **k: asked.append(k["map"]) or original(self, *a, **k)
    )
    write_table(SimulatedPKDataModule(subjects=2, seed=5).part("train"), Path("mine.csv"))
    command = [
        "reconstruct",
        "--model",
        str(checkpoint),
        "--table",
        "mine.csv",
        "--out",
        "a",
        "--draws",
        "5",
        "--overwrite",
    ]
    for extra in ([], ["--map_estimate", "false"], ["--map_estimate", "true"]):
        main(command + extra)
    assert asked == [None, False, True]


def test_the_population_of_a_fit_estimates_patients_without_the_fit(checkpoint: Path, capsys) -> None:
    main(["population", "--model", str(checkpoint), "--out", "pop.yaml"])
    written = yaml.safe_load(Path("pop.yaml").read_text())
    model = LatentTask.load_from_checkpoint(checkpoint, weights_only=True).model
    assert written["typical"] == pytest.approx(model.population.typical_values())
    assert written["omega"] == pytest.approx(model.population.omega_values())
    write_table(SimulatedPKDataModule(subjects=2, seed=5).part("train"), Path("mine.csv"))
    main(["estimate", "--model", "pop.yaml", "--table", "mine.csv", "--out", "b", "--draws", "20"])
    main(["reconstruct", "--model", str(checkpoint), "--table", "mine.csv", "--out", "a", "--draws", "0"])
    left, right = (pd.read_csv(f"{folder}/individuals.csv")["CL"] for folder in "ab")
    assert left.to_numpy() == pytest.approx(right.to_numpy(), rel=1e-3)  # the checkpoint is in single precision


def test_reconstruct_says_what_is_wrong_with_a_table_and_writes_nothing(checkpoint: Path, capsys) -> None:
    Path("bad.csv").write_text("ID,TIME,AMT,DV\n1,0,100,.\n1,2,.,5\n1,1,.,4\n2,0,-5,.\n2,1,.,3\n")
    said = refusal(capsys, "reconstruct", "--model", str(checkpoint), "--table", "bad.csv", "--out", "out")
    assert "NPK-D16" in said
    assert "line 4" in said
    assert not Path("out").exists()


def test_reconstruct_names_a_file_that_is_missing(checkpoint: Path, capsys) -> None:
    said = refusal(capsys, "reconstruct", "--model", "none.ckpt", "--table", "t.csv", "--out", "out")
    assert "none.ckpt" in said
    said = refusal(capsys, "reconstruct", "--model", str(checkpoint), "--table", "t.csv", "--out", "out")
    assert "t.csv" in said
    assert not Path("out").exists()


def test_an_error_goes_to_the_error_stream_with_exit_code_1(tmp_path: Path) -> None:
    command = ["reconstruct", "--model", "none.ckpt", "--table", "t.csv", "--out", "out"]
    done = subprocess.run(
        [sys.executable, "-m", "neuralpk", *command], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert "none.ckpt" in done.stderr
    assert "Traceback" not in done.stderr


# ---- scripts


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "options"),
    [
        ("train_pk.py", []),
        ("train_pk.py", ["--dynamics", "mechanistic"]),
        ("train_lotka_volterra.py", []),
    ],
)
def test_a_script_runs_for_an_epoch(script: str, options: list[str], tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPTS / script), "--epochs", "1", *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "CL" in done.stdout or "alpha" in done.stdout or "z" in done.stdout
    assert list(tmp_path.glob("lightning_logs/version_0/checkpoints/last.ckpt"))
