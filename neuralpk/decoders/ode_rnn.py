"""An ODE network whose states jump by a gated recurrent unit at doses."""

from __future__ import annotations

import torch
from torch import Tensor

from neuralpk.cohort_batch import CohortBatch
from neuralpk.decoders.event_sequence import EventClock, wanted_times, without_doses
from neuralpk.decoders.gru import GatedDecoder
from neuralpk.dynamics import CompartmentModel, Decoder, Dynamics, Perceptron, Solver
from neuralpk.dynamics.networks import SlopeNetwork, latent_names
from neuralpk.scaling import Scaling
from neuralpk.solve import Trajectory


class HiddenField(Dynamics):
    """The vector field between two doses, dh/dt = network(h, z); theta is z, then h at the start.

    Args:
        states: names of the hidden states.
        latent_size: dimension of z.
        layers: number of hidden layers of the network, as wide as there are states.
    """

    def __init__(self, states: tuple[str, ...], latent_size: int, layers: int) -> None:
        super().__init__()
        self.states, self.latent_size = states, latent_size
        self.parameter_names = (*latent_names(latent_size), *(f"{state}0" for state in states))
        self.slope_network = SlopeNetwork(len(states), latent_size, len(states), layers, None, time=False)

    def build(self, scaling: Scaling) -> None:
        self.slope_network.build(scaling.time, self.state_size(scaling))

    def state_size(self, scaling: Scaling) -> tuple[float, ...]:
        return (1.0,) * len(self.states)

    def initial_state(self, theta: Tensor) -> Tensor:
        return theta[..., self.latent_size :]

    def forward(self, t: Tensor, y: Tensor, theta: Tensor) -> Tensor:
        slope: Tensor = self.slope_network(t, y, theta[..., : self.latent_size])
        return slope

    def perceptron(self, theta: Tensor) -> Perceptron:
        return self.slope_network.perceptron(theta[..., : self.latent_size])


class ODERNN(GatedDecoder):
    """An ODE network whose states jump at doses by a step of a GRU (ODE-RNN; Rubanova et al. 2019)::

        between doses dh/dt = network(h, z)        at a dose h ← GRU(h; dose, its compartment and duration, z)

    Args:
        like: the dynamics whose endpoints and dosing compartments are copied; default two compartments.
        latent_size: dimension of z.
        hidden: number of hidden states, and width of the network.
        layers: number of its hidden layers.

    Raises:
        ValueError: fewer hidden states than compartments.
    """

    def __init__(self, like: Decoder | None = None, latent_size: int = 4, hidden: int = 32, layers: int = 2) -> None:
        like = CompartmentModel() if like is None else like
        super().__init__(like, latent_size, hidden)
        self.cell.requires_grad_(like.dosed)  # several devices expect a gradient of every weight that has one
        self.field = HiddenField(self.states, latent_size, layers)

    def build(self, scaling: Scaling) -> None:
        super().build(scaling)
        self.field.build(scaling)

    def follow(self, theta: Tensor, batch: CohortBatch, times: Tensor | None, engine: Solver) -> Trajectory:
        times, order = wanted_times(batch, times)
        clock = EventClock.of(batch, self.cell.compartments, times[:, :0])
        last, doses = clock.before(times, order), self.cell.doses(clock)
        dosed = torch.where(torch.isfinite(clock.time), clock.time, batch.start[:, None])
        end = torch.cat([times, dosed], dim=1).amax(1, keepdim=True)
        bounds = torch.cat([batch.start[:, None], torch.minimum(clock.time, end), end], dim=1)
        first = h = self.initial_state(theta[:, 0])
        states, status, count = times.new_zeros((*times.shape, h.shape[1])), torch.zeros_like(last[:, 0]), 0
        for k in range(clock.time.shape[1] + 1):
            wanted = torch.cat([times, bounds[:, k + 1, None]], dim=1).clamp(bounds[:, k, None], bounds[:, k + 1, None])
            start = torch.cat([theta, h[:, None].expand(-1, theta.shape[1], -1)], dim=-1)
            solved = engine.solve(self.field, start, without_doses(batch, bounds[:, k]), wanted)
            states = torch.where((last == k)[..., None], solved.states[:, :-1], states)
            status, count = torch.maximum(status, solved.status), count + solved.evaluations
            if k < clock.time.shape[1]:
                at_dose = batch.theta_at(theta, bounds[:, k + 1, None])[:, 0]
                moved = self.cell(solved.states[:, -1], torch.zeros_like(at_dose[:, 0]), doses[:, k], at_dose)
                h = torch.where(clock.reset[:, k, None], first, moved)
        at_times = batch.theta_at(theta, times)
        return Trajectory(times, states, at_times, status, count, solved.engine)
