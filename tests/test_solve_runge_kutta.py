"""The engine runge_kutta: the fused kernel against any other way, exact gradients, order, stiff systems."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from solving import solve_batch

import neuralpk
from neuralpk.cohort import Dose, Subject
from neuralpk.cohort_batch import collate
from neuralpk.dynamics import (
    CompartmentModel,
    Dynamics,
    HybridDynamics,
    NeuralCompartments,
    NeuralField,
    NeuralFlows,
    NeuralSlope,
    Perceptron,
)
from neuralpk.scaling import Scaling
from neuralpk.solve import (
    Auto,
    RungeKutta,
    Status,
    TorchDiffEq,
    adaptive_integrator,
    compiled_field,
    rodas5p_coefficients,
    tsit5_rodas5p,
)
from neuralpk.solve.compiled import event_order, linear, steps
from neuralpk.solve.event_nodes import build_mesh, dose_inputs
from neuralpk.solve.perceptron_field import PerceptronField
from neuralpk.solve.tsit5_coefficients import STIFF
from neuralpk.solve.tsit5_rodas5p import Rodas5P, Tsit5

SCALING = Scaling(time=24.0, amount=100.0, value=(5.0,), covariates={})
TIGHT = RungeKutta(rtol=1e-9, atol=1e-9)
REFERENCE = TorchDiffEq(method="dopri8", rtol=1e-10, atol=1e-10, max_evaluations=10**5)


def subject(name, doses, times, **more):
    return Subject(name, np.asarray(times, float), np.full(len(times), np.nan), tuple(doses), **more)


PEOPLE = [
    subject("a", [Dose(0, 100, interval=8, additional=2)], [0.0, 0.5, 4, 9, 20, 30]),
    subject("b", [Dose(0, 80, duration=2), Dose(5, 10)], [1.0, 2.0, 2.0, 5.0]),
    subject("c", [Dose(2, 100), Dose(10, 50, reset=True)], [2.0, 9, 10, 48]),
    subject("d", [], [0.0, 7.0]),
]


def random_weights(dynamics, seed=0, scale=0.4):
    """Fields start at rest: give every weight something to do."""
    generator = torch.Generator().manual_seed(seed)
    for weight in dynamics.parameters():
        weight.data = scale * torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
    return dynamics


ABSORBED = CompartmentModel(2, "first_order")


def built(dynamics):
    """A dynamics for data of this scale."""
    dynamics.build(SCALING)
    return dynamics


FIELDS = {
    "field": lambda layers: built(NeuralField(None, 2, hidden=20, layers=layers)),
    "compartments": lambda layers: built(NeuralCompartments(ABSORBED, 1, hidden=16, layers=layers)),
    "hybrid": lambda layers: built(HybridDynamics(CompartmentModel(2), NeuralFlows(1, hidden=8, layers=layers))),
    "hybrid of a field": lambda layers: built(
        HybridDynamics(CompartmentModel(2), NeuralSlope(2, hidden=8, layers=layers))
    ),
}
# the time is one more state of the kernel
IN_TIME = {
    "field in time": lambda layers: built(NeuralField(None, 2, hidden=20, layers=layers, time=True)),
    "compartments in time": lambda layers: built(NeuralCompartments(ABSORBED, 1, hidden=16, layers=layers, time=True)),
    "hybrid in time": lambda layers: built(
        HybridDynamics(CompartmentModel(2), NeuralFlows(1, hidden=8, layers=layers, time=True))
    ),
}


def theta_for(dynamics, n, dtype=torch.float64, periods=None):
    generator = torch.Generator().manual_seed(1)
    guess = dynamics.guess(SCALING)
    shape = (n, len(dynamics.parameter_names)) if periods is None else (n, periods, len(dynamics.parameter_names))
    spread = 0.3 * torch.randn(shape, generator=generator, dtype=dtype)
    middle = torch.tensor([guess.get(name, 0.0) for name in dynamics.parameter_names], dtype=dtype)
    return torch.where(middle > 0, middle * spread.exp(), spread)


def gradients(dynamics, theta, people, options, mask=None):
    """The states, and the gradients of a weighted sum of their squares for theta, y0 and every weight."""
    theta = theta.clone().requires_grad_()
    batch = collate(people, dtype=theta.dtype)
    y0 = (0.1 + dynamics.initial_state(theta if theta.dim() == 2 else theta[:, 0])).detach().requires_grad_()
    dynamics.zero_grad()
    solution = solve_batch(dynamics, theta, batch, engine=options, y0=y0)
    weight = torch.linspace(0.5, 1.5, solution.states.shape[1], dtype=theta.dtype)[:, None]
    (weight * solution.states.square() * batch.mask[..., None]).sum().backward()
    return solution.states.detach(), [theta.grad, y0.grad, *(w.grad for w in dynamics.parameters())]


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("kind", [*FIELDS, *IN_TIME])
def test_the_fused_kernel_gives_the_states_and_gradients_of_the_reference(kind, layers):
    dynamics = random_weights((FIELDS | IN_TIME)[kind](layers).double())
    theta = theta_for(dynamics, len(PEOPLE))
    assert dynamics.perceptron(theta) is not None
    found, found_gradients = gradients(dynamics, theta, PEOPLE, TIGHT)
    expected, expected_gradients = gradients(dynamics, theta, PEOPLE, REFERENCE)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    for one, other in zip(found_gradients, expected_gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6 * float(other.abs().max()))


@pytest.mark.parametrize("kind", FIELDS)
def test_the_fused_kernel_takes_the_steps_of_the_general_path(kind, monkeypatch):
    dynamics = random_weights(FIELDS[kind](2).double())
    theta = theta_for(dynamics, len(PEOPLE))
    loose = RungeKutta(rtol=1e-3, atol=1e-3)
    found, found_gradients = gradients(dynamics, theta, PEOPLE, loose)
    monkeypatch.setattr(compiled_field, "covers", lambda like: False)
    expected, expected_gradients = gradients(dynamics, theta, PEOPLE, loose)
    # the same steps at a loose tolerance: equal to rounding, though both are far from the solution
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    for one, other in zip(found_gradients, expected_gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-8 * float(other.abs().max()))


def test_periods_have_their_own_parameters_in_the_fused_kernel():
    weights = ((0.0, 60.0), (3.0, 70.0), (7.0, 80.0))
    people = [subject(str(k), [Dose(0, 100)], [1.0, 5.0, 9.0], covariates={"WT": weights}) for k in range(3)]
    dynamics = random_weights(FIELDS["hybrid"](2).double())
    theta = theta_for(dynamics, 3, periods=3)
    found, found_gradients = gradients(dynamics, theta, people, TIGHT)
    expected, expected_gradients = gradients(dynamics, theta, people, REFERENCE)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert bool((found_gradients[0].abs().sum(-1) > 0).all())
    for one, other in zip(found_gradients, expected_gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6 * float(other.abs().max()))


def test_one_set_of_parameters_may_serve_several_periods():
    people = [subject("a", [Dose(0, 100)], [1.0, 5.0, 9.0], covariates={"WT": ((0.0, 60.0), (3.0, 70.0))})]
    dynamics = random_weights(FIELDS["hybrid"](2).double())
    theta = theta_for(dynamics, 1)
    found, _ = gradients(dynamics, theta, people, TIGHT)
    expected, _ = gradients(dynamics, theta, people, REFERENCE)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("activation", ["tanh", "silu", "softplus"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_activation_is_that_of_torch(activation, dtype):
    class Plain(Dynamics):
        states, parameter_names = ("y",), ("z",)

        def __init__(self):
            super().__init__()
            self.first = torch.nn.Linear(2, 24, dtype=dtype)
            self.last = torch.nn.Linear(24, 1, dtype=dtype)

        def forward(self, t, y, theta):
            function = {"tanh": torch.tanh, "silu": torch.nn.functional.silu, "softplus": torch.nn.functional.softplus}
            return self.last(function[activation](self.first(torch.cat([y, theta], dim=-1))))

        def perceptron(self, theta):
            shift = torch.nn.functional.linear(theta, self.first.weight[:, 1:], self.first.bias)
            weights = (self.first.weight[:, :1], self.last.weight)
            return Perceptron(shift, weights, (self.last.bias,), activation)

    dynamics = random_weights(Plain(), scale=0.5)
    theta = torch.linspace(-8, 8, 9, dtype=dtype)[:, None]  # wide enough to reach the flat ends
    people = [subject(str(k), [], [0.0, 0.3, 1.0]) for k in range(9)]
    found, found_gradients = gradients(dynamics, theta, people, RungeKutta())
    dynamics.double().perceptron = lambda theta: None
    expected, expected_gradients = gradients(dynamics, theta.double(), people, RungeKutta())
    close = {"rtol": 2e-3, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 1e-9, "atol": 1e-9}
    torch.testing.assert_close(found.double(), expected, **close)
    for one, other in zip(found_gradients, expected_gradients, strict=True):
        scaled = close["atol"] * float(other.abs().max() + 1)
        torch.testing.assert_close(one.double(), other, rtol=close["rtol"], atol=scaled)


def test_the_reverse_sweep_is_the_gradient_of_the_steps_taken():
    # with one step a stretch nothing adapts, so that finite differences see the same steps
    dynamics = random_weights(FIELDS["field"](2).double(), scale=0.1)
    batch = collate([subject("a", [Dose(0, 1, duration=0.5), Dose(0.6, 1)], [0.2, 0.55, 0.9])], dtype=torch.float64)
    theta = theta_for(dynamics, 1).requires_grad_()
    y0 = torch.full((1, 2), 0.3, dtype=torch.float64, requires_grad=True)
    coarse = RungeKutta(rtol=1e-1, atol=1e1)

    def states(y0, theta):
        return solve_batch(dynamics, theta, batch, engine=coarse, y0=y0).states

    assert torch.autograd.gradcheck(states, (y0, theta), eps=1e-6, atol=1e-8, rtol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("scheme", [Tsit5(), Rodas5P()], ids=["explicit", "implicit"])
def test_a_step_has_the_order_of_its_method_at_its_end_and_inside(scheme):
    def slope(t, y):
        return torch.stack([y[:, 1] * torch.cos(t), -y[:, 0] + torch.sin(t) * y[:, 1]], dim=-1)

    start = torch.tensor([[1.0, 0.5]], dtype=torch.float64)
    ends, insides, estimates = [], [], []
    for h in (0.2, 0.1):
        size = torch.tensor([h], dtype=torch.float64)
        t = torch.tensor([0.3], dtype=torch.float64)
        increments = scheme.increments(slope, t, start, size)
        share = torch.tensor([[0.37]], dtype=torch.float64)
        truth = solve_ivp(
            lambda t, y: slope(torch.tensor([t]), torch.tensor(y)[None])[0].numpy(),
            (0.3, 0.3 + h), start[0].numpy(), method="DOP853", rtol=1e-13, atol=1e-15, t_eval=[0.3 + 0.37 * h, 0.3 + h],
        ).y.T  # fmt: skip
        end = start + tsit5_rodas5p.combine(scheme.end, increments)
        inside = tsit5_rodas5p.inside(scheme, start, increments, share)[:, 0]
        ends.append(float((end - torch.tensor(truth[1])).norm()))
        insides.append(float((inside - torch.tensor(truth[0])).norm()))
        estimates.append(float(tsit5_rodas5p.combine(scheme.error, increments).norm()))
    assert np.log2(ends[0] / ends[1]) > 5.6  # a local error of order 6
    assert np.log2(insides[0] / insides[1]) > 4.6
    assert np.log2(estimates[0] / estimates[1]) > 4.5
    assert estimates[1] > ends[1]  # the estimate is on the safe side


@pytest.mark.parametrize("tolerance", [1e-4, 1e-6, 1e-8])
def test_the_error_keeps_to_the_tolerance(tolerance):
    model = CompartmentModel(2, "first_order", "michaelis_menten").double()
    theta = torch.tensor([[12.0, 0.8, 20.0, 3.0, 40.0, 1.3]], dtype=torch.float64)
    batch = collate(
        [subject("a", [Dose(0, 100, interval=6, additional=3)], np.linspace(0, 24, 97))], dtype=torch.float64
    )
    y0 = model.initial_state(theta)
    found = solve_batch(model, theta, batch, engine=Auto(rtol=tolerance, atol=tolerance), y0=y0).states
    truth = solve_batch(model, theta, batch, engine=REFERENCE, y0=y0).states
    assert float(((found - truth).abs() / (1 + truth.abs())).max()) < 10 * tolerance


def stiff(ka, n=1, doses=6):
    """Absorption of rate `ka` into a saturable model: theta, and subjects dosed every 12 h."""
    model = CompartmentModel(2, "first_order", "michaelis_menten").double()
    theta = torch.tensor([[12.0, 0.8, 20.0, 3.0, 40.0, ka]], dtype=torch.float64).repeat(n, 1)
    train = [Dose(0, 100, interval=12, additional=doses - 1)]
    return model, theta, [subject(str(k), train, np.linspace(0.3, 12 * doses, 40)) for k in range(n)]


@pytest.mark.parametrize("ka", [50.0, 5000.0])
def test_a_stiff_subject_goes_to_the_implicit_method_and_is_right(ka):
    model, theta, people = stiff(ka)
    batch = collate(people, dtype=torch.float64)
    solution = solve_batch(model, theta, batch, engine=Auto(rtol=1e-7, atol=1e-7))

    def slope(t, y):
        return model(torch.tensor([t]), torch.tensor(y)[None], theta)[0].numpy()

    y, truth, at = np.zeros(3), [], 0.0
    for dose in range(6):
        y[0] += 100
        wanted = [t for t in people[0].times if 12 * dose < t <= 12 * (dose + 1)]
        part = solve_ivp(slope, (at, at + 12), y, method="LSODA", rtol=1e-11, atol=1e-11, dense_output=True)
        truth += [part.sol(t) for t in wanted]
        at, y = at + 12, part.y[:, -1].copy()
    np.testing.assert_allclose(solution.states[0], truth, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("compiled, more", [(False, 2.2), (True, 3.0)])
def test_the_cost_does_not_grow_with_the_stiffness(compiled: bool, more: float):
    counts = {}
    for ka in (1.0, 50.0, 5000.0):
        model, theta, people = stiff(ka)
        model.compiled = compiled  # compiled code takes more explicit steps before it turns to implicit ones
        batch = collate(people, dtype=torch.float64)
        counts[ka] = solve_batch(model, theta, batch).evaluations
    assert counts[50.0] < more * counts[1.0], counts
    assert counts[5000.0] < 1.3 * counts[50.0], counts


def test_only_the_stiff_subject_of_a_batch_is_implicit_and_its_gradient_is_right():
    model, theta, people = stiff(1.0, n=3, doses=1)
    theta[1, -1] = 2000.0
    _, found = gradients(model, theta, people, RungeKutta(rtol=1e-8, atol=1e-8))
    for k in range(3):
        _, alone = gradients(model, theta[k : k + 1], people[k : k + 1], Auto(rtol=1e-8, atol=1e-8))
        torch.testing.assert_close(found[0][k], alone[0][0], rtol=1e-9, atol=1e-12)
    step = torch.zeros_like(theta)
    step[1] = 1e-5 * theta[1]

    def total(theta):
        batch = collate(people, dtype=torch.float64)
        y0 = 0.1 + model.initial_state(theta)
        states = solve_batch(model, theta, batch, engine=Auto(rtol=1e-9, atol=1e-9), y0=y0).states
        weight = torch.linspace(0.5, 1.5, states.shape[1], dtype=theta.dtype)[:, None]
        return (weight * states.square()).sum()

    along = (total(theta + step) - total(theta - step)) / 2
    torch.testing.assert_close((found[0] * step).sum(), along, rtol=1e-5, atol=0.0)


def test_a_stiff_subject_of_a_perceptron_goes_to_compiled_implicit_steps(monkeypatch):
    dynamics = random_weights(FIELDS["compartments"](2).double(), scale=0.1)
    people = [PEOPLE[1], subject("e", [Dose(1, 100)], [2.0, 3.0])]
    theta = theta_for(dynamics, len(people))
    theta[0, dynamics.parameter_names.index("KA")] = 100.0
    monkeypatch.setattr(PerceptronField, "stiff_steps", 30)  # fewer, as the reference takes explicit steps alone
    batch = collate(people, dtype=torch.float64)
    inputs = dose_inputs(dynamics, theta[:, None], batch)
    mesh = build_mesh(batch, inputs, 3, batch.time, batch.row)
    y0 = dynamics.initial_state(theta)
    _, status, _ = compiled_field.integrate(PerceptronField(dynamics.perceptron(theta)), y0, mesh, RungeKutta())
    assert status.tolist() == [STIFF, 0]
    expected, expected_gradients = gradients(dynamics, theta, people, REFERENCE)
    monkeypatch.setattr(adaptive_integrator, "step_through", None)  # the general path is not taken
    found, found_gradients = gradients(dynamics, theta, people, TIGHT)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    for one, other in zip(found_gradients, expected_gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5 * float(other.abs().max()))


@pytest.mark.parametrize("name", ["field", "field in time"])
def test_implicit_steps_of_a_perceptron_are_those_of_torch(monkeypatch, name):
    monkeypatch.setattr(adaptive_integrator, "Tsit5", Rodas5P)
    like = CompartmentModel(1, "first_order")
    dynamics = random_weights(built(NeuralField(like, 1, hidden=8, layers=2, time=name != "field")).double())
    people, found = PEOPLE[1:2], []
    for compiled in (True, False):
        dynamics.compiled = compiled
        found.append(gradients(dynamics, theta_for(dynamics, 1), people, RungeKutta(rtol=1e-3, atol=1e-3)))
    (states, of_states), (expected, of_expected) = found
    torch.testing.assert_close(states, expected, rtol=1e-7, atol=1e-7)
    for one, other in zip(of_states, of_expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8 * float(other.abs().max()))


def test_a_line_is_the_same_bit_for_bit_alone_in_a_batch_and_on_two_threads():
    dynamics = random_weights(FIELDS["hybrid"](2))
    n = compiled_field._CHUNK + 22  # two chunks
    people = [subject(str(k), [Dose(0, 10 + k), Dose(6, 5.0, duration=1)], [1.0, 5.0, 9.0 + k / 10]) for k in range(n)]
    theta = theta_for(dynamics, n, torch.float32)
    options = RungeKutta()
    together, together_gradients = gradients(dynamics, theta, people, options)
    torch.set_num_threads(2)
    threads, threads_gradients = gradients(dynamics, theta, people, options)
    torch.set_num_threads(1)
    assert torch.equal(together, threads)
    assert all(torch.equal(a, b) for a, b in zip(together_gradients, threads_gradients, strict=True))
    for k in (0, 77, n - 1):
        alone, alone_gradients = gradients(dynamics, theta[k : k + 1], people[k : k + 1], options)
        assert torch.equal(alone[0], together[k])
        # theta's gradient passes through products of torch, which sum batches of another size in another order
        torch.testing.assert_close(alone_gradients[0][0], together_gradients[0][k], rtol=1e-4, atol=1e-3)


def test_a_field_that_cannot_be_solved_leaves_the_kernels_other_subjects_alone():
    dynamics = random_weights(FIELDS["field"](2))
    theta = theta_for(dynamics, len(PEOPLE), torch.float32)
    bad = theta.clone()
    bad[1] = torch.nan
    options = RungeKutta()
    batch = collate(PEOPLE)
    good = [0, 2, 3]
    solution = solve_batch(dynamics, bad.requires_grad_(), batch, engine=options)
    assert solution.status.tolist() == [0, Status.NON_FINITE, 0, 0]
    dynamics.zero_grad()
    solution.states[solution.ok].square().sum().backward()
    found = [w.grad.clone() for w in dynamics.parameters()]
    dynamics.zero_grad()
    own = theta[good].requires_grad_()
    part = solve_batch(dynamics, own, batch.select(torch.tensor(good)), engine=options)
    part.states.square().sum().backward()
    for one, w in zip(found, dynamics.parameters(), strict=True):
        torch.testing.assert_close(one, w.grad, rtol=1e-6, atol=1e-6 * float(w.grad.abs().max()))
    assert torch.equal(solution.states[good], part.states)


def test_a_latent_that_is_no_number_fails_in_a_field_whose_activation_has_limits():
    # tanh of NaN, cut off at its limits, would be a number
    shift = torch.zeros(3, 16)
    shift[1] = torch.nan
    form = Perceptron(shift, (torch.ones(16, 1), torch.ones(1, 16)), (torch.zeros(1),), "tanh")
    batch = collate([subject(str(k), [], [0.0, 1.0]) for k in range(3)])
    dynamics = CompartmentModel(1)
    mesh = build_mesh(batch, dose_inputs(dynamics, torch.ones(3, 1, 2), batch), 1, batch.time, batch.row)
    _, status, _ = compiled_field.integrate(PerceptronField(form), torch.ones(3, 1), mesh, RungeKutta())
    assert status.tolist() == [Status.OK, Status.NON_FINITE, Status.OK]


@pytest.mark.parametrize("kernel", [steps.forward, steps.backward, linear._forward, event_order._sort])
def test_a_kernel_is_not_kept_inside_the_package(kernel):
    # a folder that is left there when the package is removed would hide the next installation
    package = Path(neuralpk.__file__).parent
    assert package not in Path(kernel.stats.cache_path).parents


def test_an_implicit_step_whose_equations_are_singular_is_not_finite_and_spoils_no_other_subject():
    size, y = torch.full((2,), 0.1, dtype=torch.float64), torch.ones(2, 1, dtype=torch.float64)
    rate = torch.tensor([[1.0 / (rodas5p_coefficients.GAMMA * 0.1)], [-1.0]], dtype=torch.float64)  # first: I/(h·γ) = J
    found = Rodas5P().increments(lambda t, y: rate * y, torch.zeros_like(size), y, size)
    assert not bool(torch.isfinite(found[0]).any())
    alone = Rodas5P().increments(lambda t, y: -y, torch.zeros(1, dtype=torch.float64), y[1:], size[1:])
    torch.testing.assert_close(found[1:], alone)


def test_the_end_of_a_stretch_is_read_however_its_last_step_is_rounded():
    length, elapsed = torch.tensor([[1.5 + 2**-23, 0.0]]), torch.tensor([0.125 + 2**-24])
    size = length[:, 0] - elapsed
    assert bool(elapsed + size < length[:, 0])  # both round to even, and the sum falls short of the end
    first = torch.zeros(1, dtype=torch.int64)
    steps = adaptive_integrator.Steps(first, first, elapsed, size, torch.zeros(1, 1))
    mesh, at_node = SimpleNamespace(wanted=first[:, None]), torch.zeros(1, 1, dtype=torch.bool)
    assert bool(adaptive_integrator._inside(steps, mesh, length[:, :1], at_node, length))
