"""Cohorts from event tables."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from neuralpk import datasets
from neuralpk.cohort import Cohort, Units
from neuralpk.datamodules.base import CohortDataModule, Part
from neuralpk.tables import read_table


class TableDataModule(CohortDataModule):
    """A cohort from an event table.

    Args:
        table: path of a CSV or Parquet file, or the name of a data set of `neuralpk.datasets`.
        columns: their column name to ours, where they differ.
        covariates: columns to use as covariates; null takes every column that is not reserved, [] none. Those that the
            equations of the model read need not be named.
        units: units of time, amount and value, for axes and tables.
        folds: leave-subjects-out: number of parts into which the subjects are dealt in turn; 0 splits by `test`.
        fold: the part that is the test, from 0.
        options: of `CohortDataModule`.

    Raises:
        ValueError: a fold outside its range; more folds than subjects.
        neuralpk.tables.DataError: a table that breaks a rule, naming rows, rules and cures.
    """

    def __init__(
        self,
        table: str,
        columns: dict[str, str] | None = None,
        covariates: list[str] | None = None,
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
        self.table, self.columns, self.covariates = table, columns, covariates
        self.units = Units(*units) if units else None
        self.folds, self.fold = folds, fold

    def make_cohort(self) -> Cohort:
        needed = {} if self._dynamics is None else self._dynamics.covariates
        if self.table in datasets.NAMES:
            cohort = datasets.load(self.table)
            if self.covariates is not None:
                of_model = [name for name in cohort.covariate_names if name in needed]
                cohort = cohort.with_covariates([*{*self.covariates, *of_model}])
            return cohort if self.units is None else dataclasses.replace(cohort, units=self.units)
        return read_table(
            Path(self.table),
            columns=self.columns,
            covariates=self.covariates,
            units=self.units or Units(),
            needed=needed,
        )

    def split(self, cohort: Cohort) -> dict[Part, Cohort]:
        if not self.folds:
            return super().split(cohort)
        if self.folds < 2 or self.folds > len(cohort):
            raise ValueError(f"{len(cohort)} subjects can be dealt into 2 to {len(cohort)} folds, not {self.folds}")
        order = np.arange(len(cohort))
        held: Sequence[int] = order[order % self.folds == self.fold].tolist()
        train = cohort[order[order % self.folds != self.fold].tolist()]
        return {"train": train, "val": train, "test": cohort[held]}
