"""Help: short for a command, whole for a part, and nothing without a word about it."""

from __future__ import annotations

import inspect

import pytest

from neuralpk.cli import PRESETS, main
from neuralpk.cli.entry import COMMANDS
from neuralpk.cli.signatures import concrete, options_of
from neuralpk.datamodules import CohortDataModule
from neuralpk.part import Part
from neuralpk.task import LatentTask

SHIPPED = sorted(
    {cls for base in (Part, CohortDataModule) for cls in concrete(base) if cls.__module__.startswith("neuralpk.")}
    | {LatentTask},
    key=lambda cls: cls.__qualname__,
)


@pytest.fixture
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_the_help_of_a_training_fits_on_two_screens(command: str, capsys, wide) -> None:
    main([command, "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 100
    assert max(map(len, lines)) <= 100
    text = "\n".join(lines)
    for word in ("--preset", "--config", "--import", "--model", "--data", "--trainer.max_epochs", "--help model"):
        assert word in text
    assert all(preset in text for preset in PRESETS)


@pytest.mark.parametrize("command", ["simulate", "reconstruct", "estimate", "population", "bootstrap"])
def test_the_help_of_a_command_on_tables(command: str, capsys, wide) -> None:
    main([command, "-h"])
    said = capsys.readouterr().out
    assert f"usage: neuralpk {command}" in said
    assert "--out" in said


def test_the_usage_names_every_command_and_preset(capsys) -> None:
    main([])
    said = capsys.readouterr().out
    for name in (*COMMANDS, *PRESETS):
        assert name in said
    main(["--version"])
    assert capsys.readouterr().out.startswith("neuralpk ")


@pytest.mark.parametrize("part", ["model", "data", "trainer", "optimizer", "trainer.callbacks", "EarlyStopping"])
def test_the_help_of_a_part(part: str, capsys, wide) -> None:
    main(["fit", "--help", part])
    fit = capsys.readouterr().out
    assert len(fit.splitlines()) > 3
    main(["--help", part])
    assert capsys.readouterr().out == fit


def test_an_option_is_shown_with_its_default_and_description(capsys, wide) -> None:
    main(["fit", "--help", "TableDataModule"])
    said = capsys.readouterr().out
    assert "--data.folds  (a whole number; default 0)" in said
    assert "leave-subjects-out" in said
    assert "--data.batch_size" in said  # of its base class


@pytest.mark.parametrize("cls", SHIPPED, ids=lambda cls: cls.__name__)
def test_every_option_of_every_class_is_described(cls: type) -> None:
    assert inspect.getdoc(cls)
    undescribed = [name for name, option in options_of(cls).items() if not option.description]
    assert not undescribed, f"{cls.__name__} says nothing of {undescribed}"
