"""Populations written as functions of rxode2: compartment models, the library of equations, and the command line."""

import warnings
from pathlib import Path

import pytest
import torch
from rxode2_models import CASES

import neuralpk
from neuralpk import datasets
from neuralpk.cli import main
from neuralpk.cohort import Units
from neuralpk.dynamics import CompartmentModel, Equations, library
from neuralpk.parameters import (
    ExponentialEffect,
    FactorEffect,
    LogitNormal,
    NetworkEffect,
    Normal,
    PopulationParameters,
    PowerEffect,
)
from neuralpk.part import describe
from neuralpk.population_model import PopulationModel
from neuralpk.published_population import PublishedPopulation, read_population
from neuralpk.residual_error import AdditiveError, CombinedError, ErrorByEndpoint, LogNormalError
from neuralpk.rxode2 import export_rxode2, import_rxode2
from neuralpk.scaling import CovariateScale, Scaling


def published(dynamics, typical: dict[str, float], **parts) -> PublishedPopulation:
    parameters = PopulationParameters.from_values(typical, dict.fromkeys([*typical][:2], 0.2), **parts)
    endpoints = [AdditiveError.from_values(1, a=0.5 + k) for k in range(len(dynamics.endpoints))]
    error = endpoints[0] if len(endpoints) == 1 else ErrorByEndpoint(endpoints).fix()
    return PublishedPopulation.from_parts(dynamics, parameters, error, Units("day", "µg", "ng/mL"))


def same_field(one, other, theta, names: list[str]) -> None:
    """Compare two dynamics with the same states at random states; the parameters of the second in its own order."""
    assert len(one.states) == len(other.states)
    y = torch.rand(8, len(one.states), dtype=torch.float64).mul(3).exp()
    t = torch.linspace(0, 30, 8, dtype=torch.float64)
    own = {name: theta[:, k] for k, name in enumerate(names)}
    moved = torch.stack([own[name] for name in other.parameter_names], dim=-1)
    for call in (
        lambda dynamics, theta: dynamics(t, y, theta),
        lambda dynamics, theta: dynamics.observe(y, theta)[..., list(dynamics.endpoints)],
        lambda dynamics, theta: dynamics.initial_state(theta),
        lambda dynamics, theta: dynamics.lag(theta),
        lambda dynamics, theta: dynamics.bioavailability(theta),
    ):
        a, b = call(one, theta), call(other, moved)
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", library())
def test_every_model_of_the_library_is_written_and_read(name):
    dynamics = Equations(model=name)
    typical = dynamics.guess(Scaling())
    kinds = {
        parameter: LogitNormal(*ends) if ends[1] < 1e300 else Normal() for parameter, ends in dynamics.ranges.items()
    }
    population = published(dynamics, typical, distributions=kinds)
    again = import_rxode2(export_rxode2(population, name))
    assert again.name == name and again.units == Units("day", "µg", "ng/mL")
    renamed = dict(zip(again.typical, typical, strict=True))  # parameters keep their order
    assert list(again.typical.values()) == list(population.typical.values())
    assert {renamed[parameter]: sd for parameter, sd in again.omega.items()} == dict(population.omega)
    assert [error.values for error in again.errors] == [{"a": 0.5 + k} for k in range(len(dynamics.endpoints))]
    theta = torch.rand(8, len(typical), dtype=torch.float64) * 0.5 + 0.3
    same_field(dynamics, again.dynamics, theta, [*again.typical])


def test_the_units_of_a_text_are_a_comment():
    dynamics = Equations(model="linear_michaelis_menten")
    text = export_rxode2(published(dynamics, dynamics.guess(Scaling())))
    assert "    # units: t [h], central [mg], CL [L/h], VMAX [mg/h], KM [mg/L], V [L]\n" in text


def test_units_of_numbers_in_an_equation_are_a_comment_on_its_line():
    text = """
        units: central [mg]
        parameters: CL = 5 [L/h], V = 50 [L]
        covariates: WT = 70 [kg]
        central' = -CL*(WT/70 [kg])^0.75*max(central - 2 [ mg ], 0)/(V*(WT/70 [kg]))
        C = central/V*1000 [ug/mg]
        outputs: C
    """
    dynamics = Equations(text)
    written = export_rxode2(published(dynamics, {"CL": 5.0, "V": 50.0}))
    assert "    # units: central [mg], CL [L/h], V [L], WT [kg]\n" in written
    assert "    C <- central/V*1000  # 1000 [ug/mg]\n" in written
    (line,) = (line for line in written.splitlines() if "d/dt" in line)
    assert line.endswith("  # 70 [kg], 2 [mg]")
    again = import_rxode2(written)
    assert again.dynamics.states == ("central",) and [*again.typical] == ["CL", "V"]


@pytest.mark.parametrize(
    "options",
    [
        {"compartments": 1},
        {"compartments": 3, "absorption": "first_order", "lag": "depot", "bioavailability": "depot"},
        {"compartments": 2, "absorption": "transit", "transits": 2},
        {"compartments": 2, "elimination": "michaelis_menten"},
        {"compartments": 1, "elimination": "time_varying", "lag": "central"},
    ],
    ids=str,
)
def test_a_compartment_model_is_written_as_its_equations(options):
    dynamics = CompartmentModel(**options)
    typical = {name: 0.5 + k for k, name in enumerate(dynamics.parameter_names)}
    population = published(dynamics, typical)
    again = import_rxode2(export_rxode2(population))
    assert list(again.typical.values()) == list(population.typical.values())
    theta = torch.rand(8, len(typical), dtype=torch.float64) + 0.3
    same_field_of_central(dynamics, again.dynamics, theta)


def same_field_of_central(one: CompartmentModel, other: Equations, theta) -> None:
    assert one.states == other.states
    y = torch.rand(8, len(one.states), dtype=torch.float64) * 9
    t = torch.linspace(0, 30, 8, dtype=torch.float64)
    torch.testing.assert_close(one(t, y, theta), other(t, y, theta))
    torch.testing.assert_close(one.observe(y, theta)[:, one.central], other.observe(y, theta)[:, other.endpoints[0]])
    for name in ("lag", "bioavailability"):
        a, b = getattr(one, name)(theta), getattr(other, name)(theta)
        assert (a is None and b is None) or torch.equal(a, b)


def test_effects_distributions_and_correlations_of_a_population_file_are_written():
    dynamics = CompartmentModel(1, absorption="first_order")
    population = PublishedPopulation.from_plain(
        {
            "dynamics": {"compartments": 1, "absorption": "first_order"},
            "typical": {"KA": 1.1, "CL": 2.5, "V1": 30.0},
            "omega": {"CL": 0.3, "V1": 0.2},
            "correlation": {"CL~V1": 0.4},
            "effects": {"CL~WT": 0.75, "CL~SEX": -0.3, "V1~AGE": {"slope": 0.01, "reference": 40}},
            "references": {"WT": 70.0},
            "error": "combined",
            "error_sd": {"a": 0.05, "b": 0.2},
        }
    )
    text = export_rxode2(population, "oral")
    assert "CL <- exp(tCL + eta.CL + CL.WT*log(WT/70) + CL.SEX*SEX)" in text
    assert "V1 <- exp(tV1 + eta.V1 + V1.AGE*(AGE - 40))" in text
    assert "CL.SEX <- fix(-0.3)" in text
    assert "eta.CL + eta.V1 ~ c(0.09, 0.024, 0.04)" in text
    assert "C ~ add(add.sd) + prop(prop.sd)" in text
    again = import_rxode2(text).population
    assert again.typical == {"CL": 2.5, "V1": 30.0, "KA": 1.1} and list(again.typical) == [*dynamics.parameter_names]
    assert again.correlation == {("CL", "V1"): 0.4} and again.omega == {"CL": 0.3, "V1": 0.2}
    assert again.effects["CL", "WT"] == 0.75 and again.references == {"WT": 70.0}
    assert again.error_sd == {"a": 0.05, "b": 0.2}


def test_names_that_are_taken_get_others():
    text = """
    parameters: CL = 2, tCL = 3, dose = 4, _x = 5
    for = CL*tCL*_x
    A' = -A*for*dose
    tad = A
    outputs: tad
    """
    typical = {"CL": 2.0, "tCL": 3.0, "dose": 4.0, "_x": 5.0}
    written = export_rxode2(published(Equations(text), typical))
    again = import_rxode2(written)
    assert "CL <- exp(tCL. + eta.CL)" in written and "for. <- CL*tCL*x" in written
    assert [*again.typical.values()] == pytest.approx([*typical.values()])


def test_a_parameter_that_the_text_renames_keeps_what_is_fixed_its_effects_and_its_correlation():
    parameters = PopulationParameters(
        {"CL": 4.0, "V1": 40.0, "KA": 1.0, "F": 0.7},
        fixed=["F"],
        correlation={"CL~F": 0.4},
        effects={"F": [ExponentialEffect("AGE", 50.0, 0.02)]},
    )
    dynamics = CompartmentModel(1, "first_order", bioavailability="depot")
    model = PopulationModel(dynamics, parameters, LogNormalError(b=0.15))
    model.build(Scaling(covariates={"AGE": CovariateScale(60.0, 0.3, True)}), torch.float64)
    again = import_rxode2(export_rxode2(model))
    assert set(again.fixed) == {"F1"} and set(again.effects) == {"F1"}
    assert {frozenset(pair) for pair, value in again.correlation.items() if value} == {frozenset({"CL", "F1"})}


def test_a_fitted_model_keeps_what_is_fixed_and_what_is_estimated():
    parameters = PopulationParameters(
        {"CL": 4.0, "V1": 40.0},
        {"CL": 0.3, "V1": 0.2},
        fixed=["V1", "omega V1"],
        effects={
            "CL": [PowerEffect("WT", 70.0, 0.6), ExponentialEffect("AGE", 50.0, 0.02), FactorEffect("SEX", 0.1, True)]
        },
        distributions={"V1": Normal()},
    )
    model = PopulationModel(CompartmentModel(1), parameters, LogNormalError(b=0.15))
    covariates = {name: CovariateScale(60.0, 0.3, True) for name in ("WT", "AGE", "SEX")}
    model.build(Scaling(covariates=covariates), torch.float64)
    again = import_rxode2(export_rxode2(model))
    assert set(again.fixed) == {"V1", "omega V1"}
    assert [effect.fixed for effect in again.effects["CL"]] == [False, False, True]
    assert [type(effect) for effect in again.effects["CL"]] == [PowerEffect, ExponentialEffect, ExponentialEffect]
    assert again.effects["CL"][1].arguments["slope"] == pytest.approx(0.02)
    assert type(again.distributions["V1"]) is Normal
    assert again.errors[0].error == "log_normal" and again.errors[0].values["b"] == pytest.approx(0.15)


def test_a_shared_omega_is_two_equal_ones_and_a_comment():
    parameters = PopulationParameters({"CL": 4.0, "V1": 40.0}, 0.3, shared_omega=[["CL", "V1"]], fixed=["omega V1"])
    model = PopulationModel(CompartmentModel(1), parameters, LogNormalError(b=0.15)).build(Scaling(), torch.float64)
    text = export_rxode2(model)
    assert "    # eta.CL and eta.V1 have one variance; a fit of this function estimates one of each\n" in text
    again = import_rxode2(text)
    assert again.omega == {"CL": 0.3, "V1": 0.3} and {"omega CL", "omega V1"} == {*again.fixed}


def test_what_has_no_formula_is_refused_by_name():
    parameters = PopulationParameters({"CL": 4.0, "V1": 40.0}, effects={"CL": [NetworkEffect(["WT"])]})
    model = PopulationModel(CompartmentModel(1), parameters, CombinedError(a=0.1, b=0.1))
    model.build(Scaling(covariates={"WT": CovariateScale(60.0, 0.3, True)}), torch.float64)
    with pytest.raises(ValueError, match="NetworkEffect"):
        export_rxode2(model)
    block = PopulationParameters({"CL": 4.0, "V1": 40.0}, correlated=True, fixed=["omega CL"])
    model = PopulationModel(CompartmentModel(1), block, CombinedError(a=0.1, b=0.1))
    model.build(Scaling(), torch.float64)
    with pytest.raises(ValueError, match="omega CL is fixed and correlated"):
        export_rxode2(model)
    with pytest.raises(ValueError, match="equations"):
        export_rxode2(
            PublishedPopulation.from_plain(
                {
                    "dynamics": describe(neuralpk.dynamics.SIR()),
                    "typical": dict.fromkeys(neuralpk.dynamics.SIR().parameter_names, 0.3),
                    "omega": {},
                    "error": "additive",
                    "error_sd": {"a": 1.0},
                }
            )
        )


def test_the_notes_say_what_is_not_used():
    model = import_rxode2("""
    m <- function() {
      vignette <- "x"
      ini({
        lcl <- c(0, 1, 2); lv <- 3; r <- c(0.1, 0.5)
        a + b ~ fix(c(0.1, 0.01, 0.1)); c + d ~ c(1, 0.1, 1); unused <- 3
        s <- c(0.01, 0.2, 1); s2 <- fix(0.3)
      })
      model({
        cl <- exp(lcl + a); v <- exp(lv + b); tlag <- exp(c); x <- unused; w <- exp(d)
        linCmt() ~ add(s) + prop(s2)
        d/dt(y) = -r*y*w + time
        y ~ add(s)
      })
    }""")
    said = "\n".join(model.notes)
    for words in (
        "vignette (line 3) is not used",
        "tlag is the lag of central",
        "the bounds (0, 2) of lcl (line 5) are not used",
        "the bounds (0.1, inf) of r (line 5) are not used",
        "the covariances of a, b are fixed (line 6)",
        "of the error of linCmt (line 11) b is fixed; a fit estimates all its numbers",
        "s stands in several error lines",
        "the bounds (0.01, 1) of s are not used",
        "the correlations of all random effects",
        "x (line 10) is not used in any equation and is left out",
        "time counts from the first record of a subject",
        "DVID 1 is cp, DVID 2 is y",
        "compartments (CMT): 1 y, 2 central",
    ):
        assert words in said, words
    assert set(model.fixed) == {"omega cl", "omega v", "tlag", "w"}
    assert model.correlated == ("cl", "v", "tlag", "w")


def test_an_error_whose_numbers_are_fixed_keeps_them():
    text = CASES["one_compartment_rate_constants_with_lag"].text.replace("c(0, 0.2)", "fix(0.2)")
    model = import_rxode2(text)
    assert model.fixed_errors == ("cp",) and model.error.fixed
    model.error.build(Scaling())
    assert "outputs: cp\n" in model.text
    assert import_rxode2(export_rxode2(model)).fixed_errors == ("cp",)


def test_the_commands_write_a_population_file_and_a_function(tmp_path: Path, capsys):
    source, out, back = tmp_path / "m.R", tmp_path / "pop.yaml", tmp_path / "back.R"
    source.write_text(CASES["theophylline_linear_compartments"].text, encoding="utf-8")
    main(["import", "--function", str(source), "--out", str(out)])
    assert "CMT): 1 depot, 2 central" in capsys.readouterr().out
    assert out.read_text(encoding="utf-8").startswith("# from m.R")
    assert "    text: |\n      # theo\n      parameters: ka = " in out.read_text(encoding="utf-8")
    assert read_population(out).typical["cl"] == 2.72
    main(["export", "--model", str(out), "--out", str(back), "--name", "theo"])
    assert import_rxode2(back).typical == read_population(out).typical
    source.write_text("m <- function() {\n  ini({ a ~ 0.1 | occ })\n}", encoding="utf-8")
    with pytest.raises(SystemExit) as stopped:
        main(["import", "--function", str(source), "--out", str(tmp_path / "other.yaml")])
    assert stopped.value.code == 1
    assert "the model has no model({…})" in capsys.readouterr().err


@pytest.mark.slow
def test_an_imported_model_is_fitted_to_the_maximum_of_its_likelihood():
    model = import_rxode2(CASES["theophylline_linear_compartments"].text)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitted = neuralpk.fit(
            datasets.theophylline(), model.dynamics, parameters=model.parameters, error=model.error, progress=False
        )
    estimates = fitted.population.set_index("PARAMETER")["ESTIMATE"]
    # FOCEI of other programs: 1.59 /h, 2.75 L/h, 31.8 L
    assert estimates[["ka", "cl", "v"]].tolist() == pytest.approx([1.59, 2.75, 31.8], rel=0.03)
