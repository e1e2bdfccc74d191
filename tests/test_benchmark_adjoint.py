"""The benchmark of gradients tells what it should, and its closed forms are those of the systems."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

SCRIPTS = Path(__file__).parent.parent / "scripts"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    import benchmark_adjoint

    return benchmark_adjoint


def test_it_tells_where_the_adjoint_loses_its_way(benchmark, monkeypatch):
    monkeypatch.setattr(benchmark, "HORIZON", 1.0)  # at which both rows of the figure have their points
    rows = [benchmark.error_row(name, way, 1e-6, 1.0) for name in benchmark.SYSTEMS for way in benchmark.WAYS]
    for row in rows:
        if "stiff" in row["system"] and row["gradient"].startswith("adjoint"):
            assert row["error"] is None or row["error"] > 1  # the depot grows by e^50 on the way back
        else:
            assert row["error"] < (1e-5 if row["gradient"] == "discrete" else 1e-3), row
    (memory,) = benchmark.memory_rows("backprop", [10.0], 2000)
    assert memory["peak_mb"] > 1
    assert len(benchmark.draw(rows).axes) == 2 * len(benchmark.SYSTEMS)


@pytest.mark.parametrize("horizon", [0.5, 3.0])
def test_the_closed_forms_solve_the_systems(benchmark, horizon):
    for system in benchmark.SYSTEMS.values():
        theta = torch.tensor([system.theta], dtype=torch.float64)
        start = torch.tensor([system.start], dtype=torch.float64)
        columns = [system.dynamics()(start[:, 0], unit[None], theta) for unit in torch.eye(2, dtype=torch.float64)]
        ahead = torch.matrix_exp(horizon * torch.cat(columns).T) @ start[0]  # all three are linear
        torch.testing.assert_close(system.end(theta, start, horizon), ahead.sum()[None], rtol=1e-10, atol=0.0)
