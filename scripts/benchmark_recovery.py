"""How well are a patient's curve and rate constants estimated, compared with the true population (oracle)?

Models learn from fifty patients, and are scored on these and on new ones: two compartments, an IV bolus, log-normal
parameters with omega 0.3, 20 % proportional error, n samples per patient at random times. The oracle is the same
inference (MAP, intervals by importance weights) with the true model instead of a learned one.

``--tracks own``: a model learns from the fifty patients only. ``--tracks pretrained``: it first learns from 4,000
simulated patients, each from a different population, around centres that are wrong by factors drawn for each seed. It
is scored after this pre-training, and again after it has also learned from the fifty patients.

``--tracks limit``: nothing is learned. The population is as uncertain as the data of fifty patients make it at best,
and the errors are those of estimates with such populations.
"""

import argparse
import itertools
import json
import logging
import math
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import torch
from quiet_training import train
from rich.console import Console
from rich.progress import track
from rich.table import Table

from neuralpk.cohort import Cohort
from neuralpk.datamodules import SimulatedPKDataModule
from neuralpk.decoders import GRU
from neuralpk.diagnostics.metrics import auc_relative_error, coverage, line_rrmse
from neuralpk.dynamics import CompartmentModel, Decoder, Elimination, HybridDynamics, NeuralCompartments
from neuralpk.encoders import SetEncoder
from neuralpk.estimation import standard_errors
from neuralpk.individual_estimates import IndividualEstimates, estimate_individuals, evaluation_batch
from neuralpk.inference.uncertainty_draws import drawn_models
from neuralpk.objectives import MarginalLikelihood
from neuralpk.parameters import PopulationParameters
from neuralpk.population_model import PopulationModel
from neuralpk.residual_error import ProportionalError
from neuralpk.solve import Auto
from neuralpk.task import LatentTask

# 200 times from 0.25 to 72 h, and further times to 168 h with the same spacing
GRID = [0.25, 0.25 + 71.75 / 199 * 465, 466]
TIMES, LATER = np.split(np.linspace(GRID[0], GRID[1], int(GRID[2])), [200])
RATES = ("k10", "k12", "k21")
TYPICAL = {"CL": 4.0, "V1": 70.0, "Q": 4.0, "V2": 50.0}
OMEGA = dict.fromkeys(("CL", "V1", "Q", "V2", "VMAX", "KM"), 0.3)

# the cohorts: linear elimination; saturable elimination; a clearance that decreases by half within 72 h
COHORTS: dict[str, dict[str, Any]] = {
    "linear": {"typical": TYPICAL},
    "saturable": {
        "elimination": "michaelis_menten",
        "typical": {name: TYPICAL[name] for name in ("V1", "Q", "V2")} | {"VMAX": 1.6, "KM": 0.4},
    },
    "falling": {"elimination": "time_varying", "typical": TYPICAL | {"CLR": 0.4, "KCL": math.log(6) / 72}},
}
PRIOR = {"omega": 0.4, "omega_prior_sd": 0.7}  # prior of omega, for every parameter: 0.4, within a factor of two


class Learner(NamedTuple):
    """How a model learns from the patients: dynamics, engine, objective, most epochs, prior of the population."""

    dynamics: Callable[[], Decoder]
    engine: Auto = Auto(rtol=1e-4, atol=1e-4)
    objective: Callable[[], MarginalLikelihood] = partial(MarginalLikelihood, draws=8)
    epochs: int = 12
    prior: dict[str, float] = PRIOR


LEARNERS = {
    "mechanistic": Learner(lambda: CompartmentModel(2), Auto(), MarginalLikelihood, 100),  # ends by itself
    "mechanistic without prior": Learner(lambda: CompartmentModel(2), Auto(), MarginalLikelihood, 100, {}),
    "neural": Learner(lambda: NeuralCompartments(CompartmentModel(2))),
    "neural in time": Learner(lambda: NeuralCompartments(CompartmentModel(2), time=True)),
    "hybrid": Learner(lambda: HybridDynamics(CompartmentModel(2))),
    # no ODE: a recurrent network that reads the length of each gap
    "gru": Learner(lambda: GRU(CompartmentModel(2), gap="input"), Auto()),
}
# the prior before the study: typical values, omega and error are log-uniform within the factors of POPULATIONS around
# their centres, and the centres within those of CENTRES around the truth; log(omega) has a standard deviation of 0.46
POPULATIONS = {"typical": 3.0, "omega": 2.0, "error": 2.0}
CENTRES = {"typical": 2.0, "omega": 1.5, "error": 1.5}
OMEGA_PRIOR_SD = 0.5
PRETRAINING_PATIENTS, PRETRAINING_OMEGA = 4_000, 0.7
PRETRAINING_STEPS, PRETRAINING_RATE = 5, 0.002  # steps of the MAP search; learning rate
# for the limit of fifty patients: draws of each patient's z; populations drawn around the truth
INFORMATION_DRAWS, LIMIT_POPULATIONS = 1_000, 8


def cohort(name: str, samples: int, new: int, seed: int) -> SimulatedPKDataModule:
    """Fifty patients of one cohort, and new ones."""
    settings = COHORTS[name]
    omega = {key: OMEGA[key] for key in settings["typical"] if key in OMEGA}
    return SimulatedPKDataModule(
        test_subjects=new,
        samples=samples,
        omega=omega,
        context="random",
        passes_per_epoch=20,
        seed=seed,
        grid=GRID,
        **settings,
    )


def learn(data: SimulatedPKDataModule, dynamics: str, seed: int, start: dict[str, Any] | None = None) -> LatentTask:
    """Train a model on the fifty patients, and compute the uncertainty of its population.

    Args:
        data: the patients.
        dynamics: name of the model in `LEARNERS`.
        seed: of the first weights and of the draws.
        start: parts of a task that starts from a pre-trained model.
    """
    learner = LEARNERS[dynamics]
    L.seed_everything(seed, verbose=False)  # before the first weights of the networks are drawn
    parts: dict[str, Any] = start or {
        "dynamics": learner.dynamics(),
        "parameters": PopulationParameters(**learner.prior),
        "encoder": None if dynamics.startswith("mechanistic") else SetEncoder(),
    }
    task = LatentTask(objective=learner.objective(), engine=learner.engine, seed=seed, **parts)
    train(task, data, learner.epochs, covariance=True)
    return task


def belief(seed: int) -> dict[str, Any]:
    """Centres of the prior over populations, which differ from the truth by factors drawn for the seed."""
    u = np.random.default_rng(seed).uniform(-1.0, 1.0, len(TYPICAL) + 2)
    typical = {
        name: value * float(CENTRES["typical"] ** x) for (name, value), x in zip(TYPICAL.items(), u, strict=False)
    }
    omega = {name: float(OMEGA[name] * CENTRES["omega"] ** u[-2]) for name in TYPICAL}
    return {"typical": typical, "omega": omega, "error_sd": {"b": float(0.2 * CENTRES["error"] ** u[-1])}}


def pretrain(dynamics: str, seed: int, path: Path) -> LatentTask:
    """Pre-train on simulated patients of many populations, and save the checkpoint at `path`."""
    data = SimulatedPKDataModule(
        subjects=PRETRAINING_PATIENTS,
        samples=[3, 19],
        populations=POPULATIONS,
        context="random",
        batch_size=100,
        grid=[0.25, 72.0, 2],
        seed=10_000 + seed,  # other patients than those of the study
        **belief(seed),
    )
    L.seed_everything(seed, verbose=False)
    learner = LEARNERS[dynamics]
    task = LatentTask(
        learner.dynamics(),
        # the centres are those of the simulation; omega includes the differences between populations
        parameters=PopulationParameters(typical=dict(data.population.typical), omega=PRETRAINING_OMEGA),
        encoder=SetEncoder(),
        objective=MarginalLikelihood(draws=8, map_steps=PRETRAINING_STEPS),
        engine=learner.engine,
        learning_rate=PRETRAINING_RATE,
        seed=seed,
    )
    train(task, data, 1).save_checkpoint(path)
    return task


def known_model(data: SimulatedPKDataModule, elimination: Elimination, typical: dict[str, float]) -> PopulationModel:
    """A model with these typical values and the true error; omega 0.3 where a parameter varies in the cohort."""
    dynamics = CompartmentModel(2, elimination=elimination)
    omega = {name: OMEGA.get(name, 0.0) for name in dynamics.parameter_names}
    model = PopulationModel(dynamics, PopulationParameters(typical, omega), ProportionalError(b=0.2), Auto())
    return model.build(data.scaling()).double().requires_grad_(False)


def known(model: PopulationModel, people: Cohort, times: list[float], draws: int) -> IndividualEstimates:
    """Estimates with a fixed population."""
    return estimate_individuals(model, people, times, draws=draws, population_known=True)


def scores(result: IndividualEstimates, people: Cohort) -> dict[str, float]:
    """Errors and calibration over the patients."""
    line = np.stack([s.truth.line[: len(TIMES), 0] for s in people])
    later = np.stack([s.truth.line[len(TIMES) :, 0] for s in people])
    found = result.ipred[:, : len(TIMES), 0]
    everywhere = np.ones_like(line, dtype=bool)
    lower, upper = (band[:, : len(TIMES), 0] for band in (result.lower, result.upper))
    auc = auc_relative_error(TIMES, found, line)
    out = {
        "line_rrmse": float(line_rrmse(found, line).mean()),
        "auc_rrmse": float(np.sqrt(np.mean(auc**2))),
        "later_rrmse": float(line_rrmse(result.ipred[:, len(TIMES) :, 0], later).mean()),
        "cover90_line": coverage(lower, upper, line, everywhere),
    }
    covered, width = [], []
    for name in RATES:
        if name not in result.parameters or name not in people[0].truth.parameters:
            continue
        true = np.array([s.truth.parameters[name] for s in people])
        estimate, low, high = result.parameters[name]
        out[f"rmse_log_{name}"] = float(np.sqrt(np.mean(np.log(estimate / true) ** 2)))
        covered.append(np.mean((low <= true) & (true <= high)))
        width.append(np.mean(np.log(high / low)))
    if covered:
        out |= {"cover90_k": float(np.mean(covered)), "width90_k": float(np.mean(width))}
    return out


def limit(samples: int, new: int, seed: int) -> dict[str, Any]:
    """Errors of estimates with the true equations and a population that is taken from the data of fifty patients.

    This population differs from the truth by a draw from the normal distribution whose precision is the information in
    the data of the fifty patients, at the truth. The errors are root mean squares over such populations.
    """
    data = cohort("linear", samples, new, seed)
    people, both = data.part("test"), np.concatenate([TIMES, LATER]).tolist()
    oracle = known_model(data, "linear", TYPICAL)
    ideal = scores(known(oracle, people, both, 0), people)
    oracle.requires_grad_(True)
    batch = evaluation_batch(oracle, data.part("train"))
    estimate = standard_errors(oracle, batch, oracle.typical(len(batch)), INFORMATION_DRAWS, seed)
    oracle.parameter_draws.copy_(estimate.parameter_draws)
    others = [scores(known(one, people, both, 0), people) for one in drawn_models(oracle)[:LIMIT_POPULATIONS]]
    row: dict[str, Any] = {
        "cohort": "linear",
        "track": "limit",
        "learned": "nothing; at the truth",
        "dynamics": "known",
    }
    row |= {"n_obs": samples, "subjects": "new", "seed": seed, "seconds": 0.0}
    for name, value in ideal.items():
        if "rmse" in name:
            row[f"oracle_{name}"] = value
            row[name] = math.sqrt(np.mean([other[name] ** 2 for other in others]))
    return row


def learners(
    data: SimulatedPKDataModule, dynamics: str, seed: int, source: Path | None
) -> dict[str, tuple[LatentTask, float]]:
    """The tasks to score, by name, and the seconds that each took to learn from the fifty patients."""
    started = time.perf_counter()
    if source is None:
        return {"own patients": (learn(data, dynamics, seed), time.perf_counter() - started)}
    omega = belief(seed)["omega"]["CL"]
    prior = PopulationParameters(omega=omega, omega_prior_sd=OMEGA_PRIOR_SD)
    tuned = learn(data, dynamics, seed, {"pretrained": str(source), "parameters": prior})
    seconds = time.perf_counter() - started
    as_it_is = LatentTask.load_from_checkpoint(source, map_location="cpu")
    return {"pre-trained, as it is": (as_it_is, 0.0), "pre-trained, tuned": (tuned, seconds)}


def run(
    name: str, dynamics: str, samples: int, new: int, seed: int, draws: int, source: Path | None
) -> list[dict[str, Any]]:
    """Train once, and score on these and on new patients, with the oracle and the linear model for comparison."""
    data = cohort(name, samples, new, seed)
    learned = learners(data, dynamics, seed, source)
    settings = COHORTS[name]
    oracle = known_model(data, settings.get("elimination", "linear"), settings["typical"])
    linear = known_model(data, "linear", TYPICAL)
    both = np.concatenate([TIMES, LATER]).tolist()
    rows = []
    for subjects, part in (("own", "train"), ("new", "test")):
        people = data.part(part)
        ideal = scores(known(oracle, people, both, draws), people)
        wrong = scores(known(linear, people, both, 1), people) if name != "linear" else {}
        for way, (task, seconds) in learned.items():
            found = scores(
                task.reconstruct(people, both, draws, population_known=not task.model.has_parameter_draws), people
            )
            row: dict[str, Any] = {
                "cohort": name,
                "track": way,
                "learned": task.provenance.description,
                "dynamics": dynamics,
            }
            row |= {"n_obs": samples, "subjects": subjects, "seed": seed}
            row |= found | {f"oracle_{key}": value for key, value in ideal.items()}
            if "width90_k" in found and "width90_k" in ideal:
                row["width90_k_over_oracle"] = found["width90_k"] / ideal["width90_k"]
            if wrong:
                row["linear_map_line_rrmse"] = wrong["line_rrmse"]
            rows.append(row | {"seconds": round(seconds, 1)})
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    """Print means over seeds of the ratios to the oracle on the same patients, with their range."""
    table = Table(title="Ratio to the oracle: mean over seeds (smallest to largest)")
    for column in (
        "cohort",
        "track",
        "dynamics",
        "samples",
        "patients",
        "curve",
        "AUC",
        "72-168 h",
        "log k",
        "90 % of curve, of k",
        "s",
    ):
        table.add_column(column, no_wrap=True)
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[k] for k in ("cohort", "track", "dynamics", "n_obs", "subjects")), []).append(row)
    for key, group in groups.items():
        cells = []
        for name in ("line_rrmse", "auc_rrmse", "later_rrmse"):
            ratio = [row[name] / row[f"oracle_{name}"] for row in group]
            cells.append(f"{np.mean(ratio):.3f} ({min(ratio):.2f}-{max(ratio):.2f})")
        rates = [n for n in RATES if f"rmse_log_{n}" in group[0] and f"oracle_rmse_log_{n}" in group[0]]
        ratio = [np.mean([row[f"rmse_log_{n}"] / row[f"oracle_rmse_log_{n}"] for n in rates]) for row in group]
        cells.append(f"{np.mean(ratio):.3f}" if rates else "")
        covered = [
            f"{np.mean([row[name] for row in group]):.3f}" for name in ("cover90_line", "cover90_k") if name in group[0]
        ]
        seconds = np.median([row["seconds"] for row in group])
        table.add_row(*map(str, key), *cells, ", ".join(covered), f"{seconds:.0f}")
    console = Console(width=170)
    console.print(table)
    for said in sorted({f"{row['track']}, seed {row['seed']}: {row['learned']}" for row in rows}):
        console.print(said)


def main() -> None:
    """Run the protocol and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--dynamics", nargs="+", default=["mechanistic", "neural", "hybrid"], choices=list(LEARNERS))
    parser.add_argument("--samples", nargs="+", type=int, default=[19, 8, 6, 4, 3])
    parser.add_argument("--tracks", nargs="+", default=["own"], choices=["own", "pretrained", "limit"])
    parser.add_argument("--cohorts", nargs="+", default=["linear"], choices=list(COHORTS))
    parser.add_argument("--new", type=int, default=1000, help="number of new patients")
    parser.add_argument("--draws", type=int, default=100, help="number of draws for the intervals")
    parser.add_argument("--json", type=Path, help="file for all numbers")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    learned = [which for which in options.tracks if which != "limit"]
    sources = [(which, dynamics, seed) for which in learned for dynamics in options.dynamics for seed in seeds]
    rows: list[dict[str, Any]] = []

    def keep(more: list[dict[str, Any]]) -> None:
        rows.extend(more)
        if options.json:
            options.json.write_text(json.dumps(rows, indent=1))

    if "limit" in options.tracks:
        for samples, seed in track(list(itertools.product(options.samples, seeds)), "limit of the data"):
            keep([limit(samples, options.new, seed)])
    with tempfile.TemporaryDirectory() as folder:
        for which, dynamics, seed in track(sources, "learn and score"):
            source = Path(folder) / "pretrained.ckpt" if which == "pretrained" else None
            if source:
                pretrain(dynamics, seed, source)
            for name, samples in itertools.product(options.cohorts, options.samples):
                keep(run(name, dynamics, samples, options.new, seed, options.draws, source))
    show(rows)


if __name__ == "__main__":
    main()
