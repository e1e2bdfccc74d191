"""Standard errors of the population parameters, likelihood and shrinkage (the covariance step)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from neuralpk.cohort_batch import CohortBatch
from neuralpk.estimation.exact_likelihood import adapt, estimated_log_likelihood, likelihood_estimator
from neuralpk.estimation.expected_information import ENOUGH_SUBJECTS, expected_scores, posterior_draws
from neuralpk.estimation.fit_status import FitStatus
from neuralpk.estimation.profile_intervals import Ends, profile_intervals
from neuralpk.inference.map import maximise
from neuralpk.inference.uncertainty_draws import draw_coordinates, draw_parameters, scores
from neuralpk.parameters import Coordinate, LogNormal, ParameterDistribution
from neuralpk.population_model import PopulationModel

_WIDEST = 2.0  # standard deviation, on the learned scale, of what the data do not determine at all
_QUANTILE = 1.96  # 97.5 % of the standard normal distribution
_KNOWN = 1e-6  # standard deviation of a number at a bound
_MODE_TOLERANCE = 1e-3  # in log p, of the random effects whose shrinkage is reported


@dataclass(frozen=True)
class PopulationEstimate:
    """Table of typical values, variability, covariate effects and residual error, with their uncertainty.

    Args:
        rows: of a table, ``pandas.DataFrame(rows)``, one for each parameter: PARAMETER, ESTIMATE, LO95, HI95, INTERVAL
            (the method of the interval, ``profile`` or ``wald``), RSE (%); of a covariate effect the coefficient with
            its REFERENCE, as a population file has them; of a parameter that varies OMEGA, the standard deviation of
            eta, OMEGA_RSE (%), OMEGA_LO95, OMEGA_HI95, OMEGA_INTERVAL and SHRINKAGE (%), and where it is log-normal CV
            (%) and CV_RSE (%). Variability between occasions has rows of its own, named as in ``kappa CL``, whose
            SHRINKAGE is that of kappa over all occasions. Correlations come last.
        covariance: of the coordinates on their learned scale (`neuralpk.parameters.Coordinate`),
            ``[coordinate, coordinate]``.
        parameter_draws: draws of coordinates and network weights, as distances from the estimate,
            ``[draw, coordinate + weight]``; of a coordinate with a profile interval as wide as that on either side.
        log_likelihood: log p(data), every z integrated out by importance sampling.
        error: its Monte-Carlo standard error.
        parameters: number of learned numbers, weights of networks included.
        observations: number of observations.
        status: how the search for the maximum ended; None where another optimiser than that of the population was used.
    """

    rows: list[dict[str, str | float]]
    covariance: Tensor
    parameter_draws: Tensor
    log_likelihood: float
    error: float
    parameters: int
    observations: int
    status: FitStatus | None = None

    @property
    def aic(self) -> float:
        """−2·log p + 2·parameters (Akaike 1974)."""
        return -2 * self.log_likelihood + 2 * self.parameters

    @property
    def bic(self) -> float:
        """−2·log p + log(observations)·parameters (Schwarz 1978)."""
        return -2 * self.log_likelihood + math.log(self.observations) * self.parameters


def standard_errors(
    model: PopulationModel,
    batch: CohortBatch,
    start: Tensor,
    draws: int | None = None,
    seed: int = 0,
    status: FitStatus | None = None,
) -> PopulationEstimate:
    """Standard errors, likelihood and shrinkage of the population, from the subjects of its training.

    The observed information is minus the second derivative of log p(data), to which that of the prior is added. Both
    come from draws of the individual parameters that are held while the population moves
    (`neuralpk.estimation.HeldDraws`). The uncertainty of network weights adds to that of the population
    (`neuralpk.inference.uncertainty_draws`). A number at a bound counts as known, as one that is fixed does.

    Intervals are profile intervals (`neuralpk.estimation.profile_intervals`) where the fit has converged and the model
    has no network, and otherwise symmetric on the scale on which a number is learned (Wald).

    log p(data) is computed from several sets of quasi-random draws, whose differences give its Monte-Carlo error.

    Args:
        model: at the maximum of its marginal likelihood (`neuralpk.objectives.MarginalLikelihood`).
        batch: the subjects; the records of the context count.
        start: z from which the maximum of each subject is searched, ``[subject, latent]``.
        draws: of z for each subject in each set; default 512, of a model with a network 256.
        seed: of the draws.
        status: how the search for the maximum ended.
    """
    network = model.has_network or bool(model.covariate_weights())
    estimator = likelihood_estimator(model, draws, seed)
    batch, single = batch.to(torch.float64).scored_on_context(), batch.scored_on_context()
    estimator.centres.begin_at(batch.index, start)
    with torch.no_grad():
        adapt(estimator, batch)
        held = estimator.draw(batch)
        total, error = estimated_log_likelihood(estimator, batch, held)
    numbers = estimator.numbers
    vector = numbers.get()
    _, slope, second = held.derivatives(numbers, vector)
    prior = estimator.likelihood([]).derivatives(vector)
    total_slope = slope + prior[1]
    bound = ((vector <= numbers.low + 1e-6) & (total_slope < 0)) | ((vector >= numbers.high - 1e-6) & (total_slope > 0))
    coordinates = model.coordinates()
    where = [numbers.of(own.tensor)[own.index] for own in estimator.model.coordinates() if numbers.of(own.tensor)]
    where += [place for weight in estimator.model.covariate_weights() for place in numbers.of(weight)]
    covariance = _inverse(-(second + second.T) / 2, -prior[2], bound | ~numbers.free)[where][:, where]
    with torch.no_grad():
        drawn = posterior_draws(held, estimator, single.time.dtype)
    if model.uncertain_weights():
        own = scores(model, single, drawn)
        of_many = own if len(own) >= ENOUGH_SUBJECTS else expected_scores(model, single, seed)
        of_population = torch.where(bound | ~numbers.free, 0.0, total_slope)[where]
        slopes = torch.cat([of_population, own.sum(0)[len(where) :]])
        parameter_draws, covariance = draw_parameters(model, covariance, of_many, slopes, seed)
    else:
        parameter_draws = draw_coordinates(model, covariance, seed)
    covariance = covariance[: len(coordinates), : len(coordinates)]
    # the likeliest of so many draws lies near the highest maximum
    likeliest = drawn.z[torch.arange(len(drawn.z), device=drawn.z.device), drawn.log_joint.argmax(1)]
    mode = maximise(model, single, likeliest, tolerance=_MODE_TOLERANCE).z
    profiles: Ends = {}
    if status is not None and status.converged and not network:
        information = numbers.on_search_scale(vector, total_slope, second + prior[2])[2]
        estimator.stage -= 1  # fewer draws than the likelihood needs
        estimator.centres.forget_kernels()  # which serve one population, while profiles go far from it
        profiles = profile_intervals(estimator, batch, information)
        parameter_draws = _as_wide_as(profiles, parameter_draws, coordinates, covariance)
    return PopulationEstimate(
        _rows(model.coordinates(fixed=True), covariance, _shrinkage(model, mode, single), profiles)
        + _correlations(model, coordinates, covariance, profiles),
        covariance,
        parameter_draws,
        total,
        error,
        len(coordinates) + model.population.unreported() + sum(part.numel() for part in model.dynamics.parameters()),
        int(batch.target.sum()),
        status,
    )


def parameter_rows(model: PopulationModel, z: Tensor, batch: CohortBatch) -> list[dict[str, str | float]]:
    """`PopulationEstimate.rows` of a model as it was saved. Intervals are those of Wald, by the covariance of its
    parameter draws; NaN where those were not computed, and of a population whose numbers are all fixed.

    Args:
        model: the population.
        z: estimates of the subjects, for the shrinkage, ``[subject, latent]``.
        batch: the subjects.
    """
    coordinates, population, shrinkage = model.coordinates(), model.population, _shrinkage(model, z, batch)
    draws = model.parameter_draws[:, : len(coordinates)].double()
    covariance = draws.mT @ draws / len(draws)
    rows = _rows(model.coordinates(fixed=True), covariance, shrinkage)
    if population.learned:
        return rows + _correlations(model, coordinates, covariance, {})
    omega, kappa = population.omega_values(), population.kappa_values()
    fixed: list[dict[str, str | float]] = []
    for name, value in population.typical_values().items():
        fixed.append({"PARAMETER": name, "ESTIMATE": value})
        if name in omega:
            fixed[-1] |= {"OMEGA": omega[name], "SHRINKAGE": shrinkage[name]}
            fixed[-1] |= _coefficient_of_variation(population.distribution[name], omega[name])
    for name, value in kappa.items():
        row: dict[str, str | float] = {"PARAMETER": f"kappa {name}", "ESTIMATE": value}
        row |= _coefficient_of_variation(population.distribution[name], value)
        fixed.append(row | {"SHRINKAGE": shrinkage[f"kappa {name}"]})
    pairs = zip(population.pairs(), population.correlations().tolist(), strict=True)
    return fixed + rows + [{"PARAMETER": f"corr {a}~{b}", "ESTIMATE": value} for (a, b), value in pairs]


def _inverse(data: Tensor, prior: Tensor, bound: Tensor) -> Tensor:
    """The covariance from the information of the data and of the prior, 0 for numbers at a bound. Where the likelihood
    curves upwards it says nothing, and the prior decides; a direction in which both are flat gets a wide but finite
    standard deviation."""
    free = (~bound).nonzero()[:, 0]
    values, vectors = torch.linalg.eigh(data[free][:, free])
    known = (vectors * values.clamp(min=0.0)) @ vectors.T + prior[free][:, free]
    values, vectors = torch.linalg.eigh(known)
    covariance = _KNOWN**2 * torch.eye(len(data), dtype=data.dtype, device=data.device)
    covariance[free[:, None], free] = (vectors / values.clamp(min=_WIDEST**-2)) @ vectors.T
    return covariance


def _as_wide_as(profiles: Ends, draws: Tensor, coordinates: Sequence[Coordinate], covariance: Tensor) -> Tensor:
    """Draws of a normal approximation, made as wide as the profile intervals on either side of the estimate: the
    likelihood of a large omega falls off long before the curvature at a small one says so."""
    draws = draws.clone()
    for k, one in enumerate(coordinates):
        sd = float(covariance[k, k].sqrt())
        if one.name not in profiles or one.kind == "correlation" or sd <= 2 * _KNOWN:
            continue
        below, above = (abs(end - one.value) / (_QUANTILE * sd) for end in profiles[one.name])
        # of an omega whose interval begins at 0 the draws below stay: it is small or 0 in any of them
        draws[:, k] *= torch.where(draws[:, k] > 0, above, below if math.isfinite(below) else 1.0)
    return draws


def _shrinkage(model: PopulationModel, z: Tensor, batch: CohortBatch) -> dict[str, float]:
    """1 − sd(eta)/omega of the estimated random effects, in percent by parameter, and 1 − sd(kappa)/kappa of those of
    all occasions by ``kappa PARAMETER``."""
    population = model.population
    effects = [(population.eta(z), population.log_omega_by_parameter(), list(population.varying))]
    if population.changing:
        kappa = population.kappa(z)[batch.occasions]
        effects.append((kappa, population.log_kappa, [f"kappa {name}" for name in population.changing]))
    found: dict[str, float] = {}
    for values, log_sd, names in effects:
        values = values.detach()
        variance = (values - values.mean(0)).square().sum(0) / (len(values) - 1)
        shrinkage = 100 * (1.0 - variance.sqrt() / log_sd.detach().exp())
        found |= dict(zip(names, shrinkage.tolist(), strict=True))
    return found


def _correlations(
    model: PopulationModel, coordinates: Sequence[Coordinate], covariance: Tensor, profiles: Ends
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
        name = coordinates[k].name
        low, high = profiles.get(name, (max(value - _QUANTILE * error, -1.0), min(value + _QUANTILE * error, 1.0)))
        rse = 100 * error / abs(value) if value else math.inf
        ends: dict[str, str | float] = {"LO95": low, "HI95": high, "INTERVAL": _method(name, profiles), "RSE": rse}
        rows.append({"PARAMETER": name, "ESTIMATE": value} | ends)
    return rows


def _method(name: str, profiles: Ends) -> str:
    """Of an interval, as tables name it."""
    return "profile" if name in profiles else "wald"


def _rows(
    coordinates: Sequence[Coordinate], covariance: Tensor, shrinkage: dict[str, float], profiles: Ends | None = None
) -> list[dict[str, str | float]]:
    """Rows of typical values, kappa, covariate effects and residual error, in the order of the coordinates; of those
    that are fixed or at a bound without interval. The covariance is that of the ones that are not fixed."""
    known = covariance.diagonal().sqrt()
    of_learned = iter(torch.where(known > 2 * _KNOWN, known, torch.nan).tolist())
    sds = [math.nan if one.fixed else next(of_learned) for one in coordinates]
    omegas = {
        name: (one, sd)
        for one, sd in zip(coordinates, sds, strict=True)
        if one.kind == "omega"
        for name in (one.parameter, *one.sharing)
    }
    rows = []
    for one, sd in zip(coordinates, sds, strict=True):
        if one.kind in ("omega", "correlation"):
            continue
        row: dict[str, str | float] = {"PARAMETER": one.name}
        row |= _estimate(one, sd, profiles or {})
        if one.reference is not None:
            row["REFERENCE"] = one.reference
        if one.kind == "typical" and one.parameter in omegas:
            row |= _variability(*omegas[one.parameter], profiles or {}) | {"SHRINKAGE": shrinkage[one.parameter]}
        if one.kind == "kappa":
            row |= _cv(one, sd) | {"SHRINKAGE": shrinkage[one.name]}
        rows.append(row)
    return rows


def _estimate(one: Coordinate, sd: float, profiles: Ends) -> dict[str, str | float]:
    """ESTIMATE, LO95, HI95, INTERVAL and RSE (%) on the reported scale."""
    at = torch.tensor(one.value, dtype=torch.float64, requires_grad=True)
    with torch.enable_grad():
        value = one.reported(at)
        (slope,) = torch.autograd.grad(value, at)
    estimate = float(value.detach())
    rse = 100 * sd * abs(float(slope) / estimate) if estimate else math.inf
    row: dict[str, str | float] = {"ESTIMATE": estimate}
    return row | _interval(one, sd, profiles) | {"RSE": sd if math.isnan(sd) else rse}


def _interval(one: Coordinate, sd: float, profiles: Ends) -> dict[str, str | float]:
    """LO95, HI95 and INTERVAL: of the profile, or else symmetric on the learned scale (Wald)."""
    if one.name not in profiles and math.isnan(sd):
        return {"LO95": math.nan, "HI95": math.nan, "INTERVAL": ""}
    ends = profiles.get(one.name, (one.value - _QUANTILE * sd, one.value + _QUANTILE * sd))
    low, high = (float(one.reported(torch.tensor(end, dtype=torch.float64))) for end in ends)
    return {"LO95": low, "HI95": high, "INTERVAL": _method(one.name, profiles)}


def _variability(one: Coordinate, sd: float, profiles: Ends) -> dict[str, str | float]:
    """OMEGA with its RSE (%) and interval, and of a log-normal parameter CV."""
    row: dict[str, str | float] = {"OMEGA": math.exp(one.value), "OMEGA_RSE": 100 * sd}
    return row | {f"OMEGA_{name}": value for name, value in _interval(one, sd, profiles).items()} | _cv(one, sd)


def _cv(one: Coordinate, sd: float) -> dict[str, str | float]:
    """CV = sqrt(exp(s²) − 1) and CV_RSE, both in percent, of a log-normal parameter with the standard deviation s of
    its random effect; by the delta method."""
    found = _coefficient_of_variation(one.distribution, math.exp(one.value))
    square = math.exp(2 * one.value)
    return found | {"CV_RSE": 100 * square / -math.expm1(-square) * sd} if found else {}


def _coefficient_of_variation(distribution: ParameterDistribution | None, sd: float) -> dict[str, str | float]:
    """CV = sqrt(exp(s²) − 1) in percent of a log-normal parameter with the standard deviation s of its random
    effect."""
    if not isinstance(getattr(distribution, "inner", distribution), LogNormal):
        return {}
    square = sd * sd
    return {"CV": 100 * (math.sqrt(math.expm1(square)) if square < 700 else math.inf)}  # exp overflows
