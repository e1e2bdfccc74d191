"""The command ``neuralpk evaluate``."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from neuralpk.cli import main

TEXT = """dynamics: {compartments: 1, absorption: first_order}
typical: {KA: 1.59, CL: 2.75, V1: 31.8}
cv: {KA: 70.6, CL: 26.8, V1: 13.9}
error: additive
error_sd: {a: 0.693}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model, another with twice the clearance, and 6 patients with an arm that is a text."""
    from neuralpk import datasets
    from neuralpk.tables import write_table

    monkeypatch.chdir(tmp_path)
    Path("pop.yaml").write_text(TEXT)
    Path("fast.yaml").write_text(TEXT.replace("CL: 2.75", "CL: 5.5"))
    write_table(datasets.theophylline()[:6], tmp_path / "t.csv")
    table = pd.read_csv("t.csv")
    table["ARM/SITE"] = np.where(table["ID"].astype(int) % 2 == 1, "odd", "even")
    table.to_csv("t.csv", index=False)
    return tmp_path


@pytest.fixture
def empty_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of figures without what takes long."""
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **_: Path(path).write_bytes(b""))


def command(*words: str) -> None:
    given = ["--model", "pop.yaml", "--table", "t.csv", "--out", "out", "--simulations", "100", "--draws", "0"]
    main(["evaluate", *given, *words])


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        command(*words)
    assert stopped.value.code in (1, 2)
    return capsys.readouterr().err


@pytest.mark.usefixtures("empty_figures")
def test_two_models_side_by_side(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command("--compare", "fast.yaml", "--strata", "ARM/SITE", "--seed", "3")
    said = capsys.readouterr().out
    found = {path.name for path in Path("out").iterdir()}
    assert {"records.csv", "checks.csv", "verdict.json", "goodness_of_fit.png", "vpc_by_ARM_SITE.png"} < found
    assert {"comparison.csv", "comparison_pcvpc.png", "comparison_fit.png", "compared"} < found
    verdict = json.loads(Path("out/verdict.json").read_text())
    assert verdict["settings"] | {"simulations": 100, "seed": 3, "patients": 6} == verdict["settings"]
    assert [row["check"] for row in verdict["checks"] if not row["passed"]] == verdict["failed"]
    records = pd.read_csv("out/records.csv", dtype={"ID": str})
    assert set(records["ARM/SITE"]) == {"odd", "even"} and "CWRES" in records
    rows = pd.read_csv("out/comparison.csv").set_index("QUANTITY")
    assert rows.loc["OBJECTIVE", "fast.yaml"] > rows.loc["OBJECTIVE", "pop.yaml"] + 10
    assert not json.loads(Path("out/compared/verdict.json").read_text())["adequate"]
    assert "Not adequate" in said and "BIC is lower" in said and "for pop.yaml" in said
    assert not list(Path("out").glob("vpc_by_*.csv"))


def test_results_are_replaced_only_when_asked(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("out/compared").mkdir(parents=True)
    stale = ("vpc_by_SEX.png", "comparison.csv", "occasions.csv", "compared/verdict.json")
    for name in ("verdict.json", "vpc_mine.png", *stale):
        Path("out", name).write_text("mine")
    assert "holds results already" in refusal(capsys)
    assert Path("out/verdict.json").read_text() == "mine"
    command("--overwrite")
    assert json.loads(Path("out/verdict.json").read_text())["level"] == 0.05
    assert not any(Path("out", name).exists() for name in (*stale, "compared")) and Path("out/vpc_mine.png").exists()


def test_what_is_refused_leaves_nothing_behind(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, said in (
        (("--strata", "RACE"), "RACE"),
        (("--strata", "DV"), "DV, which is no covariate but has a meaning of its own, is not among"),
        (("--simulations", "10"), "100 or more"),
        (("--against", "DOSE"), "against"),
        (("--compare", "none.yaml"), "none.yaml"),
    ):
        assert said in refusal(capsys, *words)
        assert not Path("out").exists()
