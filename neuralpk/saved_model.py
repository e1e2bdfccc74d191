"""Saved models: a checkpoint of a training, or a population file, read into one object that estimates patients."""

from __future__ import annotations

import copy
import io
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from torch import Tensor

from neuralpk.checkpoint_files import CheckpointError, checkpoint_bytes, is_archive
from neuralpk.cohort import Cohort, Units
from neuralpk.exported_model import MODEL, WEIGHTS, is_exported, read_exported
from neuralpk.individual_estimates import IndividualEstimates, PosteriorDraws, draw_individuals, estimate_individuals
from neuralpk.population_model import PopulationModel
from neuralpk.published_population import PublishedPopulation, equations, read_population
from neuralpk.scaling import Scaling
from neuralpk.tables import TablePart, read_table

if TYPE_CHECKING:
    from neuralpk.task import LatentTask


class SavedModel(ABC):
    """A model that was read from a file (`read_model`), whichever kind of file it was.

    Args:
        path: of the file, or of the folder of an exported model.

    Attributes:
        units: of the data that the model is of.
        covariates: names of the covariates that the population and the networks read.
        needed: covariates that the equations read, each with its default; None for one that the data must have.
        idle: names of further covariates of the training data, which nothing reads; a table may be without them.
        occasion_column: column of the data that says the occasions; None without variability between occasions.
        magnitudes: of data, for all patients that it estimates; None for those of a checkpoint's training, or, of a
            population file, of the patients themselves.
    """

    units: Units
    covariates: list[str]
    needed: Mapping[str, float | None]
    idle: list[str]
    occasion_column: str | None
    magnitudes: Scaling | None = None

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def files(self) -> list[Path]:
        """All files that it was read from, which say together what the model is."""
        return [self.path / name for name in (WEIGHTS, MODEL)] if is_exported(self.path) else [self.path]

    @property
    @abstractmethod
    def description(self) -> str:
        """What the model is and where its numbers come from; a sentence without a full stop."""

    @property
    @abstractmethod
    def status(self) -> str:
        """How its population fit ended; empty where the file does not say."""

    @abstractmethod
    def population_model(self, cohort: Cohort) -> PopulationModel:
        """The generative model for some patients.

        Raises:
            ValueError: a covariate that the patients lack, or that an effect cannot read.
        """

    def with_magnitudes_of(self, parts: Iterable[Cohort]) -> SavedModel:
        """The model with the magnitudes of the patients of all parts for every part that it estimates; a checkpoint has
        its own, and reads none."""
        return self

    @abstractmethod
    def published(self) -> PublishedPopulation:
        """The population as plain numbers.

        Raises:
            ValueError: learned weights, or another part that a population file cannot hold.
        """

    @abstractmethod
    def task(self) -> LatentTask:
        """The trained task.

        Raises:
            ValueError: a population file, which holds no training.
        """

    def estimate(
        self,
        cohort: Cohort,
        times: Sequence[float] | None = None,
        *,
        draws: int = 200,
        context: int | None = None,
        seed: int = 0,
        map: bool | None = None,
        first_index: int = 0,
        progress: Callable[[Sequence[Tensor]], Iterable[Tensor]] = iter,
    ) -> IndividualEstimates:
        """Estimate the patients of a cohort; arguments as of `neuralpk.individual_estimates.estimate_individuals`, with
        `map` None for what the model was trained with, which is True for a population file."""
        options = {"draws": draws, "context": context, "seed": seed, "first_index": first_index, "progress": progress}
        return self._estimate(cohort, map, times=times, **options)

    def draw(
        self, cohort: Cohort, draws: int = 200, *, context: int | None = None, seed: int = 0, map: bool | None = None
    ) -> PosteriorDraws:
        """Draws of the patients' parameters from the posterior, over the draws of the population's parameters; see
        `neuralpk.individual_estimates.draw_individuals`."""
        return self._draw(cohort, map, draws=draws, context=context, seed=seed)

    @abstractmethod
    def _estimate(self, cohort: Cohort, map: bool | None, **options: Any) -> IndividualEstimates: ...

    @abstractmethod
    def _draw(self, cohort: Cohort, map: bool | None, **options: Any) -> PosteriorDraws: ...

    def read_table(
        self,
        table: pd.DataFrame | TablePart | str | Path,
        also: Sequence[str] = (),
        units: Units | None = None,
        strata: Sequence[str] = (),
        **reading: Any,
    ) -> Cohort:
        """An event table with the covariates of the model, in its units.

        Args:
            table: a pandas frame, the path of a file, or a part of one (`neuralpk.tables.ParquetParts`).
            also: further covariates to read.
            units: of the table; None for those of the model.
            strata: the same, of which a patient may be without a value: it is NaN then.
            reading: further arguments of `neuralpk.tables.read_table`.

        Raises:
            neuralpk.tables.DataError: the table breaks a rule.
            ValueError: units other than those of the model.
        """
        if units is not None and units != self.units:
            asked, own = (", ".join(one) for one in (units, self.units))
            raise ValueError(f"units {asked}: the model is in {own}, and nothing is converted; convert the table first")
        return read_table(table, **self.reading(also, strata, **reading))

    def reading(self, also: Sequence[str] = (), strata: Sequence[str] = (), **reading: Any) -> dict[str, Any]:
        """Arguments with which `neuralpk.tables.read_table` reads a table for this model.

        Args:
            also: further covariates to read.
            strata: the same, of which a patient may be without a value.
            reading: what is asked for.
        """
        used = sorted({*self.covariates, *also, *strata} - {*self.needed})
        named = {"covariates": reading.get("covariates") or used}
        named |= {"occasion": reading.get("occasion") or self.occasion_column}
        gaps = dict.fromkeys({*self.idle, *strata} - {*self.covariates, *also}, math.nan)
        return reading | named | {"units": self.units, "needed": gaps | {**self.needed}}


def read_model(path: str | Path, unverified: bool = False) -> SavedModel:
    """Read a model from a file: a checkpoint of a training or a population file, told apart by their content; or from
    the folder of an exported model.

    Args:
        path: of the file or folder.
        unverified: also read a checkpoint without a sha256.

    Raises:
        FileNotFoundError: no such file.
        neuralpk.checkpoint_files.CheckpointError: a damaged checkpoint, or one without a sha256.
        ValueError: a file that is neither; a population file with a key or value that is wrong, by name; a part of a
            class that is not imported.
    """
    path = Path(path)
    if is_exported(path):
        from neuralpk.task import LatentTask

        content = io.BytesIO(checkpoint_bytes(read_exported(path)))
        content.name = str(path)
        return SavedTask(path, LatentTask.load_from_checkpoint(content, map_location="cpu"))
    if is_archive(path):
        from neuralpk.task import LatentTask  # Lightning, for which a population file does not wait

        return SavedTask(path, LatentTask.load_from_checkpoint(path, map_location="cpu", unverified=unverified))
    if b"\0" in path.read_bytes():
        raise CheckpointError(
            f"{path} is neither a checkpoint of a training nor a population file, or it is damaged: cut off or written "
            "over"
        )
    return SavedPopulation(path, read_population(path))


class SavedTask(SavedModel):
    """The model of a checkpoint.

    Args:
        path: of the checkpoint, or of the folder of an exported model.
        task: as it was trained.
    """

    def __init__(self, path: Path, task: LatentTask) -> None:
        super().__init__(path)
        self._task = task
        assert task.model.scaling is not None
        self.units, self.needed = task.model.scaling.units, task.model.dynamics.covariates
        encoder = task.encoder is not None
        self.covariates, self.idle = task.model.table_covariates(encoder), task.model.idle_covariates(encoder)
        self.occasion_column = task.model.population.occasion_column

    @property
    def description(self) -> str:
        return f"The model was {self._task.provenance.description}"

    @property
    def status(self) -> str:
        return "" if self._task.status is None else f"Population fit: {self._task.status.sentence}"

    def population_model(self, cohort: Cohort) -> PopulationModel:
        return self._task.model

    def published(self) -> PublishedPopulation:
        return PublishedPopulation.from_model(self._task.model, self.units)

    def task(self) -> LatentTask:
        return self._task

    def _estimate(self, cohort: Cohort, map: bool | None, **options: Any) -> IndividualEstimates:
        return self._task.reconstruct(cohort, map=map, **options)

    def _draw(self, cohort: Cohort, map: bool | None, **options: Any) -> PosteriorDraws:
        return self._task.draw(cohort, map=map, **options)


class SavedPopulation(SavedModel):
    """The model of a population file.

    Args:
        path: of the file.
        population: its content.
    """

    def __init__(self, path: Path, population: PublishedPopulation) -> None:
        super().__init__(path)
        self._population = population
        self._dynamics = equations(population.dynamics)
        self.units, self.covariates, self.needed = population.units, population.covariates, self._dynamics.covariates
        self.idle = []
        self.occasion_column = population.occasion_column

    @property
    def description(self) -> str:
        return f"The model is the population of {self.path}"

    @property
    def status(self) -> str:
        return ""

    def population_model(self, cohort: Cohort) -> PopulationModel:
        return self._population.model(cohort, self.magnitudes)

    def with_magnitudes_of(self, parts: Iterable[Cohort]) -> SavedModel:
        changed = copy.copy(self)
        read = (self._dynamics.read_cohort(cohort, self._population.outputs) for cohort in parts)
        changed.magnitudes = Scaling.of_parts(read)
        return changed

    def published(self) -> PublishedPopulation:
        return self._population

    def task(self) -> LatentTask:
        raise ValueError(
            f"{self.path} is a population file, which does not say which of its numbers were learned, and from what: "
            "give the checkpoint of its training"
        )

    def _estimate(self, cohort: Cohort, map: bool | None, **options: Any) -> IndividualEstimates:
        self._refuse_no_search(map)
        cohort = self._dynamics.read_cohort(cohort, self._population.outputs)
        model = self.population_model(cohort)
        return estimate_individuals(model, cohort, **options)

    def _draw(self, cohort: Cohort, map: bool | None, **options: Any) -> PosteriorDraws:
        self._refuse_no_search(map)
        cohort = self._dynamics.read_cohort(cohort, self._population.outputs)
        return draw_individuals(self.population_model(cohort), cohort, **options)

    def _refuse_no_search(self, map: bool | None) -> None:
        if map is False:
            raise ValueError(f"{self.path} is a population file: it has no encoder, and map must not be false")
