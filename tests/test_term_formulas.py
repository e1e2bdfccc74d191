"""A network in a model's text, replaced by a formula."""

import numpy as np
import pytest
import torch

from neuralpk.dynamics import Equations
from neuralpk.symbolic import find_formulas

X = np.linspace(0.0, 6.0, 100)
TEXT = """
parameters: CL = 5, V = 50, KIN = 7, KOUT = 0.1, E0 = 2
central' = -CL/V*central
response' = KIN*(1 - effect) - KOUT*response
response(0) = KIN/KOUT*E0
C = central/V
effect = {}  # learned
outputs: C, response
"""
CURVES = {
    "linear": (lambda x: 0.1 * x, {"SLOPE": 0.1}),
    "Emax": (lambda x: 0.9 * x / (1.2 + x), {"EMAX": 0.9, "EC50": 1.2}),
    "exponential": (lambda x: 0.8 * (1 - np.exp(-x / 2)), {"EMAX": 0.8, "SCALE": 2.0}),
    "logarithm": (lambda x: 0.3 * np.log1p(x / 0.5), {"SLOPE": 0.3, "SCALE": 0.5}),
    "sigmoid Emax": (lambda x: 0.9 * x**3 / (2.0**3 + x**3), {"EMAX": 0.9, "EC50": 2.0, "GAMMA": 3.0}),
}


def model(network):
    return Equations(TEXT.format(network))


@pytest.mark.parametrize("shape", CURVES)
def test_a_curve_is_found_with_its_numbers(shape):
    curve, numbers = CURVES[shape]
    band = 0.01 * np.minimum(1.0, X)  # none at the zero
    y = curve(X)
    best = find_formulas(model("network(C, zero_at=0)"), "effect", X, y, y - band, y + band)[0]
    assert best.shape == shape and best.inside == 1.0 and best.deviation < 1e-4
    assert best.parameters == pytest.approx(numbers, rel=1e-3)
    value = best.equations.term("effect", C=torch.tensor(X), **best.parameters)
    np.testing.assert_allclose(value, y, atol=1e-3)
    assert "# learned" in best.equations.text and not len(best.equations.networks)
    assert shape in str(best) and "effect = " in str(best)


def test_an_amplitude_stays_in_the_range_of_the_network():
    best = find_formulas(
        model("network(C, monotone=increasing, zero_at=0, range=(0, 1))"), "effect", X, 0.9 * X / (1.2 + X)
    )[0]
    assert best.shape == "Emax" and best.equations.ranges == {"EMAX": (0.0, 1.0)}


def test_a_falling_effect_a_baseline_and_names_that_are_taken():
    y = 3.0 - 2.0 * X / (1.5 + X)
    best = find_formulas(model("network(C + KIN)"), "effect", X, y)[0]
    assert best.shape == "Emax" and "effect = E0_effect - EMAX*(C + KIN)/(EC50 + (C + KIN))" in best.line
    assert best.parameters == pytest.approx({"EMAX": 2.0, "EC50": 1.5, "E0_effect": 3.0}, rel=1e-3)
    assert best.equations.ranges["E0_effect"] == (-np.inf, np.inf)


def test_an_input_with_both_signs_and_a_zero_elsewhere():
    x = np.linspace(-3.0, 3.0, 60)
    assert find_formulas(model("network(log(C), zero_at=0)"), "effect", x, np.tanh(x / 0.7))[0].shape == "tanh"
    shifted = find_formulas(model("network(C, zero_at=2)"), "effect", X + 2.0, 0.5 * X / (1.0 + X))[0]
    assert "EMAX*(C - 2)/(EC50 + (C - 2))" in shifted.line


def test_a_formula_takes_the_place_of_the_call_alone():
    within = model("exp(network(max(C, 0), zero_at=0, random=SENS)/2) - 1").with_formula(
        "effect", "SLOPE*{x}", {"SLOPE": 0.5}
    )
    assert "effect = exp((SLOPE*(max(C, 0)))/2) - 1  # learned" in within.text
    assert within.fixed == () and "SENS" not in within.parameter_names
    with pytest.raises(ValueError, match="did you mean 'effect'"):
        within = model("network(C)").with_formula("efect", "SLOPE*{x}", {"SLOPE": 0.5})


def test_what_cannot_become_a_formula_is_refused():
    with pytest.raises(ValueError, match="no network 'effect' of one input; there are none"):
        find_formulas(model("network(C, response)"), "effect", X, X)
    of_one = model("network(C)")
    with pytest.raises(ValueError, match="10 places or more"):
        find_formulas(of_one, "effect", X[:5], X[:5])
    with pytest.raises(ValueError, match="constant"):
        find_formulas(of_one, "effect", X, 0 * X)
