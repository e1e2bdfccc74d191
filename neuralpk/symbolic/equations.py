"""Equations that were found, with the uncertainty of their coefficients."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from neuralpk.symbolic.term_dynamics import TermDynamics


@dataclass(frozen=True)
class Equations:
    """The equations of one series: mechanism plus terms, refitted through the solver.

    Args:
        dynamics: mechanism plus library, a `TermDynamics` without a correction.
        theta: its parameters, ``[parameter]``; 0 for every term that was not chosen.
        free: names of the parameters that were estimated, the chosen coefficients first.
        covariance: of their estimates, ``[direction, direction]``.
        residual_sd: standard deviation of a measurement, as a share of the mean of its endpoint.
        score: extended Bayesian information criterion; smaller is better.
        lead: by how much the next best set of terms is worse, by the same criterion.
    """

    dynamics: TermDynamics
    theta: Tensor
    free: tuple[str, ...]
    covariance: Tensor
    residual_sd: float
    score: float
    lead: float

    @property
    def estimates(self) -> dict[str, tuple[float, float]]:
        """Estimate and standard error of every parameter that was free, by name."""
        sd = self.covariance.diagonal().clamp(min=0.0).sqrt().tolist()
        names = self.dynamics.parameter_names
        return {name: (float(self.theta[names.index(name)]), s) for name, s in zip(self.free, sd, strict=True)}

    @property
    def terms(self) -> dict[str, tuple[str, ...]]:
        """The chosen terms of each state."""
        chosen = [name.split(": ") for name in self.free if ": " in name]
        return {state: tuple(term for s, term in chosen if s == state) for state in self.dynamics.states}

    def text(self, known: tuple[str, ...] | None = None) -> str:
        """The equations, a line each, coefficients with their standard error in units of the last digit.

        Args:
            known: how the mechanism of each state is written; default ``mechanism``.
        """
        lines = []
        for k, (state, symbol) in enumerate(zip(self.dynamics.states, self.dynamics.library.symbols, strict=True)):
            line = f"d{symbol}/dt = {'mechanism' if known is None else known[k]}"
            for term in self.terms[state]:
                value, sd = self.estimates[f"{state}: {term}"]
                factor = "" if term == "1" else f"·{term}"
                line += f" {'−' if value < 0 else '+'} {with_error(abs(value), sd)}{factor}"
            lines.append(line)
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.text()


def with_error(value: float, sd: float) -> str:
    """A positive number with two digits of its standard error in brackets: 0.898(12)."""
    if not (0 < sd < math.inf):
        return f"{value:.4g}"
    digits = max(0, 1 - math.floor(math.log10(sd)))
    error = round(sd * 10**digits) if digits else round(sd)
    return f"{value:.{digits}f}({error})"
