"""The first stage: what the mechanism leaves unexplained, learned by a network for every series."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from neuralpk.cohort_batch import CohortBatch
from neuralpk.dynamics import Dynamics, HybridDynamics
from neuralpk.solve import RungeKutta
from neuralpk.symbolic.individual_network import IndividualNetwork
from neuralpk.symbolic.least_squares_through_solver import minimise

# a network does not follow the data more closely than this
_ENGINE = RungeKutta(rtol=1e-4, atol=1e-5, max_evaluations=1000)


@dataclass(frozen=True)
class Learned:
    """A hybrid and its parameters for every series.

    Args:
        hybrid: mechanism plus correction.
        theta: parameters of the mechanism, then of the correction, ``[row, parameter]``.
        squares: Σ ((value − prediction)/magnitude)², ``[row]``; infinite where it could not be solved.
    """

    hybrid: HybridDynamics
    theta: Tensor
    squares: Tensor


def magnitudes(dynamics: Dynamics, batch: CohortBatch) -> Tensor:
    """Mean absolute value of each endpoint, ``[row, endpoint]``: errors are taken relative to it."""
    means = []
    for endpoint in range(len(dynamics.endpoints)):
        own = batch.target & (batch.endpoint == endpoint)
        means.append((batch.value.abs() * own).sum(1) / own.sum(1).clamp(min=1))
    return torch.stack(means, dim=1)


def unit_ways(parameters: int, free: Tensor) -> Tensor:
    """One column for each parameter that is free, ``[row, parameter, direction]`` for ``[row, direction]`` indices;
    a column of zeros for an index of −1."""
    ways = torch.nn.functional.one_hot(free.clamp(min=0), parameters).double() * (free >= 0)[..., None]
    return ways.mT


def learn_correction(
    mechanism: Dynamics,
    theta: Tensor,
    batch: CohortBatch,
    free: tuple[str, ...],
    hidden: int = 8,
    spread: float = 1.0,
    steps: int = 40,
    seed: int = 0,
) -> Learned:
    """Train a hybrid on each series by itself: Gauss–Newton on the weights of its network and the free parameters.

    Args:
        mechanism: the equations, observed in its states.
        theta: its parameters, first guesses of the free ones, float64 ``[row, parameter]``.
        batch: the series, in float64.
        free: names of the parameters that are estimated too, such as the initial state.
        hidden: width of the network.
        spread: standard deviation of a weight before any data are seen.
        steps: most steps.
        seed: of the first weights.
    """
    scale = magnitudes(mechanism, batch)
    span = float((batch.time.amax(1) - batch.start).max())
    size = torch.ones(len(mechanism.states), dtype=theta.dtype)
    size[list(mechanism.endpoints)] = scale.mean(0)
    network = IndividualNetwork(mechanism.states, size.tolist(), 10.0 / span, hidden)
    hybrid = HybridDynamics(mechanism, network)
    start = torch.cat([theta, network.first_weights(len(theta), seed)], dim=1)
    first, weights = len(mechanism.parameter_names), len(network.parameter_names)
    places = [*(mechanism.parameter_names.index(name) for name in free), *range(first, first + weights)]
    ways = unit_ways(start.shape[1], torch.tensor(places).expand(len(theta), -1))
    prior = torch.tensor([0.0] * len(free) + [spread**-2] * weights, dtype=theta.dtype)
    fit = minimise(hybrid, start, ways, batch, scale, prior, steps, 1e-3, _ENGINE)
    return Learned(hybrid, fit.theta, fit.squares)
