"""The likelihood of all subjects as a function of the population, given held draws."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from neuralpk.estimation.held_draws import HeldDraws
from neuralpk.estimation.learned_numbers import LearnedNumbers
from neuralpk.inference.importance import effective_draws, log_mean_weight

_NEAR = 0.3  # on the learned scale: farther away, predictions are not taken as quadratic

Reduce = Callable[[Tensor], Tensor]


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
            movers, at = held.predictions.movers.numbers, held.predictions.at
            omega = [k for k in movers if k in numbers.omega]
            others = [k for k in movers if k not in numbers.omega]
            reach = _NEAR * numbers.reach(at)[others]
            self.low[others] = torch.maximum(numbers.low[others], at[others] - reach)
            self.high[others] = torch.minimum(numbers.high[others], at[others] + reach)
            here = at[omega].exp()
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
            first = numbers.gradient(prior, create_graph=True)
            second = torch.zeros_like(first).diag()
            networks = numbers.model.population.network_effects()
            for effect in networks:
                places = numbers.of(effect.weight)
                second[places, places] = -effect.precision().double()
            inside = {k for effect in networks for k in numbers.of(effect.weight)}
            for k, one in enumerate(first.unbind()):
                if k not in inside and one.requires_grad:
                    second[k] = numbers.gradient(one)
        return float(prior.detach()), first.detach(), second.detach()
