"""The magnitudes of a cohort."""

import math

import numpy as np
import pytest
import torch

from neuralpk.cohort import Cohort, Dose, Subject
from neuralpk.cohort_batch import collate
from neuralpk.scaling import Scaling

PEOPLE = Cohort(
    (
        Subject("1", [1.0, 4.0], [2.0, 8.0], (Dose(0, 100),), covariates={"WT": 50.0, "TEMP": -1.0, "SEX": 1.0}),
        Subject(
            "2",
            [3.0, 10.0, 10.0],
            [4.0, math.nan, 60.0],
            (Dose(1, 300), Dose(5, 200, duration=2), Dose(6, reset=True)),
            endpoints=[1, 1, 2],
            covariates={"WT": ((0.0, 100.0), (5.0, 100.0)), "TEMP": ((0.0, 0.0), (2.0, 4.0)), "SEX": 1.0},
        ),
        Subject("3", [0.0, 2.0], [0.0, 5.0], endpoints=[1, 2], covariates={"WT": 200.0, "TEMP": 1.0, "SEX": 1.0}),
    )
)


def test_the_scale_of_a_cohort_is_the_one_found_by_hand():
    scaling = Scaling.of(PEOPLE)
    assert scaling.time == 9.0  # subject 2, from its dose at 1 to 10
    assert scaling.amount == 200.0  # of 100, 200 and 300: a reset gives nothing
    assert scaling.value == (4.0, 32.5)  # of 2, 4, 8 and of 5, 60: neither zero nor NaN counts
    weight, temperature, sex = (scaling.covariates[name] for name in ("WT", "TEMP", "SEX"))
    assert weight[:3] == pytest.approx((100.0, math.log(2) / math.sqrt(2), True))  # log: −ln 2, 0, 0, ln 2
    assert temperature[:3] == pytest.approx((1.0, math.sqrt(3.5), False))  # −1, 0, 4 and 1: the mean square is 14/4
    assert sex == (1.0, 1.0, True, True, 1.0, 1.0, 1.0)  # where all are alike
    assert temperature[4:] == pytest.approx((1.0, -1.0, 4.0))  # mean and range
    # in the order of the names: SEX, TEMP, WT
    standard = scaling.standardise(torch.tensor([1.0, 1.0 + math.sqrt(3.5), 200.0]))
    torch.testing.assert_close(standard, torch.tensor([0.0, 1.0, math.sqrt(2)]))


def test_a_cohort_without_doses_or_observations():
    undosed = Cohort((Subject("1", [0.0, 2.0], [3.0, 5.0]),))
    assert Scaling.of(undosed) == Scaling(2.0, 1.0, (4.0,), {})
    with pytest.raises(ValueError, match="no observation"):
        Scaling.of(Cohort((Subject("1", [0.0, 2.0], [math.nan, math.nan], (Dose(0, 100),)),)))


def test_the_magnitude_of_time_is_moved_by_no_single_subject_and_by_no_wanted_prediction():
    subjects = [Subject(str(k), [0.0, 20.0 + k], [1.0, 2.0], (Dose(0.0, 100.0),)) for k in range(20)]
    assert Scaling.of(Cohort(tuple(subjects))).time == 39.0
    wanted = Subject("w", [0.0, 23.0, 9999.0], [1.0, 2.0, math.nan], (Dose(0.0, 100.0),))
    assert Scaling.of(Cohort((*subjects, wanted))).time == 39.0
    late = Subject("late", [0.0, 9999.0], [1.0, 2.0], (Dose(0.0, 100.0),))
    with pytest.warns(UserWarning, match=r"subject late \(9999\): measured more than 5 times as long .* up to 39"):
        assert Scaling.of(Cohort((*subjects, late))).time == 39.0


def test_a_clock_that_begins_far_away_keeps_the_digits_of_its_own_times():
    times, far = np.array([0.0, 0.3, 8.1]), 489_000.0
    steps = {"WT": ((0.0, 70.0), (0.3, 71.0))}
    near = Subject("1", times, np.ones(3), (Dose(0.1, 5.0),), covariates=steps)
    moved = {"WT": tuple((time + far, value) for time, value in steps["WT"])}
    away = Subject("2", times + far, np.ones(3), (Dose(0.1 + far, 5.0),), covariates=moved)
    batch = collate([near, away])
    assert batch.origin == (0.0, far)
    for values in (batch.time, batch.doses.time, batch.period_start):
        np.testing.assert_allclose(values[1], values[0], rtol=1e-6)
    np.testing.assert_allclose(batch.on_data_clock(batch.time)[1], away.times, rtol=1e-14)
    pair = batch.select(torch.tensor([1])).repeat(2)
    assert pair.origin == (far, far)
