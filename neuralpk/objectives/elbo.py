"""The evidence lower bound."""

from __future__ import annotations

from typing import TYPE_CHECKING

from neuralpk.cohort_batch import CohortBatch
from neuralpk.encoders import Encoder
from neuralpk.objectives.base import Loss, Objective, Step, failures, posterior, predict_solvable, require_encoder
from neuralpk.population_model import PopulationModel

if TYPE_CHECKING:
    from neuralpk.path_guide import PathGuide


class ELBO(Objective):
    """Negative evidence lower bound with one draw of z (Kingma and Welling 2014)::

        loss = −E_q[log p(y | z)] + w·KL(q(z) ‖ p(z))

    In an evaluation z is the mean of q and w is 1.

    Args:
        warmup: share of the training over which the weight w of the KL term rises linearly from 0 to 1.

    Raises:
        ValueError: a share outside 0 to 1.
    """

    def __init__(self, warmup: float = 0.0) -> None:
        if not 0.0 <= warmup <= 1.0:
            raise ValueError(f"warmup is a share of the training, from 0 to 1; got {warmup}")
        self.warmup = warmup

    def check(self, model: PopulationModel, encoder: Encoder | None, guide: PathGuide | None) -> None:
        super().check(model, encoder, guide)
        require_encoder(self, encoder)

    def kl_weight(self, step: Step) -> float:
        """w at a step of the training."""
        return min(1.0, step.share / self.warmup) if self.warmup and step.training else 1.0

    def loss(
        self, model: PopulationModel, encoder: Encoder | None, guide: PathGuide | None, batch: CohortBatch, step: Step
    ) -> Loss:
        q = posterior(model, encoder, batch)
        z = q.mean + q.sd * step.normal(batch, q.mean.shape[1]) if step.training else q.mean
        prediction, scored, kept = predict_solvable(model, z, batch)
        return Loss(
            -model.error.log_likelihood(scored, prediction.value, prediction.factor).sum(),
            scored.target.sum(),
            failures(batch, kept),
            kl=q.kl()[kept].sum(),
            penalty=model.penalty(prediction, scored),
            kl_weight=self.kl_weight(step),
        )
