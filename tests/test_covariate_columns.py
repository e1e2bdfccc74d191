"""Columns of covariates: levels of texts, values that are missing, values that change in time."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest

from neuralpk.cohort_batch import collate
from neuralpk.tables import DataError, DataWarning, read_table, to_frame


def table(**columns: list) -> pd.DataFrame:
    """Three subjects with a dose and two samples each; a column has one value a subject, or one a row."""
    rows = {
        "ID": np.repeat([1, 2, 3], 3),
        "TIME": [0.0, 2.0, 8.0] * 3,
        "AMT": [100.0, np.nan, np.nan] * 3,
        "DV": [np.nan, 5.0, 2.0, np.nan, 4.0, 1.0, np.nan, 6.0, 3.0],
    }
    return pd.DataFrame(rows | {name: np.repeat(v, 3) if len(v) == 3 else v for name, v in columns.items()})


def test_a_named_text_is_a_covariate_for_each_of_its_levels():
    cohort = read_table(table(RACE=["White", "Asian", "White"]), covariates="RACE")
    assert cohort.covariate_names == ("RACE=Asian", "RACE=White")
    assert [subject.covariates["RACE=White"] for subject in cohort] == [1.0, 0.0, 1.0]
    assert repr(read_table(to_frame(cohort), covariates="all")) == repr(cohort)


def test_a_text_that_the_model_does_not_know_is_refused():
    known = ["RACE=Asian", "RACE=White"]
    cohort = read_table(table(RACE=["White", "White", "White"]), covariates=known)
    assert cohort.covariate_names == ("RACE=Asian", "RACE=White")
    with pytest.raises(DataError, match=r"NPK-D43.*RACE is 'Black'; the model has Asian, White") as refused:
        read_table(table(RACE=["White", "Black", "White"]), covariates=known)
    assert len(refused.value.findings) == 3
    with pytest.raises(DataError, match=r"NPK-D43.*RACE is '1'"):
        read_table(table(RACE=[1, 1, 1]), covariates=known)
    with pytest.raises(DataError, match="covariates: RACE is not among the columns"):
        read_table(table(), covariates=known)


def test_texts_among_numbers_and_texts_that_nobody_names_are_refused():
    with pytest.raises(DataError, match="NPK-D40"):
        read_table(table(WT=[70, "heavy", 80]), covariates="WT")
    with pytest.raises(DataError, match="NPK-D40"):
        read_table(table(NOTE=["a", "b", "c"]), covariates="all")


@pytest.mark.parametrize(
    ("impute", "weight", "sex"),
    [("median", 75.0, 0.5), ("mode", 70.0, 0.0), ("WT=median,SEX=mode", 75.0, 0.0), ({"WT": 66, "SEX": 1}, 66.0, 1.0)],
)
def test_a_missing_covariate_is_refused_unless_its_value_is_asked_for(impute, weight, sex):
    frame = table(WT=[70.0, np.nan, 80.0], SEX=[0.0, 1.0, np.nan])
    with pytest.raises(DataError, match=r"NPK-D41.*impute=WT=median"):
        read_table(frame, covariates="WT,SEX")
    with pytest.warns(DataWarning) as said:
        cohort = read_table(frame, covariates="WT,SEX", impute=impute)
    assert [subject.covariates["WT"] for subject in cohort] == [70.0, weight, 80.0]
    assert [subject.covariates["SEX"] for subject in cohort] == [0.0, 1.0, sex]
    assert any(f"1 of 3 subjects with WT = {weight:g}" in str(one.message) for one in said)


def test_the_most_frequent_level_stands_for_a_missing_one():
    with pytest.warns(DataWarning, match="1 of 3 subjects with RACE=White = 1"):
        cohort = read_table(table(RACE=["White", None, "White"]), covariates="RACE", impute="RACE=mode")
    assert cohort[1].covariates == {"RACE=White": 1.0}


@pytest.mark.parametrize("impute", ["mean", "70", {"WT": "average"}])
def test_a_rule_for_missing_values_that_is_none_is_refused(impute):
    with pytest.raises(ValueError, match="median, mode or"):
        read_table(table(), impute=impute)


def test_the_next_value_is_carried_backward_where_that_is_asked_for():
    weight = [60.0, 70.0, 80.0, *[50.0] * 6]
    forward, backward = (read_table(table(WT=weight), covariates="WT", carry=way) for way in ("forward", "backward"))
    assert forward[0].covariates["WT"] == ((0.0, 60.0), (2.0, 70.0), (8.0, 80.0))
    times, values = zip(*backward[0].covariates["WT"], strict=True)
    assert values == (60.0, 70.0, 80.0)
    assert times == pytest.approx((0.0, 0.0, 2.0), abs=1e-4) and times[1] > 0.0 and times[2] > 2.0
    assert backward[1].covariates["WT"] == 50.0
    # in single precision too a record has the value that stands on its own row
    batch = collate(backward.subjects)
    found = batch.covariates[0, batch.period_at(batch.time)[0], 0]
    assert found.tolist() == [70.0, 80.0]
    with pytest.raises(ValueError, match="carry is forward"):
        read_table(table(), carry="both")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_table(table(WT=weight), covariates="WT", carry="backward")
