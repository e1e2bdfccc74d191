"""What estimates hand back of every patient: the table of records, etas, exposure, and times of the curves."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from neuralpk import Cohort, Dose, Subject, datasets, read_table
from neuralpk.individual_estimates import TABLES, IndividualEstimates, estimate_individuals
from neuralpk.published_population import PublishedPopulation
from neuralpk.tables import DataWarning

PLAIN = {
    "dynamics": {"compartments": 1},
    "typical": {"CL": 5.0, "V1": 50.0},
    "omega": {"CL": 0.3, "V1": 0.2},
    "effects": {"CL~WT": 0.75},
    "references": {"WT": 70.0},
    "error": "combined",
    "error_sd": {"a": 0.1, "b": 0.1},
}
TABLE = """ID,TIME,AMT,DV,EVID,II,ADDL,RATE,CENS,WT
A,-1,,0.1,0,,,,0,70
A,0,100,,1,12,3,,0,70
A,0,,1.9,0,,,,0,70
A,13.5,,2.2,0,,,,0,90
A,40,100,,1,,,50,0,90
A,47,,,2,,,,0,90
A,90,,0.5,0,,,,1,90
B,3,,0.1,0,,,,0,60
"""


@pytest.fixture(scope="module")
def estimates(tmp_path_factory: pytest.TempPathFactory) -> IndividualEstimates:
    path = tmp_path_factory.mktemp("records") / "t.csv"
    path.write_text(TABLE)
    with pytest.warns(DataWarning, match="without doses"):
        cohort = read_table(path, covariates=["WT"])
    return estimate_individuals(PublishedPopulation.from_plain(PLAIN).model(cohort), cohort, draws=20)


def test_the_table_of_records(estimates: IndividualEstimates) -> None:
    table = estimates.records()
    columns = ["ID", "TIME", "DVID", "DV", "PRED", "IPRED", "IRES", "IWRES", "TAD", "CENS", "LLOQ", "WT"]
    assert list(table) == columns
    assert table["ID"].tolist() == ["A"] * 5 + ["B"]
    np.testing.assert_allclose(table["TAD"], [np.nan, 0.0, 1.5, 7.0, 50.0, np.nan])
    np.testing.assert_allclose(table["WT"], [70, 70, 90, 90, 90, 60])
    np.testing.assert_allclose(table["DV"], [0.1, 1.9, 2.2, np.nan, 0.5, 0.1])
    np.testing.assert_allclose(table["LLOQ"], [np.nan] * 4 + [0.5, np.nan])
    measured = table[table["CENS"].eq(0) & table["DV"].notna()]
    np.testing.assert_allclose(measured["IRES"], measured["DV"] - measured["IPRED"])
    sd = np.sqrt(0.1**2 + (0.1 * measured["IPRED"]) ** 2)
    np.testing.assert_allclose(measured["IWRES"], measured["IRES"] / sd, rtol=1e-6)
    assert table.loc[[3, 4], ["IRES", "IWRES"]].isna().all(axis=None) and table["IPRED"].notna().all()
    assert table["PRED"][1] == pytest.approx(2.0)


def test_exposure_is_that_of_the_parameters(estimates: IndividualEstimates) -> None:
    table = estimates.exposure()
    own = table[table["ID"] == "A"].set_index("DOSE")
    assert own.index.tolist() == [0, 1, 2, 3, 4, 5]
    people = estimates.individuals().set_index("ID")
    k, v = people.loc["A", "k10"], people.loc["A", "V1"]
    assert own.loc[1, "AUC"] == pytest.approx(100 / v / k * (1 - np.exp(-12 * k)), rel=1e-5)
    assert own.loc[1, "CMAX"] == pytest.approx(100 / v, rel=1e-6)
    assert own.loc[1, "CMIN"] == pytest.approx(100 / v * np.exp(-12 * k), rel=1e-6)
    assert own["START"].tolist() == [-1, 0, 12, 24, 36, 40] and own["END"].tolist() == [90, 12, 24, 36, 40, 90]
    assert own.loc[0, "AUC"] == pytest.approx(own.loc[1:, "AUC"].sum())
    assert own.loc[5, "TMAX"] == pytest.approx(2.0, abs=0.01)  # the end of the infusion
    assert own.loc[0, "AMT"] == 500
    assert people.loc["A", "THALF"] == pytest.approx(np.log(2) / k)


def test_etas_stand_beside_the_parameters(estimates: IndividualEstimates) -> None:
    people = estimates.individuals().set_index("ID")
    assert [f"ETA_{name}{end}" for name in ("CL", "V1") for end in ("", "_LO90", "_HI90")] == list(people)[-6:]
    assert people.loc["A", "CL"] == pytest.approx(5.0 * np.exp(people.loc["A", "ETA_CL"]))
    assert people.loc["B", "CL"] == pytest.approx(5.0 * (60 / 70) ** 0.75)
    assert (people["ETA_V1_LO90"] < people["ETA_V1_HI90"]).all()


def test_curves_have_records_doses_and_the_moments_before(estimates: IndividualEstimates) -> None:
    curve = estimates.curves().query("ID == 'A'").set_index("TIME")["IPRED"]
    assert {0.0, 12.0, 13.5, 24.0, 36.0, 40.0, 42.0, 47.0, 90.0} <= set(curve.index)
    before = curve[curve.index < 12.0].iloc[-1]
    assert curve[12.0] - before == pytest.approx(100 / estimates.parameters["V1"][0][0], rel=1e-2)
    assert curve.max() == pytest.approx(estimates.exposure()["CMAX"].max(), rel=1e-3)


def test_tables_are_written(estimates: IndividualEstimates, tmp_path: Path) -> None:
    assert [path.name for path in estimates.write(tmp_path / "out")] == list(TABLES)
    for name, table in (("records", estimates.records()), ("exposure", estimates.exposure())):
        pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "out" / f"{name}.csv"), table)


def test_an_oral_profile_agrees_with_the_trapezoids_of_its_curve() -> None:
    cohort = datasets.theophylline()[:2]
    model = PublishedPopulation.from_plain(
        {
            "dynamics": {"compartments": 1, "absorption": "first_order", "lag": True},
            "typical": {"KA": 1.6, "CL": 2.8, "V1": 32.0, "LAG": 0.1},
            "omega": {"KA": 0.6, "CL": 0.3},
            "error": "additive",
            "error_sd": {"a": 0.7},
        }
    ).model(cohort)
    found = estimate_individuals(model, cohort, draws=0)
    whole = found.exposure().query("DOSE == 0")
    for name, curve in found.curves().groupby("ID", sort=False):
        area = np.trapezoid(curve["IPRED"], curve["TIME"])
        assert whole.set_index("ID").loc[name, "AUC"] == pytest.approx(area, rel=2e-3)


def test_a_patient_without_doses_has_a_whole_interval_only() -> None:
    cohort = Cohort((Subject("1", [0.0, 4.0], [np.nan, np.nan], covariates={"WT": 70.0}),))
    found = estimate_individuals(PublishedPopulation.from_plain(PLAIN).model(cohort), cohort, draws=0).exposure()
    assert found[["DOSE", "AUC", "CMAX"]].to_numpy().tolist() == [[0, 0, 0]]
    dosed = Cohort((Subject("1", [2.0], [np.nan], (Dose(2.0, 10.0),), covariates={"WT": 70.0}),))
    model = PublishedPopulation.from_plain(PLAIN).model(dosed)
    assert estimate_individuals(model, dosed, draws=0).exposure().empty


def test_an_infusion_longer_than_its_interval_bends_the_curve_within_it() -> None:
    dose = Dose(0.0, 100.0, duration=18.0, interval=12.0, steady_state=1)
    cohort = Cohort((Subject("1", [0.0, 12.0], [np.nan, np.nan], (dose,), covariates={"WT": 70.0}),))
    model = PublishedPopulation.from_plain(PLAIN).model(cohort)
    found = estimate_individuals(model, cohort, draws=0).exposure().query("DOSE == 1").iloc[0]
    # two infusions run until 6 h, one until 12 h
    level, left = 100 / 18 / 5.0, np.exp(-0.1 * 6)
    peak = level * (1 + 2 * left) / (1 + left) * left + 2 * level * (1 - left)
    assert (found["AUC"], found["CMAX"], found["TMAX"]) == pytest.approx((20.0, peak, 6.0), rel=1e-6)
