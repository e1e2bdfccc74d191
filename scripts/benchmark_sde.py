"""Stochastic cohorts: what a latent SDE recovers, and how well it foresees samples that it was not shown.

An Ornstein–Uhlenbeck cohort is held against its closed form. On predators and prey with noise, and on patients whose
clearance fluctuates, the latent SDE stands beside the deterministic model of that mechanism; both learn from the same
subjects. Every new subject shows a part of its samples, chosen at random, from one to all; the others are scored by
1,000 draws of the posterior predictive distribution: the continuous ranked probability score of the logarithm, in
standard deviations of the residual error, and how many the 90 % band covers.

    python scripts/benchmark_sde.py --seeds 3 --json sde.json --page docs/sde.md
"""

import argparse
import dataclasses
import json
import logging
import math
import time
import warnings
from pathlib import Path

import lightning as L
import numpy as np
import torch
from quiet_training import train
from rich.console import Console
from rich.table import Table

from neuralpk import randomness
from neuralpk.batch import CohortBatch, collate
from neuralpk.cohort import FloatArray
from neuralpk.datamodules import CohortDataModule, LotkaVolterraDataModule, PKDataModule
from neuralpk.datamodules.batches import choose_context
from neuralpk.dynamics import OrnsteinUhlenbeck
from neuralpk.encoders import RecurrentEncoder
from neuralpk.evaluate.metrics import coverage, crps_ensemble
from neuralpk.evaluate.style import BLUE, GREY, ORANGE, new_figure, time_axis
from neuralpk.inference import importance
from neuralpk.inference.joint import given_context
from neuralpk.inference.mode import most_probable
from neuralpk.models import IndividualParameters, LatentSDE
from neuralpk.residual_error import AdditiveError
from neuralpk.scaling import Scaling
from neuralpk.simulate import Design, Population, simulate_cohort
from neuralpk.solve import Noise, SolverOptions
from neuralpk.tasks import LatentODETask

DRAWS = 1000
FILTERS = 10  # independent ones, whose spread is the Monte-Carlo error of a likelihood
ERROR = 0.1  # of the logarithm, in both cohorts
# settings of the dynamics and of the solver, and the noise that is true
SYSTEMS = {
    "predator and prey": (
        {"system": "lotka_volterra"},
        {"step": 0.25},
        {"sigma_log_prey": 0.25, "sigma_log_predator": 0.25},
    ),
    "fluctuating clearance": ({"compartments": 1}, {"step": 2.0}, {"sigma_log_clearance": 0.15, "reversion": 0.1}),
}
SEEN, DRAWN, RESIDUAL = 11, 12, 13  # streams of the random numbers


def cohort_of(system: str, seed: int) -> CohortDataModule:
    """Hundred replicates of one experiment, or forty patients; and a hundred others to score on."""
    common = {"error": "log_normal", "error_sd": {"b": ERROR}, "passes_per_epoch": 10, "seed": seed}
    if system == "predator and prey":
        times = np.linspace(0, 8, 17).tolist()
        return LotkaVolterraDataModule(100, 100, omega={}, times=times, samples=12, noise=0.25, **common)
    return PKDataModule(
        40, 100, compartments=1, typical={"CL": 4.0, "V1": 40.0}, cv={"CL": 20.0, "V1": 20.0}, doses=[100.0],
        repeats=6, interval=12.0, times=np.arange(2.0, 73.0, 2.0).tolist(), samples=16, noise=0.15,
        reversion=0.1, **common,
    )  # fmt: skip


def trained(system: str, stochastic: bool, data: CohortDataModule, epochs: int, seed: int) -> LatentODETask:
    """A model of the mechanism, with noise or without."""
    L.seed_everything(seed, verbose=False)
    dynamics, solver, _ = SYSTEMS[system]
    settings = {**dynamics, "field": "mechanistic", "omega": 0.15}
    options = {"scaling": data.scaling(), "error": "log_normal", "learning_rate": 0.01, "seed": seed}
    if stochastic:
        noise = {"noise": 0.4 if system == "predator and prey" else 0.1}
        encoder = {"kind": "recurrent", "hidden": 32}
        task = LatentODETask(dynamics=settings | noise, encoder=encoder, solver=solver, draws=16, **options)
    else:
        accuracy = {"rtol": 1e-4, "atol": 1e-4}
        task = LatentODETask(dynamics=settings, warmup=0.5, solver=accuracy, **options)
    train(task, data, epochs)
    return task.eval()


@torch.no_grad()
def foreseen(task: LatentODETask, batch: CohortBatch, seed: int) -> FloatArray:
    """Draws of every record of each subject given its context, ``[sample, subject, observation]``."""
    model, n, size = task.model, len(batch), task.model.individual.latent_size
    if isinstance(model, LatentSDE):
        normal = randomness.normal(seed, DRAWN, batch.index, DRAWS * size).reshape(n, DRAWS, size).to(batch.time.dtype)
        drawn = model.weigh(dataclasses.replace(batch, target=batch.context), normal, Noise(seed, DRAWN))
        chosen = randomness.systematic(drawn.paths.log_weight.reshape(n, DRAWS).softmax(1), DRAWS)
        value = drawn.value.reshape(n, DRAWS, -1).gather(1, chosen[..., None].expand(-1, -1, batch.time.shape[1]))
    else:
        mode = most_probable(model, batch, model.encoder(batch).mean)
        noise = importance.noise(seed, DRAWN, batch.index, 5 * DRAWS, size, batch.time.dtype)
        z = importance.draw(model, given_context(batch), mode, noise).resample(DRAWS)
        value = model.predict(z.flatten(0, 1), batch.repeat(DRAWS)).value.reshape(n, DRAWS, -1)
    error = randomness.normal(seed, RESIDUAL, batch.index, value[0].numel()).reshape(value.shape).to(value.dtype)
    endpoint = batch.endpoint[:, None].expand_as(value)
    return model.error.simulate(value, endpoint, error).transpose(0, 1).double().numpy()


def scores(task: LatentODETask, batch: CohortBatch, seed: int) -> dict[str, float]:
    """CRPS of the logarithm over its residual error, and coverage of the 90 % band, of what was not shown."""
    drawn = foreseen(task, batch, seed)
    hidden = (batch.observed & ~batch.context).numpy()
    value = batch.value.double().numpy()
    lower, upper = np.quantile(drawn, [0.05, 0.95], axis=0)
    crps = crps_ensemble(np.log(drawn[:, hidden]), np.log(value[hidden])).mean() / ERROR
    return {"crps": float(crps), "coverage": coverage(lower, upper, value, hidden)}


def compare(system: str, seed: int, epochs: int) -> tuple[dict, dict[str, LatentODETask], CohortBatch]:
    """One cohort, both models."""
    data = cohort_of(system, seed)
    batch = choose_context(collate(data.part("test")), "random", 0, seed, SEEN)
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
    """The likelihood of a cohort by weighted paths and by a Kalman filter, and the marginals of free paths."""
    rate, mean, start, sigma, sd = 0.8, 5.0, 6.0, 0.7, 0.3
    named = {"rate": rate, "mean": mean, "start": start}
    dynamics = OrnsteinUhlenbeck(sigma).double()
    design = Design(((),), tuple(np.linspace(0, 6, 25)), 8, grid=(0.0, 3.0, 6.0))
    cohort = simulate_cohort(dynamics, Population(named), design, AdditiveError.known(a=sd), subjects, seed)
    scaling = Scaling.of(cohort)
    individual = IndividualParameters.known(named, {}, {}, scaling)
    encoder, error = RecurrentEncoder(scaling, 3, 8), AdditiveError.known(a=sd)
    model = LatentSDE(encoder, individual, dynamics, error, SolverOptions(step=0.1)).double()
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
        normal = torch.zeros((subjects, draws, 3), dtype=torch.float64)
        # z says nothing here, and the encoder's q(z) only adds a constant to every weight
        constant = model.encoder(batch).sd.log().sum(1, keepdim=True)
        filters = [model.weigh(batch, normal, Noise(seed, DRAWN + k)).paths.log_weight for k in range(FILTERS)]
        weight = torch.stack([one.reshape(subjects, draws).logsumexp(1) - math.log(draws) for one in filters], 1)
        weight = weight - constant
        late = collate([dataclasses.replace(s, times=[0.0, 2.0], values=[1.0, 1.0], truth=None, endpoints=[1, 1],
                        censored=[0, 0], limits=[np.nan, np.nan], rows=[1, 1], compartments=[0, 0])
                        for s in cohort], dtype=torch.float64)  # fmt: skip
        unread = dataclasses.replace(late, context=torch.zeros_like(late.context)).repeat(10 * draws)
        free = model.draw(torch.zeros((len(unread), 3), dtype=torch.float64), unread, None, seed).states[:, 1, 0]
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


def draw_figure(tasks: dict[str, LatentODETask], batch: CohortBatch, path: Path, seed: int) -> None:
    """Two of the new series under both models: bands of the path, samples shown and not, the true path."""
    figure, axes = new_figure(2, 2, height=5.4, sharex=True, sharey="row")
    chosen = batch.select(torch.tensor([0, 1]))
    grid = torch.linspace(0, 8, 161).expand(2, -1).maximum(chosen.start[:, None])
    for column, (name, task) in enumerate(tasks.items()):
        with torch.no_grad():
            q = task.model.encoder(chosen)
            size = q.mean.shape[1]
            noise = randomness.normal(seed, DRAWN, chosen.index, DRAWS * size).reshape(2, DRAWS, size).float()
            z = (q.mean[:, None] + q.sd[:, None] * noise).flatten(0, 1)
            lines = task.model.draw(z, chosen.repeat(DRAWS), grid.repeat_interleave(DRAWS, dim=0), seed)
            drawn = task.model.read(lines)[..., 0].reshape(2, DRAWS, -1)
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
    """The rows as the tables of the page: mean over seeds, lowest and highest."""
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
    for system, (_, _, names) in SYSTEMS.items():
        own = [row for row in rows if row["system"] == system]
        lines += [f"| {name} | {true} | {spread([row[name] for row in own])} |" for name, true in names.items() if own]
    return "\n".join(lines)


def spread(values: list[float], digits: str = ".3f") -> str:
    """Mean, lowest and highest."""
    return f"{np.mean(values):{digits}} ({min(values):{digits}}–{max(values):{digits}})"


def main() -> None:
    """Run everything, print the rows, write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=12, help="of 10 steps")
    parser.add_argument("--systems", nargs="*", default=list(SYSTEMS))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--page", type=Path, help="page whose tables and figure are made anew")
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
