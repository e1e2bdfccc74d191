"""Models and draws for other programs: what is written is what was there, and damage is noticed."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import warnings
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from published import THEOPHYLLINE

import neuralpk
from neuralpk import datasets, read_model, to_arviz
from neuralpk.checkpoint_files import CheckpointError
from neuralpk.cli import main
from neuralpk.datamodules import SimulatedPKDataModule
from neuralpk.dynamics import NeuralCompartments
from neuralpk.encoders import SetEncoder
from neuralpk.estimates_in_parts import estimate_in_parts
from neuralpk.exported_model import EXPORTED, MODEL, SUMS, WEIGHTS
from neuralpk.objectives import ELBO
from neuralpk.published_population import PublishedPopulation
from neuralpk.report.reproduction import inputs_table
from neuralpk.saved_model import SavedPopulation
from neuralpk.tables import to_frame
from neuralpk.task import LatentTask

safetensors_torch = pytest.importorskip("safetensors.torch")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, SimulatedPKDataModule]:
    folder = tmp_path_factory.mktemp("trained")
    data = SimulatedPKDataModule(6, samples=4, seed=2)
    trainer = L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(LatentTask(NeuralCompartments(hidden=4), encoder=SetEncoder(8), objective=ELBO()), data)
    trainer.save_checkpoint(folder / "model.ckpt")
    return folder / "model.ckpt", data


def exported(trained, out: Path) -> Path:
    main(["export", str(trained[0]), "--out", str(out)])
    return out


def test_the_files_hold_every_weight_and_say_what_they_are(trained, tmp_path, capsys):
    out = exported(trained, tmp_path / "out")
    assert sorted(path.name for path in out.iterdir()) == sorted(EXPORTED)
    assert "weights.safetensors" in capsys.readouterr().out
    weights = safetensors_torch.load_file(out / WEIGHTS)
    task = LatentTask.load_from_checkpoint(trained[0])
    assert weights.keys() == task.state_dict().keys()
    for name, value in task.state_dict().items():
        torch.testing.assert_close(weights[name], value, rtol=0, atol=0, equal_nan=True)
    described = json.loads((out / MODEL).read_text())
    assert described["parts"]["dynamics"]["class_path"].endswith("NeuralCompartments")
    assert described["data"]["provenance"]["subjects"] == 6
    assert described["tensors"].keys() == weights.keys()
    if sys.platform == "linux":
        subprocess.run(["sha256sum", "--check", "--quiet", SUMS], cwd=out, check=True)


def test_an_exported_model_estimates_as_the_checkpoint_does(trained, tmp_path):
    out, cohort = exported(trained, tmp_path / "out"), trained[1].make_cohort()
    one, other = (read_model(path).estimate(cohort, draws=5) for path in (trained[0], out))
    np.testing.assert_array_equal(one.ipred, other.ipred)
    np.testing.assert_array_equal(one.lower, other.lower)
    with pytest.raises(SystemExit):
        main(["export", str(trained[0]), "--out", str(out)])
    main(["export", str(trained[0]), "--out", str(out), "--overwrite"])


def test_a_changed_description_of_the_same_weights_is_another_model(trained, tmp_path):
    pytest.importorskip("pyarrow")
    out, cohort = exported(trained, tmp_path / "out"), trained[1].make_cohort()
    to_frame(cohort).to_parquet(tmp_path / "table.pq")

    def stopped_after_one(numbers):
        yield numbers[0]
        raise KeyboardInterrupt

    def estimated(**options):
        return estimate_in_parts(read_model(out), tmp_path / "table.pq", tmp_path / "parts", 3, 1, draws=2, **options)

    with pytest.raises(KeyboardInterrupt):
        estimated(progress=stopped_after_one)
    described = json.loads((out / MODEL).read_text())
    described["data"]["scaling"]["value"] = [2 * value for value in described["data"]["scaling"]["value"]]
    (out / MODEL).write_text(json.dumps(described))
    sums = {name: hashlib.sha256((out / name).read_bytes()).hexdigest() for name in (WEIGHTS, MODEL)}
    (out / SUMS).write_text("".join(f"{value}  {name}\n" for name, value in sums.items()))
    assert estimated().kept == 0
    rows = inputs_table({"model": read_model(out).files}, False).rows
    assert [tuple(row) for row in rows] == [("model", name, value) for name, value in sums.items()]


def test_damage_is_noticed_by_the_name_of_the_file(trained, tmp_path):
    out = exported(trained, tmp_path / "out")
    for name in (WEIGHTS, MODEL):
        content = (out / name).read_bytes()
        (out / name).write_bytes(content[:-3] + bytes([content[-3] ^ 4]) + content[-2:])
        with pytest.raises(CheckpointError, match=f"{name} is damaged"):
            read_model(out)
        (out / name).write_bytes(content)
    (out / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match=r"is no exported model: it has no weights\.safetensors"):
        read_model(out)


def test_a_missing_library_is_named_with_its_cure(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(SystemExit):
        main(["export", str(trained[0]), "--out", str(tmp_path / "out")])
    assert "safetensors files need safetensors: pip install 'neuralpk[safetensors]'" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "xarray", None)
    with pytest.raises(ImportError, match=r"pip install 'neuralpk\[bayes\]'"):
        to_arviz(drawn())


def drawn(draws: int = 30):
    saved = SavedPopulation(Path("pop.yaml"), PublishedPopulation.from_plain(THEOPHYLLINE))
    return saved.draw(datasets.theophylline().with_covariates([]), draws, seed=1)


@pytest.mark.parametrize("version", ["0.23.4", "1.0.0"])
def test_draws_for_arviz_are_the_draws_with_their_subjects_and_data(monkeypatch, version):
    xarray = pytest.importorskip("xarray")
    if version.startswith("0"):
        pytest.importorskip("arviz")
    usual = neuralpk.arviz_draws.metadata.version
    monkeypatch.setattr(
        neuralpk.arviz_draws.metadata, "version", lambda name: version if name == "arviz" else usual(name)
    )
    draws = drawn()
    data = to_arviz(draws)
    assert isinstance(data, xarray.DataTree) == version.startswith("1")
    posterior = data["posterior"]
    assert posterior["CL"].dims == ("chain", "draw", "subject") and posterior["CL"].shape == (1, 30, 12)
    eta = draws.models[0].population.eta(draws.z[0])
    names = list(draws.models[0].population.varying)
    for k, name in enumerate(names):
        np.testing.assert_allclose(posterior[f"ETA_{name}"][0].T, eta[..., k])
    expected = 2.75 * np.exp(posterior["ETA_CL"].to_numpy())
    np.testing.assert_allclose(posterior["CL"], expected, rtol=1e-6)
    cohort = datasets.theophylline()
    assert posterior["subject"].to_numpy().tolist() == list(cohort.ids)
    values = np.concatenate([one.values[one.observed] for one in cohort])
    np.testing.assert_allclose(data["observed_data"]["value"], values)
    first = data["constant_data"]["time"][data["constant_data"]["record_subject"] == cohort.ids[0]]
    np.testing.assert_allclose(first, cohort[0].times)


def test_arviz_reads_them():
    with warnings.catch_warnings(action="ignore", category=FutureWarning):
        arviz = pytest.importorskip("arviz")
    table = arviz.summary(to_arviz(drawn(50)), var_names=["CL"], kind="stats")
    assert table.shape[0] == 12 and (table["mean"] > 1).all()
