"""Individual (post hoc) estimates: every patient's concentration curve and parameters with intervals, from the data."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from neuralpk import randomness
from neuralpk.atomic_files import replacing
from neuralpk.cohort import Cohort, FloatArray, Subject, written_out
from neuralpk.cohort_batch import CohortBatch, collate
from neuralpk.dataclass_rows import put
from neuralpk.dynamics import Dynamics
from neuralpk.encoders import Encoder, Posterior
from neuralpk.individual_exposure import exposure
from neuralpk.inference import importance
from neuralpk.inference.map import TRIED, maxima, maximise
from neuralpk.inference.quantiles import interval
from neuralpk.inference.uncertainty_draws import drawn_models
from neuralpk.population_model import PopulationModel
from neuralpk.randomness import Stream
from neuralpk.record_predictions import records
from neuralpk.solve import Noise, SolveError, Status
from neuralpk.value_checks import bearable, warn_of_far_values

if TYPE_CHECKING:
    from neuralpk.path_guide import PathGuide

_SOLVED_AT_ONCE = 20_000  # subjects × draws: bounds the memory
_POINTS = 200  # of a curve, evenly
_JUST_BEFORE = 1e-5  # of the length of a curve
_USUAL_TIMES = 300  # of a curve; with more, fewer subjects are solved at once
_DRAWN_PER_KEPT = 5  # weighted draws for each one that is kept
_NEARBY_STEPS = 2  # from the maximum under one draw of the population to that under another
_MOST_FAILED = 0.1  # of the draws of the population, which may fail to give a subject's curves


TABLES = ("curves.csv", "individuals.csv", "records.csv", "exposure.csv")
"""Files of `IndividualEstimates.write`."""

OCCASION_TABLE = "occasions.csv"
"""Further file of a population with variability between occasions."""


@dataclass(frozen=True)
class EstimateSource:
    """What individual estimates were made by.

    Args:
        model: the population model.
        batch: the subjects, as the model reads them.
        cohort: the same.
        z: estimate of z, ``[subject, latent]``; NaN for a subject that could not be solved.
        guide: of a stochastic dynamics.
        has_error: whether the model has a residual error.
    """

    model: PopulationModel
    batch: CohortBatch
    cohort: Cohort
    z: Tensor
    guide: PathGuide | None
    has_error: bool


@dataclass(frozen=True)
class IndividualEstimates:
    """Estimates of each subject of a cohort.

    Args:
        ids: identifiers.
        times: times of the curves, ``[subject, time]``; as many as the subject with most has, padded by the last time.
        pred: population prediction, z = 0, ``[subject, time, endpoint]``.
        ipred: individual prediction, z at its estimate, ``[subject, time, endpoint]``.
        lower: lower end of the 90 % interval of the noise-free curve, over draws of z; NaN where there is none.
        upper: upper end.
        parameters: name to (estimate, lower end, upper end), each ``[subject]``, without kappa. The most probable value
            of a very skewed distribution can lie outside the middle 90 %; the interval then reaches as far as the
            estimate.
        z: estimate of z, ``[subject, latent]``.
        source: what they were estimated by, for `records` and `exposure`.
        unsolved: why some subjects have NaN instead of estimates, one sentence each with the name; empty for none.
        occasion_labels: occasions of each subject; empty for a population without variability between occasions.
        occasion_parameters: as `parameters`, on every occasion, each ``[subject, occasion]``.
    """

    ids: tuple[str, ...]
    times: FloatArray
    pred: FloatArray
    ipred: FloatArray
    lower: FloatArray
    upper: FloatArray
    parameters: dict[str, tuple[FloatArray, FloatArray, FloatArray]]
    z: FloatArray
    source: EstimateSource = field(repr=False)
    unsolved: tuple[str, ...] = ()
    occasion_labels: tuple[tuple[str, ...], ...] = ()
    occasion_parameters: dict[str, tuple[FloatArray, FloatArray, FloatArray]] = field(default_factory=dict)

    def curves(self) -> pd.DataFrame:
        """ID, TIME, PRED, IPRED, LO90, HI90, one row a time; with several endpoints also DVID."""
        n, width, endpoints = self.ipred.shape
        kept = np.ones((n, width), bool)
        kept[:, 1:] = np.diff(self.times, axis=1) > 0
        where = np.nonzero(np.repeat(kept[..., None], endpoints, axis=2))
        frame = pd.DataFrame({"ID": np.asarray(self.ids)[where[0]], "TIME": self.times[where[0], where[1]]})
        if endpoints > 1:
            frame["DVID"] = where[2] + 1
        for name in ("pred", "ipred", "lower", "upper"):
            frame[{"lower": "LO90", "upper": "HI90"}.get(name, name.upper())] = getattr(self, name)[where]
        return frame

    def records(self) -> pd.DataFrame:
        """The table of records: ID, TIME, DVID, DV, PRED, IPRED, IRES, IWRES, TAD, … and the covariates
        (`neuralpk.record_predictions.records`)."""
        model, batch, z = self.source.model, self.source.batch, self.source.z
        solved = ~z.isnan().any(1)
        found = model.predict(torch.where(solved[:, None], z, 0.0), batch, self.source.guide)
        found = replace(found, value=found.value.detach().masked_fill(~solved[:, None], torch.nan))
        return records(model, batch, found, self.source.has_error)

    def exposure(self) -> pd.DataFrame:
        """AUC, CMAX, TMAX and CMIN of each patient, from the first to the last record and by dosing interval
        (`neuralpk.individual_exposure.exposure`)."""
        # in double precision the value just before a dose is not that after it
        model, cohort = copy.deepcopy(self.source.model).double(), self.source.cohort
        guide = None if self.source.guide is None else copy.deepcopy(self.source.guide).double()
        return exposure(model, evaluation_batch(model, cohort), cohort, self.source.z.double(), guide)

    def write(self, folder: str | Path) -> list[Path]:
        """Write `TABLES` into a folder, with variability between occasions also `OCCASION_TABLE`.

        Returns:
            Their paths.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        makers = [self.curves, self.individuals, self.records, self.exposure]
        tables = dict(zip(TABLES, makers, strict=True))
        if self.occasion_labels:
            tables[OCCASION_TABLE] = self.occasions
        paths = [folder / name for name in tables]
        for path, make in zip(paths, tables.values(), strict=True):
            frame = make()
            with replacing(path) as part:
                frame.to_csv(part, index=False)
        return paths

    def individuals(self) -> pd.DataFrame:
        """ID, then every parameter with its 90 % interval (``CL, CL_LO90, CL_HI90``): those of the dynamics, those
        derived from them, THALF (terminal half-life, of linear compartments) and the random effects ETA_CL, …"""
        frame: dict[str, Any] = {"ID": np.asarray(self.ids)}
        return pd.DataFrame(frame | _with_ends(self.parameters))

    def occasions(self) -> pd.DataFrame:
        """ID, OCC, then every parameter on that occasion and the random effects KAPPA_CL, … with their 90 % intervals;
        no row for a population without variability between occasions."""
        rows = [(subject, k) for subject, labels in enumerate(self.occasion_labels) for k in range(len(labels))]
        subject, occasion = np.array(rows, dtype=int).reshape(-1, 2).T
        labels = [self.occasion_labels[i][k] for i, k in rows]
        frame: dict[str, Any] = {"ID": np.asarray(self.ids)[subject], "OCC": np.asarray(labels, dtype=object)}
        values = _with_ends(self.occasion_parameters)
        return pd.DataFrame(frame | {name: value[subject, occasion] for name, value in values.items()})


def _with_ends(parameters: Mapping[str, tuple[FloatArray, FloatArray, FloatArray]]) -> dict[str, FloatArray]:
    """Columns of parameters and of the ends of their intervals."""
    frame: dict[str, FloatArray] = {}
    for name, (estimate, lower, upper) in parameters.items():
        frame |= {name: estimate, f"{name}_LO90": lower, f"{name}_HI90": upper}
    return frame


@dataclass(frozen=True)
class PosteriorDraws:
    """Draws of z of the subjects of a cohort from their posterior.

    Args:
        batch: the subjects.
        models: the population model under each draw of its own parameters; one where those are certain or not computed.
        z: by model, ``[subject, sample, latent]``; NaN for a subject that has density 0 under that model.
        estimate: z of the individual estimate, ``[subject, latent]``.
    """

    batch: CohortBatch
    models: list[PopulationModel]
    z: list[Tensor]
    estimate: Tensor

    def flat(self) -> Iterator[tuple[PopulationModel, Tensor, CohortBatch]]:
        """Each model with its draws, ``[subject · sample, latent]``, and the subjects repeated as many times, for
        `PopulationModel.trajectory` and `PopulationModel.individual_parameters`."""
        for model, z in zip(self.models, self.z, strict=True):
            yield model, z.flatten(0, 1), self.batch.repeat(z.shape[1])


def evaluation_batch(
    model: PopulationModel,
    cohort: Cohort,
    context: int | None = None,
    encoder: Encoder | None = None,
    first_index: int = 0,
) -> CohortBatch:
    """A cohort as one batch for a model, in its precision and on its device, read as the model states
    (`PopulationModel.read_cohort`).

    Args:
        model: whose covariates are kept.
        cohort: the patients.
        context: how many of each patient's first observations are read; None for all.
        encoder: that reads the batch, with all covariates of the training data.
        first_index: number of patients before these in a table of which they are a part; every patient's random
            numbers are then those in the whole table.

    Raises:
        ValueError: covariates that the model needs and the cohort lacks.
    """
    assert model.scaling is not None
    cohort, names = model.read_cohort(cohort), sorted(model.scaling.covariates)
    absent = dict.fromkeys({*model.idle_covariates(encoder is not None)} - {*cohort.covariate_names}, math.nan)
    if absent:
        subjects = (replace(subject, covariates={**subject.covariates, **absent}) for subject in cohort)
        cohort = replace(cohort, subjects=tuple(subjects))
    if not set(names) <= set(cohort.covariate_names):
        raise ValueError(f"the model needs the covariates {names}; the data have {list(cohort.covariate_names)}")
    index = range(first_index, first_index + len(cohort))
    batch = collate(cohort.with_covariates(names), index, model.value_scale.dtype).to(model.value_scale.device)
    return batch.first_seen(context)


@torch.no_grad()
def estimate_individuals(
    model: PopulationModel,
    cohort: Cohort,
    times: Sequence[float] | None = None,
    *,
    encoder: Encoder | None = None,
    guide: PathGuide | None = None,
    draws: int = 200,
    context: int | None = None,
    seed: int = 0,
    map: bool = True,
    population_known: bool = False,
    has_error: bool = True,
    first_index: int = 0,
    progress: Callable[[Sequence[Tensor]], Iterable[Tensor]] = iter,
) -> IndividualEstimates:
    """Estimate the patients of a cohort.

    With `map`, z is the maximum a posteriori (MAP, empirical Bayes estimate), found through the solver from the mean of
    the encoder or, without one, from the typical patient; intervals come from draws around it, weighted by importance,
    over the draws of the population's parameters. Without `map`, z is the mean of the encoder's q and intervals come
    from draws of q.

    Args:
        model: the population model.
        cohort: the patients; their true curves, where there are any, are not read.
        times: times of the curves, on the clock of the data; default 200 times over each patient's records, and the
            records themselves, the doses, the ends of infusions and the moments before each dose.
        encoder: of a trained task; None for none.
        guide: of a stochastic dynamics.
        draws: draws of z for the 90 % intervals; 0 for no intervals.
        context: how many of each patient's first observations are read; None for all.
        seed: of the draws.
        map: whether the MAP is searched.
        population_known: intervals given the population as it stands, without its own uncertainty.
        has_error: whether the model has a residual error; without one there are no weighted residuals.
        first_index: number of patients before these in a table of which they are a part (`evaluation_batch`).
        progress: wraps the iterable of parts of the cohort, for example in a progress bar.

    Raises:
        ValueError: covariates other than those the model was trained with; fewer than 0 draws; a MAP of a dynamics with
            noise.
        neuralpk.solve.SolveError: no patient could be solved. One that cannot be solved takes nothing from the others:
            it has NaN, and a warning names it.
    """
    draws = _possible_draws(model, draws, map, population_known)
    if map or draws:
        cohort = bearable(model, cohort)
    batch = evaluation_batch(model, cohort, context, encoder, first_index)
    wanted = torch.as_tensor(_stacked([_curve_times(s, times) for s in cohort]))
    grid = (wanted - batch.on_data_clock(wanted.new_zeros((len(batch), 1)))).to(batch.time)
    models = [model] if population_known or not map or not draws else drawn_models(model)
    estimates, intervals = [], []
    status = torch.zeros(len(batch), dtype=torch.long, device=batch.device)
    for part in progress(_parts(batch, draws, wanted.shape[1])):
        subjects = batch.select(part)
        z, drawn = _estimated(model, models, encoder, subjects, draws, seed, map)
        estimates.append(z)
        if draws:
            ends, of_part = _intervals(models, guide, drawn, subjects, grid[part], seed)
            intervals.append(ends)
            status[part] = of_part
    z = torch.cat(estimates)
    if map:
        warn_of_far_values(model, batch, z)
    curves = []
    for at, seen in ((model.typical(len(batch)), batch.unseen()), (z, batch)):
        trajectory = model.trajectory(at, seen, grid, guide)
        if not bool(trajectory.ok.any()):
            trajectory.check(batch.ids)
        curves.append(model.observe(trajectory))
        status = torch.where(trajectory.ok, status, trajectory.status)
    unsolved, said = status != Status.OK, _sentences(status, batch.ids)
    if bool(unsolved.all()):
        raise SolveError(f"{len(batch)} of {len(batch)} subjects not solved: {'; '.join(said[:10])}")
    pred, ipred = (curve.masked_fill(unsolved[:, None, None], torch.nan) for curve in curves)
    z = z.masked_fill(unsolved[:, None], torch.nan)
    parameters = {key: value.clone() for key, value in _parameters(model, z, batch).items()}
    for value in parameters.values():
        value[unsolved] = torch.nan
    if said:
        more = f" (+{len(said) - 10} more)" if len(said) > 10 else ""
        warnings.warn("; ".join(said[:10]) + more, stacklevel=2)
    if draws:
        lower, upper = torch.cat([ends for ends, _ in intervals], dim=1).masked_fill(unsolved[:, None, None], torch.nan)
        between = {key: torch.cat([ends[key] for _, ends in intervals], dim=1) for key in parameters}
        between = {key: _reaching(parameters[key], ends, batch.ids, key[0]) for key, ends in between.items()}
    else:
        lower = upper = torch.full_like(ipred, torch.nan)
        between = {key: torch.full((2, *value.shape), torch.nan) for key, value in parameters.items()}
    rows = {k: (_numpy(v), _numpy(between[k][0]), _numpy(between[k][1])) for k, v in parameters.items()}
    has_occasions = bool(model.population.changing)
    return IndividualEstimates(
        ids=batch.ids,
        times=_numpy(wanted),
        pred=_numpy(pred),
        ipred=_numpy(ipred),
        lower=_numpy(lower),
        upper=_numpy(upper),
        parameters={name: row for (name, on_occasion), row in rows.items() if not on_occasion},
        z=_numpy(z),
        source=EstimateSource(model, batch, cohort, z, guide, has_error),
        unsolved=said,
        occasion_labels=tuple(subject.occasion_labels for subject in cohort) if has_occasions else (),
        occasion_parameters={name: row for (name, on_occasion), row in rows.items() if on_occasion},
    )


@torch.no_grad()
def draw_individuals(
    model: PopulationModel,
    cohort: Cohort,
    draws: int = 200,
    *,
    encoder: Encoder | None = None,
    context: int | None = None,
    seed: int = 0,
    map: bool = True,
    population_known: bool = False,
) -> PosteriorDraws:
    """Draw the parameters of the patients of a cohort from their posterior, as the intervals of `estimate_individuals`
    do; arguments as there. A patient without samples is drawn from the population.

    Raises:
        ValueError: as `estimate_individuals`; fewer than 1 draw; draws that cannot be made.
    """
    if draws < 1 or not _possible_draws(model, draws, map, population_known):
        raise ValueError(f"draws must be 1 or more, of a population whose uncertainty was computed; got {draws}")
    batch = evaluation_batch(model, bearable(model, cohort), context, encoder)
    models = [model] if population_known or not map else drawn_models(model)
    found = [_estimated(model, models, encoder, batch.select(part), draws, seed, map) for part in _parts(batch, draws)]
    by_model = [torch.cat([drawn[k] for _, drawn in found]) for k in range(len(models))]
    return PosteriorDraws(batch, models, by_model, torch.cat([z for z, _ in found]))


def _parts(batch: CohortBatch, draws: int, times: int = 0) -> tuple[Tensor, ...]:
    """Positions of the subjects that are solved together, at so many times."""
    # what is solved at once is the draws before they are resampled or, in the search, the points that are tried
    count = max(draws, TRIED // _DRAWN_PER_KEPT) * max(1, times // _USUAL_TIMES)
    together = max(1, _SOLVED_AT_ONCE // count)
    return torch.split(torch.arange(len(batch), device=batch.device), together)


def _estimated(
    model: PopulationModel,
    models: list[PopulationModel],
    encoder: Encoder | None,
    batch: CohortBatch,
    draws: int,
    seed: int,
    map: bool,
) -> tuple[Tensor, list[Tensor]]:
    """Estimate of z, ``[subject, latent]``, and its draws under every model, ``[subject, sample, latent]``; none for 0
    draws."""
    q = _posterior(model, encoder, batch)
    z, other = _map(model, batch, q.mean) if map else (q.mean, q.mean)
    if not draws:
        return z, []
    count = -(-draws // len(models))
    return z, [
        _draws(one, batch, q, (z, other), count, seed, Stream.INTERVALS.at(k), map) for k, one in enumerate(models)
    ]


def _parameters(model: PopulationModel, z: Tensor, batch: CohortBatch) -> dict[tuple[str, bool], Tensor]:
    """Individual parameters by name and whether they are those of every occasion, ``[subject, occasion]``, or those
    without kappa, ``[subject]``."""
    found = {(name, False): value for name, value in _quantities(model, z, batch).items()}
    if model.population.changing:
        kappa = torch.where(batch.occasions[..., None], model.population.kappa(z), torch.nan).unbind(-1)
        on_occasions = model.occasion_parameters(z, batch)
        on_occasions |= {f"KAPPA_{name}": one for name, one in zip(model.population.changing, kappa, strict=True)}
        found |= {(name, True): value for name, value in on_occasions.items()}
    return found


def _possible_draws(model: PopulationModel, draws: int, map: bool, population_known: bool) -> int:
    """How many of the draws that are asked for can be made: none, with a warning, where an interval would be too
    narrow."""
    if draws < 0:
        raise ValueError(f"draws must be 0 or more, not {draws}")
    if map and not model.has_likelihood:
        raise ValueError(
            f"{type(model.dynamics).__name__} has noise: p(y | z) is an integral over all its paths, so that "
            "no MAP can be searched through the solver; use map=False"
        )
    if map and draws and model.is_uncertain and not model.has_parameter_draws and not population_known:
        warnings.warn(
            "uncertainty not computed: how well the population is known was not computed for these weights (a fit that "
            "was interrupted, or a checkpoint saved before its end), and intervals without it would be too narrow, so "
            "there are none. Compute it with task.covariance_step(training cohort), or ask for intervals given the "
            "population (population_known=True)",
            stacklevel=3,
        )
        return 0
    return draws


def _sentences(status: Tensor, ids: Sequence[str]) -> tuple[str, ...]:
    """Which subjects could not be solved, and why."""
    return tuple(
        f"subject {ids[k]} could not be solved ({Status(int(status[k])).name.lower()}): look at its doses and times"
        for k in status.nonzero()[:, 0].tolist()
    )


def _posterior(model: PopulationModel, encoder: Encoder | None, batch: CohortBatch) -> Posterior:
    if encoder is None:
        return Posterior.prior(len(batch), model.latents(batch).shape[1], batch.time)
    q: Posterior = encoder(batch)
    return q


def _map(model: PopulationModel, batch: CohortBatch, start: Tensor) -> tuple[Tensor, Tensor]:
    """MAP of z and the next maximum (`maxima`), each ``[subject, latent]``; subjects whose search did not converge are
    named in a warning."""
    mode, other = maxima(model, batch, start)
    if not bool(mode.converged.all()):
        names = [batch.ids[k] for k in (~mode.converged).nonzero()[:10, 0].tolist()]
        warnings.warn(
            f"subject {', '.join(names)}: the search for the most probable parameters did not converge; look at their "
            "doses, samples and units",
            stacklevel=3,
        )
    return mode.z, other


def _draws(
    model: PopulationModel,
    batch: CohortBatch,
    q: Posterior,
    centres: tuple[Tensor, Tensor],
    count: int,
    seed: int,
    stream: int,
    map: bool,
) -> Tensor:
    """Draws of z, ``[subject, sample, latent]``, with `map` around the maximum and the next one; NaN for a subject that
    has density 0 under this model."""
    z, other = centres
    size = z.shape[1]
    if not map:
        noise = randomness.normal(seed, stream, batch.index, count * size).to(z.dtype)
        amortised: Tensor = q.mean[:, None] + q.sd[:, None] * noise.reshape(len(batch), count, size)
        return amortised
    scored = batch.scored_on_context()
    noise = importance.noise(seed, stream, batch.index, _DRAWN_PER_KEPT * count, size, z.dtype)
    mode = second = maximise(model, scored, z, _NEARBY_STEPS)
    rows = (other != z).any(1).nonzero()[:, 0]
    if len(rows):
        second = put(mode, rows, maximise(model, scored.select(rows), other[rows], _NEARBY_STEPS))
    drawn = importance.draw_widely(model, scored, mode, second, noise)
    possible = torch.isfinite(drawn.log_weight).any(1)
    return torch.where(possible[:, None, None], drawn.resample(count), torch.nan)


def _intervals(
    models: list[PopulationModel],
    guide: PathGuide | None,
    drawn: list[Tensor],
    batch: CohortBatch,
    grid: Tensor,
    seed: int,
) -> tuple[tuple[Tensor, dict[tuple[str, bool], Tensor]], Tensor]:
    """90 % intervals of the curves and of the parameters over the draws of z under every model: first axis the two
    ends; and how the solution of each subject ended. A model under which a curve of a subject cannot be solved is left
    out for that subject; one with more than 10 % of such models counts as not solved."""
    curves, parameters, failed = [], [], torch.zeros(len(batch), device=batch.device)
    status = torch.zeros(len(batch), dtype=torch.long, device=batch.device)
    noise = Noise(seed, Stream.POSTERIOR_PATHS.at(0)) if models[0].dynamics.stochastic else None
    for model, z in zip(models, drawn, strict=True):
        kept = torch.isfinite(z).all(2).all(1).nonzero()[:, 0]
        repeated = batch.select(kept).repeat(z.shape[1])
        flat = z[kept].flatten(0, 1)
        trajectory = model.trajectory(flat, repeated, grid[kept].repeat_interleave(z.shape[1], dim=0), guide, noise)
        # without its failed draws alone an interval would be too narrow
        solved = trajectory.ok.reshape(len(kept), z.shape[1]).all(1)
        failed[kept[~solved]] += 1
        lost = failed[kept] > _MOST_FAILED * len(models)
        worst = trajectory.status.reshape(len(kept), z.shape[1]).amax(1).to(status)
        status[kept[lost]] = torch.maximum(status[kept], worst)[lost]
        rows = solved.repeat_interleave(z.shape[1])
        curve, values = model.observe(trajectory)[rows], _parameters(model, flat, repeated)
        curves.append(_rows(curve, kept[solved], z.shape[:2]))
        parameters.append({name: _rows(value[rows], kept[solved], z.shape[:2]) for name, value in values.items()})
    ends = {name: interval(torch.cat([values[name] for values in parameters], dim=1)) for name in parameters[0]}
    return (interval(torch.cat(curves, dim=1)), ends), status


def _reaching(estimate: Tensor, ends: Tensor, ids: Sequence[str], name: str) -> Tensor:
    """Ends of the intervals of a parameter, ``[2, subject, ...]``, moved to the estimate where it lies outside; a
    subject whose estimate is farther away than its interval is wide is named in a warning."""
    lower, upper = ends
    outside = torch.maximum(lower - estimate, estimate - upper)
    rounding = 1e-4 * estimate.abs()  # of a parameter that does not vary
    far = (outside > (upper - lower) + rounding).nonzero()[:10, 0].tolist()
    if far:
        warnings.warn(
            f"subject {', '.join(ids[k] for k in far)}: the most probable {name} is far from where nearly all of its "
            "distribution lies, and the 90 % interval was extended to it; look at their doses, samples and units",
            stacklevel=3,
        )
    return torch.stack([torch.minimum(lower, estimate), torch.maximum(upper, estimate)])


def _rows(values: Tensor, kept: Tensor, shape: Sequence[int]) -> Tensor:
    """Values of the kept subjects, ``[subject · sample, ...]``, among those of all, ``[subject, sample, ...]``."""
    out = values.new_full((*shape, *values.shape[1:]), torch.nan)
    return out.index_copy(0, kept, values.reshape(len(kept), *out.shape[1:]))


def _numpy(values: Tensor) -> FloatArray:
    return np.asarray(values.detach().cpu().double().numpy(), np.float64)


def _quantities(model: PopulationModel, z: Tensor, batch: CohortBatch) -> dict[str, Tensor]:
    """Individual parameters with all that follows from them, by name, each ``[subject]``: of linear compartments
    the terminal half-life, log 2 over the slowest rate; and the random effects."""
    values, dynamics = model.individual_parameters(z, batch), model.dynamics
    if isinstance(dynamics, Dynamics) and dynamics.dosed and dynamics.linear and dynamics.flows:
        theta = model.theta(z[:, : model.latent_size], batch)[:, 0]
        rates = torch.linalg.eigvals(dynamics.rate_matrix(theta).double()).real.abs()
        values["THALF"] = (math.log(2) / rates.amin(-1)).to(z)
    eta = model.population.eta(z).unbind(-1)
    return values | {f"ETA_{name}": one for name, one in zip(model.population.varying, eta, strict=True)}


def _stacked(rows: Sequence[FloatArray]) -> FloatArray:
    """Rows of different lengths, each padded by its last."""
    width = max(len(row) for row in rows)
    return np.stack([np.concatenate([row, np.full(width - len(row), row[-1])]) for row in rows])


def _curve_times(subject: Subject, times: Sequence[float] | None) -> FloatArray:
    """200 times over a subject's records with the records, the doses, the ends of infusions and the moments before each
    dose; or the wanted times from its first record on."""
    if times is not None:
        return np.asarray(np.maximum(np.sort(np.asarray(times, float)), subject.start), np.float64)
    doses = written_out(subject.doses)
    given = np.array([dose.time for dose in doses if dose.amount > 0 or dose.rate > 0])
    last = max([subject.start, *subject.times[-1:], *(dose.time for dose in doses)])
    even = np.linspace(subject.start, last, _POINTS)
    # far enough that single precision keeps the two apart
    before = given - _JUST_BEFORE * max(last - subject.start, 1e-300)
    every = np.concatenate([even, subject.times, given, before, *(dose.infusion_ends for dose in doses)])
    return np.unique(every[(every >= subject.start) & (every <= last)])
