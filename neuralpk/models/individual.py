"""From the latent to a subject's own parameters: the population model."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from neuralpk.scaling import Scaling


class IndividualParameters(nn.Module):
    """theta(z, covariates): named parameters vary log-normally around typical values, the rest of z is passed on.

    With z ~ N(0, I), z = (z_m, z_n) and x the standardised covariates::

        theta_named = typical · exp(B_m·x + omega·z_m)        theta_latent = z_n + B_n·x

    so that eta = omega·z_m ~ N(0, omega²) is the random effect that pharmacometricians know. Correlated, omega is a
    lower triangle L in the place of a diagonal, and eta ~ N(0, L·Lᵀ).

    Args:
        typical: first guess of each named parameter, in the order of the field.
        latent: number of further latent dimensions, for a neural field.
        scaling: for the covariates.
        omega: first guess of the standard deviation of eta, of every parameter or by name (0.3 where left out).
        effects: parameter to the names of the covariates that act on it; on the further dimensions all of them act.
        omega_spread: standard deviation of log(omega) around its first guess before any data are seen; None for a flat
            prior, and with it maximum likelihood. Of a few patients with a few samples each the most likely omega of a
            parameter that they hardly determine is 0, which nobody believes. Correlations are then weakly believed to
            be none.
        correlated: whether the random effects of the named parameters are (a full Omega).
        typical_spread: standard deviation of log(typical) around its first guess, by name; parameters left out have a
            flat prior.

        learned: whether typical values and omega are learned; else they stay, as the prior of every subject by itself.

    Raises:
        ValueError: an effect that names no parameter or covariate, or an omega of no parameter.
    """

    active: Tensor
    log_omega_guess: Tensor
    links: Tensor

    def __init__(
        self,
        typical: Mapping[str, float],
        latent: int,
        scaling: Scaling,
        omega: float | Mapping[str, float] = 0.3,
        effects: Mapping[str, list[str]] | None = None,
        omega_spread: float | None = None,
        correlated: bool = False,
        typical_spread: Mapping[str, float] | None = None,
        learned: bool = True,
    ) -> None:
        super().__init__()
        self.names = tuple(typical)
        self.omega_spread, self.learned = omega_spread, learned
        self.typical_guess, self.typical_spread = dict(typical), dict(typical_spread or {})
        by_name = (
            dict.fromkeys(typical, 0.3) | dict(omega) if isinstance(omega, Mapping) else dict.fromkeys(typical, omega)
        )
        if set(by_name) - set(typical):
            raise ValueError(f"omega names {sorted(set(by_name) - set(typical))}; the parameters are {self.names}")
        self.scaling = scaling
        self.latent_size = len(typical) + latent
        covariates = sorted(scaling.covariates)
        active = torch.ones(self.latent_size, len(covariates), dtype=torch.bool)
        active[: len(typical)] = False
        for parameter, acting in (effects or {}).items():
            unknown = {parameter} - set(typical) | set(acting) - set(covariates)
            if unknown:
                raise ValueError(f"{sorted(unknown)} are no parameters ({self.names}) or covariates ({covariates})")
            active[self.names.index(parameter), [covariates.index(name) for name in acting]] = True
        self.log_typical = nn.Parameter(torch.tensor(list(typical.values()), dtype=torch.get_default_dtype()).log())
        if correlated:
            pairs = len(typical) * (len(typical) - 1) // 2
            self.links = nn.Parameter(torch.zeros(pairs), requires_grad=learned)
        else:  # no parameter that never gets a gradient, for which several devices would wait
            self.register_buffer("links", torch.zeros(0), persistent=False)
        guess = torch.tensor(list(by_name.values()), dtype=torch.get_default_dtype()).log()
        self.log_omega = nn.Parameter(guess.clone())
        self.register_buffer("log_omega_guess", guess, persistent=False)
        self.log_typical.requires_grad_(learned)
        self.log_omega.requires_grad_(learned)
        self.effects = nn.Parameter(torch.zeros(active.shape))
        self.register_buffer("active", active, persistent=False)

    @classmethod
    def known(
        cls,
        typical: Mapping[str, float],
        omega: Mapping[str, float],
        effects: Mapping[tuple[str, str], float],
        scaling: Scaling,
        correlation: Mapping[tuple[str, str], float] | None = None,
    ) -> IndividualParameters:
        """A population with given numbers, in float64 and fixed.

        Args:
            typical: value of each named parameter, in the order of the field.
            omega: standard deviation of eta by name; parameters left out do not vary.
            effects: (parameter, covariate) to the coefficient of the standardised covariate.
            scaling: for the covariates.
            correlation: (parameter, parameter) to that of their random effects; those left out have none.

        Raises:
            ValueError: an effect that names no parameter or covariate; correlations that no random numbers have.
        """
        acting: dict[str, list[str]] = {}
        for parameter, covariate in effects:
            acting.setdefault(parameter, []).append(covariate)
        known = cls(typical, 0, scaling, effects=acting, correlated=bool(correlation)).double().requires_grad_(False)
        covariates = sorted(scaling.covariates)
        for k, name in enumerate(known.names):
            known.log_typical[k] = math.log(typical[name])
            known.log_omega[k] = math.log(omega[name]) if omega.get(name, 0.0) > 0 else -math.inf
        for (parameter, covariate), strength in effects.items():
            known.effects[known.names.index(parameter), covariates.index(covariate)] = strength
        if correlation:
            known.links.copy_(known._links_of(correlation))
        return known

    def _links_of(self, correlation: Mapping[tuple[str, str], float]) -> Tensor:
        matrix = torch.eye(len(self.names), dtype=torch.float64)
        for (a, b), value in correlation.items():
            one, other = self.names.index(a), self.names.index(b)
            matrix[one, other] = matrix[other, one] = value
        factor, failed = torch.linalg.cholesky_ex(matrix)
        if bool(failed):
            raise ValueError(f"no random effects have all these correlations: {dict(correlation)}")
        rows, columns = self._pairs()
        links: Tensor = (factor / factor.diagonal()[:, None])[rows, columns]
        return links

    def _pairs(self) -> tuple[Tensor, Tensor]:
        rows, columns = torch.tril_indices(len(self.names), len(self.names), -1)
        return rows, columns

    def pairs(self) -> list[tuple[str, str]]:
        """The parameters whose random effects are correlated, two by two, in the order of ``links``."""
        pairs = zip(*(part.tolist() for part in self._pairs()), strict=True)
        return [(self.names[b], self.names[a]) for a, b in pairs] if len(self.links) else []

    def _unit_factor(self) -> Tensor:
        """Lower triangular, with rows of length 1: the factor of the correlation matrix."""
        factor = torch.eye(len(self.names), dtype=self.links.dtype, device=self.links.device)
        factor = factor.index_put(self._pairs(), self.links)
        unit: Tensor = factor / factor.norm(dim=1, keepdim=True)
        return unit

    def correlations(self) -> Tensor:
        """Of the random effects, in the order of `pairs`, ``[pair]``."""
        factor = self._unit_factor()
        return (factor @ factor.T)[self._pairs()] if len(self.links) else self.links

    def eta(self, z: Tensor) -> Tensor:
        """Random effects of the named parameters, ``[..., parameter]``, for a z ``[..., latent]``."""
        standard = z[..., : len(self.names)]
        eta: Tensor = self.log_omega.exp() * (standard @ self._unit_factor().T if len(self.links) else standard)
        return eta

    def standardise(self, eta: Tensor) -> tuple[Tensor, Tensor]:
        """The named part of z behind random effects, ``[..., parameter]``, and log |dz/deta|, a scalar."""
        scaled, volume = eta / self.log_omega.exp(), -self.log_omega.sum()
        if not len(self.links):
            return scaled, volume
        factor = self._unit_factor()
        z = torch.linalg.solve_triangular(factor, scaled.mT, upper=False).mT
        return z, volume - factor.diagonal().log().sum()

    def log_prior(self) -> Tensor:
        """log p(typical, Omega) up to a constant, a scalar; 0 where it is flat."""
        total = self.log_omega.new_zeros(())
        if not self.learned:
            return total
        for name, spread in self.typical_spread.items():
            distance = self.log_typical[self.names.index(name)] - math.log(self.typical_guess[name])
            total = total - 0.5 * (distance / spread) ** 2
        if self.omega_spread is not None:
            distance = (self.log_omega - self.log_omega_guess) / self.omega_spread
            total = total - 0.5 * (distance.square().sum() + self.links.square().sum())
        return total

    def forward(self, z: Tensor, covariates: Tensor) -> Tensor:
        """Individual parameters.

        Args:
            z: ``[subject, latent]``.
            covariates: as recorded, ``[subject, period, covariate]``.

        Returns:
            theta, ``[subject, parameter]``, or ``[subject, period, parameter]`` where covariates change in time.
        """
        shift = self.scaling.standardise(covariates) @ (self.effects * self.active).T
        n = len(self.names)
        named = torch.exp(self.log_typical + self.eta(z)[:, None] + shift[..., :n])
        theta = torch.cat([named, z[:, None, n:] + shift[..., n:]], dim=-1)
        return theta[:, 0] if theta.shape[1] == 1 else theta
