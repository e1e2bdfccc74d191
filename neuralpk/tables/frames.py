"""Data frames, and the files that pandas reads into one: Parquet, Excel, SAS."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from neuralpk.tables.cells import cell_text
from neuralpk.tables.faults import DataError, Findings
from neuralpk.tables.layout import Layout
from neuralpk.tables.sheet import MAX_ROWS, Sheet, SheetBuilder, headings

_CHUNK = 50_000


def _of_excel(path: Path) -> pd.DataFrame:
    return pd.read_excel(path, dtype=object)


def _of_sas(path: Path) -> pd.DataFrame:
    import pyreadstat

    read = pyreadstat.read_xport if path.suffix.lower() == ".xpt" else pyreadstat.read_sas7bdat
    frame, _ = read(str(path))
    return pd.DataFrame(frame)


_PARQUET = (".parquet", ".pq")

_READERS: dict[str, tuple[Callable[[Path], pd.DataFrame], str]] = {
    **dict.fromkeys(_PARQUET, (pd.read_parquet, "Parquet files need pyarrow: pip install 'neuralpk[parquet]'")),
    ".xlsx": (_of_excel, "Excel files need openpyxl: pip install 'neuralpk[excel]'"),
    ".xpt": (_of_sas, "SAS files need pyreadstat: pip install 'neuralpk[sas]'"),
    ".sas7bdat": (_of_sas, "SAS files need pyreadstat: pip install 'neuralpk[sas]'"),
}
ENDINGS = tuple(_READERS)


def is_parquet(path: str | Path) -> bool:
    """Whether the name of a file says that it is Parquet: ``.parquet`` or ``.pq``, in any case."""
    return Path(path).suffix.lower() in _PARQUET


def read_binary(path: Path, layout: Layout, findings: Findings) -> Sheet:
    """Read a Parquet, Excel (its first sheet) or SAS file.

    Raises:
        FileNotFoundError: no file at the path.
        ImportError: the library that reads such files is not installed.
        DataError: a file that is none; as `from_frame`.
    """
    reader, needs = _READERS[path.suffix.lower()]
    if not path.is_file():
        raise FileNotFoundError(2, "no such file", str(path))
    try:
        frame = reader(path)
    except ImportError as error:
        raise ImportError(needs) from error
    except Exception as error:  # each library raises errors of its own for a broken file
        findings.add("NPK-D01", detail=str(error).splitlines()[0] if str(error) else type(error).__name__)
        raise DataError(findings.found) from error
    return from_frame(frame, layout, findings)


def from_frame(frame: pd.DataFrame, layout: Layout, findings: Findings, before: int = 0) -> Sheet:
    """Read a data frame.

    Args:
        frame: the rows.
        layout: how they are read.
        findings: takes the faults.
        before: rows of the table before these.

    Raises:
        DataError: columns that cannot be read, no row, too many rows.
    """
    found = headings([str(name) for name in frame.columns], layout, findings)
    if not 0 < len(frame) <= MAX_ROWS:
        findings.add("NPK-D07" if len(frame) else "NPK-D03", detail=f"{len(frame):,} rows")
        findings.raise_any()
    builder, left_out = SheetBuilder(found, findings), 0
    for start in range(0, len(frame), _CHUNK):
        part = frame.iloc[start : start + _CHUNK]
        full = part.notna().any(axis=1).to_numpy()  # spreadsheets keep empty rows
        rows = [before + start + k for k in (np.flatnonzero(full) + 1).tolist()]
        left_out += len(part) - len(rows)
        builder.add(rows, partial(_cells, part if full.all() else part[full], layout))
    if left_out:
        findings.note(f"rows left out that are empty: {left_out}")
    return builder.sheet()


def _cells(frame: pd.DataFrame, layout: Layout, place: int) -> list[str]:
    """A column as it would stand in a file."""
    series: pd.Series[Any] = frame.iloc[:, place]
    texts = [cell_text(value) for value in series]
    numeric = pd.api.types.is_any_real_numeric_dtype(series.dtype) and not pd.api.types.is_bool_dtype(series.dtype)
    if layout.decimal == "," and (numeric or series.dtype == np.dtype(object)):
        # numbers have no decimal sign of their own
        return [
            text if isinstance(value, str) else text.replace(".", ",")
            for text, value in zip(texts, series, strict=True)
        ]
    return texts
