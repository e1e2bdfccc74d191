"""The benchmark of discovery: without a network, the equation is first linearised about a spline of the series."""

from pathlib import Path

import numpy as np
import pytest
from scipy.interpolate import make_smoothing_spline

SCRIPTS = Path(__file__).parent.parent / "scripts"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    import benchmark_ude

    return benchmark_ude


def test_the_known_terms_and_the_slope_of_a_spline_have_the_spline_as_their_solution(script):
    batch = script.simulate(0.05, range(100, 102))
    learned = script.smooth(batch)
    values = batch.value.reshape(2, -1, 2).numpy()
    between = np.linspace(0.0, 3.0, 77)
    expected = [[make_smoothing_spline(script.TIMES, one)(between) for one in series.T] for series in values]
    found = script.line(learned.hybrid, learned.theta, between)
    # an error of the solver grows by exp(1.3·3) on its way
    np.testing.assert_allclose(found, np.transpose(expected, (0, 2, 1)), atol=1e-3)
