"""Networks of covariates in a fit: what they learn, their derivatives, their report and their use for new patients."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

import neuralpk
from neuralpk import CompartmentModel, FittedModel, PopulationParameters, ProportionalError
from neuralpk.cohort import Cohort, Dose
from neuralpk.cohort_figures import learned_effects
from neuralpk.cohort_simulation import Design, Population, simulate_cohort
from neuralpk.diagnostics.term_plots import learned_effects_figure
from neuralpk.estimation import PopulationEstimator
from neuralpk.estimation.held_likelihood import HeldLikelihood
from neuralpk.individual_estimates import evaluation_batch
from neuralpk.published_population import PublishedPopulation
from neuralpk.scaling import Scaling

TYPICAL = {"CL": 5.0, "V1": 50.0}
NETWORKS = {"CL": {"WT+AGE": {"kind": "network", "hidden": 4}}, "V1": {"WT": {"kind": "network", "hidden": 4}}}


def patients(subjects: int, seed: int = 0) -> Cohort:
    """CL rises with weight; age does nothing."""
    population = Population(
        TYPICAL, {"CL": 0.15, "V1": 0.15}, {"WT": (40.0, 110.0), "AGE": (20.0, 80.0)}, {("CL", "WT"): 1.0}, {"WT": 70.0}
    )
    design = Design(((Dose(0.0, 100.0),),), (1.0, 4.0, 12.0))
    return simulate_cohort(
        CompartmentModel(1), population, design, ProportionalError.from_values(1, b=0.1), subjects, seed
    )


@pytest.fixture(scope="module")
def fitted() -> FittedModel:
    return neuralpk.fit(
        patients(30),
        CompartmentModel(1),
        parameters=PopulationParameters(effects=NETWORKS),
        error=ProportionalError(),
        progress=False,
    )


def test_a_fit_learns_the_effect_and_leaves_out_what_does_nothing(fitted: FittedModel) -> None:
    assert fitted.task.status is not None and fitted.task.status.converged
    model = fitted.task.model
    (_, on_clearance), (_, on_volume) = model.population.networks_by_parameter()
    sd = dict(zip(on_clearance.parts, on_clearance.prior_sd.tolist(), strict=True))
    assert sd["WT line"] > 2 * sd["AGE line"]
    assert 0.5 < on_clearance.freedom < 5 and on_volume.freedom < on_clearance.freedom
    assert set(fitted.population.INTERVAL) == {"wald"}
    by_name = {(one.parameter, one.covariate): one for one in learned_effects(fitted.task, patients(30))}
    weight, age = by_name["CL", "WT"], by_name["CL", "AGE"]
    ratio = weight.value / (5.0 * weight.x / 70.0)
    assert np.abs(np.log(ratio)).max() < 0.25
    assert (weight.low <= weight.value).all() and (weight.high - weight.low > 0).all()
    assert np.log(age.value).std() < 0.15
    figure = learned_effects_figure(list(by_name.values()))
    assert [panel.get_visible() for panel in figure.axes] == [True, True, True, False]


def test_the_derivatives_of_the_likelihood_are_those_of_differences() -> None:
    cohort = patients(6)
    parameters = PopulationParameters(TYPICAL, effects=NETWORKS)
    model = (
        neuralpk.LatentTask(CompartmentModel(1), parameters=parameters, error=ProportionalError())
        .build(Scaling.of(cohort))
        .model
    )
    estimator = PopulationEstimator(model, stages=(32,)).begin_here()
    generator = torch.Generator().manual_seed(0)
    for effect in estimator.model.population.network_effects():
        effect.weight.data.copy_(0.1 * torch.randn(effect.weight.shape, generator=generator))
        effect.information.fill_(0.3)
    estimator.add(evaluation_batch(model, cohort))
    likelihood: HeldLikelihood = estimator.likelihood()
    here = estimator.numbers.get()
    value, slope, second = likelihood.derivatives(here)
    # in a direction of all numbers at once
    way = torch.randn(here.shape, generator=generator, dtype=torch.float64)
    step = 1e-4
    above, below = (likelihood.derivatives(here + sign * step * way) for sign in (1, -1))
    assert float(slope @ way) == pytest.approx((above[0] - below[0]) / (2 * step), rel=1e-4)
    torch.testing.assert_close(second @ way, (above[1] - below[1]) / (2 * step), rtol=2e-3, atol=2e-3)
    assert value == pytest.approx(likelihood.value(here)[0])


def test_a_checkpoint_and_a_population_file_estimate_new_patients_alike(fitted: FittedModel, tmp_path: Path) -> None:
    fitted.save(tmp_path / "model.ckpt")
    again = FittedModel.load(tmp_path / "model.ckpt")
    new = patients(3, seed=5)
    expected = fitted.estimate(new)
    assert again.estimate(new).CL.tolist() == pytest.approx(expected.CL.tolist())
    published = PublishedPopulation.from_model(fitted.task.model)
    model = published.model(new)
    batch = evaluation_batch(model, new)
    found = model.theta(model.typical(3), batch)[:, 0]
    own = evaluation_batch(fitted.task.model, new)
    with torch.no_grad():
        theirs = fitted.task.model.theta(fitted.task.model.typical(3), own)[:, 0]
    torch.testing.assert_close(found, theirs.double(), rtol=1e-4, atol=0.0)


def test_weights_that_explain_the_patients_are_no_sign_of_a_small_omega() -> None:
    parameters = PopulationParameters(TYPICAL, effects=NETWORKS)
    parameters.build(TYPICAL, 0, Scaling.of(patients(4)), torch.float64)
    (effect, _) = parameters.network_effects()
    effect.take_prior(effect.prior_sd, torch.full_like(effect.information, 1.0), torch.tensor(math.log(0.3)))
    assert effect.freedom == pytest.approx(len(effect.information) / 2)
    before = parameters.log_prior()
    (slope,) = torch.autograd.grad(before, parameters.log_omega)
    assert float(slope[0]) == pytest.approx(effect.freedom) and float(slope[1]) == 0.0
