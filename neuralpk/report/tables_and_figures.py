"""What a report shows: tables, and figures in the colours of the page, each with its text and its data."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure

from neuralpk.diagnostics import style

_COLOURS = {
    style.BLACK: "ink", style.GREY: "grey", style.LIGHT: "light", style.BLUE: "blue", style.ORANGE: "orange",
    style.GREEN: "green", style.VERMILLION: "vermillion", style.PURPLE: "purple", style.SKY: "sky",
    "#ffffff": "paper", "#000000": "ink", "#808080": "grey",
}  # fmt: skip
"""Name of the page's colour for each colour of the figures; a dark page has its own of them."""
_SCALE = 1.7  # pixels a point
_DECIMALS = re.compile(r"(-?\d+\.\d{2})\d+")


@dataclass(frozen=True)
class ReportTable:
    """A table.

    Args:
        caption: what it shows.
        columns: their headings.
        rows: cells as texts.
        texts: how many columns, from the left, hold texts; the others hold numbers and stand on the right.
        note: below the table.
        data: name of the frame behind it, among those of the page; empty for none.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    texts: int = 1
    note: str = ""
    data: str = ""

    @classmethod
    def of(cls, frame: pd.DataFrame, caption: str, names: Mapping[str, str], **more: Any) -> ReportTable:
        """A frame, with the columns of `names` under their headings, in that order."""
        kept = [name for name in names if name in frame]
        rows = [[cell(value) for value in line] for line in frame[kept].itertuples(index=False)]
        return cls(caption, [names[name] for name in kept], rows, **more)


@dataclass(frozen=True)
class ReportFigure:
    """A figure.

    Args:
        name: of its element.
        title: what it shows.
        text: what is seen in it, in words with numbers: the text alternative.
        drawings: as SVG, by the width that it is for: ``wide`` and ``narrow``; one alone is for both.
        data: name of the frame behind it, among those of the page.
        reading: how it is read; empty where that is plain.
    """

    name: str
    title: str
    text: str
    drawings: Mapping[str, Markup]
    data: str
    reading: str = ""


def cell(value: Any) -> str:
    """A value as a table shows it: four digits of a number, a dash for none."""
    if isinstance(value, str):
        return value
    if value is None or (isinstance(value, float | np.floating) and not np.isfinite(value)):
        return "–"
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, int | np.integer):
        return f"{value:,}"
    return digits(float(value))


def digits(value: float, count: int = 4) -> str:
    """A number with at most so many digits and a minus sign."""
    if not np.isfinite(value):
        return "–"
    if value and not 1e-4 <= abs(value) < 1e7:
        mantissa, _, power = f"{value:.{count - 1}e}".partition("e")
        return f"{mantissa}e{int(power)}".replace("-", "−")
    places = max(0, count - 1 - int(np.floor(np.log10(abs(value))))) if value else 0
    text = f"{value:.{places}f}"
    return (text.rstrip("0").rstrip(".") if "." in text else text).replace("-", "−")


def svg(figure: Figure, name: str) -> Markup:
    """A figure of matplotlib as SVG: its texts are texts, its colours those of the page.

    Args:
        figure: with the colours of `neuralpk.diagnostics.style`.
        name: from which the names of its elements are made, which no other element of the page has.
    """
    written = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(written, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = written.getvalue()
    text = text[text.index("<svg") :]
    # a style sheet would be that of the whole page
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'<svg [^>]*?viewBox="([^"]+)"[^>]*>', _opening, text, count=1, flags=re.DOTALL)
    text = re.sub(r"<g id=\"[^\"]+\"", "<g", text)
    text = re.sub(r" font-family: [^;\"]+;?| transform=\"rotate\(-?0 [^)]*\)\"", "", text)
    text = re.sub(r'(id="|xlink:href="#|url\(#)', lambda found: f"{found[1].removeprefix('xlink:')}{name}-", text)
    text = re.sub(r"#[0-9a-fA-F]{6}\b", lambda found: _colour(found[0].lower()), text)
    text = re.sub(r"<[^>]+>", lambda found: _DECIMALS.sub(r"\1", found[0]), text)
    text = re.sub(r"(?:<use [^>]*/>\s*){2,}", _Marks(name), text)
    return Markup(re.sub(r"\s*\n\s*", "\n", text))


def _opening(found: re.Match[str]) -> str:
    """The first tag, with a width at which the texts have the size of those of the page."""
    width = _SCALE * float(found[1].split()[2])
    look = f'style="max-width: {width:.0f}px" stroke-linejoin="round"'
    return f'<svg viewBox="{found[1]}" aria-hidden="true" {look}>'


class _Marks:
    """Neighbouring marks as the vertices of one unseen line with a marker at each, a fifth of the size of as many
    elements. Each marker is painted by itself, so that marks that lie over each other are darker, as before.

    Args:
        name: from which the names of the markers are made.
    """

    def __init__(self, name: str) -> None:
        self._name, self._count = name, 0

    def __call__(self, found: re.Match[str]) -> str:
        marks = [dict(re.findall(r'([\w-]+)="([^"]*)"', mark)) for mark in re.findall(r"<use [^>]*/>", found[0])]
        return "".join(
            self._line(shape, look, [f"{float(one['x']):.1f} {float(one['y']):.1f}" for one in alike])
            for (shape, look), alike in groupby(marks, lambda one: (one["href"], one.get("style", "")))
        )

    def _line(self, shape: str, look: str, places: Sequence[str]) -> str:
        self._count += 1
        marker = f"{self._name}-marks{self._count}"
        return (
            f'<marker id="{marker}" markerUnits="userSpaceOnUse" overflow="visible">'
            f'<use href="{shape}" style="{look}"/></marker>'
            f'<path d="M{" ".join(places)}" style="fill: none; stroke: none; marker: url(#{marker})"/>'
        )


def _colour(value: str) -> str:
    known = {colour.lower(): name for colour, name in _COLOURS.items()}
    return f"var(--{known[value]})" if value in known else value


def csv_text(frame: pd.DataFrame) -> str:
    """A frame as CSV, as the page offers it: eight digits, half the size of all of them."""
    return frame.to_csv(index=False, float_format="%.8g")
