"""The estimator of a population whose dynamics has weights, which an optimiser moves by their gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from neuralpk import randomness
from neuralpk.cohort_batch import CohortBatch
from neuralpk.estimation.estimator import PopulationEstimator
from neuralpk.estimation.held_draws import HeldDraws, PosteriorDraws
from neuralpk.estimation.population_newton import Ascent
from neuralpk.estimation.posterior_centres import Gather
from neuralpk.population_model import PopulationModel
from neuralpk.randomness import Stream

_STAGES = (32, 256)  # draws of each subject while the weights move, and in the end
_SAMPLE = 4  # draws of equal weight for a gradient
_STEPS = 8  # of the optimiser for each set of draws
_PACES = (1.0, 1 / 3, 1 / 9)  # of the learning rate, one after the other
_PATIENCE = 3  # sets of draws
_GAIN = 0.25  # in log p: sets of draws that gain less lower the pace
_COARSE = 0.01  # in log p: the weights move by more between two sets of draws
_FEW_STEPS = 3  # of the search for a centre that was the centre of another set


class NetworkEstimator(PopulationEstimator):
    """Maximum of the marginal likelihood of a population, in its numbers and in the weights of its dynamics.

    A set of draws serves twice. Newton's method moves the population with theta of the draws held, as in every
    population fit. Then an optimiser takes some steps in the weights, and in the population with them, along the
    gradient of the likelihood by Fisher's identity, with z held::

        ∇ log p(y) = E[∇ log p(y | z)]        z ~ p(z | y), `posterior`

    Where several sets of draws have gained less than 0.5 of −2LL, the learning rate becomes a third (`pace`), and after
    the third time the weights stay. A few more steps of the population alone follow, with more draws.

    Args:
        model: whose population and weights are estimated.
        seed: of the quasi-random numbers.
        gather: the same object of every device.

    Attributes:
        values: log p(data, weights, population), up to a constant, at each set of draws.
    """

    least_error = 2 * _GAIN  # as of the weights: a network may do what a number of the population does
    last_steps = 8
    reserve = ()

    def __init__(self, model: PopulationModel, seed: int, gather: Gather) -> None:
        super().__init__(model, seed, _STAGES, gather)
        self.values: list[float] = []
        self._level, self._since, self._steps = 0, 0, 0
        self._sample: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def weights_move(self) -> bool:
        """Whether the optimiser still moves the weights."""
        return self._level < len(_PACES) and not self.finished

    @property
    def pace(self) -> float:
        """Factor of the learning rate of the next step; 0 once the weights stay."""
        return _PACES[self._level] if self.weights_move else 0.0

    @property
    def _most_steps(self) -> int:
        return _FEW_STEPS if self.weights_move and self.centres else super()._most_steps

    @property
    def _numbers_of_step(self) -> tuple[int, Stream]:
        # with the same numbers in all steps, their values tell when the weights no longer gain
        return (0, Stream.ESTIMATION) if self.weights_move else super()._numbers_of_step

    @property
    def _tolerance(self) -> float:
        return _COARSE if self.weights_move else super()._tolerance

    def start(self, batch: CohortBatch) -> None:
        """Begin at the numbers of the model: what its weights do to a curve is not known before they have learned."""
        self.started = True

    def add(self, batch: CohortBatch) -> Tensor:
        if self._sample and self.weights_move:  # the draws of this set have been made
            rows = [self._sample[index][1] for index in batch.index.tolist()]
            return torch.stack(rows)
        self._follow()
        return super().add(batch)

    def posterior(self, batch: CohortBatch) -> PosteriorDraws | None:
        """Draws for the gradient of a step; None once the weights stay.

        Args:
            batch: subjects that have been added.
        """
        if not self.weights_move:
            return None
        self._steps += 1
        sample = self._sample or self._resampled(self._draws, self._drawn)
        z, log_p = zip(*(sample[index] for index in batch.index.tolist()), strict=True)
        return PosteriorDraws(torch.stack(z).to(batch.value.dtype), torch.stack(log_p).to(batch.value.dtype))

    def end_pass(self) -> None:
        if not self._sample:
            self.step()
        if self._steps >= _STEPS or not self.weights_move:
            self._steps, self._sample = 0, {}

    def step(self) -> Ascent:
        held, drawn = self._draws, self._drawn
        of_weights = float(torch.as_tensor(self.model.dynamics.log_prior()))
        ascent = super().step()
        if self.weights_move:
            device = self.numbers.device
            # of all devices: a subject may be on another one in the next pass
            for sample in self._gather(self._resampled(held, drawn)):
                self._sample |= {key: (z.to(device), log_p.to(device)) for key, (z, log_p) in sample.items()}
            self._settle(ascent.start + of_weights)
        return ascent

    @torch.no_grad()
    def _follow(self) -> None:
        """Take over what the optimiser has moved."""
        for own, moved in zip(self.model.population_weights(), self.target.population_weights(), strict=True):
            own.copy_(moved)
        if self.weights_move:
            self._take_weights()

    @torch.no_grad()
    def _take_weights(self) -> None:
        for own, moved in zip(self.model.dynamics.parameters(), self.target.dynamics.parameters(), strict=True):
            own.copy_(moved)

    @torch.no_grad()
    def _resampled(self, draws: list[HeldDraws], log_p: dict[int, float]) -> dict[int, tuple[Tensor, Tensor]]:
        """z of draws of equal weight, ``[draw, latent]``, and log p(y), by subject."""
        here = self.numbers.get()
        found: dict[int, tuple[Tensor, Tensor]] = {}
        stream = Stream.TRAINING.at(self.iteration)
        for held in draws:
            log_weight = held.log_weight(self.numbers, here)
            z = held.z(self.numbers)[0]
            offset = randomness.uniform(self.seed, stream, held.batch.index, 1)
            chosen = randomness.systematic(torch.softmax(log_weight, dim=1), _SAMPLE, offset)
            z = z.gather(1, chosen[..., None].expand(-1, -1, z.shape[2]))
            keys = held.batch.index.tolist()
            found |= {key: (one, log_weight.new_tensor(log_p[key])) for key, one in zip(keys, z, strict=True)}
        return found

    def _settle(self, value: float) -> None:
        """Lower the pace where the sets of draws at this pace have gained little; then the weights stay."""
        self.values.append(value)
        self._since += 1
        before = max(self.values[:-_PATIENCE], default=-torch.inf)
        if self._since >= _PATIENCE and max(self.values[-_PATIENCE:]) < before + _GAIN:
            self._level, self._since = self._level + 1, 0
            if not self.weights_move:
                self._sample = {}
                self._next_stage()
                self._take_weights()  # of the last step, which came after these draws

    def _advance(self, ascent: Ascent) -> None:
        if not self.weights_move:
            super()._advance(ascent)

    def _of_undetermined(self, names: str) -> str:
        # a network can do what such a number does: the prior of its weights decides
        self.remark = f"{names} and the network can replace each other"
        return ""

    def state_dict(self) -> dict[str, Any]:
        index = list(self._sample)
        parts = [torch.stack(part) for part in zip(*self._sample.values(), strict=True)]
        own = {"values": self.values, "level": [self._level, self._since, self._steps], "index": index, "parts": parts}
        return super().state_dict() | {"weights": own}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        own = state["weights"]
        self.values, (self._level, self._since, self._steps) = list(own["values"]), own["level"]
        self._sample = dict(zip(own["index"], zip(*own["parts"], strict=True), strict=True)) if own["index"] else {}
