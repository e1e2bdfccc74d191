"""The vector fields: mass balance, positivity, and agreement with themselves."""

import copy
import itertools

import numpy as np
import pytest
import torch
from closed_forms import KA, PARAMETERS, rate_matrix
from scipy import stats

from neuralpk.dynamics import (
    CompartmentModel,
    HybridDynamics,
    LotkaVolterra,
    NeuralCompartments,
    NeuralField,
    NeuralFlows,
    NeuralSlope,
    RateConstants,
)
from neuralpk.dynamics.networks import mlp
from neuralpk.dynamics.weight_prior import HIDDEN, WeightPrior
from neuralpk.scaling import Scaling

OPTIONS = list(
    itertools.product((1, 2, 3), ("none", "first_order", "transit"), ("linear", "michaelis_menten", "time_varying"))
)
SCALING = Scaling(24.0, 100.0, (3.0,))


def built(decoder, scaling=SCALING):
    """A decoder for data of these magnitudes."""
    decoder.build(scaling)
    return decoder


def random_point(model, subjects=20):
    """t, y and theta, all positive."""
    shape = (subjects, len(model.states)), (subjects, len(model.parameter_names))
    y, theta = (0.1 + torch.rand(s, dtype=torch.float64) * 5 for s in shape)
    return torch.rand(subjects, dtype=torch.float64) * 10, y, theta


@pytest.mark.parametrize(("compartments", "absorption", "elimination"), OPTIONS)
def test_amounts_only_move_or_leave(compartments, absorption, elimination):
    model = CompartmentModel(compartments, absorption, elimination).double()
    t, y, theta = random_point(model)
    flow_out = model.rates(t, y, theta)[:, 0] * y[:, model.central]
    # to rounding: a sum of up to seven flows of this size
    torch.testing.assert_close(model(t, y, theta).sum(1), -flow_out, rtol=1e-12, atol=1e-12)
    k = model.matrix(model.rates(t, y, theta))
    off_diagonal = k - torch.diag_embed(k.diagonal(dim1=1, dim2=2))
    assert (off_diagonal >= 0).all()
    assert (k.sum(1) <= 1e-12).all()


@pytest.mark.parametrize("absorption", ["none", "first_order", "transit"])
@pytest.mark.parametrize("compartments", [1, 2, 3])
def test_the_rate_matrix_is_the_jacobian_of_the_field(compartments, absorption):
    model = CompartmentModel(compartments, absorption).double()
    t, y, theta = random_point(model, 1)
    jacobian = torch.autograd.functional.jacobian(lambda y: model(t, y, theta)[0], y)[:, 0]
    torch.testing.assert_close(model.rate_matrix(theta)[0], jacobian, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("oral", [False, True])
@pytest.mark.parametrize("compartments", [1, 2, 3])
def test_the_rate_matrix_is_the_one_written_by_hand(compartments, oral):
    model = CompartmentModel(compartments, "first_order" if oral else "none").double()
    values = PARAMETERS | {"KA": KA}
    theta = torch.tensor([[values[name] for name in model.parameter_names]], dtype=torch.float64)
    np.testing.assert_allclose(model.rate_matrix(theta)[0], rate_matrix(compartments, oral), rtol=1e-12)


def test_other_parametrisations_follow_from_the_parameters():
    model = CompartmentModel(3).double()
    theta = torch.tensor([[PARAMETERS[name] for name in model.parameter_names]], dtype=torch.float64)
    derived = {name: float(value) for name, value in model.derived(theta).items()}
    assert derived == pytest.approx({"k10": 0.25, "k12": 0.15, "k21": 0.075, "k13": 0.05, "k31": 1 / 60})
    assert "k10" not in CompartmentModel(1, elimination="michaelis_menten").derived(torch.ones(1, 3))


def test_each_compartment_is_observed_over_its_own_volume():
    model = CompartmentModel(2, "first_order")
    theta = torch.tensor([[5.0, 20.0, 3.0, 40.0, KA]])
    read = model.observe(torch.tensor([[7.0, 100.0, 80.0]]), theta)
    assert read.tolist() == [[7.0, 5.0, 2.0]]
    assert model.endpoints == (1,)


@pytest.mark.parametrize(("compartments", "absorption", "elimination"), OPTIONS)
def test_there_is_a_positive_guess_for_every_parameter(compartments, absorption, elimination):
    model = CompartmentModel(compartments, absorption, elimination, lag="central", bioavailability="central")
    guess = model.guess(SCALING)
    assert tuple(guess) == model.parameter_names
    assert min(guess.values()) > 0


def test_there_is_a_guess_for_prey_and_predator():
    guess = LotkaVolterra().guess(Scaling(90.0, 1.0, (30.0, 20.0)))
    assert tuple(guess) == LotkaVolterra().parameter_names
    # at the guess the two are in balance: alpha/beta predators and gamma/delta prey
    assert guess["alpha"] / guess["beta"] == pytest.approx(guess["predator0"])
    assert guess["gamma"] / guess["delta"] == pytest.approx(guess["prey0"])


@pytest.mark.parametrize(
    "wrong",
    [{"compartments": 4}, {"absorption": "zero_order"}, {"elimination": "none"}, {"lag": "depot"}],
    ids=lambda wrong: next(iter(wrong)),
)
def test_options_that_do_not_exist_are_refused(wrong):
    with pytest.raises(ValueError, match=r"must be 1, 2 or 3|is one of|name one of"):
        CompartmentModel(**wrong)


def with_random_weights(model, std):
    for p in model.parameters():
        torch.nn.init.normal_(p, std=std)
    return model.double()


@pytest.mark.parametrize("std", [0.1, 1.0, 10.0])
def test_learned_rates_are_positive_and_bounded_whatever_the_weights(std):
    model = with_random_weights(built(NeuralCompartments(CompartmentModel(2, "first_order"), 3)), std)
    t, y, theta = random_point(model, 200)
    theta[:, -3:] = 3 * torch.randn(200, 3, dtype=torch.float64)
    bend = (model.rates(t, 100 * y, theta) / model.inner.rates(t, y, theta[:, :5])).log()
    assert (bend.abs() <= 10.0 + 1e-12).all()  # exp(5·tanh) here over that in the empty system
    assert bend.std(0).min() > 0.01 * std, "no network at work"
    empty = torch.zeros_like(y)
    assert (model(t, empty, theta) == 0).all(), "drug without a dose"
    for k in range(y.shape[1]):  # an empty compartment can only fill
        emptied = y.clone()
        emptied[:, k] = 0.0
        assert (model(t, emptied, theta)[:, k] >= 0).all()
    # nothing appears from nowhere: the whole can only fall
    assert (model(t, y, theta).sum(1) <= 0).all()


def test_a_new_neural_field_is_the_compartment_model_that_it_bends():
    known = CompartmentModel(2, "first_order", lag="depot", bioavailability="depot").double()
    model = built(NeuralCompartments(known, 2)).double()
    t, y, theta = random_point(known)
    own = torch.cat([theta, torch.randn(len(y), 2, dtype=torch.float64)], dim=1)
    torch.testing.assert_close(model(t, y, own), known(t, y, theta), rtol=1e-12, atol=1e-12)
    for found, expected in (
        (model.observe(y, own), known.observe(y, theta)),
        (model.lag(own), known.lag(theta)),
        (model.bioavailability(own), known.bioavailability(theta)),
    ):
        torch.testing.assert_close(found, expected, rtol=0.0, atol=0.0)
    assert model.guess(SCALING) == known.guess(SCALING)
    assert model.parameter_names == (*known.parameter_names, "z1", "z2")
    derived = known.derived(theta)
    assert all(torch.equal(value, derived[name]) for name, value in model.derived(own).items())


def test_a_correction_starts_a_hundred_times_slower_than_a_compartment_model():
    known = CompartmentModel(2, "first_order").double()
    like = known.guess(SCALING)
    correction = RateConstants(known.states, known.flows).double()
    slow = correction.guess(SCALING)
    names = ("base_central_out", "base_depot_central")
    assert [100 * slow[name] for name in names] == pytest.approx([like["CL"] / like["V1"], like["KA"]])
    t, y, theta = random_point(correction)
    expected = torch.einsum("sij,sj->si", correction.rate_matrix(theta), y)
    torch.testing.assert_close(correction(t, y, theta), expected)


def test_only_what_is_linear_has_rates_to_bend():
    with pytest.raises(ValueError, match=r"rate constants of linear compartments"):
        NeuralCompartments(CompartmentModel(2, elimination="michaelis_menten"))


@pytest.mark.parametrize("learned", [NeuralFlows, NeuralSlope])
def test_a_hybrid_is_the_sum_of_its_parts(learned):
    known = CompartmentModel(2, "first_order", lag="depot").double()
    correction = learned(latent_size=2)
    hybrid = with_random_weights(built(HybridDynamics(known, correction)), 0.5)
    t, y, theta = random_point(hybrid)
    n = len(known.parameter_names)
    expected = known(t, y, theta[:, :n]) + correction(t, y, theta[:, n:])
    torch.testing.assert_close(hybrid(t, y, theta), expected, rtol=0.0, atol=0.0)
    flows = ("central_out", "central_peripheral", "peripheral_central", "depot_central")
    base = tuple(f"base_{flow}" for flow in flows if learned is NeuralFlows)
    assert hybrid.parameter_names == (*known.parameter_names, *base, "z1", "z2")
    assert tuple(hybrid.guess(SCALING)) == (*known.parameter_names, *base)
    torch.testing.assert_close(hybrid.lag(theta), known.lag(theta[:, :n]), rtol=0.0, atol=0.0)
    torch.testing.assert_close(hybrid.observe(y, theta), known.observe(y, theta[:, :n]), rtol=0.0, atol=0.0)
    assert not hybrid.linear


def test_parts_of_a_hybrid_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"states differ"):
        HybridDynamics(CompartmentModel(2), NeuralCompartments(CompartmentModel(1), 2))
    with pytest.raises(ValueError, match=r"both have parameters CL"):
        HybridDynamics(CompartmentModel(2), NeuralCompartments(CompartmentModel(2)))
    with pytest.raises(ValueError, match=r"no flows: use NeuralSlope"):
        HybridDynamics(LotkaVolterra(), NeuralFlows())
    with pytest.raises(ValueError, match=r"not central -> bile"):
        HybridDynamics(CompartmentModel(2), NeuralFlows(extra_flows=[["central", "bile"]]))


def test_a_dynamics_that_is_not_linear_has_no_rate_matrix():
    with pytest.raises(TypeError, match=r"LotkaVolterra is not linear"):
        LotkaVolterra().rate_matrix(torch.ones(1, 6))


def test_an_undosed_neural_field_starts_from_values_of_the_subject_in_the_unit_of_the_data():
    scaling = Scaling(90.0, 1.0, (30.0, 20.0))
    field = built(NeuralField(LotkaVolterra(), 2), scaling)
    assert field.parameter_names == ("prey0", "predator0", "z1", "z2")
    assert field.guess(scaling) == {"prey0": 30.0, "predator0": 20.0}
    theta = torch.tensor([[25.0, 40.0, 0.3, -0.7]])
    start = field.initial_state(theta)
    assert start.tolist() == [[25.0, 40.0]] == field.observe(start, theta).tolist()
    assert (field(torch.zeros(1), start, theta) == 0).all(), "a new field is at rest"
    dosed = built(NeuralField(CompartmentModel(1, "first_order"), 2))
    assert dosed.guess(SCALING) == {"base_V1": pytest.approx(100 / 3)}
    theta = torch.tensor([[20.0, 0.3, -0.7]])
    assert dosed.initial_state(theta).tolist() == [[0.0, 0.0]]
    assert dosed.observe(torch.tensor([[7.0, 100.0]]), theta)[0, 1] == 5.0


@pytest.mark.parametrize("dosed", [True, False])
def test_the_slope_of_a_neural_field_depends_on_state_and_z_alone_in_whatever_units(dosed):
    plain, other = Scaling(1.0, 1.0, (1.0, 1.0)), Scaling(90.0, 100.0, (30.0, 20.0))
    like = CompartmentModel(2) if dosed else LotkaVolterra()
    field = with_random_weights(built(NeuralField(like, 2), plain), 1.0)
    same = built(NeuralField(like, 2), other).double()
    same.slope_network.network.load_state_dict(field.slope_network.network.state_dict())
    t, y, theta = random_point(field)
    unit = torch.tensor([100.0, 100.0] if dosed else [30.0, 20.0], dtype=torch.float64)
    slope = field(t, y, theta) * unit / 90
    theta[:, :-2] *= 7  # the volume, or the values at the start
    torch.testing.assert_close(same(t, y * unit, theta), slope)


@pytest.mark.parametrize("absorption", ["none", "first_order"])
def test_parameters_of_learned_compartments_are_those_of_the_field_near_the_empty_state(absorption):
    known = CompartmentModel(2, absorption)
    states, model = known.states, with_random_weights(built(NeuralCompartments(known, 1)), 0.5)
    t, _, theta = random_point(model, 3)
    derived = model.derived(theta)
    assert set(derived) == {"k10", "k12", "k21"}
    central, peripheral = states.index("central"), states.index("peripheral")
    empty = torch.zeros(3, len(states), dtype=torch.float64)

    def slopes(source):
        amount = empty.clone()
        amount[:, source] = 1e-7  # of a dose of 100
        return model(t, amount, theta) / 1e-7

    # the rates themselves change in proportion to the amount, by some 1e-9
    torch.testing.assert_close(derived["k12"], slopes(central)[:, peripheral], rtol=1e-6, atol=0.0)
    torch.testing.assert_close(derived["k21"], slopes(peripheral)[:, central], rtol=1e-6, atol=0.0)
    torch.testing.assert_close(derived["k10"], -slopes(central).sum(1), rtol=1e-6, atol=0.0)


def hidden_and_last(network):
    *hidden, last = network[::2]
    return hidden, last


@pytest.mark.parametrize("bias", [True, False])
def test_the_prior_of_a_network_is_normal_around_the_features_that_it_starts_with(bias):
    torch.manual_seed(0)
    network, spread = mlp(3, 5, 2, 4, bias).double(), 0.3
    there = torch.tensor([0.7, -0.2, 1.0], dtype=torch.float64)
    start, features = copy.deepcopy(network), network[:-1](there).detach()
    prior = WeightPrior(network, spread, there).double()
    assert prior(network).item() == 0.0
    with_random_weights(network, 0.4)
    hidden, last = hidden_and_last(network)
    expected = 0.0
    for layer, first in zip(hidden, hidden_and_last(start)[0], strict=True):
        for moved, origin in zip(layer.parameters(), first.parameters(), strict=True):
            belief = stats.norm(0.0, HIDDEN / layer.in_features**0.5)
            expected += (belief.logpdf((moved - origin).detach().numpy()) - belief.logpdf(0.0)).sum()
    sd = spread / float((features.square().sum() + 1.0).sqrt())
    for moved, origin in zip(last.parameters(), hidden_and_last(start)[1].parameters(), strict=True):
        belief = stats.norm(0.0, sd)
        expected += (belief.logpdf((moved - origin).detach().numpy()) - belief.logpdf(0.0)).sum()
    assert float(prior(network).detach()) == pytest.approx(float(expected), rel=1e-6)  # spreads in float32
    prior.centre(network)
    assert prior(network).item() == 0.0


def test_before_data_the_rates_of_learned_compartments_bend_by_as_much_as_was_asked():
    prior_sd, bent = 0.4, []
    full = torch.full((1, 2), float(SCALING.amount), dtype=torch.float64)
    for seed in range(300):
        torch.manual_seed(seed)
        field = built(NeuralCompartments(prior_sd=prior_sd)).double()
        prior = field.rate_network.weight_prior
        drawn = prior.mean + prior.sd * torch.randn_like(prior.sd)
        torch.nn.utils.vector_to_parameters(drawn, field.rate_network.network.parameters())
        typical = torch.tensor([list(field.guess(SCALING).values())], dtype=torch.float64)
        bent.append((field.rates(torch.zeros(1), full, typical) / field.base_rates(typical)).log().detach())
    # 900 draws; the hidden layer adds a little, tanh takes a little off
    assert float(torch.stack(bent).std()) == pytest.approx(prior_sd, rel=0.1)


def test_a_field_holds_the_prior_of_its_network_and_a_mechanism_none():
    hybrid = with_random_weights(built(HybridDynamics(CompartmentModel(2), NeuralFlows(1))), 0.5)
    part = hybrid.correction.rate_network
    density = part.weight_prior(part.network).item()
    assert density < 0.0 and hybrid.log_prior().item() == hybrid.correction.log_prior().item() == density
    hybrid.centre_prior()
    assert hybrid.log_prior().item() == 0.0
    assert CompartmentModel(2).log_prior() == 0.0
