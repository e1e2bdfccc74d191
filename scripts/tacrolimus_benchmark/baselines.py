"""Estimators that learn from patients with their true AUC: a formula, and regressions of scikit-learn."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from neuralpk.cohort import Cohort, FloatArray
from tacrolimus_benchmark.estimate import Estimate
from tacrolimus_benchmark.simulation import INTERVAL, areas, intervals, true_lines


def inputs(people: Cohort) -> FloatArray:
    """Inputs of a regression: logarithms of the samples and of the dose, formulation and CYP3A5."""
    samples = np.log(np.stack([s.values for s in people]).clip(min=0.1))
    known = [[math.log(s.covariates["DOSE"]), s.covariates["P"], s.covariates["CYP"]] for s in people]
    return np.hstack([samples, known])


def by_formula(train: Cohort, test: Cohort) -> Estimate:
    """Limited sampling: for each formulation an AUC that is linear in the samples, dose and CYP3A5, by least squares
    of the relative error."""
    known, area = areas(true_lines(train), train), np.empty(len(test))
    told, asked = (
        np.stack([[1.0, *s.values, s.covariates["DOSE"] / 1000, s.covariates["CYP"]] for s in people])
        for people in (train, test)
    )
    for interval in INTERVAL.values():
        own, new = intervals(train) == interval, intervals(test) == interval
        weighted = told[own] / known[own, None]
        area[new] = asked[new] @ np.linalg.lstsq(weighted, np.ones(len(weighted)), rcond=None)[0]
    return Estimate(area)


def by_regression(make: Callable[[], Any], train: Cohort, test: Cohort) -> Estimate:
    """A regression of scikit-learn, on logarithms."""
    learner = make().fit(inputs(train), np.log(areas(true_lines(train), train)))
    return Estimate(np.exp(learner.predict(inputs(test))))


def regressors(seed: int) -> dict[str, Callable[[], Any]]:
    """Regressions of scikit-learn by name; none if it is not installed."""
    if importlib.util.find_spec("sklearn") is None:
        return {}
    from sklearn.ensemble import GradientBoostingRegressor
    from sklearn.neural_network import MLPRegressor
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def boosting() -> Any:
        return GradientBoostingRegressor(
            n_estimators=300, learning_rate=0.05, max_depth=3, subsample=0.7, random_state=seed
        )

    def perceptron() -> Any:
        network = MLPRegressor(
            hidden_layer_sizes=(32, 32), alpha=0.1, max_iter=2000, early_stopping=True, random_state=seed
        )
        return make_pipeline(StandardScaler(), network)

    return {"gradient boosting": boosting, "MLP": perceptron}
