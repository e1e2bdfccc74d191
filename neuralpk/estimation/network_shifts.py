"""Derivatives in learned numbers among which networks of covariates have many weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from neuralpk.estimation.learned_numbers import LearnedNumbers


class NetworkShifts:
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

    def __enter__(self) -> NetworkShifts:
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
