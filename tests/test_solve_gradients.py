"""Gradients: adjoint = backprop = finite differences = closed form, in everything that is learned."""

import math

import numpy as np
import pytest
import torch
from closed_forms import KA, LOTKA_VOLTERRA, Disposition
from solving import engine_with, solve_batch

from neuralpk.cohort import Cohort, Dose, Subject
from neuralpk.cohort_batch import collate
from neuralpk.dynamics import (
    CompartmentModel,
    Dynamics,
    HybridDynamics,
    LotkaVolterra,
    NeuralCompartments,
    NeuralField,
    NeuralFlows,
)
from neuralpk.encoders import RecurrentEncoder, SetEncoder
from neuralpk.objectives import ELBO, Step
from neuralpk.parameters import PopulationParameters
from neuralpk.population_model import PopulationModel
from neuralpk.residual_error import CombinedError
from neuralpk.scaling import Scaling
from neuralpk.solve import Exact, RungeKutta, TorchDiffEq

TIGHT = {"method": "dopri8", "rtol": 1e-9, "atol": 1e-10}
WAYS = {
    "exact": Exact(),
    "discrete": RungeKutta(rtol=1e-9, atol=1e-10),
    "backprop": TorchDiffEq(gradient="backprop", **TIGHT),
    "adjoint": TorchDiffEq(gradient="adjoint", **TIGHT),
}


def subject(doses, times, name="1", **more):
    return Subject(name, np.asarray(times, float), np.full(len(times), np.nan), tuple(doses), **more)


def loss_of(model, people, options, weights=None):
    """theta, y0 -> a weighted sum of the squared states at the records."""
    batch = collate(people, dtype=torch.float64)

    def loss(theta, y0=None):
        y0 = model.initial_state(theta if theta.dim() == 2 else theta[:, 0]) if y0 is None else y0
        solution = solve_batch(model, theta, batch, engine=options, y0=y0)
        solution.check(batch.ids)
        return (solution.states.square() * batch.mask[..., None]).sum()

    return loss


def by_differences(function, x, width=1e-5):
    """Central differences with relative width; the error of the fourth order is about width² = 1e-10."""
    x, out = x.detach(), torch.zeros_like(x)
    for k in range(x.numel()):
        step = torch.zeros(x.numel(), dtype=x.dtype)
        step[k] = width * max(abs(float(x.flatten()[k])), 1.0)
        step = step.view_as(x)
        with torch.no_grad():
            out.view(-1)[k] = (function(x + step) - function(x - step)) / (2 * step.sum())
    return out


# relative to the largest component: the tolerance of 1e-9 of the solver, amplified by the differences' division
AGREE = {"rtol": 1e-5, "atol": 0.0}


@pytest.mark.parametrize("way", WAYS)
def test_the_gradient_of_an_oral_dose_is_that_of_its_closed_form(way):
    model = CompartmentModel(1, "first_order").double()
    theta = torch.tensor([[5.0, 20.0, KA]], dtype=torch.float64, requires_grad=True)
    batch = collate([subject([Dose(0, 100)], [3.0])], dtype=torch.float64)
    solution = solve_batch(model, theta, batch, engine=WAYS[way])
    model.observe(solution.states, solution.theta)[0, 0, 1].backward()

    def closed_form(cl, v, ka):
        return float(Disposition.of(1, {"CL": cl, "V1": v}).oral(3.0, 100, ka))

    at, expected = np.array([5.0, 20.0, KA]), []
    for k in range(3):
        step = 1e-5 * np.eye(3)[k]
        expected.append((closed_form(*(at + step)) - closed_form(*(at - step))) / 2e-5)
    np.testing.assert_allclose(theta.grad[0], expected, rtol=1e-6)  # the differences are good to 1e-9


@pytest.mark.parametrize("gradient", ["discrete", "backprop", "adjoint"])
def test_lotka_volterra_has_the_published_gradient(gradient):
    model = LotkaVolterra().double()
    theta = torch.tensor([[*LOTKA_VOLTERRA["p"], 1.0, 1.0]], dtype=torch.float64, requires_grad=True)
    batch = collate([subject([], [0.0, 10.0])], dtype=torch.float64)
    # the order (alpha, beta, gamma, delta) is that of p
    options = engine_with(gradient, rtol=1e-10, atol=1e-10)
    end = solve_batch(model, theta, batch, engine=options).states[0, 1]
    (0.5 * (1 - end).square().sum()).backward()
    found = theta.grad[0].numpy()
    np.testing.assert_allclose(found[:4], LOTKA_VOLTERRA["dp_cvodes"], atol=1e-6)  # their digits end at 2.4e-7
    np.testing.assert_allclose(found[:4], LOTKA_VOLTERRA["dp_dop853"], atol=1e-8)
    np.testing.assert_allclose(found[4:], LOTKA_VOLTERRA["du0_dop853"], atol=1e-8)


@pytest.mark.parametrize("gradient", ["discrete", "backprop", "adjoint"])
def test_the_default_tolerance_gives_a_gradient_good_to_a_thousandth(gradient):
    model = CompartmentModel(2, "first_order", "michaelis_menten").double()
    theta = torch.tensor([[12.0, 0.8, 20.0, 3.0, 40.0, KA]], dtype=torch.float64)
    people = [subject([Dose(0, 100), Dose(12, 60)], [1.0, 4.0, 12.0, 20.0])]
    grads = []
    for options in (engine_with(gradient), WAYS["backprop"]):
        own = theta.clone().requires_grad_()
        loss_of(model, people, options)(own).backward()
        grads.append(own.grad)
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-3, atol=0.0)


EVENTS = {
    # model, theta, doses: what moves the events of the clock themselves
    "lag": (
        CompartmentModel(1, "first_order", lag="depot"),
        [5.0, 20.0, KA, 0.7],
        [Dose(0, 100, interval=6, additional=1)],
    ),
    "lag of an infusion": (CompartmentModel(2, lag="central"), [5.0, 20.0, 3.0, 40.0, 0.7], [Dose(0, 100, duration=2)]),
    "F of an infusion of given rate": (
        CompartmentModel(1, bioavailability="central"),
        [5.0, 20.0, 0.6],
        [Dose(0, 100, rate=40)],
    ),
    "F of an infusion of given duration": (
        CompartmentModel(1, bioavailability="central"),
        [5.0, 20.0, 0.6],
        [Dose(0, 100, duration=2)],
    ),
    "steady state": (CompartmentModel(2), [5.0, 20.0, 3.0, 40.0], [Dose(0, 100, interval=8, steady_state=1)]),
    "steady state with lag": (
        CompartmentModel(1, "first_order", lag="depot"),
        [5.0, 20.0, KA, 0.7],
        [Dose(0, 100, interval=8, steady_state=1)],
    ),
    "steady state of infusions with F": (
        CompartmentModel(1, bioavailability="central"),
        [5.0, 20.0, 0.6],
        [Dose(0, 100, rate=40, interval=8, steady_state=1)],
    ),
    "constant infusion": (CompartmentModel(1), [5.0, 20.0], [Dose(0, rate=12, steady_state=1)]),
}


@pytest.mark.parametrize("case", EVENTS)
@pytest.mark.parametrize("way", WAYS)
def test_parameters_that_move_or_scale_a_dose_have_the_gradient_of_finite_differences(way, case):
    model, theta, doses = EVENTS[case]
    theta = torch.tensor([theta], dtype=torch.float64, requires_grad=True)
    people = [subject(doses, [0.5, 3.0, 7.5])]
    loss_of(model.double(), people, WAYS[way])(theta).backward()
    expected = by_differences(loss_of(model, people, WAYS["exact"]), theta)
    assert (expected != 0).all()
    torch.testing.assert_close(theta.grad, expected, **AGREE)


@pytest.mark.slow
def test_a_michaelis_menten_steady_state_has_the_gradient_of_finite_differences():
    model = CompartmentModel(1, elimination="michaelis_menten").double()
    people = [subject([Dose(0, 100, interval=8, steady_state=1)], [0.5, 4.0])]
    theta = torch.tensor([[30.0, 1.5, 20.0]], dtype=torch.float64)
    grads = []
    for way in ("backprop", "adjoint"):
        own = theta.clone().requires_grad_()
        loss_of(model, people, WAYS[way])(own).backward()
        grads.append(own.grad)
    # a wider step, because every difference carries the noise of the adaptive steps
    expected = by_differences(loss_of(model, people, WAYS["backprop"]), theta, width=1e-4)
    torch.testing.assert_close(grads[0], grads[1], **AGREE)
    torch.testing.assert_close(grads[0], expected, **AGREE)


@pytest.mark.parametrize("way", WAYS)
def test_the_initial_state_has_the_gradient_of_finite_differences(way):
    model = CompartmentModel(2).double()
    theta = torch.tensor([[5.0, 20.0, 3.0, 40.0]], dtype=torch.float64)
    y0 = torch.tensor([[30.0, 10.0]], dtype=torch.float64, requires_grad=True)
    people = [subject([Dose(1, 50), Dose(3, 10, reset=True)], [0.0, 0.5, 2.0, 4.0])]
    loss_of(model, people, WAYS[way])(theta, y0).backward()
    expected = by_differences(lambda y: loss_of(model, people, WAYS["exact"])(theta, y), y0)
    torch.testing.assert_close(y0.grad, expected, **AGREE)


@pytest.mark.parametrize("way", WAYS)
def test_each_period_has_its_own_parameters_and_their_gradient(way):
    model = CompartmentModel(1).double()
    # a covariate that steps at 4 h and at 9 h makes three periods
    person = subject([Dose(0, 100)], [2.0, 4.0, 6.0, 12.0], covariates={"WT": ((0.0, 60.0), (4.0, 70.0), (9.0, 80.0))})
    theta = torch.tensor([[[5.0, 20.0], [2.0, 20.0], [9.0, 20.0]]], dtype=torch.float64, requires_grad=True)
    batch = collate([person], dtype=torch.float64)
    solution = solve_batch(model, theta, batch, engine=WAYS[way])
    amounts = solution.states[0, :, 0]
    # in each period the logarithm falls by CL/V1 per hour
    logs = math.log(100) - np.array([2 * 5, 4 * 5, 4 * 5 + 2 * 2, 4 * 5 + 5 * 2 + 3 * 9]) / 20
    np.testing.assert_allclose(amounts.detach(), np.exp(logs), rtol=1e-7)
    amounts.log()[-1].backward()
    np.testing.assert_allclose(theta.grad[0, :, 0], -np.array([4, 5, 3]) / 20, rtol=1e-6)


class Closure(Dynamics):
    """dy/dt = −k·y with k kept outside theta and outside the parameters."""

    states = ("y",)
    parameter_names = ("unused",)

    def __init__(self, k):
        super().__init__()
        self.kept = [k]

    def forward(self, t, y, theta):
        return -self.kept[0] * y


def test_a_field_that_closes_over_a_tensor_is_refused_by_the_adjoint_alone():
    leaf = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    theta, y0 = torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    batch = collate([subject([], [0.0, 2.0])], dtype=torch.float64)
    adjoint = TorchDiffEq(gradient="adjoint")
    for kept in (leaf, leaf * 1.0):  # a tensor that was computed from another is lost just as silently
        with pytest.raises(ValueError, match=r"Closure uses a tensor .* TorchDiffEq\(gradient='backprop'\)"):
            solve_batch(Closure(kept), theta, batch, engine=adjoint, y0=y0)
    solve_batch(Closure(leaf.detach()), theta, batch, engine=adjoint, y0=y0)
    with torch.no_grad():
        solve_batch(Closure(leaf), theta, batch, engine=adjoint, y0=y0)
    options = TorchDiffEq(gradient="backprop", rtol=1e-9, atol=1e-10)
    end = solve_batch(Closure(leaf), theta, batch, engine=options, y0=y0).states[0, 1, 0]
    end.backward()
    assert math.isclose(float(leaf.grad), -2 * math.exp(-1.0), rel_tol=1e-7)


def weight_gradients(model, loss):
    model.zero_grad()
    loss().backward()
    return {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


def assert_complete_and_equal(found, expected):
    """Every weight has a gradient, not zero, that agrees to 1e-5 of its own norm."""
    for name, other in expected.items():
        assert found[name] is not None and other is not None, f"{name} has no gradient"
        assert float(other.norm()) > 0, f"the gradient of {name} is zero"
        assert float((found[name] - other).norm()) <= 1e-5 * float(other.norm()), name


SCALING = Scaling(24.0, 100.0, (3.0,), {"WT": (70.0, 0.2, True)})


@pytest.mark.parametrize("kind", ["compartments", "field"])
def test_every_weight_of_a_neural_field_has_the_gradient_of_backprop_and_finite_differences(kind):
    like = CompartmentModel(1, "first_order")
    if kind == "compartments":
        model = NeuralCompartments(like, 2, hidden=4, layers=1)
    else:
        model = NeuralField(like, 2, hidden=4, layers=1)
    model.build(SCALING)
    model = model.double()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    batch = collate([subject([Dose(0, 100)], [1.0, 6.0], "1"), subject([Dose(0, 50)], [3.0], "2")], dtype=torch.float64)
    own = list(model.guess(SCALING).values())
    theta = torch.tensor([[*own, 0.3, -1.0], [*(1.5 * v for v in own), 1.2, 0.4]], dtype=torch.float64)

    def loss(options):
        solution = solve_batch(model, theta, batch, engine=options)
        return model.observe(solution.states, solution.theta).square().sum()

    exact = weight_gradients(model, lambda: loss(WAYS["backprop"]))
    assert_complete_and_equal(weight_gradients(model, lambda: loss(WAYS["adjoint"])), exact)
    for name, weight in model.named_parameters():
        with torch.no_grad():
            at, w = float(weight.view(-1)[0]), weight.view(-1)
            w[0] = at + 1e-4
            up = float(loss(WAYS["backprop"]))
            w[0] = at - 1e-4
            down = float(loss(WAYS["backprop"]))
            w[0] = at
        # relative to the whole tensor's gradient: one entry may be next to nothing
        assert abs((up - down) / 2e-4 - float(exact[name].view(-1)[0])) < 1e-5 * float(exact[name].norm()), name


@pytest.mark.parametrize("kind", [NeuralCompartments, NeuralField])
def test_what_alone_is_learned_has_the_gradient_that_it_has_among_all(kind):
    model = kind(CompartmentModel(1, "first_order"), 2, hidden=4, layers=2)
    model.build(SCALING)
    model = model.double()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    people = [subject([Dose(0, 100)], [1.0, 6.0], "1"), subject([Dose(0, 50)], [3.0], "2")]
    batch = collate(people, dtype=torch.float64)
    own = list(model.guess(SCALING).values())
    theta = torch.tensor([[*own, 0.3, -1.0], [*(1.5 * v for v in own), 1.2, 0.4]], dtype=torch.float64)
    y0 = torch.tensor([[1.0, 2.0], [3.0, 0.5]], dtype=torch.float64)
    leaves = {"theta": theta, "y0": y0} | dict(model.named_parameters())

    def gradients(names):
        for name, leaf in leaves.items():
            leaf.requires_grad_(name in names).grad = None
        solve_batch(model, theta, batch, engine=RungeKutta(), y0=y0).states.square().sum().backward()
        return {name: leaf.grad for name, leaf in leaves.items()}

    among_all = gradients(leaves)
    for name in leaves:
        alone = gradients([name])
        assert torch.equal(alone.pop(name), among_all[name])
        assert all(other is None for other in alone.values())


LIKE = CompartmentModel(1, "first_order")
NEURAL = {"latent_size": 2, "hidden": 4, "layers": 1}
MODELS = {
    "mechanistic": (lambda: CompartmentModel(1, "first_order", "michaelis_menten"), {"VMAX": ["WT"]}),
    "neural": (lambda: NeuralCompartments(LIKE, **NEURAL), "all"),
    "free": (lambda: NeuralField(LIKE, **NEURAL), "all"),
    "hybrid": (lambda: HybridDynamics(CompartmentModel(1, "first_order"), NeuralFlows(**NEURAL)), None),
}


@pytest.mark.parametrize("encoder", [SetEncoder, RecurrentEncoder])
@pytest.mark.parametrize("kind", MODELS)
def test_every_weight_from_the_encoder_to_the_residual_error_gets_its_gradient(kind, encoder):
    people = [
        Subject("1", [0.5, 2.0, 8.0], [1.0, 2.0, 0.7], (Dose(0, 100),), covariates={"WT": 60.0}),
        Subject("2", [1.0, 12.0], [2.5, 0.4], (Dose(0, 100), Dose(6, 50, duration=2)), covariates={"WT": 90.0}),
    ]
    batch = collate(Cohort(tuple(people)), dtype=torch.float64)
    grads = []
    for gradient in ("adjoint", "backprop"):
        torch.manual_seed(3)
        dynamics, effects = MODELS[kind]
        parameters = PopulationParameters(effects=effects)
        model = PopulationModel(dynamics(), parameters, CombinedError(), TorchDiffEq(gradient=gradient, **TIGHT))
        model.build(SCALING)
        reader = encoder(8)
        reader.build(SCALING, model.latent_size)
        both = torch.nn.ModuleDict({"model": model, "encoder": reader}).double()
        for p in model.dynamics.parameters():  # some start at zero, where others have no effect yet
            torch.nn.init.normal_(p, std=0.3)
        grads.append(
            weight_gradients(both, lambda b=both: ELBO().loss(b["model"], b["encoder"], None, batch, STEP).total)
        )
    assert_complete_and_equal(*grads)


STEP = Step(seed=5, number=3)
