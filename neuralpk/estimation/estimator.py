"""The estimator of the population: outer steps of draws and Newton's method, in stages, until nothing is to be gained."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from neuralpk.batch import CohortBatch
from neuralpk.estimation.held_draws import HeldDraws, HeldLikelihood, effective_draws
from neuralpk.estimation.learned_numbers import LearnedNumbers
from neuralpk.estimation.newton import Ascent, ascend
from neuralpk.estimation.proposals import Centre, Proposal
from neuralpk.inference.map import maximise
from neuralpk.population_model import PopulationModel
from neuralpk.randomness import Stream

_STAGE_GAIN = 2.0  # in −2LL: with less to gain, more draws are worth more than another step
_CONVERGED = 0.01  # in −2LL
_STAGE_STEPS = 25
_LAST_STEPS = 40
_FIRST_SEARCH = (30, 1e-2)  # most steps of the search for a centre, and its tolerance in log p
# omega that a proposal is made for: draws around a narrow posterior would make a wider population look unlikely
_WIDE_OMEGA = 0.2
_SMALL_OMEGA = 0.2
_LITTLE_KNOWN = 0.5  # posterior variance of a random effect over that of its prior
_SLACK = 1.4
_ENOUGH_DRAWS = 8.0  # effective draws for each number of a centre and its covariance, so that these come from the draws
_POOR = 20.0  # effective draws below which a subject is named
_LOSS = 10.0  # in −2LL: a step after which new draws show a loss above this is halved
_HALVINGS = 6


@dataclass(frozen=True)
class FitStatus:
    """How the search for the maximum of the likelihood ended.

    Args:
        converged: whether no more than 0.01 of −2LL is to be gained by another step.
        reason: why it has not converged; empty otherwise.
        iterations: outer steps.
        gain: what the quadratic approximation promises for another step, in −2LL.
        bounds: names of the numbers at a bound: omegas whose likelihood is largest without variability.
        undetermined: names of the numbers that the data do not determine.
        draws: of each subject in the last step.
        smallest_effective: smallest effective number of draws of a subject.
        subject: of whom.
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

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> FitStatus:
        """From the dictionary of `plain`."""
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()})

    def plain(self) -> dict[str, Any]:
        """As a dictionary of plain values."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @property
    def sentence(self) -> str:
        """In one line, for a report."""
        if self.converged:
            text = f"converged in {self.iterations} iterations, {self.gain:.3f} of -2LL still to be gained"
        else:
            text = f"NOT CONVERGED after {self.iterations} iterations: {self.reason}"
        if self.bounds:
            text += f"; without variability the likelihood is largest: {', '.join(self.bounds)} at its lower bound"
        if self.undetermined:
            text += f"; the data do not determine {', '.join(self.undetermined)}"
        if not math.isnan(self.smallest_effective):
            text += f"; fewest effective draws {self.smallest_effective:.0f} of {self.draws} (subject {self.subject})"
        return text


class PopulationEstimator:
    """Maximum of the marginal likelihood of a population, by outer steps over all subjects (`add`, then `step`).

    In an outer step every subject gets K draws of its individual parameters from a mixture around its posterior, whose
    dynamics are solved once. Newton's method then maximises log p(data) given these held draws, until their weights say
    little about the new population. The draws are renewed with the same quasi-random numbers, K grows from stage to
    stage, and the search ends when the last stage has no more than 0.01 of −2LL to gain. All of it is computed in
    float64 on a copy of the model.

    Args:
        model: whose population is estimated; its numbers are written after every step.
        seed: of the quasi-random numbers.
        stages: draws of each subject, by stage.
        gather: tensors of all devices, stacked.

    Attributes:
        converged: whether the search has converged.
        finished: whether it has ended.
        status: how the search ended; None before.
        log_likelihood: log p(data) at the last draws; NaN before.
    """

    def __init__(
        self,
        model: PopulationModel,
        seed: int = 0,
        stages: tuple[int, ...] = (64, 256, 512),
        gather: Callable[[Tensor], Tensor] = lambda tensor: tensor[None],
    ) -> None:
        self._target, self.seed, self.stages, self._gather = model, seed, stages, gather
        self.model = copy.deepcopy(model).double().requires_grad_(False)
        for name in ("population", "error"):
            of_copy, of_model = (dict(getattr(one, name).named_parameters()) for one in (self.model, model))
            for key, tensor in of_copy.items():
                tensor.requires_grad_(of_model[key].requires_grad)
        self.numbers = LearnedNumbers(self.model)
        self.stage, self.iteration, self.in_stage = 0, 0, 0
        self.status: FitStatus | None = None
        self.history: list[Ascent] = []
        self.log_likelihood = math.nan
        self._centres: dict[int, tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]] = {}
        self._draws: list[HeldDraws] = []
        self._before: tuple[Tensor, float] | None = None
        self._halvings = 0
        self._standardised: tuple[str, ...] = ()

    @property
    def finished(self) -> bool:
        return self.status is not None

    @property
    def draws(self) -> int:
        """Draws of each subject in this stage."""
        return self.stages[self.stage]

    # ---- an outer step

    def wide(self) -> Tensor:
        """The vector of learned numbers, with every omega at least `_WIDE_OMEGA`: proposals are made for it."""
        vector = self.numbers.get()
        omega = self.numbers.of(self.model.population.log_omega)
        if omega:
            least = (_WIDE_OMEGA * self.numbers.omega_units()).log()
            # where eta/omega is held, the draws say of themselves how another omega would do
            held = [name in self._standardised for name in self.model.population.varying]
            least[torch.tensor(held)] = -torch.inf
            vector[omega] = torch.maximum(vector[omega], least)
        return vector

    @torch.no_grad()
    def add(self, batch: CohortBatch) -> HeldDraws:
        """Draw for some subjects, for the next `step`.

        Args:
            batch: the subjects; every record counts.
        """
        batch = batch.to(torch.float64).scored_on_all()
        here, wide = self.numbers.get(), self.wide()
        proposal = self._proposal(batch, wide)
        self.numbers.set(here)
        held = HeldDraws.draw(
            self.model, self.numbers, batch, proposal, wide, self.seed, Stream.ESTIMATION.at(0), self.draws, self._standardised
        )
        self._draws.append(held)
        return held

    def _proposal(self, batch: CohortBatch, wide: Tensor) -> Proposal:
        """Of z under the population `wide`."""
        self.numbers.set(wide)
        found = [self._centres.get(index) for index in batch.index.tolist()]
        size = self.model.latent_size
        zero = torch.zeros(size, dtype=torch.float64, device=batch.device), torch.eye(size, device=batch.device).double()
        pairs = [one or (zero, zero) for one in found]
        posterior, around_wide = (
            Centre(torch.stack([pair[k][0] for pair in pairs]), torch.stack([pair[k][1] for pair in pairs]))
            for k in (0, 1)
        )
        searched = [k for k, one in enumerate(found) if one is None or bool(one[1][1].isnan().any())]
        if searched and size:
            rows = torch.tensor(searched, device=batch.device)
            mode = maximise(self.model, batch.select(rows), around_wide.mean[rows], *_FIRST_SEARCH)
            around_wide.mean[rows], around_wide.covariance[rows] = mode.z, torch.linalg.inv(mode.precision)
        few = posterior.covariance.isnan().any(-1).any(-1)
        few[searched] = True
        posterior.mean[few], posterior.covariance[few] = around_wide.mean[few], around_wide.covariance[few]
        return Proposal.around(posterior, around_wide)

    def step(self) -> Ascent:
        """One outer step with the draws of `add`: move the population and write it to the model."""
        likelihood = HeldLikelihood(self.numbers, self._draws, lambda tensor: self._gather(tensor).sum(0))
        here = self.numbers.get()
        start, _ = likelihood.value(here)
        linear = any(held.movers for held in self._draws)
        if linear and self._before and 2 * (self._before[1] - start) > _LOSS and self._halvings < _HALVINGS:
            # the new draws do not confirm the last step: half of it
            self._halvings += 1
            self.numbers.set((here + self._before[0]) / 2)
            ascent = Ascent(self.numbers.get(), start, start, math.inf, *_nothing(self.numbers.size))
        else:
            ascent = ascend(likelihood, here)
            self._before, self._halvings = (here, start), 0
        self.iteration += 1
        self.in_stage += 1
        self.history.append(ascent)
        self.log_likelihood = ascent.end
        self._renew_proposals()
        self._advance(ascent)
        self._draws = []
        self._write()
        return ascent

    def _write(self) -> None:
        with torch.no_grad():
            pairs = zip(self.model.population_weights(), self._target.population_weights(), strict=True)
            for mine, of_target in pairs:
                of_target.copy_(mine)

    @torch.no_grad()
    def _renew_proposals(self) -> None:
        """Mean and covariance of every subject's posterior from the weighted draws, in the population as it is and in
        the wide one; NaN where these draws are few."""
        here, population = self.numbers.get(), self.model.population
        posteriors, sums = [], torch.zeros(1 + self.model.latent_size, dtype=torch.float64)
        for held in self._draws:
            log_weight = held.log_weight(self.numbers, here)
            parameters = held.parameters(self.numbers, here)[0]
            z = population.z_of(parameters, held.batch.covariates[:, :1])[0]
            variance = _moments(z, log_weight)[1].diagonal(dim1=1, dim2=2)
            known = ~variance.isnan().any(1)
            sums += torch.cat([known.sum()[None].double(), variance[known].sum(0)]).cpu()
            posteriors.append((parameters, log_weight))
        sums = self._gather(sums).sum(0)
        self._standardised = self._to_standardise(here, sums[1:] / sums[0])
        wide = self.wide()
        for held, (parameters, log_weight) in zip(self._draws, posteriors, strict=True):
            of_wide = held.log_weight(self.numbers, wide)
            z = population.z_of(parameters, held.batch.covariates[:, :1])[0]
            centres = [_moments(z, log_weight), _moments(z, of_wide)]
            for row, index in enumerate(held.batch.index.tolist()):
                posterior, around_wide = ((mean[row], covariance[row]) for mean, covariance in centres)
                self._centres[index] = (posterior, around_wide)
        self.numbers.set(here)

    def _to_standardise(self, here: Tensor, variance: Tensor) -> tuple[str, ...]:
        """Parameters with a small omega about which the patients' data say less than the population does: their values
        keep so close to the typical value that, held, they would not let it move.

        Args:
            here: the learned numbers.
            variance: mean posterior variance of z, over that of its prior, ``[latent]``; NaN where it is not known.
        """
        omega = here[self.numbers.omega].exp() / self.numbers.omega_units()[: len(self.numbers.omega)]
        found = []
        for name, size, left in zip(self.model.population.varying, omega.tolist(), variance.tolist(), strict=False):
            # a parameter that is among them leaves later than it comes, so that none comes and goes in every step
            slack = _SLACK if name in self._standardised else 1.0
            if size < _SMALL_OMEGA * slack and left > _LITTLE_KNOWN / slack:
                found.append(name)
        return tuple(found)

    def _advance(self, ascent: Ascent) -> None:
        """The next stage, or the end."""
        gain = max(2 * (ascent.end - ascent.start), 0.0)
        last = self.stage == len(self.stages) - 1
        halved = math.isinf(ascent.promise)
        if not last and not halved and (gain < _STAGE_GAIN or self.in_stage >= _STAGE_STEPS):
            self.stage, self.in_stage, self._before = self.stage + 1, 0, None
        elif last and not halved and gain < _CONVERGED and ascent.promise < 2 * _CONVERGED and self.in_stage > 1:
            self.finish(True)
        elif last and self.in_stage >= _LAST_STEPS:
            self.finish(False, f"the likelihood still changes after {self.in_stage} steps with {self.draws} draws")

    def finish(self, converged: bool, reason: str = "") -> FitStatus:
        """End the search."""
        ascent = next((one for one in reversed(self.history) if not math.isinf(one.promise)), None)
        names = self.numbers.names()
        fewest, subject = self._fewest()
        self.status = FitStatus(
            converged,
            reason,
            self.iteration,
            math.nan if ascent is None else ascent.promise,
            () if ascent is None else tuple(names[k] for k in ascent.bound.nonzero()[:, 0].tolist()),
            (),
            self.draws,
            fewest,
            subject,
        )
        return self.status

    def _fewest(self) -> tuple[float, str]:
        """Smallest effective number of draws of a subject of this device, and its name."""
        fewest, subject = math.inf, ""
        for held in self._draws:
            found = effective_draws(held.log_weight(self.numbers, self.numbers.get()))
            k = int(found.argmin())
            if float(found[k]) < fewest:
                fewest, subject = float(found[k]), held.batch.ids[k]
        return fewest, subject


def _moments(z: Tensor, log_weight: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance of weighted draws, ``[subject, latent]`` and ``[subject, latent, latent]``; the covariance is
    NaN where the effective draws are few."""
    weight = torch.softmax(log_weight, dim=1)[..., None]
    mean = (weight * z).sum(1)
    spread = z - mean[:, None]
    covariance = (weight * spread).mT @ spread
    enough = effective_draws(log_weight) > _ENOUGH_DRAWS * (1 + z.shape[-1])
    return mean, torch.where(enough[:, None, None], covariance, torch.nan)


def _nothing(size: int) -> tuple[Tensor, Tensor, Tensor]:
    return torch.zeros(size, size).double(), torch.zeros(size).double(), torch.zeros(size, dtype=torch.bool)
