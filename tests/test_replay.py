"""A training that is run again from its folder has the same weights, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from neuralpk.checkpoint_files import read_checkpoint, write_checkpoint
from neuralpk.cli import main
from neuralpk.datamodules import SimulatedPKDataModule
from neuralpk.run_record import RunRecord
from neuralpk.tables import write_table

TRAINING = (
    "fit --model.dynamics CompartmentModel --model.dynamics.compartments 1 --model.encoder SetEncoder "
    "--model.objective ELBO --data TableDataModule --data.table T.csv --data.validation 0.3 "
    "--trainer.max_epochs 2 --trainer.enable_progress_bar false --trainer.enable_model_summary false --out run"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a finished training, with its table."""
    folder = tmp_path_factory.mktemp("replay")
    cohort = SimulatedPKDataModule(
        subjects=6, samples=4, compartments=1, typical={"CL": 4.0, "V1": 70.0}, omega={"CL": 0.3, "V1": 0.3}
    ).part("train")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_table(cohort, folder / "T.csv")
        main(TRAINING.split())
    return folder


@pytest.fixture
def _there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


@pytest.mark.usefixtures("_there")
def test_the_same_weights(capsys: pytest.CaptureFixture[str]) -> None:
    main(["replay", "run", "--out", "again"])
    assert "The same weights, bit for bit" in capsys.readouterr().out
    first, second = (read_checkpoint(f"{name}/checkpoints/last.ckpt")["state_dict"] for name in ("run", "again"))
    assert len(first) > 4 and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.usefixtures("_there")
def test_what_it_was_run_with() -> None:
    record = RunRecord.read(Path("run"))
    assert record.versions["torch"] == torch.__version__ and record.threads == torch.get_num_threads()
    assert list(record.files) == ["T.csv"]
    older = RunRecord(dict(record.versions) | {"torch": "1.0"}, "Windows", 2, "", {})
    assert [one.split()[0] for one in record.differences(older)] == ["machine", *(["threads"]), "torch"]


@pytest.mark.usefixtures("_there")
def test_other_weights_and_other_data_are_not_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    path = Path("run/checkpoints/last.ckpt")
    whole = path.read_bytes()
    checkpoint = read_checkpoint(path)
    name, tensor = next(pair for pair in checkpoint["state_dict"].items() if pair[1].is_floating_point())
    tensor.view(-1)[0] += 1e-3
    write_checkpoint(checkpoint, path)
    with pytest.raises(SystemExit) as stopped:
        main(["replay", "run", "--out", "other"])
    assert stopped.value.code == 1 and f"{name} by up to 0.001" in capsys.readouterr().err
    path.write_bytes(whole)
    table = Path("T.csv").read_text()
    Path("T.csv").write_text(table + "\n")
    for missing in (False, True):
        if missing:
            Path("T.csv").unlink()
        with pytest.raises(SystemExit) as stopped:
            main(["replay", "run", "--out", "third"])
        assert stopped.value.code == 2 and "T.csv" in capsys.readouterr().err
    Path("T.csv").write_text(table)
    assert not Path("third").exists()
    with pytest.raises(SystemExit):
        main(["replay", "run", "--out", "run", "--overwrite"])
    assert "the folder of the run itself" in capsys.readouterr().err and path.read_bytes() == whole


@pytest.mark.usefixtures("_there")
def test_a_folder_without_a_record_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty").mkdir()
    with pytest.raises(SystemExit):
        main(["replay", "empty", "--out", "fourth"])
    assert "run.json" in capsys.readouterr().err
    Path("empty/run.json").write_text(json.dumps({"versions": {}}))
    with pytest.raises(SystemExit):
        main(["replay", "empty", "--out", "fourth"])
    assert "damaged" in capsys.readouterr().err
