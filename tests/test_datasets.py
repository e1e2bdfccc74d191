"""The shipped data sets hold what their sources print."""

import numpy as np
import pytest

from neuralpk.datasets import hare_lynx, indomethacin, theophylline
from neuralpk.tables import read_table, to_frame


def test_theophylline_has_the_doses_in_mg() -> None:
    cohort = theophylline()
    assert len(cohort) == 12
    assert sum(len(subject.times) for subject in cohort) == 132
    assert cohort[0].doses[0].amount == pytest.approx(4.02 * 79.6, abs=1e-9)  # R: Dose mg/kg, Wt kg
    assert cohort.covariate_names == ("WT",)
    above = [subject.id for subject in cohort if subject.values[subject.times == 0.0].max() > 0]
    assert above == ["1", "7", "10"]


def test_indomethacin_has_one_bolus_each() -> None:
    cohort = indomethacin()
    assert len(cohort) == 6
    assert sum(len(subject.times) for subject in cohort) == 66
    assert [dose.amount for subject in cohort for dose in subject.doses] == [25.0] * 6
    assert cohort.units.value == "mg/L"


def test_hare_and_lynx_are_two_endpoints_of_one_subject() -> None:
    (subject,) = hare_lynx()
    assert subject.doses == ()
    assert np.unique(subject.times).tolist() == list(range(1900, 1921))
    hare, lynx = (subject.values[subject.endpoints == k] for k in (1, 2))
    assert (len(hare), len(lynx)) == (21, 21)
    assert (hare[0], lynx[0], hare.max(), lynx.max()) == (30.0, 4.0, 77.4, 59.4)


@pytest.mark.parametrize("load", [theophylline, indomethacin, hare_lynx])
def test_each_goes_through_a_frame_unchanged(load) -> None:
    cohort = load()
    assert repr(read_table(to_frame(cohort), covariates="all", units=cohort.units)) == repr(cohort)
