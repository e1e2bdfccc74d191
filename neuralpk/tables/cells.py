"""A cell: what it may hold, and the one rule for numbers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from neuralpk.cohort import FloatArray

MISSING = ("", ".", "NA", "NaN")
"""Cells that say that there is no value."""

BLANKS = " \t"
"""Ignored around a cell."""

MAX_CELL = 1_000
"""Characters in a cell."""

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


def number(text: str, decimal: str = ".") -> float | None:
    """The one rule for numbers.

    Args:
        text: the cell.
        decimal: decimal sign, ``.`` or ``,``; the other one is then no part of a number.

    Returns:
        The number, NaN for a missing value, None for anything else: other notations, and numbers that double
        precision would turn into infinity or 0.
    """
    text = text.strip(BLANKS)
    if text in MISSING:
        return np.nan
    if decimal == ",":
        text = text.replace(".", "!").replace(",", ".")
    if len(text) > MAX_CELL or not _NUMBER.fullmatch(text):
        return None
    value = float(text)
    vanished = value == 0 and any(digit in "123456789" for digit in re.split("[eE]", text)[0])
    return None if vanished or np.isinf(value) else value


def number_fault(text: str, decimal: str = ".") -> str:
    """The rule that a cell breaks for which `number` gave None."""
    text = text.strip(BLANKS).replace(decimal, ".")
    if len(text) > MAX_CELL:
        return "NPK-D07"
    infinite = text.lower().lstrip("+-") in ("inf", "infinity")
    return "NPK-D11" if infinite or _NUMBER.fullmatch(text) else "NPK-D10"


def parse(cells: Sequence[str], start: int = 0, decimal: str = ".") -> tuple[FloatArray, dict[int, str]]:
    """A column of cells as numbers, and those that are none by their row, counted from `start`."""
    # most tables repeat their cells, so each distinct one is parsed once
    parsed = {cell: number(cell, decimal) for cell in set(cells)}
    odd = {cell for cell, value in parsed.items() if value is None}
    texts = {start + row: cell for row, cell in enumerate(cells) if cell in odd} if odd else {}
    return np.array([parsed[cell] for cell in cells], dtype=np.float64), texts


def identifiers(cells: Sequence[str]) -> list[str]:
    """A column of identifiers, empty where missing."""
    names = {cell: "" if cell.strip(BLANKS) in MISSING else cell.strip(BLANKS) for cell in set(cells)}
    return [names[cell] for cell in cells]


def cell_text(value: Any) -> str:
    """A cell of a data frame as it would stand in a file."""
    if isinstance(value, str):
        return value
    if isinstance(value, (float, np.floating)):
        value = float(value)
        # above 2**53 the digits of an integer would claim more than is known
        whole = value.is_integer() and abs(value) <= 2**53
        return "" if np.isnan(value) else str(int(value)) if whole else repr(value)
    return "" if value is None or value is pd.NA or value is pd.NaT else str(value)
