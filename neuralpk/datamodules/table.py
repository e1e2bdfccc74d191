"""Cohorts from event tables."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from neuralpk import datasets
from neuralpk.cohort import Cohort, Units
from neuralpk.cohort_data.base import FurtherSubjects, Part
from neuralpk.datamodules.base import CohortDataModule
from neuralpk.tables import ParquetParts, read_table
from neuralpk.tables.layout import ALL, Layout


@dataclasses.dataclass(frozen=True)
class _SubjectsOfFile(FurtherSubjects):
    """Subjects of a Parquet file from its number `first` on."""

    file: ParquetParts
    first: int
    reading: dict[str, Any]
    said: set[str] = dataclasses.field(default_factory=set)

    def __len__(self) -> int:
        return self.file.subjects - self.first

    def __call__(self, numbers: Sequence[int]) -> tuple[list[int], Cohort]:
        part = self.file.subjects_of(self.first + np.array(numbers))
        names = self.file.names(part)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            cohort = read_table(part, **self.reading)
        for one in caught:
            rule = str(one.message).partition(" ")[0]
            if rule not in self.said:
                self.said.add(rule)
                warnings.warn(f"{one.message} Said of the first batch only.", one.category, stacklevel=2)
        there = set(cohort.ids)
        return [number for number, name in zip(numbers, names, strict=True) if name in there], cohort


class TableDataModule(CohortDataModule):
    """A cohort from an event table.

    Args:
        table: path of a file, or the name of a data set of `neuralpk.datasets`.
        columns: our column names = theirs, where they differ: ``DV=LIDV,ID=SUBJ`` or ``{DV: LIDV}``.
        covariates: columns to use as covariates; ``all`` for every column that has no other meaning; null for none.
            Those that the equations of the model read need not be named.
        endpoint: column that says which endpoint a value belongs to, instead of DVID.
        occasion: column that says the occasion of each row; at its new value the clock may restart, instead of at that
            of OCC and PERIOD. Default: that of the model, where it has variability between occasions.
        lloq: column, or number, that is the limit of quantification of the values with CENS 1.
        map: codes to be read as others: ``SS:99=0,DV:9999=.``.
        ignore: rows to leave out: ``FLAG == 1``; ``@``, ``#`` and ``C`` for comments.
        separator: between cells: ``comma``, ``semicolon``, ``tab`` or ``space``.
        decimal: sign in numbers, ``.`` or ``,``.
        dates: order of dates that do not begin with the year: ``dmy``, ``mdy``, ``ymd`` or ``ydm``.
        compartments: names that CMT uses, in the order of their numbers from 1.
        sort: put the rows of each subject in order of TIME instead of refusing a table that is not.
        impute: what stands for a covariate that is missing in a whole subject: ``WT=median,SEX=mode,AGE=40``.
        carry: a covariate that changes in time has its last value until the next one, ``forward``; or the next value
            from the record before it on, ``backward`` (as in NONMEM).
        held: hold only the first so many subjects of a Parquet file, which give the magnitudes, the validation and the
            figures; the others are read batch by batch, by row groups, and not kept. They come in the order of the
            file in every pass: write it in a random one. Null holds all.
        units: units of time, amount and value, for axes and tables.
        folds: leave-subjects-out: number of parts into which the subjects are dealt in turn; 0 splits by `test`.
        fold: the part that is the test, from 0.
        options: of `CohortDataModule`.

    Raises:
        ValueError: units that are not three; a fold outside its range; more folds than subjects; a column or code of a
            data set by name.
        neuralpk.tables.DataError: a table that breaks a rule, naming rows, rules and cures.
    """

    def __init__(
        self,
        table: str,
        columns: dict[str, str] | str | list[str] | None = None,
        covariates: list[str] | str | None = None,
        endpoint: str | None = None,
        occasion: str | None = None,
        lloq: float | str | None = None,
        map: dict[str, dict[str, str]] | str | list[str] | None = None,
        ignore: str | list[str] | None = None,
        separator: str | None = None,
        decimal: str = ".",
        dates: str | None = None,
        compartments: list[str] | None = None,
        sort: bool = False,
        impute: dict[str, str | float] | str | None = None,
        carry: str = "forward",
        held: int | None = None,
        units: list[str] | None = None,
        folds: int = 0,
        fold: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if folds and not 0 <= fold < folds:
            raise ValueError(f"fold is counted from 0 to {folds - 1}, got {fold}")
        if folds and (self.validation or self.test):
            raise ValueError("give folds, or the shares validation and test, not both")
        self.table, self.covariates = table, covariates
        self.reading: dict[str, Any] = {
            "columns": columns, "endpoint": endpoint, "occasion": occasion, "lloq": lloq, "map": map, "ignore": ignore,
            "separator": separator, "decimal": decimal, "dates": dates, "compartments": compartments, "sort": sort,
            "impute": impute, "carry": carry,
        }  # fmt: skip
        self.units = Units.of(units) if units else None
        self.folds, self.fold = folds, fold
        if held is not None and (held < 1 or folds):
            raise ValueError(f"held must be 1 or more, and is not for folds; got {held}")
        self.held = held
        self._file: ParquetParts | None = None

    def further_subjects(self) -> FurtherSubjects | None:
        if self.held is None or self._file is None or self._file.subjects <= self.held:
            return None
        first = self.part("train")
        reading = self._reading() | {"covariates": list(first.covariate_names)}
        return _SubjectsOfFile(self._file, self.held, reading)

    def make_cohort(self) -> Cohort:
        if self.table in datasets.NAMES:
            needed = {} if self._model is None else self._model.dynamics.covariates
            if self.held is not None:
                raise ValueError(f"{self.table!r} is a data set of the package, and held whole")
            if any(value not in (None, ".", False, "forward") for value in self.reading.values()):
                raise ValueError(f"{self.table!r} is a data set of the package, with columns and codes of its own")
            cohort = datasets.load(self.table)
            if self.covariates != ALL:
                read = [name for name in cohort.covariate_names if name in needed]
                named = Layout.of(covariates=self.covariates).covariates or ()
                cohort = cohort.with_covariates(sorted({*named, *read}))
            return cohort if self.units is None else dataclasses.replace(cohort, units=self.units)
        reading = self._reading()
        if self.held is None:
            return read_table(Path(self.table), **reading)
        self._file = ParquetParts(self.table, self.held, reading)
        return read_table(next(iter(self._file)), **reading)

    def _reading(self) -> dict[str, Any]:
        """Arguments of `read_table`."""
        occasion, needed = self.reading["occasion"], {}
        if self._model is not None:
            occasion = self._model.population.occasions_in(occasion)
            needed = dict(self._model.dynamics.covariates)
        own = {"covariates": self.covariates, "units": self.units or Units(), "needed": needed}
        return self.reading | own | {"occasion": occasion}

    def split(self, cohort: Cohort) -> dict[Part, Cohort]:
        if not self.folds:
            return super().split(cohort)
        if self.folds < 2 or self.folds > len(cohort):
            raise ValueError(f"{len(cohort)} subjects can be dealt into 2 to {len(cohort)} folds, not {self.folds}")
        order = np.arange(len(cohort))
        held: Sequence[int] = order[order % self.folds == self.fold].tolist()
        train = cohort[order[order % self.folds != self.fold].tolist()]
        return {"train": train, "val": train, "test": cohort[held]}
