"""Discrete and continuous models: recurrent networks and ODEs on the same irregular cohorts, and the order of a step.

Each patient or predator–prey series is observed at a random share of 40 times. All models learn from the same 50
subjects, with the encoder, objective and number of steps of the system; only the dynamics differ. Of new subjects the
models see the observations in the first half of the time. Scored is the estimated curve against the true one, in the
first half (reconstruction) and in the second (extrapolation): relative root mean square error, mean over subjects.
"""

import argparse
import dataclasses
import json
import logging
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from matplotlib.figure import Figure
from quiet_training import train
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.integrate import RK45
from torch import Tensor, nn

from neuralpk.cohort import Cohort, FloatArray, Subject
from neuralpk.cohort_batch import collate
from neuralpk.datamodules import SimulatedLotkaVolterraDataModule, SimulatedPKDataModule
from neuralpk.datamodules.simulated import SimulatedDataModule
from neuralpk.decoders import GRU, ODERNN, ContinuousTimeRNN
from neuralpk.diagnostics.metrics import line_rrmse
from neuralpk.diagnostics.style import BLUE, GREEN, ORANGE, VERMILLION, new_figure
from neuralpk.dynamics import SIR, CompartmentModel, Decoder, Dynamics, LotkaVolterra, NeuralCompartments, NeuralField
from neuralpk.encoders import SetEncoder
from neuralpk.objectives import ELBO, MarginalLikelihood
from neuralpk.parameters import PopulationParameters
from neuralpk.residual_error import LogNormalError, ProportionalError
from neuralpk.solve import Auto, TorchDiffEq
from neuralpk.task import LatentTask

POINTS = 40
WIDTH = 16  # hidden width of the networks
MODELS: dict[str, tuple[str, Callable[[Any], Decoder]]] = {
    "gru": ("GRU, counts records", lambda like: GRU(like, hidden=WIDTH)),
    "gru_gaps": ("GRU with time gaps", lambda like: GRU(like, hidden=WIDTH, gap="input")),
    "gru_decay": ("GRU with decay", lambda like: GRU(like, hidden=WIDTH, gap="decay")),
    "ode_rnn": ("ODE-RNN", lambda like: ODERNN(like, hidden=WIDTH, layers=1)),
    "ctrnn": ("continuous-time RNN", lambda like: ContinuousTimeRNN(like, hidden=WIDTH)),
    "free": ("neural ODE, free vector field", lambda like: NeuralField(like, hidden=WIDTH)),
    "neural": ("neural ODE, compartments", lambda like: NeuralCompartments(like, hidden=WIDTH)),
    "mechanistic": ("mechanistic ODE", lambda like: like),
}


# ---- a residual network is Euler's method


def residual_network(blocks: nn.Module, h: Tensor, step: float, count: int) -> list[Tensor]:
    """All layers of the network h_{k+1} = h_k + step·block(h_k)."""
    layers = [h]
    for _ in range(count):
        layers.append(layers[-1] + step * blocks(layers[-1]))
    return layers


def residual_difference(count: int = 20, method: str = "euler") -> float:
    """Largest difference, over all layers, between a residual network and the steps of a method with its weights."""
    torch.manual_seed(0)
    field = NeuralField(SIR(), latent_size=0).double()  # three states
    network = field.slope_network.network
    for weight in network.parameters():
        nn.init.normal_(weight, std=0.3)
    step, h0 = 1 / count, torch.randn(5, 3, dtype=torch.float64)
    times = step * torch.arange(count + 1, dtype=torch.float64).expand(5, -1)
    nobody = collate([Subject(str(k), [0.0, 1.0], [1.0, 1.0]) for k in range(5)], dtype=torch.float64)
    engine = TorchDiffEq(method=method, step=step * (1 + 1e-9))
    with torch.no_grad():
        layers = torch.stack(residual_network(network, h0, step, count), dim=1)
        solved = engine.solve(field, h0[:, None], nobody, times, y0=h0).states
    return float((layers - solved).abs().max())


# ---- error against step size


class Growth(Dynamics):
    """dy/dt = y, so that y(t) = 0.5·e^t from y(0) = 0.5."""

    states = ("y",)
    parameter_names = ()

    def forward(self, t: Tensor, y: Tensor, theta: Tensor) -> Tensor:
        return y


def step_errors(methods: tuple[str, ...], counts: list[int]) -> dict[str, list[float]]:
    """|y(1) − 0.5·e| for several numbers of equal steps; Dormand–Prince from SciPy, where steps can be fixed."""
    one = collate([Subject("1", [0.0, 1.0], [1.0, 1.0])], dtype=torch.float64)
    y0, end = torch.full((1, 1), 0.5, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    found: dict[str, list[float]] = {name: [] for name in (*methods, "dopri5")}
    for count in counts:
        for name in methods:
            engine = TorchDiffEq(method=name, step=(1 + 1e-9) / count)
            found[name].append(
                abs(float(engine.solve(Growth(), y0[:, :0][:, None], one, end, y0=y0).states) - 0.5 * np.e)
            )
        held = RK45(lambda t, y: y, 0.0, [0.5], 1.0, max_step=1 / count, first_step=1 / count, rtol=1e6, atol=1e6)
        while held.status == "running":
            held.step()
        found["dopri5"].append(abs(float(held.y[0]) - 0.5 * np.e))
    return found


def slopes(counts: list[int], errors: dict[str, list[float]]) -> dict[str, float]:
    """Order of each method: slope of log error over log step, between the two smallest steps above rounding error."""
    order = {}
    for name, values in errors.items():
        k = max(k for k, value in enumerate(values) if value > 1e-12)
        order[name] = float(np.log(values[k - 1] / values[k]) / np.log(counts[k] / counts[k - 1]))
    return order


def step_figure(counts: list[int], errors: dict[str, list[float]]) -> Figure:
    """Error against step size, on logarithmic axes."""
    figure, ((axes,),) = new_figure(1, 1, width=6.0, height=4.2)
    looks = {"euler": ("Euler", BLUE), "midpoint": ("midpoint", ORANGE), "rk4": ("Runge–Kutta 4", GREEN)}
    looks["dopri5"] = ("Dormand–Prince", VERMILLION)
    for name, order in slopes(counts, errors).items():
        title, colour = looks[name]
        axes.loglog(1 / np.array(counts), errors[name], "o-", ms=4, color=colour, label=f"{title}, slope {order:.2f}")
    axes.set(xlabel="Step size", ylabel="Error of y(1)", title="dy/dt = y, y(0) = 0.5")
    axes.legend(frameon=False, fontsize=8)
    return figure


# ---- recurrent networks against ODEs


def pharmacokinetics(share: float, seed: int, new: int) -> SimulatedDataModule:
    """Fifty patients, two compartments, a bolus at 0, 24 and 48 h, 20 % error."""
    times = np.linspace(1.8, 72.0, POINTS).tolist()
    return SimulatedPKDataModule(
        test_subjects=new,
        repeats=3,
        interval=24.0,
        times=times,
        samples=round(share * POINTS),
        grid=[1.8, 72.0, POINTS],
        context="random",
        passes_per_epoch=20,
        seed=seed,
    )


def predator_prey(share: float, seed: int, new: int) -> SimulatedDataModule:
    """Fifty series of predator and prey, about two turns of the cycle, 10 % error."""
    times = np.linspace(0.0, 8.0, POINTS).tolist()
    return SimulatedLotkaVolterraDataModule(
        test_subjects=new,
        times=times,
        samples=round(share * POINTS),
        context="random",
        passes_per_epoch=20,
        seed=seed,
    )


@dataclasses.dataclass(frozen=True)
class System:
    """A cohort, its mechanism, and how every model learns from it: parts of the task, and number of epochs of 20 passes
    over the subjects."""

    cohort: Callable[[float, int, int], SimulatedDataModule]
    mechanism: Callable[[], Dynamics]
    task: Callable[[], dict[str, Any]]
    epochs: int


SYSTEMS = {
    "compartments": System(
        pharmacokinetics,
        lambda: CompartmentModel(2),
        lambda: {
            "error": ProportionalError(),
            "objective": ELBO(warmup=0.5),
            "engine": Auto(rtol=1e-4, atol=1e-4),
        },
        10,
    ),
    # a cycle is learned with a growing horizon and with the MAP estimate of each series
    "lotka_volterra": System(
        predator_prey,
        LotkaVolterra,
        lambda: {
            "error": LogNormalError(),
            "objective": MarginalLikelihood(draws=4, map_steps=3),
            "engine": Auto(rtol=1e-3, atol=1e-3),
            "horizon": 0.8,
            "learning_rate": 0.02,
        },
        30,
    ),
}
TITLES = {"compartments": "Pharmacokinetics", "lotka_volterra": "Predator and prey"}


def first_half(people: Cohort, half: float) -> Cohort:
    """The same subjects and observation times, without the values observed after half of the time."""
    hidden = [dataclasses.replace(s, values=np.where(s.times > half, np.nan, s.values)) for s in people]
    return dataclasses.replace(people, subjects=tuple(hidden))


def run(system: str, model: str, share: float, seed: int, epochs: int | None, new: int) -> dict[str, Any]:
    """Train once and score on new subjects."""
    settings = SYSTEMS[system]
    data = settings.cohort(share, seed, new)
    started = time.perf_counter()
    L.seed_everything(seed, verbose=False)  # before the first weights of the networks are drawn
    task = LatentTask(
        MODELS[model][1](settings.mechanism()),
        parameters=PopulationParameters(omega=0.3),
        encoder=SetEncoder(),
        seed=seed,
        **settings.task(),
    )
    train(task, data, epochs or settings.epochs)
    seconds = time.perf_counter() - started
    people = data.part("test")
    grid = people[0].truth.times
    half = (grid[0] + grid[-1]) / 2
    found = task.reconstruct(first_half(people, half), grid.tolist(), draws=0, map=True).ipred
    true = np.stack([s.truth.line for s in people])
    row: dict[str, Any] = {"system": system, "model": model, "share": share, "seed": seed}
    for name, window in (("reconstruction", grid <= half), ("extrapolation", grid > half)):
        row[name] = float(np.mean([_error(a[window], b[window]) for a, b in zip(found, true, strict=True)]))
    return row | {"seconds": round(seconds, 1)}


def _error(found: FloatArray, true: FloatArray) -> float:
    """Relative root mean square error of a subject, mean over its endpoints."""
    return float(np.mean(line_rrmse(found.T, true.T)))


def table(rows: list[dict[str, Any]], system: str) -> list[list[str]]:
    """The table of one system: a row for each model, a column for each window and share; mean over seeds and range."""
    shares = sorted({row["share"] for row in rows})
    lines = []
    for model, (title, _) in MODELS.items():
        own = [row for row in rows if row["system"] == system and row["model"] == model]
        if not own:
            continue
        cells = [title]
        for window in ("reconstruction", "extrapolation"):
            for share in shares:
                values = [row[window] for row in own if row["share"] == share]
                spread = f" ({min(values):.2f}–{max(values):.2f})" if len(values) > 1 else ""
                cells.append(f"{np.mean(values):.3f}{spread}" if values else "–")
        lines.append(cells)
    return lines


def markdown(rows: list[dict[str, Any]]) -> str:
    """The tables of the documentation."""
    shares = [f"{100 * share:.0f} %" for share in sorted({row["share"] for row in rows})]
    parts = []
    for system in dict.fromkeys(row["system"] for row in rows):
        head = [TITLES[system], *(f"reconstruction, {s}" for s in shares), *(f"extrapolation, {s}" for s in shares)]
        lines = [head, ["---"] * len(head), *table(rows, system)]
        parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    return "\n\n".join(parts)


def main() -> None:
    """Run, print, and rewrite the page of the documentation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=list(SYSTEMS))
    parser.add_argument("--shares", nargs="+", type=float, default=[0.1, 0.2, 0.3, 0.5])
    parser.add_argument("--epochs", type=int, help="of 20 passes over the subjects; default: those of the system")
    parser.add_argument("--new", type=int, default=50, help="number of new subjects to score on")
    parser.add_argument("--json", type=Path, help="file for all numbers")
    parser.add_argument("--page", type=Path, help="page to rewrite, docs/measurements/sequence_models.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    counts = [2**k for k in range(1, 9)]
    errors = step_errors(("euler", "midpoint", "rk4"), counts)
    print(f"residual network and Euler's method, largest difference of any layer: {residual_difference():.1e}")
    print("order:", ", ".join(f"{name} {order:.2f}" for name, order in slopes(counts, errors).items()))
    runs = [
        (system, model, share, seed)
        for seed in range(options.first, options.first + options.seeds)
        for system in options.systems
        for model in options.models
        for share in options.shares
        if (system, model) != ("lotka_volterra", "neural")  # only compartments have rate constants
    ]
    rows: list[dict[str, Any]] = []
    for system, model, share, seed in track(runs, "learn and score"):
        rows.append(run(system, model, share, seed, options.epochs, options.new))
        if options.json:
            options.json.write_text(json.dumps({"runs": rows, "steps": counts, "errors": errors}, indent=1))
    for system in dict.fromkeys(row["system"] for row in rows):
        printed = Table(title=f"{TITLES[system]}: mean over seeds (smallest–largest)")
        for column in ("", *(f"{w} {100 * s:.0f} %" for w in ("rec", "ext") for s in options.shares)):
            printed.add_column(column)
        for cells in table(rows, system):
            printed.add_row(*cells)
        Console(width=180).print(printed)
    if options.page:
        begin, end = "<!-- measured -->\n\n", "\n\n<!-- end -->"
        text = options.page.read_text(encoding="utf-8")
        before, after = text.split(begin)[0], text.split(end)[1]
        options.page.write_text(before + begin + markdown(rows) + end + after, encoding="utf-8")
        step_figure(counts, errors).savefig(options.page.parent / "step_size.png", dpi=130)


if __name__ == "__main__":
    main()
