"""Short names of error models, in texts, population files and simulations."""

from __future__ import annotations

from neuralpk.residual_error.base import ResidualError
from neuralpk.residual_error.log_normal import LogNormalError
from neuralpk.residual_error.normal import AdditiveError, CombinedError, ProportionalError
from neuralpk.residual_error.student_t import StudentTError

_SHORT_NAMES: dict[str, type[ResidualError]] = {
    "additive": AdditiveError,
    "proportional": ProportionalError,
    "combined": CombinedError,
    "log_normal": LogNormalError,
    "student": StudentTError,
}
ERROR_NAMES = tuple(_SHORT_NAMES)
"""Short names of error models."""


def error_class(name: str) -> type[ResidualError]:
    """The error model of a short name: ``additive``, ``proportional``, ``combined``, ``log_normal`` or ``student``.

    Raises:
        ValueError: another name.
    """
    if name not in _SHORT_NAMES:
        raise ValueError(f"error is one of {', '.join(_SHORT_NAMES)}; not {name!r}")
    return _SHORT_NAMES[name]
