"""Profile intervals of the population, beside profiles that are known or found by brute force."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import quadrature
import torch
from torch import Tensor

import neuralpk
from neuralpk.cohort import Cohort, Dose, Subject
from neuralpk.cohort_batch import collate
from neuralpk.datamodules import SimulatedPKDataModule
from neuralpk.dynamics import CompartmentModel
from neuralpk.estimation import PopulationEstimator, standard_errors
from neuralpk.individual_estimates import evaluation_batch
from neuralpk.parameters import NoVariability, PopulationParameters
from neuralpk.population_model import PopulationModel
from neuralpk.residual_error import AdditiveError
from neuralpk.scaling import Scaling

DROP = 3.841459


# ---- random effects that are known: the profiles of a normal sample


def known_effects(count: int) -> tuple[PopulationModel, Cohort, np.ndarray]:
    """A model, patients whose samples tell their parameters, and their random effects."""
    generator = np.random.default_rng(0)
    eta = generator.multivariate_normal([0, 0], [[0.09, 0.05], [0.05, 0.09]], count)
    eta -= eta.mean(0)
    people = []
    for k, (clearance, volume) in enumerate(np.array([quadrature.CL, quadrature.V1]) * np.exp(eta)):
        line = quadrature.DOSE / volume * np.exp(-clearance / volume * quadrature.TIMES)
        line += 1e-3 * generator.normal(size=len(line))
        people.append(Subject(str(k), quadrature.TIMES, line, (Dose(0.0, quadrature.DOSE),)))
    typical = {"CL": quadrature.CL, "V1": quadrature.V1}
    omega = dict(zip(typical, eta.std(0).tolist(), strict=True))
    correlation = {"CL~V1": float(np.corrcoef(eta.T)[0, 1])}
    parameters = PopulationParameters(typical, omega=omega, correlation=correlation)
    model = PopulationModel(CompartmentModel(1), parameters, AdditiveError(1e-3))
    model.build(Scaling.of(Cohort(tuple(people))), torch.float64)
    return model, Cohort(tuple(people)), eta


def crossings(drop: Callable[[float], float], low: float, estimate: float, high: float) -> list[float]:
    """Where a function of −2LL reaches 3.84, below and above the estimate."""
    found = []
    for outer in (low, high):
        inner = estimate
        for _ in range(60):
            middle = (inner + outer) / 2
            inner, outer = (middle, outer) if drop(middle) < DROP else (inner, middle)
        found.append(inner)
    return found


@pytest.mark.parametrize("count", [12, 60])
def test_intervals_are_those_of_a_normal_sample(count: int) -> None:
    model, people, eta = known_effects(count)
    batch = collate(people, dtype=torch.float64)
    status = PopulationEstimator(model).run(batch.scored_on_all())
    rows = standard_errors(model, batch, model.typical(count), status=status).rows
    table = pd.DataFrame(rows).set_index("PARAMETER")
    assert (table["INTERVAL"] == "profile").all() and (table.loc[["CL", "V1"], "OMEGA_INTERVAL"] == "profile").all()
    for k, (name, value) in enumerate((("CL", quadrature.CL), ("V1", quadrature.V1))):
        s = float(eta[:, k].std())
        half = s * math.sqrt(math.expm1(DROP / count))
        ends = np.log(table.loc[name, ["LO95", "HI95"]].to_numpy(dtype=float) / value)
        np.testing.assert_allclose(ends, [-half, half], rtol=0.02)
        omega = crossings(lambda w, s=s: count * (2 * math.log(w / s) + (s / w) ** 2 - 1), 0.3 * s, s, 4 * s)
        np.testing.assert_allclose(
            table.loc[name, ["OMEGA_LO95", "OMEGA_HI95"]].to_numpy(dtype=float), omega, rtol=0.01
        )
    r = float(np.corrcoef(eta.T)[0, 1])

    def of_correlation(rho: float) -> float:
        return count * math.log((1 - rho * r) ** 2 / ((1 - rho**2) * (1 - r**2)))

    expected = crossings(of_correlation, -1 + 1e-9, r, 1 - 1e-9)
    row = table.loc["corr CL~V1"]
    np.testing.assert_allclose([row["LO95"], row["HI95"]], expected, atol=0.01)


# ---- a likelihood that is known by quadrature


@pytest.fixture(scope="module")
def fitted() -> neuralpk.FittedModel:
    return neuralpk.fit(quadrature.cohort(16, fewest=3), CompartmentModel(1), error=AdditiveError(), progress=False)


def greatest(at: Tensor, held: list[int], people: Cohort, curvature: Tensor) -> float:
    """log p(data) at its maximum over all coordinates but those that are held."""
    moving = [k for k in range(len(at)) if k not in held]
    at = at.clone()
    for _ in range(20):
        here = at.requires_grad_(True)
        value = quadrature.log_likelihood(here, people).sum()
        (slope,) = torch.autograd.grad(value, here)
        at = at.detach().clone()
        step = torch.linalg.solve(curvature[moving][:, moving], slope[moving])
        at[moving] -= step.clamp(-0.3, 0.3)
        if float(step.abs().max()) < 3e-3:
            break
    return float(value.detach())


def test_minus_two_log_likelihood_is_a_quantile_above_its_minimum_at_the_ends(fitted: neuralpk.FittedModel) -> None:
    people, model = quadrature.cohort(16, fewest=3), fitted.task.model
    at = quadrature.coordinates(model).detach()
    curvature = torch.autograd.functional.hessian(lambda x: quadrature.log_likelihood(x, people).sum(), at)
    top = greatest(at, [], people, curvature)
    table = fitted.population.set_index("PARAMETER")
    assert (table["INTERVAL"] == "profile").all()
    ends = {0: table.loc["CL", ["LO95", "HI95"]], 3: table.loc["V1", ["OMEGA_LO95", "OMEGA_HI95"]]}
    for k, both in ends.items():
        for end in both.to_numpy(dtype=float):
            start = at.clone()
            start[k] = math.log(end)
            assert 2 * (top - greatest(start, [k], people, curvature)) == pytest.approx(DROP, abs=0.15), (k, end)


def test_every_estimate_lies_inside_its_interval(fitted: neuralpk.FittedModel) -> None:
    table = fitted.population.set_index("PARAMETER")
    assert ((table["LO95"] < table["ESTIMATE"]) & (table["ESTIMATE"] < table["HI95"])).all()
    omega = table.loc[["CL", "V1"]]
    assert ((omega["OMEGA_LO95"] < omega["OMEGA"]) & (omega["OMEGA"] < omega["OMEGA_HI95"])).all()


def test_the_model_stays_as_it_was_and_without_convergence_intervals_are_symmetric(
    fitted: neuralpk.FittedModel,
) -> None:
    model, people = fitted.task.model, quadrature.cohort(16, fewest=3)
    before = quadrature.coordinates(model)
    batch = evaluation_batch(model, people)
    rows = standard_errors(model, batch, model.typical(16)).rows
    torch.testing.assert_close(quadrature.coordinates(model), before, rtol=0.0, atol=0.0)
    for row in rows:
        assert row["INTERVAL"] == "wald"
        assert float(row["LO95"]) * float(row["HI95"]) == pytest.approx(float(row["ESTIMATE"]) ** 2)


def test_draws_of_the_population_are_as_wide_as_the_profile_intervals(fitted: neuralpk.FittedModel) -> None:
    model, status = fitted.task.model, fitted.task.status
    batch = evaluation_batch(model, quadrature.cohort(16, fewest=3))
    wald, profile = (standard_errors(model, batch, model.typical(16), status=one) for one in (None, status))
    ratio = profile.parameter_draws / wald.parameter_draws
    names = [one.name for one in model.coordinates()]
    k, row = names.index("omega CL"), profile.rows[0]
    for up, end in ((True, "OMEGA_HI95"), (False, "OMEGA_LO95")):
        expected = math.log(float(row[end]) / float(row["OMEGA"])) / (1.96 * float(wald.covariance[k, k].sqrt()))
        chosen = ratio[(wald.parameter_draws[:, k] > 0) == up, k]
        torch.testing.assert_close(chosen, torch.full_like(chosen, abs(expected)), rtol=1e-4, atol=0.0)
        assert abs(abs(expected) - 1) > 0.01  # -2LL is no parabola


# ---- boundaries


def test_the_interval_of_an_omega_that_may_be_nothing_begins_at_zero() -> None:
    data = SimulatedPKDataModule(
        subjects=20, compartments=1, typical={"CL": 4.0, "V1": 70.0}, omega={"CL": 0.3, "V1": 0.0}, samples=4, seed=2
    )
    fitted = neuralpk.fit(data.part("train"), CompartmentModel(1), progress=False)
    table = fitted.population.set_index("PARAMETER")
    row = table.loc["V1"]
    assert row["OMEGA_INTERVAL"] == "profile"
    assert row["OMEGA_LO95"] == 0.0 < row["OMEGA"] < row["OMEGA_HI95"] < 0.3
    assert table.loc["CL", "OMEGA_LO95"] > 0.1


def test_an_end_to_which_the_draws_at_the_estimate_do_not_reach_is_that_of_a_fit_with_this_number_fixed() -> None:
    cohort = SimulatedPKDataModule(
        subjects=8,
        samples=4,
        seed=3,
        compartments=1,
        absorption="first_order",
        typical={"CL": 4.0, "V1": 70.0, "KA": 1.0},
        covariates={"WT": [50.0, 90.0]},
    ).part("train")
    dynamics = CompartmentModel(1, "first_order")
    free = neuralpk.fit(cohort, dynamics, progress=False)
    row = free.population.set_index("PARAMETER").loc["KA"]
    # the estimate is no variability at all
    assert row["OMEGA_INTERVAL"] == "profile" and row["OMEGA_LO95"] == 0.0 and row["OMEGA"] == pytest.approx(0.02)
    parameters = PopulationParameters(omega={"KA": row["OMEGA_HI95"]}, fixed=["omega KA"])
    held = neuralpk.fit(cohort, dynamics, parameters=parameters, progress=False)
    assert free.task.covariance is not None and held.task.covariance is not None
    drop = 2 * (free.task.covariance.log_likelihood - held.task.covariance.log_likelihood)
    assert drop == pytest.approx(DROP, abs=0.4)


def test_a_parameter_without_variability_has_an_interval_and_a_fixed_one_has_none(
    fitted: neuralpk.FittedModel,
) -> None:
    people = quadrature.cohort(16, fewest=3)
    parameters = PopulationParameters({"CL": 5.0}, distributions={"V1": NoVariability()}, fixed=["CL"])
    table = neuralpk.fit(people, CompartmentModel(1), parameters=parameters, error=AdditiveError(), progress=False)
    rows = table.population.set_index("PARAMETER")
    assert rows.loc["CL", "INTERVAL"] == "" and math.isnan(rows.loc["CL", "LO95"])
    assert rows.loc["V1", "INTERVAL"] == "profile"
    assert rows.loc["V1", "LO95"] < rows.loc["V1", "ESTIMATE"] < rows.loc["V1", "HI95"]
