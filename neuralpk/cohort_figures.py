"""Figures and tables of errors of a cohort under a trained task."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from neuralpk import record_predictions
from neuralpk.atomic_files import replacing
from neuralpk.cohort import Cohort, FloatArray, Subject, written_out
from neuralpk.diagnostics.metrics import auc_relative_error, interpolate, line_rrmse
from neuralpk.diagnostics.plots import Panel, individual_panels, phase_plane
from neuralpk.diagnostics.style import png, with_unit
from neuralpk.diagnostics.term_plots import (
    LearnedEffect,
    LearnedTerm,
    learned_effects_figure,
    learned_term_figure,
)
from neuralpk.dynamics import Decoder, Equations, NetworkTerm
from neuralpk.individual_estimates import IndividualEstimates, evaluation_batch
from neuralpk.inference.quantiles import interval
from neuralpk.inference.uncertainty_draws import drawn_models
from neuralpk.population_model import PopulationModel

if TYPE_CHECKING:  # commands that draw estimates do not wait for Lightning
    from neuralpk.datamodules import CohortDataModule
    from neuralpk.task import LatentTask


def first_seen(data: CohortDataModule) -> int | None:
    """Number of a subject's observations that are in the context in an evaluation; None for all."""
    return data.context_size if data.evaluation_context == "first" else None


def is_dosed(cohort: Cohort) -> bool:
    """Whether anybody gets a dose: the subjects are then patients, and the values concentrations."""
    return any(subject.doses for subject in cohort)


def quantity_of(cohort: Cohort, model: PopulationModel, endpoint: int = 0) -> str:
    """What the values of an endpoint are called in a figure: a concentration where there are doses, else the name of
    the state."""
    dynamics = model.dynamics
    if is_dosed(cohort):
        return "Concentration" if len(dynamics.endpoints) == 1 else f"Endpoint {endpoint + 1}"
    names = [dynamics.states[k] for k in dynamics.endpoints] if dynamics.states else []
    name = names[endpoint] if endpoint < len(names) else "value"
    return name.removeprefix("log_").replace("_", " ").capitalize()


def make_panels(cohort: Cohort, result: IndividualEstimates, endpoint: int = 0, seen: int | None = None) -> list[Panel]:
    """Panels of the subjects: curve and interval of one endpoint, samples, and the true curve where it is known."""
    panels = []
    for k, subject in enumerate(cohort):
        own = subject.endpoints == endpoint + 1
        shown = np.cumsum(subject.observed) <= (len(own) if seen is None else seen)
        truth = subject.truth
        panels.append(
            Panel(
                id=subject.id,
                times=result.times[k],
                ipred=result.ipred[k, :, endpoint],
                lower=result.lower[k, :, endpoint],
                upper=result.upper[k, :, endpoint],
                pred=result.pred[k, :, endpoint],
                observed_times=subject.times[own],
                observed_values=subject.values[own],
                seen=shown[own],
                censored=subject.censored[own] > 0,
                true=None if truth is None else np.interp(result.times[k], truth.times, truth.line[:, endpoint]),
                dose_times=np.array([dose.time for dose in written_out(subject.doses)]),
            )
        )
    return panels


def save_panels(cohort: Cohort, result: IndividualEstimates, folder: Path, seen: int | None = None) -> Iterator[Path]:
    """Draw `make_panels` of every endpoint into ``individuals.png`` (``individuals_1.png``, …) of a folder."""
    endpoints = result.ipred.shape[2]
    for endpoint in range(endpoints):
        path = folder / ("individuals.png" if endpoints == 1 else f"individuals_{endpoint + 1}.png")
        panels = make_panels(cohort, result, endpoint, seen)
        quantity = quantity_of(cohort, result.source.model, endpoint)
        with replacing(path) as part:
            part.write_bytes(png(individual_panels(panels, cohort.units, shared=False, quantity=quantity)))
        yield path


def phase_figure(cohort: Cohort, result: IndividualEstimates, names: tuple[str, str]) -> Figure:
    """The two states of the first subjects against each other, with the samples of the first subject."""
    lines = {f"IPRED {name}": result.ipred[k] for k, name in enumerate(cohort.ids[:3])}
    first = cohort[0]
    own = [first.endpoints == endpoint for endpoint in (1, 2)]
    together = np.intersect1d(*(first.times[at] for at in own))
    pairs = [first.values[at][np.searchsorted(first.times[at], together)] for at in own]
    unit = cohort.units.value
    return phase_plane(lines, np.column_stack(pairs), (with_unit(names[0], unit), with_unit(names[1], unit)))


def learned_figures(task: LatentTask, cohort: Cohort) -> dict[str, Figure]:
    """What networks of covariates, and each network of one input in the equations, have learned, with 90 % bands."""
    effects = learned_effects(task, cohort)
    figures = {"covariate effects": learned_effects_figure(effects)} if effects else {}
    terms = {f"network {name}": learned_term(task, name, cohort) for name in _drawn_networks(task)}
    return figures | {name: learned_term_figure(term) for name, term in terms.items()}


@torch.no_grad()
def learned_effects(task: LatentTask, cohort: Cohort) -> list[LearnedEffect]:
    """What each network of covariates has learned, by parameter and covariate, with its pointwise 90 % band.

    The band is made by the parameter draws of the population, and extended to the estimate where that lies outside;
    without draws it is NaN.

    Args:
        task: after its training.
        cohort: whose covariates say which values were reached.
    """
    models = drawn_models(task.model) if task.model.has_parameter_draws else []
    found = []
    for parameter, effect in task.model.population.networks_by_parameter():
        for name in effect.covariates:
            recorded = first_values(cohort, name)
            levels = np.unique(recorded)
            x = levels if len(levels) == 2 else np.linspace(recorded.min(), recorded.max(), 100)
            value = _over_covariate(task.model, parameter, name, x)
            drawn = [_over_covariate(model, parameter, name, x) for model in models]
            low = high = torch.full_like(value, torch.nan)
            if drawn:
                low, high = interval(torch.stack(drawn).T)
                low, high = torch.minimum(low, value), torch.maximum(high, value)
            line, lower, upper = (part.cpu().double().numpy() for part in (value, low, high))
            found.append(LearnedEffect(parameter, name, x, line, lower, upper, recorded))
    return found


def _over_covariate(model: PopulationModel, parameter: str, covariate: str, values: FloatArray) -> Tensor:
    """A parameter of the typical patient with these values of a covariate, ``[place]``; the others at the reference of
    the effects that read them, or at the centre of the training data."""
    population = model.population
    scales = {name: population.scaling.covariate(name) for name in population.scaling.covariates}
    centre = {name: 0.0 if scale.binary else scale.centre for name, scale in scales.items()}
    for _, effect in population.effects_by_parameter():
        centre |= {name: one for name, one in effect.references().items() if isinstance(one, float)}
    at = model.value_scale.new_tensor([centre[name] for name in sorted(centre)]).repeat(len(values), 1)
    at[:, sorted(centre).index(covariate)] = torch.tensor(values, dtype=at.dtype, device=at.device)
    return population.transform(population.centre(at))[:, population.names.index(parameter)]


def _drawn_networks(task: LatentTask) -> list[str]:
    dynamics = task.model.dynamics
    terms = dynamics.terms() if isinstance(dynamics, Equations) else []
    return [term.name for term in terms if len(term.size) == 1]


@torch.no_grad()
def learned_term(task: LatentTask, name: str, cohort: Cohort, at: FloatArray | None = None) -> LearnedTerm:
    """The output of a network of one input in the equations, with its pointwise 90 % band.

    The band is made by the parameter draws of the population (`neuralpk.inference.uncertainty_draws.drawn_models`), and
    extended to the estimate where that lies outside; without draws it is NaN. A factor of each patient is 1.

    Args:
        task: with `neuralpk.dynamics.Equations`, after its training.
        name: of the network (`Equations.networks`).
        cohort: whose records say which inputs were reached.
        at: inputs; default 100 over those that were reached.

    Raises:
        ValueError: no network of this name, or one of several inputs.
    """
    dynamics = task.model.dynamics
    if not isinstance(dynamics, Equations) or name not in _drawn_networks(task):
        known = ", ".join(_drawn_networks(task)) or "none"
        raise ValueError(f"there is no network {name!r} of one input in these equations; there are {known}")
    batch = evaluation_batch(task.model, cohort)
    path = task.model.trajectory(task.estimate(batch), batch)
    since = path.times - batch.start[:, None]
    reached = dynamics.network_inputs(name, since, path.states, path.theta)[0][batch.mask].cpu().double().numpy()
    x = np.linspace(reached.min(), reached.max(), 100) if at is None else np.asarray(at, float)
    grid = torch.tensor(x, dtype=task.model.value_scale.dtype, device=task.model.value_scale.device)
    output = _network(dynamics, name)(grid)
    low = high = torch.full_like(output, torch.nan)
    if task.model.has_parameter_draws:
        drawn = [_network(model.dynamics, name)(grid) for model in drawn_models(task.model)]
        low, high = interval(torch.stack(drawn).T)
        # the weights before the last layer are uncertain too, in which the output is not linear
        low, high = torch.minimum(low, output), torch.maximum(high, output)
    on_grid, lower, upper = (part.cpu().double().numpy() for part in (output, low, high))
    return LearnedTerm(name, x, on_grid, lower, upper, reached)


def _network(dynamics: Decoder, name: str) -> NetworkTerm:
    assert isinstance(dynamics, Equations)
    return next(term for term in dynamics.terms() if term.name == name)


def first_values(cohort: Cohort, covariate: str) -> FloatArray:
    """First value of a covariate of each subject, ``[subject]``."""
    values = [subject.covariates[covariate] for subject in cohort]
    return np.array([value[0][1] if isinstance(value, tuple) else value for value in values], float)


def curve_errors(data: CohortDataModule, task: LatentTask, cohort: Cohort) -> dict[str, tuple[FloatArray, FloatArray]]:
    """Errors of the curves against the truth, relative RMSE ``[subject, endpoint]`` and relative error of the first
    endpoint's AUC ``[subject]``: of the model, of the typical subject of the true population, and of the samples joined
    by lines. Empty where the truth is not known."""
    truths = [subject.truth for subject in cohort if subject.truth is not None]
    if len(truths) < len(cohort):
        return {}
    times = truths[0].times
    true = np.stack([truth.line for truth in truths])
    result = task.reconstruct(cohort, times.tolist(), draws=0, context=first_seen(data))
    lines = {"model": result.ipred}
    typical = data.typical_lines(cohort)
    if typical is not None:
        lines["typical, simulated"] = typical
    lines["samples, interpolated"] = np.stack([_joined(subject, times, true.shape[2]) for subject in cohort])
    return {
        name: (
            np.stack([line_rrmse(line[..., k], true[..., k]) for k in range(true.shape[2])], axis=1),
            auc_relative_error(times, line[..., 0], true[..., 0]),
        )
        for name, line in lines.items()
    }


def _joined(subject: Subject, times: FloatArray, endpoints: int) -> FloatArray:
    """``[time, endpoint]``."""
    kept = [subject.observed & (subject.endpoints == k + 1) for k in range(endpoints)]
    return np.stack([interpolate(times, subject.times[own], subject.values[own]) for own in kept], axis=1)


@torch.no_grad()
def held_out(data: CohortDataModule, task: LatentTask) -> pd.DataFrame:
    """The records of the test that the estimates were not shown, with DV, PRED and IPRED; without rows where the test
    holds nothing back."""
    frames = []
    for batch in data.test_batches():  # of this process alone: the others do not come here
        table = record_predictions.records(task.model, batch, task.predicted(batch), task.objective.has_likelihood)
        hidden = (batch.observed & batch.target & ~batch.context)[batch.mask].cpu().numpy()
        frames.append(table.loc[hidden])
    found: pd.DataFrame = pd.concat(frames, ignore_index=True)
    return found
