"""Stochastic dynamics: paths against closed forms, their likelihood against a Kalman filter, and their learning."""

import dataclasses
import math

import lightning as L
import numpy as np
import pytest
import torch
from closed_forms import PARAMETERS, Disposition

from neuralpk import randomness
from neuralpk.cohort import Cohort, Dose, Subject
from neuralpk.cohort_batch import collate
from neuralpk.cohort_simulation import Design, Population, simulate_cohort
from neuralpk.datamodules import SimulatedLotkaVolterraDataModule, SimulatedPKDataModule
from neuralpk.dynamics import CompartmentModel, FluctuatingClearance, OrnsteinUhlenbeck, StochasticLotkaVolterra
from neuralpk.encoders import RecurrentEncoder, SetEncoder
from neuralpk.objectives import ELBO, MarginalLikelihood, PathELBO, SquaredError, Step
from neuralpk.parameters import PopulationParameters
from neuralpk.path_guide import PathDraws, PathGuide
from neuralpk.population_model import PopulationModel
from neuralpk.residual_error import AdditiveError, LogNormalError
from neuralpk.scaling import Scaling
from neuralpk.solve import Noise, TorchSDE, solve_paths
from neuralpk.task import LatentTask

RATE, MEAN, START, SIGMA, ERROR = 0.8, 5.0, 6.0, 0.7, 0.3
NOISE = Noise(seed=3, stream=7)


def people(number, times, **options):
    return collate([Subject(str(k), times, np.ones(len(times)), **options) for k in range(number)], dtype=torch.float64)


def theta_of(number, *values):
    return torch.tensor([values], dtype=torch.float64).repeat(number, 1)


def ou():
    return OrnsteinUhlenbeck(SIGMA).double()


def paths(dynamics, theta, batch, step=0.1, noise=NOISE, gradient="backprop", **options):
    settings = TorchSDE(step, gradient)
    return solve_paths(dynamics, theta[:, None], batch, engine=settings, noise=noise, **options)


def test_a_brownian_motion_has_independent_increments_and_is_the_same_whatever_else_is_asked():
    subject, times = torch.arange(20_000), torch.tensor([[0.0, 0.37, 1.0, 2.52]])
    w = randomness.brownian(1, 2, subject, times.expand(len(subject), -1), 1, 1.0)[..., 0]
    assert w[:, 0].abs().max() == 0
    found = torch.cov(w[:, 1:].diff(dim=1, prepend=w[:, :1]).T)
    # standard error of a variance v from n draws: v·sqrt(2/n), 1 %
    torch.testing.assert_close(found, torch.diag(times[0].diff()).double(), rtol=0.05, atol=0.05)
    alone = randomness.brownian(1, 2, subject[5:6], times[:, 1:2], 1, 1.0)
    assert float(alone) == float(w[5, 1])


def test_marginals_of_an_ornstein_uhlenbeck_process_are_those_of_its_closed_form():
    n, times = 3000, np.array([0.0, 0.3, 1.0, 4.0])
    with torch.no_grad():
        x = paths(ou(), theta_of(n, RATE, MEAN, START), people(n, times)).states[..., 0].numpy()
    decay = np.exp(-RATE * times)
    variance = SIGMA**2 * (1 - decay**2) / (2 * RATE)
    # four standard errors, and what steps of .1 leave
    assert np.all(np.abs(x.mean(0) - (MEAN + (START - MEAN) * decay)) < 4 * np.sqrt(variance / n) + 2e-3)
    assert np.all(np.abs(x.var(0) - variance) < (4 * np.sqrt(2 / n) + 5e-3) * variance + 1e-12)
    covariance = np.cov(x[:, 2], x[:, 3])[0, 1]
    assert covariance == pytest.approx(variance[2] * math.exp(-RATE * 3.0), abs=4 * variance.max() / math.sqrt(n))


def test_multiplicative_noise_leaves_the_mean_of_a_growth_as_it_is():
    n, alpha = 3000, 0.4
    dynamics = StochasticLotkaVolterra(0.5).double()
    with torch.no_grad():
        found = paths(dynamics, theta_of(n, alpha, 1e-9, 1.0, 1e-9, 2.0, 1.0), people(n, [0.0, 1.0]))
    prey = dynamics.observe(found.states, found.theta)[:, 1, 0]
    # E x(t) = x(0)·exp(alpha·t) of Itô's equation; var log x = sigma²·t
    error = 4 * float(prey.std()) / math.sqrt(n)
    assert float(prey.mean()) == pytest.approx(2.0 * math.exp(alpha), abs=error)
    assert float(prey.log().std()) == pytest.approx(0.5, rel=0.04)


DOSES = (Dose(0, 100), Dose(5, 50), Dose(8, 60, duration=2.0, row=1))


def test_doses_are_jumps_and_infusions_inputs():
    mechanism, times = CompartmentModel(2), np.array([0.0, 4.9, 5.0, 9.0, 10.0, 14.0])
    theta = theta_of(1, *(PARAMETERS[name] for name in mechanism.parameter_names))
    batch = people(1, times, doses=DOSES)
    quiet = FluctuatingClearance(mechanism, 1e-9, 0.1).double()
    with torch.no_grad():
        found = paths(quiet, theta, batch)
    exact = Disposition.of(2)
    expected = exact.bolus(times, 100) + exact.bolus(times - 5, 50) + exact.infusion(times - 8, 60, 2)
    central = quiet.observe(found.states, found.theta)[0, :, 0].numpy()
    np.testing.assert_allclose(central, expected, rtol=1e-3)  # second order in kh = .04
    loud = FluctuatingClearance(mechanism, 0.5, 0.1).double()
    twice = people(1, [5.0, 5.0], doses=DOSES[:2], rows=[-1, 3])
    with torch.no_grad():
        around = paths(loud, theta, twice).states
    torch.testing.assert_close(around[0, 1] - around[0, 0], torch.tensor([50.0, 0.0, 0.0], dtype=torch.float64))
    assert around[0, 0, 2] != 0


def test_a_path_does_not_depend_on_batch_mates():
    dynamics, theta = ou(), theta_of(3, RATE, MEAN, START)
    times = ([0.0, 0.7, 3.1], [0.0, 0.21, 0.4, 7.0], [0.5, 0.9])
    batch = collate([Subject(str(k), t, np.ones(len(t))) for k, t in enumerate(times)], dtype=torch.float64)
    together = paths(dynamics, theta, batch).states.detach()
    for k, t in enumerate(times):
        one = batch.select(torch.tensor([k])).trimmed()
        alone = paths(dynamics, theta[:1], one).states.detach()
        torch.testing.assert_close(together[k, : len(t)], alone[0], rtol=1e-12, atol=1e-12)
    twice = paths(dynamics, theta[:2], batch.select(torch.tensor([1, 1]))).states.detach()
    assert float(twice[0, -1]) != float(twice[1, -1])  # who stands there twice has two paths


def test_steady_state_is_refused():
    dynamics = FluctuatingClearance(CompartmentModel(1), 0.1, 0.1).double()
    batch = people(1, [1.0], doses=(Dose(0, 100, interval=12, steady_state=1),))
    with pytest.raises(ValueError, match="no steady state"):
        paths(dynamics, theta_of(1, 4.0, 30.0), batch)


def ou_cohort(subjects, samples=8):
    population = Population({"rate": RATE, "mean": MEAN, "start": START})
    design = Design(((),), tuple(np.linspace(0, 6, 25)), samples, grid=(0.0, 6.0))
    error = AdditiveError.from_values(a=ERROR)
    return simulate_cohort(ou(), population, design, error, subjects, seed=1)


class GuidedModel(torch.nn.Module):
    """A model with its encoder and its guide."""

    def __init__(self, model, scaling):
        super().__init__()
        self.model, self.encoder, self.guide = model, RecurrentEncoder(8), PathGuide(8)
        self.encoder.build(scaling, model.latent_size)
        self.guide.build(model, scaling)

    def draw(self, batch, normal, noise) -> PathDraws:
        return self.guide.draw(self.model, self.encoder(batch), batch, normal, noise)


def ou_model(cohort, gradient="backprop"):
    """The truth without variability, with a guide whose network has weights that matter."""
    scaling = Scaling.of(cohort)
    torch.manual_seed(0)
    typical = {"rate": RATE, "mean": MEAN, "start": START}
    # next to no variability: three latent dimensions that change nothing
    population = PopulationParameters.from_values(typical, dict.fromkeys(typical, 1e-12), scaling=scaling)
    error, engine = AdditiveError.from_values(a=ERROR), TorchSDE(0.1, gradient)
    model = PopulationModel(ou(), population, error, engine).build(scaling, torch.float64)
    guided = GuidedModel(model, scaling).double()
    torch.nn.init.normal_(guided.guide.network[-1].weight, std=0.1)
    return guided


def kalman_log_likelihood(subject):
    mean, variance, last, total = START, 0.0, subject.times[0], 0.0
    for time, value in zip(subject.times, subject.values, strict=True):
        decay = math.exp(-RATE * (time - last))
        mean = MEAN + (mean - MEAN) * decay
        variance = variance * decay**2 + SIGMA**2 * (1 - decay**2) / (2 * RATE)
        spread = variance + ERROR**2
        total -= 0.5 * (math.log(2 * math.pi * spread) + (value - mean) ** 2 / spread)
        mean, variance, last = mean + variance / spread * (value - mean), variance * ERROR**2 / spread, time
    return total


def test_selected_paths_give_the_likelihood_of_the_kalman_filter():
    cohort, draws, filters = ou_cohort(8), 40, 12
    model, batch = ou_model(cohort), collate(cohort, dtype=torch.float64)
    normal = torch.zeros(len(batch), draws, 3, dtype=torch.float64)
    with torch.no_grad():
        constant = model.encoder(batch).sd.log().sum(1, keepdim=True)  # of the z, which say nothing
        runs = [model.draw(batch, normal, Noise(0, k)).paths for k in range(filters)]
    weight = torch.stack([run.log_weight.reshape(len(batch), draws).logsumexp(1) for run in runs], 1)
    weight = weight - math.log(draws) - constant
    found = (weight.logsumexp(1) - math.log(filters)).numpy()
    share = filters * weight.softmax(1).numpy()
    error = share.std(1, ddof=1) / np.sqrt(filters)
    expected = np.array([kalman_log_likelihood(subject) for subject in cohort])
    assert error.max() < 0.2
    assert np.all(np.abs(found - expected) < 5 * error)
    assert abs((found - expected).sum()) < 3 * np.sqrt((error**2).sum())
    # the guide is not the exact posterior: one path alone is on average worth less
    with torch.no_grad():
        alone = model.draw(batch, normal[:, :1], NOISE).paths.log_weight - constant[:, 0]
    assert float(alone.mean()) < expected.mean() - 0.1


def test_selected_paths_are_whole_and_near_the_samples():
    cohort, draws = ou_cohort(3), 60
    model, batch = ou_model(cohort), collate(cohort, dtype=torch.float64)
    unguided = batch.unseen()
    with torch.no_grad():
        drawn = model.draw(unguided, torch.zeros(3, draws, 3, dtype=torch.float64), NOISE)
        alone = model.draw(unguided.repeat(draws), torch.zeros(3 * draws, 1, 3, dtype=torch.float64), NOISE)
        fit = model.model.error.log_likelihood(batch.repeat(draws), drawn.value).sum(1)
    torch.testing.assert_close(drawn.log_likelihood, fit)
    value = drawn.value.reshape(3, draws, -1)
    # survivors share their beginnings
    for k in range(3):
        assert len(value[k, :, 1].unique()) < draws / 3 < len(value[k, :, -1].unique())
    distance = [(one.value.reshape(value.shape) - batch.value[:, None]).abs().mean() for one in (drawn, alone)]
    assert float(distance[0]) < 0.6 * float(distance[1])


def test_without_a_sample_ahead_the_posterior_is_the_prior():
    cohort = ou_cohort(3)
    model, batch = ou_model(cohort), collate(cohort, dtype=torch.float64)
    unread = batch.unseen()
    with torch.no_grad():
        normal = torch.zeros(3, 1, 3, dtype=torch.float64)
        free, guided = (model.draw(b, normal, NOISE).paths for b in (unread, batch))
        theta = theta_of(3, RATE, MEAN, START)
        prior = paths(model.model.dynamics, theta, batch)
    assert free.kl.abs().max() == 0
    torch.testing.assert_close(free.states, prior.states)
    assert float(guided.kl.min()) > 0.1


def test_adjoint_and_backprop_give_the_same_gradients():
    cohort, gradients = ou_cohort(3, samples=4), []
    batch = collate(cohort, dtype=torch.float64)
    for gradient in ("backprop", "adjoint"):
        model = ou_model(cohort, gradient)
        drawn = model.draw(batch, torch.zeros(3, 1, 3, dtype=torch.float64), NOISE)
        drawn.paths.log_weight.sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    first, second = gradients
    assert (
        {"model.dynamics.log_sigma", "guide.gain", "guide.network.0.weight", "guide.reader.cell.weight_hh"}
        <= set(first)
        == set(second)
    )
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-8, atol=1e-9, msg=name)
    assert float(first["guide.reader.cell.weight_hh"].abs().max()) > 1e-6


def test_a_simulated_path_is_the_truth_and_belongs_to_its_subject():
    data = [SimulatedLotkaVolterraDataModule(subjects=n, noise=0.2, samples=5) for n in (2, 4)]
    small, large = (module.part("train") for module in data)
    np.testing.assert_allclose(small[1].truth.line, large[1].truth.line, rtol=1e-9)
    assert small[0].truth.parameters["sigma_log_prey"] == pytest.approx(0.2)
    line = np.log(small[0].truth.line[:, 0])
    smooth = SimulatedLotkaVolterraDataModule(subjects=2, samples=5).part("train")[0].truth.line[:, 0]
    assert np.diff(line, 2).std() > 5 * np.diff(np.log(smooth), 2).std()
    patient = SimulatedPKDataModule(subjects=1, noise=0.1).part("train")[0]
    assert patient.truth.line[0, 0] > patient.truth.line[-1, 0] > 0


def quick(task, data, epochs):
    trainer = L.Trainer(
        max_epochs=epochs, accelerator="cpu", gradient_clip_val=5.0, logger=False, limit_val_batches=0,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(task, data)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def task_of(data):
    task = LatentTask(
        StochasticLotkaVolterra(0.5),
        PopulationParameters(omega=0.15),
        LogNormalError(),
        TorchSDE(step=0.5),
        RecurrentEncoder(16),
        PathGuide(16),
        PathELBO(draws=2),
        learning_rate=0.02,
    )
    return task.build(data.scaling())


def test_a_training_finds_the_size_of_the_noise():
    data = SimulatedLotkaVolterraDataModule(40, omega={}, noise=0.2, samples=9, times=list(np.arange(0, 5, 0.5)))
    data.passes_per_epoch = 20
    task = task_of(data)
    first = quick(task_of(data), data, 1)["train_loss"]
    last = quick(task, data, 4)["train_loss"]
    sigma = task.model.dynamics.log_sigma.exp().tolist()
    assert last < first - 0.2
    assert max(sigma) < 0.38  # from .5 towards the true .2, after eighty steps
    assert min(sigma) > 0.12
    result = task.reconstruct(data.part("train")[:3], draws=20)
    width = result.upper - result.lower
    assert np.all(width > 0)
    told = Cohort(tuple(dataclasses.replace(s, values=2 * s.values) for s in data.part("train")[:3]))
    other = task.reconstruct(told, draws=0)
    np.testing.assert_allclose(other.pred, result.pred, rtol=1e-5)  # the population alone
    assert np.abs(np.log(other.ipred / result.ipred)).mean() > 0.3


OU, GUIDE, SAMPLES = OrnsteinUhlenbeck(0.3), PathGuide(8), SetEncoder(8)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"dynamics": OU, "guide": GUIDE, "encoder": SAMPLES, "objective": SquaredError()}, "objective PathELBO, not"),
        ({"dynamics": OU, "guide": GUIDE, "encoder": SAMPLES, "objective": ELBO()}, "objective PathELBO, not"),
        ({"dynamics": OU, "guide": GUIDE, "objective": MarginalLikelihood()}, "objective PathELBO, not"),
        ({"dynamics": OU, "encoder": SAMPLES, "objective": PathELBO()}, "needs a guide for its paths"),
        ({"dynamics": OU, "guide": GUIDE, "objective": PathELBO()}, "from an encoder"),
        ({"dynamics": CompartmentModel(), "encoder": SAMPLES, "objective": PathELBO()}, "CompartmentModel has none"),
        (
            {"dynamics": CompartmentModel(), "encoder": SAMPLES, "guide": GUIDE, "objective": ELBO()},
            "a guide is for a dynamics with noise",
        ),
    ],
)
def test_parts_that_do_not_go_with_noise_are_refused(parts, words):
    with pytest.raises(ValueError, match=words):
        LatentTask(**parts)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: FluctuatingClearance(CompartmentModel(1), -0.1), "sigma, .*, must be positive"),
        (lambda: FluctuatingClearance(CompartmentModel(1, elimination="michaelis_menten"), 0.1), "linear elimination"),
        (lambda: SimulatedLotkaVolterraDataModule(logistic=True, noise=0.1), "leave logistic or noise out"),
        (lambda: PathELBO(draws=0), "draws must be 1 or more"),
    ],
)
def test_options_that_do_not_go_with_noise_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize("encoder", [SetEncoder(8), RecurrentEncoder(8)], ids=["set", "recurrent"])
def test_any_encoder_goes_with_a_guide(encoder):
    cohort = ou_cohort(3, samples=4)
    task = LatentTask(
        OrnsteinUhlenbeck(SIGMA), encoder=encoder, guide=PathGuide(8), engine=TorchSDE(0.5), objective=PathELBO()
    )
    task.build(Scaling.of(cohort))
    loss = task.loss(collate(cohort), Step(0, 1))
    loss.total.backward()
    assert bool(torch.isfinite(loss.total))
    assert all(weight.grad is not None for weight in [*task.encoder.parameters(), *task.guide.parameters()])
