"""`neuralpk warm-up`: kernels that are compiled before their first use."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from neuralpk.cli import main
from neuralpk.solve.compiled.kernels_on_disk import folder

POPULATION = """
dynamics: {compartments: 1, absorption: first_order, elimination: michaelis_menten}
typical: {KA: 1.0, VMAX: 10.0, KM: 2.0, V1: 40.0}
omega: {V1: 0.2}
error: proportional
error_sd: {b: 0.2}
"""
FIT = "fit --data.subjects 4 --data.test_subjects 2 --data.passes_per_epoch 1 --trainer.max_epochs 1 --out run"


def test_what_is_compiled_is_said_with_where_it_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    main(["warm-up"])
    *kernels, last = capsys.readouterr().out.splitlines()
    named = [line.partition(":")[0] for line in kernels]
    kinds = ("linear compartments", "equations", "networks")
    assert named == [f"kernels of {kind}, {one} precision" for kind in kinds for one in ("single", "double")]
    assert last.endswith(f"kept in {folder()}") and any(folder().rglob("*.nbc"))


def test_it_takes_no_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["warm-up", "--out", "x"])
    assert stopped.value.code == 2 and "warm-up: takes no --out" in capsys.readouterr().err


@pytest.mark.slow  # it compiles all kernels
def test_nothing_is_left_to_compile(tmp_path: Path) -> None:
    (tmp_path / "pop.yaml").write_text(POPULATION)
    (tmp_path / "t.csv").write_text("ID,TIME,AMT,DV\n1,0,100,.\n1,2,.,1.8\n1,9,.,0.9\n")
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "kernels")}

    def compiled(*words: str) -> set[str]:
        command = [sys.executable, "-m", "neuralpk", *words]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return {str(path) for path in (tmp_path / "kernels").rglob("*.nbc")}

    before = compiled("warm-up")
    assert before
    assert compiled(*FIT.split()) == before
    assert compiled("estimate", "--model", "pop.yaml", "--table", "t.csv", "--out", "estimates") == before
