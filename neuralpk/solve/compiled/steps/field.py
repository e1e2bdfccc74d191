"""What the sweeps ask of a vector field.

A kind of field has a named tuple of arrays, a named tuple of working memory, and its own version of each function
here, which the compiler chooses by the type of the arrays (`implement`). Lanes 0 to `LANES` − 1 of the working memory
hold the subjects of the lanes; those after them hold subjects that are gathered from some lanes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba.extending import overload

from neuralpk.solve.compiled.steps.jit_options import ALLOCATING, ONLY_CALLED


def make_work(field, states, back):
    """Working memory for steps and, if `back`, for their gradients."""
    raise NotImplementedError


def put_in(field, work, lane, row):
    """Put the subject and period of a row of the arrays into a lane."""
    raise NotImplementedError


def find_slopes(field, work, first, rows, states, entering, out):
    """Write dy/dt + `entering` at `states` ``[state, lane]`` to `out`, for `rows` lanes from lane `first` on."""
    raise NotImplementedError


def take_step(field, work, lanes, rtol, atol):
    """Slopes and states of all stages of the lanes' steps but the first slope, and `lanes.verdict` on them."""
    raise NotImplementedError


def keeps_slopes(field):
    """Whether the slopes of every accepted step are stored. Where a field costs little, they take longer to store and
    to read than to compute again (`retrace`)."""
    raise NotImplementedError


def retrace(field, work, lanes):
    """Slopes and states of all stages of the lanes' steps, from their starts and sizes, where they were not stored."""
    raise NotImplementedError


def pull_step(field, work, lanes, ending, gradients):
    """Gradients of the lanes' steps, from those of their slopes and of the states at their ends.

    It computes `lanes.start_pull` and adds to `lanes.pulls`, to `lanes.to_size` and to the gradients of the arrays of
    the field, or keeps these for `collect`. The last slope counts only for the `ending` lanes in `lanes.ends`;
    `lanes.gathered` holds its gradient.
    """
    raise NotImplementedError


def collect(field, work, lane, gradients):
    """Add what the steps of a lane since `put_in` have given to the gradients of the arrays of the field, where
    `pull_step` has left it in the working memory."""
    raise NotImplementedError


def _stores_slopes(field):
    return True


def _traces_nothing(field, work, lanes):
    pass


def _has_collected(field, work, lane, gradients):
    pass


# of a field that stores the slopes of its steps, and of which `pull_step` adds to the gradients itself
_USUAL = {"keeps_slopes": _stores_slopes, "retrace": _traces_nothing, "collect": _has_collected}


def implement(arrays: type, **answers: Callable[..., Any]) -> None:
    """Give a kind of field its versions of the functions above.

    Args:
        arrays: the named tuple of this kind.
        answers: by the name of the function; plain functions of the same arguments. Without `keeps_slopes`, `retrace`
            and `collect` the slopes are stored, and `pull_step` adds to all gradients itself.
    """
    for name, answer in (_USUAL | answers).items():

        def choose(field: Any, *_: Any, answer: Any = answer) -> Any:
            return answer if getattr(field, "instance_class", None) is arrays else None

        options = {"nogil": True, "error_model": "numpy", **(ALLOCATING if name == "make_work" else ONLY_CALLED)}
        overload(globals()[name], jit_options=options, strict=False)(choose)
