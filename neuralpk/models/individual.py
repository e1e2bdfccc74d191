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

    so that eta = omega·z_m ~ N(0, omega²) is the random effect that pharmacometricians know.

    Args:
        typical: first guess of each named parameter, in the order of the field.
        latent: number of further latent dimensions, for a neural field.
        scaling: for the covariates.
        omega: first guess of the standard deviation of eta, of every parameter or by name (0.3 where left out).
        effects: parameter to the names of the covariates that act on it; on the further dimensions all of them act.
        omega_spread: standard deviation of log(omega) around its first guess before any data are seen; None for a flat
            prior, and with it maximum likelihood. Of a few patients with a few samples each the most likely omega of a
            parameter that they hardly determine is 0, which nobody believes.

        learned: whether typical values and omega are learned; else they stay, as the prior of every subject by itself.

    Raises:
        ValueError: an effect that names no parameter or covariate, or an omega of no parameter.
    """

    active: Tensor
    log_omega_guess: Tensor

    def __init__(
        self,
        typical: Mapping[str, float],
        latent: int,
        scaling: Scaling,
        omega: float | Mapping[str, float] = 0.3,
        effects: Mapping[str, list[str]] | None = None,
        omega_spread: float | None = None,
        learned: bool = True,
    ) -> None:
        super().__init__()
        self.names = tuple(typical)
        self.omega_spread, self.learned = omega_spread, learned
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
    ) -> IndividualParameters:
        """A population with given numbers, in float64 and fixed.

        Args:
            typical: value of each named parameter, in the order of the field.
            omega: standard deviation of eta by name; parameters left out do not vary.
            effects: (parameter, covariate) to the coefficient of the standardised covariate.
            scaling: for the covariates.

        Raises:
            ValueError: an effect that names no parameter or covariate.
        """
        acting: dict[str, list[str]] = {}
        for parameter, covariate in effects:
            acting.setdefault(parameter, []).append(covariate)
        known = cls(typical, 0, scaling, effects=acting).double().requires_grad_(False)
        covariates = sorted(scaling.covariates)
        for k, name in enumerate(known.names):
            known.log_typical[k] = math.log(typical[name])
            known.log_omega[k] = math.log(omega[name]) if omega.get(name, 0.0) > 0 else -math.inf
        for (parameter, covariate), strength in effects.items():
            known.effects[known.names.index(parameter), covariates.index(covariate)] = strength
        return known

    def log_prior(self) -> Tensor:
        """log p(omega) up to a constant, a scalar; 0 where it is flat."""
        if self.omega_spread is None or not self.learned:
            return self.log_omega.new_zeros(())
        distance = (self.log_omega - self.log_omega_guess) / self.omega_spread
        return -0.5 * distance.square().sum()

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
        named = torch.exp(self.log_typical + self.log_omega.exp() * z[:, None, :n] + shift[..., :n])
        theta = torch.cat([named, z[:, None, n:] + shift[..., n:]], dim=-1)
        return theta[:, 0] if theta.shape[1] == 1 else theta
