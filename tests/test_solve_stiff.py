"""Stiff subjects: the compiled implicit steps against those of torch, against SciPy, and their gradients against
differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy_reference import scipy_states
from torch import Tensor

from neuralpk import Dose
from neuralpk.dynamics import CompartmentModel, Dynamics, Equations, HybridDynamics
from neuralpk.solve import RungeKutta, Status, adaptive_integrator, field_translation, solve
from neuralpk.solve.compiled.equations import Graph, compile_field
from neuralpk.solve.compiled.equations.elimination import (
    elimination_order,
    entries,
    factorise,
    solves,
    substitute,
    substitute_transposed,
)
from neuralpk.solve.tsit5_rodas5p import Rodas5P

FINE = RungeKutta(rtol=1e-9, atol=1e-11, max_evaluations=10**6)
FINER = RungeKutta(rtol=1e-10, atol=1e-12, max_evaluations=10**6)
TIMES = np.array([0.7, 1.9, 3.6, 4.9, 6.7, 9.1, 14.0])
DOSES = [Dose(0.0, 60.0), Dose(4.0, 40.0, duration=2.5), Dose(7.0, 30.0, interval=2.0, additional=1)]

BINDING = (
    Equations(model="tmdd").text.replace("KON = 2 ", "TLAG = 0.3 [day], F1 = 0.9, KON = 200 ")
    + "\nlag(central) = TLAG\nF(central) = F1"
)
ROBERTSON = """parameters: K1 = 0.04, K2 = 3e5, K3 = 1e3, TLAG = 0.4
a' = -K1*a + K3*b*c
b' = K1*a - K3*b*c - K2*b^2
c' = K2*b^2
lag(a) = TLAG
outputs: a"""
IN_TIME = """parameters: KA = 2000, CL = 5, V = 10, KM = 3, TLAG = 0.25
depot' = -KA*depot
central' = KA*depot - CL*(1 + 0.5*sin(0.3*t))*central/(KM*V + central)
lag(depot) = TLAG
outputs: central"""


def binding(t, y, p):
    c, distributed = y[0] / p["V1"], p["Q"] * (y[0] / p["V1"] - y[1] / p["V2"])
    bound = p["KON"] * c * y[2] - p["KOFF"] * y[3]
    return [
        -p["CL"] * c - distributed - p["V1"] * bound,
        distributed,
        p["KSYN"] - p["KDEG"] * y[2] - bound,
        bound - p["KINT"] * y[3],
    ]


def robertson(t, y, p):
    there, back, on = p["K1"] * y[0], p["K3"] * y[1] * y[2], p["K2"] * y[1] ** 2
    return [back - there, there - back - on, on]


def in_time(t, y, p):
    cleared = p["CL"] * (1 + 0.5 * np.sin(0.3 * t)) * y[1] / (p["KM"] * p["V"] + y[1])
    return [-p["KA"] * y[0], p["KA"] * y[0] - cleared]


SYSTEMS = {
    "binding": (BINDING, binding, lambda p: [0.0, 0.0, p["KSYN"] / p["KDEG"], 0.0]),
    "robertson": (ROBERTSON, robertson, lambda p: [0.0, 0.0, 0.0]),
    "in time": (IN_TIME, in_time, lambda p: [0.0, 0.0]),
}


def of_text(name: str) -> tuple[Dynamics, Tensor]:
    """A system with its parameters ``[1, parameter]``."""
    dynamics = Equations(SYSTEMS[name][0]).double()
    return dynamics, torch.tensor([[*dynamics.guess(None).values()]], dtype=torch.float64)


def solved(dynamics: Dynamics, theta: Tensor, engine: RungeKutta, **more):
    n = len(theta)
    times = torch.as_tensor(TIMES, dtype=theta.dtype).expand(n, -1)
    return solve(dynamics, theta, times, [DOSES] * n, start=torch.zeros(n, dtype=theta.dtype), engine=engine, **more)


@pytest.fixture
def implicit_only(monkeypatch):
    """Every subject is solved by the implicit method, from the start."""
    monkeypatch.setattr(adaptive_integrator, "Tsit5", Rodas5P)


@pytest.mark.parametrize("name", SYSTEMS)
def test_states_are_those_of_scipy(implicit_only, name: str) -> None:
    dynamics, theta = of_text(name)
    _, slope, start = SYSTEMS[name]
    p = dict(zip(dynamics.parameter_names, theta[0].tolist(), strict=True))
    found = solved(dynamics, theta, FINER)
    found.check()
    lag, fraction = {1: p["TLAG"]}, {1: p.get("F1", 1.0)}
    expected = scipy_states(
        lambda t, y: slope(t, y, p), start(p), DOSES, TIMES, lag, fraction, method="LSODA", rtol=1e-11, atol=1e-13
    )
    error = np.abs(found.states[0].numpy() - expected) / np.abs(expected).max(0)
    assert error.max() < 1e-7


@pytest.mark.parametrize("name", SYSTEMS)
def test_gradients_are_those_of_differences(implicit_only, name: str) -> None:
    dynamics, theta = of_text(name)
    theta.requires_grad_()
    states = solved(dynamics, theta, FINER).states
    weight = 1.0 / states.detach().abs().amax((0, 1))
    (found,) = torch.autograd.grad((weight * states).sum(), theta)
    size = theta.shape[1]
    step = 1e-3 * torch.diag(theta.detach()[0])
    moved = torch.cat([theta.detach() + k * step for k in (1, -1, 2, -2)])
    value = (weight * solved(dynamics, moved, FINER).states).sum((1, 2)).reshape(4, size)
    expected = (8 * (value[0] - value[1]) - (value[2] - value[3])) / 12e-3  # of order four: θ·∂/∂θ
    error = ((found * theta).detach()[0] - expected).abs() / (expected.abs() + 1e-2 * expected.abs().max())
    assert float(error.max()) < 1e-6


def hybrid() -> tuple[Dynamics, Tensor]:
    torch.manual_seed(0)
    dynamics = HybridDynamics(CompartmentModel(1, "first_order", "michaelis_menten")).double()
    return dynamics, torch.linspace(0.5, 1.0, len(dynamics.parameter_names), dtype=torch.float64)[None]


@pytest.mark.parametrize("name", ["binding", "robertson", "hybrid"])
def test_the_compiled_steps_are_those_of_torch(implicit_only, name: str) -> None:
    dynamics, theta = hybrid() if name == "hybrid" else of_text(name)
    theta = theta * torch.linspace(0.9, 1.1, 3, dtype=torch.float64)[:, None]
    loose, found = RungeKutta(rtol=1e-3, atol=1e-3), []
    for compiled in (True, False):
        dynamics.compiled = compiled
        own = theta.clone().requires_grad_()
        y0 = (0.1 + dynamics.initial_state(own)).detach().requires_grad_()
        states = solved(dynamics, own, loose, y0=y0).states
        weight = torch.linspace(0.5, 1.5, states.shape[1], dtype=torch.float64)[:, None]
        gradients = torch.autograd.grad((weight * states.square()).sum(), [own, y0, *dynamics.parameters()])
        found.append((states.detach(), *gradients))
    # far from the solution both, at this tolerance, and equal
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9 * float(other.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_stiff_subject_does_not_depend_on_the_others(monkeypatch, dtype: torch.dtype) -> None:
    # the general path is not taken
    monkeypatch.setattr(adaptive_integrator, "step_through", None)
    dynamics, theta = of_text("binding")
    dynamics, theta = dynamics.to(dtype), theta.to(dtype).repeat(11, 1)
    theta[:, list(dynamics.parameter_names).index("KON")] = torch.tensor([0.1, 200.0] * 5 + [500.0], dtype=dtype)
    theta[6] = torch.nan  # cannot be solved
    own = theta.clone().requires_grad_()
    together = solved(dynamics, own, RungeKutta())
    assert together.status.nonzero().flatten().tolist() == [6]
    together.states[together.ok].square().sum().backward()
    assert bool(torch.isfinite(own.grad[together.ok]).all())
    for k in (0, 1, 9, 10):
        alone = solved(dynamics, theta[k : k + 1], RungeKutta())
        assert torch.equal(alone.states[0], together.states[k])
    exact = solved(dynamics.double(), theta.double(), FINE).states[together.ok]
    torch.testing.assert_close(together.states[together.ok].detach().double(), exact, rtol=1e-3, atol=1e-5)


def test_a_stiff_subject_may_run_out_of_evaluations() -> None:
    dynamics, theta = of_text("binding")
    solution = solved(dynamics, theta, RungeKutta(rtol=1e-9, atol=1e-11, max_evaluations=100))
    assert solution.status.tolist() == [Status.MAX_EVALUATIONS]
    assert bool(torch.isnan(solution.states[0, -1]).all())


def test_a_field_whose_jacobian_is_too_large_is_solved_by_torch_and_said_to_be(monkeypatch) -> None:
    dynamics, theta = of_text("in time")
    expected = solved(dynamics, theta, FINE).states
    fresh, _ = of_text("in time")
    translation = field_translation.translated(fresh, theta[:, :2], theta[:, None])
    monkeypatch.setattr(field_translation, "MOST_VALUES", 3)
    with pytest.warns(UserWarning, match="Jacobian"):
        assert translation.implicit is None
    torch.testing.assert_close(solved(fresh, theta, FINE).states, expected, rtol=1e-6, atol=1e-7)


def equations(matrix: np.ndarray) -> np.ndarray:
    """Solution, solution of the transposed equations, and whether the first is right, for the right side 1, 2, …"""
    graph, size = Graph(), len(matrix)
    rows = [
        [graph.input("own", r * size + c) if matrix[r, c] else graph.constant(0.0) for c in range(size)]
        for r in range(size)
    ]
    right, given = [graph.constant(1.0 + r) for r in range(size)], entries(graph, rows)
    order = elimination_order(given, size)
    factors = factorise(graph, given, order)
    x = substitute(graph, factors, order, right)
    outputs = [*x, *substitute_transposed(graph, factors, order, right), solves(graph, given, x, right)]
    code = compile_field(graph, outputs, size * size, 0)
    return code.evaluate(np.zeros(len(outputs)), matrix.ravel(), np.zeros(0), np.zeros(len(outputs)))[0]


def test_linear_equations_with_zeros_are_solved() -> None:
    rng = np.random.default_rng(0)
    matrix = np.where(rng.uniform(size=(7, 7)) < 0.3, rng.normal(size=(7, 7)), 0.0) + np.diag(rng.uniform(2, 4, 7))
    found, right = equations(matrix), np.arange(1.0, 8.0)
    np.testing.assert_allclose(found[:7], np.linalg.solve(matrix, right), rtol=1e-12)
    np.testing.assert_allclose(found[7:14], np.linalg.solve(matrix.T, right), rtol=1e-12)
    assert found[14] == 1.0


@pytest.mark.parametrize("small, well", [(0.0, False), (1e-18, False), (1e-3, True)])
def test_equations_that_would_need_an_exchange_of_rows_are_noticed(small: float, well: bool) -> None:
    matrix = np.array([[small, 1.0], [1.0, 0.5]])
    found = equations(matrix)
    assert bool(found[4]) == well == np.allclose(found[:2], np.linalg.solve(matrix, [1.0, 2.0]))


def test_the_order_of_elimination_creates_no_entries_where_it_can() -> None:
    # one compartment in the middle, coupled with all others
    pattern = {(r, c): 0 for r in range(9) for c in range(9) if r == c or 0 in (r, c)}
    assert elimination_order(pattern, 9).index(0) >= 7
