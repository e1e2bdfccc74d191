"""How long does the estimate of a patient take: by the encoder, by MAP (maximum a posteriori), with intervals?

Patients with two compartments after an IV bolus, 8 samples each, one thread. Encoder: z, parameters and curve at 200
times for 1,000 patients in one batch, with mechanistic and with neural dynamics. MAP: 10,000 patients through the
solver, each until no step improves the estimate, with the true population. MAP with 90 % intervals: 1,000 of these
patients, from 100 draws each.
"""

import argparse
import json
import logging
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import lightning as L
import numpy as np
import torch
from quiet_training import train
from rich.console import Console
from rich.table import Table

from neuralpk.cohort import Cohort
from neuralpk.datamodules import SimulatedPKDataModule
from neuralpk.dynamics import CompartmentModel, NeuralCompartments
from neuralpk.encoders import SetEncoder
from neuralpk.individual_estimates import IndividualEstimates, estimate_individuals
from neuralpk.objectives import MarginalLikelihood
from neuralpk.population_model import PopulationModel
from neuralpk.published_population import PublishedPopulation
from neuralpk.task import LatentTask

ESTIMATED, SEARCHED, DRAWS = 1_000, 10_000, 100
DYNAMICS = {"mechanistic": CompartmentModel, "neural": NeuralCompartments}
TRUTH = {
    "dynamics": {"compartments": 2},
    "typical": {"CL": 4.0, "V1": 70.0, "Q": 4.0, "V2": 50.0},
    "omega": dict.fromkeys(("CL", "V1", "Q", "V2"), 0.3),
    "error": "proportional",
    "error_sd": {"b": 0.2},
}
TIMES = np.linspace(0.25, 72.0, 200).tolist()


def patients(count: int) -> Cohort:
    """The patients to estimate."""
    return SimulatedPKDataModule(subjects=50, test_subjects=count, samples=8, grid=[0.25, 72.0, 2]).part("test")


def trained(dynamics: str) -> LatentTask:
    """A model after a short training: its estimates are timed, not scored."""
    data = SimulatedPKDataModule(subjects=50, samples=8, context="random")
    L.seed_everything(0, verbose=False)
    task = LatentTask(DYNAMICS[dynamics](), encoder=SetEncoder(), objective=MarginalLikelihood(draws=8))
    train(task, data, 20)
    return task.eval()


def seconds(work: Callable[[], object], repeats: int) -> float:
    """Median time of several runs, after a first run that compiles the kernels."""
    found = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        work()
        found.append(time.perf_counter() - began)
    return float(np.median(found[1:]))


def intervals(model: PopulationModel, people: Cohort) -> IndividualEstimates:
    """MAP estimates with intervals, with a fixed population."""
    return estimate_individuals(model, people, TIMES, draws=DRAWS, population_known=True)


def measure(repeats: int) -> list[dict[str, float | int | str]]:
    """Time of every method on its patients."""
    rows: list[dict[str, float | int | str]] = []

    def add(way: str, count: int, work: Callable[[], object]) -> None:
        rows.append({"way": way, "patients": count, "seconds": seconds(work, repeats)})

    people = patients(ESTIMATED)
    for dynamics in DYNAMICS:
        task = trained(dynamics)
        add(f"encoder, {dynamics}", ESTIMATED, lambda task=task: task.reconstruct(people, TIMES, 0, map=False))
    many = patients(SEARCHED)
    known = PublishedPopulation.from_plain(TRUTH).model(many)
    add("MAP", SEARCHED, lambda: estimate_individuals(known, many, [0.25, 72.0], draws=0))
    add("MAP, intervals", ESTIMATED, lambda: intervals(known, people))
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="number of runs, of which the median is printed")
    parser.add_argument("--json", type=Path, help="file for all numbers")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    rows = measure(options.repeats)
    table = Table("method", "patients", "s", "ms a patient")
    for row in rows:
        each = 1e3 * float(row["seconds"]) / int(row["patients"])
        table.add_row(str(row["way"]), str(row["patients"]), f"{row['seconds']:.2f}", f"{each:.2f}")
    Console().print(table)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
