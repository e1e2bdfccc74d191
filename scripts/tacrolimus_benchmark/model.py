"""Estimators with equations: the model that learns from samples alone, and the true population of a scenario."""

from __future__ import annotations

import math
from typing import Any

import lightning as L
import numpy as np
import torch
from quiet_training import train

from neuralpk.cohort import Cohort, FloatArray
from neuralpk.dataclass_rows import select
from neuralpk.datamodules.base import CohortDataModule
from neuralpk.dynamics import CompartmentModel
from neuralpk.encoders import Encoder, SetEncoder
from neuralpk.individual_estimates import evaluation_batch
from neuralpk.inference import importance
from neuralpk.inference.map import map_estimate
from neuralpk.inference.quantiles import interval
from neuralpk.objectives import MarginalLikelihood
from neuralpk.parameters import PopulationParameters
from neuralpk.population_model import PopulationModel
from neuralpk.randomness import Stream
from neuralpk.residual_error import CombinedError
from neuralpk.scaling import CovariateScale, Scaling
from neuralpk.solve import Auto
from neuralpk.task import LatentTask
from tacrolimus_benchmark.estimate import Estimate
from tacrolimus_benchmark.simulation import (
    ERROR,
    HAEMATOCRIT,
    INTERVAL,
    POINTS,
    RANGE,
    REPEATS,
    STEEPNESS,
    VARIANCE,
    SumError,
    areas,
    dynamics,
    intervals,
    population,
    true_lines,
)

# starting values are round numbers of the magnitude in the literature. The dose is a covariate of clearance, so that a
# linear model can describe saturable elimination
START: dict[str, Any] = {
    "typical": {"CL": 30.0, "V1": 300.0, "Q": 50.0, "V2": 500.0, "KTR": 2.0},
    "omega": 0.4,
    "effects": {"CL": ["CYP", "DOSE", "P"], "V1": ["P"], "Q": ["P"], "V2": ["P"], "KTR": ["P"]},
}
EPOCHS, BATCH = 13, 50

HALFWAY = 0.5  # weight of the point without bias: half the bias, with almost the same error
_PART = 40  # number of patients at once, which limits the memory


class HiddenHaematocrit(PopulationParameters):
    """The last latent dimension is the haematocrit, uniform in the population; it acts on clearance."""

    def build(self, *arguments: Any, **options: Any) -> None:
        super().build(*arguments, **options)
        self.latent_size += 1

    def forward(self, z: torch.Tensor, covariates: torch.Tensor, occasion: torch.Tensor | None = None) -> torch.Tensor:
        theta = super().forward(z[:, :-1], covariates)
        share = torch.special.ndtr(z[:, -1])
        factor = ((RANGE[0] + (RANGE[1] - RANGE[0]) * share) / HAEMATOCRIT) ** STEEPNESS
        cl = theta[..., :1] * factor[:, None, None]
        return torch.cat([cl, theta[..., 1:]], dim=-1)  # CL is the first parameter of the linear model


def known_model(scenario: int, hidden: bool) -> PopulationModel:
    """The true population of a scenario, with or without the hidden haematocrit."""
    typical, effects = population(scenario)
    omega = {name: math.sqrt(VARIANCE[name]) for name in typical}
    scaling = Scaling(covariates={"CYP": CovariateScale(binary=True), "P": CovariateScale(binary=True)})
    kind = HiddenHaematocrit if hidden else PopulationParameters
    parts = kind.from_values(typical, omega, effects, scaling=scaling), SumError.from_values(**ERROR)
    model = PopulationModel(dynamics(scenario), *parts, Auto(rtol=1e-4, atol=1e-2))
    return model.build(scaling).double().requires_grad_(False)


@torch.no_grad()
def posterior(
    model: PopulationModel, people: Cohort, draws: int, seed: int, encoder: Encoder | None = None
) -> tuple[FloatArray, FloatArray]:
    """Draws of each patient's concentration curve from its samples, ``[subject, draw, node]``, and their weights.

    With 0 draws, the curve at the MAP. The MAP search starts at the mean of the encoder, or at z = 0 without one.
    """
    batch = evaluation_batch(model, people).scored_on_context()
    last = (REPEATS - 1 + POINTS) * intervals(people)[:, None]
    nodes = torch.as_tensor(last, dtype=batch.time.dtype)
    start = model.typical(len(batch)) if encoder is None else encoder(batch).mean
    mode = map_estimate(model, batch, start)
    curves, weights = [], []
    for part in torch.split(torch.arange(len(batch)), _PART):
        own = batch.select(part)
        z, weight = mode.z[part, None], torch.ones(len(own), 1)
        if draws:
            noise = importance.noise(seed, Stream.SCRIPT.at(0), own.index, draws, z.shape[2], z.dtype)
            drawn = importance.draw(model, own, select(mode, part), noise)
            z, weight = drawn.z, drawn.weight
        count = z.shape[1]
        solution = model.trajectory(z.flatten(0, 1), own.repeat(count), nodes[part].repeat_interleave(count, dim=0))
        # a draw that could not be solved has weight 0
        curves.append(model.observe(solution)[..., 0].nan_to_num(1.0).reshape(len(own), count, -1))
        weights.append(weight)
    return torch.cat(curves).double().numpy(), torch.cat(weights).double().numpy()


class Patients(CohortDataModule):
    """The patients to learn from.

    Args:
        people: all of them.
        options: of `CohortDataModule`.
    """

    def __init__(self, people: Cohort, **options: Any) -> None:
        super().__init__(**options)
        self.people = people

    def make_cohort(self) -> Cohort:
        return self.people


def learn(people: Cohort, seed: int, epochs: int) -> LatentTask:
    """Train a model on the patients' samples; neither the scenario nor any AUC is used."""
    L.seed_everything(seed, verbose=False)  # before the first weights of the networks are drawn
    data = Patients(people, batch_size=BATCH, seed=seed)
    task = LatentTask(
        CompartmentModel(2, "transit", transits=3),
        parameters=PopulationParameters(**START),
        error=CombinedError(),
        encoder=SetEncoder(),
        objective=MarginalLikelihood(),
        learning_rate=0.02,  # of the encoder
        seed=seed,
    )
    train(task, data, epochs)
    return task.eval().requires_grad_(False)


def by_draws(
    model: PopulationModel,
    people: Cohort,
    draws: int,
    seed: int,
    unbiased: float = 0.0,
    encoder: Encoder | None = None,
) -> Estimate:
    """Point estimate, 90 % interval and mean curve of the posterior.

    Args:
        model: trained, or with the true population.
        people: the patients, with their samples.
        draws: number of draws for each patient.
        seed: of the draws.
        unbiased: 0 is the point of least squared relative error, E[1/AUC]/E[1/AUC²], which is low on average; 1 is the
            point without relative bias, 1/E[1/AUC]; values between them are a weighted geometric mean.
        encoder: of a trained model.
    """
    lines, weights = posterior(model, people, draws, seed, encoder)
    area = areas(lines, people)
    ends = interval(torch.as_tensor(area), torch.as_tensor(weights)).numpy()
    first, second = (weights / area).sum(1), (weights / area**2).sum(1)
    best = (first / second) ** (1 - unbiased) * first**-unbiased
    return Estimate(best, ends, (weights[..., None] * lines).sum(1))


def recalibrated(estimate: Estimate, people: Cohort, known: Estimate, patients: Cohort) -> Estimate:
    """An estimate times one factor for each formulation, which makes the estimates right on average for `patients`."""
    ratio = known.area / areas(true_lines(patients), patients)
    factor = np.empty(len(people))
    for every in INTERVAL.values():
        factor[intervals(people) == every] = 1 / ratio[intervals(patients) == every].mean()
    assert estimate.ends is not None and estimate.lines is not None
    return Estimate(estimate.area * factor, estimate.ends * factor, estimate.lines * factor[:, None])


def by_mode(model: PopulationModel, people: Cohort) -> Estimate:
    """The MAP."""
    lines = posterior(model, people, 0, 0)[0][:, 0]
    return Estimate(areas(lines, people), None, lines)
