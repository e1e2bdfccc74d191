"""A hybrid of mechanism and network compared with the mechanism alone, on patients whom it cannot explain.

Three cohorts of fifty patients: elimination that saturates, clearance that decreases with time, drug that returns from
the bile to the gut after a meal. Three models learn from each cohort, with the same encoder, objective and number of
steps: the mechanism without this process, the hybrid of that mechanism and learned flows (`HybridDynamics`), and the
mechanism as a text of equations in which a network stands for what is not known (`Equations`). Scored are the estimated
curves of new patients against the true ones: relative root mean square error, mean over patients. For comparison, the
same patients are estimated with the true equations, population and error, where nothing is learned.
"""

import argparse
import itertools
import json
import logging
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from matplotlib.figure import Figure
from quiet_training import train
from rich.progress import track
from torch import Tensor

from neuralpk.cohort import Dose, Subject, Units
from neuralpk.cohort_batch import collate
from neuralpk.cohort_simulation import Design, Population
from neuralpk.datamodules import SimulatedPKDataModule
from neuralpk.datamodules.simulated import SimulatedDataModule
from neuralpk.diagnostics.metrics import line_rrmse
from neuralpk.diagnostics.style import BLACK, BLUE, TEXT, legend_on_top, new_figure
from neuralpk.dynamics import CompartmentModel, Compartments, Dynamics, Equations, HybridDynamics, NeuralFlows
from neuralpk.encoders import Encoder, SetEncoder
from neuralpk.individual_estimates import estimate_individuals
from neuralpk.objectives import MarginalLikelihood
from neuralpk.parameters import PopulationParameters
from neuralpk.population_model import PopulationModel
from neuralpk.residual_error import CombinedError, error_class
from neuralpk.scaling import Scaling
from neuralpk.solve import Auto
from neuralpk.task import LatentTask

ENGINE = Auto(rtol=1e-4, atol=1e-4)
PRIOR = {"omega": 0.4, "omega_prior_sd": 0.7}  # prior of omega, for every parameter: 0.4, within a factor of two
TYPICAL = {"KA": 1.5, "CL": 4.0, "V1": 40.0, "KB": 0.15, "KG": 2.0}  # typical values of `Recirculation`
MEAL, OPEN = 7.0, 2.5  # hours: the time around which the gall bladder empties, and how long this takes


class Recirculation(Compartments):
    """One compartment that also excretes into the bile; a meal returns this drug to the gut::

    dA_depot/dt = −KA·A_depot + k(t)·A_bile        dA_bile/dt = KB·A_central − k(t)·A_bile
    dA_central/dt = KA·A_depot − (CL/V1 + KB)·A_central        k(t) = KG·exp(−((t − MEAL)/OPEN)²)
    """

    def __init__(self) -> None:
        flows = (("depot", "central"), ("central", None), ("central", "bile"), ("bile", "depot"))
        super().__init__(("depot", "central", "bile"), flows)
        self.parameter_names = ("KA", "CL", "V1", "KB", "KG")
        self.endpoints, self.autonomous = (1,), False

    def rates(self, t: Tensor, y: Tensor, theta: Tensor) -> Tensor:
        p = self.named(theta)
        emptying = p["KG"] * torch.exp(-(((t - MEAL) / OPEN) ** 2))
        return torch.stack([p["KA"], p["CL"] / p["V1"], p["KB"], emptying], dim=-1)

    def observe(self, y: Tensor, theta: Tensor) -> Tensor:
        return y / self.named(theta)["V1"][..., None]

    def guess(self, scaling: Scaling) -> dict[str, float]:
        return dict(TYPICAL)


class RecirculationDataModule(SimulatedDataModule):
    """Patients of `Recirculation` after an oral dose, sampled ten times within a day."""

    def __init__(self, test_subjects: int, **options: Any) -> None:
        super().__init__(50, test_subjects, "combined", {"a": 0.02, "b": 0.1}, **options)
        self.dynamics, self.units = Recirculation(), Units()
        self.population = Population(TYPICAL, dict.fromkeys(("KA", "CL", "V1", "KB"), 0.3))
        times = (0.25, 0.5, 1, 1.5, 2, 3, 4, 5, 6, 6.5, 7, 7.5, 8, 9, 10, 12, 14, 16, 20, 24)
        doses = tuple((Dose(0.0, amount),) for amount in (30.0, 60.0, 120.0))
        self.design = Design(doses, times, 10, grid=tuple(np.linspace(0.25, 24.0, 200).tolist()))


@dataclass(frozen=True)
class Case:
    """A cohort, and the models that learn from it.

    Args:
        title: name of the cohort in the table.
        data: makes the patients, from the options that all cohorts have in common.
        mechanism: equations of the mechanism.
        correction: network of the hybrid.
        text: the hybrid as equations.
        typical: starting values of the hybrid, for those parameters of which the guess of the dynamics is wrong.
        flow: source and destination of the learned flow in the figure.
        truth: source and destination of the true flow.
        axes: quantities on the two axes of the figure.
    """

    title: str
    data: Callable[..., SimulatedDataModule]
    mechanism: Callable[[], Dynamics]
    correction: Callable[[], NeuralFlows]
    text: str
    typical: dict[str, float]
    flow: tuple[str, str | None]
    truth: tuple[str, str | None]
    axes: tuple[str, str]


def saturable(**options: Any) -> SimulatedPKDataModule:
    """One compartment, a bolus far above KM: the concentration decreases almost linearly, then exponentially."""
    return SimulatedPKDataModule(
        compartments=1,
        elimination="michaelis_menten",
        typical={"V1": 70.0, "VMAX": 4.0, "KM": 0.15},
        omega=dict.fromkeys(("V1", "VMAX", "KM"), 0.3),
        doses=[20.0, 60.0, 120.0],
        times=[0.5, 1.0, 2.0, 4.0, 6.0, 8.0, 10.0, 12.0, 16.0, 20.0, 24.0, 28.0, 32.0, 36.0],
        grid=[0.25, 36.0, 200],
        error="combined",
        error_sd={"a": 0.02, "b": 0.1},
        **options,
    )


def falling(**options: Any) -> SimulatedPKDataModule:
    """One compartment, a bolus on each of three days, and a clearance that decreases."""
    return SimulatedPKDataModule(
        compartments=1,
        elimination="time_varying",
        typical={"CL": 10.0, "V1": 70.0, "CLR": 0.15, "KCL": 0.05},
        omega=dict.fromkeys(("CL", "V1"), 0.3),
        repeats=3,
        interval=24.0,
        times=[1.0, 3.0, 6.0, 12.0, 18.0, 23.0, 25.0, 27.0, 30.0, 36.0, 42.0, 47.0, 49.0, 51.0, 54.0, 60.0, 71.0],
        grid=[0.25, 71.0, 200],
        error="combined",
        error_sd={"a": 0.02, "b": 0.1},
        **options,
    )


# the prior is wide enough for rates that change tenfold, and there are enough features for a rate that rises and falls;
# the base rate of the correction starts far above 0: the training would remove a small one before it has learned
NETWORK: dict[str, Any] = {"prior_sd": 10.0, "hidden": 64}


def bolus() -> CompartmentModel:
    """One compartment after an intravenous dose."""
    return CompartmentModel(1)


def oral() -> CompartmentModel:
    """One compartment with first-order absorption."""
    return CompartmentModel(1, "first_order")


SATURABLE = """
parameters: VM = 6, V1 = 50, KM = 0.5
central' = -VM*share
C = central/V1
share = network(C/KM, monotone=increasing, zero_at=0, range=(0, inf))
outputs: C
"""
FALLING = """
parameters: CL = 4, V1 = 50
central' = -CL*share*C
C = central/V1
share = network(t, range=(0, inf), prior_sd=3)
outputs: C
"""
# the bile is emptied only within some hours of a time that is learned; how fast is a network
BILE = """
parameters: KA = 1, CL = 6, V1 = 60, KB = 0.1, TE = 8
depot' = -KA*depot + opening*bile
central' = KA*depot - CL*C - KB*central
bile' = KB*central - opening*bile
C = central/V1
opening = exp(-((t - TE)/4)^2)*network(t - TE, range=(0, inf))
outputs: C
"""

CASES = {
    "saturable": Case(
        "elimination that saturates",
        saturable,
        bolus,
        lambda: NeuralFlows(**NETWORK),
        SATURABLE,
        {"CL": 0.3, "base_central_out": 0.15},
        ("central", None),
        ("central", None),
        ("concentration", "clearance"),
    ),
    "falling": Case(
        "clearance that falls in time",
        falling,
        bolus,
        lambda: NeuralFlows(**NETWORK, time=True),
        FALLING,
        {"CL": 2.0, "base_central_out": 0.1},
        ("central", None),
        ("central", None),
        ("time", "clearance"),
    ),
    "recirculation": Case(
        "return from the bile after a meal",
        RecirculationDataModule,
        oral,
        lambda: NeuralFlows(**NETWORK, time=True, extra_flows=[("central", "depot")]),
        BILE,
        {"base_central_depot": 0.1},
        ("central", "depot"),
        ("bile", "depot"),
        ("time", "carried"),
    ),
}
MODELS = {
    "mechanism": "mechanism alone",
    "hybrid": "hybrid",
    "text": "hybrid as a text",
    "known": "equations and population known",
}


def learn(data: SimulatedDataModule, case: Case, model: str, seed: int, epochs: int) -> LatentTask:
    """Train one of the models on the fifty patients."""
    L.seed_everything(seed, verbose=False)  # before the first weights of the networks are drawn
    dynamics: Dynamics = Equations(case.text) if model == "text" else case.mechanism()
    if model == "hybrid":
        dynamics = HybridDynamics(dynamics, case.correction())
    task = LatentTask(
        dynamics,
        parameters=PopulationParameters(typical=case.typical if model == "hybrid" else None, **PRIOR),
        error=CombinedError(),
        engine=ENGINE,
        encoder=SetEncoder(),
        objective=MarginalLikelihood(),
        learning_rate=0.02,
        seed=seed,
    )
    train(task, data, epochs)
    return task


def score(model: PopulationModel, data: SimulatedDataModule, encoder: Encoder | None = None) -> float:
    """Error of the estimated curves of new patients, mean over patients."""
    people = data.part("test")
    true = np.stack([s.truth.line[:, 0] for s in people])
    found = estimate_individuals(model, people, people[0].truth.times.tolist(), encoder=encoder, draws=0).ipred[..., 0]
    return float(line_rrmse(found, true).mean())


def run(name: str, models: list[str], seed: int, epochs: int, new: int) -> tuple[dict[str, Any], dict[str, LatentTask]]:
    """Train models on one cohort and score them; returns the numbers, and what was trained."""
    case, started = CASES[name], time.perf_counter()
    data = case.data(test_subjects=new, context="random", passes_per_epoch=20, seed=seed)
    row: dict[str, Any] = {"cohort": name, "seed": seed}
    tasks: dict[str, LatentTask] = {}
    for model in models:
        if model == "known":
            row[model] = score(known(data), data)
            continue
        task = tasks[model] = learn(data, case, model, seed, epochs)
        row[model] = score(task.model, data, task.encoder)
    return row | {"seconds": round(time.perf_counter() - started, 1)}, tasks


def known(data: SimulatedDataModule) -> PopulationModel:
    """The model with the true equations, population and error: the limit for the learned models."""
    truth = data.population
    population = PopulationParameters.from_values(truth.typical, truth.omega)
    error = error_class(data.error).from_values(endpoints=1, **data.error_sd)
    model = PopulationModel(data.dynamics, population, error, ENGINE).build(data.scaling())
    return model.double().requires_grad_(False)


def along(
    model: PopulationModel, flow: tuple[str, str | None], doses: list[Dose], times: np.ndarray
) -> dict[str, np.ndarray]:
    """A flow of the typical patient after each dose, ``[dose, time]``: as a clearance and as an amount per time."""
    subjects = [Subject(str(k), [0.0, times[-1]], [1.0, 1.0], (dose,)) for k, dose in enumerate(doses)]
    batch = collate(subjects, dtype=model.value_scale.dtype)
    at = torch.as_tensor(times, dtype=batch.time.dtype).expand(len(doses), -1)
    dynamics: Any = model.dynamics
    with torch.no_grad():
        curve = model.trajectory(model.typical(len(doses)), batch, at)
        parts = [(dynamics, curve.theta)]
        if isinstance(dynamics, HybridDynamics):
            known, learned = dynamics.mechanism, dynamics.correction
            n = len(known.parameter_names)
            parts = [(known, curve.theta[..., :n]), (learned, curve.theta[..., n:])]
        rate = torch.zeros_like(at)
        for part, theta in parts:
            rates = part.rates(at.flatten(), curve.states.flatten(0, 1), theta.flatten(0, 1))
            rate += rates[:, [pair == flow for pair in part.flows]].sum(1).reshape(at.shape)
        volume = curve.theta[..., dynamics.parameter_names.index("V1")]
        carried = rate * curve.states[..., dynamics.states.index(flow[0])]
        read = model.observe(curve)[..., 0]
    found = {"time": at, "concentration": read, "clearance": rate * volume, "carried": carried}
    return {name: value.numpy() for name, value in found.items()}


LABELS = {
    "time": "Time (h)",
    "concentration": "Concentration (mg/L)",
    "clearance": "Clearance (L/h)",
    "carried": "Return to the gut (mg/h)",
}


def draw(learned: dict[str, LatentTask], seed: int) -> Figure:
    """The learned flow of each hybrid and the true flow, along the curves of the typical patient after each dose."""
    figure, (panels,) = new_figure(1, len(learned), height=3.0)
    for panel, (name, task) in zip(panels, learned.items(), strict=True):
        case = CASES[name]
        data = case.data(test_subjects=0, seed=seed)
        doses, times = [dose for (dose,) in data.design.regimens], data.design.true_times()
        x, y = case.axes
        for model, flow, colour, style, label in (
            (known(data), case.truth, BLACK, "--", "true"),
            (task.model.eval(), case.flow, BLUE, "-", "hybrid"),
        ):
            found = along(model, flow, doses, times)
            for k in range(len(doses)):
                order = np.argsort(found[x][k])
                points = found[x][k][order], found[y][k][order]
                panel.plot(*points, color=colour, ls=style, lw=1.3, label=label if k == 0 else None)
        panel.set(xlabel=LABELS[x], ylabel=LABELS[y])
        panel.set_title(case.title.capitalize(), fontsize=TEXT)
        panel.set_ylim(bottom=0.0)
    legend_on_top(figure, [panels[0]])
    return figure


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table of the documentation: mean over seeds, smallest and largest."""
    models = [model for model in MODELS if model in rows[0]]
    lines = [["patients", *(MODELS[model] for model in models)], ["---"] * (1 + len(models))]
    for name in dict.fromkeys(row["cohort"] for row in rows):
        cells = [CASES[name].title]
        for model in models:
            values = [row[model] for row in rows if row["cohort"] == name]
            spread = f" ({min(values):.3f}–{max(values):.3f})" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):.3f}{spread}")
        lines.append(cells)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Run, print, and rewrite the page of the documentation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--cohorts", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--epochs", type=int, default=24, help="most epochs, each of 20 passes over the patients")
    parser.add_argument("--new", type=int, default=100, help="number of new patients to score on")
    parser.add_argument("--json", type=Path, help="file for all numbers")
    parser.add_argument("--page", type=Path, help="page to rewrite, docs/measurements/hybrids.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    rows: list[dict[str, Any]] = []
    learned: dict[str, LatentTask] = {}
    seeds = range(options.first, options.first + options.seeds)
    for seed, name in track(list(itertools.product(seeds, options.cohorts)), "learn and score"):
        row, tasks = run(name, options.models, seed, options.epochs, options.new)
        if "hybrid" in tasks:
            learned.setdefault(name, tasks["hybrid"])
        rows.append(row)
        if options.json:
            options.json.write_text(json.dumps(rows, indent=1))
    print(markdown(rows))
    if options.page:
        begin, end = "<!-- measured -->\n\n", "\n\n<!-- end -->"
        text = options.page.read_text(encoding="utf-8")
        before, after = text.split(begin)[0], text.split(end)[1]
        options.page.write_text(before + begin + markdown(rows) + end + after, encoding="utf-8")
        if learned:
            draw(learned, options.first).savefig(options.page.parent / "hybrids.png", dpi=130)


if __name__ == "__main__":
    main()
