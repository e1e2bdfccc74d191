"""The package's layers: a unit imports only from lower layers, and the documentation names them all."""

import ast
import re
from itertools import pairwise
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "neuralpk"

# units of one layer do not import each other
LAYERS = (
    {
        "atomic_files",
        "cohort",
        "cdf_from_density",
        "part",
        "plain_yaml",
        "training_data_provenance",
        "randomness",
        "dataclass_rows",
        "worker_processes",
    },
    {"checkpoint_files", "cohort_batch", "exposure", "run_record", "scaling"},
    {"exported_model", "residual_error"},
    {"dynamics", "encoders", "parameters", "tables"},
    {"datasets", "solve"},
    {"decoders", "population_model", "cohort_simulation", "symbolic"},
    {"cohort_data", "inference", "path_guide", "published_population", "value_checks"},
    {"estimation", "individual_exposure", "record_predictions", "rxode2"},
    {
        "checkpoint_io",
        "individual_estimates",
        "noncompartmental",
        "objectives",
        "pretrained_model",
    },
    {"arviz_draws", "bootstrap", "datamodules", "diagnostics", "task"},
    {"cohort_figures", "fitting", "saved_model", "table_check", "table_figure"},
    {"dosing", "estimates_in_parts", "evaluation"},
    {"callbacks", "report"},
    {"cli"},
    {"__main__"},
)
LAYER = {unit: height for height, units in enumerate(LAYERS) for unit in units}
PAGE = PACKAGE.parent / "docs" / "architecture.md"
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def unit_of(module: str) -> str:
    """Of ``neuralpk.solve.event_nodes``: ``solve``."""
    return module.split(".")[1]


def imports(path: Path) -> set[str]:
    """Full names of the modules that a file imports anywhere in it, except for type checkers alone."""
    found, tree = set(), ast.parse(path.read_text())
    blocks = (node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    types = {id(node) for block in blocks for node in ast.walk(block)}
    for node in ast.walk(tree):
        if id(node) in types:
            continue
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
def test_a_unit_imports_only_from_lower_layers(path):
    unit, imported = importing_file(path)
    assert unit in LAYER, f"{unit} has no layer yet: give it one above all that it imports"
    used = {unit_of(name) for name in imported if name.startswith("neuralpk.")} - {unit}
    above = {name for name in used if LAYER[name] >= LAYER[unit]}
    assert not above, f"{unit} imports {sorted(above)}"


def units_on_disk() -> set[str]:
    """Modules and packages at the top level of the package, and the folder of presets."""
    found = [path for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()]
    return {path.stem for path in found} - {"__init__", "__pycache__"}


def documented_layers() -> dict[str, list[int]]:
    """The numbers of the layers in which the documentation names each unit."""
    (block,) = re.findall(r"## Layers\n+```text\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    found: dict[str, list[int]] = {}
    number = -1
    for row in block.splitlines():
        number = int(row[:2]) if row[:2].strip() else number
        # names are set apart by two blanks at most; what follows three or more says what they are
        for name in re.split(r" {3,}", row[4:], maxsplit=1)[0].split():
            found.setdefault(name.rstrip("/"), []).append(number)
    return found


def test_every_unit_has_a_layer_and_every_layer_has_units_that_exist():
    assert {*LAYER, "presets"} == units_on_disk()
    assert len(LAYER) == sum(len(units) for units in LAYERS)


def test_the_documentation_names_every_unit_in_one_layer_above_what_it_imports():
    named = documented_layers()
    assert {name for name, numbers in named.items() if len(numbers) > 1} == set()
    assert set(named) == units_on_disk()
    for path in FILES:
        unit, imported = importing_file(path)
        used = {unit_of(name) for name in imported if name.startswith("neuralpk.")}
        assert all(named[name] <= named[unit] for name in used), f"{path}: the layers of docs/architecture.md"


def test_there_are_files_to_look_at():
    assert {importing_file(path)[0] for path in FILES} >= {"cohort", "solve", "population_model", "task"}


@pytest.mark.parametrize("library", ["torchdiffeq", "torchsde"])
def test_only_the_solver_knows_the_libraries_that_integrate(library):
    users = {importing_file(path)[0] for path in FILES if library in {n.split(".")[0] for n in imports(path)}}
    assert users <= {"solve"}


def test_only_the_tables_know_pandas():
    users = {importing_file(path)[0] for path in FILES if "pandas" in {n.split(".")[0] for n in imports(path)}}
    lower = {unit for unit in users if LAYER[unit] < LAYER["record_predictions"]}
    assert lower <= {"tables"}


def test_the_lower_layers_do_not_know_lightning():
    users = {importing_file(path)[0] for path in FILES if "lightning" in {n.split(".")[0] for n in imports(path)}}
    assert all(LAYER[unit] >= LAYER["task"] for unit in users - {"checkpoint_io"}), users
    assert users, "nobody imports lightning: this test looks at the wrong files"


def test_no_module_reads_outside_the_repository():
    for path in FILES:
        strings = [n.value for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Constant)]
        steps = [pair for text in strings if isinstance(text, str) for pair in pairwise(text.split("/"))]
        assert ("..", "shared") not in steps, path
