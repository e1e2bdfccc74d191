"""A hybrid learns what its mechanism lacks, and the simulated recirculation is what it claims."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from solving import solve_batch

from neuralpk.cohort import Dose, Subject
from neuralpk.cohort_batch import collate

SCRIPTS = Path(__file__).parent.parent / "scripts"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    import benchmark_hybrids

    return benchmark_hybrids


def test_a_meal_brings_back_what_the_bile_took(benchmark):
    dynamics = benchmark.Recirculation().double()
    times = torch.linspace(0.0, 24.0, 97).tolist()
    batch = collate([Subject("1", times, [1.0] * 97, (Dose(0, 100),))], dtype=torch.float64)
    lines = {}
    for back in (0.0, 2.0):
        theta = torch.tensor([[1.5, 4.0, 40.0, 0.15, back]], dtype=torch.float64)
        states = solve_batch(dynamics, theta, batch).states[0]
        assert bool((states[1:].sum(1).diff() < 0).all())  # what is lost is lost by clearance alone
        lines[back] = states[:, 1]
    rises = {back: int((line[12:].diff() > 0).sum()) for back, line in lines.items()}
    assert rises[0.0] == 0 and rises[2.0] > 3  # a second peak


def test_the_table_has_the_models_that_were_run(benchmark):
    rows = [{"cohort": "falling", "seed": seed, "text": 0.06 + seed / 100, "known": 0.05} for seed in (0, 1)]
    table = benchmark.markdown(rows).splitlines()
    assert table[0] == "| patients | hybrid as a text | equations and population known |"
    assert table[2].endswith("| 0.065 (0.060–0.070) | 0.050 (0.050–0.050) |")


@pytest.mark.slow
def test_a_hybrid_draws_the_lines_of_a_clearance_that_falls_and_its_mechanism_does_not(benchmark):
    row, _ = benchmark.run("falling", [*benchmark.MODELS], seed=100, epochs=8, new=30)
    for hybrid in ("hybrid", "text"):
        assert row[hybrid] < 0.6 * row["mechanism"], row
        assert row[hybrid] < 2.5 * row["known"], row
