"""A preset ends better than the samples of new subjects joined by lines (`scripts/benchmark_presets.py` runs all)."""

from __future__ import annotations

import lightning as L
import torch

from neuralpk.cohort_figures import curve_errors
from neuralpk.datamodules import SimulatedLotkaVolterraDataModule, SimulatedSIRDataModule
from neuralpk.dynamics import SIR
from neuralpk.encoders import SetEncoder
from neuralpk.objectives import ELBO, PathELBO, SquaredError
from neuralpk.parameters import PopulationParameters
from neuralpk.residual_error import CombinedError
from neuralpk.solve import Auto
from neuralpk.task import LatentTask


def test_epidemics_of_a_short_training_are_better_than_joined_samples() -> None:
    torch.set_num_threads(1)
    data = SimulatedSIRDataModule(subjects=20, test_subjects=8, passes_per_epoch=5)
    task = LatentTask(
        SIR(),
        PopulationParameters(omega=0.25),
        CombinedError(),
        Auto(rtol=1e-4, atol=1e-5),
        SetEncoder(),
        objective=ELBO(0.5),
    )
    trainer = L.Trainer(
        max_epochs=6, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, gradient_clip_val=5.0,
    )  # fmt: skip
    trainer.fit(task, data)
    errors = curve_errors(data, task, data.part("test"))
    model, joined = (errors[by][0].mean(axis=0) for by in ("model", "samples, interpolated"))
    assert model.shape == (2,)  # infected, recovered
    assert (model < joined).all(), (model, joined)


def test_the_map_is_searched_wherever_there_is_a_likelihood_but_not_of_paths() -> None:
    assert [one.searches_map for one in (ELBO(), SquaredError(), PathELBO())] == [True, False, False]


def test_the_typical_subject_of_a_noisy_system_is_not_the_subject_itself() -> None:
    noisy = SimulatedLotkaVolterraDataModule(subjects=2, noise=0.25, omega={})
    plain = SimulatedLotkaVolterraDataModule(subjects=2, omega={})
    cohort = noisy.part("train")
    lines = noisy.typical_lines(cohort)
    assert lines is not None
    assert abs(lines[0] - cohort[0].truth.line).max() > 0.1
    assert abs(lines - plain.typical_lines(plain.part("train"))).max() < 1e-6
