"""Sweeps: trials that Optuna chooses, shared by processes, ended early, each a run like any other."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from neuralpk import read_model
from neuralpk.cli import main, sweep_command
from neuralpk.cli.faults import UsageError
from neuralpk.cli.sweep_command import _Choice
from neuralpk.solve import SolveError

optuna = pytest.importorskip("optuna")

QUICK = [
    *("--data", "SimulatedPKDataModule", "--data.subjects", "6", "--data.compartments", "1", "--data.samples", "3"),
    *("--data.typical", "{CL: 4.0, V1: 40.0}", "--data.validation", "0.4"),
    *("--model.dynamics", "CompartmentModel", "--model.dynamics.compartments", "1", "--model.objective", "ELBO"),
    *("--model.encoder", "SetEncoder", "--trainer.max_epochs", "2", "--trainer.enable_progress_bar", "false"),
    *("--trainer.check_val_every_n_epoch", "1"),
    *("--trainer.enable_model_summary", "false", "--trainer.accelerator", "cpu"),
]
SEARCH = ["--search", "model.learning_rate=1e-3:1e-1:log", "--search", "model.encoder.hidden=4|8"]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


def sweep(*more: str) -> None:
    main(["sweep", *SEARCH, *QUICK, "--out", "out", *more])


def test_the_best_trial_is_a_checkpoint_like_any_other_and_the_study_goes_on(capsys):
    sweep("--trials", "2")
    table = pd.read_csv("out/trials.csv")
    assert table["state"].tolist() == ["COMPLETE", "COMPLETE"]
    rates = table["params_model.learning_rate"]
    assert rates.between(1e-3, 1e-1).all() and rates.nunique() == 2
    assert set(table["params_model.encoder.hidden"]) <= {4, 8}
    best = int(table["value"].idxmin())
    path = Path(f"out/trial_{best:04d}/checkpoints/best.ckpt")
    said = capsys.readouterr().out
    assert str(path) in said and f"val_loss {table['value'].min():.6g}" in said
    assert read_model(path).task().hparams["learning_rate"] == pytest.approx(rates[best])

    sweep("--trials", "3")
    again = pd.read_csv("out/trials.csv")
    pd.testing.assert_frame_equal(again[:2], table)
    assert len(again) == 3
    with pytest.raises(SystemExit) as stopped:
        sweep("--trials", "3", "--data.samples", "2")
    assert stopped.value.code == 2
    assert "was begun with other options, and its trials could not be compared" in capsys.readouterr().err


def test_a_trial_that_is_worse_than_the_others_ends_early(monkeypatch, capsys):
    monkeypatch.setattr(optuna.pruners, "MedianPruner", lambda: optuna.pruners.ThresholdPruner(upper=-1e9))
    with pytest.raises(SystemExit) as stopped:
        sweep("--trials", "1", "--trainer.max_epochs", "50")
    assert stopped.value.code == 1
    said = capsys.readouterr()
    assert "(pruned)" in said.out and "no trial has ended" in said.err
    (trial,) = optuna.load_study(study_name="sweep", storage=_storage()).get_trials()
    assert trial.state.name == "PRUNED" and list(trial.intermediate_values) == [0]


@pytest.fixture
def failing(monkeypatch) -> list[int]:
    """Numbers of the trials that are to fail."""
    numbers: list[int] = []
    train = sweep_command._train

    def trained(fit, given, folder, watch):
        if watch.trial.number in numbers:
            raise SolveError(f"subject {watch.trial.number % 2} cannot be solved")
        train(fit, given, folder, watch)

    monkeypatch.setattr(sweep_command, "_train", trained)
    return numbers


def test_a_sweep_ends_where_every_trial_fails(failing, capsys):
    failing += range(50)
    for again in range(2):  # the same command does not begin other ones
        with pytest.raises(SystemExit) as stopped:
            sweep("--trials", "3")
        assert stopped.value.code == 1
        said = capsys.readouterr()
        assert said.out.count("failed: subject") == (0 if again else 3)
        reasons = "3 of 3 trials failed: 2 × subject 0 cannot be solved; 1 × subject 1 cannot be solved"
        assert f"neuralpk sweep: no trial has ended, {reasons}; see" in said.err
    table = pd.read_csv("out/trials.csv")
    assert table["state"].tolist() == ["FAIL"] * 3 and table["failed"].str.endswith("cannot be solved").all()


def test_failed_trials_are_among_those_asked_for_and_stopped_ones_are_not(failing, capsys):
    Path("out").mkdir()
    optuna.create_study(study_name="sweep", storage=_storage()).ask()  # by a process that died
    sweep("--trials", "1")
    said = capsys.readouterr().out
    assert said.count("trial ") == 2 and "trials failed" not in said
    failing += [2]
    sweep("--trials", "2")
    assert "1 of 3 trials failed: 1 × subject 0 cannot be solved; see" in capsys.readouterr().out


def _storage():
    return sweep_command._file_storage(Path("out/study.log"))


def test_a_metric_that_is_not_there_and_a_missing_library_are_named(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        sweep("--trials", "1", "--monitor", "val_los")
    assert "--monitor val_los is no metric of this training; there are" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(SystemExit):
        sweep()
    assert "a sweep needs Optuna: pip install 'neuralpk[sweep]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "kind"),
    [("a.b=1e-3:0.1:log", float), ("a=8:64", int), ("a=0.5:2", float), ("a=8|16", str), ("--a=relu|tanh", str)],
)
def test_ranges_and_values(word, kind):
    one, study = _Choice.of(word), optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    for _ in range(20):
        value = one.suggested(study.ask())
        if kind is str:
            assert value in word.partition("=")[2].split("|")
        else:
            low, high = (float(part) for part in word.partition("=")[2].split(":")[:2])
            assert low <= kind(value) <= high


@pytest.mark.parametrize("word", ["a", "a=1", "a=2:1", "a=0:1:log", "a=1:2:lin", "=1:2", "a=x:y", "a=1:inf", ""])
def test_what_is_no_range_is_refused(word):
    with pytest.raises(UsageError, match=r"is not OPTION=LOW:HIGH, OPTION=LOW:HIGH:log with 0 < LOW"):
        _Choice.of(word)


@pytest.mark.slow
@pytest.mark.parametrize("storage", [None, "sqlite:///study.db"])
def test_two_processes_share_the_trials_of_a_study(storage):
    more = ["--trials", "4", *(["--storage", storage] if storage else [])]
    words = [sys.executable, "-m", "neuralpk", "sweep", *SEARCH, *QUICK, "--out", "out", *more]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    if storage:  # the tables of a new database are made by one
        optuna.create_study(study_name="other", storage=storage)
    both = [subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    own = [[line.split()[1] for line in text.splitlines() if line.startswith("trial ")] for text in said]
    first, second = ({word.rstrip(":") for word in words} for words in own)
    assert first and second and not first & second
    table = pd.read_csv("out/trials.csv")
    assert 4 <= (table["state"] == "COMPLETE").sum() <= 5
    assert np.unique(table["params_model.learning_rate"]).size == len(table)
