"""Residual error: the distribution of an observed value around the prediction."""

from neuralpk.residual_error.assay import Assay, assays_read, censored_below_lloq, outputs_read, stated_error
from neuralpk.residual_error.base import ErrorNumber, ResidualError
from neuralpk.residual_error.by_endpoint import ErrorByEndpoint
from neuralpk.residual_error.log_normal import LogNormalError
from neuralpk.residual_error.normal import AdditiveError, CombinedError, NormalError, ProportionalError
from neuralpk.residual_error.short_names import ERROR_NAMES, error_class
from neuralpk.residual_error.student_t import StudentTError

__all__ = [
    "ERROR_NAMES",
    "AdditiveError",
    "Assay",
    "CombinedError",
    "ErrorByEndpoint",
    "ErrorNumber",
    "LogNormalError",
    "NormalError",
    "ProportionalError",
    "ResidualError",
    "StudentTError",
    "assays_read",
    "censored_below_lloq",
    "error_class",
    "outputs_read",
    "stated_error",
]
