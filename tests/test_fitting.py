"""Two lines for a table: fit and predict on a pandas frame."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import neuralpk
from neuralpk import CompartmentModel, FittedModel, SimulatedPKDataModule
from neuralpk.tables import DataError, to_frame


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    data = SimulatedPKDataModule(subjects=8, compartments=1, typical={"CL": 4.0, "V1": 70.0}, samples=5)
    return to_frame(data.part("train"))


@pytest.fixture(scope="module")
def fitted(frame: pd.DataFrame) -> FittedModel:
    return neuralpk.fit(frame, CompartmentModel(1), epochs=4, progress=False)


def test_a_frame_is_fitted_and_predicted(fitted: FittedModel, frame: pd.DataFrame) -> None:
    curves = fitted.predict(frame, times=[1.0, 6.0, 24.0])
    assert list(curves) == ["ID", "TIME", "PRED", "IPRED", "LO90", "HI90"]
    assert curves.groupby("ID")["TIME"].apply(list).tolist() == [[1.0, 6.0, 24.0]] * 8
    assert curves.notna().all(axis=None)
    population = fitted.population.set_index("PARAMETER")
    assert {"CL", "V1", "b"} == set(population.index)
    assert (population["LO95"] < population["ESTIMATE"]).all() and (population["ESTIMATE"] < population["HI95"]).all()
    assert list(fitted.individuals["ID"]) == list(fitted.estimate(frame)["ID"])
    assert set(fitted.curves) == set(curves)


def test_it_is_saved_and_loaded_with_its_uncertainty(fitted: FittedModel, frame: pd.DataFrame, tmp_path) -> None:
    fitted.save(tmp_path / "fit.ckpt")
    loaded = FittedModel.load(tmp_path / "fit.ckpt")
    pd.testing.assert_frame_equal(loaded.predict(frame), fitted.predict(frame), check_exact=True)
    with pytest.raises(ValueError, match=r"covariance_step\(cohort\)"):
        _ = loaded.population
    with pytest.raises(ValueError, match="use predict and estimate"):
        _ = loaded.individuals


def test_the_same_seed_gives_the_same_fit(fitted: FittedModel, frame: pd.DataFrame) -> None:
    again = neuralpk.fit(frame, CompartmentModel(1), epochs=4, progress=False)
    np.testing.assert_array_equal(again.population["ESTIMATE"], fitted.population["ESTIMATE"])


def test_what_is_wrong_is_said_before_the_fit(frame: pd.DataFrame) -> None:
    with pytest.raises(DataError, match="NPK-D"):
        neuralpk.fit(frame.rename(columns={"DV": "CONC"}), CompartmentModel(1), progress=False)
    with pytest.raises(DataError, match="covariates: WT is not among the columns"):
        effects = neuralpk.PopulationParameters(effects={"CL": ["WT"]})
        neuralpk.fit(frame, CompartmentModel(1), parameters=effects, epochs=1, progress=False)
