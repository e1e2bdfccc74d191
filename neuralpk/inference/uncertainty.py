"""What else the training data allow: other populations, other weights of the field, and the model under each."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from neuralpk import randomness
from neuralpk.batch import CohortBatch
from neuralpk.inference.importance import Draws
from neuralpk.inference.joint import log_joint
from neuralpk.models import LatentModel

_STREAM = 1 << 46
_POPULATION = 102  # key of the counter-based random numbers of populations


def possible(model: LatentModel) -> list[LatentModel]:
    """The model under each of the populations and weights that the training data allow (``model.populations``); the
    model itself where nothing is known of them."""
    if not bool(model.populations.any()):
        return [model]
    found = []
    for steps in model.populations:
        another = copy.deepcopy(model, {id(part): part for part in (model.populations, model.encoder)})
        coordinates, weights = another.coordinates(), another.uncertain_weights()
        with torch.no_grad():
            for one, step in zip(coordinates, steps, strict=False):
                one.tensor.view(-1)[one.place].add_(step)
            sizes = [weight.numel() for weight in weights]
            for weight, moved in zip(weights, steps[len(coordinates) :].split(sizes), strict=True):
                weight.add_(moved.reshape(weight.shape))
        found.append(another)
    return found


def draw_populations(
    model: LatentModel, batch: CohortBatch, drawn: Draws, covariance: Tensor, seed: int
) -> tuple[Tensor, Tensor]:
    """Populations, with the weights of the field, from a normal approximation of their posterior.

    The weights w, held by their prior N(·, P⁻¹), and the coordinates c of the population explain the same data. With
    s_i the gradient of log p(y_i), whose products stand for the curvature (Berndt et al. 1974), and G the regression of
    s_w on s_c over subjects, what c leaves unexplained determines w, and c follows it::

        w ~ N(0, (P + Σ rᵢrᵢᵀ)⁻¹),  r = s_w − s_c·G        c = −G·w + N(0, covariance)

    Args:
        model: at its estimate.
        batch: the training subjects; ``target`` says which records count.
        drawn: weighted draws of their posterior.
        covariance: of the coordinates were the weights known, ``[coordinate, coordinate]``.
        seed: of the draws.

    Returns:
        The draws, as distances from the estimate, ``[population, coordinate + weight]``, and the covariance of the
        coordinates with that of the weights in it.
    """
    coordinates = model.coordinates()
    root = torch.linalg.cholesky(covariance)
    count, size = len(model.populations), model.populations.shape[1]
    normal = randomness.normal(seed, _STREAM, torch.tensor([_POPULATION]), count * size).reshape(count, size)
    normal = normal.to(covariance.device)
    moved = normal[:, : len(coordinates)] @ root.T
    if not model.uncertain_weights():
        return moved, covariance
    scores = _scores(model, batch, drawn)
    own, others = scores[:, : len(coordinates)], scores[:, len(coordinates) :]
    follow = torch.linalg.pinv(own, rtol=1e-6) @ others
    sd = _prior_precision(model).rsqrt()
    _, values, axes = torch.linalg.svd((others - own @ follow) * sd, full_matrices=False)
    free = normal[:, len(coordinates) :]
    free = free + (free @ axes.T * ((1 + values.square()).rsqrt() - 1)) @ axes
    weights, follow = free * sd, follow * sd
    seen = follow @ axes.T * (values.square() / (1 + values.square())).sqrt()
    return (
        torch.cat([moved - free @ follow.T, weights], dim=1),
        covariance + follow @ follow.T - seen @ seen.T,
    )


def _scores(model: LatentModel, batch: CohortBatch, drawn: Draws) -> Tensor:
    """Gradient of log p(y) of every subject in the coordinates and the weights, ``[subject, coordinate + weight]``: the
    mean over its posterior of that of log p(y, z) (Fisher's identity)."""
    coordinates, weights = model.coordinates(), model.uncertain_weights()
    tensors = [*dict.fromkeys(one.tensor for one in coordinates), *weights]
    rows = []
    for k in range(len(batch)):
        own = batch.select(torch.tensor([k], device=batch.device)).repeat(drawn.z.shape[1])
        with torch.enable_grad():
            value = log_joint(model, drawn.z[k], own)
            mean = torch.where(torch.isfinite(value), drawn.weight[k] * value, 0.0).sum()
        slopes = torch.autograd.grad(mean, tensors, materialize_grads=True)
        by_tensor = dict(zip(tensors, slopes, strict=True))
        named = [by_tensor[one.tensor].flatten()[one.place] for one in coordinates]
        rows.append(torch.cat([torch.stack(named), *(by_tensor[weight].flatten() for weight in weights)]))
    return torch.stack(rows).double()


def _prior_precision(model: LatentModel) -> Tensor:
    """Of every weight under the prior of the field, ``[weight]``: minus the slope of a slope that is linear."""
    weights: Sequence[Tensor] = model.uncertain_weights()
    with torch.enable_grad():
        slopes = torch.autograd.grad(model.dynamics.log_prior(), weights, create_graph=True)  # type: ignore[arg-type]
        total = torch.stack([slope.sum() for slope in slopes]).sum()
        curvature = torch.autograd.grad(total, weights)
    return -torch.cat([part.flatten() for part in curvature]).double()
