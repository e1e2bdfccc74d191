"""The bootstrap of a population fit: which subjects are drawn, what is reported, and what is said of failures."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import neuralpk
from neuralpk import ELBO, CompartmentModel, FittedModel, NeuralCompartments, PopulationParameters
from neuralpk.bootstrap import _Replicates, _strata, bootstrap, outcome, summarise
from neuralpk.cli import main
from neuralpk.cohort import Cohort
from neuralpk.datamodules import SimulatedPKDataModule
from neuralpk.estimation import PopulationEstimator
from neuralpk.individual_estimates import evaluation_batch
from neuralpk.solve import SolveError
from neuralpk.tables import write_table

NUMBERS = ["CL", "V1", "omega CL", "omega V1", "corr CL~V1", "b"]


@pytest.fixture(scope="module")
def cohort() -> Cohort:
    data = SimulatedPKDataModule(subjects=8, compartments=1, typical={"CL": 4.0, "V1": 70.0}, samples=6)
    people = [
        dataclasses.replace(s, covariates={"ARM": float(k > 4), "KEY": float(k)})
        for k, s in enumerate(data.part("train"))
    ]
    return Cohort(tuple(people))


@pytest.fixture(scope="module")
def fitted(cohort: Cohort) -> FittedModel:
    parameters = PopulationParameters(correlated=True, omega_prior_sd=0.5)
    return neuralpk.fit(cohort, CompartmentModel(1), parameters=parameters, progress=False)


def replicates(fitted: FittedModel, cohort: Cohort, **options) -> pd.DataFrame:
    return bootstrap(fitted.task.model, fitted.task.objective, cohort, **({"processes": 1} | options))


@pytest.fixture(scope="module")
def two(fitted: FittedModel, cohort: Cohort) -> pd.DataFrame:
    return replicates(fitted, cohort, replicates=2, seed=5)


def test_a_replicate_draws_subjects_with_replacement_under_names_of_their_own(
    fitted: FittedModel, cohort: Cohort
) -> None:
    batch = evaluation_batch(fitted.task.model, cohort)
    work = _Replicates(fitted.task.model, batch, _strata(cohort, "ARM"), 3)
    origins = []
    for number in range(200):
        drawn = work.drawn(number)
        assert len(set(drawn.ids)) == 8 and drawn.index.tolist() == list(range(8))
        origin = [batch.ids.index(name.split(" (")[0]) for name in drawn.ids]
        assert [k > 4 for k in origin] == [False] * 5 + [True] * 3
        for k, row in enumerate(origin):
            assert drawn.value[k].equal(batch.value[row])
        origins.append(origin)
    assert len({tuple(origin) for origin in origins}) > 190
    counts = np.bincount(np.concatenate(origins), minlength=8)
    assert (abs(counts - 200) < 5 * 200**0.5).all()
    assert work.drawn(7).ids == work.drawn(7).ids != dataclasses.replace(work, seed=4).drawn(7).ids


def test_rows_hold_every_number_as_it_is_reported(two: pd.DataFrame, fitted: FittedModel) -> None:
    assert list(two) == ["REPLICATE", "CONVERGED", "REASON", *NUMBERS]
    assert two["REPLICATE"].tolist() == [1, 2] and two["CONVERGED"].all() and not two["REASON"].any()
    assert two["CL"].between(2.0, 8.0).all() and two["V1"].between(35.0, 140.0).all()
    assert two["corr CL~V1"].abs().max() < 1 and two["CL"].nunique() == 2
    population = fitted.task.model.population
    assert summarise(two, fitted.task.model)["ESTIMATE"].tolist() == pytest.approx(
        [
            *population.typical_values().values(),
            *population.omega_values().values(),
            *population.correlations().tolist(),
            fitted.task.model.error.parameters_by_name()["b"].item(),
        ]
    )


def test_the_data_themselves_give_the_estimate(fitted: FittedModel, cohort: Cohort) -> None:
    # one subject in each stratum: every replicate is the data
    found = summarise(replicates(fitted, cohort, replicates=1, strata="KEY"), fitted.task.model)
    np.testing.assert_allclose(found["MEDIAN"], found["ESTIMATE"], rtol=0.02)


def test_the_number_of_processes_changes_nothing(fitted: FittedModel, cohort: Cohort, two: pd.DataFrame) -> None:
    found = replicates(fitted, cohort, replicates=2, seed=5, processes=2)
    pd.testing.assert_frame_equal(found, two, check_exact=True)


def test_a_summary_is_that_of_the_replicates_that_have_an_estimate(fitted: FittedModel) -> None:
    values = np.exp(np.random.default_rng(1).normal(size=(51, len(NUMBERS))))
    frame = pd.DataFrame(values, columns=NUMBERS)
    frame.iloc[3] = np.nan
    frame.insert(0, "REPLICATE", np.arange(51) + 1)
    frame.insert(1, "CONVERGED", [True] * 3 + [False] * 2 + [True] * 46)
    frame.insert(2, "REASON", [""] * 3 + ["SolveError: subject 4", "the data do not determine V1"] + [""] * 46)
    found, kept = summarise(frame, fitted.task.model), np.delete(values, 3, axis=0)
    assert found["PARAMETER"].tolist() == NUMBERS and set(found["REPLICATES"]) == {50}
    np.testing.assert_allclose(found["SE"], kept.std(axis=0, ddof=1))
    np.testing.assert_allclose(found[["LO95", "MEDIAN", "HI95"]].T, np.percentile(kept, [2.5, 50, 97.5], axis=0))
    assert outcome(frame) == (
        "51 replicates: 49 converged, 1 did not converge (replicate 5: the data do not determine V1), "
        "1 failed and are left out (replicate 4: SolveError: subject 4)"
    )


def test_a_replicate_that_fails_is_counted_and_said(fitted: FittedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, step = [], PopulationEstimator.step

    def failing(self: PopulationEstimator) -> object:
        calls.append(len(self.history))
        if calls.count(0) == 2:
            raise SolveError("subject 4 could not be solved")
        return step(self)

    monkeypatch.setattr(PopulationEstimator, "step", failing)
    before = fitted.task.model.population.location.clone()
    said = r"3 replicates: 2 converged, 1 failed.*replicate 2: SolveError: subject 4 could not be solved"
    with pytest.warns(UserWarning, match=said):
        found = fitted.bootstrap(3, processes=1, progress=False)
    assert found["CONVERGED"].tolist() == [True, False, True]
    assert found[NUMBERS].isna().all(axis=1).tolist() == [False, True, False]
    assert fitted.task.model.population.location.equal(before)


def test_what_has_no_bootstrap_is_refused(fitted: FittedModel, cohort: Cohort, tmp_path: Path) -> None:
    task = fitted.task
    network = neuralpk.PopulationModel(NeuralCompartments(hidden=4)).build(task.model.scaling)
    for model, objective in ((network, task.objective), (task.model, ELBO())):
        with pytest.raises(ValueError, match=r"does not have: it needs MarginalLikelihood.*without network weights"):
            bootstrap(model, objective, cohort)
    for options, said in (
        ({"replicates": 0}, "1 or more"),
        ({"processes": 0}, "1 or more"),
        ({"strata": "AGE"}, "not 'AGE'; there are ARM, KEY"),
    ):
        with pytest.raises(ValueError, match=said):
            replicates(fitted, cohort, **options)
    fitted.save(tmp_path / "fit.ckpt")
    with pytest.raises(ValueError, match="a loaded model does not hold the patients"):
        FittedModel.load(tmp_path / "fit.ckpt").bootstrap()


def test_the_command_writes_replicates_and_their_summary(
    fitted: FittedModel, cohort: Cohort, two: pd.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fitted.save(tmp_path / "fit.ckpt")
    write_table(cohort, tmp_path / "t.csv")
    line = f"--model {tmp_path}/fit.ckpt --table {tmp_path}/t.csv --out {tmp_path}/o --replicates 2 --seed 5"
    main(["bootstrap", *line.split(), "--processes", "1", "--strata", "ARM"])
    assert re.search(r"2 replicates: 2 converged: .*bootstrap.csv, .*bootstrap_summary.csv", capsys.readouterr().out)
    found = pd.read_csv(tmp_path / "o" / "bootstrap.csv", keep_default_na=False)
    assert list(found) == list(two) and len(found) == 2
    summary = pd.read_csv(tmp_path / "o" / "bootstrap_summary.csv")
    assert list(summary) == ["PARAMETER", "ESTIMATE", "MEDIAN", "SE", "LO95", "HI95", "REPLICATES"]
    assert summary["PARAMETER"].tolist() == NUMBERS
