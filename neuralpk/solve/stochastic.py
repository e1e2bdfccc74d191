"""Stochastic differential equations: torchsde between the nodes of every subject's clock.

torchsde asks for one grid of times for all. So stretch j of all subjects is solved together on s in [0, 1], each with
its own length h_j, dY = h_j·f ds + sqrt(h_j)·g dB, and padding is a stretch of length 0. Every subject's clock has a
node wherever it would have stepped, so that a stretch is one step, and a path depends on no batch mate.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torchsde
from torch import Tensor

from neuralpk import randomness
from neuralpk.batch import CohortBatch
from neuralpk.dynamics import StochasticDynamics
from neuralpk.solve.closures import refuse_closures
from neuralpk.solve.interface import Trajectory
from neuralpk.solve.mesh import Mesh, build_mesh, dose_inputs, period_at, theta_at
from neuralpk.solve.options import SolverOptions, Status
from neuralpk.solve.reference import Evaluations

_STEPS = 40  # over the longest record, where no step is given


class Noise(NamedTuple):
    """Which Brownian motions: `neuralpk.randomness.brownian` of this seed and stream, one of each subject's own.

    A subject that stands in a batch several times has a path of its own each time.
    """

    seed: int
    stream: int


@dataclass(frozen=True)
class Guide:
    """What makes an approximate posterior of paths of a prior one: on a step of length h the increment of W is normal
    with mean u·h and variance h/(1 + h·information), which for small steps is a drift f + g·u in the place of f.

    Args:
        ahead: time since the first record, ``[subject]`` -> what the guide is told on the stretch that begins then,
            ``[subject, context]``.
        pull: t, h, y, theta, f and that context at the begin of a step -> u and information on that step, each
            ``[subject, noise]``.
    """

    ahead: Callable[[Tensor], Tensor]
    pull: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Selection:
    """Draws of a subject compete wherever something was measured (a particle filter; Gordon et al. 1993): those that
    fit well are continued several times, others not at all, as soon as few of them carry all the weight.

    Args:
        draws: how many each subject has; they stand in the batch one after the other.
        log_weight: of each before its path begins, ``[subject]``.
        fit: states, theta, and which records were made there ``[subject, observation]`` -> log p of these records,
            ``[subject]``.
    """

    draws: int
    log_weight: Tensor
    fit: Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Paths(Trajectory):
    """A path of every subject, and how far its law is from the prior's.

    Args:
        kl: what the path adds to KL(posterior ‖ prior), ½∫|u|² dt for small steps (Girsanov), ``[subject]``.
        log_weight: log of the density of the path under the prior to that under the posterior, −∫u dW − ½∫|u|² dt for
            small steps; its mean is that of −`kl`. With a selection also what was weighed before and the fit, and the
            mean of exp(log_weight) over the draws of a subject is an estimate of p(y) without bias, ``[subject]``.
    """

    kl: Tensor
    log_weight: Tensor


class _Increment(torchsde.BaseBrownian):  # type: ignore[misc]
    """The increment of a Brownian motion over [0, 1]; nothing else is asked of it, because a stretch is one step."""

    levy_area_approximation = "none"

    def __init__(self, value: Tensor) -> None:
        self.value = value

    def __call__(self, ta: Any, tb: Any = None, return_U: bool = False, return_A: bool = False) -> Tensor:
        return self.value

    def __repr__(self) -> str:
        return f"{type(self).__name__}{tuple(self.shape)}"

    @property
    def dtype(self) -> torch.dtype:
        return self.value.dtype

    @property
    def device(self) -> torch.device:
        return self.value.device

    @property
    def shape(self) -> torch.Size:
        return self.value.shape


class _Stretch(torch.nn.Module):
    """The equation on one stretch, for torchsde.

    What differs between subjects is carried along beside the state, with slope 0: so the adjoint needs no list of it,
    and what it differentiates for does not depend on each other.
    """

    sde_type, noise_type = "stratonovich", "diagonal"

    def __init__(self, dynamics: StochasticDynamics, device: torch.device) -> None:
        super().__init__()
        self.dynamics = dynamics
        self.noisy = torch.tensor(dynamics.noisy, device=device)
        self.last: tuple[Tensor, tuple[Tensor, Tensor]] | None = None

    def carry(self, y: Tensor, own: Tensor, mesh: Mesh, node: int) -> tuple[Tensor, ...]:
        """State, parameters, input, start and length of the stretch after a node, each ``[subject, …]``."""
        start = mesh.times[:, node, None]
        return y, own, mesh.input[:, node], start, mesh.times[:, node + 1, None] - start

    def drift(self, s: Tensor, y: Tensor, own: Tensor, given: Tensor, start: Tensor, h: Tensor) -> Tensor:
        """f with the infusions, ``[subject, state]``."""
        drift: Tensor = self.dynamics((start + s * h)[:, 0], y, own) + given
        return drift

    def f_and_g(self, s: Tensor, carried: Tensor) -> tuple[Tensor, Tensor]:
        """Slopes without noise, and the factors of dB, of all that is carried: state, …, and the pull."""
        # torchsde asks for them twice at the start of a stretch, once only to look at their shapes
        if self.last is None or self.last[0] is not carried:
            self.last = (carried, self._f_and_g(s, carried))
        return self.last[1]

    def _f_and_g(self, s: Tensor, carried: Tensor) -> tuple[Tensor, Tensor]:
        states, noises = len(self.dynamics.states), len(self.noisy)
        own = len(self.dynamics.parameter_names)
        *parts, pull = torch.split(carried, [states, own, states, 1, 1, noises], dim=1)
        start, h = parts[3:]
        size = self.dynamics.diffusion((start + s * h)[:, 0], parts[1])
        slope = self.drift(s, *parts).index_add(1, self.noisy, size * pull)
        rest = torch.zeros_like(carried[:, states:])
        factor = torch.zeros_like(parts[0]).index_copy(1, self.noisy, h.sqrt() * size)
        return torch.cat([h * slope, rest], dim=1), torch.cat([factor, rest], dim=1)


def solve_paths(
    dynamics: StochasticDynamics,
    y0: Tensor,
    theta: Tensor,
    batch: CohortBatch,
    times: Tensor | None = None,
    options: SolverOptions | None = None,
    noise: Noise | None = None,
    guide: Guide | None = None,
    selection: Selection | None = None,
) -> Paths:
    """Solve dY = f dt + g dW for every subject of a batch, each on its own clock, with its doses as jumps.

    Heun's method in steps of at most ``options.step``, whose weak order for additive noise is 2. Gradients by
    ``backprop`` (`torchsde.sdeint`) and by ``adjoint`` (`torchsde.sdeint_adjoint`) are both exact for the steps taken:
    one step of Heun's method from the state is one of the reversible method of Kidger et al. (2021).

    Args:
        dynamics: drift, diffusion, and how doses enter.
        y0: state at the first record, ``[subject, state]``.
        theta: parameters, ``[subject, parameter]`` or ``[subject, period, parameter]``.
        batch: doses and clocks.
        times: where the state is wanted, ``[subject, time]``. Default: the records of the batch.
        options: step, gradient.
        noise: the Brownian motions; None takes W = 0, the path that the drift alone would take.
        guide: of an approximate posterior; None solves the dynamics itself.
        selection: among the draws of each subject, at the records of the batch; None lets each go its way. As usual its
            own slope is left out of the gradient, whose variance it would ruin (Maddison et al. 2017).

    Raises:
        ValueError: a steady-state dose; a drift that closes over a tensor (adjoint only).
    """
    options = options or SolverOptions()
    if bool(((batch.dose_steady_state > 0) & batch.dose_mask).any()):
        raise ValueError(f"{type(dynamics).__name__} has no steady state; write the doses out")
    if options.gradient == "adjoint":
        refuse_closures(dynamics, y0, theta)
    latest = torch.iinfo(torch.int64).max
    rows = batch.row if times is None else torch.full_like(times, latest, dtype=torch.int64)
    times = batch.time if times is None else times
    span = float((times - batch.start[:, None]).detach().max())
    step = options.step or span / _STEPS or 1.0
    clock = batch.start[:, None] + step * torch.arange(1, int(span / step) + 1, device=times.device, dtype=times.dtype)
    clock = torch.minimum(clock, times.amax(1, keepdim=True))
    order = torch.cat([rows, torch.full_like(clock, latest, dtype=torch.int64)], dim=1)
    inputs = dose_inputs(dynamics, theta, batch)
    mesh = _merged(build_mesh(batch, inputs, len(dynamics.states), torch.cat([times, clock], dim=1), order, None, True))
    motion = None if noise is None else _motion(noise, dynamics, batch, mesh, step)
    stretch = _Stretch(dynamics, y0.device)
    y, states, parents, kl = y0, [], [], y0.new_zeros(len(y0))
    log_weight = kl if selection is None else selection.log_weight
    recorded = mesh.wanted[:, : times.shape[1]]
    for node in range(mesh.times.shape[1]):
        if node > 0:
            parts = stretch.carry(y, theta_at(theta, mesh.period[:, node - 1 : node])[:, 0], mesh, node - 1)
            start, h = (part[:, 0] for part in parts[3:])
            increment = y.new_zeros((len(y), len(dynamics.noisy))) if motion is None else motion[:, node - 1]
            shift = torch.zeros_like(increment)
            if guide is not None:
                drift = stretch.drift(y.new_zeros(()), *parts)
                u, information = guide.pull(start, h, y, parts[1], drift, guide.ahead(start.detach()))
                shift, cost, ratio = _shifted(u, information, increment, h[:, None])
                kl, log_weight = kl + cost, log_weight - ratio
            y = _step(stretch, torch.cat([*parts, shift], dim=1), increment, options)
        y = torch.where(mesh.reset[:, node, None], 0.0, y) + mesh.jump[:, node]
        states.append(y)
        here = recorded == node
        parent = None
        if selection is not None and bool(here.any()):
            log_weight = log_weight + selection.fit(y, theta_at(theta, mesh.period[:, node : node + 1])[:, 0], here)
            parent, log_weight = _selected(log_weight, selection.draws, noise, batch.index, node)
        if parent is not None:
            y, theta, kl = y[parent], theta[parent], kl[parent]
        parents.append(parent)
    found = torch.stack(_traced(states, parents), dim=1).gather(1, recorded[..., None].expand(-1, -1, y0.shape[1]))
    ended = torch.where(torch.isfinite(y.detach().sum(1)), int(Status.OK), int(Status.NON_FINITE))
    count = Evaluations(options.max_evaluations, len(states) - 1)
    own = theta_at(theta, period_at(batch, times))
    return Paths(times, found, own, ended, count, "torchsde", kl, log_weight)


def _selected(
    log_weight: Tensor, draws: int, noise: Noise | None, index: Tensor, node: int
) -> tuple[Tensor | None, Tensor]:
    """Which row every row continues, None for each its own, and the weights after that: where less than half of a
    subject's draws are effective (Kong 1992), they are resampled."""
    own = log_weight.reshape(-1, draws)
    share = own.detach().double().softmax(1)
    few = 2.0 / share.square().sum(1, keepdim=True) < draws
    if noise is None or not bool(few.any()):
        return None, log_weight
    place = torch.arange(draws, device=own.device)
    offset = randomness.uniform(noise.seed, noise.stream, index[::draws], node + 1)[:, node:]
    chosen = (
        torch.where(few, randomness.systematic(share, draws, offset), place)
        + draws * torch.arange(len(own), device=own.device)[:, None]
    )
    mean = own.logsumexp(1, keepdim=True) - math.log(draws)
    return chosen.flatten(), torch.where(few, mean, own).flatten()


def _traced(states: list[Tensor], parents: list[Tensor | None]) -> list[Tensor]:
    """The states of every row and of those that it descends from, node by node."""
    line, found = torch.arange(len(states[0]), device=states[0].device), []
    for state, parent in zip(reversed(states), reversed(parents), strict=True):
        line = line if parent is None else parent[line]
        found.append(state[line])
    return found[::-1]


def _shifted(u: Tensor, information: Tensor, unit: Tensor, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What a guide makes of an increment of W over a step, given in units of its square root: the pull that does so,
    and what the step adds to `Paths.kl` and takes from `Paths.log_weight`."""
    precision = 1.0 + h * information
    sd = precision.rsqrt()
    length = torch.where(h > 0, h, 1.0).sqrt()
    moved = h.sqrt() * u + sd * unit
    cost = 0.5 * (h * u.square() + sd.square() - 1.0 + precision.log()).sum(1)
    ratio = 0.5 * (moved.square() - unit.square() + precision.log()).sum(1)
    return u + (sd - 1.0) * unit / length, cost, ratio


def _merged(mesh: Mesh) -> Mesh:
    """Without the nodes at which nothing happens at the time of the node before, as of two samples taken together."""
    parts = (mesh.times[..., None], mesh.period[..., None], mesh.input)
    new = torch.cat([(part[:, 1:] != part[:, :-1]).any(2, keepdim=True) for part in parts], dim=2).any(2)
    new = new | mesh.reset[:, 1:] | (mesh.jump[:, 1:] != 0).any(2)
    place = torch.nn.functional.pad(new.long(), (1, 0)).cumsum(1)  # of every node among those that stay
    count = int(place.max()) + 1
    # what stays at a place comes first, a node that repeats it later; past the last comes the last once more
    kept = torch.searchsorted(place, torch.arange(count, device=place.device).expand(len(place), -1).contiguous())
    beyond = kept >= place.shape[1]
    kept = kept.clamp(max=place.shape[1] - 1)

    def at(part: Tensor) -> Tensor:
        return part.gather(1, kept[..., None].expand(-1, -1, part.shape[2]))

    return Mesh(
        times=mesh.times.gather(1, kept),
        reset=mesh.reset.gather(1, kept) & ~beyond,
        jump=torch.where(beyond[..., None], 0.0, at(mesh.jump)),
        input=at(mesh.input),
        period=mesh.period.gather(1, kept),
        wanted=place.gather(1, mesh.wanted),
        wanted_times=mesh.wanted_times,
    )


def _step(stretch: _Stretch, carried: Tensor, increment: Tensor, options: SolverOptions) -> Tensor:
    """The state after a stretch."""
    s = torch.tensor([0.0, 1.0], dtype=carried.dtype, device=carried.device)
    motion = _Increment(torch.zeros_like(carried).index_copy(1, stretch.noisy, increment))
    adjoint = options.gradient == "adjoint" and torch.is_grad_enabled()
    integrate = torchsde.sdeint_adjoint if adjoint else torchsde.sdeint
    out: Tensor = integrate(stretch, carried, s, bm=motion, method="reversible_heun", dt=1.0)
    return out[-1, :, : len(stretch.dynamics.states)]


def _motion(noise: Noise, dynamics: StochasticDynamics, batch: CohortBatch, mesh: Mesh, step: float) -> Tensor:
    """Increments of the Brownian motion over every stretch in units of its square root, ``[subject, node, noise]``."""
    key = batch.index + (_occurrence(batch.index) << 32)
    times = mesh.times.detach().double()
    path = randomness.brownian(noise.seed, noise.stream, key, times, len(dynamics.noisy), step)
    length = times.diff(dim=1)[..., None]
    unit = path.diff(dim=1) / torch.where(length > 0, length, 1.0).sqrt()
    return torch.where(length > 0, unit, 0.0).to(mesh.times.dtype)


def _occurrence(index: Tensor) -> Tensor:
    """How often each key came before in the batch, ``[subject]``."""
    order = torch.argsort(index, stable=True)
    ordered = index[order]
    first = torch.searchsorted(ordered, ordered)
    return torch.empty_like(index).scatter_(0, order, torch.arange(len(index), device=index.device) - first)
