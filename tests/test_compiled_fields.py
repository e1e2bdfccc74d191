"""Vector fields that are translated into machine code: the same numbers and gradients as those of torch."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from numba import njit
from torch import Tensor, nn

from neuralpk import Dose, Subject
from neuralpk.cohort_batch import collate
from neuralpk.dynamics import (
    SIR,
    CompartmentModel,
    ConcentrationModel,
    Dynamics,
    HybridDynamics,
    LotkaVolterra,
)
from neuralpk.solve import RungeKutta, TorchDiffEq, adaptive_integrator, field_translation
from neuralpk.solve.compiled import elementary
from neuralpk.solve.compiled.equations import Graph, compile_field
from neuralpk.solve.compiled.matrix_product import add_product
from neuralpk.solve.compiled.steps.jit_options import summing
from neuralpk.solve.compiled.steps.lanes import LANES

TIGHT = RungeKutta(rtol=1e-10, atol=1e-12)
TIMES = np.array([0.3, 1.0, 2.5, 4.0, 9.0])


def people(n: int, infusion: bool = True) -> list[Subject]:
    doses = (Dose(0, 10.0), Dose(2.0, 5.0, duration=1.0 if infusion else None), Dose(4.0, 3.0))
    return [Subject(str(k), TIMES + 0.1 * k, np.full(len(TIMES), np.nan), doses) for k in range(n)]


def solved(dynamics: Dynamics, theta: Tensor, subjects: list[Subject], engine=TIGHT) -> tuple[Tensor, list[Tensor]]:
    """States, and the gradients of a sum of their squares with respect to theta and the weights."""
    theta = theta.detach().clone().requires_grad_()
    weights = list(dynamics.parameters())
    solution = engine.solve(dynamics, theta[:, None], collate(subjects, dtype=theta.dtype))
    solution.check()
    found = torch.autograd.grad(solution.states.square().sum(), [theta, *weights])
    return solution.states.detach(), list(found)


def field_of(name: str) -> Dynamics:
    torch.manual_seed(0)
    made: dict[str, Dynamics] = {
        "saturable": CompartmentModel(2, "first_order", "michaelis_menten"),
        "in time": CompartmentModel(1, "first_order", "time_varying", lag="depot", bioavailability="depot"),
        "transit": CompartmentModel(1, "transit", "michaelis_menten"),
        "concentrations": ConcentrationModel(),
        "predator": LotkaVolterra(logistic=True),
        "epidemic": SIR(),
        "hybrid": HybridDynamics(CompartmentModel(1, "none", "michaelis_menten")),
    }
    return made[name].double()


@pytest.mark.parametrize(
    "name", ["saturable", "in time", "transit", "concentrations", "predator", "epidemic", "hybrid"]
)
def test_states_and_gradients_are_those_of_the_reference(name: str) -> None:
    dynamics = field_of(name)
    theta = 0.5 + 0.1 * torch.arange(3 * len(dynamics.parameter_names), dtype=torch.float64).reshape(3, -1).remainder(
        0.7
    )
    cohort = people(3)
    states, gradients = solved(dynamics, theta, cohort)
    assert field_translation.translated(dynamics, states[:, 0], theta[:, None]) is not None
    expected, others = solved(dynamics, theta, cohort, TorchDiffEq("dopri8", rtol=1e-11, atol=1e-13))
    torch.testing.assert_close(states, expected, rtol=1e-7, atol=1e-9)
    for one, other in zip(gradients, others, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7 * float(other.abs().max()))


def test_the_compiled_steps_are_those_of_torch(monkeypatch) -> None:
    dynamics, loose = field_of("saturable"), RungeKutta(rtol=1e-3, atol=1e-3)
    theta = 0.5 + torch.rand(4, len(dynamics.parameter_names), dtype=torch.float64)
    states, gradients = solved(dynamics, theta, people(4), loose)
    monkeypatch.setattr(adaptive_integrator, "_compiled", lambda *_: None)
    expected, others = solved(dynamics, theta, people(4), loose)
    # far from the solution both, at this tolerance, and equal
    torch.testing.assert_close(states, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(gradients[0], others[0], rtol=1e-7, atol=1e-8 * float(others[0].abs().max()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_subject_does_not_depend_on_the_others(dtype: torch.dtype) -> None:
    dynamics = field_of("hybrid").to(dtype)
    theta = 0.5 + torch.rand(11, len(dynamics.parameter_names), dtype=dtype)
    theta[7] = torch.nan  # cannot be solved
    engine, cohort = RungeKutta(), people(11)
    together = engine.solve(dynamics, theta[:, None], collate(cohort, dtype=dtype))
    assert together.status.nonzero().flatten().tolist() == [7]
    for k in (0, 6, 8, 10):
        alone = engine.solve(dynamics, theta[k : k + 1, None], collate([cohort[k]], dtype=dtype))
        assert torch.equal(alone.states[0], together.states[k])
    together.states[together.ok].square().sum().backward()
    assert all(bool(torch.isfinite(weight.grad).all()) for weight in dynamics.parameters())


class _OneCompartment(Dynamics):
    """dA/dt = −rate·A, with a rate that a subclass computes."""

    states = ("central",)
    parameter_names = ("CL",)

    def forward(self, t: Tensor, y: Tensor, theta: Tensor) -> Tensor:
        return -self.rate(t, y, theta) * y

    def rate(self, t: Tensor, y: Tensor, theta: Tensor) -> Tensor:
        raise NotImplementedError


class Branch(_OneCompartment):
    def rate(self, t, y, theta):
        return theta if bool(y.sum() > 1e9) else 2 * theta


class Captured(_OneCompartment):
    def __init__(self) -> None:
        super().__init__()
        self.factor = torch.tensor([2.0], dtype=torch.float64)

    def rate(self, t, y, theta):
        return theta * self.factor


class Detached(_OneCompartment):
    def rate(self, t, y, theta):
        return theta + 0.1 * theta.detach()


class Sorted(_OneCompartment):
    def rate(self, t, y, theta):
        return torch.sort(theta, dim=-1).values


@pytest.mark.parametrize(
    "field, reason", [(Branch, "data-dependent"), (Captured, "buffer"), (Detached, "detach"), (Sorted, "sort")]
)
def test_a_field_that_cannot_be_translated_is_solved_by_torch_and_said_to_be(field, reason: str) -> None:
    theta = torch.ones(2, 1, dtype=torch.float64)
    dynamics = field()
    with pytest.warns(UserWarning, match=reason):
        states, _ = solved(dynamics, theta, people(2))
    expected, _ = solved(dynamics, theta, people(2), TorchDiffEq("dopri8", rtol=1e-10, atol=1e-12))
    torch.testing.assert_close(states, expected, rtol=1e-6, atol=1e-8)
    solved(dynamics, theta, people(2))  # one warning is enough: a second would be an error here


class WithoutParameters(_OneCompartment):
    parameter_names = ()

    def rate(self, t, y, theta):
        return 0.5


def test_a_field_without_parameters() -> None:
    states, _ = solved(
        WithoutParameters(),
        torch.zeros(2, 0, dtype=torch.float64),
        [Subject(str(k), TIMES, np.full(5, np.nan), (Dose(0, 2.0),)) for k in range(2)],
    )
    np.testing.assert_allclose(states[:, :, 0], np.tile(2.0 * np.exp(-0.5 * TIMES), (2, 1)), rtol=1e-8)


class Operations(_OneCompartment):
    """What users write: slices, writing in place, networks, conditions, a buffer and a plain attribute."""

    parameter_names = ("CL", "K")
    autonomous = False

    def __init__(self, power: float = 1.5) -> None:
        super().__init__()
        self.power = power
        self.network = nn.Sequential(
            nn.Linear(3, 5), nn.SiLU(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1), nn.Softplus()
        )
        self.register_buffer("scale", torch.tensor([[1.0, 2.0, 3.0]]))

    def rate(self, t, y, theta):
        features = torch.zeros(len(y), 3, dtype=y.dtype)
        features[:, 0] = y[:, 0]
        features[:, 1:] = theta.clamp(min=0.1)
        learned = self.network(features / self.scale)
        bent = torch.where(y > 1.0, y.clamp(min=1e-9) ** self.power, torch.sqrt(y.abs() + 1.0))
        wave = torch.sin(0.3 * t)[:, None] + torch.cat([theta, y], dim=-1).mean(-1, keepdim=True)
        return 0.1 * (
            learned + torch.sigmoid(bent) + wave.exp().log1p() + torch.einsum("np,nq->n", theta, theta)[:, None]
        )


def test_operations_of_torch_that_users_write() -> None:
    torch.manual_seed(1)
    dynamics = Operations().double()
    theta = 0.5 + torch.rand(3, 2, dtype=torch.float64)
    states, gradients = solved(dynamics, theta, people(3))
    expected, others = solved(dynamics, theta, people(3), TorchDiffEq("dopri8", rtol=1e-11, atol=1e-13))
    torch.testing.assert_close(states, expected, rtol=1e-7, atol=1e-9)
    for one, other in zip(gradients, others, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6 * float(other.abs().max()))


@pytest.mark.parametrize("change", ["buffer", "attribute", "weight"])
def test_what_changes_in_a_field_changes_its_solution(change: str) -> None:
    torch.manual_seed(1)
    dynamics = Operations().double()
    theta = torch.ones(1, 2, dtype=torch.float64)
    before, _ = solved(dynamics, theta, people(1))
    with torch.no_grad():
        if change == "buffer":
            dynamics.scale.mul_(3.0)
        elif change == "attribute":
            dynamics.power = 1.1
        else:
            dynamics.network[0].weight.mul_(2.0)
    after, _ = solved(dynamics, theta, people(1))
    expected, _ = solved(dynamics, theta, people(1), TorchDiffEq("dopri8", rtol=1e-11, atol=1e-13))
    assert float((after - before).abs().max()) > 1e-4
    torch.testing.assert_close(after, expected, rtol=1e-7, atol=1e-9)


def test_copies_share_a_translation_and_other_processes_do_not(monkeypatch) -> None:
    dynamics, theta = field_of("saturable"), torch.ones(1, 6, dtype=torch.float64)
    expected, _ = solved(dynamics, theta, people(1))
    sent = pickle.loads(pickle.dumps(dynamics))
    calls: list[Dynamics] = []
    translate = field_translation._translate
    monkeypatch.setattr(field_translation, "_translate", lambda *given: calls.append(given[0]) or translate(*given))
    assert torch.equal(solved(copy.deepcopy(dynamics), theta, people(1))[0], expected)
    assert not calls
    assert torch.equal(solved(sent, theta, people(1))[0], expected)
    assert calls == [sent]


ELEMENTARY = {
    "exp": (np.exp, np.concatenate([np.linspace(-700, 709, 4000), np.linspace(-2, 2, 4000)])),
    "expm1": (np.expm1, np.concatenate([np.linspace(-60, 709, 4000), np.geomspace(1e-15, 1, 4000)])),
    "log": (np.log, np.concatenate([np.geomspace(1e-320, 1e308, 4000), np.linspace(0.5, 2, 4000)])),
    "log1p": (np.log1p, np.concatenate([np.geomspace(1e-15, 1e300, 4000), np.linspace(-0.99, 1, 4000)])),
    "tanh": (np.tanh, np.concatenate([np.linspace(-25, 25, 4000), np.geomspace(1e-12, 1, 4000)])),
    "sqrt": (np.sqrt, np.geomspace(1e-300, 1e300, 800)),
    "sin": (np.sin, np.linspace(-10, 10, 800)),
    "cos": (np.cos, np.linspace(-10, 10, 800)),
}


@pytest.mark.parametrize("name", ELEMENTARY)
def test_elementary_functions_are_right_to_a_few_units_in_the_last_place(name: str) -> None:
    reference, x = ELEMENTARY[name]
    graph = Graph()
    code = compile_field(graph, [graph(name, graph.input("state", k)) for k in range(8)], 0, 0)
    none = np.zeros(0)
    found = np.concatenate([code.evaluate(part, none, none, part)[0] for part in x.reshape(-1, 8)])
    exact = reference(x)
    assert (np.abs(found - exact) <= 4 * np.spacing(np.abs(exact))).all()


@pytest.mark.parametrize("name", ["exp", "log", "log1p", "tanh"])
def test_elementary_functions_keep_their_digits_where_sums_may_be_reordered(name: str) -> None:
    in_place = elementary._in_place(getattr(elementary, name))

    @summing
    def every(x):
        for c in range(0, len(x), LANES):
            in_place(x, c)

    @njit
    def call(x):
        every(x)

    reference, x = ELEMENTARY[name]
    found, exact = x.copy(), reference(x)
    call(found)
    assert (np.abs(found - exact) <= 4 * np.spacing(np.abs(exact))).all()


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("columns", [16, 32, 48])
def test_products_of_matrices_are_those_of_numpy(kind: type, columns: int) -> None:
    @njit
    def product(out, first, first_row, x, x_row, x_inner, w, rows):
        inner, width = w.shape
        add_product(out, 0, width, first, 0, first_row, x, 0, x_row, x_inner, w, 0, width, rows, inner, width)

    rng = np.random.default_rng(0)
    for rows in (4, 8, 12, 20, 24, 28, 56):
        for inner in (1, 2, 7, 64):
            x, w = rng.normal(size=(rows, inner)).astype(kind), rng.normal(size=(inner, columns)).astype(kind)
            first = rng.normal(size=(rows, columns)).astype(kind)
            near = {"rtol": 0.0, "atol": 20 * inner * float(np.finfo(kind).eps)}
            out = np.full((rows, columns), np.nan, kind)
            product(out, first, columns, x, inner, 1, w, rows)
            np.testing.assert_allclose(out, first + x @ w, **near)
            product(out, first[0], 0, np.ascontiguousarray(x.T), 1, rows, w, rows)  # one row for all; x transposed
            np.testing.assert_allclose(out, first[0] + x @ w, **near)
            out = first.copy()
            product(out, out, columns, x, inner, 1, w, rows)
            np.testing.assert_allclose(out, first + x @ w, **near)


def test_elementary_functions_at_their_ends() -> None:
    graph = Graph()
    x = graph.input("state", 0)
    names = ("exp", "log", "log1p", "tanh")
    code = compile_field(graph, [graph(name, x) for name in names], 0, 0)

    def at(value: float) -> list[float]:
        return code.evaluate(np.full(4, value), np.zeros(0), np.zeros(0), np.zeros(4))[0].tolist()

    assert at(math.inf) == [math.inf, math.inf, math.inf, 1.0]
    assert at(-math.inf)[0] == 0.0 and math.isnan(at(-1.5)[1]) and math.isnan(at(-1.5)[2])
    assert at(0.0) == [1.0, -math.inf, 0.0, 0.0]
    assert at(-1.0)[2] == -math.inf
    assert all(map(math.isnan, at(math.nan)))


def test_derivatives_of_a_power_at_zero_are_numbers() -> None:
    graph = Graph()
    x, n = graph.input("state", 0), graph.input("own", 0)
    code = compile_field(graph, [graph("pow", x, n)], 1, 0)
    slope, to_x, to_n, _ = code.evaluate(np.zeros(1), np.array([1.7]), np.zeros(0), np.ones(1))
    assert (slope[0], to_x[0], to_n[0]) == (0.0, 0.0, 0.0)
