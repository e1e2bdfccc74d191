"""The latent SDE: encode -> individual parameters -> a path guided by the samples -> observe -> compare."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from neuralpk.batch import CohortBatch
from neuralpk.dynamics import StochasticDynamics
from neuralpk.dynamics.neural import mlp
from neuralpk.encoders import RecurrentEncoder
from neuralpk.models.individual import IndividualParameters
from neuralpk.models.latent_ode import LatentODE
from neuralpk.residual_error import ResidualError
from neuralpk.solve import Guide, Noise, Paths, Selection, SolverOptions, solve_paths

_FARTHEST = 6.0  # residual standard deviations: a sample further off than this pulls no harder
_DRAW_STREAM = 1 << 48  # of the paths of `draw`, apart from those of a training


@dataclass(frozen=True)
class Weighed:
    """Draws of (z, path) from the approximate posterior, each with the parts of the bound, ``[subject]``.

    Args:
        log_likelihood: log p(y | z, path) of the scored records.
        kl_z: KL(q(z) ‖ p(z)) of each subject once, ``[subject]``.
        value: what the assays read along each path, ``[subject, observation]``.
        paths: the paths, with their own KL; the mean of exp(``paths.log_weight``) over the draws of a subject is p(y).
    """

    log_likelihood: Tensor
    kl_z: Tensor
    value: Tensor
    paths: Paths


class LatentSDE(LatentODE):
    """A latent ODE whose line also wanders: the dynamics has noise, and every subject a path of its own.

    The generative model, with y_ij the j-th value of subject i::

        z_i ~ N(0, I)   theta_i = theta(z_i, covariates_i)   dY = f(t, Y, theta_i) dt + g dW with doses
        y_ij ~ residual error(observe(Y(t_ij)))

    The posterior of a path is that of a process with the drift f + g·u (Li et al. 2020; the exact one has this form).
    u knows the next sample of each endpoint and how far it is, what a recurrent encoder that reads backwards made of
    that sample and of all later ones, and the state. It begins as the pull of a bridge towards the next samples (as of
    Whitaker et al. 2017) and a network learns the rest. After the last sample u = 0: there the posterior is the prior.

    Args:
        encoder: samples -> q(z), and what lies ahead at every time.
        individual: z -> theta.
        dynamics: drift and diffusion.
        error: the residual error.
        options: of the solver; ``step`` and ``gradient`` count.
        hidden: width of the network of u.
    """

    dynamics: StochasticDynamics
    encoder: RecurrentEncoder

    def __init__(
        self,
        encoder: RecurrentEncoder,
        individual: IndividualParameters,
        dynamics: StochasticDynamics,
        error: ResidualError,
        options: SolverOptions,
        hidden: int = 32,
    ) -> None:
        super().__init__(encoder, individual, dynamics, error, options)
        states, endpoints = len(dynamics.states), len(dynamics.endpoints)
        self.network = mlp(2 * states + 4 * endpoints + encoder.cell.hidden_size, hidden, 2, 2 * len(dynamics.noisy))
        for weight in self.network[-1].parameters():
            nn.init.zeros_(weight)
        # of a Brownian bridge towards a sample that is e residual standard deviations away, with rate = (g/sd)²:
        # u = sqrt(rate)·e/(1 + rate·span). Where an endpoint has no noise of its own, the gain is learned from 0
        own = [[float(state == noisy) for state in dynamics.endpoints] for noisy in dynamics.noisy]
        rate = 40.0 / encoder.scaling.time
        self.gain = nn.Parameter(rate**0.5 * torch.tensor(own))
        self.log_rate = nn.Parameter(torch.full((endpoints,), rate).log())
        self.register_buffer("state_scale", torch.tensor(dynamics.size(encoder.scaling)), persistent=False)

    state_scale: Tensor

    @property
    def noise(self) -> dict[str, Tensor]:
        return self.dynamics.noise

    def decode(self, z: Tensor, batch: CohortBatch, times: Tensor | None = None) -> Paths:
        """The posterior's own line: the path that the drift f + g·u takes from z where the noise is 0."""
        return self._paths(z, batch, times, None, self.encoder.summaries(batch))

    def draw(self, z: Tensor, batch: CohortBatch, times: Tensor | None, seed: int) -> Paths:
        """A path of each subject from the posterior given z and the context; without a context from the prior."""
        return self._paths(z, batch, times, Noise(seed, _DRAW_STREAM), self.encoder.summaries(batch))

    def weigh(self, batch: CohortBatch, normal: Tensor, noise: Noise) -> Weighed:
        """Draw z and a path of every subject from the posterior, and weigh them; where few of a subject's draws would
        carry all the weight, they are selected at its samples (`neuralpk.solve.stochastic.Selection`).

        Args:
            batch: ``context`` is read by the posterior, ``target`` is scored.
            normal: standard normal, ``[subject, sample, latent]``.
            noise: the Brownian motions.

        Returns:
            Its rows are those of ``batch.repeat(samples)``.
        """
        samples = normal.shape[1]
        summaries = self.encoder.summaries(batch)
        q = self.encoder.weigh(summaries, batch)
        z = q.mean[:, None] + q.sd[:, None] * normal
        log_weight = (0.5 * normal.square() - 0.5 * z.square() + q.sd.log()[:, None]).sum(-1).flatten()
        repeated = batch.repeat(samples)
        z = z.flatten(0, 1)

        def fit(y: Tensor, theta: Tensor, here: Tensor) -> Tensor:
            width = here.shape[1]
            value = self.recorded(y[:, None].expand(-1, width, -1), theta[:, None].expand(-1, width, -1), repeated)
            part = dataclasses.replace(repeated, target=repeated.target & here)
            return self.error.log_likelihood(part, value).sum(1)

        selection = Selection(samples, log_weight, fit)
        paths = self._paths(z, repeated, None, noise, summaries.repeat_interleave(samples, dim=0), selection)
        value = self.recorded(paths.states, paths.theta, repeated)
        return Weighed(self.error.log_likelihood(repeated, value).sum(1), q.kl(), value, paths)

    def _paths(
        self,
        z: Tensor,
        batch: CohortBatch,
        times: Tensor | None,
        noise: Noise | None,
        summaries: Tensor,
        selection: Selection | None = None,
    ) -> Paths:
        self._refuse_unread(batch)
        theta = self.individual(z, batch.covariates)
        first = theta if theta.dim() == 2 else theta[:, 0]
        guide = self._guide(batch, summaries)
        start = self.dynamics.initial_state(first)
        return solve_paths(self.dynamics, start, theta, batch, times, self.options, noise, guide, selection)

    def _guide(self, batch: CohortBatch, summaries: Tensor) -> Guide:
        """u for the samples of a batch; `summaries`, ``[subject, observation, hidden]``, know the later ones."""
        endpoints = len(self.dynamics.endpoints)
        clock = batch.time - batch.start[:, None]
        of = torch.arange(endpoints, device=batch.device)
        own = batch.context[:, None] & (batch.endpoint[:, None] == of[:, None])

        def ahead(t: Tensor) -> Tensor:
            later = torch.where(batch.context & (clock > t[:, None]), clock, torch.inf)
            next_ = later.argmin(1)
            when, which = torch.where(own, later[:, None], torch.inf).min(2)
            there = torch.isfinite(when)
            summary = summaries.gather(1, next_[:, None, None].expand(-1, -1, summaries.shape[2]))[:, 0]
            columns = (torch.where(there, when, t[:, None]), batch.value.gather(1, which), there.to(t.dtype), summary)
            return torch.cat(columns, dim=1)

        def pull(
            t: Tensor, h: Tensor, y: Tensor, theta: Tensor, drift: Tensor, context: Tensor
        ) -> tuple[Tensor, Tensor]:
            when, value, there = context[:, : 3 * endpoints].chunk(3, dim=1)
            span = (when - t[:, None]).clamp(min=0.0)
            error = torch.stack(
                [self._distance(k, value[:, k], y, theta, drift, span[:, k : k + 1]) for k in range(endpoints)], dim=1
            )
            error = there * error.clamp(-_FARTHEST, _FARTHEST)
            rate = self.log_rate.exp()
            bridge = error / (1.0 + rate * span)
            known = there / (1.0 + rate * (span - h[:, None]).clamp(min=0.0))
            time = self.encoder.scaling.time
            features = [y / self.state_scale, drift * time / self.state_scale / 10.0, error, bridge]
            features += [torch.log(span / time + 1e-2), there, context[:, 3 * endpoints :]]
            learned, bent = self.network(torch.cat(features, dim=1)).chunk(2, dim=1)
            guided = there.amax(1, keepdim=True)
            u = bridge @ self.gain.T + learned
            information = known @ self.gain.square().T * torch.exp(bent.clamp(-3.0, 3.0))
            return u * guided, information * guided

        return Guide(ahead, pull)

    def _distance(self, endpoint: int, value: Tensor, y: Tensor, theta: Tensor, drift: Tensor, span: Tensor) -> Tensor:
        """Residual of the next sample of an endpoint if there were no more noise until then, ``[subject]``."""
        later = self.dynamics.observe(self.dynamics.foresee(y, drift, span), theta)
        read = later[:, self.dynamics.endpoints[endpoint]]
        return self.error.standardise(value, read, torch.full_like(read, endpoint, dtype=torch.int64))
