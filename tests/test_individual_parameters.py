"""Individual parameters: theta of z and covariates, with correlated random effects and priors."""

import math

import pytest
import torch

from neuralpk.parameters import PopulationParameters
from neuralpk.part import describe, make
from neuralpk.scaling import Scaling

SCALING = Scaling(24.0, 100.0, (3.0,), {"TEMP": (37.0, 0.5, False), "WT": (70.0, 0.2, True)})


def population(**options):
    made = PopulationParameters(omega=0.4, **options)
    made.build({"CL": 5.0, "V1": 20.0}, 1, SCALING, torch.float64)
    return made.requires_grad_(False)


def periods(*steps):
    """Covariates of one subject, a pair (TEMP, WT) for each period."""
    return torch.tensor([steps], dtype=torch.float64)


Z = torch.tensor([[0.5, -1.0, 2.0]], dtype=torch.float64)


def test_parameters_are_log_normal_around_typical_values_and_the_rest_of_z_is_passed_on():
    theta = population()(Z, periods((37.0, 70.0)))
    assert theta.tolist() == [[pytest.approx([5 * math.exp(0.2), 20 * math.exp(-0.4), 2.0], rel=1e-12)]]


def test_covariates_act_only_where_they_are_asked_to():
    model = population(effects={"CL": ["WT"]})
    at_rest = model(Z, periods((38.0, 140.0)))
    torch.testing.assert_close(at_rest, model(Z, periods((37.0, 70.0))), msg="effects start at zero")
    model.effects["CL"][0].exponent.fill_(0.75)
    model.latent_effects.fill_(0.15)
    found, reference = model(Z, periods((38.0, 140.0)))[0, 0], model(Z, periods((37.0, 70.0)))[0, 0]
    assert float(found[0] / reference[0]) == pytest.approx(2**0.75)
    assert found[1] == reference[1]
    # everything acts on a dimension without a name
    assert float(found[2] - reference[2]) == pytest.approx(0.15 * (math.log(2) / 0.2 + 1 / 0.5))


def test_covariates_that_change_in_time_give_each_period_its_parameters():
    model = population(effects={"CL": ["WT"], "V1": ["TEMP"]})
    for effects in model.effects.values():
        torch.nn.init.constant_(next(effects.parameters()), 0.15)
    steps = [(37.0, 70.0), (37.0, 90.0), (39.0, 90.0)]
    theta = model(Z, periods(*steps))
    assert theta.shape == (1, 3, 3)
    torch.testing.assert_close(theta[0], torch.cat([model(Z, periods(step))[0] for step in steps]))
    assert theta[0, 1, 1] == theta[0, 0, 1] != theta[0, 2, 1]


def test_correlated_random_effects_have_the_covariance_that_was_asked_for_and_come_back():
    omega, pair = {"CL": 0.3, "V1": 0.5}, {("V1", "CL"): -0.6}
    model = PopulationParameters.from_values({"CL": 5.0, "V1": 20.0}, omega, correlation=pair)
    ends = torch.eye(2, dtype=torch.float64)
    factor = model.eta(ends).T
    expected = torch.tensor([[0.09, -0.09], [-0.09, 0.25]], dtype=torch.float64)
    torch.testing.assert_close(factor @ factor.T, expected)
    torch.testing.assert_close(model.correlations(), torch.tensor([-0.6], dtype=torch.float64))
    z = torch.tensor([[0.7, -1.3]], dtype=torch.float64)
    back, log_volume = model.standardise(model.eta(z))
    torch.testing.assert_close(back, z)
    torch.testing.assert_close(log_volume, -torch.logdet(factor))
    theta = model(z, torch.zeros(1, 1, 0, dtype=torch.float64))
    torch.testing.assert_close(theta[:, 0], torch.tensor([[5.0, 20.0]]).double() * model.eta(z).exp())


def test_correlations_that_no_random_effects_have_are_refused():
    names = dict.fromkeys(("CL", "V1", "Q"), 1.0)
    impossible = {("CL", "V1"): 0.9, ("V1", "Q"): 0.9, ("CL", "Q"): -0.9}
    with pytest.raises(ValueError, match="no random effects have all these correlations"):
        PopulationParameters.from_values(names, names, correlation=impossible)


def test_the_prior_of_omega_is_normal_around_the_first_guess_of_its_logarithm():
    model = population(omega_prior_sd=0.25)
    model.log_omega += torch.tensor([0.5, -0.2])
    expected = torch.distributions.Normal(math.log(0.4), 0.25).log_prob(model.log_omega).sum()
    expected = expected - 2 * torch.distributions.Normal(0.0, 0.25).log_prob(torch.tensor(0.0))
    assert float(model.log_prior()) == pytest.approx(float(expected), rel=1e-6)
    correlated = population(omega_prior_sd=0.25, correlated=True)
    correlated.factor_entries += 0.7
    assert float(correlated.log_prior()) == pytest.approx(-0.5 * 0.49)
    flat = population()
    flat.log_omega += 3.0
    assert float(flat.log_prior()) == 0.0


@pytest.mark.parametrize("effects", [{"KA": ["WT"]}, {"CL": ["AGE"]}, {"CL": ["WT", "AGE"]}])
def test_an_effect_of_or_on_nothing_is_refused(effects):
    with pytest.raises(ValueError, match=r"effects names KA; the named parameters|'AGE' is no covariate"):
        population(effects=effects)


def test_starting_values_of_correlations_make_omega_full_and_are_learned_from_there():
    model = PopulationParameters(omega=0.4, correlation={"V1~CL": -0.6}, omega_prior_sd=0.5)
    model.build({"CL": 5.0, "V1": 20.0, "Q": 1.0}, 0, SCALING)
    values = dict(zip(model.pairs(), model.correlations().tolist(), strict=True))
    assert values == pytest.approx({("CL", "V1"): -0.6, ("CL", "Q"): 0.0, ("V1", "Q"): 0.0}, abs=1e-6)
    assert model.factor_entries.requires_grad
    again = make(describe(model), PopulationParameters, "parameters")
    again.build({"CL": 5.0, "V1": 20.0, "Q": 1.0}, 0, SCALING)
    torch.testing.assert_close(again.correlations(), model.correlations())
    with pytest.raises(ValueError, match="both must have variability"):
        PopulationParameters(correlation={"CL~KA": 0.5}).build({"CL": 5.0, "V1": 20.0}, 0, SCALING)
