"""LightningModules: what is trained, and what a trained model says of new patients."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import lightning as L
import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torchmetrics import MeanMetric

from neuralpk import prediction
from neuralpk.batch import CohortBatch
from neuralpk.cohort import Cohort, FloatArray
from neuralpk.inference.population import PopulationEstimate, estimate_population
from neuralpk.models import DynamicsSettings, EncoderSettings, LatentModel, SolverSettings, build_model
from neuralpk.objectives import Criterion, Loss, Objective
from neuralpk.origin import Origin
from neuralpk.pretraining import Pretrained
from neuralpk.reconstruction import Reconstruction, evaluation_batch, reconstruct
from neuralpk.scaling import Scaling
from neuralpk.solve import SolveError
from neuralpk.tables import read_table

# typical values have far to go, and at the pace of a network's weights the encoder would learn to make up for them
_POPULATION_SPEED = 5.0
_FIRST_HORIZON = 0.15  # of the span of the data
_MOST_FAILURES = 0.05  # of a batch: a few unsolved subjects are left out and counted, more stop the training


class LatentODETask(L.LightningModule):
    """Train a latent ODE on a cohort and reconstruct patients with it.

    Every argument is a plain value, so that a checkpoint loads by its path alone.

    Args:
        scaling: magnitudes of the data, ``datamodule.scaling()``.
        dynamics: the vector field (`neuralpk.models.DynamicsSettings`).
        encoder: the encoder (`neuralpk.models.EncoderSettings`).
        solver: the solver (`neuralpk.models.SolverSettings`).
        error: residual error: ``additive``, ``proportional``, ``combined`` or ``log_normal``.
        objective: ``mse``, ``elbo`` or ``iwae`` (`neuralpk.objectives`).
        draws: of z for each subject and step, of ``iwae``; of (z, path) of a latent SDE, where more than one make the
            bound of ``elbo`` tighter (`neuralpk.objectives.path_bound`).
        refine: most steps through the solver from the encoder's place to the most probable one, of ``iwae``.
        learning_rate: largest learning rate of Adam in a one-cycle schedule (Smith and Topin 2019), for the networks;
            typical values, variability and residual error take five times it.
        warmup: share of the training over which the weight of the KL term rises from 0 to 1.
        horizon: share of the training over which the horizon grows up to which records are read and scored, from 15 %
            of the data's span to all of it; 0 takes all from the beginning. A network learns a cycle from its first
            quarter: over several turns of it, the best line near a flat one is a flat one. Records have to begin early.
        seed: of the draws of z.
        pretrained: checkpoint of a pre-training to start from (`neuralpk.pretraining`); the field, the encoder, the
            kind of error and the magnitudes are then its own.
    """

    def __init__(
        self,
        scaling: dict[str, Any] | None = None,
        dynamics: DynamicsSettings | None = None,
        encoder: EncoderSettings | None = None,
        solver: SolverSettings | None = None,
        error: str = "proportional",
        objective: Objective = "elbo",
        draws: int = 20,
        refine: int = 10,
        learning_rate: float = 0.01,
        warmup: float = 0.0,
        horizon: float = 0.0,
        seed: int = 0,
        pretrained: str | None = None,
    ) -> None:
        super().__init__()
        if not (0.0 <= warmup <= 1.0 and 0.0 <= horizon <= 1.0):
            raise ValueError(f"warmup and horizon are shares of the training, got {warmup} and {horizon}")
        self.criterion = Criterion(objective, draws, refine, seed)
        self.save_hyperparameters()
        self.objective: Objective = objective
        self.learning_rate, self.warmup, self.horizon, self.seed = learning_rate, warmup, horizon, seed
        if pretrained is None:
            self.model = self._build()
        else:
            source = Pretrained.read(pretrained)
            self.hparams.update(source.tuned(self.hparams))
            self.model = self._build()
            source.start(self.model)
        self.criterion.check(self.model)
        self._tallies: dict[str, Tensor] = {}
        self.squares = MeanMetric()
        self.log_squares = MeanMetric()

    def _build(self) -> LatentModel:
        h: Any = self.hparams
        model = build_model(
            cast(DynamicsSettings, h["dynamics"] or {}),
            cast(EncoderSettings, h["encoder"] or {}),
            h["error"],
            cast(SolverSettings, h["solver"] or {}),
            Scaling.from_plain(h["scaling"]),
        )
        # a squared error has no residual error to learn, and several devices expect a gradient of all that has one
        model.error.requires_grad_(h["objective"] != "mse")
        return model

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the scaling from the checkpoint, whatever data the task was made for, and of a tuned model what it has
        from its pre-training; the length of the schedule of the learning rate from this training, which may be longer
        than the one that was saved."""
        saved = checkpoint["hyper_parameters"]
        tuned = bool(Origin.from_plain(saved["scaling"]).pretraining)
        taken = {name: saved[name] for name in ("scaling", *(("dynamics", "encoder", "error") if tuned else ()))}
        if any(self.hparams[name] != value for name, value in taken.items()):
            self.hparams.update(taken)
            self.model = self._build().to(self.device)
        for schedule in checkpoint.get("lr_schedulers", []):
            for name in ("total_steps", "_schedule_phases"):
                schedule.pop(name, None)

    @property
    def track(self) -> str:
        """What the model has learned from, in words: the study's own patients only, or others before them."""
        return Origin.from_plain(self.hparams["scaling"]).track

    def place(self, batch: CohortBatch) -> Tensor:
        """Each subject's z given the context, ``[subject, latent]``: where the encoder puts it or, trained by ``iwae``,
        the most probable one (MAP, the empirical Bayes estimate), found from there."""
        return prediction.place(self.model, batch, polish=self.objective == "iwae")

    def forward(self, batch: CohortBatch) -> Tensor:
        """The noise-free value of every record at the subject's `place`, ``[subject, observation]``."""
        value: Tensor = self.model.predict(self.place(batch), batch).value
        return value

    def _loss(self, batch: CohortBatch) -> Loss:
        return self.criterion.loss(self.model, batch, self.global_step if self.training else None)

    def _steps(self, share: float) -> float:
        """So many steps of the training; 0 where its length is not known."""
        steps = self.trainer.estimated_stepping_batches
        return share * steps if np.isfinite(steps) else 0.0

    def _kl_weight(self) -> float:
        return kl_weight(self.global_step, self._steps(self.warmup))

    def _within_horizon(self, batch: CohortBatch) -> CohortBatch:
        share = horizon_share(self.global_step, self._steps(self.horizon)) if self.horizon else 1.0
        return batch.until(share * self.model.encoder.scaling.time) if share < 1 else batch

    def _shared_step(self, batch: CohortBatch, stage: str) -> Tensor:
        loss = self._loss(batch)
        # every device divides by the observations of all, and Lightning then averages the gradients over devices
        sums = torch.stack([loss.observations, loss.failures]).to(batch.time.dtype)
        if self.trainer.world_size > 1:
            sums = self.trainer.strategy.reduce(sums, reduce_op="sum")
        observations, failures = sums[0].clamp(min=1.0), int(sums[1])
        share = observations / self.trainer.world_size
        weight = self._kl_weight() if stage == "train" else 1.0
        # every batch carries the share of the prior that its subjects have in an epoch of them
        known = 0.0 if self.objective == "mse" else self.model.log_prior()
        prior = known * len(batch) / self.model.encoder.scaling.subjects
        total = (loss.fit + weight * loss.kl + loss.encoder + loss.penalty - prior) / share
        self._refuse(total, failures, batch)
        count = max(int(loss.observations), 1)
        for name, value, of in (
            ("loss", (loss.fit + weight * loss.kl) / count, count),
            ("fit", loss.fit / count, count),
            ("kl", loss.kl / count, count),
            ("encoder", loss.encoder / count, count),
            ("penalty", loss.penalty / count, count),
            ("failures", sums[1], 1),
        ):
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
        """Forget what a training that failed may have left."""
        self._tallies.clear()

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

    def _log(self, name: str, value: Tensor | float, weight: int, bar: bool = False) -> None:
        # weighted by observations, so that ragged batches and several devices give the mean over observations; times
        # the devices, because Lightning averages the weights over them in integers, which would round
        weight *= self.trainer.world_size
        self.log(name, value, on_step=False, on_epoch=True, batch_size=weight, sync_dist=True, prog_bar=bar)

    def _refuse(self, loss: Tensor, failures: int, batch: CohortBatch) -> None:
        """Stop before a broken step can reach the weights or a checkpoint."""
        if not bool(torch.isfinite(loss)):
            value, names = float(loss.detach()), ", ".join(batch.ids[:10])
            raise SolveError(f"loss {value} at step {self.global_step}, subjects {names}")
        if failures > max(1, _MOST_FAILURES * len(batch) * self.trainer.world_size):
            raise SolveError(
                f"{failures} subjects of a batch could not be solved at step {self.global_step}; "
                "lower learning_rate, or look at the doses and times of the cohort"
            )

    def training_step(self, batch: CohortBatch, batch_idx: int) -> Tensor:
        """One step."""
        return self._shared_step(self._within_horizon(batch), "train")

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
                "fast, running the state backwards amplifies its error. Leave solver.gradient out, or use backprop."
            ) from error

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Refuse a gradient that is not finite, before it reaches the weights."""
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if not bool(torch.isfinite(norm)):
            raise SolveError(f"the gradient is not finite at step {self.global_step}; the weights are as they were")
        self._tally("gradient_norm", norm.detach().cpu(), 1)

    def _evaluate(self, batch: CohortBatch, stage: str) -> None:
        self._shared_step(batch, stage)
        place = self.place(batch)
        predicted = self.model.predict(place, batch)
        for name, value in self.model.noise.items():
            self._log(f"{stage}_{name}", value.detach(), 1)
        self._log(f"{stage}_evaluations", float(predicted.trajectory.count.total), 1)
        # a censored record holds a limit, not a value
        scored = batch.target & (batch.censored == 0) & predicted.trajectory.ok[:, None]
        self.squares.update((predicted.value - batch.value)[scored].square())
        positive = scored & (batch.value > 0) & (predicted.value > 0)
        self.log_squares.update((predicted.value / batch.value)[positive].log().square())
        if batch.truth is not None:
            self._log(f"{stage}_line_rrmse", prediction.line_error(self.model, batch, place), len(batch))

    def _finish(self, stage: str) -> None:
        for name, metric in (("rmse", self.squares), ("log_rmse", self.log_squares)):
            self.log(f"{stage}_{name}", metric.compute().sqrt(), prog_bar=name == "rmse", rank_zero_only=False)

    def _start(self) -> None:
        # at the start, not at the end: what `validate` leaves behind are inference tensors, which `fit` may not change
        self.squares.reset()
        self.log_squares.reset()

    def on_validation_epoch_start(self) -> None:
        """Forget the epoch before."""
        self._start()

    def on_test_epoch_start(self) -> None:
        """As `on_validation_epoch_start`."""
        self._start()

    def validation_step(self, batch: CohortBatch, batch_idx: int) -> None:
        """Logs val_loss and its parts at the mean of q, val_rmse, val_log_rmse; val_line_rrmse where truth is known."""
        self._evaluate(batch, "val")

    def on_validation_epoch_end(self) -> None:
        """Root mean squares over every scored observation of the epoch."""
        self._finish("val")

    def test_step(self, batch: CohortBatch, batch_idx: int) -> None:
        """As `validation_step`, with test_ for val_."""
        self._evaluate(batch, "test")

    def on_test_epoch_end(self) -> None:
        """As `on_validation_epoch_end`."""
        self._finish("test")

    def predict_step(self, batch: CohortBatch, batch_idx: int) -> pd.DataFrame:
        """ID, TIME, DVID, DV, PRED and IPRED of every record."""
        return prediction.tabulate(self.model, batch, self(batch))

    def configure_optimizers(self) -> Any:
        """Adam, with a one-cycle schedule where the number of steps is known and at least ten."""
        population = self.model.population_parameters()
        known = {id(weight) for weight in population}
        networks = [weight for weight in self.parameters() if id(weight) not in known]
        rates = [_POPULATION_SPEED * self.learning_rate, self.learning_rate]
        groups = [{"params": part, "lr": rate} for part, rate in zip((population, networks), rates, strict=True)]
        optimizer = torch.optim.Adam(groups, fused=True)
        steps = self.trainer.estimated_stepping_batches
        if not 10 <= steps < np.inf:  # a tenth of fewer is no time to warm up in
            return optimizer
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=int(steps) + 1, pct_start=0.1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def reconstruct(
        self,
        data: pd.DataFrame | Cohort | str | Path,
        times: Sequence[float] | None = None,
        draws: int = 200,
        context: int | None = None,
        polish: bool | None = None,
        **table: Any,
    ) -> Reconstruction:
        """Reconstruct every patient's line and parameters from the data alone.

        Args:
            data: an event table as a pandas frame, the path of one, or a `Cohort`.
            times: where to draw the lines, on the data's clock; default 200 times over each patient's records.
            draws: draws of z for the 90 % intervals.
            context: how many of each patient's first observations the encoder sees; None for all.
            polish: go on from the encoder through the solver to the most probable z, with intervals from draws that are
                weighted by importance; None as the model was trained, which is True for ``iwae``.
            table: further arguments of `neuralpk.tables.read_table`.

        Raises:
            neuralpk.tables.DataError: the table breaks a rule.
            ValueError: covariates other than those the model was trained with; to polish an ``mse`` model.
            neuralpk.solve.SolveError: a patient that could not be solved.
        """
        polished = self.objective == "iwae" if polish is None else polish
        if polished and self.objective == "mse":
            raise ValueError(
                "a model trained with objective 'mse' has no residual error, without which no place is more probable "
                "than another: polish must be false"
            )
        cohort = data if isinstance(data, Cohort) else read_table(data, **table)
        training = self.training
        self.eval()
        try:
            banded = 0 if self.objective == "mse" else draws
            return reconstruct(self.model, cohort, times, banded, context, self.seed, polished)
        finally:
            self.train(training)

    def estimate_population(self, cohort: Cohort, draws: int = 300) -> PopulationEstimate:
        """The population's typical values, variability and residual error with their standard errors, and the
        likelihood (`neuralpk.inference.population`). Intervals of a later `reconstruct` know how sure they are.

        Args:
            cohort: the subjects of the training.
            draws: of z for each subject.

        Raises:
            ValueError: trained by a squared error, which knows no likelihood.
        """
        if self.objective == "mse":
            raise ValueError("a model trained by mse has no likelihood: train with objective iwae")
        estimate = estimate_population(self.model, evaluation_batch(self.model, cohort), draws, self.seed)
        self.model.populations.copy_(estimate.populations)
        return estimate

    @torch.no_grad()
    def replicates(self, cohort: Cohort, samples: int = 1000) -> FloatArray:
        """What a study like this one would measure under the model: z from its prior, with residual error.

        Args:
            cohort: who is dosed and sampled.
            samples: how many such studies.

        Returns:
            ``[sample, observation]``, in the order of the rows of `residuals`.
        """
        return prediction.replicates(self.model, evaluation_batch(self.model, cohort), samples, self.seed)

    @torch.no_grad()
    def residuals(self, cohort: Cohort, context: int | None = None) -> pd.DataFrame:
        """ID, TIME, DVID, DV, PRED, IPRED and IWRES of every measured value, as `predict_step` with `reconstruct`'s
        arguments."""
        batch = evaluation_batch(self.model, cohort, context)
        return prediction.residuals(self.model, batch, self(batch), known=self.objective != "mse")

    @torch.no_grad()
    def latent(self, cohort: Cohort, context: int | None = None) -> FloatArray:
        """Each patient's `place`, ``[subject, latent]``."""
        mean = self.place(evaluation_batch(self.model, cohort, context))
        return np.asarray(mean.cpu().double().numpy(), np.float64)


def kl_weight(step: int, warmup: float) -> float:
    """Weight of the KL term, rising linearly from 0 to 1 over the first `warmup` steps."""
    return 1.0 if warmup <= 0 else min(1.0, step / warmup)


def horizon_share(step: int, growth: float) -> float:
    """Share of the data's span up to which records count, growing linearly over the first `growth` steps."""
    return 1.0 if growth <= 0 else min(1.0, _FIRST_HORIZON + (1 - _FIRST_HORIZON) * step / growth)
