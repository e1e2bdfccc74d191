"""Variability between the occasions of a subject: its data, its likelihood, its estimates and its reports."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from torch import Tensor

import neuralpk
from neuralpk.cli import main
from neuralpk.cohort import Cohort, Dose, Occasion, Subject
from neuralpk.cohort_batch import collate
from neuralpk.cohort_simulation import Design, Population, simulate_cohort
from neuralpk.datamodules import SimulatedPKDataModule, TableDataModule
from neuralpk.dosing import Regimen, SimulatedPatients, simulate_regimens
from neuralpk.dynamics import CompartmentModel
from neuralpk.encoders import SetEncoder
from neuralpk.estimation import PopulationEstimator, log_likelihood
from neuralpk.individual_estimates import draw_individuals, estimate_individuals, evaluation_batch
from neuralpk.inference import joint
from neuralpk.inference.map import map_estimate
from neuralpk.parameters import PopulationParameters
from neuralpk.population_model import PopulationModel
from neuralpk.published_population import PublishedPopulation, read_population, write_population
from neuralpk.residual_error import AdditiveError, ProportionalError
from neuralpk.scaling import Scaling
from neuralpk.tables import DataError, DataWarning, read_table, to_frame

CL, V1, OMEGA, KAPPA, SD = 4.0, 40.0, 0.3, 0.25, 0.15
WEEK = 168.0


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    yield


def study(subjects: int = 6, occasions: int = 3, seed: int = 1, **population: Any) -> Cohort:
    """A bolus on each occasion, a week apart: nothing is left of the one before."""
    begin = tuple(WEEK * k for k in range(occasions))
    design = Design(
        regimens=(tuple(Dose(time, 100.0) for time in begin),),
        times=tuple(time + hours for time in begin for hours in (1.0, 6.0, 18.0)),
        occasions=begin,
        grid=(0.0, 1.0),
    )
    given: dict[str, Any] = {"typical": {"CL": CL, "V1": V1}, "omega": {"CL": OMEGA}, "kappa": {"CL": KAPPA}}
    error = AdditiveError.from_values(1, a=SD)
    return simulate_cohort(CompartmentModel(1), Population(**given | population), design, error, subjects, seed)


def model(people: Cohort, dtype: torch.dtype = torch.float64, **options: Any) -> PopulationModel:
    given = {"typical": {"CL": CL, "V1": V1}, "omega": {"CL": OMEGA, "V1": 0.0}, "kappa": {"CL": KAPPA}} | options
    made = PopulationModel(CompartmentModel(1), PopulationParameters(**given), AdditiveError(SD))
    return made.build(Scaling.of(people), dtype)


# ---- the data


TABLE = """ID,TIME,AMT,DV,OCC
1,0,100,.,1
1,2,.,2.1,1
1,24,.,0.9,1
1,24,100,.,2
1,26,.,2.8,
1,48,.,1.1,2
2,0,100,.,1
2,30,.,0.6,1
"""


def table(tmp_path: Path, text: str = TABLE) -> Path:
    path = tmp_path / "table.csv"
    path.write_text(text)
    return path


def test_a_column_says_the_occasions_and_a_row_without_one_is_of_the_occasion_before(tmp_path: Path) -> None:
    first, second = read_table(table(tmp_path), occasion="OCC")
    assert [(one.start, one.label) for one in first.occasions] == [(0.0, "1"), (24.0, "2")]
    assert first.occasion_labels == ("1", "2") and second.occasion_labels == ("1",)
    batch = collate([first, second])
    assert batch.occasions.tolist() == [[True, True], [True, False]]
    assert batch.occasion.tolist() == [[0, 1], [0, 0]]
    assert read_table(table(tmp_path))[0].occasions == ()


def test_a_subject_without_any_occasion_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"NPK-D44.*ID 2"):
        read_table(table(tmp_path, TABLE.replace("100,.,1\n2,30,.,0.6,1", "100,.,\n2,30,.,0.6,")), occasion="OCC")


def test_a_trough_before_the_dose_of_the_next_occasion_belongs_to_the_one_before(tmp_path: Path) -> None:
    cohort = read_table(table(tmp_path), occasion="OCC")
    made = PopulationModel(
        CompartmentModel(1), PopulationParameters({"CL": CL, "V1": V1}, 0.0, kappa={"V1": KAPPA}), AdditiveError(SD)
    ).build(Scaling.of(cohort), torch.float64)
    z = torch.zeros(2, 2, dtype=torch.float64)
    z[0, 1] = 2.0  # of the second occasion
    with torch.no_grad():
        moved, usual = (made.predict(one, evaluation_batch(made, cohort)).value[0] for one in (z, 0 * z))
    assert moved[:2].tolist() == usual[:2].tolist()
    volume = V1 * math.exp(2 * KAPPA)
    before, after = float(usual[1] * V1), 100.0
    for k, hours in ((2, 2.0), (3, 24.0)):
        expected = (before + after) / volume * math.exp(-CL / volume * hours)
        assert float(moved[k]) == pytest.approx(expected, rel=1e-6)


def test_a_clock_that_restarts_begins_an_occasion_with_empty_compartments(tmp_path: Path) -> None:
    text = "ID,TIME,AMT,DV,PERIOD\n1,0,100,.,A\n1,2,.,2.1,A\n1,0,100,.,B\n1,2,.,2.8,B\n"
    with pytest.warns(DataWarning, match="the clock restarts"):
        (subject,) = cohort = read_table(table(tmp_path, text), occasion="PERIOD")
    assert [(one.start, one.label) for one in subject.occasions] == [(0.0, "A"), (3.0, "B")]
    made = model(cohort, occasions="PERIOD")
    z = torch.tensor([[0.0, 0.0, 1.5]], dtype=torch.float64)
    expected = [100.0 / V1 * math.exp(-2 * CL * factor / V1) for factor in (1.0, math.exp(1.5 * KAPPA))]
    assert made.predict(z, evaluation_batch(made, cohort)).value[0].tolist() == pytest.approx(expected, rel=1e-6)


def test_an_event_table_of_a_cohort_reads_back_with_its_occasions() -> None:
    people = [dataclasses.replace(one, truth=None) for one in study(2)]
    between = (Occasion(1.0, "a"), Occasion(2.0, "b"))
    people.append(Subject("9", np.array([1.0, 3.0]), np.array([2.0, 1.0]), occasions=between))
    frame = to_frame(Cohort(tuple(people)))
    with pytest.warns(DataWarning):
        again = read_table(frame, occasion="OCC")
    assert [[one[:2] for one in subject.occasions] for subject in again] == [
        [(0.0, "1"), (WEEK, "2"), (2 * WEEK, "3")],
        [(0.0, "1"), (WEEK, "2"), (2 * WEEK, "3")],
        [(1.0, "a"), (2.0, "b")],
    ]
    assert "OCC" not in to_frame(Cohort(tuple(people)).without_occasions())


def test_an_occasion_that_comes_again_is_the_same() -> None:
    times = np.array([1.0, 5.0, 9.0])
    occasions = (Occasion(0.0, "fasted"), Occasion(4.0, "fed"), Occasion(8.0, "fasted"))
    batch = collate([Subject("1", times, times, (Dose(0.0, 10.0),), occasions=occasions)])
    assert batch.occasion.tolist() == [[0, 1, 0]] and batch.occasions.tolist() == [[True, True]]


def test_occasions_out_of_order_are_refused() -> None:
    with pytest.raises(ValueError, match="not in the order of time"):
        Subject("1", np.array([1.0]), np.array([1.0]), occasions=(Occasion(4.0, "1"), Occasion(2.0, "2")))


# ---- the likelihood


def log_p(people: Sequence[Subject], omega: float, kappa: float) -> float:
    """Σ log p(y), with eta and the kappas of each subject integrated out on a grid: given eta, occasions that are a
    week apart are independent."""
    z = torch.linspace(-6.0, 6.0, 241, dtype=torch.float64)
    weight = torch.exp(-0.5 * z.square()) / math.sqrt(2 * math.pi) * float(z[1] - z[0])
    total = 0.0
    for subject in people:
        given_eta = torch.zeros_like(z)
        for one in subject.occasions:
            of = (subject.times >= one.start) & (subject.times < one.start + WEEK)
            clearance = CL * torch.exp(omega * z[:, None] + kappa * z)[..., None]
            line = 100.0 / V1 * torch.exp(-clearance / V1 * torch.tensor(subject.times[of] - one.start))
            away = (torch.tensor(subject.values[of]) - line) / SD
            density = (-0.5 * away.square() - math.log(SD * math.sqrt(2 * math.pi))).sum(-1)
            given_eta += torch.logsumexp(density + weight.log(), dim=1)
        total += float(torch.logsumexp(given_eta + weight.log(), dim=0))
    return total


@pytest.mark.parametrize("occasions", [1, 2, 3])
def test_the_likelihood_is_that_of_quadrature(occasions: int) -> None:
    people = study(3, occasions)
    made = model(people)
    found, error = log_likelihood(made, evaluation_batch(made, people), 256)
    assert found == pytest.approx(log_p(people, OMEGA, KAPPA), abs=max(3 * error, 2e-3))


def test_patients_with_fewer_occasions_have_the_likelihood_that_they_have_alone() -> None:
    people = study(4, 4)
    cut = [
        dataclasses.replace(
            one, times=one.times[:3], values=one.values[:3], doses=one.doses[:1], occasions=one.occasions[:1],
            **{name: getattr(one, name)[:3] for name in ("compartments", "endpoints", "censored", "limits", "rows")},
        )
        for one in people[:2]
    ]  # fmt: skip
    mixed = Cohort((*cut, *people[2:]))
    made = model(mixed)
    found, error = log_likelihood(made, evaluation_batch(made, mixed), 256)
    assert found == pytest.approx(log_p(mixed, OMEGA, KAPPA), abs=max(3 * error, 3e-3))
    alone, together = (
        estimate_individuals(made, group, draws=400, population_known=True) for group in (mixed[:2], mixed)
    )
    assert alone.z.shape == (2, 2) and together.z.shape == (4, 5)
    np.testing.assert_allclose(alone.z, together.z[:2, :2], atol=2e-3)
    np.testing.assert_array_equal(together.z[:2, 2:], 0.0)
    for name in ("CL", "V1"):
        for one, other in zip(alone.parameters[name], together.parameters[name], strict=True):
            np.testing.assert_allclose(one, other[:2], rtol=0.06)


def test_a_kappa_of_0_is_the_model_without() -> None:
    people = study(3, 2)
    with_zero, without = model(people, kappa={"CL": 0.0}), model(people, kappa=None)
    assert with_zero.population.changing == () and with_zero.population.occasion_column is None
    batches = [evaluation_batch(one, people) for one in (with_zero, without)]
    assert batches[0].period_start.shape == (3, 1)
    found = [log_likelihood(one, batch, 64) for one, batch in zip((with_zero, without), batches, strict=True)]
    assert found[0] == found[1]


def test_information_of_many_occasions_is_that_of_all_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    people = study(2, 6)
    made = model(people)
    batch = evaluation_batch(made, people).scored_on_context()
    z = torch.full((2, 7), 0.3, dtype=torch.float64)
    few = joint.information(made, z, batch)
    monkeypatch.setattr(joint, "_NEIGHBOURS", 6)
    torch.testing.assert_close(few, joint.information(made, z, batch), rtol=1e-6, atol=1e-6)
    assert float(few[0, 2, 3].abs()) < 1e-6 < float(few[0, 0, 2])  # occasions meet in eta alone


# ---- estimates of patients


def test_an_occasion_that_was_not_seen_is_drawn() -> None:
    (seen,) = study(1, 2)
    values = np.where(seen.times < WEEK, seen.values, np.nan)
    cohort = Cohort((dataclasses.replace(seen, values=values),))
    made = model(cohort)
    times = [18.0, WEEK + 18.0]
    result = estimate_individuals(made, cohort, times, draws=2000, population_known=True)
    assert abs(result.z[0, 2]) < 1e-9 and abs(result.z[0, 1]) > 0.01
    width = np.log(result.upper / result.lower)[0, :, 0]
    assert width[1] > 2 * width[0]
    # log of the concentration 18 h after the dose moves by about CL/V1·18 times kappa, beside what is known of eta
    flat = evaluation_batch(made, cohort).scored_on_context()
    covariance = torch.linalg.inv(map_estimate(made, flat, torch.zeros(1, 3, dtype=torch.float64)).precision)[0]
    direction = torch.tensor([OMEGA, 0.0, KAPPA], dtype=torch.float64)
    clearance = CL * math.exp(OMEGA * float(result.z[0, 0]))
    expected = 2 * 1.645 * float((direction @ covariance @ direction).sqrt()) * clearance / V1 * 18.0
    assert width[1] == pytest.approx(expected, rel=0.15)


def test_parameters_of_each_occasion_have_a_table_of_their_own() -> None:
    people = study(2, 3)
    made = model(people)
    result = estimate_individuals(made, people, draws=50, population_known=True)
    assert list(result.individuals()["ID"]) == ["1", "2"]
    frame = result.occasions()
    assert list(frame["ID"]) == ["1"] * 3 + ["2"] * 3 and list(frame["OCC"]) == ["1", "2", "3"] * 2
    factor = np.exp(OMEGA * result.z[:, :1] + KAPPA * result.z[:, 1:])
    np.testing.assert_allclose(frame["CL"], (CL * factor).ravel(), rtol=1e-6)
    np.testing.assert_allclose(result.parameters["CL"][0], CL * np.exp(OMEGA * result.z[:, 0]), rtol=1e-6)
    assert (frame["CL_LO90"] < frame["CL"]).all() and (frame["CL"] < frame["CL_HI90"]).all()


# ---- the population


@pytest.fixture(scope="module")
def fitted() -> neuralpk.FittedModel:
    parameters = PopulationParameters(kappa={"CL": 0.1})
    return neuralpk.fit(study(14, 2), CompartmentModel(1), parameters=parameters, error=AdditiveError(), progress=False)


def test_a_fit_finds_kappa_and_reports_it(fitted: neuralpk.FittedModel) -> None:
    assert fitted.task.status is not None and fitted.task.status.converged
    rows = fitted.population.set_index("PARAMETER")
    row = rows.loc["kappa CL"]
    assert row["LO95"] < KAPPA < row["HI95"] and row["INTERVAL"] == "profile" and 0 < row["RSE"] < 50
    assert rows.loc["CL", "OMEGA_LO95"] < OMEGA < rows.loc["CL", "OMEGA_HI95"]
    assert 0 < row["SHRINKAGE"] < 60 and row["CV"] == pytest.approx(100 * math.sqrt(math.expm1(row["ESTIMATE"] ** 2)))


def test_a_fit_reaches_the_maximum(fitted: neuralpk.FittedModel) -> None:
    people = study(14, 2)
    made = fitted.task.model
    at = made.population
    assert at.log_omega[1] < math.log(0.1)  # V1 does not vary

    def value(omega: float, kappa: float) -> float:
        with torch.no_grad():
            other = model(people, typical=at.typical_values(), omega={"CL": omega, "V1": 0.0}, kappa={"CL": kappa})
            other.error.load_state_dict(made.error.state_dict())
        return log_likelihood(other, evaluation_batch(other, people), 64)[0]

    omega, kappa = at.omega_values()["CL"], at.kappa_values()["CL"]
    best = value(omega, kappa)
    assert best > value(1.25 * omega, kappa) and best > value(0.8 * omega, kappa)
    assert best > value(omega, 1.25 * kappa) and best > value(omega, 0.8 * kappa)


def test_a_fitted_population_is_written_with_kappa_and_estimates_a_table(
    fitted: neuralpk.FittedModel, tmp_path: Path
) -> None:
    path = tmp_path / "pop.yaml"
    published = PublishedPopulation.from_model(fitted.task.model)
    write_population(published, path)
    assert "kappa:" in path.read_text() and "occasions: OCC" in path.read_text()
    assert read_population(path).kappa == pytest.approx(dict(published.kappa))
    to_frame(study(3, 2)).rename(columns={"OCC": "VISIT"}).to_csv(tmp_path / "table.csv", index=False, na_rep=".")
    line = ["estimate", "--model", str(path), "--table", str(tmp_path / "table.csv"), "--draws", "20"]
    with pytest.raises(SystemExit):
        main([*line, "--out", str(tmp_path / "none")])
    main([*line, "--out", str(tmp_path / "out"), "--occasion", "VISIT"])
    frame = pd.read_csv(tmp_path / "out" / "occasions.csv")
    assert len(frame) == 6 and {"ID", "OCC", "CL", "CL_LO90", "CL_HI90"} <= {*frame.columns}


def test_a_fit_reads_the_column_of_the_occasions(capsys, tmp_path: Path) -> None:
    people = study(3, 2)
    path = tmp_path / "table.csv"
    to_frame(people).rename(columns={"OCC": "VISIT"}).to_csv(path, index=False, na_rep=".")
    line = ["fit", "--table", str(path), "--structure", "one_compartment_bolus", "--error", "additive"]
    with pytest.raises(SystemExit):
        main([*line, "--kappa", "CL", "V1=0.1", "--occasion", "VISIT", "--print_config"])
    parameters = yaml.safe_load(capsys.readouterr().out)["model"]["parameters"]["init_args"]
    assert parameters["kappa"] == {"CL": 0.2, "V1": 0.1} and parameters["occasions"] == "VISIT"
    data = TableDataModule(str(path), occasion="VISIT")
    for column, message in (("VISIT", ""), (None, "give occasions=VISIT")):
        parts = PopulationParameters(kappa={"CL": 0.2}, occasions=column)
        data.read_for(neuralpk.LatentTask(CompartmentModel(1), parts))
        if message:
            with pytest.raises(ValueError, match=message):
                data.part("train")
        else:
            assert data.part("train")[0].occasion_labels == ("1", "2")
    data.read_for(neuralpk.LatentTask(CompartmentModel(1)))
    assert data.part("train")[0].occasions == ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kappa": {"KA": 0.2}}, "kappa names KA"),
        ({"kappa": {"CL": -0.2}}, "kappa.CL must be 0 or above"),
        ({"occasions": "VISIT", "kappa": None}, "no parameter has a kappa"),
        ({"kappa_prior_sd": {"V1": 0.2}}, "kappa_prior_sd names V1 without kappa"),
        ({"kappa_prior_sd": {"CL": 0.0}}, "kappa_prior_sd.CL must be above 0"),
        ({"fixed": ["kappa V1"]}, "what can be fixed is CL, V1, omega CL, kappa CL"),
    ],
)
def test_options_that_cannot_be_are_refused(options: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model(study(2, 2), **options)


def test_a_kappa_with_a_narrow_prior_stays_near_its_start() -> None:
    people = study(6, 2)
    found = {}
    for sd in (None, 0.05):
        prior = None if sd is None else {"CL": sd}
        made = model(people, kappa={"CL": 0.6}, kappa_prior_sd=prior)
        assert made.with_prior() == ([] if sd is None else ["kappa CL"])
        PopulationEstimator(made, stages=(64,)).run(evaluation_batch(made, people))
        found[sd] = made.population.kappa_values()["CL"]
        if prior:
            expected = -0.5 * ((np.log(found[sd]) - np.log(0.6)) / 0.05) ** 2
            assert float(made.population_log_prior().detach()) == pytest.approx(expected, rel=1e-4)
    assert found[None] < 0.45 < 0.5 < found[0.05] < 0.6


def test_a_fixed_kappa_stays() -> None:
    people = study(4, 2)
    made = model(people, fixed=["kappa CL"])
    estimator = PopulationEstimator(made, stages=(64,))
    estimator.add(evaluation_batch(made, people))
    estimator.step()
    assert made.population.kappa_values()["CL"] == pytest.approx(KAPPA)
    assert made.population.omega_values()["CL"] != pytest.approx(OMEGA)


def test_data_without_occasions_and_encoders_are_refused() -> None:
    people = study(2, 2)
    made = model(people)
    with pytest.raises(ValueError, match=r"needs the occasions.*occasion=OCC"):
        evaluation_batch(made, people.without_occasions())
    with pytest.raises(ValueError, match="fit without an encoder"):
        neuralpk.LatentTask(
            CompartmentModel(1), PopulationParameters(kappa={"CL": 0.2}), ProportionalError(), encoder=SetEncoder()
        )


def test_simulated_kappas_have_their_standard_deviation() -> None:
    population = Population({"CL": CL, "V1": V1}, {"CL": OMEGA}, kappa={"CL": KAPPA})
    theta: Tensor = population.draw_occasions(3, torch.arange(4000), {}, 3)
    assert theta.shape == (4000, 3, 2) and bool((theta[..., 1] == V1).all())
    x = (theta[..., 0] / CL).log()
    assert float(x.std()) == pytest.approx(math.hypot(OMEGA, KAPPA), rel=0.03)
    assert float((x - x.mean(1, keepdim=True)).square().sum(1).mean() / 2) == pytest.approx(KAPPA**2, rel=0.05)
    with pytest.raises(ValueError, match="needs a design with occasions"):
        simulate_cohort(CompartmentModel(1), population, Design(((Dose(0.0, 1.0),),), (1.0,)), AdditiveError(SD), 1, 0)


def test_a_regimen_is_an_occasion_of_its_own() -> None:
    people = study(3, 2)
    made = model(people)
    drawn = draw_individuals(made, people, 4000, population_known=True)
    patients = SimulatedPatients(people, drawn.models, drawn.z)
    regimen = Regimen.parse("100 once")
    for starts in (None, np.full(3, 400.0)):
        (course,) = simulate_regimens(patients, [regimen], until=24.0, starts=starts).courses
        clearance = np.log(course.curve[:, :, 0, 0] / course.curve[:, :, -1, 0]) * V1 / 24.0
        eta_and_kappa = np.log(clearance / CL)
        eta = OMEGA * drawn.z[0][:, :, 0].numpy()
        expected = np.hypot(eta.std(1), KAPPA)
        np.testing.assert_allclose(eta_and_kappa.std(1), expected, rtol=0.05)
    population = SimulatedPatients.population(made, 4000)
    (course,) = simulate_regimens(population, [regimen], until=24.0).courses
    clearance = np.log(course.curve[0, :, 0, 0] / course.curve[0, :, -1, 0]) * V1 / 24.0
    assert np.log(clearance / CL).std() == pytest.approx(math.hypot(OMEGA, KAPPA), rel=0.04)
    typical = simulate_regimens(SimulatedPatients.typical(made), [regimen], until=24.0).courses[0].curve
    assert typical[0, 0, -1, 0] == pytest.approx(100.0 / V1 * math.exp(-24.0 * CL / V1), rel=1e-6)


def test_a_simulated_table_has_its_occasions_in_parts_too(tmp_path: Path) -> None:
    data = SimulatedPKDataModule(
        subjects=2, compartments=1, typical={"CL": CL, "V1": V1}, omega={"CL": OMEGA}, kappa={"CL": KAPPA},
        occasions=[0.0, WEEK], doses=[100.0], repeats=2, interval=WEEK, times=[1.0, WEEK + 1.0], samples=None,
    )  # fmt: skip
    frames = list(data.frames(1))
    assert [frame["OCC"].tolist() for frame in frames] == [[1, 1, 2]] * 2  # the second dose is additional
    subjects = read_table(pd.concat(frames), occasion="OCC")
    for one, other in zip(subjects, data.make_cohort(), strict=True):
        np.testing.assert_array_equal(one.values, other.values)
        assert one.occasion_labels == other.occasion_labels
