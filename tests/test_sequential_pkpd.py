"""A pharmacodynamics that is fitted after its pharmacokinetics."""

from pathlib import Path

import pandas as pd
import pytest
import torch

import neuralpk
from neuralpk import Dose, ProportionalError
from neuralpk.cohort_simulation import Design, Population, simulate_cohort
from neuralpk.dynamics import Equations
from neuralpk.published_population import PublishedPopulation
from neuralpk.residual_error import AdditiveError, CombinedError, ErrorByEndpoint
from neuralpk.scaling import Scaling

MODEL = Equations(model="direct_emax")
POPULATION = {
    "dynamics": {"class_path": "Equations", "init_args": {"text": Equations(model="one_compartment").text}},
    "typical": {"CL": 4.0, "V": 60.0},
    "omega": {"CL": 0.31},
    "effects": {"CL~WT": 0.75},
    "references": {"WT": 70.0},
    "error": "proportional",
    "error_sd": {"b": 0.1},
}


def study():
    return simulate_cohort(
        MODEL,
        Population({"CL": 4.0, "V": 60.0, "E0": 10.0, "EMAX": 90.0, "EC50": 1.0}, {"CL": 0.3}),
        Design(((Dose(0.0, 100.0),),), (1.0, 6.0, 20.0), endpoints=(1, 2)),
        ProportionalError.from_values(2, b=0.1),
        subjects=6,
        seed=0,
    )


def test_a_population_is_held_and_what_it_does_not_have_is_estimated():
    cohort = study()
    held = PublishedPopulation.from_plain({**POPULATION, "effects": {}, "references": {}}).held()
    fitted = neuralpk.fit(cohort, MODEL, parameters=held, error=ProportionalError(), epochs=1, progress=False)
    population = fitted.task.model.population
    typical, omega = population.typical_values(), population.omega_values()
    assert (typical["CL"], typical["V"], omega["CL"]) == pytest.approx((4.0, 60.0, 0.31), rel=1e-6)
    assert "V" not in omega and typical["EC50"] != pytest.approx(1.0, abs=1e-4) and omega["E0"] != pytest.approx(0.3)
    rows = fitted.population.set_index("PARAMETER")
    assert rows.loc[["CL", "V"], "RSE"].isna().all() and rows.loc[["E0", "EMAX", "EC50"], "RSE"].notna().all()
    assert fitted.held().fixed[:2] == ("CL", "V") and "omega EC50" in fitted.held().fixed


def test_covariate_effects_are_held_too():
    held = PublishedPopulation.from_plain(POPULATION).held()
    scaling = Scaling.from_plain(
        {"time": 1.0, "amount": 1.0, "value": [1.0], "covariates": {"WT": [70.0, 10.0, False]}}
    )
    held.build(MODEL.guess(Scaling()), 0, scaling, torch.float64)
    assert not [one.name for one in held.coordinates() if "CL" in one.name]
    ((name, effect),) = held.effects_by_parameter()
    assert name == "CL" and float(effect.fitted().exponent) == 0.75


def test_correlations_are_not_held():
    plain = {**POPULATION, "omega": {"CL": 0.3, "V": 0.2}, "correlation": {"CL~V": 0.5}}
    with pytest.raises(ValueError, match="correlations cannot be held, and here are CL~V"):
        PublishedPopulation.from_plain(plain).held()


def test_a_residual_error_that_differs_is_held_too():
    for spread, name in (({"omega": {"CL": 0.3, "RUV": 0.4}}, "omega RUV"), ({"kappa": {"RUV": 0.3}}, "kappa RUV")):
        held = PublishedPopulation.from_plain({**POPULATION, "effects": {}, "references": {}, **spread}).held()
        model = neuralpk.PopulationModel(MODEL, held, ProportionalError()).build(Scaling())
        reported = {
            **model.population.omega_values(),
            **{f"kappa {k}": v for k, v in model.population.kappa_values().items()},
        }
        assert reported[name.removeprefix("omega ")] == pytest.approx(spread.popitem()[1]["RUV"])
        assert not [one for one in model.coordinates() if "RUV" in one.name]


def test_the_residual_error_is_held_where_it_is_given_so(tmp_path):
    cohort = study()
    population = PublishedPopulation.from_plain(
        {**POPULATION, "effects": {}, "references": {}, "error_sd": {"b": 0.17}}
    )
    (of_concentration,) = population.held_errors()
    assert of_concentration.fixed and of_concentration.values == {"b": 0.17}
    error = ErrorByEndpoint([of_concentration, ProportionalError()])
    fitted = neuralpk.fit(cohort, MODEL, parameters=population.held(), error=error, epochs=1, progress=False)
    rows = fitted.population.set_index("PARAMETER")
    assert rows.loc["b1", "ESTIMATE"] == pytest.approx(0.17) and rows.loc[["b1"], "RSE"].isna().all()
    assert rows.loc["b2", "ESTIMATE"] != pytest.approx(0.3, abs=1e-3) and rows.loc[["b2"], "RSE"].notna().all()
    assert "b1" not in fitted.task.model.reported_values()
    fitted.save(tmp_path / "fit.ckpt")
    loaded = neuralpk.FittedModel.load(tmp_path / "fit.ckpt")
    assert loaded.task.model.error.models[0].fixed
    assert loaded.held_errors()[0].values["b"] == pytest.approx(0.17)


def test_a_fixed_error_needs_its_values():
    with pytest.raises(ValueError, match="needs a value for b"):
        CombinedError(a=0.1, fixed=True)


WARFARIN = Path(__file__).parents[2] / "shared" / "data" / "warfarin_pkpd.csv"


@pytest.mark.skipif(not WARFARIN.is_file(), reason="the table of warfarin is not here")
def test_the_effect_of_warfarin_after_its_concentration():
    frame = pd.read_csv(WARFARIN).rename(columns=str.upper)[["ID", "TIME", "AMT", "DV", "DVID", "EVID"]]
    frame = frame[frame["ID"] <= 6]
    concentration = """
        parameters: KA = 1, CL = 0.1, V = 10
        depot' = -KA*depot
        central' = KA*depot - CL/V*central
        cp = central/V
    """
    effect = """
        parameters: EC50 = 2, KOUT = 0.05, E0 = 60
        pca' = E0*KOUT*(1 - cp/(EC50 + cp)) - KOUT*pca
        pca(0) = E0
    """
    of_effect = frame["DVID"].eq(2) & frame["EVID"].eq(0)
    options = {"epochs": 3, "progress": False}
    pk = neuralpk.fit(frame[~of_effect], Equations(f"{concentration}outputs: cp ~ combined"), **options)
    first = pk.task.model.reported_values()
    assert first["CL"] == pytest.approx(0.13, rel=0.3) and first["V"] == pytest.approx(8.0, rel=0.3)
    error = ErrorByEndpoint([*pk.held_errors(), AdditiveError()])
    both = Equations(f"{concentration}{effect}outputs: cp, pca")
    pd_ = neuralpk.fit(frame, both, parameters=pk.held(), error=error, **options)
    rows = pd_.population.set_index("PARAMETER")["ESTIMATE"]
    for name in ("KA", "CL", "V"):
        assert rows[name] == pytest.approx(first[name], rel=1e-5)
    assert (rows["a1"], rows["b1"]) == pytest.approx((first["a"], first["b"]), rel=1e-5)
    assert rows["E0"] == pytest.approx(96.0, rel=0.15)  # activity before the first dose, in percent
