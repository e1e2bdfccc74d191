"""Names of structural models: compartments, route, lag and elimination in one word, or a model of the library."""

from __future__ import annotations

import itertools
import re
from typing import cast

from neuralpk.dynamics.compartments import Absorption, CompartmentModel, Elimination
from neuralpk.dynamics.decoder_base import Decoder
from neuralpk.dynamics.equations import Equations, library
from neuralpk.part import did_you_mean

_SIZES = {"one": 1, "two": 2, "three": 3}
_ROUTES: dict[str, Absorption] = {"bolus": "none", "infusion": "none", "oral": "first_order", "transit": "transit"}
_ELIMINATIONS: tuple[Elimination, ...] = ("michaelis_menten", "time_varying")
_NAME = re.compile(
    rf"({'|'.join(_SIZES)})_compartments?(?:_({'|'.join(_ROUTES)}))?(_lag)?(?:_({'|'.join(_ELIMINATIONS)}))?"
)


def structures() -> list[str]:
    """Names of the structural models: those of compartments, then those of the library of equations.

    ``one_compartment_bolus`` and ``one_compartment_infusion`` are one model: the table says how long a dose lasts.
    """
    endings = [f"_{name}" for name in _ELIMINATIONS]
    parts = itertools.product(_SIZES, _ROUTES, ("", "_lag"), ("", *endings))
    made = [f"{size}_compartment_{route}{lag}{elimination}" for size, route, lag, elimination in parts]
    return [*made, *(name for name in library() if _NAME.fullmatch(name) is None)]


def structure(name: str) -> Decoder:
    """The dynamics of a name, such as ``two_compartment_oral_lag``, ``one_compartment_infusion_michaelis_menten`` or
    ``tmdd_qss``.

    Without a route a dose goes into the central compartment. The parameters are those of `CompartmentModel`, or of the
    text of a model of the library.

    Raises:
        ValueError: no structural model of this name.
    """
    found = _NAME.fullmatch(name)
    if found is not None:
        size, route, lag, other = found.groups()
        absorption, elimination = _ROUTES[route or "bolus"], cast(Elimination, other or "linear")
        where = None if lag is None else "central" if absorption == "none" else "depot"
        return CompartmentModel(_SIZES[size], absorption, elimination, lag=where)
    if name in library():
        return Equations(model=name)
    hint = did_you_mean(name, structures())
    raise ValueError(f"there is no structure {name!r}{hint}; there are {structures_in_words()}")


def structures_in_words() -> str:
    """The names of `structures`, those of compartments by their parts."""
    sizes, routes = (", ".join(names) for names in (_SIZES, _ROUTES))
    others = ", ".join(name for name in library() if _NAME.fullmatch(name) is None)
    return (
        f"SIZE_compartment_ROUTE, then _lag for a lag time and _{' or _'.join(_ELIMINATIONS)} for another elimination "
        f"(SIZE {sizes}; ROUTE {routes}), as in two_compartment_oral; and the library: {others}"
    )
