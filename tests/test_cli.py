"""The command line: every preset runs, errors are said in words, and no command measures the wrong model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml

from neuralpk.cli import PRESETS, main, preset_path
from neuralpk.datamodules import PKDataModule
from neuralpk.tables import read_table, write_table
from neuralpk.tasks import LatentODETask

SCRIPTS = Path(__file__).parent.parent / "scripts"
FEWER = {"two_compartment": ["--data.subjects", "3", "--data.test_subjects", "2"]}
FEWER |= dict.fromkeys(("lotka_volterra", "lotka_volterra_augmented", "sir", "latent_sde"), FEWER["two_compartment"])
TINY = [
    *("--data.subjects", "4", "--data.test_subjects", "0", "--data.passes_per_epoch", "1"),
    *("--model.dynamics.field", "mechanistic", "--model.solver.engine", "auto", "--trainer.max_epochs", "1"),
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
    """An untrained mechanistic model of two compartments, saved as a training saves it."""
    import lightning as L

    torch.manual_seed(0)
    data = PKDataModule(subjects=6)
    task = LatentODETask(data.scaling(), {"field": "mechanistic", "compartments": 2})
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    trainer.strategy.connect(task)
    path = tmp_path_factory.mktemp("model") / "model.ckpt"
    trainer.save_checkpoint(path)
    return path


# ---- presets


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_fits_validates_tests_and_predicts(preset: str) -> None:
    common = ["--preset", preset, "--trainer.fast_dev_run", "true", *FEWER.get(preset, [])]
    # fast_dev_run saves nothing: save what the preset made
    from neuralpk.cli import lightning

    cli = lightning(["fit", *common])
    cli.trainer.save_checkpoint("made.ckpt")
    for command in ("validate", "test", "predict"):
        main([command, *common, "--ckpt_path", "made.ckpt"])
    assert not Path("lightning_logs").exists()


def test_without_a_preset_it_is_the_main_job() -> None:
    from neuralpk.cli import lightning

    cli = lightning(["fit", "--trainer.fast_dev_run", "true", *FEWER["two_compartment"]])
    assert isinstance(cli.datamodule, PKDataModule)
    assert cli.model.hparams["dynamics"]["field"] == "neural"
    assert cli.model.hparams["scaling"] == cli.datamodule.scaling()


def test_a_preset_may_be_written_with_an_equals_sign(capsys) -> None:
    assert "'nope'" in refusal(capsys, "fit", "--preset=nope")


def test_an_unknown_preset_lists_the_presets(capsys) -> None:
    for arguments in (["fit", "--preset", "nope"], ["simulate", "--preset", "nope", "--out", "x.csv"]):
        said = refusal(capsys, *arguments)
        assert "'nope'" in said
        assert all(name in said for name in PRESETS)
    assert all(name in refusal(capsys, "fit", "--preset") for name in PRESETS)


def test_an_unknown_option_or_command_is_refused(capsys) -> None:
    assert "bogus" in refusal(capsys, "fit", "--data.bogus", "3")
    assert "bogus" in refusal(capsys, "fit", "--bogus", "3")
    assert "no command 'train'" in refusal(capsys, "train")


def test_the_usage_names_every_command_and_preset(capsys) -> None:
    main([])
    said = capsys.readouterr().out
    for name in ("fit", "validate", "test", "predict", "simulate", "reconstruct", "estimate", *PRESETS):
        assert name in said


def test_presets_hold_no_unknown_keys() -> None:
    for preset in PRESETS:
        settings = yaml.safe_load(Path(preset_path(preset)).read_text(encoding="utf-8"))
        assert set(settings) == {"data", "model", "trainer"}


# ---- which model is measured


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_an_untrained_model_is_not_measured(command: str, capsys) -> None:
    assert "--ckpt_path" in refusal(capsys, command)


def test_a_saved_configuration_does_not_undo_the_checkpoint(capsys) -> None:
    main(["fit", *TINY])
    (config,) = Path("lightning_logs").glob("*/config.yaml")
    (last,) = Path("lightning_logs").glob("*/checkpoints/last.ckpt")
    assert "ckpt_path" not in yaml.safe_load(config.read_text())
    measured = []
    for name, shift in (("same.ckpt", 0.0), ("moved.ckpt", 1.0)):
        content = torch.load(last, weights_only=True)
        content["state_dict"]["model.individual.log_typical"] += shift
        torch.save(content, name)
        capsys.readouterr()
        main(["test", "--ckpt_path", name, "--config", str(config)])
        (row,) = [line for line in capsys.readouterr().out.splitlines() if "test_rmse" in line]
        measured.append(float(row.split("│")[2]))
    assert measured[0] != pytest.approx(measured[1], rel=0.05)


def test_a_second_run_without_a_logger_does_not_trip_over_the_first() -> None:
    for _ in range(2):
        main(["fit", *TINY, "--trainer.logger", "false"])
    assert Path("config.yaml").exists()


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
    main(["simulate", "--data", "PKDataModule", "--data.subjects", "3", "--data.lloq", "0.1", "--out", "c.csv"])
    frame = pd.read_csv("c.csv")
    assert frame["ID"].nunique() == 3
    assert frame["CENS"].sum() > 0


def test_simulate_refuses_measured_data_and_bad_numbers(capsys) -> None:
    assert "measured" in refusal(capsys, "simulate", "--preset", "theophylline", "--out", "c.csv")
    assert "subjects must be 1 or more" in refusal(capsys, "simulate", "--data.subjects", "0", "--out", "c.csv")
    assert "out" in refusal(capsys, "simulate")
    assert list(Path().iterdir()) == []


# ---- reconstruct


def test_reconstruct_writes_the_lines_and_the_individuals_of_new_patients(checkpoint: Path) -> None:
    write_table(PKDataModule(subjects=3, seed=5).part("train"), Path("mine.csv"))
    main(["reconstruct", "--checkpoint", str(checkpoint), "--table", "mine.csv", "--out", "a/b", "--draws", "20"])
    curves, people = (pd.read_csv(f"a/b/{name}.csv") for name in ("curves", "individuals"))
    assert list(curves) == ["ID", "TIME", "PRED", "IPRED", "LO90", "HI90"]
    assert curves.groupby("ID").size().tolist() == [200] * 3
    names = ["CL", "V1", "Q", "V2", "k10", "k12", "k21"]
    assert list(people) == ["ID", *(f"{name}{end}" for name in names for end in ("", "_LO90", "_HI90"))]
    assert people.notna().all(axis=None)
    assert (people["CL_LO90"] < people["CL_HI90"]).all()


def test_reconstruct_polishes_on_request(checkpoint: Path, monkeypatch) -> None:
    asked = []
    original = LatentODETask.reconstruct
    monkeypatch.setattr(
        LatentODETask, "reconstruct", lambda self, *a, **k: asked.append(k["polish"]) or original(self, *a, **k)
    )
    write_table(PKDataModule(subjects=2, seed=5).part("train"), Path("mine.csv"))
    command = ["reconstruct", "--checkpoint", str(checkpoint), "--table", "mine.csv", "--out", "a", "--draws", "5"]
    for extra in ([], ["--polish", "false"], ["--polish", "true"]):
        main(command + extra)
    assert asked == [None, False, True]


def test_reconstruct_says_what_is_wrong_with_a_table_and_writes_nothing(checkpoint: Path, capsys) -> None:
    Path("bad.csv").write_text("ID,TIME,AMT,DV\n1,0,100,.\n1,2,.,5\n1,1,.,4\n2,0,-5,.\n2,1,.,3\n")
    said = refusal(capsys, "reconstruct", "--checkpoint", str(checkpoint), "--table", "bad.csv", "--out", "out")
    assert "NPK-D16" in said
    assert "line 4" in said
    assert not Path("out").exists()


def test_reconstruct_names_a_file_that_is_missing(checkpoint: Path, capsys) -> None:
    said = refusal(capsys, "reconstruct", "--checkpoint", "none.ckpt", "--table", "t.csv", "--out", "out")
    assert "none.ckpt" in said
    said = refusal(capsys, "reconstruct", "--checkpoint", str(checkpoint), "--table", "t.csv", "--out", "out")
    assert "t.csv" in said
    assert not Path("out").exists()


def test_an_error_goes_to_the_error_stream_with_exit_code_1(tmp_path: Path) -> None:
    command = ["reconstruct", "--checkpoint", "none.ckpt", "--table", "t.csv", "--out", "out"]
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
        ("train_pk.py", ["--field", "mechanistic"]),
        ("train_lotka_volterra.py", []),
    ],
)
def test_a_script_runs_for_an_epoch(script: str, options: list[str], tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPTS / script), "--epochs", "1", *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "CL" in done.stdout or "alpha" in done.stdout or "z" in done.stdout
    assert list(tmp_path.glob("lightning_logs/version_0/checkpoints/last.ckpt"))
