"""The marginal likelihood, by importance sampling."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from neuralpk import randomness
from neuralpk.cohort_batch import CohortBatch
from neuralpk.encoders import Encoder, Posterior
from neuralpk.estimation import Gather, NetworkEstimator, PopulationEstimator, PosteriorDraws
from neuralpk.inference import importance
from neuralpk.inference.map import map_estimate, maximise
from neuralpk.objectives.base import Loss, Objective, Step, failures, posterior, predict_solvable
from neuralpk.population_model import PopulationModel
from neuralpk.randomness import Stream

if TYPE_CHECKING:
    from neuralpk.path_guide import PathGuide

# in units of log p: a proposal need not have its centre at the maximum, but far from it the weights of a narrow
# posterior rest on few draws
_NEAR = 0.01
_log = logging.getLogger(__name__)


class MarginalLikelihood(Objective):
    """Negative marginal log-likelihood by importance sampling with K draws (Burda et al. 2016; IMPMAP of NONMEM)::

        loss = −log (1/K) Σ_k p(y, z_k)/q(z_k)          z_k ~ q, a multivariate t around the maximum of p(y, z)

    The population of a model is estimated by Newton's method on held draws (`neuralpk.estimation`), which chooses
    draws and steps by itself, and starting values where there is no network. Weights of a network follow the gradient
    at the same draws (Fisher's identity). The training ends when nothing more is gained, unless there is an encoder,
    which is trained beside it, by the draws (Bornschein and Bengio 2015) and by simulated patients, whose z is known.

    Without an estimator, as with a growing horizon or another optimiser, the proposal q is made in every step: a search
    through the solver goes on from the mean of the encoder (or, without an encoder, from the typical patient) to the
    maximum a posteriori (semi-amortised; Kim et al. 2018). The normalised weights give the gradient in the model.

    y is every record of the context or the target of a batch: no record of a patient is read without being scored.

    Args:
        draws: K, of z for each subject and step, without an estimator; default 20.
        map_steps: most steps of the search in a step of the training, without an estimator; default 10.

    Raises:
        ValueError: no draw; a negative number of steps.
    """

    maximises_likelihood = True

    def __init__(self, draws: int | None = None, map_steps: int | None = None) -> None:
        self.given = {"draws": draws, "map_steps": map_steps}
        self.draws, self.map_steps = 20 if draws is None else draws, 10 if map_steps is None else map_steps
        if self.draws < 1 or self.map_steps < 0:
            raise ValueError(f"draws must be 1 or more and map_steps 0 or more, got {draws} and {map_steps}")

    def loss(
        self, model: PopulationModel, encoder: Encoder | None, guide: PathGuide | None, batch: CohortBatch, step: Step
    ) -> Loss:
        q = posterior(model, encoder, batch)
        if step.posterior is not None:
            return self._at_posterior(model, encoder, q, step.posterior, batch, step)
        scored = batch.scored_on_all()
        start = q.mean if step.start is None else step.start
        mode = maximise(model, scored, start, self.map_steps, _NEAR)
        size = start.shape[1]
        noise = importance.noise(step.seed, step.stream, batch.index, self.draws, size, batch.time.dtype)
        draws = importance.draw(model, scored, mode, noise)
        kept = torch.isfinite(draws.log_weight).any(1).nonzero()[:, 0]
        penalty = None
        if model.dynamics.penalised:  # at the maximum
            prediction, part, _ = predict_solvable(model, mode.z, scored)
            penalty = model.penalty(prediction, part)
        return Loss(
            -draws.log_likelihood[kept].sum(),
            scored.target[kept].sum(),
            failures(batch, kept),
            encoder=None if encoder is None else self._encoder_loss(model, encoder, q, draws, kept, batch, step),
            penalty=penalty,
        )

    def _at_posterior(
        self,
        model: PopulationModel,
        encoder: Encoder | None,
        q: Posterior,
        held: PosteriorDraws,
        batch: CohortBatch,
        step: Step,
    ) -> Loss:
        """−log p(y), with its gradient by Fisher's identity: of −log p(y | z), mean over draws of the posterior."""
        draws = held.z.shape[1]
        repeated = batch.scored_on_all().repeat(draws)
        prediction, part, kept = predict_solvable(model, held.z.flatten(0, 1), repeated)
        fit = -model.error.log_likelihood(part, prediction.value, prediction.factor).sum() / draws
        encoder_loss = None
        if encoder is not None:
            of_draws: Tensor = -q.log_density(held.z).mean(1).sum()
            encoder_loss = of_draws + self._of_simulated(model, encoder, batch, step)
        return Loss(
            -held.log_likelihood.sum() + fit - fit.detach(),
            part.target.sum() / draws,
            failures(repeated, kept) / draws,
            encoder=encoder_loss,
            penalty=model.penalty(prediction, part) / draws if model.dynamics.penalised else None,
        )

    def _encoder_loss(
        self,
        model: PopulationModel,
        encoder: Encoder,
        q: Posterior,
        draws: importance.Draws,
        kept: Tensor,
        batch: CohortBatch,
        step: Step,
    ) -> Tensor:
        """−log q at the weighted draws of the patients and, in a training, at the z of simulated ones, a scalar sum."""
        of_draws: Tensor = (draws.weight[kept] * -q.log_density(draws.z)[kept]).sum()
        return of_draws if step.number is None else of_draws + self._of_simulated(model, encoder, batch, step)

    def _of_simulated(self, model: PopulationModel, encoder: Encoder, batch: CohortBatch, step: Step) -> Tensor:
        """−log q at z of patients that are simulated with the doses and times of the batch, a scalar sum over those who
        could be solved; in a training."""
        assert step.number is not None
        size, stream = model.latent_size, Stream.SIMULATED_PATIENTS.at(step.number)
        normal = randomness.normal(step.seed, stream, batch.index, size + batch.time.shape[1]).to(batch.time.dtype)
        with torch.no_grad():
            simulated = model.simulate(normal[:, :size], normal[:, size:], batch)
        solved = torch.isfinite(simulated.value).all(1).nonzero()[:, 0]
        if not len(solved):
            return normal.new_zeros(())
        of_simulated: Posterior = encoder(simulated.select(solved))
        return -of_simulated.log_density(normal[solved, None, :size]).sum()

    def loss_beside_estimator(
        self, model: PopulationModel, encoder: Encoder | None, batch: CohortBatch, step: Step
    ) -> Tensor | None:
        """Of an encoder: −log q at z of simulated patients."""
        if encoder is None or step.number is None:
            return None
        return self._of_simulated(model, encoder, batch, step)

    def estimator(
        self, model: PopulationModel, encoder: Encoder | None, seed: int, gather: Gather
    ) -> PopulationEstimator | None:
        if not model.is_uncertain:
            return None
        unused = [f"{name}={value}" for name, value in self.given.items() if value is not None]
        if unused:
            _log.warning(
                f"MarginalLikelihood({', '.join(unused)}): not used, because the population is moved by its estimator, "
                "which chooses the draws"
            )
        if any(weight.requires_grad for weight in model.dynamics.parameters()):
            return NetworkEstimator(model, seed, gather)
        return PopulationEstimator(model, seed, gather=gather)

    def estimate(
        self, model: PopulationModel, encoder: Encoder | None, guide: PathGuide | None, batch: CohortBatch
    ) -> Tensor:
        """The maximum a posteriori (MAP, empirical Bayes estimate) given the context, ``[subject, latent]``."""
        return map_estimate(model, batch, posterior(model, encoder, batch).mean).z
