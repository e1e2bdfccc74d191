"""Encode -> individual parameters -> solve -> observe -> compare: latent models, and the latent ODE among them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from neuralpk.batch import CohortBatch
from neuralpk.dynamics import Dynamics, StateSpace
from neuralpk.encoders import Encoder
from neuralpk.models.individual import IndividualParameters
from neuralpk.residual_error import ResidualError
from neuralpk.solve import SolverOptions, Trajectory, solve

_POPULATIONS = 32


@dataclass(frozen=True)
class Prediction:
    """What the model says of a batch.

    Args:
        z: position in the latent space, ``[subject, latent]``.
        theta: individual parameters at the first record, ``[subject, parameter]``.
        value: predicted value of every record, ``[subject, observation]``.
        trajectory: the solution behind it.
    """

    z: Tensor
    theta: Tensor
    value: Tensor
    trajectory: Trajectory


class Coordinate(NamedTuple):
    """One number of the population: its name, the tensor that holds it, its place in it."""

    name: str
    tensor: Tensor
    place: int

    @property
    def value(self) -> float:
        """What it is."""
        return float(self.tensor.detach().view(-1)[self.place])


class LatentModel(nn.Module, ABC):
    """An encoder places each patient in a latent space; states that depend on that place draw the line.

    The generative model, with y_ij the j-th value of subject i::

        z_i ~ N(0, I)   theta_i = theta(z_i, covariates_i)   A = states moved by theta_i and the doses
        y_ij ~ residual error(observe(A(t_ij)))

    Args:
        encoder: samples -> q(z).
        individual: z -> theta.
        dynamics: how the states start and are read.
        error: the residual error.
        options: of the solver.
    """

    def __init__(
        self,
        encoder: Encoder,
        individual: IndividualParameters,
        dynamics: StateSpace,
        error: ResidualError,
        options: SolverOptions,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.individual = individual
        self.dynamics = dynamics
        self.error = error
        self.options = options
        self.register_buffer("value_scale", torch.tensor(encoder.scaling.value), persistent=False)
        size = len(self.coordinates()) + sum(weight.numel() for weight in self.uncertain_weights())
        self.register_buffer("populations", torch.zeros(_POPULATIONS, size))

    value_scale: Tensor
    populations: Tensor  # that the data allow, as distances from this one; 0 until they have been estimated

    def population_parameters(self) -> list[nn.Parameter]:
        """Typical values, variability and residual error: few numbers on which everything else waits."""
        return [*self.individual.parameters(), *self.error.parameters()]

    def coordinates(self) -> list[Coordinate]:
        """The numbers that describe the population: log typical values, Omega, covariate effects, log error."""
        individual = self.individual
        named = individual.names if individual.learned else ()
        found = [Coordinate(name, individual.log_typical, k) for k, name in enumerate(named)]
        found += [Coordinate(f"omega {name}", individual.log_omega, k) for k, name in enumerate(named)]
        pairs = individual.pairs() if individual.learned else []
        found += [Coordinate(f"corr {a}~{b}", individual.links, k) for k, (a, b) in enumerate(pairs)]
        acting = individual.active[: len(individual.names)].nonzero().tolist()
        covariates = sorted(individual.scaling.covariates)
        found += [
            Coordinate(f"{individual.names[p]}~{covariates[c]}", individual.effects, p * len(covariates) + c)
            for p, c in acting
        ]
        for name, sd in self.error.log_sd.items():
            found += [Coordinate(name if len(sd) == 1 else f"{name}{k + 1}", sd, k) for k in range(len(sd))]
        return found

    @property
    def noise(self) -> dict[str, Tensor]:
        """What the noise of the states is like, by name, each a scalar; empty where nothing but z is random."""
        return {}

    def uncertain_weights(self) -> list[nn.Parameter]:
        """Weights of the field, where something is believed of them before there are data (`Dynamics.log_prior`)."""
        return list(self.dynamics.parameters()) if isinstance(self.dynamics.log_prior(), Tensor) else []

    def log_prior(self) -> Tensor:
        """log p(weights of the field, omega) up to a constant, a scalar."""
        return self.individual.log_prior() + self.dynamics.log_prior()

    def penalty(self, prediction: Prediction, batch: CohortBatch) -> Tensor:
        """What the field holds against its lines at the records that count, a scalar sum over subjects."""
        trajectory = prediction.trajectory
        since = trajectory.times - batch.start[:, None]
        held = self.dynamics.penalty(since, trajectory.states, trajectory.theta, batch.target)
        return self.value_scale.new_zeros(()) if held is None else held.sum()

    def prior_mean(self, subjects: int) -> Tensor:
        """Mean of p(z), the typical patient, ``[subject, latent]``."""
        return self.value_scale.new_zeros((subjects, self.individual.latent_size))

    @abstractmethod
    def follow(self, theta: Tensor, batch: CohortBatch, times: Tensor | None) -> Trajectory:
        """The states of patients with parameters ``theta [subject, (period,) parameter]``, as `decode` gives them."""

    def decode(self, z: Tensor, batch: CohortBatch, times: Tensor | None = None) -> Trajectory:
        """Solve from z: the states at the records of the batch, or at `times` ``[subject, time]``."""
        self._refuse_unread(batch)
        return self.follow(self.individual(z, batch.covariates), batch, times)

    def start(self, theta: Tensor) -> Tensor:
        """The states at the first record, ``[subject, state]``."""
        return self.dynamics.initial_state(theta if theta.dim() == 2 else theta[:, 0])

    def draw(self, z: Tensor, batch: CohortBatch, times: Tensor | None, seed: int) -> Trajectory:
        """As `decode`, with whatever else than z is random drawn by the seed: here nothing."""
        return self.decode(z, batch, times)

    def lines(self, z: Tensor, batch: CohortBatch, times: Tensor) -> Tensor:
        """The noise-free value of every endpoint at `times`, ``[subject, time, endpoint]``; NaN where unsolved."""
        return self.read(self.decode(z, batch, times))

    def read(self, trajectory: Trajectory) -> Tensor:
        """What the assays read along a solution, ``[subject, time, endpoint]``."""
        return self.dynamics.observe(trajectory.states, trajectory.theta)[..., list(self.dynamics.endpoints)]

    def predict(self, z: Tensor, batch: CohortBatch) -> Prediction:
        """The noise-free value of every record, NaN for a subject that could not be solved."""
        trajectory = self.decode(z, batch)
        value = self.recorded(trajectory.states, trajectory.theta, batch)
        return Prediction(z, trajectory.theta[:, 0], value, trajectory)

    def recorded(self, states: Tensor, theta: Tensor, batch: CohortBatch) -> Tensor:
        """What the assay of every record reads, ``[subject, observation]``, of the states and parameters there,
        ``[subject, observation, ...]``."""
        read = self.dynamics.observe(states, theta)
        of_endpoint = torch.tensor(self.dynamics.endpoints, device=batch.device)[batch.endpoint]
        state = torch.where(batch.compartment < 0, of_endpoint, batch.compartment)
        return read.gather(-1, state[..., None])[..., 0]

    def _refuse_unread(self, batch: CohortBatch) -> None:
        states, endpoints = self.dynamics.states, len(self.dynamics.endpoints)
        wrong = (batch.compartment >= len(states)) | (batch.endpoint >= endpoints)
        if bool(wrong.any()):
            names = [batch.ids[k] for k in wrong.any(1).nonzero()[:5, 0].tolist()]
            raise ValueError(
                f"subject {', '.join(names)}: an observation of a compartment or endpoint that is not in the model; "
                f"CMT counts {', '.join(states)} from 1, DVID goes to {endpoints}"
            )


class LatentODE(LatentModel):
    """The latent ODE (Rubanova et al. 2019): the states follow dA/dt = f(t, A, theta_i), with doses as events."""

    dynamics: Dynamics

    def follow(self, theta: Tensor, batch: CohortBatch, times: Tensor | None) -> Trajectory:
        return solve(self.dynamics, self.start(theta), theta, batch, times, self.options)
