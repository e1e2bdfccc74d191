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
from outside import AverageEncoder, HuberError, ParallelElimination, RobustError
from stopping import Stop

from neuralpk.cohort import Cohort, Subject
from neuralpk.cohort_batch import CohortBatch, collate
from neuralpk.datamodules import SimulatedLotkaVolterraDataModule, SimulatedPKDataModule, TableDataModule
from neuralpk.diagnostics.metrics import line_rrmse
from neuralpk.dynamics import CompartmentModel, FluctuatingClearance, LotkaVolterra
from neuralpk.encoders import SetEncoder
from neuralpk.individual_estimates import evaluation_batch
from neuralpk.inference.joint import log_joint
from neuralpk.objectives import ELBO, Loss, MarginalLikelihood, Objective, PathELBO, SquaredError, Step
from neuralpk.parameters import PopulationParameters
from neuralpk.path_guide import PathGuide
from neuralpk.residual_error import LogNormalError
from neuralpk.scaling import Scaling
from neuralpk.solve import RungeKutta, SolveError, TorchDiffEq
from neuralpk.tables import to_frame, write_table
from neuralpk.task import LatentTask, horizon_share

ONE = {"CL": 4.0, "V1": 70.0}
SPAN = 71.99 * 1.000001  # hours, to the last of its times in single precision
SMALL = {"subjects": 8, "compartments": 1, "typical": ONE, "samples": 5, "grid": [0.25, 72.0, 20]}


def one_compartment(data: L.LightningDataModule, objective: Objective | None = None, **options: object) -> LatentTask:
    """The smallest task that learns: one compartment, solved exactly."""
    torch.manual_seed(0)
    defaults = {"dynamics": CompartmentModel(1), "encoder": SetEncoder(16)}
    return LatentTask(**(defaults | options), objective=objective or ELBO()).build(data.scaling())


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


def weights(task: LatentTask) -> dict[str, torch.Tensor]:
    """A copy of what is trained."""
    return {name: value.detach().clone() for name, value in task.named_parameters()}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    """Equal to the last bit."""
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.fixture(scope="module")
def trained() -> tuple[LatentTask, SimulatedPKDataModule]:
    """A hundred and fifty steps on the data of 20 patients; the first guess of the typical values is the data's own."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data = SimulatedPKDataModule(subjects=20, test_subjects=5, passes_per_epoch=25)
    task = LatentTask(CompartmentModel(2), encoder=SetEncoder(), objective=ELBO(), learning_rate=0.02)
    quiet(max_epochs=6, gradient_clip_val=5.0).fit(task, data)
    return task, data


# ---- learning


@pytest.mark.parametrize("objective", [ELBO(), SquaredError()], ids=["ELBO", "SquaredError"])
def test_a_short_training_beats_the_typical_patient(objective: Objective, trained) -> None:
    task, data = trained
    torch.manual_seed(2)  # with other first weights the error of the curve under SquaredError differs by a fifth
    untrained = LatentTask(CompartmentModel(2), encoder=SetEncoder(), objective=objective, learning_rate=0.02)
    (before,) = quiet(limit_val_batches=1).validate(untrained, data, verbose=False)
    if isinstance(objective, SquaredError):
        task = untrained
        quiet(max_epochs=6, gradient_clip_val=5.0).fit(task, data)
    (after,) = quiet(limit_val_batches=1).validate(task, data, verbose=False)
    true = np.stack([subject.truth.line[..., 0] for subject in data.part("val")])
    typical = line_rrmse(data.typical_lines(data.part("val"))[..., 0], true).mean()
    assert after["val_curve_rrmse"] < 0.75 * typical
    assert after["val_curve_rrmse"] < 0.5 * before["val_curve_rrmse"]
    assert after["val_loss"] < before["val_loss"]


def test_the_truth_of_the_training_subjects_changes_nothing() -> None:
    results = []
    for factor in (1.0, 100.0):
        data = SimulatedPKDataModule(**SMALL, passes_per_epoch=3)
        train = data.part("train")
        data._parts["train"] = dataclasses.replace(train, subjects=tuple(
            dataclasses.replace(s, truth=dataclasses.replace(s.truth, line=factor * s.truth.line)) for s in train
        ))  # fmt: skip
        task = one_compartment(data)
        quiet(max_epochs=1).fit(task, data)
        results.append(weights(task))
    assert same(*results)


@pytest.mark.parametrize(
    ("share", "warmup", "weight"),
    [(0.0, 0.0, 1.0), (0.5, 0.0, 1.0), (0.0, 0.1, 0.0), (0.05, 0.1, 0.5), (0.1, 0.1, 1.0), (0.99, 0.1, 1.0)],
)
def test_the_weight_of_the_kl_term_rises_to_one(share: float, warmup: float, weight: float) -> None:
    assert ELBO(warmup).kl_weight(Step(seed=0, number=3, share=share)) == weight
    assert ELBO(warmup).kl_weight(Step(seed=0, number=None, share=share)) == 1.0  # in an evaluation


def test_the_weight_of_the_kl_term_rises_during_the_warmup() -> None:
    data = SimulatedPKDataModule(**SMALL, passes_per_epoch=8)
    task = one_compartment(data, ELBO(warmup=0.5))
    original, seen = task.loss, []

    def watched(batch: CohortBatch, step: Step) -> Loss:
        loss = original(batch, step)
        seen.append(loss.kl_weight)
        torch.testing.assert_close(loss.total, loss.fit + loss.kl_weight * loss.kl)
        return loss

    task.loss = watched
    quiet(max_epochs=1).fit(task, data)
    assert seen == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("done", "growth", "share"),
    [(0.0, 0.0, 1.0), (0.0, 0.1, 0.15), (0.05, 0.1, 0.575), (0.1, 0.1, 1.0), (0.99, 0.1, 1)],
)
def test_the_horizon_grows_to_the_whole_span(done: float, growth: float, share: float) -> None:
    assert horizon_share(done, growth) == pytest.approx(share)


@pytest.mark.parametrize(
    "objective", [SquaredError(), ELBO(), MarginalLikelihood(2, 1)], ids=lambda o: type(o).__name__
)
@pytest.mark.parametrize("context", ["all", "random"])
def test_a_growing_horizon_lets_later_records_in_step_by_step(objective: Objective, context: str) -> None:
    data = SimulatedPKDataModule(**SMALL, passes_per_epoch=8, context=context)
    task = one_compartment(data, objective, horizon=0.5)
    original, early, counted = task.loss, [], []

    def watched(batch: CohortBatch, step: Step) -> Loss:
        loss = original(batch, step)
        elapsed = batch.time - batch.start[:, None]
        early.append([int((batch.observed & (elapsed <= share * SPAN)).sum()) for share in shares])
        counted.append(int(loss.observations))
        return loss

    shares = [horizon_share(step / 8, 0.5) for step in range(8)]
    task.loss = watched
    quiet(max_epochs=1).fit(task, data)
    assert all(found <= early[step][step] for step, found in enumerate(counted))
    assert counted[0] < counted[2] < counted[4] == counted[7]
    if context == "all":
        assert counted == [seen[step] for step, seen in enumerate(early)]


@pytest.mark.parametrize(
    "make",
    [
        lambda: LatentTask(CompartmentModel(1), encoder=SetEncoder(), horizon=1.5),
        lambda: LatentTask(CompartmentModel(1), encoder=SetEncoder(), horizon=-0.1),
        lambda: ELBO(warmup=-0.1),
        lambda: ELBO(warmup=1.1),
    ],
)
def test_a_share_of_the_training_is_between_0_and_1(make) -> None:
    with pytest.raises(ValueError, match="share of the training"):
        make()


@pytest.mark.parametrize("objective", [ELBO(), SquaredError()], ids=["ELBO", "SquaredError"])
def test_the_loss_is_a_mean_over_the_scored_observations(objective: Objective) -> None:
    data = SimulatedPKDataModule(**(SMALL | {"samples": [1, 9]}))
    cohort = data.part("train")
    task = one_compartment(SimulatedPKDataModule(**SMALL), objective)
    batch, step = collate(cohort), Step(seed=0, number=4)
    parts = (batch.select(torch.arange(3)).trimmed(), batch.select(torch.arange(3, 8)).trimmed())
    whole, a, b = (task.loss(part, step) for part in (batch, *parts))
    for name, value in whole.parts().items():
        torch.testing.assert_close(a.parts()[name] + b.parts()[name], value, msg=name)
    assert (whole.parts()["kl"] > 0) == isinstance(objective, ELBO)
    count = sum(len(subject.times) for subject in cohort)
    assert int(a.observations + b.observations) == int(whole.observations) == count
    logged = {}
    task.log = lambda name, value, **_: logged.update({name: float(torch.as_tensor(value).detach())})
    task._trainer = quiet()
    task._shared_step(batch, "val", step)
    assert logged["val_loss"] == pytest.approx(float(whole.value.detach()) / count)


def test_metrics_do_not_depend_on_the_size_of_the_batches(trained) -> None:
    task, _ = trained
    results = []
    for size in (None, 7):  # 7, 7 and 6 subjects
        ragged = SimulatedPKDataModule(subjects=20, samples=[2, 9], batch_size=size)
        results += quiet(limit_val_batches=1.0).validate(task, ragged, verbose=False)
    for name in ("val_loss", "val_fit", "val_kl", "val_rmse", "val_log_rmse", "val_curve_rrmse"):
        assert results[0][name] == pytest.approx(results[1][name], rel=2e-5), name  # float32 sums


# ---- stopping before harm


@pytest.mark.parametrize("where", ["data", "loss", "gradient"])
def test_a_number_that_is_not_finite_stops_the_training_before_the_weights(where: str) -> None:
    data = SimulatedPKDataModule(**SMALL, passes_per_epoch=3)
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
                original = pl_module.loss
                pl_module.loss = lambda *a: dataclasses.replace(original(*a), fit=torch.tensor(torch.inf))

        def on_after_backward(self, trainer, pl_module) -> None:
            if where == "gradient" and trainer.global_step == 1:
                pl_module.model.population.location.grad[0] = torch.nan

    with pytest.raises(SolveError, match=r"at step 1"):
        quiet(max_epochs=1, callbacks=[Break()]).fit(task, data)
    assert start
    assert same(start, weights(task))


def test_too_many_unsolved_subjects_stop_the_training() -> None:
    data = SimulatedPKDataModule(**SMALL)
    task = one_compartment(data, engine=TorchDiffEq(max_evaluations=2))
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
    loaded = LatentTask.load_from_checkpoint(tmp_path / "task.ckpt")
    left, right = (one.reconstruct(data.part("test"), draws=20) for one in (task, loaded))
    for name in ("times", "pred", "ipred", "lower", "upper", "z"):
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name), err_msg=name)
    pd.testing.assert_frame_equal(left.individuals(), right.individuals(), check_exact=True)


def test_every_hyperparameter_is_a_plain_value() -> None:
    data = SimulatedPKDataModule(**SMALL, covariates={"WT": [40.0, 100.0], "SEX": 0.5})
    task = one_compartment(data, parameters=PopulationParameters(ONE, effects={"CL": ["WT"]}), engine=RungeKutta(1e-4))
    settings = dict(task.hparams)
    assert json.loads(json.dumps(settings)) == settings
    assert set(settings) >= {
        "dynamics",
        "parameters",
        "error",
        "engine",
        "encoder",
        "objective",
        "learning_rate",
        "seed",
    }
    again = LatentTask(**json.loads(json.dumps(settings))).build(data.scaling())
    assert dict(again.hparams) == settings
    assert [c.name for c in again.model.coordinates()] == [c.name for c in task.model.coordinates()]
    assert again.model.engine == task.model.engine == RungeKutta(1e-4)


PARTS = {
    "objects": {
        "dynamics": ParallelElimination(slowest=0.2),
        "parameters": PopulationParameters(omega=0.25),
        "error": RobustError(5.0),
        "engine": RungeKutta(rtol=1e-3),
        "encoder": AverageEncoder(8),
        "objective": HuberError(0.3),
    },
    "descriptions": {
        "dynamics": {"class_path": "outside.dynamics.ParallelElimination", "init_args": {"slowest": 0.2}},
        "parameters": {"class_path": "PopulationParameters", "init_args": {"omega": 0.25}},
        "error": {"class_path": "outside.RobustError", "init_args": {"freedom": 5.0}},
        "engine": {"class_path": "neuralpk.solve.RungeKutta", "init_args": {"rtol": 1e-3}},
        "encoder": {"class_path": "AverageEncoder", "init_args": {"hidden": 8}},
        "objective": {"class_path": "outside.objective.HuberError", "init_args": {"delta": 0.3}},
    },
    "class names": {
        "dynamics": "ParallelElimination",
        "parameters": "PopulationParameters",
        "error": "outside.RobustError",
        "engine": "RungeKutta",
        "encoder": "outside.encoder.AverageEncoder",
        "objective": "HuberError",
    },
}


@pytest.mark.parametrize("form", PARTS)
def test_parts_are_taken_as_objects_as_descriptions_and_by_class_name(form: str) -> None:
    data = SimulatedPKDataModule(**SMALL)
    torch.manual_seed(0)
    task = LatentTask(**PARTS[form])
    settings = dict(task.hparams)
    assert json.loads(json.dumps(settings)) == settings
    if form == "class names":  # with the options of their constructors
        assert task.model.dynamics.slowest == 0.1 and task.encoder.hidden == 16 and task.objective.delta == 0.5
        assert all(settings[name]["init_args"] == {} for name in PARTS[form])
    else:
        torch.manual_seed(0)
        assert settings == dict(LatentTask(**PARTS["objects"]).hparams)
        assert task.model.dynamics.slowest == 0.2 and task.encoder.hidden == 8 and task.objective.delta == 0.3
        assert task.model.error.freedom == 5.0 and task.model.engine.rtol == 1e-3
    for name, part in PARTS["objects"].items():
        found = getattr(task.model, {"parameters": "population"}.get(name, name), None) or getattr(task, name)
        assert type(found) is type(part)
    torch.manual_seed(0)
    again = LatentTask(**json.loads(json.dumps(settings)))
    task.build(data.scaling())
    again.build(data.scaling())
    again.load_state_dict(task.state_dict())
    batch = collate(data.part("train"))
    torch.testing.assert_close(again(batch), task(batch), rtol=0, atol=0)
    quiet(max_epochs=1).fit(again, data)


def test_a_part_can_be_taken_from_another_task() -> None:
    data = SimulatedPKDataModule(**SMALL)
    task = one_compartment(data)
    settings = dict(task.hparams)
    other = LatentTask(settings["dynamics"], encoder=settings["encoder"], objective=SquaredError())
    assert {name for name in settings if other.hparams[name] != settings[name]} == {"objective"}


def test_a_task_without_dynamics_says_what_it_needs() -> None:
    with pytest.raises(ValueError, match="needs its dynamics"):
        LatentTask(encoder=SetEncoder())


@pytest.mark.parametrize("objective", [ELBO(), SquaredError()], ids=["ELBO", "SquaredError"])
def test_an_objective_that_needs_an_encoder_says_so(objective: Objective) -> None:
    with pytest.raises(ValueError, match=r"give one, as encoder=SetEncoder\(\)"):
        LatentTask(CompartmentModel(1), objective=objective)


def test_a_fit_without_magnitudes_says_where_they_come_from() -> None:
    data = SimulatedPKDataModule(**SMALL)
    task = LatentTask(CompartmentModel(1), encoder=SetEncoder(8))
    with pytest.raises(ValueError, match="magnitudes of the data are not known"):
        quiet(max_epochs=1).fit(task, data.train_dataloader())
    task.build(Scaling.of(data.part("train")))
    quiet(max_epochs=1).fit(task, data.train_dataloader())


@pytest.mark.parametrize("steps", [3, 5])
def test_a_resumed_run_is_the_straight_run(tmp_path, steps: int) -> None:
    def run(path: str | None, stop: int, keep: bool = False) -> LatentTask:
        data = SimulatedPKDataModule(**SMALL, passes_per_epoch=2, batch_size=5, context="random")
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
    data = SimulatedPKDataModule(**SMALL, passes_per_epoch=5)
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
    assert same(weights(LatentTask.load_from_checkpoint(path)), weights(task))


# ---- reconstruction


def test_a_frame_a_path_and_a_cohort_give_the_same_estimates(trained, tmp_path) -> None:
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
    assert len(curves) >= 5 * 200
    names = ["CL", "V1", "Q", "V2", "k10", "k12", "k21", "THALF", "ETA_CL", "ETA_V1", "ETA_Q", "ETA_V2"]
    assert list(people) == ["ID", *(f"{n}{end}" for n in names for end in ("", "_LO90", "_HI90"))]
    assert people["ID"].tolist() == list(data.part("test").ids)
    np.testing.assert_allclose(people["k10"], people["CL"] / people["V1"], rtol=1e-6)
    np.testing.assert_allclose(people["k21"], people["Q"] / people["V2"], rtol=1e-6)
    for name in names:
        assert (people[f"{name}_LO90"] < people[name]).all()
        assert (people[name] < people[f"{name}_HI90"]).all()
    inside = (curves["LO90"] <= curves["IPRED"]) & (curves["IPRED"] <= curves["HI90"])
    assert inside.mean() > 0.95


def test_the_curves_have_the_times_that_were_asked_for(trained) -> None:
    task, data = trained
    result = task.reconstruct(data.part("test"), times=[1.0, 5.0, 100.0], draws=0)
    assert result.times.tolist() == [[1.0, 5.0, 100.0]] * 5
    assert result.curves()["TIME"].tolist() == [1.0, 5.0, 100.0] * 5


def test_a_model_trained_on_squares_has_no_band() -> None:
    data = SimulatedPKDataModule(**SMALL)
    result = one_compartment(data, SquaredError()).reconstruct(data.part("test"))
    assert result.curves()[["LO90", "HI90"]].isna().all(axis=None)
    assert result.individuals()[["CL_LO90", "V1_HI90"]].isna().all(axis=None)
    assert result.curves()[["PRED", "IPRED"]].notna().all(axis=None)


def test_any_model_with_a_residual_error_has_map_estimates(trained) -> None:
    task, data = trained
    cohort = data.part("test")
    default, encoder, map_ = (task.reconstruct(cohort, draws=0, map=m).z for m in (None, False, True))
    np.testing.assert_array_equal(default, map_)
    batch = evaluation_batch(task.model, cohort)
    before, after = (log_joint(task.model, torch.tensor(z).float(), batch) for z in (encoder, map_))
    assert (after >= before - 1e-3).all()
    assert (after > before + 0.01).any()
    squares = one_compartment(data, SquaredError())
    with pytest.raises(ValueError, match="map must be false"):
        squares.reconstruct(cohort, map=True)
    squares.reconstruct(cohort, map=False)


def test_a_context_hides_the_later_samples(trained) -> None:
    task, data = trained
    cohort = data.part("test")
    changed = Cohort(tuple(
        dataclasses.replace(s, values=np.concatenate([s.values[:3], 9.0 * s.values[3:]])) for s in cohort
    ))  # fmt: skip
    few, other = (task.reconstruct(c, draws=0, context=3, map=False) for c in (cohort, changed))
    np.testing.assert_array_equal(few.ipred, other.ipred)
    whole, others = (task.reconstruct(c, draws=0, map=False) for c in (cohort, changed))
    assert not np.allclose(whole.ipred, others.ipred)


def test_a_subject_without_observations_gets_the_population(trained) -> None:
    task, data = trained
    seen = data.part("test")[0]
    unseen = Subject("new", np.array([10.0, 40.0]), np.array([np.nan, np.nan]), seen.doses)
    result = task.reconstruct(Cohort((unseen, seen)), times=[1.0, 20.0], draws=400, map=False)
    np.testing.assert_allclose(result.ipred[0], result.pred[0], rtol=1e-5)
    np.testing.assert_allclose(result.z[0], 0.0, atol=1e-6)
    width = np.log(result.upper / result.lower)[..., 0]
    assert (width[0] > 1.1 * width[1]).all()  # nothing was learned of this one


def test_a_model_with_covariates_asks_for_them() -> None:
    data = SimulatedPKDataModule(**SMALL, covariates={"WT": [40.0, 100.0]})
    task = one_compartment(data, parameters=PopulationParameters(effects={"CL": ["WT"]}))
    assert list(task.model.scaling.covariates) == ["WT"]
    with pytest.raises(ValueError, match=r"needs the covariates \['WT'\]"):
        task.reconstruct(SimulatedPKDataModule(**SMALL).part("test"))
    more = SimulatedPKDataModule(**SMALL, covariates={"WT": [40.0, 100.0], "AGE": [20.0, 80.0]}).part("test")
    task.reconstruct(more, draws=0)


def test_a_reconstruction_leaves_the_mode_as_it_was(trained) -> None:
    task, data = trained
    for mode in (True, False):
        task.train(mode)
        task.reconstruct(data.part("test")[:1], draws=0)
        assert task.training is mode


def test_two_endpoints_are_in_one_table() -> None:
    data = SimulatedLotkaVolterraDataModule(subjects=2, samples=4)
    task = LatentTask(LotkaVolterra(), error=LogNormalError(), encoder=SetEncoder(), objective=ELBO()).build(
        data.scaling()
    )
    curves = task.reconstruct(data.part("train"), times=[7.5, 7.8, 8.0], draws=5).curves()
    assert list(curves) == ["ID", "TIME", "DVID", "PRED", "IPRED", "LO90", "HI90"]
    assert curves["DVID"].tolist() == [1, 2] * 6


def test_predictions_are_a_table_of_the_records(trained) -> None:
    task, data = trained
    (table,) = quiet().predict(task, data)
    cohort = data.part("test")
    assert list(table) == ["ID", "TIME", "DVID", "DV", "PRED", "IPRED", "IRES", "IWRES", "TAD"]
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
    assert "test_curve_rrmse" not in result  # the true curve is not known


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"error": "gaussian"}, "error: there is no ResidualError 'gaussian'.* there are AdditiveError"),
        ({"encoder": "SetEncodr"}, "encoder: there is no Encoder 'SetEncodr' .did you mean 'SetEncoder'"),
        ({"dynamics": "magic"}, "dynamics: there is no Decoder 'magic'"),
        (
            {"dynamics": {"class_path": "CompartmentModel", "init_args": {"compartment": 1}}},
            "has no option 'compartment'",
        ),
        ({"dynamics": "ProportionalError"}, "dynamics: there is no Decoder 'ProportionalError'"),
        ({"dynamics": 3}, "dynamics must be a Decoder"),
        ({"objective": "map"}, "objective: there is no Objective 'map'"),
        (
            {"engine": {"class_path": "RungeKutta", "init_args": {"rtol": -1.0}}},
            "tolerances must be positive and finite, got rtol -1.0",
        ),
        (
            {"parameters": {"class_path": "PopulationParameters", "init_args": {"typical": {"KA": 1.0}}}},
            "typical names",
        ),
    ],
)
def test_a_part_that_does_not_exist_or_fit_is_refused(options: dict, message: str) -> None:
    defaults = {"dynamics": "CompartmentModel", "encoder": "SetEncoder"}
    with pytest.raises(ValueError, match=message):
        LatentTask(**(defaults | options)).build(Scaling())


# ---- what a checkpoint decides, and what a limit says


def test_a_checkpoint_keeps_the_magnitudes_of_its_training_whatever_the_data(tmp_path) -> None:
    data = SimulatedPKDataModule(**SMALL)
    task = one_compartment(data)
    trainer = quiet(max_epochs=1)
    trainer.fit(task, data)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    larger = SimulatedPKDataModule(**SMALL, doses=[1000.0, 3000.0])
    (alone,) = quiet(limit_val_batches=1).validate(
        LatentTask.load_from_checkpoint(tmp_path / "last.ckpt"), larger, verbose=False
    )
    other = one_compartment(larger)
    assert other.model.scaling != task.model.scaling
    (restored,) = quiet(limit_val_batches=1).validate(
        other, larger, ckpt_path=tmp_path / "last.ckpt", verbose=False, weights_only=True
    )
    assert restored == alone


def test_a_finished_training_can_go_on(tmp_path) -> None:
    data = SimulatedPKDataModule(**SMALL, passes_per_epoch=12)
    trainer = quiet(max_epochs=1)
    trainer.fit(one_compartment(data), data)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    task = one_compartment(data)
    longer = quiet(max_epochs=3)
    longer.fit(task, data, ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert longer.global_step == 36


def test_a_censored_value_is_a_limit_for_the_squared_error_and_no_value_for_the_metrics() -> None:
    data = SimulatedPKDataModule(**SMALL, lloq=0.3, doses=[10.0])
    task = one_compartment(data, SquaredError())
    batch = collate(data.part("train"))
    below = batch.censored == 1
    assert below.any() and not below.all()
    with torch.no_grad():
        prediction = task.model.predict(task.encoder(batch).mean, batch).value
    error = (prediction - batch.value) / task.model.value_scale
    counted = batch.target & (~below | (error > 0))
    expected = torch.where(counted, error, 0.0).square().sum()
    torch.testing.assert_close(task.loss(batch, Step(seed=0)).fit, expected)
    (metrics,) = quiet(limit_val_batches=1).validate(task, data, verbose=False)
    measured = torch.where(batch.observed & ~below, prediction - batch.value, torch.nan).square().nanmean().sqrt()
    assert metrics["val_rmse"] == pytest.approx(float(measured), rel=1e-4)


@pytest.mark.filterwarnings("ignore:subject stranger .*measured before the first dose")
def test_an_endpoint_or_compartment_that_the_model_lacks_is_refused_by_name() -> None:
    task = one_compartment(SimulatedPKDataModule(**SMALL))
    for unknown in ({"endpoints": [2]}, {"compartments": [4]}):
        cohort = Cohort((Subject("stranger", [1.0], [0.5], **unknown),))
        with pytest.raises(ValueError, match="stranger"):
            task.reconstruct(cohort)


# ---- a dynamics with noise


@pytest.fixture(scope="module")
def noisy() -> tuple[LatentTask, SimulatedPKDataModule]:
    """A clearance that fluctuates, untrained."""
    torch.manual_seed(0)
    data = SimulatedPKDataModule(**SMALL, noise=0.1)
    dynamics = FluctuatingClearance(CompartmentModel(1), sigma=0.1)
    task = LatentTask(dynamics, encoder=SetEncoder(8), guide=PathGuide(8), objective=PathELBO())
    return task.build(data.scaling()), data


def test_a_dynamics_with_noise_refuses_a_map(noisy) -> None:
    task, data = noisy
    with pytest.raises(ValueError, match=r"FluctuatingClearance has noise: .* integral over all its paths.*map=False"):
        task.reconstruct(data.part("train"), map=True)
    result = task.reconstruct(data.part("train"), times=[1.0, 5.0], draws=10)  # by default it does not search one
    assert np.isfinite(result.lower).all()


def test_a_dynamics_with_noise_refuses_a_covariance_step(noisy) -> None:
    task, data = noisy
    with pytest.raises(ValueError, match=r"FluctuatingClearance has noise: .*no standard errors"):
        task.covariance_step(data.part("train"))


@pytest.mark.parametrize("objective", [ELBO(), SquaredError(), MarginalLikelihood(), HuberError()])
def test_a_dynamics_with_noise_refuses_every_objective_but_path_elbo(objective: Objective) -> None:
    dynamics = FluctuatingClearance(CompartmentModel(1), sigma=0.1)
    message = (
        f"FluctuatingClearance has noise, which is trained by the objective PathELBO, not by {type(objective).__name__}"
    )
    with pytest.raises(ValueError, match=message):
        LatentTask(dynamics, encoder=SetEncoder(), guide=PathGuide(), objective=objective)


def test_path_elbo_needs_noise_a_guide_and_an_encoder() -> None:
    noisy = FluctuatingClearance(CompartmentModel(1), sigma=0.1)
    with pytest.raises(ValueError, match="PathELBO is for a dynamics with noise; CompartmentModel has none"):
        LatentTask(CompartmentModel(1), encoder=SetEncoder(), guide=PathGuide(), objective=PathELBO())
    with pytest.raises(ValueError, match=r"needs a guide for its paths: give one, as guide=PathGuide\(\)"):
        LatentTask(noisy, encoder=SetEncoder(), objective=PathELBO())
    with pytest.raises(ValueError, match=r"give one, as encoder=SetEncoder\(\)"):
        LatentTask(noisy, guide=PathGuide(), objective=PathELBO())
    with pytest.raises(ValueError, match="a guide is for a dynamics with noise; CompartmentModel has none"):
        LatentTask(CompartmentModel(1), encoder=SetEncoder(), guide=PathGuide())


# ---- the standard errors at the end of a fit


class Late(L.Callback):
    """Raise at a step, as an interruption does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if trainer.global_step == self.step:
            raise KeyboardInterrupt


def likelihood_task() -> LatentTask:
    """Trained by the marginal likelihood, without an encoder."""
    torch.manual_seed(0)
    return LatentTask(CompartmentModel(1), PopulationParameters(ONE), objective=MarginalLikelihood(4, 2))


class FirstIsBest(L.Callback):
    """Logs a metric that is best in the first epoch."""

    def on_validation_epoch_end(self, trainer, pl_module) -> None:
        pl_module.log("epochs", float(trainer.current_epoch))


def saving(folder, **options: object) -> ModelCheckpoint:
    return ModelCheckpoint(folder, filename="best", **options)


def intervals(task: LatentTask, cohort: Cohort, **options: object) -> pd.DataFrame:
    return task.reconstruct(cohort, times=[1.0, 10.0], draws=40, **options).individuals()


@pytest.fixture(scope="module")
def likelihood(tmp_path_factory):
    """A fit by the marginal likelihood with the last and the first epoch kept, the first as the best."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("likelihood")
    data = SimulatedPKDataModule(**SMALL, passes_per_epoch=3)
    task = likelihood_task()
    trainer = quiet(
        max_epochs=3,
        enable_checkpointing=True,
        limit_val_batches=1.0,
        callbacks=[FirstIsBest(), saving(folder, monitor="epochs"), ModelCheckpoint(folder, filename="last")],
    )
    trainer.fit(task, data)
    return task, data, trainer, folder


def test_the_last_checkpoint_of_a_fit_has_the_intervals_of_the_live_task(likelihood) -> None:
    task, data, _, folder = likelihood
    assert task.model.has_parameter_draws and task.covariance is not None
    saved = torch.load(folder / "last.ckpt", weights_only=True)
    torch.testing.assert_close(saved["state_dict"]["model.parameter_draws"], task.model.parameter_draws, rtol=0, atol=0)
    loaded = LatentTask.load_from_checkpoint(folder / "last.ckpt", weights_only=True)
    live, other = (intervals(one, data.part("test")) for one in (task, loaded))
    assert live.notna().all(axis=None)
    pd.testing.assert_frame_equal(live, other, check_exact=True)


def test_the_best_checkpoint_of_a_fit_has_the_uncertainty_of_its_weights(likelihood) -> None:
    task, data, _, folder = likelihood
    saved = torch.load(folder / "best.ckpt", weights_only=True)
    assert saved["global_step"] == 3 < task.global_step
    best = LatentTask.load_from_checkpoint(folder / "best.ckpt", weights_only=True)
    assert not same(weights(best), weights(task))
    assert best.status is None and task.status is not None  # the search went on from there
    found = best.model.parameter_draws.clone()
    assert found.isfinite().all() and not torch.equal(found, task.model.parameter_draws)
    assert intervals(best, data.part("test")).notna().all(axis=None)
    best.covariance_step(data.part("train"))
    torch.testing.assert_close(best.model.parameter_draws, found)


def test_a_checkpoint_saved_by_hand_after_a_fit_has_the_uncertainty(likelihood, tmp_path) -> None:
    task, data, trainer, _ = likelihood
    trainer.save_checkpoint(tmp_path / "task.ckpt")
    loaded = LatentTask.load_from_checkpoint(tmp_path / "task.ckpt", weights_only=True)
    live, other = (intervals(one, data.part("test")) for one in (task, loaded))
    pd.testing.assert_frame_equal(live, other, check_exact=True)


@pytest.mark.parametrize("how", ["in the middle", "interrupted"])
def test_a_checkpoint_before_the_end_of_a_fit_warns_and_has_no_intervals(how: str, tmp_path) -> None:
    data = SimulatedPKDataModule(**SMALL, passes_per_epoch=3)
    task = likelihood_task()
    if how == "in the middle":
        callbacks = [Stop(3, tmp_path / "part.ckpt")]
        quiet(max_epochs=2, callbacks=callbacks).fit(task, data)
    else:
        callbacks = [saving(tmp_path, save_on_exception=True), Late(3)]
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            quiet(max_epochs=2, enable_checkpointing=True, callbacks=callbacks).fit(task, data)
        assert not task.model.has_parameter_draws
    (path, *_) = sorted(tmp_path.glob("*.ckpt"))
    loaded = LatentTask.load_from_checkpoint(path, weights_only=True)
    cohort = data.part("test")
    with pytest.warns(UserWarning, match="uncertainty not computed"):
        result = loaded.reconstruct(cohort, times=[1.0, 10.0], draws=40)
    assert np.isnan(result.lower).all() and np.isnan(result.upper).all()
    assert np.isfinite(result.ipred).all()
    people = result.individuals()
    assert people[["CL_LO90", "CL_HI90"]].isna().all(axis=None) and people[["CL", "V1"]].notna().all(axis=None)
    assert intervals(loaded, cohort, population_known=True).notna().all(axis=None)
    loaded.covariance_step(data.part("train"))
    assert intervals(loaded, cohort).notna().all(axis=None)


def test_a_second_fit_forgets_the_uncertainty_of_the_first(tmp_path) -> None:
    data = SimulatedPKDataModule(**SMALL)
    task = likelihood_task()
    quiet(max_epochs=1).fit(task, data)
    assert task.model.has_parameter_draws
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        quiet(max_epochs=2, callbacks=[Late(1)]).fit(task, data)
    assert not task.model.has_parameter_draws and task.covariance is None


@pytest.mark.parametrize("objective", [ELBO(), SquaredError()], ids=["ELBO", "SquaredError"])
def test_a_fit_by_another_objective_computes_no_uncertainty_and_needs_none(objective: Objective, recwarn) -> None:
    data = SimulatedPKDataModule(**SMALL)
    task = one_compartment(data, objective)
    quiet(max_epochs=1).fit(task, data)
    assert task.covariance is None and not task.model.has_parameter_draws
    assert intervals(task, data.part("test"))["CL_LO90"].notna().all() == objective.has_likelihood
    assert not [one for one in recwarn if "uncertainty" in str(one.message)]


# ---- precision


def test_double_precision_trains() -> None:
    data = SimulatedPKDataModule(**SMALL)
    task = one_compartment(data)
    quiet(max_epochs=1, precision="64-true").fit(task, data)
    assert {p.dtype for p in task.parameters()} == {torch.float64}


class Watched(ParallelElimination):
    """Keeps the types of the numbers that it computes with; a compiled field would compute without it."""

    compiled = False
    seen: set[torch.dtype] = set()  # noqa: RUF012

    def forward(self, t, y, theta):
        slope = super().forward(t, y, theta)
        Watched.seen |= {y.dtype, theta.dtype, slope.dtype, (y @ y.mT).dtype}
        return slope


@pytest.mark.filterwarnings("ignore:.*AMP with fp16 is not supported on CPU")
@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed"])
@pytest.mark.parametrize("objective", [ELBO(), MarginalLikelihood(2, 1)], ids=["ELBO", "MarginalLikelihood"])
def test_mixed_precision_trains_with_the_solver_in_single_precision(precision: str, objective: Objective) -> None:
    data = SimulatedPKDataModule(**(SMALL | {"subjects": 3, "samples": 4}))
    Watched.seen = set()
    task = one_compartment(data, objective, dynamics=Watched(), engine=RungeKutta(1e-2, 1e-2))
    start = weights(task)
    trainer = quiet(max_epochs=2, precision=precision, limit_val_batches=1.0)
    trainer.fit(task, data)
    assert not same(start, weights(task))
    assert {p.dtype for p in task.parameters()} == {torch.float32}
    # the estimator of the population and the covariance step compute in double precision
    digits = {torch.float32} if task.covariance is None else {torch.float32, torch.float64}
    assert Watched.seen <= digits
    trainer.validate(task, data, verbose=False)
    trainer.predict(task, data)
    assert Watched.seen == digits


@pytest.mark.parametrize("precision", ["16-true", "bf16-true"])
def test_half_precision_is_refused_before_the_training(precision: str) -> None:
    data = SimulatedPKDataModule(**SMALL)
    task = LatentTask(CompartmentModel(1), encoder=SetEncoder(8))
    with pytest.raises(ValueError, match=f"precision '{precision}' has too few digits for a solver: use 32-true"):
        quiet(max_epochs=1, precision=precision).fit(task, data)
    assert task.global_step == 0
