"""The benchmark of models written as equations: its workloads are the same for every engine."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.integrate import solve_ivp

SCRIPT = Path(__file__).parent.parent / "scripts" / "benchmark_equations.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("benchmark_equations", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["benchmark_equations"] = module
    spec.loader.exec_module(module)
    return module


def test_the_network_is_the_same_field_in_both_forms(script) -> None:
    both = (script.with_network(field, 3, np.float64, script.RungeKutta(1e-9, 1e-11)) for field in
            (script.Network(), script.FusedNetwork()))  # fmt: skip
    (states, gradient), (fused_states, fused_gradient) = (run() for run in both)
    np.testing.assert_allclose(fused_states, states, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(fused_gradient, gradient, rtol=1e-6, atol=1e-9)
    assert script.FusedNetwork().perceptron(script.torch.ones(1, 1, 1)) is not None


@pytest.mark.parametrize("name, method", [("saturable", "DOP853"), ("turnover", "DOP853"), ("stiff", "LSODA")])
def test_the_function_of_a_workload_is_its_text(script, name: str, method: str) -> None:
    work = script.WORKLOADS[name]
    states, gradient = script.with_neuralpk(work, 2, np.float64, script.RungeKutta(1e-10, 1e-12, 1_000_000))()
    theta, times = script.cohort(work, 2, np.float64)
    for own, at, found in zip(theta, times, states, strict=True):
        y = np.array(work.start(own), float)
        for begin, end in zip(work.dosed, (*work.dosed[1:], work.end), strict=True):
            y[work.state] += work.amount
            here = (at > begin) & (at <= end)
            solution = solve_ivp(
                lambda t, y, own=own: work.field(np, y, own),
                (begin, end),
                y,
                method,
                [*at[here], end],
                rtol=1e-10,
                atol=1e-12,
            )
            np.testing.assert_allclose(found[here], solution.y[:, :-1].T, rtol=1e-6, atol=1e-7)
            y = solution.y[:, -1]
    assert np.isfinite(gradient).all()


def test_a_row_has_time_and_errors(script) -> None:
    row = script.compare("saturable", 3, np.float64, repeats=1, rounds=1)[0]
    assert row["engine"] == "neuralpk" and row["milliseconds"] > 0 and row["error"] < 1e-3


def test_the_stiff_workload_is_stiff(script) -> None:
    parameters = script.Equations(script.WORKLOADS["stiff"].text).guess(script.Scaling())
    assert parameters["KON"] == 200.0
