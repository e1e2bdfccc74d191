"""A sheet: the columns of a table that are read, as numbers and, where they are labels, as texts."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuralpk.cohort import FloatArray, IntArray
from neuralpk.tables.cells import BLANKS, MAX_CELL, MISSING, identifiers, number, parse
from neuralpk.tables.faults import Findings, row_word
from neuralpk.tables.layout import (
    DATES,
    ENDPOINTS,
    FLAGS,
    LIMITS,
    OCCASIONS,
    RESERVED,
    SEPARATORS,
    Layout,
    likely,
    matches,
)

MAX_ROWS = 5_000_000


@dataclass(frozen=True)
class Sheet:
    """The columns of a table that are read, one entry a row.

    Args:
        lines: line or row number of each row, for messages.
        ids: identifiers as text, empty where missing.
        numbers: the columns as numbers by their name, NaN where missing or no number.
        texts: cells that are no number, by column and row.
        labels: columns as texts by their name, empty where missing.
        covariates: names of the columns that are covariates.
        layout: how the table is read.
    """

    lines: IntArray
    ids: NDArray[np.object_]
    numbers: dict[str, FloatArray]
    texts: dict[str, dict[int, str]]
    labels: dict[str, NDArray[np.object_]]
    covariates: tuple[str, ...]
    layout: Layout

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
        labels = {name: values[rows] for name, values in self.labels.items()}
        return replace(self, lines=self.lines[rows], ids=self.ids[rows], numbers=numbers, labels=labels, texts={})

    def anonymous(self) -> Sheet:
        """The same with subjects named S1, S2, … in the order of the rows; an ID that is missing stays missing."""
        order = {name: k for k, name in enumerate(dict.fromkeys(filter(None, self.ids)), start=1)}
        width = len(str(len(order)))
        names = {name: f"S{k:0{width}d}" for name, k in order.items()} | {"": ""}
        return replace(self, ids=np.array([names[name] for name in self.ids], dtype=object))

    def with_numbers(self, **columns: FloatArray) -> Sheet:
        """The same with some columns replaced, or added."""
        return replace(self, numbers=self.numbers | columns)


@dataclass(frozen=True)
class Headings:
    """Which columns of a table are read, and where they stand.

    Args:
        numbers: place of each column that is read as numbers, by its name here; ID is among them.
        labels: place of each column that is read as text.
        conditions: place of each column that the row filter reads, by its name there.
        covariates: names of the covariates.
        codes: what cells are read as, by place.
        layout: how the table is read.
    """

    numbers: dict[str, int]
    labels: dict[str, int]
    conditions: dict[str, int]
    covariates: tuple[str, ...]
    codes: dict[int, Mapping[str, str]]
    layout: Layout

    @property
    def places(self) -> set[int]:
        """Every column that is read."""
        return {*self.numbers.values(), *self.labels.values(), *self.conditions.values()}


def _find(name: str, header: Sequence[str]) -> int | None:
    """Place of a column by its name, in any case where that leaves one."""
    if name in header:
        return header.index(name)
    same = [place for place, heading in enumerate(header) if heading.casefold() == name.casefold()]
    return same[0] if len(same) == 1 else None


def headings(header: Sequence[str], layout: Layout, findings: Findings) -> Headings:
    """Find the columns.

    Args:
        header: names in the table.
        layout: how the table is read.
        findings: takes the faults.

    Raises:
        DataError: a header that cannot be read; nothing below it would have a meaning.
    """
    header = [name.strip(BLANKS) for name in header]
    line = 1 if row_word(findings.file) == "line" else None
    _check_names(header, line, findings)
    absent: dict[str, str] = {}

    def place(name: str, said: str) -> int | None:
        found = _find(name, header)
        if found is None:
            absent.setdefault(name, said)
        return found

    named = {ours: place(theirs, f"columns: {ours}={theirs}") for ours, theirs in layout.columns.items()}
    taken = {where for where in named.values() if where is not None}
    numbers = _reserved_places(header, named, line, findings)
    needed = [name for name in ("ID", "TIME", "DV") if name not in numbers and name not in layout.columns]
    for name in needed:
        absent.setdefault(name, "")
    roles = {
        "endpoint": layout.endpoint,
        "occasion": layout.occasion,
        "lloq": "" if _is_number(layout.lloq) else layout.lloq,
    }
    asked = {role: place(name, f"{role}={name}") for role, name in roles.items() if name}
    labels = {role: where for role, where in asked.items() if where is not None and role != "lloq"}
    for name in (*OCCASIONS, *DATES, *FLAGS, *LIMITS, *ENDPOINTS):
        where = _find(name, header)
        if where is not None and where not in taken:
            labels[name] = where
    for name in layout.labels:
        where = place(name, "")
        if where is not None:
            labels[name] = where
    if asked.get("lloq") is not None:
        numbers["lloq"] = asked["lloq"]  # type: ignore[assignment]  # checked in the line before

    meant = {*numbers.values(), *asked.values(), *(labels[name] for name in (*FLAGS, *LIMITS) if name in labels)}
    covariates = _covariate_places(header, named, meant, layout, absent)
    numbers |= {name: where for name, where in covariates.items() if name not in RESERVED}
    for name in set(covariates) & set(RESERVED):
        absent.setdefault(name, f"{name}, which is no covariate but has a meaning of its own,")

    def either(name: str, said: str) -> int | None:
        """Of a column by its name in the table, or here."""
        found = _find(name, header)
        ours = {key.casefold(): where for key, where in numbers.items()}
        return ours.get(name.casefold()) if found is None and name.casefold() in ours else place(name, said)

    conditions = {name: either(name, f"ignore: {name}") for name in sorted(layout.rows.columns)}
    read = {*numbers.values(), *labels.values(), *conditions.values()}
    codes: dict[int, Mapping[str, str]] = {}
    for name, of_column in layout.codes.items():
        where = either(name, f"map: {name}")
        if where in read and where is not None:
            codes[where] = of_column
        elif where is not None:
            findings.note(f"map: column {name} is not read")
    _report_absent(absent, header, layout, findings)
    findings.raise_any()
    found = Headings(
        numbers=numbers,
        labels=labels,
        conditions={name: where for name, where in conditions.items() if where is not None},
        covariates=tuple(name for name in covariates if name in numbers),
        codes=codes,
        layout=layout,
    )
    used = found.places - {labels[name] for name in (*FLAGS, *LIMITS, *ENDPOINTS, *OCCASIONS, *DATES) if name in labels}
    used |= {*numbers.values(), *(where for where in asked.values() if where is not None)}
    unread = [name for k, name in enumerate(header) if name and k not in used]
    _suggest_doses(unread, numbers, findings)
    said = f"covariates: {', '.join(found.covariates) or 'none'}"
    findings.note(said + (f"; columns not read: {_listed(unread)}" if unread else ""))
    return found


def _suggest_doses(unread: Sequence[str], numbers: Mapping[str, int], findings: Findings) -> None:
    """Name the columns that may hold what is read from AMT and DUR, where the table has no such column."""
    for name, others in (("AMT", ("AMT",)), ("DUR", ("DUR", "RATE"))):
        column = likely(name, unread)
        if column and not {*others} & {*numbers}:
            findings.warn("NPK-D63", f"no column {name}; {column} is not read")


def _reserved_places(
    header: Sequence[str], named: Mapping[str, int | None], line: int | None, findings: Findings
) -> dict[str, int]:
    """Places of the columns with a meaning of their own: those that are named, and the others by their names."""
    found = {ours: where for ours, where in named.items() if where is not None and ours in RESERVED}
    for name in (*RESERVED, "TINF"):
        ours = "DUR" if name == "TINF" else name
        same = [k for k, heading in enumerate(header) if heading.upper() == name and k not in named.values()]
        if same and ours in found and ours not in named:
            findings.add("NPK-D06", line=line, column=ours, detail=f"columns {found[ours] + 1} and {same[0] + 1}")
        elif same and ours not in named:
            found[ours] = same[0]
    return found


def _covariate_places(
    header: Sequence[str],
    named: Mapping[str, int | None],
    meant: Collection[int | None],
    layout: Layout,
    absent: dict[str, str],
) -> dict[str, int]:
    """Places of the covariates that are asked for; those that are not there are added to `absent`.

    Args:
        header: names in the table.
        named: places of the columns that have other names here.
        meant: places of the columns that have another meaning.
        layout: how the table is read.
        absent: takes the names that are not found, each with how it was asked for.
    """
    found: dict[str, int] = {}
    if layout.covariates is None:
        found = {name: k for k, name in enumerate(header) if k not in meant and k not in named.values()}
        found |= {ours: k for ours, k in named.items() if ours not in RESERVED and k is not None}
    for name in layout.covariates or ():
        where = named.get(name, _find(name, header))
        column, is_level, _ = name.partition("=")
        if where is None and is_level:  # of a text
            name, where = column, named.get(column, _find(column, header))
        if where is None:
            absent.setdefault(name, f"covariates: {name}")
        else:
            found[name] = where
    for name in layout.optional:
        where = named.get(name, _find(name, header))
        if where is not None and name not in RESERVED:
            found.setdefault(name, where)
    return found


def _report_absent(absent: Mapping[str, str], header: Sequence[str], layout: Layout, findings: Findings) -> None:
    """Note the columns that are not there, or the one reason for all of them."""
    line = 1 if row_word(findings.file) == "line" else None
    # a title has blanks too
    titled = not {word.upper() for word in header[0].split()[1:]} & {
        *RESERVED,
        *map(str.upper, layout.columns.values()),
    }
    other = [
        word
        for word, sign in SEPARATORS.items()
        if sign in header[0] and sign != layout.separator and not (sign == " " and titled)
    ]
    if absent and len(header) == 1 and other:
        findings.add("NPK-D09", line=line, detail=f"the header has the separator {other[0]}")
        return
    swapped = {
        theirs.upper(): ours
        for ours, theirs in layout.columns.items()
        if theirs.upper() in RESERVED and ours not in RESERVED and _find(ours, header) is not None
    }
    if absent and swapped:
        said = ",".join(f"{ours}={theirs}" for ours, theirs in swapped.items())
        findings.add("NPK-D08", line=line, detail=f"columns are ours=theirs: {said}")
        return
    for name, said in absent.items():
        detail = f"{said or name} is not among the columns {_listed(header)}"
        unread = [heading for heading in header if heading not in layout.columns.values()]
        meant = "" if said else likely(name, unread)
        beside = [heading for heading in header if _BESIDE.fullmatch(heading)]
        if len(header) == 1:
            detail += "; the first line is the header"
        elif meant:
            detail += f"; perhaps columns={name}={meant}"
        elif name == "DV" and "TIME" in absent and len(beside) > 2:
            detail += f"; {_listed(beside, 3)} may be samples side by side, and each is a row of its own here"
        findings.add("NPK-D08", column=name, detail=detail)


_BESIDE = re.compile(r"[A-Za-z]{0,4}[_ ]?\d+(\.\d+)?( ?h)?", re.ASCII)
"""Names of samples side by side: 0.5, T1, C_24, 8h."""


def _is_number(text: str) -> bool:
    value = number(text)
    return value is not None and not np.isnan(value)


def _listed(names: Sequence[str], most: int = 30) -> str:
    return ", ".join(names[:most]) + (f", … ({len(names)} in all)" if len(names) > most else "")


def _check_names(header: Sequence[str], line: int | None, findings: Findings) -> None:
    """Note columns without a name and names that occur twice."""
    seen: dict[str, int] = {}
    for place, name in enumerate(header):
        if place == 0 and not name and len(header) > 1:
            findings.warn("NPK-D05", "column 1 has no name and is not read")
        elif name in MISSING or len(name) > MAX_CELL:
            findings.add("NPK-D05", line=line, value=name, detail=f"the name of column {place + 1} is {name[:40]!r}")
        elif name.upper() in seen:
            detail = f"columns {seen[name.upper()]} and {place + 1} share it"
            findings.add("NPK-D06", line=line, column=name.upper() if name.upper() in RESERVED else name, detail=detail)
        seen.setdefault(name.upper(), place + 1)


class SheetBuilder:
    """Puts a sheet together from the cells of some rows after the others.

    Args:
        found: which columns are read.
        findings: takes notes of rows that are left out and codes that are replaced.
    """

    def __init__(self, found: Headings, findings: Findings) -> None:
        self.found, self.findings = found, findings
        self._lines: list[int] = []
        self._ids: list[str] = []
        self._parts: dict[str, list[FloatArray]] = {name: [] for name in found.numbers if name != "ID"}
        self._texts: dict[str, dict[int, str]] = {name: {} for name in self._parts}
        self._labels: dict[str, list[str]] = {name: [] for name in found.labels}
        self._replaced: dict[tuple[int, str], int] = {
            (place, code): 0 for place, codes in found.codes.items() for code in codes
        }
        self._left_out = 0

    def add(self, lines: Sequence[int], column: Callable[[int], Sequence[str]]) -> None:
        """Take more rows.

        Args:
            lines: their numbers.
            column: place of a column -> its cells in these rows.
        """
        layout, found = self.found.layout, self.found
        cells = {place: column(place) for place in found.places}
        if layout.rows.conditions:
            read = {name: cells[place] for name, place in found.conditions.items()}
            kept = layout.rows.kept(read, len(lines), layout.decimal)
            self._left_out += len(kept) - sum(kept)
            lines = [line for line, keep in zip(lines, kept, strict=True) if keep]
            cells = {place: [cell for cell, keep in zip(of, kept, strict=True) if keep] for place, of in cells.items()}
        for place, codes in found.codes.items():
            cells[place] = self._decoded(place, codes, cells[place])
        start = len(self._lines)
        for name, part in self._parts.items():
            values, odd = parse(cells[found.numbers[name]], start, layout.decimal)
            part.append(values)
            self._texts[name] |= odd
        for name, label in self._labels.items():
            label += identifiers(cells[found.labels[name]])
        self._ids += identifiers(cells[found.numbers["ID"]])
        self._lines += lines

    def _decoded(self, place: int, codes: Mapping[str, str], cells: Sequence[str]) -> list[str]:
        meaning: dict[str, str] = {}
        for cell in set(cells):
            for code, instead in codes.items():
                if matches(code, cell):
                    meaning[cell] = instead
                    self._replaced[place, code] += sum(other == cell for other in cells)
        return [meaning.get(cell, cell) for cell in cells]

    def sheet(self) -> Sheet:
        """All rows.

        Raises:
            DataError: a table without a row.
        """
        layout, findings = self.found.layout, self.findings
        if layout.rows.conditions:
            findings.note(f"rows left out by ignore {layout.rows.text!r}: {self._left_out}")
        names = {place: name for name, place in {**self.found.labels, **self.found.numbers}.items()}
        for (place, code), count in self._replaced.items():
            instead = self.found.codes[place][code]
            findings.note(f"{names.get(place, place)} {code} read as {instead}: {count} cells")
        if not self._lines:
            findings.add("NPK-D03", detail="no row that can be read")
            findings.raise_any()
        return Sheet(
            lines=np.array(self._lines),
            ids=np.array(self._ids, dtype=object),
            numbers={name: np.concatenate(part) for name, part in self._parts.items()},
            texts=self._texts,
            labels={name: np.array(label, dtype=object) for name, label in self._labels.items()},
            covariates=self.found.covariates,
            layout=layout,
        )
