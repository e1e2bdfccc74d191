"""The README's Python runs as it stands, and its commands and files exist."""

import logging
import re
from pathlib import Path

import pytest

from neuralpk.cli import PRESETS

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
DOCS = README.parent / "docs"
PAGES = sorted([*DOCS.glob("*.md"), *DOCS.glob("how_to/*.md"), *DOCS.glob("start/*.md")])
BLOCK = re.compile(r"```python\n(.*?)```(?:\n\n```text\n(.*?)```)?", re.DOTALL)
NUMBER = re.compile(r"(?<![\w.])[-+−]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")
TOLERANCE = 0.02


def same_output(shown: str, printed: str) -> bool:
    """Whether a page shows what its code prints: the same words, and numbers that differ by 2 % at most, since the last
    digits of a fit depend on the processor."""
    words = [NUMBER.sub("#", text).split() for text in (shown, printed)]
    numbers = [[float(n.replace("−", "-")) for n in NUMBER.findall(text)] for text in (shown, printed)]
    return words[0] == words[1] and numbers[0] == pytest.approx(numbers[1], rel=TOLERANCE)


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("CL 4.10", "CL  4.11\n", True),
        ("CL 4.10", "CL 4.50", False),
        ("CL 4.10", "V1 4.10", False),
        ("1.3·x − 0.898·x", "1.3·x − 0.105·x", False),
    ],
)
def test_a_page_that_shows_something_else_is_found(shown: str, printed: str, same: bool) -> None:
    assert same_output(shown, printed) == same


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.parametrize("block", BLOCKS)
def test_python_blocks_run(block, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {"__name__": "readme"})
    assert "IPRED" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_of_the_documentation_run_and_print_what_is_shown(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    # a command that ran in this process before prints there how tables are read
    monkeypatch.setattr(logging.getLogger("neuralpk.tables"), "handlers", [])
    names = {"__name__": "docs"}  # a block goes on from the one before
    for block, shown in BLOCK.findall(page.read_text()):
        capsys.readouterr()
        exec(compile(block, page.name, "exec"), names)
        printed = capsys.readouterr().out
        assert not shown or same_output(shown, printed), f"{page.name} shows\n{shown}\nand its code prints\n{printed}"


def test_presets_named_are_those_that_exist():
    row = next(line for line in README.read_text().splitlines() if "presets `" in line)
    assert set(re.findall(r"`(\w+)`", row.split("presets")[1])) == set(PRESETS)


def test_files_named_exist():
    for target in re.findall(r"\]\((docs/[^)#]+)\)", README.read_text()):
        assert (README.parent / target).exists(), target
    for page in set(re.findall(r"[\w/]+\.md$", (README.parent / "mkdocs.yml").read_text(), re.MULTILINE)):
        assert (DOCS / page).exists(), page
    for script in set(re.findall(r"scripts/\w+\.py", README.read_text())):
        assert (README.parent / script).exists(), script
