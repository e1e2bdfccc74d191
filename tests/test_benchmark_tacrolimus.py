"""The tacrolimus benchmark: its patients are those of the study, and its table is made."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

SCRIPTS = Path(__file__).parent.parent / "scripts"


@pytest.fixture
def simulation(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    from tacrolimus_benchmark import simulation

    return simulation


@pytest.fixture
def baselines(simulation):
    from tacrolimus_benchmark import baselines

    return baselines


@pytest.fixture
def model(simulation):
    from tacrolimus_benchmark import model

    return model


def test_typical_patients_are_those_of_the_study(simulation):
    people = simulation.simulate(1, 56, seed=0, typical_only=True)
    area = simulation.areas(simulation.true_lines(people), people)
    for subject, found in zip(people, area, strict=True):
        (dose,) = subject.doses
        slow = subject.covariates["P"] == 0
        assert dose.interval == (24.0 if slow else 12.0) and dose.additional == 6
        assert np.allclose(subject.times - 6 * dose.interval, [0, 1, 3])
        clearance = 21.2 * 2 ** subject.covariates["CYP"]
        # dose/CL at steady state, less what the slow phase still keeps back after seven doses
        assert 0.97 < found / (dose.amount / clearance) < 1
        true = subject.truth.parameters
        assert true["V1"] == pytest.approx(486 * (1 if slow else 0.29))
        assert true["KTR"] == pytest.approx(3.34 * (1 if slow else 1.53))
    assert {s.covariates["P"] for s in people} == {0.0, 1.0} == {s.covariates["CYP"] for s in people}
    assert {s.doses[0].amount for s in people} == {2000, 2500, 3000, 3500, 4000, 4500, 5000}


def test_the_hidden_haematocrit_is_what_acts_on_clearance(simulation, model):
    plain, hidden = (simulation.simulate(k, 40, seed=1) for k in (1, 2))
    assert hidden.covariate_names == plain.covariate_names == ("CYP", "DOSE", "P")
    share = np.array([b.truth.parameters["CL"] / a.truth.parameters["CL"] for a, b in zip(plain, hidden, strict=True)])
    # a sample from almost the whole of it
    low, high = (45 / 35) ** -3.14, (25 / 35) ** -3.14
    assert low - 1e-9 < share.min() < 1.3 * low and 0.7 * high < share.max() < high + 1e-9
    # the oracle's haematocrit has the same limits, whatever its z
    oracle = model.known_model(2, hidden=True)
    z = torch.zeros(3, 6, dtype=torch.float64)
    z[:, -1] = torch.tensor([-9.0, 0.0, 9.0])
    cl = oracle.population(z, torch.zeros(3, 1, 2, dtype=torch.float64))[:, 0, 0]
    assert torch.allclose(cl, 21.2 * torch.tensor([25.0, 35.0, 45.0]).double().div(35) ** -3.14)


def test_standard_deviations_add(simulation):
    error = simulation.SumError.from_values(a=0.71, b=0.113)
    sd = error.sd(torch.tensor([0.0, 10.0]), torch.tensor([0, 0]))
    assert sd.tolist() == pytest.approx([0.71, 1.84])


def test_no_multiple_of_the_mean_sample_beats_the_formula(simulation, baselines):
    people = simulation.simulate(1, 40, seed=2)
    area = baselines.by_formula(people, people).area
    true = simulation.areas(simulation.true_lines(people), people)
    # by least squares no other formula, such as the best multiple of the mean sample, does better
    mean = np.array([s.values.mean() for s in people])
    for interval in (12.0, 24.0):
        own = simulation.intervals(people) == interval
        ratio = mean[own] / true[own]
        other = ratio.sum() / (ratio @ ratio) * ratio - 1
        assert np.square(area[own] / true[own] - 1).sum() <= np.square(other).sum()


@pytest.mark.slow
def test_the_script_prints_its_table(tmp_path):
    file = tmp_path / "rows.json"
    settings = "--seeds 1 --scenarios 1 2 --train 40 --test 6 --epochs 1 --draws 20"
    command = [sys.executable, str(SCRIPTS / "benchmark_tacrolimus.py"), *settings.split(), "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = json.loads(file.read_text())
    names = {"neuralpk", "limited-sampling formula", "MAP, published linear model", "Bayes, true generator"}
    for scenario in (1, 2):
        assert names <= {row["estimator"] for row in rows if row["scenario"] == scenario}
    keys = {"scenario", "seed", "estimator", "rmspe", "bias", "cover90", "line_rrmse", "seconds"}
    assert all(set(row) == keys and math.isfinite(row["rmspe"]) for row in rows)
    assert "RMSPE" in done.stdout
