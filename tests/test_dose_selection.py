"""The dose that reaches a target, against closed forms."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import norm

from neuralpk.cli import main
from neuralpk.cohort import Cohort, Dose, Subject, Units
from neuralpk.dosing import SimulatedPatients, Target, select_doses
from neuralpk.dosing.dosing_figures import dose_figure
from neuralpk.dosing.prior_predictive import UNLIKE, data_p_values, unlike_population
from neuralpk.exposure import ExposureGrid
from neuralpk.individual_estimates import draw_individuals
from neuralpk.published_population import PublishedPopulation

POPULATION = {
    "dynamics": {"compartments": 1},
    "typical": {"CL": 4.0, "V1": 30.0},
    "omega": {"CL": 0.3},
    "error": "proportional",
    "error_sd": {"b": 0.15},
}
DOSES = [500.0, 750.0, 1000.0, 1250.0, 1500.0, 1750.0, 2000.0]
AUC24 = Target.parse("AUC24 400-600")
TIMES = np.array([2.0, 8.0, 11.5])


def model_of(cohort=None, **changes):
    nobody = Cohort((Subject("1", np.empty(0), np.empty(0)),))
    return PublishedPopulation.from_plain(POPULATION | changes).model(cohort or nobody)


@pytest.fixture(scope="module")
def population():
    return SimulatedPatients.population(model_of(), 4000)


def measured(clearances):
    """Patients with three samples without error after 1000 mg."""
    people = []
    for k, clearance in enumerate(clearances):
        values = 1000 / 30 * np.exp(-clearance / 30 * TIMES)
        people.append(Subject(str(k + 1), TIMES, values, (Dose(0.0, 1000.0),)))
    return Cohort(tuple(people))


def given(cohort, draws=200):
    found = draw_individuals(model_of(cohort), cohort, draws)
    return SimulatedPatients(cohort, found.models, found.z)


@pytest.mark.parametrize(
    ("text", "quantity", "low", "high", "per"),
    [
        ("AUC24 400-600", "AUC", 400, 600, 24.0),
        ("AUC 200 to 300 h*mg/L", "AUC", 200, 300, None),
        ("auc 24 > 5", "AUC", 5, np.inf, 24.0),
        ("trough < 20", "CTROUGH", -np.inf, 20, None),
        ("Cmax 20–30 mg/L", "CMAX", 20, 30, None),
        ("average > 5", "CAVG", 5, np.inf, None),
        ("Cmin > 2", "CMIN", 2, np.inf, None),
        ("trough ≤ 20", "CTROUGH", -np.inf, 20, None),
        ("AUC24 >= 400 mg·h/L", "AUC", 400, np.inf, 24.0),
        ("AUC 200-300 mg/L*h", "AUC", 200, 300, None),
        ("time above 4 > 50 %", "PABOVE", 50, np.inf, None),
        ("time above 4 > 6 h", "TABOVE", 6, np.inf, None),
    ],
)
def test_texts_of_targets(text, quantity, low, high, per):
    found = Target.parse(text)
    assert (found.quantity, found.low, found.high, found.per) == (quantity, low, high, per)


def test_texts_of_limits_outputs_and_other_units():
    assert Target.parse("trough < 20 with 95%", limit=True).probability == 0.95
    assert Target.parse("trough < 20 mg/L with probability 95 %", limit=True).probability == 0.95
    assert Target.parse("DVID 2 trough > 30").endpoint == 2
    assert Target.parse("AUC24 4-6", Units("d", "mg", "mg/L")).per == 1.0
    for text, limit, message in (
        ("trough 5", False, "is not understood"),
        ("AUC24", False, "is not understood"),
        ("AUC24 600-400", False, "lower to a higher"),
        ("trough > 5 ng/mL", False, "in mg/L, not ng/mL"),
        ("trough < 20", True, "with which probability"),
        ("trough < 20 with 95 %", False, "has a probability"),
        ("trough < 20 with 100 %", True, "between 1 and 100 %"),
        ("trough < 20 with 0.95 %", True, "is in percent"),
        ("AUC24 > 5 mg*d/L", False, "in h.mg/L, not mg.d/L"),
    ):
        with pytest.raises(ValueError, match=message):
            Target.parse(text, limit=limit)


def test_probabilities_in_a_population_are_those_of_the_closed_form(population):
    found = select_doses(population, AUC24, DOSES, [12.0, 24.0]).candidates
    assert len(found) == 14
    # AUC24 = daily dose / CL, and log CL is normal
    daily = found["DOSE"] * 24 / found["EVERY"]
    ends = [np.log(daily / bound / 4.0) / 0.3 for bound in (600.0, 400.0)]
    np.testing.assert_allclose(found["PROB"], norm.cdf(ends[1]) - norm.cdf(ends[0]), atol=0.025)
    np.testing.assert_allclose(found["MEDIAN"], daily / 4.0, rtol=0.02)


def test_of_equal_candidates_the_lowest_amount_and_longest_interval_is_chosen(population):
    (row,) = select_doses(population, AUC24, DOSES, [12.0, 24.0]).chosen().to_dict("records")
    assert (row["DOSE"], row["EVERY"]) == (2000.0, 24.0)


def test_a_limit_leaves_out_what_breaks_it_and_no_dose_is_said(population):
    limit = Target.parse("trough < 12 with 90 %", limit=True)
    found = select_doses(population, AUC24, DOSES, [12.0, 24.0], limits=[limit])
    table = found.candidates
    assert (table["KEPT"] == (table["LIMIT_1"] >= 0.9)).all() and not table["KEPT"].all()
    best = table[table["CHOSEN"]].iloc[0]
    assert best["KEPT"] and best["PROB"] == table.loc[table["KEPT"], "PROB"].max()
    none = select_doses(population, AUC24, DOSES, [12.0], limits=[Target.parse("Cmax < 1 with 90 %", limit=True)])
    assert none.chosen()["DOSE"].isna().all()
    assert none.sentences() == ["no dose reaches AUC24 400-600: none of the candidates keeps Cmax < 1 with 90 %"]
    low = select_doses(population, AUC24, DOSES[:2], [24.0], at_least=0.5)
    assert "no dose reaches AUC24 400-600 with 50 %; the most probable is 750 mg every 24 h" in low.sentences()[0]
    far = select_doses(population, Target.parse("AUC24 > 90000"), DOSES[:2], [24.0])
    assert "none of the candidates does so in any draw; the lowest median is 12" in far.sentences()[0]
    assert len(select_doses(population, AUC24, DOSES, [8.0, 24.0], greatest_daily=2000).candidates) == 7 + 1
    days = SimulatedPatients.population(population.models[0], 3, units=Units("days", "mg", "mg/L"))
    assert len(select_doses(days, AUC24, DOSES, [1 / 3, 1.0], greatest_daily=2000).candidates) == 7 + 1


def test_samples_of_a_patient_decide(population):
    people = given(measured([2.5, 6.0]))
    chosen = select_doses(people, AUC24, DOSES, [12.0, 24.0]).chosen()
    daily = chosen["DOSE"] * 24 / chosen["EVERY"]
    np.testing.assert_allclose(daily / [2.5, 6.0], 500, rtol=0.17)  # steps of 250 mg
    assert (chosen["PROB"] > 0.7).all() and chosen["REACHED"].all()


def test_next_dose_counts_what_is_left_and_a_loading_dose_fills_up():
    people = given(measured([4.0]), draws=100)
    target = Target.parse("average 20-30")
    with pytest.raises(ValueError, match="subject 1: one dose does not say"):
        select_doses(people, target, DOSES, [12.0], when="next")
    early, late = (select_doses(people, target, DOSES, [12.0], when="next", starts=start) for start in (12.0, 500.0))
    left, none = early.candidates["MEDIAN"], late.candidates["MEDIAN"]
    rest = 1000 / 30 * np.exp(-4.0 / 30 * 12)
    np.testing.assert_allclose(left - none, rest * (1 - np.exp(-1.6)) / 1.6, rtol=0.1)
    loaded = select_doses(people, target, DOSES, [12.0], loading=[1000.0, 1500.0, 3000.0], starts=500.0)
    row = loaded.chosen().iloc[0]
    assert (row["DOSE"], row["LOADING"]) == (1250.0, 1500.0)
    assert row["START"] == 500.0 and early.sentences()[0].count(" from 12 h on ") == 1
    assert "in the first interval from 500 h on a loading dose of 1500 mg" in loaded.sentences()[0]
    alone = select_doses(people, target, DOSES, [12.0], loading=[3000.0], starts=500.0)
    assert "in the first interval from 500 h on no loading dose" in alone.sentences()[0]
    # 22 mg/L are left after 3 h, and 500 mg add 17
    low = [Target.parse("Cmax < 30 with 90 %", limit=True)]
    full = select_doses(people, Target.parse("average > 1"), [500.0], [24.0], loading=[3000.0], starts=3.0, limits=low)
    assert full.sentences()[0].endswith("; in the first interval from 3 h on no dose keeps Cmax < 30 with 90 %")
    third = select_doses(people, target, DOSES, [12.0], when=3, starts=500.0).candidates["MEDIAN"]
    assert (third > none).all()


@pytest.mark.slow  # its equations are compiled
def test_a_saturable_elimination_is_solved_for_every_dose():
    changed = {"dynamics": {"compartments": 1, "elimination": "michaelis_menten"}}
    changed |= {"typical": {"VMAX": 100.0, "KM": 5.0, "V1": 30.0}, "omega": {"VMAX": 0.1}}
    people = SimulatedPatients.population(model_of(**changed), 5)
    found = select_doses(people, AUC24, [100.0, 200.0, 300.0, 400.0], [12.0], when="next").candidates
    alone = [select_doses(people, AUC24, [dose], [12.0], when="next").candidates for dose in (200.0, 300.0)]
    np.testing.assert_allclose(found["MEDIAN"].iloc[1:3], [one["MEDIAN"].iloc[0] for one in alone], rtol=1e-9)
    assert found["MEDIAN"].iloc[3] > 4.2 * found["MEDIAN"].iloc[0]


def test_what_cannot_be_is_said(population):
    for options, message in (
        ({"doses": []}, "doses are 0 or above"),
        ({"every": [0.0]}, "intervals above 0"),
        ({"when": "soon"}, "when is 'steady'"),
        ({"at_least": 50}, "between 0 and 1"),
        ({"starts": 12.0}, "a steady state does not start at a time"),
        ({"greatest_daily": 1.0}, "within 1 a day"),
        ({"target": Target.parse("DVID 3 trough > 1")}, "the model has 1 outputs"),
    ):
        given_options = {"target": AUC24, "doses": DOSES[:1], "every": [24.0]} | options
        with pytest.raises(ValueError, match=message):
            select_doses(population, **given_options)


def test_p_is_uniform_for_patients_of_the_population_and_small_for_others():
    template = Cohort((Subject("0", TIMES, np.full(3, np.nan), (Dose(0.0, 1000.0),)),))
    model = model_of(template)
    rng = np.random.default_rng(3)
    clearance = 4 * np.exp(0.3 * rng.standard_normal(200))
    exact = 1000 / 30 * np.exp(-clearance[:, None] / 30 * TIMES)
    noisy = exact * (1 + 0.15 * rng.standard_normal(exact.shape))
    people = [Subject(str(k), TIMES, y, (Dose(0.0, 1000.0),)) for k, y in enumerate(noisy)]
    p = data_p_values(model, Cohort(tuple(people)), simulated=99, draws=100)
    # Kolmogorov and Smirnov at 1 %
    assert np.abs(np.sort(p) - np.arange(1, 201) / 200).max() < 1.63 / np.sqrt(200) + 0.01
    odd = Subject("odd", TIMES, np.array([3.0, 40.0, 5.0]), (Dose(0.0, 1000.0),))
    none = Subject("none", TIMES, np.full(3, np.nan), (Dose(0.0, 1000.0),))
    unlike = data_p_values(model, Cohort((odd, none)))
    assert unlike[0] < UNLIKE and np.isnan(unlike[1])
    assert "odd (p = 0.005)" in unlike_population(("odd", "none"), unlike)
    assert unlike_population(("a",), np.array([0.5])) == ""


def test_p_counts_values_below_the_limit_of_quantification():
    dose, limit = (Dose(0.0, 1000.0),), 20.0
    template = Cohort((Subject("0", TIMES, np.full(3, np.nan), dose),))
    model = model_of(template)
    rng = np.random.default_rng(4)
    clearance = 4 * np.exp(0.3 * rng.standard_normal(200))
    noisy = 1000 / 30 * np.exp(-clearance[:, None] / 30 * TIMES) * (1 + 0.15 * rng.standard_normal((200, 3)))
    below = (noisy < limit).astype(int)
    assert 0.3 < below.mean() < 0.9
    people = [
        Subject(str(k), TIMES, np.maximum(y, limit), dose, censored=c)
        for k, (y, c) in enumerate(zip(noisy, below, strict=True))
    ]
    p = data_p_values(model, Cohort(tuple(people)), simulated=99, draws=100)
    # values below a limit are ties, so that p is uniform or larger
    at = np.sort(p)
    assert (np.arange(1, 201) / 200 - at).max() < 1.63 / np.sqrt(200) + 0.01
    assert (p < 0.5).mean() > 0.3
    nothing = Subject("nothing", TIMES, np.full(3, 1.0), dose, censored=[1, 1, 1])
    assert data_p_values(model, Cohort((nothing,)))[0] < UNLIKE


def test_area_of_the_grid_is_that_of_the_target():
    grid = ExposureGrid.of((0.0, 12.0), [])
    curve = np.full((1, len(grid.times), 1), 20.0)
    np.testing.assert_allclose(AUC24.values(grid, curve), 480.0)


def test_figures_have_a_panel_for_each_patient(population):
    one = dose_figure(select_doses(population, AUC24, DOSES[:4], [12.0, 24.0]))
    assert len(one.axes) == 2
    limit = Target.parse("trough < 12 with 90 %", limit=True)
    both = select_doses(given(measured([3.0, 4.0]), 20), AUC24, DOSES[:2], [24.0], limits=[limit])
    assert len(dose_figure(both).axes) == 2


PLAIN = """
dynamics: {compartments: 1}
typical: {CL: 4.0, V1: 30.0}
cv: {CL: 30}
error: proportional
error_sd: {b: 0.15}
"""
TABLE = "ID,TIME,EVID,AMT,DV\n1,0,1,1000,.\n1,2,0,0,25\n1,8,0,0,11\n2,0,1,1000,.\n2,2,0,0,3\n2,8,0,0,40\n2,9,0,0,2\n"


def test_the_command_chooses_for_the_population_and_for_patients(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("pop.yaml").write_text(PLAIN)
    Path("T.csv").write_text(TABLE)
    line = ["dose", "--model", "pop.yaml", "--target", "AUC24 400-600", "--doses", "500:2000:500", "--every", "12,24"]
    main([*line, "--subjects", "200", "--limit", "trough < 20 with 90%; Cmax < 80 with 90%", "--out", "a"])
    said = capsys.readouterr()
    assert "every 24 h" in said.out and "no medical advice" in said.err
    table = pd.read_csv("a/candidates.csv")
    assert len(table) == 8 and {"LIMIT_1", "LIMIT_2", "KEPT"} <= set(table)
    main(
        [*line, "--subjects", "200", "--limit", "trough < 20 with 90%", "--limit", "Cmax < 80 with 90%", "--out", "a2"]
    )
    pd.testing.assert_frame_equal(pd.read_csv("a2/candidates.csv"), table)
    assert Path("a/doses.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.warns(UserWarning, match="subject 2 .*unlike the population"):
        main([*line, "--table", "T.csv", "--draws", "50", "--when", "next", "--start", "12", "--out", "b"])
    chosen = pd.read_csv("b/doses.csv")
    assert chosen["ID"].tolist() == [1, 2] and chosen["P_DATA"].iloc[0] > 0.01
    for options, code, message in (
        (["--doses", "500:2000:400"], 2, "--doses takes 500:2000:250"),
        (["--start", "3"], 2, "--table"),
        (["--table", "T.csv", "--start", "12"], 2, "it goes with --when next"),
        (["--at_least", "0.9"], 2, "is in percent: 90"),
        (["--limit", "trough < 20"], 1, "with which probability"),
        (["--target", "AUC"], 1, "is not understood"),
    ):
        with pytest.raises(SystemExit) as ended:
            main([*line, *options, "--out", "c"])
        assert ended.value.code == code and message in capsys.readouterr().err
    assert not Path("c").exists() and torch.is_grad_enabled()
