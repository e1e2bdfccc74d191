"""Outputs that state how they are measured: a fit of two of them, its checkpoint and its population file."""

from pathlib import Path

import numpy as np
import pytest
import torch

import neuralpk
from neuralpk import AdditiveError, Dose, ErrorByEndpoint, FittedModel, LatentTask
from neuralpk.cli.entry import execute
from neuralpk.cohort import Cohort
from neuralpk.cohort_simulation import Design, Population, simulate_cohort
from neuralpk.dynamics import Equations
from neuralpk.evaluation import evaluate
from neuralpk.individual_estimates import evaluation_batch
from neuralpk.part import describe
from neuralpk.published_population import PublishedPopulation, read_population, write_population
from neuralpk.residual_error import ProportionalError
from neuralpk.tables import to_frame

TEXT = """
parameters: CL = 4.5, V = 45
central' = -CL/V*central
C = central/V
R = 25 + 20*C
outputs: C ~ proportional lloq 0.05, R ~ additive(a = 2)
"""
TRUE = {"b1": 0.2, "a2": 4.0}


@pytest.fixture(scope="module")
def cohort() -> Cohort:
    population = Population({"CL": 4.0, "V": 40.0}, {"CL": 0.3, "V": 0.2})
    error = ErrorByEndpoint([ProportionalError(b=TRUE["b1"]), AdditiveError(a=TRUE["a2"])]).fix()
    design = Design(((Dose(0.0, 100.0),),), (0.5, 2.0, 6.0, 12.0, 24.0, 36.0), endpoints=(1, 2))
    return simulate_cohort(Equations(TEXT), population, design, error, 12, 3)


@pytest.fixture(scope="module")
def fitted(cohort: Cohort) -> FittedModel:
    with pytest.warns(UserWarning, match=r"read as censored: \d+ of C \(LLOQ 0.05\)"):
        return neuralpk.fit(to_frame(cohort), Equations(TEXT), progress=False)


def test_the_errors_of_two_outputs_are_found(fitted: FittedModel) -> None:
    table = fitted.population.set_index("PARAMETER")
    assert set(table.index) == {"CL", "V", *TRUE}
    for name, value in TRUE.items():
        assert table["LO95"][name] < value < table["HI95"][name]
        assert table["ESTIMATE"][name] == pytest.approx(value, rel=0.25)


def test_residuals_and_checks_are_those_of_each_output(fitted: FittedModel) -> None:
    cohort = fitted._cohort
    table = fitted.task.residuals(cohort)
    censored = np.concatenate([subject.censored for subject in cohort]) > 0
    assert censored.any() and (table["IWRES"].isna() == censored).all()
    assert table.groupby("DVID")["IWRES"].std().between(0.7, 1.2).all()
    found = evaluate(fitted, cohort, draws=0)
    parts = dict(list(found.records.groupby("DVID")))
    assert [(len(own), own["CENS"].sum()) for own in parts.values()] == [(72, censored.sum()), (72, 0)]
    assert all(0.8 < own["NPDE"].std() < 1.2 for own in parts.values())
    assert list(found.calibration["observations"]) == [72 - censored.sum(), 72]
    names = [name for name, _ in found.drawn(["pcvpc", "npde"])]
    assert names == ["pcvpc_1", "pcvpc_2", "npde_1", "npde_2"]


def test_the_errors_are_in_the_checkpoint_and_in_the_population_file(fitted: FittedModel, tmp_path: Path) -> None:
    fitted.save(tmp_path / "fit.ckpt")
    loaded = FittedModel.load(tmp_path / "fit.ckpt").task.model
    assert loaded.reported_values() == fitted.task.model.reported_values()
    written = PublishedPopulation.from_model(loaded)
    write_population(written, tmp_path / "pop.yaml")
    read = read_population(tmp_path / "pop.yaml")
    assert read == written and read.error == ["proportional", "additive"]
    model = read.model(fitted._cohort)
    batch = evaluation_batch(model, fitted._cohort)
    z = model.typical(len(batch))
    torch.testing.assert_close(
        model.log_likelihood(z, batch), loaded.double().log_likelihood(z, batch), rtol=1e-3, atol=1e-3
    )


def test_an_error_that_the_text_states_otherwise_is_refused() -> None:
    with pytest.raises(ValueError, match="states the error of C, proportional"):
        LatentTask(Equations(TEXT), error=AdditiveError())
    half = TEXT.replace(" ~ additive(a = 2)", "")
    task = LatentTask(Equations(half), error=AdditiveError(a=3.0))
    assert describe(task.model.error.models[1]) == describe(AdditiveError(a=3.0))


def test_the_assays_of_an_output_may_have_errors_of_other_kinds_than_the_text_states() -> None:
    text = TEXT.replace("~ proportional lloq 0.05", "~ proportional(b = 0.4)")
    given = ErrorByEndpoint([AdditiveError(a=1.0), ProportionalError(), AdditiveError(a=2.0)], outputs=[1, 1, 2])
    error = LatentTask(Equations(text), error=given).model.error
    kinds = [AdditiveError(a=1.0), ProportionalError(b=0.4), AdditiveError(a=2.0)]
    assert [describe(one) for one in error.models] == [describe(one) for one in kinds]
    assert describe(LatentTask(Equations(text), error=error).model.error) == describe(error)
    none_as_stated = ErrorByEndpoint([AdditiveError(), AdditiveError(), AdditiveError(a=2.0)], outputs=[1, 1, 2])
    with pytest.raises(ValueError, match="states the error of C, proportional"):
        LatentTask(Equations(text), error=none_as_stated)


def test_the_command_line_takes_the_errors_of_the_text(cohort: Cohort, tmp_path: Path, capsys) -> None:
    to_frame(cohort).to_csv(tmp_path / "t.csv", index=False)
    (tmp_path / "model.txt").write_text(TEXT)
    (tmp_path / "free.txt").write_text(TEXT.replace(" ~ proportional lloq 0.05", "").replace(" ~ additive(a = 2)", ""))
    data = ["--data", "TableDataModule", "--data.table", str(tmp_path / "t.csv"), "--model.encoder", "null"]
    fit = ["fit", *data, "--trainer.fast_dev_run", "true", "--model.dynamics", "Equations"]
    with pytest.warns(UserWarning, match="read as censored: .* of C"):
        run = execute([*fit, "--model.dynamics.file", str(tmp_path / "model.txt")])
    assert [type(error).__name__ for error in run.model.model.error.models] == ["ProportionalError", "AdditiveError"]
    assert any((subject.censored > 0).any() for subject in run.datamodule.part("train"))
    by_endpoint = ["--model.error", "ErrorByEndpoint", "--model.error.errors", "[AdditiveError, ProportionalError]"]
    run = execute([*fit, "--model.dynamics.file", str(tmp_path / "free.txt"), *by_endpoint])
    assert [one.name for one in run.model.model.error.numbers()] == ["a1", "b2"]
    with pytest.raises(SystemExit):
        execute([*fit, "--model.dynamics.file", str(tmp_path / "model.txt"), "--preset", "theophylline"])
    assert "the text of the model states the error of C" in capsys.readouterr().err


POPULATION = {
    "dynamics": {"class_path": "neuralpk.dynamics.equations.Equations", "init_args": {"text": TEXT}},
    "typical": {"CL": 4.0, "V": 40.0},
    "omega": {"CL": 0.3},
    "error": ["proportional", "student"],
    "error_sd": [{"b": 0.2}, {"a": 1.0, "b": 0.1, "freedom": 6.0}],
}


def test_a_population_file_of_several_outputs() -> None:
    free = {**POPULATION, "dynamics": {**POPULATION["dynamics"], "init_args": {"text": TEXT.split("~")[0] + ", R"}}}
    population = PublishedPopulation.from_plain(free)
    error = population.residual_error()
    assert error.models[1].freedom == 6.0 and error.parameters_by_name()["b"].tolist() == pytest.approx([0.2, 0.1])
    assert PublishedPopulation.from_plain(population.to_plain()) == population


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        ({}, "error of R is student; the text of the dynamics says additive"),
        ({"error": ["proportional"] * 3}, "error has 3 names; these dynamics have 2 endpoints"),
        ({"error": ["proportional", "additive"], "error_sd": {"b": 0.2}}, "error_sd needs as many groups in a list"),
        ({"error": ["proportional", "additive"]}, r"error_sd\[2\] of a additive error holds a; not a, b, freedom"),
        ({"error": ["proportional", "normal"]}, "error is one of additive"),
    ],
)
def test_a_population_file_with_a_fault_in_its_errors_is_refused(groups: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        PublishedPopulation.from_plain(POPULATION | groups)
