"""First and second derivatives by central differences."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


def differences(
    function: Callable[..., Tensor], size: int, step: float, second: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """The value of a function and its derivatives in some numbers.

    Args:
        function: its value after steps, each a pair of the position of a number and of how far it goes.
        size: how many numbers.
        step: of a difference.
        second: whether the second derivatives are asked for; otherwise those in two numbers are 0.

    Returns:
        ``[...]``, ``[number, ...]`` and ``[number, number, ...]``.
    """
    value = function()
    slopes, curvatures = value.new_zeros((size, *value.shape)), value.new_zeros((size, size, *value.shape))
    ends = [(function((k, step)), function((k, -step))) for k in range(size)]
    for k, (above, below) in enumerate(ends):
        slopes[k] = (above - below) / (2 * step)
        curvatures[k, k] = (above - 2 * value + below) / step**2
        for m in range(k if second else 0):
            both = function((k, step), (m, step)) + function((k, -step), (m, -step))
            alone = above + below + ends[m][0] + ends[m][1]
            curvatures[k, m] = curvatures[m, k] = (both - alone + 2 * value) / (2 * step**2)
    return value, slopes, curvatures
