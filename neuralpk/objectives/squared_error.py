"""The squared error."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from neuralpk.cohort_batch import CohortBatch
from neuralpk.encoders import Encoder
from neuralpk.objectives.base import Loss, Objective, Step, failures, posterior, predict_solvable, require_encoder
from neuralpk.population_model import PopulationModel

if TYPE_CHECKING:
    from neuralpk.path_guide import PathGuide


class SquaredError(Objective):
    """Squared error at the mean of q(z), each endpoint over its magnitude s::

        loss = Σ_ij ((y_ij − f_ij)/s)²

    It has no residual error, therefore no likelihood, no intervals and no MAP estimates. A censored value counts where
    the prediction is on the wrong side of its limit.
    """

    has_likelihood = False

    def check(self, model: PopulationModel, encoder: Encoder | None, guide: PathGuide | None) -> None:
        super().check(model, encoder, guide)
        require_encoder(self, encoder)

    def loss(
        self, model: PopulationModel, encoder: Encoder | None, guide: PathGuide | None, batch: CohortBatch, step: Step
    ) -> Loss:
        prediction, scored, kept = predict_solvable(model, posterior(model, encoder, batch).mean, batch)
        error = (prediction.value - scored.value) / model.value_scale[scored.endpoint]
        error = torch.where(scored.censored * error < 0, 0.0, error)
        fit = torch.where(scored.target, error, 0.0).square().sum()
        return Loss(fit, scored.target.sum(), failures(batch, kept), penalty=model.penalty(prediction, scored))
