"""The population model, the scale of the data, and a model from plain settings."""

import math

import pytest
import torch

from neuralpk.batch import collate
from neuralpk.cohort import Cohort, Dose, Subject
from neuralpk.models import build_model
from neuralpk.models.individual import IndividualParameters
from neuralpk.objectives import evidence_bound, squared_error
from neuralpk.scaling import Scaling

SCALING = Scaling(24.0, 100.0, (3.0,), {"TEMP": (37.0, 0.5, False), "WT": (70.0, 0.2, True)})


def population(**options):
    return IndividualParameters({"CL": 5.0, "V1": 20.0}, 1, SCALING, 0.4, **options).double().requires_grad_(False)


def given(*steps):
    """Covariates of one subject, a pair (TEMP, WT) for each period."""
    return torch.tensor([steps], dtype=torch.float64)


Z = torch.tensor([[0.5, -1.0, 2.0]], dtype=torch.float64)


def test_parameters_are_log_normal_around_typical_values_and_the_rest_of_z_is_passed_on():
    theta = population()(Z, given((37.0, 70.0)))
    # the guesses are made in single precision
    assert theta.tolist() == [pytest.approx([5 * math.exp(0.2), 20 * math.exp(-0.4), 2.0], rel=1e-6)]


def test_covariates_act_only_where_they_are_asked_to():
    model = population(effects={"CL": ["WT"]})
    at_rest = model(Z, given((38.0, 140.0)))
    torch.testing.assert_close(at_rest, model(Z, given((37.0, 70.0))), msg="effects start at zero")
    torch.nn.init.constant_(model.effects, 0.15)
    found, reference = model(Z, given((38.0, 140.0)))[0], model(Z, given((37.0, 70.0)))[0]
    assert float(found[0] / reference[0]) == pytest.approx(2 ** (0.15 / 0.2))  # a power of WT/70
    assert found[1] == reference[1]
    # everything acts on a dimension without a name
    assert float(found[2] - reference[2]) == pytest.approx(0.15 * (math.log(2) / 0.2 + 1 / 0.5))


def test_covariates_that_change_in_time_give_each_period_its_parameters():
    model = population(effects={"CL": ["WT"], "V1": ["TEMP"]})
    torch.nn.init.constant_(model.effects, 0.15)
    steps = [(37.0, 70.0), (37.0, 90.0), (39.0, 90.0)]
    theta = model(Z, given(*steps))
    assert theta.shape == (1, 3, 3)
    torch.testing.assert_close(theta[0], torch.cat([model(Z, given(step)) for step in steps]))
    assert theta[0, 1, 1] == theta[0, 0, 1] != theta[0, 2, 1]


def test_correlated_random_effects_have_the_covariance_that_was_asked_for_and_come_back():
    omega, pair = {"CL": 0.3, "V1": 0.5}, {("V1", "CL"): -0.6}
    model = IndividualParameters.known({"CL": 5.0, "V1": 20.0}, omega, {}, Scaling(), pair)
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
    torch.testing.assert_close(theta, torch.tensor([[5.0, 20.0]]).double() * model.eta(z).exp())


def test_correlations_that_no_random_effects_have_are_refused():
    names = dict.fromkeys(("CL", "V1", "Q"), 1.0)
    impossible = {("CL", "V1"): 0.9, ("V1", "Q"): 0.9, ("CL", "Q"): -0.9}
    with pytest.raises(ValueError, match="no random effects have all these correlations"):
        IndividualParameters.known(names, names, {}, Scaling(), impossible)


def test_the_prior_of_omega_is_normal_around_the_first_guess_of_its_logarithm():
    model = population(omega_spread=0.25)
    model.log_omega += torch.tensor([0.5, -0.2])
    expected = torch.distributions.Normal(math.log(0.4), 0.25).log_prob(model.log_omega).sum()
    expected = expected - 2 * torch.distributions.Normal(0.0, 0.25).log_prob(torch.tensor(0.0))
    # the first guess was made in single precision
    assert float(model.log_prior()) == pytest.approx(float(expected), rel=1e-6)
    correlated = population(omega_spread=0.25, correlated=True)
    correlated.links += 0.7
    assert float(correlated.log_prior()) == pytest.approx(-0.5 * 0.49)
    flat = population()
    flat.log_omega += 3.0
    assert float(flat.log_prior()) == 0.0


@pytest.mark.parametrize("effects", [{"KA": ["WT"]}, {"CL": ["AGE"]}, {"CL": ["WT", "AGE"]}])
def test_an_effect_of_or_on_nothing_is_refused(effects):
    with pytest.raises(ValueError, match=r"\['(KA|AGE)'\] are no parameters"):
        population(effects=effects)


PEOPLE = Cohort(
    (
        Subject("1", [1.0, 4.0], [2.0, 8.0], (Dose(0, 100),), covariates={"WT": 50.0, "TEMP": -1.0, "SEX": 1.0}),
        Subject(
            "2",
            [3.0, 10.0, 10.0],
            [4.0, math.nan, 60.0],
            (Dose(1, 300), Dose(5, 200, duration=2), Dose(6, reset=True)),
            endpoints=[1, 1, 2],
            covariates={"WT": ((0.0, 100.0), (5.0, 100.0)), "TEMP": ((0.0, 0.0), (2.0, 4.0)), "SEX": 1.0},
        ),
        Subject("3", [0.0, 2.0], [0.0, 5.0], endpoints=[1, 2], covariates={"WT": 200.0, "TEMP": 1.0, "SEX": 1.0}),
    )
)


def test_the_scale_of_a_cohort_is_the_one_found_by_hand():
    scaling = Scaling.of(PEOPLE)
    assert scaling.time == 9.0  # subject 2, from its dose at 1 to 10
    assert scaling.amount == 200.0  # of 100, 200 and 300: a reset gives nothing
    assert scaling.value == (4.0, 32.5)  # of 2, 4, 8 and of 5, 60: neither zero nor NaN counts
    weight, temperature, sex = (scaling.covariates[name] for name in ("WT", "TEMP", "SEX"))
    assert weight == pytest.approx((100.0, math.log(2) / math.sqrt(2), True))  # log: −ln 2, 0, 0, ln 2
    assert temperature == pytest.approx((1.0, math.sqrt(3.5), False))  # −1, 0, 4 and 1: the mean square is 14/4
    assert sex == (1.0, 1.0, True)  # where all are alike
    # in the order of the names: SEX, TEMP, WT
    standard = scaling.standardise(torch.tensor([1.0, 1.0 + math.sqrt(3.5), 200.0]))
    torch.testing.assert_close(standard, torch.tensor([0.0, 1.0, math.sqrt(2)]))


def test_a_cohort_without_doses_or_observations():
    undosed = Cohort((Subject("1", [0.0, 2.0], [3.0, 5.0]),))
    assert Scaling.of(undosed) == Scaling(2.0, 1.0, (4.0,), {})
    with pytest.raises(ValueError, match="no observation"):
        Scaling.of(Cohort((Subject("1", [0.0, 2.0], [math.nan, math.nan], (Dose(0, 100),)),)))


FEW = {
    "compartments": Cohort(
        (
            Subject("1", [0.5, 2.0, 8.0], [1.0, 2.0, 0.7], (Dose(0, 100),), covariates={"WT": 60.0}),
            Subject("2", [1.0, 12.0], [2.5, 0.4], (Dose(0, 100), Dose(6, 50)), covariates={"WT": ((0, 90), (6, 95))}),
        )
    ),
    "lotka_volterra": Cohort(
        tuple(
            Subject(str(k), [0.0, 0.0, 5.0, 5.0], [30.0, 20.0, 45.0, 15.0], (), endpoints=[1, 2, 1, 2], covariates=wt)
            for k, wt in enumerate(({"WT": 60.0}, {"WT": 90.0}))
        )
    ),
}


@pytest.mark.parametrize("field", ["mechanistic", "neural", "free", "hybrid"])
@pytest.mark.parametrize("system", FEW)
def test_every_field_of_every_system_makes_a_model_with_a_finite_loss(system, field):
    batch, scaling = collate(FEW[system]), Scaling.of(FEW[system])
    settings = {"system": system, "field": field, "absorption": "first_order", "hidden": 8}
    model = build_model(settings, {"hidden": 8}, "combined", {}, scaling)
    with torch.no_grad():
        losses = (
            squared_error(model, batch),
            evidence_bound(model, batch, torch.randn(2, model.individual.latent_size)),
        )
    for loss in losses:
        assert loss.failures == 0
        assert math.isfinite(loss.fit) and math.isfinite(loss.kl)
    names, n = model.dynamics.parameter_names, len(model.individual.names)
    # the population model hands theta over by position: names first, in the order of the field, then z
    assert names[:n] == model.individual.names
    assert names[n:] == tuple(f"z{k}" for k in range(1, len(names) - n + 1))
    # a field that knows nothing lets the covariates act everywhere
    assert bool(model.individual.active[:n].any()) == (field in ("neural", "free"))


def test_settings_reach_the_model():
    settings = {"field": "hybrid", "compartments": 1, "lag": True, "latent_size": 2, "layers": 3, "omega": 0.5}
    settings |= {"typical": {"CL": 7.0}, "effects": {"V1": ["WT"]}}
    model = build_model(settings, {"kind": "recurrent"}, "proportional", {"method": "rk4", "step": 0.5}, SCALING)
    assert model.dynamics.parameter_names == ("CL", "V1", "LAG", "base_central_out", "z1", "z2")
    individual = model.individual
    guess = model.dynamics.guess(SCALING) | {"CL": 7.0}
    assert dict(zip(individual.names, individual.log_typical.exp().tolist(), strict=True)) == pytest.approx(guess)
    assert individual.log_omega.exp().tolist() == pytest.approx([0.5] * 4)
    assert individual.active.nonzero().tolist() == [[1, 1], [4, 0], [4, 1], [5, 0], [5, 1]]  # V1 by WT; z by all
    assert sum(isinstance(m, torch.nn.SiLU) for m in model.dynamics.correction.network) == 3
    assert (type(model.encoder).__name__, type(model.error).__name__) == ("RecurrentEncoder", "ProportionalError")
    assert (model.options.method, model.options.step) == ("rk4", 0.5)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"error": "gaussian"}, "error is one of"),
        ({"encoder": {"kind": "mlp"}}, r"encoder\.kind is one of"),
        ({"solver": {"method": "lsoda"}}, "method"),
        ({"dynamics": {"system": "weather"}}, r"dynamics\.system is one of"),
        ({"dynamics": {"field": "magic"}}, r"dynamics\.field is one of"),
        ({"dynamics": {"compartments": 4}}, "compartments must be"),
        ({"dynamics": {"absorption": "zero_order"}}, "absorption is one of"),
        ({"dynamics": {"typical": {"KA": 5.0}}}, r"typical names \['KA'\]"),  # after an intravenous dose
        ({"dynamics": {"flows": [["central", "peripheral"]]}}, "flows are of the correction"),
        ({"dynamics": {"field": "mechanistic", "effects": {"CL": ["AGE"]}}}, r"\['AGE'\] are no parameters"),
    ],
)
def test_a_setting_that_does_not_exist_is_refused(wrong, message):
    parts = {"dynamics": {}, "encoder": {}, "error": "combined", "solver": {}, "scaling": SCALING} | wrong
    with pytest.raises(ValueError, match=message):
        build_model(**parts)
