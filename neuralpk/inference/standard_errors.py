"""Standard errors of the population parameters, likelihood and shrinkage (the covariance step)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from neuralpk.batch import CohortBatch
from neuralpk.inference import importance
from neuralpk.inference.map import map_estimate
from neuralpk.inference.uncertainty_draws import draw_parameters
from neuralpk.parameters import Coordinate, LogNormal
from neuralpk.population_model import PopulationModel
from neuralpk.randomness import Stream

_WIDEST = 2.0  # standard deviation, on the learned scale, of what the data do not determine at all
_DIFFERENCE = 1e-2  # of a coordinate, for differences of a gradient that single precision knows to about 1e-5


@dataclass(frozen=True)
class PopulationEstimate:
    """Table of typical values, variability, covariate effects and residual error, with their uncertainty.

    Args:
        rows: of a table, ``pandas.DataFrame(rows)``, one for each parameter: PARAMETER, ESTIMATE, LO95, HI95, RSE (%);
            of a covariate effect the coefficient with its REFERENCE, as a population file has them; of a parameter that
            varies OMEGA, the standard deviation of eta, OMEGA_RSE (%) and SHRINKAGE (%), and where it is log-normal CV
            (%) and CV_RSE (%). Correlations come last.
        covariance: of the coordinates on their learned scale (`neuralpk.parameters.Coordinate`),
            ``[coordinate, coordinate]``.
        parameter_draws: draws of coordinates and network weights, as distances from the estimate,
            ``[draw, coordinate + weight]``.
        log_likelihood: log p(data), every z integrated out by importance sampling.
        error: its Monte-Carlo standard error.
        parameters: number of learned numbers, weights of networks included.
        observations: number of observations.
    """

    rows: list[dict[str, str | float]]
    covariance: Tensor
    parameter_draws: Tensor
    log_likelihood: float
    error: float
    parameters: int
    observations: int

    @property
    def aic(self) -> float:
        """−2·log p + 2·parameters (Akaike 1974)."""
        return -2 * self.log_likelihood + 2 * self.parameters

    @property
    def bic(self) -> float:
        """−2·log p + log(observations)·parameters (Schwarz 1978)."""
        return -2 * self.log_likelihood + math.log(self.observations) * self.parameters


def standard_errors(
    model: PopulationModel, batch: CohortBatch, start: Tensor, draws: int = 300, seed: int = 0
) -> PopulationEstimate:
    """Standard errors, likelihood and shrinkage of the population, from the subjects of its training.

    The observed information is minus the second derivative of log p(data), to which that of the prior is added.
    log p(data) is computed by importance sampling, with the individual parameters theta of each draw held fixed while
    the population moves: predictions then stay as they are, and only the density of theta changes::

        log p(y) = log mean over draws of  p(y | theta)·p(theta)/q(theta)

    Parameters without variability have no density; in their coordinates the second derivative is a central difference
    of the exact gradient. The uncertainty of network weights adds to that of the population
    (`neuralpk.inference.uncertainty_draws`). A covariate that changes in time counts as at the first record.

    Args:
        model: at the maximum of its marginal likelihood (`neuralpk.objectives.MarginalLikelihood`).
        batch: the subjects; the records of the context count.
        start: z from which the maximum of each subject is searched, ``[subject, latent]``.
        draws: of z for each subject.
        seed: of the draws.
    """
    batch = batch.scored_on_context()
    with torch.no_grad():
        mode = map_estimate(model, batch, start)
        noise = importance.noise(seed, Stream.STANDARD_ERRORS.at(0), batch.index, draws, mode.z.shape[1], mode.z.dtype)
        drawn = importance.draw(model, batch, mode, noise)
    coordinates = model.coordinates()
    information = _information(model, batch, drawn, coordinates)
    held = _inverse((information + information.T) / 2, _prior_information(model, coordinates))
    parameter_draws, covariance = draw_parameters(model, batch, drawn, held, seed)
    weight = drawn.weight.double() * draws
    return PopulationEstimate(
        _rows(coordinates, covariance, _shrinkage(model, mode.z)) + _correlations(model, coordinates, covariance),
        covariance,
        parameter_draws,
        float(drawn.log_likelihood.double().sum()),
        # the variance of a mean weight, relative to its square, is that of its logarithm
        float((weight.var(1) / draws).sum().sqrt()),
        len(coordinates) + model.population.unreported() + sum(part.numel() for part in model.dynamics.parameters()),
        int(batch.target.sum()),
    )


def _information(
    model: PopulationModel, batch: CohortBatch, drawn: importance.Draws, coordinates: Sequence[Coordinate]
) -> Tensor:
    """Minus the second derivatives of log p(data), ``[coordinate, coordinate]``."""
    population = model.population
    tensors = list({id(one.tensor): one.tensor for one in coordinates}.values())
    with torch.no_grad():
        theta = population.unconstrained(drawn.z, batch.covariates[:, :1])
        unsolved = torch.where(torch.isfinite(drawn.log_joint), 0.0, -torch.inf)

    def predicted(z: Tensor, part: CohortBatch) -> Tensor:
        """Prediction of every draw, ``[sample, subject, observation]``; 1 where unsolved."""
        value = model.predict(z.flatten(0, 1), part.repeat(z.shape[1])).value.nan_to_num(1.0)
        return value.reshape(*z.shape[:2], -1).transpose(0, 1)

    def log_likelihood(part: CohortBatch, rows: Tensor, value: Tensor | None) -> Tensor:
        """log p(y) of some subjects, a scalar; their predictions follow z where they are not given."""
        z, log_volume = population.z_of(theta[rows], part.covariates[:, :1])
        value = predicted(z, part) if value is None else value
        fit = model.error.log_likelihood(part, value).sum(-1).T
        weight = fit + model.log_density(z) + log_volume - drawn.log_q[rows] + unsolved[rows]
        return torch.logsumexp(weight, dim=1).sum()

    def gradient() -> Tensor:
        """Gradient of log p(data) that includes the change of the predictions, ``[coordinate]``."""
        found = torch.zeros(len(coordinates), dtype=torch.float64, device=batch.device)
        for row in everybody[:, None]:
            with torch.enable_grad():
                value = log_likelihood(batch.select(row), row, None)
            slope = torch.autograd.grad(value, tensors, materialize_grads=True)
            found += torch.stack([_pick(slope, tensors, one) for one in coordinates])
        return found

    everybody = torch.arange(len(batch), device=batch.device)
    with torch.no_grad():
        value = predicted(drawn.z, batch)
    with torch.enable_grad():
        total = log_likelihood(batch, everybody, value)
        slope = torch.autograd.grad(total, tensors, create_graph=True, materialize_grads=True)
        slopes = torch.stack([_pick(slope, tensors, one) for one in coordinates])
        curvature = [
            torch.autograd.grad(one, tensors, retain_graph=True, materialize_grads=True) for one in slopes.unbind()
        ]
    second = torch.stack([torch.stack([_pick(row, tensors, one) for one in coordinates]) for row in curvature]).double()
    unvaried = [one.moves_prediction and one.parameter not in population.varying for one in coordinates]
    varied = ~torch.tensor(unvaried, device=batch.device)
    for k, one in enumerate(coordinates):
        if not unvaried[k]:
            continue
        held = one.tensor.data.view(-1)[one.index]
        before, ends = held.clone(), []
        for step in (-_DIFFERENCE, _DIFFERENCE):
            held.copy_(before + step)
            ends.append(gradient())
        held.copy_(before)
        difference = (ends[1] - ends[0]) / (2 * _DIFFERENCE)
        second[k] += difference
        second[varied, k] += difference[varied]
    return -second


def _pick(gradients: Sequence[Tensor], tensors: Sequence[Tensor], one: Coordinate) -> Tensor:
    which = next(k for k, tensor in enumerate(tensors) if tensor is one.tensor)
    return gradients[which].flatten()[one.index]


def _prior_information(model: PopulationModel, coordinates: Sequence[Coordinate]) -> Tensor:
    """Minus the second derivatives of log p(population), ``[coordinate, coordinate]``: the prior is normal."""
    tensors = list({id(one.tensor): one.tensor for one in coordinates}.values())
    zero = torch.zeros(len(coordinates), dtype=torch.float64, device=tensors[0].device)
    with torch.enable_grad():
        total = model.population.log_prior()
        if not total.requires_grad:
            return torch.diag(zero)
        slope = torch.autograd.grad(total, tensors, create_graph=True, materialize_grads=True)
        rows = [_pick(slope, tensors, one) for one in coordinates]
        curvature = [
            torch.autograd.grad(row, tensors, retain_graph=True, materialize_grads=True) if row.requires_grad else None
            for row in rows
        ]
    second = [
        zero if row is None else torch.stack([_pick(row, tensors, one) for one in coordinates]).double()
        for row in curvature
    ]
    return -torch.stack(second)


def _inverse(data: Tensor, prior: Tensor) -> Tensor:
    """The covariance from the information of the data and of the prior. Where the likelihood curves upwards it says
    nothing, and the prior decides; a direction in which both are flat gets a wide but finite standard deviation."""
    values, vectors = torch.linalg.eigh(data)
    known = (vectors * values.clamp(min=0.0)) @ vectors.T + prior
    values, vectors = torch.linalg.eigh(known)
    covariance: Tensor = (vectors / values.clamp(min=_WIDEST**-2)) @ vectors.T
    return covariance


def _shrinkage(model: PopulationModel, z: Tensor) -> dict[str, float]:
    """1 − sd(eta)/omega of the estimated random effects, in percent by parameter."""
    eta = model.population.eta(z).detach()
    variance = (eta - eta.mean(0)).square().sum(0) / (len(eta) - 1)
    shrinkage = 100 * (1.0 - variance.sqrt() / model.population.log_omega.detach().exp())
    return dict(zip(model.population.varying, shrinkage.tolist(), strict=True))


def _correlations(
    model: PopulationModel, coordinates: Sequence[Coordinate], covariance: Tensor
) -> list[dict[str, str | float]]:
    """Rows of the correlations of the random effects; standard errors by the delta method."""
    population = model.population
    which = [k for k, one in enumerate(coordinates) if one.kind == "correlation"]
    if not which:
        return []
    with torch.enable_grad():
        values = population.correlations()
        slopes = [torch.autograd.grad(one, population.factor_entries, retain_graph=True)[0] for one in values]
    slope = torch.stack(slopes).double()
    sd = (slope @ covariance[which][:, which] @ slope.T).diagonal().sqrt().tolist()
    rows: list[dict[str, str | float]] = []
    for k, value, error in zip(which, values.tolist(), sd, strict=True):
        low, high = max(value - 1.96 * error, -1.0), min(value + 1.96 * error, 1.0)
        rse = 100 * error / abs(value) if value else math.inf
        rows.append({"PARAMETER": coordinates[k].name, "ESTIMATE": value, "LO95": low, "HI95": high, "RSE": rse})
    return rows


def _rows(
    coordinates: Sequence[Coordinate], covariance: Tensor, shrinkage: dict[str, float]
) -> list[dict[str, str | float]]:
    """Rows of typical values, covariate effects and residual error, in the order of the coordinates."""
    sds = covariance.diagonal().sqrt().tolist()
    omegas = {one.parameter: (one, sd) for one, sd in zip(coordinates, sds, strict=True) if one.kind == "omega"}
    rows = []
    for one, sd in zip(coordinates, sds, strict=True):
        if one.kind in ("omega", "correlation"):
            continue
        row: dict[str, str | float] = {"PARAMETER": one.name} | _interval(one, sd)
        if one.reference is not None:
            row["REFERENCE"] = one.reference
        if one.kind == "typical" and one.parameter in omegas:
            row |= _variability(*omegas[one.parameter]) | {"SHRINKAGE": shrinkage[one.parameter]}
        rows.append(row)
    return rows


def _interval(one: Coordinate, sd: float) -> dict[str, float]:
    """ESTIMATE, LO95, HI95 and RSE (%) on the reported scale; the interval is symmetric on the learned scale."""
    at = torch.tensor(one.value, dtype=torch.float64, requires_grad=True)
    with torch.enable_grad():
        value = one.reported(at)
        (slope,) = torch.autograd.grad(value, at)
    ends = [float(one.reported(at.detach() + by * 1.96 * sd)) for by in (-1, 1)]
    estimate = float(value.detach())
    rse = 100 * sd * abs(float(slope) / estimate) if estimate else math.inf
    return {"ESTIMATE": estimate, "LO95": ends[0], "HI95": ends[1], "RSE": rse}


def _variability(one: Coordinate, sd: float) -> dict[str, float]:
    """OMEGA with its RSE (%), and of a log-normal parameter CV = sqrt(exp(omega²) − 1), with the delta method."""
    omega = math.exp(one.value)
    row = {"OMEGA": omega, "OMEGA_RSE": 100 * sd}
    if not isinstance(one.distribution, LogNormal):
        return row
    square = omega**2
    slope = square / -math.expm1(-square)
    cv = math.sqrt(math.expm1(square)) if square < 700 else math.inf  # exp overflows
    return row | {"CV": 100 * cv, "CV_RSE": 100 * slope * sd}
