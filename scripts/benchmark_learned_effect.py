"""How exactly a network in the equations learns an effect of the concentration.

Each study: 40 patients, one intravenous dose of 30, 100 or 300, ten times within 48 h at which concentration and
response are measured, 10 % proportional error of both. The truth is a turnover with an inhibited input::

    central' = -CL/V*central,  response' = KIN*(1 - effect) - KOUT*response,  effect = IMAX*C^g/(IC50^g + C^g)

with CL 5, V 50, KIN 10, KOUT 0.1, IMAX 0.9, IC50 1 and g 1 (``emax``) or 3 (``sigmoid``), and variability (omega 0.25)
of CL, V, KIN and KOUT. The fitted model has ``effect = network(C, monotone=increasing, zero_at=0, range=(0, 1))`` and
all else as the truth; pharmacokinetics and response are fitted together. CL and V start at the truth, as if published,
KIN and KOUT 30 % off. Scored is the learned function over the range of the measured concentrations, at 100 places:

========  ===========================================================================================================
error     root mean square error, as a share of the range of the true effect over these places
coverage  share of the places at which the pointwise 90 % band has the true effect
width     mean width of the band, as a share of the same range
========  ===========================================================================================================

    python scripts/benchmark_learned_effect.py --studies 10 --json rows.json
"""

from __future__ import annotations

import argparse
import json
import logging
import time
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

import neuralpk
from neuralpk.cohort import Cohort, Dose
from neuralpk.cohort_figures import learned_term
from neuralpk.cohort_simulation import Design, Population, simulate_cohort
from neuralpk.diagnostics.term_plots import LearnedTerm, learned_term_figure
from neuralpk.dynamics import Equations
from neuralpk.parameters import PopulationParameters
from neuralpk.residual_error import ProportionalError

Array = NDArray[Any]
TEXT = """parameters: {parameters}
central' = -CL/V*central
C = central/V
response' = KIN*(1 - effect) - KOUT*response
response(0) = KIN/KOUT
effect = {effect}
outputs: C, response"""
TRUE = {"CL": 5.0, "V": 50.0, "KIN": 10.0, "KOUT": 0.1}
START = TRUE | {"KIN": 7.0, "KOUT": 0.13}
EFFECT = {"IMAX": 0.9, "IC50": 1.0}
GAMMA = {"emax": 1.0, "sigmoid": 3.0}
NETWORK = "network(C, hidden=8, monotone=increasing, zero_at=0, range=(0, 1))"
TIMES = (0.5, 2.0, 4.0, 8.0, 12.0, 18.0, 24.0, 30.0, 36.0, 48.0)
OMEGA = 0.25


def written(values: dict[str, float]) -> str:
    """Parameters of a text."""
    return ", ".join(f"{name} = {value}" for name, value in values.items())


def true_effect(shape: str, c: Array) -> Array:
    """The effect at some concentrations."""
    gamma = GAMMA[shape]
    return np.asarray(EFFECT["IMAX"] * c**gamma / (EFFECT["IC50"] ** gamma + c**gamma))


def study(shape: str, seed: int, patients: int) -> Cohort:
    """Simulated patients."""
    values = TRUE | EFFECT
    effect = f"IMAX*hill(C, IC50, {GAMMA[shape]})"
    design = Design(tuple((Dose(0.0, amount),) for amount in (30.0, 100.0, 300.0)), TIMES, endpoints=(1, 2))
    return simulate_cohort(
        Equations(TEXT.format(parameters=written(values), effect=effect)),
        Population(values, dict.fromkeys(TRUE, OMEGA)),
        design,
        ProportionalError.from_values(2, b=0.1),
        patients,
        seed,
    )


def run(shape: str, seed: int, patients: int, epochs: int) -> tuple[dict[str, Any], LearnedTerm]:
    """Fit one study and score the learned effect."""
    cohort = study(shape, seed, patients)
    L.seed_everything(seed, verbose=False)
    begin = time.perf_counter()
    fitted = neuralpk.fit(
        cohort,
        Equations(TEXT.format(parameters=written(START), effect=NETWORK)),
        parameters=PopulationParameters(omega=0.3, omega_prior_sd=0.7),
        error=ProportionalError(),
        learning_rate=0.01,
        epochs=epochs,
        seed=seed,
        progress=False,
    )
    seconds = time.perf_counter() - begin
    measured = np.concatenate([subject.values[subject.endpoints == 1] for subject in cohort])
    grid = np.linspace(measured.min(), measured.max(), 100)
    learned = learned_term(fitted.task, "effect", cohort, grid)
    true = true_effect(shape, grid)
    row = {
        "shape": shape,
        "seed": seed,
        "seconds": seconds,
        "converged": fitted.task.status is not None and fitted.task.status.converged,
        "error": float(np.sqrt(np.mean((learned.output - true) ** 2)) / np.ptp(true)),
        "coverage": float(np.mean((learned.low <= true) & (true <= learned.high))),
        "width": float(np.mean(learned.high - learned.low) / np.ptp(true)),
    }
    return row | {name: fitted.task.model.reported_values()[name] for name in TRUE}, learned


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=10)
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--shapes", nargs="+", default=list(GAMMA), choices=list(GAMMA))
    parser.add_argument("--patients", type=int, default=40)
    parser.add_argument("--epochs", type=int, default=60, help="most epochs, each of 20 passes over the patients")
    parser.add_argument("--json", type=Path, help="file for all numbers")
    parser.add_argument("--figure", type=Path, help="file for the figure of the first study")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    rows: list[dict[str, Any]] = []
    for seed in range(options.first, options.first + options.studies):
        for shape in options.shapes:
            row, learned = run(shape, seed, options.patients, options.epochs)
            rows.append(row)
            print(
                {name: value if isinstance(value, str) else round(value, 3) for name, value in row.items()}, flush=True
            )
            if options.json:
                options.json.write_text(json.dumps(rows, indent=1))
            if options.figure and len(rows) == 1:
                learned_term_figure(learned, true_effect(shape, learned.x)).savefig(options.figure, dpi=130)
    table = Table("effect", "studies", "error, %", "worst, %", "coverage of the 90 % band, %", "width, %", "seconds")
    for shape in options.shapes:
        own = [row for row in rows if row["shape"] == shape]
        error, cover, width, seconds = (
            np.array([row[name] for row in own]) for name in ("error", "coverage", "width", "seconds")
        )
        spread = cover.std(ddof=1) / len(cover) ** 0.5 if len(cover) > 1 else np.nan  # standard error over studies
        shown = [f"{100 * value:.1f}" for value in (error.mean(), error.max())]
        shown += [f"{100 * cover.mean():.1f} ± {100 * spread:.1f}", f"{100 * width.mean():.0f}"]
        table.add_row(shape, str(len(own)), *shown, f"{np.median(seconds):.0f}")
    Console().print(table)


if __name__ == "__main__":
    main()
