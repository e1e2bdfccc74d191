"""The estimator of the population: steps of draws and Newton's method, in stages, until nothing is to be gained."""

from __future__ import annotations

import copy
import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from neuralpk.cohort_batch import CohortBatch
from neuralpk.estimation.fit_status import FitStatus
from neuralpk.estimation.held_draws import HeldDraws, PosteriorDraws
from neuralpk.estimation.held_likelihood import HeldLikelihood
from neuralpk.estimation.learned_numbers import SMALLEST_OMEGA, LearnedNumbers
from neuralpk.estimation.network_effect_prior import tune_network_effects
from neuralpk.estimation.population_newton import Ascent, ascend
from neuralpk.estimation.posterior_centres import SMALL_OMEGA, Gather, PosteriorCentres
from neuralpk.estimation.starting_values import starting_values
from neuralpk.inference.importance import effective_draws, log_mean_weight
from neuralpk.population_model import PopulationModel
from neuralpk.randomness import Stream

STAGES = (64, 256, 512)
_PATIENCE = 8  # steps of a last stage, after which further steps are worth little
_FEWEST_AVERAGED = 3  # last steps, of which the mean is the estimate
_SMALL_ERROR, _MOST_ERROR = 0.2, 0.5  # in −2LL: largest errors of a mean of so many steps, and without more draws
_GAIN_OF_ERROR = 50.0  # times the error: with as much to gain, a search is on its way
_COARSE, _FINE = 1e-2, 1e-4  # in log p: gain of the last of Newton's steps on a set of draws
_STEPS, _RESERVE_STEPS = 50, 2  # Newton's steps on a set of draws; with many draws one takes long
_MOST_VALUES = 2 * 10**8  # held predictions and their derivatives: bounds the memory
_STAGE_GAIN = 2.0  # in −2LL: with less to gain, more draws are worth more than another step
_STAGE_STEPS = 12
_LOSS = 10.0  # in −2LL: a step of predictions that moved after which new draws show a loss above this is halved
_HALVINGS = 6
_NEAR_END = 1.0  # on the logit scale: the mean of steps of which some ended at the end of a range
_FLAT = 0.01  # curvature; where it is smaller, the standard error is above 10 on the logarithmic scale
_FLAT_TO_DRAWS = 1.0  # the same where sets of draws disagree: what they find in a flat direction is chance
_FAR_LIKELIER = 50.0  # in −2LL: of two starts with the same curve, such a gain is no chance of a few steps
_TRIED_SUBJECTS, _TRIED_STEPS = 24, 10  # of the choice between starting values, at most


class PopulationEstimator:
    """Maximum of the marginal likelihood of a population, by outer steps over all subjects (`add`, then `step`).

    In an outer step every subject gets K draws of its individual parameters from a mixture around its posterior, whose
    dynamics are solved once. Newton's method then maximises log p(data) given these held draws, until their weights say
    little about the new population. Then they are renewed. A mixture that was made from draws fits the quasi-random
    numbers of these too well, and likelihoods from it with the same numbers are too small: because mixtures adapt
    (`PosteriorCentres.renew`), every step has numbers of its own. K grows from stage to stage. In the last one the
    steps differ by the Monte-Carlo error of their draws alone, and their mean is the estimate: the search ends when
    the error of the mean is less than 0.003 of −2LL after three steps, or 0.2 after eight. Where it is more, because
    posteriors are wide, K grows further (`reserve`). All of it is computed in float64 on a copy of the model.

    Args:
        model: whose population is estimated; its numbers are written after every step.
        seed: of the quasi-random numbers.
        stages: draws of each subject, by stage.
        gather: the same object of every device; by default there is one.

    Attributes:
        least_error: in −2LL; the search has converged when the Monte-Carlo error of the estimate is less, after the
            fewest steps of the last stage; after more steps a larger error suffices.
        last_steps: most steps of the last stage.
        reserve: further numbers of draws, for searches that the last stage does not end.
        target: the model whose numbers are written.
        centres: where the posterior of every subject lies.
        status: how the search ended; None before.
        history: every outer step.
        started: whether starting values were chosen.
        remark: on the starting values, and on an end at the Monte-Carlo error; empty for none.
        interrupted: of a search that is resumed, the subjects that already had draws in the step that was interrupted,
            by device.
        log_likelihood: log p(data) at the last draws, without the prior of the population; NaN before.
    """

    least_error: ClassVar[float] = 0.003
    last_steps: ClassVar[int] = 24
    reserve: ClassVar[tuple[int, ...]] = (2048, 8192)

    def __init__(
        self,
        model: PopulationModel,
        seed: int = 0,
        stages: tuple[int, ...] = STAGES,
        gather: Gather = lambda own: [own],
    ) -> None:
        self.target, self.seed, self.stages, self._gather = model, seed, stages, gather
        self.model = float64_copy(model)
        self.numbers = LearnedNumbers(self.model)
        self.stage, self.iteration, self.in_stage = 0, 0, 0
        self.status: FitStatus | None = None
        self.history: list[Ascent] = []
        self.log_likelihood = math.nan
        self.remark, self.started = "", False
        self.interrupted: list[list[int]] = []
        self.centres = PosteriorCentres(self.model, self.numbers, gather)
        self._draws: list[HeldDraws] = []
        self._drawn: dict[int, float] = {}
        self._before: tuple[Tensor, float] | None = None
        self._halvings = 0
        self._recent: list[tuple[Tensor, float]] = []  # vector and start of the last steps

    @property
    def finished(self) -> bool:
        """Whether the search has ended."""
        return self.status is not None

    @property
    def draws(self) -> int:
        """Draws of each subject in this stage."""
        return (*self.stages, *self.reserve)[self.stage] if self._has_draws else 1

    @property
    def _has_draws(self) -> bool:
        """Whether subjects differ."""
        return bool(self.model.latent_size or self.model.population.changing)

    @property
    def _in_last_stage(self) -> bool:
        """Whether the search may end."""
        return self.stage >= len(self.stages) - 1

    @property
    def _may_have_more_draws(self) -> bool:
        """Whether there is a further number of draws, for which the memory suffices."""
        more = (*self.stages, *self.reserve)[self.stage + 1 :]
        values = sum(held.predictions.size for held in self._draws)
        (most,) = [max(each) for each in zip(*self._gather((values,)), strict=True)]
        return bool(more) and self._has_draws and most / self.draws * more[0] <= _MOST_VALUES

    @property
    def gain(self) -> float:
        """What the last step gained, in −2LL; inf before."""
        return 2 * (self.history[-1].end - self.history[-1].start) if self.history else math.inf

    @property
    def _halved(self) -> bool:
        """Whether the last step was half of the one before, which new draws had not confirmed."""
        return bool(self.history) and math.isinf(self.history[-1].promise)

    # ---- the beginning

    def start(self, batch: CohortBatch) -> None:
        """Choose starting values from the data (`starting_values`). Where two sets of them fit the pooled samples, that
        with which a few steps with some of the subjects reach the larger likelihood; where both give the same curve,
        which are absorption and elimination that have changed places (flip-flop), the one nearer to the guess of the
        dynamics, unless the other is likelier by more than 50 of −2LL; one that is likelier by less is mentioned in the
        status, but for one that only exchanges two parameters which the model does not tell apart, such as the rates of
        two steps of an absorption.

        Args:
            batch: the subjects, or some of them; every record counts.
        """
        batch = batch.to(torch.float64).scored_on_all()
        usual, *others = starting_values(self.model, self.numbers, batch)
        if others:
            rows = torch.linspace(0, len(batch) - 1, min(len(batch), _TRIED_SUBJECTS)).round().long()
            some = batch.select(rows.to(batch.device))
            (other,) = others
            of_usual, of_other = self._tried(usual.vector, some), self._tried(other.vector, some)
            gain = 2 * (of_other.log_likelihood - of_usual.log_likelihood)
            if other.same_curve and gain > _FAR_LIKELIER:
                values, usual = self._typical(usual.vector), other
                self.remark = (
                    f"another maximum, with {values}, gives the typical patient the same curve and is less likely by "
                    f"about {gain:.0f} of -2LL (flip-flop)"
                )
            elif gain > 0 and not other.same_curve:
                usual = other
            elif gain > 0 and not self._interchangeable(other.exchanged, of_usual.numbers.get(), some):
                values = self._typical(other.vector)
                self.remark = (
                    f"another maximum, with {values}, gives the typical patient the same curve and may be likelier "
                    "(flip-flop); start there to find it"
                )
        # every device begins at the same numbers, also where each has its own subjects
        self.numbers.set(self._gather(usual.vector)[0])
        self.started = True

    def _typical(self, vector: Tensor) -> str:
        self.numbers.set(vector)
        return ", ".join(f"{name} {value:.3g}" for name, value in self.model.population.typical_values().items())

    def _interchangeable(self, parameters: tuple[str, ...], vector: Tensor, batch: CohortBatch) -> bool:
        """Whether the data are as likely, up to the Monte-Carlo error, with all numbers of two parameters in each
        other's place: their other order is then the same population.

        Args:
            parameters: the two; empty for none.
            vector: the learned numbers.
            batch: the subjects.
        """
        exchanged = self.numbers.exchanged(vector, *parameters) if parameters else None
        if exchanged is None:
            return False
        found = []
        for each in (vector, exchanged):
            self.numbers.set(each)
            trial = PopulationEstimator(self.model, self.seed, self.stages[-1:]).begin_here()
            found.append(float(trial.add(batch).sum() + trial.model.population_log_prior().detach()))
        return 2 * abs(found[0] - found[1]) < _MOST_ERROR

    def _tried(self, vector: Tensor, batch: CohortBatch) -> PopulationEstimator:
        """The search with some subjects a few steps after a start."""
        self.numbers.set(vector)
        trial = PopulationEstimator(self.model, self.seed, self.stages).begin_here()
        for _ in range(_TRIED_STEPS):
            trial.add(batch)
            trial.step()
            if trial.stage:
                break
        return trial

    def begin_here(self) -> PopulationEstimator:
        """Begin at the numbers as they are, and leave the model that was given as it is: ``self.model`` moves alone."""
        self.target, self.started = self.model, True
        return self

    def run(self, batch: CohortBatch) -> FitStatus:
        """All steps, with all subjects in one batch.

        Args:
            batch: the subjects; every record counts.
        """
        while self.status is None:
            self.add(batch)
            self.step()
        return self.status

    # ---- an outer step

    @torch.no_grad()
    def add(self, batch: CohortBatch) -> Tensor:
        """Draw for the subjects that have no draws yet in this step.

        Args:
            batch: the subjects; every record counts.

        Returns:
            log p(y) of every subject of the batch with the numbers as they are, ``[subject]``.
        """
        batch = batch.to(torch.float64).scored_on_all()
        rows = [k for k, index in enumerate(batch.index.tolist()) if index not in self._drawn]
        if rows:
            for part in batch.select(torch.tensor(rows, device=batch.device)).of_like_length():
                held = self.draw(part, *self._numbers_of_step)
                log_p = log_mean_weight(held.log_weight(self.numbers, self.numbers.get()))
                self._drawn |= dict(zip(held.batch.index.tolist(), log_p.tolist(), strict=True))
                self._draws.append(held)
        return batch.value.new_tensor([self._drawn[index] for index in batch.index.tolist()])

    def posterior(self, batch: CohortBatch) -> PosteriorDraws | None:
        """Draws of z at which an optimiser follows the gradient of the likelihood; None where there are no weights that
        it moves.

        Args:
            batch: subjects that have been added.
        """
        return None

    def draw(
        self, batch: CohortBatch, number: int = 0, stream: Stream = Stream.ESTIMATION, moves: bool = True
    ) -> HeldDraws:
        """Draws of some subjects around their posterior.

        Args:
            batch: float64.
            number: which set of quasi-random numbers of the stream.
            stream: ``Stream.PROPOSALS`` of draws that proposals adapt to, so that their numbers are those of no
                likelihood.
            moves: of `HeldDraws.draw`.
        """
        wide, proposal = self.centres.proposal(batch, self.target, self._most_steps)
        # the first numbers of the estimation are those of starting values
        at, standardised = stream.at(2 + number), self.centres.standardised
        return HeldDraws.draw(
            self.model, self.numbers, batch, proposal, wide, self.seed, at, self.draws, standardised, moves
        )

    @property
    def _numbers_of_step(self) -> tuple[int, Stream]:
        """Quasi-random numbers: which set of which stream."""
        return self.iteration, Stream.PROPOSALS

    @property
    def _most_steps(self) -> int:
        """Of the search for a centre."""
        return 30

    def likelihood(self, draws: list[HeldDraws] | None = None) -> HeldLikelihood:
        """The likelihood given the draws of `add`, or given others."""
        held = self._draws if draws is None else draws
        return HeldLikelihood(self.numbers, held, lambda tensor: torch.stack(self._gather(tensor)).sum(0))

    def end_pass(self) -> None:
        """All subjects have been added."""
        self.step()

    def step(self) -> Ascent:
        """One outer step with the draws of `add`: move the population and write it to the model."""
        likelihood, here = self.likelihood(), self.numbers.get()
        start, _ = likelihood.value(here)
        moved = any(held.predictions.movers.numbers for held in self._draws)
        if moved and self._before and 2 * (self._before[1] - start) > _LOSS and self._halvings < _HALVINGS:
            # the new draws do not confirm the last step: half of it
            self._halvings += 1
            self.numbers.set((here + self._before[0]) / 2)
            nothing = torch.zeros_like(here)
            ascent = Ascent(self.numbers.get(), start, start, math.inf, nothing.diag(), nothing.bool())
        else:
            steps = _STEPS if self.stage < len(self.stages) else _RESERVE_STEPS
            ascent = ascend(likelihood, here, self._tolerance, steps)
            self._before, self._halvings = (here, start), 0
        self.iteration += 1
        self.in_stage += 1
        self.history.append(ascent)
        self._recent = [*self._recent, (ascent.vector, ascent.start)][-_PATIENCE:]
        self.log_likelihood = ascent.end - float(self.model.population_log_prior().detach())
        self.centres.renew(self._draws)
        if not self._in_last_stage and tune_network_effects(self.model, self.target, likelihood, ascent.bound):
            self._before = None
        self._advance(ascent)
        self._draws, self._drawn = [], {}
        with torch.no_grad():
            for mine, of_target in zip(self.model.population_weights(), self.target.population_weights(), strict=True):
                of_target.copy_(mine)
        return ascent

    @property
    def _tolerance(self) -> float:
        """Gain of the last of Newton's steps on a set of draws, in log p."""
        return _FINE if self.stage == len(self.stages) - 1 else _COARSE

    # ---- the end

    def _advance(self, ascent: Ascent) -> None:
        """The next stage, or the end."""
        gain = max(2 * (ascent.end - ascent.start), 0.0)
        if not self._in_last_stage:
            if not self._halved and (gain < _STAGE_GAIN or self._stands or self.in_stage >= _STAGE_STEPS):
                self._next_stage()
            return
        error, count = self._monte_carlo_error(ascent)
        patient, enough = self.in_stage >= _PATIENCE, self._small_error
        if not self._halved and error < enough and ascent.promise < _GAIN_OF_ERROR * enough:
            self._end_at_mean(error, count)
        elif patient and self._may_have_more_draws:
            self._next_stage()
        elif patient and error < _MOST_ERROR:
            self._end_at_mean(error, count)
        elif self.in_stage >= self.last_steps:
            self.finish(f"-2LL still changes by {gain:.2g} in a step with {self.draws} draws")

    @property
    def _small_error(self) -> float:
        """The Monte-Carlo error with which a search may end: the larger, the more steps it has taken."""
        share = min((self.in_stage - _FEWEST_AVERAGED) / (_PATIENCE - _FEWEST_AVERAGED), 1.0)
        grown: float = self.least_error * (_SMALL_ERROR / self.least_error) ** share
        return max(grown, self.least_error)

    @property
    def _stands(self) -> bool:
        """Whether the last steps of a stage have not led to a larger likelihood."""
        starts = [start for _, start in self._recent[-self.in_stage :]]
        return len(starts) > 2 and 2 * (starts[-1] - max(starts[:-1])) < _STAGE_GAIN

    def _next_stage(self) -> None:
        self.stage, self.in_stage, self._before = self.stage + 1, 0, None

    def _monte_carlo_error(self, ascent: Ascent) -> tuple[float, int]:
        """In −2LL, how much likelier the maximum is than the mean of the last populations, whose draws are independent;
        and of how many of them, the number with which that is least. Populations on their way lie far apart. inf of too
        few."""
        moving = self.numbers.free & ~ascent.bound
        values, axes = torch.linalg.eigh(ascent.curvature[moving][:, moving])
        scaled = torch.stack([self.numbers.search_scale(vector)[0] for vector, _ in self._recent])[:, moving] @ axes
        found = [(math.inf, 0)]
        for count in range(_FEWEST_AVERAGED, min(self.in_stage, len(scaled)) + 1):
            distance = scaled[-count:] - scaled[-count:].mean(0)
            found.append((float((distance.square() * values.abs()).sum()) / (count - 1) / count, count))
        return min(found)

    def _end_at_mean(self, error: float, count: int) -> None:
        """End at the mean of the last populations.

        Args:
            error: that of `_monte_carlo_error`.
            count: how many.
        """
        scaled = torch.stack([self.numbers.search_scale(vector)[0] for vector, _ in self._recent[-count:]])
        vector, numbers = self.numbers.from_search_scale(scaled.mean(0)), self.numbers
        # near an end of a range the likelihood is flat, and some of the steps ended there
        for k in numbers.of(self.model.population.location):
            for end in (numbers.low[k], numbers.high[k]):
                if abs(vector[k] - end) < _NEAR_END:
                    vector[k] = end
        numbers.set(vector)
        if error > _SMALL_ERROR:
            remark = f"steps end at the Monte-Carlo error of {self.draws} draws, {error:.2g} of -2LL"
            self.remark = f"{self.remark}; {remark}" if self.remark else remark
        self.finish(flat=_FLAT if error <= _SMALL_ERROR else _FLAT_TO_DRAWS, gain=error)

    def finish(self, reason: str = "", flat: float = _FLAT, gain: float | None = None) -> FitStatus:
        """End the search.

        Args:
            reason: why it has not converged; empty if it has.
            flat: curvature below which the data leave a direction open.
            gain: that of the status; by default what the last step promised.
        """
        ascent = next((one for one in reversed(self.history) if not math.isinf(one.promise)), None)
        names, bounds, undetermined = self.numbers.names(), [], []
        if ascent is not None:
            vector, bound, population = self.numbers.get(), ascent.bound.clone(), self.model.population
            of_location = self.numbers.of(population.location)
            bound[of_location] |= ((vector >= self.numbers.high) | (vector <= self.numbers.low))[of_location]
            bounds = [names[k] for k in bound.nonzero()[:, 0].tolist()]
            small = vector < self.numbers.low + math.log(SMALL_OMEGA / SMALLEST_OMEGA)
            at_end = bound[of_location].tolist()
            ended = {name for name, end in zip(population.names, at_end, strict=False) if end}
            # a small omega is known to be small, though its likelihood is flat there, and patients do not differ in a
            # parameter that is at an end of its range
            for k, group in zip(self.numbers.of(population.log_omega), population.omega_groups, strict=False):
                small[k] |= ended >= {*group}
            undetermined = [
                names[k] for k in _flat(ascent.curvature, self.numbers.free & ~bound, flat) if not bool(small[k])
            ]
            if undetermined:
                reason = self._of_undetermined(", ".join(undetermined)) or reason
        fewest, subject = math.inf, ""
        for held in self._draws:
            found = effective_draws(held.log_weight(self.numbers, self.numbers.get()))
            k = int(found.argmin())
            fewest, subject = min((fewest, subject), (float(found[k]), held.batch.ids[k]))
        fewest, subject = min(self._gather((fewest, subject)))
        if gain is None:
            gain = math.nan if ascent is None else ascent.promise
        self.status = FitStatus(
            converged=not reason,
            reason=reason,
            iterations=self.iteration,
            gain=gain,
            bounds=tuple(bounds),
            undetermined=tuple(undetermined),
            draws=self.draws,
            smallest_effective=fewest,
            subject=subject,
            remark=self.remark,
        )
        return self.status

    def _of_undetermined(self, names: str) -> str:
        """Why a search has not converged that the data leave open in some numbers."""
        return f"the data do not determine {names}"

    # ---- between sessions of a training

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed search needs, as tensors and plain values."""
        return self.centres.state_dict() | {
            "numbers": self.numbers.get(),
            "counts": [self.stage, self.in_stage, self.iteration],
            "recent": [(vector.clone(), start) for vector, start in self._recent],
            "drawn": self._gather(list(self._drawn)),
            "log_likelihood": self.log_likelihood,
            "remark": self.remark,
            "status": None if self.status is None else self.status.plain(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from the state of another search of the same model."""
        self.numbers.set(state["numbers"].to(self.numbers.device))
        self.stage, self.in_stage, self.iteration = state["counts"]
        self.started = True
        self.interrupted = state["drawn"]
        self.centres.load_state_dict(state)
        device = self.numbers.device
        self._recent = [(vector.to(device), start) for vector, start in state["recent"]]
        self.log_likelihood, self.remark = state["log_likelihood"], state["remark"]
        # a search that a bound of the Trainer ended goes on
        status = None if state["status"] is None else FitStatus.from_plain(state["status"])
        self.status = status if status is not None and status.converged else None


def float64_copy(model: PopulationModel) -> PopulationModel:
    """A copy in which only the numbers of the population and of the residual error are learned, in float64; a dynamics
    with weights keeps its digits, for which its kernels are compiled."""
    made: PopulationModel = copy.deepcopy(model).requires_grad_(False).double()
    if model.has_network:
        made.dynamics = copy.deepcopy(model.dynamics).requires_grad_(False)
    for mine, of_model in zip(made.population_weights(), model.population_weights(), strict=True):
        mine.requires_grad_(of_model.requires_grad)
    return made


def _flat(curvature: Tensor, moving: Tensor, least: float) -> list[int]:
    """Positions of the moving numbers that take part in a direction in which the curvature is below the least."""
    free = moving.nonzero()[:, 0]
    values, axes = torch.linalg.eigh(curvature[free][:, free])
    flat = axes[:, values < least].abs().amax(1) if bool((values < least).any()) else torch.zeros_like(values)
    found: list[int] = free[flat > 0.3].tolist()
    return found
