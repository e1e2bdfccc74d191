"""Parquet files of any length, read in parts of whole subjects."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from neuralpk.cohort import IntArray
from neuralpk.tables.cells import cell_text, identifiers
from neuralpk.tables.faults import DataError, Findings
from neuralpk.tables.frames import is_parquet
from neuralpk.tables.layout import Layout
from neuralpk.tables.sheet import headings

_ROWS = 65_536  # read at a time


@dataclass(frozen=True)
class TablePart:
    """Rows of a table, with all rows of every subject in them; `neuralpk.tables.read_table` reads it as a table.

    Args:
        file: name of the table, for messages.
        first_row: number of rows before it in the table.
        first_subject: number of subjects before it in the table.
        rows: with the columns of the table.
    """

    file: str
    first_row: int
    first_subject: int
    rows: pd.DataFrame


class ParquetParts:
    """A Parquet file in parts of so many subjects each. Iteration reads the file once, a part at a time.

    Only the identifiers are read at the beginning; 8 bytes a subject are kept of them.

    Args:
        path: of the file.
        subjects: of a part; the last may have fewer.
        reading: arguments of `neuralpk.tables.read_table`.

    Attributes:
        column: name of the column of identifiers.

    Raises:
        FileNotFoundError: no such file.
        ImportError: pyarrow is not installed.
        ValueError: a file that is not Parquet; what can only be read from a whole table.
        DataError: a column that is missing; a subject whose rows do not follow one another; no row.
    """

    def __init__(self, path: str | Path, subjects: int, reading: Mapping[str, Any]) -> None:
        self.path = Path(path)
        if not is_parquet(self.path):
            raise ValueError(f"{self.path.name} is read in parts, which only a Parquet file can be: write it as one")
        if not self.path.is_file():
            raise FileNotFoundError(2, "no such file", str(self.path))
        if subjects < 1:
            raise ValueError(f"a part has 1 subject or more, not {subjects}")
        asked = {name: value for name, value in reading.items() if name not in ("units", "needed")}
        layout = Layout.of(**asked)
        _refuse_whole(layout)
        findings = Findings(self.path.name)
        with self._opened(findings) as file:
            header = [str(name) for name in file.schema_arrow.names]
            self.column = header[headings(header, layout, findings).numbers["ID"]]
            self._starts = _starts(file, self.column, findings)
            groups = [file.metadata.row_group(k).num_rows for k in range(file.metadata.num_row_groups)]
        self._ends = np.cumsum(groups)
        self._size = subjects
        self._held: tuple[range, Any] = range(0), None

    def _opened(self, findings: Findings) -> Any:
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ImportError as error:
            raise ImportError("Parquet files need pyarrow: pip install 'neuralpk[parquet]'") from error
        try:
            return pq.ParquetFile(self.path)
        except pa.ArrowInvalid as error:
            findings.add("NPK-D01", detail=str(error).splitlines()[0])
            raise DataError(findings.found) from error

    @property
    def subjects(self) -> int:
        """Number of subjects in the file."""
        return len(self._starts)

    def __len__(self) -> int:
        """Number of parts."""
        return -(-self.subjects // self._size)

    def __iter__(self) -> Iterator[TablePart]:
        import pyarrow as pa

        with self._opened(Findings(self.path.name)) as file:
            batches = file.iter_batches(batch_size=_ROWS)
            held = pa.Table.from_batches([], schema=file.schema_arrow)
            bounds = [*self._starts[:: self._size].tolist(), self._ends[-1]]
            for k, (first, stop) in enumerate(pairwise(bounds)):
                read = [held]
                while sum(len(one) for one in read) < stop - first:
                    read.append(pa.Table.from_batches([next(batches)]))
                held = pa.concat_tables(read)
                rows = held.slice(0, stop - first).to_pandas()
                held = held.slice(stop - first)
                yield TablePart(self.path.name, first, k * self._size, rows)

    def subjects_of(self, chosen: IntArray) -> TablePart:
        """The rows of some subjects that stand close together; the row groups from the first to the last of them are
        held until others are asked for.

        Args:
            chosen: numbers of the subjects in the file, from 0, ascending.
        """
        row, end = int(self._starts[chosen[0]]), self._end(int(chosen[-1]))
        first, last = np.searchsorted(self._ends, [row, end - 1], side="right").tolist()
        groups = range(first, last + 1)
        if self._held[0] != groups:
            self._held = range(0), None  # not two sets of groups at once
            with self._opened(Findings(self.path.name)) as file:
                self._held = groups, file.read_row_groups(list(groups))
        before = int(self._ends[groups.start - 1]) if groups.start else 0
        rows = self._held[1].slice(row - before, end - row).to_pandas()
        if len(chosen) <= chosen[-1] - chosen[0]:
            wanted = [np.arange(self._starts[k], self._end(int(k))) - row for k in chosen]
            rows = rows.iloc[np.concatenate(wanted)]
        return TablePart(self.path.name, row, int(chosen[0]), rows)

    def _end(self, subject: int) -> int:
        """Number of the row after those of a subject."""
        return int(self._starts[subject + 1]) if subject + 1 < self.subjects else int(self._ends[-1])

    def names(self, part: TablePart) -> list[str]:
        """Identifiers of the subjects of a part, in their order."""
        texts = identifiers([cell_text(value) for value in part.rows[self.column]])
        return [name for k, name in enumerate(texts) if not k or name != texts[k - 1]]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_held": (range(0), None)}

    def sample(self, chosen: IntArray) -> TablePart:
        """The rows of subjects from everywhere in the file; their numbers in messages are those among these rows.

        Args:
            chosen: numbers of the subjects in the file, from 0, ascending.
        """
        found = []
        for part in self:
            stop = part.first_subject + self._size
            own = chosen[(chosen >= part.first_subject) & (chosen < stop)]
            wanted = [np.arange(self._starts[k], self._end(int(k))) - part.first_row for k in own]
            found += [part.rows.iloc[np.concatenate(wanted)]] if wanted else []
        return TablePart(self.path.name, 0, 0, pd.concat(found, ignore_index=True))


def _refuse_whole(layout: Layout) -> None:
    """Refuse what is read from all subjects of a table together.

    Raises:
        ValueError: an endpoint by a column; a covariate imputed by the median or the mode.
    """
    if layout.endpoint:
        raise ValueError(
            f"endpoint={layout.endpoint} numbers the endpoints of a whole table, which is not read at once: give DVID, "
            f"or columns=DVID={layout.endpoint} with map=DVID:TEXT=NUMBER"
        )
    whole = [f"{name or 'all'}={how}" for name, how in layout.impute.items() if how in ("median", "mode")]
    if whole:
        raise ValueError(f"impute {', '.join(whole)} is of a whole table, which is not read at once: give a number")


def _starts(file: Any, column: str, findings: Findings) -> IntArray:
    """Number of the first row of each subject, from 0.

    Raises:
        DataError: a subject whose rows do not follow one another; no row.
    """
    starts, names, row, last = [], [], 0, object()
    for batch in file.iter_batches(batch_size=_ROWS, columns=[column]):
        ids = batch.column(0).to_pandas().astype(object).to_numpy()
        if not len(ids):
            continue
        begins = np.append(ids[0] != last, ids[1:] != ids[:-1])
        starts.append(row + np.flatnonzero(begins))
        names.append(_hashes(ids[begins]))
        row, last = row + len(ids), ids[-1]
    if not row:
        findings.add("NPK-D03", detail="0 rows")
        findings.raise_any()
    every, hashes = np.concatenate(starts), np.concatenate(names)
    order = np.argsort(hashes, kind="stable")
    again = np.sort(order[1:][hashes[order[1:]] == hashes[order[:-1]]])
    for at in again[:100].tolist():  # two names with one hash: once in 10^7 tables of a million subjects
        before = every[np.flatnonzero(hashes[:at] == hashes[at])[-1]]
        detail = f"rows from {every[at] + 1} on, after rows from {before + 1} on"
        findings.add("NPK-D14", line=int(every[at]) + 1, column="ID", detail=detail)
    findings.raise_any()
    return np.asarray(every, np.int64)


def _hashes(ids: Any) -> Any:
    texts = np.array([cell_text(value).strip() for value in ids], dtype=object)
    return pd.util.hash_array(texts, categorize=False)
