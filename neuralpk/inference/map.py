"""The maximum a posteriori (MAP) of every patient: the empirical Bayes or post hoc estimate."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from neuralpk.batch import CohortBatch
from neuralpk.dataclass_rows import choose, put, select
from neuralpk.inference.joint import gradient, information
from neuralpk.population_model import PopulationModel

# prior standard deviations in one step: a rate that leaps by more may make the system stiff, and slow to be refused
_LONGEST_STEP = 2.0


@dataclass(frozen=True)
class Mode:
    """State of a search for the maximum of log p(y, z).

    Args:
        z: ``[subject, latent]``.
        log_joint: log p(y, z) there, ``[subject]``; −inf where the dynamics could not be solved.
        slope: its gradient, ``[subject, latent]``.
        precision: expected curvature of −log p(y, z) there, ``[subject, latent, latent]``: the inverse of the
            covariance of Laplace's approximation.
        converged: whether a further step would gain nothing, bool ``[subject]``.
    """

    z: Tensor
    log_joint: Tensor
    slope: Tensor
    precision: Tensor
    converged: Tensor


def start_at(model: PopulationModel, z: Tensor, batch: CohortBatch) -> Mode:
    """A search that has not begun."""
    value, slope = gradient(model, z, batch)
    return Mode(z.detach(), value, slope, information(model, z, batch), torch.zeros_like(value, dtype=torch.bool))


def maximise(
    model: PopulationModel, batch: CohortBatch, start: Tensor, steps: int = 30, tolerance: float = 1e-5
) -> Mode:
    """Search the maximum of log p(y, z) of every subject by itself, by Fisher scoring with the damping of Levenberg
    (1944) and Marquardt (1963): exact gradients, expected curvature, and no step that lowers it.

    Args:
        model: the generative model; its weights stay as they are.
        batch: ``target`` says which records count.
        start: first z, ``[subject, latent]``.
        steps: most steps.
        tolerance: a subject is done when the step that is left promises a gain below this, in units of log p.
    """
    if torch.is_inference_mode_enabled():  # as in a validation by Lightning; a search needs gradients all the same
        with torch.inference_mode(False), torch.no_grad():
            return maximise(model, batch.clone(), start.clone(), steps, tolerance)
    found = start_at(model, start, batch)
    damping = torch.full_like(found.log_joint, 1e-3)
    for _ in range(steps):
        left = (~found.converged).nonzero()[:, 0]
        if not len(left):
            break
        every = len(left) == len(batch)
        here = found if every else select(found, left)
        left_batch = batch if every else batch.select(left)
        matrix = here.precision
        damped = matrix + torch.diag_embed(damping[left, None] * matrix.diagonal(dim1=1, dim2=2))
        step = torch.linalg.solve(damped, here.slope)
        promise = 0.5 * (step * here.slope).sum(-1)
        step = step * (_LONGEST_STEP / step.norm(dim=1, keepdim=True)).clamp(max=1.0)
        trial = start_at(model, here.z + step, left_batch)
        # near the maximum rounding decides: a step that loses no more than that is accepted
        rounding = 8 * torch.finfo(step.dtype).eps * here.log_joint.abs()
        gain = trial.log_joint - here.log_joint
        better = gain >= -rounding
        # gain ratio (actual/predicted): where the model fits badly, the expected curvature misstates the true one and
        # full steps oscillate, so the damping must grow
        predicted = (step * here.slope).sum(-1) - 0.5 * torch.einsum("si,sij,sj->s", step, matrix, step)
        poor, good = gain < 0.25 * predicted, gain > 0.75 * predicted
        wider = (10 * damping[left]).clamp(min=1e-2, max=1e8)
        damping[left] = torch.where(poor, wider, torch.where(good, 0.1 * damping[left], damping[left]))
        done = promise < tolerance
        found = put(found, left, replace(choose(better, trial, here), converged=done))
    return found


def map_estimate(model: PopulationModel, batch: CohortBatch, start: Tensor) -> Mode:
    """`maximise` to the end, given the records of the context; the few subjects that need many steps are soon alone."""
    return maximise(model, batch.scored_on_context(), start, steps=200)
