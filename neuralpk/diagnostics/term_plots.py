"""Figure of a function that a network has learned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from neuralpk.cohort import FloatArray
from neuralpk.diagnostics.style import BLACK, BLUE, legend_on_top, new_figure


class LearnedTerm(NamedTuple):
    """The output of a network over its input.

    Attributes:
        name: of the network.
        x: inputs, ``[place]``.
        output: at the estimate, ``[place]``.
        low: lower end of the pointwise 90 % band, ``[place]``; NaN where it is not known.
        high: upper end.
        reached: inputs at the records of the patients, ``[record]``.
    """

    name: str
    x: FloatArray
    output: FloatArray
    low: FloatArray
    high: FloatArray
    reached: FloatArray


class LearnedEffect(NamedTuple):
    """A parameter of the typical patient over one covariate, with the others at their reference.

    Attributes:
        parameter: its name.
        covariate: its name.
        x: values of the covariate, ``[place]``.
        value: of the parameter at the estimate, ``[place]``.
        low: lower end of the pointwise 90 % band, ``[place]``; NaN where it is not known.
        high: upper end.
        recorded: values of the patients, ``[subject]``.
    """

    parameter: str
    covariate: str
    x: FloatArray
    value: FloatArray
    low: FloatArray
    high: FloatArray
    recorded: FloatArray


def learned_effects_figure(effects: Sequence[LearnedEffect]) -> Figure:
    """Learned covariate effects, a row for each parameter; marks at the bottom are the values of the patients."""
    rows = list(dict.fromkeys(one.parameter for one in effects))
    columns = list(dict.fromkeys(one.covariate for one in effects))
    figure, axes = new_figure(len(rows), len(columns), width=2.6 * len(columns) + 0.6, height=2.4 * len(rows) + 0.4)
    for panel in axes.flat:
        panel.set_visible(False)
    for one in effects:
        panel = axes[rows.index(one.parameter), columns.index(one.covariate)]
        panel.set_visible(True)
        panel.fill_between(one.x, one.low, one.high, color=BLUE, alpha=0.2, lw=0, label="90 % band")
        panel.plot(one.x, one.value, color=BLUE, lw=1.4, label="learned")
        panel.plot(
            one.recorded,
            np.zeros_like(one.recorded),
            "|",
            color=BLACK,
            ms=6,
            mew=0.6,
            transform=panel.get_xaxis_transform(),
        )
        panel.set(xlabel=one.covariate, ylabel=f"{one.parameter}, typical")
    return figure


def learned_term_figure(learned: LearnedTerm, true: FloatArray | None = None) -> Figure:
    """The learned function with its band; marks at the bottom are the inputs that the patients have reached.

    Args:
        learned: the function.
        true: the true one, where it is known, ``[place]``.
    """
    figure, axes = new_figure(1, 1, width=5.0, height=3.4)
    panel = axes[0, 0]
    panel.fill_between(learned.x, learned.low, learned.high, color=BLUE, alpha=0.2, lw=0, label="90 % band")
    panel.plot(learned.x, learned.output, color=BLUE, lw=1.4, label="learned")
    if true is not None:
        panel.plot(learned.x, true, color=BLACK, lw=1.2, ls="--", label="true")
    inside = learned.reached[(learned.reached >= learned.x.min()) & (learned.reached <= learned.x.max())]
    panel.plot(inside, np.zeros_like(inside), "|", color=BLACK, ms=6, mew=0.6, transform=panel.get_xaxis_transform())
    panel.set(xlabel=f"Input of {learned.name}", ylabel=f"Network in {learned.name}")
    legend_on_top(figure, [panel])
    return figure
