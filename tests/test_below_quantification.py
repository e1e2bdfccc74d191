"""Values below the limit of quantification in checks by simulation, in figures and in simulated studies."""

from pathlib import Path

import numpy as np
import pytest

from neuralpk import (
    Cohort,
    CompartmentModel,
    LatentTask,
    PopulationParameters,
    ProportionalError,
    SimulatedPKDataModule,
    Subject,
)
from neuralpk.diagnostics.below_quantification import imputed, quantification_limits
from neuralpk.evaluation import evaluate
from neuralpk.saved_model import SavedTask
from neuralpk.scaling import Scaling


def test_the_limit_of_a_value_is_that_of_its_subject() -> None:
    two = Subject("1", [0.0, 1.0, 5.0, 9.0], [4.0, 0.5, 3.0, 0.1], censored=[0, 1, 0, 1])
    frequent = Subject("2", [0.0, 1.0], [0.1, 0.1], censored=[1, 1])
    none = Subject("3", [0.0, 1.0, 2.0], [0.05, np.nan, 7.0])
    other = Subject("4", [0.0], [2.0], endpoints=[2])
    found = quantification_limits(Cohort((two, frequent, none, other)))
    assert found.tolist() == [0.5, 0.5, 0.5, 0.1, 0.1, 0.1, 0.05, 0.1, -np.inf]


def test_a_simulated_study_has_several_limits() -> None:
    cohort = SimulatedPKDataModule(subjects=40, lloq=[0.02, 0.1], seed=1).part("train")
    limits = [{float(value) for value in s.values[s.censored > 0]} for s in cohort]
    assert set().union(*limits[::2]) == {0.02} and set().union(*limits[1::2]) == {0.1}
    assert all((s.values[s.censored == 0] >= (0.02, 0.1)[k % 2]).all() for k, s in enumerate(cohort))
    with pytest.raises(ValueError, match="lloq must be above 0"):
        SimulatedPKDataModule(subjects=2, lloq=[0.1, 0.0]).part("train")


def test_imputed_values_are_simulated_values_below_the_limit() -> None:
    generator = np.random.default_rng(1)
    values, simulated = generator.lognormal(size=200), generator.lognormal(size=(300, 200))
    below, limits = values < 0.8, np.full(200, 0.8)
    full, drawn = imputed(np.where(below, 0.8, values), simulated, below, limits, generator.random((301, 200)))
    assert (np.sort(drawn, axis=0) == np.sort(simulated, axis=0)).all() and (drawn != simulated).any()
    assert (full[below] < 0.8).all() and (full[~below] == values[~below]).all()
    assert all(full[k] in simulated[:, k] for k in np.flatnonzero(below))
    none_so_low = np.array([[3.0], [2.0]])
    lowest, _ = imputed(np.array([1.0]), none_so_low, np.array([True]), np.array([1.0]), np.full((3, 1), 0.7))
    assert lowest.tolist() == [2.0]


def test_figures_of_a_study_show_limits_as_limits() -> None:
    cohort = SimulatedPKDataModule(subjects=12, lloq=[0.02, 0.1], seed=1).part("train")
    parameters = PopulationParameters({"CL": 4.0, "V1": 20.0, "Q": 6.0, "V2": 50.0}, learned=False)
    task = LatentTask(CompartmentModel(2), parameters, ProportionalError(b=0.1)).build(Scaling.of(cohort))
    found = evaluate(SavedTask(Path(), task), cohort, simulations=200, draws=0)
    below = found.records["CENS"] > 0
    assert 0 < below.sum() < len(below)
    panels = {name: found.figure(name).axes for name in ("pcvpc", "npde", "goodness_of_fit")}
    assert [axes.get_ylabel().split() for axes in panels["pcvpc"][1:]] == [["Share", "below", "LLOQ"]]
    points = next(line for line in panels["pcvpc"][0].lines if line.get_label() == "observation")
    assert len(points.get_xdata()) == (~below).sum()
    labels = {line.get_label() for every in panels.values() for axes in every for line in axes.lines}
    assert {"BLQ, imputed", "BLQ, at its limit"} <= labels
