"""Residual error that differs between subjects (RUV), and several assays of one output."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torch.distributions import LogNormal, Normal

from neuralpk import (
    AdditiveError,
    Cohort,
    CompartmentModel,
    Dose,
    ErrorByEndpoint,
    LatentTask,
    PopulationModel,
    PopulationParameters,
    ProportionalError,
    SimulatedPKDataModule,
    Subject,
    fit,
    read_model,
)
from neuralpk.cohort_batch import collate
from neuralpk.cohort_figures import held_out
from neuralpk.cohort_simulation import Design, Population, simulate_cohort
from neuralpk.dynamics import Equations
from neuralpk.evaluation import evaluate
from neuralpk.inference.joint import gradient, information
from neuralpk.published_population import PublishedPopulation, read_population, write_population
from neuralpk.residual_error import LogNormalError
from neuralpk.scaling import Scaling

TIMES = np.array([0.5, 1.0, 2.0, 4.0, 6.0, 9.0, 12.0, 18.0, 24.0, 30.0])


def _cohort(count: int, endpoints: np.ndarray | None = None, site: bool = False) -> Cohort:
    times = TIMES if endpoints is None else np.repeat(TIMES, 2)
    covariates = [{"SITE": float(k % 2)} if site else {} for k in range(count)]
    subjects = [
        Subject(str(k), times, np.ones(len(times)), (Dose(0.0, 100.0),), endpoints=endpoints, covariates=covariates[k])
        for k in range(count)
    ]
    return Cohort(tuple(subjects))


def _simulated(population: PublishedPopulation, cohort: Cohort, seed: int = 0) -> Cohort:
    model, generator = population.model(cohort), torch.Generator().manual_seed(seed)
    batch = collate(cohort, dtype=torch.float64)
    z = torch.randn(len(batch), model.latents(batch).shape[1], generator=generator, dtype=torch.float64)
    noise = torch.randn(batch.time.shape, generator=generator, dtype=torch.float64)
    values = model.simulate(z, noise, batch).value.numpy()
    pairs = zip(cohort, values, strict=True)
    return dataclasses.replace(cohort, subjects=tuple(dataclasses.replace(s, values=v) for s, v in pairs))


def _population(**options: object) -> PublishedPopulation:
    plain = {
        "dynamics": {"compartments": 1},
        "typical": {"CL": 4.0, "V1": 30.0},
        "omega": {"CL": 0.3, "V1": 0.2, "RUV": 0.5},
        "error": "proportional",
        "error_sd": {"b": 0.1},
    }
    return PublishedPopulation.from_plain(plain | options)


def test_the_likelihood_with_a_factor_is_that_of_its_standard_deviation() -> None:
    batch = collate(_cohort(2), dtype=torch.float64)
    batch = dataclasses.replace(batch, value=torch.linspace(0.5, 2.0, 20, dtype=torch.float64).reshape(2, 10))
    prediction, factor = torch.full_like(batch.value, 1.3), torch.tensor([[0.5], [2.0]]).expand(2, 10).double()
    for error, expected in (
        (ProportionalError.from_values(b=0.2), Normal(prediction, 0.26 * factor)),
        (LogNormalError.from_values(b=0.2), LogNormal(prediction.log(), 0.2 * factor)),
    ):
        found = error.double().log_likelihood(batch, prediction, factor)
        torch.testing.assert_close(found, expected.log_prob(batch.value), rtol=1e-6, atol=1e-6)
        below = dataclasses.replace(
            batch, censored=torch.ones_like(batch.censored), limit=torch.full_like(batch.limit, -torch.inf)
        )
        tail = torch.special.log_ndtr(error.standardise(batch.value, prediction, batch.endpoint) / factor)
        torch.testing.assert_close(error.log_likelihood(below, prediction, factor), tail, rtol=1e-6, atol=1e-6)


def test_the_factor_is_in_simulations_densities_and_individual_estimates() -> None:
    cohort = _cohort(200)
    population = _population(omega={"RUV": 0.5})
    simulated = _simulated(population, cohort)
    model = population.model(simulated)
    batch = collate(simulated, dtype=torch.float64)
    curve = 100 / 30 * np.exp(-4 / 30 * TIMES)
    spread = np.log(np.std([subject.values / curve - 1 for subject in simulated], axis=1))
    noise_of_log_sd = 1 / math.sqrt(2 * (len(TIMES) - 1))
    assert np.std(spread) == pytest.approx(math.hypot(0.5, noise_of_log_sd), rel=0.1)
    z = torch.zeros(200, 1, dtype=torch.float64)
    _, slope = gradient(model, z, batch)
    _, ahead = gradient(model, z + 1e-5, batch)
    assert not torch.allclose(slope, torch.zeros_like(slope), atol=1.0)
    # the expected curvature is the mean of the true one over such patients: 1 + 2·10·0.5²
    assert information(model, z, batch).mean().item() == pytest.approx(6.0, rel=1e-3)
    assert ((slope - ahead) / 1e-5).mean().item() == pytest.approx(6.0, rel=0.6)


def test_a_fit_recovers_how_the_residual_error_differs() -> None:
    simulated = _simulated(_population(omega={"CL": 0.3, "RUV": 0.5}), _cohort(50), seed=3)
    parameters = PopulationParameters(omega={"V1": 0.0, "RUV": 0.3})
    fitted = fit(simulated, CompartmentModel(1), parameters=parameters, error=ProportionalError(), progress=False)
    assert fitted.task.status is not None and fitted.task.status.converged
    values = fitted.task.model.reported_values()
    assert values["omega RUV"] == pytest.approx(0.5, rel=0.3)
    assert values["b"] == pytest.approx(0.1, rel=0.2)
    assert "RUV" not in values  # 1, not estimated
    table = fitted.population.set_index("PARAMETER")
    assert table.loc["RUV", "ESTIMATE"] == 1 and math.isfinite(table.loc["RUV", "OMEGA_RSE"])
    rows = fitted.individuals
    assert {"RUV", "RUV_LO90", "ETA_RUV"} <= set(rows)
    iwres = fitted.records.groupby("ID")["IWRES"].std().to_numpy()
    assert np.std(iwres) < 0.35  # of the same size in all patients; without the factor 0.55
    found = evaluate(fitted, simulated, simulations=100, draws=0)
    assert len(found.figure("random_effects").axes) == 2  # V1 has no random effect


def test_a_population_file_and_a_checkpoint_keep_the_factor(tmp_path) -> None:
    population = _population(correlation={"CL~RUV": 0.4}, effects={"RUV~SITE": 0.7})
    write_population(population, tmp_path / "pop.yaml")
    read = read_population(tmp_path / "pop.yaml")
    assert read == population
    cohort = _simulated(population, _cohort(4, site=True))
    model = read.model(cohort)
    batch = collate(cohort, dtype=torch.float64)
    factor = model.factor(torch.zeros(4, 3, dtype=torch.float64), batch)
    assert factor is not None
    torch.testing.assert_close(factor[:, 0], torch.tensor([0.0, 0.7, 0.0, 0.7], dtype=torch.float64).exp())
    again = PublishedPopulation.from_model(model)
    assert again.omega == pytest.approx(population.omega) and "RUV" not in again.typical
    estimates = read_model(tmp_path / "pop.yaml").estimate(cohort)
    assert "ETA_RUV" in estimates.individuals()


@pytest.mark.slow
def test_an_effect_alone_gives_the_error_no_random_effect() -> None:
    simulated = _simulated(
        _population(omega={"CL": 0.3, "V1": 0.2}, effects={"RUV~SITE": 0.7}), _cohort(120, site=True), 4
    )
    parameters = PopulationParameters(effects={"RUV": ["SITE"]})
    fitted = fit(simulated, CompartmentModel(1), parameters=parameters, error=ProportionalError(), progress=False)
    values = fitted.task.model.reported_values()
    assert "omega RUV" not in values
    assert values["RUV~SITE"] == pytest.approx(0.7, abs=0.15)


@pytest.mark.slow
def test_two_assays_of_one_output_have_errors_of_their_own(tmp_path) -> None:
    endpoints = np.tile([1, 2], len(TIMES))
    options = {"error": ["proportional", "additive"], "error_sd": [{"b": 0.05}, {"a": 0.4}], "outputs": [1, 1]}
    population = _population(omega={"CL": 0.3, "V1": 0.2}, **options)
    simulated = _simulated(population, _cohort(30, endpoints), 2)
    error = ErrorByEndpoint([ProportionalError(), AdditiveError()], outputs=[1, 1])
    fitted = fit(simulated, CompartmentModel(1), error=error, progress=False)
    values = fitted.task.model.reported_values()
    assert values["b1"] == pytest.approx(0.05, rel=0.15) and values["a2"] == pytest.approx(0.4, rel=0.15)
    fitted.write_population(tmp_path / "pop.yaml")
    read = read_population(tmp_path / "pop.yaml")
    assert read.outputs == (1, 1)
    curves = read_model(tmp_path / "pop.yaml").estimate(simulated[:2]).curves()
    assert curves.groupby(["ID", "TIME"])["IPRED"].nunique().max() == 1


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="typically 1"):
        PopulationParameters(typical={"RUV": 2.0})
    with pytest.raises(ValueError, match=r"outputs holds the output .* \[1, 1\]"):
        ErrorByEndpoint([ProportionalError(), AdditiveError()], outputs=[1])
    model = PopulationModel(CompartmentModel(1), error=ErrorByEndpoint([ProportionalError()], outputs=[2]))
    with pytest.raises(ValueError, match=r"outputs of the residual error are \[2\]; the model has 1"):
        model.build(Scaling())
    with pytest.raises(ValueError, match="--outputs 1 1"):
        PopulationModel(CompartmentModel(1)).build(Scaling(value=(1.0, 1.0)))
    with pytest.raises(ValueError, match=r"outputs holds the output from 1 to 1"):
        _population(error=["proportional", "additive"], error_sd=[{"b": 0.1}, {"a": 0.1}], outputs=[1, 2])


def test_the_limit_of_quantification_of_an_output_is_that_of_all_its_assays(tmp_path) -> None:
    text = "parameters: CL = 4, V = 30\ncentral' = -CL/V*central\nC = central/V\nR' = 1 - R\n"
    text += "outputs: C ~ proportional(b = 0.1) lloq 2.6, R ~ additive(a = 1) lloq 0.2\n"
    subject = Subject(
        "1", TIMES[:4], np.array([3.1, 2.9, 2.5, 1.9]), (Dose(0.0, 100.0),), endpoints=np.array([1, 2] * 2)
    )
    cohort = Cohort((subject,))
    error = ErrorByEndpoint([ProportionalError(b=0.1), ProportionalError(b=0.1)], outputs=[1, 1])
    with pytest.warns(UserWarning, match=r"2 of C \(LLOQ 2.6\)"):
        (read,) = PopulationModel(Equations(text), error=error).read_cohort(cohort)
    assert read.censored.tolist() == [0, 0, 1, 1] and read.values.tolist() == [3.1, 2.9, 2.6, 2.6]
    population = _population(
        dynamics={"class_path": "Equations", "init_args": {"text": text}}, typical={"CL": 4.0, "V": 30.0},
        omega={"CL": 0.3}, error=["proportional", "proportional"], error_sd=[{"b": 0.1}, {"b": 0.1}], outputs=[1, 1],
    )  # fmt: skip
    write_population(population, tmp_path / "pop.yaml")
    with pytest.warns(UserWarning, match=r"2 of C \(LLOQ 2.6\)"):
        estimates = read_model(tmp_path / "pop.yaml").estimate(cohort)
    assert estimates.records()["CENS"].tolist() == [0, 0, 1, 1]


def test_several_assays_of_one_output_are_simulated() -> None:
    design = Design(((Dose(0.0, 100.0),),), (1.0, 6.0), endpoints=(1, 2))
    errors = ErrorByEndpoint([ProportionalError(b=1e-6), AdditiveError(a=1e-6)], outputs=[1, 1]).fix()
    (subject,) = simulate_cohort(
        CompartmentModel(1), Population({"CL": 4.0, "V1": 30.0}, {}), design, errors, subjects=1, seed=0
    )
    curve = 100 / 30 * np.exp(-4 / 30 * subject.times)
    assert subject.endpoints.tolist() == [1, 2, 1, 2]
    np.testing.assert_allclose(subject.values, curve, rtol=1e-4)


def test_values_that_a_test_holds_back_have_their_predictions() -> None:
    data = SimulatedPKDataModule(subjects=3, compartments=1, typical={"CL": 4.0, "V1": 30.0}, omega={}, forecast=6.0)
    task = LatentTask(CompartmentModel(1))
    task.build(Scaling.of(data.part("train")))
    table = held_out(data, task)
    assert len(table) and (table["TIME"] >= 6.0).all()
    assert table[["DV", "PRED", "IPRED"]].notna().all().all()
    # the first of four processes, which writes the report
    data.trainer = SimpleNamespace(global_rank=0, world_size=4, overfit_batches=0)
    pd.testing.assert_frame_equal(held_out(data, task), table)
