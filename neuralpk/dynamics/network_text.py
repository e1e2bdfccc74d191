"""Options of a network in the text of a model: ``network(C, hidden=8, monotone=increasing, zero_at=0)``."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from neuralpk.part import did_you_mean

if TYPE_CHECKING:
    from neuralpk.dynamics.equation_text import EquationReader
    from neuralpk.dynamics.expression import Token

NETWORK = "network"


@dataclass(frozen=True)
class NetworkOptions:
    """What a text says of a network.

    Args:
        hidden: number of hidden units.
        monotone: ``increasing`` or ``decreasing`` in each input; empty for neither.
        zero_at: value of the first input at which the output is 0; None for none.
        low: lower end of the outputs.
        high: upper end of the outputs.
        prior_sd: standard deviation of the output before data, where every input has its typical size.
        random: the parameter by which the output of each patient is multiplied; None for none.
    """

    hidden: int = 8
    monotone: str = ""
    zero_at: float | None = None
    low: float = -math.inf
    high: float = math.inf
    prior_sd: float = 1.0
    random: Token | None = None

    @property
    def zero_at_end(self) -> bool:
        """Whether 0, which the output has at `zero_at`, is an end of its range."""
        return self.zero_at is not None and 0.0 in (self.low, self.high)


def read_option(line: EquationReader, options: NetworkOptions, seen: set[str]) -> NetworkOptions:
    """The options with the next one, NAME=VALUE.

    Args:
        line: the tokens, at the name.
        options: those read so far.
        seen: their names; the new one is added.

    Raises:
        EquationError: an option that does not exist or is given twice; a value that it cannot have.
    """
    name = line.name("an option")
    if name.text not in _OPTIONS:
        known = list(_OPTIONS)
        raise name.error(
            f"a network has no option {name.text!r}{did_you_mean(name.text, known)}; it has {', '.join(known)}"
        )
    if name.text in seen:
        raise name.error(f"{name.text} is given twice")
    seen.add(name.text)
    line.need("=")
    return replace(options, **_OPTIONS[name.text](line))


def check_together(at: Token, options: NetworkOptions) -> None:
    """Refuse a range that the options cannot have together with a zero.

    Raises:
        EquationError: 0 outside the range; 0 at an end of it that the network need not keep.
    """
    if options.zero_at is None:
        return
    if not options.low <= 0.0 <= options.high:
        raise at.error(f"the output is 0 at zero_at, and 0 is not in the range ({options.low:g}, {options.high:g})")
    needed = "increasing" if options.low == 0.0 else "decreasing"
    if options.zero_at_end and options.monotone != needed:
        raise at.error(f"an output that is 0 at an end of its range is monotone: add monotone={needed}")


def _hidden(line: EquationReader) -> dict[str, Any]:
    at = line.next
    value = line.signed_number()
    if value < 1 or value != int(min(value, 1e9)):
        raise at.error(f"hidden is a whole number of at least 1, not {value:g}")
    return {"hidden": int(value)}


def _monotone(line: EquationReader) -> dict[str, Any]:
    token = line.take("increasing", "decreasing")
    if token is None:
        raise line.next.error("increasing or decreasing is expected here")
    return {"monotone": token.text}


def _zero_at(line: EquationReader) -> dict[str, Any]:
    at = line.next
    value = line.signed_number()
    if not math.isfinite(value):
        raise at.error("zero_at is a finite number")
    return {"zero_at": value}


def _range(line: EquationReader) -> dict[str, Any]:
    at = line.next
    low, high = line.interval(at)
    if not low < high:
        raise at.error(f"the second end of a range is above the first, not ({low:g}, {high:g})")
    return {"low": low, "high": high}


def _prior_sd(line: EquationReader) -> dict[str, Any]:
    at = line.next
    value = line.signed_number()
    if not 0 < value < math.inf:
        raise at.error(f"prior_sd is a finite number above 0, not {value:g}")
    return {"prior_sd": value}


_OPTIONS: dict[str, Callable[[EquationReader], dict[str, Any]]] = {
    "hidden": _hidden,
    "monotone": _monotone,
    "zero_at": _zero_at,
    "range": _range,
    "prior_sd": _prior_sd,
    "random": lambda line: {"random": line.name("a parameter")},
}
