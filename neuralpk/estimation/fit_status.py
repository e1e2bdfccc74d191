"""How the search for the maximum of the likelihood ended."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

_POOR = 20.0  # effective draws; with fewer a subject is named


@dataclass(frozen=True)
class FitStatus:
    """How the search for the maximum of the likelihood ended.

    Args:
        converged: whether the Monte-Carlo error of the estimate is small: less than 0.003 of −2LL after
            three steps, 0.2 after eight, with a network or where `remark` names it 0.5.
        reason: why it has not converged; empty otherwise.
        iterations: outer steps.
        gain: in −2LL, how much likelier the maximum is: the Monte-Carlo error, or where it has not converged, what the
            quadratic approximation promises for another step, score·information⁻¹·score.
        bounds: names of the numbers at a bound, where the likelihood is largest: omegas at 0, typical values of
            logit-normal parameters at an end of their range.
        undetermined: names of the numbers that the data do not determine.
        draws: of each subject in the last step.
        smallest_effective: smallest effective number of draws of a subject.
        subject: of which subject.
        remark: on the starting values, and on an end at the Monte-Carlo error; empty for none.
    """

    converged: bool
    reason: str = ""
    iterations: int = 0
    gain: float = math.nan
    bounds: tuple[str, ...] = ()
    undetermined: tuple[str, ...] = ()
    draws: int = 0
    smallest_effective: float = math.nan
    subject: str = ""
    remark: str = ""

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> FitStatus:
        """From the dictionary of `plain`."""
        values: dict[str, Any] = {n: tuple(value) if isinstance(value, list) else value for n, value in plain.items()}
        return cls(**values)

    def plain(self) -> dict[str, Any]:
        """As a dictionary of plain values."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @property
    def word(self) -> str:
        """For a column of a table."""
        return "converged" if self.converged else "not converged"

    @property
    def sentence(self) -> str:
        """For a report."""
        steps = f"{self.iterations} iterations"
        gain = "" if math.isnan(self.gain) else f", {self.gain:.2g} of -2LL still to be gained"
        text = f"converged in {steps}{gain}" if self.converged else f"not converged after {steps}{gain}: {self.reason}"
        if self.bounds:
            text += f"; {', '.join(self.bounds)} at a bound, where the likelihood is largest"
        if self.smallest_effective < math.inf:
            text += f"; fewest effective draws {self.smallest_effective:.0f} of {self.draws}"
            text += f" (subject {self.subject})" if self.subject else ""
        if self.smallest_effective < _POOR:
            text += ", too few for a sure result"
        return f"{text}; {self.remark}" if self.remark else text
