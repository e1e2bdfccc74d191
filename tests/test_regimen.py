"""Regimens as text and as dose records."""

import pytest

from neuralpk.cohort import Units
from neuralpk.dosing.regimen import Course, Regimen, parse_regimens

DAYS = Units("d", "g", "g/L")


def records(text, units=None, **given):
    return [(d.time, d.amount, d.duration) for d in Regimen.parse(text, units or Units()).doses(**given)]


def test_a_course_with_infusions():
    assert records("100 mg q12h x 3, infusion 2 h") == [(0, 100, 2), (12, 100, 2), (24, 100, 2)]
    assert Regimen.parse("100 mg q12h x 3").last_interval == (24, 36)
    assert Regimen.parse("100 mg q12h x 2, infusion 2 h").events() == [0, 2, 12, 14]


@pytest.mark.parametrize(
    "text", ["50 bid for 1 d", "50 mg every 12 h x 2", "50mg q12h ×2", "0.05 g q720min x 2", "5e4 ug q0.5d for 1 day"]
)
def test_ways_to_write_the_same(text):
    assert records(text) == [pytest.approx((0, 50, 0)), pytest.approx((12, 50, 0))]


def test_times_and_amounts_in_the_units_of_the_model():
    assert records("500 mg q12h x 2", DAYS) == [(0, 0.5, 0), (0.5, 0.5, 0)]
    assert records("3.6 mg/kg q3wk x 2", Units("d", "mg", "mg/L"), weight=70.0) == [(0, 252, 0), (21, 252, 0)]


def test_a_loading_dose_is_followed_after_the_interval_of_what_follows():
    assert records("1000 mg then 500 mg q12h x 2") == [(0, 1000, 0), (12, 500, 0), (24, 500, 0)]
    assert records("100 mg q8h x 2; 50 mg q12h x 2") == [(0, 100, 0), (8, 100, 0), (16, 50, 0), (28, 50, 0)]
    assert records("100 mg once, then 50 mg at 30 h") == [(0, 100, 0), (30, 50, 0)]


def test_a_steady_state_is_one_record_and_nothing_is_none():
    (dose,) = Regimen.parse("100 mg q8h steady state, infusion 1 h, cmt 2").doses(5.0)
    assert (dose.time, dose.steady_state, dose.interval, dose.duration, dose.compartment) == (5.0, 1, 8.0, 1.0, 2)
    assert len(Regimen.parse("100 mg q8h ss x 3").doses()) == 3
    assert records("none") == records("0 mg q8h x 3") == []
    assert Regimen.parse("100 mg").end is None


def test_several_regimens_in_one_text():
    one, two = parse_regimens("100 mg q12h x 6 | 200 mg q24h x 3")
    assert (one.end, two.end) == (72, 72)
    assert [d.amount for d in one.scaled(2.0).doses()] == [200.0] * 6
    with pytest.raises(ValueError, match="stands twice"):
        parse_regimens(["1 mg", "1 mg"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mg q12h", "does not begin with an amount"),
        ("", "does not begin with an amount"),
        ("100 mg q12h", "how often"),
        ("100 mg x 3", "needs an interval"),
        ("100 mg q12h x 3 daily", "'daily' in .* is not understood"),
        ("100 mg q12h q8h x 3", "interval stands twice"),
        ("100 mg q12h x 3 for 1 d", "says how often twice"),
        ("100 mg q8h bid x 3", "two intervals, q8h and bid"),
        ("100 mg once q12h x 3", "is given once, and q12h"),
        ("100 mg q12 x 6", "'q12 x 6' in .* is not understood"),
        ("100 mg q12h for 30 h", "whole number of intervals"),
        ("100 IU q12h x 3", "in mg; IU cannot be converted"),
        ("100 mg/m2 q12h x 3", "does not begin|per kg or not"),
        ("100 mg q12fortnights x 3", "fortnights cannot be converted"),
        ("100 mg then 50 mg", "when is '50 mg' given"),
        ("100 mg then 50 mg q8h ss", "steady state can only be"),
        ("100 mg q1h x 5000", "at most 1,000"),
    ],
)
def test_what_is_wrong_is_said(text, message):
    with pytest.raises(ValueError, match=message):
        Regimen.parse(text)


def test_amounts_per_kg_need_a_weight_and_courses_need_sense():
    with pytest.raises(ValueError, match="covariate WT"):
        Regimen.parse("1 mg/kg").doses()
    with pytest.raises(ValueError, match="need an interval"):
        Course(1.0, count=2)
    with pytest.raises(ValueError, match="negative"):
        Course(-1.0)
