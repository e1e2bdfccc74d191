"""The floors of the house: a unit imports only what stands below it."""

import ast
from itertools import pairwise
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "neuralpk"

# units of one floor do not know each other; those of the first four build on each other in this order
FLOORS = (
    {"origin", "randomness", "rows"},
    {"cohort"},
    {"scaling", "batch"},
    {"dynamics", "residual_error"},
    {"tables"},
    {"datasets", "encoders", "solve"},
    {"simulate", "models"},
    {"inference", "published", "pretraining"},
    {"objectives", "reconstruction", "symbolic"},
    {"prediction"},
    {"tasks", "datamodules", "evaluate"},
    {"callbacks"},
    {"cli"},
    {"__main__"},
)
FLOOR = {unit: height for height, units in enumerate(FLOORS) for unit in units}
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def unit_of(module: str) -> str:
    """Of ``neuralpk.solve.mesh``: ``solve``."""
    return module.split(".")[1]


def imports(path: Path) -> set[str]:
    """Full names of the modules that a file imports anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno}: imports are written in full"
            # `from neuralpk import randomness` names the unit only in its list
            names = [f"{node.module}.{name.name}" for name in node.names]
            found |= set(names) if node.module == "neuralpk" else {node.module}
    return found


def importing_file(path: Path) -> tuple[str, set[str]]:
    """The unit of a file and everything it imports."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py"), imports(path)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_unit_imports_only_from_the_floors_below_it(path):
    unit, imported = importing_file(path)
    assert unit in FLOOR, f"{unit} has no floor yet: give it one above all that it imports"
    used = {unit_of(name) for name in imported if name.startswith("neuralpk.")} - {unit}
    above = {name for name in used if FLOOR[name] >= FLOOR[unit]}
    assert not above, f"{unit} imports {sorted(above)}"


def test_there_are_files_to_look_at():
    assert {importing_file(path)[0] for path in FILES} >= {"cohort", "solve", "models", "tasks"}


@pytest.mark.parametrize("library", ["torchdiffeq", "torchsde"])
def test_only_the_solver_knows_the_libraries_that_integrate(library):
    users = {importing_file(path)[0] for path in FILES if library in {n.split(".")[0] for n in imports(path)}}
    assert users <= {"solve"}


def test_only_the_tables_know_pandas():
    users = {importing_file(path)[0] for path in FILES if "pandas" in {n.split(".")[0] for n in imports(path)}}
    lower = {unit for unit in users if FLOOR[unit] < FLOOR["reconstruction"]}
    assert lower <= {"tables"}


def test_the_plain_floors_do_not_know_lightning():
    users = {importing_file(path)[0] for path in FILES if "lightning" in {n.split(".")[0] for n in imports(path)}}
    assert all(FLOOR[unit] >= FLOOR["tasks"] for unit in users), users
    assert users, "nobody imports lightning: this test looks at the wrong files"


def test_no_module_reads_outside_the_repository():
    for path in FILES:
        strings = [n.value for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Constant)]
        steps = [pair for text in strings if isinstance(text, str) for pair in pairwise(text.split("/"))]
        assert ("..", "shared") not in steps, path
