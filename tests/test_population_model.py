"""The population model: parts that fit together; predictions, simulation and likelihood, also without a training."""

import copy
import math

import numpy as np
import pytest
import torch
from scipy import stats

from neuralpk.cohort import Cohort, Dose, Subject
from neuralpk.cohort_batch import collate
from neuralpk.decoders import GRU
from neuralpk.dynamics import (
    CompartmentModel,
    Dynamics,
    FluctuatingClearance,
    HybridDynamics,
    LotkaVolterra,
    NeuralCompartments,
    NeuralField,
    NeuralFlows,
    OrnsteinUhlenbeck,
    StochasticLotkaVolterra,
)
from neuralpk.encoders import SetEncoder
from neuralpk.individual_estimates import estimate_individuals
from neuralpk.inference.map import map_estimate
from neuralpk.objectives import ELBO, SquaredError, Step
from neuralpk.parameters import PopulationParameters
from neuralpk.population_model import PopulationModel
from neuralpk.randomness import Stream
from neuralpk.residual_error import AdditiveError, CombinedError, ProportionalError
from neuralpk.scaling import Scaling
from neuralpk.solve import Noise, TorchDiffEq

SCALING = Scaling(24.0, 100.0, (3.0,), {"TEMP": (37.0, 0.5, False), "WT": (70.0, 0.2, True)})
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
DYNAMICS = {
    "compartments": {
        "mechanism": CompartmentModel(2, "first_order"),
        "neural": NeuralCompartments(CompartmentModel(2, "first_order"), hidden=8),
        "free": NeuralField(CompartmentModel(2, "first_order"), hidden=8),
        "hybrid": HybridDynamics(CompartmentModel(2, "first_order"), NeuralFlows(hidden=8)),
        "recurrent": GRU(CompartmentModel(2, "first_order"), hidden=8),
    },
    "lotka_volterra": {
        "mechanism": LotkaVolterra(),
        "free": NeuralField(LotkaVolterra(), hidden=8),
        "hybrid": HybridDynamics(LotkaVolterra()),
        "recurrent": GRU(LotkaVolterra(), hidden=8),
    },
}


# ---- parts that fit together


@pytest.mark.parametrize("effects", [None, "all"])
@pytest.mark.parametrize(("system", "kind"), [(system, kind) for system, kinds in DYNAMICS.items() for kind in kinds])
def test_every_dynamics_of_every_system_makes_a_model_with_a_finite_loss(system, kind, effects):
    batch, scaling = collate(FEW[system]), Scaling.of(FEW[system])
    parameters = PopulationParameters(effects=effects)
    model = PopulationModel(copy.deepcopy(DYNAMICS[system][kind]), parameters, CombinedError()).build(scaling)
    encoder = SetEncoder(8)
    encoder.build(scaling, model.latent_size)
    with torch.no_grad():
        for objective in (SquaredError(), ELBO()):
            loss = objective.loss(model, encoder, None, batch, Step(0, 3))
            assert loss.failures == 0
            assert math.isfinite(loss.fit) and math.isfinite(loss.parts()["kl"])
    names, n = model.dynamics.parameter_names, len(model.population.names)
    # the population hands theta over by position: names first, in the order of the dynamics, then the latent dimensions
    assert names[:n] == model.population.names
    assert names[n:] == tuple(f"z{k}" for k in range(1, len(names) - n + 1))
    # covariates act on named parameters only where they are asked to
    acting = {c.parameter for c in model.coordinates() if c.kind == "effect"}
    assert acting == (set(names[:n]) if effects == "all" else set())


def test_options_reach_the_model():
    correction = NeuralFlows(latent_size=2, layers=3)
    model = PopulationModel(
        HybridDynamics(CompartmentModel(1, lag="central"), correction),
        PopulationParameters({"CL": 7.0}, 0.5, effects={"V1": ["WT"]}),
        ProportionalError(),
        TorchDiffEq("rk4", step=0.5),
    ).build(SCALING)
    assert model.dynamics.parameter_names == ("CL", "V1", "LAG", "base_central_out", "z1", "z2")
    population = model.population
    guess = model.dynamics.guess(SCALING) | {"CL": 7.0}
    assert population.typical_values() == pytest.approx(guess)
    assert population.omega_values() == pytest.approx(dict.fromkeys(guess, 0.5))
    effects = [(parameter, effect.covariates) for parameter, effect in population.effects_by_parameter()]
    assert effects == [("V1", ("WT",))]
    assert population.latent_effects.shape == (2, 2)  # z by TEMP and WT
    assert sum(isinstance(m, torch.nn.SiLU) for m in model.dynamics.correction.rate_network.network) == 3
    assert (model.engine.method, model.engine.step) == ("rk4", 0.5)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"parameters": PopulationParameters({"KA": 5.0})}, "typical names KA"),  # after an intravenous dose
        ({"parameters": PopulationParameters(effects={"CL": ["AGE"]})}, "'AGE' is no covariate"),
        ({"parameters": PopulationParameters(typical_prior_sd={"KA": 0.1})}, "typical_prior_sd names KA"),
        ({"scaling": Scaling(value=(1.0, 2.0))}, r"2 endpoints \(DVID\); CompartmentModel has 1"),
    ],
)
def test_parts_that_do_not_fit_the_data_or_each_other_are_refused(parts, message):
    with pytest.raises(ValueError, match=message):
        PopulationModel(CompartmentModel(), parts.get("parameters")).build(parts.get("scaling", SCALING))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CompartmentModel(4), "compartments must be"),
        (lambda: CompartmentModel(absorption="zero_order"), "absorption is one of"),
        (lambda: TorchDiffEq("lsoda"), "method"),
        (lambda: PopulationParameters(omega=-0.1), "omega must be 0 or above"),
        (lambda: PopulationParameters(omega_prior_sd=0.0), "omega_prior_sd must be above 0"),
        (lambda: PopulationParameters(correlation={"CL": 0.5}), "PARAMETER~PARAMETER"),
        (lambda: PopulationParameters(correlation={"CL~V1": 1.5}), "between -1 and 1"),
    ],
)
def test_an_option_that_does_not_exist_or_is_out_of_its_range_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


class LatentFirst(Dynamics):
    """Its named parameter comes after a dimension of the latent space."""

    states = ("y",)
    parameter_names = ("z1", "rate")

    def forward(self, t, y, theta):
        return -theta[..., 1:] * y

    def guess(self, scaling):
        return {"rate": 1.0 / scaling.time}


class OtherOrder(LatentFirst):
    """Its guess is in another order than its names."""

    parameter_names = ("rate", "start")

    def guess(self, scaling):
        return {"start": 2.0, "rate": 1.0}


def test_named_parameters_that_do_not_come_first_are_refused():
    message = r"LatentFirst: parameter_names must begin with the named .*\(rate\).* they are "
    with pytest.raises(ValueError, match=message) as refused:
        PopulationModel(LatentFirst()).build(Scaling())
    assert "\n" not in str(refused.value)


def test_a_guess_may_be_in_any_order():
    model = PopulationModel(OtherOrder()).build(Scaling())
    assert model.population.typical_values() == pytest.approx({"rate": 1.0, "start": 2.0})


# ---- a model with all its numbers given

DOSE, TIMES = 100.0, np.array([0.5, 2.0, 6.0])
GIVEN = {"CL": 5.0, "V1": 20.0}


def given(dtype=torch.float64):
    """A published model, and two patients."""
    population = PopulationParameters.from_values(
        GIVEN,
        {"CL": 0.3, "V1": 0.2},
        {("CL", "WT"): 0.75},
        {("CL", "V1"): 0.4},
        {"WT": 70.0},
    )
    scaling = Scaling(covariates={"WT": (70.0, 1.0, True)})
    model = PopulationModel(CompartmentModel(1), population, AdditiveError.from_values(a=0.4)).build(scaling, dtype)
    people = Cohort(
        tuple(
            Subject(str(k), TIMES, values, (Dose(0.0, DOSE),), covariates={"WT": weight})
            for k, (values, weight) in enumerate((([4.5, 2.9, 1.0], 70.0), ([3.1, 2.7, 1.9], 50.0)))
        )
    )
    return model, people, collate(people, dtype=dtype)


def expected_curve(z, weight):
    """Of the model above, written out."""
    clearance = GIVEN["CL"] * (weight / 70.0) ** 0.75 * math.exp(0.3 * z[0])
    volume = GIVEN["V1"] * math.exp(0.2 * (0.4 * z[0] + math.sqrt(1 - 0.4**2) * z[1]))
    return DOSE / volume * np.exp(-clearance / volume * TIMES)


def test_given_numbers_stay_as_they_are_and_none_is_learned_or_uncertain():
    model, _, _ = given()
    assert model.population.typical_values() == pytest.approx(GIVEN, rel=1e-14)
    assert model.population.omega_values() == pytest.approx({"CL": 0.3, "V1": 0.2}, rel=1e-14)
    assert model.population.correlations().tolist() == pytest.approx([0.4], rel=1e-14)
    assert not any(weight.requires_grad for weight in model.parameters())
    assert not model.is_uncertain
    assert float(model.log_prior()) == 0
    again = model.population.log_omega.clone()
    model.build(
        Scaling(10.0, 50.0, (7.0,), {"WT": (65.0, 0.3, True)}), torch.float64
    )  # the same numbers for other data
    assert torch.equal(model.population.log_omega, again)
    assert model.population.correlations().tolist() == pytest.approx([0.4], rel=1e-14)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_model_without_encoder_and_training_predicts_simulates_and_has_a_likelihood(dtype):
    model, people, batch = given(dtype)
    z = torch.tensor([[0.0, 0.0], [1.2, -0.7]], dtype=dtype)
    expected = np.stack([expected_curve(row, s.covariates["WT"]) for row, s in zip(z.tolist(), people, strict=True)])
    tolerance = 1e-6 if dtype == torch.float64 else 1e-4
    value = model.predict(z, batch).value
    assert value.dtype == dtype
    np.testing.assert_allclose(value, expected, rtol=tolerance)
    np.testing.assert_allclose(model.observe(model.trajectory(z, batch))[..., 0], expected, rtol=tolerance)
    values = np.stack([subject.values for subject in people])
    fit = stats.norm(expected, 0.4).logpdf(values).sum(1)
    np.testing.assert_allclose(model.log_likelihood(z, batch), fit, rtol=10 * tolerance)
    noise = torch.randn(2, 3, dtype=dtype)
    study = model.simulate(z, noise, batch)
    np.testing.assert_allclose(study.value, expected + 0.4 * noise.numpy(), rtol=10 * tolerance)
    assert torch.equal(study.time, batch.time) and not study.censored.any()
    found = model.individual_parameters(z, batch)
    np.testing.assert_allclose(found["V1"], GIVEN["V1"] * np.exp(0.2 * np.array([0, 0.48 - 0.7 * 0.84**0.5])), 1e-5)


def test_patients_are_estimated_by_a_model_without_encoder_and_training():
    model, people, batch = given()
    mode = map_estimate(model, batch, model.typical(2))
    assert bool(mode.converged.all())
    result = estimate_individuals(model, people, [0.0, 4.0], draws=200)  # a given population has no uncertainty
    np.testing.assert_allclose(result.z, mode.z, atol=1e-3)
    assert (result.lower[:, 1] < result.ipred[:, 1]).all() and (result.ipred[:, 1] < result.upper[:, 1]).all()


@pytest.mark.parametrize(
    ("dynamics", "typical"),
    [
        (OrnsteinUhlenbeck(0.3), {"rate": 0.8, "mean": 5.0, "start": 6.0}),
        (FluctuatingClearance(CompartmentModel(1), 0.3, 1.0), GIVEN),
        (
            StochasticLotkaVolterra(0.2),
            {"alpha": 0.4, "beta": 0.1, "gamma": 1.0, "delta": 0.1, "prey0": 2.0, "predator0": 1.0},
        ),
    ],
)
def test_a_dynamics_with_noise_simulates_paths_and_refuses_a_likelihood(dynamics, typical):
    population = PopulationParameters.from_values(typical, dict.fromkeys(typical, 0.1))
    error = AdditiveError.from_values(len(dynamics.endpoints), a=0.1)
    model = PopulationModel(dynamics, population, error).build(Scaling(), torch.float64)
    people = [Subject(str(k), TIMES, np.ones(3), (Dose(0.0, DOSE),) if dynamics.dosed else ()) for k in range(2)]
    batch = collate(people, dtype=torch.float64)
    z = model.typical(2)
    studies = [
        model.simulate(z, torch.zeros(2, 3, dtype=torch.float64), batch, paths)
        for paths in (None, Noise(0, Stream.REPLICATES.at(0)), Noise(1, Stream.REPLICATES.at(0)))
    ]
    calm, one, other = (study.value.detach() for study in studies)
    assert torch.equal(calm[0], calm[1])
    # the first record may be where the states start
    assert bool((one != other)[:, 1:].all()) and bool((one[0] != one[1])[1:].all())
    with pytest.raises(ValueError, match=f"{type(dynamics).__name__} has noise: .* integral over all its paths"):
        model.log_likelihood(z, batch)
    with pytest.raises(ValueError, match="has noise"):
        estimate_individuals(model, Cohort(tuple(people)))


def test_records_of_what_the_dynamics_do_not_have_are_refused():
    model, _, _ = given()
    for record in ({"compartments": [1, 2]}, {"endpoints": [1, 2]}):
        subject = Subject("7", [1.0, 2.0], [1.0, 1.0], (Dose(0.0, DOSE),), covariates={"WT": 70.0}, **record)
        with pytest.raises(ValueError, match="subject 7: an observation of a compartment or endpoint"):
            model.predict(model.typical(1), collate([subject], dtype=torch.float64))
