"""Simulation-based checks, on data whose model is known to be right or wrong."""

import numpy as np
import pytest

from neuralpk.diagnostics.simulation_checks import calibration, npde, prediction_corrected, vpc, vpc_bins

SUBJECTS, SAMPLES = 200, 1000
CLOCK = np.array([0.5, 1.0, 2.0, 4.0, 8.0, 12.0])
TIMES = np.tile(CLOCK, SUBJECTS)
WHO = np.repeat(np.arange(SUBJECTS), len(CLOCK))
DOSES = np.where(np.arange(SUBJECTS) % 2, 100.0, 300.0)[WHO]


def simulate(rng, omega=0.3, sigma=0.1, samples=SAMPLES):
    """One compartment after a bolus: log-normal CL around 2 L/h, V 20 L, proportional error, ``[sample, obs]``."""
    clearance = 2.0 * np.exp(omega * rng.standard_normal((samples, SUBJECTS)))[:, WHO]
    line = DOSES / 20.0 * np.exp(-clearance / 20.0 * TIMES)
    return line * (1 + sigma * rng.standard_normal(line.shape))


PRED = DOSES / 20.0 * np.exp(-0.1 * TIMES)


@pytest.fixture(scope="module")
def right():
    rng = np.random.default_rng(1)
    return simulate(rng, samples=1)[0], simulate(rng)


def test_npde_is_standard_normal_under_the_right_model(right):
    error = npde(*right, WHO)
    n = len(error)
    # four standard errors of mean, sd and correlation of n independent N(0, 1), one test in 16,000 each
    assert abs(error.mean()) < 4 / np.sqrt(n)
    assert abs(error.std() - 1) < 4 / np.sqrt(2 * n)
    table = error.reshape(SUBJECTS, len(CLOCK))
    correlation = np.corrcoef(table.T)[np.triu_indices(len(CLOCK), 1)]
    assert np.abs(correlation).max() < 4 / np.sqrt(SUBJECTS)
    for probability, expected in [(0.1, -1.2816), (0.9, 1.2816)]:
        # standard error of a normal quantile at 10 %: sqrt(p (1 - p)) / density = 1.71 / sqrt(n)
        assert abs(np.quantile(error, probability) - expected) < 4 * 1.71 / np.sqrt(n)


def test_npde_detects_a_variance_twice_too_small(right):
    _, simulated = right
    rng = np.random.default_rng(2)
    observed = simulate(rng, omega=0.3 * np.sqrt(2), sigma=0.1 * np.sqrt(2), samples=1)[0]
    error = npde(observed, simulated, WHO)
    assert error.std() > 1 + 5 / np.sqrt(2 * len(error))  # five standard errors


def test_calibration_tells_the_right_model_from_one_that_is_too_sure(right):
    observed, simulated = right
    found = calibration(observed, simulated, npde(observed, simulated, WHO))
    # values of a subject hang together: 200 subjects, four standard errors of a share of .9
    assert abs(found.cover90 - 0.9) < 4 * np.sqrt(0.09 / SUBJECTS)
    assert (found.observations, found.npde_sd) == (len(observed), pytest.approx(1.0, abs=0.1))
    narrow = simulate(np.random.default_rng(2), omega=0.15, sigma=0.05)
    sure = calibration(observed, narrow, npde(observed, narrow, WHO))
    assert sure.cover90 < 0.75
    assert sure.npde_sd > 1.5
    assert found.crps < sure.crps < found.absolute


def test_npde_detects_a_biased_model(right):
    observed, simulated = right
    assert npde(1.1 * observed, simulated, WHO).mean() > 5 / np.sqrt(len(observed))  # five standard errors


def test_npde_keeps_the_order_of_interleaved_subjects(right):
    observed, simulated = right[0][:18], right[1][:, :18]
    shuffled = np.argsort(np.tile(np.arange(6), 3), kind="stable")
    expected = npde(observed, simulated, WHO[:18])
    np.testing.assert_allclose(npde(observed[shuffled], simulated[:, shuffled], WHO[:18][shuffled]), expected[shuffled])


def test_npde_stays_finite_beyond_every_simulation(right):
    observed, simulated = right[0][:6], right[1][:, :6]
    error = npde(np.array([*observed[:5], 1e6]), simulated, WHO[:6])
    # P = 1 − 1/(2K) with K = 1000
    assert error[5] == pytest.approx(3.2905, abs=1e-4)


def test_npde_of_one_observation_is_its_rank():
    simulated = np.arange(100.0)[:, None]
    assert npde(np.array([49.5]), simulated, np.array(["a"]))[0] == pytest.approx(0.0, abs=1e-12)
    assert npde(np.array([2.2]), simulated, np.array(["a"]))[0] == pytest.approx(-1.88079, abs=1e-5)


@pytest.mark.parametrize(
    ("simulated", "message"),
    [
        (np.ones((50, 2)), "observation 0 are all equal"),
        (np.ones((2, 2)), "simulate many more"),
        (np.ones((50, 3)), "got"),
        (np.full((50, 2), np.nan), "finite"),
        (np.repeat(np.arange(50.0)[:, None], 2, axis=1), "singular"),
    ],
)
def test_npde_refuses_simulations_that_cannot_decorrelate(simulated, message):
    with pytest.raises(ValueError, match=message):
        npde(np.array([1.0, 2.0]), simulated, np.array([7, 7]))


def test_vpc_bands_hold_the_right_model(right):
    observed, simulated = right
    check = vpc(TIMES, observed, simulated, vpc_bins(TIMES))
    assert check.observed.shape == check.lower.shape == (3, 6)
    np.testing.assert_array_equal(check.counts, SUBJECTS)
    np.testing.assert_array_equal(check.centres, CLOCK)
    inside = (check.lower <= check.observed) & (check.observed <= check.upper)
    # 18 quantiles, about 5 independent ones, each inside with 90 %: below 11 in fewer than one run in 100
    assert inside.sum() >= 11
    assert (check.lower < check.median).all() and (check.median < check.upper).all()


def test_vpc_bands_have_their_level(right):
    _, simulated = right
    inside = []
    for k in range(60):
        check = vpc(TIMES, simulated[k], simulated[100:500], vpc_bins(TIMES))
        inside.append(np.mean((check.lower <= check.observed) & (check.observed <= check.upper)))
    # 60 data sets with about 5 independent quantiles each: standard error 0.017
    assert abs(np.mean(inside) - 0.9) < 0.06


def test_vpc_bands_leave_the_wrong_model_out(right):
    _, simulated = right
    observed = simulate(np.random.default_rng(3), omega=0.6, samples=1)[0]
    check = vpc(TIMES, observed, simulated, vpc_bins(TIMES))
    assert (check.observed[0, 3:] < check.lower[0, 3:]).all()


def test_vpc_quantiles_are_those_of_the_values_in_the_bin():
    times, values = np.array([0.0, 1.0, 2.0, 3.0]), np.array([1.0, 3.0, 10.0, 30.0])
    check = vpc(times, values, np.tile(values, (4, 1)), np.array([0.0, 1.5, 3.0]), quantiles=(0.5,))
    for quantile in (check.observed, check.lower, check.median, check.upper):
        np.testing.assert_allclose(quantile, [[2.0, 20.0]])
    np.testing.assert_allclose(check.centres, [0.5, 2.5])


def test_prediction_correction_removes_the_dose(right):
    observed, simulated = right
    bins = vpc_bins(TIMES)
    corrected, draws = prediction_corrected(TIMES, observed, simulated, PRED, bins)
    low, high = corrected[DOSES == 100], corrected[DOSES == 300]
    # 600 values a group with a CV of about 60 %: standard error 2.5 % each; uncorrected the ratio is 3
    assert np.mean(high) / np.mean(low) == pytest.approx(1.0, abs=0.14)
    np.testing.assert_allclose(corrected / observed, draws[5] / simulated[5])
    spread = np.ptp(vpc(TIMES, corrected, draws, bins).median, axis=0)
    assert (spread < np.ptp(vpc(TIMES, observed, simulated, bins).median, axis=0)).all()


def test_prediction_correction_by_hand():
    times, pred = np.array([1.0, 1.0, 1.0]), np.array([1.0, 2.0, 4.0])
    corrected, draws = prediction_corrected(times, 3 * pred, np.ones((2, 3)), pred, np.array([0.0, 2.0]))
    np.testing.assert_allclose(corrected, 6.0)
    np.testing.assert_allclose(draws, [[2.0, 1.0, 0.5]] * 2)


def test_prediction_correction_refuses_zero_predictions():
    with pytest.raises(ValueError, match=r"PRED must be positive .* observation 1"):
        prediction_corrected(np.zeros(2), np.ones(2), np.ones((3, 2)), np.array([1.0, 0.0]), np.array([-1.0, 1.0]))


def test_bins_hold_equally_many_and_none_is_empty():
    times = np.random.default_rng(4).exponential(3.0, 400)
    bins = vpc_bins(times, 8)
    counts, _ = np.histogram(times, bins)
    assert len(counts) == 8
    assert counts.min() >= 49 and counts.max() <= 51


def test_bins_keep_nominal_times_together():
    bins = vpc_bins(TIMES, 8)
    np.testing.assert_allclose(bins, [0.5, 0.75, 1.5, 3, 6, 10, 12])
    lopsided = np.append(np.zeros(90), np.arange(1.0, 11.0))
    assert np.histogram(lopsided, vpc_bins(lopsided, 4))[0].min() > 0


def test_one_time_has_one_bin():
    bins = vpc_bins(np.full(5, 2.0))
    assert vpc(np.full(5, 2.0), np.arange(5.0), np.ones((9, 5)), bins).observed[1] == [2.0]


@pytest.mark.parametrize(
    ("bins", "message"),
    [([0.0, 5.0], "outside"), ([0.0, 0.2, 20.0], "holds no observation"), ([20.0, 0.0], "increase"), ([1.0], "two")],
)
def test_vpc_refuses_bins_that_do_not_fit(right, bins, message):
    with pytest.raises(ValueError, match=message):
        vpc(TIMES, *right, np.array(bins))


def test_bins_refuse_no_times():
    with pytest.raises(ValueError, match="at least one time"):
        vpc_bins(np.array([]))
    with pytest.raises(ValueError, match="at least one bin"):
        vpc_bins(CLOCK, 0)
