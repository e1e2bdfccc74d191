"""Infusions whose rate or duration is a parameter of the model: RATE -1 and -2."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
import torch

from neuralpk import Cohort, CompartmentModel, Dose, PopulationModel, ProportionalError, Subject, fit, read_table
from neuralpk.cohort_batch import collate
from neuralpk.dosing import Regimen, SimulatedPatients
from neuralpk.dosing.regimen_simulation import course_values
from neuralpk.dynamics import Equations
from neuralpk.rxode2 import export_rxode2, import_rxode2
from neuralpk.scaling import Scaling
from neuralpk.solve import Exact, RungeKutta, solve
from neuralpk.tables import to_frame

CL, V, D, R, F, LAG = 3.0, 20.0, 4.0, 25.0, 0.6, 0.5
TEXT = """
parameters: CL = 3, V = 20, R1 = 25, D1 = 4, F1 = 0.6, ALAG1 = 0.5
central' = -CL/V*central
rate(central) = R1
duration(central) = D1
F(central) = F1
lag(central) = ALAG1
C = central/V
outputs: C
"""
TIMES = np.array([0.25, 0.75, 2.0, 3.9, 4.4, 6.0, 9.0])


def _concentration(t: torch.Tensor, amount: float, theta: torch.Tensor, code: float) -> torch.Tensor:
    cl, v, r, d, f, lag = theta
    lasts = f * amount / r if code == -1 else d
    rate = r if code == -1 else f * amount / d
    k, since = cl / v, (t - lag).clamp(min=0.0)
    during = torch.minimum(since, lasts)
    return rate / cl * (1 - torch.exp(-k * during)) * torch.exp(-k * (since - during))


@pytest.mark.parametrize("code", [-1.0, -2.0])
def test_the_curve_and_its_gradient_are_those_of_the_closed_form(code: float) -> None:
    model = Equations(TEXT)
    batch = collate([Subject("1", TIMES, np.ones(len(TIMES)), (Dose(0.0, 100.0, rate=code),))], dtype=torch.float64)
    theta = torch.tensor([CL, V, R, D, F, LAG], dtype=torch.float64, requires_grad=True)
    solved = model.observe(
        (found := RungeKutta(rtol=1e-10, atol=1e-12).solve(model, theta[None, None], batch)).states, found.theta
    )[0, :, 0]
    expected = _concentration(torch.as_tensor(TIMES), 100.0, theta, code)
    torch.testing.assert_close(solved, expected, rtol=1e-7, atol=1e-9)
    weights = torch.linspace(1.0, 2.0, len(TIMES), dtype=torch.float64)
    (own,) = torch.autograd.grad((weights * solved).sum(), theta, retain_graph=True)
    (true,) = torch.autograd.grad((weights * expected).sum(), theta)
    torch.testing.assert_close(own, true, rtol=1e-5, atol=1e-7)
    assert own[2 if code == -1 else 3].abs() > 1e-3  # the end of the infusion moves


def test_a_compartment_model_has_the_rate_or_the_duration_of_a_compartment() -> None:
    """Zero-order input into the depot, then absorption; several doses, and steady state."""
    model = CompartmentModel(1, "first_order", duration="depot", rate="central")
    assert model.parameter_names == ("CL", "V1", "KA", "R", "D")
    theta = torch.tensor([[[CL, V, 0.9, R, D]]], dtype=torch.float64)
    modelled = (Dose(0.0, 100.0, rate=-2.0, interval=12.0, additional=2), Dose(3.0, 50.0, rate=-1.0, compartment=2))
    stated = (
        Dose(0.0, 100.0, duration=D, interval=12.0, additional=2),
        Dose(3.0, 50.0, rate=R, compartment=2),
    )
    steady = [
        tuple(dataclasses.replace(one, steady_state=1, interval=12.0) for one in doses[:1])
        for doses in (modelled, stated)
    ]
    for own, same in ((modelled, stated), steady):
        curves = []
        for doses in (own, same):
            batch = collate([Subject("1", TIMES * 4, TIMES, doses)], dtype=torch.float64)
            curves.append(Exact().solve(model, theta, batch).states)
        torch.testing.assert_close(*curves)


def test_a_table_is_read_and_written_with_its_codes() -> None:
    frame = pd.DataFrame(
        {
            "ID": 1,
            "TIME": [0.0, 1.0, 5.0],
            "AMT": [100.0, 0, 50.0],
            "RATE": [-2.0, 0, -1.0],
            "DV": [np.nan, 2.0, np.nan],
        }
    )
    cohort = read_table(frame)
    assert [dose.rate for dose in cohort[0].doses] == [-2.0, -1.0]
    assert [dose.infusion_ends for dose in cohort[0].doses] == [[], []]
    assert read_table(to_frame(cohort))[0].doses == cohort[0].doses


def test_a_model_without_them_refuses_the_doses() -> None:
    subject = Subject("1", TIMES, np.ones(len(TIMES)), (Dose(0.0, 100.0, rate=-2.0),))
    batch = collate([subject], dtype=torch.float64)
    theta = torch.tensor([[[CL, V]]], dtype=torch.float64)
    with pytest.raises(ValueError, match=r"1 doses into central have RATE -2.*duration\(central\) = "):
        Exact().solve(CompartmentModel(1), theta, batch)
    with pytest.raises(ValueError, match=r"RATE -2"):
        fit(Cohort((subject,)), CompartmentModel(1, rate="central"), progress=False)
    with pytest.raises(ValueError, match="nothing in a dose may be negative"):
        Dose(0.0, 100.0, rate=-3.0)


def test_a_function_of_rxode2_has_them() -> None:
    text = """f <- function() {
  ini({
    cl <- 3
    v <- 20
    d1 <- 4
    prop.sd <- 0.1
  })
  model({
    d/dt(central) <- -cl/v*central
    dur(central) <- d1
    cp <- central/v
    cp ~ prop(prop.sd)
  })
}
"""
    imported = import_rxode2(text)
    assert "duration(central) = " in imported.text
    assert "dur(central) <- " in export_rxode2(imported)


@pytest.mark.slow
def test_a_fit_recovers_the_duration() -> None:
    generator = np.random.default_rng(0)
    subjects = []
    for k in range(40):
        d = D * math.exp(0.3 * generator.standard_normal())
        theta = torch.tensor([CL * math.exp(0.2 * generator.standard_normal()), V, R, d, 1.0, 0.0])
        times = np.array([0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 12.0])
        curve = _concentration(torch.as_tensor(times), 100.0, theta, -2.0).numpy()
        values = curve * (1 + 0.05 * generator.standard_normal(len(times)))
        subjects.append(Subject(str(k), times, values, (Dose(0.0, 100.0, rate=-2.0),)))
    fitted = fit(
        Cohort(tuple(subjects)), CompartmentModel(1, duration="central"), error=ProportionalError(), progress=False
    )
    values = fitted.task.model.reported_values()
    assert values["D"] == pytest.approx(D, rel=0.15)
    assert values["omega D"] == pytest.approx(0.3, rel=0.3)


def test_their_units_are_checked() -> None:
    text = """
parameters: CL = 3 [L/h], V = 20 [L], R1 = 25 [mg/h], D1 = 4 [h]
units: t [h], central [mg]
central' = -CL/V*central
rate(central) = R1
duration(central) = D1
C = central/V
outputs: C
"""
    Equations(text)
    swapped = text.replace("= R1", "= D").replace("= D1", "= R1").replace("= D\n", "= D1\n")
    with pytest.raises(ValueError, match=r"(rate|duration)\(central\) is in .*, and its right side in"):
        Equations(swapped)


@pytest.mark.parametrize(("code", "line"), [(-1.0, "rate(central) = D - 30"), (-2.0, "duration(central) = D - 30")])
def test_a_rate_or_a_duration_that_cannot_be_gives_no_solution(code: float, line: str) -> None:
    model = Equations(f"parameters: K = 0.1, D = 4\ncentral' = -K*central\n{line}\noutputs: central\n")
    doses = [[Dose(0.0, 100.0, rate=code)], [Dose(0.0, 100.0, rate=10.0)]]
    theta = torch.tensor([[0.1, 4.0]], dtype=torch.float64).expand(2, -1)
    found = solve(model, theta, torch.tensor([1.0, 5.0], dtype=torch.float64), doses)
    assert found.ok.tolist() == [False, True]


def test_a_regimen_that_gives_at_once_what_the_model_infuses_is_named() -> None:
    model = PopulationModel(Equations(TEXT), error=ProportionalError(b=0.1)).build(Scaling(), torch.float64)
    patients = SimulatedPatients.typical(model)
    with pytest.warns(UserWarning, match=r"doses of a regimen into central are given at once, .* 'infusion 2 h'"):
        patients.batch(Regimen.parse("100 q12h x 2"), None)
    patients.batch(Regimen.parse("100 q12h x 2, infusion 2 h"), None)  # warnings are errors in tests


@pytest.mark.parametrize(("code", "words"), [(-1.0, "modelled rate"), (-2.0, "modelled duration")])
def test_a_regimen_asks_for_the_rate_or_the_duration_of_the_model(code: float, words: str) -> None:
    model = PopulationModel(Equations(TEXT), error=ProportionalError(b=0.1)).build(Scaling(), torch.float64)
    patients = SimulatedPatients.typical(model)
    regimen = Regimen.parse(f"100 q12h x 2, {words}")
    assert [(dose.rate, dose.duration) for dose in regimen.doses()] == [(code, 0.0)] * 2
    times = np.array([1.0, 5.0, 13.0, 20.0])
    found = course_values(patients, regimen, times)[0][0, 0, :, 0]
    theta = torch.tensor([CL, V, R, D, F, LAG], dtype=torch.float64)
    first, second = (_concentration(torch.as_tensor(times - start), 100.0, theta, code) for start in (0.0, 12.0))
    np.testing.assert_allclose(found, first + second, rtol=1e-5)
    at_once = course_values(patients, Regimen.parse("100 q12h x 2, infusion 0.01 h"), times)[0][0, 0, :, 0]
    assert abs(found[0] / at_once[0] - 1) > 0.1
    with pytest.raises(ValueError, match="which of the two"):
        Regimen.parse(f"100 q12h x 2, {words}, infusion 2 h")
