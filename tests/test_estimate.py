"""Estimates by a published population: against SciPy and FOCEI, and a file with a fault is refused by its name."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import io
import re
import warnings
from importlib import resources
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from published import THEOPHYLLINE
from scipy.optimize import minimize

from neuralpk import datasets
from neuralpk.cli import main
from neuralpk.cohort import Cohort, Dose, Subject
from neuralpk.cohort_batch import collate
from neuralpk.cohort_simulation import Design, Population, omega_from_cv, simulate_cohort
from neuralpk.diagnostics.metrics import shrinkage
from neuralpk.dynamics import CompartmentModel
from neuralpk.individual_estimates import IndividualEstimates, _reaching, estimate_individuals
from neuralpk.parameters import PopulationParameters
from neuralpk.published_population import PublishedPopulation
from neuralpk.residual_error import AdditiveError, CombinedError
from neuralpk.tables import write_table

PAGE = Path(__file__).parents[1] / "docs" / "estimate.md"
BOLUS = {
    "dynamics": {"compartments": 1},
    "typical": {"CL": 5.0, "V1": 20.0},
    "omega": {"CL": 0.4, "V1": 0.25},
    "effects": {"CL~WT": 0.75, "V1~WT": 1.0, "CL~SEX": -0.3},
    "references": {"WT": 70.0},
    "error": "combined",
    "error_sd": {"a": 0.05, "b": 0.2},
}
DOSE = 100.0
TIMES = np.array([0.5, 1.0, 3.0, 8.0, 12.0])


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


def patients(count: int = 6) -> Cohort:
    """Patients far from the typical one, the last with a single sample."""
    generator = np.random.default_rng(3)
    people = []
    for k in range(count):
        times = TIMES[:1] if k == count - 1 else TIMES
        clearance, volume = np.exp(np.array([1.6, 3.0]) + generator.normal(0, 0.5, 2))
        line = DOSE / volume * np.exp(-clearance / volume * times)
        values = np.maximum(line * (1 + 0.2 * generator.normal(size=len(times))), 0.01)
        covariates = {"WT": 45.0 + 12 * k, "SEX": float(k % 2), "AGE": 40.0}
        people.append(Subject(str(k), times, values, (Dose(0.0, DOSE),), covariates=covariates))
    return Cohort(tuple(people))


def mode_by_scipy(subject: Subject, correlation: float = 0.0) -> np.ndarray:
    """eta over omega that minimises −log p(y, eta) of `BOLUS`, written out by hand."""
    precision = np.linalg.inv([[1.0, correlation], [correlation, 1.0]])
    weight, sex = subject.covariates["WT"], subject.covariates["SEX"]

    def cost(z: np.ndarray) -> float:
        clearance = 5.0 * (weight / 70.0) ** 0.75 * np.exp(-0.3 * sex) * np.exp(0.4 * z[0])
        volume = 20.0 * (weight / 70.0) * np.exp(0.25 * z[1])
        f = DOSE / volume * np.exp(-clearance / volume * subject.times)
        variance = 0.05**2 + (0.2 * f) ** 2
        return 0.5 * np.sum((subject.values - f) ** 2 / variance + np.log(variance)) + 0.5 * z @ precision @ z

    found = minimize(cost, np.zeros(2), method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-12, "maxiter": 4000})
    return np.asarray(found.x)


def estimated(plain: dict, cohort: Cohort, draws: int = 0) -> IndividualEstimates:
    return estimate_individuals(PublishedPopulation.from_plain(plain).model(cohort), cohort, draws=draws)


def changed(plain: dict, **groups: object) -> dict:
    """Settings with some groups replaced, or left out where None."""
    return {name: value for name, value in (copy.deepcopy(plain) | groups).items() if value is not None}


# ---- estimates


def test_the_map_is_that_of_an_independent_search() -> None:
    cohort = patients()
    result = estimated(BOLUS, cohort)
    expected = np.stack([mode_by_scipy(subject) for subject in cohort])
    assert np.abs(expected).max() > 0.8
    np.testing.assert_allclose(result.z, expected, atol=1e-3)


def test_a_full_omega_is_the_prior_of_an_independent_search() -> None:
    cohort = patients()
    result = estimated(changed(BOLUS, correlation={"VC~CL": 0.7}, effects=None, references=None), cohort)
    plain = Cohort(tuple(dataclasses.replace(subject, covariates={"WT": 70.0, "SEX": 0.0}) for subject in cohort))
    expected = np.stack([mode_by_scipy(subject, 0.7) for subject in plain])
    assert np.abs(expected - np.stack([mode_by_scipy(subject) for subject in plain])).max() > 0.05
    found = [
        np.log(result.parameters[name][0] / BOLUS["typical"][name]) / BOLUS["omega"][name] for name in ("CL", "V1")
    ]
    # a search ends where a step would gain less than 1e-5: within .005 of a posterior standard deviation
    np.testing.assert_allclose(np.stack(found, axis=1), expected, atol=2e-3)


def test_covariates_enter_as_a_power_of_the_ratio_and_as_a_factor() -> None:
    cohort = patients(4)
    model = PublishedPopulation.from_plain(BOLUS).model(cohort)
    batch = collate(cohort.with_covariates(["SEX", "WT"]), dtype=torch.float64)
    theta = model.population(model.typical(4), batch.covariates)[:, 0].numpy()
    weight = np.array([subject.covariates["WT"] for subject in cohort]) / 70
    np.testing.assert_allclose(theta[:, 0], 5 * weight**0.75 * np.exp([0, -0.3, 0, -0.3]), rtol=1e-12)
    np.testing.assert_allclose(theta[:, 1], 20 * weight, rtol=1e-12)


@pytest.mark.filterwarnings("ignore:subject .* residual beyond 6")  # of such a population
def test_a_parameter_without_variability_stays_at_its_typical_value() -> None:
    fixed = changed(BOLUS, omega={"CL": 0.4}, effects=None, references=None)
    for plain in (fixed, changed(fixed, omega={"CL": 0.4, "V1": 0})):
        result = estimated(plain, patients(), draws=20)
        for values in result.parameters["V1"]:
            np.testing.assert_allclose(values, 20.0, rtol=1e-12)
        assert np.ptp(result.parameters["CL"][0]) > 1


def test_percent_and_the_standard_deviation_of_eta_say_the_same() -> None:
    cv = {"CL": 30.0, "V1": 20.0}
    omega = {name: omega_from_cv(percent) for name, percent in cv.items()}
    by_cv, by_omega = (
        PublishedPopulation.from_plain(changed(BOLUS, omega=o, cv=c)) for o, c in ((None, cv), (omega, None))
    )
    assert by_cv == by_omega


def test_other_names_of_the_volumes_are_understood() -> None:
    plain = {
        "dynamics": {"compartments": 2},
        "typical": {"VC": 10.0, "VP": 20.0, "CL": 3.0, "Q": 2.0},
        "omega": {"VC": 0.2},
        "effects": {"VP~WT": 1},
        "references": {"WT": 70},
        "error": "proportional",
        "error_sd": {"b": 0.1},
    }
    population = PublishedPopulation.from_plain(plain)
    assert population.typical == {"CL": 3.0, "V1": 10.0, "Q": 2.0, "V2": 20.0}
    assert (population.omega, population.effects) == ({"V1": 0.2}, {("V2", "WT"): 1.0})


def test_a_patient_who_was_not_sampled_is_the_typical_one() -> None:
    planned = Subject("1", np.array([4.0]), np.array([np.nan]), (Dose(0.0, DOSE),), covariates={"WT": 35.0, "SEX": 0.0})
    result = estimated(BOLUS, Cohort((planned,)), draws=400)
    estimate, lower, upper = (float(values[0]) for values in result.parameters["V1"])
    assert estimate == pytest.approx(10.0)
    # 1.645 standard deviations of eta to either side
    assert np.log([lower / 10, upper / 10]) == pytest.approx([-0.411, 0.411], abs=0.08)


@pytest.mark.filterwarnings("ignore:subject .* residual beyond 6")
def test_a_sample_before_the_dose_does_not_break_a_proportional_error() -> None:
    subject = Subject("1", np.array([0.0, 2.0, 9.0]), np.array([0.1, 3.0, 0.9]), (Dose(1.0, DOSE),))
    plain = changed(BOLUS, effects=None, references=None, error="proportional", error_sd={"b": 0.2})
    after = Subject("1", subject.times[1:], subject.values[1:], subject.doses)
    with pytest.warns(UserWarning, match=r"subject 1 .*measured before the first dose"):
        with_it = estimated(plain, Cohort((subject,))).z
    without = estimated(plain, Cohort((after,))).z
    np.testing.assert_allclose(with_it, without, atol=1e-6)


@pytest.mark.parametrize(
    ("dynamics", "typical"),
    [
        ({"compartments": 1, "elimination": "michaelis_menten"}, {"VMAX": 30.0, "KM": 2.0, "V1": 20.0}),
        ({"compartments": 1, "absorption": "transit", "transits": 2}, {"CL": 5.0, "V1": 20.0, "KTR": 4.0}),
        ({"compartments": 1, "absorption": "first_order", "lag": True}, {"CL": 5.0, "V1": 20.0, "KA": 2.0, "LAG": 0.2}),
    ],
)
def test_any_dynamics_recovers_a_patient_from_many_exact_samples(dynamics: dict, typical: dict) -> None:
    plain = {"dynamics": dynamics, "typical": typical, "omega": dict.fromkeys(typical, 0.3)}
    plain |= {"error": "proportional", "error_sd": {"b": 0.002}}
    times = np.linspace(0.4, 12, 30)
    blank = Subject("1", times, np.ones(30), (Dose(0.0, DOSE),))
    if "absorption" in dynamics:
        blank = Subject("1", times, np.ones(30), (Dose(0.0, DOSE),), compartments=np.full(30, 2))
    model = PublishedPopulation.from_plain(plain).model(Cohort((blank,)))
    z = torch.linspace(-0.8, 0.9, len(typical), dtype=torch.float64)[None]
    values = model.predict(z, collate([blank], dtype=torch.float64)).value[0].numpy()
    seen = Subject("1", times, values, blank.doses, compartments=blank.compartments)
    np.testing.assert_allclose(estimated(plain, Cohort((seen,))).z, z.numpy(), atol=0.02)


def test_a_patient_is_estimated_the_same_among_others_and_in_parts(monkeypatch) -> None:
    cohort = patients()
    parts: list[int] = []
    model = PublishedPopulation.from_plain(BOLUS).model(cohort)
    whole = estimate_individuals(model, cohort, draws=40)
    monkeypatch.setattr("neuralpk.individual_estimates._SOLVED_AT_ONCE", 80)
    split = estimate_individuals(
        model, cohort, draws=40, progress=lambda given: [parts.append(len(p)) or p for p in given]
    )
    assert parts == [2, 2, 2]
    pd.testing.assert_frame_equal(split.individuals(), whole.individuals(), rtol=1e-9)
    pd.testing.assert_frame_equal(split.curves(), whole.curves(), rtol=1e-9)


def test_the_intervals_of_simulated_patients_hold_the_truth_nine_times_in_ten() -> None:
    plain = changed(BOLUS, effects=None, references=None)
    population = Population(plain["typical"], plain["omega"])
    design = Design(((Dose(0.0, DOSE),),), (0.5, 2.0, 6.0, 12.0), samples=2)
    error = CombinedError.from_values(**plain["error_sd"])
    cohort = simulate_cohort(CompartmentModel(1), population, design, error, 300, seed=1)
    result = estimated(plain, cohort, draws=50)
    for name in ("CL", "V1"):
        true = np.array([subject.truth.parameters[name] for subject in cohort])
        _, lower, upper = result.parameters[name]
        # two and a half standard errors of a share of 300
        assert np.mean((lower < true) & (true < upper)) == pytest.approx(0.9, abs=0.045)


def with_lag(times: list[float], values: list[float], dose: float) -> Cohort:
    """A patient with a dose in the depot and samples of the central compartment."""
    where = np.full(len(times), 2)
    return Cohort((Subject("1", np.array(times), np.array(values), (Dose(0.0, dose),), compartments=where),))


def test_a_sample_before_the_typical_lag_rules_out_the_typical_patient() -> None:
    plain = {
        "dynamics": {"compartments": 1, "absorption": "first_order", "lag": True},
        "typical": {"CL": 4.0, "V1": 70.0, "KA": 1.0, "LAG": 1.0},
        "omega": dict.fromkeys(("CL", "V1", "KA", "LAG"), 0.447),
        "error": "proportional",
        "error_sd": {"b": 0.2236},
    }
    result = estimated(plain, with_lag([0.25, 4.4, 7.1, 24.6], [12.0, 105.0, 92.0, 35.0], 1e4), draws=400)
    found = {name: [float(one[0]) for one in values] for name, values in result.parameters.items()}
    # the 90 % intervals of three million draws of the prior, weighted by their likelihood
    expected = {
        "CL": (4.39, 2.90, 5.14),
        "V1": (73.5, 54.6, 100.4),
        "KA": (1.55, 0.83, 2.63),
        "LAG": (0.198, 0.145, 0.218),
    }
    for name, (mode, lower, upper) in expected.items():
        assert found[name][0] == pytest.approx(mode, rel=0.01)
        assert found[name][1:] == pytest.approx([lower, upper], rel=0.1)


def test_of_two_maxima_the_higher_is_found_and_the_interval_is_that_of_both() -> None:
    plain = {
        "dynamics": {"compartments": 1, "absorption": "first_order", "lag": True},
        "typical": {"CL": 4.0, "V1": 20.0, "KA": 1.0, "LAG": 1.0},
        "omega": {"KA": 0.7, "LAG": 0.6},
        "error": "additive",
        "error_sd": {"a": 0.25},
    }
    times, values = np.array([0.5, 1.0, 1.5, 2.0, 4.0, 8.0]), np.array([0.0, 0.6, 0.9, 1.8, 2.7, 1.7])
    # the posterior on a grid, written out by hand; its maxima are on both sides of a lag of 1
    axis = np.linspace(-4, 4, 401)
    absorption, lag = np.meshgrid(np.exp(0.7 * axis), np.exp(0.6 * axis), indexing="ij")
    since = np.maximum(times - lag[..., None], 0.0)
    rate = absorption[..., None]
    line = 5.0 * rate / (rate - 0.2) * (np.exp(-0.2 * since) - np.exp(-rate * since))
    log_p = -0.5 * (((values - line) / 0.25) ** 2).sum(-1) - 0.5 * (axis[:, None] ** 2 + axis**2)
    weight = np.exp(log_p - log_p.max())
    before = np.where(lag < 1, log_p, -np.inf).max()
    after = np.where(lag > 1.05, log_p, -np.inf).max()
    assert 1 < before - after < 2
    result = estimated(plain, with_lag(list(times), list(values), 100.0), draws=2000)
    top = np.unravel_index(log_p.argmax(), log_p.shape)
    np.testing.assert_allclose(result.z[0], axis[list(top)], atol=0.03)
    for name, omega, summed in (("KA", 0.7, 1), ("LAG", 0.6, 0)):
        share = np.cumsum(weight.sum(summed)) / weight.sum()
        ends = [float(np.log(end[0]) / omega) for end in result.parameters[name][1:]]
        np.testing.assert_allclose(ends, np.interp([0.05, 0.95], share, axis), atol=0.12)


def test_an_interval_reaches_as_far_as_the_estimate_and_one_that_is_far_away_is_named() -> None:
    estimate, ends = torch.tensor([1.0, 2.05, 5.0]), torch.tensor([[0.5, 1.0, 1.0], [1.5, 2.0, 2.0]])
    with pytest.warns(UserWarning, match="subject c: the most probable CL") as said:
        reaching = _reaching(estimate, ends, ("a", "b", "c"), "CL")
    assert len(said) == 1
    torch.testing.assert_close(reaching, torch.tensor([[0.5, 1.0, 1.0], [1.5, 2.05, 5.0]]))
    assert bool(_reaching(estimate, torch.full((2, 3), torch.nan), ("a", "b", "c"), "CL").isnan().all())


def test_a_search_without_an_end_is_named(monkeypatch) -> None:
    monkeypatch.setattr("neuralpk.inference.map._LONGEST_STEP", 1e-6)
    with pytest.warns(UserWarning, match="subject 0, 1: the search"):
        estimated(BOLUS, patients()[:2])


def test_theophylline_by_the_focei_values_shrinks_as_focei_says() -> None:
    result = estimated(THEOPHYLLINE, datasets.theophylline())
    omega = np.array([omega_from_cv(THEOPHYLLINE["cv"][name]) for name in ("CL", "V1", "KA")])
    # of nlmixr2's FOCEI: KA 1.9 %, CL 4.0 %, V 10.3 %
    shrunk = 100 * shrinkage(result.z * omega, omega)
    np.testing.assert_allclose(shrunk, [4.0, 10.3, 1.9], atol=2.0)


# ---- files with a fault


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        ({"typcal": {"CL": 1}}, "no key typcal"),
        ({"typical": None}, "typical"),
        ({"cv": {"CL": 30}}, "one of omega and cv"),
        ({"omega": None}, "one of omega and cv"),
        ({"dynamics": [1]}, "dynamics holds names"),
        ({"dynamics": {"compartments": 4}}, "dynamics.compartments is one of 1, 2, 3; not 4"),
        ({"dynamics": {"compartments": 1, "absorption": "oral"}}, "none, first_order, transit; not 'oral'"),
        ({"dynamics": {"compartments": 1, "elimination": ["linear"]}}, "dynamics.elimination"),
        ({"dynamics": {"compartments": 1, "lag": "yes"}}, "dynamics.lag"),
        ({"dynamics": {"field": "neural"}}, "no key field"),
        ({"typical": {"CL": 5.0}}, "typical lacks V1"),
        ({"typical": {"CL": 5.0, "V2": 20.0}}, "'V2'; these dynamics have CL, V1 (V1 is always the central volume)"),
        ({"typical": {"CL": -5.0, "V1": 20.0}}, "typical.CL must be above 0, not -5.0"),
        ({"typical": {"CL": "5e0", "V1": 20.0}}, "typical.CL must be a finite number, not '5e0'"),
        ({"typical": {"CL": float("inf"), "V1": 20.0}}, "typical.CL must be a finite number"),
        ({"typical": {"CL": True, "V1": 20.0}}, "typical.CL must be a finite number, not True"),
        ({"typical": {"CL": 5.0, "V1": 20.0, "VC": 20.0}}, "V1 twice"),
        ({"omega": [[0.1, 0.0], [0.0, 0.1]]}, "goes under correlation"),
        ({"correlation": {"CL": 0.5}}, "PARAMETER~PARAMETER"),
        ({"correlation": {"CL~KA": 0.5}}, "PARAMETER~PARAMETER"),
        ({"correlation": {"CL~V1": 1.5}}, "between -1 and 1, not 1.5"),
        ({"correlation": {"CL~V1": 0.5, "VC~CL": 0.5}}, "V1~CL twice"),
        ({"correlation": {"CL~V1": 0.5}, "omega": {"CL": 0.4}}, "must both vary"),
        ({"omega": {"KA": 0.3}}, "omega names 'KA'"),
        ({"omega": {"CL": -0.3}}, "omega.CL must not be negative"),
        ({"omega": {"CL": 40}}, "percents go under cv"),
        ({"omega": None, "cv": {"CL": 0.3}}, "cv.CL is in percent"),
        ({"effects": {"CL": 0.75}}, "PARAMETER~COVARIATE"),
        ({"effects": {"KA~WT": 0.75}}, "'KA'"),
        ({"effects": {"CL~WT": None}}, "effects.CL~WT"),
        ({"effects": {"V1~WT": 1, "VC ~ WT": 1}}, "V1~WT twice"),
        ({"references": {"WT": 0}}, "references.WT must be above 0"),
        ({"references": {"WT": 70, "AGE": 40}}, "references name AGE"),
        ({"error": "normal"}, "error is one of additive, proportional, combined, log_normal, student; not 'normal'"),
        ({"error": ["additive"]}, "error is one of"),
        ({"error_sd": {"b": 0.2}}, "error_sd of a combined error holds a and b; not b"),
        ({"error_sd": {"a": 0, "b": 0.2}}, "error_sd.a must be above 0"),
        ({"error_sd": 0.2}, "error_sd holds names"),
        ({"units": {"weight": "kg"}}, "units has no key weight"),
        ({"units": {"time": 1}}, "units.time"),
    ],
)
def test_a_population_with_a_fault_is_refused_by_its_name(groups: dict, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        PublishedPopulation.from_plain(changed(BOLUS, **groups))


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        ({"effects": {"CL~CRCL": 0.5}, "references": {"CRCL": 90.0}}, "'CRCL'; the patients' covariates: AGE, SEX, WT"),
        ({"references": None}, "subject 0: WT is 45; without a reference a covariate is 0 or 1"),
        ({"references": {"WT": 70.0, "SEX": 1.0}}, "subject 0: SEX is 0; it must be positive"),
    ],
)
def test_covariates_that_do_not_fit_the_population_are_refused(groups: dict, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        PublishedPopulation.from_plain(changed(BOLUS, **groups)).model(patients())


# ---- the command


def refusal(*arguments: str) -> str:
    """What the command says to a wrong call."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), pytest.raises(SystemExit) as refused:
        main(list(arguments))
    assert refused.value.code not in (0, None)
    return said.getvalue()


def test_estimate_runs_the_example_of_the_documentation(capsys) -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    Path("pop.yaml").write_text(example)
    with resources.as_file(resources.files("neuralpk.datasets") / "theophylline.csv") as table:
        main(["estimate", "--model", "pop.yaml", "--table", str(table), "--out", "a/b"])
    assert "12 subjects" in capsys.readouterr().out
    written = ["curves.csv", "exposure.csv", "individuals.csv", "individuals.png", "records.csv"]
    assert sorted(path.name for path in Path("a/b").iterdir()) == written
    curves, people = (pd.read_csv(f"a/b/{name}.csv") for name in ("curves", "individuals"))
    assert list(curves) == ["ID", "TIME", "PRED", "IPRED", "LO90", "HI90"]
    names = ("CL", "V1", "KA", "k10", "THALF", "ETA_CL", "ETA_V1", "ETA_KA")
    assert list(people) == ["ID", *(f"{n}{end}" for n in names for end in ("", "_LO90", "_HI90"))]
    assert people["CL"].between(1.3, 4.5).all()
    assert people["V1"].between(24, 42).all()
    assert people["KA"].between(0.3, 10).all()
    for name in ("CL", "V1", "KA"):
        assert (people[f"{name}_LO90"] < people[name]).all()
        assert (people[name] < people[f"{name}_HI90"]).all()
    cohort = datasets.theophylline()
    residuals = [
        np.interp(s.times, c["TIME"], c["IPRED"]) - s.values
        for s, (_, c) in zip(cohort, curves.groupby("ID"), strict=True)
    ]
    assert np.sqrt(np.mean(np.concatenate(residuals) ** 2)) < 0.693


def test_numbers_of_an_error_are_written_with_the_digits_of_their_precision() -> None:
    population = PopulationParameters.from_values({"CL": 5.0, "V1": 20.0}, {"CL": 0.3})
    error = AdditiveError.from_values(a=0.7)
    assert PublishedPopulation.from_parts(CompartmentModel(1), population, error).error_sd == {"a": 0.7}


def test_estimate_says_what_is_wrong_with_its_files_and_writes_nothing() -> None:
    write_table(patients(), Path("t.csv"))
    Path("pop.yaml").write_text(yaml.safe_dump(changed(BOLUS, typical={"CL": 5.0})))
    Path("word.yaml").write_text("just words")
    Path("broken.yaml").write_text("typical: {CL: 5")
    for name, said in (
        ("pop.yaml", "neuralpk estimate: typical lacks V1"),
        ("word.yaml", "word.yaml holds no population"),
        ("broken.yaml", "broken.yaml: line 1 is not YAML"),
        ("none.yaml", "none.yaml"),
    ):
        assert said in refusal("estimate", "--model", name, "--table", "t.csv", "--out", "out")
    Path("pop.yaml").write_text(yaml.safe_dump(BOLUS))
    assert "none.csv" in refusal("estimate", "--model", "pop.yaml", "--table", "none.csv", "--out", "out")
    assert "draws" in refusal("estimate", "--model", "pop.yaml", "--table", "t.csv", "--out", "out", "--draws=-1")
    assert not Path("out").exists()


def test_estimate_without_draws_has_no_intervals() -> None:
    write_table(patients(), Path("t.csv"))
    Path("pop.yaml").write_text(yaml.safe_dump(BOLUS))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        main(["estimate", "--model", "pop.yaml", "--table", "t.csv", "--out", "out", "--draws", "0"])
    people = pd.read_csv("out/individuals.csv")
    assert people["CL"].notna().all()
    assert people["CL_LO90"].isna().all()
