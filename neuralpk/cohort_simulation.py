"""Synthetic cohorts: a population, a design, a dynamics and an error model -> subjects with their truth."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import cast

import numpy as np
import torch
from torch import Tensor

from neuralpk import randomness
from neuralpk.cohort import Cohort, Dose, FloatArray, Occasion, Subject, Truth, Units
from neuralpk.cohort_batch import BEFORE_ANY_RECORD, CohortBatch, TruthBatch, collate
from neuralpk.dynamics import Dynamics, StochasticDynamics
from neuralpk.parameters import CovariateEffect, LogNormal, ParameterDistribution, power_or_factor
from neuralpk.randomness import Stream
from neuralpk.residual_error import ResidualError, outputs_read
from neuralpk.solve import Exact, Noise, TorchDiffEq, TorchSDE, Trajectory, solve_paths

_STEPS = 400  # of a path between the first and the last time of a design


def omega_from_cv(percent: float) -> float:
    """Standard deviation of eta for a coefficient of variation: CV% = 100·sqrt(exp(omega²) − 1).

    Raises:
        ValueError: not a number from 0 on.
    """
    if not 0 <= percent < np.inf:
        raise ValueError(f"cv must be 0 or above, in percent; not {percent}")
    return float(np.sqrt(np.log1p((percent / 100) ** 2)))


@dataclass(frozen=True)
class PopulationPrior:
    """Which populations there may be: each number of one lies log-uniformly within a factor of its centre::

        typical = centre · factor^u,  u ~ U(−1, 1), and likewise every omega; one u for all of the residual error

    Args:
        typical: factor of typical values.
        omega: factor of the standard deviations of eta.
        error: factor of the standard deviations of the residual error.

    Raises:
        ValueError: a factor below 1.
    """

    typical: float = 1.0
    omega: float = 1.0
    error: float = 1.0

    def __post_init__(self) -> None:
        if not all(1 <= factor < np.inf for factor in (self.typical, self.omega, self.error)):
            raise ValueError(f"the factors of a prior over populations are 1 or more, got {self}")

    def draw(self, seed: int, index: Tensor, parameters: int) -> tuple[Tensor, Tensor, Tensor]:
        """A population for every subject, as factors of the centre: of typical values and of omega, both
        ``[subject, parameter]``, and of the residual error, ``[subject, 1]``."""
        u = 2.0 * randomness.uniform(seed, Stream.POPULATION, index, 2 * parameters + 1) - 1.0
        typical, omega, error = u[:, :parameters], u[:, parameters:-1], u[:, -1:]
        return self.typical**typical, self.omega**omega, self.error**error


@dataclass(frozen=True)
class Population:
    """Distribution of the simulated subjects: theta_ik = h(h^-1(typical) + Σ effect(covariates_i) + eta_i + kappa_ik).

    eta_i ~ N(0, Omega), and on each occasion k of a subject kappa_ik ~ N(0, kappa²); with h = exp, the default,
    theta_ik = typical · exp(eta_i + kappa_ik) · factors of the covariates.

    Args:
        typical: typical value of every parameter of the dynamics, by name.
        omega: standard deviation of eta by name (parameters left out do not vary), or the full covariance matrix
            in the order of `typical`.
        covariates: name to (low, high), drawn uniformly; or to a probability, drawn 0 or 1.
        effects: (parameter, covariate) to the exponent of (c/reference), or for a 0-or-1 covariate the logarithm of
            its factor; or to a `CovariateEffect`.
        references: reference value of each continuous covariate; default the middle of its range.
        prior: draws a population for every subject, around the one that the other arguments describe.
        distributions: by parameter; those left out are log-normal.
        kappa: standard deviation of kappa by name; parameters left out are the same on all occasions of a subject.

    Raises:
        ValueError: a typical value outside its distribution, a name that does not exist, an Omega that is not a
            covariance matrix.
    """

    typical: Mapping[str, float]
    omega: Mapping[str, float] | Sequence[Sequence[float]] = field(default_factory=dict)
    covariates: Mapping[str, tuple[float, float] | float] = field(default_factory=dict)
    effects: Mapping[tuple[str, str], float | CovariateEffect] = field(default_factory=dict)
    references: Mapping[str, float] = field(default_factory=dict)
    prior: PopulationPrior = PopulationPrior()
    distributions: Mapping[str, ParameterDistribution] = field(default_factory=dict)
    kappa: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in self.typical.items():
            kind = self._distribution(name)
            if not bool(torch.isfinite(kind.inverse(torch.tensor(float(value), dtype=torch.float64)))):
                raise ValueError(f"typical.{name} must be {kind.support} ({type(kind).__name__}), not {value}")
        named = set(self.omega) if isinstance(self.omega, Mapping) else set()
        named |= {*self.distributions, *self.kappa, *(parameter for parameter, _ in self.effects)}
        unknown = named - set(self.typical)
        unknown |= {c for _, c in self.effects} - set(self.covariates)
        if unknown:
            raise ValueError(f"{sorted(unknown)} are neither parameters {list(self.typical)} nor covariates")
        for option, spread in (("omega", self.omega), ("kappa", self.kappa)):
            for name, value in spread.items() if isinstance(spread, Mapping) else ():
                if not 0 <= value < np.inf:
                    raise ValueError(f"{option}.{name} must be 0 or above, not {value}")
        for name, law in self.covariates.items():
            between = isinstance(law, Sequence)
            if not (len(law) == 2 and -np.inf < law[0] <= law[1] < np.inf if between else 0 <= law <= 1):  # type: ignore[arg-type,index,operator]
                raise ValueError(f"covariates.{name} is [low, high], or the probability of a 1; not {law}")
        self.cholesky()

    def cholesky(self) -> Tensor:
        """Lower factor L of Omega = L·Lᵀ, ``[parameter, parameter]``, float64."""
        if isinstance(self.omega, Mapping):
            return torch.diag(torch.tensor([self.omega.get(name, 0.0) for name in self.typical], dtype=torch.float64))
        matrix = torch.tensor(self.omega, dtype=torch.float64)
        if matrix.shape != (len(self.typical),) * 2 or not torch.equal(matrix, matrix.T):
            raise ValueError(f"a full Omega is a symmetric {len(self.typical)} × {len(self.typical)} matrix")
        factor: Tensor
        factor, bad = torch.linalg.cholesky_ex(matrix)
        if int(bad):
            raise ValueError(f"Omega is not positive definite: {self.omega}")
        return factor

    def draw_covariates(self, seed: int, index: Tensor) -> dict[str, Tensor]:
        """Covariates of subjects by name, each ``[subject]``."""
        uniform = randomness.uniform(seed, Stream.COVARIATES, index, max(len(self.covariates), 1))
        drawn = {}
        for (name, law), u in zip(self.covariates.items(), uniform.unbind(1), strict=False):
            drawn[name] = law[0] + (law[1] - law[0]) * u if isinstance(law, Sequence) else (u < law).double()
        return drawn

    def _distribution(self, parameter: str) -> ParameterDistribution:
        return self.distributions.get(parameter) or LogNormal()

    def effect(self, parameter: str, covariate: str) -> CovariateEffect:
        """One of `effects` as an object."""
        effect = self.effects[parameter, covariate]
        if isinstance(effect, CovariateEffect):
            return effect
        law = self.covariates[covariate]
        middle = sum(law) / 2 if isinstance(law, Sequence) else None
        return power_or_factor(covariate, effect, self.references.get(covariate, middle))

    def draw(self, seed: int, index: Tensor, covariates: Mapping[str, Tensor]) -> Tensor:
        """Individual parameters without kappa, ``[subject, parameter]`` in the order of `typical`."""
        return self._transform(self._draw_unconstrained(seed, index, covariates))

    def draw_occasions(self, seed: int, index: Tensor, covariates: Mapping[str, Tensor], count: int) -> Tensor:
        """Individual parameters on some occasions of each subject, ``[subject, occasion, parameter]``."""
        x = self._draw_unconstrained(seed, index, covariates)[:, None]
        sd = x.new_tensor([self.kappa.get(name, 0.0) for name in self.typical])
        normal = randomness.normal(seed, Stream.KAPPA, index, count * len(sd)).reshape(len(index), count, -1)
        return self._transform(x + sd * normal)

    def _transform(self, x: Tensor) -> Tensor:
        """Parameters of those on the scale of h, both ``[..., parameter]``."""
        parts = zip(self.typical, x.unbind(-1), strict=True)
        return torch.stack([self._distribution(name).transform(part) for name, part in parts], dim=-1)

    def _draw_unconstrained(self, seed: int, index: Tensor, covariates: Mapping[str, Tensor]) -> Tensor:
        """Individual parameters on the scale of h without kappa, ``[subject, parameter]``."""
        factor, spread, _ = self.prior.draw(seed, index, len(self.typical))
        eta = spread * (randomness.normal(seed, Stream.ETA, index, len(self.typical)) @ self.cholesky().T)
        individual = []
        for k, (parameter, value) in enumerate(self.typical.items()):
            kind = self._distribution(parameter)
            x = kind.inverse(factor[:, k] * value) + (eta[:, k] if kind.varies else 0.0)
            for acting, covariate in self.effects:
                if acting == parameter:
                    effect = self.effect(parameter, covariate)
                    with torch.no_grad():
                        x = x + effect(torch.stack([covariates[name] for name in effect.covariates], dim=-1))
            individual.append(x)
        return torch.stack(individual, dim=1)


@dataclass(frozen=True)
class Design:
    """What is given and when it is looked at.

    Args:
        regimens: dose records of each arm; subject i is in arm i modulo their number. A subject of a study without
            doses has one arm, ``((),)``.
        times: candidate sampling times.
        samples: how many of them each subject keeps, at random; None keeps all. A pair (low, high) draws how many.
        continuous: draw `samples` times uniformly between the first and the last of `times` instead.
        jitter: standard deviation of the difference between planned and actual times.
        lloq: lower limit of quantification; values below are reported as censored at it. Several are those of several
            assays, one subject after the other.
        endpoints: endpoints observed at each time, counted from 1.
        grid: times of the true curve; default 200 from the first to the last candidate.
        occasions: time at which each occasion of a subject begins, numbered from 1; empty for one occasion. What comes
            before the first belongs to it.

    Raises:
        ValueError: no regimen or no time; more samples than candidates; times that decrease; a number out of range.
    """

    regimens: tuple[tuple[Dose, ...], ...]
    times: tuple[float, ...]
    samples: int | tuple[int, int] | None = None
    continuous: bool = False
    jitter: float = 0.0
    lloq: float | Sequence[float] | None = None
    endpoints: tuple[int, ...] = (1,)
    grid: tuple[float, ...] = ()
    occasions: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.regimens or not self.times:
            raise ValueError("a design needs at least one regimen (it may be empty) and one sampling time")
        most = self.samples[1] if isinstance(self.samples, Sequence) else self.samples
        if most is not None and not self.continuous and not 0 <= most <= len(self.times):
            raise ValueError(f"{most} samples from {len(self.times)} candidate times")
        least = self.samples[0] if isinstance(self.samples, Sequence) else self.samples
        if most is not None and least is not None and not 0 <= least <= most:
            raise ValueError(f"samples is a number from 0 on, or [low, high]; not {self.samples}")
        for name, times in (("times", self.times), ("grid", self.grid)):
            if not np.isfinite(times).all() or any(b < a for a, b in pairwise(times)):
                raise ValueError(f"{name} must be finite and increase, not {list(times)[:10]}")
        if not np.isfinite(self.occasions).all() or any(b <= a for a, b in pairwise(self.occasions)):
            raise ValueError(f"occasions must be finite and each later than the one before, not {self.occasions}")
        if not 0 <= self.jitter < np.inf:
            raise ValueError(f"jitter, a standard deviation, must be 0 or above, not {self.jitter}")
        if any(not 0 < limit < np.inf for limit in self.limits):
            raise ValueError(f"lloq must be above 0, not {self.lloq}")

    @property
    def limits(self) -> tuple[float, ...]:
        """Lower limits of quantification; empty for none."""
        if self.lloq is None:
            return ()
        return tuple(self.lloq) if isinstance(self.lloq, Sequence) else (self.lloq,)

    def labelled_occasions(self) -> tuple[Occasion, ...]:
        """The occasions as a subject has them."""
        return tuple(Occasion(start, str(k)) for k, start in enumerate(self.occasions, start=1))

    def true_times(self) -> FloatArray:
        """Times at which the true curve is kept, ``[grid]``."""
        return np.asarray(self.grid or np.linspace(min(self.times), max(self.times), 200), float)

    def draw_times(self, seed: int, index: Tensor) -> tuple[Tensor, Tensor]:
        """Sampling times of each subject, sorted, and which of them are there: both ``[subject, sample]``.

        Those that are not stand last and repeat the last that is.
        """
        candidates = torch.tensor(sorted(self.times), dtype=torch.float64)
        low, high = self.samples if isinstance(self.samples, Sequence) else (self.samples, self.samples)
        u = randomness.uniform(seed, Stream.TIMES, index, 1 + max(high or 0, len(candidates)))
        if low is None or high is None:
            count = torch.full_like(index, len(candidates))
        else:
            count = low + (u[:, 0] * (high - low + 1)).long()
        if self.continuous:
            times = candidates[0] + (candidates[-1] - candidates[0]) * u[:, 1:]
            there = torch.arange(times.shape[1]) < count[:, None]
        else:
            shift = randomness.normal(seed, Stream.JITTER, index, len(candidates)) * self.jitter
            # jitter does not move a sample before the study, which may begin before time 0
            times = (candidates + shift).clamp(min=min(0.0, float(candidates[0])))
            there = u[:, 1 : 1 + len(candidates)].argsort(1).argsort(1) < count[:, None]
        times = torch.where(there, times, torch.inf).sort(1).values[:, : max(int(count.max()), 1)]
        there = torch.arange(times.shape[1]) < count[:, None]
        last = times.gather(1, (count - 1).clamp(min=0)[:, None])
        return torch.where(there, times, last), there


def simulate_batches(
    dynamics: Dynamics,
    population: Population,
    design: Design,
    error: ResidualError,
    subjects: int,
    seed: int,
    size: int = 10_000,
    line: bool = False,
) -> Iterator[CohortBatch]:
    """Simulate a cohort of any number of subjects, `size` at a time: what has been used need not be kept.

    The subjects are those of `simulate_cohort`, with their true parameters, and with their true curves if `line`.

    Raises:
        ValueError: the population's parameters are not those of the dynamics.
        neuralpk.solve.SolveError: a subject that cannot be solved, by name.
    """
    for first in range(0, subjects, size):
        index = torch.arange(first, min(first + size, subjects))
        yield simulate_subjects(dynamics, population, design, error, index, seed, line)


def simulate_subjects(
    dynamics: Dynamics,
    population: Population,
    design: Design,
    error: ResidualError,
    index: Tensor,
    seed: int,
    line: bool = False,
) -> CohortBatch:
    """Simulate some subjects of a cohort, each the one that it is in the whole cohort.

    Args:
        dynamics: of the states.
        population: that they come from.
        design: their doses and sampling times.
        error: the residual error.
        index: numbers of the subjects in the cohort, from 0, ``[subject]``.
        seed: of the cohort.
        line: with their true curves.

    Raises:
        ValueError: the population's parameters are not those of the dynamics.
        neuralpk.solve.SolveError: a subject that cannot be solved, by name.
    """
    names = dynamics.population_names
    if set(population.typical) != set(names):
        raise ValueError(f"the dynamics has {names}, the population {tuple(population.typical)}")
    if not set(dynamics.covariates) <= set(population.covariates):
        raise ValueError(
            f"the dynamics reads {tuple(dynamics.covariates)}, the population has {(*population.covariates,)}"
        )
    dynamics, error = copy.deepcopy(dynamics).double(), copy.deepcopy(error).double()  # the caller's stay as they are
    nothing = np.empty(0)
    if population.kappa and not design.occasions:
        raise ValueError(
            f"kappa ({', '.join(population.kappa)}) needs a design with occasions: the times they begin at"
        )
    templates = [Subject(str(k), nothing, nothing, doses) for k, doses in enumerate(design.regimens)]
    arms = collate(templates, dtype=torch.float64)
    order = [list(population.typical).index(name) for name in names]
    read = [dynamics.endpoints[k] for k in outputs_read(error, len(dynamics.endpoints))]
    covariates = population.draw_covariates(seed, index)
    without_kappa = dynamics.with_covariates(population.draw(seed, index, covariates)[:, order], covariates)
    batch = _planned(design, arms, index, covariates, *design.draw_times(seed, index))
    theta = without_kappa[:, None]
    if population.kappa:
        theta = population.draw_occasions(seed, index, covariates, len(design.occasions))[..., order]
        columns = {name: value[:, None].expand(theta.shape[:2]) for name, value in covariates.items()}
        theta = dynamics.with_covariates(theta, columns)
    observed, curve = _without_error(dynamics, theta, batch, design, read, seed, line)
    by_name = dynamics.named(without_kappa)
    truth = TruthBatch(*curve, {name: by_name[name] for name in names} | dynamics.derived(without_kappa))
    *_, noisier = population.prior.draw(seed, index, len(population.typical))
    noise = noisier * randomness.normal(seed, Stream.RESIDUAL, index, observed.shape[1])
    values = torch.where(batch.mask, error.simulate(observed, batch.endpoint, noise), 0.0)
    limits = torch.tensor(design.limits or (-torch.inf,), dtype=values.dtype)
    limit = limits[index % len(limits)][:, None]
    below = batch.mask & (values < limit)
    values = torch.where(below, limit, values)
    return dataclasses.replace(batch, value=values, censored=below.long(), truth=truth)


def simulate_cohort(
    dynamics: Dynamics,
    population: Population,
    design: Design,
    error: ResidualError,
    subjects: int,
    seed: int,
    units: Units | None = None,
) -> Cohort:
    """Simulate a cohort with its truth. The same arguments give the same cohort, and subject i of a small cohort is
    subject i of a larger one.

    Raises:
        ValueError: the population's parameters are not those of the dynamics.
        neuralpk.solve.SolveError: a subject that cannot be solved, by name.
    """
    batches = simulate_batches(dynamics, population, design, error, subjects, seed, line=True)
    people = [subject for batch in batches for subject in subjects_of(batch, population, design)]
    return Cohort(tuple(people), units or Units())


def _planned(
    design: Design, arms: CohortBatch, index: Tensor, covariates: Mapping[str, Tensor], times: Tensor, there: Tensor
) -> CohortBatch:
    """The subjects before anything was measured: those of `arms` in turn, with their own times and covariates."""
    of = index % len(arms)
    first_dose = torch.where(arms.doses.mask, arms.doses.time, torch.inf).amin(1) if arms.doses.mask.shape[1] else None
    start = times[:, 0] if first_dose is None else torch.minimum(times[:, 0], first_dose[of])
    start = torch.where(torch.isfinite(start), start, 0.0)
    times = torch.where(torch.isfinite(times), times, start[:, None])
    endpoints = len(design.endpoints)
    times, mask = times.repeat_interleave(endpoints, dim=1), there.repeat_interleave(endpoints, dim=1)
    whole = torch.zeros_like(times, dtype=torch.int64)
    values = [covariates[name] for name in sorted(covariates)]
    occasions = max(1, len(design.occasions))
    begin = start[:, None] if not design.occasions else times.new_tensor(design.occasions).expand(len(index), -1)
    begin = torch.cat([start[:, None], torch.maximum(begin, start[:, None])[:, 1:]], dim=1)
    number = torch.arange(occasions).expand(len(index), -1)
    return dataclasses.replace(
        arms.select(of),
        ids=tuple(str(i + 1) for i in index.tolist()),
        index=index,
        start=start,
        time=times,
        value=torch.zeros_like(times),
        limit=torch.full_like(times, torch.inf),
        compartment=whole - 1,
        endpoint=whole + torch.tensor(design.endpoints).repeat(there.shape[1]) - 1,
        censored=whole,
        row=whole + max((dose.row for doses in design.regimens for dose in doses), default=0) + 1,
        mask=mask,
        observed=mask,
        context=mask,
        target=mask,
        covariates=(torch.stack(values, dim=1)[:, None] if values else times.new_zeros((len(index), 1, 0))).expand(
            -1, occasions, -1
        ),
        period_start=begin,
        period_row=torch.full_like(number, BEFORE_ANY_RECORD),
        occasion=number,
        occasions=torch.ones_like(number, dtype=torch.bool),
    )


def _without_error(
    dynamics: Dynamics, theta: Tensor, batch: CohortBatch, design: Design, states: list[int], seed: int, line: bool
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """What every sample would read without error, ``[subject, observation]``, and the times and values of the true
    curve; `states` are those that the endpoints read."""
    grid = torch.as_tensor(design.true_times() if line else design.true_times()[:0]).expand(len(batch), -1)
    with torch.no_grad():
        times = torch.cat([batch.time, torch.maximum(grid, batch.start[:, None])], dim=1)
        solution = _solved(dynamics, theta, batch, times, design, seed)
        read = dynamics.observe(solution.states, solution.theta)
    n = batch.time.shape[1]
    state = torch.tensor(states)[batch.endpoint]
    observed = read[:, :n].gather(2, state[..., None])[..., 0]
    lines = read[:, n:][..., [states[e - 1] for e in sorted(set(design.endpoints))]]
    return observed, (grid, lines)


def _solved(
    dynamics: Dynamics, theta: Tensor, batch: CohortBatch, times: Tensor, design: Design, seed: int
) -> Trajectory:
    if isinstance(dynamics, StochasticDynamics):
        planned = design.true_times()
        engine = TorchSDE(float(planned[-1] - planned[0]) / _STEPS)
        solution: Trajectory = solve_paths(dynamics, theta, batch, times, engine, Noise(seed, Stream.PATH))
    else:
        precise = Exact() if dynamics.linear else TorchDiffEq(rtol=1e-8, atol=1e-10)
        solution = precise.solve(dynamics, theta, batch, times)
    solution.check(batch.ids)
    return solution


def subjects_of(batch: CohortBatch, population: Population, design: Design) -> Iterator[Subject]:
    """The subjects of a simulated batch one by one, as the laboratory reports them."""
    known, covariates = cast(TruthBatch, batch.truth), sorted(population.covariates)
    parameters = {name: value.tolist() for name, value in known.parameters.items()}
    for i, key in enumerate(batch.index.tolist()):
        seen = batch.mask[i]
        yield Subject(
            id=batch.ids[i],
            times=batch.time[i, seen].numpy(),
            values=batch.value[i, seen].numpy(),
            doses=design.regimens[key % len(design.regimens)],
            endpoints=batch.endpoint[i, seen].numpy() + 1,
            censored=batch.censored[i, seen].numpy(),
            covariates=dict(zip(covariates, batch.covariates[i, 0].tolist(), strict=True)),
            truth=Truth(known.times[i].numpy(), known.line[i].numpy(), {k: v[i] for k, v in parameters.items()}),
            occasions=design.labelled_occasions(),
        )
