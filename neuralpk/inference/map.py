"""The maximum a posteriori (MAP) of every patient: the empirical Bayes or post hoc estimate."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from neuralpk import randomness
from neuralpk.cohort_batch import CohortBatch
from neuralpk.dataclass_rows import choose, put, select
from neuralpk.inference.joint import gradient, information, log_joint
from neuralpk.population_model import PopulationModel

# prior standard deviations in one step: a rate that leaps by more may make the system stiff, and slow to be refused
_LONGEST_STEP = 2.0
TRIED = 64  # points at which the density is compared; a power of two, because Sobol points come in these numbers
_WIDER = 2.0  # standard deviations of half of the points: a sample may rule out all that is usual
_FIRST_SEARCH = (30, 1e-2)  # most steps and tolerance of a search that finds which maximum is the highest
_LAST_STEPS = 200  # the few subjects that need many steps are soon alone
_MORE_STARTS = 4  # for a subject whose first two searches do not agree
_DISAGREE = 0.05  # in log p, between the ends of two searches
_DISTINCT = 2.0  # standard deviations between two maxima; nearer ones count as one
_NEGLIGIBLE = 10.0  # in log p: a maximum so much lower than the highest has no part in the posterior
# around a maximum, in standard deviations; the narrower ones only where a wider one found a higher density
_SCALES = (1.0, 0.5, 0.25, 0.12, 0.06, 0.03)
_HIGHER = 1e-3  # in log p: less is left to the tolerance of the search


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


def root(precision: Tensor) -> Tensor:
    """A lower triangle L with L·Lᵀ nearly the precision, ``[subject, latent, latent]``. In single precision the 1 of
    the prior is lost beside 10⁸ of the data, and what is left need not be positive."""
    size = precision.diagonal(dim1=1, dim2=2).sqrt()
    unit = precision / (size[:, :, None] * size[:, None, :])
    rounding = 10 * torch.finfo(unit.dtype).eps * torch.eye(unit.shape[1], dtype=unit.dtype, device=unit.device)
    factor: Tensor = size[:, :, None] * torch.linalg.cholesky(unit + rounding)
    return factor


def spread(precision: Tensor, standard: Tensor) -> Tensor:
    """Standard normal numbers ``[..., sample, latent]`` with the covariance precision⁻¹,
    ``[subject, sample, latent]``."""
    factor = root(precision).mT
    standard = standard.mT.expand(len(factor), -1, -1)
    found: Tensor = torch.linalg.solve_triangular(factor, standard, upper=True).mT
    return found


def map_estimate(model: PopulationModel, batch: CohortBatch, start: Tensor) -> Mode:
    """The highest maximum that is found, given the records of the context; arguments as for `maxima`."""
    return maxima(model, batch, start)[0]


@torch.no_grad()
def maxima(model: PopulationModel, batch: CohortBatch, start: Tensor) -> tuple[Mode, Tensor]:
    """Search the highest maximum of log p(y, z) of every subject, given the records of the context, also where there
    are several or the density has edges, as with a lag.

    Every subject is searched from `start` and from the likeliest of some points of the prior and of a prior twice as
    wide, the same for all subjects. Where these two searches end at different densities, it is searched from more of
    the points. Around the highest end the density is compared with that of points drawn from Laplace's approximation; a
    search goes on from a point that is higher.

    Args:
        model: the generative model; its weights stay as they are.
        batch: the subjects.
        start: first z, ``[subject, latent]``.

    Returns:
        The highest maximum, and z of the next one, ``[subject, latent]``: where it is far enough away and high enough
        to be a part of the posterior, else that of the highest.
    """
    batch = batch.scored_on_context()
    if not start.shape[1]:
        found = maximise(model, batch, start, _LAST_STEPS)
        return found, found.z
    points = torch.cat([_points(start, TRIED)[: TRIED // 2], _WIDER * _points(start, TRIED)[TRIED // 2 :]])
    tried = points * model.latents(batch)[:, None]
    order = _density(model, batch, tried).topk(1 + _MORE_STARTS, dim=1).indices
    starts = tried.gather(1, order[..., None].expand(-1, -1, tried.shape[2]))
    z, value = _ends(model, batch, torch.cat([start[:, None], starts[:, :1]], dim=1))
    rows = (value.amax(1) - value.amin(1) > _DISAGREE).nonzero()[:, 0]
    if len(rows):
        more_z, more = _ends(model, batch.select(rows), starts[rows, 1:])
        none = more.new_full((len(batch), _MORE_STARTS), -torch.inf)
        z = torch.cat([z, z[:, :1].expand(-1, _MORE_STARTS, -1).index_copy(0, rows, more_z)], dim=1)
        value = torch.cat([value, none.index_copy(0, rows, more)], dim=1)
    found = _risen(model, batch, maximise(model, batch, _at(z, value.argmax(1)), _LAST_STEPS))
    away = z - found.z[:, None]
    distance = torch.einsum("ski,sij,skj->sk", away, found.precision, away)
    apart = (distance > _DISTINCT**2) & (value > found.log_joint[:, None] - _NEGLIGIBLE)
    next_one = _at(z, torch.where(apart, value, -torch.inf).argmax(1))
    return found, torch.where(apart.any(1, keepdim=True), next_one, found.z)


def _points(like: Tensor, count: int) -> Tensor:
    """Sobol points of the standard normal distribution, ``[point, latent]``, for z ``[subject, latent]``."""
    found: Tensor = torch.special.ndtri(randomness.sobol(count, like.shape[1]) + 0.5 / count).to(like)
    return found


def _density(model: PopulationModel, batch: CohortBatch, z: Tensor) -> Tensor:
    """log p(y, z) at several z of every subject, ``[subject, point]``; −inf where unsolved."""
    value = log_joint(model, z.flatten(0, 1), batch.repeat(z.shape[1])).reshape(z.shape[:2])
    return torch.where(value.isnan(), -torch.inf, value)


def _ends(model: PopulationModel, batch: CohortBatch, starts: Tensor) -> tuple[Tensor, Tensor]:
    """Where searches from several z of every subject end, ``[subject, start, latent]``, and log p(y, z) there."""
    found = maximise(model, batch.repeat(starts.shape[1]), starts.flatten(0, 1), *_FIRST_SEARCH)
    return found.z.reshape(starts.shape), found.log_joint.reshape(starts.shape[:2])


def _risen(model: PopulationModel, batch: CohortBatch, found: Mode) -> Mode:
    """Ends of searches, or what is higher around them. A search along an edge of the density ends too early: its slope
    leads over the edge, and every step is refused."""
    points, left = _points(found.z, TRIED // 2), torch.arange(len(batch), device=batch.device)
    for scale in _SCALES:
        here, some = select(found, left), batch.select(left)
        around = here.z[:, None] + scale * spread(here.precision, points) * model.latents(some)[:, None]
        value, highest = _density(model, some, around).max(1)
        higher = (value > here.log_joint + _HIGHER).nonzero()[:, 0]
        if len(higher):
            start = _at(around, highest)[higher]
            found = put(found, left[higher], maximise(model, some.select(higher), start, *_FIRST_SEARCH))
        if scale == _SCALES[0]:
            left = left[higher]
        if not len(left):
            return found
    return put(found, left, maximise(model, batch.select(left), found.z[left], _LAST_STEPS))


def _at(z: Tensor, which: Tensor) -> Tensor:
    """One z of each subject, ``[subject, latent]``, of several, ``[subject, point, latent]``."""
    return z[torch.arange(len(z), device=z.device), which]
