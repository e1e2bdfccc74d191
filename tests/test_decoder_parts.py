"""Decoders as parts: made of plain values and other parts, described by them, built for data afterwards."""

import copy
import inspect

import pytest
import torch

from neuralpk.decoders import GRU, ODERNN, ContinuousTimeRNN
from neuralpk.dynamics import (
    SIR,
    CompartmentModel,
    ConcentrationModel,
    Decoder,
    FixedParameters,
    FluctuatingClearance,
    HybridDynamics,
    LotkaVolterra,
    NeuralCompartments,
    NeuralField,
    NeuralFlows,
    NeuralSlope,
    OrnsteinUhlenbeck,
    RandomFeatureField,
    RandomFeatureSlope,
    RateConstants,
    StochasticLotkaVolterra,
)
from neuralpk.part import describe, make, subclasses
from neuralpk.scaling import Scaling

SCALING = Scaling(24.0, 100.0, (3.0, 0.5))
DECODERS = [
    CompartmentModel(3, "transit", lag="depot", bioavailability="depot"),
    ConcentrationModel(),
    RateConstants(("a", "b"), (("a", "b"), ("b", None))),
    LotkaVolterra(logistic=True),
    SIR(),
    FixedParameters(CompartmentModel(2), {"CL": 3.0}),
    NeuralCompartments(CompartmentModel(1, "first_order"), 1, time=True),
    NeuralField(LotkaVolterra(), 2, prior_sd=1.0),
    HybridDynamics(CompartmentModel(2, elimination="michaelis_menten")),
    HybridDynamics(SIR(), NeuralFlows(1, extra_flows=[("recovered", "susceptible")]), overlap=1.0),
    HybridDynamics(FixedParameters(LotkaVolterra(), {"alpha": 1.0}), NeuralSlope(time=True)),
    HybridDynamics(LotkaVolterra(), RandomFeatureSlope(4)),
    RandomFeatureField(LotkaVolterra(), 4),
    OrnsteinUhlenbeck(0.1),
    StochasticLotkaVolterra(0.1),
    FluctuatingClearance(CompartmentModel(1, "first_order"), 0.1),
    GRU(CompartmentModel(2, "first_order"), gap="decay"),
    ODERNN(SIR(), hidden=8),
    ContinuousTimeRNN(LotkaVolterra(), 2, 8),
]


@pytest.mark.parametrize("decoder", DECODERS, ids=lambda decoder: type(decoder).__name__)
def test_a_description_makes_the_same_decoder_and_its_weights_fit(decoder):
    decoder = copy.deepcopy(decoder)
    decoder.build(SCALING)
    again = make(describe(decoder), Decoder, "decoder")
    again.build(SCALING)
    assert (again.states, again.parameter_names, again.endpoints) == (
        decoder.states, decoder.parameter_names, decoder.endpoints,
    )  # fmt: skip
    assert again.guess(SCALING) == decoder.guess(SCALING)
    again.load_state_dict(decoder.state_dict())
    if isinstance(decoder, GRU | ODERNN):
        return
    y = torch.rand(5, len(decoder.states))
    theta = 0.1 + torch.rand(5, len(decoder.parameter_names))
    assert torch.equal(again(torch.ones(5), y, theta), decoder(torch.ones(5), y, theta))


@pytest.mark.parametrize("decoder", DECODERS, ids=lambda decoder: type(decoder).__name__)
def test_named_parameters_come_first_and_every_state_has_a_size(decoder):
    guess = decoder.guess(SCALING)
    assert tuple(guess) == decoder.parameter_names[: len(guess)]
    assert min(guess.values(), default=1.0) > 0
    size = decoder.state_size(SCALING)
    assert len(size) == len(decoder.states)
    assert min(size) > 0


@pytest.mark.parametrize("decoder", DECODERS, ids=lambda decoder: type(decoder).__name__)
def test_a_decoder_built_twice_is_that_of_the_second_data(decoder):
    first, second = copy.deepcopy(decoder), copy.deepcopy(decoder)
    first.build(SCALING)
    first.build(Scaling(5.0, 7.0, (2.0, 9.0)))
    second.build(Scaling(5.0, 7.0, (2.0, 9.0)))
    for name, value in second.state_dict().items():
        assert torch.equal(first.state_dict()[name], value), name


def test_no_constructor_takes_the_magnitudes_of_the_data():
    for cls in subclasses(Decoder):
        if cls.__module__.startswith("neuralpk."):
            assert "scaling" not in inspect.signature(cls.__init__).parameters, cls


def test_a_class_is_abstract_or_final():
    for cls in subclasses(Decoder):
        derived = [other for other in cls.__subclasses__() if other.__module__.startswith("neuralpk.")]
        assert inspect.isabstract(cls) or not derived, f"{derived} derive from {cls}, which is not abstract"


@pytest.mark.parametrize(
    ("make_decoder", "message"),
    [
        (lambda: NeuralField(latent_size=-1), "latent_size must be at least 0"),
        (lambda: NeuralField(hidden=0), "hidden"),
        (lambda: NeuralCompartments(prior_sd=0.0), "prior_sd must be positive"),
        (lambda: HybridDynamics(SIR(), overlap=-1.0), "overlap"),
        (lambda: GRU(gap="given"), "gap must be"),
        (lambda: ODERNN(CompartmentModel(3, "transit"), hidden=3), "hidden must be at least 7"),
        (lambda: FluctuatingClearance(CompartmentModel(1), 0.1, -1.0), "reversion"),
    ],
)
def test_options_out_of_range_are_refused(make_decoder, message):
    with pytest.raises(ValueError, match=message):
        make_decoder()
