"""Patients who could not be solved: the others have their results, and the command fails."""

from __future__ import annotations

from collections.abc import Sequence

from neuralpk.solve import SolveError


def refuse_unsolved(unsolved: Sequence[str]) -> None:
    """The last word of a command that could not solve some of the patients; the others have theirs.

    Args:
        unsolved: which, and why, a sentence each.

    Raises:
        SolveError: there are some.
    """
    if unsolved:
        raise SolveError(f"{'; '.join(unsolved[:10])}: no estimates (NaN); those of the others are written")
