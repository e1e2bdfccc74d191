"""Signals: a training stops after its step, and every command exits with the code that says by what it was stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from neuralpk.cli import main, table_commands
from neuralpk.cli.stop_signals import exit_codes, leaving_on_sigterm


def trainer(**state: bool) -> SimpleNamespace:
    """What is looked at of a Trainer."""
    return SimpleNamespace(**({"training": True, "interrupted": False, "received_sigterm": False} | state))


@pytest.fixture(autouse=True)
def _handlers():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    for number, handler in before.items():
        signal.signal(number, handler)


def test_the_first_ctrl_c_waits_for_the_step_and_the_second_does_not(capsys) -> None:
    running, received = trainer(), []
    signal.signal(signal.SIGTERM, lambda *_: received.append(1))  # as Lightning does
    with pytest.raises(SystemExit) as stopped, exit_codes(running):
        signal.raise_signal(signal.SIGINT)
        assert received == [1]
        running.interrupted = running.received_sigterm = True
        raise SystemExit
    assert stopped.value.code == 130
    assert "stopping after this step" in capsys.readouterr().err
    with pytest.raises(KeyboardInterrupt), exit_codes(trainer()):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("training", [True, False])
def test_a_ctrl_c_for_which_nobody_waits_stops_at_once(training: bool) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL if training else lambda *_: None)
    with pytest.raises(KeyboardInterrupt), exit_codes(trainer(training=training)):
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize(
    ("state", "left", "code"),
    [
        ({"interrupted": True}, 1, 130),  # as Lightning leaves after a KeyboardInterrupt
        ({"interrupted": True, "received_sigterm": True}, None, 143),
        ({"received_sigterm": True}, "not at all", 143),
        ({}, 2, 2),
    ],
)
def test_exit_codes(state: dict, left: object, code: int) -> None:
    with pytest.raises(SystemExit) as stopped, exit_codes(trainer(**state)):
        if left != "not at all":
            raise SystemExit(left)
    assert stopped.value.code == code


def test_a_training_that_ends_exits_with_0() -> None:
    with exit_codes(trainer()):
        pass


def test_commands_on_tables_leave_with_143_and_130(monkeypatch, tmp_path, capsys) -> None:
    with pytest.raises(SystemExit) as stopped, leaving_on_sigterm():
        signal.raise_signal(signal.SIGTERM)
    assert stopped.value.code == 143
    monkeypatch.setattr(table_commands, "read_model", lambda *_: signal.raise_signal(signal.SIGINT))
    with pytest.raises(SystemExit) as stopped:
        main(["population", "--model", "last.ckpt", "--out", str(tmp_path / "pop.yaml")])
    assert stopped.value.code == 130
    assert capsys.readouterr().err.strip() == "neuralpk population: stopped"


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_training_that_is_stopped(number: signal.Signals, code: int, tmp_path: Path) -> None:
    line = "fit --data.subjects 8 --data.test_subjects 0 --model.dynamics CompartmentModel --model.objective ELBO"
    line += " --trainer.max_epochs 5000 --trainer.check_val_every_n_epoch 1 --trainer.logger false"
    process = subprocess.Popen(
        [sys.executable, "-m", "neuralpk", *line.split()],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    while process.poll() is None and not list(tmp_path.rglob("last.ckpt")):
        time.sleep(0.1)
    time.sleep(1)
    process.send_signal(number)
    _, said = process.communicate(timeout=120)
    assert process.returncode == code
    assert {path.name for path in tmp_path.rglob("*.ckpt")} == {"best.ckpt", "last.ckpt", "interrupted.ckpt"}
    assert b"to go on: --ckpt_path" in said and b"Traceback" not in said
