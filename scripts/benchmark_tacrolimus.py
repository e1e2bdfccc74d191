"""How well is a transplant patient's exposure to tacrolimus estimated from three samples, beside those who know more?

Simulated as published: a depot and three transit compartments, then two compartments; two
formulations, 800 patients to learn from, 200 others to score on, sampled 0, 1 and 3 h after the last of seven doses.
The target is the area under the concentration (AUC) over the interval after that dose. Scenario 1 is as published; in 2
a haematocrit that acts on clearance is hidden; in 3 elimination is saturable, which nobody is told but the oracle.

One model with the same settings in every scenario, trained on the samples of the 800 alone; recalibrated, its areas are
multiplied by one factor for each formulation, found on training patients whose AUC the regressions know as well.
"""

import argparse
import dataclasses
import importlib.util
import itertools
import json
import logging
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from quiet_training import train
from rich.console import Console
from rich.progress import track
from rich.table import Table

from neuralpk.cohort import Cohort, Dose, FloatArray, Subject, Units
from neuralpk.datamodules.base import CohortDataModule
from neuralpk.dynamics import CompartmentModel
from neuralpk.encoders import PriorEncoder
from neuralpk.inference import importance
from neuralpk.inference.interval import interval
from neuralpk.inference.joint import given_context
from neuralpk.inference.mode import most_probable
from neuralpk.models import IndividualParameters, LatentODE
from neuralpk.reconstruction import evaluation_batch
from neuralpk.residual_error import CombinedError
from neuralpk.rows import select
from neuralpk.scaling import Scaling
from neuralpk.simulate import Design, Population, simulate_cohort
from neuralpk.solve import SolverOptions
from neuralpk.tasks import LatentODETask

# h, L and µg, so that concentrations are in ng/mL
TYPICAL = {"CL": 21.2, "V1": 486.0, "Q": 79.0, "V2": 271.0, "KTR": 3.34}
SATURABLE = {"VMAX": 212.0, "KM": 10.0}
VARIANCE = {"KTR": 0.06, "CL": 0.08, "Q": 0.29, "V1": 0.10, "V2": 0.36, "VMAX": 0.08, "KM": 0.10}
ERROR = {"a": 0.71, "b": 0.113}
HAEMATOCRIT, STEEPNESS, RANGE = 35.0, -3.14, (25.0, 45.0)
INTERVAL = {1.0: 12.0, 0.0: 24.0}  # of formulation P (1) and A (0)
DOSES = tuple(1000.0 * mg for mg in (2, 2.5, 3, 3.5, 4, 4.5, 5))
REPEATS, SAMPLED = 7, (0.0, 1.0, 3.0)

# Gauss-Legendre over the interval after the last dose, in parts that are shortest where the line bends most
CUTS, NODES = (0.0, 1 / 8, 1 / 3, 1.0), 8
_x, _w = np.polynomial.legendre.leggauss(NODES)
POINTS = np.concatenate([a + (b - a) * (_x + 1) / 2 for a, b in itertools.pairwise(CUTS)])
WEIGHTS = np.concatenate([(b - a) * _w / 2 for a, b in itertools.pairwise(CUTS)])

# started from round numbers of the literature's order. The dose is among what acts on clearance: a clearance that falls
# with it is what a linear field can know of a saturable elimination
MODEL: dict[str, Any] = {
    "dynamics": {
        "field": "mechanistic",
        "compartments": 2,
        "absorption": "transit",
        "transits": 3,
        "omega": 0.4,
        "typical": {"CL": 30.0, "V1": 300.0, "Q": 50.0, "V2": 500.0, "KTR": 2.0},
        "effects": {"CL": ["CYP", "DOSE", "P"], "V1": ["P"], "Q": ["P"], "V2": ["P"], "KTR": ["P"]},
    },
    "error": "combined",
    "draws": 4,
    "refine": 4,  # few draws need to lie where they belong
    "learning_rate": 0.02,
}
EPOCHS, BATCH = 13, 50

HALFWAY = 0.5  # of the point without bias: half the bias for next to no error
_STREAM = 1 << 47
_PART = 40  # patients weighed at once: bounds the memory


class SumError(CombinedError):
    """y = f + (a + b·f)·e: standard deviations add, not variances."""

    def sd(self, prediction: torch.Tensor, endpoint: torch.Tensor) -> torch.Tensor:
        return self._sd("a", endpoint) + self._sd("b", endpoint) * prediction.abs()


class HiddenHaematocrit(IndividualParameters):
    """A last latent dimension is the haematocrit, uniform in the population; it acts on clearance."""

    def forward(self, z: torch.Tensor, covariates: torch.Tensor) -> torch.Tensor:
        theta = super().forward(z[:, :-1], covariates)
        share = torch.special.ndtr(z[:, -1])
        factor = ((RANGE[0] + (RANGE[1] - RANGE[0]) * share) / HAEMATOCRIT) ** STEEPNESS
        cl = theta[:, :1] * factor[:, None]
        return torch.cat([cl, theta[:, 1:]], dim=1)  # CL is the first parameter of the linear model


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
    """Patients in pairs of one of formulation A and one of P, with the true line at the nodes of the integral."""
    typical, effects = population(scenario)
    law: dict[str, Any] = {"CYP": 0.5}
    if scenario == 2:
        law["HT"] = RANGE
        effects = effects | {("CL", "HT"): STEEPNESS}
    halves = []
    for p, every in sorted(INTERVAL.items()):
        last = (REPEATS - 1) * every
        design = Design(
            regimens=tuple((Dose(0.0, amount, interval=every, additional=REPEATS - 1),) for amount in DOSES),
            times=tuple(last + t for t in SAMPLED),
            grid=tuple((last + every * POINTS).tolist()),
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
            SumError.known(**ERROR),
            subjects // 2,
            2 * seed + int(p),
        )
        halves.append([_as_recorded(subject, f"{'AP'[int(p)]}{subject.id}") for subject in people])
    pairs = [subject for pair in zip(*halves, strict=True) for subject in pair]
    return Cohort(tuple(pairs), Units(amount="µg", value="ng/mL"))


def _as_recorded(subject: Subject, name: str) -> Subject:
    """With the dose among what is known of it, and without the haematocrit."""
    known = {key: subject.covariates[key] for key in ("CYP", "P")} | {"DOSE": subject.doses[0].amount}
    return dataclasses.replace(subject, id=name, covariates=known)


def intervals(people: Cohort) -> FloatArray:
    """Dosing interval of each patient."""
    return np.array([INTERVAL[float(s.covariates["P"])] for s in people])


def true_lines(people: Cohort) -> FloatArray:
    """Noise-free concentrations at the nodes, ``[subject, node]``."""
    return np.stack([s.truth.line[:, 0] for s in people])


def areas(lines: FloatArray, people: Cohort) -> FloatArray:
    """AUC over the interval after the last dose, of lines ``[subject, ..., node]``."""
    area = lines @ WEIGHTS
    return area * intervals(people).reshape(-1, *[1] * (area.ndim - 1))


def known_model(scenario: int, hidden: bool) -> LatentODE:
    """The true population of a scenario, with the haematocrit that is hidden or without."""
    typical, effects = population(scenario)
    omega = {name: math.sqrt(VARIANCE[name]) for name in typical}
    scaling = Scaling(covariates={"CYP": (0.0, 1.0, False), "P": (0.0, 1.0, False)})
    individual = (HiddenHaematocrit if hidden else IndividualParameters).known(typical, omega, effects, scaling)
    individual.latent_size += hidden
    encoder = PriorEncoder(scaling, individual.latent_size)
    options = SolverOptions(rtol=1e-4, atol=1e-2)
    return LatentODE(encoder, individual, dynamics(scenario), SumError.known(**ERROR), options).double()


@torch.no_grad()
def posterior(model: LatentODE, people: Cohort, draws: int, seed: int) -> tuple[FloatArray, FloatArray]:
    """Lines drawn for each patient from its samples, ``[subject, draw, node]``, and their weights; with 0 draws the
    line at the most probable parameters."""
    batch = given_context(evaluation_batch(model, people))
    last = (REPEATS - 1 + POINTS) * intervals(people)[:, None]
    nodes = torch.as_tensor(last, dtype=batch.time.dtype)
    mode = most_probable(model, batch, model.encoder(batch).mean)
    lines, weights = [], []
    for part in torch.split(torch.arange(len(batch)), _PART):
        own = batch.select(part)
        z, weight = mode.z[part, None], torch.ones(len(own), 1)
        if draws:
            noise = importance.noise(seed, _STREAM, own.index, draws, z.shape[2], z.dtype)
            drawn = importance.draw(model, own, select(mode, part), noise)
            z, weight = drawn.z, drawn.weight
        count = z.shape[1]
        line = model.lines(z.flatten(0, 1), own.repeat(count), nodes[part].repeat_interleave(count, dim=0))
        # a draw that could not be solved has no weight
        lines.append(line[..., 0].nan_to_num(1.0).reshape(len(own), count, -1))
        weights.append(weight)
    return torch.cat(lines).double().numpy(), torch.cat(weights).double().numpy()


class Patients(CohortDataModule):
    """The patients to learn from.

    Args:
        people: all of them.
        options: of `CohortDataModule`.
    """

    def __init__(self, people: Cohort, **options: Any) -> None:
        super().__init__(**options)
        self.people = people

    def make_cohort(self) -> Cohort:
        return self.people


def learn(people: Cohort, seed: int, epochs: int) -> LatentODE:
    """A model of the patients' samples; it is told neither the scenario nor any area."""
    L.seed_everything(seed, verbose=False)  # before the networks draw their first weights
    data = Patients(people, batch_size=BATCH, seed=seed)
    task = LatentODETask(scaling=data.scaling(), objective="iwae", seed=seed, **MODEL)
    train(task, data, epochs)
    return task.model.eval().requires_grad_(False)


@dataclass(frozen=True)
class Estimate:
    """What an estimator says of each patient.

    Args:
        area: AUC, ``[subject]``.
        ends: of its 90 % interval, ``[2, subject]``, or None.
        lines: at the nodes, ``[subject, node]``, or None.
    """

    area: FloatArray
    ends: FloatArray | None = None
    lines: FloatArray | None = None


def inputs(people: Cohort) -> FloatArray:
    """What a regression is told: logarithms of the samples and of the dose, formulation and CYP3A5."""
    samples = np.log(np.stack([s.values for s in people]).clip(min=0.1))
    known = [[math.log(s.covariates["DOSE"]), s.covariates["P"], s.covariates["CYP"]] for s in people]
    return np.hstack([samples, known])


def by_formula(train: Cohort, test: Cohort) -> Estimate:
    """Limited sampling: for each formulation an AUC linear in the samples, dose and CYP3A5, by least squares of the
    relative error."""
    known, area = areas(true_lines(train), train), np.empty(len(test))
    told, asked = (
        np.stack([[1.0, *s.values, s.covariates["DOSE"] / 1000, s.covariates["CYP"]] for s in people])
        for people in (train, test)
    )
    for every in INTERVAL.values():
        own, new = intervals(train) == every, intervals(test) == every
        weighted = told[own] / known[own, None]
        area[new] = asked[new] @ np.linalg.lstsq(weighted, np.ones(len(weighted)), rcond=None)[0]
    return Estimate(area)


def by_regression(make: Callable[[], Any], train: Cohort, test: Cohort) -> Estimate:
    """A learner of scikit-learn, on logarithms."""
    learner = make().fit(inputs(train), np.log(areas(true_lines(train), train)))
    return Estimate(np.exp(learner.predict(inputs(test))))


def by_draws(model: LatentODE, people: Cohort, draws: int, seed: int, unbiased: float = 0.0) -> Estimate:
    """Point, 90 % interval and mean line of the posterior.

    Args:
        model: trained or known.
        people: whose samples are given.
        draws: of each.
        seed: of the draws.
        unbiased: 0 takes the point of least squared relative error, E[1/AUC]/E[1/AUC²], which lies low; 1 the point
            without relative bias, 1/E[1/AUC]; between them their weighted geometric mean.
    """
    lines, weights = posterior(model, people, draws, seed)
    area = areas(lines, people)
    ends = interval(torch.as_tensor(area), torch.as_tensor(weights)).numpy()
    first, second = (weights / area).sum(1), (weights / area**2).sum(1)
    best = (first / second) ** (1 - unbiased) * first**-unbiased
    return Estimate(best, ends, (weights[..., None] * lines).sum(1))


def recalibrated(estimate: Estimate, people: Cohort, known: Estimate, patients: Cohort) -> Estimate:
    """An estimate times one factor for each formulation, by which those of patients with known AUC are right on
    average."""
    ratio = known.area / areas(true_lines(patients), patients)
    factor = np.empty(len(people))
    for every in INTERVAL.values():
        factor[intervals(people) == every] = 1 / ratio[intervals(patients) == every].mean()
    assert estimate.ends is not None and estimate.lines is not None
    return Estimate(estimate.area * factor, estimate.ends * factor, estimate.lines * factor[:, None])


def by_mode(model: LatentODE, people: Cohort) -> Estimate:
    """The most probable parameters."""
    lines = posterior(model, people, 0, 0)[0][:, 0]
    return Estimate(areas(lines, people), None, lines)


def regressors(seed: int) -> dict[str, Callable[[], Any]]:
    """Learners of scikit-learn by name; none where it is not installed."""
    if importlib.util.find_spec("sklearn") is None:
        return {}
    from sklearn.ensemble import GradientBoostingRegressor
    from sklearn.neural_network import MLPRegressor
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def boosting() -> Any:
        return GradientBoostingRegressor(
            n_estimators=300, learning_rate=0.05, max_depth=3, subsample=0.7, random_state=seed
        )

    def perceptron() -> Any:
        network = MLPRegressor(
            hidden_layer_sizes=(32, 32), alpha=0.1, max_iter=2000, early_stopping=True, random_state=seed
        )
        return make_pipeline(StandardScaler(), network)

    return {"gradient boosting": boosting, "MLP": perceptron}


def score(estimate: Estimate, people: Cohort) -> dict[str, float | None]:
    """Errors and calibration, in percent; None for what an estimator does not say."""
    true, area = true_lines(people), areas(true_lines(people), people)
    error = (estimate.area - area) / area
    covered = line = None
    if estimate.ends is not None:
        covered = 100 * float(np.mean((estimate.ends[0] <= area) & (area <= estimate.ends[1])))
    if estimate.lines is not None:
        line = 100 * float(np.mean(np.sqrt((estimate.lines - true) ** 2 @ WEIGHTS / (true**2 @ WEIGHTS))))
    rmspe, bias = 100 * float(np.sqrt(np.mean(error**2))), 100 * float(error.mean())
    return {"rmspe": rmspe, "bias": bias, "cover90": covered, "line_rrmse": line}


def run(scenario: int, seed: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Every estimator on one cohort."""
    people = simulate(scenario, options.train + options.test, seed)
    train, test = people[: options.train], people[options.train :]
    rows: list[dict[str, Any]] = []

    def add(name: str, make: Callable[[], Estimate]) -> Estimate:
        started = time.perf_counter()
        estimate = make()
        row = {"scenario": scenario, "seed": seed, "estimator": name} | score(estimate, test)
        rows.append(row | {"seconds": round(time.perf_counter() - started, 1)})
        return estimate

    models: list[LatentODE] = []

    def learned() -> Estimate:
        models.append(learn(train, seed, options.epochs))
        return by_draws(models[0], test, options.draws, seed, HALFWAY)

    def calibrated() -> Estimate:
        some = train[: options.test]
        return recalibrated(own, test, by_draws(models[0], some, options.draws, seed, HALFWAY), some)

    own = add("neuralpk", learned)
    add("neuralpk, recalibrated", calibrated)
    add("limited-sampling formula", lambda: by_formula(train, test))
    for name, make in regressors(seed).items():
        add(name, partial(by_regression, make, train, test))
    add("MAP, published linear model", lambda: by_mode(known_model(1, hidden=False), test))
    oracle = known_model(scenario, hidden=scenario == 2)
    add("Bayes, true generator", lambda: by_draws(oracle, test, options.draws, seed))
    return rows


def show(rows: list[dict[str, Any]], console: Console) -> None:
    """Means over seeds with their range."""
    seeds = len({row["seed"] for row in rows})
    table = Table(title=f"AUC after the last dose, %: mean over {seeds} seed(s) (smallest to largest)")
    for column in ("scenario", "estimator", "RMSPE", "bias", "90 % interval covers", "line", "s"):
        table.add_column(column, no_wrap=True)
    groups: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["scenario"], row["estimator"]), []).append(row)
    for (scenario, name), group in groups.items():
        cells = []
        for key in ("rmspe", "bias", "cover90", "line_rrmse"):
            found = [row[key] for row in group if row[key] is not None]
            cells.append(f"{np.mean(found):.1f} ({min(found):.1f} to {max(found):.1f})" if found else "")
        table.add_row(str(scenario), name, *cells, f"{np.median([row['seconds'] for row in group]):.0f}")
    console.print(table)


def main() -> None:
    """Run the scenarios and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--scenarios", nargs="+", type=int, default=[1, 2, 3], choices=[1, 2, 3])
    parser.add_argument("--train", type=int, default=800, help="patients to learn from")
    parser.add_argument("--test", type=int, default=200, help="patients to score on")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--draws", type=int, default=200, help="of each patient's parameters")
    parser.add_argument("--json", type=Path, help="where to write every figure")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    console = Console(width=130)
    if not regressors(0):
        console.print(
            "left out, without scikit-learn: boosting, MLP (pip install -r scripts/requirements-tacrolimus.txt)"
        )
    rows: list[dict[str, Any]] = []
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    for scenario, seed in track(list(itertools.product(options.scenarios, seeds)), "learn and score", console=console):
        rows += run(scenario, seed, options)
        if options.json:
            options.json.write_text(json.dumps(rows, indent=1))
    show(rows, console)


if __name__ == "__main__":
    main()
