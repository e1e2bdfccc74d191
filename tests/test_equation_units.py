"""Units in the text of a model: what they are, and equations that do not fit them."""

import re
import warnings
from fractions import Fraction

import pytest

from neuralpk.cohort import Units
from neuralpk.dynamics import EquationError, Equations, FixedParameters, library
from neuralpk.dynamics.expression import Token
from neuralpk.dynamics.units import read_unit, times, written
from neuralpk.scaling import Scaling

TEXT = """
units: t [h], central [mg], response [%]
parameters: KA = 1 [1/h], CL = 5 [L/h] in (0, 20), V = 50 [L], LAG = 0.5 [h], F1 = 0.5
parameters: KIN = 10 [%/h], KOUT = 0.1, IMAX = 0.9 in (0, 1), IC50 = 0.5 [mg/L], G = 2
covariates: WT = 70 [kg], AGE [year]
depot' = -KA*depot
central' = KA*depot - CLi*C
CLi = CL*(WT/70 [kg])^0.75*exp(-0.01 [1/year]*(AGE - 40 [year]))
response' = KIN*(1 - IMAX*hill(C, IC50, G)) - KOUT*response
response(0) = KIN/KOUT
lag(depot) = where(t0 > 1 [h], LAG, 0)
F(depot) = F1
t0 = max(LAG, 0.1 [h])
C = central/V
free = sqrt(C^2 + 4*IC50*C) + abs(-C)
outputs: C, response, free
"""


def read(text):
    return read_unit(Token("unit", f"[{text}]", 1, 1, text))


@pytest.mark.parametrize(
    ("text", "exponents"),
    {
        "mg/L": {"mg": 1, "L": -1},
        "L/h/kg": {"L": 1, "h": -1, "kg": -1},
        "mL/min/1.73m^2": {"mL": 1, "min": -1, "1.73": -1, "m": -2},
        "1/(nM day)": {"nM": -1, "day": -1},
        "1/nM day": {"nM": -1, "day": -1},
        "mg*h/L": {"mg": 1, "h": 1, "L": -1},
        "10^9/L": {"10": 9, "L": -1},
        "m s^-2": {"m": 1, "s": -2},
        "(mg/L)^2": {"mg": 2, "L": -2},
        "%": {"%": 1},
        "µg": {"µg": 1},
        "1": {},
        "mg/mg": {},
    }.items(),
)
def test_a_unit_is_a_product_of_powers(text, exponents):
    unit = read(text)
    assert unit == exponents
    assert read(written(unit)) == unit


def test_a_unit_with_fractions_is_written():
    assert written(times({}, read("mg/(L*h)"), Fraction(1, 2))) == "mg^(1/2)/(L^(1/2)*h^(1/2))"


@pytest.mark.parametrize(
    "text", ["", "mg/", "/h", "mg//L", "(mg", "mg)", "mg^x", "mg^1.5", "mg^999", "m?", "mg-L", "2^", "-"]
)
def test_what_is_no_unit_is_refused(text):
    with pytest.raises(EquationError, match="is no unit"):
        read(text)


def test_units_that_fit_are_those_of_the_model():
    model = Equations(TEXT)
    assert model.units["CL"] == "L/h" and model.units["AGE"] == "year" and model.units["response"] == "%"
    assert "C" not in model.units
    assert FixedParameters(model, {"CL": 4.0}).units == model.units
    # a text without units is not checked
    Equations("parameters: K = 1\nx' = -K*x + 1 + exp(x)\nx(0) = K + K*K\noutputs: x")


@pytest.mark.parametrize(
    ("old", "new", "message", "place"),
    [
        ("C = central/V", "C = central*V", r"mg\^2\*L\^2 \+ mg\^2", (15, 17)),
        ("central [mg]", "central [mg], C [mg/mL]", "C is in mg/mL, and its right side in mg/L", (14, 1)),
        ("KA*depot - CLi*C", "KA*depot - CLi*central", r"central' is in mg/h, and its right side in mg\*L/h", (7, 1)),
        ("KA*depot - CLi*C", "KA*depot - C", "right side in mg/L", (7, 1)),
        ("IC50 = 0.5 [mg/L]", "IC50 = 0.5 [g/L]", r"mg\^2/L\^2 \+ g\*mg/L\^2", (15, 17)),
        ("/70 [kg]", "/70", r"right side in kg\^\(3/4\)\*mg/h", (7, 1)),
        ("(AGE - 40 [year])", "(AGE - 40)", "year - no unit", (8, 52)),
        ("-0.01 [1/year]", "-0.01", "argument of exp has no unit, and this one is in year", (8, 28)),
        ("1 [h], LAG", "1, LAG", "h > no unit", (11, 23)),
        ("LAG, 0)", "LAG, V)", "h where L", (11, 14)),
        ("response(0) = KIN/KOUT", "response(0) = KIN", r"response\(0\) is in %, and its right side in %/h", (10, 15)),
        ("hill(C, IC50, G)", "hill(C, IC50, G + V)", "exponent of hill has no unit, and this one is in L", (9, 27)),
        ("C^2", "C^3", r"mg\^3/L\^3 \+ mg\^2/L\^2", (15, 17)),
        ("C^2", "2^C", "exponent of \\^ has no unit", (15, 14)),
        ("t [h]", "t [day]", "depot' is in", (6, 1)),
        ("t [h]", "tt [h]", "no state or variable 'tt'", (2, 8)),
        ("t [h]", "t", "unit of t, such as", (2, 9)),
        ("t [h]", "t [h], V [L]", "unit of V is given already, in line 2", (3, 59)),
        ("[L/h]", "[L/]", r"\[L/\] is no unit", (3, 34)),
        ("[L/h]", "[L/h", r"the character '\['", (3, 34)),
    ],
)  # fmt: skip
def test_equations_that_do_not_fit_are_named_with_their_place(old, new, message, place):
    changed = TEXT.replace(old, new)
    assert changed != TEXT
    with pytest.raises(EquationError, match=message) as mistake:
        Equations(changed)
    assert (mistake.value.line, mistake.value.column) == place


def test_a_power_of_a_parameter_may_have_any_unit():
    lines = "units: t [h]\nparameters: K = 1 [1/h], C50 = 2 [mg/L], G = 1.5\nx' = -K*x\ne = {}\nx(0) = C50\noutputs: e"
    Equations(lines.format("x^G/(C50^G + x^G)"))
    with pytest.raises(EquationError, match="exponent"):
        Equations(lines.format("x^K/C50^G"))


def test_a_unit_behind_a_number_is_enough_to_check():
    with pytest.raises(EquationError, match=r"x\(0\) is in h\*mg, and its right side in mg") as mistake:
        Equations("x' = -0.1 [1/h]*x + 2 [mg]\nx(0) = 3 [mg]\noutputs: x")
    assert mistake.value.line == 2


@pytest.mark.parametrize("name", library())
def test_the_units_of_the_library_hold_its_equations_together(name):
    """No unit of a parameter could be another one: each is asked for by an equation."""
    text = Equations(model=name).text
    for unit in re.finditer(r"(\w+) = \S+ \[([^\]]+)\]", text):
        if unit.group(1) == "TD":  # inside a power of a parameter, which may have any unit
            continue
        with pytest.raises(EquationError):
            Equations(f"{text[: unit.start(2)]}({unit.group(2)})*K{text[unit.end(2) :]}")


def test_most_of_the_library_has_units():
    assert sum("t" in Equations(model=name).units for name in library()) >= 25


def test_data_in_another_unit_of_time_are_noticed():
    model = Equations(model="one_compartment")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.build(Scaling())
    with pytest.warns(UserWarning, match="time in h and the data in day"):
        model.build(Scaling(units=Units(time="day")))
