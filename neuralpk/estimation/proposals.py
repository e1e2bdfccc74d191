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
    """Normal approximation of a posterior, or where it is far from normal the mean of several with one covariance.

    Args:
        mean: ``[subject, latent]``.
        covariance: of each normal distribution, ``[subject, latent, latent]``.
        kernels: means of the normal distributions, ``[subject, kernel, latent]``; None for one at `mean`.
    """

    mean: Tensor
    covariance: Tensor
    kernels: Tensor | None = None

    def root(self) -> Tensor:
        """Lower triangle of the covariance, ``[subject, latent, latent]``."""
        one = torch.eye(self.mean.shape[-1], dtype=self.mean.dtype, device=self.mean.device)
        root: Tensor = torch.linalg.cholesky(self.covariance + _LEAST_VARIANCE * one)
        return root


@dataclass(frozen=True)
class Proposal:
    """A mixture of distributions of z for each subject::

        q(z) = Σ_c share_c · N(z; centre_c, root_c·root_cᵀ)

    Its first part may be a mixture itself, of normal distributions with equal shares and one covariance.

    Args:
        centre: ``[subject, component, latent]``.
        root: lower triangles, ``[subject, component, latent, latent]``.
        kernels: centres of the first part, ``[subject, kernel, latent]``; None for the one in `centre`.
    """

    centre: Tensor
    root: Tensor
    kernels: Tensor | None = None

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
        root, kernels = torch.stack(roots, dim=1), posterior.kernels
        if own is not None:
            centre = torch.where(own[:, None], centre, 0.0)
            root = torch.where((own[:, :, None] & own[:, None])[:, None], root, one)
            kernels = None if kernels is None else torch.where(own[:, None], kernels, 0.0)
        return cls(centre, root, kernels)

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
            centre = self.centre[:, component, None]
            if component == 0 and self.kernels is not None:
                # a coordinate that the points do not use gives every kernel its share of them
                which = (randomness.sobol(count, size + 1)[:, -1] * self.kernels.shape[1]).long()
                centre = self.kernels[:, which.to(self.centre.device)]
            parts.append(centre + torch.special.ndtri(u) @ self.root[:, component].mT)
        z = torch.cat(parts, dim=1)
        share = torch.tensor(counts, dtype=z.dtype, device=z.device) / sum(counts)
        standard = [self._standard(z, component) for component in range(len(counts))]
        log_density = torch.stack([self._log_density(one, component) for component, one in enumerate(standard)])
        log_q = torch.logsumexp(log_density + share.log()[:, None, None], dim=0)
        relative = (log_density - log_q).exp()
        of_kernels = self._standard(self.centre[:, :1] if self.kernels is None else self.kernels, 0)
        second = torch.eye(size, dtype=z.dtype, device=z.device) + of_kernels.mT @ of_kernels / of_kernels.shape[1]
        return z, log_q - _control(relative, standard[0], of_kernels.mean(1), second).log()

    def _standard(self, z: Tensor, component: int) -> Tensor:
        """Distance from the centre of a part, with its covariance taken as 1, ``[subject, draw, latent]``."""
        distance = z - self.centre[:, component, None]
        standard: Tensor = torch.linalg.solve_triangular(self.root[:, component], distance.mT, upper=False).mT
        return standard

    def _log_density(self, standard: Tensor, component: int) -> Tensor:
        """Of a part of the mixture, by the standardised draws, ``[subject, draw]``."""
        log_det = self.root[:, component].diagonal(dim1=-2, dim2=-1).log().sum(-1, keepdim=True)
        constant = log_det + 0.5 * standard.shape[-1] * math.log(2 * math.pi)
        if component or self.kernels is None:
            return -0.5 * standard.square().sum(-1) - constant
        squares = torch.cdist(standard, self._standard(self.kernels, 0)).square()
        return torch.logsumexp(-0.5 * squares, dim=-1) - math.log(squares.shape[-1]) - constant


def _control(relative: Tensor, standard: Tensor, mean: Tensor, second: Tensor) -> Tensor:
    """Factor of the weight of every draw that makes the means of the control variates exact, ``[subject, draw]``.

    Args:
        relative: density of each part of the mixture over that of the mixture, ``[component, subject, draw]``.
        standard: z standardised by the first part, ``[subject, draw, latent]``.
        mean: of `standard` in the first part, ``[subject, latent]``.
        second: mean of standard·standardᵀ in the first part, ``[subject, latent, latent]``.
    """
    draws, size = standard.shape[1:]
    first, wide = relative[0], relative[1]
    rows, columns = torch.triu_indices(size, size)
    found, means = [first, wide], [standard.new_ones((len(standard), 2))]
    if draws >= _DRAWS_A_CONTROL * (2 + size + len(rows)):
        products = standard[..., rows] * standard[..., columns]
        found += [first * one for one in standard.unbind(-1)] + [first * one for one in products.unbind(-1)]
        means += [mean, second[:, rows, columns]]
    elif draws < _DRAWS_A_CONTROL * 2:
        return torch.ones_like(first)
    values = torch.stack(found, dim=-1)
    centred = values - values.mean(1, keepdim=True)
    gram = centred.mT @ centred / draws
    gram = gram + 1e-8 * torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    missing = torch.cat(means, dim=1) - values.mean(1)
    factor: Tensor = 1.0 + (centred @ torch.linalg.solve(gram, missing)[..., None])[..., 0]
    return factor.clamp(min=_LEAST_SHARE)
