"""Prior standard deviations of the networks among the covariate effects, from the training data."""

from __future__ import annotations

import torch
from torch import Tensor

from neuralpk.estimation.held_likelihood import HeldLikelihood
from neuralpk.population_model import PopulationModel

_SPREAD = 1.0  # standard deviation of log(sd) in its own prior: few patients say little about it
_LONGEST_STEP = 0.5  # of log(sd) at a time: the weights have to follow
_ITERATIONS, _NEWTON_STEPS = 60, 4
_LEAST_CURVATURE = 1e-3


@torch.no_grad()
def tune_network_effects(
    model: PopulationModel, target: PopulationModel, likelihood: HeldLikelihood, bound: Tensor
) -> bool:
    """Take the prior standard deviations under which the data are most probable with the weights integrated out.

    The likelihood is taken as a normal density of all learned numbers around the end of the search, with its curvature
    (Laplace's approximation, as of the smoothing of additive models; Wood 2011). Then the weights v of a part have a
    normal posterior with a mean and a variance, and EM finds the maximum::

        log p(sd) − n·log(sd) − ½·Σ (mean² + variance)/sd²        log(sd) ~ N(log(first sd), 1)

    Args:
        model: with the numbers at the end of the search.
        target: a model whose priors are to be the same.
        likelihood: of the search.
        bound: numbers at a bound, bool ``[number]``.

    Returns:
        Whether there are such networks.
    """
    networks = model.population.networks_by_parameter()
    if not networks:
        return False
    numbers = likelihood.numbers
    here = numbers.get()
    information = -likelihood.derivatives(here)[2]
    numbers.set(here)
    effects = [effect for _, effect in networks]
    places = [torch.tensor(numbers.of(effect.weight), device=numbers.device) for effect in effects]
    moving = (numbers.free & ~bound).nonzero()[:, 0]
    precision = torch.zeros(numbers.size, dtype=torch.float64, device=numbers.device)
    for effect, at in zip(effects, places, strict=True):
        precision[at] = effect.precision().double()
    values, axes = torch.linalg.eigh((information - precision.diag())[moving][:, moving])
    data = (axes * values.clamp(min=_LEAST_CURVATURE)) @ axes.T
    vector, variance = here.clone(), torch.zeros_like(precision).diag()
    # the search has ended where the pulls of the data and of the prior are equal
    pull = data @ vector[moving] + precision[moving] * vector[moving]
    first = [effect.first_sd.double().log() for effect in effects]
    before = [effect.prior_sd.double().log() for effect in effects]
    log_sd = before
    for _ in range(_ITERATIONS):
        for effect, at, one in zip(effects, places, log_sd, strict=True):
            precision[at] = (-2 * one).exp()[effect.part]
        inverse = torch.linalg.inv(data + precision[moving].diag())
        variance[moving[:, None], moving] = inverse
        vector[moving] = inverse @ pull
        log_sd = [
            _most_probable(vector[at].square() + variance.diagonal()[at], effect.part, one, centre)
            for effect, at, one, centre in zip(effects, places, log_sd, first, strict=True)
        ]
        bounds = [(one - _LONGEST_STEP, one + _LONGEST_STEP) for one in before]
        log_sd = [one.clamp(*between) for one, between in zip(log_sd, bounds, strict=True)]
    others, population = iter(target.population.network_effects()), model.population
    for (name, effect), at, one in zip(networks, places, log_sd, strict=True):
        sd = one.exp()
        left = variance[at[:, None], at] / (sd[effect.part][:, None] * sd[effect.part])
        gained = 1 / torch.linalg.eigvalsh(left).clamp(1e-9, 1.0) - 1
        varies = name in population.varying
        log_omega = population.log_omega_by_parameter()[population.varying.index(name)] if varies else sd.new_zeros(())
        for each in (effect, next(others)):
            each.take_prior(sd, gained, log_omega)
    return True


def _most_probable(squares: Tensor, part: Tensor, log_sd: Tensor, first: Tensor) -> Tensor:
    """log(sd) of each part given the second moment of each weight: Newton's method from `log_sd`."""
    total = torch.zeros_like(log_sd).index_add(0, part, squares)
    count = torch.zeros_like(log_sd).index_add(0, part, torch.ones_like(squares))
    for _ in range(_NEWTON_STEPS):
        ratio = total * (-2 * log_sd).exp()
        slope = ratio - count - (log_sd - first) / _SPREAD**2
        log_sd = log_sd + (slope / (2 * ratio + 1 / _SPREAD**2)).clamp(-0.5, 0.5)
    return log_sd
