"""Event tables: every rule with its code, what is kept and said, exact round trips, hostile files."""

from __future__ import annotations

import csv
import math
import subprocess
import sys
import time
import warnings
from dataclasses import fields
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from neuralpk.cohort import Cohort, Dose, Subject
from neuralpk.datasets import theophylline
from neuralpk.tables import RULES, DataError, DataWarning, read_table, text_files, to_frame, write_table

HEADER = "ID,TIME,AMT,DV"
BASE = [HEADER, "1,0,100,.", "1,1,.,5", "1,2,.,4", "2,0,100,.", "2,1,.,6"]


def save(path: Path, *lines: str) -> Path:
    """A CSV file of these lines."""
    file = path / "table.csv"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def assert_same(left: Cohort, right: Cohort) -> None:
    """The same subjects to the last bit; NaN equals NaN."""
    assert left.ids == right.ids
    for one, other in zip(left, right, strict=True):
        assert one.doses == other.doses
        assert one.covariates == other.covariates
        for item in fields(Subject):
            if isinstance(getattr(one, item.name), np.ndarray):
                np.testing.assert_array_equal(getattr(one, item.name), getattr(other, item.name), err_msg=item.name)


def rows(header: str, *body: str) -> list[str]:
    """A table of its own."""
    return [header, *body]


def changed(line: int, text: str) -> list[str]:
    """The sound table with one line changed (the header is line 1)."""
    return [*BASE[: line - 1], text, *BASE[line:]]


# The faults of an event table: rule, line, and the table. Each row is one that real tables have.
DOSING = "ID,TIME,EVID,MDV,AMT,RATE,DUR,II,ADDL,SS,CMT,DV"
LAST = "1,9,0,0,0,0,0,0,0,0,1,5"
FAULTS = {
    "time decreases": ("NPK-D16", 4, changed(4, "1,0.5,.,4")),
    "time missing": ("NPK-D15", 3, changed(3, "1,,.,5")),
    "time infinite": ("NPK-D11", 3, changed(3, "1,inf,.,5")),
    "id missing": ("NPK-D13", 3, changed(3, ",1,.,5")),
    "id disjoint": ("NPK-D14", 7, [*BASE, "1,9,.,3"]),
    "dv missing": ("NPK-D21", 2, rows("ID,TIME,MDV,DV", "1,0,0,.", "1,1,0,5")),
    "dv infinite": ("NPK-D11", 3, changed(3, "1,1,.,-inf")),
    "dv overflows": ("NPK-D11", 3, changed(3, "1,1,.,1e400")),
    "dv underflows": ("NPK-D11", 3, changed(3, "1,1,.,1e-400")),
    "dv below the limit as text": ("NPK-D10", 3, changed(3, "1,1,.,<LLOQ")),
    "dv with decimal comma": ("NPK-D10", 3, changed(3, '1,1,.,"5,2"')),
    "amt zero on an infusion": ("NPK-D22", 2, rows(DOSING, "1,0,1,1,0,5,0,0,0,0,1,.", LAST)),
    "amt negative": ("NPK-D22", 2, changed(2, "1,0,-100,.")),
    "amt on an observation": ("NPK-D24", 3, rows("ID,TIME,EVID,AMT,DV", "1,0,1,9,.", "1,1,0,9,5")),
    "amt missing on a dose": ("NPK-D23", 2, rows("ID,TIME,EVID,AMT,DV", "1,0,1,.,.", "1,1,0,0,5")),
    "evid unknown": ("NPK-D20", 3, rows("ID,TIME,EVID,AMT,DV", "1,0,1,9,.", "1,1,5,0,5")),
    "mdv unknown": ("NPK-D12", 2, rows("ID,TIME,MDV,DV", "1,0,2,1", "1,1,0,5")),
    "rate modelled": ("NPK-D25", 2, rows(DOSING, "1,0,1,1,100,-2,2,0,0,0,1,.", LAST)),
    "rate negative": ("NPK-D30", 2, rows(DOSING, "1,0,1,1,100,-3,0,0,0,0,1,.", LAST)),
    "rate against duration": ("NPK-D26", 2, rows(DOSING, "1,0,1,1,100,10,5,0,0,0,1,.", LAST)),
    "additional without interval": ("NPK-D27", 2, rows(DOSING, "1,0,1,1,100,0,0,0,3,0,1,.", LAST)),
    "additional without end": ("NPK-D12", 2, rows(DOSING, "1,0,1,1,100,0,0,24,1e9,0,1,.", LAST)),
    "steady state without interval": ("NPK-D28", 2, rows(DOSING, "1,0,1,1,100,0,0,0,0,1,1,.", LAST)),
    "compartment turned off": ("NPK-D29", 2, rows(DOSING, "1,0,1,1,100,0,0,0,0,0,-1,.", LAST)),
    "compartment unknown": ("NPK-D29", 2, rows(DOSING, "1,0,1,1,100,0,0,0,0,0,gut,.", LAST)),
    "compartment broken": ("NPK-D12", 2, rows(DOSING, "1,0,1,1,100,0,0,0,0,0,1.5,.", LAST)),
    "clock restarts nowhere": ("NPK-D16", 3, rows(DOSING, LAST, "1,0,1,1,100,0,0,0,0,0,1,.", LAST)),
    "clock restarts far away": ("NPK-D16", 3, rows("ID,TIME,EVID,DV", "1,1e12,0,5", "1,0,3,.", "1,1,0,5")),
    "classic code unknown": ("NPK-D20", 2, rows("ID,TIME,EVID,AMT,DV", "1,0,40101,9,.", "1,1,0,0,5")),
    "classic code against compartment": ("NPK-D20", 2, rows(DOSING, "1,0,101,1,9,0,0,0,0,0,2,.", LAST)),
    "classic infusion without end": ("NPK-D20", 2, rows("ID,TIME,EVID,AMT,DV", "1,0,10101,9,.", "1,1,0,0,5")),
    "additional doses beyond all": ("NPK-D12", 2, rows(DOSING, "1,0,1,1,100,0,0,24,1001,0,1,.", LAST)),
    "doses of a subject beyond all": (
        "NPK-D33",
        2,
        rows(DOSING, *(f"1,{k},1,1,9,0,0,.01,1000,0,1,." for k in range(10)), LAST.replace(",9,", ",11,")),
    ),
    "infusion of many intervals": ("NPK-D32", 2, rows(DOSING, "1,0,1,1,100,1e-5,0,12,0,1,1,.", LAST)),
    "infusion of a long duration": ("NPK-D32", 2, rows(DOSING, "1,0,1,1,100,0,1201,12,0,2,1,.", LAST)),
    "limit zero": ("NPK-D34", 3, rows("ID,TIME,DV,CENS", "1,0,5,0", "1,1,0,1")),
    "limit zero above": ("NPK-D34", 3, rows("ID,TIME,DV,CENS", "1,0,5,0", "1,1,0,-1")),
    "limit missing": ("NPK-D34", 3, rows("ID,TIME,DV,CENS", "1,0,5,0", "1,1,.,1")),
    "code of missing": ("NPK-D35", 3, rows("ID,TIME,DV", "1,0,5", "1,1,-99", "1,2,4")),
    "code of missing twice": ("NPK-D35", 3, rows("ID,TIME,DV", "1,0,5", "1,1,9999", "1,2,4", "1,3,9999")),
    "code of missing in a covariate": ("NPK-D35", 3, rows("ID,TIME,DV,WT", "1,0,5,70", "2,1,6,-99", "3,2,4,80")),
    "covariate that is DV": ("NPK-D42", None, rows("ID,TIME,DV,CP", "1,0,5,5", "1,1,4,4", "1,2,3,3")),
    "covariate that is the logarithm of DV": (
        "NPK-D42",
        None,
        rows("ID,TIME,DV,LNDV", *(f"1,{k},{v},{math.log(v):.3f}" for k, v in enumerate(range(9, 0, -1)))),
    ),
    "endpoint as text": ("NPK-D19", 2, rows("ID,TIME,DV,DVID", "1,0,5,cp", "1,0,5,pca")),
    "tabs in a csv": ("NPK-D09", 1, [line.replace(",", "\t") for line in BASE]),
    "time of day without its day": ("NPK-D16", 3, rows("ID,TIME,DV", "1,22:00,5", "1,6:30,4")),
    "date of an unknown order": ("NPK-D18", 2, rows("ID,DATE,TIME,DV", "1,01/02/2020,22:00,5", "1,02/02/2020,6:30,4")),
    "endpoint zero": ("NPK-D12", 2, rows("ID,TIME,DVID,DV", "1,0,0,5")),
    "limit above value": ("NPK-D31", 2, rows("ID,TIME,DV,CENS,LIMIT", "1,0,0.1,1,0.2")),
    "covariate missing in a subject": (
        "NPK-D41",
        4,
        rows("ID,TIME,DV,WT", "1,0,1,70", "1,1,1,.", "2,0,1,.", "2,1,1,."),
    ),
    "covariate as text": ("NPK-D40", 2, rows("ID,TIME,DV,SEX", "1,0,1,male", "1,1,1,male")),
    "column twice": ("NPK-D06", 1, changed(1, "ID,TIME,DV,dv")),
    "duration twice": ("NPK-D06", 1, rows("ID,TIME,DV,DUR,TINF", "1,0,1,1,1")),
    "column without a name": ("NPK-D05", 1, [f"{line}," for line in BASE]),
    "column named as missing": ("NPK-D05", 1, changed(1, "ID,TIME,AMT,DV,NA")),
    "column needed": ("NPK-D08", None, changed(1, "ID,TIME,AMT,CONC")),
    "semicolons": ("NPK-D09", 1, [line.replace(",", ";") for line in BASE]),
    "short row": ("NPK-D04", 3, changed(3, "1,1,.")),
    "trailing comma on the rows": ("NPK-D04", 2, [HEADER, *(f"{line}," for line in BASE[1:])]),
    "bool": ("NPK-D10", 3, changed(3, "1,1,.,True")),
    "hexadecimal": ("NPK-D10", 3, changed(3, "1,1,.,0x1F")),
    "unicode minus": ("NPK-D10", 3, changed(3, "1,1,.,−5")),
    "other digits": ("NPK-D10", 3, changed(3, "1,1,.,٣")),
    "clock time": ("NPK-D18", 2, changed(3, "1,08:30,.,5")),
    "underscore": ("NPK-D10", 3, changed(3, "1,1,.,1_000")),
    "nul byte": ("NPK-D01", 3, changed(3, "1,1,.,5\0")),
    "unclosed quote": ("NPK-D02", 6, changed(6, '2,1,.,"6')),
    "quote over lines": ("NPK-D02", 3, changed(3, '1,1,.,"5\n"')),
    "quote in a cell": ("NPK-D02", 3, changed(3, '1,1,.,"5"6')),
    "header only": ("NPK-D03", None, [HEADER]),
    "long cell": ("NPK-D07", 3, changed(3, f"1,1,.,{'1' * 1_001}")),
    "long line": ("NPK-D07", 3, changed(3, f"1,1,.,{'1' * 100_001}")),
    "no observation at all": ("NPK-D52", None, rows(HEADER, "1,0,100,.")),
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_refused_with_its_rule_and_line(tmp_path: Path, name: str) -> None:
    rule, line, table = FAULTS[name]
    with pytest.raises(DataError) as caught:
        read_table(save(tmp_path, *table), covariates="all")
    found = [(finding.rule, finding.line) for finding in caught.value.findings]
    assert (rule, line) in found
    assert found[0][1] == line, "the first finding is the fault itself, not one that follows from it"
    finding = next(finding for finding in caught.value.findings if finding.rule == rule)
    assert finding.file == "table.csv"
    assert RULES[rule] in finding.message
    assert f"{rule} table.csv" in str(caught.value)


def test_an_empty_file_and_bytes_that_are_not_utf8_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "table.csv"
    for content, rule in (
        (b"", "NPK-D03"),
        (b"ID,TIME,DV\n\xe9,0,1\n", "NPK-D01"),
        ("ID,".encode("utf-16"), "NPK-D01"),
    ):
        file.write_bytes(content)
        with pytest.raises(DataError) as caught:
            read_table(file)
        assert caught.value.findings[0].rule == rule


def test_a_huge_file_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_files, "MAX_ROWS", 3)
    with pytest.raises(DataError, match=r"NPK-D07 table\.csv: 6 lines"):
        read_table(save(tmp_path, *BASE))


def test_all_faults_are_found_and_equal_ones_are_one_line(tmp_path: Path) -> None:
    table = ["ID,TIME,AMT,DV,SS", *(f"1,{k},.,x{k},99" for k in range(30))]
    with pytest.raises(DataError) as caught:
        read_table(save(tmp_path, *table))
    assert len(caught.value.findings) == 60
    first = caught.value.findings[0]
    assert (first.line, first.column, first.id, first.value) == (2, "DV", "1", "x0")
    assert str(first).startswith("NPK-D10 table.csv, line 2, DV, ID 1: DV is 'x0'. Numbers are")
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert lines[0].endswith("(30 times: also in lines 3, 4, 5, 6, 7, …, with x0, x1, x2, x3, x4, …)")
    assert "SS is '99'" in lines[1] and lines[1].endswith("as in SS:99=0. (30 times: also in lines 3, 4, 5, 6, 7, …)")


def test_twenty_kinds_of_faults_are_printed(tmp_path: Path) -> None:
    names = [f"C{k}" for k in range(30)]
    with pytest.raises(DataError) as caught:
        read_table(
            save(tmp_path, f"ID,TIME,DV,{','.join(names)}", "1,0,5" + ",x" * 30, "1,1,5" + ",1" * 30), covariates=names
        )
    assert len(caught.value.findings) == 30
    assert str(caught.value).splitlines()[20:] == ["(+10 more)"]


def test_a_text_covariate_hides_no_other_fault(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_table(save(tmp_path, "ID,TIME,AMT,DV,SEX", "1,0,-1,.,f", "1,2,.,5,f", "1,1,.,5,0"), covariates="SEX")
    assert [finding.rule for finding in caught.value.findings] == ["NPK-D40", "NPK-D22", "NPK-D16"]


def test_a_data_frame_is_read_like_its_file(tmp_path: Path) -> None:
    file = save(tmp_path, *BASE)
    from_file = read_table(file)
    assert_same(from_file, read_table(pd.read_csv(file, na_values=".")))
    assert_same(from_file, read_table(pd.read_csv(file, dtype=str, keep_default_na=False)))
    frame = pd.read_csv(file, na_values=".").assign(DV=[np.nan, 5, np.inf, np.nan, 6])
    with pytest.raises(DataError, match="NPK-D11 data frame, row 3, DV, ID 1"):
        read_table(frame)
    with pytest.raises(DataError, match="NPK-D10 data frame, row 1"):
        read_table(frame.assign(DV=True))


@pytest.mark.parametrize("name", ["table.parquet", "table.pq", "TABLE.PQ"])
def test_a_parquet_file_is_read_like_its_frame(tmp_path: Path, name: str) -> None:
    pytest.importorskip("pyarrow")
    cohort = theophylline()
    to_frame(cohort).to_parquet(tmp_path / name)
    assert_same(read_table(tmp_path / name, covariates="all"), cohort)
    (tmp_path / name).write_bytes(b"PAR1")
    with pytest.raises(DataError, match="NPK-D01"):
        read_table(tmp_path / name)


def test_columns_are_renamed_and_compartments_named(tmp_path: Path) -> None:
    table = rows("subject,Hours,amt,cmt,conc,note", "A 1,0,100,Depot,.,x", "A 1,1,.,central,5,y")
    names = {"ID": "subject", "time": "Hours", "dv": "conc"}
    cohort = read_table(save(tmp_path, *table), columns=names, compartments=["depot", "central"])
    assert cohort.ids == ("A 1",)
    assert cohort[0].doses[0].compartment == 1
    assert cohort[0].compartments.tolist() == [2]
    with pytest.raises(DataError, match="NPK-D08"):
        read_table(save(tmp_path, *table), columns={**names, "WT": "absent"})
    with pytest.raises(DataError, match="columns are ours=theirs: ID=subject,TIME=Hours,DV=conc"):
        read_table(save(tmp_path, *table), columns={"subject": "ID", "Hours": "TIME", "conc": "DV"})
    same = read_table(
        save(tmp_path, *table), columns="ID=subject, time=HOURS,DV=conc", compartments=["depot", "central"]
    )
    assert_same(cohort, same)


def test_a_dose_with_a_value_is_both_and_is_read_before_it_acts(tmp_path: Path) -> None:
    subject = read_table(save(tmp_path, HEADER, "1,0,100,0.5", "1,1,.,5"))[0]
    assert subject.values.tolist() == [0.5, 5.0]
    assert subject.rows[0] < subject.doses[0].row < subject.rows[1]


def test_records_of_one_time_act_in_the_order_of_their_rows(tmp_path: Path) -> None:
    subject = read_table(save(tmp_path, "ID,TIME,AMT,DV,DVID", "1,0,.,1,1", "1,0,100,.,.", "1,0,.,2,2"))[0]
    assert subject.rows[0] < subject.doses[0].row < subject.rows[1]


def test_events_of_every_kind(tmp_path: Path) -> None:
    table = rows(
        "ID,TIME,EVID,AMT,RATE,DUR,II,ADDL,SS,CMT,DV",
        "1,-1,0,.,.,.,.,.,.,.,0",
        "1,0,1,100,50,2,12,3,.,2,.",
        "1,1,2,.,.,.,.,.,.,.,.",
        "1,2,3,.,.,.,.,.,.,.,.",
        "1,3,4,100,.,4,24,.,2,.,.",
        "1,4,1,0,10,.,.,.,1,.,.",
    )
    subject = read_table(save(tmp_path, *table))[0]
    assert subject.doses == (
        Dose(0.0, 100.0, compartment=2, rate=50.0, interval=12.0, additional=3, row=1),
        Dose(2.0, reset=True, row=3),
        Dose(3.0, 100.0, duration=4.0, interval=24.0, steady_state=2, reset=True, row=4),
        Dose(4.0, rate=10.0, steady_state=1, row=5),
    )
    assert subject.times.tolist() == [-1.0, 1.0]
    assert subject.observed.tolist() == [True, False]
    assert subject.start == -1.0
    assert subject.compartments.tolist() == [0, 0]


def test_covariates_are_constant_or_steps_carried_forward(tmp_path: Path) -> None:
    table = rows("ID,TIME,DV,WT,OCC,CRCL", "1,0,1,.,1,90", "1,1,1,70,1,.", "1,2,1,.,2,80", "1,3,1,72,2,80")
    covariates = read_table(save(tmp_path, *table), covariates="all")[0].covariates
    assert covariates == {
        "WT": ((0.0, 70.0), (3.0, 72.0)),
        "OCC": ((0.0, 1.0), (2.0, 2.0)),
        "CRCL": ((0.0, 90.0), (2.0, 80.0)),
    }


def test_censoring_is_carried(tmp_path: Path) -> None:
    subject = read_table(save(tmp_path, "ID,TIME,DV,CENS,LIMIT", "1,0,0.1,1,0", "1,1,9,-1,.", "1,2,5,0,."))[0]
    assert subject.censored.tolist() == [1, -1, 0]
    np.testing.assert_array_equal(subject.limits, [0.0, np.nan, np.nan])


NOTICES = {
    "NPK-D51": ("1 × replicate", rows("ID,TIME,DV", "1,0,1", "1,0,2", "1,1,2")),
    "NPK-D52": ("1 subjects without observations: ID 2", rows(HEADER, "1,0,9,.", "1,1,.,5", "2,0,9,.")),
    "NPK-D53": ("1 subjects without doses: ID 2", rows(HEADER, "1,0,9,.", "1,1,.,5", "2,0,.,5")),
    "NPK-D54": ("1 × wanted prediction", rows("ID,TIME,MDV,DV", "1,0,0,1", "1,1,1,7")),
    "NPK-D55": ("1 × DV not read", rows("ID,TIME,EVID,AMT,DV", "1,0,1,9,7", "1,1,0,0,5")),
    "NPK-D58": ("1 × LIMIT without CENS", rows("ID,TIME,DV,CENS,LIMIT", "1,0,5,0,2", "1,1,2,1,0")),
    "NPK-D59": ("1 × dose with AMT 0", rows("ID,TIME,EVID,AMT,DV", "1,0,1,0,.", "1,1,0,0,5")),
    "NPK-D60": ("column YTYPE has cp, pca", rows("ID,TIME,DV,YTYPE", "1,0,5,cp", "1,1,4,pca")),
    "NPK-D61": ("column BLQ marks 1 samples: columns=CENS=BLQ", rows("ID,TIME,DV,BLQ", "1,0,5,0", "1,1,.5,1")),
    "NPK-D56": ("1 × record with dose columns", rows("ID,TIME,AMT,II,DV", "1,0,9,24,.", "1,1,0,24,5")),
}


@pytest.mark.parametrize("rule", NOTICES)
def test_what_is_read_in_an_unusual_way_is_counted(tmp_path: Path, rule: str) -> None:
    text, table = NOTICES[rule]
    with pytest.warns(DataWarning) as caught:
        read_table(save(tmp_path, *table))
    assert [str(warning.message)[:7] for warning in caught] == [rule]
    assert text in str(caught[0].message)
    assert caught[0].filename == __file__


def test_covariates_of_a_model_are_read_whatever_is_asked_for_and_filled_in(tmp_path: Path) -> None:
    table = save(tmp_path, *rows("ID,TIME,DV,WT,AGE,SEX", "1,0,1,70,.,1", "2,0,1,80,30,.", "3,0,2,60,.,1"))
    with pytest.warns(DataWarning, match="NPK-D57 .*2 subjects with AGE = 40") as caught:
        cohort = read_table(table, covariates=[], needed={"WT": None, "AGE": 40.0, "HT": 170.0})
    assert len(caught) == 1
    assert [subject.covariates for subject in cohort] == [
        {"WT": 70.0, "AGE": 40.0}, {"WT": 80.0, "AGE": 30.0}, {"WT": 60.0, "AGE": 40.0}
    ]  # fmt: skip
    with pytest.raises(DataError, match=r"NPK-D41 .*AGE"):
        read_table(table, covariates=[], needed={"AGE": None})


def test_sorting_is_stable_and_counted(tmp_path: Path) -> None:
    table = rows(HEADER, "1,2,.,4", "1,0,100,.", "1,1,.,5", "1,1,.,6")
    with pytest.warns(DataWarning) as caught:
        subject = read_table(save(tmp_path, *table), sort=True)[0]
    assert sorted(str(warning.message)[:7] for warning in caught) == ["NPK-D50", "NPK-D51"]
    assert "4 rows moved" in str(caught[0].message)
    assert subject.values.tolist() == [5.0, 6.0, 4.0]
    with pytest.raises(DataError, match="NPK-D17"):
        read_table(save(tmp_path, *rows("ID,TIME,EVID,DV", "1,9,0,5", "1,0,3,.", "1,1,0,5")), sort=True)


def test_written_tables_read_back_exactly(tmp_path: Path) -> None:
    doses = (
        Dose(0.0, 0.1 + 0.2, compartment=2, rate=1 / 3, interval=12.0, additional=4, row=1),
        Dose(5.0, reset=True, row=3),
        Dose(6.0, 50.0, duration=1e-3, interval=8.0, steady_state=1, reset=True, row=4),
    )
    first = Subject(
        id='7, "b"',
        times=[-0.5, 1 / 3, 7.0],
        values=[0.0, np.nan, np.pi],
        doses=doses,
        compartments=[0, 2, 1],
        endpoints=[1, 1, 2],
        censored=[0, 0, 1],
        limits=[np.nan, np.nan, 1e-300],
        rows=[0, 2, 5],
        covariates={"WT": 70.1, "CRCL": ((-0.5, 90.0), (7.0, 80.0))},
    )
    second = Subject(id="é", times=[1.0], values=[2.0], doses=(Dose(0.0, 1.0),), rows=[1], covariates=first.covariates)
    second = Subject(**{**vars(second), "covariates": {"WT": 60.0, "CRCL": 100.0}})
    cohort = Cohort((first, second))
    write_table(cohort, tmp_path / "table.csv")
    assert_same(read_table(tmp_path / "table.csv", covariates="all"), cohort)
    assert_same(read_table(to_frame(cohort), covariates="all"), cohort)


def test_a_covariate_step_between_records_gets_a_row(tmp_path: Path) -> None:
    subject = Subject(id="1", times=[0.0, 2.0], values=[1.0, 2.0], covariates={"WT": ((0.0, 70.0), (1.0, 71.0))})
    write_table(Cohort((subject,)), tmp_path / "table.csv")
    back = read_table(tmp_path / "table.csv", covariates=["WT"])[0]
    assert back.covariates == subject.covariates
    np.testing.assert_array_equal(back.values, [1.0, np.nan, 2.0])


@pytest.mark.parametrize("name", ["NA", "", " x", "a\nb"])
def test_names_that_would_not_read_back_are_not_written(name: str) -> None:
    with pytest.raises(ValueError, match="Rename"):
        to_frame(Cohort((Subject(id=name, times=[0.0], values=[1.0]),)))


SEED_TABLES = [
    [line.rstrip("\n") for line in to_frame(theophylline()[:3]).to_csv(index=False, na_rep=".").splitlines()],
    rows(
        "ID,TIME,EVID,MDV,AMT,RATE,DUR,II,ADDL,SS,CMT,DVID,DV,CENS,LIMIT,WT,OCC",
        "a,0,1,1,100,10,.,12,3,0,1,.,.,.,.,70,1",
        "a,1,0,0,.,.,.,.,.,.,2,1,5.5,0,.,70,1",
        "a,1,0,0,.,.,.,.,.,.,2,2,0.1,1,0,70,1",
        "a,2,2,1,.,.,.,.,.,.,.,.,.,.,.,71,2",
        "b,-1,0,0,.,.,.,.,.,.,2,1,0.5,0,.,60,1",
        "b,0,4,1,100,.,2,24,.,1,1,.,.,.,.,60,1",
        "b,9,3,1,.,.,.,.,.,.,.,.,.,.,.,60,2",
        "b,9,0,0,.,.,.,.,.,.,2,1,7,-1,9,61,2",
    ),
]
CELLS = [
    "",
    ".",
    "NA",
    "0",
    "-1",
    "1",
    "2",
    "3",
    "4",
    "101",
    "1e308",
    "-1e308",
    "1e400",
    "5e-324",
    "1e-400",
    "inf",
    "nan",
]
CELLS += [
    "0.1",
    "1.5",
    "-2",
    "<1",
    "5,2",
    '"',
    '"5,2"',
    "True",
    "0x10",
    "−1",
    "１",
    "é",
    " 7 ",
    "a",
    "b",
    "9" * 400,
    "\t",
    "\r",
]


def mutate(rng: np.random.Generator) -> bytes:
    """A sound table with one to three accidents."""
    table = [line.split(",") for line in SEED_TABLES[rng.integers(len(SEED_TABLES))]]
    for _ in range(rng.integers(1, 4)):
        kind, row = rng.integers(9), int(rng.integers(len(table)))
        column = int(rng.integers(len(table[row]))) if table[row] else 0
        if kind <= 2 and table[row]:
            table[row][column] = CELLS[rng.integers(len(CELLS))]
        elif kind == 3 and len(table) > 1:
            del table[row]
        elif kind == 4:
            table.insert(row, list(table[row]))
        elif kind == 5:
            other = int(rng.integers(len(table)))
            table[row], table[other] = table[other], table[row]
        elif kind == 6 and table[row]:
            del table[row][column]
        elif kind == 7 and table[row] and table[0]:
            for cells in table:
                if len(cells) > column:
                    cells.append(cells[column]) if rng.random() < 0.5 else cells.pop(column)
        elif kind == 8 and table[row]:
            table[row][column] = str(float(rng.choice([1, -1]) * 10.0 ** rng.uniform(-320, 308)))
    text = [",", ";", "\t"][rng.choice(3, p=[0.96, 0.02, 0.02])].join
    content = "\n".join(text(cells) for cells in table).encode(
        ["utf-8", "utf-8-sig", "utf-16"][rng.choice(3, p=[0.9, 0.06, 0.04])]
    )
    if rng.random() < 0.1:
        content = content[: rng.integers(len(content) + 1)]
    if rng.random() < 0.05 and content:
        place = int(rng.integers(len(content)))
        content = content[:place] + bytes([rng.integers(256)]) + content[place + 1 :]
    return content


def independent_faults(path: Path) -> list[str]:
    """The checks of NMdata::NMcheckData (Delff 2024) on a file with commas, one row after another in plain Python."""
    with path.open(encoding="utf-8-sig", newline="") as handle:
        header, *body = [row for row in csv.reader(handle) if row]
    names = [name.strip().upper() for name in header]
    table = [dict(zip(names, (cell.strip() for cell in row), strict=True)) for row in body]
    faults = ["duplicate column names"] if len({*names}) < len(names) else []
    finished: set[str] = set()
    previous: dict[str, str] = {}

    def value(row: dict[str, str], name: str) -> float | None:
        cell = row.get(name, "")
        if name == "DV":  # <0.5 is a value below that limit
            cell = cell.lstrip("<>")
        return None if cell in ("", ".", "NA", "NaN") else float(cell)

    for row in table:
        amount, evid, seen = value(row, "AMT") or 0.0, value(row, "EVID"), value(row, "DV")
        evid = (1.0 if amount else 0.0) if evid is None else evid
        rate = value(row, "RATE") or 0.0
        infusion = value(row, "SS") == 1 and rate > 0
        checks = {
            "ID missing": row["ID"] in ("", ".", "NA", "NaN"),
            "ID disjoint": row["ID"] in finished,
            "TIME missing": value(row, "TIME") is None,
            "TIME decreases": previous.get("ID") == row["ID"]
            and float(row["TIME"]) < float(previous["TIME"])
            and "3" not in (row.get("EVID"), previous.get("EVID"))
            and row.get("EVID") != "4"
            and row.get("OCC") == previous.get("OCC"),
            "EVID": evid not in (0, 1, 2, 3, 4, 101),
            "MDV": value(row, "MDV") not in (None, 0, 1),
            "MDV is not DV missing": evid == 0 and value(row, "MDV") == 0 and seen is None,
            "AMT on a dose": evid in (1, 4, 101) and (amount < 0 or (amount == 0 and not infusion and rate > 0)),
            "AMT elsewhere": evid in (0, 2, 3) and amount != 0,
            "RATE": evid in (1, 4, 101) and (value(row, "RATE") or 0) < 0,
            "SS": value(row, "SS") not in (None, 0, 1, 2),
            "ADDL": (value(row, "ADDL") or 0) < 0 or (value(row, "ADDL") or 0) % 1 != 0,
            "ADDL without II": evid in (1, 4) and (value(row, "ADDL") or 0) > 0 and (value(row, "II") or 0) <= 0,
            "II": evid in (1, 4) and (value(row, "II") or 0) < 0,
            "CMT": (value(row, "CMT") or 0) < 0 or (value(row, "CMT") or 0) % 1 != 0,
            "not finite": any(
                number is not None and not math.isfinite(number) for number in (value(row, "TIME"), seen)
            ),
        }
        faults += [f"{name}: {row}" for name, broken in checks.items() if broken]
        if previous and previous["ID"] != row["ID"]:
            finished.add(previous["ID"])
        previous = row
    return faults


def assert_valid(cohort: Cohort) -> None:
    """What every cohort that was read satisfies."""
    assert len(cohort) and len(set(cohort.ids)) == len(cohort) and all(cohort.ids)
    for subject in cohort:
        assert (
            len(subject.times) and np.isfinite(subject.times).all() and (subject.times[1:] >= subject.times[:-1]).all()
        )
        assert not np.isinf(subject.values).any() and not np.isinf(subject.limits).any()
        assert np.isin(subject.censored, (-1, 0, 1)).all() and (subject.endpoints >= 1).all()
        assert (subject.compartments >= 0).all()
        assert all(dose.amount > 0 or dose.reset or dose.steady_state == 1 for dose in subject.doses)
        order = [*subject.rows.tolist(), *(dose.row for dose in subject.doses)]
        assert sorted(order) == list(range(len(order)))


def check_fuzz(path: Path, cases: range) -> int:
    """Every mutated file is a valid cohort that round-trips, or a DataError; returns how many were accepted."""
    accepted = 0
    file, copy = path / "table.csv", path / "copy.csv"
    for case in cases:
        file.write_bytes(mutate(np.random.default_rng(case)))
        began = time.perf_counter()
        try:
            cohort = read_table(file, covariates="all")
        except DataError as error:
            assert error.findings and all(finding.rule in RULES for finding in error.findings), case
        else:
            accepted += 1
            assert_valid(cohort)
            assert not independent_faults(file), case
            write_table(cohort, copy)
            assert_same(read_table(copy, covariates="all"), cohort)
        assert time.perf_counter() - began < 1.0, case
    return accepted


@pytest.mark.filterwarnings("ignore::neuralpk.tables.DataWarning")
def test_mutated_files_are_read_or_refused(tmp_path: Path) -> None:
    assert 50 < check_fuzz(tmp_path, range(500)) < 450


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::neuralpk.tables.DataWarning")
def test_ten_thousand_mutated_files_are_read_or_refused(tmp_path: Path) -> None:
    check_fuzz(tmp_path, range(500, 10_500))


@pytest.mark.slow
def test_a_million_rows_take_a_minute_and_a_gigabyte_at_most(tmp_path: Path) -> None:
    n, each = 100_000, 10
    rng = np.random.default_rng(0)
    first = np.tile(np.arange(each) == 0, n)
    frame = pd.DataFrame(
        {
            "ID": np.repeat(np.arange(n), each),
            "TIME": np.tile(np.arange(each), n) + np.where(first, 0.0, rng.random(n * each)),
            "AMT": np.where(first, 100.0, 0.0),
            "DV": np.where(first, np.nan, rng.lognormal(size=n * each)),
            "WT": np.repeat(rng.normal(70, 10, n), each),
        }
    )
    frame.to_csv(tmp_path / "table.csv", index=False)
    # a process of its own, so that the peak of memory is that of reading alone; ru_maxrss would keep that of the parent
    script = (
        "import re, sys, time; from neuralpk.tables import read_table; began = time.process_time();"
        "cohort = read_table(sys.argv[1]); print(time.process_time() - began, len(cohort),"
        "sum(len(s.times) for s in cohort), re.search(r'VmHWM:\\s*(\\d+) kB', open('/proc/self/status').read())[1])"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "table.csv")]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    seconds, subjects, observations, memory = map(float, output.split())
    assert (subjects, observations) == (n, n * (each - 1))
    assert seconds <= 60
    assert memory <= 1e6


def test_warnings_are_not_raised_where_a_table_is_refused(tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as caught, pytest.raises(DataError):
        warnings.simplefilter("always")
        read_table(save(tmp_path, "ID,TIME,DV,CENS", "1,0,1,0", "1,0,2,7"))
    assert not caught
