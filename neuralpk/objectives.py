"""What a training makes small: the squared error, the evidence lower bound, the marginal likelihood."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from neuralpk import randomness
from neuralpk.batch import CohortBatch
from neuralpk.encoders import Posterior
from neuralpk.inference import importance
from neuralpk.inference.mode import maximise
from neuralpk.models import LatentModel, LatentSDE, Prediction
from neuralpk.solve import Noise

Objective = Literal["mse", "elbo", "iwae"]
# in units of log p: a proposal need not sit on the top, but from its foot the weights of a sharp posterior are noise
_NEAR = 0.01
_NOISE_STREAM = 1 << 42  # apart from the streams of the simulation and of the batches, whose seed may be the same
_DREAM_STREAM = 1 << 44
_EVALUATION_STREAM = 1 << 45


@dataclass(frozen=True)
class Loss:
    """An objective and its parts, as sums over subjects and over scored observations, so that parts of a batch add up.

    Args:
        fit: sum of squared, scaled errors (``mse``), of −log p(y | z) (``elbo``) or of −log p(y) (``iwae``).
        kl: sum of KL(q(z) ‖ N(0, I)), of ``elbo`` alone.
        encoder: what teaches the encoder beside them, of ``iwae`` alone.
        penalty: sum of what the field holds against its lines (`neuralpk.dynamics.Dynamics.penalty`).
        observations: number of scored observations.
        failures: number of subjects that could not be solved; they are in none of the sums.
    """

    fit: Tensor
    kl: Tensor
    encoder: Tensor
    penalty: Tensor
    observations: Tensor
    failures: Tensor


@dataclass(frozen=True)
class Criterion:
    """An objective with the random numbers that a training draws for it.

    Args:
        objective: ``mse``, ``elbo`` or ``iwae``.
        draws: of z for each subject and step, of ``iwae``; of (z, path) of a latent SDE.
        refine: most steps through the solver from the encoder's place to the most probable one, of ``iwae``.
        seed: of the draws.

    Raises:
        ValueError: an objective that is none of them; no draw.
    """

    objective: Objective
    draws: int
    refine: int
    seed: int

    def __post_init__(self) -> None:
        if self.objective not in get_args(Objective):
            raise ValueError(f"objective is one of {', '.join(get_args(Objective))}; not {self.objective!r}")
        if self.draws < 1 or self.refine < 0:
            raise ValueError(f"draws must be 1 or more and refine 0 or more, got {self.draws} and {self.refine}")

    def check(self, model: LatentModel) -> None:
        """Refuse a model that this objective cannot teach.

        Raises:
            ValueError: noise, and another objective than ``elbo``.
        """
        if model.noise and self.objective != "elbo":
            raise ValueError(f"a dynamics with noise is learned by objective 'elbo', not {self.objective!r}")

    def loss(self, model: LatentModel, batch: CohortBatch, step: int | None) -> Loss:
        """The loss of a batch at a step of the training; None for an evaluation, which is the same at any time."""
        if self.objective == "mse":
            return squared_error(model, batch)
        size = model.individual.latent_size
        stream = _EVALUATION_STREAM if step is None else _NOISE_STREAM + step
        if isinstance(model, LatentSDE):
            normal = self._normal(stream, batch, self.draws * size)
            return path_bound(model, batch, normal.reshape(-1, self.draws, size), Noise(self.seed, stream))
        if self.objective == "elbo":
            return evidence_bound(model, batch, None if step is None else self._normal(stream, batch, size))
        noise = importance.noise(self.seed, stream, batch.index, self.draws, size, batch.time.dtype)
        dream = None if step is None else self._normal(_DREAM_STREAM + step, batch, size + batch.time.shape[1])
        return marginal_likelihood(model, batch, noise, self.refine, dream)

    def _normal(self, stream: int, batch: CohortBatch, count: int) -> Tensor:
        """Standard normal numbers, ``[subject, count]``."""
        return randomness.normal(self.seed, stream, batch.index, count).to(batch.time.dtype)


def squared_error(model: LatentModel, batch: CohortBatch) -> Loss:
    """``mse``: Σ (y − ŷ)² at z = mean of q(z), each endpoint in its own unit of size."""
    q = model.encoder(batch)
    line, scored, kept = _solved(model, q.mean, batch)
    # a censored value only says on which side of its limit the line should be
    error = (line.value - scored.value) / model.value_scale[scored.endpoint]
    error = torch.where(scored.censored * error < 0, 0.0, error)
    fit = torch.where(scored.target, error, 0.0).square().sum()
    nothing = torch.zeros_like(fit)
    return Loss(fit, nothing, nothing, model.penalty(line, scored), scored.target.sum(), _lost(batch, kept))


def evidence_bound(model: LatentModel, batch: CohortBatch, noise: Tensor | None) -> Loss:
    """``elbo``: −E_q[log p(y | z)] + KL(q(z) ‖ p(z)) with one draw of z (Kingma and Welling 2014).

    Args:
        model: what is trained.
        batch: ``context`` is read by the encoder, ``target`` is scored.
        noise: standard normal, ``[subject, latent]``; None takes z at the mean of q.
    """
    q = model.encoder(batch)
    line, scored, kept = _solved(model, q.mean if noise is None else q.mean + q.sd * noise, batch)
    fit, held = -model.error.log_likelihood(scored, line.value).sum(), model.penalty(line, scored)
    return Loss(fit, q.kl()[kept].sum(), torch.zeros_like(fit), held, scored.target.sum(), _lost(batch, kept))


def path_bound(model: LatentSDE, batch: CohortBatch, normal: Tensor, noise: Noise) -> Loss:
    """``elbo`` of a latent SDE: −E_q[log p(y | z, path)] + KL(q(z) ‖ p(z)) + ½ E_q ∫|u|² dt (Li et al. 2020).

    With several draws of (z, path), which are selected on their way, the bound is the tighter one of Maddison et al.
    (2017), −log of the mean of their weights; it stands in `fit` then.

    Args:
        model: what is trained.
        batch: ``context`` is read by the posterior, ``target`` is scored.
        normal: standard normal, ``[subject, sample, latent]``.
        noise: the Brownian motions.

    Raises:
        neuralpk.solve.SolveError: a path that left the range of numbers.
    """
    samples = normal.shape[1]
    drawn = model.weigh(batch, normal, noise)
    drawn.paths.check(batch.repeat(samples).ids, model.options)
    lost = torch.zeros((), dtype=torch.int64, device=batch.device)
    count, nothing = batch.target.sum(), normal.new_zeros(())
    if samples == 1:
        kl = drawn.kl_z.sum() + drawn.paths.kl.sum()
        return Loss(-drawn.log_likelihood.sum(), kl, nothing, nothing, count, lost)
    weight = drawn.paths.log_weight.reshape(len(batch), samples)
    return Loss(-(weight.logsumexp(1) - math.log(samples)).sum(), nothing, nothing, nothing, count, lost)


def marginal_likelihood(
    model: LatentModel, batch: CohortBatch, noise: Tensor, steps: int, dream: Tensor | None
) -> Loss:
    """``iwae``: −log (1/K) Σ_k p(y, z_k)/q(z_k), which for K draws of a good q is −log p(y) (Burda et al. 2016).

    q is not the encoder's, which fifty patients do not teach well enough: some steps through the solver take its mean
    to the most probable z, and the draws lie around that (semi-amortised; Kim et al. 2018). Their weights give the
    model its gradient (Fisher's identity) and are what the encoder learns to foresee, from the patients (Bornschein and
    Bengio 2015) and from others that the model dreams, whose z is known.

    Args:
        model: what is trained.
        batch: ``context`` is read by the encoder; all that it reads or that is scored counts.
        noise: from `neuralpk.inference.importance.noise`, ``[subject, sample, …]``.
        steps: most of them towards the mode; a patient who is near takes no more.
        dream: standard normal, ``[subject, latent + observation]``: the dreamed patients; None for none.
    """
    q = model.encoder(batch)
    known = dataclasses.replace(batch, target=batch.context | batch.target)
    mode = maximise(model, known, q.mean, steps, _NEAR)
    draws = importance.draw(model, known, mode, noise)
    kept = torch.isfinite(draws.log_weight).any(1).nonzero()[:, 0]
    fit = -draws.log_likelihood[kept].sum()
    taught = (draws.weight[kept] * -_log_q(q, draws.z)[kept]).sum()
    if dream is not None:
        size = q.mean.shape[1]
        imagined = imagine(model, dream[:, :size], dream[:, size:], batch)
        taught = taught - _log_q(model.encoder(imagined), dream[:, None, :size]).sum()
    nothing = torch.zeros_like(fit)
    held = nothing
    if model.dynamics.penalised:  # at the most probable place
        line, own, _ = _solved(model, mode.z, known)
        held = model.penalty(line, own)
    return Loss(fit, nothing, taught, held, known.target[kept].sum(), _lost(batch, kept))


@torch.no_grad()
def imagine(model: LatentModel, z: Tensor, noise: Tensor, batch: CohortBatch) -> CohortBatch:
    """Other patients in the place of those of a batch: drawn by the model, dosed and sampled alike.

    Args:
        model: draws them.
        z: standard normal, ``[subject, latent]``.
        noise: of the residual error, ``[subject, observation]``.
        batch: doses, times, covariates, and which samples the encoder sees.
    """
    value = model.error.simulate(model.predict(z, batch).value, batch.endpoint, noise)
    return replace(batch, value=value.nan_to_num(0.0), censored=torch.zeros_like(batch.censored))


def _log_q(q: Posterior, z: Tensor) -> Tensor:
    """log q(z) up to a constant, ``[subject, sample]``."""
    scaled = (z - q.mean[:, None]) / q.sd[:, None]
    return -(0.5 * scaled.square() + q.sd[:, None].log()).sum(-1)


def _solved(model: LatentModel, z: Tensor, batch: CohortBatch) -> tuple[Prediction, CohortBatch, Tensor]:
    """Predictions of the subjects that could be solved, their batch, and which they are."""
    prediction = model.predict(z, batch)
    ok = prediction.trajectory.ok
    kept = ok.nonzero()[:, 0]
    if bool(ok.all()):
        return prediction, batch, kept
    # rows are left out, not masked: the derivative of a masked NaN is still NaN
    part = batch.select(kept)
    return model.predict(z[kept], part), part, kept


def _lost(batch: CohortBatch, kept: Tensor) -> Tensor:
    return torch.tensor(len(batch) - len(kept), device=batch.device)
