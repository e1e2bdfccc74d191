"""Systems beside the compartments: what they conserve, that their solutions are right, and that they learn."""

import pytest
import torch
from solving import solve_batch

from neuralpk.cohort import Cohort, Dose, Subject
from neuralpk.cohort_batch import collate
from neuralpk.datamodules import SimulatedSIRDataModule
from neuralpk.dynamics import (
    SIR,
    CompartmentModel,
    ConcentrationModel,
    Dynamics,
    FixedParameters,
    HybridDynamics,
    LotkaVolterra,
    NeuralField,
    NeuralFlows,
    NeuralSlope,
    OrnsteinUhlenbeck,
    RandomFeatureField,
)
from neuralpk.encoders import SetEncoder
from neuralpk.objectives import SquaredError, Step
from neuralpk.population_model import PopulationModel
from neuralpk.scaling import Scaling
from neuralpk.solve import Auto, TorchDiffEq

SCALING = Scaling(20.0, 1.0, (30.0, 20.0))
ENGINES = {
    "runge_kutta": Auto(rtol=1e-6, atol=1e-8),
    "dopri5": TorchDiffEq(gradient="backprop", rtol=1e-6, atol=1e-8),
    "rk4": TorchDiffEq(gradient="backprop", method="rk4", step=0.5),
}


def series(count=3, last=30.0):
    times = torch.linspace(0.0, last, 16).tolist()
    return collate(Cohort(tuple(Subject(str(k), times, times) for k in range(count))), dtype=torch.float64)


def random_theta(dynamics, count=3):
    guess = dynamics.guess(SCALING)
    named = torch.tensor([guess.get(name, 0.3) for name in dynamics.parameter_names], dtype=torch.float64)
    return named * torch.exp(0.3 * torch.randn(count, len(named), dtype=torch.float64))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("time", [None, False, True], ids=["mechanistic", "hybrid", "hybrid in time"])
def test_nobody_is_lost_in_an_epidemic(engine, time):
    dynamics: Dynamics = SIR()
    if time is not None:
        # lost immunity is a flow that the mechanism does not have
        lost = [["recovered", "susceptible"]]
        dynamics = HybridDynamics(dynamics, NeuralFlows(1, time=time, extra_flows=lost))
        for weight in dynamics.parameters():
            torch.nn.init.normal_(weight, std=0.5)
        dynamics.build(SCALING._replace(value=(1.0, 1.0)))
    dynamics = dynamics.double()
    theta = random_theta(dynamics)
    solution = solve_batch(dynamics, theta, series(), engine=ENGINES[engine])
    states = solution.states.detach()
    assert bool(solution.ok.all())
    assert states[..., 2].max() > 0.5, "no epidemic to speak of"
    # rounding of some hundred steps
    torch.testing.assert_close(states.sum(-1), torch.ones_like(states[..., 0]), rtol=0.0, atol=1e-13)


def test_concentrations_are_amounts_over_the_volume_whatever_the_dose():
    doses = [
        (Dose(0, 100),),
        (Dose(0, 100, rate=25),),
        (Dose(0, 60, duration=2, interval=12, additional=3), Dose(30, 40)),
        (Dose(0, 50, interval=8, steady_state=1),),
        (Dose(0, 50, duration=1, interval=8, steady_state=1, additional=1),),
    ]
    times = [0.5, 1.0, 3.0, 5.0, 11.0, 24.0, 48.0]
    cohort = Cohort(tuple(Subject(str(k), times, times, given) for k, given in enumerate(doses)))
    batch = collate(cohort, dtype=torch.float64)
    amounts, concentrations = CompartmentModel(2).double(), ConcentrationModel().double()
    rates = random_theta(concentrations, len(doses))
    k_e, k_cp, k_pc, volume = rates.unbind(1)
    derived = concentrations.derived(rates)
    theta = torch.stack([derived["CL"], volume, derived["Q"], derived["V2"]], dim=1)
    torch.testing.assert_close(derived["V2"] * k_pc, volume * k_cp)
    torch.testing.assert_close(derived["CL"], k_e * volume)
    lines = []
    for model, own in ((amounts, theta), (concentrations, rates)):
        solution = solve_batch(model, own, batch)
        lines.append(model.observe(solution.states, solution.theta)[..., 0])
    # exponentials of matrices of different norm
    torch.testing.assert_close(lines[1], lines[0], rtol=1e-10, atol=0.0)


def test_known_parameters_are_those_of_the_equations():
    whole = LotkaVolterra().double()
    fixed = FixedParameters(LotkaVolterra(), {"delta": 0.5, "alpha": 2.0}).double()
    assert fixed.parameter_names == ("beta", "gamma", "prey0", "predator0")
    assert tuple(fixed.guess(SCALING)) == fixed.parameter_names
    theta, y, t = torch.rand(4, 4).double(), torch.rand(4, 2).double(), torch.zeros(4).double()
    own = torch.stack([torch.full((4,), 2.0), theta[:, 0], theta[:, 1], torch.full((4,), 0.5), *theta[:, 2:].T], dim=1)
    torch.testing.assert_close(fixed(t, y, theta), whole(t, y, own), rtol=0.0, atol=0.0)
    torch.testing.assert_close(fixed.initial_state(theta), theta[:, 2:], rtol=0.0, atol=0.0)
    with pytest.raises(ValueError, match=r"fixed names \['CL'\]"):
        FixedParameters(LotkaVolterra(), {"CL": 1.0})


def test_without_predation_the_equations_are_linear_and_without_the_logistic_term_those_of_the_textbook():
    theta = torch.tensor([[1.3, 1.8, 1.0, 2.0]])
    y = torch.tensor([[3.0, 5.0]])
    linear = LotkaVolterra(predation=False)
    slope = linear(torch.zeros(1), y, theta)
    assert slope.tolist() == [[pytest.approx(3.9), pytest.approx(-9.0)]]
    torch.testing.assert_close((linear.rate_matrix(theta) @ y[..., None])[..., 0], slope)
    own = torch.tensor([[1.3, 0.9, 1.8, 0.8, 0.2, 1.0, 2.0]])
    crowded = LotkaVolterra(logistic=True)(torch.zeros(1), y, own)
    plain = LotkaVolterra()(torch.zeros(1), y, own[:, [0, 1, 2, 3, 5, 6]])
    torch.testing.assert_close(crowded - plain, torch.tensor([[-0.2 * 9.0, 0.0]]))


def test_a_field_in_time_reads_it_and_one_without_does_not():
    y, t, z = torch.rand(5, 2).double(), torch.rand(5).double(), torch.rand(5, 4).double()
    for time in (False, True):
        field = NeuralField(LotkaVolterra(), 2, time=time)
        field.build(SCALING)
        for weight in field.parameters():
            torch.nn.init.normal_(weight)
        field = field.double()
        assert field.autonomous != time
        assert torch.equal(field(t, y, z), field(t + 1, y, z)) != time
        assert (field.perceptron(z).clock is None) != time


class Shift(Dynamics):
    """A correction that is a given combination of terms."""

    def __init__(self, terms):
        super().__init__()
        self.states, self.parameter_names, self.terms = ("prey", "predator"), ("size",), terms

    def forward(self, t, y, theta):
        return theta * self.terms(*y.unbind(-1))


def test_the_penalty_is_for_what_the_mechanism_could_do_and_nothing_else():
    generator = torch.Generator().manual_seed(1)
    y = 1.0 + torch.rand((2, 40, 2), dtype=torch.float64, generator=generator)
    t, mask = torch.zeros(2, 40, dtype=torch.float64), torch.ones(2, 40, dtype=torch.bool)
    mask[1, 20:] = False
    own = torch.tensor([1.3, 0.9, 1.8, 0.8, 1.5, 1.5, 0.3], dtype=torch.float64)

    def held(terms, overlap=2.0):
        theta = own.expand(2, 40, 7).clone().requires_grad_()
        hybrid = HybridDynamics(LotkaVolterra().double(), Shift(terms), overlap)
        penalty = hybrid.penalty(t, y, theta, mask)
        (slope,) = torch.autograd.grad(penalty.sum(), theta)
        return penalty.detach(), slope[..., :6].abs().max(), hybrid, theta.detach()

    # alpha·x is the mechanism's own: all of it is held, as the sum of squares in units of the mechanism's slope
    penalty, of_mechanism, hybrid, theta = held(lambda x, p: torch.stack([x, torch.zeros_like(p)], -1))
    assert of_mechanism == 0
    mechanism = hybrid.mechanism(t.flatten(), y.flatten(0, 1), theta.flatten(0, 1)[:, :6]).reshape(y.shape)
    size = torch.stack([mechanism[0].square().mean(0), mechanism[1, :20].square().mean(0)])
    square = (0.3 * y[..., 0]).square() * mask
    torch.testing.assert_close(penalty, 2.0 / 2 * square.sum(1) / size[:, 0] / 2)
    # what stands at a right angle to both terms of the prey is free
    terms = torch.stack([y[0, :, 0], y[0].prod(-1)], dim=1)
    base, _ = torch.linalg.qr(terms)
    other = torch.randn(40, dtype=torch.float64, generator=generator)
    other = other - base @ (base.T @ other)
    free, *_ = held(lambda x, p: torch.stack([torch.cat([other, other]), torch.zeros_like(p)], -1))
    assert free[0] < 1e-20
    assert free[1] > 1e-6  # over other times the angle is another
    assert HybridDynamics(LotkaVolterra(), Shift(None)).penalty(t, y, theta, mask) is None


def test_own_weights_draw_fields_of_the_size_that_was_said():
    field = RandomFeatureField(LotkaVolterra(), hidden=64, prior_sd=3.0)
    field.build(SCALING)
    generator = torch.Generator().manual_seed(0)
    z = torch.randn((4000, len(field.parameter_names) - 2), generator=generator)
    theta = torch.cat([torch.ones(4000, 2), z], dim=1)
    y = torch.tensor(SCALING.value).expand(4000, 2)
    slope = field(torch.zeros(4000), y, theta) * 20.0 / torch.tensor(SCALING.value)
    # standard error of a standard deviation from n draws: 1/sqrt(2n), 1 %
    assert slope.std(0).tolist() == pytest.approx([3.0, 3.0], rel=0.05)
    assert field.initial_state(theta).tolist() == theta[:, :2].tolist()


def train(data, dynamics, steps, rate=0.02, engine=None):
    """Adam on the squared error; the model and its losses."""
    torch.manual_seed(0)
    data.setup()
    model = PopulationModel(dynamics, engine=engine or Auto(rtol=1e-3, atol=1e-4)).build(data.scaling())
    encoder = SetEncoder(32)
    encoder.build(data.scaling(), model.latent_size)
    batch = next(iter(data.train_dataloader()))
    population = [*model.population.parameters()]
    networks = [*encoder.parameters(), *model.dynamics.parameters()]
    groups = [{"params": population, "lr": 2 * rate}, {"params": networks, "lr": rate}]
    optimizer = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, [2 * rate, rate], total_steps=steps, pct_start=0.2)
    losses = []
    for _ in range(steps):
        loss = SquaredError().loss(model, encoder, None, batch, Step(0))
        optimizer.zero_grad()
        (loss.total - model.log_prior()).backward()
        torch.nn.utils.clip_grad_norm_([*model.parameters(), *encoder.parameters()], 5.0)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.fit.detach() / loss.observations))
    return model, losses


def test_epidemics_are_learned():
    data = SimulatedSIRDataModule(subjects=20, samples=8, error_sd={"a": 0.005, "b": 0.05})
    model, losses = train(data, SIR(), 60, engine=Auto(rtol=1e-2, atol=1e-3))
    assert losses[-1] < 0.3 * losses[0], losses[::10]
    typical = model.population.typical_values()
    assert typical["b"] / typical["k"] == pytest.approx(2.5, rel=0.3)


@pytest.mark.parametrize("count", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_a_plain_neural_equation_learns_slopes_that_change_in_time(count):
    times = torch.linspace(0.0, 6.0, 13)
    batch = collate(Cohort(tuple(Subject(str(k), times.tolist(), [1.0] * 13) for k in range(count))))
    start = 2.0 + 0.4 * torch.arange(float(count))
    lines = start[:, None] + torch.sin(times)  # y' = cos t, which no function of y alone can be
    errors = {}
    for time in (True, False):
        torch.manual_seed(0)
        field = NeuralField(OrnsteinUhlenbeck(1.0), 0, hidden=16, time=time)
        field.build(Scaling(6.0, 1.0, (2.0,)))
        optimizer = torch.optim.Adam(field.parameters(), lr=0.02)
        for _ in range(250):
            found = solve_batch(field, start[:, None], batch, engine=Auto(rtol=1e-3, atol=1e-4), y0=start[:, None])
            error = (found.states[..., 0] - lines).square().mean()
            optimizer.zero_grad()
            error.backward()
            optimizer.step()
        errors[time] = float(error.detach())
    assert errors[True] < 0.02, errors
    assert errors[False] > 0.1, errors


@pytest.mark.slow
def test_an_augmented_predator_and_prey_learn_what_the_equations_leave_out():
    truth, known = LotkaVolterra(logistic=True), {"alpha": 1.3, "beta": 0.9, "gamma": 1.8, "delta": 0.8}
    names = (*LotkaVolterra().parameter_names, "kappa")
    theta = torch.tensor([[1.3, 0.9, 1.8, 0.8, 1.5, 1.5, 0.3]])[:, [names.index(n) for n in truth.parameter_names]]
    times = torch.linspace(0.0, 8.0, 33)
    batch = collate(Cohort((Subject("1", times.tolist(), [1.0] * 33),)))
    lines = solve_batch(truth, theta, batch).states.detach()
    mechanism = FixedParameters(LotkaVolterra(), known)
    torch.manual_seed(0)
    learned = NeuralSlope(0, hidden=16, prior_sd=None)
    hybrid, own, errors = HybridDynamics(mechanism, learned), torch.tensor([[1.5, 1.5]]), []
    hybrid.build(Scaling(8.0, 1.0, (2.0, 2.0)))
    optimizer = torch.optim.Adam(hybrid.parameters(), lr=0.01)
    for _ in range(150):
        found = solve_batch(hybrid, own, batch, engine=Auto(rtol=1e-3, atol=1e-4), y0=own)
        error = (found.states - lines).square().mean()  # the talk's loss, over states and times
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        errors.append(float(error.detach()))
    assert errors[-1] < 0.05 * errors[0], errors[::20]
    # what it learned is the missing term, where the data were
    found = learned(times.new_zeros(33), lines[0], times.new_zeros((33, 0))).detach()
    missing = -0.3 * lines[0, :, 0] ** 2
    assert float((found[:, 0] - missing).square().mean()) < 0.2 * float(missing.square().mean())
