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

_LEAST_FACTOR = 1e-3


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

    def fixed_coefficients(self) -> dict[str, Tensor]:
        """Numbers that are reported and keep their value, by name; none by default."""
        return {}

    def reported(self, name: str, value: Tensor) -> Tensor:
        """A coefficient on the scale on which it is reported, from that on which it is learned; by default the same."""
        return value

    def references(self) -> dict[str, float | str]:
        """Reference by covariate: the value, or the level of a text, at which the shift is 0. Empty where there is
        none."""
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

    def fixed_coefficients(self) -> dict[str, Tensor]:
        return {self._coefficient.removeprefix("scaled_"): getattr(self, self._coefficient)} if self.fixed else {}

    def _hold_reference(self, value: float | None) -> None:
        held = torch.tensor(math.nan if value is None else value, dtype=torch.float64)
        self.register_buffer("reference", held)
        self.from_data = value is None

    def references(self) -> dict[str, float | str]:
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
        if not (scale.positive or (self.fixed and not self.from_data)):  # then each value is checked where it is used
            raise ValueError(
                f"PowerEffect of {self.covariate}: the covariate must be above 0 in all training subjects; use factor "
                "(FactorEffect) for one that is 0 or 1, else exponential (ExponentialEffect)"
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
        reference: of a covariate ``RACE=Asian``, which says whether the text in the column RACE is Asian, the level
            that the effect compares with.

    Raises:
        ValueError: `fixed` without a log_factor.
    """

    log_factor: Tensor
    _coefficient = "log_factor"

    def __init__(
        self, covariate: str, log_factor: float | None = None, fixed: bool = False, reference: str | None = None
    ) -> None:
        super().__init__(covariate, log_factor, fixed)
        self.level = reference

    def references(self) -> dict[str, float | str]:
        return {self.covariate: 0.0 if self.level is None else self.level}

    def forward(self, covariates: Tensor) -> Tensor:
        return self.log_factor * covariates[..., 0]

    def fault(self, value: float) -> str | None:
        return None if value in (0, 1) else "without a reference a covariate is 0 or 1"


class _PerUnit(_OneCovariate):
    """An effect of the distance of a covariate from its reference: one unit may be little or much, and so its
    coefficient is learned per standard deviation of the covariate."""

    spread: Tensor

    def _hold_finite_reference(self, reference: float | None) -> None:
        if reference is not None and not math.isfinite(reference):
            raise ValueError(
                f"{type(self).__name__} of {self.covariate}: reference must be a finite number, not {reference}"
            )
        self._hold_reference(reference)
        self.register_buffer("spread", torch.ones((), dtype=torch.float64))

    def build(self, scaling: Scaling) -> None:
        scale = scaling.covariate(self.covariate)
        if self.from_data:
            self.reference.fill_(scale.centre if scale.mean is None else scale.mean)
        spread = scale.spread * (scale.centre if scale.positive else 1.0)  # of a positive one that of the logarithm
        getattr(self, self._coefficient).data.mul_(spread / self.spread)
        self.spread.fill_(spread)

    def coefficients(self) -> dict[str, nn.Parameter]:
        learned = super().coefficients()
        return {self._coefficient.removeprefix("scaled_"): learned[self._coefficient]} if learned else {}

    def reported(self, name: str, value: Tensor) -> Tensor:
        return value / self.spread

    def fitted(self) -> CovariateEffect:
        coefficient = number(self.reported("", getattr(self, self._coefficient)))
        made: Any = type(self)
        fitted: CovariateEffect = made(self.covariate, number(self.reference), coefficient, self.fixed)
        return fitted


class ExponentialEffect(_PerUnit):
    """Exponential effect of a covariate that may be zero or negative; of a log-normal parameter::

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
    _coefficient = "scaled_slope"

    def __init__(
        self, covariate: str, reference: float | None = None, slope: float | None = None, fixed: bool = False
    ) -> None:
        super().__init__(covariate, slope, fixed)
        self._hold_finite_reference(reference)

    def forward(self, covariates: Tensor) -> Tensor:
        return self.scaled_slope * ((covariates[..., 0] - self.reference) / self.spread)


class LinearEffect(_PerUnit):
    """Linear effect of a covariate; of a log-normal parameter::

        theta = typical · (1 + change · (c − reference))        shift = log(1 + change · (c − reference))

    Where 1 + change·(c − reference) is below 0.001, 0.001 stands for it.

    Args:
        covariate: its name.
        reference: in the unit of the covariate; None for the mean of the training data.
        change: relative change of the parameter per unit of the covariate, starting value; None for 0.
        fixed: whether the change stays.

    Raises:
        ValueError: `fixed` without a change.
    """

    scaled_change: Tensor
    _coefficient = "scaled_change"

    def __init__(
        self, covariate: str, reference: float | None = None, change: float | None = None, fixed: bool = False
    ) -> None:
        super().__init__(covariate, change, fixed)
        self._hold_finite_reference(reference)

    def forward(self, covariates: Tensor) -> Tensor:
        factor = 1.0 + self.scaled_change * ((covariates[..., 0] - self.reference) / self.spread)
        return torch.log(factor.clamp(min=_LEAST_FACTOR))

    def fault(self, value: float) -> str | None:
        change = float(self.reported("change", self.scaled_change))
        factor = 1.0 + change * (value - float(self.reference))
        return None if factor > _LEAST_FACTOR else f"1 + change·({self.covariate} − reference) is {factor:.3g}"


class MaturationEffect(CovariateEffect):
    """Maturation with age, a sigmoid; of a log-normal parameter::

        theta = typical · c^hill / (half^hill + c^hill)        shift = −log(1 + (half/c)^hill)

    The typical value is that of the mature. With a reference it is that at the reference, and the shift there is 0.

    Args:
        covariate: an age, such as PMA, above 0.
        half: age at which half of the mature value is reached, starting value; None for the median of the training
            data.
        hill: steepness, starting value; None for 1, which stays.
        reference: age to which the typical value belongs; None for the mature.
        fixed: whether half and hill stay.

    Raises:
        ValueError: numbers that are not above 0; `fixed` without a half.
    """

    log_half: Tensor
    log_hill: Tensor

    def __init__(
        self,
        covariate: str,
        half: float | None = None,
        hill: float | None = None,
        reference: float | None = None,
        fixed: bool = False,
    ) -> None:
        super().__init__([covariate])
        self.covariate, self.reference, self.fixed = covariate, reference, fixed
        for name, value in {"half": half, "hill": hill, "reference": reference}.items():
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"MaturationEffect of {covariate}: {name} must be above 0, not {value}")
        if fixed and half is None:
            raise ValueError(f"MaturationEffect of {covariate}: fixed needs a value of half")
        self.from_data, self.learned = half is None, [] if fixed else ["half", *(["hill"] if hill is not None else [])]
        for name, number_ in (("half", half or 1.0), ("hill", hill or 1.0)):
            start = torch.tensor(math.log(number_), dtype=torch.float64)
            if name in self.learned:
                self.register_parameter(f"log_{name}", nn.Parameter(start))
            else:
                self.register_buffer(f"log_{name}", start)

    def build(self, scaling: Scaling) -> None:
        scale = scaling.covariate(self.covariate)
        if not (scale.positive or self.fixed):
            raise ValueError(f"MaturationEffect of {self.covariate}: it must be above 0 in all training subjects")
        if self.from_data:
            with torch.no_grad():
                self.log_half.fill_(math.log(scale.centre))

    def _log_share(self, log_age: Tensor) -> Tensor:
        return -nn.functional.softplus(self.log_hill.exp() * (self.log_half - log_age))

    def forward(self, covariates: Tensor) -> Tensor:
        share = self._log_share(torch.log(covariates[..., 0]))
        if self.reference is None:
            return share
        return share - self._log_share(torch.full_like(self.log_half, math.log(self.reference)))

    def _numbers(self, learned: bool) -> dict[str, Tensor]:
        held = {"half": self.log_half, "hill": self.log_hill}
        return {name: tensor for name, tensor in held.items() if (name in self.learned) == learned}

    def coefficients(self) -> dict[str, nn.Parameter]:
        return self._numbers(True)  # type: ignore[return-value]

    def fixed_coefficients(self) -> dict[str, Tensor]:
        return self._numbers(False)

    def reported(self, name: str, value: Tensor) -> Tensor:
        return value.exp()

    def references(self) -> dict[str, float | str]:
        return {} if self.reference is None else {self.covariate: self.reference}

    def fault(self, value: float) -> str | None:
        return None if value > 0 else "an age is above 0"

    def fitted(self) -> CovariateEffect:
        half, hill = number(self.log_half.double().exp()), number(self.log_hill.double().exp())
        return MaturationEffect(self.covariate, half, hill, self.reference, self.fixed)
