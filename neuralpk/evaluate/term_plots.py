"""Figure of a function that a network has learned."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from neuralpk.cohort import FloatArray
from neuralpk.evaluate.style import BLACK, BLUE, legend_on_top, new_figure


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
