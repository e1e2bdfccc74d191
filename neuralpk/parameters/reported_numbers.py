"""Coordinates: the single numbers of a population that are learned and reported with standard errors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from neuralpk.parameters.distributions import ParameterDistribution

Kind = Literal["typical", "omega", "kappa", "correlation", "effect", "error"]


def identity(x: Tensor) -> Tensor:
    """x itself: the scale of numbers that are reported as they are held."""
    return x


@dataclass(frozen=True, eq=False)
class Coordinate:
    """One learned number of the population.

    Args:
        kind: what it is.
        parameter: the parameter it belongs to; of the residual error its own name.
        tensor: holds it, on the scale on which it is learned.
        index: of the number in the flattened tensor.
        other: the second parameter of a correlation; the covariate of an effect.
        sharing: further parameters of which this omega is the standard deviation too.
        coefficient: name of the number within its effect, where the effect has several; empty otherwise.
        reference: value, or level of a text, of the covariate to which the effect is relative.
        reported: map from the learned to the reported scale: exp of a standard deviation, identity of an exponent. Of a
            correlation `PopulationParameters.correlations`, because it depends on several numbers.
        distribution: of the parameter, where the number is a typical value, an omega or a kappa.
        fixed: whether it keeps its starting value.
    """

    kind: Kind
    parameter: str
    tensor: Tensor
    index: int
    other: str | None = None
    sharing: Sequence[str] = ()
    coefficient: str = ""
    reference: float | str | None = None
    reported: Callable[[Tensor], Tensor] = identity
    distribution: ParameterDistribution | None = None
    fixed: bool = False

    @property
    def name(self) -> str:
        """In tables: CL, omega CL, omega CL=V1 of one that is shared, kappa CL, corr CL~V1, CL~WT, b."""
        if self.is_spread:
            return f"{self.kind} {'='.join([self.parameter, *self.sharing])}"
        if self.kind == "correlation":
            return f"corr {self.parameter}~{self.other}"
        if self.kind == "effect":
            return f"{self.parameter}~{self.other}" + (f".{self.coefficient}" if self.coefficient else "")
        return self.parameter

    @property
    def is_spread(self) -> bool:
        """Whether it is the standard deviation of a random effect."""
        return self.kind in ("omega", "kappa")

    @property
    def moves_prediction(self) -> bool:
        """Whether it shifts theta of the typical subject; the others only change how probable theta and y are."""
        return self.kind in ("typical", "effect")

    @property
    def value_reported(self) -> float:
        """On the reported scale; of a correlation the number that is learned."""
        return float(self.reported(self.tensor.detach().view(-1)[self.index]))

    @property
    def value(self) -> float:
        """On the scale on which it is learned."""
        return float(self.tensor.detach().view(-1)[self.index])
