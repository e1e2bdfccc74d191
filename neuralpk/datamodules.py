"""LightningDataModules: cohorts, simulated or read from a table, split by subject and batched."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, Literal, get_args

import lightning as L
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from neuralpk import datasets, randomness
from neuralpk.cohort import Cohort, CohortBatch, Dose, Units, collate
from neuralpk.dynamics import Absorption, CompartmentModel, Dynamics, Elimination, LotkaVolterra
from neuralpk.residual_error import ERRORS
from neuralpk.scaling import Scaling
from neuralpk.simulate import Design, Population, omega_from_cv, simulate_cohort
from neuralpk.tables import read_table

Context = Literal["all", "random", "first"]
Part = Literal["train", "val", "test"]
_SPLIT, _ORDER, _KEEP, _RANK = range(100, 104)  # streams of the counter-based random numbers


def choose_context(batch: CohortBatch, context: Context, size: int, seed: int, stream: int) -> CohortBatch:
    """Decide what the encoder sees and what the loss scores.

    ``all``: it sees and is scored on everything measured. ``random``: it sees a random subset of one observation or
    more and is scored on everything. ``first``: it sees the first `size` observations and is scored on the rest.
    """
    if context == "all":
        return batch
    observed, width = batch.observed, batch.observed.shape[1]
    if context == "first":
        seen = observed & (observed.long().cumsum(1) <= size)
        return dataclasses.replace(batch, context=seen, target=observed & ~seen)
    rank = torch.where(observed, randomness.uniform(seed, 2 * stream, batch.index, width), 2.0)
    rank = rank.argsort(1).argsort(1)
    share = randomness.uniform(seed, 2 * stream + 1, batch.index, 1)
    kept = 1 + (share * observed.sum(1, keepdim=True)).long()
    return dataclasses.replace(batch, context=observed & (rank < kept))


class BatchDataset(Dataset[CohortBatch]):
    """Whole batches of a cohort, asked for by (stream, subjects)."""

    def __init__(self, cohort: Cohort, context: Context, size: int, seed: int) -> None:
        self.cohort, self.context, self.size, self.seed = cohort, context, size, seed

    def __getitem__(self, request: tuple[int, list[int]]) -> CohortBatch:
        stream, subjects = request
        batch = collate(self.cohort[subjects], index=subjects)
        return choose_context(batch, self.context, self.size, self.seed, stream)

    def __len__(self) -> int:
        return len(self.cohort)


class GlobalBatchSampler(DistributedSampler[Any]):
    """Batches that do not depend on the number of devices: each device takes its share of the same global batch.

    A `DistributedSampler` by type, so that Lightning keeps it and sets its epoch; unlike one it never repeats a
    subject to even out the shares.

    Args:
        subjects: number of subjects.
        batch_size: subjects in a batch, over all devices.
        passes: passes over the subjects in an epoch.
        shuffle: a new order in every pass.
        seed: of the order.
        rank: this device.
        devices: how many there are.
    """

    def __init__(
        self, subjects: int, batch_size: int, passes: int, shuffle: bool, seed: int, rank: int, devices: int
    ) -> None:
        super().__init__(range(subjects), num_replicas=devices, rank=rank)  # type: ignore[arg-type]
        self.subjects, self.batch_size, self.passes = subjects, max(batch_size, devices), passes
        self.ordered, self.own_seed = not shuffle, seed

    def _cuts(self) -> list[int]:
        cuts = [*range(0, self.subjects, self.batch_size), self.subjects]
        if len(cuts) > 2 and cuts[-1] - cuts[-2] < self.num_replicas:
            del cuts[-2]  # a last batch too small to give every device a subject joins the one before
        return cuts

    def __iter__(self) -> Iterator[tuple[int, list[int]]]:
        cuts = self._cuts()
        for k in range(self.passes):
            stream = self.epoch * self.passes + k
            order = torch.arange(self.subjects)
            if not self.ordered:
                order = randomness.uniform(self.own_seed, stream, torch.tensor([_ORDER]), self.subjects)[0].argsort()
            for a, b in pairwise(cuts):
                yield stream, order[a:b][self.rank :: self.num_replicas].tolist()

    def __len__(self) -> int:
        return self.passes * (len(self._cuts()) - 1)


class _Resumable(DataLoader[CohortBatch]):
    """A loader that a resumed training continues where it was interrupted in the middle of an epoch."""

    served = 0
    skipped = 0

    def __iter__(self) -> Iterator[CohortBatch]:  # type: ignore[override]
        self.served, self.skipped = self.skipped, 0
        for batch in islice(super().__iter__(), self.served, None):
            self.served += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """How far the epoch is."""
        return {"served": self.served % len(self)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Where the next epoch starts."""
        self.skipped = state["served"]


def _as_is(batch: CohortBatch) -> CohortBatch:
    return batch


class CohortDataModule(L.LightningDataModule, ABC):
    """A cohort in batches. Same seed, same batches, whatever the number of workers or devices.

    Args:
        batch_size: subjects in a batch over all devices; None takes all at once.
        passes_per_epoch: passes over the training subjects in an epoch; with a small cohort more than one keeps the
            time between passes from outweighing them.
        validation: share of the subjects held out for validation; 0 validates on the training subjects, seen whole.
        test: share of the subjects held out for the test; 0 tests on the validation subjects.
        context: which observations the encoder sees in training: ``all``, ``random`` or ``first`` (`choose_context`).
        evaluation_context: the same in validation and test.
        context_size: how many observations ``first`` means.
        num_workers: processes that prepare batches.
        seed: of the cohort, its split and its batches.
    """

    def __init__(
        self,
        batch_size: int | None = None,
        passes_per_epoch: int = 1,
        validation: float = 0.0,
        test: float = 0.0,
        context: Context = "all",
        evaluation_context: Context = "all",
        context_size: int = 3,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if min(validation, test) < 0 or validation + test >= 1:
            raise ValueError(f"validation {validation} and test {test} are shares that leave subjects to train on")
        for name, value in (("context", context), ("evaluation_context", evaluation_context)):
            if value not in get_args(Context):
                raise ValueError(f"{name} is one of {', '.join(get_args(Context))}; not {value!r}")
        counts = {"batch_size": batch_size, "passes_per_epoch": passes_per_epoch, "context_size": context_size}
        for name, count in counts.items():
            if count is not None and count < 1:
                raise ValueError(f"{name} must be 1 or more, got {count}")
        self.batch_size = batch_size
        self.passes_per_epoch = passes_per_epoch
        self.validation = validation
        self.test = test
        self.context: Context = context
        self.evaluation_context: Context = evaluation_context
        self.context_size = context_size
        self.num_workers = num_workers
        self.seed = seed
        self._parts: dict[Part, Cohort] | None = None
        self._training: _Resumable | None = None
        self._skipped = 0

    def state_dict(self) -> dict[str, int]:
        """How far the epoch is; Lightning's own way comes too late where the schedule has asked for the loader."""
        return {} if self._training is None else self._training.state_dict()

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Where a resumed training starts."""
        if self.trainer is not None and self.trainer.state.fn == "fit":
            self._skipped = state_dict.get("served", 0)

    @abstractmethod
    def make_cohort(self) -> Cohort:
        """The whole cohort, the same at every call."""

    def typical_lines(self, cohort: Cohort) -> np.ndarray | None:
        """True line of the typical subject under each one's doses, ``[subject, grid, endpoint]``, where it is known."""
        return None

    def split(self, cohort: Cohort) -> dict[Part, Cohort]:
        """Training, validation and test subjects."""
        order = randomness.uniform(self.seed, 0, torch.tensor([_SPLIT]), len(cohort))[0].argsort().tolist()
        val, test = round(self.validation * len(cohort)), round(self.test * len(cohort))
        parts = {"val": order[:val], "test": order[val : val + test], "train": order[val + test :]}
        train = cohort[sorted(parts["train"])]
        held = {name: cohort[sorted(chosen)] for name, chosen in parts.items()}
        validated = held["val"] if val else train
        return {"train": train, "val": validated, "test": held["test"] if test else validated}

    def part(self, name: Part) -> Cohort:
        """Subjects of one part; made once and kept."""
        if self._parts is None:
            self._parts = self.split(self.make_cohort())
        return self._parts[name]

    def scaling(self) -> dict[str, Any]:
        """`Scaling` of the training subjects, as plain numbers for a task."""
        return Scaling.of(self.part("train")).plain()

    def setup(self, stage: str | None = None) -> None:
        """Make the cohort; called by Lightning in every process."""
        self.part("train")

    def _loader(self, part: Part, training: bool) -> _Resumable:
        cohort = self.part(part)
        rank, devices = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        context = self.context if training else self.evaluation_context
        if training:  # the truth of a training subject goes nowhere near the training
            cohort = dataclasses.replace(cohort, subjects=tuple(dataclasses.replace(s, truth=None) for s in cohort))
        sampler = GlobalBatchSampler(
            len(cohort),
            self.batch_size or len(cohort),
            self.passes_per_epoch if training else 1,
            training,
            self.seed,
            rank,
            devices,
        )
        return _Resumable(
            BatchDataset(cohort, context, self.context_size, self.seed),
            batch_size=None,
            sampler=sampler,
            collate_fn=_as_is,  # type: ignore[arg-type]  # a batch, since batch_size is None
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )

    def train_dataloader(self) -> DataLoader[CohortBatch]:
        """Batches of the training subjects, without their truth."""
        self._training = self._loader("train", training=True)
        self._training.skipped, self._skipped = self._skipped, 0
        return self._training

    def val_dataloader(self) -> DataLoader[CohortBatch]:
        """Batches of the validation subjects."""
        return self._loader("val", training=False)

    def test_dataloader(self) -> DataLoader[CohortBatch]:
        """Batches of the test subjects."""
        return self._loader("test", training=False)

    def predict_dataloader(self) -> DataLoader[CohortBatch]:
        """Batches of the test subjects."""
        return self._loader("test", training=False)


class SimulatedDataModule(CohortDataModule):
    """A cohort from a population, a design, a dynamics and an error model.

    Args:
        subjects: how many.
        test_subjects: further subjects of the same population for the test, beside any held out; 0 for none.
        options: of `CohortDataModule`.
    """

    dynamics: Dynamics
    population: Population
    design: Design
    units: Units

    def __init__(
        self, subjects: int, test_subjects: int, error: str, error_sd: dict[str, float], **options: Any
    ) -> None:
        super().__init__(**options)
        if error not in ERRORS:
            raise ValueError(f"error is one of {', '.join(ERRORS)}; not {error!r}")
        if subjects < 1 or test_subjects < 0:
            raise ValueError(f"subjects must be 1 or more and test_subjects 0 or more: {subjects}, {test_subjects}")
        self.subjects, self.test_subjects = subjects, test_subjects
        self.error, self.error_sd = error, error_sd

    def _simulate(self, population: Population, design: Design, subjects: int) -> Cohort:
        error = ERRORS[self.error].known(endpoints=len(set(design.endpoints)), **self.error_sd)
        return simulate_cohort(self.dynamics, population, design, error, subjects, self.seed, self.units)

    def make_cohort(self) -> Cohort:
        return self._simulate(self.population, self.design, self.subjects + self.test_subjects)

    def split(self, cohort: Cohort) -> dict[Part, Cohort]:
        parts = super().split(cohort[: self.subjects])
        return parts | ({"test": cohort[self.subjects :]} if self.test_subjects else {})

    def typical_lines(self, cohort: Cohort) -> np.ndarray | None:
        typical = dataclasses.replace(self.population, omega={})
        lines = self._simulate(typical, self.design, max(int(i) for i in cohort.ids))
        return np.stack([truth.line for i in cohort.ids if (truth := lines[int(i) - 1].truth) is not None])


_TIMES = (0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 36, 48, 71.99)


class PKDataModule(SimulatedDataModule):
    """A simulated pharmacokinetic cohort; the default is the talk's: 50 patients, two compartments, an IV bolus.

    Args:
        subjects: number of patients.
        test_subjects: further patients for the test.
        compartments: 1, 2 or 3; with `absorption`, `elimination`, `transits` and `lag` as for `CompartmentModel`.
        typical: typical value of every parameter (L, h, mg).
        cv: between-subject variability in percent by parameter, CV% = 100·sqrt(exp(omega²) − 1).
        omega: standard deviation of eta by parameter, or the full covariance matrix in the order of `typical`; given
            instead of `cv`.
        covariates: name to [low, high], or to the probability of a 1.
        effects: ``PARAMETER~COVARIATE`` to its exponent (`Population`).
        doses: amounts in mg; patient i gets one of them in turn.
        repeats: number of doses, `interval` hours apart (ADDL = repeats − 1).
        interval: hours between doses (II).
        infusion: duration of each dose, h; 0 is a bolus.
        steady_state: the first dose finds the patient at steady state (SS = 1).
        times: candidate sampling times, h.
        samples: how many each patient keeps at random; [low, high] draws how many; null keeps all.
        continuous: draw the times uniformly over the span of `times` instead.
        jitter: standard deviation of the sampling times around their plan, h.
        grid: first time, last time and number of points of the true line.
        error: additive, proportional, combined or log_normal.
        error_sd: its standard deviations, a (mg/L) and b.
        lloq: lower limit of quantification, mg/L.
        options: of `CohortDataModule`.
    """

    def __init__(
        self,
        subjects: int = 50,
        test_subjects: int = 0,
        compartments: int = 2,
        absorption: Absorption = "none",
        elimination: Elimination = "linear",
        transits: int = 3,
        lag: bool = False,
        typical: dict[str, float] | None = None,
        cv: dict[str, float] | None = None,
        omega: dict[str, float] | list[list[float]] | None = None,
        covariates: dict[str, list[float] | float] | None = None,
        effects: dict[str, float] | None = None,
        doses: list[float] | None = None,
        repeats: int = 1,
        interval: float = 0.0,
        infusion: float = 0.0,
        steady_state: bool = False,
        times: list[float] | None = None,
        samples: int | list[int] | None = 8,
        continuous: bool = False,
        jitter: float = 0.0,
        grid: list[float] | None = None,
        error: str = "proportional",
        error_sd: dict[str, float] | None = None,
        lloq: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__(subjects, test_subjects, error, error_sd or {"b": 0.2}, **options)
        inlet = "central" if absorption == "none" else "depot"
        self.dynamics = CompartmentModel(compartments, absorption, elimination, transits, lag=inlet if lag else None)
        self.units = Units()
        if cv is not None and omega is not None:
            raise ValueError("give the variability as cv or as omega, not both")
        unnamed = [name for name in effects or {} if name.count("~") != 1]
        if unnamed:
            raise ValueError(f"effects are written PARAMETER~COVARIATE, not {unnamed}")
        typical = typical or {"CL": 4.0, "V1": 70.0, "Q": 4.0, "V2": 50.0}
        spread = {name: omega_from_cv(value) for name, value in cv.items()} if cv else omega
        self.population = Population(
            typical=typical,
            omega=dict.fromkeys(typical, 0.3) if spread is None else spread,
            covariates={k: tuple(v) if isinstance(v, list) else v for k, v in (covariates or {}).items()},  # type: ignore[misc]
            effects={(k.split("~")[0], k.split("~")[1]): v for k, v in (effects or {}).items()},
        )
        records = [
            Dose(
                time=0.0,
                amount=amount,
                duration=infusion,
                interval=interval,
                additional=repeats - 1,
                steady_state=int(steady_state),
            )
            for amount in doses or [10.0, 30.0, 60.0, 120.0]
        ]
        times = times or list(_TIMES)
        first, last, points = grid or [min(times), 72.0 if times == list(_TIMES) else max(times), 200]
        self.design = Design(
            regimens=tuple((record,) for record in records),
            times=tuple(times),
            samples=(samples[0], samples[1]) if isinstance(samples, list) else samples,
            continuous=continuous,
            jitter=jitter,
            lloq=lloq,
            grid=tuple(np.linspace(first, last, int(points)).tolist()),
        )


class LotkaVolterraDataModule(SimulatedDataModule):
    """A simulated cohort of predator–prey series, each with its own rates and starting densities.

    Args:
        subjects: number of series.
        test_subjects: further series for the test.
        typical: typical value of alpha, beta, gamma, delta (per time unit) and of prey0, predator0.
        omega: standard deviation of eta of each, or the full covariance matrix.
        times: candidate observation times.
        samples: how many each series keeps at random; null keeps all.
        error: additive, proportional, combined or log_normal.
        error_sd: its standard deviations, for prey and predator alike.
        options: of `CohortDataModule`.
    """

    def __init__(
        self,
        subjects: int = 50,
        test_subjects: int = 0,
        typical: dict[str, float] | None = None,
        omega: dict[str, float] | list[list[float]] | None = None,
        times: list[float] | None = None,
        samples: int | None = 12,
        error: str = "log_normal",
        error_sd: dict[str, float] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(subjects, test_subjects, error, error_sd or {"b": 0.1}, **options)
        self.dynamics = LotkaVolterra()
        self.units = Units(time="time", amount="animals", value="density")
        typical = typical or {
            "alpha": 1.3, "beta": 0.9, "gamma": 1.8, "delta": 0.8, "prey0": 1.5, "predator0": 1.5,
        }  # fmt: skip
        self.population = Population(typical, dict.fromkeys(typical, 0.15) if omega is None else omega)
        times = times or np.linspace(0.0, 8.0, 33).tolist()
        self.design = Design(((),), tuple(times), samples, endpoints=(1, 2))


class TableDataModule(CohortDataModule):
    """A cohort from an event table.

    Args:
        table: path of a CSV or Parquet file, or the name of a data set of `neuralpk.datasets`.
        columns: their column name to ours, where they differ.
        covariates: columns to use as covariates; null takes every column that is not reserved, [] none.
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
        self.table, self.columns, self.covariates = table, columns, covariates
        self.units = Units(*units) if units else None
        self.folds, self.fold = folds, fold

    def make_cohort(self) -> Cohort:
        if self.table in datasets.NAMES:
            cohort = datasets.load(self.table)
            if self.covariates is not None:
                cohort = cohort.with_covariates(self.covariates)
            return cohort if self.units is None else dataclasses.replace(cohort, units=self.units)
        return read_table(
            Path(self.table), columns=self.columns, covariates=self.covariates, units=self.units or Units()
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
