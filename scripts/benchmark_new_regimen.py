"""How well is a regimen predicted that no patient of the training had?

180 patients get 3.6 mg/kg every 21 days, four times; 20 new ones get 2.4 mg/kg every 7 days, nine times. Two
compartments, a clearance that falls by 20 % with 0.03 per day, proportional error of 15 %, samples after .04, 1, 3, 7,
14 and 21 days of the first and the last cycle and before the others. The samples of the first 7 days of the new
patients are seen; scored is the root mean square error of the median curve against their true lines from day 7 to day
63. The oracle has the true equations and population. Hybrid: the mechanism without the fall of the clearance, and a
network that knows the time, between the compartments (`hybrid`) or as a factor of the clearance (`clearance`). Neural:
compartments whose rate constants are a network.
"""

import argparse
import json
import logging
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from quiet_training import train
from rich.console import Console
from rich.table import Table

from neuralpk import randomness
from neuralpk.cohort import Cohort, Dose, Subject, Units
from neuralpk.datamodules import CohortDataModule
from neuralpk.decoders import GRU
from neuralpk.dosing import Regimen, SimulatedPatients
from neuralpk.dosing.regimen_simulation import course_values
from neuralpk.dynamics import (
    CompartmentModel,
    Decoder,
    Equations,
    HybridDynamics,
    NeuralCompartments,
    NeuralField,
    NeuralFlows,
)
from neuralpk.encoders import SetEncoder
from neuralpk.individual_estimates import draw_individuals, evaluation_batch
from neuralpk.objectives import MarginalLikelihood
from neuralpk.population_model import PopulationModel
from neuralpk.published_population import PublishedPopulation
from neuralpk.randomness import Stream
from neuralpk.residual_error import ProportionalError
from neuralpk.task import LatentTask

UNITS = Units("d", "mg", "mg/L")
TRUTH = {
    "dynamics": {"compartments": 2, "elimination": "time_varying"},
    "typical": {"CL": 0.7, "CLR": 0.8, "KCL": 0.03, "V1": 3.1, "Q": 1.5, "V2": 0.7},
    "omega": {"CL": 0.2, "V1": 0.13, "Q": 0.4, "V2": 0.4},
    "error": "proportional",
    "error_sd": {"b": 0.15},
    "units": UNITS._asdict(),
}
TRAINED, NEW = Regimen.parse("3.6 mg/kg q21d x 4", UNITS), Regimen.parse("2.4 mg/kg q7d x 9", UNITS)
REST = Regimen.parse("2.4 mg/kg q7d x 8", UNITS)
BEFORE = 0.01  # days between a sample and the dose after it
SEEN_UNTIL, LINE = 7.0, np.arange(0.0, 56.0, 0.25) + 0.1
CLEARANCE = """
parameters: CL = 1, V1 = 4, Q = 1, V2 = 1
change = network(t, zero_at=0, range=(-1, 1))
central' = -CL*(1 + change)*C - Q*(C - C2)
peripheral' = Q*(C - C2)
C = central/V1
C2 = peripheral/V2
outputs: C
"""
MODELS: dict[str, Callable[[], Decoder]] = {
    "hybrid": lambda: HybridDynamics(CompartmentModel(2), NeuralFlows(time=True)),
    "clearance": lambda: Equations(CLEARANCE),
    "neural": lambda: NeuralCompartments(time=True),
    "latent ODE": NeuralField,
    "GRU": GRU,
}


class Given(CohortDataModule):
    """A cohort that is in memory."""

    def __init__(self, cohort: Cohort, **options: Any) -> None:
        super().__init__(**options)
        self.cohort = cohort

    def make_cohort(self) -> Cohort:
        return self.cohort


def simulated(count: int, regimen: Regimen, seed: int) -> tuple[Cohort, SimulatedPatients]:
    """Patients under a regimen with all their samples, and their true parameters."""
    (course,) = regimen.courses
    starts, cycle = course.times, course.interval
    after = [t for t in (0.04, 1.0, 3.0, 7.0, 14.0, 21.0) if t <= cycle]
    samples = sorted({*after, *starts[2:], *(starts[-1] + t for t in after)})
    times = np.array([t - BEFORE if t in starts else t for t in samples])
    index = torch.arange(count)
    weight = 70 * np.exp(0.2 * randomness.normal(seed, Stream.SCRIPT.at(0), index, 1)[:, 0].numpy())
    people = [
        Subject(str(k + 1), times, np.full(len(times), np.nan), regimen.doses(0.0, w), covariates={"WT": float(w)})
        for k, w in enumerate(weight)
    ]
    cohort = Cohort(tuple(people), UNITS)
    model = PublishedPopulation.from_plain(TRUTH).model(cohort)
    batch = evaluation_batch(model, cohort)
    z = randomness.normal(seed, Stream.SCRIPT.at(1), index, model.latent_size)
    noise = randomness.normal(seed, Stream.SCRIPT.at(2), index, len(times))
    with torch.no_grad():
        values = model.simulate(z, noise, batch).value.numpy()
    seen = [
        Subject(s.id, s.times, row, s.doses, covariates=s.covariates) for s, row in zip(people, values, strict=True)
    ]
    return Cohort(tuple(seen), UNITS), SimulatedPatients(cohort, [model], [z[:, None]])


def first_week(cohort: Cohort) -> Cohort:
    """What is known of the new patients at day 7: one dose, and the samples until then."""
    people = []
    for s in cohort:
        kept = s.times <= SEEN_UNTIL
        doses: tuple[Dose, ...] = tuple(dose for dose in s.doses if dose.time < SEEN_UNTIL)
        people.append(Subject(s.id, s.times[kept], s.values[kept], doses, covariates=s.covariates))
    return Cohort(tuple(people), UNITS)


def predicted(model: PopulationModel, seen: Cohort, encoder: Any = None, search: bool = True) -> np.ndarray:
    """Median curve of every new patient from day 7 on, ``[subject, time]``."""
    drawn = draw_individuals(model, seen, 200, encoder=encoder, map=search, population_known=True)
    people = SimulatedPatients(seen, drawn.models, drawn.z)
    values, _ = course_values(people, REST, LINE, np.full(len(seen), SEEN_UNTIL))
    return np.nanmedian(values[..., 0], axis=1)


def learned(name: str, cohort: Cohort, epochs: int, seed: int) -> LatentTask:
    """A model that has seen the patients of the other regimen."""
    objective = MarginalLikelihood()
    task = LatentTask(MODELS[name](), error=ProportionalError(), encoder=SetEncoder(), objective=objective, seed=seed)
    train(task, Given(cohort, passes_per_epoch=10, seed=seed, context="random"), epochs)
    return task.eval()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--epochs", type=int, default=20, help="of 10 passes over the patients")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="file for the numbers")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    cohort, _ = simulated(180, TRAINED, options.seed)
    new, truth = simulated(20, NEW, options.seed + 1)
    seen = first_week(new)
    line = course_values(truth, NEW, LINE + SEEN_UNTIL)[0][:, 0, :, 0]
    found: dict[str, dict[str, float]] = {}

    def score(name: str, curves: np.ndarray, seconds: float) -> None:
        error = float(np.sqrt(np.mean((curves - line) ** 2)))
        found[name] = {"rmse": error, "seconds": seconds}
        found[name]["to_oracle"] = error / found["oracle"]["rmse"]
        if options.json:
            options.json.write_text(json.dumps(found, indent=1))

    score("oracle", predicted(PublishedPopulation.from_plain(TRUTH).model(seen), seen), 0.0)
    for name in options.models:
        start = time.perf_counter()
        task = learned(name, cohort, options.epochs, options.seed)
        curves = predicted(task.model, seen, task.encoder, task.objective.searches_map)
        score(name, curves, time.perf_counter() - start)
    table = Table("model", "RMSE from day 7 (mg/L)", "over the oracle", "seconds")
    for name, row in found.items():
        table.add_row(name, f"{row['rmse']:.2f}", f"{row['to_oracle']:.2f}", f"{row['seconds']:.0f}")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
