"""Non-compartmental analysis against NonCompart (R) and closed forms."""

import csv
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from neuralpk.evaluate.nca import nca

DATA = Path(__file__).parents[2] / "shared" / "data"
RULES = {"Linear": "linear", "Log": "linear-up/log-down"}
# theophylline subject 1, 319.992 mg by mouth (Boeckmann, Sheiner and Beal 1994; R data set Theoph)
TIMES = np.array([0.0, 0.25, 0.57, 1.12, 2.02, 3.82, 5.1, 7.03, 9.05, 12.12, 24.37])
VALUES = np.array([0.74, 2.84, 6.57, 10.5, 9.66, 8.58, 8.36, 7.47, 6.89, 5.94, 3.28])


def rows(path):
    if not path.exists():
        pytest.skip(f"reference data {path.name} is not beside this checkout")
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def profiles(path):
    """Subject to times, values and dose."""
    samples, doses = defaultdict(list), {}
    for row in rows(path):
        if row["EVID"] == "1":
            doses[row["ID"]] = float(row["AMT"])
        else:
            samples[row["ID"]].append((float(row["TIME"]), float(row["DV"])))
    return {key: (*np.array(sample).T, doses[key]) for key, sample in samples.items()}


@pytest.mark.parametrize(
    ("data", "reference", "route", "count"),
    [
        ("theophylline.csv", "ref_nca_theoph_NonCompart.csv", "extravascular", 24),
        ("indomethacin.csv", "ref_nca_indometh_NonCompart.csv", "bolus", 12),
    ],
)
def test_every_subject_agrees_with_noncompart(data, reference, route, count):
    known = {"C0", "CMAX", "TMAX", "AUCLST", "AUCIFO", "LAMZHL", "LAMZNPT", "AUCPEO", "CLFO", "VZFO", "CLO", "VZO"}
    subjects, expected = profiles(DATA / data), rows(DATA / reference)
    assert len(expected) == count
    for row in expected:
        times, values, dose = subjects[row["Subject"]]
        result = nca(times, values, dose, route=route, auc=RULES[row["down"]])
        names = known & row.keys()
        assert len(names) >= 9
        for name in names:
            # the reference is printed with 15 digits
            np.testing.assert_allclose(
                getattr(result, name), float(row[name]), rtol=1e-12, err_msg=f"{name} of subject {row['Subject']}"
            )


def test_theophylline_subject_1():
    result = nca(TIMES, VALUES, 319.992, auc="linear-up/log-down")
    assert (result.CMAX, result.TMAX, result.LAMZNPT) == (10.5, 1.12, 3)
    printed = [result.AUCLST, result.AUCIFO, result.LAMZHL]
    np.testing.assert_allclose(printed, [147.2347, 214.9236, 14.30438], rtol=4e-7)  # half a unit of the last digit
    assert result.extrapolated
    assert np.isnan([result.C0, result.CLO, result.VZO]).all()


def test_bolus_of_one_compartment_is_exact_with_log_down():
    times = np.array([0.5, 1.0, 2.0, 4.0, 8.0, 16.0])
    result = nca(times, 5.0 * np.exp(-0.3 * times), 100.0, route="bolus", auc="linear-up/log-down")
    # an exponential is what the logarithmic rule integrates exactly: only rounding remains
    np.testing.assert_allclose(
        [result.C0, result.LAMZ, result.AUCIFO, result.CLO, result.VZO], [5, 0.3, 5 / 0.3, 6, 20], rtol=1e-12
    )
    assert result.LAMZNPT == 6
    assert not result.extrapolated
    assert np.isnan([result.CLFO, result.VZFO]).all()


def test_sample_taken_before_a_bolus_changes_nothing():
    times, values = np.array([0.25, 0.5, 1.0, 2.0, 4.0]), np.array([4.0, 3.0, 2.0, 1.0, 0.3])
    before = nca(np.append(0, times), np.append(0, values), 10.0, route="bolus")
    np.testing.assert_equal(before, nca(times, values, 10.0, route="bolus"))


def test_profile_by_mouth_without_time_zero_starts_at_zero():
    later, written = nca(TIMES[1:], VALUES[1:], 1.0), nca(TIMES, np.append(0, VALUES[1:]), 1.0)
    assert (later.AUCLST, later.AUCIFO) == (written.AUCLST, written.AUCIFO)


def test_trailing_zeros_neither_extend_the_area_nor_the_slope():
    short = nca(TIMES, VALUES, 1.0)
    long = nca(np.append(TIMES, [36.0, 48.0]), np.append(VALUES, [0.0, 0.0]), 1.0)
    np.testing.assert_equal(long, short)


def test_slope_of_an_infusion_starts_after_its_end():
    times = np.array([1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0])
    rising = np.array([2.0, 1.9, 1.8])  # a peak during the infusion, by noise
    values = np.append(rising, 3.0 * np.exp(-0.2 * times[3:]))
    result = nca(times, values, 10.0, route="infusion", infusion_duration=3.5)
    assert result.LAMZNPT == 4
    np.testing.assert_allclose(result.LAMZ, 0.2, rtol=1e-12)


def test_longer_stretch_wins_among_equal_fits():
    times = np.arange(1.0, 9.0)
    noise = np.array([0, 0, 1e-4, -1e-4, 1e-4, 0, 0, 0])  # the last three lie exactly on the line, all eight nearly
    result = nca(times, np.exp(-0.5 * times + noise), 1.0, route="bolus")
    assert result.LAMZNPT == 8


def test_no_terminal_slope_gives_nan_and_flags():
    result = nca(np.array([0.0, 1.0, 2.0]), np.array([0.0, 1.0, 2.0]), 5.0)
    assert np.isnan([result.LAMZ, result.LAMZHL, result.AUCIFO, result.CLFO]).all()
    assert (result.LAMZNPT, result.AUCLST, result.extrapolated) == (0, 2.0, True)


def test_time_unit_scales_as_it_should():
    hours, minutes = nca(TIMES, VALUES, 2.0), nca(60 * TIMES, VALUES, 2.0)
    np.testing.assert_allclose(minutes.AUCIFO, 60 * hours.AUCIFO, rtol=1e-12)
    np.testing.assert_allclose(minutes.LAMZHL, 60 * hours.LAMZHL, rtol=1e-12)
    np.testing.assert_allclose(minutes.VZFO, hours.VZFO, rtol=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dose": 0.0}, "dose must be positive"),
        ({"route": "oral"}, "route is"),
        ({"auc": "log"}, "auc is"),
        ({"times": TIMES[::-1]}, "must increase"),
        ({"times": TIMES - 1}, "must increase"),
        ({"values": VALUES[1:]}, "of one length"),
        ({"values": np.where(VALUES > 10, np.nan, VALUES)}, "finite"),
        ({"values": -VALUES}, "not negative"),
        ({"values": 0 * VALUES}, "at least one positive"),
        ({"route": "infusion"}, "positive duration"),
        ({"infusion_duration": 1.0}, "positive duration"),
    ],
)
def test_refuses_what_no_profile_can_be(change, message):
    arguments = {"times": TIMES, "values": VALUES, "dose": 320.0} | change
    with pytest.raises(ValueError, match=message):
        nca(**arguments)
