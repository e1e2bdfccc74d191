"""The most probable place of every patient: maximum a posteriori, the empirical Bayes estimate."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from neuralpk.batch import CohortBatch
from neuralpk.inference.joint import given_context, gradient, information
from neuralpk.models import LatentModel
from neuralpk.rows import choose, put, select

# prior standard deviations in one step: a rate that leaps by more may make the system stiff, and slow to be refused
_FARTHEST = 2.0


@dataclass(frozen=True)
class Mode:
    """Where a search for the maximum of log p(y, z) stands.

    Args:
        z: ``[subject, latent]``.
        log_joint: log p(y, z) there, ``[subject]``; −inf where no line could be solved.
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


def at(model: LatentModel, z: Tensor, batch: CohortBatch) -> Mode:
    """A search that has not begun."""
    value, slope = gradient(model, z, batch)
    return Mode(z.detach(), value, slope, information(model, z, batch), torch.zeros_like(value, dtype=torch.bool))


def maximise(model: LatentModel, batch: CohortBatch, start: Tensor, steps: int = 30, tolerance: float = 1e-5) -> Mode:
    """Search the maximum of log p(y, z) of every subject by itself, by Fisher scoring with the damping of Levenberg
    (1944) and Marquardt (1963): exact gradients, expected curvature, no step that loses.

    Args:
        model: the generative model; its weights stay as they are.
        batch: ``target`` says which records count.
        start: first place, ``[subject, latent]``.
        steps: most steps; few of them polish a good start.
        tolerance: a subject is done when the step that is left promises a gain below this, in units of log p.
    """
    if torch.is_inference_mode_enabled():  # as in a validation by Lightning; a search needs gradients all the same
        with torch.inference_mode(False), torch.no_grad():
            return maximise(model, batch.clone(), start.clone(), steps, tolerance)
    found = at(model, start, batch)
    damping = torch.full_like(found.log_joint, 1e-3)
    for _ in range(steps):
        left = (~found.converged).nonzero()[:, 0]
        if not len(left):
            break
        every = len(left) == len(batch)
        here = found if every else select(found, left)
        own = batch if every else batch.select(left)
        matrix = here.precision
        damped = matrix + torch.diag_embed(damping[left, None] * matrix.diagonal(dim1=1, dim2=2))
        step = torch.linalg.solve(damped, here.slope)
        promise = 0.5 * (step * here.slope).sum(-1)
        step = step * (_FARTHEST / step.norm(dim=1, keepdim=True)).clamp(max=1.0)
        trial = at(model, here.z + step, own)
        # near the top rounding decides: a step that loses no more than that is a step
        rounding = 8 * torch.finfo(step.dtype).eps * here.log_joint.abs()
        gain = trial.log_joint - here.log_joint
        better = gain >= -rounding
        # of what the expected curvature foretold: of a patient whom the model hardly believes the true one is another,
        # and steps that always pass the top by nearly as much as they came from its other side gain next to nothing
        foretold = (step * here.slope).sum(-1) - 0.5 * torch.einsum("si,sij,sj->s", step, matrix, step)
        short, fair = gain < 0.25 * foretold, gain > 0.75 * foretold
        wider = (10 * damping[left]).clamp(min=1e-2, max=1e8)
        damping[left] = torch.where(short, wider, torch.where(fair, 0.1 * damping[left], damping[left]))
        done = promise < tolerance
        found = put(found, left, replace(choose(better, trial, here), converged=done))
    return found


def most_probable(model: LatentModel, batch: CohortBatch, start: Tensor) -> Mode:
    """`maximise` to the end, given what the encoder sees; the few who need so many steps are soon alone."""
    return maximise(model, given_context(batch), start, steps=200)
