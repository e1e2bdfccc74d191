"""Where the posterior of every subject lies: normal approximations from which proposals are made."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from neuralpk.cohort_batch import CohortBatch
from neuralpk.estimation.held_draws import HeldDraws
from neuralpk.estimation.learned_numbers import LearnedNumbers
from neuralpk.estimation.proposals import Centre, Proposal
from neuralpk.inference.importance import effective_draws
from neuralpk.inference.map import Mode, maximise
from neuralpk.population_model import PopulationModel
from neuralpk.randomness import systematic

Gather = Callable[[Any], list[Any]]
"""The same object of every device."""

SMALL_OMEGA = 0.2
_SEARCH_TOLERANCE = 1e-2  # in log p, of the search for a centre
# omega that a proposal is made for: draws around a narrow posterior would make a wider population look unlikely
_WIDE_OMEGA = 0.2
_HELD_OMEGA = 0.1  # at most; a typical value moves by about so much in a step
_LITTLE_KNOWN = 0.6  # posterior variance of a random effect, given the others, over that of its prior
_SLACK = 1.2  # factor by which both limits are exceeded before eta/omega is no longer held
_LEAST_VARIANCE = 1e-9  # of z
_ENOUGH_DRAWS = 8.0  # effective draws for each dimension, so that a centre and its covariance come from the draws
_DRAWS_TO_ADAPT = 5  # times that many: with so many draws, wider proposals follow from them
_HALVINGS_OF_POWER = 12
_KERNELS = 64
_KERNEL_SD = 0.5  # of that of the posterior


class PosteriorCentres:
    """Mean and covariance of z of every subject's posterior, in the population as it is and in a wider one. They come
    from the weighted draws of a step (`renew`); where those were few or none, from a search for the mode.

    Of a posterior that is far from normal, such as that of VMAX and KM of a subject with low concentrations, few draws
    of a normal distribution are effective, and its long tails are missed. It gets kernels: as many normal distributions
    around draws that were resampled by their weights (West 1993, Approximating posterior distributions by mixture).

    Args:
        model: whose posteriors they are, in float64.
        numbers: its learned numbers.
        gather: the same object of every device.

    Attributes:
        standardised: parameters of which the draws hold eta/omega, not the value.
    """

    def __init__(self, model: PopulationModel, numbers: LearnedNumbers, gather: Gather) -> None:
        self.model, self.numbers, self._gather = model, numbers, gather
        self._known: dict[int, tuple[Tensor, ...]] = {}
        self._kernels: dict[int, Tensor] = {}
        self.standardised: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self._known)

    def begin_at(self, index: Tensor, z: Tensor) -> None:
        """Where the search for the posterior of each subject begins: z, ``[subject, latent]``, by its index."""
        unknown = torch.full((z.shape[1], z.shape[1]), torch.nan, dtype=torch.float64, device=z.device)
        pairs = zip(index.tolist(), z.double(), strict=True)
        self._known |= {key: (mean, unknown, mean, unknown) for key, mean in pairs}

    def proposal(self, batch: CohortBatch, target: PopulationModel, most_steps: int) -> tuple[Tensor, Proposal]:
        """The learned numbers of the wider population, and a proposal of z under it. The model keeps its numbers.

        Args:
            batch: float64.
            target: the model with the digits of its weights, where it has any.
            most_steps: of the search for a mode.
        """
        here, wide = self.numbers.get(), self._wide()
        self.numbers.set(wide)
        own = self.model.latents(batch)
        size = own.shape[1]
        zero, one = batch.value.new_zeros(size), torch.eye(size, dtype=torch.float64, device=batch.device)
        known = [self._known.get(index) for index in batch.index.tolist()]
        parts = [torch.stack(part) for part in zip(*(each or (zero, one, zero, one) for each in known), strict=True)]
        posterior, around_wide = Centre(*parts[:2]), Centre(*parts[2:])
        searched = torch.tensor([each is None for each in known], device=batch.device)
        searched |= around_wide.covariance.isnan().any(-1).any(-1)
        rows = searched.nonzero()[:, 0]
        if len(rows) and size:
            mode = self._search(batch.select(rows), around_wide.mean[rows], target, most_steps)
            around_wide.mean[rows] = mode.z.double()
            around_wide.covariance[rows] = torch.linalg.inv(mode.precision.double())
        few = searched | posterior.covariance.isnan().any(-1).any(-1)
        posterior.mean[few], posterior.covariance[few] = around_wide.mean[few], around_wide.covariance[few]
        self.numbers.set(here)
        return wide, Proposal.around(self._with_kernels(posterior, batch.index, few), around_wide, own)

    def _with_kernels(self, posterior: Centre, index: Tensor, few: Tensor) -> Centre:
        """The posteriors with the kernels of those that have any; of the others all kernels are at the mean."""
        rows = [k for k, key in enumerate(index.tolist()) if key in self._kernels and not few[k]]
        if not rows:
            return posterior
        kernels = posterior.mean[:, None].repeat(1, _KERNELS, 1)
        kernels[rows] = torch.stack([self._kernels[int(index[k])] for k in rows])
        covariance = posterior.covariance.clone()
        covariance[rows] *= _KERNEL_SD**2
        return Centre(posterior.mean, covariance, kernels)

    @torch.no_grad()
    def renew(self, draws: Sequence[HeldDraws]) -> None:
        """The centres of every subject, and `standardised`, from the weighted draws of a step."""
        here, size = self.numbers.get(), self.model.latent_size
        log_weights, sums = [], torch.zeros(1 + size, dtype=torch.float64, device=self.numbers.device)
        for held in draws:
            log_weights.append(held.log_weight(self.numbers, here))
            z = held.z(self.numbers)[0]
            covariance = _moments(z, log_weights[-1])[1]
            covariance = covariance[~covariance.isnan().any(-1).any(-1)]
            precision = torch.linalg.inv(covariance + _LEAST_VARIANCE * torch.eye(z.shape[-1], device=z.device))
            variance = 1 / precision.diagonal(dim1=1, dim2=2)[:, :size]
            sums += torch.cat([sums.new_tensor([len(variance)]), variance.sum(0)])
        sums = torch.stack(self._gather(sums)).sum(0)
        self.standardised = self._to_standardise(here, sums[1:] / sums[0])
        self._set(draws, log_weights, kernels=False)

    def have_kernels(self, index: Tensor) -> Tensor:
        """Of which subjects, bool ``[subject]`` of their indices."""
        return torch.tensor([key in self._kernels for key in index.tolist()], dtype=torch.bool, device=index.device)

    def forget_kernels(self) -> None:
        """One normal distribution for the posterior of every subject, as before it had kernels."""
        self._kernels.clear()

    @torch.no_grad()
    def adapt(self, draws: Sequence[HeldDraws], kernels: bool = False) -> None:
        """The centres of some subjects from weighted draws: mean and covariance of the posterior, in the population as
        it is and in the wide one, NaN where the effective draws are few.

        Args:
            draws: of the subjects.
            kernels: whether their posteriors get kernels; those that have some keep getting them.
        """
        here = self.numbers.get()
        self._set(draws, [held.log_weight(self.numbers, here) for held in draws], kernels)

    def _set(self, draws: Sequence[HeldDraws], log_weights: Sequence[Tensor], kernels: bool) -> None:
        """`adapt`, with the log weights of the draws in the population as it is."""
        here, wide = self.numbers.get(), self._wide()
        found: dict[int, tuple[Tensor, ...]] = {}
        new_kernels: dict[int, Tensor] = {}
        for held, log_weight in zip(draws, log_weights, strict=True):
            of_wide = held.log_weight(self.numbers, wide)
            z = held.z(self.numbers)[0]  # in the wide population, in which proposals are
            parts = (*_moments(z, log_weight), *_moments(z, of_wide))
            found |= dict(zip(held.batch.index.tolist(), zip(*parts, strict=True), strict=True))
            rows = self.have_kernels(held.batch.index) | kernels
            if bool(rows.any()):
                new = _new_kernels(z[rows], log_weight[rows], parts[0][rows])
                new_kernels |= dict(zip(held.batch.index[rows].tolist(), new, strict=True))
        for centres in self._gather(found):
            self._known |= {index: tuple(one.to(here.device) for one in part) for index, part in centres.items()}
        for of_device in self._gather(new_kernels):
            self._kernels |= {index: one.to(here.device) for index, one in of_device.items()}
        self.numbers.set(here)

    def _wide(self) -> Tensor:
        """The learned numbers with every omega and kappa at least `_WIDE_OMEGA`: proposals are made for them."""
        vector = self.numbers.get()
        if self.numbers.spreads:
            least = (_WIDE_OMEGA * self.numbers.spread_units()).log()
            # where eta/omega is held, the draws say of themselves how another omega would do
            held = [name in self.standardised for name in self.model.population.varying]
            least[: len(held)][torch.tensor(held, dtype=torch.bool)] = -torch.inf
            places = torch.tensor(self.numbers.spreads, device=vector.device)
            vector = vector.scatter_reduce(0, places, least, "amax")  # of a shared omega the largest
        return vector

    def _search(self, batch: CohortBatch, z: Tensor, target: PopulationModel, most_steps: int) -> Mode:
        """Maximum a posteriori of some subjects, from z, with the digits of the weights of the dynamics."""
        weights = list(self.model.dynamics.parameters())
        if not weights or weights[0].dtype == torch.float64:
            return maximise(self.model, batch, z, most_steps, _SEARCH_TOLERANCE)
        model, digits = copy.deepcopy(target).requires_grad_(False), weights[0].dtype
        with torch.no_grad():
            for part, mine in zip(model.population_weights(), self.model.population_weights(), strict=True):
                part.copy_(mine)
        return maximise(model, batch.to(digits), z.to(digits), most_steps, _SEARCH_TOLERANCE)

    def _to_standardise(self, here: Tensor, variance: Tensor) -> tuple[str, ...]:
        """Parameters with a small omega about which the patients' data say less than the population does, even if the
        other parameters were known: their values keep so close to the typical value that, held, they would not let it
        move.

        Args:
            here: the learned numbers.
            variance: mean posterior variance of z over that of its prior, given the other random effects,
                ``[latent]``; NaN where it is not known.
        """
        omega = here[self.numbers.omega].exp() / self.numbers.spread_units()[: len(self.numbers.omega)]
        found = []
        for name, size, left in zip(self.model.population.varying, omega.tolist(), variance.tolist(), strict=False):
            # a parameter that is among them leaves later than it comes, so that none comes and goes in every step
            slack = _SLACK if name in self.standardised else 1.0
            if size < _HELD_OMEGA * slack and left > _LITTLE_KNOWN / slack:
                found.append(name)
        return tuple(found)

    def state_dict(self) -> dict[str, Any]:
        """As tensors and plain values."""
        parts = [torch.stack(part) for part in zip(*self._known.values(), strict=True)]
        held = {"standardised": list(self.standardised), "kernels": dict(self._kernels)}
        return held | {"index": list(self._known), "centres": parts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From that of `state_dict`."""
        self.standardised = tuple(state["standardised"])
        parts = [part.to(self.numbers.device) for part in state["centres"]]
        self._kernels = {index: one.to(self.numbers.device) for index, one in state["kernels"].items()}
        self._known = dict(zip(state["index"], zip(*parts, strict=True), strict=True))


def _new_kernels(z: Tensor, log_weight: Tensor, mean: Tensor) -> Tensor:
    """Centres of the kernels of every subject, ``[subject, kernel, latent]``: weighted draws that were resampled, and
    drawn towards the mean so that the mixture has the covariance of the posterior."""
    weight = torch.softmax(_as_many_as_needed(log_weight, z.shape[-1])[0], dim=1)
    points = z.gather(1, systematic(weight, _KERNELS)[..., None].expand(-1, -1, z.shape[-1]))
    return mean[:, None] + math.sqrt(1.0 - _KERNEL_SD**2) * (points - mean[:, None])


def _moments(z: Tensor, log_weight: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance of weighted draws, ``[subject, latent]`` and ``[subject, latent, latent]``; with few draws at
    all the covariance is NaN."""
    log_weight, few = _as_many_as_needed(log_weight, z.shape[-1])
    weight = torch.softmax(log_weight, dim=1)[..., None]
    mean = (weight * z).sum(1)
    spread = z - mean[:, None]
    covariance = (weight * spread).mT @ spread
    return mean, torch.where(few[:, None, None], torch.nan, covariance)


def _as_many_as_needed(log_weight: Tensor, latent: int) -> tuple[Tensor, Tensor]:
    """Weights with effective draws enough for a centre and its covariance, ``[subject, draw]``, and which have too few,
    ``[subject]``.

    Where the effective draws are few, the weights are taken to a power below 1 that makes them enough: the proposal
    becomes wider and reaches what the draws have missed.
    """
    enough = _ENOUGH_DRAWS * (1 + latent)
    few = effective_draws(log_weight) < enough
    if log_weight.shape[1] >= _DRAWS_TO_ADAPT * enough and bool(few.any()):
        low, high = torch.zeros_like(log_weight[:, :1]), torch.ones_like(log_weight[:, :1])
        finite = torch.where(torch.isfinite(log_weight), log_weight, -1e6)
        for _ in range(_HALVINGS_OF_POWER):
            power = (low + high) / 2
            reached = effective_draws(power * finite)[:, None] >= enough
            low, high = torch.where(reached, power, low), torch.where(reached, high, power)
        log_weight = torch.where(few[:, None], low * finite, log_weight)
        few = torch.zeros_like(few)
    return log_weight, few
