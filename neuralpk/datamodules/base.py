"""What every data module does: split a cohort by subject and serve it in batches."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, get_args

import lightning as L
import numpy as np
import torch
from torch.utils.data import DataLoader

from neuralpk import randomness
from neuralpk.cohort import Cohort
from neuralpk.cohort_batch import CohortBatch
from neuralpk.datamodules.batch_loading import (
    BatchDataset,
    FurtherSubjects,
    GlobalBatchSampler,
    ResumableLoader,
    StreamedBatches,
    as_is,
)
from neuralpk.datamodules.seen_records import Context
from neuralpk.population_model import PopulationModel
from neuralpk.randomness import Stream
from neuralpk.residual_error import Assay, assays_read
from neuralpk.scaling import Scaling
from neuralpk.training_data_provenance import Provenance

Part = Literal["train", "val", "test"]

_SERVED: Mapping[str | None, tuple[Part, ...]] = {
    "fit": ("train", "val"),
    "validate": ("val",),
    "test": ("test",),
    "predict": ("test",),
}


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
        self._training: ResumableLoader | None = None
        self._skipped = 0

    def state_dict(self) -> dict[str, int]:
        """How far the epoch is; Lightning's own way comes too late where the schedule has asked for the loader."""
        return {} if self._training is None else self._training.state_dict()

    def _finished(self) -> int:
        """Batches of the epoch that the training has finished; 0 at its end."""
        assert self.trainer is not None
        current: Any = self.trainer.fit_loop.epoch_loop.batch_progress.current
        return int(current.processed) % max(1, int(self.trainer.num_training_batches))

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Where a resumed training starts."""
        if self.trainer is not None and self.trainer.state.fn == "fit":
            self._skipped = state_dict.get("served", 0)

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

    def read_for(self, task: L.LightningModule | None) -> None:
        """Read the data as the model of a task states that they are recorded (`PopulationModel.read_cohort`). `setup`
        does it with the task that is trained."""
        model = getattr(task, "model", None)
        if isinstance(model, PopulationModel) and _stated(model) != _stated(self._model):
            self._model, self._parts = model, None

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

    def setup(self, stage: str | None = None) -> None:
        """Make the cohort; called by Lightning in every process.

        Raises:
            ValueError: a part that is served has fewer subjects than there are devices.
        """
        self.read_for(getattr(self.trainer, "lightning_module", None))
        self.part("train")
        validated = self.trainer is None or self.trainer.limit_val_batches
        for part in _SERVED.get(stage, ()):
            if part != "val" or validated:
                self._refuse_more_devices(part)

    def _refuse_more_devices(self, part: Part) -> None:
        """Refuse more devices than subjects before the first epoch: a device without one would have no batch."""
        subjects, devices = len(self.part(part)), self.trainer.world_size if self.trainer else 1
        if subjects < devices:
            raise ValueError(f"{subjects} {part} subjects for {devices} devices; use at most one device a subject")

    def _loader(self, part: Part, training: bool, shared: bool = True) -> ResumableLoader:
        cohort, rank, devices = self.part(part), 0, 1
        if shared and self.trainer is not None:
            self._refuse_more_devices(part)
            rank, devices = self.trainer.global_rank, self.trainer.world_size
        context = self.context if training else self.evaluation_context
        if training:  # the truth of a training subject goes nowhere near the training
            cohort = dataclasses.replace(cohort, subjects=tuple(dataclasses.replace(s, truth=None) for s in cohort))
        # the batches of `overfit_batches` are the same ones in every epoch
        overfits = self.trainer is not None and self.trainer.overfit_batches > 0  # type: ignore[attr-defined]
        further = self.further_subjects() if training else None
        dataset = (
            BatchDataset(cohort, context, self.context_size, self.seed, self.forecast if part == "test" else None)
            if further is None
            else StreamedBatches(cohort, further, self._as_read(), context, self.context_size, self.seed)
        )
        sampler = GlobalBatchSampler(
            len(dataset),
            self.batch_size or len(cohort),
            self.passes_per_epoch if training else 1,
            training and not overfits and further is None,
            self.seed,
            rank,
            devices,
        )
        return ResumableLoader(
            dataset,
            batch_size=None,
            sampler=sampler,
            collate_fn=as_is,  # type: ignore[arg-type]  # a batch, since batch_size is None
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )

    def _as_read(self) -> Callable[[Cohort], Cohort]:
        """What was done to the training subjects that are held, for the others."""
        return partial(_as_read, self._model, self.forecast, self._check)

    def train_dataloader(self) -> DataLoader[CohortBatch]:
        """Batches of the training subjects, without their truth."""
        self._training = self._loader("train", training=True)
        self._training.skipped, self._skipped = self._skipped, 0
        if self.trainer is not None:
            self._training.finished = self._finished
        return self._training

    def val_dataloader(self) -> DataLoader[CohortBatch]:
        """Batches of the validation subjects."""
        return self._loader("val", training=False)

    def test_dataloader(self) -> DataLoader[CohortBatch]:
        """Batches of the test subjects."""
        return self._loader("test", training=False)

    def test_batches(self) -> DataLoader[CohortBatch]:
        """The batches of `test_dataloader` with all test subjects in them, whatever the number of devices."""
        return self._loader("test", training=False, shared=False)

    def predict_dataloader(self) -> DataLoader[CohortBatch]:
        """Batches of the test subjects."""
        return self._loader("test", training=False)


def _as_read(
    model: PopulationModel | None,
    forecast: float | None,
    check: Callable[[Cohort], Cohort] | None,
    cohort: Cohort,
) -> Cohort:
    cohort = cohort if model is None else model.read_cohort(cohort)
    cohort = cohort if forecast is None else cohort.hidden_from(forecast)
    return cohort if check is None else check(cohort)


def _stated(model: PopulationModel | None) -> tuple[tuple[Assay, ...], Mapping[str, float | None], str | None]:
    """What a model states of the data."""
    if model is None:
        return (), {}, None
    return (
        tuple(assays_read(model.dynamics.assays, model.error.outputs)),
        model.dynamics.covariates,
        model.population.occasion_column,
    )
