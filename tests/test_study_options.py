"""``neuralpk fit --table T.csv --structure NAME``: a fit without a preset, its results and what may replace them."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import yaml

from neuralpk import CompartmentModel, datasets, read_model, write_table
from neuralpk.cli import main
from neuralpk.cohort import Units
from neuralpk.dynamics import Equations, library, structure, structures
from neuralpk.published_population import read_population
from neuralpk.tables import read_table

QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]


@pytest.fixture(autouse=True)
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_table(datasets.theophylline(), Path("t.csv"))
    return Path("t.csv")


def configured(capsys, *arguments: str) -> dict:
    with pytest.raises(SystemExit) as printed:
        main(["fit", *arguments, "--print_config"])
    said = capsys.readouterr()
    assert printed.value.code == 0, said.err
    return yaml.safe_load(said.out.split("\n", said.out.startswith("Covariate"))[-1])


def refused(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    assert stopped.value.code == 2
    return capsys.readouterr().err


def test_every_structure_has_a_name() -> None:
    made = {name: structure(name) for name in structures()}
    assert isinstance(made["tmdd_qss"], Equations)
    assert all("compartment" in name for name in library() if name not in made)
    oral = made["two_compartment_oral_lag_michaelis_menten"]
    assert isinstance(oral, CompartmentModel)
    assert oral.population_names == ("VMAX", "KM", "V1", "Q", "V2", "KA", "LAG")
    assert structure("three_compartments").population_names == ("CL", "V1", "Q", "V2", "Q3", "V3")
    assert structure("one_compartment_bolus_lag").lag_compartment == "central"
    with pytest.raises(ValueError, match="did you mean 'one_compartment_oral'"):
        structure("one_compartment_orl")


def test_starting_values_are_given_as_words_or_as_a_mapping(capsys) -> None:
    line = ["--table", "t.csv", "--structure", "one_compartment_oral"]
    words = configured(capsys, *line, "--omega", "CL=0.4", "KA=0", "--kappa", "V1=0.1")
    mapping = configured(capsys, *line, "--omega", "{CL: 0.4, KA: 0}", "--kappa", "{V1: 0.1}")
    assert words == mapping
    assert words["model"]["parameters"]["init_args"]["omega"] == {"CL": 0.4, "KA": 0.0}
    assert "CL" in refused(capsys, "fit", *line, "--omega", "{CL: much}")


def test_short_options_are_the_configuration_they_stand_for(capsys) -> None:
    line = ["--table", "t.csv", "--structure", "one_compartment_oral", "--effects", "CL:WT=0.75", "V1:WT", "KA:AGE"]
    line += ["CL:AGE=linear", "V1:FFM+AGE=network"]
    more = ["--error", "additive", "--units", "h", "mg", "mg/L", "--seed", "7", "--columns", "DV=CONC", "ID=SUBJ"]
    found = configured(capsys, *line, *more)
    data, model = found["data"]["init_args"], found["model"]
    assert (data["table"], data["covariates"], data["units"]) == ("t.csv", ["AGE", "FFM", "WT"], ["h", "mg", "mg/L"])
    assert data["columns"] == ["DV=CONC", "ID=SUBJ"]
    assert (found["seed_everything"], model["seed"], data["seed"]) == (7, 7, 7)
    assert model["parameters"]["init_args"]["effects"] == {
        "CL~WT": 0.75,
        "V1": ["WT"],
        "KA": ["AGE"],
        "CL~AGE": "linear",
        "V1~FFM+AGE": "network",
    }
    assert model["error"]["class_path"].endswith("AdditiveError")
    assert model["dynamics"]["init_args"]["absorption"] == "first_order"


def test_a_table_replaces_the_data_of_a_preset_and_of_a_configuration(capsys) -> None:
    line = ["--table", "t.csv", "--structure", "one_compartment_oral", "--effects", "all"]
    Path("own.yaml").write_text("data: {class_path: TableDataModule, init_args: {table: other.csv, folds: 3}}\n")
    for first in (["--preset", "theophylline"], ["--config", "own.yaml"]):
        data = configured(capsys, *line, *first)["data"]["init_args"]
        assert (data["table"], data["folds"], data["covariates"]) == ("t.csv", 0, "all")


def test_named_covariates_act_on_clearance_and_volume(capsys) -> None:
    line = ["--table", "t.csv", "--structure", "two_compartment_infusion_michaelis_menten", "--covariates", "WT", "AGE"]
    effects = configured(capsys, *line)["model"]["parameters"]["init_args"]["effects"]
    assert effects == {"VMAX": ["WT", "AGE"], "V1": ["WT", "AGE"]}
    main(["fit", "--structure", "help"])
    assert "\n  three_compartment_oral\n" in capsys.readouterr().out


def test_long_effects_leave_no_default_beside_them(capsys) -> None:
    line = ["fit", "--table", "t.csv", "--structure", "one_compartment_oral", "--covariates", "WT", "--print_config"]
    with pytest.raises(SystemExit):
        main([*line, "--model.parameters.effects", "{CL: {WT: 0.75}}"])
    said = capsys.readouterr().out
    assert "Covariate effects" not in said
    assert yaml.safe_load(said)["model"]["parameters"]["init_args"]["effects"] == {"CL": {"WT": 0.75}}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--table t.csv", "which dynamics? Give --structure NAME"),
        ("--table t.csv --structure one_compartmnt_oral", "(did you mean 'one_compartment_oral'?)"),
        ("--table t.csv --structure one_compartment_oral --effects CL", "'CL' is not PARAMETER:COVARIATE"),
        ("--table t.csv --structure one_compartment_oral --error combine", "error is one of additive"),
        ("--table t.csv --structure one_compartment_oral --covariates all", "needs --effects"),
        ("--table t.csv --structure one_compartment_oral --effects CL:WT^0.75", "'CL:WT^0.75' is not PARAMETER:COVA"),
        ("--table t.csv --structure one_compartment_oral --effects CL:WT=0.7.5", "'CL:WT=0.7.5' is not PARAMETER:C"),
        ("--table t.csv --structure one_compartment_oral --effects CL:WT=1 CL:WT=2", "names CL:WT twice"),
        ("--table t.csv --structure one_compartment_oral --units h ug", "units are three, of time, amount and value"),
        (
            "--table t.csv --structure one_compartment_oral --effects CL:WT --model.parameters.effects.V1 [WT]",
            "give --effects or --model.parameters.effects, not both",
        ),
        ("--effects CL:WT", "--effects is of a --table"),
    ],
)
def test_what_is_refused(line: str, said: str, capsys) -> None:
    assert said in refused(capsys, "fit", *line.split())


def test_a_fit_writes_a_population_file_and_replaces_nothing_unasked(capsys) -> None:
    line = ["fit", "--table", "t.csv", "--structure", "one_compartment_oral", "--covariates", "WT", "--out", "run/1"]
    main([*line, "--units", "h", "mg", "mg/l", *QUIET])
    said = capsys.readouterr().out
    assert "Covariate effects: CL:WT, V1:WT (default" in said and "Population file: run/1/pop.yaml" in said
    fitted = read_population(Path("run/1/pop.yaml"))
    assert fitted.units == Units("h", "mg", "mg/l")
    assert fitted.typical["CL"] == pytest.approx(2.8, rel=0.05)
    assert set(fitted.effects) == {("CL", "WT"), ("V1", "WT")}
    assert read_model("run/1/checkpoints/last.ckpt").units == fitted.units
    assert "run/1 holds results already" in refused(capsys, *line)
    mine = Path("run/1/mine.csv")
    mine.write_text("kept")
    main([*line, "--overwrite", "--trainer.max_epochs", "1", *QUIET])
    assert mine.exists() and [path.name for path in Path("run/1/checkpoints").iterdir()] == ["last.ckpt"]
    with pytest.raises(SystemExit):
        main(["estimate", "--model", "run/1/pop.yaml", "--table", "t.csv", "--out", "e", "--units", "h", "mg"])
    assert "units are three" in capsys.readouterr().err
    estimate = ["estimate", "--model", "run/1/pop.yaml", "--table", "t.csv", "--out", "e", "--draws", "0"]
    main(estimate)
    assert "e holds results already" in refused(capsys, *estimate)
    Path("e/occasions.csv").write_text("of a model with kappa")
    main([*estimate, "--overwrite"])
    assert not Path("e/occasions.csv").exists()
    assert len(pd.read_csv("e/individuals.csv")) == 12


def test_several_columns_may_be_a_list() -> None:
    frame = pd.read_csv("t.csv").rename(columns={"DV": "CONC", "ID": "SUBJ"})
    assert len(read_table(frame, columns=["DV=CONC", "ID=SUBJ"])) == 12


def test_a_seed_draws_other_patients() -> None:
    common = ["simulate", "--data.subjects", "3", "--data.test_subjects", "0"]
    for name, seed in (("a", ["--seed", "5"]), ("b", ["--data.seed", "5"]), ("c", [])):
        main([*common, *seed, "--out", f"{name}.csv"])
    first, second, other = (Path(f"{name}.csv").read_text() for name in "abc")
    assert first == second != other


def test_an_option_that_does_not_fit_the_data_leaves_no_folder(capsys) -> None:
    line = ["fit", "--table", "t.csv", "--structure", "one_compartment_oral", "--out", "run", *QUIET]
    with pytest.raises(SystemExit):
        main([*line, "--effects", "CLL:WT"])
    assert "effects names CLL; the named parameters" in capsys.readouterr().err
    assert not Path("run").exists()
