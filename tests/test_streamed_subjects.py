"""Training on subjects that are not held: the same ones in any process, without what they cannot be used for."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import numpy as np
import pandas as pd
import pytest
import torch

from neuralpk.cohort_batch import CohortBatch
from neuralpk.datamodules import SimulatedPKDataModule, TableDataModule
from neuralpk.dynamics import CompartmentModel
from neuralpk.encoders import SetEncoder
from neuralpk.objectives import ELBO, MarginalLikelihood
from neuralpk.tables import DataError, ParquetParts, to_frame
from neuralpk.task import LatentTask

HELD, STREAMED = 6, 14


def simulated(**options) -> SimulatedPKDataModule:
    return SimulatedPKDataModule(
        **{"subjects": HELD, "streamed": STREAMED, "batch_size": 4, "samples": 4, "seed": 3} | options
    )


def of_file(folder: Path, rows: int = 7, frame: pd.DataFrame | None = None, **options) -> TableDataModule:
    """The same subjects in a Parquet file whose row groups end within subjects."""
    whole = SimulatedPKDataModule(HELD + STREAMED, samples=4, seed=3).make_cohort()
    path = folder / "table.parquet"
    (to_frame(whole) if frame is None else frame).to_parquet(path, row_group_size=rows)
    return TableDataModule(str(path), **{"held": HELD, "batch_size": 4, "seed": 3} | options)


def trainer(folder: Path, **options) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu",
        logger=False,
        default_root_dir=folder,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"max_epochs": 1} | options,
    )


def batches(data) -> list[CohortBatch]:
    return list(data.train_dataloader())


def joined(data) -> dict[str, list[float]]:
    """Values of every subject of an epoch by its name."""
    found = {}
    for batch in batches(data):
        for k, name in enumerate(batch.ids):
            assert name not in found
            found[name] = batch.value[k, batch.mask[k]].tolist()
    return found


@pytest.mark.parametrize("rows", [7, 10_000])
def test_every_subject_comes_once_an_epoch_with_the_values_of_the_whole_cohort(tmp_path, rows):
    whole = SimulatedPKDataModule(HELD + STREAMED, samples=4, seed=3).make_cohort()
    expected = {one.id: one.values for one in whole}
    for data in (simulated(), of_file(tmp_path, rows)):
        found = joined(data)
        assert list(found) == list(expected), "in their order"
        for name, values in found.items():
            np.testing.assert_allclose(values, expected[name], rtol=1e-6)
        assert data.provenance().subjects == HELD + STREAMED
        assert all(batch.truth is None for batch in batches(data))


@pytest.mark.parametrize("make", [simulated, of_file])
def test_the_batches_are_those_of_any_number_of_workers_and_devices(tmp_path, make):
    def made(**options):
        return simulated(**options) if make is simulated else of_file(tmp_path, **options)

    alone = batches(made(context="random"))
    for one, other in zip(alone, batches(made(context="random", num_workers=2)), strict=True):
        assert one.ids == other.ids
        torch.testing.assert_close((one.value, one.context), (other.value, other.context), rtol=0, atol=0)
    data = made(context="random")
    shares = []
    for rank in (0, 1):
        data.trainer = SimpleNamespace(global_rank=rank, world_size=2, overfit_batches=0)
        shares.append(batches(data))
    for whole, first, second in zip(alone, *shares, strict=True):
        assert whole.ids[::2] == first.ids and whole.ids[1::2] == second.ids
        width = first.context.shape[1]
        assert torch.equal(whole.context[::2][:, :width] & first.mask, first.context)


def test_a_training_steps_through_all_of_them_and_not_with_a_fit_of_the_population(tmp_path):
    data = simulated(validation=0.3)
    task = LatentTask(CompartmentModel(2), encoder=SetEncoder(8), objective=ELBO())
    run = trainer(tmp_path)
    run.fit(task, data)
    assert run.global_step == -(-(HELD - 2 + STREAMED) // 4)
    assert task.provenance.subjects == HELD - 2 + STREAMED
    other = LatentTask(CompartmentModel(2), encoder=SetEncoder(8), objective=MarginalLikelihood())
    with pytest.raises(ValueError, match="fits the population to all its subjects at once, and 14 of them are not"):
        trainer(tmp_path).fit(other, simulated())


def test_what_was_done_to_the_held_subjects_is_done_to_the_others(tmp_path):
    frame = to_frame(SimulatedPKDataModule(HELD + STREAMED, samples=4, seed=3).make_cohort())
    last = frame["ID"] == frame["ID"].iloc[-1]
    frame.loc[last & (frame["EVID"] == 0), "TIME"] += 100.0
    data = of_file(tmp_path, frame=frame, forecast=90.0)
    found = batches(data)
    assert not found[-1].observed[-1].any() and found[-1].mask[-1].sum() == 4
    assert found[0].observed.any(1).all()


def test_subjects_without_observations_and_faults_are_named(tmp_path):
    frame = to_frame(SimulatedPKDataModule(HELD + STREAMED, samples=4, seed=3).make_cohort())
    ids = frame["ID"].drop_duplicates().tolist()
    gone = frame[~((frame["ID"] == ids[10]) & (frame["EVID"] == 0))]
    with pytest.warns(UserWarning, match="1 subjects without observations: ID 11"):
        found = batches(of_file(tmp_path, frame=gone))
    assert [len(batch) for batch in found] == [4, 4, 3, 4, 4]
    assert found[2].index.tolist() == [8, 9, 11]
    frame.loc[frame.index[80], "TIME"] = np.inf
    with pytest.raises(DataError, match=r"table\.parquet, row 81, TIME"):
        batches(of_file(tmp_path, frame=frame))


def test_a_file_without_more_subjects_streams_none_and_one_that_is_sent_holds_no_rows(tmp_path):
    assert of_file(tmp_path, held=50).streamed == 0
    parts = ParquetParts(tmp_path / "table.parquet", 3, {})
    one = parts.subjects_of(np.array([2, 4]))
    assert parts.names(one) == ["3", "5"]
    assert parts.names(pickle.loads(pickle.dumps(parts)).subjects_of(np.array([2, 4]))) == ["3", "5"]
    assert len(pickle.dumps(parts)) < 3000
    with pytest.raises(ValueError, match="held must be 1 or more"):
        of_file(tmp_path, held=0)
    with pytest.raises(ValueError, match="streamed must be 0 or more"):
        simulated(streamed=-1)
