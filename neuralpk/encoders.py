"""Encoders: a subject's irregular samples, doses and covariates -> q(z), its place in the latent space."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from neuralpk.batch import CohortBatch
from neuralpk.scaling import Scaling


class Posterior(NamedTuple):
    """q(z) of every subject: independent normal components with `mean` and `sd`, each ``[subject, latent]``."""

    mean: Tensor
    sd: Tensor

    def kl(self) -> Tensor:
        """KL(q(z) ‖ N(0, I)), ``[subject]``."""
        return 0.5 * (self.mean.square() + self.sd.square() - 1.0 - 2.0 * self.sd.log()).sum(-1)


def sample_features(batch: CohortBatch, scaling: Scaling) -> Tensor:
    """What an encoder is told of every sample, ``[subject, observation, feature]``, all of order one.

    The value, the time on the clock and after the last dose, what was given until then, the endpoint, whether the
    value is censored, and the covariates of the time.
    """
    elapsed = (batch.time - batch.start[:, None]) / scaling.time
    given = batch.dose_mask[:, None, :] & (batch.dose_time[:, None, :] <= batch.time[:, :, None])
    since = torch.where(given, batch.time[:, :, None] - batch.dose_time[:, None, :], torch.inf)
    after_dose = torch.nn.functional.pad(since, (0, 1), value=scaling.time).amin(-1) / scaling.time
    total = torch.where(given, batch.dose_amount[:, None, :], 0.0).sum(-1) / scaling.amount
    known = batch.endpoint.clamp(max=len(scaling.value) - 1)  # an endpoint too many is refused where it is predicted
    size = torch.tensor(scaling.value, dtype=batch.value.dtype, device=batch.device)[known]
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
    endpoint = nn.functional.one_hot(known, len(scaling.value)).to(value.dtype)
    started = batch.period_start[:, None, :] <= batch.time[:, :, None]
    period = (started.sum(-1).clamp(min=1) - 1)[..., None].expand(-1, -1, batch.covariates.shape[-1])
    covariates = scaling.standardise(batch.covariates).gather(1, period)
    return torch.cat([torch.stack(columns, dim=-1), endpoint, covariates], dim=-1)


def feature_size(scaling: Scaling) -> int:
    """Length of the feature axis of `sample_features`."""
    return 8 + len(scaling.value) + len(scaling.covariates)


class Encoder(nn.Module, ABC):
    """q(z | samples), a normal distribution with independent components; without a sample it is the prior N(0, I).

    Args:
        scaling: magnitudes of the data.
        latent_size: dimension of z.
    """

    def __init__(self, scaling: Scaling, latent_size: int) -> None:
        super().__init__()
        self.scaling = scaling
        self.latent_size = latent_size

    @abstractmethod
    def forward(self, batch: CohortBatch) -> Posterior:
        """The posterior of each subject, batch shape ``[subject]``, event shape ``[latent]``."""


class PriorEncoder(Encoder):
    """Reads nothing, so that q is the prior: for a model that was not trained, and a search that starts at its mean."""

    def forward(self, batch: CohortBatch) -> Posterior:
        mean = batch.time.new_zeros((len(batch), self.latent_size))
        return Posterior(mean, torch.ones_like(mean))


class EvidenceEncoder(Encoder):
    """A network reads the samples, and what it finds in them is weighed against the prior.

    Each sample adds evidence to the prior's: with precisions λ_j and values m_j that the network gives them,
    q has precision 1 + Σ_j λ_j and mean Σ_j λ_j·m_j / (1 + Σ_j λ_j).

    Args:
        scaling: magnitudes of the data.
        latent_size: dimension of z.
        hidden: width.
    """

    def __init__(self, scaling: Scaling, latent_size: int, hidden: int) -> None:
        super().__init__(scaling, latent_size)
        self.evidence = nn.Linear(hidden, 2 * latent_size)
        nn.init.normal_(self.evidence.weight, std=0.1 / hidden**0.5)
        nn.init.zeros_(self.evidence.bias)

    @abstractmethod
    def read(self, features: Tensor, context: Tensor) -> Tensor:
        """Turn the samples into ``[subject, observation, hidden]``; only those of the context may matter."""

    def summaries(self, batch: CohortBatch) -> Tensor:
        """What `read` makes of the samples of the context, ``[subject, observation, hidden]``."""
        features = torch.where(batch.context[..., None], sample_features(batch, self.scaling), 0.0)
        return self.read(features, batch.context)

    def forward(self, batch: CohortBatch) -> Posterior:
        return self.weigh(self.summaries(batch), batch)

    def weigh(self, summaries: Tensor, batch: CohortBatch) -> Posterior:
        """The evidence of the `summaries` against the prior."""
        log_precision, value = self.evidence(summaries).chunk(2, dim=-1)
        precision = torch.where(batch.context[..., None], nn.functional.softplus(log_precision), 0.0)
        total = 1.0 + precision.sum(1)
        mean = (precision * value).sum(1) / total
        return Posterior(mean, total.rsqrt())


class SetEncoder(EvidenceEncoder):
    """Samples as a set (Zaheer et al. 2017): each is read beside a summary of all, in no order."""

    def __init__(self, scaling: Scaling, latent_size: int, hidden: int = 64) -> None:
        super().__init__(scaling, latent_size, hidden)
        self.embed = nn.Sequential(
            nn.Linear(feature_size(scaling), hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU()
        )
        self.beside = nn.Sequential(nn.Linear(2 * hidden, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU())

    def read(self, features: Tensor, context: Tensor) -> Tensor:
        h = self.embed(features)
        h = torch.where(context[..., None], h, 0.0)
        summary = h.sum(1) / context.sum(1, keepdim=True).clamp(min=1)
        out: Tensor = self.beside(torch.cat([h, summary[:, None].expand_as(h)], dim=-1))
        return out


class RecurrentEncoder(EvidenceEncoder):
    """Samples as a sequence, read backwards in time by a GRU, as in the talk and in Rubanova et al. (2019)."""

    def __init__(self, scaling: Scaling, latent_size: int, hidden: int = 64) -> None:
        super().__init__(scaling, latent_size, hidden)
        self.cell = nn.GRUCell(feature_size(scaling), hidden)

    def read(self, features: Tensor, context: Tensor) -> Tensor:
        h = features.new_zeros((len(features), self.cell.hidden_size))
        out = []
        for j in reversed(range(features.shape[1])):
            h = torch.where(context[:, j, None], self.cell(features[:, j], h), h)
            out.append(h)
        return torch.stack(out[::-1], dim=1)


ENCODERS: dict[str, type[EvidenceEncoder]] = {"set": SetEncoder, "recurrent": RecurrentEncoder}
"""The encoders by the name that a configuration gives them."""
