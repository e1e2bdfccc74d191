"""The population that a model has learned, how sure of it the data make us, and what that means for a patient."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from neuralpk import randomness
from neuralpk.batch import CohortBatch
from neuralpk.inference import importance
from neuralpk.inference.joint import given_context, log_prior
from neuralpk.inference.mode import most_probable
from neuralpk.models import Coordinate, LatentODE

_STREAM = 1 << 46
_POPULATION = 102  # key of the counter-based random numbers of populations
_WIDEST = 2.0  # standard deviation, on the log scale, of what the data do not determine at all


@dataclass(frozen=True)
class PopulationEstimate:
    """Typical values, variability and residual error, as pharmacometricians report them.

    Args:
        rows: of a table, ``pandas.DataFrame(rows)``, one for each parameter: PARAMETER, ESTIMATE, LO95, HI95, RSE (%);
            for one that varies between subjects also CV (%), CV_RSE (%) and SHRINKAGE (%).
        covariance: of the population's coordinates (`neuralpk.models.LatentODE.coordinates`),
            ``[coordinate, coordinate]``.
        log_likelihood: log p(data), every z integrated out by importance sampling.
        error: its Monte-Carlo standard error.
        parameters: how many were learned, weights of the field included.
        observations: how many they were learned from.
    """

    rows: list[dict[str, str | float]]
    covariance: Tensor
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


def estimate_population(model: LatentODE, batch: CohortBatch, draws: int = 300, seed: int = 0) -> PopulationEstimate:
    """Standard errors, likelihood and shrinkage of the population, from the subjects that it was learned from.

    The observed information is the curvature of log p(data) + log p(population), by importance sampling with the
    parameters theta of the draws held: when the population moves, the lines stay, and what changes is how probable
    their theta are::

        log p(y) = log mean over draws of  p(y | theta)·p(theta)/q(theta)

    A covariate that changes in time counts as at the first record.

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
    covariance = _inverse((information + information.T) / 2)
    weight = drawn.weight.double() * draws
    unnamed = model.individual.active[len(model.individual.names) :]  # effects on dimensions of z without a name
    return PopulationEstimate(
        _rows(model, coordinates, covariance, 1.0 - mode.z.std(0)),
        covariance,
        float(drawn.log_likelihood.double().sum()),
        # the variance of a mean weight, relative to its square, is that of its logarithm
        float((weight.var(1) / draws).sum().sqrt()),
        len(coordinates) + int(unnamed.sum()) + sum(part.numel() for part in model.dynamics.parameters()),
        int(batch.target.sum()),
    )


@torch.no_grad()
def spread(
    model: LatentODE, batch: CohortBatch, drawn: importance.Draws, seed: int, count: int = 64
) -> importance.Draws:
    """The same draws, weighed for all populations that the data allow rather than for the likeliest alone.

    A population differs in its typical values, omega and effects, drawn from a normal distribution with the covariance
    ``model.uncertainty``; its residual error stays as it is. Under another population the z of a patient is another,
    the parameters theta are the same, and so is their likelihood: no line is solved again::

        w = mean over populations s of  p(y | theta)·p(theta | s)/q(theta), normalised for each s

    A covariate that changes in time counts as at the first record.

    Args:
        model: with its uncertainty; none (0) leaves the weights as they are.
        batch: of the draws.
        drawn: weighed under the model.
        seed: of the populations.
        count: of populations.
    """
    if not bool(model.uncertainty.any()) or not model.individual.learned:
        return drawn
    individual, dtype, n = model.individual, drawn.z.dtype, len(model.individual.names)
    values, vectors = torch.linalg.eigh(model.uncertainty.double())
    noise = randomness.normal(seed, _STREAM, torch.tensor([_POPULATION]), count * len(values)).reshape(count, -1)
    moved = (noise.to(values.device) * values.clamp(min=0.0).sqrt() @ vectors.T).to(dtype)
    typical, omega = moved[:, :n], moved[:, n : 2 * n]
    effects = typical.new_zeros((count, *individual.effects.shape))
    acting = individual.active[:n].nonzero()
    effects[:, acting[:, 0], acting[:, 1]] = moved[:, 2 * n : 2 * n + len(acting)]
    covariates = individual.scaling.standardise(batch.covariates)[:, 0]
    log_omega = individual.log_omega + omega
    shifts = typical[:, None] + torch.einsum("kpc,sc->ksp", effects[:, :n], covariates)
    rest = drawn.log_joint - log_prior(drawn.z) - drawn.log_q
    weight = torch.zeros_like(rest)
    for k in range(count):
        named = drawn.z[..., :n] * torch.exp(-omega[k]) - (shifts[k] / log_omega[k].exp())[:, None]
        z = torch.cat([named, drawn.z[..., n:]], dim=-1)
        weight += torch.softmax(rest + log_prior(z), dim=1) / count
    return dataclasses.replace(drawn, log_joint=weight.log() + drawn.log_q)


def _information(
    model: LatentODE, batch: CohortBatch, drawn: importance.Draws, coordinates: Sequence[Coordinate]
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
        log_theta = held[:, None] + individual.log_omega.exp() * drawn.z[..., :n]
    tensors = list({id(one.tensor): one.tensor for one in coordinates}.values())
    with torch.enable_grad():
        centre = individual.log_typical + (individual.effects[:n] * acting * covariates[:, None]).sum(-1)
        named = (log_theta - centre[:, None]) / individual.log_omega.exp()
        z = torch.cat([named, drawn.z[..., n:]], dim=-1)
        fit = model.error.log_likelihood(batch, value.nan_to_num(1.0)).sum(-1).T
        weight = fit + log_prior(z) - individual.log_omega.sum() - drawn.log_q + unsolved
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


def _rows(
    model: LatentODE, coordinates: Sequence[Coordinate], covariance: Tensor, shrinkage: Tensor
) -> list[dict[str, str | float]]:
    sd = {one.name: value for one, value in zip(coordinates, covariance.diagonal().sqrt().tolist(), strict=True)}
    omega = {one.name: math.exp(one.value) for one in coordinates if one.name.startswith("omega ")}
    rows = []
    for one in coordinates:
        if one.name in omega:
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
