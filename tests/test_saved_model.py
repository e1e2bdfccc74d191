"""Saved models: a checkpoint and the population file of the same fit give the same estimates through the same face."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from neuralpk import (
    CompartmentModel,
    FittedModel,
    PopulationParameters,
    SetEncoder,
    SimulatedPKDataModule,
    evaluate,
    fit,
    read_model,
)
from neuralpk.checkpoint_files import CheckpointError
from neuralpk.cohort import Cohort, Units
from neuralpk.inference.quantiles import interval
from neuralpk.published_population import write_population
from neuralpk.tables import DataError, write_table

UNITS = Units("min", "ug", "ug/mL")


@pytest.fixture(scope="module")
def cohort() -> Cohort:
    drawn = SimulatedPKDataModule(subjects=10, seed=3).part("train")
    return Cohort(drawn.subjects, UNITS)


@pytest.fixture(scope="module")
def files(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("saved")
    fitted: FittedModel = fit(cohort, CompartmentModel(1), parameters=PopulationParameters(), epochs=2, progress=False)
    fitted.save(folder / "fit.ckpt")
    saved = read_model(folder / "fit.ckpt")
    write_population(saved.published(), folder / "anything")
    return folder / "fit.ckpt", folder / "anything"


def test_both_kinds_have_one_face(files: tuple[Path, Path], cohort: Cohort) -> None:
    models = [read_model(path) for path in files]
    assert [model.units for model in models] == [UNITS, UNITS]
    assert [model.covariates for model in models] == [[], []]
    assert "10 subjects" in models[0].description and "anything" in models[1].description
    assert models[0].status.startswith("Population fit: ") and models[1].status == ""
    assert models[0].published().typical == pytest.approx(models[1].published().typical)
    left, right = (model.estimate(cohort, draws=0) for model in models)
    np.testing.assert_allclose(left.parameters["CL"][0], right.parameters["CL"][0], rtol=1e-3)


def test_draws_are_those_behind_the_intervals(files: tuple[Path, Path], cohort: Cohort) -> None:
    for path in files:
        model = read_model(path)
        drawn = model.draw(cohort, draws=64)
        assert len(drawn.models) == (32 if path.suffix else 1)
        values = [m.individual_parameters(z, batch)["CL"].reshape(len(cohort), -1) for m, z, batch in drawn.flat()]
        ends = interval(torch.cat(values, dim=1).detach())
        _, *expected = model.estimate(cohort, draws=64).parameters["CL"]
        np.testing.assert_allclose(ends, np.stack(expected), rtol=1e-4)
        assert not torch.equal(drawn.z[0], model.draw(cohort, draws=64, seed=1).z[0])


def test_a_table_is_read_in_the_units_of_the_model(files: tuple[Path, Path], cohort: Cohort, tmp_path: Path) -> None:
    write_table(cohort, tmp_path / "t.csv")
    model = read_model(files[1])
    assert model.read_table(tmp_path / "t.csv").units == UNITS
    with pytest.raises(ValueError, match="convert the table"):
        model.read_table(tmp_path / "t.csv", units=Units())


def test_what_is_refused(files: tuple[Path, Path], cohort: Cohort, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give the checkpoint of its training"):
        read_model(files[1]).task()
    with pytest.raises(ValueError, match="no encoder"):
        read_model(files[1]).estimate(cohort, map=False)
    with pytest.raises(FileNotFoundError):
        read_model(tmp_path / "none")
    (tmp_path / "cut").write_bytes(files[0].read_bytes()[100:])
    with pytest.raises(CheckpointError, match="neither a checkpoint"):
        read_model(tmp_path / "cut")
    (tmp_path / "broken").write_bytes(files[0].read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="damaged"):
        read_model(tmp_path / "broken")


def test_covariates_that_nothing_reads_need_not_be_in_a_table(tmp_path: Path) -> None:
    drawn = SimulatedPKDataModule(subjects=10, covariates={"WT": [50.0, 90.0], "AGE": [20.0, 80.0]}).part("train")
    parameters = PopulationParameters(effects={"CL": ["WT"]})
    fit(drawn, CompartmentModel(1), parameters=parameters, epochs=1, progress=False).save(tmp_path / "fit.ckpt")
    model = read_model(tmp_path / "fit.ckpt")
    assert (model.covariates, model.idle) == (["WT"], ["AGE"])
    write_table(drawn, tmp_path / "t.csv")
    frame = pd.read_csv(tmp_path / "t.csv", dtype={"ID": str})
    complete = model.estimate(model.read_table(frame), draws=0)
    bare = model.read_table(frame.drop(columns="AGE"))
    assert bare.covariate_names == ("WT",)
    without = model.estimate(bare, draws=0)
    np.testing.assert_array_equal(complete.parameters["CL"][0], without.parameters["CL"][0])
    assert without.records()["AGE"].isna().all() and (complete.records()["AGE"] > 20).all()
    evaluated = evaluate(model, bare, simulations=100, draws=0)
    assert evaluated.covariates == ("WT",)
    gap = frame.assign(AGE=frame["AGE"].where(frame["ID"] != frame["ID"][0]))
    assert np.isnan(model.read_table(gap)[0].covariates["AGE"])
    with pytest.raises(DataError, match="WT"):
        model.read_table(frame.drop(columns="WT"))
    with pytest.raises(DataError, match="NPK-D41"):
        model.read_table(gap, also=["AGE"])


def test_an_encoder_reads_every_covariate(tmp_path: Path) -> None:
    drawn = SimulatedPKDataModule(subjects=4, covariates={"WT": [50.0, 90.0]}).part("train")
    fit(drawn, CompartmentModel(1), encoder=SetEncoder(), epochs=1, progress=False).save(tmp_path / "fit.ckpt")
    model = read_model(tmp_path / "fit.ckpt")
    assert (model.covariates, model.idle) == (["WT"], [])
    with pytest.raises(ValueError, match="needs the covariates"):
        model.estimate(drawn.with_covariates([]), draws=0)
