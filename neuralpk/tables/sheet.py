"""A sheet: the columns of a file or a data frame, with every fault of their shape noted."""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from neuralpk.cohort import FloatArray, IntArray
from neuralpk.tables.cells import BLANKS, MAX_CELL, MISSING, cell_text, identifiers, parse
from neuralpk.tables.faults import Findings, row_word

RESERVED = (
    *("ID", "TIME", "EVID", "MDV", "AMT", "RATE", "DUR", "II", "ADDL", "SS"),
    *("CMT", "DVID", "DV", "CENS", "LIMIT"),
)
"""Columns with a meaning of their own; every other column is a covariate."""

MAX_ROWS = 5_000_000
MAX_BYTES = 2 << 30
MAX_LINE = 100_000

_CHUNK = 50_000


@dataclass(frozen=True)
class Sheet:
    """The columns of a table that are read, one entry a row.

    Args:
        lines: line or row number of each row, for messages.
        ids: identifiers as text, empty where missing.
        numbers: the columns as numbers by their name, NaN where missing or no number.
        texts: cells that are no number, by column and row.
    """

    lines: IntArray
    ids: NDArray[np.object_]
    numbers: dict[str, FloatArray]
    texts: dict[str, dict[int, str]]

    def __len__(self) -> int:
        return len(self.lines)

    def column(self, name: str, missing: float = np.nan) -> FloatArray:
        """A column, with `missing` where a cell, or the whole column, is."""
        values = self.numbers.get(name)
        if values is None:
            return np.full(len(self), missing)
        return np.where(np.isnan(values), missing, values)

    def take(self, rows: NDArray[Any]) -> Sheet:
        """Some of the rows, by mask or index, without their `texts`."""
        numbers = {name: values[rows] for name, values in self.numbers.items()}
        return Sheet(self.lines[rows], self.ids[rows], numbers, {})


def headings(
    header: Sequence[str],
    columns: Mapping[str, str] | None,
    covariates: Sequence[str] | None,
    needed: Collection[str],
    findings: Findings,
) -> dict[str, int]:
    """Which columns to read, and where they stand.

    Args:
        header: names in the table.
        columns: their name to ours.
        covariates: covariates to read; None for every column that is not reserved.
        needed: covariates to read as well, where they are in the table.
        findings: takes the faults.

    Raises:
        DataError: a header that cannot be read; nothing below it would have a meaning.
    """
    columns = columns or {}
    names = [columns.get(name, name) for name in (name.strip(BLANKS) for name in header)]
    names = [name.upper() if name.upper() in (*RESERVED, "TINF") else name for name in names]
    names = ["DUR" if name == "TINF" else name for name in names]
    line = 1 if row_word(findings.file) == "line" else None
    seen: dict[str, int] = {}
    for place, name in enumerate(names):
        if name in MISSING or len(name) > MAX_CELL:
            findings.add("NPK-D05", line=line, value=name, detail=f"the name of column {place + 1} is {name[:40]!r}")
        elif name.upper() in seen:
            findings.add(
                "NPK-D06", line=line, column=name, detail=f"columns {seen[name.upper()]} and {place + 1} share it"
            )
        seen.setdefault(name.upper(), place + 1)
    absent = [name for name in columns if name not in (heading.strip(BLANKS) for heading in header)]
    absent += [name for name in ("ID", "TIME", "DV", *(covariates or ())) if name not in names]
    for name in absent:
        findings.add("NPK-D08", column=name, detail=f"not among the columns {', '.join(names)}")
    findings.raise_any()
    wanted = {*RESERVED, *(names if covariates is None else covariates), *needed}
    return {name: place for place, name in enumerate(names) if name in wanted}


def _sound_lines(handle: TextIO, findings: Findings) -> Iterator[str]:
    """The lines of a file, without what no cell may hold; each is yielded, for the reader counts them."""
    for line, text in enumerate(handle, start=1):
        if "\0" in text:
            findings.add("NPK-D01", line=line, detail="a NUL byte")
            text = text.replace("\0", "")
        if not text.isascii():
            # undecodable bytes arrive as lone surrogates, which alone cannot be encoded again
            sound = text.encode(errors="ignore").decode()
            if sound != text:
                findings.add("NPK-D01", line=line, detail="bytes that are not UTF-8")
            text = sound
        if len(text) > MAX_LINE:
            findings.add("NPK-D07", line=line, detail=f"a line of {len(text):,} characters")
            text = text[:MAX_LINE]
        yield text


def _csv_rows(handle: TextIO, findings: Findings) -> Iterator[tuple[int, list[str]]]:
    """Line number and cells of every row with the header's number of cells, the header first; empty lines hold none."""
    reader = csv.reader(_sound_lines(handle, findings), strict=True)
    width, last = 0, 0
    try:
        for row in reader:
            line, last = last + 1, reader.line_num
            if last > line:
                findings.add("NPK-D02", line=line, detail=f"a quote that opens here closes on line {last}, or never")
            elif len(row) == (width or len(row)):
                if row:
                    width = len(row)
                    yield line, row
            elif row:
                findings.add("NPK-D04", line=line, detail=f"{len(row)} cells under {width} column names")
    except csv.Error as error:
        findings.add("NPK-D02", line=last + 1, detail=str(error))


def _check_size(path: Path, findings: Findings) -> None:
    """Refuse a huge file before any of it is kept."""
    size = path.stat().st_size
    if size > MAX_BYTES:
        findings.add("NPK-D07", detail=f"{size:,} bytes")
    else:
        with path.open("rb") as handle:
            blocks = iter(lambda: handle.read(1 << 20), b"")
            lines = sum(max(block.count(b"\n"), block.count(b"\r")) for block in blocks)
        if lines > MAX_ROWS + 1:
            findings.add("NPK-D07", detail=f"{lines:,} lines")
    findings.raise_any()


def read_csv(
    path: Path,
    columns: Mapping[str, str] | None,
    covariates: Sequence[str] | None,
    needed: Collection[str],
    findings: Findings,
) -> Sheet:
    """Read a CSV file; arguments as for `headings`. Rows of the wrong length are noted and left out.

    Raises:
        DataError: a file without a readable header or without rows.
    """
    _check_size(path, findings)
    lines: list[int] = []
    ids: list[str] = []
    # utf-8-sig: spreadsheets put a byte order mark in front of the first name
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as handle:
        rows = _csv_rows(handle, findings)
        _, header = next(rows, (0, []))
        if not header:
            findings.add("NPK-D03", detail="the file is empty")
        places = headings(header, columns, covariates, needed, findings) if header else {}
        findings.raise_any()
        parts: dict[str, list[FloatArray]] = {name: [] for name in places if name != "ID"}
        texts: dict[str, dict[int, str]] = {name: {} for name in parts}
        while chunk := list(islice(rows, _CHUNK)):
            cells = list(zip(*(row for _, row in chunk), strict=True))
            for name, part in parts.items():
                values, odd = parse(cells[places[name]], start=len(lines))
                part.append(values)
                texts[name] |= odd
            ids += identifiers(cells[places["ID"]])
            lines += [line for line, _ in chunk]
    if not lines:
        findings.add("NPK-D03", detail="no row that can be read")
        findings.raise_any()
    numbers = {name: np.concatenate(part) for name, part in parts.items()}
    return Sheet(np.array(lines), np.array(ids, dtype=object), numbers, texts)


def _frame_column(series: pd.Series[Any]) -> tuple[FloatArray, dict[int, str]]:
    plain = pd.api.types.is_any_real_numeric_dtype(series.dtype) and not pd.api.types.is_bool_dtype(series.dtype)
    if not plain:
        return parse([cell_text(value) for value in series])
    values = series.to_numpy(dtype=np.float64, na_value=np.nan)
    return values, {int(row): repr(float(values[row])) for row in np.flatnonzero(np.isinf(values))}


def from_frame(
    frame: pd.DataFrame,
    columns: Mapping[str, str] | None,
    covariates: Sequence[str] | None,
    needed: Collection[str],
    findings: Findings,
) -> Sheet:
    """Read a data frame; arguments as for `headings`.

    Raises:
        DataError: columns that cannot be read, no row, too many rows.
    """
    places = headings([str(name) for name in frame.columns], columns, covariates, needed, findings)
    if not 0 < len(frame) <= MAX_ROWS:
        findings.add("NPK-D07" if len(frame) else "NPK-D03", detail=f"{len(frame):,} rows")
        findings.raise_any()
    ids = identifiers([cell_text(value) for value in frame.iloc[:, places["ID"]]])
    read = {name: _frame_column(frame.iloc[:, place]) for name, place in places.items() if name != "ID"}
    return Sheet(
        lines=np.arange(1, len(frame) + 1),
        ids=np.array(ids, dtype=object),
        numbers={name: values for name, (values, _) in read.items()},
        texts={name: texts for name, (_, texts) in read.items()},
    )
