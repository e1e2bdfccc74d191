"""Stochastic differential equations: torchsde between the nodes of every subject.

torchsde needs one grid of times for all subjects. So interval j of all subjects is solved together on s in [0, 1], each
with its length h_j, dY = h_j·f ds + sqrt(h_j)·g dB, and padding is an interval of length 0. The end of every step is a
node, so that an interval is one step, and the path of a subject does not depend on the other subjects of the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torchsde
from torch import Tensor

from neuralpk import randomness
from neuralpk.cohort_batch import CohortBatch, theta_in
from neuralpk.dynamics import StochasticDynamics
from neuralpk.solve.event_nodes import Mesh, build_mesh, dose_inputs
from neuralpk.solve.refuse_captured_tensors import refuse_captured_tensors
from neuralpk.solve.solve_result import Status, Trajectory

if TYPE_CHECKING:
    from neuralpk.solve.engines import TorchSDE

_STEPS = 40  # over the longest time asked for, where the engine has no step


class Noise(NamedTuple):
    """The Brownian motions: `neuralpk.randomness.brownian` of this seed and stream, a different one for each subject.

    A subject that occurs in a batch several times has a different path each time.
    """

    seed: int
    stream: int


@dataclass(frozen=True)
class Guide:
    """An approximate posterior of paths, relative to the prior: on a step of length h the increment of W is normal with
    mean u·h and variance h/(1 + h·information), which for small steps is a drift f + g·u instead of f.

    Args:
        ahead: time since the first record, ``[subject]`` -> the features of later samples at that time,
            ``[subject, feature]``.
        pull: t, h, y, theta, f and these features at the start of a step -> u and information on that step, each
            ``[subject, noise]``.
    """

    ahead: Callable[[Tensor], Tensor]
    pull: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Selection:
    """Resampling of the Monte-Carlo samples of a subject at its records (particle filter; Gordon et al. 1993): samples
    that fit well are continued several times, others not at all, as soon as few of them have all the weight.

    Args:
        draws: number of samples of each subject; they follow each other in the batch.
        log_weight: of each before its path begins, ``[subject]``.
        fit: states, theta, and which records belong to that node ``[subject, observation]`` -> log p of these records,
            ``[subject]``.
    """

    draws: int
    log_weight: Tensor
    fit: Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Paths(Trajectory):
    """A path of every subject, with the difference between its distribution and the prior.

    Args:
        kl: what the path adds to KL(posterior ‖ prior), ½∫|u|² dt for small steps (Girsanov), ``[subject]``.
        log_weight: log of the density of the path under the prior to that under the posterior, −∫u dW − ½∫|u|² dt for
            small steps; its mean is that of −`kl`. With a selection it includes the weight before the path and the fit,
            and the mean of exp(log_weight) over the samples of a subject is an unbiased estimate of p(y),
            ``[subject]``.
    """

    kl: Tensor
    log_weight: Tensor


class _Increment(torchsde.BaseBrownian):  # type: ignore[misc]
    """The increment of a Brownian motion over [0, 1]; torchsde needs nothing else, because an interval is one step."""

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


class _Interval(torch.nn.Module):
    """The equation on one interval, for torchsde.

    Values that differ between subjects are additional states with slope 0: so the adjoint needs no list of them, and
    the tensors that it differentiates for do not depend on each other.
    """

    sde_type, noise_type = "stratonovich", "diagonal"

    def __init__(self, dynamics: StochasticDynamics, device: torch.device) -> None:
        super().__init__()
        self.dynamics = dynamics
        self.noisy = torch.tensor(dynamics.noisy, device=device)
        self.last: tuple[Tensor, tuple[Tensor, Tensor]] | None = None

    def carry(self, y: Tensor, own: Tensor, mesh: Mesh, node: int) -> tuple[Tensor, ...]:
        """State, parameters, input, start and length of the interval after a node, each ``[subject, …]``."""
        start = mesh.times[:, node, None]
        return y, own, mesh.input[:, node], start, mesh.times[:, node + 1, None] - start

    def drift(self, s: Tensor, y: Tensor, own: Tensor, given: Tensor, start: Tensor, h: Tensor) -> Tensor:
        """f with the infusions, ``[subject, state]``."""
        drift: Tensor = self.dynamics((start + s * h)[:, 0], y, own) + given
        return drift

    def f_and_g(self, s: Tensor, carried: Tensor) -> tuple[Tensor, Tensor]:
        """Slopes without noise, and the factors of dB, of the state, the additional states and the pull."""
        # torchsde asks for them twice at the start of an interval, once only to read their shapes
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


def integrate(
    dynamics: StochasticDynamics,
    y0: Tensor,
    theta: Tensor,
    batch: CohortBatch,
    times: Tensor,
    rows: Tensor | None,
    engine: TorchSDE,
    noise: Noise | None = None,
    guide: Guide | None = None,
    selection: Selection | None = None,
) -> Paths:
    """A path of every subject at ``times [subject, time]``, whose order among records of the same time is `rows` (None
    for after all of them); the other arguments as of `neuralpk.solve.solve_paths`."""
    if bool(batch.doses.at_steady_state.any()):
        raise ValueError(f"{type(dynamics).__name__} has no steady state; write the doses out")
    if engine.gradient == "adjoint":
        refuse_captured_tensors(dynamics, y0, theta)
    latest = torch.iinfo(torch.int64).max
    span = float((times - batch.start[:, None]).detach().max())
    step = engine.step or span / _STEPS or 1.0
    clock = batch.start[:, None] + step * torch.arange(1, int(span / step) + 1, device=times.device, dtype=times.dtype)
    clock = torch.minimum(clock, times.amax(1, keepdim=True))
    rows = torch.full_like(times, latest, dtype=torch.int64) if rows is None else rows
    order = torch.cat([rows, torch.full_like(clock, latest, dtype=torch.int64)], dim=1)
    inputs = dose_inputs(dynamics, theta, batch)
    mesh = _merged(build_mesh(batch, inputs, len(dynamics.states), torch.cat([times, clock], dim=1), order, None, True))
    motion = None if noise is None else _motion(noise, dynamics, batch, mesh, step)
    interval = _Interval(dynamics, y0.device)
    y, states, parents, kl = y0, [], [], y0.new_zeros(len(y0))
    log_weight = kl if selection is None else selection.log_weight
    recorded = mesh.wanted[:, : times.shape[1]]
    for node in range(mesh.times.shape[1]):
        if node > 0:
            parts = interval.carry(y, theta_in(theta, mesh.period[:, node - 1 : node])[:, 0], mesh, node - 1)
            start, h = (part[:, 0] for part in parts[3:])
            increment = y.new_zeros((len(y), len(dynamics.noisy))) if motion is None else motion[:, node - 1]
            shift = torch.zeros_like(increment)
            if guide is not None:
                drift = interval.drift(y.new_zeros(()), *parts)
                u, information = guide.pull(start, h, y, parts[1], drift, guide.ahead(start.detach()))
                shift, cost, ratio = _shifted(u, information, increment, h[:, None])
                kl, log_weight = kl + cost, log_weight - ratio
            y = _step(interval, torch.cat([*parts, shift], dim=1), increment, engine)
        y = torch.where(mesh.reset[:, node, None], 0.0, y) + mesh.jump[:, node]
        states.append(y)
        here = recorded == node
        parent = None
        if selection is not None and bool(here.any()):
            log_weight = log_weight + selection.fit(y, theta_in(theta, mesh.period[:, node : node + 1])[:, 0], here)
            parent, log_weight = _selected(log_weight, selection.draws, noise, batch.index, node)
        if parent is not None:
            y, theta, kl = y[parent], theta[parent], kl[parent]
        parents.append(parent)
    found = torch.stack(_traced(states, parents), dim=1).gather(1, recorded[..., None].expand(-1, -1, y0.shape[1]))
    ended = torch.where(torch.isfinite(y.detach().sum(1)), int(Status.OK), int(Status.NON_FINITE))
    return Paths(times, found, batch.theta_at(theta, times), ended, len(states) - 1, engine, kl, log_weight)


def _selected(
    log_weight: Tensor, draws: int, noise: Noise | None, index: Tensor, node: int
) -> tuple[Tensor | None, Tensor]:
    """The row that every row continues, None where each continues itself, and the weights after that: where less than
    half of the samples of a subject are effective (Kong 1992), they are resampled."""
    own = log_weight.reshape(-1, draws)
    share = own.detach().double().softmax(1)
    few = 2.0 / share.square().sum(1, keepdim=True) < draws
    if noise is None or not bool(few.any()):
        return None, log_weight
    place = torch.arange(draws, device=own.device)
    key = randomness.path_key(index[::draws], -1)
    offset = randomness.uniform(noise.seed, noise.stream, key, node + 1)[:, node:]
    chosen = (
        torch.where(few, randomness.systematic(share, draws, offset), place)
        + draws * torch.arange(len(own), device=own.device)[:, None]
    )
    mean = own.logsumexp(1, keepdim=True) - math.log(draws)
    return chosen.flatten(), torch.where(few, mean, own).flatten()


def _traced(states: list[Tensor], parents: list[Tensor | None]) -> list[Tensor]:
    """The states of every row and of its ancestors, node by node."""
    line, found = torch.arange(len(states[0]), device=states[0].device), []
    for state, parent in zip(reversed(states), reversed(parents), strict=True):
        line = line if parent is None else parent[line]
        found.append(state[line])
    return found[::-1]


def _shifted(u: Tensor, information: Tensor, unit: Tensor, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The pull of a guide on a step, from the increment of W in units of sqrt(h); what the step adds to `Paths.kl`, and
    what it subtracts from `Paths.log_weight`."""
    precision = 1.0 + h * information
    sd = precision.rsqrt()
    length = torch.where(h > 0, h, 1.0).sqrt()
    moved = h.sqrt() * u + sd * unit
    cost = 0.5 * (h * u.square() + sd.square() - 1.0 + precision.log()).sum(1)
    ratio = 0.5 * (moved.square() - unit.square() + precision.log()).sum(1)
    return u + (sd - 1.0) * unit / length, cost, ratio


def _merged(mesh: Mesh) -> Mesh:
    """The mesh without nodes that change nothing at the time of the node before, such as two samples of one time."""
    parts = (mesh.times[..., None], mesh.period[..., None], mesh.input)
    new = torch.cat([(part[:, 1:] != part[:, :-1]).any(2, keepdim=True) for part in parts], dim=2).any(2)
    new = new | mesh.reset[:, 1:] | (mesh.jump[:, 1:] != 0).any(2)
    place = torch.nn.functional.pad(new.long(), (1, 0)).cumsum(1)  # of every node among those that are kept
    count = int(place.max()) + 1
    # the first node of a position is kept, later ones repeat it; after the last position the last node is repeated
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


def _step(interval: _Interval, carried: Tensor, increment: Tensor, engine: TorchSDE) -> Tensor:
    """The state after a interval."""
    s = torch.tensor([0.0, 1.0], dtype=carried.dtype, device=carried.device)
    motion = _Increment(torch.zeros_like(carried).index_copy(1, interval.noisy, increment))
    adjoint = engine.gradient == "adjoint" and torch.is_grad_enabled()
    integrate = torchsde.sdeint_adjoint if adjoint else torchsde.sdeint
    out: Tensor = integrate(interval, carried, s, bm=motion, method="reversible_heun", dt=1.0)
    return out[-1, :, : len(interval.dynamics.states)]


def _motion(noise: Noise, dynamics: StochasticDynamics, batch: CohortBatch, mesh: Mesh, step: float) -> Tensor:
    """Increments of the Brownian motion over every interval, divided by the square root of its length,
    ``[subject, node, noise]``."""
    key = randomness.path_key(batch.index, _occurrence(batch.index))
    times = mesh.times.detach().double()
    path = randomness.brownian(noise.seed, noise.stream, key, times, len(dynamics.noisy), step)
    length = times.diff(dim=1)[..., None]
    unit = path.diff(dim=1) / torch.where(length > 0, length, 1.0).sqrt()
    return torch.where(length > 0, unit, 0.0).to(mesh.times.dtype)


def _occurrence(index: Tensor) -> Tensor:
    """How often each key occurred before in the batch, ``[subject]``."""
    order = torch.argsort(index, stable=True)
    ordered = index[order]
    first = torch.searchsorted(ordered, ordered)
    return torch.empty_like(index).scatter_(0, order, torch.arange(len(index), device=index.device) - first)
