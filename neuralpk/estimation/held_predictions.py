"""Predictions of draws that are held, as functions of the population."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from neuralpk.cohort_batch import CohortBatch
from neuralpk.estimation.finite_differences import differences
from neuralpk.estimation.learned_numbers import LearnedNumbers, Movers
from neuralpk.population_model import PopulationModel

_MOVE = 1e-2  # of what moves predictions: far above the error of a solver
_SOLVED_AT_ONCE = 40_000  # curves: bounds the memory


@dataclass(frozen=True)
class HeldPredictions:
    """Predictions of every draw of some subjects, solved once, for all populations that are near.

    Of most parameters the value is held, and a prediction does not depend on the population. Of some (`standardised`)
    eta/omega is held instead: those with a small omega, whose typical value could otherwise move by no more than that.
    These parameters and those without variability move with the numbers of the population while the draws are held,
    and so do covariate effects where covariates change in time. Predictions are quadratic in how far these have moved
    since the draw: the second order decides where the likelihood has a long flat ridge.

    With what moves, the held parameters of every subject move too, by a fixed share of it (`shares`), so that its
    predictions and its prior change least. Any shares are right, because such a move takes no volume; these leave the
    derivatives of the likelihood the variance between draws that the subject's own information has. Without them the
    derivative in KM, say, with VMAX held, has that of a parameter that the patient's data know well, while VMAX and KM
    together are what they leave open.

    Args:
        batch: the subjects.
        value: predictions, ``[draw, subject, observation]``; 1 where there is no solution. Where the population has a
            parameter of the residual error, the logarithms of its factor follow as further observations.
        solved: which draws have a prediction of every record that counts, bool ``[subject, draw]``.
        slopes: derivatives of the predictions in what moves (`moves`), ``[move, draw, subject, observation]``.
        bends: their second derivatives, ``[move, move, draw, subject, observation]``.
        movers: what moves, and the learned numbers that move it.
        shares: how far the held parameters go with each move, ``[subject, move, parameter]``.
        standardised: names of the parameters whose eta/omega is held.
        location: typical values at the draw, on the scale of the random effects, ``[parameter]``.
        centre: the same with the effects of each subject's covariates, ``[subject, 1, parameter]``.
        at: the vector of learned numbers at the draw.
    """

    batch: CohortBatch
    value: Tensor
    solved: Tensor
    slopes: Tensor
    bends: Tensor
    movers: Movers
    shares: Tensor
    standardised: tuple[str, ...]
    location: Tensor
    centre: Tensor
    at: Tensor

    @classmethod
    @torch.no_grad()
    def solve(
        cls, numbers: LearnedNumbers, batch: CohortBatch, held: Tensor, middle: Tensor, standardised: tuple[str, ...],
        moves: bool,
    ) -> HeldPredictions:  # fmt: skip
        """Solve the dynamics for every draw, and for small steps of what moves.

        Args:
            numbers: the learned numbers of a model, which keep their values.
            batch: the subjects.
            held: parameters of every draw (`PopulationParameters.unconstrained`), ``[subject, draw, parameter]``.
            middle: the same in the middle of the posterior of every subject, ``[subject, 1, parameter]``.
            standardised: parameters whose eta/omega is held.
            moves: whether the numbers that move predictions are to move.
        """
        population = numbers.model.population
        movers = numbers.of_predictions(batch, standardised) if moves else Movers()
        shares = _shares(numbers, middle, batch, movers, standardised)

        def moved(*steps: tuple[int, float]) -> Tensor:
            return _predict_moved(numbers, held, batch, movers, shares, steps)

        value, slopes, bends = differences(moved, shares.shape[1], _MOVE)
        solved = torch.isfinite(torch.where(batch.target, value[..., : batch.target.shape[1]], 0.0)).all(-1).T
        return cls(
            batch=batch,
            value=value.nan_to_num(1.0),
            solved=solved,
            slopes=slopes.nan_to_num(0.0),
            bends=bends.nan_to_num(0.0),
            movers=movers,
            shares=shares,
            standardised=standardised,
            location=population.location.clone(),
            centre=population.centre(batch.covariates[:, :1]),
            at=numbers.get(),
        )

    @property
    def size(self) -> int:
        """Numbers that are held."""
        return self.value.numel() + self.slopes.numel() + self.bends.numel()

    def values(self, numbers: LearnedNumbers, held: Tensor) -> Tensor:
        """Predictions in the population as it is now, ``[draw, subject, observation]``, of the parameters that were
        held at the draw, ``[subject, draw, parameter]``."""
        return self.moved(self.moves(numbers, held), slice(None))[0]

    def moved(self, moves: Tensor, draws: slice) -> tuple[Tensor, Tensor]:
        """Predictions of some draws after moves, ``[draw, subject, observation]``, and by how much their `slopes` have
        changed, ``[move, draw, subject, observation]``.

        Args:
            moves: of all draws (`moves`), ``[subject, draw, move]``.
            draws: which of them.
        """
        value, slopes = self.value[draws], self.slopes[:, draws]
        if not len(slopes):
            return value, slopes
        by = moves[:, draws].permute(2, 1, 0)[..., None]
        bent = (by[:, None] * self.bends[:, :, draws]).sum(0)
        return value + (by * (slopes + 0.5 * bent)).sum(0), bent

    def held_now(self, numbers: LearnedNumbers, held: Tensor) -> tuple[Tensor, Tensor]:
        """Parameters that were held at the draw as they are in the population now, both ``[subject, draw, parameter]``,
        and the log of the volume that they take of that at the draw, a scalar."""
        if not self.movers.numbers:
            return held, held.new_zeros(())
        added = self.moves(numbers, held) @ self.shares
        return held + added, self._log_ratio(numbers).sum()

    def moves(self, numbers: LearnedNumbers, held: Tensor) -> Tensor:
        """How far the parameters in `movers`, on the scale of the random effects, and after them the numbers in it have
        moved since the draw, ``[subject, draw, move]``, of held parameters ``[subject, draw, parameter]``."""
        if not self.movers.numbers:
            return held.new_zeros((*held.shape[:2], 0))
        population = numbers.model.population
        varying, named = population.selection.sum(0), held[..., : len(population.names)]
        typical = population.centre(self.batch.covariates[:, :1]) - self.centre
        if self.movers.in_time:  # of a parameter without variability; its effects move by themselves
            typical = torch.where(varying > 0, typical, population.location - self.location)
        ratio = torch.expm1(self._log_ratio(numbers)) @ population.selection
        of_parameters = (typical + (named - self.centre) * ratio)[..., self.movers.parameters]
        of_numbers = (numbers.flat(numbers.tensors) - self.at)[self.movers.in_time]
        return torch.cat([of_parameters, of_numbers.expand(*of_parameters.shape[:2], -1)], dim=-1)

    def _log_ratio(self, numbers: LearnedNumbers) -> Tensor:
        """log of omega over that at the draw, 0 of parameters that are not standardised, ``[varying]``."""
        population = numbers.model.population
        if not self.standardised:
            return torch.zeros_like(population.log_omega_by_parameter())
        chosen = self.centre.new_tensor([float(name in self.standardised) for name in population.varying])
        return (population.log_omega_by_parameter() - self.at[numbers.omega]) * chosen


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
    numbers: LearnedNumbers, held: Tensor, batch: CohortBatch, movers: Movers, shares: Tensor,
    steps: Sequence[tuple[int, float]],
) -> Tensor:  # fmt: skip
    """`_predict` where some of what moves has made a step."""
    population, here = numbers.model.population, numbers.get()
    location, vector = population.location.clone(), here.clone()
    for k, step in steps:
        held = held + step * shares[:, k : k + 1]
        if k >= len(movers.parameters):
            vector[movers.in_time[k - len(movers.parameters)]] += step
    numbers.set(vector)
    for k, step in steps:
        if k < len(movers.parameters):
            # of a parameter that varies only the held value counts
            population.location[movers.parameters[k]] += step
    found = _predict(numbers.model, held, batch)
    numbers.set(here)
    population.location.copy_(location)
    return found


def _shares(
    numbers: LearnedNumbers, held: Tensor, batch: CohortBatch, movers: Movers, standardised: Sequence[str]
) -> Tensor:
    """How far the held parameters go with each move, ``[subject, move, parameter]``: standardised ones with their own,
    and those of which the value is held so that predictions and prior change least (to the second order)::

        share = -(J_hh + Omega_hh⁻¹)⁻¹ · J_hm

    with J the information of the subject's records about held parameters h and moves m.

    Args:
        numbers: the learned numbers.
        held: in the middle of the posterior of every subject, ``[subject, 1, parameter]``.
        batch: the subjects.
        movers: what moves.
        standardised: parameters whose eta/omega is held.
    """
    population, size = numbers.model.population, len(movers.parameters) + len(movers.in_time)
    shares = held.new_zeros((len(held), size, held.shape[-1]))
    for k, parameter in enumerate(movers.parameters):
        if population.names[parameter] in standardised:
            shares[:, k, parameter] = 1.0
    free = [k for k, name in enumerate(population.varying) if name not in standardised]
    if not size or not free:
        return shares
    places = [population.names.index(population.varying[k]) for k in free]

    width = batch.target.shape[1]

    def slope(of_held: Tensor | float, *moves: int) -> Tensor:
        above, below = (
            _predict_moved(numbers, held + sign * of_held, batch, movers, shares, [(k, sign * _MOVE) for k in moves])
            for sign in (1, -1)
        )
        return ((above - below) / (2 * _MOVE))[0, :, :width].nan_to_num(0.0)

    units = _MOVE * torch.eye(held.shape[-1], dtype=held.dtype, device=held.device)
    of_held = torch.stack([slope(units[k]) for k in places])
    of_moves = torch.stack([slope(0.0, k) for k in range(size)])
    value = _predict(numbers.model, held, batch)[0, :, :width]
    information = numbers.model.error.information(value, batch.endpoint)
    information = torch.where(batch.target & torch.isfinite(value), information, 0.0)
    weighted = of_held * information
    to_z, _ = population.standardise(torch.eye(len(population.varying), dtype=held.dtype, device=held.device))
    prior = (to_z @ to_z.T)[free][:, free]
    among_held = torch.einsum("hso,gso->shg", weighted, of_held)
    with_moves = torch.einsum("hso,mso->shm", weighted, of_moves)
    shares[..., places] = torch.linalg.solve(among_held + prior, -with_moves).mT
    return shares
