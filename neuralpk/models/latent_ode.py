"""The latent ODE: encode -> individual parameters -> solve -> observe -> compare."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from neuralpk.batch import CohortBatch
from neuralpk.dynamics import Dynamics
from neuralpk.encoders import Encoder
from neuralpk.models.individual import IndividualParameters
from neuralpk.residual_error import ResidualError
from neuralpk.solve import SolverOptions, Trajectory, solve


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
    tensor: nn.Parameter
    place: int

    @property
    def value(self) -> float:
        """What it is."""
        return float(self.tensor.detach().view(-1)[self.place])


class LatentODE(nn.Module):
    """An encoder places each patient in a latent space; an ODE whose field depends on that place draws the line.

    The generative model, with y_ij the j-th value of subject i::

        z_i ~ N(0, I)   theta_i = theta(z_i, covariates_i)   dA/dt = f(t, A, theta_i) with doses
        y_ij ~ residual error(observe(A(t_ij)))

    Args:
        encoder: samples -> q(z).
        individual: z -> theta.
        dynamics: the field.
        error: the residual error.
        options: of the solver.
    """

    def __init__(
        self,
        encoder: Encoder,
        individual: IndividualParameters,
        dynamics: Dynamics,
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
        self.register_buffer("uncertainty", torch.zeros((len(self.coordinates()),) * 2))

    value_scale: Tensor
    uncertainty: Tensor  # covariance of the coordinates of the population; 0 until it has been estimated

    def population_parameters(self) -> list[nn.Parameter]:
        """Typical values, variability and residual error: few numbers on which everything else waits."""
        return [*self.individual.parameters(), *self.error.parameters()]

    def coordinates(self) -> list[Coordinate]:
        """The numbers that describe the population: log typical values, log omega, covariate effects, log error."""
        individual = self.individual
        found = [Coordinate(name, individual.log_typical, k) for k, name in enumerate(individual.names)]
        found += [Coordinate(f"omega {name}", individual.log_omega, k) for k, name in enumerate(individual.names)]
        acting = individual.active[: len(individual.names)].nonzero().tolist()
        covariates = sorted(individual.scaling.covariates)
        found += [
            Coordinate(f"{individual.names[p]}~{covariates[c]}", individual.effects, p * len(covariates) + c)
            for p, c in acting
        ]
        for name, sd in self.error.log_sd.items():
            found += [Coordinate(name if len(sd) == 1 else f"{name}{k + 1}", sd, k) for k in range(len(sd))]
        return found

    def log_prior(self) -> Tensor:
        """log p(weights of the field, omega) up to a constant, a scalar."""
        return self.individual.log_prior() + self.dynamics.log_prior()

    def prior_mean(self, subjects: int) -> Tensor:
        """Mean of p(z), the typical patient, ``[subject, latent]``."""
        return self.value_scale.new_zeros((subjects, self.individual.latent_size))

    def decode(self, z: Tensor, batch: CohortBatch, times: Tensor | None = None) -> Trajectory:
        """Solve from z: the states at the records of the batch, or at `times` ``[subject, time]``."""
        self._refuse_unread(batch)
        theta = self.individual(z, batch.covariates)
        first = theta if theta.dim() == 2 else theta[:, 0]
        return solve(self.dynamics, self.dynamics.initial_state(first), theta, batch, times, self.options)

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
        return self.at_records(z, batch, self.decode(z, batch))

    def at_records(self, z: Tensor, batch: CohortBatch, trajectory: Trajectory) -> Prediction:
        """What the assays read at the records, of a solution there."""
        read = self.dynamics.observe(trajectory.states, trajectory.theta)
        of_endpoint = torch.tensor(self.dynamics.endpoints, device=batch.device)[batch.endpoint]
        state = torch.where(batch.compartment < 0, of_endpoint, batch.compartment)
        value = read.gather(-1, state[..., None])[..., 0]
        return Prediction(z, trajectory.theta[:, 0], value, trajectory)

    def _refuse_unread(self, batch: CohortBatch) -> None:
        states, endpoints = self.dynamics.states, len(self.dynamics.endpoints)
        wrong = (batch.compartment >= len(states)) | (batch.endpoint >= endpoints)
        if bool(wrong.any()):
            names = [batch.ids[k] for k in wrong.any(1).nonzero()[:5, 0].tolist()]
            raise ValueError(
                f"subject {', '.join(names)}: an observation of a compartment or endpoint that is not in the model; "
                f"CMT counts {', '.join(states)} from 1, DVID goes to {endpoints}"
            )
