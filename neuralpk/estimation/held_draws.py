"""Held draws: individual parameters of every subject that were drawn and solved once, and the likelihood of any other
population given them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from neuralpk.cohort_batch import CohortBatch
from neuralpk.estimation.learned_numbers import LearnedNumbers, Movers
from neuralpk.estimation.proposals import Proposal
from neuralpk.inference.importance import effective_draws, log_mean_weight
from neuralpk.population_model import PopulationModel

_STEP = 1e-3  # on the learned scale, for differences in float64
_MOVE = 1e-2  # of what moves predictions: far above the error of a solver
_NEAR = 0.3  # on the learned scale: farther away, predictions are not taken as quadratic
_SOLVED_AT_ONCE = 40_000  # curves: bounds the memory

Reduce = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class HeldDraws:
    """Draws of the individual parameters of some subjects, with their predictions.

    With theta of the draws held, log p(y) of another population needs no solution of the dynamics::

        p(y) ≈ 1/K Σ_k p(y | theta_k)·p(theta_k)/q(theta_k)

    Of some parameters (`standardised`) eta/omega is held instead of the value: those with a small omega, whose typical
    value could otherwise move by no more than that. These parameters and those without variability move with the
    numbers of the population while the draws are held, and so do covariate effects where covariates change in time.
    Predictions are quadratic in how far these have moved since the draw: the second order decides where the likelihood
    has a long flat ridge.

    With what moves, the held parameters of every subject move too, by a fixed share of it (`shares`), so that its
    predictions and its prior change least. Any shares are right, because such a move takes no volume; these leave the
    derivatives of the likelihood the variance between draws that the subject's own information has. Without them the
    derivative in KM, say, with VMAX held, has that of a parameter that the patient's data know well, while VMAX and KM
    together are what they leave open.

    Args:
        batch: the subjects; ``target`` says which records count.
        unconstrained: theta on the scale of the random effects, at the first record and without kappa, and kappa of
            every occasion (`PopulationParameters.unconstrained`), ``[subject, draw, parameter]``.
        log_q: log density of the proposal of `unconstrained`, ``[subject, draw]``; inf for a draw without solution.
        value: predictions, ``[draw, subject, observation]``; 1 where there is no solution. Where the population has a
            parameter of the residual error, the logarithms of its factor follow as further observations.
        slopes: their derivatives in what moves (`_moves`), ``[move, draw, subject, observation]``.
        bends: their second derivatives, ``[move, move, draw, subject, observation]``.
        moving: what moves, and the learned numbers that move it.
        shares: how far the held parameters go with each move, ``[subject, move, parameter]``.
        standardised: names of the parameters whose eta/omega is held.
        location: typical values at the draw, on the scale of the random effects, ``[parameter]``.
        centre: the same with the effects of each subject's covariates, ``[subject, 1, parameter]``.
        at: the vector at which they were drawn.
    """

    batch: CohortBatch
    unconstrained: Tensor
    log_q: Tensor
    value: Tensor
    slopes: Tensor
    bends: Tensor
    moving: Movers
    shares: Tensor
    standardised: tuple[str, ...]
    location: Tensor
    centre: Tensor
    at: Tensor

    @classmethod
    @torch.no_grad()
    def draw(
        cls, model: PopulationModel, numbers: LearnedNumbers, batch: CohortBatch, proposal: Proposal, wide: Tensor,
        seed: int, stream: int, draws: int, standardised: tuple[str, ...] = (), moves: bool = True,
    ) -> HeldDraws:  # fmt: skip
        """Draw from a proposal and solve.

        Args:
            model: the population model.
            numbers: its learned numbers.
            batch: the subjects.
            proposal: of z under the population `wide`.
            wide: vector of the population under which the proposal was made.
            seed: of the fit.
            stream: of the random numbers.
            draws: for each subject.
            standardised: parameters whose eta/omega is held.
            moves: whether the numbers that move predictions are to move.
        """
        at = numbers.get()
        numbers.set(wide)
        z, log_q = proposal.draw(seed, stream, batch.index, draws)
        held = model.population.unconstrained(z, batch.covariates[:, :1], batch.occasions[:, None])
        middle = model.population.unconstrained(
            proposal.centre[:, :1], batch.covariates[:, :1], batch.occasions[:, None]
        )
        log_volume = model.population.z_of(held, batch.covariates[:, :1], batch.occasions[:, None])[1]
        numbers.set(at)
        moving = numbers.of_predictions(batch, standardised) if moves else Movers()
        location, centre = model.population.location.clone(), model.population.centre(batch.covariates[:, :1])
        value = _predict(model, held, batch)
        shares = _shares(numbers, middle, batch, moving, standardised)
        size = shares.shape[1]
        slopes, bends = value.new_zeros((size, *value.shape)), value.new_zeros((size, size, *value.shape))

        def moved(*steps: tuple[int, int]) -> Tensor:
            return _predict_moved(numbers, held, batch, moving, shares, [(k, sign * _MOVE) for k, sign in steps])

        ends = [(moved((k, 1)), moved((k, -1))) for k in range(size)]
        for k, (above, below) in enumerate(ends):
            slopes[k] = (above - below) / (2 * _MOVE)
            bends[k, k] = (above - 2 * value + below) / _MOVE**2
            for m in range(k):
                both = moved((k, 1), (m, 1)) + moved((k, -1), (m, -1))
                bends[k, m] = bends[m, k] = (both - above - below - sum(ends[m]) + 2 * value) / (2 * _MOVE**2)
        solved = torch.isfinite(torch.where(batch.target, value[..., : batch.target.shape[1]], 0.0)).all(-1).T
        log_q = torch.where(solved, log_q + log_volume, torch.inf)
        value, slopes, bends = value.nan_to_num(1.0), slopes.nan_to_num(0.0), bends.nan_to_num(0.0)
        return cls(batch, held, log_q, value, slopes, bends, moving, shares, standardised, location, centre, at)

    @property
    def movers(self) -> list[int]:
        """Positions of the numbers that move predictions, in the vector of learned numbers."""
        return self.moving.numbers

    @cached_property
    def _distance(self) -> Tensor:
        """1, and the held parameters less their mean, ``[subject, draw, 1 + parameter]``."""
        distance = self.unconstrained - self.unconstrained.mean(1, keepdim=True)
        return torch.cat([torch.ones_like(distance[..., :1]), distance], dim=-1)

    def _moved(self, numbers: LearnedNumbers, held: Tensor) -> tuple[Tensor, Tensor]:
        """Parameters that were held at the draw as they are in the population now, both ``[subject, draw, parameter]``,
        and the log of the volume that they take of that at the draw, a scalar."""
        if not self.movers:
            return held, held.new_zeros(())
        added = self._moves(numbers, held) @ self.shares
        return held + added, self._log_ratio(numbers).sum()

    def _moves(self, numbers: LearnedNumbers, held: Tensor) -> Tensor:
        """How far the parameters in `moving`, on the scale of the random effects, and after them the numbers in it have
        moved since the draw, ``[subject, draw, move]``, of held parameters ``[subject, draw, parameter]``."""
        population = numbers.model.population
        varying, named = population.selection.sum(0), held[..., : len(population.names)]
        typical = population.centre(self.batch.covariates[:, :1]) - self.centre
        if self.moving.in_time:  # of a parameter without variability; its effects move by themselves
            typical = torch.where(varying > 0, typical, population.location - self.location)
        ratio = torch.expm1(self._log_ratio(numbers)) @ population.selection
        of_parameters = (typical + (named - self.centre) * ratio)[..., self.moving.parameters]
        of_numbers = (numbers.flat(numbers.tensors) - self.at)[self.moving.in_time]
        return torch.cat([of_parameters, of_numbers.expand(*of_parameters.shape[:2], -1)], dim=-1)

    def _log_ratio(self, numbers: LearnedNumbers) -> Tensor:
        """log of omega over that at the draw, 0 of parameters that are not standardised, ``[varying]``."""
        population = numbers.model.population
        if not self.standardised:
            return torch.zeros_like(population.log_omega_by_parameter())
        chosen = self.centre.new_tensor([float(name in self.standardised) for name in population.varying])
        return (population.log_omega_by_parameter() - self.at[numbers.omega]) * chosen

    def z(self, numbers: LearnedNumbers) -> tuple[Tensor, Tensor]:
        """z of the draws in the population as it is now, ``[subject, draw, latent]``, and log |dz/dx| with x the
        parameters that were held at the draw, ``[subject, 1]``."""
        to_z, log_volume = self._to_z(numbers)
        return self._distance @ to_z, log_volume

    def _to_z(self, numbers: LearnedNumbers) -> tuple[Tensor, Tensor]:
        """z is linear in what is held: the matrix that makes z of `_distance`, ``[subject, 1 + parameter, latent]``,
        and log |dz/dx|, ``[subject, 1]``."""
        batch, mean = self.batch, self.unconstrained.mean(1, keepdim=True)
        units = torch.eye(mean.shape[-1], dtype=mean.dtype, device=mean.device)
        held, log_held_volume = self._moved(numbers, torch.cat([mean, mean + units], dim=1))
        z, log_volume = numbers.model.population.z_of(held, batch.covariates[:, :1], batch.occasions[:, None])
        to_z = torch.cat([z[:, :1], z[:, 1:] - z[:, :1]], dim=1)
        return to_z, (log_volume + log_held_volume).expand(len(to_z), 1)

    def _fit(self, numbers: LearnedNumbers) -> Tensor:
        """log p(y | theta) of every draw, ``[subject, draw]``."""
        value = self.value
        if self.movers:
            by = self._moves(numbers, self.unconstrained).permute(2, 1, 0)[..., None]
            value = value + (by * (self.slopes + 0.5 * (by[:, None] * self.bends).sum(0))).sum(0)
        width, factor = self.batch.target.shape[1], None
        if numbers.model.has_factor:
            value, factor = value[..., :width], value[..., width:].exp()
        found: Tensor = numbers.model.error.log_likelihood(self.batch, value, factor).sum(-1).T
        return found.nan_to_num(-torch.inf, posinf=-torch.inf)

    def _density(self, numbers: LearnedNumbers) -> Tensor:
        """log p(theta)/q(theta) of every draw, ``[subject, draw]``."""
        z, log_volume = self.z(numbers)
        return numbers.model.log_density(z) + log_volume - self.log_q

    @torch.no_grad()
    def log_weight(self, numbers: LearnedNumbers, vector: Tensor) -> Tensor:
        """log of p(y, theta)/q(theta) of every draw under the population `vector`, ``[subject, draw]``."""
        numbers.set(vector)
        return self._fit(numbers) + self._density(numbers)

    def derivatives(self, numbers: LearnedNumbers, vector: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Σ log p(y) over the subjects, with its first and second derivatives in the learned numbers.

        With w the share of a draw in the likelihood and l its log weight, of each subject (Louis 1982)::

            ∂² log p(y) = E_w[∂² l] + Cov_w[∂ l]

        p(y | theta) is expanded to the second order in the numbers that it depends on, by differences in float64, which
        serve any residual error. The density of theta is differentiated exactly: log N(z; 0, I) is a quadratic form of
        what is held, so that a matrix for each subject stands for all of its draws.

        Returns:
            A scalar, ``[number]`` and ``[number, number]``.
        """
        direct = numbers.of_error() + self.movers
        fit, slope, curvature = self._expansion(numbers, vector, direct)
        numbers.set(vector)
        log_weight = fit + self._density(numbers).detach()
        share = torch.softmax(log_weight, dim=1).nan_to_num(0.0)  # 0 of a subject without a draw that can be
        with torch.enable_grad(), _Shifts(numbers, self.batch.covariates[:, :1], self.movers) as shifts:
            moments = self._moments(share).requires_grad_()
            first, second, of_moments = shifts.derivatives(self._expected(numbers, moments), moments)
        scores = torch.stack([((self._distance @ one) * self._distance).sum(-1) for one in of_moments], dim=-1)
        scores[..., [shifts.others.index(k) for k in direct]] += slope
        mean = (share[:, None] @ scores)[:, 0]
        second += shifts.on_numbers((share[..., None] * scores).mT @ scores - mean[:, :, None] * mean[:, None])
        first[direct] += (share[..., None] * slope).sum((0, 1))
        rows = torch.tensor(direct, dtype=torch.long, device=first.device)
        second[rows[:, None], rows] += (share[..., None, None] * curvature).sum((0, 1))
        return log_mean_weight(log_weight).sum(), first, second

    def gradient(self, numbers: LearnedNumbers, vector: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The value and the first derivatives of `derivatives`, in less time, and the effective draws.

        Returns:
            A scalar, ``[number]`` and ``[subject]``.
        """
        direct = numbers.of_error() + self.movers
        fit, slope, _ = self._expansion(numbers, vector, direct, second=False)
        numbers.set(vector)
        log_weight = fit + self._density(numbers).detach()
        share = torch.softmax(log_weight, dim=1).nan_to_num(0.0)  # 0 of a subject without a draw that can be
        with torch.enable_grad():
            first = numbers.flat(_gradient(self._expected(numbers, self._moments(share)), numbers)).detach()
        first[direct] += (share[..., None] * slope).sum((0, 1))
        return log_mean_weight(log_weight).sum(), first, effective_draws(log_weight)

    def _moments(self, share: Tensor) -> Tensor:
        """Σ_k w_k·d_k·d_kᵀ of `_distance` d, ``[subject, 1 + parameter, 1 + parameter]``."""
        return (share[..., None] * self._distance).mT @ self._distance

    def _expected(self, numbers: LearnedNumbers, moments: Tensor) -> Tensor:
        """Σ_k w_k·log p(theta_k) with the shares w held, up to a constant: the sum over the subjects, a scalar."""
        to_z, log_volume = self._to_z(numbers)
        return log_volume.sum() - 0.5 * ((moments @ to_z) * to_z).sum()

    @torch.no_grad()
    def _expansion(
        self, numbers: LearnedNumbers, vector: Tensor, direct: list[int], second: bool = True
    ) -> tuple[Tensor, Tensor, Tensor]:
        """log p(y | theta), its slope and curvature in some numbers: ``[subject, draw]``, ``[subject, draw, number]``,
        ``[subject, draw, number, number]``; 0 where there is no solution. Without `second` the curvature is not to be
        used."""

        def at(*moves: tuple[int, int]) -> Tensor:
            moved = vector.clone()
            for k, sign in moves:
                moved[direct[k]] += sign * _STEP
            numbers.set(moved)
            return self._fit(numbers)

        centre, size = at(), len(direct)
        slope, curvature = centre.new_zeros((*centre.shape, size)), centre.new_zeros((*centre.shape, size, size))
        ends = [(at((k, 1)), at((k, -1))) for k in range(size)]
        for k, (above, below) in enumerate(ends):
            slope[..., k] = (above - below) / (2 * _STEP)
            curvature[..., k, k] = (above - 2 * centre + below) / _STEP**2
            for m in range(k if second else 0):
                both = at((k, 1), (m, 1)) + at((k, -1), (m, -1))
                alone = above + below + ends[m][0] + ends[m][1]
                curvature[..., k, m] = curvature[..., m, k] = (both - alone + 2 * centre) / (2 * _STEP**2)
        return centre, slope.nan_to_num(0.0, 0.0, 0.0), curvature.nan_to_num(0.0, 0.0, 0.0)


class _Shifts:
    """First and second derivatives of a sum over subjects in all learned numbers, where the shifts by networks of
    covariates take the place of their many weights: the shift of a subject is linear in them.

    Args:
        numbers: the learned numbers, of which a function is differentiated.
        covariates: of the subjects, at the first record, ``[subject, 1, covariate]``.
        movers: positions of the numbers that change predictions; a network among them is differentiated as it is.
    """

    def __init__(self, numbers: LearnedNumbers, covariates: Tensor, movers: Sequence[int]) -> None:
        self.numbers = numbers
        population = numbers.model.population
        self.effects, self.features, self.shifts = [], [], []
        for effect in population.network_effects():
            if not set(numbers.of(effect.weight)) & set(movers):
                features = effect.features(covariates[..., population.columns_of(effect)]).detach()
                self.effects.append(effect)
                self.features.append(features[:, 0].double())
                self.shifts.append((features @ effect.weight).detach().requires_grad_())
        self.places = [numbers.of(effect.weight) for effect in self.effects]
        inside = {k for places in self.places for k in places}
        self.others = [k for k in range(numbers.size) if k not in inside]

    def __enter__(self) -> _Shifts:
        for effect, shift in zip(self.effects, self.shifts, strict=True):
            effect.held_shift = shift
        return self

    def __exit__(self, *_: object) -> None:
        for effect in self.effects:
            effect.held_shift = None

    def derivatives(self, total: Tensor, moments: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Of a scalar: ``[number]`` and ``[number, number]``, and the derivatives of the first ones in `moments`, those
        in `others` and then in the shifts, each ``[subject, 1 + parameter, 1 + parameter]``."""
        numbers, size = self.numbers, len(self.numbers.tensors)

        def slopes(value: Tensor, create_graph: bool = False) -> tuple[Tensor, list[Tensor], Tensor]:
            inputs = [*numbers.tensors, *self.shifts, moments]
            found = torch.autograd.grad(
                value, inputs, retain_graph=True, create_graph=create_graph, materialize_grads=True
            )
            return numbers.flat(found[:size]), [one[:, 0] for one in found[size:-1]], found[-1]

        first, by_shift, _ = slopes(total, create_graph=True)
        second = torch.zeros(numbers.size, numbers.size, dtype=torch.float64, device=numbers.device)
        of_moments = []
        for k in self.others:
            row, of_shifts, of_moment = slopes(first[k])
            of_moments.append(of_moment)
            second[k, self.others] = row[self.others]
            for places, features, mixed in zip(self.places, self.features, of_shifts, strict=True):
                second[k, places] = second[places, k] = mixed @ features
        for places, features, one in zip(self.places, self.features, by_shift, strict=True):
            _, of_shifts, of_moment = slopes(one.sum())  # a subject has no part in the sum of another
            of_moments.append(of_moment)
            for others, other_features, curvature in zip(self.places, self.features, of_shifts, strict=True):
                second[torch.tensor(places)[:, None], others] = (features.T * curvature) @ other_features
        whole = first.detach().clone()
        for places, features, one in zip(self.places, self.features, by_shift, strict=True):
            whole[places] = one.detach() @ features
        return whole, second.detach(), of_moments

    def on_numbers(self, matrices: Tensor) -> Tensor:
        """The sum over the subjects of matrices in `others` and the shifts, ``[subject, other + shift, other +
        shift]``, in all numbers, ``[number, number]``: the shifts are linear in the numbers that they stand for."""
        count, size = len(self.others), self.numbers.size
        others = torch.tensor(self.others, dtype=torch.long, device=matrices.device)
        second = matrices.new_zeros((size, size))
        second[others[:, None], others] = matrices[:, :count, :count].sum(0)
        for k, (places, features) in enumerate(zip(self.places, self.features, strict=True)):
            rows = torch.tensor(places, device=matrices.device)[:, None]
            second[rows, others] = features.T @ matrices[:, count + k, :count]
            second[others[:, None], places] = second[rows, others].T
            for m, (columns, other_features) in enumerate(zip(self.places, self.features, strict=True)):
                second[rows, columns] = (features.T * matrices[:, count + k, count + m]) @ other_features
        return second


@dataclass(frozen=True)
class PosteriorDraws:
    """Draws of z of each subject from its posterior.

    Args:
        z: ``[subject, draw, latent]``.
        log_likelihood: log p(y) where they were drawn, ``[subject]``.
    """

    z: Tensor
    log_likelihood: Tensor


class HeldLikelihood:
    """log p(data), and of the prior of the population, as a function of the learned numbers, given held draws.

    Args:
        numbers: the learned numbers.
        draws: of all subjects, in parts.
        reduce: sums a tensor over devices.

    Attributes:
        low: lower bounds of the numbers, within which the held draws can say something.
        high: upper bounds.
    """

    def __init__(self, numbers: LearnedNumbers, draws: Sequence[HeldDraws], reduce: Reduce) -> None:
        self.numbers, self.draws, self.reduce = numbers, draws, reduce
        self.low, self.high = numbers.low.clone(), numbers.high.clone()
        for held in draws:
            omega = [k for k in held.movers if k in numbers.omega]
            others = [k for k in held.movers if k not in numbers.omega]
            reach = _NEAR * numbers.reach(held.at)[others]
            self.low[others] = torch.maximum(numbers.low[others], held.at[others] - reach)
            self.high[others] = torch.minimum(numbers.high[others], held.at[others] + reach)
            here = held.at[omega].exp()
            self.low[omega] = torch.maximum(numbers.low[omega], (here - _NEAR / 2).clamp(min=0.0).log())
            self.high[omega] = (here + _NEAR / 2).log()

    def value(self, vector: Tensor) -> tuple[float, float]:
        """log p(data) + log prior, and the mean effective number of draws."""
        total, effective, subjects = 0.0, 0.0, 0
        for held in self.draws:
            log_weight = held.log_weight(self.numbers, vector)
            total += float(log_mean_weight(log_weight).sum())
            effective += float(effective_draws(log_weight).sum())
            subjects += len(log_weight)
        sums = self.reduce(torch.tensor([total, effective, subjects], dtype=torch.float64))
        self.numbers.set(vector)
        prior = float(self.numbers.model.population_log_prior().detach())
        return float(sums[0]) + prior, float(sums[1] / sums[2].clamp(min=1))

    def derivatives(self, vector: Tensor) -> tuple[float, Tensor, Tensor]:
        """log p(data) + log prior, ``[number]`` and ``[number, number]``."""
        n = self.numbers.size
        total = torch.zeros(1 + n + n * n, dtype=torch.float64, device=self.numbers.device)
        for held in self.draws:
            value, first, second = held.derivatives(self.numbers, vector)
            total += torch.cat([value.reshape(1), first, second.flatten()])
        total = self.reduce(total)
        value, first, second = total[0], total[1 : 1 + n], total[1 + n :].view(n, n)
        prior, of_prior, prior_curvature = self._prior(vector)
        return float(value) + prior, first + of_prior, second + prior_curvature

    def gradient(self, vector: Tensor) -> tuple[float, Tensor, float]:
        """log p(data) + log prior, its first derivatives, ``[number]``, and the mean effective number of draws."""
        n = self.numbers.size
        total = torch.zeros(3 + n, dtype=torch.float64, device=self.numbers.device)
        for held in self.draws:
            value, first, effective = held.gradient(self.numbers, vector)
            total += torch.cat([torch.stack([value, effective.sum(), value.new_tensor(len(effective))]), first])
        total = self.reduce(total)
        prior, of_prior, _ = self._prior(vector)
        return float(total[0]) + prior, total[3:] + of_prior, float(total[1] / total[2].clamp(min=1))

    def _prior(self, vector: Tensor) -> tuple[float, Tensor, Tensor]:
        numbers = self.numbers
        numbers.set(vector)
        with torch.enable_grad():
            prior = numbers.model.population_log_prior()
            if not prior.requires_grad:
                return float(prior), torch.zeros_like(vector), torch.zeros_like(vector).diag()
            first = numbers.flat(_gradient(prior, numbers, create_graph=True))
            second = torch.zeros_like(first).diag()
            networks = numbers.model.population.network_effects()
            for effect in networks:
                places = numbers.of(effect.weight)
                second[places, places] = -effect.precision().double()
            inside = {k for effect in networks for k in numbers.of(effect.weight)}
            for k, one in enumerate(first.unbind()):
                if k not in inside and one.requires_grad:
                    second[k] = numbers.flat(_gradient(one, numbers))
        return float(prior.detach()), first.detach(), second.detach()


def _gradient(value: Tensor, numbers: LearnedNumbers, create_graph: bool = False) -> list[Tensor]:
    return list(
        torch.autograd.grad(
            value, numbers.tensors, retain_graph=True, create_graph=create_graph, materialize_grads=True
        )
    )


def _predict(model: PopulationModel, unconstrained: Tensor, batch: CohortBatch) -> Tensor:
    """Predictions of individual parameters, ``[draw, subject, observation]``, float64, and after them the logarithms of
    the factor of the residual error, where there is one; NaN without a solution. The dynamics are solved with the
    digits of their weights, where they have any."""
    z = model.population.z_of(unconstrained, batch.covariates[:, :1], batch.occasions[:, None])[0]
    draws, parts = z.shape[1], []
    digits = next((weight.dtype for weight in model.dynamics.parameters()), z.dtype)
    for rows in torch.split(torch.arange(len(batch), device=batch.device), max(1, _SOLVED_AT_ONCE // draws)):
        repeated = batch.select(rows).repeat(draws)
        of_rows = z[rows].flatten(0, 1)
        theta = model.theta(of_rows, repeated).to(digits)
        trajectory = model.dynamics.follow(theta, repeated.to(digits), None, model.engine)
        value = model.recorded(trajectory.states, trajectory.theta, repeated).to(z.dtype)
        factor = model.factor(of_rows, repeated)
        value = value if factor is None else torch.cat([value, factor.log()], dim=-1)
        parts.append(value.reshape(len(rows), draws, -1).transpose(0, 1))
    return torch.cat(parts, dim=1)


def _predict_moved(
    numbers: LearnedNumbers, held: Tensor, batch: CohortBatch, moving: Movers, shares: Tensor,
    steps: Sequence[tuple[int, float]],
) -> Tensor:  # fmt: skip
    """`_predict` where some of what moves has made a step."""
    population, here = numbers.model.population, numbers.get()
    location, vector = population.location.clone(), here.clone()
    for k, step in steps:
        held = held + step * shares[:, k : k + 1]
        if k >= len(moving.parameters):
            vector[moving.in_time[k - len(moving.parameters)]] += step
    numbers.set(vector)
    for k, step in steps:
        if k < len(moving.parameters):
            # of a parameter that varies only the held value counts
            population.location[moving.parameters[k]] += step
    found = _predict(numbers.model, held, batch)
    numbers.set(here)
    population.location.copy_(location)
    return found


def _shares(
    numbers: LearnedNumbers, held: Tensor, batch: CohortBatch, moving: Movers, standardised: Sequence[str]
) -> Tensor:
    """How far the held parameters go with each move, ``[subject, move, parameter]``: standardised ones with their own,
    and those of which the value is held so that predictions and prior change least (to the second order)::

        share = -(J_hh + Omega_hh⁻¹)⁻¹ · J_hm

    with J the information of the subject's records about held parameters h and moves m.

    Args:
        numbers: the learned numbers.
        held: in the middle of the posterior of every subject, ``[subject, 1, parameter]``.
        batch: the subjects.
        moving: what moves.
        standardised: parameters whose eta/omega is held.
    """
    population, size = numbers.model.population, len(moving.parameters) + len(moving.in_time)
    shares = held.new_zeros((len(held), size, held.shape[-1]))
    for k, parameter in enumerate(moving.parameters):
        if population.names[parameter] in standardised:
            shares[:, k, parameter] = 1.0
    free = [k for k, name in enumerate(population.varying) if name not in standardised]
    if not size or not free:
        return shares
    places = [population.names.index(population.varying[k]) for k in free]

    def slope(of: Tensor, *steps: tuple[int, float]) -> Tensor:
        above, below = (
            _predict_moved(numbers, held + sign * of, batch, moving, shares, [(k, sign * step) for k, step in steps])
            for sign in (1, -1)
        )
        return ((above - below) / (2 * _MOVE))[0, :, :width]

    width, units = batch.target.shape[1], _MOVE * torch.eye(held.shape[-1], dtype=held.dtype, device=held.device)
    of_held = torch.stack([slope(units[k]) for k in places])
    of_moves = torch.stack([slope(0 * units[0], (k, _MOVE)) for k in range(size)])
    value = _predict(numbers.model, held, batch)[0, :, :width]
    information = numbers.model.error.information(value, batch.endpoint)
    information = torch.where(batch.target & torch.isfinite(value), information, 0.0)
    weighted = (of_held * information).nan_to_num(0.0)
    unit = torch.eye(len(population.varying), dtype=held.dtype, device=held.device)
    to_z, _ = population.standardise(unit)
    prior = (to_z @ to_z.T)[free][:, free]
    of_both = torch.einsum("hso,mso->shm", weighted, of_moves.nan_to_num(0.0))
    found = torch.linalg.solve(torch.einsum("hso,gso->shg", weighted, of_held.nan_to_num(0.0)) + prior, -of_both)
    shares[..., places] = found.mT
    return shares
