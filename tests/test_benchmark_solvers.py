"""The benchmark of the solvers runs, and what it has neuralpk solve is what its peers solve."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

SCRIPTS = Path(__file__).parent.parent / "scripts"


@pytest.fixture
def workloads(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    from solver_benchmark import workloads

    return workloads


def test_the_script_writes_a_row_for_every_engine(tmp_path):
    file = tmp_path / "rows.json"
    engines = ["neuralpk torchdiffeq backprop", "neuralpk runge_kutta"]
    settings = [
        "--workloads",
        "doses",
        "--doses",
        "1",
        "--observations",
        "5",
        "--sizes",
        "3",
        "--repeats",
        "1",
        "--devices",
        "cpu",
        "--forward",
        "--json",
        str(file),
    ]
    command = [sys.executable, str(SCRIPTS / "benchmark_solvers.py"), *settings, "--engines", *engines]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = json.loads(file.read_text())
    assert [row["engine"] for row in rows if row["device"] == "cpu"] == engines
    results = {"ms", "forward_ms", "max_error", "first_s", "peak_mb", "note"}
    for row in rows:
        assert set(row) == {"workload", "device", "n", "engine", *results}
        if row["ms"] is None:  # said, not skipped
            assert row["note"] and row["engine"] in done.stdout
        else:
            assert row["note"] is None and row["ms"] > 0 and row["forward_ms"] > 0 and row["first_s"] > 0
            assert math.isfinite(row["max_error"]) and row["max_error"] < 1e-3
    assert rows[0]["ms"] is not None


@pytest.mark.parametrize("name", ["bolus", "doses"])
def test_the_field_laid_open_is_the_field(workloads, name):
    from solver_benchmark.neuralpk_engines import BenchmarkDynamics

    workload = workloads.make(name, 5)
    dynamics, theta = BenchmarkDynamics(workload), torch.tensor(workload.latents)
    y = torch.rand(5, len(workload.states))
    net = dynamics.perceptron(theta)
    first, second, last = net.weights
    x = torch.tanh(torch.tanh(y @ first.T + net.shift) @ second.T + net.biases[0]) @ last.T + net.biases[1]
    torch.testing.assert_close(dynamics(torch.zeros(5), y, theta), torch.einsum("nij,nj->ni", net.matrix, y) + x)


def test_slots_hold_every_observation_once_in_its_segment(workloads):
    workload = workloads.make("doses", 4)
    times, where = workload.slots
    np.testing.assert_array_equal(times[where], workload.times)
    starts, ends = (np.array([getattr(s, side) for s in workload.segments]) for side in ("start", "end"))
    assert ((times >= starts[:, None]) & (times <= ends[:, None])).all()
    assert (np.diff(times, axis=-1) >= 0).all() and (times[..., -1] == ends).all()


def test_everything_given_enters_in_the_segments(workloads):
    workload = workloads.make("doses", 1)
    entered = sum(s.jump + (s.end - s.start) * s.input for s in workload.segments)
    np.testing.assert_allclose(entered, [28.0, 2.0, 0.0])


def test_linear_models_are_those_of_the_closed_forms(tmp_path):
    file = tmp_path / "rows.json"
    command = [sys.executable, SCRIPTS / "benchmark_linear.py", "--subjects", "20", "--repeats", "1", "--json", file]
    subprocess.run(command, check=True, capture_output=True)
    rows = json.loads(file.read_text())
    assert len(rows) == 2
    assert all(row["max_error"] < 1e-10 for row in rows)
