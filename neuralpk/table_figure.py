"""A picture of a table before any model, by dose and arm."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from neuralpk.cohort import Cohort, FloatArray, Subject, Units
from neuralpk.diagnostics import style

_COLOURS = (style.BLUE, style.ORANGE, style.GREEN, style.VERMILLION, style.PURPLE, style.SKY)
_MOST_PANELS = 9


def _dose_of(subject: Subject) -> float:
    """First amount that is given, 0 for none."""
    return next((dose.amount for dose in subject.doses if dose.amount), 0.0)


def _levels(cohort: Cohort) -> dict[str, str]:
    """Dose level of each subject: its first amount, in at most six groups."""
    first = {subject.id: _dose_of(subject) for subject in cohort}
    distinct = sorted(set(first.values()))
    if len(distinct) <= len(_COLOURS):
        return {name: f"{amount:g}" for name, amount in first.items()}
    edges = np.quantile(list(first.values()), np.linspace(0, 1, 5))
    group = {
        name: int(np.clip(np.searchsorted(edges, amount, side="right") - 1, 0, 3)) for name, amount in first.items()
    }
    within = {k: [first[name] for name in group if group[name] == k] for k in range(4)}
    return {name: f"{min(within[k]):.3g} to {max(within[k]):.3g}" for name, k in group.items()}


def draw(cohort: Cohort, arms: Mapping[str, str]) -> Figure:
    """Values of every subject against the time since its first record, a panel for each endpoint and arm, coloured by
    the first dose; values below the limit as open triangles.

    Args:
        cohort: the subjects, with at least one measured value.
        arms: arm of each subject; empty for one.
    """
    levels = _levels(cohort)
    first = {levels[subject.id]: _dose_of(subject) for subject in sorted(cohort, key=_dose_of, reverse=True)}
    order = sorted(first, key=lambda level: first[level])
    colour = {level: _COLOURS[k % len(_COLOURS)] for k, level in enumerate(order)}
    endpoints = sorted({int(e) for s in cohort for e in np.unique(s.endpoints[s.observed])})
    names = list(dict.fromkeys(arms.get(name, "") for name in cohort.ids))
    panels = [(endpoint, arm) for endpoint in endpoints for arm in names][:_MOST_PANELS]
    columns = min(len(names) if len(names) > 1 else len(panels), 3)
    rows = -(-len(panels) // columns)
    figure, axes = style.new_figure(rows, columns, width=style.WIDTH, height=3.2 * rows + 0.8)
    logarithmic = {endpoint: _is_wide(cohort, endpoint) for endpoint in endpoints}
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, (endpoint, arm) in zip(axes.flat, panels, strict=False):
        own = [subject for subject in cohort if arms.get(subject.id, "") == arm]
        _draw_panel(axis, own, endpoint, {s.id: colour[levels[s.id]] for s in own}, cohort.units)
        every = _values(cohort, endpoint)
        # the arms of an endpoint have one scale
        style.set_range(axis, "y", every, log=logarithmic[endpoint])
        if logarithmic[endpoint]:
            style.log_scale(axis, "y")
            style.note_hidden(axis, _values(own, endpoint))
        style.set_range(axis, "x", *[s.times - s.start for s in cohort])
        style.time_axis(axis, cohort.units.time)
        axis.set_xlabel(style.with_unit("Time since the first record", cohort.units.time))
        title = [f"arm {arm}"] if arm else []
        title += [f"endpoint {endpoint}"] if len(endpoints) > 1 else []
        measured = sum(bool((s.observed & (s.endpoints == endpoint)).any()) for s in own)
        axis.set_title(", ".join([*title, f"{measured} subjects"]), fontsize=style.TEXT)
    shown = axes.flat[0]
    for level in order:
        label = f"first dose {level} {cohort.units.amount}".strip() if first[level] else "no dose"
        shown.plot([], [], color=colour[level], lw=1.6, marker="o", ms=3, label=label)
    if any((subject.censored > 0).any() for subject in cohort):
        shown.plot([], [], color=style.GREY, lw=0, marker="v", mfc="white", ms=4, label="below the limit")
    style.legend_on_top(figure, list(axes.flat[: len(panels)]), columns=4)
    return figure


def _values(subjects: Iterable[Subject], endpoint: int) -> FloatArray:
    """The values of an endpoint."""
    return np.concatenate([s.values[s.observed & (s.endpoints == endpoint)] for s in subjects])


def _is_wide(cohort: Cohort, endpoint: int) -> bool:
    """Whether the values span more than a factor of 20, so that a logarithmic axis shows them better."""
    values = _values(cohort, endpoint)
    positive = values[values > 0]
    return len(positive) > 0.8 * len(values) and bool(np.quantile(positive, 0.98) > 20 * np.quantile(positive, 0.02))


def _draw_panel(axis: Any, subjects: list[Subject], endpoint: int, colour: Mapping[str, str], units: Units) -> None:
    many = len(subjects) > 60
    for subject in subjects:
        own = subject.observed & (subject.endpoints == endpoint)
        t, y, below = subject.times[own] - subject.start, subject.values[own], subject.censored[own] > 0
        line = {"color": colour[subject.id], "alpha": 0.35 if many else 0.7, "lw": 0.6 if many else 0.9}
        axis.plot(t, y, **line, zorder=2)
        axis.plot(t[~below], y[~below], **line | {"lw": 0}, marker="o", ms=1.6 if many else 2.6, zorder=2)
        axis.plot(t[below], y[below], lw=0, marker="v", ms=4, mfc="white", mec=colour[subject.id], mew=0.8, zorder=3)
    axis.set_ylabel(style.with_unit("DV", units.value if endpoint == 1 else ""))
