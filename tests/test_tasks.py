"""The task: it learns, it stops before harm, a checkpoint is the model, and a resumed run is the same run."""

from __future__ import annotations

import dataclasses
import json

import lightning as L
import numpy as np
import pandas as pd
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from stopping import Stop

from neuralpk.batch import CohortBatch, collate
from neuralpk.cohort import Cohort, Subject
from neuralpk.datamodules import PKDataModule, TableDataModule
from neuralpk.evaluate.metrics import line_rrmse
from neuralpk.inference.joint import log_joint
from neuralpk.objectives import Loss, evidence_bound, squared_error
from neuralpk.reconstruction import evaluation_batch
from neuralpk.solve import SolveError
from neuralpk.tables import to_frame, write_table
from neuralpk.tasks import LatentODETask, horizon_share, kl_weight

ONE = {"CL": 4.0, "V1": 70.0}
SPAN = 71.99 * 1.000001  # hours, to the last of its times in single precision
SMALL = {"subjects": 8, "compartments": 1, "typical": ONE, "samples": 5, "grid": [0.25, 72.0, 20]}


def one_compartment(data: L.LightningDataModule, **options: object) -> LatentODETask:
    """The smallest task that learns: one compartment, solved exactly."""
    torch.manual_seed(0)
    return LatentODETask(
        scaling=data.scaling(),
        dynamics={"field": "mechanistic", "compartments": 1} | options.pop("dynamics", {}),
        encoder={"hidden": 16},
        **options,
    )


def quiet(**options: object) -> L.Trainer:
    """A trainer that writes and says nothing."""
    defaults = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "limit_val_batches": 0,
    }
    return L.Trainer(**(defaults | options))


def weights(task: LatentODETask) -> dict[str, torch.Tensor]:
    """A copy of what is trained."""
    return {name: value.detach().clone() for name, value in task.named_parameters()}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    """Equal to the last bit."""
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.fixture(scope="module")
def trained() -> tuple[LatentODETask, PKDataModule]:
    """A hundred and fifty steps on the data of 20 patients; the first guess of the typical values is the data's own."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data = PKDataModule(subjects=20, test_subjects=5, passes_per_epoch=25)
    task = LatentODETask(data.scaling(), {"field": "mechanistic", "compartments": 2}, learning_rate=0.02)
    quiet(max_epochs=6, gradient_clip_val=5.0).fit(task, data)
    return task, data


# ---- learning


@pytest.mark.parametrize("objective", ["elbo", "mse"])
def test_a_short_training_beats_the_typical_patient(objective: str, trained) -> None:
    task, data = trained
    if objective == "mse":
        torch.manual_seed(0)
        task = LatentODETask(data.scaling(), task.hparams["dynamics"], objective="mse", learning_rate=0.02)
        (before,) = quiet(limit_val_batches=1).validate(task, data, verbose=False)
        quiet(max_epochs=6, gradient_clip_val=5.0).fit(task, data)
    else:
        untrained = LatentODETask(data.scaling(), task.hparams["dynamics"])
        (before,) = quiet(limit_val_batches=1).validate(untrained, data, verbose=False)
    (after,) = quiet(limit_val_batches=1).validate(task, data, verbose=False)
    true = np.stack([subject.truth.line[..., 0] for subject in data.part("val")])
    typical = line_rrmse(data.typical_lines(data.part("val"))[..., 0], true).mean()
    assert after["val_line_rrmse"] < 0.75 * typical
    assert after["val_line_rrmse"] < 0.5 * before["val_line_rrmse"]
    assert after["val_loss"] < before["val_loss"]


def test_the_truth_of_the_training_subjects_changes_nothing() -> None:
    results = []
    for factor in (1.0, 100.0):
        data = PKDataModule(**SMALL, passes_per_epoch=3)
        train = data.part("train")
        data._parts["train"] = dataclasses.replace(train, subjects=tuple(
            dataclasses.replace(s, truth=dataclasses.replace(s.truth, line=factor * s.truth.line)) for s in train
        ))  # fmt: skip
        task = one_compartment(data)
        quiet(max_epochs=1).fit(task, data)
        results.append(weights(task))
    assert same(*results)


@pytest.mark.parametrize(
    ("step", "warmup", "weight"),
    [(0, 0.0, 1.0), (5, 0.0, 1.0), (0, 10.0, 0.0), (5, 10.0, 0.5), (10, 10.0, 1.0), (99, 10.0, 1.0), (3, -1.0, 1.0)],
)
def test_the_weight_of_the_kl_term_rises_to_one(step: int, warmup: float, weight: float) -> None:
    assert kl_weight(step, warmup) == weight


def test_the_warm_up_lets_the_kl_term_in_by_and_by() -> None:
    data = PKDataModule(**SMALL, passes_per_epoch=8)
    task = one_compartment(data, warmup=0.5)
    seen = []

    class Watch(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
            seen.append(pl_module._kl_weight())

    quiet(max_epochs=1, callbacks=[Watch()]).fit(task, data)
    assert seen == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("step", "growth", "share"), [(0, 0.0, 1.0), (0, 10.0, 0.15), (5, 10.0, 0.575), (10, 10.0, 1.0), (99, 10.0, 1.0)]
)
def test_the_horizon_grows_to_the_whole_span(step: int, growth: float, share: float) -> None:
    assert horizon_share(step, growth) == pytest.approx(share)


@pytest.mark.parametrize("objective", ["mse", "elbo", "iwae"])
@pytest.mark.parametrize("context", ["all", "random"])
def test_a_growing_horizon_lets_later_records_in_by_and_by(objective: str, context: str) -> None:
    data = PKDataModule(**SMALL, passes_per_epoch=8, context=context)
    task = one_compartment(data, objective=objective, draws=2, refine=1, horizon=0.5)
    original, early, counted = task._loss, [], []

    def watched(batch: CohortBatch) -> Loss:
        loss = original(batch)
        elapsed = batch.time - batch.start[:, None]
        early.append([int((batch.observed & (elapsed <= share * SPAN)).sum()) for share in shares])
        counted.append(int(loss.observations))
        return loss

    shares = [horizon_share(step, 4) for step in range(8)]
    task._loss = watched
    quiet(max_epochs=1).fit(task, data)
    assert all(found <= early[step][step] for step, found in enumerate(counted))
    assert counted[0] < counted[2] < counted[4] == counted[7]
    if context == "all":
        assert counted == [seen[step] for step, seen in enumerate(early)]


@pytest.mark.parametrize("shares", [{"horizon": 1.5}, {"warmup": -0.1}])
def test_a_share_of_the_training_is_one(shares: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="shares of the training"):
        LatentODETask(**shares)


@pytest.mark.parametrize("objective", ["elbo", "mse"])
def test_the_loss_is_a_mean_over_the_scored_observations(objective: str) -> None:
    cohort = PKDataModule(**(SMALL | {"samples": [1, 9]})).part("train")
    data = PKDataModule(**SMALL)
    task = one_compartment(data, objective=objective)
    noise = torch.randn(8, 2)
    losses = {}
    for name, batch in (("all", collate(cohort)), ("a", collate(cohort[:3])), ("b", collate(cohort[3:]))):
        part = noise[:3] if name == "a" else noise[3:] if name == "b" else noise
        losses[name] = (
            evidence_bound(task.model, batch, part) if objective == "elbo" else squared_error(task.model, batch)
        )
    a, b, whole = losses["a"], losses["b"], losses["all"]
    torch.testing.assert_close(a.fit + b.fit, whole.fit)
    torch.testing.assert_close(a.kl + b.kl, whole.kl)
    count = sum(len(subject.times) for subject in cohort)
    assert int(a.observations + b.observations) == int(whole.observations) == count


def test_metrics_do_not_depend_on_the_size_of_the_batches(trained) -> None:
    task, _ = trained
    results = []
    for size in (None, 7):  # 7, 7 and 6 subjects
        ragged = PKDataModule(subjects=20, samples=[2, 9], batch_size=size)
        results += quiet(limit_val_batches=1.0).validate(task, ragged, verbose=False)
    for name in ("val_loss", "val_fit", "val_kl", "val_rmse", "val_log_rmse", "val_line_rrmse"):
        assert results[0][name] == pytest.approx(results[1][name], rel=2e-5), name  # float32 sums


# ---- stopping before harm


@pytest.mark.parametrize("where", ["data", "loss", "gradient"])
def test_a_number_that_is_not_finite_stops_the_training_before_the_weights(where: str) -> None:
    data = PKDataModule(**SMALL, passes_per_epoch=3)
    task = one_compartment(data)
    start = {}

    class Break(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
            if batch_idx < 1:
                return
            start.update(weights(pl_module))
            if where == "data":
                batch.value[0, 0] = torch.nan
            elif where == "loss":
                original = pl_module._loss
                pl_module._loss = lambda *a: dataclasses.replace(original(*a), fit=torch.tensor(torch.inf))

        def on_after_backward(self, trainer, pl_module) -> None:
            if where == "gradient" and trainer.global_step == 1:
                pl_module.model.individual.log_typical.grad[0] = torch.nan

    with pytest.raises(SolveError, match=r"at step 1"):
        quiet(max_epochs=1, callbacks=[Break()]).fit(task, data)
    assert start
    assert same(start, weights(task))


def test_too_many_unsolved_subjects_stop_the_training() -> None:
    data = PKDataModule(**SMALL)
    task = one_compartment(data, solver={"engine": "torchdiffeq", "max_evaluations": 2})
    with pytest.raises(SolveError, match="could not be solved"):
        quiet(max_epochs=1).fit(task, data)


# ---- checkpoints


def test_a_checkpoint_is_the_model_by_its_path_alone(trained, tmp_path) -> None:
    task, data = trained
    trainer = quiet(max_epochs=4)
    trainer.strategy.connect(task)
    trainer.save_checkpoint(tmp_path / "task.ckpt")
    torch.load(tmp_path / "task.ckpt", weights_only=True)  # plain numbers and tensors only
    torch.manual_seed(99)
    loaded = LatentODETask.load_from_checkpoint(tmp_path / "task.ckpt")
    left, right = (one.reconstruct(data.part("test"), draws=20) for one in (task, loaded))
    for name in ("times", "pred", "ipred", "lower", "upper", "place"):
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name), err_msg=name)
    pd.testing.assert_frame_equal(left.individuals(), right.individuals(), check_exact=True)


def test_every_hyperparameter_is_a_plain_value() -> None:
    data = PKDataModule(**SMALL, covariates={"WT": [40.0, 100.0], "SEX": 0.5})
    task = one_compartment(data, dynamics={"effects": {"CL": ["WT"]}, "typical": ONE})
    settings = dict(task.hparams)
    assert json.loads(json.dumps(settings)) == settings
    assert set(settings) >= {"scaling", "dynamics", "encoder", "objective", "learning_rate", "seed"}
    again = LatentODETask(**json.loads(json.dumps(settings)))
    assert again.model.individual.active.tolist() == task.model.individual.active.tolist()


@pytest.mark.parametrize("steps", [3, 5])
def test_a_resumed_run_is_the_straight_run(tmp_path, steps: int) -> None:
    def run(path: str | None, stop: int, keep: bool = False) -> LatentODETask:
        data = PKDataModule(**SMALL, passes_per_epoch=2, batch_size=5, context="random")
        task = one_compartment(data)
        torch.manual_seed(123 + stop)  # what else draws in a process must not matter
        trainer = quiet(max_epochs=3, gradient_clip_val=5.0, callbacks=[Stop(stop, tmp_path / "part.ckpt")])
        trainer.fit(task, data, ckpt_path=path)
        if keep:
            trainer.save_checkpoint(tmp_path / "part.ckpt")
        return task

    straight = run(None, 1000)
    broken = run(None, steps)
    assert not same(weights(straight), weights(broken))
    resumed = run(str(tmp_path / "part.ckpt"), 1000)
    assert same(weights(straight), weights(resumed))


def test_an_interrupted_training_leaves_a_checkpoint(tmp_path) -> None:
    data = PKDataModule(**SMALL, passes_per_epoch=5)
    task = one_compartment(data)

    class Interrupt(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
            if trainer.global_step == 3:
                raise KeyboardInterrupt

    saved = ModelCheckpoint(tmp_path, save_last=True, save_on_exception=True)
    trainer = quiet(max_epochs=2, enable_checkpointing=True, callbacks=[saved, Interrupt()])
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        trainer.fit(task, data)
    (path, *_) = sorted(tmp_path.glob("*.ckpt"))
    assert torch.load(path, weights_only=True)["global_step"] == 3
    assert same(weights(LatentODETask.load_from_checkpoint(path)), weights(task))


# ---- reconstruction


def test_a_frame_a_path_and_a_cohort_say_the_same(trained, tmp_path) -> None:
    task, data = trained
    cohort = data.part("test")
    write_table(cohort, tmp_path / "test.csv")
    results = [task.reconstruct(d, draws=10) for d in (cohort, to_frame(cohort), tmp_path / "test.csv")]
    results.append(task.reconstruct(str(tmp_path / "test.csv"), draws=10))
    for other in results[1:]:
        pd.testing.assert_frame_equal(other.curves(), results[0].curves(), check_exact=True)
        pd.testing.assert_frame_equal(other.individuals(), results[0].individuals(), check_exact=True)


def test_the_tables_of_a_reconstruction(trained) -> None:
    task, data = trained
    result = task.reconstruct(data.part("test"), draws=100)
    curves, people = result.curves(), result.individuals()
    assert list(curves) == ["ID", "TIME", "PRED", "IPRED", "LO90", "HI90"]
    assert len(curves) == 5 * 200
    names = ["CL", "V1", "Q", "V2", "k10", "k12", "k21"]
    assert list(people) == ["ID", *(f"{n}{end}" for n in names for end in ("", "_LO90", "_HI90"))]
    assert people["ID"].tolist() == list(data.part("test").ids)
    np.testing.assert_allclose(people["k10"], people["CL"] / people["V1"], rtol=1e-6)
    np.testing.assert_allclose(people["k21"], people["Q"] / people["V2"], rtol=1e-6)
    for name in names:
        assert (people[f"{name}_LO90"] < people[name]).all()
        assert (people[name] < people[f"{name}_HI90"]).all()
    inside = (curves["LO90"] <= curves["IPRED"]) & (curves["IPRED"] <= curves["HI90"])
    assert inside.mean() > 0.95


def test_the_lines_stand_where_they_were_asked_for(trained) -> None:
    task, data = trained
    result = task.reconstruct(data.part("test"), times=[1.0, 5.0, 100.0], draws=0)
    assert result.times.tolist() == [[1.0, 5.0, 100.0]] * 5
    assert result.curves()["TIME"].tolist() == [1.0, 5.0, 100.0] * 5


def test_a_model_trained_on_squares_has_no_band() -> None:
    data = PKDataModule(**SMALL)
    result = one_compartment(data, objective="mse").reconstruct(data.part("test"))
    assert result.curves()[["LO90", "HI90"]].isna().all(axis=None)
    assert result.individuals()[["CL_LO90", "V1_HI90"]].isna().all(axis=None)
    assert result.curves()[["PRED", "IPRED"]].notna().all(axis=None)


def test_any_model_with_a_residual_error_can_be_polished(trained) -> None:
    task, data = trained
    cohort = data.part("test")
    at_once, same_, polished = (task.reconstruct(cohort, draws=0, polish=p).place for p in (None, False, True))
    np.testing.assert_array_equal(at_once, same_)
    batch = evaluation_batch(task.model, cohort)
    before, after = (log_joint(task.model, torch.tensor(z).float(), batch) for z in (at_once, polished))
    assert (after >= before - 1e-3).all()
    assert (after > before + 0.01).any()
    squares = one_compartment(data, objective="mse")
    with pytest.raises(ValueError, match="polish must be false"):
        squares.reconstruct(cohort, polish=True)
    squares.reconstruct(cohort, polish=False)


def test_a_context_hides_the_later_samples(trained) -> None:
    task, data = trained
    cohort = data.part("test")
    changed = Cohort(tuple(
        dataclasses.replace(s, values=np.concatenate([s.values[:3], 9.0 * s.values[3:]])) for s in cohort
    ))  # fmt: skip
    few, other = (task.reconstruct(c, draws=0, context=3) for c in (cohort, changed))
    np.testing.assert_array_equal(few.ipred, other.ipred)
    assert not np.allclose(task.reconstruct(changed, draws=0).ipred, task.reconstruct(cohort, draws=0).ipred)


def test_a_subject_without_observations_gets_the_population(trained) -> None:
    task, data = trained
    seen = data.part("test")[0]
    unseen = Subject("new", np.array([10.0, 40.0]), np.array([np.nan, np.nan]), seen.doses)
    result = task.reconstruct(Cohort((unseen, seen)), times=[1.0, 20.0], draws=400)
    np.testing.assert_allclose(result.ipred[0], result.pred[0], rtol=1e-5)
    np.testing.assert_allclose(result.place[0], 0.0, atol=1e-6)
    width = np.log(result.upper / result.lower)[..., 0]
    assert (width[0] > 1.1 * width[1]).all()  # nothing was learned of this one


def test_a_model_with_covariates_asks_for_them() -> None:
    data = PKDataModule(**SMALL, covariates={"WT": [40.0, 100.0]})
    task = one_compartment(data, dynamics={"effects": {"CL": ["WT"]}})
    assert list(task.hparams["scaling"]["covariates"]) == ["WT"]
    with pytest.raises(ValueError, match=r"needs the covariates \['WT'\]"):
        task.reconstruct(PKDataModule(**SMALL).part("test"))
    more = PKDataModule(**SMALL, covariates={"WT": [40.0, 100.0], "AGE": [20.0, 80.0]}).part("test")
    task.reconstruct(more, draws=0)


def test_a_reconstruction_leaves_the_mode_as_it_was(trained) -> None:
    task, data = trained
    for mode in (True, False):
        task.train(mode)
        task.reconstruct(data.part("test")[:1], draws=0)
        assert task.training is mode


def test_two_endpoints_stand_in_one_table() -> None:
    from neuralpk.datamodules import LotkaVolterraDataModule

    data = LotkaVolterraDataModule(subjects=2, samples=4)
    task = LatentODETask(data.scaling(), {"system": "lotka_volterra", "field": "mechanistic"}, error="log_normal")
    curves = task.reconstruct(data.part("train"), times=[7.5, 7.8, 8.0], draws=5).curves()
    assert list(curves) == ["ID", "TIME", "DVID", "PRED", "IPRED", "LO90", "HI90"]
    assert curves["DVID"].tolist() == [1, 2] * 6


def test_predictions_are_a_table_of_the_records(trained) -> None:
    task, data = trained
    (table,) = quiet().predict(task, data)
    cohort = data.part("test")
    assert list(table) == ["ID", "TIME", "DVID", "DV", "PRED", "IPRED"]
    assert len(table) == sum(len(subject.times) for subject in cohort)
    np.testing.assert_allclose(table["DV"], np.concatenate([subject.values for subject in cohort]), rtol=1e-6)
    residuals = task.residuals(cohort)
    np.testing.assert_allclose(residuals["IPRED"], table["IPRED"], rtol=1e-6)
    assert residuals["IWRES"].abs().mean() < 3


def test_a_measured_table_trains_and_leaves_one_out() -> None:
    data = TableDataModule("indomethacin", folds=6, fold=2, evaluation_context="first", context_size=5)
    task = one_compartment(data)
    trainer = quiet(max_epochs=2)
    trainer.fit(task, data)
    (result,) = trainer.test(task, data, verbose=False)
    assert np.isfinite(result["test_rmse"])
    assert "test_line_rrmse" not in result  # nobody knows the true line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"error": "gaussian"}, "error is one of"),
        ({"encoder": {"kind": "mlp"}}, "encoder.kind is one of"),
        ({"dynamics": {"typical": {"KA": 1.0}}}, "typical names"),
        ({"dynamics": {"field": "magic"}}, "field is one of"),
        ({"dynamics": {"system": "weather"}}, "system is one of"),
        ({"objective": "map"}, "objective is one of"),
        ({"solver": {"rtol": -1.0}}, "tolerances must be positive"),
    ],
)
def test_a_setting_outside_its_list_is_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LatentODETask(**options)


# ---- what a checkpoint decides, and what a limit says


def test_a_checkpoint_is_measured_in_its_own_scale_whatever_the_data(tmp_path) -> None:
    data = PKDataModule(**SMALL)
    task = one_compartment(data)
    trainer = quiet(max_epochs=1)
    trainer.fit(task, data)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    larger = PKDataModule(**SMALL, doses=[1000.0, 3000.0])
    (alone,) = quiet(limit_val_batches=1).validate(
        LatentODETask.load_from_checkpoint(tmp_path / "last.ckpt"), larger, verbose=False
    )
    other = one_compartment(larger)
    assert other.hparams["scaling"] != task.hparams["scaling"]
    (restored,) = quiet(limit_val_batches=1).validate(
        other, larger, ckpt_path=tmp_path / "last.ckpt", verbose=False, weights_only=True
    )
    assert restored == alone


def test_a_finished_training_can_go_on(tmp_path) -> None:
    data = PKDataModule(**SMALL, passes_per_epoch=12)
    trainer = quiet(max_epochs=1)
    trainer.fit(one_compartment(data), data)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    task = one_compartment(data)
    longer = quiet(max_epochs=3)
    longer.fit(task, data, ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert longer.global_step == 36


def test_a_censored_value_is_a_limit_for_the_squared_error_and_no_value_for_the_metrics() -> None:
    data = PKDataModule(**SMALL, lloq=0.3, doses=[10.0])
    task = one_compartment(data, objective="mse")
    batch = collate(data.part("train"))
    below = batch.censored == 1
    assert below.any() and not below.all()
    with torch.no_grad():
        prediction = task.model.predict(task.model.encoder(batch).mean, batch).value
    error = (prediction - batch.value) / task.model.value_scale
    counted = batch.target & (~below | (error > 0))
    expected = torch.where(counted, error, 0.0).square().sum()
    torch.testing.assert_close(squared_error(task.model, batch).fit, expected)
    (metrics,) = quiet(limit_val_batches=1).validate(task, data, verbose=False)
    measured = torch.where(batch.observed & ~below, prediction - batch.value, torch.nan).square().nanmean().sqrt()
    assert metrics["val_rmse"] == pytest.approx(float(measured), rel=1e-4)


def test_an_endpoint_or_compartment_that_the_model_lacks_is_refused_by_name() -> None:
    task = one_compartment(PKDataModule(**SMALL))
    for unknown in ({"endpoints": [2]}, {"compartments": [4]}):
        cohort = Cohort((Subject("stranger", [1.0], [0.5], **unknown),))
        with pytest.raises(ValueError, match="stranger"):
            task.reconstruct(cohort)


def test_double_precision_trains() -> None:
    data = PKDataModule(**SMALL)
    task = one_compartment(data)
    quiet(max_epochs=1, precision="64-true").fit(task, data)
    assert {p.dtype for p in task.parameters()} == {torch.float64}
