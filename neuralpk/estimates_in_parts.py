"""Estimates of the patients of a Parquet file of any length: in parts, by several processes, on from where it stopped.

    <out>/parts.lock               locked as long as a command works; it stays, empty
    <out>/parts/<number>-<key>/    the tables of a part, once it is finished
    <out>/curves.csv, …            all parts one after the other, once all are

The key of a part is a sha256 of the model, the options and the rows: what has changed since is estimated again, and
nothing else is.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock, Timeout

import neuralpk
from neuralpk.atomic_files import replacing
from neuralpk.cohort import Cohort, Units
from neuralpk.individual_estimates import OCCASION_TABLE, TABLES
from neuralpk.run_record import sha256_of
from neuralpk.saved_model import SavedModel
from neuralpk.solve import SolveError
from neuralpk.tables import DataError, ParquetParts, TablePart
from neuralpk.worker_processes import one_thread, shared_work, worker_processes

PARTS = "parts"
WARNINGS = "warnings.txt"
"""File of all warnings, where there are any."""

_OUTCOME = "outcome.json"
_LOCK = "parts.lock"
_OWN = re.compile(r"\d{6}-[0-9a-f]{16}(\.part)?|whole")
_PANELS = 15
_NOBODY = {"NPK-D03", "NPK-D52"}  # rules of a part of which `ignore` leaves nobody
_SHOWN = 10


@dataclass(frozen=True)
class PartwiseEstimates:
    """What was written.

    Args:
        paths: of the tables.
        subjects: how many were estimated.
        parts: how many there are.
        kept: how many of them were there from before.
        unsolved: why some patients have NaN instead of estimates, a sentence each.
        warnings: of all parts, each with its part.
    """

    paths: list[Path]
    subjects: int
    parts: int
    kept: int
    unsolved: tuple[str, ...] = ()
    warnings: tuple[str, ...] = field(default=(), repr=False)


def estimate_in_parts(
    saved: SavedModel,
    table: str | Path,
    out: str | Path,
    subjects: int = 1000,
    processes: int | None = None,
    *,
    draws: int = 200,
    map_estimate: bool | None = None,
    seed: int = 0,
    units: Units | None = None,
    progress: Callable[[Sequence[int]], Iterable[int]] = iter,
    **reading: Any,
) -> PartwiseEstimates:
    """Estimate the patients of a Parquet file of any length, and write `neuralpk.individual_estimates.TABLES`.

    The result is that of the whole table, whatever the size of the parts and the number of processes. A population file
    takes the magnitudes of the data from all patients: the table is read once before, refused where a part cannot be
    read, and 8 bytes a value are kept. Otherwise the memory depends on the size of a part alone, and a part with a
    fault does not stop the others.

    Args:
        saved: the model (`neuralpk.read_model`).
        table: Parquet file.
        out: folder.
        subjects: of a part.
        processes: parts that are estimated at a time; None for the number of CPUs.
        draws: as of `SavedModel.estimate`.
        map_estimate: whether the most probable parameters are searched; None for what the model was trained with.
        seed: as there.
        units: of the table; None for those of the model.
        progress: wraps the numbers of the parts, for example in a progress bar.
        reading: further arguments of `neuralpk.tables.read_table`; not those that need the whole table, `endpoint` and
            the median or mode of `impute`.

    Raises:
        neuralpk.tables.DataError: as `neuralpk.tables.ParquetParts`.
        ValueError: parts that cannot be read or estimated, with their faults; the others are kept. Nobody is left.
            Another process is writing parts into `out`.
        RuntimeError: other processes could not begin.
    """
    if processes is not None and processes < 1:
        raise ValueError(f"processes must be 1 or more, got {processes}")
    parts = ParquetParts(table, subjects, saved.reading(**reading))
    with _alone(Path(out)):
        options = {"draws": draws, "map": map_estimate, "seed": seed}
        cohorts = _cohorts(saved, parts, units, reading)
        first = next(cohorts, None)
        if first is None:
            raise ValueError(f"{parts.path.name}: no patient is left to estimate")
        work = _Work(saved.with_magnitudes_of(chain([first], cohorts)), Path(out), units, options, reading)
        return _written(work, parts, processes or os.cpu_count() or 1, progress)


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """No other command may write parts into a folder. What it holds ends with its process, whatever ends that.

    The file stays: were it removed, a second command that has opened it could lock what is gone, and a third one a new
    file beside it.

    Raises:
        ValueError: another one does.
    """
    out.mkdir(parents=True, exist_ok=True)
    lock = FileLock(out / _LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise ValueError(
            f"another command is writing parts into {out}: wait until it has ended, or give another folder (--out)"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _cohorts(
    saved: SavedModel, parts: ParquetParts, units: Units | None, reading: Mapping[str, Any]
) -> Iterator[Cohort]:
    """The patients of every part of which any are left.

    Raises:
        ValueError: at the end, parts that cannot be read, with their faults.
    """
    faults = []
    for part in parts:
        try:
            with warnings.catch_warnings(action="ignore"):  # they are given when the part is estimated
                cohort = saved.read_table(part, units=units, **reading)
        except DataError as error:
            if not _leaves_nobody(error):
                faults.append(str(error))
            continue
        yield cohort
    if faults:
        raise ValueError(f"{len(faults)} of {len(parts)} parts cannot be read:\n{_listed(faults)}")


def _listed(faults: Sequence[str]) -> str:
    more = f"\n(+{len(faults) - _SHOWN} more parts)" if len(faults) > _SHOWN else ""
    return "\n".join(faults[:_SHOWN]) + more


def _leaves_nobody(error: DataError) -> bool:
    return {finding.rule for finding in error.findings} <= _NOBODY


@dataclass(frozen=True)
class _Work:
    """What every process needs.

    Args:
        saved: the model.
        out: folder of the results.
        units: of the table.
        options: of the estimates.
        reading: how the table is read.
    """

    saved: SavedModel
    out: Path
    units: Units | None
    options: Mapping[str, Any]
    reading: Mapping[str, Any]

    @property
    def folder(self) -> Path:
        """Of the parts."""
        return self.out / PARTS

    def settings(self) -> bytes:
        """All that a part depends on besides its rows, in bytes."""
        model = [sha256_of(path) for path in self.saved.files]
        options = sorted({**self.options, **self.reading}.items())
        return repr((neuralpk.__version__, model, self.saved.magnitudes, self.units, options)).encode()

    def folder_of(self, part: TablePart, number: int, settings: bytes) -> Path:
        """Where the tables of a part belong."""
        key = hashlib.sha256(settings)
        key.update(repr((part.first_row, part.first_subject, [*part.rows.columns])).encode())
        key.update(pd.util.hash_pandas_object(part.rows, index=False).to_numpy().tobytes())
        return self.folder / f"{number:06d}-{key.hexdigest()[:16]}"

    def estimate(self, part: TablePart, folder: Path) -> str:
        """Estimate a part and write its tables into its folder; the fault where it cannot be."""
        rows = f"rows {part.first_row + 1} to {part.first_row + len(part.rows)}"
        begun = folder.with_suffix(".part")
        shutil.rmtree(begun, ignore_errors=True)
        begun.mkdir()
        subjects, unsolved = 0, tuple[str, ...]()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                subjects, unsolved = self._write(part, begun)
            except DataError as error:
                if not _leaves_nobody(error):
                    return str(error)
            except (ValueError, SolveError) as error:
                return f"{rows}: {error}"
        said = [f"{rows}: {text}" for text in dict.fromkeys(str(one.message) for one in caught)]
        outcome = {"subjects": subjects, "unsolved": unsolved, "warnings": said}
        (begun / _OUTCOME).write_text(json.dumps(outcome), encoding="utf-8")
        begun.replace(folder)
        return ""

    def _write(self, part: TablePart, folder: Path) -> tuple[int, tuple[str, ...]]:
        cohort = self.saved.read_table(part, units=self.units, **self.reading)
        result = self.saved.estimate(cohort, first_index=part.first_subject, **self.options)
        result.write(folder)
        if not part.first_subject:
            from neuralpk.cohort_figures import save_panels  # Matplotlib, in one process

            list(save_panels(cohort[:_PANELS], result, folder))
        return len(cohort), result.unsolved


def _written(
    work: _Work, parts: ParquetParts, processes: int, progress: Callable[[Sequence[int]], Iterable[int]]
) -> PartwiseEstimates:
    """The tables of all parts, put together where none has a fault; arguments as of `estimate_in_parts`."""
    work.folder.mkdir(parents=True, exist_ok=True)
    count = min(processes, len(parts))
    folders: dict[int, Path] = {}
    kept, faults = 0, dict[int, str]()
    with one_thread(), closing(_estimated(work, parts, count)) as done:
        for _ in progress(range(len(parts))):
            found = next(done)
            folders[found.number] = found.folder
            kept += found.kept
            if found.fault:
                faults[found.number] = found.fault
    if faults:
        raise ValueError(
            f"{len(faults)} of {len(parts)} parts cannot be estimated; the others are kept in {work.folder}, and the "
            f"same command goes on from there when the table is mended:\n{_listed([faults[k] for k in sorted(faults)])}"
        )
    ordered = [folders[k] for k in sorted(folders)]
    outcomes = [json.loads((folder / _OUTCOME).read_text(encoding="utf-8")) for folder in ordered]
    said_all = [line for one in outcomes for line in one["warnings"]]
    paths = _joined(ordered, work.out, said_all)
    _remove_parts(work.folder)
    unsolved = tuple(line for one in outcomes for line in one["unsolved"])
    total = sum(one["subjects"] for one in outcomes)
    return PartwiseEstimates(paths, total, len(parts), kept, unsolved, tuple(said_all))


@dataclass(frozen=True)
class _Finished:
    """A part that is finished: its number and folder, whether it was there from before, its fault."""

    number: int
    folder: Path
    kept: bool = False
    fault: str = ""


def _estimated(work: _Work, parts: ParquetParts, processes: int) -> Generator[_Finished, None, None]:
    """Every part as it is finished; of those that wait no more are held than there are processes."""
    settings = work.settings()
    if processes == 1:
        for number, part in enumerate(parts):
            folder = work.folder_of(part, number, settings)
            there = folder.is_dir()
            yield _Finished(number, folder, there, "" if there else work.estimate(part, folder))
        return
    with worker_processes(work, processes, "give processes=1") as executor:
        running: dict[Future[str], tuple[int, Path]] = {}
        for number, part in enumerate(parts):
            folder = work.folder_of(part, number, settings)
            if folder.is_dir():
                yield _Finished(number, folder, True)
                continue
            running[executor.submit(_estimate, part, folder)] = number, folder
            if len(running) == 2 * processes:
                yield from _first_of(running)
        while running:
            yield from _first_of(running)


def _first_of(running: dict[Future[str], tuple[int, Path]]) -> Iterator[_Finished]:
    done, _ = wait(running, return_when=FIRST_COMPLETED)
    for one in done:
        number, folder = running.pop(one)
        yield _Finished(number, folder, fault=one.result())


def _estimate(part: TablePart, folder: Path) -> str:
    work: _Work = shared_work()
    return work.estimate(part, folder)


def _joined(folders: Sequence[Path], out: Path, said: Sequence[str]) -> list[Path]:
    """Put the tables of all parts together, in their order, and the figures of the first beside them."""
    names = [name for name in (*TABLES, OCCASION_TABLE) if any((folder / name).is_file() for folder in folders)]
    whole = out / PARTS / "whole"
    shutil.rmtree(whole, ignore_errors=True)
    whole.mkdir()
    for name in names:
        _join([folder / name for folder in folders if (folder / name).is_file()], whole / name)
    if said:
        (whole / WARNINGS).write_text("\n".join(said) + "\n", encoding="utf-8")
    figures = [path.name for folder in folders for path in sorted(folder.glob("*.png"))]
    for folder in folders:
        for path in folder.glob("*.png"):
            path.replace(whole / path.name)
    for replaced in {OCCASION_TABLE, WARNINGS}:
        (out / replaced).unlink(missing_ok=True)
    every = [*names, *figures, *([WARNINGS] if said else [])]
    return [(whole / name).replace(out / name) for name in every]


def _remove_parts(folder: Path) -> None:
    """Remove the folders of parts, and what else was made here; what somebody else has put there stays."""
    for path in folder.iterdir():
        if _OWN.fullmatch(path.name):
            shutil.rmtree(path)
    with suppress(OSError):  # not empty
        folder.rmdir()


def _join(files: Sequence[Path], whole: Path) -> None:
    """Tables one after the other. One without censored values has no CENS and LLOQ, which others have."""
    headers = []
    for file in files:
        with file.open(encoding="utf-8", newline="") as rows:
            headers.append(next(csv.reader(rows)))
    widest = max(headers, key=len)
    with replacing(whole) as part, part.open("wb") as written:
        for k, (file, header) in enumerate(zip(files, headers, strict=True)):
            if header != widest:
                frame = pd.read_csv(file, dtype=str, keep_default_na=False)
                filled = frame.assign(**{name: "0" if name == "CENS" else "" for name in widest if name not in header})
                written.write(filled[widest].to_csv(index=False, header=k == 0).encode())
                continue
            with file.open("rb") as rows_of:
                first = rows_of.readline()
                written.write(first if k == 0 else b"")
                shutil.copyfileobj(rows_of, written, 1 << 20)
