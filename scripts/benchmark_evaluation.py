"""How often the checks of ``neuralpk evaluate`` fail a right and a wrong model, and how long they take.

``size``: studies that are simulated from the model that is evaluated, without a fit: 50 patients, 8 samples.

===========  =======================================================================================================
oral         one compartment, one oral dose, combined error, exact times
repeated     one compartment, infusions of 1 h every 12 h, six times; troughs and peaks at times that jitter by 30 min,
             values below a limit of quantification (about 10 %)
===========  =======================================================================================================

``power``: a right and a wrong structure, each fitted to the study by maximum likelihood and then evaluated on it:

===========  =======================================================================================================
compartment  truth two compartments, intravenous bolus of 100; wrong: one compartment
saturable    truth Michaelis-Menten elimination, intravenous bolus of 30, 100 or 300; wrong: linear
===========  =======================================================================================================

``time``: 1,000 patients with 8 samples, 500 simulated studies, curves without intervals.

    python scripts/benchmark_evaluation.py size --studies 100
    python scripts/benchmark_evaluation.py power --studies 50
    python scripts/benchmark_evaluation.py time
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from quiet_training import train

from neuralpk.cohort import Cohort, Dose, Subject
from neuralpk.cohort_simulation import Design, Population, simulate_cohort
from neuralpk.datamodules import CohortDataModule
from neuralpk.dynamics import structure
from neuralpk.evaluation import Evaluation, evaluate
from neuralpk.fitting import FittedModel
from neuralpk.objectives import MarginalLikelihood
from neuralpk.published_population import PublishedPopulation
from neuralpk.residual_error import CombinedError, ProportionalError
from neuralpk.saved_model import SavedPopulation
from neuralpk.task import LatentTask

PATIENTS = 50
SAMPLES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 12.0, 24.0)
ORAL = {
    "dynamics": {"compartments": 1, "absorption": "first_order"},
    "typical": {"KA": 1.0, "CL": 4.0, "V1": 40.0},
    "omega": {"KA": 0.4, "CL": 0.3, "V1": 0.2},
    "error": "combined",
    "error_sd": {"a": 0.05, "b": 0.15},
}
INFUSED = {
    "dynamics": {"compartments": 1},
    "typical": {"CL": 8.0, "V1": 40.0},
    "omega": {"CL": 0.3, "V1": 0.2},
    "error": "combined",
    "error_sd": {"a": 0.05, "b": 0.15},
}
LIMIT = 0.35
TROUGHS_AND_PEAKS = (1.25, 4.0, 11.5, 13.25, 35.5, 37.25, 59.5, 61.25)
ELIMINATION = {
    "compartment": (
        "two_compartment_bolus",
        "one_compartment_bolus",
        Population({"CL": 5.0, "V1": 20.0, "Q": 8.0, "V2": 40.0}, {"CL": 0.3, "V1": 0.25, "Q": 0.25, "V2": 0.25}),
        (100.0,),
    ),
    "saturable": (
        "one_compartment_bolus_michaelis_menten",
        "one_compartment_bolus",
        Population({"VMAX": 10.0, "KM": 1.0, "V1": 20.0}, {"VMAX": 0.3, "V1": 0.25}),
        (30.0, 100.0, 300.0),
    ),
}


class Given(CohortDataModule):
    """A cohort that is in memory."""

    def __init__(self, cohort: Cohort, **options: Any) -> None:
        super().__init__(**options)
        self.cohort = cohort

    def make_cohort(self) -> Cohort:
        return self.cohort


def population(plain: dict[str, Any]) -> SavedPopulation:
    """A model whose numbers are all given."""
    return SavedPopulation(Path("the simulating model"), PublishedPopulation.from_plain(plain))


def oral_study(seed: int, patients: int = PATIENTS) -> Cohort:
    """One oral dose."""
    dynamics = structure("one_compartment_oral")
    design = Design(((Dose(0.0, 100.0),),), SAMPLES)
    error = CombinedError.from_values(**ORAL["error_sd"])
    drawn = Population(ORAL["typical"], ORAL["omega"])
    return simulate_cohort(dynamics, drawn, design, error, patients, seed)


def repeated_study(seed: int) -> Cohort:
    """Infusions every 12 h with troughs and peaks, at times that jitter, and values below a limit."""
    dynamics = structure("one_compartment_infusion")
    doses = tuple(Dose(12.0 * k, 100.0, duration=1.0) for k in range(6))
    generator = np.random.default_rng(seed)
    error, drawn = CombinedError.from_values(**INFUSED["error_sd"]), Population(INFUSED["typical"], INFUSED["omega"])
    subjects: list[Subject] = []
    for k in range(PATIENTS):
        times = np.sort(np.array(TROUGHS_AND_PEAKS) + generator.uniform(-0.45, 0.2, len(TROUGHS_AND_PEAKS)))
        one = simulate_cohort(dynamics, drawn, Design((doses,), tuple(times)), error, 1, PATIENTS * seed + k)[0]
        below = one.values < LIMIT
        values = np.where(below, LIMIT, one.values)
        subjects.append(
            dataclasses.replace(one, id=str(k + 1), values=values, censored=below.astype(np.int64), truth=None)
        )
    return Cohort(tuple(subjects))


def size(kind: str, seed: int, simulations: int) -> tuple[Evaluation, float]:
    """An evaluation of the simulating model, and the share of the percentiles within their bands."""
    cohort, model = (oral_study(seed), ORAL) if kind == "oral" else (repeated_study(seed), INFUSED)
    found = evaluate(population(model), cohort, simulations=simulations, draws=0, seed=seed)
    return found, within_bands(found)


def within_bands(found: Evaluation) -> float:
    """Share of the observed percentiles of the VPC and the prediction-corrected one within their 90 % bands."""
    inside = []
    for name in ("vpc", "pcvpc"):
        frame = found.data(name)
        for percentile in ("P5", "P50", "P95"):
            low, seen, high = (frame[f"{percentile}_{part}"].to_numpy() for part in ("LO90", "OBSERVED", "HI90"))
            known = ~np.isnan(seen) & ~np.isnan(high)
            low = np.where(np.isnan(low), -np.inf, low)
            inside += list((low <= seen)[known] & (seen <= high)[known])
    return float(np.mean(inside))


def power(kind: str, seed: int, simulations: int) -> dict[str, Evaluation]:
    """Evaluations of the right and the wrong structure, each fitted to the study."""
    true, wrong, drawn, amounts = ELIMINATION[kind]
    design = Design(tuple((Dose(0.0, amount),) for amount in amounts), SAMPLES)
    cohort = simulate_cohort(structure(true), drawn, design, ProportionalError.from_values(b=0.15), PATIENTS, seed)
    found = {}
    for name, fitted in (("right", true), ("wrong", wrong)):
        task = LatentTask(structure(fitted), objective=MarginalLikelihood(), error=ProportionalError(), seed=seed)
        train(task, Given(cohort, passes_per_epoch=20, seed=seed), 10)
        found[name] = evaluate(FittedModel(task, cohort), cohort, simulations=simulations, draws=0, seed=seed)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("size", "power", "time"))
    parser.add_argument("--studies", type=int, default=50, help="of each kind")
    parser.add_argument("--first", type=int, default=0, help="seed of the first study")
    parser.add_argument("--simulations", type=int, default=500)
    parser.add_argument("--kinds", nargs="*", help="some of the kinds")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    if options.what == "time":
        cohort = oral_study(0, 1000)
        evaluate(population(ORAL), cohort[:5], simulations=100, draws=0)  # compiles
        began, used = time.perf_counter(), time.process_time()
        evaluate(population(ORAL), cohort, simulations=options.simulations, draws=0)
        print(f"{time.perf_counter() - began:.1f} s, {time.process_time() - used:.1f} s of one core")
    for kind in options.kinds or (("oral", "repeated") if options.what == "size" else tuple(ELIMINATION)):
        if options.what == "size":
            rows = []
            for seed in range(options.first, options.first + options.studies):
                found, inside = size(kind, seed, options.simulations)
                rows.append((found.npde_p < 0.05, not found.verdict["adequate"], inside))
            rejected, flagged, inside = np.mean(rows, axis=0)
            print(
                f"{kind}: {options.studies} studies, NPDE rejects {100 * rejected:.1f} %, flagged {100 * flagged:.1f} %"
            )
            print(f"  percentiles within their bands {100 * inside:.1f} %", flush=True)
        elif options.what == "power":
            seen: dict[str, list[bool]] = {"right": [], "wrong": []}
            for seed in range(options.first, options.first + options.studies):
                for name, found in power(kind, seed, options.simulations).items():
                    seen[name].append(not found.verdict["adequate"])
                    print(f"  {kind} {seed} {name}: {found.sentence}", flush=True)
            said = ", ".join(f"{name} flagged {sum(one)} of {len(one)}" for name, one in seen.items())
            print(f"{kind}: {said}", flush=True)


if __name__ == "__main__":
    main()
