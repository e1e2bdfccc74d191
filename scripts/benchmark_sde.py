"""Stochastic cohorts: what a latent SDE estimates, and how well it predicts samples that it has not seen.

The likelihood of an Ornstein–Uhlenbeck cohort is compared with its closed form. On predators and prey with noise, and
on patients whose clearance fluctuates, the latent SDE is compared with the deterministic model of the same mechanism;
both learn from the same subjects. Of every new subject the models see a random part of the samples, from one to all.
The other samples are scored with 1,000 draws of the posterior predictive distribution: the continuous ranked
probability score (CRPS) of the logarithm, in standard deviations of the residual error, and the share inside the 90 %
band.

    python scripts/benchmark_sde.py --seeds 3 --json sde.json --page docs/measurements/sde.md
"""

import argparse
import dataclasses
import json
import logging
import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import lightning as L
import numpy as np
import torch
from quiet_training import train
from rich.console import Console
from rich.table import Table

from neuralpk import randomness
from neuralpk.cohort import FloatArray
from neuralpk.cohort_batch import CohortBatch, collate
from neuralpk.cohort_data import choose_context
from neuralpk.cohort_simulation import Design, Population, simulate_cohort
from neuralpk.datamodules import CohortDataModule, SimulatedLotkaVolterraDataModule, SimulatedPKDataModule
from neuralpk.diagnostics.metrics import coverage, crps_ensemble
from neuralpk.diagnostics.style import BLUE, GREY, ORANGE, new_figure, time_axis
from neuralpk.dynamics import (
    CompartmentModel,
    Dynamics,
    FluctuatingClearance,
    LotkaVolterra,
    OrnsteinUhlenbeck,
    StochasticLotkaVolterra,
)
from neuralpk.encoders import Posterior, RecurrentEncoder, SetEncoder
from neuralpk.inference import importance
from neuralpk.inference.map import map_estimate
from neuralpk.objectives import ELBO, PathELBO
from neuralpk.parameters import PopulationParameters
from neuralpk.path_guide import PathGuide
from neuralpk.population_model import PopulationModel
from neuralpk.randomness import Stream
from neuralpk.residual_error import AdditiveError, LogNormalError
from neuralpk.scaling import Scaling
from neuralpk.solve import Auto, Noise, TorchSDE
from neuralpk.task import LatentTask

DRAWS = 1000
FILTERS = 10  # independent particle filters; their spread is the Monte Carlo error of a likelihood
ERROR = 0.1  # standard deviation of the residual error of the logarithm, in both cohorts


class System(NamedTuple):
    """A system: its dynamics with and without noise, the step of the solver with noise, and the true noise."""

    stochastic: Callable[[], Dynamics]
    deterministic: Callable[[], Dynamics]
    step: float
    noise: dict[str, float]


SYSTEMS = {
    "predator and prey": System(
        lambda: StochasticLotkaVolterra(sigma=0.4),
        LotkaVolterra,
        0.25,
        {"sigma_log_prey": 0.25, "sigma_log_predator": 0.25},
    ),
    "fluctuating clearance": System(
        lambda: FluctuatingClearance(CompartmentModel(1), sigma=0.1),
        lambda: CompartmentModel(1),
        2.0,
        {"sigma_log_clearance": 0.15, "reversion": 0.1},
    ),
}
DRAWN, RESIDUAL, FREE = (Stream.SCRIPT.at(step) for step in (0, 100, 200))  # random numbers


def cohort_of(system: str, seed: int) -> CohortDataModule:
    """A hundred replicates of one experiment, or forty patients; and a hundred new subjects to score on."""
    common = {"error": "log_normal", "error_sd": {"b": ERROR}, "passes_per_epoch": 10, "seed": seed}
    if system == "predator and prey":
        times = np.linspace(0, 8, 17).tolist()
        return SimulatedLotkaVolterraDataModule(100, 100, omega={}, times=times, samples=12, noise=0.25, **common)
    return SimulatedPKDataModule(
        40, 100, compartments=1, typical={"CL": 4.0, "V1": 40.0}, cv={"CL": 20.0, "V1": 20.0}, doses=[100.0],
        repeats=6, interval=12.0, times=np.arange(2.0, 73.0, 2.0).tolist(), samples=16, noise=0.15,
        reversion=0.1, **common,
    )  # fmt: skip


def trained(system: str, stochastic: bool, data: CohortDataModule, epochs: int, seed: int) -> LatentTask:
    """Train a model of the mechanism, with or without noise."""
    L.seed_everything(seed, verbose=False)
    chosen = SYSTEMS[system]
    if stochastic:
        parts = {
            "dynamics": chosen.stochastic(),
            "engine": TorchSDE(step=chosen.step),
            "encoder": RecurrentEncoder(hidden=32),
            "guide": PathGuide(hidden=32),
            "objective": PathELBO(draws=16),
        }
    else:
        parts = {
            "dynamics": chosen.deterministic(),
            "engine": Auto(rtol=1e-4, atol=1e-4),
            "encoder": SetEncoder(),
            "objective": ELBO(warmup=0.5),
        }
    parameters, error = PopulationParameters(omega=0.15), LogNormalError()
    task = LatentTask(**parts, parameters=parameters, error=error, learning_rate=0.01, seed=seed)
    train(task, data, epochs)
    return task.eval()


@torch.no_grad()
def predicted(task: LatentTask, batch: CohortBatch, seed: int) -> FloatArray:
    """Draws of every record of each subject from its context, ``[sample, subject, observation]``."""
    model, n, size = task.model, len(batch), task.model.latent_size
    q = task.encoder(batch)
    if task.guide is not None:
        normal = randomness.normal(seed, DRAWN, batch.index, DRAWS * size).reshape(n, DRAWS, size).to(batch.time.dtype)
        drawn = task.guide.draw(model, q, batch.scored_on_context(), normal, Noise(seed, DRAWN))
        chosen = randomness.systematic(drawn.paths.log_weight.reshape(n, DRAWS).softmax(1), DRAWS)
        value = drawn.value.reshape(n, DRAWS, -1).gather(1, chosen[..., None].expand(-1, -1, batch.time.shape[1]))
    else:
        mode = map_estimate(model, batch, q.mean)
        noise = importance.noise(seed, DRAWN, batch.index, 5 * DRAWS, size, batch.time.dtype)
        z = importance.draw(model, batch.scored_on_context(), mode, noise).resample(DRAWS)
        value = model.predict(z.flatten(0, 1), batch.repeat(DRAWS)).value.reshape(n, DRAWS, -1)
    error = randomness.normal(seed, RESIDUAL, batch.index, value[0].numel()).reshape(value.shape).to(value.dtype)
    endpoint = batch.endpoint[:, None].expand_as(value)
    return model.error.simulate(value, endpoint, error).transpose(0, 1).double().numpy()


def scores(task: LatentTask, batch: CohortBatch, seed: int) -> dict[str, float]:
    """CRPS of the logarithm divided by its residual error, and coverage of the 90 % band, for samples not seen."""
    drawn = predicted(task, batch, seed)
    hidden = (batch.observed & ~batch.context).numpy()
    value = batch.value.double().numpy()
    lower, upper = np.quantile(drawn, [0.05, 0.95], axis=0)
    crps = crps_ensemble(np.log(drawn[:, hidden]), np.log(value[hidden])).mean() / ERROR
    return {"crps": float(crps), "coverage": coverage(lower, upper, value, hidden)}


def compare(system: str, seed: int, epochs: int) -> tuple[dict, dict[str, LatentTask], CohortBatch]:
    """Train and score both models on one cohort."""
    data = cohort_of(system, seed)
    batch = choose_context(collate(data.part("test")), "random", 0, seed, draw=11)
    tasks, row = {}, {"system": system, "seed": seed}
    for name in ("stochastic", "deterministic"):
        start = time.perf_counter()
        tasks[name] = trained(system, name == "stochastic", data, epochs, seed)
        row[f"{name}_seconds"] = round(time.perf_counter() - start, 1)
        Console().print(f"{system}, seed {seed}, {name}: {row[f'{name}_seconds']} s")
        row |= {f"{name}_{key}": value for key, value in scores(tasks[name], batch, seed).items()}
    row |= {name: float(value.detach()) for name, value in tasks["stochastic"].model.dynamics.noise.items()}
    row["error"] = float(tasks["stochastic"].model.error.parameters_by_name()["b"].detach().mean())
    return row, tasks, batch


def ornstein_uhlenbeck(seed: int, subjects: int = 50, draws: int = 40) -> dict:
    """The likelihood of a cohort by weighted paths and by a Kalman filter; mean and deviation of unweighted paths."""
    rate, mean, start, sigma, sd = 0.8, 5.0, 6.0, 0.7, 0.3
    named = {"rate": rate, "mean": mean, "start": start}
    dynamics = OrnsteinUhlenbeck(sigma).double()
    design = Design(((),), tuple(np.linspace(0, 6, 25)), 8, grid=(0.0, 3.0, 6.0))
    cohort = simulate_cohort(dynamics, Population(named), design, AdditiveError.from_values(a=sd), subjects, seed)
    population, error = PopulationParameters.from_values(named, {}), AdditiveError.from_values(a=sd)
    model = PopulationModel(dynamics, population, error, TorchSDE(step=0.1)).build(Scaling.of(cohort)).double()
    guide = PathGuide(hidden=32)
    guide.build(dynamics, Scaling.of(cohort))
    guide.double()
    exact, batch = 0.0, collate(cohort, dtype=torch.float64)
    for subject in cohort:
        m, v, last = start, 0.0, subject.times[0]
        for t, y in zip(subject.times, subject.values, strict=True):
            decay = math.exp(-rate * (t - last))
            m, v, last = mean + (m - mean) * decay, v * decay**2 + sigma**2 * (1 - decay**2) / (2 * rate), t
            s = v + sd**2
            exact -= 0.5 * (math.log(2 * math.pi * s) + (y - m) ** 2 / s)
            m, v = m + v / s * (y - m), v * sd**2 / s
    with torch.no_grad():
        # no parameter varies, so z has no component
        q = Posterior.prior(subjects, 0, batch.time)
        normal = torch.zeros((subjects, draws, 0), dtype=torch.float64)
        filters = [guide.draw(model, q, batch, normal, Noise(seed, DRAWN + k)).paths.log_weight for k in range(FILTERS)]
        weight = torch.stack([one.reshape(subjects, draws).logsumexp(1) - math.log(draws) for one in filters], 1)
        late = collate([dataclasses.replace(s, times=[0.0, 2.0], values=[1.0, 1.0], truth=None, endpoints=[1, 1],
                        censored=[0, 0], limits=[np.nan, np.nan], rows=[1, 1], compartments=[0, 0])
                        for s in cohort], dtype=torch.float64)  # fmt: skip
        unread = late.unseen().repeat(10 * draws)
        free = model.trajectory(model.typical(len(unread)), unread, noise=Noise(seed, FREE)).states[:, 1, 0]
    found = float((weight.logsumexp(1) - math.log(FILTERS)).sum())
    share = FILTERS * weight.softmax(1)
    error_of = float((share.var(1) / FILTERS).sum().sqrt())
    decay = math.exp(-2 * rate)
    expected = mean + (start - mean) * decay, sigma * math.sqrt((1 - decay**2) / (2 * rate))
    count = len(free)
    return {
        "system": "ornstein_uhlenbeck", "seed": seed, "exact": exact, "found": found, "error": error_of,
        "mean": float(free.mean()), "mean_exact": expected[0], "mean_error": expected[1] / math.sqrt(count),
        "sd": float(free.std()), "sd_exact": expected[1], "sd_error": expected[1] / math.sqrt(2 * count),
    }  # fmt: skip


def draw_figure(tasks: dict[str, LatentTask], batch: CohortBatch, path: Path, seed: int) -> None:
    """Two new series with both models: bands of the path, samples seen and not seen, the true path."""
    figure, axes = new_figure(2, 2, height=5.4, sharex=True, sharey="row")
    chosen = batch.select(torch.tensor([0, 1]))
    grid = torch.linspace(0, 8, 161).expand(2, -1).maximum(chosen.start[:, None])
    for column, (name, task) in enumerate(tasks.items()):
        with torch.no_grad():
            q = task.encoder(chosen)
            size = q.mean.shape[1]
            noise = randomness.normal(seed, DRAWN, chosen.index, DRAWS * size).reshape(2, DRAWS, size).float()
            z = (q.mean[:, None] + q.sd[:, None] * noise).flatten(0, 1)
            at, noise = grid.repeat_interleave(DRAWS, dim=0), Noise(seed, FREE) if task.guide else None
            curves = task.model.trajectory(z, chosen.repeat(DRAWS), at, task.guide, noise)
            drawn = task.model.observe(curves)[..., 0].reshape(2, DRAWS, -1)
        for k in range(2):
            axis, truth = axes[k, column], chosen.truth
            low, high = drawn[k].quantile(torch.tensor([0.05, 0.95]), dim=0)
            axis.fill_between(grid[k], low, high, color=BLUE, alpha=0.25, lw=0, label="90 % band of the path")
            axis.plot(truth.times[k], truth.line[k, :, 0], color=GREY, lw=1.0, label="true path")
            prey = chosen.observed[k] & (chosen.endpoint[k] == 0)
            for mask, face, label in ((chosen.context[k], ORANGE, "shown"), (~chosen.context[k], "none", "not shown")):
                points = chosen.time[k][prey & mask], chosen.value[k][prey & mask]
                axis.plot(*points, "o", ms=4.5, mec=ORANGE, mfc=face, ls="none", label=f"sample, {label}")
            axis.set_yscale("log")
            axis.set_yticks([0.5, 1, 2, 5, 10], ["0.5", "1", "2", "5", "10"])
            axis.minorticks_off()
            time_axis(axis, "", named=k == 1)
            if k == 0:
                axis.set_title("latent SDE" if name == "stochastic" else "deterministic")
            if column == 0:
                axis.set_ylabel(f"prey, series {chosen.ids[k]}")
    axes[0, 1].legend(fontsize=7, frameon=False, loc="upper right")
    figure.savefig(path, dpi=130)


def table_of(rows: list[dict]) -> str:
    """The tables of the page: mean over seeds, lowest and highest."""
    lines = ["| Ornstein–Uhlenbeck, 50 series | closed form | found, with its Monte-Carlo error |", "|---|---|---|"]
    for row in (row for row in rows if row["system"] == "ornstein_uhlenbeck"):
        lines.append(
            f"| log-likelihood, seed {row['seed']} | {row['exact']:.2f} | {row['found']:.2f} ± {row['error']:.2f} |"
        )
        for name, words in (("mean", "mean of x(2)"), ("sd", "standard deviation of x(2)")):
            found = f"{row[name]:.4f} ± {row[f'{name}_error']:.4f}"
            lines.append(f"| {words}, seed {row['seed']} | {row[f'{name}_exact']:.4f} | {found} |")
    lines += [
        "",
        "| new subjects, samples not shown | CRPS, SDE | CRPS, deterministic | 90 % band, SDE | deterministic |",
    ]
    lines += ["|---|---|---|---|---|"]
    for system in SYSTEMS:
        own = [row for row in rows if row["system"] == system]
        if own:
            crps = [spread([row[f"{name}_crps"] for row in own]) for name in ("stochastic", "deterministic")]
            cover = [
                spread([100 * row[f"{name}_coverage"] for row in own], ".1f") + " %"
                for name in ("stochastic", "deterministic")
            ]
            lines.append(f"| {system}, {len(own)} seeds | {' | '.join(crps + cover)} |")
    lines += ["", "| size of the noise | true | found |", "|---|---|---|"]
    for system, (*_, names) in SYSTEMS.items():
        own = [row for row in rows if row["system"] == system]
        lines += [f"| {name} | {true} | {spread([row[name] for row in own])} |" for name, true in names.items() if own]
    return "\n".join(lines)


def spread(values: list[float], digits: str = ".3f") -> str:
    """Mean, lowest and highest."""
    return f"{np.mean(values):{digits}} ({min(values):{digits}}–{max(values):{digits}})"


def main() -> None:
    """Run everything, print the rows, write the requested files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=12, help="number of epochs, each of 10 steps")
    parser.add_argument("--systems", nargs="*", default=list(SYSTEMS))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--page", type=Path, help="page whose tables and figure are rewritten")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*(does not have many workers|search for the most probable)")
    rows = []
    for seed in range(options.seeds):
        rows.append(ornstein_uhlenbeck(seed))
        for system in options.systems:
            row, tasks, batch = compare(system, seed, options.epochs)
            rows.append(row)
            if options.json:
                options.json.write_text(json.dumps(rows, indent=1))
            if options.page and system == "predator and prey" and seed == 0:
                draw_figure(tasks, batch, options.page.with_name("sde.png"), seed)
        printed = Table(title=f"seed {seed}", show_header=False)
        for row in rows[-1 - len(options.systems) :]:
            for name, value in row.items():
                printed.add_row(name, f"{value:.4g}" if isinstance(value, float) else str(value))
        Console(width=100).print(printed)
    if options.page:
        head, _, rest = options.page.read_text(encoding="utf-8").partition("<!-- measured -->")
        tail = rest.partition("<!-- end -->")[2]
        page = f"{head}<!-- measured -->\n{table_of(rows)}\n<!-- end -->{tail}"
        options.page.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
