"""``neuralpk check``: what is in a table and what is wrong with it, before any model."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from neuralpk.cli import main
from neuralpk.table_check import check_table
from neuralpk.table_figure import draw

TABLE = [
    "ID,TIME,EVID,AMT,RATE,II,ADDL,DV,CENS,WT,ARM",
    "1,0,1,100,0,12,3,.,0,70,a", "1,1,0,.,.,.,.,5,0,.,a", "1,30,0,.,.,.,.,.5,1,71,a",
    "2,0,1,50,10,.,.,.,0,80,b", "2,1,0,.,.,.,.,3,0,80,b", "2,2,2,.,.,.,.,.,0,80,b",
    "3,0,1,0,.,.,.,.,0,60,b", "3,1,0,.,.,.,.,.5,1,60,b",
]  # fmt: skip


@pytest.fixture
def table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "T.csv").write_text("\n".join(TABLE) + "\n")
    return "T.csv"


def test_the_content_of_a_table(table):
    found = check_table(table, covariates="WT", arm="ARM")
    assert not found.faults
    content = found.content
    assert (content["subjects"], content["records"], content["values"]) == (3, 8, 4)
    assert content["doses"] == {"bolus or oral dose": 1, "additional dose (ADDL)": 3, "infusion": 1}
    assert content["endpoints"]["1"]["below_limit"] == 0.5
    assert content["covariates"]["WT"] == {"low": 60.0, "median": 71.0, "high": 80.0, "missing": 0.125, "changes_in": 1}
    assert content["arms"] == {"a": 1, "b": 2}
    assert any("NPK-D59" in warning for warning in found.warnings)


def test_a_sound_table_ends_with_0_and_a_picture_and_one_with_faults_with_1(table, capsys):
    main(["check", table, "--covariates", "WT", "--arm", "ARM"])
    said = capsys.readouterr().out
    assert "50.0 % below the limit" in said and "No rule is broken." in said and "covariate WT: 60 to 80" in said
    assert Path("T_check.png").read_bytes()[:4] == b"\x89PNG"
    with Path(table).open("a") as file:
        file.write("4,0,0,.,.,.,.,x,0,60,b\n" * 3)
    with pytest.raises(SystemExit) as ended:
        main(["check", table])
    assert ended.value.code == 1
    said = capsys.readouterr().out
    assert said.count("NPK-D10") == 1 and "3 faults" in said and "(3 times" in said


def test_json_has_every_finding(table, capsys):
    with Path(table).open("a") as file:
        file.write("4,0,0,.,.,.,.,x,0,60,b\n" * 3)
    with pytest.raises(SystemExit):
        main(["check", table, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert [fault["line"] for fault in found["faults"]] == [10, 11, 12]
    assert found["figure"] is None


def test_a_table_without_a_measured_value_has_no_picture(table, capsys):
    Path(table).write_text("ID,TIME,AMT,DV,EVID\n1,0,100,.,1\n1,5,.,.,2\n")
    main(["check", table])
    assert "No picture" in capsys.readouterr().out and not Path("T_check.png").exists()


def test_an_arm_that_is_no_column_is_a_fault(table):
    (fault,) = check_table(table, arm="TRT").faults
    assert fault.rule == "NPK-D08" and fault.message.startswith("TRT is not among the columns ID, TIME, EVID")


def test_an_argument_that_read_table_does_not_have_is_refused(table):
    with pytest.raises(TypeError, match="ignroe"):
        check_table(table, ignroe="@")


def test_what_cannot_be_checked_is_a_usage_error(table, capsys):
    for words, code in ((["check"], 2), (["check", table, "--ignroe", "@"], 2), (["check", "none.csv"], 1),
                        (["check", table, "--figure", f"{table}/x.png"], 1)):  # fmt: skip
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == code
        assert "neuralpk check:" in capsys.readouterr().err


def test_the_help_names_the_options_of_the_reader(capsys):
    main(["check", "--help"])
    said = capsys.readouterr().out
    assert "usage: neuralpk check" in said
    assert all(f"--{name} " in said for name in ("arm", "figure", "json", "columns", "lloq", "sort"))
    assert "--optional" not in said and "--import" not in said
    main(["check", "--help", "lloq"])
    assert "limit of quantification" in capsys.readouterr().out


def test_torch_is_not_imported(table):
    script = (
        "import sys; from neuralpk.cli import main; main(['check', 'T.csv']); main(['check', '--help']); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


def test_a_panel_for_each_endpoint_and_arm_and_a_colour_for_each_dose(table):
    found = check_table(table, arm="ARM")
    figure = draw(found.cohort, found.arms)
    panels = [axis for axis in figure.axes if axis.get_visible()]
    assert [axis.get_title() for axis in panels] == ["arm a, 1 subjects", "arm b, 2 subjects"]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["no dose", "first dose 50 mg", "first dose 100 mg", "below the limit"]
    assert panels[0].get_ylim() == panels[1].get_ylim()
    drawn = np.concatenate([line.get_xdata() for line in panels[0].lines])
    assert set(np.unique(drawn)) >= {1.0, 30.0}
