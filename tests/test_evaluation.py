"""Evaluation of a model on a table: residuals, simulated studies, checks, figures."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from neuralpk import Evaluation, datasets, evaluate
from neuralpk.evaluation import FIGURES
from neuralpk.published_population import PublishedPopulation, write_population
from neuralpk.saved_model import SavedModel, read_model

THEOPHYLLINE = {
    "dynamics": {"compartments": 1, "absorption": "first_order"},
    "typical": {"KA": 1.59, "CL": 2.75, "V1": 31.8},
    "cv": {"KA": 70.6, "CL": 26.8, "V1": 13.9},
    "error": "additive",
    "error_sd": {"a": 0.693},
}


@pytest.fixture(scope="module")
def theophylline(tmp_path_factory: pytest.TempPathFactory) -> SavedModel:
    path = tmp_path_factory.mktemp("model") / "pop.yaml"
    write_population(PublishedPopulation.from_plain(THEOPHYLLINE), path)
    return read_model(path)


@pytest.fixture(scope="module")
def evaluation(theophylline: SavedModel) -> Evaluation:
    return evaluate(theophylline, datasets.theophylline(), simulations=200, strata=["WT"], likelihood=True)


def test_frames(evaluation: Evaluation) -> None:
    records = evaluation.records
    head = ["ID", "TIME", "DVID", "DV", "PRED", "IPRED", "RES", "IRES", "IWRES", "WRES", "CWRES", "NPDE", "TAD"]
    assert list(records)[:13] == head and list(records)[13:] == ["DOSES", "WT"]
    assert len(records) == 132 and (records["RES"] == records["DV"] - records["PRED"]).all()
    assert (records["NPDE"].isna() == (records["PRED"] == 0)).all()  # before the drug has arrived
    assert evaluation.random_effects.shape == (12, 5) and set(evaluation.shrinkage["PARAMETER"]) == {"KA", "CL", "V1"}
    by_name = evaluation.parameters.set_index("PARAMETER")
    assert by_name.loc["CL", "ESTIMATE"] == pytest.approx(2.75) and by_name.loc["CL", "CV"] == pytest.approx(26.8)
    assert by_name.loc["a", "ESTIMATE"] == pytest.approx(0.693)
    errors = evaluation.errors.set_index("PREDICTION")
    assert errors.loc["PRED", "RMSE"] == pytest.approx(np.sqrt(np.mean((records["PRED"] - records["DV"]) ** 2)))
    assert errors.loc["IPRED", "RMSE"] < errors.loc["PRED", "RMSE"]
    assert evaluation.likelihood["OBJECTIVE"] == pytest.approx(360.5, abs=1.0)


@pytest.mark.parametrize("name", FIGURES)
def test_figures(evaluation: Evaluation, name: str) -> None:
    assert isinstance(evaluation.data(name), pd.DataFrame) and len(evaluation.data(name))
    figure = evaluation.figure(name)
    assert isinstance(figure, Figure) and figure.get_figwidth() == pytest.approx(85 / 25.4)
