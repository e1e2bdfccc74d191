"""What the sweeps know of a one-step method. The steps themselves are taken by the field (`take_step`)."""

from __future__ import annotations

from typing import Any, NamedTuple

from numpy.typing import NDArray

from neuralpk.solve import rodas5p_coefficients, tsit5_coefficients

Array = NDArray[Any]


class Method(NamedTuple):
    """A step from y of size h gives slopes k_i; at its share s the solution is y + h·Σ_i k_i·Σ_p dense_ip·s^(p+1)."""

    dense: Array  # [stage, power]
    overlap: int  # number of slopes, 0 or 1, at the end of a step that are the first of the next


TSIT5 = Method(tsit5_coefficients.DENSE, 1)
RODAS5P = Method(rodas5p_coefficients.DENSE, 0)
