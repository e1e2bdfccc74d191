"""Text files: CSV and its kin, plain or gzipped, with every fault of their shape noted."""

from __future__ import annotations

import csv
import gzip
import io
import re
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import IO, cast

from neuralpk.tables.cells import BLANKS, number
from neuralpk.tables.faults import Findings
from neuralpk.tables.layout import Layout
from neuralpk.tables.sheet import MAX_ROWS, Sheet, SheetBuilder, headings

ENDINGS = (".csv", ".txt", ".tsv", ".tab", ".dat")
MAX_BYTES = 2 << 30
MAX_LINE = 100_000

_CHUNK = 50_000
_TITLE = re.compile(r"^TABLE NO\. +\d+")
"""Above the header of a table that NONMEM writes."""


def ending(path: Path) -> str:
    """Of ``a.csv.gz``: ``.csv``."""
    name = path.with_suffix("") if path.suffix.lower() == ".gz" else path
    return name.suffix.lower()


def _opened(path: Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(path, "rb")) if path.suffix.lower() == ".gz" else path.open("rb")


def _check_size(path: Path, findings: Findings) -> None:
    """Refuse a huge file before any of it is kept."""
    size = lines = 0
    try:
        with _opened(path) as handle:
            for block in iter(lambda: handle.read(1 << 20), b""):
                size += len(block)
                lines += max(block.count(b"\n"), block.count(b"\r"))
                if size > MAX_BYTES:
                    findings.add("NPK-D07", detail=f"more than {MAX_BYTES:,} bytes")
                    break
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        findings.add("NPK-D01", detail=f"not a whole gzip file ({error})")
    if not findings.found and lines > MAX_ROWS + 1:
        findings.add("NPK-D07", detail=f"{lines:,} lines")
    findings.raise_any()


def _sound_lines(lines: Iterator[str], findings: Findings) -> Iterator[str]:
    """The lines of a file, without what no cell may hold; each is yielded, for the reader counts them."""
    for line, text in enumerate(lines, start=1):
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


def _rows(lines: Iterator[str], layout: Layout, findings: Findings) -> Iterator[tuple[int, list[str]]]:
    """Line number and cells of every row with the header's number of cells, the header first; empty lines hold none,
    and comments are left out, as are the titles and the repeated headers of NONMEM's tables."""
    sound = _sound_lines(lines, findings)
    if layout.separator == " ":  # any number of blanks, as NONMEM writes its tables
        sound = (" ".join(line.split()) + "\n" for line in sound)
    titles: list[str] = []

    def untitled() -> Iterator[str]:
        for line in sound:
            titles.extend(_TITLE.findall(line))
            yield "\n" if _TITLE.match(line) else line

    reader = csv.reader(untitled(), strict=True, delimiter=layout.separator)
    width = last = comments = left_out = 0
    header: list[str] = []
    commented: tuple[int, list[str]] | None = None
    try:
        for row in reader:
            line, last = last + 1, reader.line_num
            if last > line:
                findings.add("NPK-D02", line=line, detail=f"a quote that opens here closes on line {last}, or never")
                continue
            if row and "#" in layout.rows.marks and not width and row[0].lstrip().startswith("#"):
                commented = line, row
                continue
            if commented is not None and not width and row and number(row[0], layout.decimal) is not None:
                # nothing but comments above the numbers: the last of them is the header
                width = len(commented[1])
                yield commented[0], [commented[1][0].lstrip().removeprefix("#"), *commented[1][1:]]
            if row and width and ((titles and row == header) or not any(cell.strip(BLANKS) for cell in row)):
                left_out += 1
            elif row and width and layout.rows.is_comment(row[0]):
                comments += 1
            elif len(row) == (width or len(row)):
                if row:
                    width, header = len(row), header or row
                    yield line, row
            elif row:
                findings.add("NPK-D04", line=line, detail=f"{len(row)} cells under {width} column names")
    except csv.Error as error:
        findings.add("NPK-D02", line=last + 1, detail=str(error))
    if left_out:
        findings.note(f"rows left out that are empty or repeat the header: {left_out}")
    if layout.rows.marks:
        findings.note(f"comment rows left out by ignore {layout.rows.text!r}: {comments}")


def read_text(path: Path, layout: Layout, findings: Findings) -> Sheet:
    """Read a text file. Rows of the wrong length are noted and left out.

    Raises:
        DataError: a file without a readable header or without rows.
    """
    _check_size(path, findings)
    # utf-8-sig: spreadsheets put a byte order mark in front of the first name
    with io.TextIOWrapper(_opened(path), encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
        rows = _rows(lines, layout, findings)
        _, header = next(rows, (0, []))
        if not header:
            findings.add("NPK-D03", detail="the file is empty")
            findings.raise_any()
        builder = SheetBuilder(headings(header, layout, findings), findings)
        while chunk := list(islice(rows, _CHUNK)):
            columns = list(zip(*(row for _, row in chunk), strict=True))
            builder.add([line for line, _ in chunk], columns.__getitem__)
    return builder.sheet()
