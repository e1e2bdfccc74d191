"""A patient who cannot be solved takes nothing from the others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from matplotlib.figure import Figure

from neuralpk import published_population
from neuralpk.cli import main
from neuralpk.encoders import Posterior
from neuralpk.evaluation.evaluating import _replace_failed
from neuralpk.individual_estimates import estimate_individuals, evaluation_batch
from neuralpk.objectives import MarginalLikelihood
from neuralpk.objectives.base import Step
from neuralpk.published_population import PublishedPopulation
from neuralpk.record_predictions import replicates
from neuralpk.solve import RungeKutta, SolveError
from neuralpk.tables import read_table

POPULATION = {
    "dynamics": {"compartments": 1, "elimination": "michaelis_menten"},
    "typical": {"VMAX": 20.0, "KM": 2.0, "V1": 25.0},
    "cv": {"VMAX": 30.0, "V1": 20.0},
    "error": "proportional",
    "error_sd": {"b": 0.2},
}
FAULT = "could not be solved"

pytestmark = [
    pytest.mark.filterwarnings("ignore:subject .* did not converge"),
    pytest.mark.filterwarnings("ignore:subject .* could not be solved"),
    pytest.mark.filterwarnings("ignore:subject .*measured more than 5 times as long"),
]


def table(patients: int, lost: tuple[int, ...] = ()) -> pd.DataFrame:
    """Patients, of whom some have a clock that runs a million times too fast."""
    rows = []
    for k in range(patients):
        unit = 1e6 if k in lost else 1.0
        rows.append({"ID": f"S{k}", "TIME": 0.0, "AMT": 100.0, "DV": np.nan})
        rows += [{"ID": f"S{k}", "TIME": t * unit, "AMT": 0.0, "DV": v} for t, v in ((1, 3.1), (4, 1.9), (8, 0.8))]
    return pd.DataFrame(rows)


@pytest.fixture(autouse=True)
def _few_evaluations(monkeypatch) -> None:
    """Too few for these clocks, and enough for all others."""
    monkeypatch.setattr(published_population, "Auto", lambda **_: RungeKutta(max_evaluations=60))


def estimate(frame: pd.DataFrame, draws: int = 20):
    cohort = read_table(frame)
    model = PublishedPopulation.from_plain(POPULATION).model(cohort)
    return estimate_individuals(model, cohort, draws=draws)


@pytest.mark.parametrize("lost", [(3,), (0, 5)])
def test_the_others_have_what_they_have_without_it(lost: tuple[int, ...]) -> None:
    every = table(6)
    kept = [f"S{k}" for k in range(6) if k not in lost]
    wanted = estimate(every[every["ID"].isin(kept)], draws=0)
    with pytest.warns(UserWarning, match=f"S{lost[0]} {FAULT}"):
        found = estimate(table(6, lost))
    assert len(found.unsolved) == len(lost) and all(
        f"S{k} " in said for k, said in zip(lost, found.unsolved, strict=True)
    )
    frame = found.individuals().set_index("ID")
    assert frame.loc[[f"S{k}" for k in lost]].isna().all(axis=None)
    assert frame.loc[kept].notna().all(axis=None)
    values = wanted.individuals().set_index("ID")[["VMAX", "KM", "V1"]]
    np.testing.assert_allclose(frame.loc[kept, ["VMAX", "KM", "V1"]], values, rtol=1e-6)
    curves = found.curves().set_index("ID")
    assert curves.loc[[f"S{k}" for k in lost], ["PRED", "IPRED", "LO90", "HI90"]].isna().all(axis=None)
    assert curves.loc[kept].notna().all(axis=None)


def test_none_solved_is_an_error() -> None:
    with pytest.raises(SolveError, match="2 of 2 subjects not solved"):
        estimate(table(2, (0, 1)))


def test_the_command_writes_the_others_and_says_so_by_its_exit_code(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    Path("p.yaml").write_text(yaml.safe_dump(POPULATION))
    table(4, (2,)).to_csv("t.csv", index=False, na_rep=".")
    with pytest.raises(SystemExit) as stopped:
        main(["estimate", "--model", "p.yaml", "--table", "t.csv", "--out", "out", "--draws", "20"])
    assert stopped.value.code == 1
    assert f"neuralpk estimate: subject S2 {FAULT}" in capsys.readouterr().err
    frame = pd.read_csv("out/individuals.csv").set_index("ID")
    assert frame.loc["S2"].isna().all() and frame.drop("S2").notna().all(axis=None)
    assert Path("out/individuals.png").exists()


@pytest.mark.parametrize("command", ["evaluate", "report"])
def test_a_command_that_judges_fails_and_writes_the_others(command, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Figure, "savefig", _blank)
    Path("pop.yaml").write_text(yaml.safe_dump(POPULATION))
    table(5, (3,)).to_csv("t.csv", index=False, na_rep=".")
    with pytest.raises(SystemExit) as stopped:
        options = ["--out", "out", "--simulations", "100", "--draws", "0"]
        main([command, "--model", "pop.yaml", "--table", "t.csv", *options])
    assert stopped.value.code == 1 and f"S3 {FAULT}" in capsys.readouterr().err.splitlines()[-1]
    if command == "report":
        remarks = Path("out").read_text().partition("<h3>Remarks</h3>")[2].partition("</ul>")[0]
        assert remarks.count(f"S3 {FAULT}") == 1
        return
    assert "S0: 10 of 100 simulated patients could not be solved; others" in Path("out/verdict.json").read_text()
    records = pd.read_csv("out/records.csv").set_index("ID")
    assert records.loc["S3", ["PRED", "CWRES", "NPDE"]].isna().all(axis=None)
    assert records.loc[["S0", "S4"], ["PRED", "CWRES", "NPDE"]].notna().all(axis=None)


def _blank(self, path, **_) -> None:
    """A figure without what takes long."""
    drawing = '<svg viewBox="0 0 1 1"></svg>'
    path.write(drawing) if hasattr(path, "write") else Path(path).write_text(drawing)


def test_simulated_values_of_a_patient_who_cannot_be_solved_are_no_numbers() -> None:
    cohort = read_table(table(3, (1,)))
    model = PublishedPopulation.from_plain(POPULATION).model(cohort)
    batch = evaluation_batch(model, cohort)
    simulated = model.simulate(model.typical(3), torch.zeros_like(batch.time), batch).value
    assert simulated[1].isnan().all() and simulated[[0, 2]].isfinite().all()
    found = replicates(model, batch, 2, 0)
    assert (np.isnan(found) == ([False] * 3 + [True] * 3 + [False] * 3)).all()
    seen = []

    def encoder(given) -> Posterior:
        seen.append(given.ids)
        return Posterior(torch.zeros(len(given), 2), torch.ones(len(given), 2))

    loss = MarginalLikelihood()._of_simulated(model, encoder, batch, Step(0, 1))
    assert seen == [("S0", "S2")] and loss.isfinite()


def test_of_many_simulated_patients_who_fail_none_is_replaced() -> None:
    records = pd.DataFrame({"ID": ["A", "A", "B", "C"], "PRED": [1.0, 2.0, 3.0, np.nan]})
    simulated = np.arange(80.0).reshape(20, 4)
    simulated[[3, 19], :2], simulated[5:, 2], simulated[:, 3] = np.nan, np.nan, np.nan
    said = _replace_failed(simulated, records)
    assert [one.partition(":")[0] for one in said] == ["subject A", "subject B"] and "stand in" in said[0]
    np.testing.assert_array_equal(simulated[[3, 19], :2], simulated[[4, 0], :2])
    assert np.isnan(simulated[5:, 2]).all() and "stand in" not in said[1]
