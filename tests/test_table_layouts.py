"""Tables as people have them: names, codes, rows, separators, clocks, endpoints, limits, files of other programs."""

from __future__ import annotations

import gzip
import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from neuralpk.cohort import Cohort, Dose, Subject
from neuralpk.tables import DataError, DataWarning, read_table, to_frame

DATA = Path(__file__).parents[1] / "shared" / "data"
DATA = DATA if DATA.exists() else Path(__file__).parents[2] / "shared" / "data"

PLAIN = ["ID,TIME,AMT,DV", "1,0,100,.", "1,1.5,.,5.25", "1,2,.,4", "2,0,100,.", "2,1,.,6"]


def save(path: Path, lines: list[str], name: str = "table.csv") -> Path:
    file = path / name
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def same(left: Cohort, right: Cohort) -> bool:
    return repr(left) == repr(right)


@pytest.fixture
def plain(tmp_path: Path) -> Cohort:
    return read_table(save(tmp_path, PLAIN, "plain.csv"))


# ---- files and separators


@pytest.mark.parametrize(
    ("name", "separator", "decimal", "options"),
    [
        ("t.tsv", "\t", ".", {}),
        ("t.tab", "\t", ".", {}),
        ("t.csv", "\t", ".", {"separator": "tab"}),
        ("t.csv", ";", ".", {"separator": "semicolon"}),
        ("t.csv", ";", ",", {"separator": ";", "decimal": ","}),
        ("t.txt", "\t", ",", {"separator": "tab", "decimal": ","}),
        ("t.dat", "   ", ".", {"separator": "space"}),
    ],
)
def test_separators_and_decimal_commas_are_read_where_they_are_asked_for(
    tmp_path: Path, plain: Cohort, name: str, separator: str, decimal: str, options: dict[str, str]
) -> None:
    lines = [
        separator.join(cell if cell == "." else cell.replace(".", decimal) for cell in line.split(","))
        for line in PLAIN
    ]
    assert same(read_table(save(tmp_path, lines, name), **options), plain)


def test_a_decimal_comma_makes_a_point_no_part_of_a_number(tmp_path: Path) -> None:
    lines = ["ID;TIME;DV", "1;0;1.000,5", "1;1;5,5"]
    with pytest.raises(DataError, match=r"NPK-D10 t.csv, line 2, DV"):
        read_table(save(tmp_path, lines, "t.csv"), separator=";", decimal=",")
    with pytest.raises(ValueError, match="separator cannot be a comma"):
        read_table(tmp_path / "t.csv", separator=",", decimal=",")
    with pytest.raises(ValueError, match="separator is one of"):
        read_table(tmp_path / "t.csv", separator="|")


def test_a_gzipped_file_is_read_and_a_broken_one_refused(tmp_path: Path, plain: Cohort) -> None:
    file = tmp_path / "t.csv.gz"
    whole = gzip.compress(("\n".join(PLAIN) + "\n").encode())
    file.write_bytes(whole)
    assert same(read_table(file), plain)
    for content in (whole[:-9], b"no gzip"):
        file.write_bytes(content)
        with pytest.raises(DataError, match="NPK-D01"):
            read_table(file)


def test_excel_and_sas_files_are_read(tmp_path: Path, plain: Cohort) -> None:
    pytest.importorskip("openpyxl")
    sas = pytest.importorskip("pyreadstat")
    frame = to_frame(plain)
    frame.to_excel(tmp_path / "t.xlsx", index=False)
    assert same(read_table(tmp_path / "t.xlsx"), plain)
    sas.write_xport(frame.astype({"ID": float, "EVID": float, "MDV": float, "CMT": float}), str(tmp_path / "t.xpt"))
    assert same(read_table(tmp_path / "t.xpt"), plain)
    for name in ("t.xlsx", "t.xpt", "t.sas7bdat"):
        (tmp_path / name).write_bytes(b"nothing")
        with pytest.raises(DataError, match="NPK-D01"):
            read_table(tmp_path / name)


def test_the_names_of_adppk_are_known(tmp_path: Path) -> None:
    lines = [
        "STUDYID,USUBJID,AFRLT,NFRLT,EVID,MDV,AMT,DV,CMT,BLQFN,ALLOQ,AGE",
        "X,X-1,0,0,1,1,100,.,1,0,.,30",
        "X,X-1,1.1,1,0,0,.,5,2,0,.1,30",
        "X,X-1,24,24,0,0,.,.,2,1,.1,30",
    ]
    subject = read_table(save(tmp_path, lines), columns="adppk", lloq="ALLOQ", covariates="AGE")[0]
    assert (subject.id, subject.covariates) == ("X-1", {"AGE": 30.0})
    assert subject.times.tolist() == [1.1, 24.0]
    assert subject.values.tolist() == [5.0, 0.1]
    assert subject.censored.tolist() == [0, 1]


# ---- rows, codes, columns


@pytest.mark.parametrize(
    ("ignore", "left"),
    [
        ("FLAG == 1", [5, 4]),
        ("flag.EQ.1", [5, 4]),
        ("IGNORE=(FLAG.EQ.1, TIME > 2.5)", [5]),
        (["FLAG == 1", "DV < 4.5"], [5]),
        ("FLAG != 1 and TIME >= 3", [5, 3]),
        ("NOTE == 'bad day'", [5, 3]),
        ("NOTE != .", [5]),
        ("NOTE == .", [3, 4]),
    ],
)
def test_rows_are_left_out_by_conditions(tmp_path: Path, ignore: str | list[str], left: list[float]) -> None:
    lines = ["ID,TIME,DV,FLAG,NOTE", "1,0,5,0,.", "1,2,3,1,other", "1,3,4,0,bad day"]
    assert read_table(save(tmp_path, lines), ignore=ignore)[0].values.tolist() == left


def test_a_condition_that_is_none_or_of_no_column_is_refused(tmp_path: Path) -> None:
    file = save(tmp_path, PLAIN)
    with pytest.raises(ValueError, match=r"ignore: 'AMT' is no condition"):
        read_table(file, ignore="AMT")
    with pytest.raises(DataError, match="ignore: FLAG is not among the columns"):
        read_table(file, ignore="FLAG == 1")


@pytest.mark.parametrize("mark", ["@", "#", "C"])
def test_comment_rows_of_nonmem_are_left_out(tmp_path: Path, plain: Cohort, mark: str) -> None:
    first = {"@": "a note, of two cells", "#": "# a note", "C": "C,0,100,."}[mark]
    lines = [PLAIN[0], first, *PLAIN[1:3], first, *PLAIN[3:]]
    assert same(read_table(save(tmp_path, lines), ignore=mark), plain)


def test_comments_above_the_header_and_a_header_that_is_one(tmp_path: Path, plain: Cohort) -> None:
    assert same(read_table(save(tmp_path, ["# exported", *PLAIN]), ignore="#"), plain)
    assert same(read_table(save(tmp_path, ["# exported", "#" + PLAIN[0], *PLAIN[1:]]), ignore="#"), plain)


def test_codes_are_read_as_others_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = ["ID,TIME,AMT,SS,CMT,DV,SEX", "1,0,9,99,gut,.,m", "1,1,.,99.0,2,5,m", "1,2,.,0,2,9999,m", "2,1,.,0,2,7,f"]
    codes = {"SS": {99: 0}, "DV": {9999: "."}, "CMT": {"gut": 1}, "SEX": {"m": 0, "f": 1}}
    with caplog.at_level(logging.INFO, "neuralpk.tables"), pytest.warns(DataWarning, match="D5[34]"):
        cohort = read_table(save(tmp_path, lines), map=codes, covariates="SEX")
    assert "table.csv: SS 99 read as 0: 2 cells" in caplog.messages
    assert cohort[0].doses == (Dose(0.0, 9.0),)
    np.testing.assert_array_equal(cohort[0].values, [5.0, np.nan])
    assert [subject.covariates["SEX"] for subject in cohort] == [0.0, 1.0]
    text = "SS:99=0, DV:9999=., CMT:gut=1, SEX:m=0, SEX:f=1"
    with pytest.warns(DataWarning):
        assert same(read_table(save(tmp_path, lines), map=text, covariates=["SEX"]), cohort)
    with pytest.raises(ValueError, match="COLUMN:CODE=CODE"):
        read_table(save(tmp_path, lines), map="SS=0")
    with pytest.raises(DataError, match="map: XX is not among"):
        read_table(save(tmp_path, lines), map="XX:1=0")


def test_a_column_that_is_named_is_read_instead_of_ours(tmp_path: Path) -> None:
    lines = ["ID,TIME,DV,LIDV,weight", "1,0,1.6,5,70", "1,1,1.4,4,70"]
    cohort = read_table(save(tmp_path, lines), columns="DV=LIDV,WT=weight", covariates="WT")
    assert cohort[0].values.tolist() == [5.0, 4.0]
    assert cohort[0].covariates == {"WT": 70.0}


def test_covariates_are_those_that_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = ["ID,TIME,DV,wt,AGE,BLQ,LLOQ,NT", "1,0,5,70,30,0,.1,0", "1,1,4,70,30,0,.1,1"]
    file = save(tmp_path, lines)
    with caplog.at_level(logging.INFO, "neuralpk.tables"):
        assert read_table(file).covariate_names == ()
    assert caplog.messages == ["table.csv: covariates: none; columns not read: wt, AGE, BLQ, LLOQ, NT"]
    visits = save(tmp_path, ["ID,TIME,DV,OCC,DVID", "1,0,5,1,1", "1,1,4,2,1"])
    caplog.clear()
    with caplog.at_level(logging.INFO, "neuralpk.tables"):
        read_table(visits, occasion="OCC", endpoint="DVID")
    assert caplog.messages[0] == "table.csv: covariates: none"
    save(tmp_path, lines)
    assert read_table(file, covariates="WT, AGE").covariate_names == ("AGE", "WT")
    assert read_table(file, covariates="all").covariate_names == ("AGE", "NT", "wt")
    assert read_table(file, covariates=["BLQ"]).covariate_names == ("BLQ",)
    for name in ("HT", "EVID"):
        with pytest.raises(DataError, match=f"covariates: {name}"):
            read_table(file, covariates=[name])


# ---- clocks


def restarted(*rows: str, header: str = "ID,TIME,EVID,AMT,DV,OCC") -> list[str]:
    return [header, "1,0,1,100,.,1", "1,2.25,0,.,5,1", *rows, "2,0,1,10,.,1", "2,1,0,.,7,1"]


@pytest.mark.parametrize(
    "rows",
    [
        ("1,0,4,80,.,2", "1,0.5,0,.,6,2"),
        ("1,0,3,.,.,2", "1,0,1,80,.,2", "1,0.5,0,.,6,2"),
        ("1,2.25,3,.,.,1", "1,0,1,80,.,2", "1,0.5,0,.,6,2"),
        ("1,0,1,80,.,2", "1,0.5,0,.,6,2"),
    ],
    ids=["EVID 4", "EVID 3", "after EVID 3", "OCC"],
)
def test_a_clock_that_restarts_begins_a_new_part_of_the_subject(tmp_path: Path, rows: tuple[str, ...]) -> None:
    with pytest.warns(DataWarning, match=r"NPK-D17 .* 1 × the clock restarts .*ID 1.* TIME 0 is 3 on") as caught:
        cohort = read_table(save(tmp_path, restarted(*rows)))
    assert len(caught) == 1
    subject = cohort[0]
    assert subject.times.tolist() == [2.25, 3.5]
    given = [(dose.time, dose.amount) for dose in subject.doses if dose.amount]
    assert given == [(0.0, 100.0), (3.0, 80.0)]
    (reset,) = [dose for dose in subject.doses if dose.reset]
    assert 2.25 <= reset.time <= 3.0
    assert cohort[1].times.tolist() == [1.0]


def test_a_third_part_and_covariates_follow_the_clock(tmp_path: Path) -> None:
    lines = ["ID,TIME,DV,VISIT,WT", "1,0,5,a,70", "1,4,4,a,70", "1,1,6,b,71", "1,9,5,b,71", "1,0,7,c,72"]
    file = save(tmp_path, lines)
    with pytest.warns(DataWarning, match="2 × the clock restarts at EVID 3 or 4, VISIT"):
        subject = read_table(file, occasion="VISIT", covariates="WT")[0]
    assert subject.times.tolist() == [0.0, 4.0, 5.0, 13.0, 14.0]
    assert subject.covariates["WT"] == ((0.0, 70.0), (5.0, 71.0), (14.0, 72.0))
    assert [dose.time for dose in subject.doses] == [5.0, 14.0]
    with pytest.raises(DataError, match="NPK-D16"):
        read_table(file)


def test_times_of_day_are_hours_since_midnight_of_the_first_day(tmp_path: Path) -> None:
    lines = ["ID,DATE,TIME,AMT,DV", "1,2020-02-28,22:30,100,.", "1,2020-02-29,00:00:36,.,5", "1,2020-03-01,7:00,.,4"]
    wanted = [24.01, 55.0]
    with pytest.warns(DataWarning, match="3 × time of day with the day of DATE, read as h"):
        subject = read_table(save(tmp_path, lines))[0]
    np.testing.assert_allclose(subject.times, wanted, rtol=1e-14)
    assert subject.doses[0].time == 22.5
    day_first = [line.replace("2020-02-28", "28/02/20").replace("2020-02-29", "29.2.2020") for line in lines]
    day_first = [line.replace("2020-03-01", "1/3/2020") for line in day_first]
    numbered = [lines[0], *(f"1,{day},{line.split(',', 2)[2]}" for day, line in zip((3, 4, 5), lines[1:], strict=True))]
    whole = ["ID,TIME,AMT,DV", *(f"1,{d}T{rest}" for d, rest in (line[2:].split(",", 1) for line in lines[1:]))]
    named = [line.replace("DATE", "DAT1") for line in day_first]
    for other, options in ((day_first, {"dates": "dmy"}), (named, {}), (numbered, {}), (whole, {})):
        with pytest.warns(DataWarning, match="NPK-D18"):
            assert same(read_table(save(tmp_path, other), **options), Cohort((subject,)))
    stamps = pd.to_datetime(["2020-02-28 22:30:00", "2020-02-29 00:00:36", "2020-03-01 07:00:00"])
    frame = pd.DataFrame({"ID": 1, "TIME": stamps, "AMT": [100, 0, 0], "DV": [np.nan, 5, 4]})
    with pytest.warns(DataWarning, match="NPK-D18"):
        assert same(read_table(frame), Cohort((subject,)))


def test_a_time_of_day_in_another_unit(tmp_path: Path) -> None:
    from neuralpk.cohort import Units

    file = save(tmp_path, ["ID,TIME,DV", "1,8:30,5", "1,9:00,4"])
    with pytest.warns(DataWarning, match="read as min"):
        assert read_table(file, units=Units(time="min"))[0].times.tolist() == [510.0, 540.0]
    with pytest.raises(DataError, match="cannot be converted to the unit 'weeks'"):
        read_table(file, units=Units(time="weeks"))


# ---- events


def test_classic_codes_of_rxode_are_read_as_what_they_say(tmp_path: Path) -> None:
    lines = [
        "ID,TIME,EVID,AMT,II,DV", "1,0,101,100,.,.", "1,1,0,.,.,5", "1,2,201,50,.,.", "1,3,110,70,12,.",
        "1,4,10101,20,.,.", "1,5,0,.,.,6", "1,6.5,10101,-20,.,.", "1,7,0,.,.,3",
    ]  # fmt: skip
    with pytest.warns(DataWarning, match=r"5 × classic code \(101, 110, 201, 10101\)"):
        subject = read_table(save(tmp_path, lines))[0]
    assert [(d.time, d.amount, d.compartment, d.steady_state, d.rate) for d in subject.doses] == [
        (0.0, 100.0, 1, 0, 0.0), (2.0, 50.0, 2, 0, 0.0), (3.0, 70.0, 1, 1, 0.0), (4.0, 50.0, 1, 0, 20.0),
    ]  # fmt: skip
    assert subject.values.tolist() == [5.0, 6.0, 3.0]


def test_a_placebo_gives_nothing_and_resets_where_its_code_does(tmp_path: Path) -> None:
    lines = [
        "ID,TIME,EVID,AMT,II,SS,DV",
        "1,0,1,0,24,0,.",
        "1,1,0,.,.,.,5",
        "1,2,4,0,.,.,.",
        "1,3,1,0,24,1,.",
        "1,9,0,.,.,.,1",
    ]
    with pytest.warns(DataWarning, match="3 × dose with AMT 0"):
        subject = read_table(save(tmp_path, lines))[0]
    assert subject.doses == (Dose(2.0, reset=True, row=2), Dose(3.0, reset=True, row=3))
    np.testing.assert_array_equal(subject.values, [np.nan, 5.0, 1.0])


# ---- endpoints and limits


@pytest.mark.parametrize("column", ["YTYPE", "DVID", "CMT", "PARAMCD"])
def test_endpoints_are_numbered_by_the_column_that_is_named(
    tmp_path: Path, column: str, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = {"YTYPE": ("1", "5"), "CMT": ("2", "3")}.get(column, ("cp", "pca"))
    lines = [f"ID,TIME,AMT,DV,{column}", "1,0,100,.,1", f"1,1,.,5,{first}", f"1,1,.,50,{second}", f"1,2,.,4,{first}"]
    with caplog.at_level(logging.INFO, "neuralpk.tables"):
        subject = read_table(save(tmp_path, lines), endpoint=column.lower())[0]
    assert subject.endpoints.tolist() == [1, 2, 1]
    assert subject.compartments.tolist() == [0, 0, 0]
    assert f"table.csv: endpoints by {column.lower()}: 1 is {first}, 2 is {second}" in caplog.messages
    with pytest.raises(DataError, match="NPK-D19"):
        read_table(save(tmp_path, [*lines, "1,3,.,4,."]), endpoint=column)


def test_values_under_several_compartments_are_suggested_as_endpoints_and_not_taken(tmp_path: Path) -> None:
    lines = ["ID,TIME,AMT,DV,CMT", "1,0,9,.,1", "1,1,.,5,2", "1,1,.,50,3"]
    with pytest.warns(DataWarning, match=r"NPK-D60 .*values under CMT 2 \(1\), CMT 3 \(1\)"):
        subject = read_table(save(tmp_path, lines))[0]
    assert subject.endpoints.tolist() == [1, 1]


@pytest.mark.parametrize("lloq", ["LLOQ", "2", 2.0])
def test_the_limit_comes_from_a_column_or_a_number_that_is_named(
    tmp_path: Path, lloq: str | float, caplog: pytest.LogCaptureFixture
) -> None:
    lines = ["ID,TIME,DV,CENS,LLOQ", "1,0,5,0,2", "1,1,0,1,2", "1,2,.,1,2", "1,3,1,1,2"]
    file = save(tmp_path, lines)
    with caplog.at_level(logging.INFO, "neuralpk.tables"):
        subject = read_table(file, lloq=lloq)[0]
    assert subject.values.tolist() == [5.0, 2.0, 2.0, 2.0]
    assert subject.censored.tolist() == [0, 1, 1, 1]
    assert f"table.csv: limit of quantification by {lloq}: 3 values with CENS 1" in caplog.messages
    with pytest.raises(DataError, match="column LLOQ may hold it: lloq=LLOQ"):
        read_table(file)


def test_a_flag_of_censoring_is_read_where_it_is_named(tmp_path: Path) -> None:
    lines = ["ID,TIME,DV,BLQFL", "1,0,5,N", "1,1,2,Y"]
    with pytest.warns(DataWarning, match=r"columns=CENS=BLQFL, map=BLQFL:Y=1"):
        read_table(save(tmp_path, lines))
    subject = read_table(save(tmp_path, lines), columns="CENS=BLQFL", map="BLQFL:Y=1,BLQFL:N=0")[0]
    assert subject.censored.tolist() == [0, 1]


# ---- real tables


REAL = {
    "theophylline.csv": ({}, 12, 132),
    "indomethacin.csv": ({}, 6, 66),
    "warfarin_pkpd.csv": ({"covariates": "WT,AGE"}, 32, 483),
    "nlmixr2_nmtest.csv": ({"columns": "DV=cp", "ignore": "rate < 0"}, 54, 7074),
    "nlmixr2test/Oral_1CPT.csv": ({"map": "SS:99=0"}, 120, 6947),
    "nlmixr2test/Oral_1CPTMM.csv": ({}, 120, 6959),
    "nlmixr2test/sparse_sets_1_60.csv": ({"ignore": "SET != 1"}, 120, 480),
    "dcm/simulation-nhanes-chelle_additive.csv": (
        {"columns": "AMT=Dose,RATE=Rate,DUR=Duration", "covariates": "FFM,Age", "sort": True}, 756, 2268,
    ),
    "propofol/dataframe.csv": ({"columns": "DV=CP", "covariates": "AGE,WGT"}, 1031, 15433),
}  # fmt: skip


@pytest.mark.skipif(not DATA.exists(), reason="the tables of public studies lie beside the repository, not in it")
@pytest.mark.filterwarnings("ignore::neuralpk.tables.DataWarning")
@pytest.mark.parametrize("name", REAL)
def test_tables_of_public_studies_are_read_as_they_are(name: str) -> None:
    options, subjects, values = REAL[name]
    cohort = read_table(DATA / name, **options)
    assert (len(cohort), sum(int(subject.observed.sum()) for subject in cohort)) == (subjects, values)
    assert all(isinstance(subject, Subject) for subject in cohort)


# ---- what people write into cells and rows


def test_a_limit_as_text_is_censored(tmp_path: Path) -> None:
    stated = [
        "ID,TIME,AMT,DV,CENS",
        "1,0,100,.,.",
        "1,1,.,5,0",
        "1,2,.,0.5,1",
        "1,3,.,50,-1",
        "2,0,100,.,.",
        "2,1,.,6,0",
    ]
    written = ["ID,TIME,AMT,DV", "1,0,100,.", "1,1,.,5", "1,2,.,<0.5", "1,3,.,> 50", "2,0,100,.", "2,1,.,6"]
    with pytest.warns(DataWarning, match="NPK-D64 t.csv: DV has 1 × <NUMBER, 1 × >NUMBER"):
        assert same(read_table(save(tmp_path, written, "t.csv")), read_table(save(tmp_path, stated, "u.csv")))
    word = [line.replace("<0.5", "BLQ") for line in written]
    with pytest.warns(DataWarning, match="NPK-D64"):
        read = read_table(save(tmp_path, word, "w.csv"), map="DV:BLQ=<0.5")
    assert same(read, read_table(tmp_path / "u.csv"))
    comma = [line.replace(",", ";").replace("0.5", "0,5") for line in written]
    with pytest.warns(DataWarning, match="NPK-D64"):
        read = read_table(save(tmp_path, comma, "c.csv"), separator=";", decimal=",")
    assert same(read, read_table(tmp_path / "u.csv"))


@pytest.mark.parametrize("cell", ["<", "<LLOQ", "< .", "<<0.5", "=0.5"])
def test_other_texts_in_dv_are_refused(tmp_path: Path, cell: str) -> None:
    with pytest.raises(DataError, match="NPK-D10"):
        read_table(save(tmp_path, [*PLAIN, f"2,2,.,{cell}"]))


def test_a_limit_against_its_own_code_is_refused(tmp_path: Path) -> None:
    lines = ["ID,TIME,AMT,DV,CENS", "1,0,100,.,.", "1,1,.,5,0", "1,2,.,<0.5,-1"]
    with pytest.raises(DataError, match=r"NPK-D10 table\.csv, line 4, DV"):
        read_table(save(tmp_path, lines))


def test_row_names_of_r_and_empty_rows_are_left_out(tmp_path: Path, plain: Cohort) -> None:
    named = [f'"{k or ""}",{line}' for k, line in enumerate(PLAIN)]
    with pytest.warns(DataWarning, match="NPK-D05 t.csv: column 1 has no name"):
        assert same(read_table(save(tmp_path, named, "t.csv")), plain)
    assert same(read_table(save(tmp_path, [*PLAIN[:4], ",,,", *PLAIN[4:], " , ,,", ","], "e.csv")), plain)
    frame = pd.read_csv(save(tmp_path, [*PLAIN[:4], ",,,", *PLAIN[4:], ",,,"], "f.csv"), dtype=object, na_values=".")
    assert frame.isna().all(axis=1).sum() == 2 and same(read_table(frame), plain)


def test_tables_that_nonmem_writes_are_read(tmp_path: Path, plain: Cohort) -> None:
    rows = ["1 0 100 0 1", "1 1.5 0 5.25 0", "1 2 0 4 0", "2 0 100 0 1", "2 1 0 6 0"]
    header = " ID          TIME        AMT         DV          MDV"
    lines = ["TABLE NO.  1", header, *rows[:3], "TABLE NO.  1", header, *rows[3:]]
    read = read_table(save(tmp_path, lines, "sdtab1.tab"), separator="space")
    assert same(read, plain)
    with pytest.raises(DataError, match="NPK-D10"):  # a header that is repeated without a title
        read_table(save(tmp_path, [PLAIN[0], *PLAIN], "t.csv"))


def test_clock_times_with_halves_of_the_day_and_of_the_zone_z(tmp_path: Path) -> None:
    plain = read_table(save(tmp_path, ["ID,TIME,AMT,DV", "1,0.5,9,.", "1,12.5,.,5", "1,20,.,4", "1,32,.,3"], "t.csv"))
    halves = ["2021-03-15 12:30 AM", "2021-03-15 12:30 p.m.", "2021-03-15 8:00 PM", "2021-03-16 8:00AM"]
    zone = ["2021-03-15T00:30:00Z", "2021-03-15T12:30:00Z", "2021-03-15T20:00:00Z", "2021-03-16T08:00:00Z"]
    for times in (halves, zone):
        cells = zip(times, ("9,.", ".,5", ".,4", ".,3"), strict=True)
        lines = ["ID,TIME,AMT,DV", *(f"1,{time},{rest}" for time, rest in cells)]
        with pytest.warns(DataWarning, match="4 × time of day"):
            assert same(read_table(save(tmp_path, lines, "t.csv")), plain)
    with pytest.raises(DataError, match=r"NPK-D18 t\.csv, line 3"):
        read_table(save(tmp_path, ["ID,TIME,AMT,DV", "1,8:00 AM,9,.", "1,13:00 PM,.,5"], "t.csv"))


def test_a_day_that_cannot_be_read_is_one_fault(tmp_path: Path) -> None:
    lines = ["ID,DATE,TIME,AMT,DV", "1,15/03/2021,8:00,9,.", "1,15/03/2021,9:00,.,5"]
    with pytest.raises(DataError, match="pass dates=") as raised:
        read_table(save(tmp_path, lines))
    assert [finding.rule for finding in raised.value.findings] == ["NPK-D18", "NPK-D18"]
    with pytest.warns(DataWarning, match="2 × time of day"):
        assert read_table(save(tmp_path, lines), dates="dmy")[0].times.tolist() == [9.0]


def test_a_row_of_units_is_one_fault_with_its_cure(tmp_path: Path, plain: Cohort) -> None:
    file = save(tmp_path, [PLAIN[0], ",h,mg,mg/L", *PLAIN[1:]])
    with pytest.raises(DataError, match="ignore='TIME == h'") as raised:
        read_table(file)
    assert len(raised.value.findings) == 1
    assert same(read_table(file, ignore="TIME == h"), plain)


@pytest.mark.parametrize("header", ["SUBJ;T;CONC", "SUBJ\tT\tCONC", "SUBJ TIME CONC"])
def test_the_separator_of_a_header_is_named(tmp_path: Path, header: str) -> None:
    with pytest.raises(DataError, match="NPK-D09"):
        read_table(save(tmp_path, [header, "1;0;5"]))


def test_a_time_after_the_dose_is_named_where_it_restarts(tmp_path: Path, plain: Cohort) -> None:
    lines = ["ID,TAD,AMT,DV", "1,0,100,.", "1,1.5,.,5.25", "1,2,.,4", "2,0,100,.", "2,1,.,6"]
    assert same(read_table(save(tmp_path, lines), columns="TIME=TAD"), plain)
    with pytest.raises(DataError, match="perhaps columns=TIME=TAD"):
        read_table(save(tmp_path, lines))
    with pytest.raises(DataError, match=r"NPK-D16 .* a time after the dose \(TAD\) is no TIME"):
        read_table(save(tmp_path, [*lines, "2,0,100,.", "2,1,.,6"]), columns="TIME=TAD")


def test_sort_puts_the_rows_of_a_subject_together(tmp_path: Path, plain: Cohort) -> None:
    file = save(tmp_path, [PLAIN[k] for k in (0, 1, 4, 2, 3, 5)])
    with pytest.raises(DataError, match="NPK-D14"):
        read_table(file)
    with pytest.warns(DataWarning, match="moved to the others of their subject"):
        assert same(read_table(file, sort=True), plain)


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("ID,TIME,AMT,LIDV", "perhaps columns=DV=LIDV"),
        ("Subject,TIME,AMT,DV", "perhaps columns=ID=Subject"),
        ("ID,TIME (h),AMT,DV", r"perhaps columns=TIME=TIME \(h\)"),
        ("ID,AMT,T0.5,T1,T2", "T0.5, T1, T2 may be samples side by side"),
        ("Study 12", "the first line is the header"),
    ],
)
def test_columns_that_may_be_meant_are_suggested(tmp_path: Path, header: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        read_table(save(tmp_path, [header, "1" + ",1" * header.count(",")]))


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["ID,TIME,AMT,DURATION,DV", "1,0,9,2,.", "1,1,.,.,5"], "no column DUR; DURATION is not read"),
        (["ID,TIME,DOSE,DV", "1,0,9,4", "1,1,9,5"], "no column AMT; DOSE is not read"),
        (["ID,TIME,AMT,DV", "1,0,9,1", "1,1,9,5", "1,2,9,4"], "which gives 3 doses"),
    ],
)
def test_a_dose_that_is_read_otherwise_than_meant_is_said(tmp_path: Path, lines: list[str], said: str) -> None:
    with pytest.warns(DataWarning, match=f"NPK-D63 table.csv: .*{said}"):
        read_table(save(tmp_path, lines))


@pytest.mark.parametrize(("column", "rule"), [("EVID", "NPK-D20"), ("MDV", "NPK-D12"), ("CENS", "NPK-D12")])
def test_words_in_codes_name_the_map_that_reads_them(tmp_path: Path, column: str, rule: str) -> None:
    file = save(tmp_path, [f"ID,TIME,AMT,DV,{column}", "1,0,9,.,Dose", "1,1,.,5,Obs"])
    with pytest.raises(DataError, match=f"{rule} .*pass map="):
        read_table(file)
