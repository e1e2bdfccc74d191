"""Estimation of the population: the maximum of the marginal likelihood, found by Newton's method on held draws."""

from neuralpk.estimation.estimator import PopulationEstimator
from neuralpk.estimation.exact_likelihood import log_likelihood
from neuralpk.estimation.fit_status import FitStatus
from neuralpk.estimation.held_draws import HeldDraws, PosteriorDraws
from neuralpk.estimation.idle_optimizer import MovedByEstimator
from neuralpk.estimation.network_estimator import NetworkEstimator
from neuralpk.estimation.posterior_centres import Gather
from neuralpk.estimation.standard_errors import PopulationEstimate, standard_errors

__all__ = [
    "FitStatus",
    "Gather",
    "HeldDraws",
    "MovedByEstimator",
    "NetworkEstimator",
    "PopulationEstimate",
    "PopulationEstimator",
    "PosteriorDraws",
    "log_likelihood",
    "standard_errors",
]
