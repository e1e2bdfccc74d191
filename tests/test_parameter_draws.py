"""Draws of population parameters and network weights, against closed forms."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import quadrature
import torch
from quadrature import OMEGA

from neuralpk import individual_estimates
from neuralpk.cohort import Cohort, Dose, Subject
from neuralpk.cohort_batch import CohortBatch, collate
from neuralpk.dynamics import CompartmentModel, Equations, NeuralCompartments
from neuralpk.dynamics.weight_prior import HIDDEN
from neuralpk.estimation.expected_information import expected_scores
from neuralpk.individual_estimates import IndividualEstimates, estimate_individuals
from neuralpk.inference import importance, uncertainty_draws
from neuralpk.inference.map import map_estimate
from neuralpk.inference.uncertainty_draws import drawn_models
from neuralpk.population_model import PopulationModel
from neuralpk.scaling import Scaling
from neuralpk.solve import SolveError, Trajectory


def unseen() -> Cohort:
    """A patient of whom nothing is known."""
    return Cohort((Subject("1", np.array([4.0]), np.array([np.nan]), (Dose(0.0, 100.0),)),))


def certain() -> PopulationModel:
    """A model whose uncertainty was computed, and is none."""
    model = quadrature.model(quadrature.cohort(2))
    model.parameter_draws.zero_()
    return model


def neural(hidden: int, prior_sd: float = 0.5) -> PopulationModel:
    dynamics = NeuralCompartments(CompartmentModel(1), hidden=hidden, layers=1, prior_sd=prior_sd)
    return PopulationModel(dynamics).build(Scaling())


def test_before_the_uncertainty_is_computed_there_is_only_the_model_itself() -> None:
    model = quadrature.model(quadrature.cohort(2))
    assert not model.has_parameter_draws
    assert drawn_models(model) == [model]
    assert model.is_uncertain
    with pytest.warns(UserWarning, match="uncertainty not computed"):
        result = estimate_individuals(model, unseen(), [4.0], draws=40)
    assert np.isnan(result.upper).all() and np.isfinite(result.ipred).all()
    known = estimate_individuals(model, unseen(), [4.0], draws=40, population_known=True)
    assert np.isfinite(known.upper).all()


def test_a_drawn_model_is_moved_in_its_population_and_in_its_weights_and_leaves_the_model_alone() -> None:
    model = neural(4)
    model.parameter_draws.zero_()
    before = {name: value.clone() for name, value in model.state_dict().items() if name != "parameter_draws"}
    model.parameter_draws[3] = torch.arange(1.0, model.parameter_draws.shape[1] + 1)
    moved = drawn_models(model)[3]
    names = [one.name for one in model.coordinates()]
    for k, (one, other) in enumerate(zip(model.coordinates(), moved.coordinates(), strict=True)):
        assert other.value == pytest.approx(one.value + k + 1, rel=1e-6), names[k]
    steps = torch.cat(
        [(b - a).flatten() for a, b in zip(model.uncertain_weights(), moved.uncertain_weights(), strict=True)]
    )
    torch.testing.assert_close(
        steps, torch.arange(len(names) + 1.0, model.parameter_draws.shape[1] + 1), rtol=1e-5, atol=1e-4
    )
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())


def test_scores_are_the_slopes_of_the_likelihood_of_every_subject() -> None:
    cohort = quadrature.cohort(3)
    model = quadrature.model(cohort).requires_grad_(True)
    batch = collate(cohort, dtype=torch.float64)
    mode = map_estimate(model, batch, torch.zeros(len(batch), 2, dtype=torch.float64))
    noise = importance.noise(0, 1, batch.index, 50_000, 2, torch.float64)
    drawn = importance.draw(model, batch, mode, noise)
    expected = torch.autograd.functional.jacobian(
        lambda at: quadrature.log_likelihood(at, cohort), quadrature.coordinates(model)
    )
    torch.testing.assert_close(uncertainty_draws.scores(model, batch, drawn), expected, rtol=0.05, atol=0.05)


def test_draws_of_population_and_weights_have_the_covariance_of_their_joint_curvature(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = neural(1)
    n, size = len(model.coordinates()), model.parameter_draws.shape[1]
    model.parameter_draws = torch.zeros(200_000, size)
    scores = torch.randn(20, size, dtype=torch.float64)
    precision = torch.linspace(0.5, 4.0, size - n, dtype=torch.float64)
    monkeypatch.setattr(uncertainty_draws, "_prior_precision", lambda _: precision)
    held = torch.linalg.inv(scores[:, :n].T @ scores[:, :n])
    drawn, covariance = uncertainty_draws.draw_parameters(
        model, held, scores, torch.zeros(size, dtype=torch.float64), seed=0
    )
    curvature = scores.T @ scores + torch.diag(torch.cat([torch.zeros(n, dtype=torch.float64), precision]))
    expected = torch.linalg.inv(curvature)
    torch.testing.assert_close(covariance, expected[:n, :n], rtol=1e-6, atol=1e-9)
    # two hundred thousand draws know a covariance to half a percent
    torch.testing.assert_close(drawn.T @ drawn / len(drawn), expected, rtol=0.0, atol=0.01 * float(expected.max()))


def test_draws_of_magnitudes_are_the_nearest_ones_that_keep_their_sign() -> None:
    text = "parameters: K = 1\nx' = -K*x\ny = network(x, hidden=2, monotone=increasing, zero_at=0)\noutputs: y"
    model = PopulationModel(Equations(text)).build(Scaling(), torch.float64)
    (last,) = model.dynamics.magnitudes()
    estimate = torch.tensor([0.0, -0.1], dtype=torch.float64)
    with torch.no_grad():
        last.copy_(estimate[None])
    n, size, count = len(model.coordinates()), model.parameter_draws.shape[1], 5_000
    model.parameter_draws = torch.zeros(count, size)
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(30, size, dtype=torch.float64, generator=generator)
    held = torch.linalg.inv(scores[:, :n].T @ scores[:, :n])
    # at an estimate only the slope of a weight at 0 is not 0
    slope = torch.zeros(size, dtype=torch.float64)
    slope[-2] = -3.0
    prior = torch.cat([torch.zeros(n, dtype=torch.float64), uncertainty_draws._prior_slope(model)])
    drawn, _ = uncertainty_draws.draw_parameters(model, held, scores, slope - prior, seed=0)
    magnitudes = (drawn[:, -2:] + estimate) * torch.tensor([1.0, -1.0])
    assert float(magnitudes.min()) > -1e-9

    # the same by the whole curvature, with each combination of weights at 0
    weights = uncertainty_draws._prior_precision(model)
    curvature = scores.T @ scores + torch.diag(torch.cat([torch.zeros(n, dtype=torch.float64), weights]))
    covariance = torch.linalg.inv(curvature)
    normal = torch.randn(count, size, dtype=torch.float64, generator=generator)
    free = normal @ torch.linalg.cholesky(covariance).T + covariance @ slope
    best, found = torch.full((count,), torch.inf, dtype=torch.float64), free.clone()
    for zero in ([], [size - 2], [size - 1], [size - 2, size - 1]):
        target = -estimate[[place - size + 2 for place in zero]]
        move = (target - free[:, zero]) @ torch.linalg.inv(covariance[zero][:, zero]) @ covariance[zero]
        possible = (((free + move)[:, -2:] + estimate) * torch.tensor([1.0, -1.0]) > -1e-9).all(1)
        cost = torch.where(possible, ((move @ curvature) * move).sum(1), torch.inf)
        found = torch.where((cost < best)[:, None], free + move, found)
        best = torch.minimum(best, cost)
    at_zero = (((found[:, -2:] + estimate).abs() < 1e-9).double().mean(0), (magnitudes < 1e-9).double().mean(0))
    assert float(at_zero[0].min()) > 0.1 and float(at_zero[0].max()) < 0.95
    torch.testing.assert_close(at_zero[1], at_zero[0], rtol=0.0, atol=0.03)
    sd = found.std(0)
    torch.testing.assert_close(drawn.mean(0) / sd, found.mean(0) / sd, rtol=0.0, atol=0.06)
    torch.testing.assert_close(drawn.std(0), sd, rtol=0.06, atol=0.0)
    torch.testing.assert_close(torch.corrcoef(drawn.T), torch.corrcoef(found.T), rtol=0.0, atol=0.06)


def test_simulated_scores_have_the_information_of_the_likelihood() -> None:
    people, omega, sd = quadrature.cohort(8), 0.1, 0.4
    model = quadrature.model(people, omega=omega).requires_grad_(True)
    found = expected_scores(model, collate(people, dtype=torch.float64), seed=0)
    assert len(found) == 200
    # with so small an omega the predictions are linear in eta: y ~ N(f, omega²·JJᵀ + sd²)
    of_typical, of_error = np.zeros((2, 2)), 0.0
    for subject in people:
        line = 5.0 * np.exp(-0.25 * subject.times)
        slope = np.stack([-line * 0.25 * subject.times, line * (0.25 * subject.times - 1.0)], axis=1)
        inverse = np.linalg.inv(omega**2 * slope @ slope.T + sd**2 * np.eye(len(line)))
        of_typical += slope.T @ inverse @ slope
        of_error += 0.5 * np.sum((inverse * 2 * sd**2) * (inverse * 2 * sd**2).T)
    information = (found.T @ found).numpy()
    unit = np.sqrt(np.diagonal(of_typical))
    # two hundred outer products know a correlation to 0.07
    np.testing.assert_allclose(information[:2, :2] / unit / unit[:, None], of_typical / unit / unit[:, None], atol=0.2)
    assert information[4, 4] == pytest.approx(of_error, rel=0.25)


def test_the_precision_of_the_weights_is_that_of_their_prior() -> None:
    model = neural(4, prior_sd=0.5)
    expected = model.dynamics.rate_network.weight_prior.sd.double() ** -2
    assert float(expected[0]) == pytest.approx(model.dynamics.rate_network.network[0].in_features / HIDDEN**2)
    torch.testing.assert_close(uncertainty_draws._prior_precision(model), expected, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize(("which", "expected"), [(0, math.sqrt(1.64)), (2, 1.0)])
def test_what_is_not_known_of_the_population_widens_what_is_known_of_a_patient(which: int, expected: float) -> None:
    model = certain()
    known = estimate_individuals(model, unseen(), [4.0], draws=4000, population_known=True)
    quantiles = torch.distributions.Normal(0.0, 1.0).icdf((torch.arange(32.0) + 0.5) / 32)
    model.parameter_draws[:, which] = 0.8 * OMEGA * quantiles
    # of log CL, whose typical value is uncertain: sqrt(omega² + se²); a small error of omega moves nothing
    wide = estimate_individuals(model, unseen(), [4.0], draws=4000)

    def width(result: IndividualEstimates, name: str) -> float:
        _, low, high = result.parameters[name]
        return float(np.log(high / low)[0])

    assert width(wide, "CL") / width(known, "CL") == pytest.approx(expected, rel=0.08)
    assert width(wide, "V1") / width(known, "V1") == pytest.approx(1.0, rel=0.08)


def test_a_population_under_which_a_patient_is_impossible_has_no_say() -> None:
    model = certain()
    model.parameter_draws[:1, 0] = 200.0  # a clearance that no solver bears
    model.parameter_draws[1:, 1] = 1e-6
    result = estimate_individuals(model, unseen(), [4.0], draws=320)
    assert np.isfinite(result.upper).all()


def test_a_population_under_which_every_patient_is_impossible_has_no_say(monkeypatch: pytest.MonkeyPatch) -> None:
    model = certain()
    model.parameter_draws[:, 1] = 1e-6
    draws, calls = individual_estimates._draws, []

    def all_but_the_first(*arguments: object) -> torch.Tensor:
        calls.append(None)
        return draws(*arguments) if len(calls) > 1 else torch.full_like(draws(*arguments), torch.nan)

    monkeypatch.setattr(individual_estimates, "_draws", all_but_the_first)
    result = estimate_individuals(model, quadrature.cohort(2), [4.0], draws=320)
    assert np.isfinite(result.upper).all() and len(calls) == 32


@pytest.mark.parametrize("failing", [3, 4])
def test_a_few_draws_of_the_population_may_fail_to_give_a_curve(failing: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = certain()
    model.parameter_draws[:, 1] = 1e-6
    solved, calls = PopulationModel.trajectory, []

    def trajectory(
        self: PopulationModel,
        z: torch.Tensor,
        batch: CohortBatch,
        times: torch.Tensor | None = None,
        *more: object,
        **rest: object,
    ) -> Trajectory:
        found = solved(self, z, batch, times, *more, **rest)
        if len(batch) != 10 or times is None:  # only the curves of the draws of z
            return found
        calls.append(None)
        lost = len(calls) <= failing
        states = torch.where(torch.tensor(lost), torch.nan, found.states)
        return dataclasses.replace(found, states=states, status=found.status + 2 * lost)

    monkeypatch.setattr(PopulationModel, "trajectory", trajectory)
    if failing > 3:  # a tenth of 32
        with pytest.raises(SolveError, match="1 of 1 subjects not solved"):
            estimate_individuals(model, unseen(), [4.0], draws=320)
    else:
        result = estimate_individuals(model, unseen(), [4.0], draws=320)
        assert np.isfinite(result.upper).all()
        assert len(calls) == 32
