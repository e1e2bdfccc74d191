"""The benchmark of gradients runs, and its closed forms are those of the systems."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPTS = Path(__file__).parent.parent / "scripts"


def test_the_script_tells_where_the_adjoint_loses_its_way(tmp_path):
    rows, figure = tmp_path / "rows.json", tmp_path / "adjoint.png"
    settings = ["--tolerances", "1e-6", "--horizons", "1", "10", "--subjects", "20"]
    command = [sys.executable, str(SCRIPTS / "benchmark_adjoint.py"), *settings]
    done = subprocess.run(
        [*command, "--json", str(rows), "--figure", str(figure)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(rows.read_text())
    assert figure.stat().st_size > 10_000
    assert len(found["errors"]) == 3 * 4 * 2 and len(found["memory"]) == 4 * 2
    assert all(row["peak_mb"] >= 0 for row in found["memory"])
    for row in found["errors"]:
        stiff, adjoint = "stiff" in row["system"], row["gradient"].startswith("adjoint")
        if stiff and adjoint:
            assert row["error"] is None or row["error"] > 1  # depot and KA grow e^50 an hour on the way back
        else:
            assert row["error"] < 1e-2, row
        if row["gradient"] == "discrete":
            assert row["error"] < 1e-4, row


@pytest.mark.parametrize("horizon", [0.5, 3.0])
def test_the_closed_forms_solve_the_systems(horizon, monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    import benchmark_adjoint as benchmark

    for system in benchmark.SYSTEMS.values():
        theta = torch.tensor([system.theta], dtype=torch.float64)
        start = torch.tensor([system.start], dtype=torch.float64)
        columns = [system.dynamics()(start[:, 0], unit[None], theta) for unit in torch.eye(2, dtype=torch.float64)]
        ahead = torch.matrix_exp(horizon * torch.cat(columns).T) @ start[0]  # all three are linear
        torch.testing.assert_close(system.end(theta, start, horizon), ahead.sum()[None], rtol=1e-10, atol=0.0)
