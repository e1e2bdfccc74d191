"""What the sweeps ask of a vector field.

A kind of field has a named tuple of arrays, a named tuple of working memory, and its own version of each function here,
which the compiler chooses by the type of the arrays (`answer`). Lanes 0 to `LANES` − 1 of the working memory hold the
subjects of the lanes; those after them hold subjects that are gathered from some lanes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba.extending import overload

from neuralpk.solve.compiled.steps.jit_options import ONLY_CALLED


def put_in(field, work, lane, row):
    """Put the subject and period of a row of the arrays into a lane."""
    raise NotImplementedError


def find_slopes(field, work, first, rows, states, entering, out):
    """Write dy/dt + `entering` at `states` ``[state, lane]`` to `out`, for `rows` lanes from lane `first` on."""
    raise NotImplementedError


def take_step(field, work, lanes, rtol, atol):
    """Slopes and states of all stages of the lanes' steps but the first slope, and `lanes.verdict` on them."""
    raise NotImplementedError


def pull_step(field, work, lanes, ending, gradients):
    """Gradients of the lanes' steps, from those of their slopes and of the states at their ends.

    It computes `lanes.start_pull` and adds to `lanes.pulls`, to `lanes.to_size` and to the gradients of the arrays of
    the field. The last slope counts only for the `ending` lanes in `lanes.ends`; `lanes.gathered` holds its gradient.
    """
    raise NotImplementedError


def answer(question: Callable[..., Any], choose: Callable[..., Any]) -> None:
    """Let the compiler take what `choose` returns for the types of the arguments, where that is not None."""
    overload(question, jit_options={"nogil": True, "error_model": "numpy", **ONLY_CALLED})(choose)


def is_kind(field: Any, arrays: type) -> bool:
    """Whether the type of a field's arrays is this named tuple."""
    return getattr(field, "instance_class", None) is arrays
