"""What a training minimises: the marginal likelihood against quadrature, which weights each term trains, and priors."""

from __future__ import annotations

import dataclasses

import lightning as L
import numpy as np
import pytest
import quadrature
import torch
from stopping import Stop
from torch import Tensor

from neuralpk import randomness
from neuralpk.cohort import Cohort
from neuralpk.cohort_batch import CohortBatch, collate
from neuralpk.datamodules import SimulatedLotkaVolterraDataModule, SimulatedPKDataModule
from neuralpk.diagnostics.metrics import line_rrmse
from neuralpk.dynamics import CompartmentModel, LotkaVolterra, NeuralCompartments, NeuralField
from neuralpk.encoders import Posterior, SetEncoder
from neuralpk.inference import importance
from neuralpk.inference.map import maximise
from neuralpk.objectives import ELBO, Loss, MarginalLikelihood, Objective, SquaredError, Step
from neuralpk.parameters import PopulationParameters
from neuralpk.population_model import PopulationModel
from neuralpk.residual_error import LogNormalError
from neuralpk.scaling import Scaling
from neuralpk.solve import Auto
from neuralpk.task import LatentTask

UNSOLVABLE = 3000.0  # exp(0.35 · 3000) is no number
RECORDS = ("time", "value", "limit", "compartment", "endpoint", "censored", "row", "mask", "observed")
RECORDS += ("context", "target")
SMALL = {"subjects": 8, "compartments": 1, "typical": {"CL": 4.0, "V1": 70.0}, "samples": 5, "grid": [0.25, 72.0, 20]}


def bolus(subjects: int = 6, lloq: float = 0.0) -> tuple[PopulationModel, SetEncoder, CohortBatch, Cohort]:
    people = quadrature.cohort(subjects, lloq)
    model, encoder = quadrature.model(people), SetEncoder(8)
    torch.manual_seed(2)
    encoder.build(Scaling.of(people), model.latent_size)
    return model, encoder.double(), collate(people, dtype=torch.float64), people


def loss_of(
    model: PopulationModel,
    encoder: torch.nn.Module | None,
    batch: CohortBatch,
    draws: int = 20,
    steps: int = 3,
    training: bool = False,
    seed: int = 0,
) -> Loss:
    """With the random numbers of an evaluation, or of the second step of a training, which simulates patients too."""
    return MarginalLikelihood(draws, steps).loss(model, encoder, None, batch, Step(seed, 1 if training else None))


def wide(column: Tensor) -> Tensor:
    """Two records of padding more; the last one is repeated, and its mask is cleared."""
    more = column[:, -1:].expand(-1, 2)
    return torch.cat([column, torch.zeros_like(more) if column.dtype == torch.bool else more], dim=1)


def gradients(loss: Tensor, parameters: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(loss, parameters, retain_graph=True, materialize_grads=True))


# ---- the marginal likelihood


@pytest.mark.parametrize("lloq", [0.0, 2.0])
def test_the_fit_is_the_likelihood_of_quadrature_and_so_is_its_gradient(lloq: float) -> None:
    model, encoder, batch, people = bolus(6, lloq)
    at = quadrature.coordinates(model)
    value = -quadrature.log_likelihood(at, people).sum()
    expected = torch.cat([value.detach()[None], *torch.autograd.grad(value, at)])
    population, found = model.population, []
    for seed in range(16):
        fit = loss_of(model, encoder, batch, 1000, steps=10, seed=seed).fit
        slopes = gradients(fit, [population.location, population.log_omega, model.error.log_values["a"]])
        found.append(torch.cat([fit.detach()[None], *slopes]))
    means = torch.stack(found)
    error = means.std(0) / 4.0
    # of the value and of every slope (Fisher's identity): five standard errors of a mean of sixteen, which are small
    # beside the slopes, of order one for each patient
    assert ((means.mean(0) - expected).abs() < 5 * error).all()
    assert (error < 0.3).all()
    assert float(error[0]) < 0.02


def test_more_draws_come_closer_from_above() -> None:
    model, encoder, batch, people = bolus(6)
    exact = float(-quadrature.log_likelihood(quadrature.coordinates(model), people).detach().sum())
    by_count = []
    for draws in (1, 5, 100):
        with torch.no_grad():
            fits = [loss_of(model, encoder, batch, draws, steps=4, seed=seed).fit for seed in range(12)]
        by_count.append(np.mean([float(fit) for fit in fits]))
    # a logarithm of a mean is too small on the average (Burda et al. 2016), the less so the more draws
    assert by_count[0] > by_count[1] + 0.1
    assert by_count[1] > exact
    assert by_count[2] == pytest.approx(exact, abs=0.05)


def test_each_term_trains_its_own_weights() -> None:
    model, encoder, batch, _ = bolus()
    loss = loss_of(model, encoder, batch, training=True)
    network, population = list(encoder.parameters()), model.population_weights()
    assert all(not slope.any() for slope in gradients(loss.fit, network))
    assert all(not slope.any() for slope in gradients(loss.encoder, population))
    assert all(slope.any() for slope in gradients(loss.encoder, network))
    learned = [model.population.location, model.population.log_omega]
    assert all(slope.all() for slope in gradients(loss.fit, [*learned, *model.error.parameters()]))
    assert loss.parts()["kl"] == 0 == loss.parts()["penalty"]


def test_without_an_encoder_the_search_starts_from_the_typical_patient() -> None:
    model, _, batch, people = bolus()
    loss = loss_of(model, None, batch, draws=1000, steps=10, training=True)
    assert loss.encoder is None
    exact = float(-quadrature.log_likelihood(quadrature.coordinates(model), people).detach().sum())
    assert float(loss.fit.detach()) == pytest.approx(exact, abs=0.3)  # as the standard error of the slopes above
    population = [model.population.location, model.population.log_omega]
    assert all(slope.all() for slope in gradients(loss.fit, population))


def test_the_encoder_learns_where_the_draws_of_most_weight_are() -> None:
    model, encoder, batch, _ = bolus()
    noise = importance.noise(0, Step(0).stream, batch.index, 50, 2, torch.float64)
    optimizer = torch.optim.Adam(encoder.parameters(), 0.05)
    for _ in range(60):
        optimizer.zero_grad()
        loss_of(model, encoder, batch, 50).encoder.backward()
        optimizer.step()
    with torch.no_grad():
        q = encoder(batch)
        draws = importance.draw(model, batch, maximise(model, batch, q.mean), noise)
    mean = (draws.weight[..., None] * draws.z).sum(1)
    rich = batch.mask.sum(1) > 1
    assert float((q.mean - mean)[rich].abs().mean()) < 0.5 * float(mean[rich].abs().mean())


def test_all_that_is_read_or_scored_counts_once() -> None:
    model, encoder, batch, _ = bolus()
    column = torch.arange(batch.mask.shape[1])
    read = dataclasses.replace(batch, context=batch.context & (column < 2), target=batch.target & (column >= 1))
    with torch.no_grad():
        parts, whole = loss_of(model, encoder, read, steps=30), loss_of(model, encoder, batch, steps=30)
    assert int(parts.observations) == int(batch.mask.sum())
    # another start of the same search, which ends within a gain of 1e-5
    assert float(parts.fit) == pytest.approx(float(whole.fit), abs=0.01)


@pytest.mark.parametrize("cut", [1, 4])
def test_parts_of_a_batch_add_up(cut: int) -> None:
    model, encoder, batch, _ = bolus(6, lloq=2.0)

    def terms(rows: Tensor) -> dict[str, Tensor]:
        loss = loss_of(model, encoder, batch.select(rows), training=True)
        counts = {"observations": loss.observations, "failures": loss.failures, "total": loss.total}
        return loss.parts() | counts | {"value": loss.value}

    whole = terms(torch.arange(6))
    parts = [terms(rows) for rows in torch.arange(6).tensor_split([cut])]
    for name, value in whole.items():
        # sums in another order
        torch.testing.assert_close(sum(part[name] for part in parts), value, rtol=1e-9, atol=1e-9, msg=name)


def test_padding_changes_neither_loss_nor_gradient() -> None:
    model, encoder, batch, _ = bolus()
    assert not bool(batch.mask.all())
    other = dataclasses.replace(batch, value=torch.where(batch.mask, batch.value, 1e6))
    wider = dataclasses.replace(batch, **{name: wide(getattr(batch, name)) for name in RECORDS})
    parameters = [*model.parameters(), *encoder.parameters()]
    outcomes = []
    for given in (batch, other, wider):
        loss = loss_of(model, encoder, given, training=True)
        total = loss.fit + loss.encoder
        outcomes.append([total.detach(), *gradients(total, parameters)])
    for left, right in zip(outcomes[0], outcomes[1], strict=True):
        assert torch.equal(left, right)
    for left, right in zip(outcomes[0], outcomes[2], strict=True):
        torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-9)  # longer sums round otherwise


def test_a_patient_who_cannot_be_solved_is_counted_and_spoils_nothing() -> None:
    model, encoder, batch, _ = bolus(4)
    others = torch.tensor([0, 1, 3])

    class Lost(torch.nn.Module):
        """Puts the third of four where nothing can be solved, and none of the others."""

        def forward(self, given: CohortBatch) -> Posterior:
            q = encoder(given)
            bad = torch.tensor([i == "2" for i in given.ids])
            return q._replace(mean=torch.where(bad[:, None], UNSOLVABLE, q.mean))

    parameters = model.population_weights()
    expected = loss_of(model, encoder, batch.select(others))
    found = loss_of(model, Lost(), batch)
    assert (int(found.failures), int(expected.failures)) == (1, 0)
    assert int(found.observations) == int(expected.observations)
    torch.testing.assert_close(found.fit, expected.fit, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.encoder, expected.encoder, rtol=1e-9, atol=1e-9)
    for left, right in zip(gradients(found.fit, parameters), gradients(expected.fit, parameters), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-9)


# ---- simulated patients


def test_simulated_patients_are_sampled_like_the_others_and_have_their_own_values() -> None:
    model, _, batch, _ = bolus(6, lloq=2.0)
    z = randomness.normal(0, 1, batch.index, 2)
    noise = randomness.normal(0, 2, batch.index, batch.time.shape[1])
    with torch.no_grad():
        found, again = model.simulate(z, noise, batch), model.simulate(z, noise, batch)
    for item in dataclasses.fields(CohortBatch):
        before, after = getattr(batch, item.name), getattr(found, item.name)
        if isinstance(after, Tensor) and item.name not in ("value", "censored"):
            assert torch.equal(before, after), item.name
    assert torch.equal(found.value, again.value)
    expected = model.predict(z, batch).value.detach()
    # a value that was never below a limit of quantification
    assert not found.censored.any()
    sampled = (expected + quadrature.SD * noise)[batch.mask]
    torch.testing.assert_close(found.value[batch.mask], sampled, rtol=1e-6, atol=1e-6)
    other = model.simulate(z, -noise, batch)
    assert not (other.value == found.value)[batch.mask].any()


# ---- the task


def one_compartment(
    data: L.LightningDataModule,
    objective: Objective | None = None,
    parameters: PopulationParameters | None = None,
    **options: float,
) -> LatentTask:
    """With the weights of seed 0, whatever is drawn later in the process."""
    torch.manual_seed(0)
    objective = objective or MarginalLikelihood(draws=4, map_steps=2)
    task = LatentTask(CompartmentModel(1), parameters, encoder=SetEncoder(8), objective=objective, **options)
    return task.build(data.scaling())


def quiet(**options: object) -> L.Trainer:
    defaults = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    defaults |= {"enable_model_summary": False, "num_sanity_val_steps": 0, "limit_val_batches": 0}
    return L.Trainer(**(defaults | options))


def weights(task: LatentTask) -> list[Tensor]:
    return [value.detach().clone() for value in task.parameters()]


def same(left: list[Tensor], right: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def test_a_training_by_marginal_likelihood_runs_validates_and_estimates() -> None:
    data = SimulatedPKDataModule(**SMALL, validation=0.25)
    task = one_compartment(data)
    trainer = quiet(fast_dev_run=True, limit_val_batches=1)
    trainer.fit(task, data)
    logged = trainer.callback_metrics
    assert {"train_encoder", "val_fit", "val_rmse", "val_encoder"} <= set(logged)
    assert all(value.isfinite() for value in logged.values())
    assert logged["train_fit"] == logged["train_loss"]
    assert not task.model.has_parameter_draws
    estimate = task.covariance_step(data.part("train"), draws=20)
    torch.testing.assert_close(
        task.model.parameter_draws.double(), estimate.parameter_draws, rtol=1e-5, atol=1e-6
    )  # in float32
    estimates = task.reconstruct(data.part("val"), draws=10)
    assert np.isfinite(estimates.z).all()


def test_one_seed_gives_one_training_and_another_seed_another() -> None:
    data = SimulatedPKDataModule(**SMALL, passes_per_epoch=2)
    found = []
    for seed in (3, 3, 4):
        task = one_compartment(data, seed=seed)
        torch.manual_seed(len(found))  # what else draws in a process must not matter
        quiet(max_epochs=1).fit(task, data)
        found.append(weights(task))
    assert same(found[0], found[1])
    assert not same(found[0], found[2])


def test_a_resumed_training_by_marginal_likelihood_is_the_straight_one(tmp_path) -> None:
    def run(path: str | None, stop: int) -> list[Tensor]:
        data = SimulatedPKDataModule(**SMALL, passes_per_epoch=2, batch_size=5, context="random")
        task = one_compartment(data)
        torch.manual_seed(123 + stop)
        quiet(max_epochs=3, gradient_clip_val=5.0, callbacks=[Stop(stop, tmp_path / "part.ckpt")]).fit(
            task, data, ckpt_path=path
        )
        return weights(task)

    straight, broken = run(None, 1000), run(None, 5)
    assert not same(straight, broken)
    assert same(straight, run(str(tmp_path / "part.ckpt"), 1000))


def test_a_squared_error_has_neither_a_likelihood_nor_a_map() -> None:
    data = SimulatedPKDataModule(**SMALL)
    task = one_compartment(data, objective=SquaredError())
    with pytest.raises(ValueError, match="no likelihood"):
        task.covariance_step(data.part("test"))
    with pytest.raises(ValueError, match="map must be false"):
        task.reconstruct(data.part("test"), map=True)


@pytest.mark.parametrize("wrong", [{"draws": 0}, {"map_steps": -1}])
def test_draws_and_steps_that_cannot_be_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="draws must be 1 or more and map_steps 0 or more"):
        MarginalLikelihood(**wrong)


class ByGradient(MarginalLikelihood):
    """Without the estimator of the population."""

    def estimator(self, *_: object) -> None:
        return None


@pytest.mark.parametrize("objective", [ELBO(), ByGradient(draws=4, map_steps=2)], ids=["elbo", "marginal"])
@pytest.mark.parametrize("size", [None, 3])
def test_the_prior_counts_once_in_a_pass_whatever_the_size_of_the_batches(
    objective: Objective, size: int | None
) -> None:
    data = SimulatedPKDataModule(**SMALL, batch_size=size)
    task = one_compartment(data, objective, PopulationParameters(omega=0.4, omega_prior_sd=0.5), learning_rate=1e-12)
    with torch.no_grad():
        task.model.population.log_omega += torch.tensor([0.3, -0.6])
    known = float(task.model.log_prior().detach())
    assert known == pytest.approx(-0.5 * (0.3**2 + 0.6**2) / 0.5**2, rel=1e-5)
    shares = []

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
            shares.append((seen["data"] - float(outputs["loss"])) * seen["observations"])

    seen: dict[str, float] = {}
    original = task.loss

    def watched(batch: CohortBatch, step: Step) -> Loss:
        loss = original(batch, step)
        seen["observations"] = float(loss.observations)
        seen["data"] = float(loss.total.detach() / loss.observations)
        return loss

    task.loss = watched
    quiet(max_epochs=1, callbacks=[Watch()]).fit(task, data)
    assert len(shares) == (1 if size is None else 3)
    # a difference of two float32 losses of order one, times forty observations
    assert sum(shares) == pytest.approx(known, abs=1e-3)


# ---- networks


@pytest.mark.slow
def test_a_neural_field_learns_the_rate_of_an_elimination_that_saturates() -> None:
    torch.manual_seed(0)
    typical, spread = {"V1": 70.0, "VMAX": 4.0, "KM": 0.15}, dict.fromkeys(("V1", "VMAX", "KM"), 0.2)
    data = SimulatedPKDataModule(
        subjects=30,
        compartments=1,
        elimination="michaelis_menten",
        typical=typical,
        omega=spread,
        doses=[20.0, 60.0, 120.0],
        times=[0.5, 2.0, 4.0, 8.0, 12.0, 18.0, 24.0, 36.0],
        error_sd={"b": 0.1},
        passes_per_epoch=20,
        seed=100,
    )
    parameters, objective = PopulationParameters(omega=0.4, omega_prior_sd=0.7), MarginalLikelihood(8, 2)
    dynamics = NeuralCompartments(CompartmentModel(1))
    task = LatentTask(dynamics, parameters, encoder=SetEncoder(), objective=objective, learning_rate=0.02)
    quiet(max_epochs=6, gradient_clip_val=5.0).fit(task, data)
    field, population = task.model.dynamics, task.model.population
    theta = population.location.exp().detach()[None].expand(3, -1)
    amount = torch.tensor([[0.1], [30.0], [100.0]])
    with torch.no_grad():
        clearance = field.rates(torch.zeros(3), amount, theta)[:, 0] * theta[0, 1]
    truth = typical["VMAX"] / (typical["KM"] + amount[:, 0] / typical["V1"])
    bent, true = (torch.log(each[1:] / each[:1]) for each in (clearance, truth))
    assert bool((bent < 0.3 * true).all()) and bool((bent > 1.3 * true).all()), (bent, true)


@pytest.mark.slow
def test_a_network_learns_the_cycle_of_predator_and_prey_with_a_horizon_that_grows_and_not_without() -> None:
    times = np.linspace(0.0, 8.0, 40).tolist()
    data = SimulatedLotkaVolterraDataModule(test_subjects=20, times=times, samples=20, passes_per_epoch=20, seed=100)
    people = data.part("test")
    true = np.stack([subject.truth.line for subject in people])[..., 0]
    error = {"flat": float(line_rrmse(np.broadcast_to(true.mean(1, keepdims=True), true.shape), true).mean())}
    for horizon in (0.8, 0.0):
        torch.manual_seed(0)
        task = LatentTask(
            NeuralField(LotkaVolterra(), hidden=16),
            error=LogNormalError(),
            engine=Auto(rtol=1e-3, atol=1e-3),
            encoder=SetEncoder(),
            objective=MarginalLikelihood(draws=4, map_steps=3),
            horizon=horizon,
            learning_rate=0.02,
        )
        quiet(max_epochs=20, gradient_clip_val=5.0).fit(task, data)
        found = task.reconstruct(people, people[0].truth.times.tolist(), draws=0).ipred[..., 0]
        error[str(horizon)] = float(line_rrmse(found, true).mean())
    assert error["0.8"] < 0.5 * error["flat"] < error["0.0"], error
