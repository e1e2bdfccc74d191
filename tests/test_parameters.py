"""Population parameters: distributions, covariate effects with one number everywhere, and their standard errors."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import neuralpk
from neuralpk import FittedModel
from neuralpk.cohort import Cohort, Dose, Subject, Units
from neuralpk.cohort_batch import collate
from neuralpk.cohort_simulation import Design, Population, simulate_cohort
from neuralpk.dynamics import CompartmentModel, LotkaVolterra, NeuralCompartments
from neuralpk.estimation.standard_errors import _rows, standard_errors
from neuralpk.parameters import (
    CovariateEffect,
    ExponentialEffect,
    FactorEffect,
    LogitNormal,
    LogNormal,
    NetworkEffect,
    Normal,
    NoVariability,
    ParameterDistribution,
    PopulationParameters,
    PowerEffect,
)
from neuralpk.part import describe, make
from neuralpk.population_model import PopulationModel
from neuralpk.published_population import PublishedPopulation, equations, read_population, write_population
from neuralpk.residual_error import AdditiveError, CombinedError, ProportionalError
from neuralpk.scaling import CovariateScale, Scaling
from neuralpk.solve import Auto

# in the order of the names: SEX, TEMP, WT
SCALING = Scaling(
    covariates={
        "WT": CovariateScale(70.0, 0.2, True, False, 72.0),
        "SEX": CovariateScale(0.4, 0.5, False, True, 0.4),
        "TEMP": CovariateScale(37.0, 0.5, False, False, 37.0),
    }
)
GUESS = {"CL": 5.0, "V1": 20.0}
PERSON = torch.tensor([[[1.0, 38.0, 140.0]]], dtype=torch.float64)


def built(guess: dict[str, float] | None = None, latent: int = 0, **options) -> PopulationParameters:
    made = PopulationParameters(**options)
    made.build(guess or GUESS, latent, SCALING, torch.float64)
    return made


def typical(parameters: PopulationParameters, covariates: Tensor = PERSON) -> list[float]:
    with torch.no_grad():
        return parameters(torch.zeros(1, parameters.latent_size, dtype=torch.float64), covariates)[0, 0].tolist()


# ---- one number of an effect, everywhere


def test_a_fit_reports_the_exponent_that_the_data_were_simulated_with():
    cohort = weighed_patients(0.75)
    parameters = PopulationParameters(GUESS, effects={"CL": ["WT"]})
    model = PopulationModel(CompartmentModel(1), parameters).build(Scaling.of(cohort)).double()
    with torch.no_grad():
        model.population.effects["CL"][0].exponent.fill_(0.75)
        model.error.log_values["b"].fill_(math.log(0.05))
    batch = collate(cohort, dtype=torch.float64)
    rows = {row["PARAMETER"]: row for row in standard_errors(model, batch, model.typical(len(batch)), 50).rows}
    row = rows["CL~WT"]
    assert row["ESTIMATE"] == 0.75
    # the model was built in single precision
    median = np.median([subject.covariates["WT"] for subject in cohort])
    assert row["REFERENCE"] == pytest.approx(median, rel=1e-7)
    assert row["LO95"] < 0.75 < row["HI95"]
    assert "REFERENCE" not in rows["CL"] and "CV" not in row


def weighed_patients(exponent: float, subjects: int = 12) -> Cohort:
    population = Population(GUESS, {"CL": 0.2, "V1": 0.2}, {"WT": (50.0, 90.0)}, {("CL", "WT"): exponent}, {"WT": 70.0})
    design = Design(((Dose(0.0, 100.0),),), (0.5, 2.0, 6.0))
    return simulate_cohort(CompartmentModel(1), population, design, ProportionalError.from_values(b=0.05), subjects, 3)


def test_simulation_publication_and_learned_population_agree():
    weight = torch.tensor([50.0, 70.0, 84.0], dtype=torch.float64)
    effects, references = {("CL", "WT"): 0.75}, {"WT": 70.0}
    simulated = Population(GUESS, {}, {"WT": (50.0, 90.0)}, effects, references)
    theta = simulated.draw(0, torch.arange(3), {"WT": weight})
    people = [
        Subject(str(k), [1.0], [1.0], (Dose(0.0, 1.0),), covariates={"WT": float(w)}) for k, w in enumerate(weight)
    ]
    published = PublishedPopulation(
        {"compartments": 1}, GUESS, {}, {}, effects, references, "proportional", {"b": 0.1}
    ).model(Cohort(tuple(people)))
    learned = PopulationParameters(effects={"CL": [PowerEffect("WT", 70.0, 0.75)]})
    learned.build(GUESS, 0, Scaling.of(Cohort(tuple(people))), torch.float64)
    for one in (published.population, learned):
        with torch.no_grad():
            found = one(torch.zeros(3, one.latent_size, dtype=torch.float64), weight[:, None, None])[:, 0]
        torch.testing.assert_close(found, theta, rtol=1e-12, atol=0.0)
    torch.testing.assert_close(theta[:, 0], 5.0 * (weight / 70.0) ** 0.75, rtol=1e-12, atol=0.0)


@pytest.mark.parametrize(
    ("effect", "factor", "reference"),
    [
        (PowerEffect("WT", 70.0, 0.75), 2**0.75, 70.0),
        (PowerEffect("WT", None, 0.75), 2**0.75, 70.0),  # the median
        (FactorEffect("SEX", -0.3), math.exp(-0.3), 0.0),
        (ExponentialEffect("TEMP", 36.0, 0.1), math.exp(0.2), 36.0),
        (ExponentialEffect("WT", None, 0.01), math.exp(0.68), 72.0),  # the mean
    ],
)
def test_an_effect_has_its_coefficient_per_unit_and_its_reference(effect, factor, reference):
    made = built(effects={"CL": [effect]})
    assert typical(made) == pytest.approx([5.0 * factor, 20.0], rel=1e-12)
    (coordinate,) = [one for one in made.coordinates() if one.kind == "effect"]
    (given,) = [value for name, value in effect.arguments.items() if name not in ("covariate", "reference")]
    assert float(coordinate.reported(torch.tensor(coordinate.value, dtype=torch.float64))) == pytest.approx(given)
    assert (coordinate.name, coordinate.reference) == (f"CL~{effect.covariate}", reference)
    again = built(effects={"CL": [effect.__class__(**made.effects["CL"][0].fitted().arguments)]})
    assert typical(again) == pytest.approx(typical(made), rel=1e-12)


def test_the_kind_of_an_effect_follows_the_values_of_its_covariate():
    made = built(effects={"CL": ["WT", "SEX", "TEMP"]})
    assert [type(one) for one in made.effects["CL"]] == [PowerEffect, FactorEffect, ExponentialEffect]
    assert typical(made) == [pytest.approx(5.0), pytest.approx(20.0)]
    everything = built(effects="all")
    assert len([one for one in everything.coordinates() if one.kind == "effect"]) == 6


@pytest.mark.parametrize("effects", [{"CL": {"WT": 0.75}}, {"CL~WT": 0.75}])
def test_an_exponent_that_is_given_stays(effects):
    made = built(effects=effects)
    assert typical(made)[0] == pytest.approx(5.0 * 2**0.75)
    assert [one.name for one in made.coordinates()] == ["CL", "V1", "omega CL", "omega V1"]
    assert len(list(made.effects.parameters())) == 0
    made.requires_grad_(True)
    assert len(list(made.effects.parameters())) == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"effects": {"CL": "WT"}}, "effects.CL is 'WT'"),
        ({"effects": {"CL": 0.75}}, "effects.CL is 0.75"),
        ({"effects": ["WT"]}, "effects is"),
        ({"effects": {"CL~WT": [0.75]}}, "effects.CL~WT must be a finite number"),
        ({"effects": {"CL": {"WT": True}}}, "effects.CL~WT must be a finite number"),
        ({"effects": {"CL~": 0.75}}, "'CL~' is no PARAMETER~COVARIATE"),
        ({"effects": {"CL": ["WT"], "CL~WT": 0.75}}, "CL~WT twice"),
        ({"effects": {"KA": ["WT"]}}, "effects names KA"),
        ({"effects": {"CL": ["AGE"]}}, "'AGE' is no covariate"),
        ({"effects": {"CL": [PowerEffect("SEX")]}}, "must be above 0 in all training subjects"),
        ({"omega": {"KA": 0.3}}, "omega names KA"),
        ({"omega": -0.3}, "omega must be 0 or above"),
        ({"omega": {"CL": math.nan}}, "omega.CL must be 0 or above"),
        ({"omega_prior_sd": 0.0}, "omega_prior_sd must be above 0"),
        ({"typical_prior_sd": {"CL": -1.0}}, "typical_prior_sd.CL must be above 0"),
        ({"omega_prior_sd": {"CL": 0.0}}, "omega_prior_sd.CL must be above 0"),
        ({"omega_prior_sd": {"KA": 0.3}}, "omega_prior_sd names KA"),
        ({"typical_prior_sd": {"CL": 0.1}}, "typical_prior_sd.CL is the width of a prior around typical.CL: give that"),
        ({"omega_prior_sd": {"CL": 0.3}}, "omega_prior_sd.CL is the width of a prior around omega.CL: give that too"),
        ({"omega_prior_sd": {"CL": 0.3}, "omega": {"CL": 0.0}}, "omega_prior_sd names CL without variability"),
        ({"fixed": ["CL", "KA"]}, "fixed names KA; what can be fixed is CL, V1, omega CL, omega V1"),
        ({"fixed": ["omega CL"], "omega": {"CL": 0.0}}, "fixed names omega CL; what can be fixed is CL, V1, omega V1"),
        ({"shared_omega": [["CL", "KA"]]}, "shared_omega names KA"),
        ({"shared_omega": [["CL"]]}, "groups of two parameters or more"),
        ({"shared_omega": ["CL", "V1"]}, r"as in \[\[CLR, CLNR\]\]; 'CL' is no such group"),
        ({"shared_omega": [["CL", "V1"], ["V1", "CL"]]}, "shared_omega names CL twice"),
        ({"shared_omega": [["CL", "V1"]], "omega": {"CL": 0.3, "V1": 0.4}}, "one omega, but omega says CL 0.3, V1 0.4"),
        ({"shared_omega": [["CL", "V1"]], "omega": 0.0}, "shared_omega names CL, V1 without variability"),
        (
            {"shared_omega": [["CL", "V1"]], "distributions": {"CL": Normal()}},
            "one omega is on one scale, but the distributions are CL Normal, V1 LogNormal",
        ),
        (
            {
                "shared_omega": [["CL", "V1"]],
                "omega": {"CL": 0.3, "V1": 0.3},
                "omega_prior_sd": {"CL": 0.1, "V1": 0.1},
            },
            "omega_prior_sd names CL and V1, which have one omega: name one of them",
        ),
        ({"correlated": ["CL"]}, "correlated names two parameters or more"),
        ({"correlated": ["CL", "KA"]}, "correlated names KA"),
        ({"correlated": ["CL", "V1"], "omega": {"CL": 0.0}}, "correlated names CL without variability"),
        ({"typical": {"CL": -5.0}}, r"typical.CL must be above 0 \(LogNormal\), not -5.0"),
        ({"typical": {"F": 0.5}}, "typical names F"),
        ({"distributions": {"CL": "Normal"}}, "must be a ParameterDistribution"),
        ({"distributions": {"CL": NoVariability()}, "omega": {"CL": 0.3}}, "omega.CL is 0.3"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused(options, said):
    with pytest.raises(ValueError, match=said):
        built(**options)


@pytest.mark.parametrize("kind", [PowerEffect, FactorEffect, ExponentialEffect])
def test_a_fixed_effect_needs_its_coefficient(kind):
    with pytest.raises(ValueError, match="fixed needs a value of"):
        kind("WT", fixed=True)


def test_a_network_of_covariates_is_nothing_at_its_reference_and_at_the_start():
    made = built(effects={"CL": {"WT+TEMP": {"kind": "network", "hidden": 4}}})
    assert typical(made) == pytest.approx([5.0, 20.0])
    (network,) = made.network_effects()
    nn.init.constant_(network.weight, 1.0)
    reference = torch.tensor([[[1.0, 37.0, 70.0]]], dtype=torch.float64)
    assert typical(made, reference) == pytest.approx([5.0, 20.0])
    assert abs(typical(made)[0] - 5.0) > 1e-3
    assert [one.kind for one in made.coordinates()] == ["typical"] * 2 + ["omega"] * 2
    assert made.unreported() == 2 + 2 * 4 + 4 and network.references() == {"WT": 70.0, "TEMP": 37.0}
    # v ~ N(0, sd²) makes a shift of that size one standard deviation from the reference
    x = torch.tensor([70.0 * math.exp(0.2), 37.0], dtype=torch.float64)
    shares = network.features(x).square() * network.prior_sd[network.part].square()
    assert math.sqrt(shares[network.part == 2].sum()) == pytest.approx(float(network.prior_sd[2]))
    assert math.sqrt(shares[network.part == 0].sum()) == pytest.approx(float(network.prior_sd[0]))


def test_a_fitted_network_is_written_out_and_is_the_same_function(tmp_path: Path):
    made = built(effects={"CL": {"WT+TEMP": "network"}})
    (network,) = made.network_effects()
    nn.init.normal_(network.weight, std=0.1)
    published = PublishedPopulation.from_parts(CompartmentModel(1), made, ProportionalError.from_values(b=0.1))
    write_population(published, tmp_path / "pop.yaml")
    again = read_population(tmp_path / "pop.yaml")
    (effect,) = again.effects.values()
    assert isinstance(effect, NetworkEffect) and effect.fixed and again.covariates == ["TEMP", "WT"]
    given = torch.tensor([[50.0, 36.0], [90.0, 39.0]], dtype=torch.float64)
    torch.testing.assert_close(effect(given), network(given).detach())
    with pytest.raises(ValueError, match="has 26 weights, not 3"):
        NetworkEffect(["WT", "TEMP"], 8, [0.1] * 3, [70.0, 37.0], [0.2, 0.5], [True, False])


def test_a_population_file_counts_the_numbers_that_it_holds():
    made = built(effects={"CL": {"WT": "power"}}, correlated=True, kappa={"CL": 0.2})
    error = CombinedError.from_values(a=0.3, b=0.1)
    published = PublishedPopulation.from_parts(CompartmentModel(1), made, error)
    assert published.count == len(made.coordinates()) + len(error.numbers()) == 9
    shared = built(shared_omega=[["CL", "V1"]], fixed=["CL"])
    published = PublishedPopulation.from_parts(CompartmentModel(1), shared, error)
    assert published.count == len(shared.coordinates()) + 2 + len(error.numbers()) == 6  # a bound, not the number
    network = PublishedPopulation.from_parts(CompartmentModel(1), built(effects={"CL": {"WT+TEMP": "network"}}), error)
    assert network.count == 4 + 26 + 2
    # a factor of the residual error is typically 1, and correlations that are not there are 0: no numbers of the file
    plain = published.to_plain() | {"omega": {"CL": 0.3, "V1": 0.2, "RUV": 0.2}, "correlation": {"CL~V1": 0.3}}
    assert PublishedPopulation.from_plain(plain).count == 2 + 3 + 1 + 2


@pytest.mark.parametrize(
    ("spelled", "factor", "learned"),
    [
        ("power", 1.0, ["CL~WT"]),
        ({"exponent": 0.75}, 2**0.75, ["CL~WT"]),
        ({"exponent": 0.75, "reference": 35.0}, 4**0.75, ["CL~WT"]),
        ({"exponent": 0.75, "fixed": True}, 2**0.75, []),
        ({"slope": 0.01, "reference": 70}, math.exp(0.7), ["CL~WT"]),
        ({"change": 0.01, "reference": 70}, 1.7, ["CL~WT"]),
        ({"change": 0.01, "fixed": True}, 1.68, []),  # the mean is 72
        ({"half": 35.0}, 0.8, ["CL~WT.half"]),
        ({"half": 35.0, "hill": 2.0}, 16 / 17, ["CL~WT.half", "CL~WT.hill"]),
        ({"half": 35.0, "hill": 2.0, "reference": 70.0, "fixed": True}, 16 / 17 / 0.8, []),
        ({"class_path": "PowerEffect", "init_args": {"covariate": "WT", "exponent": 1.0}}, 2.0, ["CL~WT"]),
    ],
)
def test_an_effect_is_spelled_in_a_fit_and_read_from_a_population_file(spelled, factor, learned, tmp_path: Path):
    made = built(effects={"CL": {"WT": spelled}})
    assert typical(made)[0] == pytest.approx(5.0 * factor)
    assert [one.name for one in made.coordinates() if one.kind == "effect"] == learned
    reported = [one for one in made.coordinates(fixed=True) if one.kind == "effect"]
    assert {one.fixed for one in reported if one.name not in learned} <= {True} and reported
    published = PublishedPopulation.from_parts(CompartmentModel(1), made, ProportionalError.from_values(b=0.1))
    write_population(published, tmp_path / "pop.yaml")
    again = read_population(tmp_path / "pop.yaml")
    people = [Subject("1", [1.0], [1.0], (Dose(0.0, 1.0),), covariates={"WT": 140.0})]
    model = again.model(Cohort(tuple(people)))
    with torch.no_grad():
        theta = model.population(model.typical(1), torch.tensor([[[140.0]]], dtype=torch.float64))
    assert float(theta[0, 0, 0]) == pytest.approx(5.0 * factor)


@pytest.mark.parametrize(
    ("spelled", "said"),
    [
        ("powr", "no kind follows .did you mean 'power'"),
        ({"exponent": 0.75, "half": 3.0}, "no kind follows"),
        ({"exponent": "x"}, "effects.CL~WT.exponent must be a number"),
        ({"exponent": 0.75, "fixed": 1}, "effects.CL~WT.fixed must be true or false"),
        ({"exponent": 0.75, "refrence": 70}, "no option 'refrence' .did you mean 'reference'"),
        ({"half": -1.0}, "half must be above 0"),
        ("categorical", "WT has numbers: give its codes names"),
        ({"kind": "categorical", "level": "a"}, "no option 'level'"),
    ],
)
def test_an_effect_that_is_misspelled_is_refused(spelled, said):
    with pytest.raises(ValueError, match=said):
        built(effects={"CL~WT": spelled})


def test_each_level_of_a_text_has_a_factor_beside_its_reference():
    shares = {"RACE=Asian": 0.2, "RACE=Black": 0.3, "RACE=White": 0.5}
    scaling = Scaling(covariates={name: CovariateScale(one, 0.4, False, True, one) for name, one in shares.items()})
    made = PopulationParameters(effects={"CL": ["RACE"], "V1": {"RACE": {"kind": "categorical", "reference": "Asian"}}})
    made.build(GUESS, 0, scaling, torch.float64)
    effects = [one for one in made.coordinates() if one.kind == "effect"]
    assert [(one.name, one.reference) for one in effects] == [
        ("CL~RACE=Asian", "White"),
        ("CL~RACE=Black", "White"),
        ("V1~RACE=Black", "Asian"),
        ("V1~RACE=White", "Asian"),
    ]
    published = PublishedPopulation.from_parts(CompartmentModel(1), made, ProportionalError.from_values(b=0.1))
    again = PublishedPopulation.from_plain(published.to_plain())
    assert (
        again.covariates == ["RACE=Asian", "RACE=Black", "RACE=White"]
        and again.effects.keys() == published.effects.keys()
    )
    with pytest.raises(
        ValueError, match="RACE is a text with the levels Asian, Black, White: its effect is categorical"
    ):
        PopulationParameters(effects={"CL~RACE": "linear"}).build(GUESS, 0, scaling, torch.float64)
    alone = Scaling(covariates={"RACE=Asian": CovariateScale(1.0, 1.0, True, True, 1.0)})
    with pytest.raises(ValueError, match="RACE is Asian in all training subjects: leave its effect out"):
        PopulationParameters(effects={"CL": ["RACE"]}).build(GUESS, 0, alone, torch.float64)
    with pytest.raises(ValueError, match=r"RACE has no level 'Whte' .did you mean 'White'"):
        PopulationParameters(effects={"CL~RACE": {"kind": "categorical", "reference": "Whte"}}).build(
            GUESS, 0, scaling, torch.float64
        )


class Maturation(CovariateEffect):
    """Emax maturation of a clearance: 1/2 of the adult value at the half-age."""

    def __init__(self, covariate: str, half_age: float = 1.0) -> None:
        super().__init__([covariate])
        self.half_age = nn.Parameter(torch.tensor(half_age, dtype=torch.float64))

    def forward(self, covariates: Tensor) -> Tensor:
        return torch.log(covariates[..., 0] / (covariates[..., 0] + self.half_age))


def test_an_effect_of_ones_own_is_learned_reported_and_written(tmp_path: Path):
    made = built(effects={"CL": [Maturation("WT", 35.0)]})
    assert typical(made)[0] == pytest.approx(5.0 * 140 / 175)
    (coordinate,) = [one for one in made.coordinates() if one.kind == "effect"]
    assert (coordinate.name, coordinate.value, coordinate.reference) == ("CL~WT", 35.0, None)
    typical_theta = made(torch.zeros(1, 2, dtype=torch.float64), PERSON)
    (slope,) = torch.autograd.grad(typical_theta[0, 0, 0], coordinate.tensor)
    assert float(slope) == pytest.approx(-5.0 * 140 / 175**2)
    described = describe(made)
    again = make(described, PopulationParameters, "parameters")
    again.build(GUESS, 0, SCALING, torch.float64)
    assert typical(again) == typical(made)
    published = PublishedPopulation.from_parts(CompartmentModel(1), made, ProportionalError.from_values(b=0.1))
    write_population(published, tmp_path / "pop.yaml")
    read = read_population(tmp_path / "pop.yaml").effects["CL", "WT"]
    assert isinstance(read, Maturation) and read.half_age.item() == 35.0


# ---- distributions


class Squared(ParameterDistribution):
    """theta = x², x ≥ 0."""

    def transform(self, x: Tensor) -> Tensor:
        return x.square()

    def inverse(self, theta: Tensor) -> Tensor:
        return theta.sqrt()


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        (LogNormal(), 2.0, 2.0 * math.exp(0.35)),
        (Normal(), -1.0, -0.65),
        (Normal(), 0.0, 0.35),
        (LogitNormal(), 0.5, 1 / (1 + math.exp(-0.35))),
        (LogitNormal(-1.0, 3.0), 1.0, -1 + 4 / (1 + math.exp(-0.35))),
        (Squared(), 4.0, 2.35**2),
        (NoVariability(Normal()), -1.0, -0.75),
    ],
)
def test_random_and_covariate_effects_are_shifts_under_the_transform(kind, value, expected):
    # eta = .1, the covariate adds .25
    made = built({"E0": value}, omega=0.2, distributions={"E0": kind}, effects={"E0": [FactorEffect("SEX", 0.25)]})
    z = torch.full((1, made.latent_size), 0.5, dtype=torch.float64)
    assert float(made(z, PERSON).detach()) == pytest.approx(expected, rel=1e-12)
    assert made.latent_size == kind.varies
    assert made.typical_values()["E0"] == pytest.approx(value, abs=1e-15)


@pytest.mark.parametrize(
    ("kind", "value"), [(LogNormal(), 0.0), (LogitNormal(), 1.0), (LogitNormal(0, 2), -0.1), (Squared(), -1.0)]
)
def test_a_typical_value_outside_its_distribution_is_refused(kind, value):
    with pytest.raises(ValueError, match=r"typical\.F must be"):
        built({"F": value}, distributions={"F": kind})


def test_bounds_of_a_fraction_are_in_order():
    with pytest.raises(ValueError, match="low must be below high"):
        LogitNormal(1.0, 0.0)


MIXED = {"CL": 5.0, "F": 0.6, "E0": -2.0, "LAG": 0.5}


def mixed() -> PopulationParameters:
    made = built(
        MIXED,
        2,
        omega={"CL": 0.3, "F": 0.5, "E0": 1.5, "LAG": 0.0},
        correlated=True,
        distributions={"F": LogitNormal(), "E0": Normal()},
        effects={"CL": ["WT"], "F": [ExponentialEffect("TEMP", slope=0.3)], "LAG": [FactorEffect("SEX", 0.2)]},
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in made.parameters():
            tensor += 0.3 * torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
    return made


def test_z_comes_back_from_the_parameters_with_the_volume_of_the_map():
    made = mixed()
    assert made.varying == ("CL", "F", "E0") and made.latent_size == 5
    z = torch.randn((1, 7, 5), dtype=torch.float64)
    back, log_volume = made.z_of(made.unconstrained(z, PERSON), PERSON)
    torch.testing.assert_close(back, z)
    slope = torch.autograd.functional.jacobian(lambda at: made.unconstrained(at, PERSON[0, 0]), z[0, 0])
    slope = slope[[0, 1, 2, 4, 5]]  # LAG does not vary
    torch.testing.assert_close(log_volume, -torch.linalg.slogdet(slope).logabsdet)


def test_theta_always_has_an_axis_of_periods():
    made, z = mixed(), torch.randn((1, 5), dtype=torch.float64)
    periods = torch.cat([PERSON, PERSON + 1.0], dim=1)
    assert made(z, PERSON).shape == (1, 1, 6) and made(z, periods).shape == (1, 2, 6)
    torch.testing.assert_close(made(z, periods)[:, 1:], made(z, PERSON + 1.0))


def test_a_population_may_be_built_again_and_copied():
    other = built(effects={"CL": ["WT"]}, omega={"CL": 0.0})
    other.build(GUESS, 1, Scaling(covariates={"WT": CovariateScale(20.0, 0.3, True)}), torch.float64)
    assert other.effects["CL"][0].references() == {"WT": 20.0}
    assert copy.deepcopy(other).latent_size == 2
    fresh = built(effects={"CL": ["WT"]}, omega={"CL": 0.0}, latent=1)
    fresh.build(GUESS, 1, Scaling(covariates={"WT": CovariateScale(33.0, 0.3, True)}), torch.float64)
    fresh.load_state_dict(other.state_dict())
    assert fresh.effects["CL"][0].references() == {"WT": 20.0}


# ---- priors of single numbers, numbers that are fixed, a block of Omega


def test_the_prior_of_an_omega_is_normal_around_its_logarithm():
    one = built(omega={"CL": 0.4}, omega_prior_sd={"CL": 0.2}, correlated=True)
    every = built(omega=0.4, omega_prior_sd=0.2)
    for made in (one, every):
        with torch.no_grad():
            made.log_omega.copy_(torch.tensor([0.6, 0.5], dtype=torch.float64).log())
            made.factor_entries.fill_(0.7)
    assert one.log_prior().item() == pytest.approx(-0.5 * (math.log(0.6 / 0.4) / 0.2) ** 2)
    both = math.log(0.6 / 0.4) ** 2 + math.log(0.5 / 0.4) ** 2
    assert every.log_prior().item() == pytest.approx(-0.5 * both / 0.2**2)
    assert built(omega_prior_sd=0.2).log_prior().item() == 0.0  # of all of them the default will do


THREE = {"CL": 5.0, "V1": 20.0, "Q": 2.0}


def test_parameters_with_one_omega_have_one_number_and_random_effects_of_their_own():
    made = built(THREE, shared_omega=[["CL", "Q"]], omega={"V1": 0.2, "Q": 0.4}, correlation={"CL~V1": 0.5})
    assert made.log_omega.numel() == 2
    assert [one.name for one in made.coordinates() if one.kind == "omega"] == ["omega CL=Q", "omega V1"]
    with torch.no_grad():
        made.log_omega.copy_(torch.tensor([0.5, 0.2], dtype=torch.float64).log())
    assert made.omega_values() == {"CL": 0.5, "V1": 0.2, "Q": 0.5}
    z = torch.tensor([[1.0, 2.0, -3.0]], dtype=torch.float64)
    eta = made.eta(z)
    assert eta[0, [0, 2]].tolist() == pytest.approx([0.5, -1.5])
    torch.testing.assert_close(made.standardise(eta)[0], z)
    fresh = built(THREE, shared_omega=[["CL", "Q"]], correlated=True)
    fresh.load_state_dict(made.state_dict())
    assert fresh.omega_values() == made.omega_values()


def test_a_shared_omega_has_one_prior_and_is_fixed_by_either_name():
    every = built(THREE, shared_omega=[["CL", "Q"]], omega=0.4, omega_prior_sd=0.2)
    one = built(THREE, shared_omega=[["CL", "Q"]], omega={"CL": 0.4}, omega_prior_sd={"CL": 0.2})
    for made in (every, one):
        with torch.no_grad():
            made.log_omega[0] = math.log(0.6)
        assert made.log_prior().item() == pytest.approx(-0.5 * (math.log(0.6 / 0.4) / 0.2) ** 2)
    held = built(THREE, shared_omega=[["CL", "Q"]], fixed=["omega Q"])
    assert [one.name for one in held.coordinates() if one.kind == "omega"] == ["omega V1"]
    held.eta(torch.ones(1, 3, dtype=torch.float64)).sum().backward()
    assert held.log_omega.grad.tolist() == [0.0, pytest.approx(0.3)]


def test_the_prior_of_the_model_is_that_of_all_its_parts():
    parameters = PopulationParameters({"CL": 5.0}, omega={"CL": 0.4}, omega_prior_sd={"CL": 0.2})
    model = PopulationModel(CompartmentModel(1), parameters, ProportionalError(b=0.2, prior_sd={"b": 0.1}))
    model = model.build(Scaling(), torch.float64)
    with torch.no_grad():
        model.population.log_omega[0] = math.log(0.6)
        model.error.log_values["b"].fill_(math.log(0.3))
    expected = -0.5 * ((math.log(0.6 / 0.4) / 0.2) ** 2 + (math.log(0.3 / 0.2) / 0.1) ** 2)
    assert model.population_log_prior().item() == pytest.approx(expected)
    assert model.log_prior().item() == pytest.approx(expected)


def test_a_block_of_omega_leaves_the_other_correlations_at_0():
    guess = {"CL": 5.0, "V1": 20.0, "Q": 2.0, "V2": 30.0}
    made = built(guess, correlated=["V1", "V2", "CL"], correlation={"V2~CL": 0.5})
    assert made.pairs() == [("CL", "V1"), ("CL", "V2"), ("V1", "V2")]
    assert made.correlations().tolist() == pytest.approx([0.0, 0.5, 0.0])
    with torch.no_grad():
        made.factor_entries.copy_(torch.tensor([0.4, -0.3, 1.5]))
    factor = made._correlation_factor().detach()
    correlation = factor @ factor.T
    assert correlation[2].tolist() == [0.0, 0.0, 1.0, 0.0]
    torch.testing.assert_close(made.correlations().detach(), correlation[[1, 3, 3], [0, 0, 1]])
    z = torch.randn((1, 7, 4), dtype=torch.float64)
    torch.testing.assert_close(made.standardise(made.eta(z))[0], z)
    with pytest.raises(ValueError, match="correlation CL~Q: correlated names CL, V1 alone"):
        built(guess, correlated=["CL", "V1"], correlation={"CL~Q": 0.5})


FIXED = ["V1", "omega CL"]


@pytest.fixture(scope="module")
def weighed() -> Cohort:
    return weighed_patients(0.75, 10)


@pytest.fixture(scope="module")
def with_fixed_numbers(weighed) -> FittedModel:
    parameters = PopulationParameters({"V1": 31.0}, {"CL": 0.017, "V1": 0.3}, fixed=FIXED)
    return neuralpk.fit(weighed, CompartmentModel(1), parameters=parameters, progress=False)


def test_a_number_that_is_fixed_stays_and_is_reported_without_interval(with_fixed_numbers):
    task = with_fixed_numbers.task
    assert task.status.converged
    population = task.model.population
    assert population.location[1].item() == torch.tensor(31.0).log().item()
    assert population.log_omega[0].item() == torch.tensor(math.log(0.017)).item()
    assert population.location[0].item() != population.location_start[0].item()
    assert [one.name for one in task.model.coordinates()] == ["CL", "omega V1", "b"]
    assert task.covariance.parameters == 3 and task.covariance.covariance.shape == (3, 3)
    rows = with_fixed_numbers.population.set_index("PARAMETER")
    assert list(rows.index) == ["CL", "V1", "b"]
    assert rows.loc["V1", "ESTIMATE"] == pytest.approx(31.0) and math.isnan(rows.loc["V1", "RSE"])
    assert rows.loc["CL", "OMEGA"] == pytest.approx(0.017) and math.isnan(rows.loc["CL", "OMEGA_RSE"])
    assert rows.loc["CL", "RSE"] > 0 and rows.loc["V1", "OMEGA_RSE"] > 0


def test_the_gradient_of_a_fixed_number_is_0_in_every_copy_of_the_model(with_fixed_numbers):
    task = with_fixed_numbers.task
    model = copy.deepcopy(task.model)
    batch = collate(weighed_patients(0.75, 3))
    model.log_likelihood(torch.ones(3, model.latent_size), batch).sum().backward()
    assert (model.population.location.grad != 0).tolist() == [True, False]
    assert (model.population.log_omega.grad != 0).tolist() == [False, True]
    optimizer, before = torch.optim.Adam(model.parameters(), 0.1), model.population.location.detach().clone()
    optimizer.step()
    assert (model.population.location != before).tolist() == [True, False]


def test_a_strong_prior_holds_the_estimate_and_a_flat_one_does_not(weighed, tmp_path):
    def fitted(**options) -> FittedModel:
        return neuralpk.fit(weighed, CompartmentModel(1), progress=False, **options)

    start = {"typical": {"CL": 9.0}, "omega": {"CL": 0.6}}
    flat = fitted(parameters=PopulationParameters(**start), error=ProportionalError(b=0.2)).task.model
    strong = PopulationParameters(**start, typical_prior_sd={"CL": 0.001}, omega_prior_sd={"CL": 0.001})
    held = fitted(parameters=strong, error=ProportionalError(b=0.2, prior_sd={"b": 0.001}))
    model = held.task.model
    assert flat.population.typical_values()["CL"] < 7.0
    assert flat.population.omega_values()["CL"] < 0.4
    assert flat.error.parameters_by_name()["b"].item() < 0.1
    assert model.population.typical_values()["CL"] == pytest.approx(9.0, rel=0.01)
    assert model.population.omega_values()["CL"] == pytest.approx(0.6, rel=0.01)
    assert model.error.parameters_by_name()["b"].item() == pytest.approx(0.2, rel=0.01)
    assert held.population.set_index("PARAMETER")["RSE"][["CL", "b"]].max() < 0.11
    held.save(tmp_path / "held.ckpt")
    loaded = FittedModel.load(tmp_path / "held.ckpt").task.model
    assert loaded.population.omega_prior_sd == {"CL": 0.001} and loaded.error.prior_sd == {"b": 0.001}
    assert loaded.population_log_prior().item() == pytest.approx(model.population_log_prior().item(), abs=1e-5)


def test_a_checkpoint_keeps_what_is_fixed(with_fixed_numbers, tmp_path):
    with_fixed_numbers.save(tmp_path / "fixed.ckpt")
    loaded = FittedModel.load(tmp_path / "fixed.ckpt").task.model
    assert loaded.population.fixed == tuple(FIXED)
    assert loaded.population.typical_values() == with_fixed_numbers.task.model.population.typical_values()
    assert [one.name for one in loaded.coordinates()] == ["CL", "omega V1", "b"]
    options = {"correlated": ["CL", "V1"], "omega": {"CL": 0.3}, "omega_prior_sd": {"CL": 0.1}}
    again = make(describe(PopulationParameters(**options)), PopulationParameters, "parameters")
    assert again.arguments == options


# ---- standard errors


def test_a_parameter_without_variability_has_the_standard_errors_of_the_curvature_of_the_likelihood():
    generator = np.random.default_rng(1)
    times, dose, sd, omega = torch.tensor([0.5, 2.0, 5.0], dtype=torch.float64), 100.0, 0.2, 0.3
    weight = torch.linspace(50.0, 90.0, 20, dtype=torch.float64)[:, None]

    def lines(at: Tensor, z: Tensor) -> Tensor:
        """In the order of the coordinates: log CL, log V1, log omega, exponent; z and weight broadcast."""
        volume = torch.exp(at[1] + at[2].exp() * z)
        return dose / volume * torch.exp(-at[0].exp() * (weight / 70.0) ** at[3] / volume * times)

    at = torch.tensor([math.log(5.0), math.log(20.0), math.log(omega), 0.75, math.log(sd)], dtype=torch.float64)
    values = lines(at, torch.tensor(generator.normal(size=(20, 1)))) + sd * torch.tensor(generator.normal(size=(20, 3)))

    def log_likelihood(at: Tensor) -> Tensor:
        z = torch.linspace(-6.5, 6.5, 401, dtype=torch.float64)[:, None, None]
        away = (values - lines(at, z)) / at[4].exp()
        log_p = (-0.5 * away.square() - at[4]).sum(-1) - 0.5 * z[..., 0].square()
        return torch.logsumexp(log_p, dim=0).sum()

    expected = torch.linalg.inv(-torch.autograd.functional.hessian(log_likelihood, at))
    people = [
        Subject(str(k), times.numpy(), values[k].numpy(), (Dose(0.0, dose),), covariates={"WT": float(weight[k])})
        for k in range(20)
    ]
    cohort = Cohort(tuple(people))
    parameters = PopulationParameters(
        GUESS, omega={"CL": 0.0, "V1": omega}, effects={"CL": [PowerEffect("WT", 70.0, 0.75)]}
    )
    model = PopulationModel(CompartmentModel(1), parameters, AdditiveError(a=sd))
    model = model.build(Scaling.of(cohort), torch.float64).double()
    assert [one.name for one in model.coordinates()] == ["CL", "V1", "omega V1", "CL~WT", "a"]
    before = [one.value for one in model.coordinates()]
    batch = collate(cohort, dtype=torch.float64)
    estimate = standard_errors(model, batch, model.typical(len(batch)), draws=2000)
    assert [one.value for one in model.coordinates()] == before
    scale = expected.diagonal().sqrt()
    away = (estimate.covariance - expected) / (scale[:, None] * scale)
    assert float(away.abs().max()) < 0.1
    rows = {row["PARAMETER"]: row for row in estimate.rows}
    assert "CV" not in rows["CL"] and "OMEGA" not in rows["CL"]
    assert rows["V1"]["OMEGA"] == pytest.approx(omega)


def test_a_typical_value_is_reported_in_its_unit_and_variability_as_omega_where_it_is_not_log_normal():
    made = built({"F": 0.6, "CL": 5.0}, omega=0.5, distributions={"F": LogitNormal()})
    covariance = 0.01 * torch.eye(4, dtype=torch.float64)
    fraction, clearance = _rows(made.coordinates(), covariance, {"F": 10.0, "CL": 20.0})
    assert fraction["ESTIMATE"] == pytest.approx(0.6)
    assert fraction["RSE"] == pytest.approx(100 * 0.1 * 0.6 * 0.4 / 0.6)
    low = math.log(0.6 / 0.4) - 0.196
    assert fraction["LO95"] == pytest.approx(1 / (1 + math.exp(-low)))
    assert fraction["OMEGA"] == pytest.approx(0.5) and fraction["OMEGA_RSE"] == pytest.approx(10.0)
    assert "CV" not in fraction
    assert clearance["CV"] == pytest.approx(100 * math.sqrt(math.expm1(0.25)))


# ---- population files


def test_a_fit_can_be_written_as_a_population_file_and_predicts_the_same(tmp_path: Path):
    cohort = weighed_patients(0.75)
    people = [
        Subject(s.id, s.times, s.values, s.doses, covariates=s.covariates | {"SEX": float(k % 2), "TEMP": k - 4.0})
        for k, s in enumerate(cohort)
    ]
    cohort = Cohort(tuple(people))
    parameters = PopulationParameters(
        typical={"CL": 4.0, "V1": 30.0, "Q": 2.0, "V2": 11.0, "KTR": 1.5, "LAG": 0.3},
        omega={"CL": 0.2, "V1": 0.3, "Q": 0, "V2": 0.1, "KTR": 0.4, "LAG": 0},
        correlated=True,
        effects={"CL": ["WT", "SEX", "TEMP"], "V1": [PowerEffect("WT", 70.0)]},
    )
    dynamics = CompartmentModel(2, "transit", transits=2, lag="depot")
    model = PopulationModel(dynamics, parameters, CombinedError(), Auto(1e-6, 1e-8)).build(Scaling.of(cohort))
    with torch.no_grad():
        for k, tensor in enumerate(model.population.effects.parameters()):
            tensor.fill_(0.75 / (k + 1))
        model.population.factor_entries += torch.linspace(-0.3, 0.5, 6)
    units = Units("h", "mg", "mg/L")
    write_population(PublishedPopulation.from_model(model, units), tmp_path / "pop.yaml")
    read = read_population(tmp_path / "pop.yaml")
    assert read.units == units
    assert read.effects["CL", "WT"] == 0.75 and read.effects["CL", "SEX"] == 0.375
    assert read.dynamics == {
        "compartments": 2, "absorption": "transit", "elimination": "linear", "transits": 2, "lag": True
    }  # fmt: skip
    again, batch = read.model(cohort), collate(cohort, dtype=torch.float64)
    assert list(again.population.varying) == ["CL", "V1", "V2", "KTR"]
    z = torch.randn((len(cohort), 4), dtype=torch.float64)
    with torch.no_grad():
        expected = model.double().predict(z, batch)
        found = again.predict(z, collate(cohort.with_covariates(["SEX", "TEMP", "WT"]), dtype=torch.float64))
    torch.testing.assert_close(found.theta, expected.theta, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(found.value, expected.value, rtol=1e-5, atol=1e-9)


def test_slopes_and_other_distributions_are_read_from_a_population_file():
    plain = {
        "dynamics": {"compartments": 1},
        "typical": {"CL": 5.0, "V1": 0.5},
        "omega": {"CL": 0.4},
        "effects": {"CL~TEMP": {"slope": 0.1}, "V1~SEX": {"log_factor": 0.2}},
        "references": {"TEMP": 37.0},
        "distributions": {"V1": "LogitNormal"},
        "error": "proportional",
        "error_sd": {"b": 0.2},
    }
    read = PublishedPopulation.from_plain(plain)
    assert isinstance(read.effects["CL", "TEMP"], ExponentialEffect)
    assert PublishedPopulation.from_plain(read.to_plain()).to_plain() == read.to_plain()
    person = Subject("1", [1.0], [1.0], (Dose(0.0, 1.0),), covariates={"SEX": 1.0, "TEMP": 39.0})
    model = read.model(Cohort((person,)))
    theta = model.population(model.typical(1), collate([person], dtype=torch.float64).covariates)[0]
    assert theta[0].tolist() == pytest.approx([5.0 * math.exp(0.2), 1 / (1 + math.exp(-0.2))], rel=1e-12)
    for effects, said in (
        ({"CL~TEMP": {"slope": 0.1}}, "CL~TEMP needs a reference: references.TEMP"),
        ({"CL~TEMP": {"slope": 0.1, "exponent": 1.0}}, "no kind follows"),
        ({"CL~TEMP": {"slop": 0.1}}, "no kind follows"),
    ):
        with pytest.raises(ValueError, match=said):
            PublishedPopulation.from_plain(plain | {"effects": effects, "references": {}})


class OwnError(ProportionalError):
    """An error without a short name."""


def test_a_model_that_a_population_file_cannot_hold_is_refused():
    made = built()
    for dynamics, error, said in (
        (NeuralCompartments(), ProportionalError.from_values(b=0.1), "has learned weights"),
        (CompartmentModel(1), OwnError.from_values(b=0.1), "holds an error additive, .*; this model has OwnError"),
    ):
        with pytest.raises(ValueError, match=said):
            PublishedPopulation.from_parts(dynamics, made, error)


@pytest.mark.parametrize("dynamics", [LotkaVolterra(), CompartmentModel(1, bioavailability="central")])
def test_equations_that_no_short_key_names_are_described_by_their_class(dynamics):
    typical = dynamics.guess(Scaling(value=(1.0, 1.0)))
    parameters = PopulationParameters.from_values(typical, dict.fromkeys(typical, 0.1))
    population = PublishedPopulation.from_parts(dynamics, parameters, ProportionalError.from_values(b=0.1))
    read = PublishedPopulation.from_plain(population.to_plain())
    assert describe(equations(read.dynamics)) == describe(dynamics)
    assert read.typical == pytest.approx(typical)


def test_a_simulated_population_takes_distributions_and_effects_as_objects():
    population = Population(
        {"CL": 5.0, "F": 0.5},
        {"F": 1.0},
        {"WT": (50.0, 90.0)},
        {("CL", "WT"): Maturation("WT", 70.0)},
        distributions={"F": LogitNormal()},
    )
    weight = torch.full((500,), 70.0, dtype=torch.float64)
    theta = population.draw(0, torch.arange(500), {"WT": weight})
    torch.testing.assert_close(theta[:, 0], torch.full_like(weight, 2.5))
    assert bool(((theta[:, 1] > 0) & (theta[:, 1] < 1)).all())
    # five standard errors of 500
    assert float(torch.logit(theta[:, 1]).std()) == pytest.approx(1.0, abs=5 / 1000**0.5)
    with pytest.raises(ValueError, match=r"typical\.F must be between 0 and 1"):
        Population({"F": 1.5}, distributions={"F": LogitNormal()})


def test_the_numbers_with_a_prior_are_named() -> None:
    parameters = PopulationParameters({"CL": 5.0}, omega_prior_sd=0.5, typical_prior_sd={"CL": 0.1})
    model = PopulationModel(CompartmentModel(1), parameters, ProportionalError(0.2, prior_sd={"b": 0.1})).build(
        Scaling()
    )
    assert model.with_prior() == ["CL", "omega CL", "omega V1", "b"]
    assert PopulationModel(CompartmentModel(1)).build(Scaling()).with_prior() == []
