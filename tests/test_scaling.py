"""The magnitudes of a cohort."""

import math

import pytest
import torch

from neuralpk.cohort import Cohort, Dose, Subject
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
    assert sex == (1.0, 1.0, True, True, 1.0)  # where all are alike
    # in the order of the names: SEX, TEMP, WT
    standard = scaling.standardise(torch.tensor([1.0, 1.0 + math.sqrt(3.5), 200.0]))
    torch.testing.assert_close(standard, torch.tensor([0.0, 1.0, math.sqrt(2)]))


def test_a_cohort_without_doses_or_observations():
    undosed = Cohort((Subject("1", [0.0, 2.0], [3.0, 5.0]),))
    assert Scaling.of(undosed) == Scaling(2.0, 1.0, (4.0,), {})
    with pytest.raises(ValueError, match="no observation"):
        Scaling.of(Cohort((Subject("1", [0.0, 2.0], [math.nan, math.nan], (Dose(0, 100),)),)))
