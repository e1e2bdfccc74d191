"""Transplant patients of a published simulation: covariates, doses and samples."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import torch

from neuralpk.cohort import Cohort, Dose, FloatArray, Subject, Units
from neuralpk.cohort_simulation import Design, Population, simulate_cohort
from neuralpk.dynamics import CompartmentModel
from neuralpk.residual_error import CombinedError

# h, L and µg, so that concentrations are in ng/mL
TYPICAL = {"CL": 21.2, "V1": 486.0, "Q": 79.0, "V2": 271.0, "KTR": 3.34}
SATURABLE = {"VMAX": 212.0, "KM": 10.0}
VARIANCE = {"KTR": 0.06, "CL": 0.08, "Q": 0.29, "V1": 0.10, "V2": 0.36, "VMAX": 0.08, "KM": 0.10}
ERROR = {"a": 0.71, "b": 0.113}
HAEMATOCRIT, STEEPNESS, RANGE = 35.0, -3.14, (25.0, 45.0)
INTERVAL = {1.0: 12.0, 0.0: 24.0}  # dosing interval of formulation P (1) and A (0)
DOSES = tuple(1000.0 * mg for mg in (2, 2.5, 3, 3.5, 4, 4.5, 5))
REPEATS, SAMPLED = 7, (0.0, 1.0, 3.0)

# Gauss–Legendre over the interval after the last dose, in parts that are shortest where the curve bends most
CUTS, NODES = (0.0, 1 / 8, 1 / 3, 1.0), 8
_x, _w = np.polynomial.legendre.leggauss(NODES)
POINTS = np.concatenate([a + (b - a) * (_x + 1) / 2 for a, b in itertools.pairwise(CUTS)])
WEIGHTS = np.concatenate([(b - a) * _w / 2 for a, b in itertools.pairwise(CUTS)])


class SumError(CombinedError):
    """y = f + (a + b·f)·e: the standard deviations add, not the variances."""

    def sd(self, prediction: torch.Tensor, endpoint: torch.Tensor) -> torch.Tensor:
        return self.by_endpoint("a", endpoint) + self.by_endpoint("b", endpoint) * prediction.abs()


def dynamics(scenario: int) -> CompartmentModel:
    """The equations of a scenario."""
    return CompartmentModel(2, "transit", "michaelis_menten" if scenario == 3 else "linear", transits=3)


def population(scenario: int) -> tuple[dict[str, float], dict[tuple[str, str], float]]:
    """Typical values and effects of covariates, as logarithms of factors."""
    typical = TYPICAL | SATURABLE if scenario == 3 else TYPICAL
    cleared = "VMAX" if scenario == 3 else "CL"
    effects = {("KTR", "P"): math.log(1.53), ("V1", "P"): math.log(0.29), (cleared, "CYP"): math.log(2.0)}
    return {name: typical[name] for name in dynamics(scenario).parameter_names}, effects


def simulate(scenario: int, subjects: int, seed: int, typical_only: bool = False) -> Cohort:
    """Patients in pairs of one of formulation A and one of P, with the true curve at the nodes of the integral."""
    typical, effects = population(scenario)
    law: dict[str, Any] = {"CYP": 0.5}
    if scenario == 2:
        law["HT"] = RANGE
        effects = effects | {("CL", "HT"): STEEPNESS}
    halves = []
    for p, interval in sorted(INTERVAL.items()):
        last = (REPEATS - 1) * interval
        design = Design(
            regimens=tuple((Dose(0.0, amount, interval=interval, additional=REPEATS - 1),) for amount in DOSES),
            times=tuple(last + t for t in SAMPLED),
            grid=tuple((last + interval * POINTS).tolist()),
        )
        people = simulate_cohort(
            dynamics(scenario),
            Population(
                typical,
                {} if typical_only else {name: math.sqrt(VARIANCE[name]) for name in typical},
                law | {"P": p},
                effects,
                {"HT": HAEMATOCRIT} if scenario == 2 else {},
            ),
            design,
            SumError.from_values(**ERROR),
            subjects // 2,
            2 * seed + int(p),
        )
        halves.append([_as_recorded(subject, f"{'AP'[int(p)]}{subject.id}") for subject in people])
    pairs = [subject for pair in zip(*halves, strict=True) for subject in pair]
    return Cohort(tuple(pairs), Units(amount="µg", value="ng/mL"))


def _as_recorded(subject: Subject, name: str) -> Subject:
    """The subject with the dose as a covariate, and without the haematocrit."""
    known = {key: subject.covariates[key] for key in ("CYP", "P")} | {"DOSE": subject.doses[0].amount}
    return dataclasses.replace(subject, id=name, covariates=known)


def intervals(people: Cohort) -> FloatArray:
    """Dosing interval of each patient."""
    return np.array([INTERVAL[float(s.covariates["P"])] for s in people])


def true_lines(people: Cohort) -> FloatArray:
    """Noise-free concentrations at the nodes, ``[subject, node]``."""
    return np.stack([s.truth.line[:, 0] for s in people])


def areas(lines: FloatArray, people: Cohort) -> FloatArray:
    """AUC over the interval after the last dose, from curves ``[subject, ..., node]``."""
    area = lines @ WEIGHTS
    return area * intervals(people).reshape(-1, *[1] * (area.ndim - 1))
