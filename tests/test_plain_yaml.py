"""YAML as people mean it: no key twice, no aliases, and numbers as they are written everywhere else."""

from __future__ import annotations

import math
import time
from pathlib import Path

import pytest

from neuralpk.cli import main
from neuralpk.cli.merged_configuration import read_yaml, typed
from neuralpk.plain_yaml import plain_yaml_text, read_yaml_text
from neuralpk.published_population import read_population

POPULATION = """dynamics: {compartments: 1}
typical: {CL: 3, V1: 30}
cv: {CL: 30, V1: 20}
error: proportional
error_sd: {b: 0.2}
"""


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3), ("-7", -7), ("+5", 5), ("0", 0), ("0x1F", 31), ("0o17", 15),
        ("0.5", 0.5), (".5", 0.5), ("5.", 5.0), ("1e-3", 1e-3), ("1.5E+2", 150.0), ("-.inf", -math.inf),
        ("true", True), ("False", False), ("null", None), ("~", None), ("", None),
        ("010", "010"), ("1:30", "1:30"), ("1_000", "1_000"), ("yes", "yes"), ("NO", "NO"), ("on", "on"),
        ("2026-01-31", "2026-01-31"), ("'3'", "3"), ("[1, 2.5, a]", [1, 2.5, "a"]), ("{NO: 1}", {"NO": 1}),
    ],
)  # fmt: skip
def test_plain_values(text: str, value: object) -> None:
    found = read_yaml_text(text)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb:\n  c: 2\n  d: 3\n  c: 4", "line 5: c stands there twice"),
        ("a: 1\na: 1", "line 2: a stands there twice"),
        ("{1: a, 1: b}", "line 1: 1 stands there twice"),
        ("a: &x 1\nb: *x", r"line 2: the alias \*x"),
        ("a: {b: 1", "line 1 is not YAML"),
        ("!!python/object/apply:os.system [ls]", "line 1 is not YAML"),
        ("!!float 1:30", "is not YAML"),
        ("!!map x", "is not YAML"),
        ("[" * 20_000, "nested too deeply"),
        ("x" * 100_000, "100,000 characters"),
    ],
)
def test_what_is_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read_yaml_text(text)


def test_what_is_written_is_read() -> None:
    shared = [1.0e-7, 2, "010", "no", "1:30"]
    content = {"a": shared, "b": shared, "c": {"d": None, "e": True, "f": "text: with a colon"}}
    assert read_yaml_text(plain_yaml_text(content)) == content


def test_a_bomb_of_aliases_is_refused_at_once(tmp_path: Path, capsys) -> None:
    lines = ["a: &a [x,x,x,x,x,x,x,x,x]"]
    lines += [f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)]
    path = tmp_path / "bomb.yaml"
    path.write_text("\n".join(lines))
    began = time.perf_counter()
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "--config", str(path)])
    assert stopped.value.code == 2 and time.perf_counter() - began < 5
    assert "line 2: the alias *a is not read" in capsys.readouterr().err
    with pytest.raises(ValueError, match="alias"):
        read_yaml(path)
    with pytest.raises(ValueError, match="alias"):
        read_population(path)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("{CL: 3, V1: 30}", "{CL: 3, V1: 30, CL: 300}", "line 2: CL stands there twice"),
        ("error: prop", "typical: {CL: 300, V1: 3}\nerror: prop", "line 4: typical stands there twice"),
        ("V1: 30}", "V1: 010}", "typical.V1 must be a finite number, not '010'"),
        ("V1: 30}", "V1: 1:30}", "typical.V1 must be a finite number, not '1:30'"),
        ("V1: 30}", "V1: 1_000}", "typical.V1 must be a finite number"),
        ("typical: {CL: 3, V1: 30}", "typical:\n  <<: {CL: 3}\n  V1: 30", "<<"),
        ("b: 0.2", "b: 20", "error_sd.b is a share"),
    ],
)
def test_a_population_file_is_read_as_it_is_meant(old: str, new: str, said: str, tmp_path: Path) -> None:
    assert old in POPULATION
    path = tmp_path / "pop.yaml"
    path.write_text(POPULATION.replace(old, new))
    with pytest.raises(ValueError) as error:
        read_population(path)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("hint", "value", "found"),
    [(int, "010", 10), (list[int], "[010]", [10]), (float, "1e-3", 1e-3), (bool, "yes", True), (str, "010", "010")],
)
def test_values_of_the_command_line(hint: type, value: str, found: object) -> None:
    assert typed(hint, value) == (found, True)


@pytest.mark.parametrize(("hint", "value"), [(float, "1:30"), (int, "1_000"), (list[float], ["1:30"])])
def test_old_numbers_of_the_command_line_are_refused(hint: type, value: object) -> None:
    assert typed(hint, value)[1] is False
