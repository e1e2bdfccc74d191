"""What the networks of a model have learned, with its band, and its formula where there is one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
from markupsafe import Markup
from matplotlib.figure import Figure

from neuralpk.cohort import Cohort, FloatArray
from neuralpk.cohort_figures import learned_effects, learned_term
from neuralpk.diagnostics.style import BLUE, GREY, legend_on_top, new_figure, set_range
from neuralpk.diagnostics.term_plots import LearnedEffect, LearnedTerm, learned_effects_figure, learned_term_figure
from neuralpk.dynamics import Decoder, Equations
from neuralpk.dynamics.expression import Expression
from neuralpk.dynamics.model_text import read_model
from neuralpk.dynamics.wrapper import Wrapper
from neuralpk.individual_estimates import evaluation_batch
from neuralpk.report import mathml
from neuralpk.report.tables_and_figures import ReportFigure, digits, svg
from neuralpk.symbolic.term_formulas import find_formulas
from neuralpk.task import LatentTask


@dataclass(frozen=True)
class LearnedSection:
    """Networks of a model.

    Args:
        lines: what there is, in words.
        formulas: name and formula of those that have one.
        figures: of what was learned.
    """

    lines: list[str] = field(default_factory=list)
    formulas: list[tuple[str, Markup]] = field(default_factory=list)
    figures: list[ReportFigure] = field(default_factory=list)


def learned_section(
    task: LatentTask, cohort: Cohort, formulas: Mapping[str, Expression], data: dict[str, pd.DataFrame]
) -> LearnedSection | None:
    """What the networks of a task have learned; None for a model without one.

    Args:
        task: after its training.
        cohort: whose records say which inputs were reached.
        formulas: expressions by the name of the network that each stands for.
        data: takes the frames of the figures by name.
    """
    dynamics, found = task.model.dynamics, LearnedSection()
    named = network_names(dynamics)
    unknown = set(formulas) - set(named)
    if unknown:
        raise ValueError(
            f"there is no network {', '.join(sorted(unknown))}; the model has {', '.join(named) or 'none'}"
        )
    for name in named:
        if name in formulas:
            right = mathml.draw(formulas[name], {})
            found.formulas.append((name, mathml.equation(mathml.applied("N", mathml.name(name)), right)))
        if not _has_one_input(task, name):
            found.lines.append(f"The network in {name} has several inputs; it is not drawn.")
            continue
        learned = learned_term(task, name, cohort)
        found.figures.append(_term(learned, data))
        if name not in formulas:
            _find_formula(dynamics, learned, found)
    effects = learned_effects(task, cohort)
    if effects:
        found.figures.append(_effects(effects, data))
    if isinstance(dynamics, Wrapper) and any(True for _ in dynamics.parameters()):
        found.figures.append(_slopes(learned_slopes(task, cohort), data))
    elif not named and any(True for _ in dynamics.parameters()):
        found.lines.append(
            f"{type(dynamics).__name__} is learned as a whole: there is no mechanism to compare it with."
        )
    return found if found.lines or found.figures else None


def network_names(dynamics: Decoder) -> list[str]:
    """Names of the networks in the equations of a dynamics."""
    return [term.name for term in dynamics.terms()] if isinstance(dynamics, Equations) else []


def _has_one_input(task: LatentTask, name: str) -> bool:
    dynamics = task.model.dynamics
    assert isinstance(dynamics, Equations)
    return any(term.name == name and len(term.size) == 1 for term in dynamics.terms())


def _find_formula(dynamics: Decoder, learned: LearnedTerm, found: LearnedSection) -> None:
    """Say which formula follows a network best (`neuralpk.symbolic.term_formulas.find_formulas`)."""
    assert isinstance(dynamics, Equations)
    try:
        best = find_formulas(dynamics, learned.name, learned.x, learned.output, learned.low, learned.high)[0]
    except ValueError as error:  # such as a network that is constant
        found.lines.append(f"No formula for the network in {learned.name}: {error}.")
        return
    text = read_model(best.equations.text)
    sides = {mathml.name(name): right for name, right in text.variables.items() if name == learned.name}
    sides |= {mathml.slope(name): right for name, right in text.slopes.items() if name == learned.name}
    for left, right in sides.items():
        found.formulas.append((learned.name, mathml.equation(left, mathml.draw(right, {}))))
    found.lines.append(f"A formula that follows the network in {learned.name}: {best}.")


def _term(learned: LearnedTerm, data: dict[str, pd.DataFrame]) -> ReportFigure:
    stem = f"network_{learned.name.replace(' ', '_')}"
    columns = {"INPUT": learned.x, "OUTPUT": learned.output, "LO90": learned.low, "HI90": learned.high}
    data[stem] = pd.DataFrame(columns)
    text = (
        f"The network in {learned.name} over its input from {digits(learned.x[0], 3)} to {digits(learned.x[-1], 3)}: "
        f"{_course(learned.output)}. {_band(learned.low, learned.high)}"
    )
    drawing = svg(learned_term_figure(learned), stem)
    return ReportFigure(stem, f"Network in {learned.name}", text, {"all": drawing}, stem, _READING)


_READING = "Band: pointwise 90 %. Marks at the bottom: what the patients have reached."


def _course(values: FloatArray) -> str:
    steps = np.diff(values)
    word = "rises" if (steps >= 0).all() else "falls" if (steps <= 0).all() else "goes"
    return f"it {word} from {digits(float(values[0]), 3)} to {digits(float(values[-1]), 3)}" + (
        "" if word != "goes" else f", between {digits(float(values.min()), 3)} and {digits(float(values.max()), 3)}"
    )


def _band(low: FloatArray, high: FloatArray) -> str:
    if np.isnan(low).all():
        return "Its uncertainty is not known."
    k = len(low) // 2
    return f"In the middle its 90 % band is {digits(float(low[k]), 3)} to {digits(float(high[k]), 3)}."


def _effects(effects: list[LearnedEffect], data: dict[str, pd.DataFrame]) -> ReportFigure:
    stem, frames, said = "covariate_effects", [], []
    for one in effects:
        columns = {"X": one.x, "VALUE": one.value, "LO90": one.low, "HI90": one.high}
        frames.append(pd.DataFrame({"PARAMETER": one.parameter, "COVARIATE": one.covariate} | columns))
        ends = f"{digits(float(one.x[0]), 3)} to {digits(float(one.x[-1]), 3)}"
        said.append(f"{one.parameter} over {one.covariate} from {ends}: {_course(one.value)}")
    data[stem] = pd.concat(frames, ignore_index=True)
    drawings = {"all": svg(learned_effects_figure(effects), stem)}
    return ReportFigure(stem, "Learned covariate effects", ". ".join(said) + ".", drawings, stem, _READING)


@torch.no_grad()
def learned_slopes(task: LatentTask, cohort: Cohort) -> pd.DataFrame:
    """Slope of every state at every record, and the part of it that is learned, which is the slope of the whole minus
    that of the mechanism alone: ID, TIME, STATE, VALUE, SLOPE, LEARNED.

    Args:
        task: whose dynamics has a mechanism inside.
        cohort: the patients, at their individual estimates.
    """
    dynamics = task.model.dynamics
    assert isinstance(dynamics, Wrapper)
    batch = evaluation_batch(task.model, cohort)
    path = task.model.trajectory(task.estimate(batch), batch)
    t, y, theta = (path.times - batch.start[:, None]).flatten(), path.states.flatten(0, 1), path.theta.flatten(0, 1)
    slope = dynamics(t, y, theta)
    inner = dynamics.inner(t, dynamics.inner_state(y), dynamics.inner_theta(theta))
    learned = slope[:, : inner.shape[1]] - inner
    kept = batch.mask.flatten()
    row = batch.mask.nonzero(as_tuple=True)[0].cpu().numpy()
    frames = [
        pd.DataFrame(
            {
                "ID": np.asarray(batch.ids)[row],
                "TIME": batch.on_data_clock(batch.time)[batch.mask].cpu().double().numpy(),
                "STATE": state,
                "VALUE": y[kept, k].cpu().double().numpy(),
                "SLOPE": slope[kept, k].cpu().double().numpy(),
                "LEARNED": learned[kept, k].cpu().double().numpy(),
            }
        )
        for k, state in enumerate(dynamics.inner.states)
    ]
    return pd.concat(frames, ignore_index=True)


def _slopes(frame: pd.DataFrame, data: dict[str, pd.DataFrame]) -> ReportFigure:
    stem, said = "learned_slopes", []
    data[stem] = frame
    for state, own in frame.groupby("STATE", sort=False):
        share = 100 * _size(own["LEARNED"]) / max(_size(own["SLOPE"]), 1e-300)
        said.append(f"{state}: the learned part is {digits(share, 3)} % of the slope (root mean square)")
    reading = (
        "Each state at the records of all patients: its slope, and the part that the mechanism alone does not have."
    )
    drawings = {"all": svg(slopes_figure(frame), stem)}
    return ReportFigure(stem, "Learned part of the slopes", ". ".join(said) + ".", drawings, stem, reading)


def _size(values: pd.Series) -> float:
    return float(np.sqrt(np.square(values).mean()))


def slopes_figure(frame: pd.DataFrame) -> Figure:
    """`learned_slopes`, a panel for each state."""
    states = list(dict.fromkeys(frame["STATE"]))
    columns = min(3, len(states))
    rows = -(-len(states) // columns)
    figure, axes = new_figure(rows, columns, width=2.9 * columns + 0.4, height=2.6 * rows + 0.4)
    for panel in axes.flat[len(states) :]:
        panel.remove()
    for panel, state in zip(axes.flat, states, strict=False):
        own = frame[frame["STATE"] == state]
        x = own["VALUE"].to_numpy(float)
        for name, colour, label in (("SLOPE", GREY, "slope"), ("LEARNED", BLUE, "learned part")):
            panel.plot(
                x,
                own[name].to_numpy(float),
                ls="none",
                marker="o",
                ms=2.6,
                mfc=colour,
                mec="none",
                alpha=0.5,
                label=label,
            )
        panel.axhline(0, color=GREY, lw=0.8, ls="--", zorder=1)
        set_range(panel, "x", x)
        panel.set(xlabel=state, ylabel=f"d {state}/dt")
    legend_on_top(figure, list(axes.flat[: len(states)]))
    return figure
