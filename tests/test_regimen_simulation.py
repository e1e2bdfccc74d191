"""The course of patients under regimens, against closed forms and what must hold of any linear system."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from neuralpk.cli import main
from neuralpk.cohort import Cohort, Dose, Subject
from neuralpk.decoders import GRU
from neuralpk.dosing import AdaptiveRule, Regimen, SimulatedPatients, parse_regimens, simulate_regimens
from neuralpk.dosing.dosing_figures import regimen_figure
from neuralpk.dosing.model_patients import reference_covariates
from neuralpk.dynamics import CompartmentModel, HybridDynamics, NeuralCompartments
from neuralpk.exposure import ExposureGrid
from neuralpk.individual_estimates import estimate_individuals
from neuralpk.population_model import PopulationModel
from neuralpk.published_population import PublishedPopulation
from neuralpk.saved_model import read_model
from neuralpk.scaling import Scaling

NOTHING = np.empty(0)
POPULATION = {
    "dynamics": {"compartments": 1},
    "typical": {"CL": 2.0, "V1": 10.0},
    "omega": {"CL": 0.3, "V1": 0.2},
    "error": "proportional",
    "error_sd": {"b": 0.1},
}
NOBODY = Cohort((Subject("1", NOTHING, NOTHING),))


def model_of(cohort=NOBODY, **changes):
    return PublishedPopulation.from_plain(POPULATION | changes).model(cohort)


@pytest.fixture(scope="module")
def typical():
    return SimulatedPatients.typical(model_of())


def curve(patients, text, **options):
    return simulate_regimens(patients, [Regimen.parse(text)], **{"until": 48.0} | options).courses[0]


def test_no_dose_gives_no_drug_exactly(typical):
    found = curve(typical, "none", above=0.0)
    assert (found.curve == 0).all()
    assert all((found.exposure[name] == 0).all() for name in ("AUC", "CMAX", "CTROUGH", "TABOVE"))


@pytest.mark.parametrize("text", ["{} mg q12h x 4", "{} mg q12h x 4, infusion 2 h", "{} mg q12h steady state"])
def test_twice_the_dose_doubles_a_linear_system(typical, text):
    once, twice = (curve(typical, text.format(amount)) for amount in (100, 200))
    np.testing.assert_allclose(twice.curve, 2 * once.curve, rtol=1e-6)
    np.testing.assert_allclose(twice.exposure["AUC"], 2 * once.exposure["AUC"], rtol=1e-6)


def test_two_regimens_together_are_their_sum(typical):
    texts = ["100 mg q12h x 4, infusion 2 h", "30 mg q6h x 8"]
    both = "100 mg q12h x 4, infusion 2 h; 30 mg q6h x 8 at 0 h"
    # both sides of each dose are among the times of one simulation
    parts = simulate_regimens(typical, parse_regimens([*texts, both]), until=48.0).courses
    np.testing.assert_allclose(parts[2].curve, parts[0].curve + parts[1].curve, rtol=1e-6, atol=1e-12)


def test_exposure_of_boluses_has_its_closed_form(typical):
    found = curve(typical, "100 mg q12h steady state", above=5.0).exposure
    rate, level = 0.2, 10 / (1 - np.exp(-0.2 * 12))
    exact = {
        "AUC": 100 / 2.0,
        "CMAX": level,
        "TMAX": 0.0,
        "CTROUGH": level * np.exp(-rate * 12),
        "CMIN": level * np.exp(-rate * 12),
        "CAVG": 50 / 12,
        "TABOVE": np.log(level / 5.0) / rate,
    }
    for name, value in exact.items():
        tolerance = 1e-3 if name == "TABOVE" else 1e-7
        np.testing.assert_allclose(found[name].item(), value, rtol=tolerance, err_msg=name)
    np.testing.assert_allclose(found["PABOVE"], found["TABOVE"] / 0.12)


def test_peak_and_trough_of_an_infusion_longer_than_its_interval_are_exact(typical):
    found = curve(typical, "100 mg q12h ss, infusion 18 h").exposure
    # two infusions run until 6 h, one until 12 h; rate / CL, and what is left after 6 h
    level, left = 100 / 18 / 2.0, np.exp(-0.2 * 6)
    trough = level * (1 + 2 * left) / (1 + left)
    exact = {"AUC": 50.0, "CTROUGH": trough, "CMAX": trough * left + 2 * level * (1 - left), "TMAX": 6.0}
    for name, value in exact.items():
        np.testing.assert_allclose(found[name].item(), value, rtol=1e-7, err_msg=name)


def test_peak_between_two_points_is_found():
    grid = ExposureGrid.of((0.0, 24.0), [])
    ka, k = 1.3, 0.2
    values = np.exp(-k * grid.times) - np.exp(-ka * grid.times)
    at = np.log(ka / k) / (ka - k)
    found = grid.metrics(values)
    np.testing.assert_allclose(found["TMAX"], at, rtol=0.01)
    np.testing.assert_allclose(found["CMAX"], np.exp(-k * at) - np.exp(-ka * at), rtol=2e-4)
    np.testing.assert_allclose(found["AUC"], (1 - np.exp(-24 * k)) / k - (1 - np.exp(-24 * ka)) / ka, rtol=1e-8)
    with pytest.raises(ValueError, match="not 3 to 3"):
        ExposureGrid.of((3.0, 3.0), [])


def test_population_varies_as_its_parameters_and_a_seed_repeats_it():
    people = [SimulatedPatients.population(model_of(), 400, seed=seed) for seed in (1, 1, 2)]
    first, again, other = (curve(p, "100 mg q12h ss").exposure["AUC"] for p in people)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    # AUC = dose / CL
    assert abs(np.log(first).std() - 0.3) < 0.03 and abs(np.log(first / 50).mean()) < 0.05
    found = simulate_regimens(people[0], [Regimen.parse("100 mg q12h ss")], until=24.0)
    rows = found.exposures().set_index("METRIC")
    assert found.curves()["ID"].unique().tolist() == ["population"]
    np.testing.assert_allclose(rows.loc["AUC", "HI90"] / rows.loc["AUC", "MEDIAN"], np.exp(1.645 * 0.3), rtol=0.1)
    assert len(found.draws()) == 400


def test_covariates_of_a_table_and_amounts_per_kg():
    weights = (50.0, 100.0)
    cohort = Cohort(tuple(Subject(str(k), NOTHING, NOTHING, covariates={"WT": w}) for k, w in enumerate(weights)))
    model = model_of(cohort, effects={"CL~WT": 1.0}, references={"WT": 70.0}, omega={})
    people = SimulatedPatients.population(model, 4, cohort)
    # with a clearance proportional to the weight an amount per kg gives all the same area
    area = curve(people, "2 mg/kg q12h ss").exposure["AUC"].ravel()
    np.testing.assert_allclose(area, 140 / 2.0, rtol=1e-7)
    flat = curve(people, "140 mg q12h ss").exposure["AUC"].ravel()
    np.testing.assert_allclose(flat, 140 / (2.0 * np.array([50, 100, 50, 100]) / 70), rtol=1e-7)
    # an empty body has the last weight of its patient, in the clearance and in the amount
    heavier = Cohort((Subject("1", NOTHING, NOTHING, covariates={"WT": ((0.0, 50.0), (10.0, 100.0))}),))
    patient = SimulatedPatients(heavier, [model], [torch.zeros(1, 1, model.latent_size)])
    np.testing.assert_allclose(curve(patient, "2 mg/kg q12h ss").exposure["AUC"].item(), 140 / 2.0, rtol=1e-7)
    with pytest.raises(ValueError, match="covariate WT"):
        curve(SimulatedPatients.typical(model_of()), "2 mg/kg")


def test_a_rule_halves_the_doses_after_a_high_trough(typical):
    rule = AdaptiveRule.parse("trough > 0.9: dose x 0.5, at most 1 times")
    found = curve(typical, "100 mg q12h x 4", rule=rule)
    # 10·exp(−2.4) = 0.907 before the second dose
    assert found.exposure["DOSE"].item() == 100 + 3 * 50 and found.exposure["CHANGES"].item() == 1
    same = curve(typical, "100 mg then 50 mg q12h x 3")
    np.testing.assert_allclose(found.curve[:, :, -1], same.curve[:, :, -1], rtol=1e-9)
    skipped = curve(typical, "100 mg q12h x 4", rule=AdaptiveRule.parse("trough > 0.9: skip")).exposure
    assert (skipped["DOSE"].item(), skipped["CHANGES"].item()) == (200.0, 2.0)
    raised = curve(typical, "100 mg q12h x 2", rule=AdaptiveRule.parse("trough < 5 mg/L: dose x 3")).exposure
    assert raised["DOSE"].item() == 400.0
    # two doses at one time are changed together, and the first has no trough
    halves = "60 mg q12h x 3; 40 mg q12h x 3 at 0 h"
    both = curve(typical, halves, rule=AdaptiveRule.parse("trough > 0.1: dose x 0.5")).exposure
    assert (both["DOSE"].item(), both["CHANGES"].item()) == (175.0, 2.0)
    neither = curve(typical, halves, rule=AdaptiveRule.parse("trough > 0.1: skip, at most 1 times")).exposure
    assert (neither["DOSE"].item(), neither["CHANGES"].item()) == (200.0, 1.0)
    for text, message in (("trough 5", "is no rule"), ("trough > 5 ng/mL: skip", "in mg/L, not ng/mL")):
        with pytest.raises(ValueError, match=message):
            AdaptiveRule.parse(text)


def test_given_patients_keep_what_is_in_them():
    times = np.array([2.0, 11.0])
    subject = Subject("7", times, np.array([7.0, 1.2]), (Dose(0.0, 100.0, interval=12.0, additional=5),))
    cohort = Cohort((subject,))
    estimates = estimate_individuals(model_of(cohort), cohort, times=[23.9], draws=0)
    people = SimulatedPatients(cohort, [model_of(cohort)], [torch.as_tensor(estimates.z)[:, None]])
    # the two doses of the table before 24 h count, those that it plans later do not
    nothing = simulate_regimens(people, [Regimen.parse("none")], until=10.0, starts=24.0)
    np.testing.assert_allclose(nothing.courses[0].curve[0, 0, 0, 0], estimates.ipred[0, 0, 0], rtol=0.03)
    assert people.next_doses().tolist() == [12.0]
    with pytest.raises(ValueError, match="subject 7: the regimen starts at -5, before the first record at 0"):
        simulate_regimens(people, [Regimen.parse("100 mg q12h x 1")], starts=-5.0)
    given = simulate_regimens(people, [Regimen.parse("100 mg q12h x 1")], starts=24.0).courses[0]
    alone = simulate_regimens(people, [Regimen.parse("100 mg q12h x 1")]).courses[0]
    rest = np.interp(0.0, nothing.times, nothing.courses[0].curve[0, 0, :, 0])
    np.testing.assert_allclose(given.curve[0, 0, 0, 0], alone.curve[0, 0, 0, 0] + rest, rtol=1e-6)


def test_what_is_missing_is_asked_for(typical):
    with pytest.raises(ValueError, match="until when"):
        simulate_regimens(typical, [Regimen.parse("100 mg")])
    with pytest.raises(ValueError, match="a time after the start of the regimen, not -5"):
        simulate_regimens(typical, [Regimen.parse("100 mg q12h x 2")], until=-5.0)
    with pytest.raises(ValueError, match="one regimen or more"):
        simulate_regimens(typical, [])
    with pytest.raises(ValueError, match="one patient or more"):
        SimulatedPatients.population(model_of(), 0)


def test_figure_has_a_band_for_each_regimen_and_a_panel_for_each_patient():
    people = SimulatedPatients.population(model_of(), 20)
    found = simulate_regimens(people, parse_regimens("100 mg q12h x 3 | 200 mg q24h x 2"), above=2.0)
    figure = regimen_figure(found)
    assert len(figure.axes) == 5 and len(figure.axes[0].collections) == 2
    two = Cohort((Subject("1", NOTHING, NOTHING), Subject("2", NOTHING, NOTHING)))
    each = SimulatedPatients(two, people.models, [people.z[0][0, :2, None]])
    assert len(regimen_figure(simulate_regimens(each, [Regimen.parse("100 mg q12h x 3")]), log=True).axes) == 2
    assert isinstance(found.curves(), pd.DataFrame)


PLAIN = """
dynamics: {compartments: 1, absorption: first_order}
typical: {KA: 1.5, CL: 2.0, V1: 10.0}
cv: {CL: 30}
effects: {CL~WT: 0.75}
references: {WT: 70}
error: proportional
error_sd: {b: 0.1}
"""
TABLE = "ID,TIME,EVID,AMT,DV,WT\n1,0,1,100,.,70\n1,2,0,0,6.5,70\n2,0,1,100,.,90\n2,2,0,0,5.0,90\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pop.yaml").write_text(PLAIN)
    (tmp_path / "T.csv").write_text(TABLE)
    return tmp_path


def test_the_command_follows_a_typical_patient_a_population_and_given_patients(folder, capsys):
    line = ["simulate", "--model", "pop.yaml", "--regimen", "100 mg q12h x 3 | 1.5 mg/kg q12h x 3", "--above", "3"]
    main([*line, "--patient", "{WT: 80}", "--out", "a"])
    said = capsys.readouterr().out
    assert "Covariates: WT 80" in said and "Last dosing intervals of" not in said
    rows = pd.read_csv("a/exposures.csv")
    area = rows[rows["METRIC"] == "AUC"].set_index("REGIMEN")["MEDIAN"]
    np.testing.assert_allclose(area.iloc[1], 1.2 * area.iloc[0], rtol=1e-6)
    assert Path("a/regimens.png").read_bytes()[:4] == b"\x89PNG"
    main(
        [
            *line,
            "--who",
            "population",
            "--subjects",
            "20",
            "--table",
            "T.csv",
            "--adapt",
            "trough > 1: skip",
            "--out",
            "b",
        ]
    )
    rows = pd.read_csv("b/exposures.csv")
    assert set(rows["ID"]) == {"population"} and {"DOSE", "CHANGES", "PABOVE"} <= set(rows["METRIC"])
    assert len(pd.read_csv("b/exposure_draws.csv")) == 40
    main([*line, "--table", "T.csv", "--draws", "30", "--start", "12", "--out", "c"])
    assert set(pd.read_csv("c/curves.csv")["ID"]) == {1, 2}
    main([*line[:3], "--regimen", "100 mg q12h x 2 | 200 mg qd x 1", "--out", "d"])
    assert "Last dosing intervals of 12 and 24 h" in capsys.readouterr().out


def test_covariates_that_are_not_given_have_their_reference(folder):
    Path("more.yaml").write_text(
        PLAIN.replace("{CL~WT: 0.75}", "{CL~WT: 0.75, V1~AGE: {slope: 0.1, reference: 40}, CL~SEX: 0.3}")
    )
    assert reference_covariates(read_model("more.yaml"), {"WT": 90.0}) == {"WT": 90.0, "AGE": 40.0, "SEX": 0.0}


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--regimen", "100 mg q12h"], 1, "how often"),
        (["--regimen", "1 mg", "--patient", "{AGE: 3}"], 1, "does not read the covariate AGE; it reads: WT"),
        (["--regimen", "1 mg q1h x 2", "--interval", "[3]"], 2, "takes a start and an end"),
        (["--regimen", "1 mg q1h x 2", "--start", "3"], 2, "--table"),
        (["--regimen", "1 mg q1h x 2", "--who", "patients"], 2, "needs their --table"),
        (["--regimen", "1 mg q1h x 2", "--table", "T.csv", "--patient", "{WT: 3}"], 2, "leave out --patient"),
        ([], 2, "--regimen is required"),
    ],
)
def test_the_command_says_what_is_wrong(folder, capsys, options, code, message):
    with pytest.raises(SystemExit) as ended:
        main(["simulate", "--model", "pop.yaml", "--out", "o", *options])
    assert ended.value.code == code
    assert message in capsys.readouterr().err
    assert not Path("o").exists()


def test_a_regimen_needs_a_model(folder, capsys):
    with pytest.raises(SystemExit):
        main(["simulate", "--regimen", "100 mg", "--out", "o"])
    assert "--regimen needs --model" in capsys.readouterr().err


@pytest.mark.parametrize("dynamics", [NeuralCompartments, lambda: HybridDynamics(CompartmentModel(2))])
def test_a_network_gives_no_drug_without_a_dose(dynamics):
    torch.manual_seed(0)
    model = PopulationModel(dynamics()).build(Scaling(time=24.0, amount=100.0, value=(5.0,)), torch.float64)
    found = simulate_regimens(SimulatedPatients.typical(model), parse_regimens("none | 100 mg q12h x 2"), until=24.0)
    nothing, given = (course.curve for course in found.courses)
    assert (nothing == 0).all() and (given[:, :, 1:] > 0).all()


def test_a_recurrent_network_has_no_steady_state():
    model = PopulationModel(GRU()).build(Scaling(time=24.0, amount=100.0, value=(5.0,)), torch.float64)
    people = SimulatedPatients.typical(model)
    with pytest.raises(ValueError, match="write the earlier doses out"):
        curve(people, "100 mg q12h steady state")
    assert np.isfinite(curve(people, "100 mg q12h x 2").curve).all()
