"""LightningModules: what is trained, and what a trained model says of new patients."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import lightning as L
import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torchmetrics import MeanMetric

from neuralpk import randomness
from neuralpk.cohort import Cohort, CohortBatch, FloatArray, Subject, collate
from neuralpk.models import DynamicsSettings, EncoderSettings, Objective, SolverSettings, build_model
from neuralpk.scaling import Scaling
from neuralpk.solve import SolveError
from neuralpk.tables import read_table

_BAND_STREAM = 1 << 40  # apart from the training steps, whose number is their stream
_BATCH_OF_DRAWS = 20_000  # subjects × draws solved at once: bounds the memory of a reconstruction
_MOST_FAILURES = 0.05  # of a batch: a few unsolved subjects are left out and counted, more stop the training


@dataclass(frozen=True)
class Reconstruction:
    """What a model says of each subject of a cohort.

    Args:
        ids: identifiers.
        times: where the lines are drawn, ``[subject, time]``; as long as the longest, padded by the last time.
        pred: population prediction, z at its prior mean, ``[subject, time, endpoint]``.
        ipred: individual prediction, z at the mean of q, ``[subject, time, endpoint]``.
        lower: lower end of the 90 % band of the line, over draws of z from q; NaN for an ``mse`` model, which has none.
        upper: upper end.
        parameters: name to (estimate, lower, upper), each ``[subject]``.
        mean: mean of q(z), ``[subject, latent]``.
    """

    ids: tuple[str, ...]
    times: FloatArray
    pred: FloatArray
    ipred: FloatArray
    lower: FloatArray
    upper: FloatArray
    parameters: dict[str, tuple[FloatArray, FloatArray, FloatArray]]
    mean: FloatArray

    def curves(self) -> pd.DataFrame:
        """ID, TIME, PRED, IPRED, LO90, HI90, one row a time; with several endpoints also DVID."""
        n, width, endpoints = self.ipred.shape
        kept = np.ones((n, width), bool)
        kept[:, 1:] = np.diff(self.times, axis=1) > 0
        where = np.nonzero(np.repeat(kept[..., None], endpoints, axis=2))
        frame = pd.DataFrame({"ID": np.asarray(self.ids)[where[0]], "TIME": self.times[where[0], where[1]]})
        if endpoints > 1:
            frame["DVID"] = where[2] + 1
        for name in ("pred", "ipred", "lower", "upper"):
            frame[{"lower": "LO90", "upper": "HI90"}.get(name, name.upper())] = getattr(self, name)[where]
        return frame

    def individuals(self) -> pd.DataFrame:
        """ID, then every parameter with its 90 % interval (``CL, CL_LO90, CL_HI90``)."""
        frame: dict[str, Any] = {"ID": np.asarray(self.ids)}
        for name, (estimate, lower, upper) in self.parameters.items():
            frame |= {name: estimate, f"{name}_LO90": lower, f"{name}_HI90": upper}
        return pd.DataFrame(frame)


class LatentODETask(L.LightningModule):
    """Train a latent ODE on a cohort and reconstruct patients with it.

    Every argument is a plain value, so that a checkpoint loads by its path alone.

    Args:
        scaling: magnitudes of the data, ``datamodule.scaling()``.
        dynamics: the vector field (`neuralpk.models.DynamicsSettings`).
        encoder: the encoder (`neuralpk.models.EncoderSettings`).
        solver: the solver (`neuralpk.models.SolverSettings`).
        error: residual error: ``additive``, ``proportional``, ``combined`` or ``log_normal``.
        objective: ``mse`` or ``elbo`` (`neuralpk.models.LatentODE`).
        learning_rate: largest learning rate of Adam in a one-cycle schedule (Smith and Topin 2019).
        warmup: share of the training over which the weight of the KL term rises from 0 to 1.
        seed: of the draws of z.
    """

    def __init__(
        self,
        scaling: dict[str, Any] | None = None,
        dynamics: DynamicsSettings | None = None,
        encoder: EncoderSettings | None = None,
        solver: SolverSettings | None = None,
        error: str = "proportional",
        objective: Objective = "elbo",
        learning_rate: float = 0.01,
        warmup: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.objective: Objective = objective
        self.learning_rate, self.warmup, self.seed = learning_rate, warmup, seed
        self.model = build_model(dynamics or {}, encoder or {}, error, solver or {}, Scaling.from_plain(scaling))
        self.squares = MeanMetric()
        self.unseen = MeanMetric()

    def forward(self, batch: CohortBatch) -> Tensor:
        """The noise-free value of every record, z at the mean of q, ``[subject, observation]``."""
        value: Tensor = self.model.predict(self.model.encoder(batch).mean, batch).value
        return value

    def _noise(self, batch: CohortBatch) -> Tensor | None:
        if self.objective == "mse" or not self.training:
            return None
        z = randomness.normal(self.seed, self.global_step, batch.index, self.model.individual.latent_size)
        return z.to(batch.time.dtype)

    def _kl_weight(self) -> float:
        steps = self.trainer.estimated_stepping_batches
        return kl_weight(self.global_step, self.warmup * steps if np.isfinite(steps) else 0.0)

    def _shared_step(self, batch: CohortBatch, stage: str) -> Tensor:
        loss = self.model.loss(batch, self.objective, self._noise(batch))
        # every device divides by the observations of all, and Lightning then averages the gradients over devices
        sums = torch.stack([loss.observations, loss.failures]).to(batch.time.dtype)
        if self.trainer.world_size > 1:
            sums = self.trainer.strategy.reduce(sums, reduce_op="sum")
        observations, failures = sums[0].clamp(min=1.0), int(sums[1])
        share = observations / self.trainer.world_size
        weight = self._kl_weight() if stage == "train" else 1.0
        total = (loss.fit + weight * loss.kl) / share
        self._refuse(total, failures, batch)
        count = max(int(loss.observations), 1)
        logged = {"loss": (loss.fit + weight * loss.kl) / count, "fit": loss.fit / count, "kl": loss.kl / count}
        for name, value in logged.items():
            self._log(f"{stage}_{name}", value.detach(), count, bar=name == "loss")
        self._log(f"{stage}_failures", float(failures), 1)
        return total

    def _log(self, name: str, value: Tensor | float, weight: int, bar: bool = False) -> None:
        # weighted by observations, so that ragged batches and several devices give the mean over observations
        self.log(name, value, on_step=False, on_epoch=True, batch_size=weight, sync_dist=True, prog_bar=bar)

    def _refuse(self, loss: Tensor, failures: int, batch: CohortBatch) -> None:
        """Stop before a broken step can reach the weights or a checkpoint."""
        if not bool(torch.isfinite(loss)):
            raise SolveError(f"loss {float(loss)} at step {self.global_step}, subjects {', '.join(batch.ids[:10])}")
        if failures > max(1, _MOST_FAILURES * len(batch) * self.trainer.world_size):
            raise SolveError(
                f"{failures} subjects of a batch could not be solved at step {self.global_step}; "
                "lower learning_rate, or look at the doses and times of the cohort"
            )

    def training_step(self, batch: CohortBatch, batch_idx: int) -> Tensor:
        """One step; logs train_loss and its parts per observation."""
        return self._shared_step(batch, "train")

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Refuse a gradient that is not finite, before it reaches the weights."""
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if not bool(torch.isfinite(norm)):
            raise SolveError(f"the gradient is not finite at step {self.global_step}; the weights are as they were")
        self._log("gradient_norm", norm, 1)

    def _evaluate(self, batch: CohortBatch, stage: str) -> None:
        self._shared_step(batch, stage)
        mean = self.model.encoder(batch).mean
        prediction = self.model.predict(mean, batch)
        self._log(f"{stage}_evaluations", float(prediction.trajectory.count.total), 1)
        scored = batch.target & prediction.trajectory.ok[:, None]
        self.squares.update((prediction.value - batch.value)[scored].square())
        positive = scored & (batch.value > 0) & (prediction.value > 0)
        self.unseen.update((prediction.value / batch.value)[positive].log().square())
        if batch.truth is not None:
            lines = self.model.lines(mean, batch, batch.truth.times)
            wide = (lines - batch.truth.line).square().mean(1).sqrt() / batch.truth.line.square().mean(1).sqrt()
            self._log(f"{stage}_line_rrmse", wide.nanmean(), len(batch))

    def _finish(self, stage: str) -> None:
        for name, metric in (("rmse", self.squares), ("log_rmse", self.unseen)):
            self.log(f"{stage}_{name}", metric.compute().sqrt(), prog_bar=name == "rmse", rank_zero_only=False)
            metric.reset()

    def validation_step(self, batch: CohortBatch, batch_idx: int) -> None:
        """Logs val_loss and its parts, val_rmse, val_log_rmse, and val_line_rrmse where the truth is known."""
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
        ipred = self(batch)
        pred = self.model.predict(self.model.prior(len(batch)).mean, batch).value
        row, column = batch.mask.nonzero(as_tuple=True)
        observed = torch.where(batch.observed, batch.value, torch.nan)
        frame = {"ID": np.asarray(batch.ids)[row.cpu().numpy()]}
        for name, values in {"TIME": batch.time, "DVID": batch.endpoint + 1, "DV": observed, "PRED": pred, "IPRED": ipred}.items():
            frame[name] = values[row, column].cpu().numpy()
        return pd.DataFrame(frame)

    def configure_optimizers(self) -> Any:
        """Adam, with a one-cycle schedule where the number of steps is known."""
        optimizer = torch.optim.Adam(self.parameters(), lr=self.learning_rate)
        steps = self.trainer.estimated_stepping_batches
        if not np.isfinite(steps):
            return optimizer
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.learning_rate, total_steps=int(steps) + 1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    @torch.no_grad()
    def reconstruct(
        self,
        data: pd.DataFrame | Cohort | str,
        times: Sequence[float] | None = None,
        draws: int = 200,
        context: int | None = None,
        **table: Any,
    ) -> Reconstruction:
        """Reconstruct every patient's line and parameters from the data alone.

        Args:
            data: an event table as a pandas frame, the path of one, or a `Cohort`.
            times: where to draw the lines, on the data's clock; default 200 times over each patient's records.
            draws: draws of z from q for the 90 % intervals.
            context: how many of each patient's first observations the encoder sees; None for all.
            table: further arguments of `neuralpk.tables.read_table`.

        Raises:
            neuralpk.tables.DataError: the table breaks a rule.
            ValueError: covariates other than those the model was trained with.
            neuralpk.solve.SolveError: a patient that could not be solved.
        """
        cohort = data if isinstance(data, Cohort) else read_table(data, **table)
        known = sorted(self.model.encoder.scaling.covariates)
        cohort = cohort.with_covariates(known) if set(known) <= set(cohort.covariate_names) else cohort
        if list(cohort.covariate_names) != known:
            raise ValueError(f"the model was trained with the covariates {known}, the data have {cohort.covariate_names}")
        dtype = self.model.value_scale.dtype
        batch = collate(cohort, dtype=dtype).to(self.device)
        if context is not None:
            batch = dataclasses.replace(batch, context=batch.context & (batch.context.long().cumsum(1) <= context))
        grid = torch.as_tensor(np.stack([_line_times(s, times) for s in cohort]), dtype=dtype).to(self.device)
        training = self.training
        self.eval()
        try:
            return self._reconstruct(batch, grid, draws)
        finally:
            self.train(training)

    def _reconstruct(self, batch: CohortBatch, grid: Tensor, draws: int) -> Reconstruction:
        q = self.model.encoder(batch)
        prior = self.model.prior(len(batch)).mean
        trajectory = self.model.decode(q.mean, batch, grid)
        trajectory.check(batch.ids, self.model.options)
        ipred = self.model.dynamics.observe(trajectory.states, trajectory.theta)[..., list(self.model.dynamics.endpoints)]
        estimate = self._parameters(q.mean, batch)
        if self.objective == "mse":
            nothing = torch.full_like(ipred, torch.nan)
            lower = upper = nothing
            intervals = {name: (value * torch.nan,) * 2 for name, value in estimate.items()}
        else:
            lower, upper, intervals = self._bands(q.mean, q.base_dist.scale, batch, grid, draws)
        return Reconstruction(
            ids=batch.ids,
            times=_numpy(grid),
            pred=_numpy(self.model.lines(prior, batch, grid)),
            ipred=_numpy(ipred),
            lower=_numpy(lower),
            upper=_numpy(upper),
            parameters={k: (_numpy(v), *map(_numpy, intervals[k])) for k, v in estimate.items()},  # type: ignore[misc]
            mean=_numpy(q.mean),
        )

    def _bands(
        self, mean: Tensor, scale: Tensor, batch: CohortBatch, grid: Tensor, draws: int
    ) -> tuple[Tensor, Tensor, dict[str, tuple[Tensor, Tensor]]]:
        """5 % and 95 % quantiles over draws of z from q, of the lines and of the parameters."""
        size = mean.shape[1]
        noise = randomness.normal(self.seed, _BAND_STREAM, batch.index, draws * size).to(mean.dtype)
        z = mean[:, None] + scale[:, None] * noise.unflatten(1, (draws, size))
        ends = torch.tensor([0.05, 0.95], dtype=mean.dtype, device=mean.device)
        lines, parameters = [], []
        for part in torch.arange(len(batch), device=mean.device).split(max(1, _BATCH_OF_DRAWS // draws)):
            repeated = batch.select(part).repeat(draws)
            drawn = self.model.lines(z[part].flatten(0, 1), repeated, grid[part].repeat_interleave(draws, dim=0))
            lines.append(drawn.unflatten(0, (len(part), draws)).nanquantile(ends, dim=1))
            own = self._parameters(z[part].flatten(0, 1), repeated)
            parameters.append({k: v.unflatten(0, (len(part), draws)).quantile(ends, dim=1) for k, v in own.items()})
        low, high = torch.cat(lines, dim=1)
        joined = {name: torch.cat([p[name] for p in parameters], dim=1) for name in parameters[0]}
        return low, high, {name: (value[0], value[1]) for name, value in joined.items()}

    def _parameters(self, z: Tensor, batch: CohortBatch) -> dict[str, Tensor]:
        """Parameters at the first record by name, with those derived from them, each ``[subject]``."""
        theta = self.model.individual(z, batch.covariates)
        theta = theta if theta.dim() == 2 else theta[:, 0]
        return self.model.dynamics.named(theta) | self.model.dynamics.derived(theta)


def kl_weight(step: int, warmup: float) -> float:
    """Weight of the KL term, rising linearly from 0 to 1 over the first `warmup` steps."""
    return 1.0 if warmup <= 0 else min(1.0, step / warmup)


def _numpy(values: Tensor) -> FloatArray:
    array: FloatArray = values.detach().cpu().double().numpy()
    return array


def _line_times(subject: Subject, times: Sequence[float] | None) -> FloatArray:
    """200 times over a subject's records, or the wanted ones from its first record on."""
    if times is not None:
        return np.maximum(np.asarray(times, float), subject.start)
    ends = [subject.start, *subject.times[-1:], *(dose.time for record in subject.doses for dose in record.expand())]
    return np.linspace(subject.start, max(ends), 200)
