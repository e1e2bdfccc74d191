"""Figures of the pages on predator and prey and on epidemics, from the checkpoints of their presets.

    neuralpk fit --preset lotka_volterra_augmented
    neuralpk fit --preset sir

Each writes ``lightning_logs/version_N/checkpoints/last.ckpt``, from which the figure is drawn.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from neuralpk.cohort import Subject
from neuralpk.datamodules import SimulatedLotkaVolterraDataModule, SimulatedSIRDataModule
from neuralpk.diagnostics.correction_plots import correction_maps
from neuralpk.diagnostics.style import BLUE, VERMILLION, legend_on_top, new_figure, time_axis
from neuralpk.task import LatentTask

TRUE = {"alpha": 1.3, "beta": 0.9, "gamma": 1.8, "delta": 0.8, "kappa": 0.2}  # typical values of the simulated series
SHOWN = 3


def pairs(subject: Subject) -> np.ndarray:
    """Observed values of both states at the same times, ``[time, 2]``."""
    return np.column_stack([subject.values[subject.endpoints == k] for k in (1, 2)])


def moved(found: dict[str, float], places: np.ndarray) -> np.ndarray:
    """Slopes of prey and predator with these parameters, minus those with the true ones, ``[..., 2]``."""
    alpha, beta, gamma, delta = (found[name] - TRUE[name] for name in ("alpha", "beta", "gamma", "delta"))
    prey, predator = places[..., 0], places[..., 1]
    return np.stack([prey * (alpha - beta * predator), predator * (delta * prey - gamma)], axis=-1)


def correction(task: LatentTask) -> Figure:
    """What the network adds to the slopes of prey and predator, and the term that is missing in the equations."""
    cohort = SimulatedLotkaVolterraDataModule(subjects=50, logistic=True).make_cohort()
    result = task.reconstruct(cohort, np.linspace(0.0, 8.0, 100).tolist(), draws=0)
    lines = result.ipred
    gap = np.full((1, 2), np.nan)  # separates two curves
    path = np.concatenate([np.concatenate([line, gap]) for line in lines[:SHOWN]])
    observed = [pairs(subject) for subject in cohort]
    x, y = (np.linspace(0.0, np.quantile(np.concatenate(observed)[:, k], 0.99), 81) for k in (0, 1))
    grid = torch.as_tensor(np.stack(np.meshgrid(x, y), axis=-1), dtype=torch.float32)
    dynamics: Any = task.model.dynamics
    with torch.no_grad():
        learned = dynamics.correction(torch.zeros(()), grid, grid[..., :0]).numpy()
    places = grid.numpy().astype(float)
    names = dynamics.parameter_names
    typical = {name: float(np.exp(np.log(result.parameters[name][0]).mean())) for name in names}
    fields = {
        "network": learned,
        "network and moved parameters": learned + moved(typical, places),
        "missing: −κ·prey²": np.stack([-TRUE["kappa"] * places[..., 0] ** 2, np.zeros(grid.shape[:2])], axis=-1),
    }
    print("found", {name: round(value, 3) for name, value in typical.items()})
    shown = np.concatenate(observed[:SHOWN])
    return correction_maps(x, y, fields, path, shown, ("prey", "predator"), lines.reshape(-1, 2))


def epidemics(task: LatentTask) -> Figure:
    """Curves and parameters of the first epidemics."""
    cohort = SimulatedSIRDataModule(subjects=50).make_cohort()[:SHOWN]
    result = task.reconstruct(cohort, draws=0, map=True)
    figure, (panels,) = new_figure(1, SHOWN, height=3.0, sharey=True)
    for k, (panel, subject) in enumerate(zip(panels, cohort, strict=True)):
        b, rate, basic = (float(result.parameters[name][0][k]) for name in ("b", "k", "R0"))
        for endpoint, name, colour in ((0, "infected", VERMILLION), (1, "recovered", BLUE)):
            own = subject.endpoints == endpoint + 1
            panel.plot(result.times[k], result.ipred[k, :, endpoint], color=colour, lw=1.6, label=name)
            panel.plot(subject.times[own], subject.values[own], "o", color=colour, ms=4)
        panel.set_title(f"b {b:.2f}, k {rate:.2f} /day, R0 {basic:.1f}", fontsize=9)
        time_axis(panel, "day")
    panels[0].set_ylabel("Share of the population")
    legend_on_top(figure, [panels[0]])
    return figure


def main() -> None:
    """Draw a figure for each checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--augmented", type=Path, help="checkpoint of lotka_volterra_augmented")
    parser.add_argument("--sir", type=Path, help="checkpoint of sir")
    parser.add_argument("--folder", type=Path, default=Path("docs"), help="folder for lotka_volterra.png and sir.png")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for checkpoint, draw, name in (
        (options.augmented, correction, "lotka_volterra.png"),
        (options.sir, epidemics, "sir.png"),
    ):
        if checkpoint:
            task = LatentTask.load_from_checkpoint(checkpoint, map_location="cpu").eval()
            draw(task).savefig(options.folder / name, dpi=130)


if __name__ == "__main__":
    main()
