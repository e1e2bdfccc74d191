"""Pre-training: populations around a prior, a study that starts from a checkpoint, and the provenance of a model."""

from __future__ import annotations

import io
import json
import math
import shutil

import lightning as L
import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console
from scipy import stats

from neuralpk.callbacks import Report
from neuralpk.checkpoint_files import CheckpointError, read_checkpoint, write_checkpoint
from neuralpk.cli import main
from neuralpk.cohort_simulation import Population, PopulationPrior
from neuralpk.datamodules import SimulatedPKDataModule
from neuralpk.dynamics import CompartmentModel, Dynamics, HybridDynamics, NeuralCompartments, NeuralField, NeuralFlows
from neuralpk.encoders import SetEncoder
from neuralpk.evaluation import Evaluation
from neuralpk.objectives import ELBO, MarginalLikelihood
from neuralpk.parameters import PopulationParameters
from neuralpk.pretrained_model import Pretrained
from neuralpk.residual_error import AdditiveError
from neuralpk.scaling import Scaling
from neuralpk.tables import write_table
from neuralpk.task import LatentTask

TYPICAL = {"CL": 4.0, "V1": 70.0}
FACTORS = {"typical": 3.0, "omega": 2.0, "error": 2.0}
ONE = {"compartments": 1, "typical": TYPICAL, "samples": 5, "grid": [0.25, 72.0, 20]}


def quiet(**options: object) -> L.Trainer:
    """A trainer that writes and says nothing."""
    silent = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return L.Trainer(**({"accelerator": "cpu", "limit_val_batches": 0, "num_sanity_val_steps": 0} | silent | options))


def neural(hidden: int = 8) -> NeuralCompartments:
    """A network of one compartment."""
    return NeuralCompartments(CompartmentModel(1), hidden=hidden)


def likelihood() -> MarginalLikelihood:
    """With two draws."""
    return MarginalLikelihood(draws=2)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> tuple[str, LatentTask]:
    """A neural field after a few steps on patients of many populations, and where it is kept."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data = SimulatedPKDataModule(subjects=40, populations=FACTORS, batch_size=20, error="log_normal", **ONE)
    task = LatentTask(neural(), PopulationParameters(omega=0.7), encoder=SetEncoder(16), objective=ELBO())
    trainer = quiet(max_epochs=2)
    trainer.fit(task, data)
    path = tmp_path_factory.mktemp("pretrained") / "start.ckpt"
    trainer.save_checkpoint(path)
    return str(path), task


def study() -> SimulatedPKDataModule:
    """Six patients of one population."""
    return SimulatedPKDataModule(subjects=6, passes_per_epoch=4, **(ONE | {"doses": [1000.0]}))


# ---- the prior over populations


def test_typical_values_and_omegas_lie_log_uniformly_within_their_factors() -> None:
    typical, omega, error = PopulationPrior(3.0, 2.0, 1.5).draw(5, torch.arange(20_000), 2)
    for drawn, factor in ((typical, 3.0), (omega, 2.0), (error, 1.5)):
        for column in drawn.T:
            uniform = stats.uniform(-math.log(factor), 2 * math.log(factor))
            assert stats.kstest(column.log().numpy(), uniform.cdf).pvalue > 1e-3
    together = np.corrcoef(torch.cat([typical, omega, error], 1).log().T.numpy())
    assert np.abs(together - np.eye(5)).max() < 0.03  # four standard deviations of a correlation of 20,000


def test_one_patient_of_many_populations_varies_by_population_and_by_omega() -> None:
    index = torch.arange(20_000)
    prior = PopulationPrior(typical=3.0, omega=2.0)
    many = Population(TYPICAL, dict.fromkeys(TYPICAL, 0.3), prior=prior).draw(3, index, {}).log()
    between = math.log(3) ** 2 / 3
    within = 0.3**2 * (4 - 1 / 4) / (4 * math.log(2))  # mean of omega², omega log-uniform within a factor 2
    np.testing.assert_allclose(many.std(0).numpy(), (between + within) ** 0.5, rtol=0.02)
    np.testing.assert_allclose(many.mean(0).exp().numpy(), list(TYPICAL.values()), rtol=0.02)


def test_the_residual_error_differs_between_populations() -> None:
    settings = {"subjects": 1000, "compartments": 1, "typical": TYPICAL, "omega": {}, "doses": [50.0]}
    settings |= {"samples": 1, "times": [1.0], "grid": [1.0, 1.0, 1]}
    one = SimulatedPKDataModule(**settings).part("train")
    true = one[0].truth.line[0, 0]
    spread = [
        np.std([s.values[0] / true - 1 for s in SimulatedPKDataModule(**settings, populations=p).part("train")])
        for p in (None, {"error": 3.0})
    ]
    wider = ((9 - 1 / 9) / (4 * math.log(3))) ** 0.5  # root mean square of a log-uniform factor within 3
    np.testing.assert_allclose(spread, [0.2, 0.2 * wider], rtol=0.1)


def test_a_prior_of_one_population_changes_no_patient() -> None:
    left, right = (
        SimulatedPKDataModule(subjects=4, **ONE, populations=p).part("train") for p in (None, {"typical": 1.0})
    )
    for a, b in zip(left, right, strict=True):
        np.testing.assert_array_equal(a.values, b.values)


@pytest.mark.parametrize("populations", [{"typical": 0.5}, {"cv": 2.0}])
def test_a_factor_that_makes_no_sense_is_refused(populations: dict) -> None:
    with pytest.raises(ValueError, match="factors"):
        SimulatedPKDataModule(populations=populations)


# ---- the prior of a population


def test_the_prior_of_typical_values_is_log_normal_around_the_starting_value() -> None:
    individual = PopulationParameters({"CL": 4.0}, omega=0.4, omega_prior_sd=0.7, typical_prior_sd={"CL": 0.5})
    individual.build(TYPICAL, 0, Scaling())
    before = individual.log_prior().item()
    with torch.no_grad():
        individual.location.copy_(torch.tensor([5.0, 90.0]).log())
        individual.log_omega.copy_(torch.tensor([0.2, 0.4]).log())
    expected = 0.0
    for centre, spread, value in ((4.0, 0.5, 5.0), (0.4, 0.7, 0.2)):
        belief = stats.norm(math.log(centre), spread)
        expected += belief.logpdf(math.log(value)) - belief.logpdf(math.log(centre))
    assert individual.log_prior().item() - before == pytest.approx(expected, rel=1e-5)  # in float32


@pytest.mark.parametrize("spread", [1e-3, None])
def test_a_sure_prior_holds_the_typical_values_where_they_are(spread: float | None) -> None:
    data = SimulatedPKDataModule(subjects=4, passes_per_epoch=12, **ONE)
    wrong = {name: 2 * value for name, value in TYPICAL.items()}
    sure = {} if spread is None else {"typical_prior_sd": dict.fromkeys(wrong, spread)}
    parameters = PopulationParameters(wrong, **sure)
    task = LatentTask(
        CompartmentModel(1), parameters, encoder=SetEncoder(), objective=MarginalLikelihood(draws=4, map_steps=2)
    )
    quiet(max_epochs=1, gradient_clip_val=5.0).fit(task, data)
    moved = task.model.population.location.detach() - torch.tensor(list(wrong.values())).log()
    assert bool((moved.abs() < 0.1).all()) == (spread is not None), moved


# ---- a study that starts from a pre-training


def test_a_study_starts_from_the_weights_and_has_its_prior_there(pretrained) -> None:
    path, source = pretrained
    parameters = PopulationParameters(omega=0.35, omega_prior_sd=0.5)
    task = LatentTask(parameters=parameters, objective=likelihood(), pretrained=path).build(study().scaling())
    for part in ("encoder", "model.dynamics.rate_network.network", "model.error"):
        started, found = (m.get_submodule(part).state_dict() for m in (task, source))
        assert all(torch.equal(started[name], found[name]) for name in found), part
    individual, before = task.model.population, source.model.population
    torch.testing.assert_close(individual.location, before.location, rtol=0.0, atol=1e-6)
    spread = dict(zip(before.names, before.log_omega.exp().tolist(), strict=True))
    assert individual.typical_prior_sd == pytest.approx(spread)
    assert individual.omega_prior_sd == 0.5
    assert individual.log_omega.exp().tolist() == pytest.approx([0.35] * len(spread))
    assert task.model.dynamics.log_prior().item() == 0.0  # the most probable weights are those that were found
    with torch.no_grad():
        task.model.dynamics.rate_network.network[0].weight += 0.1
    assert task.model.dynamics.log_prior().item() < 0.0
    assert task.encoder.scaling.amount == source.encoder.scaling.amount  # not the study's thousand


FIELDS = {
    "neural": lambda: neural(6),
    "free": lambda: NeuralField(CompartmentModel(1), hidden=6, prior_sd=1.0),
    "hybrid": lambda: HybridDynamics(CompartmentModel(1), NeuralFlows(hidden=6)),
}


@pytest.mark.parametrize("field", FIELDS)
def test_a_study_has_its_prior_at_the_weights_of_every_learned_field(field: str, tmp_path) -> None:
    data = study()
    task = LatentTask(FIELDS[field](), encoder=SetEncoder(8), objective=ELBO())
    trainer = quiet(max_epochs=1)
    trainer.fit(task, data)
    trainer.save_checkpoint(tmp_path / "start.ckpt")
    tuned = LatentTask(objective=ELBO(), pretrained=str(tmp_path / "start.ckpt")).build(data.scaling())
    dynamics: Dynamics = tuned.model.dynamics
    assert dynamics.log_prior().item() == 0.0
    narrow = sum(parameter.numel() for parameter in dynamics.parameters())
    with torch.no_grad():
        for weight in dynamics.parameters():
            weight += 1e-3
    assert -dynamics.log_prior().item() > 0.5 * narrow * (1e-3 / 0.1) ** 2  # every weight has a prior
    with torch.no_grad():
        for weight in dynamics.parameters():
            weight -= 1e-3
    tuned = LatentTask(objective=ELBO(), pretrained=str(tmp_path / "start.ckpt")).build(data.scaling())
    learned = dict(task.model.dynamics.named_parameters())
    assert all(torch.equal(weight, learned[name]) for name, weight in tuned.model.dynamics.named_parameters())


def test_the_prior_of_a_network_is_kept_in_a_checkpoint(tmp_path) -> None:
    data = study()
    task = LatentTask(neural(6), encoder=SetEncoder(8), objective=likelihood())
    trainer = quiet(max_epochs=1)
    trainer.fit(task, data)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    torch.manual_seed(12345)  # other first features
    loaded = LatentTask.load_from_checkpoint(tmp_path / "last.ckpt")
    assert loaded.model.log_prior().item() == task.model.log_prior().item()


def test_a_tuned_checkpoint_loads_without_the_one_it_started_from(pretrained, tmp_path) -> None:
    path, _ = pretrained
    start = tmp_path / "start.ckpt"
    shutil.copy(path, start)
    data = study()
    task = LatentTask(
        parameters=PopulationParameters(omega_prior_sd=0.5), objective=likelihood(), pretrained=str(start)
    )
    settings = dict(task.hparams)
    assert json.loads(json.dumps(settings)) == settings
    trainer = quiet(max_epochs=1)
    trainer.fit(task, data)
    trainer.save_checkpoint(tmp_path / "tuned.ckpt")
    start.unlink()
    loaded = LatentTask.load_from_checkpoint(tmp_path / "tuned.ckpt")
    left, right = (one.reconstruct(data.part("train"), draws=0).ipred for one in (task, loaded))
    np.testing.assert_array_equal(left, right)
    assert loaded.model.log_prior().item() == task.model.log_prior().item()
    # also into a task that was made of other settings, as the command line does
    other = LatentTask(neural(12), encoder=SetEncoder(), objective=likelihood())
    quiet(limit_val_batches=1).validate(
        other, data, ckpt_path=tmp_path / "tuned.ckpt", verbose=False, weights_only=True
    )
    assert other.provenance == task.provenance
    assert other.model.log_prior().item() == task.model.log_prior().item()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dynamics": neural(16)}, "hidden 8"),
        ({"error": AdditiveError()}, "error .* has class .*ProportionalError"),
        ({"encoder": SetEncoder(32)}, "hidden 16"),
    ],
)
def test_a_study_cannot_ask_for_another_model(pretrained, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LatentTask(pretrained=pretrained[0], **options)


def test_a_study_with_other_covariates_is_refused(pretrained) -> None:
    with pytest.raises(ValueError, match="WT"):
        LatentTask(pretrained=pretrained[0]).build(
            SimulatedPKDataModule(**ONE, covariates={"WT": [50.0, 90.0]}).scaling()
        )


def test_a_file_is_read_without_running_what_is_in_it(tmp_path) -> None:
    torch.save({"hyper_parameters": print, "state_dict": {}}, tmp_path / "bad.ckpt")
    for unverified in (False, True):
        with pytest.raises(CheckpointError, match="more than numbers and texts"):
            Pretrained.read(tmp_path / "bad.ckpt", unverified)


@pytest.mark.parametrize("what", ["weights", "scaling", "error"])
def test_a_file_that_does_not_hold_its_task_is_refused(what: str, pretrained, tmp_path) -> None:
    content, path = read_checkpoint(pretrained[0]), tmp_path / "odd.ckpt"
    if what == "weights":
        content["state_dict"] = {name: torch.zeros(7, 3) for name in content["state_dict"]}
    else:
        del content["neuralpk" if what == "scaling" else "hyper_parameters"][what]
    write_checkpoint(content, path)
    with pytest.raises(CheckpointError, match=r"odd\.ckpt does not hold the task it names"):
        Pretrained.read(path)


# ---- the provenance


def test_the_report_states_the_provenance(pretrained, tmp_path, monkeypatch, capsys) -> None:
    data = study()
    found = {}
    study_only = {"dynamics": neural(), "encoder": SetEncoder()}
    for name, options in (("study", study_only), ("tuned", {"pretrained": pretrained[0]})):
        task = LatentTask(objective=likelihood(), **options)
        report = Report(subjects=2)
        report.console = Console(file=io.StringIO(), width=300)
        trainer = quiet(max_epochs=1, default_root_dir=tmp_path / name, callbacks=[report])
        monkeypatch.setattr(Evaluation, "drawn", lambda *_, **__: ())  # the figures do not show it
        trainer.fit(task, data)
        found[name] = task.provenance.description
        printed = " ".join(report.console.file.getvalue().split())  # however its lines were broken
        assert printed.count(task.provenance.description) == 2
        table = pd.read_csv(tmp_path / name / "population.csv")
        assert set(table["TRACK"]) == {task.provenance.description}
        simulated = pd.read_csv(tmp_path / name / "calibration.csv")
        assert 0 < simulated["crps"].item() < simulated["absolute"].item()
        assert f"CRPS {simulated['crps'].item():.3g} mg/L" in printed
    assert found["study"] == "learned from the study's own 6 subjects only"
    assert found["tuned"] == (
        "pre-trained on 40 simulated patients of populations within a factor 3 of CL 4, V1 70 (omega within 2, "
        "residual error within 2 of their centres), then tuned to the study's 6 subjects"
    )
    assert pretrained[1].provenance.description.endswith("tuned to no study")
    trainer.save_checkpoint(tmp_path / "tuned.ckpt")
    write_table(data.part("train"), tmp_path / "T.csv")
    names = ("model", "tuned.ckpt"), ("table", "T.csv"), ("out", "out")
    main(["estimate", *(f"--{name}={tmp_path / value}" for name, value in names), "--draws=2"])
    assert found["tuned"] in capsys.readouterr().out
