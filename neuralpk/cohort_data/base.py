"""What all data of a training are: a cohort split by subject, and what is seen of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, Protocol, get_args

import numpy as np
import torch

from neuralpk import randomness
from neuralpk.cohort import Cohort
from neuralpk.cohort_data.seen_records import Context
from neuralpk.population_model import PopulationModel
from neuralpk.randomness import Stream
from neuralpk.scaling import Scaling
from neuralpk.training_data_provenance import Provenance

Part = Literal["train", "val", "test"]


class FurtherSubjects(Protocol):
    """Subjects that are read or simulated when their batch is asked for, the same at every call, in every process."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    def __call__(self, numbers: Sequence[int]) -> tuple[list[int], Cohort]:
        """Those with these numbers, from 0, in ascending order; a subject without an observation may be left out."""
        ...


class CohortData(ABC):
    """A cohort split by subject, with the settings of its batches, which a data module serves. Same seed, same batches,
    whatever the number of workers or devices.

    Args:
        batch_size: subjects in a batch over all devices; None takes all at once.
        passes_per_epoch: passes over the training subjects in an epoch; with a small cohort more than one keeps the
            time between passes from outweighing them.
        validation: share of the subjects held out for validation; 0 validates on the training subjects, seen whole.
        test: share of the subjects held out for the test; 0 tests on the validation subjects.
        context: which observations the encoder sees in training: ``all``, ``random`` or ``first`` (`choose_context`).
        evaluation_context: the same in validation and test.
        context_size: how many observations ``first`` means.
        forecast: time from which on, on the data's clock, values are for the test alone, which shows the encoder what
            lies before and scores them; None for no forecast.
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
        forecast: float | None = None,
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
        if num_workers < 0:
            raise ValueError(f"num_workers must be 0 or more, got {num_workers}")
        self.batch_size = batch_size
        self.passes_per_epoch = passes_per_epoch
        self.validation = validation
        self.test = test
        self.context: Context = context
        self.evaluation_context: Context = evaluation_context
        self.context_size = context_size
        self.forecast = forecast
        self.num_workers = num_workers
        self.seed = seed
        self._model: PopulationModel | None = None
        self._parts: dict[Part, Cohort] | None = None
        self._check: Callable[[Cohort], Cohort] | None = None

    @abstractmethod
    def make_cohort(self) -> Cohort:
        """The whole cohort, the same at every call."""

    def further_subjects(self) -> FurtherSubjects | None:
        """Training subjects beside those of `part`, which are read or simulated when their batch is asked for, in their
        order, and are not kept; None for none."""
        return None

    @property
    def streamed(self) -> int:
        """How many of the training subjects are not held."""
        further = self.further_subjects()
        return 0 if further is None else len(further)

    def typical_lines(self, cohort: Cohort) -> np.ndarray | None:
        """True line of the typical subject under each one's doses, ``[subject, grid, endpoint]``, where it is known."""
        return None

    def split(self, cohort: Cohort) -> dict[Part, Cohort]:
        """Training, validation and test subjects."""
        order = randomness.uniform(self.seed, Stream.SPLIT.at(0), torch.tensor([0]), len(cohort))[0].argsort().tolist()
        # a share above 0 is at least one subject: none would mean the training subjects
        val, test = (max(1, round(s * len(cohort))) if s else 0 for s in (self.validation, self.test))
        if val + test >= len(cohort):
            raise ValueError(f"{val} validation and {test} test subjects leave none of {len(cohort)} to train on")
        parts = {"val": order[:val], "test": order[val : val + test], "train": order[val + test :]}
        train = cohort[sorted(parts["train"])]
        held = {name: cohort[sorted(chosen)] for name, chosen in parts.items()}
        validated = held["val"] if val else train
        return {"train": train, "val": validated, "test": held["test"] if test else validated}

    def part(self, name: Part) -> Cohort:
        """Subjects of one part; made once and kept."""
        if self._parts is None:
            cohort = self.make_cohort()
            self._parts = self.split(cohort if self._model is None else self._model.read_cohort(cohort))
            if self.forecast is not None:
                for early in ("train", "val"):
                    self._parts[early] = self._parts[early].hidden_from(self.forecast)
        return self._parts[name]

    def restrict(self, check: Callable[[Cohort], Cohort]) -> None:
        """Replace every part by what a check of it returns, before it is served."""
        self.part("train")
        assert self._parts is not None
        each = {id(cohort): cohort for cohort in self._parts.values()}
        checked = {key: check(cohort) for key, cohort in each.items()}
        self._parts = {name: checked[id(cohort)] for name, cohort in self._parts.items()}
        self._check = check

    def scaling(self) -> Scaling:
        """Magnitudes of the training subjects that are held."""
        return Scaling.of(self.part("train"))

    def provenance(self) -> Provenance:
        """Whose data a model learns from."""
        return Provenance(len(self.part("train")) + self.streamed)

    def _as_read(self) -> Callable[[Cohort], Cohort]:
        """What was done to the training subjects that are held, for the others."""
        return partial(_as_read, self._model, self.forecast, self._check)


def _as_read(
    model: PopulationModel | None,
    forecast: float | None,
    check: Callable[[Cohort], Cohort] | None,
    cohort: Cohort,
) -> Cohort:
    cohort = cohort if model is None else model.read_cohort(cohort)
    cohort = cohort if forecast is None else cohort.hidden_from(forecast)
    return cohort if check is None else check(cohort)
