"""The estimator of a population whose dynamics has weights: its gradient, its end, and its resumption."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from neuralpk.datamodules import SimulatedPKDataModule
from neuralpk.dynamics import CompartmentModel, HybridDynamics, NeuralCompartments, NeuralFlows
from neuralpk.estimation import NetworkEstimator, network_estimator
from neuralpk.individual_estimates import evaluation_batch
from neuralpk.inference import importance
from neuralpk.inference.map import maximise
from neuralpk.objectives import MarginalLikelihood, Step
from neuralpk.parameters import PopulationParameters
from neuralpk.solve import Auto
from neuralpk.task import LatentTask


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


def data(subjects: int = 12, **options: Any) -> SimulatedPKDataModule:
    given: dict[str, Any] = {"compartments": 1, "typical": {"CL": 4.0, "V1": 70.0}, "samples": 6, "seed": 2}
    return SimulatedPKDataModule(subjects=subjects, **(given | options))


def saturable() -> SimulatedPKDataModule:
    return data(
        20,
        elimination="michaelis_menten",
        typical={"V1": 70.0, "VMAX": 4.0, "KM": 0.15},
        doses=[20.0, 60.0, 120.0],
        times=[0.5, 2.0, 4.0, 8.0, 12.0, 16.0, 24.0, 32.0],
        samples=8,
        passes_per_epoch=20,
    )


def task(
    dynamics: Any = None, rtol: float = 1e-4, typical: dict[str, float] | None = None, **options: Any
) -> LatentTask:
    torch.manual_seed(0)
    dynamics = dynamics or NeuralCompartments(CompartmentModel(1), hidden=8)
    parameters = PopulationParameters(typical=typical or {"CL": 4.0, "V1": 70.0}, omega=0.3)
    return LatentTask(dynamics, parameters, engine=Auto(rtol=rtol, atol=1e-2 * rtol), **options)


def trainer(tmp_path: Path, epochs: int, **options: Any) -> L.Trainer:
    return L.Trainer(
        max_epochs=epochs, accelerator="cpu", gradient_clip_val=5.0, default_root_dir=tmp_path, logger=False,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0, **options,
    )  # fmt: skip


def test_the_gradient_is_that_of_the_likelihood(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network_estimator, "_STAGES", (256, 256))
    monkeypatch.setattr(network_estimator, "_SAMPLE", 128)
    module, cohort = task(), data()
    model = module.build(cohort.scaling()).model
    with torch.no_grad():  # a network that contributes
        for weight in model.dynamics.parameters():
            weight += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    batch = evaluation_batch(model, cohort.part("train")).scored_on_all()
    estimator = NetworkEstimator(model, 0, lambda own: [own])
    log_p = estimator.add(batch)
    held = estimator.posterior(batch)
    assert held is not None
    loss = module.objective.loss(model, None, None, batch, dataclasses.replace(Step(0, 0), posterior=held))
    assert float(loss.fit.detach()) == pytest.approx(-float(log_p.sum()), rel=1e-5)
    weights = [w for w in (*model.dynamics.parameters(), *model.population_weights()) if w.requires_grad]
    found = torch.autograd.grad(loss.fit, weights, retain_graph=True)
    mode = maximise(model, batch, model.typical(len(batch)))
    noise = importance.noise(5, 0, batch.index, 800, model.latent_size, torch.float32)
    exact = torch.autograd.grad(-importance.draw(model, batch, mode, noise).log_likelihood.sum(), weights)
    a, b = (torch.cat([one.flatten() for one in parts]) for parts in (found, exact))
    assert float((a - b).norm() / b.norm()) < 0.15


@pytest.mark.slow
def test_a_hybrid_converges_and_the_weights_then_stay(tmp_path: Path) -> None:
    torch.manual_seed(0)
    hybrid = HybridDynamics(CompartmentModel(1), NeuralFlows(prior_sd=10.0, hidden=16))
    typical = {"CL": 0.3, "V1": 70.0, "base_central_out": 0.15}
    module, cohort = task(hybrid, typical=typical, learning_rate=0.02), saturable()
    run = trainer(tmp_path, 40)
    run.fit(module, cohort)
    estimator = module.estimator
    assert isinstance(estimator, NetworkEstimator)
    assert module.status is not None and module.status.converged, module.status
    assert module.status.draws == network_estimator._STAGES[-1]
    assert run.global_step < 40 * 20
    assert not estimator.weights_move and estimator.pace == 0.0
    # the network explains what the mechanism cannot
    assert max(estimator.values) > estimator.values[0] + 20
    plain = task(CompartmentModel(1))
    trainer(tmp_path, 40).fit(plain, cohort)
    assert plain.status is not None and plain.status.converged
    assert module.covariance is not None and plain.covariance is not None
    assert -2 * module.covariance.log_likelihood < -2 * plain.covariance.log_likelihood - 10
    torch.testing.assert_close(
        torch.cat([w.flatten() for w in estimator.model.dynamics.parameters()]),
        torch.cat([w.detach().flatten() for w in module.model.dynamics.parameters()]),
    )


def test_a_bound_is_said(tmp_path: Path) -> None:
    module = task()
    trainer(tmp_path, 1).fit(module, data())
    assert module.status is not None and not module.status.converged
    assert "the training was ended before" in module.status.reason


@pytest.mark.parametrize("first", [1, 2], ids=["within a set of draws", "later"])
def test_a_resumed_training_is_the_same(tmp_path: Path, first: int) -> None:
    whole = task()
    trainer(tmp_path, 3).fit(whole, data(passes_per_epoch=5, batch_size=7))
    begun = task()
    run = trainer(tmp_path, first)
    run.fit(begun, data(passes_per_epoch=5, batch_size=7))
    run.save_checkpoint(tmp_path / "begun.ckpt")
    resumed = task()
    trainer(tmp_path, 3).fit(resumed, data(passes_per_epoch=5, batch_size=7), ckpt_path=tmp_path / "begun.ckpt")
    for mine, other in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_subjects_are_drawn_once_in_a_set(tmp_path: Path) -> None:
    module, cohort = task(objective=MarginalLikelihood()), data()
    module.build(cohort.scaling())
    batch = evaluation_batch(module.model, cohort.part("train")).scored_on_all()
    estimator = NetworkEstimator(module.model, 0, lambda own: [own])
    counts = []
    for _ in range(2 * network_estimator._STEPS):
        estimator.add(batch)
        estimator.posterior(batch)
        estimator.end_pass()
        counts.append(estimator.iteration)
    assert counts == [1] * network_estimator._STEPS + [2] * network_estimator._STEPS
