"""Covariate effects: shifts of a parameter by covariates such as body weight, each relative to a reference value."""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from neuralpk.part import Part
from neuralpk.scaling import Scaling


class CovariateEffect(Part, nn.Module, ABC):
    """Effect of covariates on one parameter, as a shift on the scale of h (`ParameterDistribution`).

    A new effect is a subclass whose constructor makes the learned numbers (``nn.Parameter``) and whose `forward` is the
    shift. Numbers with the name of an argument of the constructor can be exported (`fitted`).

    Args:
        covariates: names of the covariates that it reads.
    """

    def __init__(self, covariates: Sequence[str]) -> None:
        super().__init__()
        self.covariates = tuple(covariates)

    def build(self, scaling: Scaling) -> None:
        """Fill in from the training data the values that were left out, such as a reference. Nothing by default.

        Args:
            scaling: magnitudes of the training data.
        """

    @abstractmethod
    def forward(self, covariates: Tensor) -> Tensor:
        """The shift, ``[...]``, of recorded covariates in the order of `covariates`, ``[..., covariate]``."""

    def coefficients(self) -> dict[str, nn.Parameter]:
        """The learned numbers that are reported with a standard error, by name: by default all parameters of one
        element."""
        return {name: tensor for name, tensor in self.named_parameters() if tensor.numel() == 1}

    def reported(self, name: str, value: Tensor) -> Tensor:
        """A coefficient on the scale on which it is reported, from that on which it is learned; by default the same."""
        return value

    def references(self) -> dict[str, float]:
        """Reference values by covariate: where the shift is 0. Empty where there is none."""
        return {}

    def fault(self, value: float) -> str | None:
        """Fault of a covariate value, in words; None for a value that this effect can read."""
        return None

    def fitted(self) -> CovariateEffect:
        """The same effect with its present numbers as arguments of its constructor.

        Raises:
            ValueError: learned numbers that the constructor does not take.
        """
        learned: dict[str, Tensor] = dict(self.named_parameters())
        unnamed = [name for name, tensor in learned.items() if name not in _arguments(self) or tensor.numel() > 1]
        if unnamed:
            raise ValueError(
                f"{type(self).__name__} of {', '.join(self.covariates)} cannot be written out as plain numbers: its "
                f"constructor takes no {', '.join(unnamed)}"
            )
        held = learned | dict(self.named_buffers())
        values: dict[str, Any] = {name: number(tensor) for name, tensor in held.items() if name in _arguments(self)}
        return type(self)(**(dict(self.arguments) | values))


def _arguments(effect: CovariateEffect) -> list[str]:
    return list(inspect.signature(type(effect).__init__).parameters)


def number(tensor: Tensor) -> float:
    """The shortest decimal number that is this tensor of one element in its precision: 71.65 and not 71.6500015."""
    return float(str(tensor.detach().cpu().numpy().reshape(())[()]))


class _OneCovariate(CovariateEffect):
    """An effect of one covariate with one coefficient and, where it has one, a reference value."""

    reference: Tensor
    _coefficient: str

    def __init__(self, covariate: str, value: float | None, fixed: bool) -> None:
        super().__init__([covariate])
        self.covariate, self.fixed = covariate, fixed
        name, said = self._coefficient, self._coefficient.removeprefix("scaled_")
        if fixed and value is None:
            raise ValueError(f"{type(self).__name__} of {covariate}: fixed needs a value of {said}")
        if value is not None and not math.isfinite(value):
            raise ValueError(f"{type(self).__name__} of {covariate}: {said} must be a finite number, not {value}")
        # in double precision until the population is built, so that its value is not rounded
        start = torch.tensor(value or 0.0, dtype=torch.float64)
        if fixed:
            self.register_buffer(name, start)
        else:
            self.register_parameter(name, nn.Parameter(start))

    def _hold_reference(self, value: float | None) -> None:
        held = torch.tensor(math.nan if value is None else value, dtype=torch.float64)
        self.register_buffer("reference", held)
        self.from_data = value is None

    def references(self) -> dict[str, float]:
        return {self.covariate: number(self.reference)}


class PowerEffect(_OneCovariate):
    """Power of a positive covariate relative to its reference; of a log-normal parameter::

        theta = typical · (c / reference)^exponent        shift = exponent · log(c / reference)

    Args:
        covariate: its name.
        reference: in the unit of the covariate; None for the median of the training data.
        exponent: starting value; None for 0.
        fixed: whether the exponent stays, as in allometry (0.75 of clearances, 1 of volumes).

    Raises:
        ValueError: a reference that is not positive; `fixed` without an exponent.
    """

    exponent: Tensor
    _coefficient = "exponent"

    def __init__(
        self, covariate: str, reference: float | None = None, exponent: float | None = None, fixed: bool = False
    ) -> None:
        super().__init__(covariate, exponent, fixed)
        if reference is not None and not 0 < reference < math.inf:
            raise ValueError(f"PowerEffect of {covariate}: reference must be above 0, not {reference}")
        self._hold_reference(reference)

    def build(self, scaling: Scaling) -> None:
        scale = scaling.covariate(self.covariate)
        if not scale.positive:
            raise ValueError(
                f"PowerEffect of {self.covariate}: the covariate must be above 0 in all training subjects; use a "
                "FactorEffect for one that is 0 or 1, else a LinearEffect"
            )
        if self.from_data:
            self.reference.fill_(scale.centre)

    def forward(self, covariates: Tensor) -> Tensor:
        return self.exponent * torch.log(covariates[..., 0] / self.reference)

    def fault(self, value: float) -> str | None:
        if value > 0:
            return None
        return f"it must be positive to enter as ({self.covariate}/{number(self.reference):g})"


class FactorEffect(_OneCovariate):
    """Factor of a covariate that is 0 or 1; of a log-normal parameter::

        theta = typical · exp(log_factor · c)        shift = log_factor · c

    Args:
        covariate: its name; subjects with 0 are the reference.
        log_factor: logarithm of the factor of subjects with 1, starting value; None for 0.
        fixed: whether it stays.

    Raises:
        ValueError: `fixed` without a log_factor.
    """

    log_factor: Tensor
    _coefficient = "log_factor"

    def __init__(self, covariate: str, log_factor: float | None = None, fixed: bool = False) -> None:
        super().__init__(covariate, log_factor, fixed)

    def references(self) -> dict[str, float]:
        return {self.covariate: 0.0}

    def forward(self, covariates: Tensor) -> Tensor:
        return self.log_factor * covariates[..., 0]

    def fault(self, value: float) -> str | None:
        return None if value in (0, 1) else "without a reference a covariate is 0 or 1"


class LinearEffect(_OneCovariate):
    """Linear effect of a covariate that may be zero or negative; of a log-normal parameter::

        theta = typical · exp(slope · (c − reference))        shift = slope · (c − reference)

    Args:
        covariate: its name.
        reference: in the unit of the covariate; None for the mean of the training data.
        slope: per unit of the covariate, starting value; None for 0.
        fixed: whether the slope stays.

    Raises:
        ValueError: `fixed` without a slope.
    """

    scaled_slope: Tensor
    spread: Tensor
    _coefficient = "scaled_slope"

    def __init__(
        self, covariate: str, reference: float | None = None, slope: float | None = None, fixed: bool = False
    ) -> None:
        super().__init__(covariate, slope, fixed)
        if reference is not None and not math.isfinite(reference):
            raise ValueError(f"LinearEffect of {covariate}: reference must be a finite number, not {reference}")
        self._hold_reference(reference)
        # one unit of the covariate may be little or much: the slope is learned per standard deviation
        self.register_buffer("spread", torch.ones((), dtype=torch.float64))

    def build(self, scaling: Scaling) -> None:
        scale = scaling.covariate(self.covariate)
        if self.from_data:
            self.reference.fill_(scale.centre if scale.mean is None else scale.mean)
        spread = scale.spread * (
            scale.centre if scale.positive else 1.0
        )  # of a positive one it is that of the logarithm
        self.scaled_slope.data.mul_(spread / self.spread)
        self.spread.fill_(spread)

    def forward(self, covariates: Tensor) -> Tensor:
        return self.scaled_slope * ((covariates[..., 0] - self.reference) / self.spread)

    def coefficients(self) -> dict[str, nn.Parameter]:
        learned = super().coefficients()
        return {"slope": learned[self._coefficient]} if learned else {}

    def reported(self, name: str, value: Tensor) -> Tensor:
        return value / self.spread

    def fitted(self) -> CovariateEffect:
        slope = number(self.reported("slope", self.scaled_slope))
        return LinearEffect(self.covariate, number(self.reference), slope, self.fixed)


class NetworkEffect(CovariateEffect):
    """Network of several covariates, 0 at their reference (the centre of the training data)::

        shift = v·(tanh(W·x + b) − tanh(b))        x = standardised covariates (`Scaling.standardise`)

    v starts at 0, and the effect with it. The weights have no standard errors and cannot be written to a population
    file.

    Args:
        covariates: their names.
        hidden: width of the hidden layer.
    """

    centre: Tensor
    spread: Tensor
    positive: Tensor

    def __init__(self, covariates: list[str], hidden: int = 8) -> None:
        super().__init__(covariates)
        self.inner = nn.Linear(len(covariates), hidden)
        self.outer = nn.Linear(hidden, 1, bias=False)
        nn.init.zeros_(self.outer.weight)
        size = len(covariates)
        self.register_buffer("centre", torch.ones(size, dtype=torch.float64))
        self.register_buffer("spread", torch.ones(size, dtype=torch.float64))
        self.register_buffer("positive", torch.zeros(size, dtype=torch.bool))

    def build(self, scaling: Scaling) -> None:
        for k, name in enumerate(self.covariates):
            scale = scaling.covariate(name)
            self.centre[k], self.spread[k], self.positive[k] = scale.centre, scale.spread, scale.positive

    def forward(self, covariates: Tensor) -> Tensor:
        logs = torch.log(torch.where(self.positive, covariates / self.centre, 1.0))
        x = torch.where(self.positive, logs, covariates - self.centre) / self.spread
        shift: Tensor = self.outer(torch.tanh(self.inner(x)) - torch.tanh(self.inner.bias))
        return shift[..., 0]

    def coefficients(self) -> dict[str, nn.Parameter]:
        return {}

    def references(self) -> dict[str, float]:
        return {name: number(self.centre[k]) for k, name in enumerate(self.covariates)}


def chosen_effect(covariate: str, scaling: Scaling, coefficient: float | None = None) -> CovariateEffect:
    """Effect that suits the values of a covariate in the training data: a factor where all are 0 or 1, a power where
    all are positive, else linear.

    Args:
        covariate: its name.
        scaling: magnitudes of the training data.
        coefficient: where given, it is fixed.
    """
    fixed, scale = coefficient is not None, scaling.covariate(covariate)
    if scale.binary:
        return FactorEffect(covariate, coefficient, fixed)
    if scale.positive:
        return PowerEffect(covariate, None, coefficient, fixed)
    return LinearEffect(covariate, None, coefficient, fixed)


def power_or_factor(covariate: str, coefficient: float, reference: float | None) -> CovariateEffect:
    """Effect that a plain number stands for: the exponent of (c/reference), or without a reference the logarithm of the
    factor of a covariate that is 0 or 1. The number is fixed."""
    if reference is None:
        return FactorEffect(covariate, coefficient, fixed=True)
    return PowerEffect(covariate, reference, coefficient, fixed=True)
