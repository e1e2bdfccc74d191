"""Draws of the population parameters and of network weights from their approximate posterior."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
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


def draw_coordinates(model: PopulationModel, covariance: Tensor, seed: int) -> Tensor:
    """Draws of the population's coordinates of a model without weights of its dynamics from a normal distribution, as
    distances from the estimate, ``[draw, coordinate]``."""
    drawn: Tensor = _normal(model, seed).to(covariance.device) @ torch.linalg.cholesky(covariance).T
    return drawn


def draw_parameters(
    model: PopulationModel, covariance: Tensor, scores: Tensor, slope: Tensor, seed: int
) -> tuple[Tensor, Tensor]:
    """Draws of the population's coordinates and the weights of the network from a normal approximation.

    The weights w have a normal prior with precision P; they and the coordinates c explain the same data. With s_i the
    gradient of log p(y_i), whose outer products are the information, and G the regression of s_w on s_c over subjects,
    the part of s_w that s_c does not explain determines w, and c follows from w::

        w ~ N(0, (P + Σ rᵢrᵢᵀ)⁻¹),  r = s_w − s_c·G        c = −G·w + N(0, covariance)

    Weights that count by their magnitude (`Decoder.magnitudes`) keep their signs: of each draw they are the nearest
    ones, by the curvature, that do so, and all else follows by regression. So a draw is the estimate that other data of
    the same information would have given, in which a weight can be 0 (Bardsley and Hansen 2020, MCMC algorithms for
    computational UQ of nonnegativity constrained linear inverse problems).

    Args:
        model: at its estimate.
        covariance: of the coordinates and the weights of covariate networks, which are known as well as they are, with
            the weights of the dynamics held fixed, ``[coordinate, coordinate]``.
        scores: whose outer products sum to the information, ``[row, coordinate + weight]``.
        slope: at the estimate of log p(data), to which that of the prior of the coordinates is added,
            ``[coordinate + weight]``.
        seed: of the draws.

    Returns:
        The draws, as distances from the estimate, ``[draw, coordinate + weight]``, and the covariance of the
        coordinates that includes the uncertainty of the weights, that of magnitudes as if they could have either sign.
    """
    known = len(covariance)
    root = torch.linalg.cholesky(covariance)
    normal = _normal(model, seed).to(covariance.device)
    moved = normal[:, :known] @ root.T
    of_coordinates, of_weights = scores[:, :known], scores[:, known:]
    regression = torch.linalg.pinv(of_coordinates, rtol=1e-6) @ of_weights
    sd = _prior_precision(model).rsqrt()
    _, values, axes = torch.linalg.svd((of_weights - of_coordinates @ regression) * sd, full_matrices=False)
    free = normal[:, known:]
    free = free + (free @ axes.T * ((1 + values.square()).rsqrt() - 1)) @ axes
    slope = slope[known:] + _prior_slope(model) - slope[:known] @ regression
    free = _of_one_sign(model, free, slope, sd, (values.square() / (1 + values.square()), axes))
    weights, regression = free * sd, regression * sd
    explained = regression @ axes.T * (values.square() / (1 + values.square())).sqrt()
    return (
        torch.cat([moved - free @ regression.T, weights], dim=1),
        covariance + regression @ regression.T - explained @ explained.T,
    )


def _normal(model: PopulationModel, seed: int) -> Tensor:
    """Standard normal numbers, ``[draw, number]``."""
    count, size = model.parameter_draws.shape
    stream = Stream.PARAMETER_DRAWS.at(0)
    return randomness.normal(seed, stream, torch.tensor([0]), count * size).reshape(count, size)


def _of_one_sign(
    model: PopulationModel, free: Tensor, slope: Tensor, sd: Tensor, known: tuple[Tensor, Tensor]
) -> Tensor:
    """Draws of the weights, with those that count by their magnitude moved to the nearest ones that have the sign of
    the estimate, and the others by their regression on these. What holds a weight at 0, the slope of log p that would
    make it negative, acts on its draws too.

    Args:
        model: at its estimate.
        free: normal draws in units of the prior, as distances from the estimate, ``[draw, weight]``.
        slope: of log p(data, weights) in the weights while the coordinates follow them, ``[weight]``; 0 at an estimate
            but for weights that are held at 0. What the end of a search has left of it is not used.
        sd: standard deviation of each weight in its prior, ``[weight]``.
        known: the covariance of `free` is 1 − axesᵀ·share·axes: share ``[axis]`` and axes ``[axis, weight]``.
    """
    weights, magnitudes = model.uncertain_weights(), {id(weight) for weight in model.dynamics.magnitudes()}
    flags = [torch.full((weight.numel(),), id(weight) in magnitudes, device=free.device) for weight in weights]
    which = torch.cat(flags).nonzero()[:, 0]
    if not len(which):
        return free
    share, axes = known
    covariance = -(axes.T * share) @ axes[:, which]
    covariance[which, torch.arange(len(which), device=free.device)] += 1.0
    precision = torch.linalg.inv(covariance[which])
    estimate = torch.cat([weight.detach().flatten() for weight in weights]).double()[which] / sd[which]
    sign = torch.where(estimate < 0, -1.0, 1.0).double()
    estimate, moved = estimate.abs(), free[:, which] * sign
    root = torch.linalg.cholesky(sign[:, None] * precision * sign).T

    def nearest(values: Tensor) -> Tensor:
        from scipy.optimize import nnls  # half a second, for which no command waits that draws none of these

        found = [nnls(root.cpu().numpy(), each.cpu().numpy())[0] for each in values @ root.T]
        return torch.from_numpy(np.stack(found)).to(values)

    highest = estimate + (slope * sd) @ covariance * sign  # where log p would be highest without the constraint
    held = (highest - nearest(highest[None]))[0]
    change = nearest(estimate + held + moved) - estimate - moved
    kept: Tensor = free + (change * sign) @ precision @ covariance.T
    return kept


def scores(model: PopulationModel, batch: CohortBatch, drawn: Draws) -> Tensor:
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


def _prior_slope(model: PopulationModel) -> Tensor:
    """Slope of the log prior density in the weights, ``[weight]``."""
    weights: Sequence[Tensor] = model.uncertain_weights()
    with torch.enable_grad():
        slopes = torch.autograd.grad(model.dynamics.log_prior(), weights)  # type: ignore[arg-type]
    return torch.cat([slope.flatten() for slope in slopes]).double()


def _prior_precision(model: PopulationModel) -> Tensor:
    """Precision of every weight in its normal prior, ``[weight]``: minus the second derivative of the log density."""
    weights: Sequence[Tensor] = model.uncertain_weights()
    with torch.enable_grad():
        slopes = torch.autograd.grad(model.dynamics.log_prior(), weights, create_graph=True)  # type: ignore[arg-type]
        total = torch.stack([slope.sum() for slope in slopes]).sum()
        curvature = torch.autograd.grad(total, weights)
    return -torch.cat([part.flatten() for part in curvature]).double()
