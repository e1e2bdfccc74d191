"""Draws of the population parameters and of network weights from their approximate posterior."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from neuralpk import randomness
from neuralpk.cohort_batch import CohortBatch
from neuralpk.inference.importance import Draws
from neuralpk.inference.joint import log_joint
from neuralpk.population_model import PopulationModel
from neuralpk.randomness import Stream


def drawn_models(model: PopulationModel) -> list[PopulationModel]:
    """The model under each draw of its parameters (``model.parameter_draws``); the model alone where they have not been
    computed."""
    if not model.has_parameter_draws:
        return [model]
    found = []
    for steps in model.parameter_draws:
        another = copy.deepcopy(model, {id(model.parameter_draws): model.parameter_draws})
        coordinates = another.coordinates()
        weights = [*another.covariate_weights(), *another.uncertain_weights()]
        with torch.no_grad():
            for one, step in zip(coordinates, steps, strict=False):
                one.tensor.view(-1)[one.index].add_(step)
            sizes = [weight.numel() for weight in weights]
            for weight, moved in zip(weights, steps[len(coordinates) :].split(sizes), strict=True):
                weight.add_(moved.reshape(weight.shape))
        found.append(another)
    return found


def draw_parameters(
    model: PopulationModel, batch: CohortBatch, drawn: Draws, covariance: Tensor, seed: int
) -> tuple[Tensor, Tensor]:
    """Draws of the population's coordinates and the weights of the network from a normal approximation.

    The weights w have a normal prior with precision P; they and the coordinates c explain the same data. With s_i the
    gradient of log p(y_i), whose outer products approximate the information (Berndt et al. 1974), and G the regression
    of s_w on s_c over subjects, the part of s_w that s_c does not explain determines w, and c follows from w::

        w ~ N(0, (P + Σ rᵢrᵢᵀ)⁻¹),  r = s_w − s_c·G        c = −G·w + N(0, covariance)

    Args:
        model: at its estimate.
        batch: the training subjects; ``target`` says which records count.
        drawn: weighted draws of their posterior.
        covariance: of the coordinates and the weights of covariate networks, which are known as well as they are, with
            the weights of the dynamics held fixed, ``[coordinate, coordinate]``.
        seed: of the draws.

    Returns:
        The draws, as distances from the estimate, ``[draw, coordinate + weight]``, and the covariance of the
        coordinates that includes the uncertainty of the weights.
    """
    known = len(covariance)
    root = torch.linalg.cholesky(covariance)
    count, size = len(model.parameter_draws), model.parameter_draws.shape[1]
    normal = randomness.normal(seed, Stream.PARAMETER_DRAWS.at(0), torch.tensor([0]), count * size).reshape(count, size)
    normal = normal.to(covariance.device)
    moved = normal[:, :known] @ root.T
    if not model.uncertain_weights():
        return moved, covariance
    scores = _scores(model, batch, drawn)
    of_coordinates, of_weights = scores[:, :known], scores[:, known:]
    regression = torch.linalg.pinv(of_coordinates, rtol=1e-6) @ of_weights
    sd = _prior_precision(model).rsqrt()
    _, values, axes = torch.linalg.svd((of_weights - of_coordinates @ regression) * sd, full_matrices=False)
    free = normal[:, known:]
    free = free + (free @ axes.T * ((1 + values.square()).rsqrt() - 1)) @ axes
    weights, regression = free * sd, regression * sd
    explained = regression @ axes.T * (values.square() / (1 + values.square())).sqrt()
    return (
        torch.cat([moved - free @ regression.T, weights], dim=1),
        covariance + regression @ regression.T - explained @ explained.T,
    )


def _scores(model: PopulationModel, batch: CohortBatch, drawn: Draws) -> Tensor:
    """Gradient of log p(y) of every subject in the coordinates and the weights, ``[subject, coordinate + weight]``: the
    posterior mean of the gradient of log p(y, z) (Fisher's identity)."""
    coordinates, weights = model.coordinates(), [*model.covariate_weights(), *model.uncertain_weights()]
    tensors = [*dict.fromkeys(one.tensor for one in coordinates), *weights]
    rows = []
    for k in range(len(batch)):
        subject = batch.select(torch.tensor([k], device=batch.device)).repeat(drawn.z.shape[1])
        with torch.enable_grad():
            value = log_joint(model, drawn.z[k], subject)
            mean = torch.where(torch.isfinite(value), drawn.weight[k] * value, 0.0).sum()
        slopes = torch.autograd.grad(mean, tensors, materialize_grads=True)
        by_tensor = dict(zip(tensors, slopes, strict=True))
        named = [by_tensor[one.tensor].flatten()[one.index] for one in coordinates]
        rows.append(torch.cat([torch.stack(named), *(by_tensor[weight].flatten() for weight in weights)]))
    return torch.stack(rows).double()


def _prior_precision(model: PopulationModel) -> Tensor:
    """Precision of every weight in its normal prior, ``[weight]``: minus the second derivative of the log density."""
    weights: Sequence[Tensor] = model.uncertain_weights()
    with torch.enable_grad():
        slopes = torch.autograd.grad(model.dynamics.log_prior(), weights, create_graph=True)  # type: ignore[arg-type]
        total = torch.stack([slope.sum() for slope in slopes]).sum()
        curvature = torch.autograd.grad(total, weights)
    return -torch.cat([part.flatten() for part in curvature]).double()
