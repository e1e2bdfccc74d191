"""Estimation of the population: the maximum of the marginal likelihood, found by Newton's method on held draws."""

from neuralpk.estimation.estimator import Gather, PopulationEstimator
from neuralpk.estimation.fit_status import FitStatus
from neuralpk.estimation.held_draws import HeldDraws
from neuralpk.estimation.idle_optimizer import MovedByEstimator
from neuralpk.estimation.standard_errors import PopulationEstimate, log_likelihood, standard_errors

__all__ = [
    "FitStatus",
    "Gather",
    "HeldDraws",
    "MovedByEstimator",
    "PopulationEstimate",
    "PopulationEstimator",
    "log_likelihood",
    "standard_errors",
]
