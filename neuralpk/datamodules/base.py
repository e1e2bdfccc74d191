"""What every data module does: serve a cohort in batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import lightning as L
from torch.utils.data import DataLoader

from neuralpk.cohort_batch import CohortBatch
from neuralpk.cohort_data.base import CohortData, Part
from neuralpk.datamodules.batch_loading import (
    BatchDataset,
    GlobalBatchSampler,
    ResumableLoader,
    StreamedBatches,
    as_is,
)
from neuralpk.population_model import PopulationModel
from neuralpk.residual_error import Assay, assays_read

_SERVED: Mapping[str | None, tuple[Part, ...]] = {
    "fit": ("train", "val"),
    "validate": ("val",),
    "test": ("test",),
    "predict": ("test",),
}


class CohortDataModule(CohortData, L.LightningDataModule):
    """A cohort in batches: `CohortData`, served to a Trainer."""

    _training: ResumableLoader | None = None
    _skipped = 0

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

    def read_for(self, task: L.LightningModule | None) -> None:
        """Read the data as the model of a task states that they are recorded (`PopulationModel.read_cohort`). `setup`
        does it with the task that is trained."""
        model = getattr(task, "model", None)
        if isinstance(model, PopulationModel) and _stated(model) != _stated(self._model):
            self._model, self._parts = model, None

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


def _stated(model: PopulationModel | None) -> tuple[tuple[Assay, ...], Mapping[str, float | None], str | None]:
    """What a model states of the data."""
    if model is None:
        return (), {}, None
    return (
        tuple(assays_read(model.dynamics.assays, model.error.outputs)),
        model.dynamics.covariates,
        model.population.occasion_column,
    )
