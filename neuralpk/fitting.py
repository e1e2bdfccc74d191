"""Two lines for a pandas table: ``fit(frame, …)`` and ``fitted.predict(frame)``."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import pandas as pd
from rich.console import Console
from rich.progress import track

from neuralpk.bootstrap import bootstrap, outcome
from neuralpk.checkpoint_io import verify_checkpoints
from neuralpk.cohort import Cohort
from neuralpk.datamodules import CohortDataModule
from neuralpk.dynamics import Decoder, structure
from neuralpk.individual_estimates import IndividualEstimates
from neuralpk.objectives import MarginalLikelihood, Objective
from neuralpk.parameters import PopulationParameters
from neuralpk.published_population import PublishedPopulation, write_population
from neuralpk.residual_error import ResidualError
from neuralpk.solve.compiled.thread_chunks import leave_torch_one_thread
from neuralpk.tables import read_table
from neuralpk.task import LatentTask


class _Given(CohortDataModule):
    """A cohort that is in memory."""

    def __init__(self, cohort: Cohort, **options: Any) -> None:
        super().__init__(**options)
        self.cohort = cohort

    def make_cohort(self) -> Cohort:
        return self.cohort


class FittedModel:
    """A population model that was fitted to a table.

    Args:
        task: as it was trained.
        cohort: the patients it was fitted to; None for a model that was loaded.

    Attributes:
        task: the LightningModule, for everything that is not here.
    """

    def __init__(self, task: LatentTask, cohort: Cohort | None = None) -> None:
        self.task = task
        self._cohort = cohort
        self._estimates: IndividualEstimates | None = None

    @classmethod
    def load(cls, path: str | Path, **parts: Any) -> FittedModel:
        """From a checkpoint; `parts` gives those again that a checkpoint cannot hold (and ``unverified=True`` reads a
        file without a sha256)."""
        return cls(LatentTask.load_from_checkpoint(path, map_location="cpu", **parts))

    def save(self, path: str | Path) -> None:
        """Write a checkpoint, for `load`, ``LatentTask.load_from_checkpoint`` and the command line."""
        trainer = _quiet_trainer(1)
        verify_checkpoints(trainer)
        trainer.strategy.connect(self.task)
        trainer.save_checkpoint(path)

    def predict(
        self, frame: pd.DataFrame | Cohort | str | Path, times: Sequence[float] | None = None, **table: Any
    ) -> pd.DataFrame:
        """Concentration curves of the patients of a table: ID, TIME, PRED, IPRED, LO90, HI90 (with several endpoints
        also DVID).

        Args:
            frame: an event table, its path, or a cohort.
            times: times of the curves; default 200 times over each patient's records.
            table: further arguments of `neuralpk.tables.read_table`.
        """
        return self.task.reconstruct(frame, times, **table).curves()

    def estimate(self, frame: pd.DataFrame | Cohort | str | Path, **table: Any) -> pd.DataFrame:
        """Individual parameters of the patients of a table, each with its 90 % interval."""
        return self.task.reconstruct(frame, **table).individuals()

    @property
    def population(self) -> pd.DataFrame:
        """Typical values, variability, covariate effects and residual error with standard errors.

        Raises:
            ValueError: a model without standard errors, such as one that was loaded.
        """
        if self.task.covariance is None:
            if self._cohort is None:
                raise ValueError(
                    "a loaded model has no standard errors: compute them with task.covariance_step(cohort)"
                )
            self.task.covariance_step(self._cohort)
        assert self.task.covariance is not None
        return pd.DataFrame(self.task.covariance.rows)

    def bootstrap(
        self,
        replicates: int = 200,
        seed: int = 0,
        processes: int | None = None,
        progress: bool = True,
        strata: str | None = None,
    ) -> pd.DataFrame:
        """Estimates from replicates of the data, each of as many patients, drawn with replacement
        (`neuralpk.bootstrap`); `neuralpk.bootstrap.summarise` makes intervals of them. A warning says how many
        replicates did not converge.

        Args:
            replicates: how many.
            seed: of the patients that are drawn.
            processes: fit that many replicates at a time; None for the number of CPUs. A script that takes more than
                one calls this under ``if __name__ == "__main__":``.
            progress: whether a progress bar is shown.
            strata: covariate; a replicate has as many patients with each of its values as the data.

        Raises:
            ValueError: a model with network weights, or one that was loaded.
        """
        if self._cohort is None:
            raise ValueError(
                "a loaded model does not hold the patients it was fitted to: give them in "
                "neuralpk.bootstrap.bootstrap(task.model, task.objective, cohort)"
            )

        def shown(numbers: Sequence[int]) -> Iterable[int]:
            return track(numbers, "bootstrap", console=Console(stderr=True), disable=not progress)

        task = self.task
        found = bootstrap(task.model, task.objective, self._cohort, replicates, seed, processes, strata, shown)
        if not found["CONVERGED"].all():
            warnings.warn(outcome(found), stacklevel=2)
        return found

    @property
    def individuals(self) -> pd.DataFrame:
        """Individual parameters of the patients that the model was fitted to, each with its 90 % interval."""
        return self._own().individuals()

    @property
    def records(self) -> pd.DataFrame:
        """The records of the patients that the model was fitted to: DV, PRED, IPRED, IRES, IWRES, TAD, …
        (`neuralpk.record_predictions.records`)."""
        return self._own().records()

    @property
    def exposure(self) -> pd.DataFrame:
        """AUC, CMAX, TMAX and CMIN of these patients, in all and by dosing interval
        (`neuralpk.individual_exposure.exposure`)."""
        return self._own().exposure()

    def write_population(self, path: str | Path) -> None:
        """Write the population as plain numbers, for ``neuralpk estimate`` and `neuralpk.read_model`.

        Raises:
            ValueError: a part that a population file cannot hold, such as network weights.
        """
        scaling, status = self.task.model.scaling, self.task.status
        population = PublishedPopulation.from_model(self.task.model, None if scaling is None else scaling.units)
        write_population(population, Path(path), "" if status is None else f"Population fit: {status.sentence}")

    def held(self) -> PopulationParameters:
        """The population as the fixed part of a larger model, as `PublishedPopulation.held`::

            pk = neuralpk.fit(concentrations, pk_text)
            pd = neuralpk.fit(everything, pk_and_pd_text, parameters=pk.held())

        Raises:
            ValueError: network weights, or correlated random effects.
        """
        return PublishedPopulation.from_model(self.task.model).held()

    def held_errors(self) -> list[ResidualError]:
        """The residual error of each endpoint with its numbers fixed, for the `ErrorByEndpoint` of a larger model::

            neuralpk.fit(everything, pk_and_pd_text, parameters=pk.held(), error=ErrorByEndpoint([*pk.held_errors(),
                         AdditiveError()]))

        Raises:
            ValueError: network weights, or an error model that a population file cannot hold.
        """
        return PublishedPopulation.from_model(self.task.model).held_errors()

    @property
    def curves(self) -> pd.DataFrame:
        """Concentration curves of the patients that the model was fitted to."""
        return self._own().curves()

    def _own(self) -> IndividualEstimates:
        if self._cohort is None:
            raise ValueError("a loaded model does not hold the patients it was fitted to: use predict and estimate")
        if self._estimates is None:
            self._estimates = self.task.reconstruct(self._cohort)
        return self._estimates


def fit(
    frame: pd.DataFrame | Cohort | str | Path,
    dynamics: Decoder | str,
    *,
    objective: Objective | None = None,
    epochs: int = 25,
    seed: int = 0,
    progress: bool = True,
    table: dict[str, Any] | None = None,
    trainer: dict[str, Any] | None = None,
    **parts: Any,
) -> FittedModel:
    """Fit a population model to an event table.

    Args:
        frame: an event table as a pandas frame, the path of one, or a cohort.
        dynamics: such as ``CompartmentModel(1, absorption="first_order")``, or the name of a structural model, such as
            ``"one_compartment_oral"`` (`neuralpk.dynamics.structure`).
        objective: what is minimised; default `neuralpk.objectives.MarginalLikelihood`.
        epochs: of 20 passes over the patients; a bound for a model without network weights, whose fit ends by itself.
        seed: of the fit.
        progress: whether a progress bar is shown.
        table: arguments of `neuralpk.tables.read_table`, such as ``{"columns": "DV=CONC"}``; the covariates are those
            that the effects name, unless they are given here.
        trainer: arguments of `lightning.Trainer`.
        parts: parameters, error, engine, encoder, learning_rate, … of `neuralpk.task.LatentTask`.

    Raises:
        neuralpk.tables.DataError: the table breaks a rule.
        ValueError: parts that do not fit together or the data.
    """
    L.seed_everything(seed, verbose=False)
    leave_torch_one_thread()
    dynamics = structure(dynamics) if isinstance(dynamics, str) else dynamics
    task = LatentTask(dynamics, objective=objective or MarginalLikelihood(), seed=seed, **parts)
    if isinstance(frame, Cohort):
        cohort = frame
    else:
        population = task.model.population
        named = population.asked_covariates
        reading: dict[str, Any] = {"covariates": "all" if named is None else named}
        reading |= {"needed": task.model.dynamics.covariates} | (table or {})
        reading["occasion"] = population.occasions_in(reading.get("occasion"))
        cohort = read_table(frame, **reading)
    options = {"gradient_clip_val": 5.0, "enable_progress_bar": progress} | (trainer or {})
    data = _Given(cohort, passes_per_epoch=20, seed=seed)
    _quiet_trainer(epochs, **options).fit(task, data)
    return FittedModel(task, data.part("train"))


def _quiet_trainer(epochs: int, **options: Any) -> L.Trainer:
    """A trainer that writes no files."""
    defaults: dict[str, Any] = {
        "max_epochs": epochs,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "limit_val_batches": 0,
        "num_sanity_val_steps": 0,
    }
    return L.Trainer(**(defaults | options))
