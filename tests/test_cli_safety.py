"""A configuration that lies beside a checkpoint comes with it from anybody: it imports nothing and names no code."""

from __future__ import annotations

import sys
from pathlib import Path

import cli_stub
import pytest
import yaml

from neuralpk import task
from neuralpk.cli import main, training
from neuralpk.datamodules import SimulatedPKDataModule

BENIGN = {
    "data": {
        "class_path": f"{SimulatedPKDataModule.__module__}.{SimulatedPKDataModule.__qualname__}",
        "init_args": {"subjects": 4, "test_subjects": 2, "samples": 5},
    },
    "model": {"dynamics": {"class_path": "cli_stub.CompartmentModel", "init_args": {"compartments": 1}}},
    "trainer": {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False},
}
MARK = "hostile_module_of_this_test"


@pytest.fixture(autouse=True)
def _hostile(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for module in (task, training):
        monkeypatch.setattr(module, "LatentTask", cli_stub.LatentTask)
    Path(f"{MARK}.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    assert MARK not in sys.modules


def beside(content: dict) -> str:
    """A checkpoint with this configuration beside it."""
    folder = Path("run", "checkpoints")
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "last.ckpt").exists():
        Path("fit.yaml").write_text(yaml.safe_dump(BENIGN))
        main(["fit", "--config", "fit.yaml"])
        (made,) = Path("lightning_logs").glob("*/checkpoints/last.ckpt")
        made.rename(folder / "last.ckpt")
    Path("run", "config.yaml").write_text(yaml.safe_dump(content))
    return str(folder / "last.ckpt")


def changed(path: str, value: object) -> dict:
    """The benign configuration with another value at a path."""
    content = yaml.safe_load(yaml.safe_dump(BENIGN))
    *steps, last = path.split(".")
    node = content
    for step in steps:
        node = node.setdefault(step, {})
    node[last] = value
    return content


def test_an_honest_configuration_is_read(capsys) -> None:
    main(["test", "--model", beside(BENIGN)])
    assert "test_loss" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("model.dynamics", {"class_path": "os.system", "init_args": {"command": "touch owned"}}),
        ("model.dynamics", {"class_path": "subprocess.Popen", "init_args": {"args": "touch owned"}}),
        ("model.dynamics", {"class_path": f"{MARK}.Model"}),
        ("model.dynamics", f"{MARK}.Model"),
        ("model.dynamics", {"class_path": "cli_stub.SetEncoder"}),
        ("model.dynamics", {"class_path": "torch.nn.Linear"}),
        ("model.dynamics.init_args.transits", {"class_path": f"{MARK}.Model"}),
        ("model.parameters", {"class_path": "PopulationParameters", "init_args": {
            "distributions": {"CL": {"class_path": "subprocess.Popen"}}}}),
        ("model.parameters.init_args.typical", {"class_path": f"{MARK}.Model"}),
        ("model.encoder", {"class_path": "SetEncoder", "dict_kwargs": {"x": {"class_path": f"{MARK}.X"}}}),
        ("data", {"class_path": "subprocess.Popen", "init_args": {"args": "touch owned"}}),
        ("data", {"class_path": f"{MARK}.Data"}),
        ("data", "evil.yaml"),
        ("trainer.callbacks", [{"class_path": "subprocess.Popen", "init_args": {"args": "touch owned"}}]),
        ("trainer.callbacks", [{"class_path": f"{MARK}.Callback"}]),
        ("trainer.callbacks", {"class_path": f"{MARK}.Callback"}),
        ("trainer.callbacks", [{"class_path": "lightning.pytorch.callbacks.LambdaCallback",
                                "init_args": {"on_test_start": f"{MARK}.function"}}]),
        ("trainer.callbacks", "evil.yaml"),
        ("trainer.logger", {"class_path": f"{MARK}.Logger"}),
        ("trainer.logger", {"class_path": "CSVLogger", "init_args": {"save_dir": {"class_path": f"{MARK}.P"}}}),
        ("trainer.strategy", {"class_path": f"{MARK}.Strategy"}),
        ("trainer.strategy", "evil.yaml"),
        ("trainer.strategy", "memory://evil.yaml"),
        ("trainer.profiler", {"class_path": "subprocess.Popen"}),
        ("trainer.plugins", [{"class_path": f"{MARK}.Plugin"}]),
        ("trainer", {"class_path": "subprocess.Popen"}),
        ("optimizer", {"class_path": "subprocess.Popen"}),
        ("optimizer", {"class_path": f"{MARK}.Adam"}),
        ("optimizer", {"class_path": "torch.optim.AdamW", "init_args": {"lr": {"class_path": f"{MARK}.X"}}}),
        ("lr_scheduler", {"class_path": f"{MARK}.Schedule"}),
        ("seed_everything", {"class_path": f"{MARK}.X"}),
    ],
)  # fmt: skip
def test_a_hostile_configuration_is_refused(path: str, value: object, capsys) -> None:
    checkpoint = beside(changed(path, value))
    Path("evil.yaml").write_text(f"class_path: {MARK}.Model\n")
    with pytest.raises(SystemExit) as stopped:
        main(["test", "--model", checkpoint])
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert "config.yaml: " in said
    assert not Path("owned").exists()
    if path in ("data", "model.dynamics", "lr_scheduler") and MARK in str(value):
        assert f"--import {MARK}" in said


def test_python_in_the_yaml_is_refused(capsys) -> None:
    checkpoint = beside(BENIGN)
    Path("run", "config.yaml").write_text('data: !!python/object/apply:os.system ["touch owned"]\n')
    with pytest.raises(SystemExit) as stopped:
        main(["test", "--model", checkpoint])
    assert stopped.value.code == 2
    assert not Path("owned").exists()


def test_a_configuration_that_is_asked_for_imports_nothing_by_itself(capsys) -> None:
    Path("mine_to_import.py").write_text("from cli_stub import CompartmentModel\n\n\nclass M(CompartmentModel): pass\n")
    Path("own.yaml").write_text(yaml.safe_dump(changed("model.dynamics", {"class_path": "mine_to_import.M"})))
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "--config", "own.yaml", "--print_config"])
    assert stopped.value.code == 2
    assert "--import mine_to_import" in capsys.readouterr().err
    assert "mine_to_import" not in sys.modules
    with pytest.raises(SystemExit) as printed:
        main(["fit", "--import", "mine_to_import", "--config", "own.yaml", "--print_config"])
    assert printed.value.code == 0
    assert "mine_to_import.M" in capsys.readouterr().out
    sys.modules.pop("mine_to_import")
