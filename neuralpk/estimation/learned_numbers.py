"""The learned numbers of the population and of the residual error as one vector."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from neuralpk.cohort_batch import CohortBatch
from neuralpk.parameters import LogitNormal, LogNormal
from neuralpk.population_model import PopulationModel

SMALLEST_OMEGA = 0.02  # in units of the parameter's distribution; below it a parameter counts as without variability
_WIDEST_OMEGA = 20.0
_FARTHEST = 20.0  # of the reach of such a number
_EDGE = 1e-3  # of the range of a logit-normal parameter: nearer to an end its typical value counts as that end


@dataclass(frozen=True)
class Movers:
    """What changes predictions while the draws are held.

    Args:
        numbers: positions of the numbers that do it, in the vector of learned numbers.
        parameters: positions of the parameters that move, among the named ones.
        in_time: positions of the numbers of covariate effects, where covariates change in time: they move a parameter
            after the first record otherwise than at it.
    """

    numbers: list[int] = field(default_factory=list)
    parameters: list[int] = field(default_factory=list)
    in_time: list[int] = field(default_factory=list)


class LearnedNumbers:
    """The numbers of a population model that an estimator moves, as one vector in the order of its tensors.

    Args:
        model: the model that holds them; its tensors are written in place.

    Attributes:
        tensors: the learned tensors.
        low: lower bounds of the vector; −inf but for log omega, log kappa and typical values between two ends.
        high: upper bounds; inf likewise.
        omega: position of the omega of each parameter that varies: several times that of one that is shared.
        spreads: the same, then the positions of the kappas.
        free: the numbers that may move, bool; not those that the user fixes.
    """

    def __init__(self, model: PopulationModel) -> None:
        self.model = model
        self.tensors = [tensor for tensor in model.population_weights() if tensor.requires_grad]
        self._starts: dict[int, int] = {}
        size = 0
        for tensor in self.tensors:
            self._starts[id(tensor)] = size
            size += tensor.numel()
        self.size = size
        self.device = model.value_scale.device
        self.low = torch.full((size,), -torch.inf, dtype=torch.float64, device=self.device)
        self.high = -self.low
        omega, kappa = self.of(model.population.log_omega), self.of(model.population.log_kappa)
        self.omega = [omega[k] for k in model.population.omega_of.tolist()] if omega else []
        self.spreads = self.omega + kappa
        units = self.spread_units()[: len(self.spreads)]
        self.low[self.spreads] = (SMALLEST_OMEGA * units).log()
        self.high[self.spreads] = (_WIDEST_OMEGA * units).log()
        kinds = [model.population.distribution[name] for name in model.population.names]
        of_logit = [isinstance(getattr(kind, "inner", kind), LogitNormal) for kind in kinds]
        location = self.of(model.population.location)
        self._logit = [k for k, found in zip(location, of_logit, strict=False) if found]
        self.high[self._logit] = math.log(1 / _EDGE - 1)
        self.low[self._logit] = -self.high[self._logit]
        self.free = torch.ones(size, dtype=torch.bool, device=self.device)
        for positions, fixed in (
            (self.of(model.population.location), model.population.fixed_location),
            (omega, model.population.fixed_omega),
            (kappa, model.population.fixed_kappa),
        ):
            self.free[positions] = ~fixed[: len(positions)]
        self.low[~self.free], self.high[~self.free] = -torch.inf, torch.inf
        self._moving, self._bend = [k for k in self.spreads if self.free[k]], 0.3 * units[self.free[self.spreads]]

    def spread_units(self) -> Tensor:
        """A usual omega or kappa over 0.3 by parameter that varies, then by parameter that changes between occasions,
        ``[varying + changing]``: 1 where the random effect has no unit, as of log-normal parameters; of other
        distributions the starting value gives the magnitude."""
        population = self.model.population
        kinds = [population.distribution[name] for name in (*population.varying, *population.changing)]
        scaled = [isinstance(getattr(kind, "inner", kind), LogNormal | LogitNormal) for kind in kinds]
        log_omega = population.log_omega_start[population.omega_of]
        start = torch.cat([log_omega, population.log_kappa_start]).double().exp() / 0.3
        return torch.where(torch.tensor(scaled, dtype=torch.bool, device=start.device), 1.0, start)

    def exchanged(self, vector: Tensor, one: str, other: str) -> Tensor | None:
        """The vector with the typical values, omegas and kappas of two parameters in each other's place; None where
        they do not have the same of these, or some of them are fixed."""
        population = self.model.population
        groups = (
            (population.names, self.of(population.location)),
            (population.varying, self.omega),
            (population.changing, self.spreads[len(self.omega) :]),
        )
        found = vector.clone()
        for names, positions in groups:
            places = [positions[names.index(name)] for name in (one, other) if name in names]
            if len(places) == 1 or not bool(self.free[places].all()):
                return None
            found[places] = vector[places[::-1]]
        return found

    def reach(self, vector: Tensor) -> Tensor:
        """How far each number may move until a parameter has changed as much as by 1 on a logarithmic scale, or at the
        middle of its range by 1 on the logit scale: farther near the ends of the range."""
        found = torch.ones_like(vector)
        share = torch.sigmoid(vector[self._logit])
        found[self._logit] = 1 / (4 * share * (1 - share)).clamp(min=1 / _FARTHEST)
        return found

    def of(self, tensor: Tensor) -> list[int]:
        """Positions of a tensor's numbers in the vector; empty for one that is not learned."""
        start = self._starts.get(id(tensor))
        return [] if start is None else list(range(start, start + tensor.numel()))

    def get(self) -> Tensor:
        """The vector, float64."""
        parts = [tensor.detach().flatten().double() for tensor in self.tensors]
        return torch.cat(parts) if parts else torch.zeros_like(self.low)

    @torch.no_grad()
    def set(self, vector: Tensor) -> None:
        """Write a vector into the tensors."""
        for tensor in self.tensors:
            start = self._starts[id(tensor)]
            tensor.copy_(vector[start : start + tensor.numel()].view_as(tensor))

    def flat(self, parts: Sequence[Tensor]) -> Tensor:
        """Tensors of the shapes of `tensors` as one vector."""
        return torch.cat([part.flatten() for part in parts])

    def gradient(self, value: Tensor, create_graph: bool = False) -> Tensor:
        """First derivatives of a scalar in the numbers, ``[number]``; 0 in those that it does not depend on.

        Args:
            value: of the tensors; its graph is kept.
            create_graph: whether the derivatives are to be differentiated.
        """
        parts = torch.autograd.grad(
            value, self.tensors, retain_graph=True, create_graph=create_graph, materialize_grads=True
        )
        return self.flat(parts)

    def of_error(self) -> list[int]:
        """Positions of the numbers of the residual error."""
        return [k for tensor in self.model.error.parameters() for k in self.of(tensor)]

    def of_predictions(self, batch: CohortBatch, standardised: Sequence[str]) -> Movers:
        """What changes predictions while the draws are held: parameters without variability, with their typical values
        and effects; those in `standardised`, with their omegas too; and all effects where covariates change in time.

        Args:
            batch: the subjects.
            standardised: parameters whose standardised random effects are held, not their values.
        """
        population = self.model.population
        changing = bool((batch.covariates != batch.covariates[:, :1]).any())
        location, omega = self.of(population.location), self.omega
        by_parameter: dict[str, list[int]] = {}
        for k, name in enumerate(population.names):
            if name in standardised or name not in population.varying:
                by_parameter[name] = location[k : k + 1]
                if omega and name in standardised:
                    by_parameter[name].append(omega[population.varying.index(name)])
        in_time = list(self.of(population.latent_effects)) if changing else []
        for name, effect in population.effects_by_parameter():
            places = [k for tensor in effect.parameters() for k in self.of(tensor)]
            if changing:
                in_time += places
            elif name in by_parameter:
                by_parameter[name] += places
        in_time = [k for k in in_time if self.free[k]]
        free = {name: [k for k in places if self.free[k]] for name, places in by_parameter.items()}
        # where effects move by themselves, the typical value of a standardised parameter still moves with them
        also = standardised if changing else ()
        parameters = [k for k, name in enumerate(population.names) if free.get(name) or name in also]
        moving = dict.fromkeys(k for places in free.values() for k in places)  # a shared omega once
        return Movers([*moving, *in_time], parameters, in_time)

    def search_scale(self, vector: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The vector on the scale on which a search moves, with the first and second derivatives of the vector in it.

        Near 0 an omega or kappa counts itself, because there the likelihood is a smooth function of its square and its
        logarithm has infinitely far to go; above 0.3 its logarithm counts. All else is its own scale, and so is one
        that is fixed, which therefore keeps its last digit.
        """
        scaled, first, second = vector.clone(), torch.ones_like(vector), torch.zeros_like(vector)
        t = vector[self._moving].exp() / self._bend
        small = t < 1
        scaled[self._moving] = torch.where(small, t, 1 + t.log())
        first[self._moving] = torch.where(small, 1 / t, 1.0)
        second[self._moving] = torch.where(small, -1 / t.square(), 0.0)
        return scaled, first, second

    def on_search_scale(self, vector: Tensor, slope: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The vector on the scale of the search, and a function's first derivatives and minus its second ones there.

        Args:
            vector: the learned numbers.
            slope: first derivatives in them, ``[number]``.
            second: second derivatives, ``[number, number]``.
        """
        scaled, of_scale, bend = self.search_scale(vector)
        curvature = -(of_scale[:, None] * second * of_scale + torch.diag(slope * bend))
        return scaled, slope * of_scale, curvature

    def from_search_scale(self, scaled: Tensor) -> Tensor:
        """The vector of one on the scale of `search_scale`."""
        vector, t = scaled.clone(), scaled[self._moving]
        log_t = torch.where(t < 1, t.clamp(min=1e-9).log(), t - 1)
        vector[self._moving] = log_t + self._bend.log()
        return vector

    def names(self) -> list[str]:
        """Name of every number, as in a table; those of no coordinate by their tensor."""
        found = [""] * self.size
        for one in self.model.coordinates():
            positions = self.of(one.tensor)
            if positions:
                found[positions[one.index]] = one.name
        return [name or f"number {k + 1} of a covariate model" for k, name in enumerate(found)]
