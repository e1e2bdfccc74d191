"""Values below the limit of quantification in checks by simulation, in figures and in simulated studies."""

import numpy as np
import pytest
from matplotlib import pyplot

from neuralpk import (
    Cohort,
    CompartmentModel,
    LatentTask,
    PopulationParameters,
    ProportionalError,
    SimulatedPKDataModule,
    Subject,
)
from neuralpk.cohort import Units
from neuralpk.cohort_figures import fit_figures, population_figures, simulate_study
from neuralpk.diagnostics.below_quantification import imputed, quantification_limits
from neuralpk.diagnostics.plots import goodness_of_fit
from neuralpk.diagnostics.simulation_checks import npde, vpc
from neuralpk.scaling import Scaling

TIMES = np.array([1.0, 4.0, 12.0])


def study(count: int, seed: int) -> np.ndarray:
    """Values of subjects whose concentration falls with a rate of their own, ``[subject, time]``."""
    random = np.random.default_rng(seed)
    rate = 0.2 * np.exp(0.3 * random.standard_normal((count, 1)))
    return 10 * np.exp(-rate * TIMES) * (1 + 0.1 * random.standard_normal((count, 3)))


def test_the_limit_of_a_value_is_that_of_its_subject() -> None:
    two = Subject("1", [0.0, 1.0, 5.0, 9.0], [4.0, 0.5, 3.0, 0.1], censored=[0, 1, 0, 1])
    frequent = Subject("2", [0.0, 1.0], [0.1, 0.1], censored=[1, 1])
    none = Subject("3", [0.0, 1.0, 2.0], [0.05, np.nan, 7.0])
    other = Subject("4", [0.0], [2.0], endpoints=[2])
    found = quantification_limits(Cohort((two, frequent, none, other)))
    assert found.tolist() == [0.5, 0.5, 0.5, 0.1, 0.1, 0.1, 0.05, 0.1, -np.inf]


def test_npde_with_imputed_values_are_those_of_the_right_model() -> None:
    count, limit = 300, 1.5
    values, simulated = study(count, 1).ravel(), np.stack([study(count, k + 2).ravel() for k in range(800)])
    below, subject = values < limit, np.repeat(np.arange(count), 3)
    assert 0.2 < below.mean() < 0.4
    censored = np.where(below, limit, values)
    limits = np.full(values.shape, limit)
    uniform = np.random.default_rng(0).random((801, len(values)))
    full, drawn = imputed(censored, simulated, below, limits, uniform)
    assert (np.sort(drawn, axis=0) == np.sort(simulated, axis=0)).all() and (
        drawn[:, ~below] != simulated[:, ~below]
    ).any()
    assert (full[below] < limit).all() and (full[~below] == values[~below]).all()
    right = npde(full, drawn, subject)
    assert abs(right.mean()) < 0.08 and right.std() == pytest.approx(1.0, abs=0.06)
    dropped = npde(values[~below], simulated[:, ~below], subject[~below])
    assert dropped.mean() > 0.15
    three = np.array([[3.0], [2.0]])
    lowest, _ = imputed(np.array([1.0]), three, np.array([True]), np.array([1.0]), np.full((3, 1), 0.7))
    assert lowest.tolist() == [2.0]


def test_a_vpc_compares_the_share_below_the_limit() -> None:
    count, limit = 200, 1.0
    values, simulated = study(count, 1).ravel(), np.stack([study(count, k + 2).ravel() for k in range(300)])
    below, limits = values < limit, np.full(values.shape, limit)
    times, bins = np.tile(TIMES, count), np.array([0.0, 2.0, 6.0, 14.0])
    check = vpc(times, np.where(below, limit, values), simulated, bins, below=below, limits=limits)
    assert check.share is not None
    np.testing.assert_allclose(check.share.observed, (values < limit).reshape(count, 3).mean(0))
    assert ((check.share.lower <= check.share.observed) & (check.share.observed <= check.share.upper)).all()
    assert np.isnan(check.observed[0, 2]) and np.isnan(check.median[0, 2]) and np.isfinite(check.observed[:, 0]).all()
    plain = vpc(times, values, simulated, bins)
    assert plain.share is None
    np.testing.assert_allclose(check.observed[1:, :2], plain.observed[1:, :2], rtol=0.03)
    wrong = vpc(times, np.where(below, limit, values), 0.5 * simulated, bins, below=below, limits=limits)
    assert wrong.share is not None and (wrong.share.lower > wrong.share.observed)[2]


def test_a_simulated_study_has_several_limits() -> None:
    cohort = SimulatedPKDataModule(subjects=40, lloq=[0.02, 0.1], seed=1).part("train")
    limits = [{float(value) for value in s.values[s.censored > 0]} for s in cohort]
    assert set().union(*limits[::2]) == {0.02} and set().union(*limits[1::2]) == {0.1}
    assert all((s.values[s.censored == 0] >= (0.02, 0.1)[k % 2]).all() for k, s in enumerate(cohort))
    with pytest.raises(ValueError, match="lloq must be above 0"):
        SimulatedPKDataModule(subjects=2, lloq=[0.1, 0.0]).part("train")


def test_figures_of_a_study_show_limits_as_limits() -> None:
    data = SimulatedPKDataModule(subjects=12, lloq=[0.02, 0.1], seed=1)
    cohort = data.part("train")
    parameters = PopulationParameters({"CL": 4.0, "V1": 20.0, "Q": 6.0, "V2": 50.0}, learned=False)
    task = LatentTask(CompartmentModel(2), parameters, ProportionalError(b=0.1)).build(Scaling.of(cohort))
    (found,) = simulate_study(task, cohort).values()
    assert found.below.any() and (found.observed[found.below] < found.limits[found.below]).all()
    figures = population_figures(task, cohort, {1: found}) | fit_figures(task.residuals(cohort), cohort)
    vpc_axes = figures["vpc"].axes
    assert [axes.get_ylabel() for axes in vpc_axes[1:]] == ["Share below LLOQ"]
    points = next(line for line in vpc_axes[0].lines if line.get_label() == "observation")
    assert len(points.get_xdata()) == (~found.below).sum()
    labels = {line.get_label() for name in figures for axes in figures[name].axes for line in axes.lines}
    assert {"BLQ, imputed", "BLQ, at its limit"} <= labels
    pyplot.close("all")


def test_without_limits_there_is_no_panel_of_shares() -> None:
    value = np.linspace(1.0, 2.0, 5)
    figure = goodness_of_fit(value, value, value, value, value, Units())
    assert "BLQ, at its limit" not in {line.get_label() for axes in figure.axes for line in axes.lines}
