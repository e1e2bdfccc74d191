"""How often does the chosen dose reach its target, beside the oracle, and do the stated probabilities hold?

Simulated patients, two compartments, 1000 mg over 1 h, samples after 2, 8 and 11.5 h with a combined error. Target:
AUC24 from 400 to 600 at steady state, by 500 to 2000 mg in steps of 250 mg every 8, 12 or 24 h. Rows: the program with
the true population; the program with populations that it fitted, with their uncertainty, each to 200 other patients
with 6 samples and used for its share of the patients; the oracle, which has the true population and the posterior by
weights of 100,000 draws of it.
"""

import argparse
import json
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from rich.table import Table

from neuralpk import fit, randomness
from neuralpk.cohort import Cohort, Dose, Subject
from neuralpk.dosing import SimulatedPatients, Target, select_doses
from neuralpk.dynamics import CompartmentModel
from neuralpk.individual_estimates import draw_individuals, evaluation_batch
from neuralpk.parameters import PopulationParameters
from neuralpk.population_model import PopulationModel
from neuralpk.published_population import PublishedPopulation
from neuralpk.randomness import Stream
from neuralpk.residual_error import CombinedError

TRUTH = {
    "dynamics": {"compartments": 2},
    "typical": {"CL": 4.5, "V1": 30.0, "Q": 6.0, "V2": 30.0},
    "cv": {"CL": 40, "V1": 25, "V2": 30},
    "error": "combined",
    "error_sd": {"a": 0.5, "b": 0.15},
}
SEEN, OF_FIT = (2.0, 8.0, 11.5), (1.0, 2.0, 4.0, 8.0, 12.0, 24.0)
DOSES, EVERY = [500.0 + 250.0 * k for k in range(7)], [8.0, 12.0, 24.0]
LOW, HIGH = 400.0, 600.0
TOGETHER, DRAWS, OF_ORACLE, BINS = 50, 500, 100_000, 5


def simulated(count: int, times: tuple[float, ...], seed: int) -> tuple[Cohort, np.ndarray]:
    """Patients with samples, and the true clearance of each."""
    dose, nothing = (Dose(0.0, 1000.0, duration=1.0),), np.full(len(times), np.nan)
    template = Cohort((Subject("1", np.array(times), nothing, dose),))
    model = PublishedPopulation.from_plain(TRUTH).model(template)
    batch = evaluation_batch(model, template).repeat(count)
    index = torch.arange(count)
    z = randomness.normal(seed, Stream.SCRIPT.at(0), index, model.latent_size)
    noise = randomness.normal(seed, Stream.SCRIPT.at(1), index, len(times))
    with torch.no_grad():
        values = model.simulate(z, noise, batch).value.numpy()
        clearance = model.individual_parameters(z, batch)["CL"].numpy()
    # what an assay reports below its limit is no part of this question
    people = [Subject(str(k + 1), np.array(times), np.maximum(row, 0.05), dose) for k, row in enumerate(values)]
    return Cohort(tuple(people)), clearance


def chosen_by_program(model: PopulationModel, cohort: Cohort) -> pd.DataFrame:
    """The choice of every patient: daily amount and stated probability."""
    target = Target.parse(f"AUC24 {LOW:g}-{HIGH:g}")
    parts = []
    for first in range(0, len(cohort), TOGETHER):
        people = cohort[first : first + TOGETHER]
        drawn = draw_individuals(model, people, DRAWS)
        found = select_doses(SimulatedPatients(people, drawn.models, drawn.z), target, DOSES, EVERY, infusion=1.0)
        parts.append(found.chosen())
    rows = pd.concat(parts, ignore_index=True)
    return pd.DataFrame({"DAILY": 24 * rows["DOSE"] / rows["EVERY"], "PROB": rows["PROB"]})


def chosen_by_oracle(cohort: Cohort) -> pd.DataFrame:
    """The same with the true population and weighted draws of it."""
    model = PublishedPopulation.from_plain(TRUTH).model(cohort)
    batch = evaluation_batch(model, cohort)
    z = randomness.normal(0, Stream.SCRIPT.at(2), torch.arange(OF_ORACLE), model.latent_size)
    daily = np.unique([24 * dose / tau for dose in DOSES for tau in EVERY])
    rows = []
    with torch.no_grad():
        one = batch.select(torch.zeros(OF_ORACLE, dtype=torch.long))
        predicted, clearance = model.predict(z, one).value, model.individual_parameters(z, one)["CL"].numpy()
        reached = (daily / clearance[:, None] >= LOW) & (daily / clearance[:, None] <= HIGH)
        for k in range(len(batch)):
            here = batch.select(torch.full((OF_ORACLE,), k))
            weight = torch.softmax(model.error.log_likelihood(here, predicted).sum(1), dim=0).numpy()
            probability = weight @ reached
            best = int(np.argmax(probability.round(9)))
            rows.append({"DAILY": daily[best], "PROB": probability[best]})
    return pd.DataFrame(rows)


def fitted(seed: int) -> PopulationModel:
    """The population as the program learns it."""
    cohort, _ = simulated(200, OF_FIT, seed)
    parameters = PopulationParameters(omega={"CL": 0.3, "V1": 0.3, "Q": 0.0, "V2": 0.3})
    task = fit(cohort, CompartmentModel(2), parameters=parameters, error=CombinedError(), progress=False).task
    if not task.model.has_parameter_draws:
        task.covariance_step(cohort)
    return task.model.double()


def chosen_by_fits(cohort: Cohort, fits: int, seed: int) -> pd.DataFrame:
    """The same with populations that the program has fitted."""
    parts = []
    for k, group in enumerate(np.array_split(np.arange(len(cohort)), fits), start=1):
        model = fitted(seed + k)
        values = {name: round(value, 3) for name, value in model.reported_values().items()}
        print(f"population {k}: {values}", flush=True)
        parts.append(chosen_by_program(model, cohort[int(group[0]) : int(group[-1]) + 1]))
    return pd.concat(parts, ignore_index=True)


def judged(chosen: pd.DataFrame, clearance: np.ndarray) -> dict[str, object]:
    """Share of patients whose true AUC24 lies in the range, the stated one, and both in bins of equal size."""
    area = chosen["DAILY"].to_numpy() / clearance
    hit = (area >= LOW) & (area <= HIGH)
    order = np.argsort(chosen["PROB"].to_numpy(), kind="stable")
    bins = [
        {"stated": float(chosen["PROB"].to_numpy()[part].mean()), "attained": float(hit[part].mean())}
        for part in np.array_split(order, BINS)
    ]
    return {"attained": float(hit.mean()), "stated": float(chosen["PROB"].mean()), "bins": bins}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patients", type=int, default=2000)
    parser.add_argument("--fits", type=int, default=10, help="fitted populations, each for its share of the patients")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="file for the numbers")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    cohort, clearance = simulated(options.patients, SEEN, options.seed)
    true_model = PublishedPopulation.from_plain(TRUTH).model(cohort)
    chosen_by_program(true_model, cohort[:2])  # compiles the kernels
    found: dict[str, dict[str, object]] = {}
    for name, work in {
        "oracle": lambda: chosen_by_oracle(cohort),
        "true population": lambda: chosen_by_program(true_model, cohort),
        "fitted populations": lambda: chosen_by_fits(cohort, options.fits, options.seed),
    }.items():
        start = time.process_time()
        chosen = work()
        seconds = (time.process_time() - start) / len(cohort)
        found[name] = judged(chosen, clearance) | {"seconds_per_patient": seconds, "patients": len(cohort)}
        if options.json:
            options.json.write_text(json.dumps(found, indent=1))
    table = Table("choice by", "attained", "stated", *(f"bin {k + 1}" for k in range(BINS)), "CPU s")
    for name, row in found.items():
        bins = [f"{100 * one['stated']:.0f} → {100 * one['attained']:.0f}" for one in row["bins"]]  # type: ignore[attr-defined]
        shares = [f"{100 * row[key]:.1f} %" for key in ("attained", "stated")]  # type: ignore[operator]
        table.add_row(name, *shares, *bins, f"{row['seconds_per_patient']:.2f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
