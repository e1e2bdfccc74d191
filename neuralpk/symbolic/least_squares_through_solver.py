"""Weighted least squares through the solver, for many problems at once."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from neuralpk.cohort_batch import CohortBatch
from neuralpk.dataclass_rows import choose, put, select
from neuralpk.dynamics import Dynamics
from neuralpk.solve import Engine, RungeKutta
from neuralpk.symbolic.sensitivity import predict_with_slopes

# far below an error of a thousandth of the state, which is the smallest that a measurement is likely to have; few
# evaluations, because a set of terms that explodes is no equation
ENGINE = RungeKutta(rtol=1e-5, atol=1e-7, max_evaluations=1000)


@dataclass(frozen=True)
class Fit:
    """Where a search stands.

    Args:
        theta: ``[row, parameter]``.
        residual: (value − prediction)/scale of every record, 0 where nothing was measured, ``[row, observation]``.
        slopes: of prediction/scale in each direction, ``[row, observation, direction]``.
        squares: Σ residual², ``[row]``; infinite where the equation could not be solved.
        converged: whether a further step would gain nothing, bool ``[row]``.
    """

    theta: Tensor
    residual: Tensor
    slopes: Tensor
    squares: Tensor
    converged: Tensor


def evaluate(
    dynamics: Dynamics,
    theta: Tensor,
    ways: Tensor,
    batch: CohortBatch,
    scale: Tensor,
    engine: Engine = ENGINE,
) -> Fit:
    """The residuals at a place, and their slopes along `ways` ``[row, parameter, direction]``."""
    value, slopes, ok = predict_with_slopes(dynamics, theta, ways, batch, engine)
    sd = scale.gather(1, batch.endpoint)
    residual = torch.where(batch.target, (batch.value - value) / sd, 0.0)
    slopes = torch.where(batch.target[..., None], slopes / sd[..., None], 0.0)
    squares = residual.square().sum(1)
    solved = ok & torch.isfinite(squares) & torch.isfinite(slopes).all(2).all(1)
    residual, slopes = residual.nan_to_num(0.0, 0.0, 0.0), slopes.nan_to_num(0.0, 0.0, 0.0)
    return Fit(theta, residual, slopes, torch.where(solved, squares, torch.inf), ~solved)


def minimise(
    dynamics: Dynamics,
    theta: Tensor,
    ways: Tensor,
    batch: CohortBatch,
    scale: Tensor,
    prior: Tensor | None = None,
    steps: int = 15,
    tolerance: float = 1e-4,
    engine: Engine = ENGINE,
) -> Fit:
    """Minimise Σ ((value − prediction)/scale)² for every row by itself, by Gauss–Newton steps with the damping of
    Levenberg (1944) and Marquardt (1963).

    Args:
        dynamics: the field.
        theta: first place, ``[row, parameter]``.
        ways: directions in which theta may move, ``[row, parameter, direction]``; a column of zeros is none.
        batch: the records; ``target`` says which count.
        scale: magnitude of an error of each endpoint, ``[row, endpoint]``.
        prior: weight of the squared distance that each direction goes from the first place, as a share of the mean
            squared residual of a record, ``[direction]``; None for none.
        steps: most steps.
        tolerance: a row is done when the step that is left promises to gain less than this share of the squares.
        engine: method of the solve.
    """
    first = theta
    pull = torch.zeros_like(ways[0, 0]) if prior is None else prior
    found = evaluate(dynamics, theta, ways, batch, scale, engine)
    damping = torch.full_like(found.squares, 1e-2)
    records = batch.target.sum(1)
    for _ in range(steps):
        left = (~found.converged).nonzero()[:, 0]
        if not len(left):
            break
        here, own = select(found, left), ways[left]
        moved = ((here.theta - first[left])[:, None] @ own)[:, 0]
        # the prior is worth so many records, whatever the noise: its weight follows the residuals
        weight = pull * (here.squares / records[left])[:, None]
        normal = here.slopes.mT @ here.slopes + torch.diag_embed(weight)
        slope = (here.slopes.mT @ here.residual[..., None])[..., 0] - weight * moved
        diagonal = normal.diagonal(dim1=1, dim2=2)
        damped = normal + torch.diag_embed(damping[left, None] * diagonal + (diagonal == 0))
        step = torch.linalg.solve_ex(damped, slope)[0]
        ahead = here.theta + (own @ step[..., None])[..., 0]
        trial = evaluate(dynamics, ahead, own, batch.select(left), scale[left], engine)
        before = here.squares + (weight * moved.square()).sum(1)
        after = trial.squares + (weight * (moved + step).square()).sum(1)
        better = after <= before
        promise = (step * slope).sum(1)
        damping[left] = torch.where(better, 0.2 * damping[left], 5.0 * damping[left]).clamp(1e-10, 1e10)
        done = (promise <= tolerance * before) | (damping[left] >= 1e10)
        found = put(found, left, replace(choose(better, trial, here), converged=done))
    return found
