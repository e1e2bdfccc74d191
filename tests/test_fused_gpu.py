"""The kernels for the GPU, there or in Triton's interpreter: states and gradients are those of the other engines."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch

pytest.importorskip("triton", reason="the GPU kernels are written in Triton, which is for Linux alone")

from solving import solve_batch

from neuralpk.cohort import Dose, Subject
from neuralpk.cohort_batch import collate
from neuralpk.dynamics import (
    CompartmentModel,
    HybridDynamics,
    NeuralCompartments,
    NeuralField,
    NeuralFlows,
    Perceptron,
)
from neuralpk.scaling import Scaling
from neuralpk.solve import RungeKutta, adaptive_integrator, compiled_field, fused_gpu
from neuralpk.solve.event_nodes import Mesh, build_mesh, dose_inputs
from neuralpk.solve.perceptron_field import PerceptronField
from neuralpk.solve.solve_result import Status
from neuralpk.solve.tsit5_coefficients import STIFF
from neuralpk.solve.tsit5_rodas5p import Tsit5

# a state beyond all bounds is what some of these subjects are about; the interpreter computes with NumPy, which warns
pytestmark = pytest.mark.filterwarnings("ignore:(overflow|invalid value|divide by zero) encountered:RuntimeWarning")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SCALING = Scaling(24.0, 100.0, (3.0,), {})
STATES = ("depot", "central")
OPTIONS = RungeKutta(rtol=1e-3, atol=1e-3)
# no error is too large, and each step ten times as long as the one before: every engine takes the same ones, so that
# their gradients, exact for the steps as taken, differ in rounding alone
SAME_STEPS = RungeKutta(rtol=1e8, atol=1e8)
TIGHT, TIGHTER = RungeKutta(rtol=1e-5, atol=1e-6), RungeKutta(rtol=1e-8, atol=1e-9)


def each(function, value):
    """The function of a tensor, or of all those in a dataclass."""
    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, tuple):
        return tuple(each(function, item) for item in value)
    if dataclasses.is_dataclass(value):
        fields = {item.name: each(function, getattr(value, item.name)) for item in dataclasses.fields(value)}
        return dataclasses.replace(value, **fields)
    return value


def gpu(*problem):
    """The kernels for the GPU, where there is one, for tensors on the CPU."""
    return each(torch.Tensor.cpu, fused_gpu.integrate(*(each(lambda x: x.to(DEVICE), part) for part in problem)))


def cpu(*problem):
    """The kernels for the CPU."""
    form, *rest = problem
    return compiled_field.integrate(PerceptronField(form), *rest)


def double(*problem):
    """The kernels for the CPU in double precision."""
    states, *ended = cpu(*(each(lambda x: x.double() if x.is_floating_point() else x, part) for part in problem))
    return states.float(), *ended


def subject(doses, times, name, **more):
    return Subject(name, np.asarray(times, float), np.full(len(times), np.nan), tuple(doses), **more)


STEADY, STEPS = {"WT": 60.0}, {"WT": ((0.0, 60.0), (1.5, 70.0))}
PEOPLE = [
    subject([Dose(0, 100)], [0.0, 1.0, 1.0, 6.0], "bolus; two records at once", covariates=STEADY),
    subject([Dose(0, 50), Dose(2, 40, duration=2)], [2.0, 3.0, 5.0], "infusion; a padded row", covariates=STEADY),
    subject(
        [Dose(0, 80), Dose(2, 30, reset=True), Dose(2, 10)],
        [1.0, 2.0, 4.0],
        "two periods; reset; two events at once",
        covariates=STEPS,
    ),
    subject([], [0.0], "nothing happens", covariates=STEADY),
]


def built(dynamics):
    """A dynamics for data of this scale."""
    dynamics.build(SCALING)
    return dynamics


def neural_field():
    return built(NeuralField(CompartmentModel(1, "first_order"), 2, hidden=16, layers=2))


def neural_compartments():
    return built(NeuralCompartments(CompartmentModel(1, "first_order"), 2, hidden=12, layers=1))


def hybrid():
    return built(HybridDynamics(CompartmentModel(1, "first_order"), NeuralFlows(2, hidden=8, layers=2)))


def problem(model, people=PEOPLE):
    """A model with random weights, the parameters of some people, their initial states."""
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    batch = collate(people, dtype=torch.float32)
    named = model.guess(SCALING)
    own = torch.tensor([named.get(name, 1.0) for name in model.parameter_names])
    theta = own * torch.exp(0.3 * torch.randn(len(people), batch.period_start.shape[1], len(own)))
    return batch, theta, model.initial_state(theta[:, 0]) + 10.0


def gradients(engine, model, batch, theta, y0, options):
    """States, and the gradient of a weighted sum of them in everything that it depends on."""
    model.zero_grad()
    leaves = {"theta": theta.clone().requires_grad_(), "y0": y0.clone().requires_grad_()}
    built = build_mesh(batch, dose_inputs(model, leaves["theta"], batch), y0.shape[1], batch.time, batch.row)
    for name in ("times", "jump", "input", "wanted_times"):
        leaves[name] = getattr(built, name).detach().clone().requires_grad_()
    mesh = dataclasses.replace(built, **{name: leaves[name] for name in list(leaves)[2:]})
    if engine == "general":
        states, run = adaptive_integrator.step_through(Tsit5(), model, leaves["y0"], leaves["theta"], mesh, options)
        status = run.status
    else:
        form = model.perceptron(leaves["theta"])
        states, status, _ = engine(form, leaves["y0"], mesh, options)
    assert not status.any()
    (states * torch.linspace(0.5, 1.5, states.numel()).view_as(states)).sum().backward()
    weights = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {"states": states.detach()} | {name: leaf.grad for name, leaf in leaves.items()} | weights


def assert_close(found, expected, to=1e-4):
    assert found.keys() == expected.keys()
    for name, other in expected.items():
        assert float((found[name] - other).norm()) <= to * float(other.norm()), name


@pytest.mark.parametrize("make", [neural_field, neural_compartments, hybrid])
def test_states_and_all_gradients_are_those_of_the_kernel_for_the_cpu(make):
    model = make()
    case = problem(model)
    found, expected = (gradients(engine, model, *case, SAME_STEPS) for engine in (gpu, cpu))
    assert_close(found, expected)


def test_states_and_all_gradients_are_those_of_the_general_path():
    model = neural_compartments()
    case = problem(model, PEOPLE[1:2])
    found, expected = (gradients(engine, model, *case, SAME_STEPS) for engine in (gpu, "general"))
    # a time read at the end of a stretch moves with the stretch in the one, and by itself in the other
    own = {name: found[name] for name in found if name not in ("times", "wanted_times")}
    assert_close(own, {name: expected[name] for name in own})


def perceptron(n, states, width, layers, activation, seed=0, **more):
    """A field with random weights for n subjects."""
    random = torch.Generator().manual_seed(seed)
    sizes = [states, *[width] * layers, states]
    weights = [torch.randn(b, a, generator=random) / a**0.5 for a, b in itertools.pairwise(sizes)]
    biases = [0.1 * torch.randn(b, generator=random) for b in sizes[2:]]
    return Perceptron(torch.randn(n, width, generator=random), (*weights,), (*biases,), activation, **more)


def no_events(n, states, times):
    """Clocks with no events, and the same wanted times for everyone."""
    end = float(max(times))
    return Mesh(
        torch.tensor([[0.0, end]]).repeat(n, 1),
        torch.zeros(n, 2, dtype=torch.bool),
        torch.zeros(n, 2, states),
        torch.zeros(n, 2, states),
        torch.zeros(n, 2, dtype=torch.int64),
        torch.zeros(n, len(times), dtype=torch.int64),
        torch.tensor([times]).repeat(n, 1),
    )


def solved(engine, form, y0, mesh, options):
    """States and the gradients of the sum of their squares, status, evaluations."""
    shared = (*form.weights, *form.biases)
    y0, shift, *shared = (tensor.detach().clone().requires_grad_() for tensor in (y0, form.shift, *shared))
    weights, biases = (*shared[: len(form.weights)],), (*shared[len(form.weights) :],)
    form = dataclasses.replace(form, shift=shift, weights=weights, biases=biases)
    states, status, evaluations = engine(form, y0, mesh, options)
    states.square().sum().backward()
    named = {"states": states.detach(), "y0": y0.grad, "shift": shift.grad}
    return named | {f"shared {k}": leaf.grad for k, leaf in enumerate(shared)}, status, evaluations


@pytest.mark.parametrize(("activation", "layers"), [("tanh", 3), ("softplus", 1)])
def test_a_field_with_a_linear_part_may_have_any_number_of_layers(activation, layers):
    form = perceptron(2, 3, 8, layers, activation, matrix=-0.2 * torch.eye(3).repeat(2, 1, 1))
    case = form, torch.randn(2, 3), no_events(2, 3, [2.0, 0.0, 0.3, 0.3]), SAME_STEPS
    found, expected = (solved(engine, *case)[0] for engine in (gpu, cpu))
    assert_close(found, expected)


def test_states_and_gradients_are_those_of_double_precision_in_every_block_and_every_run(monkeypatch):
    if DEVICE == "cpu":
        monkeypatch.setattr(fused_gpu, "_PROGRAMS", 2)
    n = 33 if DEVICE == "cpu" else 16 * (fused_gpu._PROGRAMS + 50)  # some programs have two blocks
    form = perceptron(n, 2, 64, 2, "tanh", matrix=-0.2 * torch.eye(2).repeat(n, 1, 1))
    mesh = no_events(n, 2, [6.0] * 4)
    mesh = dataclasses.replace(mesh, wanted_times=6.0 * torch.rand(n, 4))
    case = form, torch.randn(n, 2), mesh
    found, status, _ = solved(gpu, *case, TIGHT)
    expected, other, _ = solved(double, *case, TIGHTER)
    assert not status.any() and not other.any()
    assert_close(found, expected)
    assert_close(solved(gpu, *case, TIGHT)[0], found, to=0.0)


@pytest.mark.parametrize("width", [32, 128])
def test_the_largest_fields_have_room_on_the_chip(width):
    form = perceptron(3, 8, width, 4, "silu")
    case = form, torch.randn(3, 8), no_events(3, 8, [0.5, 1.0])
    found, expected = solved(gpu, *case, TIGHT)[0], solved(double, *case, TIGHTER)[0]
    assert_close(found, expected)


@pytest.mark.parametrize("engine", [gpu, cpu])
def test_each_subject_takes_its_own_steps_and_one_that_fails_spoils_no_other(engine):
    n = 17  # the last one in a program of its own
    form = perceptron(n, 1, 4, 1, "tanh", matrix=-torch.ones(n, 1, 1))
    failed = {3: STIFF, 7: Status.NON_FINITE, 9: Status.NON_FINITE}
    form.matrix[5], form.matrix[3], form.shift[7], form.shift[9, 0] = -10.0, -400.0, torch.nan, torch.inf
    if engine is cpu:  # which bears it for longer
        del failed[3]
    well = torch.tensor([k not in failed for k in range(n)])
    found, status, _ = solved(engine, form, torch.ones(n, 1), no_events(n, 1, [0.5, 1.0]), OPTIONS)
    assert {k: code for k, code in enumerate(status.tolist()) if code} == failed
    assert found["states"][~well].isnan().any(1).all() and not found["y0"][~well].any()
    alone = dataclasses.replace(form, shift=form.shift[well], matrix=form.matrix[well])
    left = int(well.sum())
    case = alone, torch.ones(left, 1), no_events(left, 1, [0.5, 1.0]), OPTIONS
    expected, status, _ = solved(cpu, *case)
    assert not status.any()
    assert_close(
        {k: v[well] if len(v) == n else v for k, v in found.items()}, expected, to=1e-2
    )  # the tolerance, amplified


def test_evaluations_are_limited_between_two_nodes_and_counted():
    form = perceptron(2, 1, 4, 1, "tanh", matrix=torch.tensor([[[-0.1]], [[-30.0]]]))
    case = form, torch.ones(2, 1), no_events(2, 1, [1.0]), dataclasses.replace(OPTIONS, max_evaluations=20)
    (_, status, spent), (_, other, own) = (solved(engine, *case) for engine in (gpu, cpu))
    assert status.tolist() == other.tolist() == [Status.OK, Status.MAX_EVALUATIONS]
    assert spent == own


def test_steps_for_which_there_was_no_room_are_taken_again(monkeypatch):
    form = perceptron(2, 2, 4, 1, "silu")
    case = form, torch.ones(2, 2), no_events(2, 2, [0.1, 0.5]), OPTIONS
    expected, _, _ = solved(gpu, *case)
    monkeypatch.setattr(fused_gpu, "_MOST", 1)
    assert_close(solved(gpu, *case)[0], expected, to=0.0)


def test_the_kernels_cover_single_precision_on_cuda_alone():
    assert not fused_gpu.covers(torch.zeros(1, 2))
    if DEVICE == "cuda":
        assert fused_gpu.covers(torch.zeros(1, 2, device=DEVICE))
        assert not fused_gpu.covers(torch.zeros(1, 2, device=DEVICE, dtype=torch.float64))
    assert fused_gpu.fits(perceptron(1, 2, 128, 4, "tanh"))
    assert not fused_gpu.fits(perceptron(1, 2, 129, 1, "tanh"))


def one_compartment():
    return CompartmentModel(1, "first_order")


def saturable():
    return CompartmentModel(1, "first_order", elimination="michaelis_menten")


@pytest.mark.skipif(DEVICE == "cpu", reason="there is no GPU")
@pytest.mark.parametrize("make", [neural_field, neural_compartments, hybrid, one_compartment, saturable])
def test_a_cohort_is_solved_on_the_gpu_as_on_the_cpu(make):
    model = make()
    batch, theta, y0 = problem(model)
    results = []
    for device in ("cpu", DEVICE):
        model = model.to(device)
        model.zero_grad()
        own = theta.detach().to(device).requires_grad_()
        trajectory = solve_batch(model, own, batch.to(device), engine=TIGHT, y0=y0.to(device))
        trajectory.check(batch.ids)
        trajectory.states.square().mean().backward()
        weights = {name: p.grad.clone().cpu() for name, p in model.named_parameters() if p.grad is not None}
        results.append({"states": trajectory.states.detach().cpu(), "theta": own.grad.cpu()} | weights)
    found, expected = reversed(results)
    assert_close(found, expected, to=1e-3)
