"""The evidence lower bound of a model whose dynamics has noise."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from neuralpk.cohort_batch import CohortBatch
from neuralpk.encoders import Encoder
from neuralpk.objectives.base import Loss, Objective, Step, failures, posterior, require_encoder
from neuralpk.population_model import PopulationModel
from neuralpk.solve import Noise

if TYPE_CHECKING:
    from neuralpk.path_guide import PathGuide


class PathELBO(Objective):
    """Negative evidence lower bound over z and the path (Li et al. 2020)::

        loss = −E_q[log p(y | z, path)] + KL(q(z) ‖ p(z)) + ½ E_q ∫|u|² dt

    With several draws of (z, path), which are resampled at the times of the observations, it is the tighter bound of
    Maddison et al. (2017), −log of the mean of their weights; the whole loss is then in `Loss.fit`, and its KL is None.

    Args:
        draws: of (z, path) for each subject and step.

    Raises:
        ValueError: no draw.
    """

    def __init__(self, draws: int = 1) -> None:
        if draws < 1:
            raise ValueError(f"draws must be 1 or more, got {draws}")
        self.draws = draws

    def check(self, model: PopulationModel, encoder: Encoder | None, guide: PathGuide | None) -> None:
        require_encoder(self, encoder)
        if not model.dynamics.stochastic:
            raise ValueError(f"PathELBO is for a dynamics with noise; {type(model.dynamics).__name__} has none")
        if guide is None:
            raise ValueError("a dynamics with noise needs a guide for its paths: give one, as guide=PathGuide()")

    @property
    def searches_map(self) -> bool:
        """Never: the likelihood is an integral over all paths of the noise."""
        return False

    def loss(
        self, model: PopulationModel, encoder: Encoder | None, guide: PathGuide | None, batch: CohortBatch, step: Step
    ) -> Loss:
        assert guide is not None
        samples = self.draws
        normal = step.normal(batch, samples * model.latent_size).reshape(len(batch), samples, -1)
        q = posterior(model, encoder, batch)
        drawn = guide.draw(model, q, batch, normal, Noise(step.seed, step.path_stream))
        drawn.paths.check(batch.repeat(samples).ids)
        count, none = batch.target.sum(), failures(batch, batch.index)
        if samples == 1:
            return Loss(-drawn.log_likelihood.sum(), count, none, kl=q.kl().sum() + drawn.paths.kl.sum())
        weight = drawn.paths.log_weight.reshape(len(batch), samples)
        return Loss(-(weight.logsumexp(1) - math.log(samples)).sum(), count, none)
