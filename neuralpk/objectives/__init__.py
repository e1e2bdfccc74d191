"""Objectives: what a training minimises."""

from neuralpk.objectives.base import Loss, Objective, Step
from neuralpk.objectives.elbo import ELBO
from neuralpk.objectives.marginal_likelihood import MarginalLikelihood
from neuralpk.objectives.path_elbo import PathELBO
from neuralpk.objectives.squared_error import SquaredError

__all__ = ["ELBO", "Loss", "MarginalLikelihood", "Objective", "PathELBO", "SquaredError", "Step"]
