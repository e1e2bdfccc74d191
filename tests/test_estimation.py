"""The estimator of the population: proposals, held draws, Newton's method, starting values and the end of a fit."""

from __future__ import annotations

import dataclasses
import logging
import math
from typing import Any

import lightning as L
import numpy as np
import pandas as pd
import pytest
import quadrature
import torch
from torch import Tensor

import neuralpk
from neuralpk import cohort_batch
from neuralpk.cli import main
from neuralpk.cohort import Cohort, Dose, Subject
from neuralpk.cohort_batch import CohortBatch, collate
from neuralpk.cohort_simulation import Design, Population, simulate_cohort
from neuralpk.datamodules import SimulatedPKDataModule
from neuralpk.datasets import load
from neuralpk.dynamics import CompartmentModel, Equations
from neuralpk.encoders import SetEncoder
from neuralpk.estimation import FitStatus, PopulationEstimator, exact_likelihood, log_likelihood
from neuralpk.estimation import estimator as estimator_module
from neuralpk.estimation.held_draws import HeldDraws, effective_draws, log_mean_weight
from neuralpk.estimation.learned_numbers import LearnedNumbers
from neuralpk.estimation.proposals import Centre, Proposal
from neuralpk.estimation.starting_values import starting_values
from neuralpk.parameters import LogitNormal, NoVariability, PopulationParameters
from neuralpk.population_model import PopulationModel
from neuralpk.published_population import read_population
from neuralpk.randomness import Stream
from neuralpk.residual_error import AdditiveError, CombinedError, ProportionalError, StudentTError
from neuralpk.scaling import Scaling
from neuralpk.task import LatentTask

# V1 varies little and KA much: of the exchanged parameters the same data say that they vary together
FLIPPED = {"CL": 0.3, "V1": 0.1, "KA": 0.1}
IV = {"CL": 4.0, "V1": 70.0}
ORAL = {"CL": 4.0, "V1": 70.0, "KA": 1.0}


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


def simulated(subjects: int = 20, samples: int = 6, seed: int = 3, **options: Any) -> Cohort:
    given: dict[str, Any] = {"compartments": 1, "absorption": "first_order", "typical": ORAL} | options
    return SimulatedPKDataModule(subjects=subjects, samples=samples, seed=seed, **given).part("train")


def oral(cohort: Cohort, error: Any = None, **options: Any) -> tuple[PopulationModel, CohortBatch]:
    parameters = PopulationParameters(**({"typical": ORAL} | options))
    made = PopulationModel(CompartmentModel(1, "first_order"), parameters, error or ProportionalError(0.2))
    return made.build(Scaling.of(cohort), torch.float64), collate(cohort, dtype=torch.float64).scored_on_all()


# ---- proposals


@pytest.fixture(scope="module", params=["one normal distribution", "kernels"])
def proposal(request: pytest.FixtureRequest) -> Proposal:
    mean = torch.tensor([[0.3, -0.8]], dtype=torch.float64)
    covariance = torch.tensor([[[0.3, 0.1], [0.1, 0.2]]], dtype=torch.float64)
    kernels = None
    if request.param == "kernels":  # on an arc, whose mean is not that of the part
        angle = torch.linspace(0.0, 2.5, 16, dtype=torch.float64)
        kernels = torch.stack([angle.cos(), angle.sin()], dim=-1)[None]
        covariance = covariance / 4
    return Proposal.around(Centre(mean, covariance, kernels), Centre(mean * 0.9, covariance * 1.2))


def test_control_variates_make_the_first_part_times_a_quadratic_exact(proposal: Proposal) -> None:
    z, log_q = proposal.draw(0, 0, torch.tensor([7]), 256)
    centres = proposal.centre[0, :1] if proposal.kernels is None else proposal.kernels[0]
    part = torch.distributions.MultivariateNormal(centres[:, None], scale_tril=proposal.root[0, 0])
    weight = (part.log_prob(z).logsumexp(0) - math.log(len(centres)) - log_q[0]).exp() / z.shape[1]
    assert float(weight.sum()) == pytest.approx(1.0, abs=1e-6)
    mean = centres.mean(0)
    np.testing.assert_allclose(weight @ z[0], mean, atol=1e-5)
    spread = z[0] - mean
    covariance = proposal.root[0, 0] @ proposal.root[0, 0].T + (centres - mean).T @ (centres - mean) / len(centres)
    np.testing.assert_allclose((weight[:, None] * spread).T @ spread, covariance, atol=1e-5)


def repeated(proposal: Proposal, subjects: int) -> Proposal:
    parts = (proposal.centre, proposal.root, proposal.kernels)
    return Proposal(*(None if part is None else part.expand(subjects, *part.shape[1:]) for part in parts))


@pytest.mark.parametrize("draws", [3, 16, 64])
def test_another_normal_density_integrates_to_one(proposal: Proposal, draws: int) -> None:
    index = torch.arange(400)
    z, log_q = repeated(proposal, 400).draw(1, 0, index, draws)
    other = torch.distributions.MultivariateNormal(torch.tensor([0.1, -0.5]).double(), 0.25 * torch.eye(2).double())
    found = (other.log_prob(z) - log_q).exp().mean(1)
    assert float(found.mean()) == pytest.approx(1.0, abs=5 * float(found.std()) / 20 + 1e-3)


def test_draws_do_not_depend_on_the_batch(proposal: Proposal) -> None:
    z, _ = repeated(proposal, 2).draw(0, 0, torch.tensor([3, 7]), 64)
    torch.testing.assert_close(z[1:], proposal.draw(0, 0, torch.tensor([7]), 64)[0], rtol=0, atol=1e-12)


# ---- the likelihood given held draws


def test_the_likelihood_is_that_of_quadrature() -> None:
    people = quadrature.cohort(6, lloq=0.5)
    made = quadrature.model(people)
    found, error = log_likelihood(made, collate(people, dtype=torch.float64))
    expected = float(quadrature.log_likelihood(quadrature.coordinates(made), people).detach().sum())
    assert error < 0.01
    assert found == pytest.approx(expected, abs=0.01)
    for weight in made.population_weights():  # as of a population file
        weight.requires_grad_(False)
    assert log_likelihood(made, collate(people, dtype=torch.float64))[0] == pytest.approx(expected, abs=0.01)


def test_the_subjects_whose_own_errors_are_largest_get_further_sets_of_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    people = quadrature.cohort(6, lloq=0.5)
    made = quadrature.model(people)
    subjects, draw = [], PopulationEstimator.draw

    def counted(self: PopulationEstimator, batch: CohortBatch, *args: Any, **options: Any) -> Any:
        subjects.append(len(batch))
        return draw(self, batch, *args, **options)

    monkeypatch.setattr(PopulationEstimator, "draw", counted)
    batch = collate(people, dtype=torch.float64)
    monkeypatch.setattr(exact_likelihood, "_SMALL_ERROR", math.inf)
    _, rough = log_likelihood(made, batch, draws=32)
    usual, subjects[:] = len(subjects), []
    monkeypatch.setattr(exact_likelihood, "_SMALL_ERROR", 0.0)
    many, fine = log_likelihood(made, batch, draws=32)
    assert len(subjects) > usual and set(subjects[:usual]) == {6} and max(subjects[usual:]) < 6
    assert fine < rough
    expected = float(quadrature.log_likelihood(quadrature.coordinates(made), people).detach().sum())
    assert many == pytest.approx(expected, abs=4 * fine)


def test_kernels_find_a_posterior_that_is_far_from_normal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two random effects that the data know well together, on an arc, and not one by one."""
    made, batch = oral(simulated(4))
    estimator = PopulationEstimator(made, stages=(512,))

    @torch.no_grad()
    def log_weight(self: HeldDraws, numbers: Any, vector: Any) -> torch.Tensor:
        z, log_volume = self.z(numbers)
        along, across, other = z.unbind(-1)
        standard = torch.stack([along, (across - along.square() + 1.0) / 0.2, other], dim=-1)
        log_density = -0.5 * standard.square().sum(-1) - 1.5 * math.log(2 * math.pi) - math.log(0.2)
        return log_density + log_volume - self.log_q

    monkeypatch.setattr(HeldDraws, "log_weight", log_weight)
    vector, error, share = estimator.numbers.get(), [], []
    for kernels in (False, True):
        for _ in range(5):
            held = estimator.draw(batch, moves=False)
            estimator.centres.adapt([held], kernels=kernels)
        log_weight_of_last = held.log_weight(estimator.numbers, vector)
        share.append(float((effective_draws(log_weight_of_last) / 512).min()))
        error.append(float(log_mean_weight(log_weight_of_last).abs().max()))
    assert share[1] > 2 * share[0] and error[1] < min(0.2, error[0])
    assert bool(estimator.centres.have_kernels(batch.index).all())
    again = PopulationEstimator(made, stages=(512,))
    again.centres.load_state_dict(estimator.centres.state_dict())
    torch.testing.assert_close(
        again.draw(batch, moves=False).unconstrained, estimator.draw(batch, moves=False).unconstrained
    )


def test_a_subject_whose_sets_disagree_gets_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    people = quadrature.cohort(6, lloq=0.5)
    made = quadrature.model(people)
    batch = collate(people, dtype=torch.float64)
    usual, _ = log_likelihood(made, batch)
    given: list[int] = []
    give = exact_likelihood._give_kernels

    def counted(estimator: PopulationEstimator, some: CohortBatch) -> None:
        given.append(len(some))
        give(estimator, some)

    monkeypatch.setattr(exact_likelihood, "_give_kernels", counted)
    monkeypatch.setattr(exact_likelihood, "_LARGE_VARIANCE", -1.0)
    found, _ = log_likelihood(made, batch)
    assert sum(given) == 6
    assert found == pytest.approx(usual, abs=0.01)


CASES: dict[str, dict[str, Any]] = {
    "diagonal": {},
    "full Omega": {"correlation": {"CL~V1": 0.4}},
    "no variability": {"distributions": {"KA": NoVariability()}},
    "prior": {"omega_prior_sd": 0.5, "typical_prior_sd": {"KA": 0.2}},
    "eta/omega held": {"correlation": {"CL~KA": 0.4}},
    "shared omega": {"shared_omega": [["CL", "KA"]], "omega_prior_sd": 0.5},
    "shared omega, one held": {"shared_omega": [["CL", "KA"]], "correlation": {"CL~V1": 0.4}},
    "shared omega, both held": {"shared_omega": [["CL", "KA"]]},
}
HELD = {
    "eta/omega held": ("KA",),
    "shared omega, one held": ("KA",),
    "shared omega, both held": ("CL", "KA"),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    "error",
    [CombinedError(2.0, 0.2), StudentTError(2.0, 0.2), ProportionalError.from_values(b=0.2)],
    ids=["combined", "Student's t", "fixed"],
)
def test_derivatives_are_those_of_the_value(case: str, error: Any) -> None:
    model, batch = oral(simulated(5), error, **CASES[case])
    estimator = PopulationEstimator(model, stages=(32,))
    estimator.centres.standardised = HELD.get(case, ())
    estimator.add(batch)
    likelihood, here = estimator.likelihood(), estimator.numbers.get()
    value, first, second = likelihood.derivatives(here)
    assert value == pytest.approx(likelihood.value(here)[0], abs=1e-9)
    alone, gradient, effective = likelihood.gradient(here)
    assert (alone, effective) == pytest.approx(likelihood.value(here), abs=1e-9)
    torch.testing.assert_close(gradient, first)
    steps = 1e-4 * torch.eye(len(here), dtype=torch.float64)
    ends = [[likelihood.derivatives(here + sign * step)[:2] for sign in (1, -1)] for step in steps]
    np.testing.assert_allclose(first, [(a[0] - b[0]) / 2e-4 for a, b in ends], rtol=1e-4, atol=1e-4)
    differences = torch.stack([(a[1] - b[1]) / 2e-4 for a, b in ends])
    np.testing.assert_allclose(second, differences, rtol=2e-3, atol=2e-3)


MOVED: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "eta/omega held": ({}, ("KA", "CL")),
    "with correlations": ({"correlation": {"CL~V1": 0.5, "CL~KA": -0.4}}, ("KA",)),
    "no variability": ({"distributions": {"KA": NoVariability()}}, ()),
    "all": ({"distributions": {"V1": NoVariability()}, "effects": {"V1": ["WT"]}}, ("CL", "KA")),
    "covariate in time": ({"distributions": {"KA": NoVariability()}, "effects": {"CL": ["WT"], "KA": ["WT"]}}, ("V1",)),
    "of one that is held": ({"effects": {"CL": ["WT"]}}, ("CL", "V1")),
    "shared omega": ({"shared_omega": [["CL", "KA"]]}, ("KA",)),
}


@pytest.mark.parametrize("case", MOVED)
def test_draws_that_move_with_the_population_have_the_likelihood_of_new_ones(case: str) -> None:
    options, standardised = MOVED[case]
    cohort = simulated(8, samples=5, covariates={"WT": [40.0, 110.0]})
    if case == "covariate in time":
        weight = ((0.0, 50.0), (4.0, 80.0), (10.0, 60.0))
        cohort = Cohort([dataclasses.replace(subject, covariates={"WT": weight}) for subject in cohort], cohort.units)
    model, batch = oral(cohort, CombinedError(2.0, 0.2), **({"omega": 0.25} | options))
    estimator = PopulationEstimator(model, stages=(512, 4096))
    estimator.centres.standardised = standardised
    estimator.add(batch)
    numbers, likelihood = estimator.numbers, estimator.likelihood()
    moved = numbers.get() + 0.08 * (-1.0) ** torch.arange(numbers.size)
    held, _ = likelihood.value(moved)
    numbers.set(moved)
    expected, error = log_likelihood(estimator.model, batch, draws=4096)
    assert held == pytest.approx(expected, abs=0.02 + 4 * error)


def test_a_direction_that_changes_no_prediction_is_flat_where_eta_over_omega_is_held() -> None:
    cohort = simulated(8, samples=5)
    dynamics = CompartmentModel(1, "first_order", bioavailability="depot")
    model = PopulationModel(dynamics, PopulationParameters(omega=0.15), ProportionalError(0.2))
    batch = collate(cohort, dtype=torch.float64)
    estimator = PopulationEstimator(model.build(Scaling.of(cohort), torch.float64), stages=(64,))
    estimator.centres.standardised = ("CL", "V1", "KA", "F")
    estimator.add(batch)
    numbers, likelihood = estimator.numbers, estimator.likelihood()
    flat = torch.tensor([float(name in ("CL", "V1", "F")) for name in numbers.names()], dtype=torch.float64)
    here = numbers.get()
    assert likelihood.value(here + 0.2 * flat)[0] == pytest.approx(likelihood.value(here)[0], abs=1e-2)
    assert abs(float(flat @ likelihood.derivatives(here)[1])) < 0.05


def test_subjects_with_like_numbers_of_doses_are_drawn_together(monkeypatch: pytest.MonkeyPatch) -> None:
    times, many = np.array([1.0, 30.0]), tuple(Dose(float(k), 1.0) for k in range(40))
    doses = [(Dose(0.0, 10.0),)] * 6 + [many] + [()]
    cohort = Cohort(tuple(Subject(str(k), times, np.array([0.3, 0.1]), given) for k, given in enumerate(doses)))
    model = PopulationModel(CompartmentModel(1), error=AdditiveError()).build(Scaling.of(cohort))
    batch = collate(cohort, dtype=torch.float64)
    together = PopulationEstimator(model)
    whole = together.add(batch)
    monkeypatch.setattr(cohort_batch, "_MANY_DOSES", 10)
    parts = batch.of_like_length()
    assert sorted(part.doses.mask.shape[1] for part in parts) == [1, 40]
    assert sorted(name for part in parts for name in part.ids) == [str(k) for k in range(8)]
    apart = PopulationEstimator(model)
    torch.testing.assert_close(apart.add(batch), whole)
    assert len(apart.likelihood().draws) == 2


def test_a_subject_without_solution_in_a_draw_keeps_the_others() -> None:
    model, batch = oral(simulated(4))
    estimator = PopulationEstimator(model, stages=(32,))
    held = estimator.draw(batch)
    broken = held.log_q.clone()
    broken[0, 0] = math.inf
    log_weight = type(held)(**{**vars(held), "log_q": broken}).log_weight(estimator.numbers, estimator.numbers.get())
    assert log_weight[0, 0] == -math.inf and bool(torch.isfinite(log_weight[1:]).all())
    assert bool((effective_draws(log_weight) > 1).all())


# ---- the end of a search


def test_a_typical_value_that_the_data_push_to_an_end_of_its_range_is_at_a_bound() -> None:
    cohort = simulated(12, typical={"CL": 8.0, "V1": 70.0, "KA": 1.0})
    distributions = {"CL": NoVariability(LogitNormal(0.0, 6.0))}
    model, batch = oral(cohort, distributions=distributions)
    status = PopulationEstimator(model, stages=(64,)).run(batch)
    assert status.converged and "CL" in status.bounds and "at a bound" in status.sentence
    assert model.population.typical_values()["CL"] == pytest.approx(6.0 * 0.999)


def test_a_typical_value_that_only_some_steps_end_at_an_end_of_its_range_is_at_a_bound() -> None:
    cohort = simulated(12, typical={"CL": 8.0, "V1": 70.0, "KA": 1.0})
    model, batch = oral(cohort, distributions={"CL": NoVariability(LogitNormal(0.0, 6.0))})
    estimator = PopulationEstimator(model, stages=(64,)).begin_here()
    estimator.add(batch)
    one = estimator.step()
    (k,) = [
        k for k in estimator.numbers.of(estimator.model.population.location) if math.isfinite(estimator.numbers.high[k])
    ]
    estimator._recent = [(one.vector.clone(), one.start) for _ in range(4)]
    for (vector, _), below in zip(estimator._recent, (0.0, 0.6, 0.0, 0.9), strict=True):
        vector[k] = estimator.numbers.high[k] - below
    estimator._end_at_mean(0.01, 4)
    assert estimator.status is not None and estimator.status.bounds == ("CL",) and estimator.status.converged
    assert estimator.model.population.typical_values()["CL"] == pytest.approx(6.0 * 0.999)


def test_a_search_that_its_last_stage_does_not_end_goes_on_with_more_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PopulationEstimator, "reserve", (64,))
    monkeypatch.setattr(PopulationEstimator, "last_steps", 10)
    monkeypatch.setattr(PopulationEstimator, "_monte_carlo_error", lambda *_: (math.inf, 0))  # no error is small enough
    model, batch = oral(simulated(5))
    estimator = PopulationEstimator(model, stages=(16,))
    status = estimator.run(batch)
    assert not status.converged and (status.draws, status.iterations) == (64, 18)


@pytest.mark.parametrize("distance", [1e-5, 2.0])
def test_steps_that_differ_by_their_draws_end_at_their_mean(distance: float) -> None:
    model, batch = oral(simulated(5))
    estimator = PopulationEstimator(model, stages=(16,)).begin_here()
    estimator.add(batch)
    one = estimator.step()
    centre = estimator.numbers.search_scale(one.vector)[0]
    estimator._recent, moved = [], torch.zeros_like(centre)
    for k in range(8):
        moved[0] = (-1) ** k * math.sqrt(distance / float(one.curvature[0, 0]))
        estimator._recent.append((estimator.numbers.from_search_scale(centre + moved), -100.0))
    estimator.in_stage = 8
    # eight populations of which each is less likely than their mean by `distance` of -2LL; only the first coordinate
    # differs
    error, count = estimator._monte_carlo_error(one)
    assert (error, count) == (pytest.approx(distance / 7, rel=1e-2), 8)
    estimator._end_at_mean(error, count)
    assert estimator.status is not None and estimator.status.converged and estimator.status.gain == error
    remark = "steps end at the Monte-Carlo error of 16 draws, 0.29 of -2LL"
    assert (remark in estimator.status.sentence) == (distance == 2.0)
    torch.testing.assert_close(estimator.numbers.search_scale(estimator.numbers.get())[0], centre)


def test_after_more_steps_a_larger_error_suffices() -> None:
    estimator = PopulationEstimator(oral(simulated(5))[0])
    found = []
    for estimator.in_stage in (3, 5, 8, 20):
        found.append(estimator._small_error)
    assert found == pytest.approx([0.003, 0.0161, 0.2, 0.2], rel=1e-2)


def test_populations_on_their_way_lie_far_apart() -> None:
    model, batch = oral(simulated(5))
    estimator = PopulationEstimator(model, stages=(16,)).begin_here()
    estimator.add(batch)
    one = estimator.step()
    centre = estimator.numbers.search_scale(one.vector)[0]
    for in_stage, steps in ((8, 8), (2, 8)):
        away = [centre + k * 0.1 * torch.ones_like(centre) for k in range(steps)]
        estimator._recent = [(estimator.numbers.from_search_scale(each), -100.0) for each in away]
        estimator.in_stage = in_stage
        # of two steps of a stage nothing is known
        assert estimator._monte_carlo_error(one)[0] > (0.1 if in_stage == 8 else 1e9)


def test_no_likelihood_has_the_quasi_random_numbers_that_its_proposals_adapted_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    streams: list[int] = []
    drawn = Proposal.draw

    def noted(self: Proposal, seed: int, stream: int, *rest: Any) -> tuple[Tensor, Tensor]:
        streams.append(stream)
        return drawn(self, seed, stream, *rest)

    monkeypatch.setattr(Proposal, "draw", noted)
    model, batch = oral(simulated(5))
    estimator = PopulationEstimator(model, stages=(16, 32)).begin_here()
    estimator.run(batch)
    assert len(streams) == len({*streams}) == estimator.iteration > 3
    streams.clear()
    log_likelihood(model, batch, draws=16)
    of_likelihood = [stream for stream in streams if Stream.of(stream) is Stream.ESTIMATION]
    assert len({*of_likelihood}) >= 4 and {Stream.of(stream) for stream in streams} == {
        Stream.ESTIMATION,
        Stream.PROPOSALS,
    }
    assert all(Stream.of(stream) is Stream.PROPOSALS for stream in streams[:3])


def test_a_proposal_that_fits_its_own_draws_makes_the_data_look_less_likely() -> None:
    model, batch = oral(simulated(40, samples=3))
    estimator = PopulationEstimator(model, stages=(64,)).begin_here()
    for _ in range(2):
        estimator.centres.renew([estimator.draw(batch, moves=False)])
    here = estimator.numbers.get()
    found = [estimator.likelihood([estimator.draw(batch, k, moves=False)]).value(here)[0] for k in range(6)]
    others = torch.tensor(found[1:])
    assert found[0] < float(others.mean() - 2 * others.std())


# ---- starting values


def test_starting_values_come_from_the_data() -> None:
    model, batch = oral(simulated(30), typical=None)
    first, *_ = starting_values(model, LearnedNumbers(model), batch)
    np.testing.assert_allclose(first.vector[:3].exp(), list(ORAL.values()), rtol=0.25)


@pytest.mark.parametrize("side", [1, -1], ids=["below", "above"])
def test_starting_values_know_of_censored_values(side: int) -> None:
    # by the samples above the limit alone, drug hardly seems to leave the body
    typical = {"CL": 5.0, "V1": 30.0, "Q": 4.0, "V2": 60.0}
    times = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 24.0, 36.0)
    design = Design(((Dose(0.0, 100.0),),), times, grid=(0.0, 1.0))
    population = Population(typical, dict.fromkeys(typical, 0.3))
    whole = simulate_cohort(CompartmentModel(2), population, design, ProportionalError.from_values(1, b=0.1), 50, 63)
    bound = 0.24 if side > 0 else 2.0

    def cut(one: Subject) -> Subject:
        beyond = side * one.values < side * bound
        censored = np.where(beyond, side, 0)
        return dataclasses.replace(one, values=np.where(beyond, bound, one.values), censored=censored)

    cohort = Cohort(map(cut, whole))
    assert float(np.mean([one.censored != 0 for one in cohort])) > 0.2
    made = PopulationModel(CompartmentModel(2), PopulationParameters(), ProportionalError(0.2))
    model = made.build(Scaling.of(cohort), torch.float64)
    batch = collate(cohort, dtype=torch.float64).scored_on_all()
    first, *_ = starting_values(model, LearnedNumbers(model), batch)
    np.testing.assert_allclose(first.vector[:4].exp(), list(typical.values()), rtol=0.5)


def test_typical_values_that_are_given_stay() -> None:
    model, batch = oral(simulated(10), typical={"CL": 5.5, "V1": 70.0})
    found = starting_values(model, LearnedNumbers(model), batch)
    assert {round(float(start.vector[0].exp()), 6) for start in found} == {5.5}
    model, batch = oral(simulated(10))
    (only,) = starting_values(model, LearnedNumbers(model), batch)
    np.testing.assert_allclose(only.vector[:3].exp(), list(ORAL.values()))


@pytest.mark.parametrize("far", [50.0, math.inf])
def test_of_two_equal_curves_absorption_is_the_faster_unless_the_other_is_far_likelier_and_the_other_is_mentioned(
    far: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimator_module, "_FAR_LIKELIER", far)
    # with KA and CL/V1 exchanged the data have the same curve: KA 0.057, V1 = 4
    flipped = simulated(30, samples=12, typical={"CL": 4.0, "V1": 4.0, "KA": 4.0 / 70.0}, omega=FLIPPED)
    fitted = neuralpk.fit(flipped, CompartmentModel(1, "first_order"), progress=False)
    status = fitted.task.status
    assert status is not None and status.converged
    values = fitted.task.model.population.typical_values()
    faster = values["KA"] > values["CL"] / values["V1"]
    assert faster == math.isinf(far)
    assert "flip-flop" in status.sentence and ("KA 0.05" in status.remark) == faster
    assert faster or "less likely by about" in status.remark


TWO_STEPS = """
    parameters: CL = 4, V = 70, KTR = 2, KA = 0.5
    depot' = -KTR*depot
    gut' = KTR*depot - KA*gut
    central' = KA*gut - CL/V*central
    C = central/V
    outputs: C
"""


@pytest.mark.parametrize("omega", [0.3, {"KTR": 0.0}], ids=["both vary", "one varies"])
def test_two_rates_that_the_model_does_not_tell_apart_are_no_other_maximum(omega: Any) -> None:
    dynamics = Equations(TWO_STEPS)
    truth = Population({"CL": 4.0, "V": 70.0, "KTR": 1.5, "KA": 0.4}, {"CL": 0.3, "V": 0.2, "KTR": 0.3, "KA": 0.3})
    design = Design(((Dose(0.0, 100.0),),), (0.5, 1.0, 2.0, 4.0, 6.0, 9.0, 12.0, 24.0, 36.0, 48.0))
    cohort = simulate_cohort(dynamics, truth, design, ProportionalError.from_values(b=0.1), 30, 4)
    model = PopulationModel(dynamics, PopulationParameters(omega=omega), ProportionalError(0.2))
    estimator = PopulationEstimator(model.build(Scaling.of(cohort), torch.float64))
    estimator.start(collate(cohort, dtype=torch.float64))
    # the data are as likely with KTR and KA in each other's place, unless patients differ in one of them alone
    assert ("flip-flop" in estimator.remark) == isinstance(omega, dict), estimator.remark


# ---- a fit


def fit(cohort: Cohort, *, seed: int = 0, dynamics: Any = None, **parts: Any) -> neuralpk.FittedModel:
    chosen = dynamics or CompartmentModel(1, "first_order")
    return neuralpk.fit(cohort, chosen, seed=seed, progress=False, **({"error": ProportionalError()} | parts))


def status_of(fitted: neuralpk.FittedModel) -> FitStatus:
    assert fitted.task.status is not None
    return fitted.task.status


@pytest.fixture(scope="module")
def patients() -> Cohort:
    return simulated(40, samples=5)


@pytest.fixture(scope="module")
def fitted(patients: Cohort) -> neuralpk.FittedModel:
    return fit(patients)


def test_a_fit_ends_by_itself_at_the_maximum(fitted: neuralpk.FittedModel, patients: Cohort) -> None:
    status = status_of(fitted)
    assert status.converged and status.reason == "" and status.iterations < 40
    assert "converged" in status.sentence
    table = fitted.population.set_index("PARAMETER")
    np.testing.assert_allclose(table.loc[list(ORAL), "ESTIMATE"], list(ORAL.values()), rtol=0.25)
    # nothing better nearby: -2LL by draws that are not those of the fit
    model, batch = fitted.task.model, collate(patients, dtype=torch.float64)
    best = log_likelihood(model, batch, seed=9)[0]
    for one in model.coordinates():
        step = 0.5 * table["RSE"].iloc[0] / 100
        for sign in (-1, 1):
            with torch.no_grad():
                one.tensor.view(-1)[one.index] += sign * step
                assert log_likelihood(model, batch, seed=9)[0] < best + 0.03, one.name
                one.tensor.view(-1)[one.index] -= sign * step


def test_theophylline_ends_at_the_exact_maximum() -> None:
    fitted = fit(load("theophylline").with_covariates([]), error=AdditiveError())
    assert status_of(fitted).converged
    table, estimate = fitted.population.set_index("PARAMETER"), fitted.task.covariance
    # the exact maximum: -2LL 360.71
    for name, typical, percent in (("CL", 2.751, 27.1), ("V1", 31.6, 13.65), ("KA", 1.58, 70.7)):
        assert table.loc[name, "ESTIMATE"] == pytest.approx(typical, rel=0.01), name
        assert table.loc[name, "CV"] == pytest.approx(percent, rel=0.03), name
    assert table.loc["a", "ESTIMATE"] == pytest.approx(0.696, rel=0.01)
    assert estimate is not None and -2 * estimate.log_likelihood < 360.75


def test_the_answer_does_not_depend_on_the_seed(fitted: neuralpk.FittedModel, patients: Cohort) -> None:
    other = fit(patients, seed=5)
    first, second = fitted.population, other.population
    step = (np.log(second["ESTIMATE"]) - np.log(first["ESTIMATE"])).abs()
    assert (step < 0.1 * first["RSE"] / 100).all()
    assert fitted.task.covariance is not None and other.task.covariance is not None
    assert other.task.covariance.log_likelihood == pytest.approx(fitted.task.covariance.log_likelihood, abs=0.1)


def test_a_parameter_without_variability_ends_at_the_bound_and_has_converged() -> None:
    status = status_of(fit(simulated(40, samples=4, omega={"CL": 0.3, "V1": 0.3, "KA": 0.0})))
    assert status.converged
    assert set(status.bounds) <= {"omega KA"}


def test_what_the_data_do_not_determine_is_named() -> None:
    dynamics = CompartmentModel(1, "first_order", bioavailability="depot")
    status = status_of(fit(simulated(15), dynamics=dynamics))
    assert not status.converged
    assert {"CL", "V1", "F"} <= set(status.undetermined)
    assert "do not determine" in status.sentence


def test_a_model_whose_parameters_do_not_vary(patients: Cohort) -> None:
    fitted = fit(patients, parameters=PopulationParameters(omega=0.0))
    assert status_of(fitted).converged
    assert (fitted.population["RSE"] < 30).all()


def test_one_omega_of_two_parameters_is_estimated() -> None:
    people = simulated(40, omega={"CL": 0.3, "V1": 0.3, "KA": 0.5})
    free, shared = (
        neuralpk.fit(
            people,
            CompartmentModel(1, "first_order"),
            parameters=PopulationParameters(shared_omega=groups),
            error=ProportionalError(0.2),
            progress=False,
        )
        for groups in (None, [["CL", "V1"]])
    )
    assert free.task.status.converged and shared.task.status.converged
    table = shared.population.set_index("PARAMETER")
    of_both = ["OMEGA", "OMEGA_LO95", "OMEGA_HI95", "OMEGA_RSE", "CV"]
    assert table.loc["CL", of_both].tolist() == table.loc["V1", of_both].tolist()
    assert table.loc["CL", "OMEGA_LO95"] < 0.3 < table.loc["CL", "OMEGA_HI95"]
    assert table.loc["CL", "SHRINKAGE"] != table.loc["V1", "SHRINKAGE"]
    apart = free.population.set_index("PARAMETER").loc[["CL", "V1"], "OMEGA"]
    assert apart.min() < table.loc["CL", "OMEGA"] < apart.max()
    # what one number less explains: not more, and of data that come from one omega hardly less
    batch = collate(people, dtype=torch.float64)
    of_free, of_shared = (log_likelihood(one.task.model, batch)[0] for one in (free, shared))
    assert -0.05 < 2 * (of_free - of_shared) < 3.84
    assert len(free.task.model.coordinates()) == len(shared.task.model.coordinates()) + 1


def test_a_covariate_effect_is_estimated() -> None:
    cohort = simulated(60, samples=6, effects={"CL~WT": 0.75}, covariates={"WT": [40.0, 110.0]})
    fitted = fit(cohort, parameters=PopulationParameters(effects={"CL": ["WT"]}))
    row = fitted.population.set_index("PARAMETER").loc["CL~WT"]
    assert status_of(fitted).converged
    assert row["LO95"] < 0.75 < row["HI95"]


# ---- in a Trainer


def trainer(**options: Any) -> L.Trainer:
    given: dict[str, Any] = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "limit_val_batches": 0,
    }
    return L.Trainer(**(given | options))


def data_of(batch_size: int | None = None, passes: int = 1) -> SimulatedPKDataModule:
    return SimulatedPKDataModule(
        subjects=15, samples=6, compartments=1, typical=IV, batch_size=batch_size, passes_per_epoch=passes
    )


def numbers_of(task: LatentTask) -> Tensor:
    return torch.tensor([one.value for one in task.model.coordinates()])


def trained(data: SimulatedPKDataModule, **options: Any) -> tuple[LatentTask, L.Trainer]:
    task, used = LatentTask(CompartmentModel(1)), trainer(**options)
    used.fit(task, data)
    return task, used


def test_batches_give_what_one_batch_gives() -> None:
    one, of_one = trained(data_of(), max_epochs=30)
    many, of_many = trained(data_of(batch_size=4), max_epochs=30)
    assert of_one.global_step == one.status.iterations < 30  # type: ignore[union-attr]
    assert of_many.global_step == 4 * one.status.iterations  # type: ignore[union-attr]
    torch.testing.assert_close(numbers_of(one), numbers_of(many), rtol=0, atol=1e-6)


def test_a_pass_over_the_subjects_is_an_outer_step_also_within_an_epoch() -> None:
    task, used = trained(data_of(passes=20), max_epochs=5)
    assert task.status is not None and task.status.converged
    assert used.current_epoch <= 1 and used.global_step == task.status.iterations


def test_a_fit_that_the_trainer_ends_says_that_it_has_not_converged() -> None:
    task, _ = trained(data_of(), max_epochs=2)
    status = task.status
    assert status is not None and not status.converged and status.iterations == 2
    assert "not converged after 2 iterations" in status.sentence
    assert task.covariance is not None and len(task.covariance.rows) == 3  # and has its table all the same


def test_a_resumed_fit_goes_on(tmp_path: Any) -> None:
    straight, _ = trained(data_of(), max_epochs=30)
    first, used = trained(data_of(), max_epochs=3)
    assert first.status is not None and not first.status.converged
    used.save_checkpoint(tmp_path / "three.ckpt")
    resumed = LatentTask(CompartmentModel(1))
    trainer(max_epochs=30).fit(resumed, data_of(), ckpt_path=tmp_path / "three.ckpt", weights_only=True)
    assert resumed.status is not None and straight.status is not None
    assert resumed.status.iterations == straight.status.iterations
    torch.testing.assert_close(numbers_of(resumed), numbers_of(straight), rtol=0, atol=1e-6)


def test_the_status_is_in_the_checkpoint(tmp_path: Any) -> None:
    task, used = trained(data_of(), max_epochs=30)
    used.save_checkpoint(tmp_path / "fit.ckpt")
    loaded = LatentTask.load_from_checkpoint(tmp_path / "fit.ckpt", weights_only=True)
    assert loaded.status == task.status and loaded.estimator is None


def test_the_status_is_in_the_population_file_and_in_the_table(tmp_path: Any, capsys: Any) -> None:
    options = ["--data.subjects", "8", "--data.test_subjects", "0", "--model.dynamics", "CompartmentModel"]
    options += ["--model.encoder", "null", "--model.dynamics.compartments", "1", "--data.compartments", "1"]
    options += ["--data.typical", "{CL: 4, V1: 70}", "--trainer.default_root_dir", str(tmp_path)]
    main(["fit", *options])
    printed = capsys.readouterr().out
    assert "Population fit: converged in" in printed and "95 % CI: profile" in printed
    folder = tmp_path / "lightning_logs" / "version_0"
    table = pd.read_csv(folder / "population.csv")
    assert set(table["STATUS"]) == {"converged"} and set(table["INTERVAL"]) == {"profile"}
    main(["population", "--model", str(folder / "checkpoints" / "last.ckpt"), "--out", str(tmp_path / "pop.yaml")])
    assert (tmp_path / "pop.yaml").read_text().startswith("# Population fit: converged in")
    assert read_population(tmp_path / "pop.yaml").typical.keys() == {"CL", "V1"}


def test_an_encoder_is_trained_beside_the_estimator() -> None:
    task = LatentTask(CompartmentModel(1), encoder=SetEncoder(8))
    data = data_of(passes=10)
    data.context = "random"
    used = trainer(max_epochs=3)
    used.fit(task, data)
    assert task.status is not None and task.status.converged
    assert used.global_step == 30
    alone, _ = trained(data_of(), max_epochs=30)
    torch.testing.assert_close(numbers_of(task), numbers_of(alone), rtol=0, atol=1e-6)


def test_another_optimiser_that_is_asked_for_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    task = LatentTask(CompartmentModel(1))
    monkeypatch.setattr(task, "configure_optimizers", lambda: torch.optim.Adam(task.parameters(), lr=0.01))
    trainer(max_epochs=2).fit(task, data_of())
    assert task.estimator is None and task.status is None and task.covariance is not None


def test_a_status_survives_as_plain_values() -> None:
    status = FitStatus(False, "why", 3, 0.5, ("omega KA",), ("F",), 512, 12.0, "7", "remark")
    assert FitStatus.from_plain(status.plain()) == status
    sentence = status.sentence
    assert all(word in sentence for word in ("not converged", "why", "omega KA", "12 of 512", "subject 7", "remark"))
    assert pd.Series([status.word]).tolist() == ["not converged"]
