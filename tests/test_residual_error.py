"""The residual error against scipy's distributions, and its censored records."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy import stats

from neuralpk.batch import collate
from neuralpk.cohort import Subject
from neuralpk.residual_error import ERRORS, CombinedError, LogNormalError, ProportionalError
from neuralpk.scaling import Scaling

A, B = 0.4, 0.25
KNOWN = {"additive": {"a": A}, "proportional": {"b": B}, "combined": {"a": A, "b": B}, "log_normal": {"b": B}}
VALUES = np.array([0.5, 2.0, 9.0])
PREDICTIONS = torch.tensor([[0.7, 1.6, 10.0]], dtype=torch.float64)


def by_scipy(name, prediction):
    """The frozen distribution around a prediction."""
    f = np.asarray(prediction)
    if name == "log_normal":
        return stats.lognorm(s=B, scale=f)
    return stats.norm(f, {"additive": A, "proportional": B * f, "combined": np.sqrt(A**2 + (B * f) ** 2)}[name])


def known(name):
    """An error model with the standard deviations of `KNOWN`, to the last digit of float64."""
    error = ERRORS[name].known(**KNOWN[name]).double()
    for parameter, value in KNOWN[name].items():
        error.log_sd[parameter].data.fill_(np.log(value))
    return error


def batch_of(values, **more):
    return collate([Subject("1", np.arange(len(values)), values, **more)], dtype=torch.float64)


@pytest.mark.parametrize("name", ERRORS)
def test_the_likelihood_is_that_of_scipy(name):
    error = known(name)
    found = error.log_likelihood(batch_of(VALUES), PREDICTIONS)[0]
    np.testing.assert_allclose(found, by_scipy(name, PREDICTIONS[0]).logpdf(VALUES), rtol=1e-12)


@pytest.mark.parametrize("name", ERRORS)
def test_a_censored_value_contributes_the_probability_of_its_side(name):
    error = known(name)
    expected = by_scipy(name, PREDICTIONS[0])
    left = error.log_likelihood(batch_of(VALUES, censored=[1, 1, 1]), PREDICTIONS)[0]
    right = error.log_likelihood(batch_of(VALUES, censored=[-1, -1, -1]), PREDICTIONS)[0]
    np.testing.assert_allclose(left, expected.logcdf(VALUES), rtol=1e-9)  # two implementations of log Phi
    np.testing.assert_allclose(right, expected.logsf(VALUES), rtol=1e-9)
    lower = VALUES / 2
    between = error.log_likelihood(batch_of(VALUES, censored=[1, 1, 1], limits=lower), PREDICTIONS)[0]
    np.testing.assert_allclose(between, np.log(expected.cdf(VALUES) - expected.cdf(lower)), rtol=1e-9)
    upper = batch_of(VALUES, censored=[-1, -1, -1], limits=2 * VALUES)
    between = error.log_likelihood(upper, PREDICTIONS)[0]
    np.testing.assert_allclose(between, np.log(expected.sf(VALUES) - expected.sf(2 * VALUES)), rtol=1e-9)


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_an_interval_far_from_the_prediction_is_unlikely_and_pulls_towards_itself(kind):
    # 500 standard deviations below: the probability of the interval underflows, its logarithm must not
    error = ERRORS["additive"].known(a=1.0).to(kind)
    batch = collate([Subject("1", [0.0], [1.0], censored=[1], limits=[0.0])], dtype=kind)
    prediction = torch.tensor([[500.0]], dtype=kind, requires_grad=True)
    found = error.log_likelihood(batch, prediction)
    found.sum().backward()
    expected = float(stats.norm(500.0, 1.0).logcdf(1.0))  # what lies below 0 is nothing beside it
    np.testing.assert_allclose(float(found.detach()), expected, rtol=1e-5)
    # float32 resolves the derivative of log Phi to three digits out there
    assert float(prediction.grad) == pytest.approx(-499.0, rel=2e-3)


@pytest.mark.parametrize("name", ERRORS)
def test_simulated_values_have_the_moments_of_the_distribution(name):
    error = known(name)
    n = 200_000
    noise = torch.randn(n, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    drawn = error.simulate(torch.full((n,), 3.0, dtype=torch.float64), torch.zeros(n, dtype=torch.int64), noise)
    expected = by_scipy(name, 3.0)
    # five standard errors of a mean and of a standard deviation of 200,000 draws
    assert abs(float(drawn.mean()) - expected.mean()) < 5 * expected.std() / n**0.5
    assert float(drawn.std()) == pytest.approx(expected.std(), rel=5 / n**0.5)
    residual = error.standardise(drawn, torch.full_like(drawn, 3.0), torch.zeros(n, dtype=torch.int64))
    torch.testing.assert_close(residual, noise, rtol=1e-9, atol=1e-9)
    sd = error.sd(torch.full((1,), 3.0, dtype=torch.float64), torch.zeros(1, dtype=torch.int64))
    assert float(sd) == pytest.approx(expected.std(), rel=1e-12)


@pytest.mark.parametrize("censored", [0, 1])
@pytest.mark.parametrize("name", ERRORS)
def test_what_is_not_scored_has_no_gradient_and_no_nan(name, censored):
    error = ERRORS[name](Scaling(value=(3.0,))).double()
    batch = batch_of([2.0, 5.0, 1.0], censored=[censored, 0, 0])
    # before the first dose nothing is predicted: the logarithm of 0 must not be felt
    batch = dataclasses.replace(batch, target=torch.tensor([[True, False, False]]))
    prediction = torch.tensor([[1.5, 0.0, 100.0]], dtype=torch.float64, requires_grad=True)
    found = error.log_likelihood(batch, prediction)
    found.sum().backward()
    assert found[0, 1:].tolist() == [0.0, 0.0]
    assert prediction.grad[0, 1:].tolist() == [0.0, 0.0]
    assert prediction.grad[0, 0] != 0
    for parameter in error.parameters():
        assert parameter.grad.isfinite().all()
        assert parameter.grad.any()


def test_each_endpoint_has_its_own_error():
    error = CombinedError(Scaling(value=(3.0, 50.0))).double()
    with torch.no_grad():
        error.log_sd["a"].copy_(torch.tensor([0.1, 5.0]).log())
        error.log_sd["b"].copy_(torch.tensor([0.2, 0.3]).log())
    batch = batch_of([1.0, 40.0], endpoints=[1, 2])
    found = error.log_likelihood(batch, torch.tensor([[2.0, 30.0]], dtype=torch.float64))[0].detach()
    expected = stats.norm([2.0, 30.0], [np.sqrt(0.1**2 + 0.4**2), np.sqrt(25 + 81)]).logpdf([1.0, 40.0])
    np.testing.assert_allclose(found, expected, rtol=1e-6)  # the parameters were set from float32


def test_a_proportional_error_never_claims_to_measure_nothing_exactly():
    error = ProportionalError(Scaling(value=(3.0,)), relative=0.2).double()
    zero = torch.zeros(1, dtype=torch.float64)
    assert float(error.sd(zero, zero.long()).detach()) == pytest.approx(0.2 * 3e-4)
    assert LogNormalError(Scaling(value=(3.0,))).distribution(torch.zeros(1), zero.long()).loc.isfinite()


@pytest.mark.parametrize("wrong", [{"a": 0.1, "b": 0.2}, {}, {"b": 0.0}, {"b": -1.0}])
def test_known_errors_are_positive_and_complete(wrong):
    with pytest.raises(ValueError, match=r"ProportionalError takes positive b"):
        ProportionalError.known(**wrong)
