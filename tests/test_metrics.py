"""Metrics against closed forms and hand calculations."""

import numpy as np
import pytest

from neuralpk.diagnostics.metrics import (
    auc_relative_error,
    coverage,
    crps_ensemble,
    iwres,
    line_rrmse,
    log_rmse,
    shrinkage,
)

GRID = np.linspace(0.0, 24.0, 200)
TRUE = np.stack([5.0 * np.exp(-0.2 * GRID), 50.0 * np.exp(-0.1 * GRID)])


def test_line_rrmse_of_a_proportional_error_is_its_factor():
    np.testing.assert_allclose(line_rrmse(TRUE * np.array([[1.1], [0.8]]), TRUE), [0.1, 0.2], rtol=1e-12)


def test_line_rrmse_by_hand():
    # sqrt((1 + 4) / 2) / sqrt((9 + 16) / 2)
    assert line_rrmse(np.array([[4.0, 2.0]]), np.array([[3.0, 4.0]])) == pytest.approx(np.sqrt(5 / 25))


def test_line_rrmse_refuses_a_zero_line():
    with pytest.raises(ValueError, match="subject at index 1"):
        line_rrmse(TRUE, TRUE * np.array([[1.0], [0.0]]))


def test_auc_relative_error_keeps_its_sign():
    np.testing.assert_allclose(auc_relative_error(GRID, TRUE * np.array([[1.1], [0.8]]), TRUE), [0.1, -0.2], rtol=1e-12)


def test_auc_relative_error_weighs_by_time():
    times = np.array([0.0, 1.0, 4.0])
    # areas 1 + 3 = 4 against (0.5 + 0) + ... = 1 · (1 + 1)/2 + 3 · (1 + 3)/2 = 7
    assert auc_relative_error(times, np.array([[1.0, 1.0, 3.0]]), np.ones((1, 3))) == pytest.approx(7 / 4 - 1)
    each = np.stack([times, 10 * times])
    np.testing.assert_allclose(auc_relative_error(each, np.array([[1.0, 1.0, 3.0]] * 2), np.ones((2, 3))), 0.75)


def test_auc_relative_error_refuses_no_area():
    with pytest.raises(ValueError, match="AUC must be positive"):
        auc_relative_error(GRID, TRUE, 0 * TRUE)


def test_log_rmse_counts_observed_points_only():
    predicted = np.array([[2.0, 2.0, 77.0], [4.0, 0.0, -1.0]])
    observed = np.array([[1.0, 2.0, 0.0], [1.0, 9.0, np.nan]])
    mask = np.array([[True, True, False], [True, True, False]])
    # errors ln 2, 0 and ln 4; the prediction 0 has no logarithm
    assert log_rmse(predicted, observed, mask) == pytest.approx(np.log(2) * np.sqrt(5 / 3))


def test_log_rmse_does_not_depend_on_padding():
    rng = np.random.default_rng(0)
    observed, predicted = rng.lognormal(size=(2, 3, 4))
    mask = np.ones((3, 4), bool)
    wide = [np.pad(array, ((0, 0), (0, 5)), constant_values=fill) for array, fill in ((predicted, -3), (observed, 0))]
    assert log_rmse(*wide, np.pad(mask, ((0, 0), (0, 5)))) == log_rmse(predicted, observed, mask)


def test_log_rmse_refuses_what_has_no_logarithm():
    with pytest.raises(ValueError, match=r"got 0\.0 at \(0, 1\)"):
        log_rmse(np.ones((1, 2)), np.array([[1.0, 0.0]]), np.ones((1, 2), bool))
    with pytest.raises(ValueError, match="no observed point"):
        log_rmse(np.ones((1, 2)), np.ones((1, 2)), np.zeros((1, 2), bool))
    assert np.isnan(log_rmse(np.zeros(2), np.ones(2), np.ones(2, bool)))


def test_coverage_counts_the_mask_with_its_bounds():
    lower, upper = np.zeros((2, 3)), np.ones((2, 3))
    true = np.array([[0.0, 1.0, 2.0], [0.5, -0.1, 0.5]])
    mask = np.array([[True, True, True], [True, True, False]])
    assert coverage(lower, upper, true, mask) == 3 / 5


def test_coverage_of_a_normal_interval():
    draws = np.random.default_rng(0).standard_normal(20000)
    bound = np.full(20000, 1.6449)
    # standard error sqrt(0.9 · 0.1 / 20000) = 0.002
    assert coverage(-bound, bound, draws, np.ones(20000, bool)) == pytest.approx(0.9, abs=0.008)


def test_coverage_refuses_crossed_bounds():
    with pytest.raises(ValueError, match="above upper"):
        coverage(np.ones(2), np.zeros(2), np.zeros(2), np.ones(2, bool))


@pytest.mark.parametrize("fair", [True, False])
def test_crps_equals_the_sum_over_pairs(fair):
    rng = np.random.default_rng(3)
    samples, observed = rng.normal(size=(7, 2, 3)), rng.normal(size=(2, 3))
    pairs = np.abs(samples[:, None] - samples[None]).sum(axis=(0, 1)) / (7 * 6 if fair else 49)
    expected = np.abs(samples - observed).mean(axis=0) - pairs / 2
    np.testing.assert_allclose(crps_ensemble(samples, observed, fair=fair), expected, rtol=1e-12)


def test_fair_crps_estimates_that_of_the_normal_distribution():
    observed = np.full(40000, 0.5)
    samples = np.random.default_rng(4).standard_normal((4, 40000))
    # y (2 Phi(y) - 1) + 2 phi(y) - 1 / sqrt(pi) at y = 0.5 (Gneiting and Raftery 2007, p. 367): 0.331404
    scores = crps_ensemble(samples, observed)
    assert scores.mean() == pytest.approx(0.331404, abs=4 * scores.std() / 200)
    assert crps_ensemble(samples, observed, fair=False).mean() > 0.4


def test_crps_of_one_sample_is_the_absolute_error():
    np.testing.assert_allclose(crps_ensemble(np.array([[3.0]]), np.array([1.0]), fair=False), [2.0])
    with pytest.raises(ValueError, match="at least 2 samples"):
        crps_ensemble(np.array([[3.0]]), np.array([1.0]))


def test_shrinkage_by_hand():
    eta = np.array([[-1.0, 0.0], [1.0, 0.0]])
    np.testing.assert_allclose(shrinkage(eta, np.array([2.0, 0.3])), [1 - np.sqrt(2) / 2, 1.0])


def test_shrinkage_of_fully_determined_effects_is_zero():
    eta = np.random.default_rng(5).normal(0, [0.3, 0.7], size=(50000, 2))
    # relative standard error of a standard deviation: 1 / sqrt(2 n) = 0.003
    np.testing.assert_allclose(shrinkage(eta, np.array([0.3, 0.7])), 0.0, atol=0.013)


def test_shrinkage_refuses_one_subject_and_no_variability():
    with pytest.raises(ValueError, match="at least 2 subjects"):
        shrinkage(np.zeros((1, 2)), np.ones(2))
    with pytest.raises(ValueError, match="omega must be positive"):
        shrinkage(np.zeros((3, 2)), np.array([0.0, 1.0]))


def test_iwres_divides_by_the_sd_and_passes_gaps_on():
    result = iwres(np.array([3.0, np.nan]), np.array([1.0, 1.0]), np.array([0.5, 0.0]))
    np.testing.assert_array_equal(result, [4.0, np.nan])
    with pytest.raises(ValueError, match=r"sd must be positive, got 0\.0 at \(1,\)"):
        iwres(np.ones(2), np.ones(2), np.array([1.0, 0.0]))


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"predicted \(2, 200\), true \(200,\)"):
        line_rrmse(TRUE, TRUE[0])
    with pytest.raises(ValueError, match="one shape"):
        coverage(np.zeros(2), np.ones(3), np.ones(3), np.ones(3, bool))
