"""Objectives: what a training minimises, and how a patient is estimated under it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from neuralpk import randomness
from neuralpk.cohort_batch import CohortBatch
from neuralpk.encoders import Encoder, Posterior
from neuralpk.estimation import Gather, PopulationEstimator, PosteriorDraws
from neuralpk.part import Part
from neuralpk.population_model import PopulationModel, Prediction
from neuralpk.randomness import Stream

if TYPE_CHECKING:
    from neuralpk.path_guide import PathGuide


@dataclass(frozen=True)
class Loss:
    """A loss and its parts, as sums over subjects and over scored observations, so that parts of a batch add up.

    Args:
        fit: sum of the term that compares predictions with data, such as −log p(y | z) or −log p(y).
        observations: number of scored observations.
        failures: number of subjects that could not be solved; they are in none of the sums.
        kl: sum of KL(q(z) ‖ N(0, I)); None for none.
        encoder: sum of a term that trains the encoder alone; None for none.
        penalty: sum of the penalty of the dynamics (`neuralpk.dynamics.Decoder.penalty`); None for none.
        kl_weight: weight of `kl` in the total.
    """

    fit: Tensor
    observations: Tensor
    failures: Tensor
    kl: Tensor | None = None
    encoder: Tensor | None = None
    penalty: Tensor | None = None
    kl_weight: float = 1.0

    def parts(self) -> dict[str, Tensor]:
        """The terms by name, those that are not there as 0."""
        zero = torch.zeros_like(self.fit)
        found = {"fit": self.fit, "kl": self.kl, "encoder": self.encoder, "penalty": self.penalty}
        return {name: zero if value is None else value for name, value in found.items()}

    @property
    def total(self) -> Tensor:
        """What is minimised, without the prior of the population, a scalar."""
        parts = self.parts()
        return parts["fit"] + self.kl_weight * parts["kl"] + parts["encoder"] + parts["penalty"]

    @property
    def value(self) -> Tensor:
        """What is reported as the loss: the fit and the weighted KL, a scalar."""
        parts = self.parts()
        return parts["fit"] + self.kl_weight * parts["kl"]


@dataclass(frozen=True)
class Step:
    """The step of a training that a loss is computed for, with its random numbers.

    Args:
        seed: of the training.
        number: of the step, from 0; None in an evaluation, whose random numbers are always the same.
        share: of the training that is done, from 0 to 1; 1 where its length is not known.
        start: estimates of z from which a search may begin, ``[subject, latent]``; None for those of the encoder.
        posterior: draws of z that an estimator holds over some steps; None where the objective makes its own.
    """

    seed: int
    number: int | None = None
    share: float = 1.0
    start: Tensor | None = None
    posterior: PosteriorDraws | None = None

    @property
    def training(self) -> bool:
        """Whether it is a step of a training."""
        return self.number is not None

    @property
    def stream(self) -> int:
        """Random numbers of the draws of z."""
        return Stream.EVALUATION.at(0) if self.number is None else Stream.TRAINING.at(self.number)

    @property
    def path_stream(self) -> int:
        """Random numbers of the paths of a stochastic dynamics."""
        return Stream.EVALUATION_PATHS.at(0) if self.number is None else Stream.TRAINING_PATHS.at(self.number)

    def normal(self, batch: CohortBatch, count: int) -> Tensor:
        """Standard normal numbers for the draws of z, ``[subject, count]``."""
        return randomness.normal(self.seed, self.stream, batch.index, count).to(batch.time.dtype)


class Objective(Part, ABC):
    """What a training minimises. An objective of one's own has to have `loss`.

    Attributes:
        has_likelihood: whether the residual error is learned, so that intervals, weighted residuals and −2LL exist.
        maximises_likelihood: whether the population ends at the maximum of its (penalised) marginal likelihood, so that
            standard errors from the curvature there are computed at the end of a training.
    """

    has_likelihood: bool = True
    maximises_likelihood: bool = False

    def check(self, model: PopulationModel, encoder: Encoder | None, guide: PathGuide | None) -> None:
        """Refuse parts that this objective cannot train together. By default the dynamics has no noise.

        Raises:
            ValueError: which part does not fit, and what to use.
        """
        if model.dynamics.stochastic:
            raise ValueError(
                f"{type(model.dynamics).__name__} has noise, which is trained by the objective PathELBO, not by "
                f"{type(self).__name__}"
            )
        if guide is not None:
            raise ValueError(f"a guide is for a dynamics with noise; {type(model.dynamics).__name__} has none")

    @abstractmethod
    def loss(
        self, model: PopulationModel, encoder: Encoder | None, guide: PathGuide | None, batch: CohortBatch, step: Step
    ) -> Loss:
        """The loss of a batch.

        Args:
            model: the generative model.
            encoder: samples -> q(z); None where the task has none.
            guide: of a stochastic dynamics.
            batch: ``context`` is read by the encoder, ``target`` is scored.
            step: of the training, with its random numbers.
        """

    def estimate(
        self, model: PopulationModel, encoder: Encoder | None, guide: PathGuide | None, batch: CohortBatch
    ) -> Tensor:
        """Individual estimates of z given the context, ``[subject, latent]``: by default the mean of q."""
        return posterior(model, encoder, batch).mean

    def estimator(
        self, model: PopulationModel, encoder: Encoder | None, seed: int, gather: Gather
    ) -> PopulationEstimator | None:
        """An estimator that moves the population by itself, instead of an optimiser that follows the gradient of the
        loss; by default None.

        Args:
            model: as built.
            encoder: of the task.
            seed: of the training.
            gather: of `neuralpk.estimation.PopulationEstimator`.
        """
        return None

    def loss_beside_estimator(
        self, model: PopulationModel, encoder: Encoder | None, batch: CohortBatch, step: Step
    ) -> Tensor | None:
        """What is left to minimise by its gradient while an estimator moves the population, a scalar sum; by default
        None."""
        return None

    @property
    def searches_map(self) -> bool:
        """Whether estimates of a trained task go on from the encoder to the maximum of the posterior, through the
        solver; by default wherever there is a likelihood."""
        return self.has_likelihood


def posterior(model: PopulationModel, encoder: Encoder | None, batch: CohortBatch) -> Posterior:
    """q(z) of every subject by the encoder; without an encoder the prior."""
    if encoder is None:
        return Posterior.prior(len(batch), model.latents(batch).shape[1], batch.time)
    q: Posterior = encoder(batch)
    return q


def require_encoder(objective: Objective, encoder: Encoder | None) -> None:
    """Refuse to train without an encoder.

    Raises:
        ValueError: there is none.
    """
    if encoder is None:
        raise ValueError(
            f"{type(objective).__name__} takes the estimates of the patients from an encoder: give one, as "
            "encoder=SetEncoder(), or use MarginalLikelihood, which needs none"
        )


def predict_solvable(model: PopulationModel, z: Tensor, batch: CohortBatch) -> tuple[Prediction, CohortBatch, Tensor]:
    """Predictions of the subjects that could be solved, their batch, and their indices."""
    prediction = model.predict(z, batch)
    ok = prediction.trajectory.ok
    kept = ok.nonzero()[:, 0]
    if bool(ok.all()):
        return prediction, batch, kept
    # rows are left out, not masked: the derivative of a masked NaN is still NaN
    part = batch.select(kept)
    return model.predict(z[kept], part), part, kept


def failures(batch: CohortBatch, kept: Tensor) -> Tensor:
    """Number of subjects that could not be solved, a scalar."""
    return torch.tensor(len(batch) - len(kept), device=batch.device)
