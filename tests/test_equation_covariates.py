"""Covariates in the equations: values, changes in time, gradients, and their way from the table."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import neuralpk
from neuralpk import CompartmentModel, Dose, FittedModel, HybridDynamics, LatentTask, PopulationParameters
from neuralpk.cohort import Cohort, Subject
from neuralpk.cohort_batch import collate
from neuralpk.cohort_simulation import Design, Population, simulate_cohort
from neuralpk.dynamics import Equations, FixedParameters
from neuralpk.individual_estimates import estimate_individuals, evaluation_batch
from neuralpk.parameters import PowerEffect
from neuralpk.population_model import PopulationModel
from neuralpk.published_population import PublishedPopulation
from neuralpk.residual_error import ProportionalError
from neuralpk.scaling import Scaling
from neuralpk.solve import RungeKutta, solve
from neuralpk.solve.field_translation import translated
from neuralpk.tables import to_frame

TEXT = """
parameters: CL = 5, V = 50, LAG = 0.5
covariates: WT, AGE = 40
central' = -CLi/V*central
CLi = CL*(WT/70)^0.75
lag(central) = LAG*AGE/40
C = central/V
outputs: C ~ proportional(b = 0.1)
"""
SMALL = """
parameters: CL = 5, V = 50
covariates: WT, AGE = 40
central' = -CLi/Vi*central
CLi = CL*(WT/70)^0.75
Vi = V*AGE/40
C = central/Vi
outputs: C ~ proportional(b = 0.1)
"""
PLAIN = CompartmentModel(1, lag="central")  # CL, V1, LAG
FINE = RungeKutta(rtol=1e-10, atol=1e-12)
TIMES = torch.tensor([0.7, 2.0, 6.0, 12.0, 24.0], dtype=torch.float64)
DOSES = [[Dose(0.0, 100.0)], [Dose(0.0, 100.0)]]


def test_covariates_are_the_last_components_of_theta() -> None:
    model = Equations(TEXT)
    assert model.parameter_names == ("CL", "V", "LAG", "WT", "AGE") and model.population_names == ("CL", "V", "LAG")
    assert model.covariates == {"WT": None, "AGE": 40.0}
    theta = torch.tensor([[5.0, 50.0, 0.5, 80.0, 40.0], [4.0, 60.0, 0.4, 50.0, 20.0]], dtype=torch.float64)
    found = solve(model, theta, TIMES, DOSES, engine=FINE)
    factors = [[(80 / 70) ** 0.75, 1.0, 1.0], [(50 / 70) ** 0.75, 1.0, 0.5]]
    plain = theta[:, :3] * torch.tensor(factors, dtype=torch.float64)
    torch.testing.assert_close(found.states, solve(PLAIN, plain, TIMES, DOSES).states, rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(model.derived(theta)["CLi"], plain[:, 0])
    assert translated(model, found.states[:, 0], theta[:, None]) is not None  # into compiled code


def test_covariates_that_change_in_time_change_the_equations() -> None:
    values = {"WT": ((0.0, 70.0), (6.0, 35.0)), "AGE": 40.0}
    subject = Subject("1", TIMES.numpy(), np.ones(5), (Dose(0.0, 100.0),), covariates=values)
    cohort = Cohort((subject,))
    model = PopulationModel(Equations(TEXT), engine=FINE).build(Scaling.of(cohort), torch.float64)
    batch = collate(cohort, dtype=torch.float64)
    found = model.predict(model.typical(1), batch).value
    effects = PopulationParameters({"CL": 5, "V1": 50, "LAG": 0.5}, effects={"CL": [PowerEffect("WT", 70.0, 0.75)]})
    plain = PopulationModel(PLAIN, effects).build(Scaling.of(cohort), torch.float64)
    torch.testing.assert_close(found, plain.predict(plain.typical(1), batch).value, rtol=1e-7, atol=1e-8)
    named = model.individual_parameters(model.typical(1), batch)
    assert {name: value.item() for name, value in named.items()} == pytest.approx(
        {"CL": 5.0, "V": 50.0, "LAG": 0.5, "CLi": 5.0}
    )


def test_a_covariate_stays_in_its_place_beside_a_network_and_fixed_parameters() -> None:
    hybrid = HybridDynamics(FixedParameters(Equations(TEXT), {"AGE": 40.0, "LAG": 0.5}))
    assert hybrid.covariates == {"WT": None} and "WT" not in hybrid.population_names
    theta = torch.arange(float(len(hybrid.population_names)))[None]
    joined = hybrid.with_covariates(theta, {"WT": torch.tensor([70.0]), "SEX": torch.tensor([1.0])})
    named = hybrid.named(joined)
    assert named["WT"].item() == 70.0 and named["V"].item() == 1.0
    assert [named[name].item() for name in hybrid.population_names] == theta[0].tolist()


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    population = Population({"CL": 4.0, "V": 40.0}, {"CL": 0.2}, {"WT": (40.0, 100.0), "AGE": (20.0, 60.0)})
    design = Design(((Dose(0.0, 100.0),),), (1.0, 4.0, 12.0))
    cohort = simulate_cohort(Equations(SMALL), population, design, ProportionalError.from_values(b=0.1), 12, 1)
    assert cohort[0].truth is not None and set(cohort[0].truth.parameters) == {"CL", "V", "CLi", "Vi"}
    return to_frame(cohort)


def test_a_fit_reads_the_columns_that_the_text_names(table: pd.DataFrame, tmp_path: Path) -> None:
    parameters = PopulationParameters(omega={"V": 0.0})
    options = {"progress": False, "parameters": parameters, "table": {"covariates": []}}
    fitted = neuralpk.fit(table, Equations(SMALL), epochs=4, **options)
    values = fitted.task.model.population.typical_values()
    assert values == pytest.approx({"CL": 4.0, "V": 40.0}, rel=0.15)
    individuals = fitted.task.reconstruct(fitted._cohort, draws=0).individuals()
    weight = table.groupby("ID", sort=False)["WT"].first().to_numpy()
    np.testing.assert_allclose(individuals["CLi"], individuals["CL"] * (weight / 70) ** 0.75, rtol=1e-4)
    assert "WT" not in individuals
    fitted.save(tmp_path / "fit.ckpt")
    loaded = FittedModel.load(tmp_path / "fit.ckpt")
    again = loaded.task.reconstruct(table, draws=0).individuals()
    np.testing.assert_allclose(again[["CL", "CLi"]], individuals[["CL", "CLi"]], rtol=1e-6)
    published = PublishedPopulation.from_model(loaded.task.model)
    assert PublishedPopulation.from_plain(published.to_plain()) == published
    model = published.model(fitted._cohort)
    found = estimate_individuals(model, fitted._cohort, draws=0).individuals()
    np.testing.assert_allclose(found["CLi"], individuals["CLi"], rtol=0.02)


def test_a_covariate_that_is_not_recorded_has_the_value_of_the_text(table: pd.DataFrame) -> None:
    without = table.drop(columns="AGE")
    task = LatentTask(Equations(TEXT))
    cohort = neuralpk.read_table(without, covariates="all")
    with pytest.warns(UserWarning, match="no covariate AGE; the model takes AGE = 40"):
        read = task.model.dynamics.read_cohort(cohort)
    assert {subject.covariates["AGE"] for subject in read} == {40.0}
    task.build(Scaling.of(read))
    with pytest.warns(UserWarning, match="AGE = 40"):
        batch = evaluation_batch(task.model, cohort)
    assert batch.covariates.shape == (12, 1, 2)
    with pytest.raises(ValueError, match="Equations reads the covariates WT; the data have AGE"):
        neuralpk.fit(table.drop(columns="WT"), Equations(TEXT), progress=False)
    some = table.assign(AGE=table["AGE"].where(table["ID"] != "1"))
    with pytest.warns(UserWarning, match="1 subjects with AGE = 40"):
        estimates = task.reconstruct(some, draws=0, map=False).individuals()
    assert estimates["LAG"].notna().all()


def test_a_simulation_needs_the_covariates_of_the_equations() -> None:
    population = Population({"CL": 4.0, "V": 40.0, "LAG": 0.4}, {}, {"WT": (40.0, 100.0)})
    design = Design(((Dose(0.0, 100.0),),), (1.0, 4.0))
    with pytest.raises(ValueError, match=r"reads \('WT', 'AGE'\), the population has \('WT',\)"):
        simulate_cohort(Equations(TEXT), population, design, ProportionalError.from_values(b=0.1), 2, 1)
