"""Formulas for a learned effect of covariates, and their place in a fit."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

import neuralpk
from neuralpk import CompartmentModel, PopulationParameters, SimulatedPKDataModule, read_model
from neuralpk.parameters.network_effect import NetworkEffect
from neuralpk.saved_model import SavedTask
from neuralpk.scaling import Scaling
from neuralpk.symbolic import FormulaEffect, find_effects


@pytest.fixture
def people() -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    columns = [torch.empty(300).uniform_(*ends, generator=generator) for ends in ((3.0, 110.0), (1.0, 80.0), (50, 190))]
    sex = (torch.rand(300, generator=generator) < 0.5).float()
    return torch.stack([*columns, sex], dim=1).double()


def test_the_formula_of_an_effect_that_is_one_is_found(people: torch.Tensor) -> None:
    terms = [{"WT": "log"}, {"AGE": "line"}, {"WT": "log", "SEX": "binary"}]
    known = FormulaEffect(["WT", "AGE", "HT", "SEX"], [70.0, 35.0, 170.0, 1.0], terms, [0.75, -0.2, 0.1])
    found = find_effects(known, people)
    assert [len(one.effect.terms) for one in found] == [1, 2, 3, 4]
    assert found[0].effect.terms == [{"WT": "log"}] and found[0].deviation > 0.05
    third = found[2]
    assert third.effect.terms == terms and third.deviation < 1e-6 and third.explained == pytest.approx(1.0)
    assert str(third.effect) == "0.75*log(WT/70) - 0.2*(AGE/35 - 1) + 0.1*log(WT/70)*SEX"
    assert str(third).endswith("(100 % of the effect)")
    at_reference = torch.tensor([70.0, 35.0, 0.0], dtype=torch.float64)
    assert third.effect.covariates == ("WT", "AGE", "SEX") and float(third.effect(at_reference).detach()) == 0.0
    narrow = find_effects(known, people, most=1)
    assert all(len(one.effect.covariates) == 1 for one in narrow)
    for few in ((known, people[:3]), (FormulaEffect(["WT"], [70.0], [{"WT": "log"}]), people[:, :1])):
        with pytest.raises(ValueError, match="more patients"):
            find_effects(*few)
    with pytest.raises(ValueError, match="HT is neither positive"):
        find_effects(known, people - torch.tensor([0.0, 0.0, 100.0, 0.0]))


def test_the_curves_are_those_of_the_text() -> None:
    terms = [{"A": "log"}, {"A": "log2"}, {"A": "line"}, {"A": "inverse"}, {"B": "binary"}, {"A": "log", "B": "binary"}]
    effect = FormulaEffect(["A", "B"], [2.0, 1.0], terms)
    row, log = effect.features(torch.tensor([6.0, 1.0], dtype=torch.float64)).tolist(), math.log(3.0)
    assert row == pytest.approx([log, log**2, 2.0, 1 / 3 - 1, 1.0, log])
    known = FormulaEffect(["A", "B"], [2.0, 1.0], terms[2:5], [-0.5, -0.25, 3.0])
    assert str(known) == "- 0.5*(A/2 - 1) - 0.25*(2/A - 1) + 3*B"
    for wrong, said in (
        ({"terms": [{"C": "log"}]}, "C: log is no term"),
        ({"terms": [{"A": "sine"}]}, "A: sine is no term"),
        ({"reference": [-1.0, 1.0]}, "reference of A must be above 0"),
        ({"reference": [1.0]}, "a reference for each covariate"),
        ({"coefficients": [1.0]}, "a coefficient for each term"),
    ):
        with pytest.raises(ValueError, match=said):
            FormulaEffect(**({"covariates": ["A", "B"], "reference": [2.0, 1.0], "terms": terms} | wrong))


def test_a_formula_takes_the_place_of_a_network(tmp_path: Path) -> None:
    data = SimulatedPKDataModule(
        subjects=60,
        compartments=1,
        typical={"CL": 5.0, "V1": 50.0},
        covariates={"WT": [40.0, 110.0], "AGE": [20.0, 80.0]},
        effects={"CL~WT": 0.75},
        times=[1.0, 4.0, 12.0],
        samples=3,
        seed=3,
    ).part("train")
    network = NetworkEffect(["WT", "AGE"])
    network.build(Scaling.of(data))
    with torch.no_grad():
        network.weight[0] = 0.2
    covariates = torch.tensor([[one.covariates["WT"], one.covariates["AGE"]] for one in data])
    formula = find_effects(network, covariates, most=2, terms=2)[0]
    assert formula.effect.terms == [{"WT": "log"}]
    parameters = PopulationParameters(effects={"CL": [formula.effect]})
    fitted = neuralpk.fit(data, CompartmentModel(1), parameters=parameters, progress=False)
    row = fitted.population.set_index("PARAMETER").loc["CL~WT"]
    assert row["LO95"] < 0.75 < row["HI95"]
    (effect,) = [effect for _, effect in fitted.task.model.population.effects_by_parameter()]
    again = effect.fitted()
    assert isinstance(again, FormulaEffect) and str(again) == str(effect)
    torch.testing.assert_close(again(covariates[:, :1].double()), effect(covariates[:, :1]).double())
    fitted.write_population(tmp_path / "pop.yaml")
    saved = read_model(tmp_path / "pop.yaml")
    assert saved.covariates == ["WT"]
    own, other = (
        model.estimate(data, draws=0).parameters["CL"][0] for model in (saved, SavedTask(tmp_path, fitted.task))
    )
    np.testing.assert_allclose(own, other, rtol=1e-3)
