"""Models that are functions of rxode2 and nlmixr2: read, evaluated, solved, written and read again."""

import numpy as np
import pytest
import torch
import yaml
from rxode2_models import CASES
from scipy_reference import scipy_states

from neuralpk.cohort import Cohort, Subject
from neuralpk.cohort_batch import collate
from neuralpk.published_population import PublishedPopulation
from neuralpk.rxode2 import RxodeModel, export_rxode2, import_rxode2
from neuralpk.solve import Auto

TIMES = np.array([0.5, 1.5, 4.0, 11.0, 13.0, 20.0, 30.0])


def patients(model: RxodeModel, case) -> Cohort:
    """One patient without measured values, with a record of every output at every time."""
    outputs = len(model.errors)
    patient = Subject(
        "1",
        np.repeat(TIMES, outputs),
        np.full(len(TIMES) * outputs, np.nan),
        tuple(case.doses),
        endpoints=np.tile(np.arange(1, outputs + 1), len(TIMES)),
        covariates=dict(case.covariates),
    )
    return Cohort([patient])


def from_file(model: RxodeModel, cohort: Cohort):
    """The population model of the file that an imported model is written to."""
    plain = yaml.safe_load(yaml.safe_dump(model.population.to_plain()))
    return PublishedPopulation.from_plain(plain).model(cohort)


@pytest.mark.parametrize("name", CASES)
def test_the_equations_of_a_function_are_those_written_by_hand(name):
    case = CASES[name]
    model = import_rxode2(case.text)
    cohort = patients(model, case)
    population = from_file(model, cohort)
    dynamics, batch = population.dynamics, collate(cohort, dtype=torch.float64)
    theta = population.population(population.typical(1), batch.covariates)[:, 0]
    recorded = {name: torch.tensor([value], dtype=torch.float64) for name, value in case.covariates.items()}
    theta = dynamics.with_covariates(theta, recorded)
    y = torch.rand(30, len(dynamics.states), dtype=torch.float64).mul(4).exp()
    t = torch.linspace(0, 40, 30, dtype=torch.float64)
    with torch.no_grad():
        many = theta.expand(30, -1)
        slopes, outputs = dynamics(t, y, many), dynamics.observe(y, many)[:, list(dynamics.endpoints)]
        start, lag, share = (f(theta) for f in (dynamics.initial_state, dynamics.lag, dynamics.bioavailability))
    by_hand = np.array([case.slope(*pair) for pair in zip(t.numpy(), y.numpy(), strict=True)])
    np.testing.assert_allclose(slopes, by_hand, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(outputs, np.array([case.observe(row) for row in y.numpy()]), rtol=1e-11)
    numbers = range(1, len(dynamics.states) + 1)
    np.testing.assert_allclose(start[0], case.y0, rtol=1e-12)
    np.testing.assert_allclose(0 if lag is None else lag[0], [case.lag.get(k, 0) for k in numbers], rtol=1e-12)
    np.testing.assert_allclose(1 if share is None else share[0], [case.fraction.get(k, 1) for k in numbers], rtol=1e-12)
    assert tuple(assay.error for assay in model.errors) == tuple(case.errors)
    assert {parameter: model.omega[parameter] for parameter in case.omega} == pytest.approx(dict(case.omega))


FAST = "one_compartment_rate_constants_with_lag"
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in CASES if name != FAST]


@pytest.mark.parametrize("name", [FAST, *SLOW])
def test_the_typical_patient_of_a_function_is_that_of_scipy(name):
    case = CASES[name]
    model = import_rxode2(case.text)
    cohort = patients(model, case)
    population = from_file(model, cohort)
    population.engine = Auto(rtol=1e-9, atol=1e-11)
    with torch.no_grad():
        batch = collate(cohort, dtype=torch.float64)
        values = population.predict(population.typical(1), batch).value[0].numpy().reshape(len(TIMES), -1)
    states = scipy_states(case.slope, case.y0, case.doses, TIMES, case.lag, case.fraction)
    np.testing.assert_allclose(values, np.array([case.observe(y) for y in states]), rtol=2e-6, atol=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_a_model_that_is_written_and_read_again_is_the_same(name):
    model = import_rxode2(CASES[name].text)
    again = import_rxode2(export_rxode2(model))
    assert again.text.replace("# model\n", "") == model.text
    for part in ("typical", "omega", "fixed", "errors", "fixed_errors", "units", "labels", "description", "correlated"):
        assert getattr(again, part) == getattr(model, part), part
    assert again.correlation == pytest.approx(model.correlation, rel=1e-14)
    assert again.effects.keys() == model.effects.keys()
    for parameter, effects in model.effects.items():
        for one, other in zip(effects, again.effects[parameter], strict=True):
            assert type(one) is type(other)
            assert one.arguments == pytest.approx(other.arguments)
