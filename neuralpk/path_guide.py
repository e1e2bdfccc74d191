"""The guide of a stochastic dynamics: leads its paths through the samples of a patient."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from neuralpk.cohort_batch import CohortBatch
from neuralpk.dynamics import StochasticDynamics
from neuralpk.dynamics.networks import mlp
from neuralpk.encoders import Posterior, SampleReader
from neuralpk.part import Part
from neuralpk.population_model import PopulationModel
from neuralpk.scaling import Scaling
from neuralpk.solve import Guide, Noise, Paths, Selection, solve_paths

_LARGEST_ERROR = 6.0  # residual standard deviations: a sample further off than this pulls no harder


@dataclass(frozen=True)
class PathDraws:
    """Draws of (z, path) from the approximate posterior, in the order of ``batch.repeat(draws)``.

    Args:
        log_likelihood: log p(y | z, path) of the scored records, ``[subject · sample]``.
        value: noise-free value of every record along each path, ``[subject · sample, observation]``.
        paths: the paths with their own KL; the mean of exp(``paths.log_weight``) over the draws of a subject is p(y).
    """

    log_likelihood: Tensor
    value: Tensor
    paths: Paths


class PathGuide(Part, nn.Module):
    """Approximate posterior of the paths given z and the samples: a process with the drift f + g·u.

    The exact posterior of a path has this form (Li et al. 2020). u reads the next sample of each endpoint and its
    distance, a summary of that sample and of all later ones (a GRU that reads them backwards), and the state. Before
    any training it is the pull of a Brownian bridge towards the next samples (as in Whitaker et al. 2017), to which a
    network adds what it learns. After the last sample u = 0, where the posterior is the prior.

    Args:
        hidden: width of its networks.
    """

    state_scale: Tensor

    def __init__(self, hidden: int = 32) -> None:
        super().__init__()
        self.hidden = hidden
        self.reader = SampleReader(hidden)

    def build(self, model: PopulationModel, scaling: Scaling) -> None:
        """Make the networks for a model that was built, and the magnitudes of the data."""
        dynamics = cast(StochasticDynamics, model.dynamics)
        self.reader.build(scaling)
        states, endpoints = len(dynamics.states), len(model.endpoints)
        self.network = mlp(2 * states + 4 * endpoints + self.hidden, self.hidden, 2, 2 * len(dynamics.noisy))
        for weight in self.network[-1].parameters():
            nn.init.zeros_(weight)
        # of a Brownian bridge towards a sample that is e residual standard deviations away, with rate = (g/sd)²:
        # u = sqrt(rate)·e/(1 + rate·span). Where an endpoint has no noise of its own, the gain is learned from 0
        noisy = [[float(state == noisy) for state in model.endpoints] for noisy in dynamics.noisy]
        rate = 40.0 / scaling.time
        self.gain = nn.Parameter(rate**0.5 * torch.tensor(noisy))
        self.log_rate = nn.Parameter(torch.full((endpoints,), rate).log())
        self.time = scaling.time
        self.register_buffer("state_scale", torch.tensor(dynamics.state_size(scaling)), persistent=False)

    def draw(self, model: PopulationModel, q: Posterior, batch: CohortBatch, normal: Tensor, noise: Noise) -> PathDraws:
        """Draw z and a path of every subject from the posterior, with their weights. Where few draws of a subject would
        have all the weight, they are resampled at its samples (`neuralpk.solve.Selection`).

        Args:
            model: the generative model.
            q: of z.
            batch: ``context`` is read by the guide, ``target`` is scored.
            normal: standard normal, ``[subject, sample, latent]``.
            noise: the Brownian motions.
        """
        samples = normal.shape[1]
        z = q.mean[:, None] + q.sd[:, None] * normal
        log_weight = (0.5 * normal.square() - 0.5 * z.square() + q.sd.log()[:, None]).sum(-1).flatten()
        repeated = batch.repeat(samples)

        def fit(y: Tensor, theta: Tensor, here: Tensor) -> Tensor:
            width = here.shape[1]
            value = model.recorded(y[:, None].expand(-1, width, -1), theta[:, None].expand(-1, width, -1), repeated)
            part = dataclasses.replace(repeated, target=repeated.target & here)
            return model.error.log_likelihood(part, value).sum(1)

        summaries = self.reader(batch).repeat_interleave(samples, dim=0)
        guide = self._guide(model, repeated, summaries)
        theta = model.theta(z.flatten(0, 1), repeated)
        selection = Selection(samples, log_weight, fit)
        dynamics = cast(StochasticDynamics, model.dynamics)
        paths = solve_paths(dynamics, theta, repeated, None, model.engine, noise, guide, selection)
        value = model.recorded(paths.states, paths.theta, repeated)
        return PathDraws(model.error.log_likelihood(repeated, value).sum(1), value, paths)

    def forward(self, model: PopulationModel, batch: CohortBatch) -> Guide:
        """The guide for the samples of a batch."""
        return self._guide(model, batch, self.reader(batch))

    def _guide(self, model: PopulationModel, batch: CohortBatch, summaries: Tensor) -> Guide:
        """u for the samples of a batch; `summaries`, ``[subject, observation, hidden]``, hold the later samples."""
        endpoints = len(model.endpoints)
        elapsed = batch.time - batch.start[:, None]
        of = torch.arange(endpoints, device=batch.device)
        of_endpoint = batch.context[:, None] & (batch.endpoint[:, None] == of[:, None])

        def ahead(t: Tensor) -> Tensor:
            later = torch.where(batch.context & (elapsed > t[:, None]), elapsed, torch.inf)
            next_ = later.argmin(1)
            when, which = torch.where(of_endpoint, later[:, None], torch.inf).min(2)
            exists = torch.isfinite(when)
            summary = summaries.gather(1, next_[:, None, None].expand(-1, -1, summaries.shape[2]))[:, 0]
            columns = (torch.where(exists, when, t[:, None]), batch.value.gather(1, which), exists.to(t.dtype), summary)
            return torch.cat(columns, dim=1)

        def pull(
            t: Tensor, h: Tensor, y: Tensor, theta: Tensor, drift: Tensor, context: Tensor
        ) -> tuple[Tensor, Tensor]:
            when, value, exists = context[:, : 3 * endpoints].chunk(3, dim=1)
            span = (when - t[:, None]).clamp(min=0.0)
            distances = [
                self._distance(model, k, value[:, k], y, theta, drift, span[:, k : k + 1]) for k in range(endpoints)
            ]
            error = exists * torch.stack(distances, dim=1).clamp(-_LARGEST_ERROR, _LARGEST_ERROR)
            rate = self.log_rate.exp()
            bridge = error / (1.0 + rate * span)
            reached = exists / (1.0 + rate * (span - h[:, None]).clamp(min=0.0))
            features = [y / self.state_scale, drift * self.time / self.state_scale / 10.0, error, bridge]
            features += [torch.log(span / self.time + 1e-2), exists, context[:, 3 * endpoints :]]
            learned, log_factor = self.network(torch.cat(features, dim=1)).chunk(2, dim=1)
            any_left = exists.amax(1, keepdim=True)
            u = bridge @ self.gain.T + learned
            information = reached @ self.gain.square().T * torch.exp(log_factor.clamp(-3.0, 3.0))
            return u * any_left, information * any_left

        return Guide(ahead, pull)

    def _distance(
        self,
        model: PopulationModel,
        endpoint: int,
        value: Tensor,
        y: Tensor,
        theta: Tensor,
        drift: Tensor,
        span: Tensor,
    ) -> Tensor:
        """Residual of the next sample of an endpoint if there were no more noise until then, ``[subject]``."""
        dynamics = cast(StochasticDynamics, model.dynamics)
        later = dynamics.observe(dynamics.foresee(y, drift, span), theta)
        predicted = later[:, model.endpoints[endpoint]]
        return model.error.standardise(value, predicted, torch.full_like(predicted, endpoint, dtype=torch.int64))
