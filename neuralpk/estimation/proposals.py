"""Proposals: mixtures of normal distributions from which z of each subject is drawn, with quasi-random numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from neuralpk import randomness

# of the draws: posterior, posterior in a wider population, prior of that population. No part of a posterior is without
# draws then, also where it has a second mode or an edge. Powers of two, because Sobol points come in these numbers.
_SHARES = (0.5, 0.25, 0.25)
_WIDER = 1.5  # standard deviations of the second part
_PRIOR = 1.3  # standard deviations of the prior that the third part has
_LEAST_VARIANCE = 1e-6  # of the prior's: what is known better is drawn a little too wide
_DRAWS_A_CONTROL = 8  # for each control variate, so that its coefficient is worth estimating
_LEAST_SHARE = 0.1  # of the weight of a draw that control variates leave


@dataclass(frozen=True)
class Centre:
    """Normal approximation of a posterior.

    Args:
        mean: ``[subject, latent]``.
        covariance: ``[subject, latent, latent]``.
    """

    mean: Tensor
    covariance: Tensor

    def root(self) -> Tensor:
        """Lower triangle of the covariance, ``[subject, latent, latent]``."""
        one = torch.eye(self.mean.shape[-1], dtype=self.mean.dtype, device=self.mean.device)
        root: Tensor = torch.linalg.cholesky(self.covariance + _LEAST_VARIANCE * one)
        return root


@dataclass(frozen=True)
class Proposal:
    """A mixture of normal distributions of z for each subject::

        q(z) = Σ_c share_c · N(z; centre_c, root_c·root_cᵀ)

    Args:
        centre: ``[subject, component, latent]``.
        root: lower triangles, ``[subject, component, latent, latent]``.
    """

    centre: Tensor
    root: Tensor

    @classmethod
    def around(cls, posterior: Centre, wide: Centre, own: Tensor | None = None) -> Proposal:
        """The posterior in the population as it is, that in a wider population, and the prior N(0, I) of the wider one,
        whose z all three are in.

        Args:
            posterior: in the population as it is.
            wide: in the wider population.
            own: which latents each subject has, bool ``[subject, latent]``; the others are drawn from N(0, 1), so that
                they change no weight. By default all.
        """
        one = torch.eye(wide.mean.shape[-1], dtype=wide.mean.dtype, device=wide.mean.device)
        centre = torch.stack([posterior.mean, wide.mean, torch.zeros_like(wide.mean)], dim=1)
        roots = [posterior.root(), _WIDER * wide.root(), (_PRIOR * one).expand_as(wide.covariance)]
        root = torch.stack(roots, dim=1)
        if own is not None:
            centre = torch.where(own[:, None], centre, 0.0)
            root = torch.where((own[:, :, None] & own[:, None])[:, None], root, one)
        return cls(centre, root)

    def draw(self, seed: int, stream: int, index: Tensor, draws: int) -> tuple[Tensor, Tensor]:
        """Quasi-random draws and their log density, such that the mean of f(z)/q(z) estimates the integral of f.

        Every part of the mixture has its share of the draws, and its own points. Control variates (Owen and Zhou 2000)
        are built into q: the mean is exact for multiples of each part of the mixture, and for the first part times any
        quadratic function of z.

        Args:
            seed: of the fit.
            stream: of the random numbers.
            index: key of each subject, ``[subject]``.
            draws: for each subject.

        Returns:
            z, ``[subject, draw, latent]``, and log q(z), ``[subject, draw]``.
        """
        size = self.centre.shape[-1]
        if not size:
            return self.centre.new_zeros((len(index), draws, 0)), self.centre.new_zeros((len(index), draws))
        counts = [max(1, round(share * draws)) for share in _SHARES[1:]]
        counts = [max(1, draws - sum(counts)), *counts]
        parts = []
        for component, count in enumerate(counts):
            u = randomness.quasi_uniform(seed, stream, index, count, size, component).to(self.centre.dtype)
            parts.append(self.centre[:, component, None] + torch.special.ndtri(u) @ self.root[:, component].mT)
        z = torch.cat(parts, dim=1)
        share = torch.tensor(counts, dtype=z.dtype, device=z.device) / sum(counts)
        standard, log_density = self._densities(z)
        log_q = torch.logsumexp(log_density + share.log()[:, None, None], dim=0)
        relative = (log_density - log_q).exp()
        return z, log_q - _control(relative, standard).log()

    def _densities(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """z standardised by the first part, ``[subject, draw, latent]``, and the log density of every part,
        ``[component, subject, draw]``."""
        found = []
        for component in range(self.centre.shape[1]):
            root = self.root[:, component]
            distance = z - self.centre[:, component, None]
            standard = torch.linalg.solve_triangular(root, distance.mT, upper=False).mT
            log_det = root.diagonal(dim1=-2, dim2=-1).log().sum(-1, keepdim=True)
            constant = 0.5 * z.shape[-1] * math.log(2 * math.pi)
            found.append((standard, -0.5 * standard.square().sum(-1) - log_det - constant))
        return found[0][0], torch.stack([density for _, density in found])


def _control(relative: Tensor, standard: Tensor) -> Tensor:
    """Factor of the weight of every draw that makes the means of the control variates exact, ``[subject, draw]``.

    Args:
        relative: density of each part of the mixture over that of the mixture, ``[component, subject, draw]``.
        standard: z standardised by the first part, ``[subject, draw, latent]``.
    """
    draws, size = standard.shape[1:]
    first, second = relative[0], relative[1]
    rows, columns = torch.triu_indices(size, size)
    same = (rows == columns).to(standard)
    found, means = [first, second], [1.0, 1.0]
    if draws >= _DRAWS_A_CONTROL * (2 + size + len(rows)):
        products = standard[..., rows] * standard[..., columns]
        found += [first * one for one in standard.unbind(-1)] + [first * one for one in products.unbind(-1)]
        means += [0.0] * size + same.tolist()
    elif draws < _DRAWS_A_CONTROL * 2:
        return torch.ones_like(first)
    values = torch.stack(found, dim=-1)
    centred = values - values.mean(1, keepdim=True)
    gram = centred.mT @ centred / draws
    gram = gram + 1e-8 * torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    missing = standard.new_tensor(means) - values.mean(1)
    factor: Tensor = 1.0 + (centred @ torch.linalg.solve(gram, missing)[..., None])[..., 0]
    return factor.clamp(min=_LEAST_SHARE)
