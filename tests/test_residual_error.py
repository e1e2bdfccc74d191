"""The residual error against scipy's distributions, and its censored records."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy import stats

from neuralpk.cdf_from_density import NumericalCdf, normal_quantile
from neuralpk.cohort import Cohort, Subject
from neuralpk.cohort_batch import collate
from neuralpk.part import describe, make, subclasses
from neuralpk.residual_error import (
    AdditiveError,
    Assay,
    CombinedError,
    ErrorByEndpoint,
    LogNormalError,
    NormalError,
    ProportionalError,
    ResidualError,
    StudentTError,
    censored_below_lloq,
    error_class,
    stated_error,
)
from neuralpk.scaling import Scaling

A, B = 0.4, 0.25
KNOWN = {"additive": {"a": A}, "proportional": {"b": B}, "combined": {"a": A, "b": B}, "log_normal": {"b": B}}
ERRORS = tuple(KNOWN)
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
    error = error_class(name).from_values(**KNOWN[name]).double()
    for parameter, value in KNOWN[name].items():
        error.log_values[parameter].data.fill_(np.log(value))
    return error


def built(error, *typical):
    """An error model with the parameters that it starts to learn from, in float64."""
    error.build(Scaling(value=typical))
    return error.double()


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
    error = error_class("additive").from_values(a=1.0).to(kind)
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
    around = error.distribution(torch.full((1,), 3.0, dtype=torch.float64), torch.zeros(1, dtype=torch.int64))
    assert float(around.stddev) == pytest.approx(expected.std(), rel=1e-12)


@pytest.mark.parametrize("censored", [0, 1])
@pytest.mark.parametrize("name", ERRORS)
def test_what_is_not_scored_has_no_gradient_and_no_nan(name, censored):
    error = built(error_class(name)(), 3.0)
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
    error = built(CombinedError(), 3.0, 50.0)
    with torch.no_grad():
        error.log_values["a"].copy_(torch.tensor([0.1, 5.0]).log())
        error.log_values["b"].copy_(torch.tensor([0.2, 0.3]).log())
    batch = batch_of([1.0, 40.0], endpoints=[1, 2])
    found = error.log_likelihood(batch, torch.tensor([[2.0, 30.0]], dtype=torch.float64))[0].detach()
    expected = stats.norm([2.0, 30.0], [np.sqrt(0.1**2 + 0.4**2), np.sqrt(25 + 81)]).logpdf([1.0, 40.0])
    np.testing.assert_allclose(found, expected, rtol=1e-6)  # the parameters were set from float32


def test_a_proportional_error_never_claims_to_measure_nothing_exactly():
    error = built(ProportionalError(b=0.2), 3.0)
    zero = torch.zeros(1, dtype=torch.float64)
    assert float(error.sd(zero, zero.long()).detach()) == pytest.approx(0.2 * 3e-4)
    assert built(LogNormalError(), 3.0).distribution(zero, zero.long()).loc.isfinite()


@pytest.mark.parametrize("wrong", [{"a": 0.1, "b": 0.2}, {}, {"b": 0.0}, {"b": -1.0}])
def test_known_errors_are_positive_and_complete(wrong):
    with pytest.raises(ValueError, match=r"ProportionalError takes positive b"):
        ProportionalError.from_values(**wrong)


# ---- a distribution of one's own


class StudentT4(ResidualError):
    """y = f + s·t with 4 degrees of freedom, of which only the distribution is written."""

    names = ("s",)

    def distribution(self, prediction, endpoint):
        return torch.distributions.StudentT(4.0, prediction, self.by_endpoint("s", endpoint))


class AnyError(ResidualError):
    """Any distribution of torch around the prediction."""

    names = ("s",)
    kind = staticmethod(lambda f, s: torch.distributions.Laplace(f, s))

    def distribution(self, prediction, endpoint):
        return self.kind(prediction, self.by_endpoint("s", endpoint))


def of(kind, s=1.0):
    error = exact(AnyError.from_values(s=s), s=s)
    error.kind = kind
    return error


def exact(error, **values):
    """Parameters to the last digit of float64, which can be learned."""
    error = error.double().requires_grad_(True)
    for name, value in values.items():
        error.log_values[name].data.fill_(np.log(value))
    return error


def score(error, values, predictions, **more):
    """Log likelihood of each value of one subject."""
    f = torch.as_tensor(np.asarray(predictions, float))[None]
    return error.log_likelihood(batch_of(values, **more), f)[0]


def test_a_value_below_the_limit_is_not_taken_for_a_normal_one():
    found = score(exact(StudentT4.from_values(s=1.0), s=1.0), [1.0], [4.1], censored=[1]).detach()
    expected = stats.t(4, loc=4.1).logcdf(1.0)
    assert expected == pytest.approx(-4.02, abs=0.01)
    assert stats.norm(loc=4.1).logcdf(1.0) == pytest.approx(-6.94, abs=0.01)
    assert float(found) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("side", [1, -1])
@pytest.mark.parametrize("freedom", [1.0, 4.0, 100.0])
def test_tails_of_students_distribution_are_those_of_scipy(freedom, side):
    error = exact(StudentTError.from_values(a=0.5, b=0.1), a=0.5, b=0.1)
    error.freedom = freedom
    f = np.array([0.0, 1.0, 2.0, 2.0001, 7.0, 60.0, 1e4])
    expected = stats.t(freedom, loc=f, scale=np.sqrt(0.25 + (0.1 * f) ** 2))
    value = np.full(len(f), 2.0)
    found = score(error, value, f, censored=[side] * len(f)).detach()
    np.testing.assert_allclose(found, expected.logcdf(value) if side == 1 else expected.logsf(value), rtol=1e-10)
    limits = value - side * 1.5
    found = score(error, value, f, censored=[side] * len(f), limits=limits).detach()
    between = np.abs(expected.cdf(value) - expected.cdf(limits))
    seen = between > 1e-8  # below it SciPy's difference has no digits left
    np.testing.assert_allclose(found[torch.tensor(seen)], np.log(between[seen]), rtol=1e-6)
    of_values = error.standardise(*torch.tensor(np.stack([value, f]))[:, None], torch.zeros((1, len(f)), dtype=int))
    p, q = expected.logcdf(value), expected.logsf(value)
    by_scipy = np.where(p < q, stats.norm.ppf(np.exp(p)), stats.norm.isf(np.exp(q)))
    np.testing.assert_allclose(of_values[0].detach(), by_scipy, rtol=1e-9, atol=1e-12)


CONTINUOUS = {
    "laplace": (lambda f, s: torch.distributions.Laplace(f, s), lambda f: stats.laplace(f)),
    "cauchy": (lambda f, s: torch.distributions.Cauchy(f, s), lambda f: stats.cauchy(f)),
    "gumbel": (lambda f, s: torch.distributions.Gumbel(f, s), lambda f: stats.gumbel_r(f)),
    "gamma": (lambda f, s: torch.distributions.Gamma(5.0 * s, 5.0 / f), lambda f: stats.gamma(5, scale=f / 5)),
    "weibull": (lambda f, s: torch.distributions.Weibull(f, 1.5 * s), lambda f: stats.weibull_min(1.5, scale=f)),
}


@pytest.mark.parametrize("name", CONTINUOUS)
def test_probabilities_of_any_smooth_distribution_are_those_of_scipy(name):
    kind, expected = CONTINUOUS[name]
    f, value = np.full(5, 6.0), np.array([3.5, 5.0, 6.0, 9.0, 30.0])
    error, expected = of(kind), expected(6.0)
    np.testing.assert_allclose(score(error, value, f).detach(), expected.logpdf(value), rtol=1e-12)
    np.testing.assert_allclose(score(error, value, f, censored=[1] * 5).detach(), expected.logcdf(value), rtol=1e-9)
    np.testing.assert_allclose(score(error, value, f, censored=[-1] * 5).detach(), expected.logsf(value), rtol=1e-9)
    noise = torch.tensor([-4.0, -1.0, 0.0, 1.0, 4.0], dtype=torch.float64)
    drawn = error.simulate(torch.tensor(f), torch.zeros(5, dtype=torch.int64), noise).detach()
    np.testing.assert_allclose(drawn, expected.ppf(stats.norm.cdf(noise)), rtol=1e-9)


def test_far_tails_do_not_underflow():
    # 1,000 standard deviations away
    f = torch.tensor([1000.0, -1000.0], dtype=torch.float64)
    log_lower, log_upper = NumericalCdf(torch.distributions.Normal(f, 1.0), f).log_tails(torch.zeros_like(f))
    assert float(log_lower[0]) == pytest.approx(stats.norm.logcdf(-1000.0), rel=1e-12)
    assert float(log_upper[1]) == pytest.approx(stats.norm.logcdf(-1000.0), rel=1e-12)
    log_p = torch.tensor([-1.0, -100.0, -1e4, -1e8], dtype=torch.float64)
    torch.testing.assert_close(torch.special.log_ndtr(normal_quantile(log_p)), log_p, rtol=1e-13, atol=0.0)


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_precision_and_shape_are_those_of_the_prediction(kind):
    error = StudentT4.from_values(s=0.5).to(kind)
    f, endpoint = torch.tensor([[1.0, 2.0, torch.nan]], dtype=kind).expand(2, 1, 3), torch.zeros((2, 1, 3), dtype=int)
    for found in (
        error.standardise(torch.full_like(f, 1.5), f, endpoint),
        error.simulate(f, endpoint, torch.full_like(f, 0.3)),
        error.information(f, endpoint),
    ):
        assert (found.dtype, found.shape) == (kind, f.shape)
        assert found[..., :2].isfinite().all()
        assert found[..., 2].isnan().all()  # of a subject that could not be solved


@pytest.mark.parametrize("censored", [[1, 1, -1], [1, 0, 1]])
def test_gradients_are_those_of_finite_differences(censored):
    error = exact(StudentTError.from_values(a=0.5, b=0.1), a=0.5, b=0.1)
    batch = batch_of([1.0, 2.0, 5.0], censored=censored, limits=[np.inf, 0.5, np.inf])
    log_a, log_b = (error.log_values[name] for name in ("a", "b"))
    f = torch.tensor([[3.0, 1.0, 90.0]], dtype=torch.float64, requires_grad=True)

    def likelihood(f, a, b):
        error.log_values["a"].data, error.log_values["b"].data = a.data, b.data
        return torch.func.functional_call(
            Likelihood(error), {"error.log_values.a": a, "error.log_values.b": b}, (batch, f)
        )

    assert torch.autograd.gradcheck(likelihood, (f, log_a.clone(), log_b.clone()), rtol=1e-6, atol=1e-9)


class Likelihood(torch.nn.Module):
    def __init__(self, error):
        super().__init__()
        self.error = error

    def forward(self, batch, f):
        return self.error.log_likelihood(batch, f)


def test_gradients_of_residuals_and_simulated_values_are_those_of_finite_differences():
    error = exact(StudentTError.from_values(a=0.5, b=0.1), a=0.5, b=0.1)
    f = torch.tensor([3.0, 1.0, 9.0], dtype=torch.float64, requires_grad=True)
    other = torch.tensor([0.5, -2.0, 3.0], dtype=torch.float64, requires_grad=True)
    endpoint = torch.zeros(3, dtype=torch.int64)
    assert torch.autograd.gradcheck(lambda f, y: error.standardise(y, f, endpoint), (f, other))
    assert torch.autograd.gradcheck(lambda f, e: error.simulate(f, endpoint, e), (f, other))


def two_peaks(f, s):
    """A mixture far from the prediction, whose density cannot be integrated from there."""
    weights = torch.distributions.Categorical(torch.full((*f.shape, 2), 0.5, dtype=f.dtype))
    centres = torch.stack([f - 50.0, f + 50.0], dim=-1)
    return torch.distributions.MixtureSameFamily(weights, torch.distributions.Normal(centres, torch.ones_like(centres)))


def test_a_density_that_cannot_be_integrated_needs_a_cdf():
    found = score(of(two_peaks), [1.0], [50.0], censored=[1]).detach()
    assert float(found) == pytest.approx(np.log(0.5 * stats.norm.cdf(1.0)), rel=1e-9)
    error = of(two_peaks)
    f, endpoint = torch.tensor([50.0], dtype=torch.float64), torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"AnyError: .*MixtureSameFamily.*cdf and icdf, or override"):
        error.simulate(f, endpoint, torch.zeros_like(f))
    with pytest.raises(ValueError, match=r"AnyError: .*Poisson.*cdf and icdf, or override"):
        of(lambda f, s: torch.distributions.Poisson(f, validate_args=False)).standardise(f, f, endpoint)


# ---- closed forms

SHIPPED = [
    cls
    for cls in subclasses(ResidualError)
    if cls.__module__.startswith("neuralpk.") and cls not in (ResidualError, NormalError, ErrorByEndpoint)
]


def test_there_are_shipped_errors():
    assert {cls.__name__ for cls in SHIPPED} >= {"AdditiveError", "LogNormalError", "StudentTError"}


@pytest.mark.parametrize("cls", SHIPPED)
def test_every_closed_form_equals_what_follows_from_the_distribution(cls):
    values = {name: 0.2 + 0.1 * k for k, name in enumerate(cls.names)}
    error = exact(cls.from_values(endpoints=2, **values))
    endpoint = torch.tensor([[0, 1, 0, 1, 0]])
    f = torch.tensor([[0.7, 3.0, 11.0, 0.2, 2.0]], dtype=torch.float64)
    y = torch.tensor([[0.9, 2.0, 30.0, 0.1, 2.0]], dtype=torch.float64)
    noise = torch.tensor([[-4.0, -1.0, 0.0, 0.5, 3.0]], dtype=torch.float64)

    def equal(found, expected):
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-9)

    equal(error.simulate(f, endpoint, noise), ResidualError.simulate(error, f, endpoint, noise))
    equal(error.information(f, endpoint), ResidualError.information(error, f, endpoint))
    for k in (0, 1):
        equal(error.log_tails(y, f, endpoint)[k], ResidualError.log_tails(error, y, f, endpoint)[k])
    batch = batch_of(
        y[0].numpy(), censored=[1, -1, 1, 1, 0], limits=[0.1, 9.0, np.inf, np.inf, np.inf], endpoints=[1, 2, 1, 2, 1]
    )
    closed = error.log_likelihood(batch, f)
    residual = error.standardise(y, f, endpoint)
    error.log_tails = lambda *parts: ResidualError.log_tails(error, *parts)
    equal(closed, error.log_likelihood(batch, f))
    equal(residual, ResidualError.standardise(error, y, f, endpoint))


# ---- parameters


def test_starting_values_are_of_the_constructor_or_guessed():
    error = built(CombinedError(b=0.2), 3.0, 50.0)
    found = {name: value.tolist() for name, value in error.parameters_by_name().items()}
    assert found == {"a": pytest.approx([0.27, 4.5]), "b": pytest.approx([0.2, 0.2])}
    assert all(parameter.requires_grad for parameter in error.parameters())
    error.build(Scaling(value=(1.0,)))  # other data
    assert error.parameters_by_name()["a"].shape == (1,)


def test_fixed_values_stay_fixed_when_the_data_are_known():
    error = ProportionalError.from_values(b=0.2)
    assert float(error.smallest) == 0.0
    error.build(Scaling(value=(3.0, 50.0)))
    assert error.parameters_by_name()["b"].tolist() == pytest.approx([0.2, 0.2])
    assert error.smallest.tolist() == pytest.approx([3e-4, 5e-3])
    assert not any(parameter.requires_grad for parameter in error.parameters())


def test_an_error_is_made_again_from_its_description():
    for error in (CombinedError(a=0.3), StudentTError(freedom=6.0), StudentT4({"s": 0.5})):
        again = make(describe(error), ResidualError, "error")
        assert (type(again), again.values) == (type(error), error.values)
    assert make(describe(StudentTError(freedom=6.0)), StudentTError, "error").freedom == 6.0


@pytest.mark.parametrize("cls", SHIPPED)
def test_the_prior_of_every_parameter_is_normal_around_its_logarithm(cls):
    start = {name: 0.2 + 0.1 * k for k, name in enumerate(cls.names)}
    spread = {name: 0.5 + k for k, name in enumerate(cls.names)}
    error = built(make(describe(cls(**start, prior_sd=spread)), ResidualError, "error"), 3.0, 50.0)
    assert float(error.log_prior().detach()) == pytest.approx(0.0, abs=1e-9)
    expected = 0.0
    for k, name in enumerate(cls.names):
        now = [0.3 + k, 0.1]
        error.log_values[name].data = torch.tensor(now, dtype=torch.float64).log()
        belief = stats.norm(np.log(start[name]), spread[name])
        expected += sum(belief.logpdf(np.log(now)) - belief.logpdf(np.log(start[name])))
    assert float(error.log_prior().detach()) == pytest.approx(expected)
    assert float(cls(**start, prior_sd=spread).fix().log_prior()) == 0.0
    assert float(built(cls(), 3.0).log_prior()) == 0.0


def test_an_error_of_ones_own_has_priors_without_writing_any():
    error = built(StudentT4({"s": 0.5}, {"s": 0.1}), 1.0)
    error.log_values["s"].data.fill_(np.log(0.6))
    assert float(error.log_prior().detach()) == pytest.approx(-0.5 * (np.log(1.2) / 0.1) ** 2)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"prior_sd": {"b": 0.1}}, r"prior_sd\.b is the width of a prior around b: give that too"),
        ({"b": 0.2, "prior_sd": {"b": 0.0}}, r"prior_sd of CombinedError takes positive a, b; got \{'b': 0.0\}"),
        ({"b": 0.2, "prior_sd": {"c": 0.1}}, r"prior_sd of CombinedError takes positive a, b; got \{'c': 0.1\}"),
    ],
)
def test_a_prior_that_makes_no_sense_is_refused(options, said):
    with pytest.raises(ValueError, match=said):
        CombinedError(**options)


def test_an_error_that_has_not_seen_data_says_so():
    f = torch.ones(1)
    with pytest.raises(ValueError, match=r"ProportionalError has no parameter 'b' yet: call build"):
        ProportionalError().simulate(f, torch.zeros(1, dtype=torch.int64), f)
    with pytest.raises(ValueError, match=r"CombinedError needs a value for b"):
        CombinedError(a=0.1).fix()
    with pytest.raises(ValueError, match=r"ProportionalError takes positive b; got \{'b': -1.0\}"):
        ProportionalError(b=-1.0)
    with pytest.raises(ValueError, match="error is one of additive, proportional"):
        error_class("normal")


# ---- an error model by endpoint


def three():
    return [ProportionalError(b=0.2), AdditiveError(a=4.0), StudentT4({"s": 0.5})]


def by_endpoint():
    return exact(ErrorByEndpoint(three()).fix())


def test_every_endpoint_has_its_own_distribution():
    error = by_endpoint()
    endpoint = torch.tensor([[1, 0, 2, 0, 1], [0, 0, 1, 2, 2]])
    f = torch.tensor([[0.7, 3.0, -1.0, 0.2, 2.0], [5.0, 6.0, 7.0, 8.0, 9.0]], dtype=torch.float64, requires_grad=True)
    y = f.detach() * 1.1 + 0.1
    noise = torch.linspace(-2, 2, 10, dtype=torch.float64).reshape(2, 5)
    for name, arguments in {
        "log_tails": (y, f, endpoint), "standardise": (y, f, endpoint), "simulate": (f, endpoint, noise),
        "information": (f, endpoint),
    }.items():  # fmt: skip
        together = getattr(error, name)(*arguments)
        for k, one in enumerate(error.models):
            own = endpoint == k
            alone = getattr(one, name)(*(torch.zeros_like(x) if x is endpoint else x for x in arguments))
            for found, expected in zip(
                *((x if isinstance(x, tuple) else (x,)) for x in (together, alone)), strict=True
            ):
                torch.testing.assert_close(found[own], expected[own], rtol=1e-9, atol=1e-9)


def test_the_likelihood_of_several_endpoints_is_the_sum_of_theirs():
    error = by_endpoint()
    values, which, censored = [0.9, 2.0, 30.0, 0.1, 2.0], [1, 2, 1, 3, 2], [1, 0, 0, 0, -1]
    f = torch.tensor([[0.7, 3.0, 11.0, 0.2, 2.0]], dtype=torch.float64, requires_grad=True)
    batch = batch_of(values, endpoints=which, censored=censored)
    found = error.log_likelihood(batch, f.expand(4, 1, 5))
    assert found.shape == (4, 1, 5)
    for k, one in enumerate(error.models):
        own = torch.tensor(which) == k + 1
        alone = one.log_likelihood(batch_of(values, censored=censored), f)
        torch.testing.assert_close(found[2, :, own], alone[:, own], rtol=1e-9, atol=1e-9)
    (slope,) = torch.autograd.grad(found.sum(), f)
    assert bool(torch.isfinite(slope).all())


def test_numbers_of_several_endpoints_are_reported_with_that_of_the_endpoint():
    error = built(ErrorByEndpoint([CombinedError(a=1.0, prior_sd={"a": 0.1}), AdditiveError()]), 3.0, 50.0)
    assert [(one.name, one.has_prior) for one in error.numbers()] == [("a1", True), ("b1", False), ("a2", False)]
    assert len(list(error.parameters())) == 3 and all(weight.requires_grad for weight in error.parameters())
    found = {name: value.tolist() for name, value in error.parameters_by_name().items()}
    assert found == {"a": pytest.approx([1.0, 4.5]), "b": pytest.approx([0.3, np.nan], nan_ok=True)}
    error.models[0].log_values["a"].data.fill_(0.1)
    assert float(error.log_prior().detach()) == pytest.approx(-0.5)
    error.build(Scaling(value=(3.0,)))  # data of the first endpoint alone
    assert [one.name for one in error.numbers()] == ["a", "b"] and float(error.log_prior().detach()) == 0.0
    with pytest.raises(ValueError, match=r"the data have 3 endpoints .*of 2: give one for each"):
        error.build(Scaling(value=(1.0, 1.0, 1.0)))


def test_an_error_by_endpoint_is_made_again_from_its_description():
    error = ErrorByEndpoint([StudentTError(freedom=6.0), ProportionalError(b=0.2)])
    again = make(describe(error), ResidualError, "error")
    assert describe(again) == describe(error) and again.models[0].freedom == 6.0
    one = ProportionalError()
    for wrong, said in (([], "one error model by endpoint"), ([one, one], "one object twice"), ([error], "one error")):
        with pytest.raises(ValueError, match=said):
            ErrorByEndpoint(wrong)


# ---- what a model states of its outputs

C, R, FREE = Assay("C", "proportional", {"b": 0.2}), Assay("R", "additive"), Assay("S")


@pytest.mark.parametrize(
    ("assays", "given", "used"),
    [
        ((), None, ProportionalError()),
        ((FREE,), CombinedError(), CombinedError()),
        ((C,), None, ProportionalError(b=0.2)),
        ((C,), ProportionalError(b=0.2), ProportionalError(b=0.2)),
        ((C, R), None, ErrorByEndpoint([ProportionalError(b=0.2), AdditiveError()])),
        ((C, FREE), None, ErrorByEndpoint([ProportionalError(b=0.2), ProportionalError()])),
        ((C, FREE), AdditiveError(a=1.0), ErrorByEndpoint([ProportionalError(b=0.2), AdditiveError(a=1.0)])),
        (
            (C, FREE),
            ErrorByEndpoint([ProportionalError(b=0.2), AdditiveError()]),
            ErrorByEndpoint([ProportionalError(b=0.2), AdditiveError()]),
        ),
    ],
)
def test_the_error_is_that_of_the_model_and_else_that_of_the_user(assays, given, used):
    assert describe(stated_error(assays, given)) == describe(used)


@pytest.mark.parametrize(
    ("assays", "given", "said"),
    [
        ((C,), AdditiveError(), "states the error of C, proportional, and error is a AdditiveError"),
        ((C, R), ProportionalError(b=0.2), "states the error of R, additive"),
        ((C, FREE), ErrorByEndpoint([AdditiveError(), AdditiveError()]), "remove '~ proportional' from the text"),
        ((C, R, FREE), ErrorByEndpoint([AdditiveError(), AdditiveError()]), "2 endpoints; .* has 3 outputs"),
    ],
)
def test_an_error_that_the_model_states_otherwise_is_refused(assays, given, said):
    with pytest.raises(ValueError, match=said):
        stated_error(assays, given)


def test_values_below_the_limit_of_the_model_are_censored_and_counted():
    subject = Subject("1", [0, 1, 2, 3], [0.04, 0.2, 0.04, np.nan], endpoints=[1, 1, 2, 1], censored=[0, 0, 0, 0])
    cohort, assays = Cohort((subject,)), (Assay("C", "additive", {}, 0.1), R)
    with pytest.warns(UserWarning, match=r"read as censored: 1 of C \(LLOQ 0.1\)"):
        found = censored_below_lloq(cohort, assays)
    np.testing.assert_array_equal(found[0].values, [0.1, 0.2, 0.04, np.nan])
    assert found[0].censored.tolist() == [1, 0, 0, 0]
    assert censored_below_lloq(found, assays) is found  # and nothing is said again
    with pytest.warns(UserWarning, match="read as measured, because the table has CENS: 1 of C"):
        own = dataclasses.replace(cohort, states_censoring=True)
        assert censored_below_lloq(own, assays) is own
