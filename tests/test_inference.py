"""Inference of z and of the population, against closed forms, quadrature and derivatives found otherwise."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import quadrature
import torch
from quadrature import OMEGA, SD
from scipy import stats
from torch import Tensor

from neuralpk.cohort import Cohort, Dose, Subject
from neuralpk.cohort_batch import CohortBatch, collate
from neuralpk.dynamics import CompartmentModel, Dynamics
from neuralpk.estimation.exact_likelihood import log_likelihood
from neuralpk.estimation.standard_errors import PopulationEstimate, _inverse, standard_errors
from neuralpk.inference import importance, joint, tempering
from neuralpk.inference.map import Mode, map_estimate, maxima, maximise, root
from neuralpk.parameters import PopulationParameters
from neuralpk.population_model import PopulationModel, Prediction
from neuralpk.randomness import Stream
from neuralpk.residual_error import AdditiveError, error_class
from neuralpk.scaling import Scaling
from neuralpk.solve import SolveError, Status

UNSOLVABLE = 3000.0  # exp(0.35 · 3000) is no number


class StraightLine(Dynamics):
    """y(t) = z1 + z2·t, so that log p(y, z) is a parabola and every answer has a closed form."""

    states = ("y", "slope")
    parameter_names = ("z1", "z2")
    linear = True

    def forward(self, t: Tensor, y: Tensor, theta: Tensor) -> Tensor:
        return torch.stack([y[:, 1], torch.zeros_like(y[:, 1])], dim=-1)

    def rate_matrix(self, theta: Tensor) -> Tensor:
        k = theta.new_zeros((*theta.shape[:-1], 2, 2))
        k[..., 0, 1] = 1.0
        return k

    def initial_state(self, theta: Tensor) -> Tensor:
        return theta


def straight(sd: float = 0.5) -> tuple[PopulationModel, CohortBatch, list[np.ndarray]]:
    """The model, two patients, and the design matrix of each."""
    times = np.array([0.0, 1.0, 2.0, 4.0])
    people = [Subject("1", times, np.array([1.0, 1.7, 2.2, 4.1])), Subject("2", times[:2], np.array([-0.5, -1.9]))]
    made = PopulationModel(StraightLine(), error=AdditiveError.from_values(a=sd)).build(Scaling(), torch.float64)
    design = [np.stack([np.ones(len(p.times)), p.times], axis=1) for p in people]
    return made, collate(people, dtype=torch.float64), design


def bolus(subjects: int = 6, lloq: float = 0.0, fewest: int = 1) -> tuple[PopulationModel, CohortBatch, Cohort]:
    people = quadrature.cohort(subjects, lloq, fewest)
    return quadrature.model(people), collate(people, dtype=torch.float64), people


def drawn(model: PopulationModel, batch: CohortBatch, draws: int, seed: int = 0) -> importance.Draws:
    """Draws around the modes, without gradient."""
    with torch.no_grad():
        mode = maximise(model, batch, model.typical(len(batch)))
        return importance.draw(model, batch, mode, importance.noise(seed, 0, batch.index, draws, 2, torch.float64))


def differ(left: Mode | importance.Draws, right: Mode | importance.Draws) -> list[str]:
    """Which tensors are not equal to the last bit."""
    names = [item.name for item in dataclasses.fields(left)]
    return [name for name in names if not torch.equal(getattr(left, name), getattr(right, name))]


# ---- how much one observation says


@pytest.mark.parametrize("name", ["additive", "proportional", "combined", "log_normal"])
def test_the_information_of_an_observation_is_the_mean_square_of_its_score(name: str) -> None:
    error = error_class(name)()
    error.build(Scaling(value=(3.0, 50.0)))
    error.double()
    for k, own in enumerate(error.log_values.values()):
        own.data.copy_(torch.tensor([0.2 + 0.1 * k, 0.4], dtype=torch.float64).log())
    endpoint = torch.tensor([[0, 1, 1], [1, 0, 0]])
    f = torch.tensor([[0.7, 20.0, 90.0], [5.0, 3.0, 11.0]], dtype=torch.float64)
    nodes, weights = np.polynomial.hermite_e.hermegauss(20)
    x, share = torch.tensor(nodes), torch.tensor(weights / weights.sum())
    # the noise as simulated: y is a function of a standard normal x
    y = error.simulate(f[..., None], endpoint[..., None], x).detach()
    wide = f[..., None].expand_as(y).clone().requires_grad_()
    log_p = error.distribution(wide, endpoint[..., None].expand(y.shape)).log_prob(y)
    (score,) = torch.autograd.grad(log_p.sum(), wide)
    # the square of a score is a polynomial of degree 4 in x, for which twenty nodes are exact
    torch.testing.assert_close(error.information(f, endpoint), (score.square() * share).sum(-1), rtol=1e-10, atol=0.0)


# ---- log p(y, z)


def test_the_joint_density_is_that_of_scipy_and_counts_censored_records() -> None:
    model, batch, people = bolus(6, lloq=2.0)
    assert 0 < int(batch.censored.sum()) < int(batch.mask.sum())
    z = torch.linspace(-1.0, 1.5, 12, dtype=torch.float64).reshape(6, 2)
    expected = []
    for subject, (a, b) in zip(people, z.numpy(), strict=True):
        clearance, volume = quadrature.CL * np.exp(OMEGA * a), quadrature.V1 * np.exp(OMEGA * b)
        line = stats.norm(quadrature.DOSE / volume * np.exp(-clearance / volume * subject.times), SD)
        seen = np.where(subject.censored == 1, line.logcdf(subject.values), line.logpdf(subject.values))
        expected.append(seen.sum() + stats.norm.logpdf([a, b]).sum())
    found = joint.log_joint(model, z, batch).detach()
    # typical values and omega were guessed in single precision
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_the_gradient_in_z_is_that_of_finite_differences() -> None:
    model, batch, _ = bolus(4, lloq=2.0)
    step = 1e-4
    z = torch.tensor([[0.2, -0.3], [-1.0, 0.5], [0.0, 1.0], [0.4, 0.4]], dtype=torch.float64)
    value, slope = joint.gradient(model, z, batch)
    with torch.no_grad():
        torch.testing.assert_close(value, joint.log_joint(model, z, batch), rtol=0.0, atol=0.0)
        for k in range(2):
            by = step * torch.eye(2, dtype=torch.float64)[k]
            ends = [joint.log_joint(model, z + sign * by, batch) for sign in (1, -1)]
            # h² of a function whose third derivative is some tens
            torch.testing.assert_close(slope[:, k], (ends[0] - ends[1]) / (2 * step), rtol=1e-6, atol=1e-6)


def test_a_patient_who_cannot_be_solved_has_no_density_and_spoils_no_other() -> None:
    model, batch, _ = bolus(3)
    z = torch.zeros(3, 2, dtype=torch.float64)
    z[1] = UNSOLVABLE
    others = torch.tensor([0, 2])
    value, slope = joint.gradient(model, z, batch)
    expected, expected_slope = joint.gradient(model, z[others], batch.select(others))
    assert value[1] == -torch.inf
    assert slope[1].tolist() == [0.0, 0.0]
    torch.testing.assert_close(value[others], expected, rtol=0.0, atol=0.0)
    torch.testing.assert_close(slope[others], expected_slope, rtol=0.0, atol=0.0)
    precision = joint.information(model, z, batch)
    torch.testing.assert_close(precision[1], torch.eye(2, dtype=torch.float64))
    torch.testing.assert_close(precision[others], joint.information(model, z[others], batch.select(others)))


def test_where_nobody_can_be_solved_there_is_no_slope() -> None:
    model, batch, _ = bolus(2)
    z = torch.full((2, 2), UNSOLVABLE, dtype=torch.float64)
    value, slope = joint.gradient(model, z, batch)
    assert (value == -torch.inf).all()
    assert (slope == 0).all()
    assert (maximise(model, batch, z).log_joint == -torch.inf).all()


def test_a_search_of_one_patient_turns_back_from_where_there_is_no_line() -> None:
    model, batch, _ = bolus(1)
    batch = dataclasses.replace(batch, value=0.3 * batch.value)
    start = model.typical(1)
    first = maximise(model, batch, start, steps=1)
    bound = 0.5 * float(first.z[0, 0])
    refused = []

    def predict(z: Tensor, given: CohortBatch, original=model.predict) -> Prediction:
        prediction = original(z, given)
        beyond = z[:, 0] > bound
        refused.append(bool(beyond.any()))
        trajectory = prediction.trajectory
        status = torch.where(beyond, int(Status.NON_FINITE), trajectory.status)
        return dataclasses.replace(prediction, trajectory=dataclasses.replace(trajectory, status=status))

    model.predict = predict
    mode = maximise(model, batch, start)
    assert any(refused)
    assert 0 < float(mode.z[0, 0]) <= bound
    assert float(mode.log_joint) > float(joint.log_joint(model, start, batch).detach())


# ---- curvature and mode


def test_of_a_line_that_is_linear_in_z_curvature_mode_and_likelihood_are_the_closed_forms() -> None:
    sd = 0.5
    model, batch, design = straight(sd)
    mode = maximise(model, batch, model.typical(2))
    draws = drawn(model, batch, 4000)
    error = (draws.weight * 4000).std(1) / 4000**0.5
    assert (error < 0.03).all()
    for k, x in enumerate(design):
        y = batch.value[k, : len(x)].numpy()
        precision = np.eye(2) + x.T @ x / sd**2
        # a difference quotient of a straight line is its slope; sd was set in single precision
        np.testing.assert_allclose(mode.precision[k], precision, rtol=1e-7)
        # the search ends where a step promises a gain of 1e-5, and the damping of 1e-3 shortens the one to there
        np.testing.assert_allclose(mode.z[k], np.linalg.solve(precision, x.T @ y / sd**2), atol=1e-4)
        exact = stats.multivariate_normal(np.zeros(len(x)), x @ x.T + sd**2 * np.eye(len(x))).logpdf(y)
        # four Monte-Carlo standard errors
        assert float(draws.log_likelihood[k]) == pytest.approx(exact, abs=4 * float(error[k]))


def test_the_curvature_is_the_one_of_the_exact_slopes() -> None:
    model, batch, _ = bolus(4)
    z = torch.tensor([[0.2, -0.3], [-1.0, 0.5], [0.0, 1.0], [0.4, 0.4]], dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda z: model.predict(z, batch).value, z)
    slopes = torch.stack([jacobian[k, :, k] for k in range(4)])
    slopes = torch.where(batch.target[..., None], slopes, 0.0)
    expected = torch.eye(2, dtype=torch.float64) + slopes.mT @ slopes / SD**2
    # a forward difference over 0.01 of an exponential in 0.35·z is a few tenths of a percent off, twice in a square
    torch.testing.assert_close(joint.information(model, z, batch), expected, rtol=0.01, atol=0.05)


def test_a_search_works_where_lightning_evaluates() -> None:
    model, batch, _ = bolus(3)
    expected = maximise(model, batch, model.typical(3))
    with torch.inference_mode():
        found = maximise(model, batch.clone(), model.typical(3))
        assert not torch.is_grad_enabled()
    assert differ(found, expected) == []
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_censored_record_counts_and_a_hidden_one_does_not() -> None:
    model, batch, people = bolus(6, lloq=2.0)
    row = int((batch.censored == 1).any(1).nonzero()[-1])
    with_it = maximise(model, batch, model.typical(6))
    hidden = maximise(model, batch.scored_on(batch.target & (batch.censored == 0)), model.typical(6))
    subject = people[row]
    seen = subject.censored == 0
    without = dataclasses.replace(
        subject, **{n: getattr(subject, n)[seen] for n in ("times", "values", "censored", "endpoints")},
        compartments=None, limits=None, rows=None,
    )  # fmt: skip
    alone = maximise(model, collate([without], dtype=torch.float64), model.typical(1))
    assert float((with_it.z[row] - hidden.z[row]).norm()) > 0.01
    torch.testing.assert_close(hidden.z[row], alone.z[0], rtol=0.0, atol=1e-9)  # shorter rows round otherwise
    encoder_sees_less = dataclasses.replace(batch, context=batch.context & (batch.censored == 0))
    torch.testing.assert_close(
        map_estimate(model, encoder_sees_less, model.typical(6)).z, hidden.z, rtol=0.0, atol=1e-3
    )


def test_of_a_density_with_one_maximum_several_starts_find_that_of_one() -> None:
    model, batch, _ = bolus(6)
    expected = maximise(model, batch, model.typical(6), steps=200)
    found, other = maxima(model, batch, model.typical(6))
    assert bool(found.converged.all())
    torch.testing.assert_close(found.log_joint, expected.log_joint, rtol=0.0, atol=2e-5)
    torch.testing.assert_close(found.z, expected.z, rtol=0.0, atol=2e-3)
    assert torch.equal(other, found.z)
    with torch.inference_mode():
        assert torch.equal(maxima(model, batch.clone(), model.typical(6))[0].z, found.z)


def test_the_parts_of_a_wide_proposal_are_weighed_by_the_density_of_all() -> None:
    model, batch, design = straight()
    mode = maximise(model, batch, model.typical(2))
    other = dataclasses.replace(mode, z=mode.z + 1.0)
    noise = importance.noise(0, 0, batch.index, 20_000, 2, torch.float64)
    with torch.no_grad():
        expected, found = (
            importance.draw(model, batch, mode, noise),
            importance.draw_widely(model, batch, mode, other, noise),
        )
    torch.testing.assert_close(found.log_likelihood, expected.log_likelihood, rtol=0.0, atol=0.02)
    for k, rows in enumerate(design):
        exact = np.linalg.inv(np.eye(2) + rows.T @ rows / 0.5**2)
        spread = found.z[k] - mode.z[k]
        covariance = (found.weight[k, :, None] * spread).mT @ spread
        np.testing.assert_allclose(covariance.numpy(), exact, atol=0.03 * exact.max())


# ---- draws with weights


@pytest.mark.parametrize("lloq", [0.0, 2.0])
def test_the_likelihood_is_that_of_quadrature_within_its_error(lloq: float) -> None:
    model, batch, people = bolus(8, lloq)
    draws = drawn(model, batch, 4000)
    expected = quadrature.log_likelihood(quadrature.coordinates(model), people).detach()
    error = (draws.weight * 4000).std(1) / 4000**0.5
    assert (error < 0.03).all()  # Laplace's approximation is good: an effective share of half the draws or more
    # four Monte-Carlo standard errors, of eight subjects
    assert ((draws.log_likelihood - expected).abs() < 4 * error).all()


def test_the_draws_have_the_moments_of_the_posterior() -> None:
    model, batch, design = straight()
    draws = drawn(model, batch, 20_000)
    kept = draws.resample(5000)
    for k, x in enumerate(design):
        covariance = np.linalg.inv(np.eye(2) + x.T @ x / 0.5**2)
        mean = covariance @ x.T @ batch.value[k, : len(x)].numpy() / 0.5**2
        sd = np.sqrt(covariance.diagonal())
        # of ten thousand effective draws or more: five standard errors of a mean and of a 5 % or 95 % quantile
        np.testing.assert_allclose(kept[k].mean(0), mean, atol=5 * sd.max() / 100)
        ends = np.quantile(kept[k].numpy(), [0.05, 0.95], axis=0)
        np.testing.assert_allclose(ends, mean + np.outer([-1.645, 1.645], sd), atol=5 * 2.1 * sd.max() / 100)
    assert (draws.effective > 10_000).all()


def test_a_draw_is_kept_as_often_as_it_weighs() -> None:
    weight = torch.tensor([[0.1, 0.0, 0.63, 0.27]], dtype=torch.float64)
    z = torch.arange(4.0, dtype=torch.float64).reshape(1, 4, 1)
    draws = importance.Draws(z, torch.zeros_like(weight), weight.log())
    kept = draws.resample(100).flatten().long()
    assert torch.bincount(kept, minlength=4).tolist() == [10, 0, 63, 27]
    assert float(draws.effective) == pytest.approx(1 / (0.1**2 + 0.63**2 + 0.27**2))
    assert float(draws.log_likelihood) == pytest.approx(math.log(0.25))


def test_draws_of_equal_weight_are_all_effective() -> None:
    z = torch.zeros(3, 50, 2, dtype=torch.float64)
    same = torch.tensor([[-3.0], [0.0], [700.0]], dtype=torch.float64).expand(3, 50)
    draws = importance.Draws(z, torch.zeros_like(same), same)
    # sums of fifty terms, to rounding
    torch.testing.assert_close(draws.effective, torch.full((3,), 50.0, dtype=torch.float64), rtol=1e-12, atol=0.0)
    torch.testing.assert_close(draws.log_likelihood, same[:, 0], rtol=1e-12, atol=1e-12)


def test_a_patient_is_drawn_and_weighed_alone_as_in_any_batch() -> None:
    model, batch, _ = bolus(6, lloq=2.0)
    together = drawn(model, batch, 50)
    for order in ([5, 3, 1, 0, 2, 4], [2]):
        rows = torch.tensor(order)
        # the padding stays, so that every sum has its terms where it had them
        part = drawn(model, batch.select(rows), 50)
        chosen = importance.Draws(together.z[rows], together.log_q[rows], together.log_joint[rows])
        for name in ("z", "log_q", "log_joint"):
            torch.testing.assert_close(getattr(part, name), getattr(chosen, name), rtol=1e-9, atol=1e-9)
    with torch.no_grad():  # what is promised to the last bit is the line of a subject, and with it its weight
        rows = torch.tensor([2])
        alone = importance.weigh(model, batch.select(rows), together.z[rows], together.log_q[rows])
    assert torch.equal(alone.log_weight, together.log_weight[rows])


def test_padding_has_no_say() -> None:
    model, batch, _ = bolus(6)
    assert not bool(batch.mask.all())
    other = dataclasses.replace(batch, value=torch.where(batch.mask, batch.value, 1e6))
    assert differ(drawn(model, batch, 20), drawn(model, other, 20)) == []
    assert differ(*(maximise(model, b, model.typical(6)) for b in (batch, other))) == []


# ---- tempering


def test_tempering_finds_the_posterior_of_a_straight_line_from_afar() -> None:
    model, batch, design = straight()
    mode = maximise(model, batch, model.typical(2))
    away = dataclasses.replace(mode, z=mode.z + 2.0, precision=torch.eye(2, dtype=torch.float64).expand(2, -1, -1))
    found = tempering.temper(model, batch, away, 4000, seed=0, stream=Stream.TEMPERING.at(0))
    for z, own, subject in zip(found.z, design, range(2), strict=True):
        covariance = np.linalg.inv(own.T @ own / 0.25 + np.eye(2))
        mean = covariance @ own.T @ batch.value[subject, : len(own)].numpy() / 0.25
        sd = np.sqrt(np.diag(covariance))
        # four standard errors of 4,000 draws, some of them of one family
        np.testing.assert_allclose((z.mean(0).numpy() - mean) / sd, 0.0, atol=0.1)
        np.testing.assert_allclose(np.cov(z.T.numpy()) / np.outer(sd, sd), covariance / np.outer(sd, sd), atol=0.15)


def test_tempered_draws_have_the_moments_of_a_posterior_that_is_no_normal() -> None:
    model, batch, _ = bolus(2)
    mode = maximise(model, batch, model.typical(2))
    first = tempering.temper(model, batch, mode, 2000, seed=1, stream=Stream.TEMPERING.at(0))
    found = tempering.move(model, batch, first, seed=1, stream=Stream.TEMPERING.at(1000), moves=20)
    axis = torch.linspace(-5.0, 5.0, 81, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    for row in range(2):
        own = batch.select(torch.tensor([row]))
        with torch.no_grad():
            weight = joint.log_joint(model, grid, own.repeat(len(grid))).softmax(0)
        mean = weight @ grid
        third, drawn = weight @ (grid - mean) ** 3, ((found.z[row] - mean) ** 3).mean(0)
        torch.testing.assert_close(found.z[row].mean(0), mean, rtol=0.0, atol=0.1)
        torch.testing.assert_close(drawn, third, rtol=0.0, atol=0.3)
    assert bool((found.accepted > 0.1).all())
    assert bool((tempering.effective(first, found) > 500).all())


def test_tempering_names_a_patient_of_whom_no_draw_can_be_solved() -> None:
    model, batch, _ = bolus(2)
    mode = maximise(model, batch, model.typical(2))
    lost = dataclasses.replace(mode, z=torch.where(torch.arange(2)[:, None] == 1, UNSOLVABLE, mode.z))
    with pytest.raises(SolveError, match=f"{batch.ids[1]}: no draw"):
        tempering.temper(model, batch, lost, 20, seed=0, stream=Stream.TEMPERING.at(0))


def test_copies_that_have_not_moved_count_once_and_those_that_have_forgotten_count_all() -> None:
    z = torch.randn((1, 50, 3), generator=torch.Generator().manual_seed(0), dtype=torch.float64).repeat(1, 20, 1)
    one, nothing = torch.ones(1, dtype=torch.float64), torch.zeros((1, 1000), dtype=torch.float64)
    before = tempering.Particles(z, nothing, torch.arange(50).repeat(20)[None], one, one)
    assert tempering.effective(before, before).item() == pytest.approx(50)
    other = torch.randn((1, 1000, 3), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert tempering.effective(before, dataclasses.replace(before, z=other)).item() > 700


# ---- the population


@pytest.fixture(scope="module")
def estimated() -> tuple[PopulationModel, CohortBatch, Cohort, PopulationEstimate, dict[str, Tensor]]:
    """Sixteen patients, and the state of the model before they were asked about."""
    torch.set_num_threads(1)
    model, batch, people = bolus(16, fewest=3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    return model, batch, people, standard_errors(model, batch, model.typical(16), draws=3000), before


def test_standard_errors_are_those_of_the_curvature_of_the_likelihood(estimated) -> None:
    model, _, people, estimate, _ = estimated
    at = quadrature.coordinates(model)
    curvature = torch.autograd.functional.hessian(lambda at: quadrature.log_likelihood(at, people).sum(), at)
    expected = torch.linalg.inv(-curvature)
    assert (torch.linalg.eigvalsh(-curvature) > 0.25).all()  # each number is determined by the data
    # with theta held, the standard errors of three thousand draws scatter by 2 % over seeds
    torch.testing.assert_close(estimate.covariance.diagonal().sqrt(), expected.diagonal().sqrt(), rtol=0.05, atol=0.0)
    scale = expected.diagonal().sqrt()
    away = (estimate.covariance - expected) / (scale[:, None] * scale)
    assert float(away.abs().max()) < 0.1  # the same of a variance


def test_the_likelihood_and_its_criteria(estimated) -> None:
    model, batch, people, estimate, _ = estimated
    expected = float(quadrature.log_likelihood(quadrature.coordinates(model), people).detach().sum())
    assert 0 < estimate.error < 0.3
    assert estimate.log_likelihood == pytest.approx(expected, abs=4 * estimate.error)
    alone = log_likelihood(model, batch, 3000, start=model.typical(16))
    assert alone == pytest.approx((estimate.log_likelihood, estimate.error), rel=1e-9)
    count = sum(len(subject.times) for subject in people)
    assert (estimate.parameters, estimate.observations) == (5, count)  # CL, V1, their omega, a
    assert estimate.aic == pytest.approx(-2 * estimate.log_likelihood + 10, rel=1e-12)
    assert estimate.bic == pytest.approx(-2 * estimate.log_likelihood + 5 * math.log(count), rel=1e-12)


def test_the_rows_of_a_population_are_in_its_own_units(estimated) -> None:
    model, batch, _, estimate, _ = estimated
    rows = {row["PARAMETER"]: row for row in estimate.rows}
    assert list(rows) == ["CL", "V1", "a"]
    sd = dict(zip((c.name for c in model.coordinates()), estimate.covariance.diagonal().sqrt().tolist(), strict=True))
    modes = maximise(model, batch, model.typical(len(batch))).z
    for k, (name, value) in enumerate((("CL", quadrature.CL), ("V1", quadrature.V1), ("a", SD))):
        row = rows[name]
        # guesses were made in single precision
        assert row["ESTIMATE"] == pytest.approx(value, rel=1e-6)
        assert row["RSE"] == pytest.approx(100 * sd[name])
        assert row["LO95"] == pytest.approx(value * math.exp(-1.96 * sd[name]), rel=1e-6)
        assert row["HI95"] == pytest.approx(value * math.exp(1.96 * sd[name]), rel=1e-6)
        assert ("CV" in row) == (name != "a")
        if name == "a":
            continue
        assert row["CV"] == pytest.approx(100 * math.sqrt(math.exp(OMEGA**2) - 1), rel=1e-6)
        # the relative change of the CV for a small one of log(omega), as a difference
        ends = [math.sqrt(math.expm1((OMEGA * math.exp(by)) ** 2)) for by in (-1e-5, 1e-5)]
        slope = math.log(ends[1] / ends[0]) / 2e-5
        assert row["CV_RSE"] == pytest.approx(100 * slope * sd[f"omega {name}"], rel=1e-6)
        # a search ends where a step would gain less than 1e-5
        assert row["SHRINKAGE"] == pytest.approx(100 * (1 - float(modes[:, k].std())), abs=0.5)


def test_an_estimate_leaves_the_model_as_it_was(estimated) -> None:
    model, _, _, _, before = estimated
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0.0, atol=0.0, equal_nan=True)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_correlation_of_random_effects_that_are_known_has_the_error_of_a_sample_correlation() -> None:
    count, times = 200, quadrature.TIMES
    eta = np.random.default_rng(0).multivariate_normal([0, 0], [[0.09, 0.05], [0.05, 0.09]], count)
    eta -= eta.mean(0)
    people = []
    for k, (clearance, volume) in enumerate(np.array([quadrature.CL, quadrature.V1]) * np.exp(eta)):
        line = quadrature.DOSE / volume * np.exp(-clearance / volume * times)
        people.append(Subject(str(k), times, line, (Dose(0.0, quadrature.DOSE),)))
    cohort = Cohort(tuple(people))
    typical = {"CL": quadrature.CL, "V1": quadrature.V1}
    parameters = PopulationParameters(typical, correlated=True)
    model = PopulationModel(CompartmentModel(1), parameters, AdditiveError(1e-3))
    model.build(Scaling.of(cohort), torch.float64)
    known = PopulationParameters.from_values(
        typical,
        dict(zip(("CL", "V1"), eta.std(0), strict=True)),
        correlation={("CL", "V1"): np.corrcoef(eta.T)[0, 1]},
    )
    model.population.load_state_dict(known.state_dict())
    batch = collate(cohort, dtype=torch.float64)
    rows = {row["PARAMETER"]: row for row in standard_errors(model, batch, model.typical(count)).rows}
    row, expected = rows["corr CL~V1"], float(np.corrcoef(eta.T)[0, 1])
    assert row["ESTIMATE"] == pytest.approx(expected, rel=1e-6)
    error = (1 - expected**2) / math.sqrt(count)
    assert row["RSE"] == pytest.approx(100 * error / expected, rel=0.05)
    assert row["HI95"] - row["LO95"] == pytest.approx(2 * 1.96 * error, rel=0.05)
    assert rows["CL"]["SHRINKAGE"] == pytest.approx(0.0, abs=1.0)


@pytest.mark.parametrize("prior_sd", [None, 0.5])
def test_where_the_likelihood_curves_upwards_the_prior_of_omega_decides(prior_sd: float | None) -> None:
    # far below the omega of these patients the likelihood grows faster and faster with it
    people, omega = quadrature.cohort(16, fewest=3), {"CL": OMEGA, "V1": 0.02}
    model = quadrature.model(people, omega=omega, omega_prior_sd=prior_sd)
    estimate = standard_errors(model, collate(people, dtype=torch.float64), model.typical(16), draws=1000)
    at = quadrature.coordinates(model)
    curvature = torch.autograd.functional.hessian(lambda at: quadrature.log_likelihood(at, people).sum(), at)
    values, vectors = torch.linalg.eigh(-curvature)
    assert values[0] < -10 and values[1] > 10  # so far that data and prior added would curve upwards too
    prior = torch.zeros(5, dtype=torch.float64)
    prior[2:4] = 0.0 if prior_sd is None else prior_sd**-2
    information = (vectors * values.clamp(min=0.0)) @ vectors.T + torch.diag(prior)
    if prior_sd is None:  # what neither data nor prior determine is wide, and finite
        information = information + 0.25 * vectors[:, :1] @ vectors[:, :1].T
    expected = torch.linalg.inv(information).diagonal().sqrt()
    sd = estimate.covariance.diagonal().sqrt()
    # the direction that the data leave out is nearly that of omega V1
    torch.testing.assert_close(sd[[0, 2, 3]], expected[[0, 2, 3]], rtol=0.1, atol=0.0)
    assert float(sd[3]) == pytest.approx(2.0 if prior_sd is None else prior_sd, rel=0.02)
    assert torch.isfinite(estimate.parameter_draws).all()


def test_information_of_the_data_and_of_the_prior_add_up_unless_the_data_curve_upwards() -> None:
    data = torch.tensor([[5.0, 1.0], [1.0, 3.0]], dtype=torch.float64)
    prior = torch.diag(torch.tensor([0.0, 4.0], dtype=torch.float64))
    free = torch.zeros(2, dtype=torch.bool)
    torch.testing.assert_close(_inverse(data, prior, free), torch.linalg.inv(data + prior))
    upwards = torch.diag(torch.tensor([5.0, -100.0], dtype=torch.float64))
    torch.testing.assert_close(_inverse(upwards, prior, free).diagonal(), torch.tensor([0.2, 0.25]).double())
    # without a prior a standard deviation of 2 on the learned scale
    nothing = torch.zeros_like(prior)
    torch.testing.assert_close(_inverse(upwards, nothing, free).diagonal(), torch.tensor([0.2, 4.0]).double())
    # a number at a bound counts as known
    bound = torch.tensor([False, True])
    torch.testing.assert_close(
        _inverse(data, nothing, bound).diagonal(), torch.tensor([0.2, 0.0]).double(), atol=1e-7, rtol=0
    )


def test_effects_on_dimensions_without_a_name_are_counted_as_learned() -> None:
    _, batch, _ = straight()
    batch = dataclasses.replace(batch, covariates=torch.tensor([[[50.0]], [[90.0]]], dtype=torch.float64))
    scaling = Scaling(covariates={"WT": (70.0, 0.3, True)})
    model = PopulationModel(StraightLine(), error=AdditiveError()).build(scaling, torch.float64)
    # WT on z1 and z2, a
    assert standard_errors(model, batch, model.typical(2), draws=50).parameters == 3


def test_a_precision_that_single_precision_does_not_keep_positive_still_gives_draws():
    torch.manual_seed(0)
    slopes = 1e5 * torch.randn(8, 2, 5)  # two directions that the data know well, of five
    precision = torch.eye(5) + slopes.mT @ slopes
    assert bool((torch.linalg.cholesky_ex(precision).info > 0).any())
    factor = root(precision)
    torch.testing.assert_close(factor @ factor.mT, precision, rtol=0.0, atol=2e-5 * float(precision.max()))
    assert bool((factor.diagonal(dim1=1, dim2=2) > 0).all())
