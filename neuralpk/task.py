"""The LightningModule: trains a population model with its encoder, and estimates patients with it."""

from __future__ import annotations

import contextlib
import copy
import io
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import IO, Any, Self

import lightning as L
import numpy as np
import pandas as pd
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torchmetrics import MeanMetric

from neuralpk import decoders, record_predictions
from neuralpk.checkpoint_files import (
    SECTION,
    CheckpointError,
    add_sha256,
    checkpoint_content,
    making_task,
    non_finite,
    read_checkpoint,
)
from neuralpk.checkpoint_io import refuse_pickles, verify_checkpoints
from neuralpk.cohort import Cohort
from neuralpk.cohort_batch import CohortBatch
from neuralpk.dynamics import Decoder
from neuralpk.encoders import Encoder
from neuralpk.estimation import (
    FitStatus,
    MovedByEstimator,
    NetworkEstimator,
    PopulationEstimate,
    PopulationEstimator,
    standard_errors,
)
from neuralpk.individual_estimates import (
    IndividualEstimates,
    PosteriorDraws,
    draw_individuals,
    estimate_individuals,
    evaluation_batch,
)
from neuralpk.objectives import Loss, MarginalLikelihood, Objective, Step
from neuralpk.objectives.base import posterior
from neuralpk.parameters import PopulationParameters
from neuralpk.part import Part, describe, make
from neuralpk.path_guide import PathGuide
from neuralpk.population_model import PopulationModel, Prediction
from neuralpk.pretrained_model import Pretrained
from neuralpk.residual_error import ResidualError, stated_error
from neuralpk.scaling import Scaling
from neuralpk.solve import Auto, Engine, SolveError
from neuralpk.tables import read_table
from neuralpk.training_data_provenance import Provenance
from neuralpk.value_checks import bearable, refuse_without_doses

# typical values have far to go, and at the pace of a network's weights the encoder would learn to make up for them
_POPULATION_SPEED = 5.0
_WARM_UP = 10  # steps
_RISE, _LEAST_RATE = 0.1, 0.04  # of a one-cycle schedule
_FIRST_HORIZON = 0.15  # of the span of the data
_MOST_FAILURES = 0.05  # of a batch: a few unsolved subjects are left out and counted, more stop the training
_SHIPPED = (decoders,)  # imported, so that a checkpoint and the command line can name its classes
_FULL_PRECISION = ("32", "64", "mixed")
_BASES: dict[str, type[Part]] = {
    "dynamics": Decoder,
    "parameters": PopulationParameters,
    "error": ResidualError,
    "engine": Engine,
    "encoder": Encoder,
    "guide": PathGuide,
    "objective": Objective,
}
_PRETRAINED_PARTS = ("dynamics", "parameters", "error", "encoder")


class LatentTask(L.LightningModule):
    """Training of a population model on a cohort, and estimates of patients with it.

    Each part is an object, or its plain description ``{"class_path": …, "init_args": …}``, or the name of its class;
    a checkpoint holds the descriptions and therefore loads by its path alone. A part whose class cannot be imported by
    its name (one of a notebook or a function) is asked for again: ``load_from_checkpoint(path, dynamics=MyField())``.

    The magnitudes of the data are taken from the data module when the training begins (`build` does the same by hand).

    Args:
        dynamics: vector field or recurrent network (`neuralpk.dynamics`, `neuralpk.decoders`); it may be left out with
            `pretrained`.
        parameters: distribution of the individual parameters; default log-normal and independent.
        error: residual error; default what the dynamics states of its outputs, else proportional. Of a dynamics that
            states the error of some outputs it is that of the others.
        engine: solver; default exact for linear equations, else Runge–Kutta.
        encoder: samples -> q(z); None for none, which `MarginalLikelihood` allows.
        guide: of a dynamics with noise, leads its paths through the samples.
        objective: what is minimised; default `neuralpk.objectives.MarginalLikelihood`.
        learning_rate: largest learning rate of Adam in a one-cycle schedule (Smith and Topin 2019), for the networks;
            typical values, variability and residual error take five times it.
        horizon: share of the training over which the horizon grows up to which records are read and scored, from 15 %
            of the data's span to all of it; 0 for all from the beginning. A network learns a cycle from its first
            quarter: on many cycles at once a training stays at a flat curve. Records have to begin early.
        seed: of all random numbers of the training and of later intervals.
        pretrained: checkpoint of a pre-training to start from (`neuralpk.pretrained_model`); the dynamics, the
            encoder, the kind of error and the magnitudes are then those of the checkpoint.
        unverified: also take a `pretrained` without a sha256.

    Attributes:
        model: the population model.
        covariance: the population with its standard errors, from the end of the last fit; None before.
        estimator: of the population, where the objective has one and no other optimiser was asked for; None otherwise.
        status: how its search ended; None before and without one.

    Raises:
        ValueError: parts that do not fit together, or a share outside 0 to 1.
    """

    def __init__(
        self,
        dynamics: Decoder | None = None,
        parameters: PopulationParameters | None = None,
        error: ResidualError | None = None,
        engine: Engine | None = None,
        encoder: Encoder | None = None,
        guide: PathGuide | None = None,
        objective: Objective | None = None,
        learning_rate: float = 0.01,
        horizon: float = 0.0,
        seed: int = 0,
        pretrained: str | None = None,
        unverified: bool = False,
    ) -> None:
        super().__init__()
        if not 0.0 <= horizon <= 1.0:
            raise ValueError(f"horizon is a share of the training, from 0 to 1; got {horizon}")
        if not 0.0 < learning_rate < np.inf:
            raise ValueError(f"learning_rate must be above 0, got {learning_rate}")
        given: dict[str, Any] = {"dynamics": dynamics, "parameters": parameters, "error": error, "encoder": encoder}
        self._source = None if pretrained is None else Pretrained.read(pretrained, unverified)
        if self._source is not None:
            given = self._source.parts(given)
        if given["dynamics"] is None:
            raise ValueError("a task needs its dynamics, such as dynamics=CompartmentModel(compartments=2)")
        given |= {"engine": engine, "guide": guide, "objective": objective}
        defaults: dict[str, Any] = {
            "parameters": PopulationParameters(),
            "engine": Auto(),
            "objective": MarginalLikelihood(),
        }
        given |= {name: part for name, part in defaults.items() if given[name] is None}
        parts: dict[str, Any] = {
            name: None if given[name] is None else make(given[name], base, name) for name, base in _BASES.items()
        }
        parts["error"] = stated_error(parts["dynamics"].assays, parts["error"])
        plain = {"learning_rate": learning_rate, "horizon": horizon, "seed": seed}
        self.save_hyperparameters({name: describe(part) for name, part in parts.items()} | plain)
        self.model = PopulationModel(parts["dynamics"], parts["parameters"], parts["error"], parts["engine"])
        self.encoder: Encoder | None = parts["encoder"]
        self.guide: PathGuide | None = parts["guide"]
        self.objective: Objective = parts["objective"]
        self.objective.check(self.model, self.encoder, self.guide)
        if self.encoder is not None and self.model.population.kappa_start:
            raise ValueError(
                f"{type(self.encoder).__name__} gives q(z) of as many latents for every subject, and with kappa each "
                "occasion has its own: fit without an encoder, by MarginalLikelihood"
            )
        self.learning_rate, self.horizon, self.seed = learning_rate, horizon, seed
        self._provenance = Provenance()
        # the weights that `build` makes are those of this moment's random numbers: a strategy of several processes
        # seeds anew in between, and two processes have to begin as one does
        self._random_state = torch.get_rng_state()
        self.covariance: PopulationEstimate | None = None
        self.status: FitStatus | None = None
        self.estimator: PopulationEstimator | None = None
        self._saved_estimator: dict[str, Any] | None = None
        self._tallies: dict[str, Tensor] = {}
        self._squares = MeanMetric()
        self._log_squares = MeanMetric()

    # ---- the data's magnitudes

    def build(self, scaling: Scaling, provenance: Provenance | None = None) -> LatentTask:
        """Make what depends on the magnitudes of the data; a Trainer does it with those of its data module.

        Args:
            scaling: ``Scaling.of(cohort)`` of the training subjects.
            provenance: whose data the model learns from.

        Raises:
            ValueError: parts that do not fit the data.
        """
        provenance = provenance or Provenance(scaling.subjects)
        if self._source is not None:
            scaling, provenance = self._source.magnitudes(scaling, provenance)
        self._build(scaling, provenance)
        if self._source is not None:
            self._source.start(self.model, self.encoder)
            self._source = None
        return self

    def _build(self, scaling: Scaling, provenance: Provenance) -> None:
        self._provenance = provenance
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self._random_state)
            self._build_parts(scaling)
        # several devices expect a gradient of all that has one, and without a likelihood the error has none
        if not self.objective.has_likelihood:
            self.model.error.requires_grad_(False)
        self.to(self.device)

    def _build_parts(self, scaling: Scaling) -> None:
        self.model.build(scaling)
        if self.encoder is not None:
            self.encoder.build(scaling, self.model.latent_size)
        if self.guide is not None:
            self.guide.build(self.model, scaling)

    def setup(self, stage: str) -> None:
        """Build the model for the data of the Trainer, unless it has been built; called by Lightning."""
        verify_checkpoints(self.trainer)
        if not any(kind in str(self.trainer.precision) for kind in _FULL_PRECISION):
            raise ValueError(
                f"precision {self.trainer.precision!r} has too few digits for a solver: use 32-true, 64-true, or "
                "16-mixed and bf16-mixed, with which the solver stays in float32"
            )
        data: Any = getattr(self.trainer, "datamodule", None)
        streamed: int = getattr(data, "streamed", 0)  # a loader of one's own has none
        if stage == "fit" and streamed and self.objective.maximises_likelihood:
            raise ValueError(
                f"{type(self.objective).__name__} fits the population to all its subjects at once, and {streamed} "
                "of them are not held: train with ELBO or SquaredError, or hold all"
            )
        self.build_for(data)
        self._bear(data)

    def build_for(self, data: Any) -> None:
        """Build the model for the data of a data module, unless it has been built.

        Raises:
            ValueError: no data module of neuralpk; parts that do not fit the data.
        """
        if self.model.scaling is not None:
            return
        if not hasattr(data, "scaling"):
            raise ValueError(
                "the magnitudes of the data are not known: train with a data module of neuralpk, or call "
                "task.build(Scaling.of(cohort)) before the training"
            )
        self.build(data.scaling(), data.provenance())

    def _bear(self, data: Any) -> None:
        """Leave out of the data what the likelihood has no place for."""
        if self.objective.has_likelihood and hasattr(data, "restrict"):
            refuse_without_doses(self.model, data.part("train"))
            data.restrict(partial(bearable, self.model))  # no lambda: it may be sent to other processes

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]  # numbers and texts only, of local files
        cls,
        checkpoint_path: str | Path | IO[bytes],
        map_location: Any = None,
        *,
        strict: bool | None = None,
        weights_only: bool | None = None,
        unverified: bool = False,
        **parts: Any,
    ) -> Self:
        """A task as it was saved. The file is verified first, and nothing in it is run.

        Args:
            checkpoint_path: of a local file, or an open one.
            map_location: of `torch.load`.
            strict: of `torch.nn.Module.load_state_dict`.
            weights_only: always True.
            unverified: also read a file without a sha256.
            parts: parts that a checkpoint cannot hold, and arguments that are to be others.

        Raises:
            FileNotFoundError: no such file.
            neuralpk.checkpoint_files.CheckpointError: no checkpoint of a task; damaged; without a sha256.
            ValueError: a part whose class is not imported; `weights_only` of False.
        """
        refuse_pickles(weights_only)
        name, content = checkpoint_content(checkpoint_path)
        # Lightning would say in its own words what is wrong with it
        read_checkpoint(io.BytesIO(content), unverified=unverified, name=name)
        with making_task(name):
            return super().load_from_checkpoint(
                io.BytesIO(content), map_location, strict=strict, weights_only=True, **parts
            )

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As of `torch.nn.Module`.

        Raises:
            neuralpk.checkpoint_files.CheckpointError: weights of other names or shapes.
        """
        try:
            return super().load_state_dict(state_dict, strict, assign)
        except RuntimeError as error:
            raise CheckpointError("weights that do not fit the parts: " + " ".join(str(error).split())) from error

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the magnitudes of the data, the provenance, the status and the state of the estimator.

        Raises:
            SolveError: weights that are not finite: what was saved before stays.
        """
        broken = non_finite(dict(self.named_parameters()))
        for number, state in enumerate(checkpoint.get("optimizer_states", [])):
            for moments in state.get("state", {}).values():
                broken += [f"{name} of optimizer {number}" for name in non_finite(moments)]
        if broken:
            raise SolveError(
                f"not finite at step {checkpoint['global_step']}: {', '.join(dict.fromkeys(broken[:5]))}; no checkpoint"
                " was written, and those of before are as they were. Lower learning_rate, or clip the gradients"
            )
        assert self.model.scaling is not None
        section: dict[str, Any] = {"scaling": self.model.scaling.plain(), "provenance": self._provenance.plain()}
        section["status"] = None if self.status is None else self.status.plain()
        section["estimator"] = None if self.estimator is None else self.estimator.state_dict()
        checkpoint[SECTION] = section
        add_sha256(checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the magnitudes of the data from the checkpoint, and of a model that started from a pre-training its
        parts; the length of the learning rate's schedule from this training, which may be longer than the saved one."""
        section = checkpoint.get(SECTION)
        if section is None:
            raise CheckpointError("this is no checkpoint of a LatentTask")
        self._source = None
        provenance = Provenance.from_plain(section["provenance"])
        if provenance.pretraining:
            self._take_parts(checkpoint["hyper_parameters"])
        self._build(Scaling.from_plain(section["scaling"]), provenance)
        weights = {name: checkpoint["state_dict"].get(name) for name, _ in self.named_parameters()}
        if broken := non_finite(weights):
            raise CheckpointError(f"the checkpoint holds weights that are not finite: {', '.join(broken[:5])}")
        status = section.get("status")
        self.status = None if status is None else FitStatus.from_plain(status)
        # a training that is resumed goes on with it; one that only begins at these weights may have other patients
        self._saved_estimator = section.get("estimator") if getattr(self, "_trainer", None) is not None else None
        for schedule in checkpoint.get("lr_schedulers", []):
            for name in ("total_steps", "_schedule_phases"):
                schedule.pop(name, None)

    def _take_parts(self, descriptions: Mapping[str, Any]) -> None:
        """Replace the model and the encoder by those of a checkpoint, where these are others."""
        saved = {name: descriptions[name] for name in _PRETRAINED_PARTS}
        if all(self.hparams[name] == description for name, description in saved.items()):
            return
        parts: dict[str, Any] = {
            name: None if description is None else make(description, _BASES[name], name)
            for name, description in saved.items()
        }
        self.model = PopulationModel(parts["dynamics"], parts["parameters"], parts["error"], self.model.engine)
        self.encoder = parts["encoder"]
        self.hparams.update(saved)

    @property
    def provenance(self) -> Provenance:
        """Whose data the model has learned from."""
        return self._provenance

    # ---- estimates

    def estimate(self, batch: CohortBatch) -> Tensor:
        """Individual estimates of z given the context, ``[subject, latent]``, as the objective makes them."""
        return self.objective.estimate(self.model, self.encoder, self.guide, batch)

    def forward(self, batch: CohortBatch) -> Tensor:
        """Individual prediction (IPRED) of every record, ``[subject, observation]``."""
        return self.predicted(batch).value

    def predicted(self, batch: CohortBatch) -> Prediction:
        """Individual prediction of every record with what it is made of."""
        return self.model.predict(self.estimate(batch), batch, self.guide)

    # ---- training

    def loss(self, batch: CohortBatch, step: Step) -> Loss:
        """The loss of a batch at a step of the training."""
        return self.objective.loss(self.model, self.encoder, self.guide, batch, step)

    def _current_step(self) -> Step:
        steps = self.trainer.estimated_stepping_batches
        share = min(1.0, self.global_step / steps) if np.isfinite(steps) and steps > 0 else 1.0
        return Step(self.seed, self.global_step, share)

    def _within_horizon(self, batch: CohortBatch, step: Step) -> CohortBatch:
        share = horizon_share(step.share, self.horizon)
        assert self.model.scaling is not None
        return batch.until(share * self.model.scaling.time) if share < 1 else batch

    def _all_digits(self) -> torch.autocast:
        """Mixed precision switched off for a while: it is for large matrices, and a solver's steps need all digits."""
        return torch.autocast(self.device.type, enabled=False)

    def _shared_step(self, batch: CohortBatch, stage: str, step: Step) -> Tensor:
        loss = self.loss(batch, step)
        # every device divides by the observations of all, and Lightning then averages the gradients over devices
        sums = torch.stack([loss.observations, loss.failures]).to(batch.time.dtype)
        if self.trainer.world_size > 1:
            sums = self.trainer.strategy.reduce(sums, reduce_op="sum")
        observations, failures = sums[0].clamp(min=1.0), int(sums[1])
        per_device = observations / self.trainer.world_size
        # every batch carries the share of the prior that its subjects have in an epoch of them
        assert self.model.scaling is not None
        log_prior = self.model.log_prior() if self.objective.has_likelihood else 0.0
        total = (loss.total - log_prior * len(batch) / self.model.scaling.subjects) / per_device
        self._check_step(total, failures, batch)
        count = max(int(loss.observations), 1)
        parts = {"loss": loss.value} | loss.parts()
        for name, value, of in [
            *((name, value / count, count) for name, value in parts.items()),
            ("failures", sums[1], 1),
        ]:
            if stage == "train":
                self._tally(name, value.detach().cpu(), of)
            else:
                self._log(f"{stage}_{name}", value.detach(), of, bar=name == "loss")
        return total

    def _tally(self, name: str, value: Tensor, weight: int) -> None:
        """Add to the mean of an epoch of training: to log every step would take longer than some of the steps."""
        sums = torch.stack([value.double() * weight, torch.tensor(float(weight), dtype=torch.float64)])
        self._tallies[name] = self._tallies[name] + sums if name in self._tallies else sums

    def on_train_start(self) -> None:
        """Forget what belongs to other weights: means of a training that failed, uncertainty of the population."""
        self._tallies.clear()
        self.model.parameter_draws.fill_(torch.nan)
        self.covariance = None
        self.status = None
        data: Any = getattr(self.trainer, "datamodule", None)
        if self.estimator is not None and not self.estimator.started and hasattr(data, "part"):
            self.estimator.start(evaluation_batch(self.model, data.part("train")))
        if self.estimator is not None and any(self.estimator.interrupted) and hasattr(data, "part"):
            self._redraw(self.estimator, data.part("train"))
        self._stop_when_converged()

    def _redraw(self, estimator: PopulationEstimator, cohort: Cohort) -> None:
        """Draw again for the subjects that a resumed training does not see again in this pass."""
        drawn = set(estimator.interrupted[self.global_rank % len(estimator.interrupted)])
        batch = evaluation_batch(self.model, cohort)
        rows = [row for row, key in enumerate(batch.index.tolist()) if key in drawn]
        if rows:
            estimator.add(batch.select(torch.tensor(rows, device=batch.device)))

    def on_train_epoch_end(self) -> None:
        """Logs train_loss and its parts per observation, train_failures and gradient_norm per step."""
        if not self._tallies:
            return
        sums = torch.stack(list(self._tallies.values())).to(self.device)
        if self.trainer.world_size > 1:
            sums = self.trainer.strategy.reduce(sums, reduce_op="sum")
        for name, (total, weight) in zip(self._tallies, sums, strict=True):
            logged = name if name == "gradient_norm" else f"train_{name}"
            self.log(logged, (total / weight).float(), prog_bar=name == "loss", rank_zero_only=False)
        self._tallies.clear()

    def on_train_end(self) -> None:
        """Standard errors of the population at the end of a fit by maximum likelihood, for every checkpoint that is
        kept; intervals of later estimates know them."""
        fast: int = self.trainer.fast_dev_run  # type: ignore[attr-defined]
        data: Any = getattr(self.trainer, "datamodule", None)
        if not (self.objective.maximises_likelihood and self.model.is_uncertain and hasattr(data, "part")) or fast:
            return
        if self.estimator is not None:
            self.status = self.estimator.status or self.estimator.finish("the training was ended before")
        cohort = data.part("train")
        self.covariance_step(cohort)
        for path in kept_checkpoints(self.trainer):
            saved = self.trainer.strategy.load_checkpoint(path, weights_only=True)
            if saved["global_step"] == self.global_step:
                draws = self.model.parameter_draws
                if self.status is not None:  # how the search ended is said of the last weights alone
                    saved[SECTION]["status"] = self.status.plain()
            else:  # the best weights are not the last
                other = copy.deepcopy(self)
                other.load_state_dict(saved["state_dict"])
                other.status = None
                other.covariance_step(cohort)
                draws = other.model.parameter_draws
            saved["state_dict"]["model.parameter_draws"] = draws.cpu()
            add_sha256(saved)
            self.trainer.strategy.save_checkpoint(saved, path)

    def _log(self, name: str, value: Tensor | float, weight: int, bar: bool = False) -> None:
        # weighted by observations, so that ragged batches and several devices give the mean over observations; times
        # the devices, because Lightning averages the weights over them in integers, which would round
        weight *= self.trainer.world_size
        self.log(name, value, on_step=False, on_epoch=True, batch_size=weight, sync_dist=True, prog_bar=bar)

    def _check_step(self, loss: Tensor, failures: int, batch: CohortBatch) -> None:
        """Stop before a broken step can reach the weights or a checkpoint."""
        lost = failures > max(1, _MOST_FAILURES * len(batch) * self.trainer.world_size)
        if (lost or not bool(torch.isfinite(loss))) and (broken := non_finite(dict(self.named_parameters()))):
            raise SolveError(
                f"weights are not finite at step {self.global_step}: {', '.join(broken[:5])}; lower learning_rate, or "
                "clip the gradients"
            )
        if not bool(torch.isfinite(loss)):
            value, names = float(loss.detach()), ", ".join(batch.ids[:10])
            raise SolveError(f"loss {value} at step {self.global_step}, subjects {names}")
        if lost:
            raise SolveError(
                f"{failures} subjects of a batch could not be solved at step {self.global_step}; "
                "lower learning_rate, or look at the doses and times of the cohort"
            )

    def on_train_batch_start(self, batch: CohortBatch, batch_idx: int) -> None:
        """Seed the global random numbers by the batch. Those of this package are no part of them, but parts of one's
        own (dropout, noise) draw from them, and a resumed training has to draw the same."""
        key = (self.seed % 2**32, self.current_epoch, batch_idx, self.global_rank)
        of_torch, of_numpy, of_python = np.random.SeedSequence(key).generate_state(3).tolist()
        torch.manual_seed(of_torch)
        np.random.seed(of_numpy)  # noqa: NPY002  # for who uses the global one
        random.seed(of_python)

    def training_step(self, batch: CohortBatch, batch_idx: int) -> Tensor:
        """One step; with an estimator of the population, draws for the subjects of the batch."""
        if self.estimator is not None:
            return self._estimation_step(self.estimator, batch)
        step = self._current_step()
        with self._all_digits():
            return self._shared_step(self._within_horizon(batch, step), "train", step)

    def _estimation_step(self, estimator: PopulationEstimator, batch: CohortBatch) -> Tensor:
        """Draws of the subjects of the batch for the estimator; the loss is that of an encoder beside it."""
        with self._all_digits():
            if not estimator.started:
                estimator.start(batch)
            step, posterior = self._current_step(), None
            if not estimator.finished:
                log_p, observations = estimator.add(batch).sum(), int(batch.observed.sum())
                posterior = estimator.posterior(batch)
                if posterior is None:
                    for name in ("loss", "fit"):
                        self._tally(name, -log_p.cpu() / observations, observations)
            if posterior is not None:
                self._log_progress(estimator)
                return self._shared_step(batch, "train", replace(step, posterior=posterior))
            beside = self.objective.loss_beside_estimator(self.model, self.encoder, batch, step)
        self._log_progress(estimator)
        # the estimator has its own derivatives; several devices wait for a gradient of everything that is learned
        learned = [weight for weight in self.parameters() if weight.requires_grad]
        nothing = 0.0 * torch.stack([weight.sum() for weight in learned]).sum()
        if beside is None:
            return nothing
        self._tally("encoder", beside.detach().cpu() / len(batch), len(batch))
        return nothing + beside / len(batch)

    def _log_progress(self, estimator: PopulationEstimator) -> None:
        if estimator.history:
            # the loggers get both at the end of a pass, as population/-2LL and population/gain
            self.log("-2LL", -2 * estimator.log_likelihood, prog_bar=True, logger=False, rank_zero_only=True)
            self.log("gain", estimator.gain, prog_bar=True, logger=False, rank_zero_only=True)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """A step of the optimiser; at the end of a pass over the subjects that of the estimator of the population."""
        super().optimizer_step(*args, **kwargs)
        batch_index: int = args[1] if len(args) > 1 else kwargs["batch_idx"]
        if self.estimator is None or self.estimator.finished or not self._pass_ends(batch_index):
            return
        with self._all_digits():
            self.estimator.end_pass()
        values = {f"population/{name}": value for name, value in self.model.reported_values().items()}
        values |= {"population/-2LL": -2 * self.estimator.log_likelihood, "population/gain": self.estimator.gain}
        for logger in self.loggers:
            logger.log_metrics(values, step=self.global_step)
        self._stop_when_converged()

    def _stop_when_converged(self) -> None:
        # an encoder beside the estimator is trained to the end that the Trainer sets
        if self.estimator is not None and self.estimator.finished and self.encoder is None:
            self.trainer.should_stop = True

    def _pass_ends(self, batch_index: int) -> bool:
        sampler = getattr(self.trainer.train_dataloader, "sampler", None)
        in_a_pass = getattr(sampler, "batches_in_a_pass", None)
        return self.trainer.is_last_batch or (in_a_pass is not None and (batch_index + 1) % in_a_pass == 0)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """The backward pass; a sweep of the adjoint that fails says so.

        Raises:
            SolveError: the adjoint could not be integrated backwards.
        """
        try:
            super().backward(loss, *args, **kwargs)
        except AssertionError as error:  # how torchdiffeq reports a vanished step
            raise SolveError(
                f"the adjoint's backward sweep failed at step {self.global_step} ({error}): where drug is eliminated "
                "fast, running the state backwards amplifies its error. Use engine Auto, or gradient 'backprop'."
            ) from error

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Refuse a gradient that is not finite, before it reaches the weights."""
        if isinstance(self.optimizers(use_pl_optimizer=False), MovedByEstimator):
            return
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if not bool(torch.isfinite(norm)):
            raise SolveError(f"the gradient is not finite at step {self.global_step}; the weights are as they were")
        self._tally("gradient_norm", norm.detach().cpu(), 1)

    # ---- evaluation

    def _evaluate(self, batch: CohortBatch, stage: str) -> None:
        z = self.estimate(batch)
        self._shared_step(batch, stage, Step(self.seed, start=z))
        predicted = self.model.predict(z, batch, self.guide)
        for name, value in self.model.dynamics.noise.items():
            self._log(f"{stage}_{name}", value.detach(), 1)
        self._log(f"{stage}_evaluations", float(predicted.trajectory.evaluations), 1)
        # a censored record holds a limit, not a value
        scored = batch.target & (batch.censored == 0) & predicted.trajectory.ok[:, None]
        self._squares.update((predicted.value - batch.value)[scored].square())
        positive = scored & (batch.value > 0) & (predicted.value > 0)
        self._log_squares.update((predicted.value / batch.value)[positive].log().square())
        if batch.truth is not None:
            error = record_predictions.curve_error(self.model, batch, z, self.guide)
            self._log(f"{stage}_curve_rrmse", error, len(batch))

    def _finish(self, stage: str) -> None:
        for name, metric in (("rmse", self._squares), ("log_rmse", self._log_squares)):
            self.log(f"{stage}_{name}", metric.compute().sqrt(), prog_bar=name == "rmse", rank_zero_only=False)

    def _start(self) -> None:
        # at the start, not at the end: what `validate` leaves behind are inference tensors, which `fit` may not change
        self._squares.reset()
        self._log_squares.reset()

    def on_validation_epoch_start(self) -> None:
        """Forget the epoch before."""
        self._start()

    def on_test_epoch_start(self) -> None:
        """As `on_validation_epoch_start`."""
        self._start()

    def validation_step(self, batch: CohortBatch, batch_idx: int) -> None:
        """Logs val_loss and its parts at the mean of q, val_rmse, val_log_rmse; val_curve_rrmse with a known truth."""
        with self._all_digits():
            self._evaluate(batch, "val")

    def on_validation_epoch_end(self) -> None:
        """Root mean squares over every scored observation of the epoch."""
        self._finish("val")

    def test_step(self, batch: CohortBatch, batch_idx: int) -> None:
        """As `validation_step`, with test_ for val_."""
        with self._all_digits():
            self._evaluate(batch, "test")

    def on_test_epoch_end(self) -> None:
        """As `on_validation_epoch_end`."""
        self._finish("test")

    def predict_step(self, batch: CohortBatch, batch_idx: int) -> pd.DataFrame:
        """The table of records (`neuralpk.record_predictions.records`)."""
        with self._all_digits():
            return record_predictions.records(self.model, batch, self.predicted(batch), self.objective.has_likelihood)

    def configure_optimizers(self) -> Any:
        """The estimator of the population where the objective has one; otherwise Adam, with a one-cycle schedule where
        the number of steps is known and at least ten."""
        population = self.model.population_weights()
        taken = {id(weight) for weight in population}
        networks = [weight for weight in self.parameters() if id(weight) not in taken]
        if not self.horizon:
            self.estimator = self.objective.estimator(self.model, self.encoder, self.seed, self._of_all_devices)
        if self.estimator is not None:
            if self._saved_estimator is not None:
                self.estimator.load_state_dict(self._saved_estimator)
                self._saved_estimator = None
            if isinstance(self.estimator, NetworkEstimator):
                return self._paced_by(self.estimator, networks)
            if not networks:
                return MovedByEstimator(population)
            population = []
        rates = [_POPULATION_SPEED * self.learning_rate, self.learning_rate]
        groups: list[dict[str, Any]] = [
            {"params": part, "lr": rate} for part, rate in zip((population, networks), rates, strict=True) if part
        ]
        # the scaler of 16-mixed cannot clip the gradients of a fused optimiser
        optimizer = torch.optim.Adam(groups, fused="mixed" not in str(self.trainer.precision))
        steps = self.trainer.estimated_stepping_batches
        if not 10 <= steps < np.inf:  # a tenth of fewer is no time to warm up in
            return optimizer
        peaks = [group["lr"] for group in groups]
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peaks, total_steps=int(steps) + 1, pct_start=0.1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _paced_by(self, estimator: NetworkEstimator, networks: list[torch.nn.Parameter]) -> Any:
        """Adam with a learning rate for the population and the weights of the dynamics that the estimator lowers where
        nothing more is gained, and a one-cycle schedule for an encoder."""
        of_dynamics = {id(weight) for weight in self.model.dynamics.parameters()}
        moved = [*self.model.population_weights(), *(w for w in networks if id(w) in of_dynamics)]
        beside = [weight for weight in networks if id(weight) not in of_dynamics]
        groups: list[dict[str, Any]] = [{"params": part} for part in (moved, beside) if part]
        optimizer = torch.optim.Adam(groups, lr=self.learning_rate, fused="mixed" not in str(self.trainer.precision))
        steps = self.trainer.estimated_stepping_batches
        paces: list[Callable[[int], float]] = [
            lambda step: min(1.0, (step + 1) / _WARM_UP) * estimator.pace,
            lambda step: one_cycle(step / steps),
        ]
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, paces[: len(groups)])
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _of_all_devices(self, own: Any) -> list[Any]:
        """The same object of every device."""
        if self.trainer.world_size == 1:
            return [own]
        found: list[Any] = [None] * self.trainer.world_size
        torch.distributed.all_gather_object(found, own)
        return found

    # ---- a trained task

    def reconstruct(
        self,
        data: pd.DataFrame | Cohort | str | Path,
        times: Sequence[float] | None = None,
        draws: int = 200,
        context: int | None = None,
        map: bool | None = None,
        population_known: bool = False,
        progress: Callable[[Sequence[Tensor]], Iterable[Tensor]] = iter,
        seed: int | None = None,
        first_index: int = 0,
        **table: Any,
    ) -> IndividualEstimates:
        """Estimate every patient's concentration curve and parameters from the data.

        Args:
            data: an event table as a pandas frame, the path of one, or a `Cohort`.
            times: times of the curves, on the data's clock; default 200 times over each patient's records.
            draws: draws of z for the 90 % intervals.
            context: how many of each patient's first observations are read; None for all.
            map: search the maximum a posteriori through the solver, with intervals from draws weighted by importance;
                None as the objective does: wherever there is a likelihood, except of a dynamics with noise.
            population_known: intervals given the population as it stands, without its own uncertainty; always of an
                objective that does not maximise the likelihood.
            progress: wraps the iterable of parts of the cohort, for example in a progress bar.
            seed: of the draws; None for that of the training.
            first_index: number of patients before these in a table of which they are a part
                (`neuralpk.individual_estimates.evaluation_batch`).
            table: further arguments of `neuralpk.tables.read_table`; the covariates are those of the model.

        Raises:
            neuralpk.tables.DataError: the table breaks a rule.
            ValueError: covariates other than those the model was trained with; a MAP under an objective without a
                likelihood, or of a dynamics with noise.
            neuralpk.solve.SolveError: a patient that could not be solved.
        """
        searched = self._searches(map)
        if isinstance(data, Cohort):
            cohort = data
        else:
            named = self.model.table_covariates(self.encoder is not None)
            idle = dict.fromkeys(self.model.idle_covariates(self.encoder is not None), math.nan)
            needed = idle | {**self.model.dynamics.covariates}
            occasion = self.model.population.occasion_column
            cohort = read_table(data, **{"covariates": named, "needed": needed, "occasion": occasion, **table})
        with self._evaluating():
            return estimate_individuals(
                self.model,
                cohort,
                times,
                encoder=self.encoder,
                guide=self.guide,
                draws=draws if self.objective.has_likelihood else 0,
                context=context,
                seed=self.seed if seed is None else seed,
                map=searched,
                # only a fit by maximum likelihood has the uncertainty of its population
                population_known=population_known or not self.objective.maximises_likelihood,
                has_error=self.objective.has_likelihood,
                first_index=first_index,
                progress=progress,
            )

    def draw(
        self,
        cohort: Cohort,
        draws: int = 200,
        context: int | None = None,
        map: bool | None = None,
        seed: int | None = None,
    ) -> PosteriorDraws:
        """Draw the parameters of the patients of a cohort from their posterior; arguments as of `reconstruct`.

        Raises:
            ValueError: as `reconstruct`; an objective without a likelihood, which has no posterior.
        """
        searched = self._searches(map)
        if not self.objective.has_likelihood:
            raise ValueError(
                f"a model trained with {type(self.objective).__name__} has no residual error and therefore no "
                "posterior to draw from: train with MarginalLikelihood or ELBO"
            )
        used = self.seed if seed is None else seed
        with self._evaluating():
            return draw_individuals(
                self.model,
                cohort,
                draws,
                encoder=self.encoder,
                context=context,
                seed=used,
                map=searched,
                population_known=not self.objective.maximises_likelihood,
            )

    def _searches(self, map: bool | None) -> bool:
        """Whether the MAP is searched.

        Raises:
            ValueError: a MAP under an objective without a likelihood.
        """
        searched = self.objective.searches_map if map is None else map
        if searched and not self.objective.has_likelihood:
            raise ValueError(
                f"a model trained with {type(self.objective).__name__} has no residual error and therefore no "
                "posterior with a maximum: map must be false"
            )
        return searched

    def covariance_step(self, cohort: Cohort, draws: int | None = None) -> PopulationEstimate:
        """Standard errors of the population and its likelihood (`neuralpk.estimation.standard_errors`). Intervals of a
        later `reconstruct` take them in.

        Args:
            cohort: the subjects of the training.
            draws: of z for each subject; default 512, of a model with a network 256.

        Raises:
            ValueError: an objective without a likelihood; a dynamics with noise.
        """
        if not self.objective.has_likelihood:
            raise ValueError(
                f"a model trained with {type(self.objective).__name__} has no likelihood: train with MarginalLikelihood"
            )
        if not self.model.has_likelihood:
            raise ValueError(
                f"{type(self.model.dynamics).__name__} has noise: the likelihood is an integral over all its paths, "
                "from which no standard errors are computed"
            )
        with self._evaluating():
            batch = evaluation_batch(self.model, bearable(self.model, cohort), None, self.encoder)
            start = posterior(self.model, self.encoder, batch).mean.detach()
            self.covariance = standard_errors(self.model, batch, start, draws, self.seed, self.status)
        self.model.parameter_draws.copy_(self.covariance.parameter_draws)
        return self.covariance

    @torch.no_grad()
    def residuals(self, cohort: Cohort, context: int | None = None) -> pd.DataFrame:
        """The table of records (`neuralpk.record_predictions.records`) of every measured value, with `context` as for
        `reconstruct`."""
        batch = evaluation_batch(self.model, cohort, context, self.encoder)
        table = record_predictions.records(self.model, batch, self.predicted(batch), self.objective.has_likelihood)
        return table[table["DV"].notna()]

    @contextlib.contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Evaluation mode for a while."""
        training = self.training
        self.eval()
        try:
            yield
        finally:
            self.train(training)


def kept_checkpoints(trainer: L.Trainer) -> Iterator[str]:
    """Paths of the checkpoints that a training has kept, each once."""
    found: dict[str, None] = {}
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint):
            found |= dict.fromkeys([callback.last_model_path, callback.best_model_path, *callback.best_k_models])
    return (path for path in found if path and Path(path).is_file())


def one_cycle(share: float) -> float:
    """Factor of the largest learning rate at a share of a training of one cycle (Smith and Topin 2019): it rises from
    0.04 to 1 over the first tenth and falls back over the rest, along half a cosine each."""
    rising = share < _RISE
    at = share / _RISE if rising else 1 - (min(share, 1.0) - _RISE) / (1 - _RISE)
    return _LEAST_RATE + (1 - _LEAST_RATE) * 0.5 * (1 - math.cos(math.pi * at))


def horizon_share(share: float, growth: float) -> float:
    """Share of the data's span up to which records count, growing linearly over the first `growth` of the training."""
    return 1.0 if growth <= 0 else min(1.0, _FIRST_HORIZON + (1 - _FIRST_HORIZON) * share / growth)
