"""The README's Python runs as it stands, and its commands and files exist."""

import re
from pathlib import Path

import pytest

from neuralpk.cli import PRESETS

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
DOCS = README.parent / "docs"
PAGES = sorted([*DOCS.glob("*.md"), *DOCS.glob("how_to/*.md")])


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.parametrize("block", BLOCKS)
def test_python_blocks_run(block, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {"__name__": "readme"})
    assert "IPRED" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_of_the_documentation_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "docs"}  # a block goes on from the one before
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        exec(compile(block, page.name, "exec"), names)


def test_presets_named_are_those_that_exist():
    row = next(line for line in README.read_text().splitlines() if "presets `" in line)
    assert set(re.findall(r"`(\w+)`", row.split("presets")[1])) == set(PRESETS)


def test_files_named_exist():
    for target in re.findall(r"\]\((docs/[^)#]+)\)", README.read_text()):
        assert (README.parent / target).exists(), target
    for page in set(re.findall(r"how_to/\w+\.md", (README.parent / "mkdocs.yml").read_text())):
        assert (DOCS / page).exists(), page
    for script in set(re.findall(r"scripts/\w+\.py", README.read_text())):
        assert (README.parent / script).exists(), script
