"""Encoders: from the irregular samples, doses and covariates of a subject to q(z), the approximate posterior of z."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from neuralpk.cohort_batch import CohortBatch
from neuralpk.part import Part
from neuralpk.scaling import Scaling


class Posterior(NamedTuple):
    """q(z) of every subject: independent normal components with `mean` and `sd`, each ``[subject, latent]``."""

    mean: Tensor
    sd: Tensor

    @classmethod
    def prior(cls, subjects: int, latent_size: int, like: Tensor) -> Posterior:
        """The prior N(0, I) of every subject, with the precision and on the device of `like`."""
        mean = like.new_zeros((subjects, latent_size))
        return cls(mean, torch.ones_like(mean))

    def kl(self) -> Tensor:
        """KL(q(z) ‖ N(0, I)), ``[subject]``."""
        return 0.5 * (self.mean.square() + self.sd.square() - 1.0 - 2.0 * self.sd.log()).sum(-1)

    def log_density(self, z: Tensor) -> Tensor:
        """log q(z) up to a constant, ``[subject, sample]`` for z ``[subject, sample, latent]``."""
        scaled = (z - self.mean[:, None]) / self.sd[:, None]
        return -(0.5 * scaled.square() + self.sd[:, None].log()).sum(-1)


def sample_features(batch: CohortBatch, scaling: Scaling) -> Tensor:
    """Input of an encoder for every sample, ``[subject, observation, feature]``, all of order one.

    The features are the value, the time after the first record and after the last dose, the total dose until then, the
    endpoint, whether the value is censored, and the covariates at that time.
    """
    elapsed = (batch.time - batch.start[:, None]) / scaling.time
    taken = batch.doses.mask[:, None, :] & (batch.doses.time[:, None, :] <= batch.time[:, :, None])
    since = torch.where(taken, batch.time[:, :, None] - batch.doses.time[:, None, :], torch.inf)
    after_dose = torch.nn.functional.pad(since, (0, 1), value=scaling.time).amin(-1) / scaling.time
    total = torch.where(taken, batch.doses.amount[:, None, :], 0.0).sum(-1) / scaling.amount
    endpoint = batch.endpoint.clamp(max=len(scaling.value) - 1)  # an endpoint too many is refused where it is predicted
    size = torch.tensor(scaling.value, dtype=batch.value.dtype, device=batch.device)[endpoint]
    # a logarithm, because concentrations fall over decades; its floor keeps values at or below 0 readable
    value = torch.log(batch.value.clamp(min=0.0) / size + 1e-3)
    per_dose = value - torch.log(total + 1e-3)
    columns = [
        value,
        per_dose,
        elapsed,
        torch.log(elapsed + 1e-2),
        after_dose,
        torch.log(after_dose + 1e-2),
        total.log1p(),
    ]
    columns.append(batch.censored.to(value.dtype))
    which = nn.functional.one_hot(endpoint, len(scaling.value)).to(value.dtype)
    started = batch.period_start[:, None, :] <= batch.time[:, :, None]
    period = (started.sum(-1).clamp(min=1) - 1)[..., None].expand(-1, -1, batch.covariates.shape[-1])
    covariates = scaling.standardise(batch.covariates).gather(1, period)
    return torch.cat([torch.stack(columns, dim=-1), which, covariates], dim=-1)


def feature_size(scaling: Scaling) -> int:
    """Length of the feature axis of `sample_features`."""
    return 8 + len(scaling.value) + len(scaling.covariates)


class Encoder(Part, nn.Module, ABC):
    """q(z | samples), a normal distribution with independent components; without a sample it is the prior N(0, I).

    The constructor takes options only. What depends on the data is made by `build`.

    Attributes:
        scaling: magnitudes of the data that it was built for.
        latent_size: dimension of z.
    """

    scaling: Scaling
    latent_size: int

    def build(self, scaling: Scaling, latent_size: int) -> None:
        """Make the layers; a subclass extends it.

        Args:
            scaling: magnitudes of the data.
            latent_size: dimension of z.
        """
        self.scaling, self.latent_size = scaling, latent_size

    @abstractmethod
    def forward(self, batch: CohortBatch) -> Posterior:
        """q(z) of each subject; only the samples in ``batch.context`` may matter."""


class SampleReader(nn.Module):
    """A GRU (Cho et al. 2014) that reads the samples backwards in time, as in Rubanova et al. (2019).

    Its state at a sample summarises that sample and all later ones.

    Args:
        hidden: width.

    Raises:
        ValueError: a width below 1.
    """

    scaling: Scaling

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.hidden = _checked(hidden)

    def build(self, scaling: Scaling) -> SampleReader:
        """Make the layers.

        Args:
            scaling: magnitudes of the data.
        """
        self.scaling = scaling
        self.cell = nn.GRUCell(feature_size(scaling), self.hidden)
        return self

    def forward(self, batch: CohortBatch) -> Tensor:
        """State at every sample, ``[subject, observation, hidden]``; samples outside the context change nothing."""
        features = context_features(batch, self.scaling)
        h = features.new_zeros((len(features), self.hidden))
        out = []
        for j in reversed(range(features.shape[1])):
            h = torch.where(batch.context[:, j, None], self.cell(features[:, j], h), h)
            out.append(h)
        return torch.stack(out[::-1], dim=1)


class PrecisionSum(nn.Module):
    """q(z) from what was read at each sample, as a product of normal factors: the prior and one for each sample.

    With precisions λ_j of the factors and their means times their precisions h_j, taken by a linear layer, q has
    precision 1 + Σ_j λ_j and mean Σ_j h_j / (1 + Σ_j λ_j). A layer that gave the means themselves would learn nothing
    more where the precisions have become small, as at the beginning of a training; h_j moves the mean there too.

    Args:
        hidden: length of what was read at a sample.
        latent_size: dimension of z.
    """

    def __init__(self, hidden: int, latent_size: int) -> None:
        super().__init__()
        # without it a few long steps make the precisions so small that they have no gradient any more
        self.normalise = nn.LayerNorm(hidden)
        self.factors = nn.Linear(hidden, 2 * latent_size)
        nn.init.normal_(self.factors.weight, std=0.1 / hidden**0.5)
        nn.init.zeros_(self.factors.bias)

    def forward(self, read: Tensor, context: Tensor) -> Posterior:
        """q(z) from ``read [subject, observation, hidden]`` at the samples in ``context [subject, observation]``."""
        factors = torch.where(context[..., None], self.factors(self.normalise(read)), 0.0)
        log_precision, weighted = factors.chunk(2, dim=-1)
        precision = torch.where(context[..., None], nn.functional.softplus(log_precision), 0.0)
        total = 1.0 + precision.sum(1)
        return Posterior(weighted.sum(1) / total, total.rsqrt())


class SetEncoder(Encoder):
    """Samples as a set (Zaheer et al. 2017): each is read together with the mean over all, in no order.

    Args:
        hidden: width of the layers.

    Raises:
        ValueError: a width below 1.
    """

    def __init__(self, hidden: int = 64) -> None:
        super().__init__()
        self.hidden = _checked(hidden)

    def build(self, scaling: Scaling, latent_size: int) -> None:
        hidden = self.hidden
        super().build(scaling, latent_size)
        self.posterior = PrecisionSum(hidden, latent_size)
        self.embed = nn.Sequential(
            nn.Linear(feature_size(scaling), hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU()
        )
        self.combine = nn.Sequential(nn.Linear(2 * hidden, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU())

    def forward(self, batch: CohortBatch) -> Posterior:
        context = batch.context
        h = torch.where(context[..., None], self.embed(context_features(batch, self.scaling)), 0.0)
        mean = h.sum(1) / context.sum(1, keepdim=True).clamp(min=1)
        read = self.combine(torch.cat([h, mean[:, None].expand_as(h)], dim=-1))
        posterior: Posterior = self.posterior(read, context)
        return posterior


class RecurrentEncoder(Encoder):
    """Samples as a sequence, read backwards in time by a `SampleReader`.

    Args:
        hidden: width of the GRU.

    Raises:
        ValueError: a width below 1.
    """

    def __init__(self, hidden: int = 64) -> None:
        super().__init__()
        self.hidden = _checked(hidden)

    def build(self, scaling: Scaling, latent_size: int) -> None:
        super().build(scaling, latent_size)
        self.posterior = PrecisionSum(self.hidden, latent_size)
        self.reader = SampleReader(self.hidden).build(scaling)

    def forward(self, batch: CohortBatch) -> Posterior:
        posterior: Posterior = self.posterior(self.reader(batch), batch.context)
        return posterior


def context_features(batch: CohortBatch, scaling: Scaling) -> Tensor:
    """`sample_features` of the samples in the context, 0 for the others."""
    return torch.where(batch.context[..., None], sample_features(batch, scaling), 0.0)


def _checked(hidden: int) -> int:
    if hidden < 1:
        raise ValueError(f"hidden, the width of the encoder, must be 1 or more, got {hidden}")
    return hidden
