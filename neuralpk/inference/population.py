"""The population that a model has learned, how sure of it the data make us, and what that means for a patient."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from neuralpk.batch import CohortBatch
from neuralpk.inference import importance
from neuralpk.inference.joint import given_context, log_prior
from neuralpk.inference.mode import most_probable
from neuralpk.inference.uncertainty import draw_populations
from neuralpk.models import Coordinate, LatentModel

_STREAM = 1 << 46
_WIDEST = 2.0  # standard deviation, on the log scale, of what the data do not determine at all


@dataclass(frozen=True)
class PopulationEstimate:
    """Typical values, variability and residual error, as pharmacometricians report them.

    Args:
        rows: of a table, ``pandas.DataFrame(rows)``, one for each parameter: PARAMETER, ESTIMATE, LO95, HI95, RSE (%);
            for one that varies between subjects also CV (%), CV_RSE (%) and SHRINKAGE (%); correlations come last.
        covariance: of the population's coordinates (`neuralpk.models.LatentModel.coordinates`),
            ``[coordinate, coordinate]``.
        populations: that the data allow, as distances from the estimate, ``[population, coordinate + weight]``.
        log_likelihood: log p(data), every z integrated out by importance sampling.
        error: its Monte-Carlo standard error.
        parameters: how many were learned, weights of the field included.
        observations: how many they were learned from.
    """

    rows: list[dict[str, str | float]]
    covariance: Tensor
    populations: Tensor
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


def estimate_population(model: LatentModel, batch: CohortBatch, draws: int = 300, seed: int = 0) -> PopulationEstimate:
    """Standard errors, likelihood and shrinkage of the population, from the subjects that it was learned from.

    The observed information is the curvature of log p(data) + log p(population), by importance sampling with the
    parameters theta of the draws held: when the population moves, the lines stay, and what changes is how probable
    their theta are::

        log p(y) = log mean over draws of  p(y | theta)·p(theta)/q(theta)

    The weights of a learned field are uncertain too, and add to what is uncertain of the population
    (`neuralpk.inference.uncertainty`). A covariate that changes in time counts as at the first record.

    Args:
        model: at the maximum of its marginal likelihood, where ``iwae`` takes it.
        batch: the subjects; what the encoder sees counts.
        draws: of z for each subject.
        seed: of the draws.
    """
    batch = given_context(batch)
    with torch.no_grad():
        mode = most_probable(model, batch, model.encoder(batch).mean)
        noise = importance.noise(seed, _STREAM, batch.index, draws, mode.z.shape[1], mode.z.dtype)
        drawn = importance.draw(model, batch, mode, noise)
    coordinates = model.coordinates()
    information = _information(model, batch, drawn, coordinates)
    held = _inverse((information + information.T) / 2)
    populations, covariance = draw_populations(model, batch, drawn, held, seed)
    weight = drawn.weight.double() * draws
    unnamed = model.individual.active[len(model.individual.names) :]  # effects on dimensions of z without a name
    return PopulationEstimate(
        _rows(model, coordinates, covariance, _shrinkage(model, mode.z))
        + _correlations(model, coordinates, covariance),
        covariance,
        populations,
        float(drawn.log_likelihood.double().sum()),
        # the variance of a mean weight, relative to its square, is that of its logarithm
        float((weight.var(1) / draws).sum().sqrt()),
        len(coordinates) + int(unnamed.sum()) + sum(part.numel() for part in model.dynamics.parameters()),
        int(batch.target.sum()),
    )


def _information(
    model: LatentModel, batch: CohortBatch, drawn: importance.Draws, coordinates: Sequence[Coordinate]
) -> Tensor:
    """Minus the second derivatives of log p(data) + log p(population), ``[coordinate, coordinate]``."""
    individual, n = model.individual, len(model.individual.names)
    with torch.no_grad():
        value = model.predict(drawn.z.flatten(0, 1), batch.repeat(drawn.z.shape[1])).value
        value = value.reshape(*drawn.log_q.shape, -1).transpose(0, 1)  # [sample, subject, observation]
        unsolved = torch.where(torch.isfinite(drawn.log_joint), 0.0, -torch.inf)
        covariates = individual.scaling.standardise(batch.covariates)[:, 0]
        acting = individual.active[:n]
        held = individual.log_typical + (individual.effects[:n] * acting * covariates[:, None]).sum(-1)
        log_theta = held[:, None] + individual.eta(drawn.z)
    tensors = list({id(one.tensor): one.tensor for one in coordinates}.values())
    with torch.enable_grad():
        centre = individual.log_typical + (individual.effects[:n] * acting * covariates[:, None]).sum(-1)
        named, log_volume = individual.standardise(log_theta - centre[:, None])
        z = torch.cat([named, drawn.z[..., n:]], dim=-1)
        fit = model.error.log_likelihood(batch, value.nan_to_num(1.0)).sum(-1).T
        weight = fit + log_prior(z) + log_volume - drawn.log_q + unsolved
        total = torch.logsumexp(weight, dim=1).sum() + individual.log_prior()
        slope = torch.autograd.grad(total, tensors, create_graph=True)
        rows = [_pick(slope, tensors, one) for one in coordinates]
        curvature = [torch.autograd.grad(row, tensors, retain_graph=True, materialize_grads=True) for row in rows]
    return -torch.stack([torch.stack([_pick(row, tensors, one) for one in coordinates]) for row in curvature]).double()


def _pick(gradients: Sequence[Tensor], tensors: Sequence[Tensor], one: Coordinate) -> Tensor:
    place = next(k for k, tensor in enumerate(tensors) if tensor is one.tensor)
    return gradients[place].flatten()[one.place]


def _inverse(information: Tensor) -> Tensor:
    """The covariance; a direction in which the likelihood does not fall off is unknown within wide limits."""
    values, vectors = torch.linalg.eigh(information)
    covariance: Tensor = (vectors / values.clamp(min=_WIDEST**-2)) @ vectors.T
    return covariance


def _shrinkage(model: LatentModel, z: Tensor) -> Tensor:
    """1 − sd(eta)/omega of the estimated random effects, ``[parameter]``."""
    eta = model.individual.eta(z).detach()
    variance = (eta - eta.mean(0)).square().sum(0) / (len(eta) - 1)
    shrinkage: Tensor = 1.0 - variance.sqrt() / model.individual.log_omega.detach().exp()
    return shrinkage


def _correlations(
    model: LatentModel, coordinates: Sequence[Coordinate], covariance: Tensor
) -> list[dict[str, str | float]]:
    """Rows of the correlations of the random effects, their errors by the slope of a correlation in its links."""
    individual, linked = model.individual, [k for k, one in enumerate(coordinates) if one.name.startswith("corr ")]
    if not linked:
        return []
    with torch.enable_grad():
        found = individual.correlations()
        slopes = [torch.autograd.grad(one, individual.links, retain_graph=True)[0] for one in found]
    slope = torch.stack(slopes).double()
    sd = (slope @ covariance[linked][:, linked] @ slope.T).diagonal().sqrt().tolist()
    rows: list[dict[str, str | float]] = []
    for k, value, error in zip(linked, found.tolist(), sd, strict=True):
        low, high = max(value - 1.96 * error, -1.0), min(value + 1.96 * error, 1.0)
        rse = 100 * error / abs(value) if value else math.inf
        rows.append({"PARAMETER": coordinates[k].name, "ESTIMATE": value, "LO95": low, "HI95": high, "RSE": rse})
    return rows


def _rows(
    model: LatentModel, coordinates: Sequence[Coordinate], covariance: Tensor, shrinkage: Tensor
) -> list[dict[str, str | float]]:
    sd = {one.name: value for one, value in zip(coordinates, covariance.diagonal().sqrt().tolist(), strict=True)}
    omega = {one.name: math.exp(one.value) for one in coordinates if one.name.startswith("omega ")}
    rows = []
    for one in coordinates:
        if one.name in omega or one.name.startswith("corr "):
            continue
        ends = [one.value, one.value - 1.96 * sd[one.name], one.value + 1.96 * sd[one.name]]
        if "~" in one.name:  # an effect; everything else is held as a logarithm
            rse = 100 * sd[one.name] / abs(one.value) if one.value else math.inf
        else:
            rse, ends = 100 * sd[one.name], [math.exp(end) for end in ends]
        row: dict[str, str | float] = dict(
            zip(("PARAMETER", "ESTIMATE", "LO95", "HI95", "RSE"), (one.name, *ends, rse), strict=True)
        )
        varies = f"omega {one.name}"
        if varies in omega:
            # CV = sqrt(exp(omega²) − 1), and its relative error by the slope in log(omega)
            square = omega[varies] ** 2
            slope = square / -math.expm1(-square)
            cv = math.sqrt(math.expm1(square)) if square < 700 else math.inf  # of a fit that went astray
            row |= {"CV": 100 * cv, "CV_RSE": 100 * slope * sd[varies]}
            row |= {"SHRINKAGE": 100 * float(shrinkage[one.place])}
        rows.append(row)
    return rows
