"""The page of the library of models is that of the present texts."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from neuralpk.dynamics import library

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("draw_library", ROOT / "scripts" / "draw_library.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["draw_library"] = module
    spec.loader.exec_module(module)
    return module


def test_every_model_is_on_the_page_once(script):
    assert sorted(name for models in script.SHOWN.values() for name in models) == library()


def test_the_page_is_the_one_that_the_script_writes(script):
    assert (ROOT / "docs" / "library.md").read_text() == script.page(), "run python scripts/draw_library.py"
    for group, models in script.SHOWN.items():
        sheet = (ROOT / "docs" / "library" / script.sheet_name(group)).read_text()
        assert all(f">{name}<" in sheet for name in models)
        assert len(sheet) < 120_000


def test_a_course_begins_at_the_start_and_ends_at_the_end(script):
    times, outputs = script.course(
        "effect_compartment", script.SHOWN["Effect of the concentration"]["effect_compartment"]
    )
    assert (times[0], times[-1]) == (0.0, 48.0)
    assert outputs[0].tolist() == [4.0, 10.0] and torch.isfinite(outputs).all()  # 200/50, and E0
