"""The compiled kernels of linear systems give what torch's matrix exponential gives, forward and back."""

import dataclasses

import numpy as np
import pytest
import torch
from solving import solve_batch

from neuralpk.cohort import Dose, Subject
from neuralpk.cohort_batch import collate
from neuralpk.dynamics import CompartmentModel, Dynamics
from neuralpk.solve import exact
from neuralpk.solve.compiled import linear, rate_matrix_exponential
from neuralpk.solve.event_nodes import build_mesh, dose_inputs

TYPICAL = {"CL": 5.0, "V1": 20.0, "Q": 3.0, "V2": 40.0, "Q3": 1.0, "V3": 60.0, "KA": 1.3, "KTR": 2.0}
TYPICAL |= {"LAG": 0.7, "F": 0.6}
MODELS = [(n, absorption) for n in (1, 2, 3) for absorption in ("none", "first_order", "transit")]


def subject(name, doses, times):
    return Subject(str(name), np.asarray(times, float), np.full(len(times), np.nan), tuple(doses))


PEOPLE = [
    subject("boluses", [Dose(0, 100, interval=8, additional=3), Dose(1, 20, compartment=1)], [0.0, 0.5, 4, 9, 20, 48]),
    subject("overlapping", [Dose(0, 80, duration=4), Dose(1, 60, rate=20), Dose(2, 9, duration=0.1)], [1, 2, 2.05, 30]),
    subject("reset", [Dose(0, 80, duration=10), Dose(5, 30, reset=True), Dose(7, 0, reset=True)], [4.0, 5.0, 6.0, 8.0]),
    subject("steady", [Dose(0, 60, interval=12, steady_state=1, duration=3)], [0.0, 1.0, 3.0, 11.0]),
    subject("added", [Dose(0, 60, interval=12), Dose(3, 40, interval=24, steady_state=2)], [3.0, 13.0]),
    subject("none", [], [0.0, 7.0]),
]


def theta_of(model, subjects=6, **fixed):
    typical = torch.tensor([(TYPICAL | fixed)[name] for name in model.parameter_names], dtype=torch.float64)
    spread = torch.randn(subjects, len(typical), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    spread[:, [name in fixed for name in model.parameter_names]] = 0.0
    return typical * (0.3 * spread).exp()


def outcome(engine, monkeypatch, model, theta, people=PEOPLE, times=None):
    """States and the gradients for y0 and theta of a weighted sum of them."""
    theta = theta.clone().requires_grad_()
    y0 = torch.rand(len(theta), len(model.states), dtype=theta.dtype, generator=torch.Generator().manual_seed(2))
    y0.requires_grad_()
    monkeypatch.setattr(exact, "integrate", engine)
    states = solve_batch(model, theta, collate(people, dtype=theta.dtype), times, y0=y0).states
    weights = torch.rand(states.shape, dtype=theta.dtype, generator=torch.Generator().manual_seed(3))
    (states * weights).sum().backward()
    return states.detach(), y0.grad, theta.grad


compiled, by_torch = exact.integrate, exact.matrix_exponentials


def assert_as_torch(monkeypatch, model, theta, rtol=1e-9, **more):
    found = outcome(compiled, monkeypatch, model, theta, **more)
    expected = outcome(by_torch, monkeypatch, model, theta, **more)
    for one, other in zip(found, expected, strict=True):
        # an entry far smaller than the others carries their rounding, and that of the steady state's differences
        torch.testing.assert_close(one, other, rtol=rtol, atol=1e-11 * float(other.abs().max()))


@pytest.mark.parametrize(("compartments", "absorption"), MODELS)
def test_every_linear_model_agrees_with_the_matrix_exponential(compartments, absorption, monkeypatch):
    model = CompartmentModel(compartments, absorption).double()
    assert_as_torch(monkeypatch, model, theta_of(model))
    backwards = torch.tensor([[30.0, 2.0, 2.0, 0.0, 30.0, 7.0]], dtype=torch.float64).repeat(len(PEOPLE), 1) + 3
    assert_as_torch(monkeypatch, model, theta_of(model), times=backwards)


@pytest.mark.parametrize("where", ["depot", "central"])
def test_lags_bioavailability_and_a_given_rate_agree_with_the_matrix_exponential(where, monkeypatch):
    model = CompartmentModel(2, "first_order", lag=where, bioavailability=where).double()
    assert_as_torch(monkeypatch, model, theta_of(model))


@pytest.mark.parametrize("absorption", ["none", "first_order", "transit"])
def test_each_period_has_its_own_matrix(absorption, monkeypatch):
    model = CompartmentModel(2, absorption).double()
    steps = {"WT": ((0.0, 70.0), (2.5, 80.0), (9.0, 90.0))}
    people = [dataclasses.replace(person, covariates=steps) for person in PEOPLE[:3]]
    theta = torch.stack([theta_of(model, 3) * k for k in (1.0, 1.3, 0.6)], dim=1)
    assert_as_torch(monkeypatch, model, theta, people=people)


DIFFICULT = {
    "KA equal to the elimination rate": (1, "first_order", {"KA": 0.25, "CL": 5.0, "V1": 20.0}),
    "KA nearly equal": (1, "first_order", {"KA": 0.25 * (1 + 1e-9), "CL": 5.0, "V1": 20.0}),
    "KA close": (1, "first_order", {"KA": 0.25 * (1 + 1e-3), "CL": 5.0, "V1": 20.0}),
    "fast absorption": (2, "first_order", {"KA": 50.0}),
    "fast chain": (1, "transit", {"KTR": 50.0}),
    "fast beside slow": (2, "none", {"CL": 0.02, "Q": 1000.0, "V2": 20.0, "V1": 20.0}),
    "no elimination": (2, "none", {"CL": 0.0}),
    "nothing moves": (2, "first_order", {"CL": 0.0, "Q": 0.0, "KA": 0.0}),
    "a peripheral apart": (3, "none", {"Q3": 0.0}),
}


@pytest.mark.parametrize("case", DIFFICULT)
def test_defective_and_stiff_matrices_cost_no_digits(case, monkeypatch):
    compartments, absorption, fixed = DIFFICULT[case]
    model = CompartmentModel(compartments, absorption).double()
    assert_as_torch(monkeypatch, model, theta_of(model, 4, **fixed), people=[*PEOPLE[:3], PEOPLE[5]])


class Oscillator(Dynamics):
    """d²x/dt² = −w²·x: linear, and no compartments."""

    states, parameter_names, linear = ("x", "v"), ("w",), True

    def rate_matrix(self, theta):
        zero, w = torch.zeros_like(theta[..., 0]), theta[..., 0]
        return torch.stack([torch.stack([zero, zero + 1], -1), torch.stack([-(w**2), zero], -1)], -2)

    def forward(self, t, y, theta):
        return (self.rate_matrix(theta) @ y[..., None])[..., 0]


@pytest.mark.parametrize("w", [0.1, 1.0, 30.0])
def test_complex_eigenvalues_are_no_exception(w, monkeypatch):
    model = Oscillator().double()
    theta = torch.full((1, 1), w, dtype=torch.float64)
    people = [subject("a", [Dose(1, 2), Dose(2, 3, duration=1)], [0.0, 0.5, 3.0, 10.0])]
    # 300 rad lose three digits, to both
    assert_as_torch(monkeypatch, model, theta, people=people)


@pytest.mark.parametrize("rates", [(0.25, 0.25), (0.25, 0.2501), (50.0, 1e-3), (2.0, 2.0)])
def test_the_central_amount_has_the_digits_of_the_closed_form(rates):
    ka, k10 = rates
    model = CompartmentModel(1, "first_order").double()
    times = np.array([0.0, 0.1, 1.0, 5.0, 24.0])
    theta = torch.tensor([[k10, 1.0, ka]], dtype=torch.float64)
    batch = collate([subject("a", [Dose(0, 1)], times)], dtype=torch.float64)
    found = solve_batch(model, theta, batch).states[0, :, 1].numpy()
    mean, half = (ka + k10) / 2, (ka - k10) / 2 * times
    expected = (
        ka * times * np.exp(-mean * times) * np.where(half == 0, 1.0, np.sinh(half) / np.where(half == 0, 1, half))
    )
    expected = expected if abs(half).max() < 100 else ka / (ka - k10) * (np.exp(-k10 * times) - np.exp(-ka * times))
    np.testing.assert_allclose(found, expected, rtol=2e-14)


def test_single_precision_is_rounded_once_more_and_no_worse():
    model = CompartmentModel(3, "first_order")
    theta = theta_of(model).float()
    with torch.no_grad():
        single = solve_batch(model, theta, collate(PEOPLE)).states
        theta = theta.double()
        double = model.double()
        exact_ = solve_batch(double, theta, collate(PEOPLE, dtype=torch.float64)).states
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), exact_, rtol=2e-5, atol=1e-5)  # 50 h of rates rounded to 6e-8


GRADIENTS = {
    "modes": (2, "first_order", "depot", [Dose(0, 10, rate=4), Dose(1.5, 7, compartment=2)], {}),
    "series": (1, "transit", "depot", [Dose(0, 10, rate=4), Dose(1.5, 7)], {}),
    "squared series": (1, "transit", "depot", [Dose(0, 10, rate=4)], {"KTR": 45.0}),
    "nearly defective": (1, "first_order", "depot", [Dose(0, 10, rate=4)], {"KA": 0.25, "CL": 5.0, "V1": 20.0}),
}


@pytest.mark.parametrize("case", GRADIENTS)
def test_the_gradients_are_those_of_finite_differences(case):
    compartments, absorption, where, doses, fixed = GRADIENTS[case]
    model = CompartmentModel(compartments, absorption, lag=where, bioavailability=where).double()
    theta = theta_of(model, 1, LAG=0.7, F=0.6, **fixed).requires_grad_()
    batch = collate([subject("a", doses, [0.5, 1.0, 4.0, 7.0])], dtype=torch.float64)
    y0 = torch.ones(1, len(model.states), dtype=torch.float64, requires_grad=True)
    times = batch.time.clone().requires_grad_()

    def solved(y0, theta, times):
        return solve_batch(model, theta, batch, times, y0=y0).states

    assert torch.autograd.gradcheck(solved, (y0, theta, times))


def test_zero_inputs_and_states_still_have_their_gradient():
    k = torch.tensor([[[[-2.0, 0.0], [2.0, -2.0]]]], dtype=torch.float64, requires_grad=True)  # a Jordan block
    model, theta = CompartmentModel(1, "first_order").double(), torch.ones(1, 3, dtype=torch.float64)
    batch = collate([subject("a", [Dose(0, 1)], [0.0, 1.0, 5.0])], dtype=torch.float64)
    mesh = build_mesh(batch, dose_inputs(model, theta[:, None], batch), 2, batch.time, batch.row)
    jump, input_ = torch.zeros_like(mesh.jump).requires_grad_(), torch.zeros_like(mesh.input).requires_grad_()
    y0 = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)

    def states(y0, jump, input_, k):
        return linear.integrate(k, y0, dataclasses.replace(mesh, jump=jump, input=input_))

    assert torch.autograd.gradcheck(states, (y0, jump, input_, k))


def test_a_second_derivative_is_refused():
    model = CompartmentModel(1).double()
    theta = theta_of(model, 1).requires_grad_()
    batch = collate(PEOPLE[:1], dtype=torch.float64)
    value = solve_batch(model, theta, batch).states.sum()
    with pytest.raises(RuntimeError, match="differentiated once"):
        torch.autograd.grad(value, theta, create_graph=True)


def crowd(absorption, subjects=700):
    model = CompartmentModel(2, absorption, lag="central").double()
    people = [dataclasses.replace(PEOPLE[k % len(PEOPLE)], id=str(k)) for k in range(subjects)]
    return model, people, theta_of(model, subjects)


@pytest.mark.parametrize("absorption", ["first_order", "transit"])
def test_the_batch_changes_no_bit_of_a_subject(absorption):
    model, people, theta = crowd(absorption, 12)

    def line(theta, people):
        return solve_batch(model, theta, collate(people, dtype=torch.float64)).states

    together = line(theta, people)
    for k, person in enumerate(people):
        assert torch.equal(together[k, : len(person.times)], line(theta[k : k + 1], [person])[0])


@pytest.mark.parametrize("absorption", ["first_order", "transit"])
def test_the_number_of_threads_changes_no_bit(absorption, monkeypatch):
    model, people, theta = crowd(absorption)
    one = outcome(compiled, monkeypatch, model, theta, people=people)
    torch.set_num_threads(2)
    two = outcome(compiled, monkeypatch, model, theta, people=people)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_what_is_not_finite_spoils_one_subject_alone():
    model, people, theta = crowd("first_order", 6)
    theta[2, 0] = torch.inf
    theta.requires_grad_()
    solution = solve_batch(model, theta, collate(people, dtype=torch.float64), y0=torch.zeros(6, 3).double())
    assert solution.ok.tolist() == [True, True, False, True, True, True]
    solution.states[solution.ok].sum().backward()
    assert theta.grad[solution.ok].isfinite().all()


def test_compartments_have_modes_and_equal_rates_none():
    """The fast way is taken where it should be, or the kernels would only be slow."""

    def modal(model, theta):
        k = model.rate_matrix(theta[:, None]).numpy()
        n = k.shape[-1]
        found = np.empty(k.shape[:2], bool), np.empty(k.shape[:3]), np.empty(k.shape), np.empty(k.shape)
        linear._decompose(0, len(k), k, *found)
        ok, rate, right, left = found
        whole = np.einsum("spij,spj,spjk->spik", right, rate, left)
        np.testing.assert_allclose(whole[ok], k[ok], atol=1e-13 * rate_matrix_exponential._CONDITION)
        assert whole.shape[-1] == n
        return ok.mean()

    for compartments in (1, 2, 3):
        model = CompartmentModel(compartments).double()
        assert modal(model, theta_of(model, 500)) == 1
        model = CompartmentModel(compartments, "first_order").double()
        assert modal(model, theta_of(model, 500)) > 0.9
    model = CompartmentModel(1, "transit").double()
    assert modal(model, theta_of(model, 500)) == 0
