"""Residual error of several endpoints, each with an error model of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from neuralpk.residual_error.base import ErrorNumber, ResidualError
from neuralpk.scaling import Scaling


class ErrorByEndpoint(ResidualError):
    """An error model for each endpoint: the first for DVID 1, the second for DVID 2, …::

        ErrorByEndpoint([ProportionalError(b=0.2), AdditiveError()])

    The parameters are reported with the number of their endpoint: b1, a2. Several assays of one output are endpoints
    that read the same output::

        ErrorByEndpoint([ProportionalError(), AdditiveError()], outputs=[1, 1])

    Args:
        errors: one error model by endpoint, each an object of its own.
        outputs: output of the model that each endpoint reads, from 1; by default endpoint k reads output k.

    Attributes:
        errors: the error models.

    Raises:
        ValueError: no error model; one that is itself by endpoint; the same object twice; outputs that are not one by
            endpoint, from 1.
    """

    def __init__(self, errors: list[ResidualError], outputs: list[int] | None = None) -> None:
        super().__init__()
        kinds = [type(error) for error in errors]
        if not errors or not all(issubclass(kind, ResidualError) for kind in kinds) or ErrorByEndpoint in kinds:
            raise ValueError(
                f"errors holds one error model by endpoint, such as [ProportionalError(), AdditiveError()]; "
                f"got {[kind.__name__ for kind in kinds]}"
            )
        if len({id(error) for error in errors}) < len(errors):
            raise ValueError("errors holds one object twice, which would share its parameters: make one by endpoint")
        if outputs is not None and (len(outputs) != len(errors) or min(outputs) < 1):
            raise ValueError(
                f"outputs holds the output of the model, from 1, that each of the {len(errors)} endpoints reads, as in "
                f"{[1] * len(errors)} for assays of one output; got {outputs}"
            )
        self.outputs = tuple(outputs or ())
        self.errors = nn.ModuleList(errors)

    @property
    def models(self) -> list[ResidualError]:
        """The error models, by endpoint."""
        return [error for error in self.errors if isinstance(error, ResidualError)]

    def fix(self, endpoints: int | None = None) -> Self:
        """Fix all parameters at the values of their constructors.

        Args:
            endpoints: how many there are; default: as many as there are error models.

        Raises:
            ValueError: a parameter without a value; more endpoints than error models.
        """
        self._refuse_more(len(self.errors) if endpoints is None else endpoints)
        self.fixed = True
        for error in self.models:
            error.fix()
        return self

    def build(self, scaling: Scaling) -> None:
        """As `ResidualError.build`; the error of an endpoint that the data do not have gets no parameters.

        Raises:
            ValueError: more endpoints in the data than error models.
        """
        self._refuse_more(len(scaling.value))
        super().build(scaling)
        for k, error in enumerate(self.models):
            if k < len(scaling.value):
                error.build(scaling._replace(value=scaling.value[k : k + 1]))
            else:
                error.log_values.clear()

    def _refuse_more(self, endpoints: int) -> None:
        if endpoints > len(self.errors):
            raise ValueError(
                f"the data have {endpoints} endpoints (DVID); ErrorByEndpoint has the error models of "
                f"{len(self.errors)}: give one for each"
            )

    def log_prior(self) -> Tensor:
        return torch.stack([error.log_prior() for error in self.models if error.log_values]).sum()

    def numbers(self) -> list[ErrorNumber]:
        built = [error for error in self.models if error.log_values]
        return [
            number if len(built) == 1 else replace(number, name=f"{number.name}{k + 1}")
            for k, error in enumerate(self.models)
            for number in error.numbers()
        ]

    def parameters_by_name(self) -> dict[str, Tensor]:
        """Parameters by name, each ``[endpoint]``; NaN for an endpoint whose error model has none of this name."""
        found = [error.parameters_by_name() if error.log_values else {} for error in self.models]
        nothing = self.smallest.new_full((1,), torch.nan)
        return {name: torch.cat([own.get(name, nothing) for own in found]) for own in found for name in own}

    def distribution(self, prediction: Tensor, endpoint: Tensor) -> Distribution:
        return _OfEndpoints(self, prediction, endpoint)

    def log_tails(self, value: Tensor, prediction: Tensor, endpoint: Tensor) -> tuple[Tensor, Tensor]:
        def tails(error: ResidualError, *parts: Tensor) -> Tensor:
            return torch.stack(error.log_tails(*parts), dim=-1)

        lower, upper = self.by_model(tails, endpoint, value, prediction).unbind(-1)
        return lower, upper

    def standardise(self, value: Tensor, prediction: Tensor, endpoint: Tensor) -> Tensor:
        return self.by_model(lambda error, v, f, e: error.standardise(v, f, e), endpoint, value, prediction)

    def simulate(self, prediction: Tensor, endpoint: Tensor, noise: Tensor) -> Tensor:
        return self.by_model(lambda error, f, n, e: error.simulate(f, e, n), endpoint, prediction, noise)

    def information(self, prediction: Tensor, endpoint: Tensor) -> Tensor:
        return self.by_model(lambda error, f, e: error.information(f, e), endpoint, prediction)

    def by_model(self, function: Callable[..., Tensor], endpoint: Tensor, *arguments: Tensor) -> Tensor:
        """A function of the records of each endpoint, put together again, ``[...]``.

        Args:
            function: of an error model, the arguments ``[record]``, and the endpoint within that model, 0.
            endpoint: ``[...]``.
            arguments: each ``[...]``.
        """
        wide: list[Tensor]
        *wide, endpoint = torch.broadcast_tensors(*arguments, endpoint)  # type: ignore[no-untyped-call]
        # records are chosen, not masked: the derivative of a masked NaN of another endpoint would still be NaN
        rows: list[Tensor] = []
        parts: list[Tensor] = []
        for k, error in enumerate(self.models):
            own = (endpoint == k).flatten().nonzero()[:, 0]
            if len(own):
                chosen = [argument.flatten()[own] for argument in wide]
                parts.append(function(error, *chosen, torch.zeros_like(own)))
                rows.append(own)
        if sum(map(len, rows)) < endpoint.numel():
            raise IndexError(f"ErrorByEndpoint has {len(self.errors)} endpoints; a record is of another")
        if not parts:
            return torch.zeros_like(wide[0])
        found = torch.cat(parts)[torch.cat(rows).argsort()]
        return found.reshape(*endpoint.shape, *found.shape[1:])


class _OfEndpoints(Distribution):
    """Distribution of the values of several endpoints: density alone."""

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, error: ErrorByEndpoint, prediction: Tensor, endpoint: Tensor) -> None:
        self.error, self.prediction, self.endpoint = error, prediction, endpoint
        super().__init__(prediction.shape, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        def density(error: ResidualError, f: Tensor, y: Tensor, endpoint: Tensor) -> Tensor:
            return torch.as_tensor(error.distribution(f, endpoint).log_prob(y))

        return self.error.by_model(density, self.endpoint, self.prediction, value)
