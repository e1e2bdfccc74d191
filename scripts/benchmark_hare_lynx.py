"""Hare and lynx of the Hudson Bay: several models, fitted to 1900 to 1914, forecast 1915 to 1920.

Every model is fitted to this one series by Bayesian inference: the parameters have wide priors, and so have the weights
of a network. The residual error and the noise of the stochastic model have their maximum likelihood values. Scored are
the twelve values of the forecast: root mean square of log(median/value), continuous ranked probability score (CRPS, in
thousand pelts), and the share of the values inside the 90 % band. `--parameters` fits Lotka–Volterra to all years and
prints its posterior.
"""

import argparse
import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path

import lightning as L
import numpy as np
import torch
from quiet_training import train
from rich.console import Console
from rich.progress import track
from rich.table import Table

from neuralpk import datasets, randomness
from neuralpk.cohort_batch import CohortBatch
from neuralpk.datamodules import TableDataModule
from neuralpk.diagnostics.metrics import coverage, crps_ensemble, log_rmse
from neuralpk.dynamics import (
    Dynamics,
    HybridDynamics,
    LotkaVolterra,
    RandomFeatureField,
    RandomFeatureSlope,
    StochasticLotkaVolterra,
)
from neuralpk.encoders import RecurrentEncoder
from neuralpk.individual_estimates import evaluation_batch
from neuralpk.inference.map import maximise
from neuralpk.inference.tempering import Particles, effective, move, temper
from neuralpk.objectives import PathELBO
from neuralpk.parameters import PopulationParameters
from neuralpk.path_guide import PathGuide
from neuralpk.population_model import PopulationModel
from neuralpk.randomness import Stream
from neuralpk.residual_error import LogNormalError
from neuralpk.scaling import Scaling
from neuralpk.solve import Noise, TorchDiffEq, TorchSDE
from neuralpk.task import LatentTask

FORECAST, YEARS, DRAWS = 1915, range(1900, 1921), 1000
ROUNDS, MOVES = 8, 5  # rounds of the EM algorithm; moves of every draw in each round
ROUND = 65_536  # steps of the random stream reserved for a round, which uses fewer
PATHS, EPOCHS = 32, 30  # of a training with noise: draws in a step; epochs of ten steps
STARTS = {"prey0": 20.0, "predator0": 10.0}
RATES = {"alpha": 0.8, "beta": 0.04, "gamma": 0.8, "delta": 0.04}
SPREAD = {"alpha": 0.5, "beta": 1.0, "gamma": 0.5, "delta": 1.0, "prey0": 1.0, "predator0": 1.0}
# each model is the dynamics of one series; its forecasts are draws [draw, year, species]
MODELS: dict[str, Callable[[], Dynamics]] = {
    "Lotka–Volterra": LotkaVolterra,
    "augmented": lambda: HybridDynamics(LotkaVolterra(), RandomFeatureSlope(hidden=16, prior_sd=2.0)),
    "neural": lambda: RandomFeatureField(LotkaVolterra(), hidden=16, prior_sd=20.0),
    "stochastic": lambda: StochasticLotkaVolterra(sigma=0.2),
}
ENGINE = TorchDiffEq(method="rk4", gradient="backprop", step=0.25)


def prior(name: str) -> PopulationParameters:
    """The prior of the parameters of one series; it is not learned."""
    if name == "neural":
        return PopulationParameters(typical=STARTS, omega=1.0, learned=False)
    return PopulationParameters(typical=RATES | STARTS, omega=SPREAD, learned=False)


def fit(model: PopulationModel, batch: CohortBatch, seed: int) -> tuple[Particles, float]:
    """Posterior of the series from the records of ``batch.target``, with the maximum likelihood residual error; and the
    effective number of its draws.

    The search for the first z uses more and more years: far from the maximum, the gradient of the fit to all years does
    not lead to it. The EM algorithm finds the error: its square is the mean square of the residuals over the draws.
    """
    z = torch.zeros((1, model.latent_size), dtype=batch.time.dtype)
    for last in (1903, 1906, 1910, YEARS[-1]):
        mode = maximise(model, batch.scored_on(batch.target & (batch.time <= last)), z, steps=40)
        z = mode.z
    first = found = temper(model, batch, mode, DRAWS, seed, Stream.TEMPERING.at(0))
    for k in range(1, ROUNDS + 1):
        with torch.no_grad():
            value = model.predict(found.z[0], batch.repeat(DRAWS)).value
            square = model.error.standardise(batch.value, value, batch.endpoint).nan_to_num().square().mean(0)
            for endpoint in (0, 1):
                own = batch.target[0] & (batch.endpoint[0] == endpoint)
                model.error.log_values["b"][endpoint] += 0.5 * square[own].mean().log()
        found = move(model, batch, found, seed, Stream.TEMPERING.at(k * ROUND), MOVES)
    return found, float(effective(first, found))


def start(name: str, seed: int) -> tuple[PopulationModel, CohortBatch]:
    """The model before the fit, with the magnitudes of the data in the years of the fit; and the whole series."""
    torch.manual_seed(seed)
    series = datasets.hare_lynx()
    model = PopulationModel(MODELS[name](), prior(name), LogNormalError(), ENGINE)
    model.build(Scaling.of(series.hidden_from(FORECAST))).double()
    return model, evaluation_batch(model, series)


def forecast(name: str, seed: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Draws of measured values ``[draw, year, species]``, the measured values ``[year, species]``, and the effective
    number of draws."""
    model, batch = start(name, seed)
    draws, number = fit(model, batch.scored_on(batch.target & (batch.time < FORECAST)), seed)
    many = batch.repeat(DRAWS)
    with torch.no_grad():
        noise = randomness.normal(seed, Stream.SCRIPT.at(0), torch.arange(DRAWS), batch.time.shape[1])
        value = model.error.simulate(model.predict(draws.z[0], many).value, many.endpoint, noise)
    solved = value[value.isfinite().all(1)]
    return solved.reshape(len(solved), -1, 2).numpy(), batch.value.reshape(-1, 2).numpy(), number


def stochastic_forecast(name: str, seed: int) -> tuple[np.ndarray, np.ndarray, float]:
    """As `forecast`, for a model with noise: draws of parameters and paths, selected at the measured years."""
    L.seed_everything(seed, verbose=False)
    data = TableDataModule("hare_lynx", forecast=FORECAST, passes_per_epoch=10, seed=seed)
    task = LatentTask(
        MODELS[name](),
        parameters=prior(name),
        error=LogNormalError(),
        engine=TorchSDE(step=0.25),
        encoder=RecurrentEncoder(hidden=32),
        guide=PathGuide(hidden=32),
        objective=PathELBO(draws=PATHS),
        seed=seed,
    )
    train(task, data, EPOCHS)
    batch = evaluation_batch(task.model, datasets.hare_lynx())
    seen = batch.time < FORECAST
    given = dataclasses.replace(batch, target=batch.target & seen, context=batch.context & seen)
    size, width = task.model.latent_size, batch.time.shape[1]
    with torch.no_grad():
        normal = (
            randomness.normal(seed, Stream.SCRIPT.at(1), batch.index, DRAWS * size)
            .reshape(1, DRAWS, size)
            .to(batch.time.dtype)
        )
        drawn = task.guide.draw(task.model, task.encoder(given), given, normal, Noise(seed, Stream.SCRIPT.at(2)))
        weight = drawn.paths.log_weight.double().softmax(0)
        chosen = torch.multinomial(weight, DRAWS, replacement=True)
        noise = randomness.normal(seed, Stream.SCRIPT.at(0), torch.arange(DRAWS), width)
        value = task.model.error.simulate(drawn.value[chosen].double(), batch.repeat(DRAWS).endpoint, noise)
    observed = batch.value.double().reshape(-1, 2).numpy()
    beginnings = float(len(drawn.value[:, 0].unique()))  # weights are equal after a selection: count values
    return value.reshape(DRAWS, -1, 2).numpy(), observed, beginnings


def parameters(seed: int) -> dict[str, tuple[float, float]]:
    """Posterior mean and standard deviation of the parameters of Lotka–Volterra, from all years."""
    model, batch = start("Lotka–Volterra", seed)
    draws, _ = fit(model, batch, seed)
    with torch.no_grad():
        theta = model.population(draws.z[0], batch.covariates.repeat(DRAWS, 1, 1))[:, 0]
    mean, sd = theta.mean(0), theta.std(0)
    found = {name: (float(m), float(s)) for name, m, s in zip(model.population.names, mean, sd, strict=True)}
    errors = model.error.parameters_by_name()["b"].tolist()
    return found | {f"sigma_{name}": (error, 0.0) for name, error in zip(("hare", "lynx"), errors, strict=True)}


def score(values: np.ndarray, observed: np.ndarray) -> dict[str, float]:
    """Scores over the years of the forecast."""
    ahead = np.array(YEARS) >= FORECAST
    values, observed = values[:, ahead], observed[ahead]
    low, median, high = np.quantile(values, (0.05, 0.5, 0.95), axis=0)
    every = np.ones(observed.shape, bool)
    return {
        "log_rmse": log_rmse(median, observed, every),
        "crps": float(crps_ensemble(values, observed).mean()),
        "coverage": coverage(low, high, observed, every),
    }


def draw_figure(bands: dict[str, np.ndarray], observed: np.ndarray, path: Path) -> None:
    """Median and 90 % band of each model with the first seed, and the measured values."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        2, len(bands), figsize=(4.0 * len(bands), 5.6), sharex=True, sharey="row", squeeze=False
    )
    for column, (name, values) in zip(axes.T, bands.items(), strict=True):
        low, median, high = np.quantile(values, (0.05, 0.5, 0.95), axis=0)
        for k, (panel, animal) in enumerate(zip(column, ("Hare", "Lynx"), strict=True)):
            panel.fill_between(YEARS, low[:, k], high[:, k], color="#0072B2", alpha=0.2, lw=0, label="90 % band")
            panel.plot(YEARS, median[:, k], color="#0072B2", lw=1.8, label="median")
            panel.plot(YEARS, observed[:, k], "o", color="black", ms=4, label="pelts")
            panel.axvline(FORECAST - 0.5, color="grey", ls="--", lw=1)
            panel.set(yscale="log", ylim=(2, 300), ylabel=f"{animal} (thousand pelts)" if panel in axes[:, 0] else "")
            panel.set_xticks(range(1900, 1921, 5))
            panel.spines[["top", "right"]].set_visible(False)
        column[0].set_title(name)
        column[1].set_xlabel("Year")
    axes[0, 0].legend(frameon=False, fontsize=9, loc="upper right")
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def main() -> None:
    """Fit, forecast, score and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--seeds", type=int, default=3, help="seeds of the draws and of a network's first layer")
    parser.add_argument("--parameters", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    console, rows, bands = Console(width=130), [], {}
    if options.parameters:
        for name, (mean, sd) in parameters(0).items():
            console.print(f"{name:12} {mean:.4g} ± {sd:.2g}")
        return
    for name in options.models:
        for seed in track(range(options.seeds), name):
            began = time.process_time()
            way = stochastic_forecast if name == "stochastic" else forecast
            values, observed, effective = way(name, seed)
            bands.setdefault(name, values)
            row = {"model": name, "seed": seed} | score(values, observed)
            rows.append(row | {"effective": effective, "seconds": round(time.process_time() - began, 1)})
            if options.json:
                options.json.write_text(json.dumps(rows, indent=1))
    table = Table(title=f"Forecast of {FORECAST} to {YEARS[-1]}, mean over {options.seeds} seeds (lowest to highest)")
    for column in ("model", "RMSE of logs", "CRPS", "covered by 90 %", "effective draws"):
        table.add_column(column, justify="left" if column == "model" else "right", no_wrap=True)
    for name in options.models:
        own = [row for row in rows if row["model"] == name]
        cells = []
        for key, form in (("log_rmse", ".3f"), ("crps", ".2f"), ("coverage", ".0%"), ("effective", ".0f")):
            found = [row[key] for row in own]
            cells.append(f"{np.mean(found):{form}} ({min(found):{form}} to {max(found):{form}})")
        table.add_row(name, *cells)
    console.print(table)
    if options.figure:
        draw_figure(bands, observed, options.figure)


if __name__ == "__main__":
    main()
