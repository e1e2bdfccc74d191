"""A Parquet file in parts: the result of the whole table, on from where it stopped, and a fault stays in its part."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from neuralpk import Cohort, SimulatedPKDataModule, read_model
from neuralpk.cli import main
from neuralpk.estimates_in_parts import PARTS, WARNINGS, estimate_in_parts
from neuralpk.individual_estimates import TABLES
from neuralpk.saved_model import SavedModel, SavedPopulation
from neuralpk.scaling import Scaling
from neuralpk.tables import DataError, ParquetParts, TablePart, read_table

POPULATION = """
dynamics: {compartments: 1}
typical: {CL: 5.0, V1: 20.0}
omega: {CL: 0.4, V1: 0.25}
error: additive
error_sd: {a: 0.1}
"""
PATIENTS = 7
LOCKING = """
import os, sys
from filelock import FileLock, Timeout
try:
    FileLock("out/parts.lock", timeout=0).acquire()
except Timeout:
    sys.exit(3)
os.kill(os.getpid(), 9)
"""


def table() -> pd.DataFrame:
    """Seven patients with a dose and three samples, in rows 1 to 28."""
    generator = np.random.default_rng(1)
    rows = []
    for name in range(1, PATIENTS + 1):
        clearance = 5 * np.exp(0.4 * generator.normal())
        rows.append((f"P{name}", 0.0, 1, 100.0, np.nan, 0))
        for time in (1.0, 4.0, 8.0):
            value = 5 * np.exp(-clearance / 20 * time) + 0.1 * generator.normal()
            rows.append((f"P{name}", time, 0, np.nan, value, 0))
    return pd.DataFrame(rows, columns=["ID", "TIME", "EVID", "AMT", "DV", "CENS"])


@pytest.fixture(autouse=True)
def _in_a_folder_with_a_model(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pop.yaml").write_text(POPULATION)


def write(frame: pd.DataFrame, rows: int = 5) -> Path:
    """As Parquet, with so many rows in a group: groups end in the middle of patients."""
    frame.to_parquet("table.parquet", row_group_size=rows)
    return Path("table.parquet")


def estimated(out: str, subjects: int = 3, **options):
    return estimate_in_parts(read_model("pop.yaml"), "table.parquet", out, subjects, 1, draws=10, **options)


def read(out: str | Path) -> dict[str, pd.DataFrame]:
    return {name: pd.read_csv(Path(out) / name) for name in TABLES}


def same(one: str | Path, other: str | Path) -> bool:
    return all((Path(one) / name).read_bytes() == (Path(other) / name).read_bytes() for name in TABLES)


@pytest.mark.parametrize(("subjects", "rows"), [(1, 5), (3, 100), (7, 1), (50, 5)])
def test_parts_hold_every_row_once_and_whole_patients(subjects, rows):
    frame = table()
    parts = ParquetParts(write(frame, rows), subjects, {})
    found = list(parts)
    assert len(found) == len(parts) == -(-PATIENTS // subjects)
    assert parts.subjects == PATIENTS
    pd.testing.assert_frame_equal(pd.concat([one.rows for one in found], ignore_index=True), frame)
    assert [one.first_row for one in found] == [4 * one.first_subject for one in found]
    assert all(len(set(one.rows["ID"])) <= subjects for one in found)


@pytest.mark.parametrize("subjects", [1, 3])
def test_the_estimates_are_those_of_the_whole_table(subjects):
    write(table())
    main(["estimate", "--model", "pop.yaml", "--table", "table.parquet", "--draws", "10", "--out", "whole"])
    found = estimated("parts", subjects)
    assert (found.subjects, found.kept) == (PATIENTS, 0)
    whole, parts = read("whole"), read("parts")
    for name in TABLES:
        pd.testing.assert_frame_equal(parts[name], whole[name], rtol=1e-9)
    assert Path("parts/individuals.png").is_file()
    assert not Path("parts", PARTS).exists()


def test_the_magnitudes_of_a_population_file_are_those_of_all_patients():
    text = POPULATION.replace("additive", "proportional").replace("{a: 0.1}", "{b: 0.2}")
    Path("pop.yaml").write_text(text)
    frame = table()
    large = frame["ID"].isin(["P1", "P2", "P3"])
    frame.loc[large, ["AMT", "DV"]] *= 1e4
    write(frame)
    saved = read_model("pop.yaml")
    whole = saved.estimate(saved.read_table("table.parquet"), draws=10)
    whole.write("whole")
    estimated("parts")
    for name, one in read("whole").items():
        pd.testing.assert_frame_equal(read("parts")[name], one, rtol=1e-9)
    first = saved.with_magnitudes_of([saved.read_table(frame[large])])
    other = first.estimate(saved.read_table("table.parquet"), draws=10)
    assert np.abs(other.ipred / whole.ipred - 1).max() > 1e-3  # those of the first part change the estimates


def test_magnitudes_of_parts_are_those_of_the_whole_cohort():
    cohort = SimulatedPKDataModule(subjects=9, lloq=0.05, seed=3).part("train")
    second = dataclasses.replace(cohort[8], endpoints=np.full(len(cohort[8].times), 3))
    cohort = Cohort((*cohort[:8], second))
    parts = Scaling.of_parts(cohort[a:b] for a, b in ((0, 2), (2, 8), (8, 9)))
    assert parts == Scaling.of(cohort)._replace(covariates={})
    assert len(parts.value) == 3 and parts.value[1] == 1.0 and parts.subjects == 9


def stopping_after(count: int):
    def progress(numbers: Sequence[int]) -> Iterable[int]:
        for number in numbers:
            if number == count:
                raise KeyboardInterrupt
            yield number

    return progress


def test_it_goes_on_where_it_stopped_and_estimates_again_what_has_changed():
    write(table())
    estimated("straight")
    with pytest.raises(KeyboardInterrupt):
        estimated("stopped", progress=stopping_after(2))
    own = Path("stopped", PARTS, "notes.txt")
    own.write_text("of somebody else")
    assert estimated("stopped").kept == 2
    assert list(own.parent.iterdir()) == [own]
    assert same("stopped", "straight")

    with pytest.raises(KeyboardInterrupt):
        estimated("changed", progress=stopping_after(2))
    frame = table()
    frame.loc[1, "DV"] *= 1.5  # of P1, above the median of all values before and after: the magnitudes stay
    write(frame)
    assert estimated("changed").kept == 1
    estimated("anew")
    assert same("changed", "anew")
    assert not same("changed", "straight")

    with pytest.raises(KeyboardInterrupt):
        estimated("seed", progress=stopping_after(2))
    assert estimated("seed", seed=3).kept == 0


def test_a_second_command_in_one_folder_is_refused_and_the_lock_of_a_dead_one_is_not():
    write(table())
    command, ended = [sys.executable, "-c", LOCKING], list[int]()

    def progress(numbers: Sequence[int]) -> Iterable[int]:
        with pytest.raises(ValueError, match="another command is writing parts into out: wait until it has ended"):
            estimated("out")
        ended.append(subprocess.run(command, timeout=60).returncode)
        return numbers

    estimated("out", progress=progress)
    ended.append(subprocess.run(command, timeout=60).returncode)
    assert ended == [3, -9]  # refused, killed with the lock
    assert estimated("out").subjects == PATIENTS
    with pytest.raises(KeyboardInterrupt):
        estimated("out", progress=stopping_after(1))
    assert estimated("out").subjects == PATIENTS


def test_a_third_command_does_not_begin_beside_a_second_that_opened_the_lock_during_the_first():
    fcntl = pytest.importorskip("fcntl")
    write(table())
    second = -1

    def progress(numbers: Sequence[int]) -> Iterable[int]:
        nonlocal second
        second = os.open("out/parts.lock", os.O_RDWR)
        return numbers

    estimated("out", progress=progress)
    with os.fdopen(second):
        fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with pytest.raises(ValueError, match="another command is writing parts into out"):
            estimated("out")


def test_a_fault_stays_in_its_part_and_is_named_by_its_row(monkeypatch):
    frame = table()
    frame.loc[17, "DV"] = np.inf
    frame.loc[26, "TIME"] = np.nan
    write(frame)
    named = r"(?s:.)*table.parquet, row 18, DV(?s:.)*row 27, TIME"
    with pytest.raises(ValueError, match=r"2 of 3 parts cannot be read" + named):
        estimated("out")
    assert not Path("out", PARTS).exists()  # the magnitudes of the others would not be those of the mended table
    monkeypatch.setattr(SavedPopulation, "with_magnitudes_of", SavedModel.with_magnitudes_of)  # as of a checkpoint
    with pytest.raises(ValueError, match=r"2 of 3 parts cannot be estimated" + named):
        estimated("out")
    assert not Path("out/records.csv").exists()
    write(table())
    assert estimated("out").kept == 1


def test_a_patient_whose_rows_lie_in_two_parts_is_refused():
    frame = pd.concat([table(), table().iloc[4:8]])
    with pytest.raises(DataError, match=r"NPK-D14 table\.parquet, row 29, ID: rows from 29 on, after rows from 5 on"):
        ParquetParts(write(frame), 2, {})


def test_what_needs_the_whole_table_is_refused():
    path = write(table().assign(WT=70.0))
    with pytest.raises(ValueError, match="impute WT=median is of a whole table"):
        ParquetParts(path, 2, {"covariates": "WT", "impute": "WT=median"})
    with pytest.raises(ValueError, match="endpoint=CENS numbers the endpoints of a whole table"):
        ParquetParts(path, 2, {"endpoint": "CENS"})
    with pytest.raises(ValueError, match=r"table.csv is read in parts, which only a Parquet file can be"):
        ParquetParts("table.csv", 2, {})


def test_censored_values_in_one_part_only_and_its_warnings():
    frame = table()
    frame.loc[3, "CENS"] = 1
    write(pd.concat([frame.iloc[:20], frame.iloc[19:]]))  # a replicate
    found = estimated("out")
    records = read("out")["records.csv"]
    assert records["CENS"].tolist() == [0, 0, 1, *[0] * (len(records) - 3)]
    assert records["LLOQ"].notna().tolist() == (records["CENS"] == 1).tolist()
    (said,) = found.warnings
    assert said.startswith("rows 13 to 25: NPK-D51 table.parquet: 1 × replicate")
    assert Path("out", WARNINGS).read_text() == said + "\n"


def test_a_part_of_which_nobody_is_left():
    write(table())
    found = estimated("out", ignore="ID == P1, ID == P2, ID == P3")
    assert found.subjects == 4
    assert read("out")["individuals.csv"]["ID"].tolist() == ["P4", "P5", "P6", "P7"]
    with pytest.raises(ValueError, match="no patient is left"):
        estimated("nobody", ignore="CENS == 0")


def test_a_part_is_read_as_a_table():
    part = TablePart("whole.parquet", 4, 1, table().iloc[4:8])
    assert read_table(part).ids == ("P2",)


def test_two_processes_by_the_command_line(capsys):
    write(table())
    estimated("one")
    arguments = ["--model", "pop.yaml", "--table", "table.parquet", "--draws", "10"]
    main(["reconstruct", *arguments, "--part_size", "3", "--processes", "2", "--out", "two"])
    assert "7 subjects in 3 parts: two/curves.csv" in capsys.readouterr().out
    assert same("one", "two")
    with pytest.raises(SystemExit):
        main(["estimate", *arguments, "--processes", "2", "--out", "three"])
    assert "--processes estimates parts of a table side by side: give --part_size" in capsys.readouterr().err
