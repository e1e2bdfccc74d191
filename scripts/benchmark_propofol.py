"""Propofol in 1,031 patients of 30 studies: networks of covariates on all six parameters of three compartments.

A deep compartment model without random effects, trained on the population prediction itself. The error is the mean over
patients of the median absolute difference between the logarithms of prediction and measurement, in patients that were
left out. Fold k holds every fifth patient (or study) of the permutation of seed 0, from the k-th on.

`formula` replaces each network by a formula of at most four terms of at most three covariates
(`neuralpk.symbolic.find_effects`), whose numbers are trained as the networks were. `--shown 3` adds the error of
individual predictions: every parameter gets a random effect, with the effects and the typical values held. One omega of
all and the residual error are chosen by the error that patients of the training have on their samples after the third,
when they are estimated (MAP) from the first three. The patients left out are estimated and scored likewise, also by the
mean of the logarithm of the prediction over the posterior distribution.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from torch import Tensor

from neuralpk import CompartmentModel, LatentTask, MarginalLikelihood, PopulationModel, PopulationParameters
from neuralpk.cohort import Cohort, Units
from neuralpk.cohort_batch import CohortBatch, collate
from neuralpk.cohort_figures import first_values
from neuralpk.diagnostics.style import BLUE, ORANGE, new_figure
from neuralpk.residual_error import LogNormalError
from neuralpk.scaling import Scaling
from neuralpk.symbolic import find_effects
from neuralpk.tables import read_table

FOLDS = 5
# L/min and L of an adult: the order of magnitude of all published models
START = {"CL": 1.8, "V1": 6.0, "Q": 1.5, "V2": 25.0, "Q3": 0.8, "V3": 250.0}
COVARIATES = ["PMA", "WGT", "HT", "MALE", "OPIOIDS"]
SPREAD = 0.3  # mean deviation of a Laplace distribution; a patient counts as one draw from it
SMOOTH = 0.02  # below this distance the absolute value is rounded
MOST_COVARIATES, MOST_TERMS = 3, 4  # of a formula
OF_CHOICE = 150  # patients of the training by whom Omega and the residual error are chosen
OMEGAS, ERRORS = (0.15, 0.25, 0.4), (0.2, 0.4)
DRAWS = 100  # from the posterior of a patient
LATER = ("later_population", "later_individual", "later_individual_median", "later_posterior", "all_shown")


def patients(path: Path) -> Cohort:
    """The patients with a measured value: CP in mg/L, doses in mg, times in min."""
    frame = pd.read_csv(path)
    frame = frame[(frame.ISMEAS == 0) | (frame.CP > 0)]
    frame = frame.assign(
        DV=frame.CP,
        MDV=(frame.ISMEAS == 0).astype(int),
        MALE=(frame.M1F2 == 1).astype(float),
        OPIOIDS=(frame.NOADD1ADD2 == 2).astype(float),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cohort = read_table(frame, covariates=COVARIATES, units=Units("min", "mg", "mg/L"))
    return cohort[[k for k, subject in enumerate(cohort) if subject.observed.any()]]


EFFECTS: dict[str, Any] = {
    "constant": None,
    "power": {name: ["WGT"] for name in START},
    "network": {name: {"+".join(COVARIATES): "network"} for name in START},
}


def model_of(effects: Any, cohort: Cohort, typical: dict[str, float] = START) -> PopulationModel:
    """A model without random effects before its training."""
    parameters = PopulationParameters(dict(typical), omega=0.0, effects=effects)
    return PopulationModel(CompartmentModel(3), parameters, LogNormalError()).build(Scaling.of(cohort), torch.float32)


@torch.no_grad()
def formulas(model: PopulationModel, cohort: Cohort) -> dict[str, Any]:
    """For the network on each parameter the formula that follows it best in some patients."""
    covariates, found = collate(cohort, dtype=torch.float64).covariates[:, 0], {}
    for parameter, effect in model.population.effects_by_parameter():
        read = covariates[:, model.population.columns_of(effect)]
        found[parameter] = [find_effects(effect, read, MOST_COVARIATES, MOST_TERMS)[-1].effect]
    return found


def log_errors(model: PopulationModel, batch: CohortBatch) -> Tensor:
    """Logarithmic error of the population prediction, ``[patient, record]``; NaN where nothing was measured."""
    value = model.predict(model.typical(len(batch)), batch).value
    measured = torch.where(batch.observed, batch.value, 1.0)
    error = torch.log(value.clamp(min=1e-9) / measured)
    return torch.where(batch.observed, error, torch.nan)


def train(model: PopulationModel, cohort: Cohort, steps: int, rate: float) -> None:
    """Adam on the sum over patients of their mean absolute logarithmic error over SPREAD, minus the log prior of the
    networks' weights."""
    batches = collate(cohort, dtype=torch.float32).of_like_length()
    optimizer = torch.optim.Adam(model.population.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    begin = time.process_time()
    for step in range(steps):
        optimizer.zero_grad()
        total = 0.0
        for batch in batches:
            error = log_errors(model, batch)
            smooth = torch.where(batch.observed, (error.nan_to_num().square() + SMOOTH**2).sqrt(), 0.0)
            loss = (smooth.sum(1) / batch.observed.sum(1)).sum() / SPREAD
            loss.backward()
            total += float(loss.detach())
        prior = -model.population.log_prior()
        if prior.requires_grad:
            prior.backward()
        optimizer.step()
        schedule.step()
        if step % 20 == 0 or step == steps - 1:
            mean = total * SPREAD / len(cohort)
            print(
                f"{step}: mean {mean:.4f}, prior {float(prior.detach()):.1f}, {time.process_time() - begin:.0f} s",
                flush=True,
            )


@torch.no_grad()
def score(model: PopulationModel, cohort: Cohort) -> np.ndarray:
    """Median absolute logarithmic error of each patient, ``[patient]``."""
    found = [log_errors(model, collate([subject], dtype=torch.float32)).abs()[0] for subject in cohort]
    return np.array([np.nanmedian(one.numpy()) for one in found])


def with_random_effects(model: PopulationModel, cohort: Cohort, omega: float, error: float) -> LatentTask:
    """A model whose six parameters differ between patients, with its typical values and effects held."""
    typical = model.population.typical_values()
    held = {name: [effect.fitted()] for name, effect in model.population.effects_by_parameter()}
    parameters = PopulationParameters(typical, omega=omega, effects=held, learned=False)
    task = LatentTask(CompartmentModel(3), parameters, LogNormalError(b=error).fix(1), objective=MarginalLikelihood())
    return task.build(Scaling.of(cohort))


def later(records: pd.DataFrame, prediction: str, shown: int) -> pd.Series:
    """Median absolute logarithmic error of each patient on the samples after those shown."""
    rows = records[records.groupby("ID").cumcount() >= shown]
    return np.log(rows[prediction] / rows["DV"]).abs().groupby(rows["ID"]).median()


@torch.no_grad()
def mean_of_log(task: LatentTask, cohort: Cohort, shown: int) -> np.ndarray:
    """Geometric mean of the predictions over draws from each patient's posterior, at its measured values."""
    found = []
    for k, subject in enumerate(cohort):
        drawn = task.draw(cohort[[k]], DRAWS, context=shown)
        values = [model.predict(z, batch.scored_on_all()).value for model, z, batch in drawn.flat()]
        found.append(torch.cat(values).double().log().nanmean(0)[: len(subject.times)].exp().numpy()[subject.observed])
    return np.concatenate(found)


def later_errors(model: PopulationModel, training: Cohort, left: Cohort, shown: int, seed: int) -> dict[str, Any]:
    """Errors on the samples after the first `shown`, of predictions from the covariates alone and from these samples.

    Omega and the residual error are those of a grid with which these errors of some patients of the training are least.
    """
    begin = time.process_time()
    some = training[np.random.default_rng(seed).permutation(len(training))[:OF_CHOICE].tolist()]
    tried = {}
    for omega, error in itertools.product(OMEGAS, ERRORS):
        records = with_random_effects(model, training, omega, error).residuals(some, context=shown)
        tried[omega, error] = float(later(records, "IPRED", shown).mean())
    omega, error = min(tried, key=tried.__getitem__)
    task = with_random_effects(model, training, omega, error)
    records = task.residuals(left, context=shown)
    records["MEAN"] = mean_of_log(task, left, shown)
    errors = {name: later(records, name, shown) for name in ("PRED", "IPRED", "MEAN")}
    return {
        "patients_with_later": len(errors["IPRED"]),
        "later_population": float(errors["PRED"].mean()),
        "later_individual": float(errors["IPRED"].mean()),
        "later_individual_median": float(errors["IPRED"].median()),
        "later_posterior": float(errors["MEAN"].mean()),
        "all_shown": float(later(task.residuals(left), "IPRED", shown).mean()),
        "omega": omega,
        "b": error,
        "tried": {f"{a} {b}": value for (a, b), value in tried.items()},
        "cpu_later": round(time.process_time() - begin),
    }


def split(cohort: Cohort, groups: list[Any], fold: int) -> tuple[list[int], list[int]]:
    """Patients that are left out of a fold, and the others; those of a group stay together."""
    names = sorted(set(groups))
    chosen = {names[k] for k in np.random.default_rng(0).permutation(len(names))[fold::FOLDS].tolist()}
    left = [k for k, group in enumerate(groups) if group in chosen]
    return left, [k for k, group in enumerate(groups) if group not in chosen]


def of_fold(
    cohort: Cohort, groups: list[Any], fold: int, kind: str, steps: int, rate: float, shown: int
) -> tuple[list[dict[str, Any]], list[tuple[str, np.ndarray]]]:
    """Errors of a model that is trained on the patients of the other folds, and its parameters of those left out."""
    left, others = (cohort[rows] for rows in split(cohort, groups, fold))
    rows, values = [], []
    model = model_of(EFFECTS["network" if kind == "formula" else kind], others)
    for form in ("network", "formula") if kind == "formula" else (kind,):
        begin, wall = time.process_time(), time.time()
        if form == "formula":
            model = model_of(formulas(model, others), others, model.population.typical_values())
            for name, effect in model.population.effects_by_parameter():
                print(f"{name}: {effect}")
        train(model, others, steps, rate)
        row = {"kind": form, "fold": fold, "patients": len(left)}
        row |= {"cpu": round(time.process_time() - begin), "wall": round(time.time() - wall)}
        row |= {"trained": float(score(model, others).mean()), "left_out": float(score(model, left).mean())}
        row |= {"typical": model.population.typical_values()}
        if shown and form == kind:
            row |= later_errors(model, others, left, shown, fold)
        if form == "formula":
            row |= {"formula": {name: str(effect) for name, effect in model.population.effects_by_parameter()}}
        rows.append(row)
        with torch.no_grad():
            batch = collate(left, dtype=torch.float32)
            values.append((form, model.theta(model.typical(len(left)), batch)[:, 0].numpy()))
        print(json.dumps(row), flush=True)
    return rows, values


def draw(weights: np.ndarray, values: dict[str, np.ndarray]) -> Figure:
    """Parameters of the patients left out, by their covariates alone, over their weight."""
    figure, axes = new_figure(2, 3, height=5.5)
    colours = {"network": BLUE, "formula": ORANGE}
    forms = [form for form in colours if form in values]
    order = np.random.default_rng(0).permutation(len(forms) * len(weights))  # neither form hides the other
    colour = np.repeat([colours[form] for form in forms], len(weights))[order]
    for k, (name, panel) in enumerate(zip(START, axes.flat, strict=True)):
        of_forms = np.concatenate([values[form][:, k] for form in forms])
        panel.scatter(np.tile(weights, len(forms))[order], of_forms[order], s=3, c=colour, linewidths=0)
        panel.set(xscale="log", yscale="log", ylabel=f"{name} ({'L/min' if name[0] in 'CQ' else 'L'})")
        panel.xaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_minor_formatter(NullFormatter())
        panel.xaxis.set_minor_formatter(NullFormatter())
        if k >= 3:
            panel.set_xlabel("weight (kg)")
    for form in forms:
        axes[0, 0].scatter([], [], s=12, color=colours[form], label=form)
    axes[0, 0].legend()
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/propofol/dataframe.csv"))
    parser.add_argument("--folds", type=int, nargs="*", default=[*range(FOLDS)])
    parser.add_argument("--by", choices=["patient", "study"], default="patient", help="what the folds are made of")
    parser.add_argument("--kind", nargs="*", default=["network"], choices=[*EFFECTS, "formula"])
    parser.add_argument("--shown", type=int, default=0, help="first samples of each patient left out that are shown")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--rate", type=float, default=0.03)
    parser.add_argument("--figure", type=Path, help="file for the parameters of the patients left out")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    cohort = patients(given.data)
    print(f"{len(cohort)} patients, {sum(int(s.observed.sum()) for s in cohort)} values")
    studies = {
        str(name): int(study) for name, study in pd.read_csv(given.data)[["ID", "STUDY"]].drop_duplicates().values
    }
    groups = [*range(len(cohort))] if given.by == "patient" else [studies[name] for name in cohort.ids]
    weight = first_values(cohort, "WGT")
    for kind in given.kind:
        rows: list[dict[str, Any]] = []
        values: dict[str, list[np.ndarray]] = {}
        for fold in given.folds:
            found, of_left = of_fold(cohort, groups, fold, kind, given.steps, given.rate, given.shown)
            rows += found
            for form, one in of_left:
                values.setdefault(form, []).append(one)
        for form in values:
            own = [row for row in rows if row["kind"] == form]
            counts = [row["patients"] for row in own]
            print(f"{form}: {np.average([row['left_out'] for row in own], weights=counts):.4f} in patients left out")
            if given.shown and form == kind:
                counts = [row["patients_with_later"] for row in own]
                for name in LATER:
                    print(f"{name}: {np.average([row[name] for row in own], weights=counts):.4f}")
        if given.figure:
            weights = np.concatenate([weight[split(cohort, groups, fold)[0]] for fold in given.folds])
            draw(weights, {form: np.concatenate(parts) for form, parts in values.items()}).savefig(
                given.figure, dpi=110
            )


if __name__ == "__main__":
    main()
