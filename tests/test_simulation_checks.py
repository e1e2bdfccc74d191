"""Simulation-based checks, on data whose model is known to be right or wrong."""

import numpy as np
import pandas as pd
import pytest

from neuralpk.diagnostics.metrics import calibration
from neuralpk.evaluation.predictive_check import check_frame, corrected
from neuralpk.evaluation.simulated_study import SimulatedStudy, prediction_errors

SUBJECTS, SAMPLES = 200, 1000
CLOCK = np.array([0.5, 1.0, 2.0, 4.0, 8.0, 12.0])
TIMES = np.tile(CLOCK, SUBJECTS)
BINS = np.tile(np.arange(len(CLOCK)), SUBJECTS)
WHO = np.repeat(np.arange(SUBJECTS), len(CLOCK))
DOSES = np.where(np.arange(SUBJECTS) % 2, 100.0, 300.0)[WHO]
PRED = DOSES / 20.0 * np.exp(-0.1 * TIMES)


def simulate(rng, omega=0.3, sigma=0.1, samples=SAMPLES):
    """One compartment after a bolus: log-normal CL around 2 L/h, V 20 L, proportional error, ``[sample, obs]``."""
    clearance = 2.0 * np.exp(omega * rng.standard_normal((samples, SUBJECTS)))[:, WHO]
    line = DOSES / 20.0 * np.exp(-clearance / 20.0 * TIMES)
    return line * (1 + sigma * rng.standard_normal(line.shape))


def study(observed, simulated, who=WHO, limit=-np.inf, seed=0):
    """A study of one endpoint; values below the limit are known as that."""
    below = observed < limit
    records = pd.DataFrame(
        {"ID": who, "DVID": 1, "DV": np.where(below, limit, observed), "PRED": 1.0, "CENS": below.astype(int)}
    )
    return SimulatedStudy.of(records, simulated, np.full(len(observed), limit), seed)


def npde(observed, simulated, who=WHO):
    return study(observed, simulated, who).npde[0]


def check(observed, simulated, limit=-np.inf):
    """The frame of a visual predictive check, a bin for each time."""
    found = study(observed, simulated, limit=limit)
    return check_frame(TIMES, found.values, found.below, BINS)


@pytest.fixture(scope="module")
def right():
    rng = np.random.default_rng(1)
    return simulate(rng, samples=1)[0], simulate(rng)


def test_npde_is_standard_normal_under_the_right_model(right):
    error = npde(*right)
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
    error = npde(observed, simulated)
    assert error.std() > 1 + 5 / np.sqrt(2 * len(error))  # five standard errors


def test_calibration_tells_the_right_model_from_one_that_is_too_sure(right):
    observed, simulated = right
    found = calibration(observed, simulated, npde(observed, simulated))
    # values of a subject hang together: 200 subjects, four standard errors of a share of .9
    assert abs(found.cover90 - 0.9) < 4 * np.sqrt(0.09 / SUBJECTS)
    assert (found.observations, found.npde_sd) == (len(observed), pytest.approx(1.0, abs=0.1))
    narrow = simulate(np.random.default_rng(2), omega=0.15, sigma=0.05)
    sure = calibration(observed, narrow, npde(observed, narrow))
    assert sure.cover90 < 0.75
    assert sure.npde_sd > 1.5
    assert found.crps < sure.crps < found.absolute


def test_npde_detects_a_biased_model(right):
    observed, simulated = right
    assert npde(1.1 * observed, simulated).mean() > 5 / np.sqrt(len(observed))  # five standard errors


def test_npde_keeps_the_order_of_interleaved_subjects(right):
    observed, simulated = right[0][:18], right[1][:, :18]
    shuffled = np.argsort(np.tile(np.arange(6), 3), kind="stable")
    expected = npde(observed, simulated, WHO[:18])
    np.testing.assert_allclose(npde(observed[shuffled], simulated[:, shuffled], WHO[:18][shuffled]), expected[shuffled])


def test_npde_stays_finite_beyond_every_simulation(right):
    observed, simulated = right[0][:6], right[1][:, :6]
    error = npde(np.array([*observed[:5], 1e6]), simulated, WHO[:6])
    # the highest rank of K + 1 = 1001 is P = 1 − 1/(2 (K + 1))
    assert error[5] == pytest.approx(3.2908, abs=1e-4)


def test_npde_of_one_observation_is_its_rank():
    simulated = np.arange(99.0)[:, None]
    for value, expected in ((49.5, 0.0126), (2.2, -1.8119)):  # ranks 50.5 and 3.5 of 100
        found, decorrelated = prediction_errors(np.vstack([[[value]], simulated]))
        assert decorrelated and found[0, 0] == pytest.approx(expected, abs=1e-4)


def test_npde_of_values_that_repeat_each_other_or_never_vary_are_numbers():
    draws = np.random.default_rng(0).normal(size=(300, 1))
    twice = study(np.array([0.3, 0.3]), np.repeat(draws, 2, axis=1), np.array([7, 7]))
    assert np.isfinite(twice.npde).all()
    constant = study(np.array([0.3, 0.0]), np.hstack([draws, np.zeros_like(draws)]), np.array([7, 7]))
    assert constant.rows.tolist() == [0]  # 0 in every study says nothing


def test_npde_with_imputed_values_are_those_of_the_right_model(right):
    observed, simulated = right
    limit = 5.0
    below = observed < limit
    assert 0.3 < below.mean() < 0.6
    found = study(observed, simulated, limit=limit).npde[0]
    assert abs(found.mean()) < 4 / np.sqrt(len(found)) and found.std() == pytest.approx(1.0, abs=0.06)
    kept = npde(observed[~below], simulated[:, ~below], WHO[~below])
    assert kept.mean() > 4 / np.sqrt(len(kept))


def inside(frame):
    """Which observed percentiles lie within their bands, ``[percentile, bin]``."""
    low, seen, high = (
        frame[[f"P{name}_{part}" for name in (5, 50, 95)]].to_numpy().T for part in ("LO90", "OBSERVED", "HI90")
    )
    return (low <= seen) & (seen <= high)


def test_vpc_bands_hold_the_right_model(right):
    frame = check(*right)
    np.testing.assert_array_equal(frame["N"], SUBJECTS)
    np.testing.assert_array_equal(frame["X"], CLOCK)
    # 18 percentiles, about 5 independent ones, each inside with 90 %: below 11 in fewer than one run in 100
    assert inside(frame).sum() >= 11
    assert (frame["P50_LO90"] < frame["P50_MEDIAN"]).all() and (frame["P50_MEDIAN"] < frame["P50_HI90"]).all()


def test_vpc_bands_have_their_level(right):
    _, simulated = right
    found = [np.mean(inside(check(simulated[k], simulated[100:500]))) for k in range(60)]
    # 60 data sets with about 5 independent percentiles each: standard error 0.017
    assert abs(np.mean(found) - 0.9) < 0.06


def test_vpc_bands_leave_the_wrong_model_out(right):
    _, simulated = right
    frame = check(simulate(np.random.default_rng(3), omega=0.6, samples=1)[0], simulated)
    assert (frame["P5_OBSERVED"] < frame["P5_LO90"])[3:].all()


def test_vpc_percentiles_are_those_of_the_values_in_the_bin():
    values = np.tile([1.0, 3.0, 10.0, 30.0], (5, 1))
    frame = check_frame(np.arange(4.0), values, np.zeros(values.shape, bool), np.array([0, 0, 1, 1]))
    for part in ("OBSERVED", "LO90", "MEDIAN", "HI90"):
        np.testing.assert_allclose(frame[f"P50_{part}"], [2.0, 20.0])
    assert frame[["X", "X_LOW", "X_HIGH"]].to_numpy().tolist() == [[0.5, 0.0, 1.0], [2.5, 2.0, 3.0]]


def test_a_vpc_compares_the_share_below_the_limit(right):
    observed, simulated = right
    frame, plain = check(observed, simulated, limit=1.5), check(observed, simulated)
    expected = (observed < 1.5).reshape(SUBJECTS, -1).mean(axis=0)
    assert 0.1 < expected[-1] < 0.9
    np.testing.assert_allclose(frame["BLQ_OBSERVED"], expected)
    assert ((frame["BLQ_LO90"] <= expected) & (expected <= frame["BLQ_HI90"])).all()
    assert np.isnan(frame["P5_OBSERVED"].iloc[-1]) and np.isfinite(frame["P95_OBSERVED"]).all()
    np.testing.assert_allclose(frame["P95_OBSERVED"], plain["P95_OBSERVED"], rtol=0.03)
    assert "BLQ_OBSERVED" not in plain
    wrong = check(observed, 0.5 * simulated, limit=1.5)
    assert wrong["BLQ_LO90"].iloc[-1] > expected[-1]


def test_prediction_correction_removes_the_dose(right):
    values = np.vstack([right[0], right[1]])
    changed = corrected(values, PRED, BINS)
    low, high = changed[0, DOSES == 100], changed[0, DOSES == 300]
    # 600 values a group with a CV of about 60 %: standard error 2.5 % each; uncorrected the ratio is 3
    assert np.mean(high) / np.mean(low) == pytest.approx(1.0, abs=0.14)
    np.testing.assert_allclose(changed[0] / values[0], changed[6] / values[6])
    below = np.zeros(values.shape, bool)
    spread = [
        frame["P95_MEDIAN"] - frame["P5_MEDIAN"]
        for frame in (check_frame(TIMES, one, below, BINS) for one in (changed, values))
    ]
    assert (spread[0] < spread[1]).all()


def test_prediction_correction_by_hand():
    pred = np.array([1.0, 2.0, 4.0])
    found = corrected(np.vstack([3 * pred, np.ones((2, 3))]), pred, np.zeros(3, int))
    np.testing.assert_allclose(found, [[6.0, 6.0, 6.0], [2.0, 1.0, 0.5], [2.0, 1.0, 0.5]])
