"""The page of the library of models: the text of each, and a sheet of typical courses for each group.

The courses are those of the starting values, after the doses of `SHOWN`. Writes docs/library.md and docs/library/*.svg.

    python scripts/draw_library.py
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from neuralpk import Dose
from neuralpk.diagnostics.style import BLUE, VERMILLION
from neuralpk.dynamics import Equations
from neuralpk.scaling import Scaling
from neuralpk.solve import Auto, solve

DOCS = Path(__file__).parents[1] / "docs"
_POINTS, _COLUMNS = 240, 3


class Shown(NamedTuple):
    """How a model is drawn: its doses, and the last time with its unit."""

    doses: tuple[Dose, ...]
    end: float
    unit: str = "h"


def once(amount: float, end: float, unit: str = "h", compartment: int = 1) -> Shown:
    """One dose at time 0."""
    return Shown((Dose(0.0, amount, compartment),), end, unit)


def repeated(amount: float, interval: float, more: int, end: float, unit: str = "h") -> Shown:
    """Doses at equal intervals from time 0 on."""
    return Shown((Dose(0.0, amount, interval=interval, additional=more),), end, unit)


SHOWN = {
    "Compartments": {
        "one_compartment": once(100, 24),
        "two_compartments": once(100, 24),
        "three_compartments": once(100, 24),
        "one_compartment_oral_lag": once(100, 24),
        "two_compartments_oral_lag": once(100, 24),
        "three_compartments_oral_lag": once(100, 24),
    },
    "Absorption": {
        "parallel_absorption": Shown((Dose(0.0, 100.0), Dose(0.0, 100.0, 2)), 24),
        "transit_absorption": once(100, 24),
        "weibull_absorption": once(100, 24),
    },
    "Elimination": {
        "michaelis_menten": once(500, 48),
        "linear_michaelis_menten": once(500, 48),
        "time_varying_clearance": repeated(240, 14, 12, 182, "days"),
        "autoinduction": repeated(600, 24, 9, 240),
    },
    "Metabolite and bile": {"parent_metabolite": once(100, 36), "enterohepatic_recirculation": once(100, 48)},
    "Target-mediated disposition": {
        "tmdd": once(100, 60, "days"),
        "tmdd_qss": once(100, 60, "days"),
        "tmdd_michaelis_menten": once(100, 60, "days"),
    },
    "Effect of the concentration": {
        "direct_emax": once(200, 48),
        "direct_sigmoid_emax": once(200, 48),
        "effect_compartment": once(200, 48),
    },
    "Turnover": {
        "turnover_inhibited_input": once(80, 120),
        "turnover_inhibited_output": once(80, 120),
        "turnover_stimulated_input": once(80, 120),
        "turnover_stimulated_output": once(80, 120),
    },
    "Cells and tumours": {
        "myelosuppression": once(100, 600),
        "tumour_simeoni": Shown((Dose(8.0, 8.0, interval=1.0, additional=4),), 24, "days"),
        "tumour_claret": repeated(14, 1, 23, 40, "weeks"),
        "gompertz_growth": Shown((), 60, "days"),
        "logistic_growth": Shown((), 60, "days"),
    },
    "Glucose, virus, populations": {
        "glucose_insulin": once(300, 180, "min"),
        "hiv_dynamics": Shown((), 30, "days"),
        "lotka_volterra": Shown((), 40, "years"),
        "sir": Shown((), 100, "days"),
        "seir": Shown((), 150, "days"),
    },
}


def _anchor(group: str) -> str:
    return group.lower().replace(",", "").replace(" ", "-")


def sheet_name(group: str) -> str:
    """File of a group."""
    return f"{_anchor(group).replace('-', '_')}.svg"


def course(name: str, shown: Shown) -> tuple[torch.Tensor, torch.Tensor]:
    """Times ``[time]`` and outputs ``[time, output]`` at the starting values."""
    model = Equations(model=name).double()
    theta = torch.tensor([[*model.guess(Scaling()).values()]], dtype=torch.float64)
    times = torch.linspace(0.0, shown.end, _POINTS, dtype=torch.float64)
    start = torch.zeros(1, dtype=torch.float64)
    solution = solve(model, theta, times, [list(shown.doses)], start=start, engine=Auto(1e-8, 1e-10))
    solution.check()
    return times, model.observe(solution.states, solution.theta)[0][:, list(model.endpoints)]


def draw(axes: Axes, name: str, shown: Shown) -> None:
    """The first output on the left axis, the second on the right one."""
    times, outputs = course(name, shown)
    names = [assay.output for assay in Equations(model=name).assays]
    axes.set_title(name, fontsize=8)
    axes.set_xlabel(shown.unit, fontsize=7)
    for k, colour in zip(range(outputs.shape[1]), (BLUE, VERMILLION), strict=False):
        own = axes if k == 0 else axes.twinx()
        own.plot(times, outputs[:, k], color=colour, linewidth=1.2)
        own.set_ylabel(names[k], fontsize=7, color=colour)
        own.tick_params(labelsize=6, length=2)
        own.set_ylim(bottom=min(0.0, float(outputs[:, k].min())))
        own.spines["top"].set_visible(False)
        own.spines["right"].set_visible(k == 1)


def draw_sheet(group: str, path: Path) -> None:
    """Small drawings of the models of a group."""
    models = SHOWN[group]
    columns = min(_COLUMNS, len(models))
    rows = -(-len(models) // columns)
    figure = Figure(figsize=(3.0 * columns, 1.9 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (name, shown) in zip(grid, models.items(), strict=False):
        draw(axes, name, shown)
    for axes in grid[len(models) :]:
        axes.set_visible(False)
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": group, "path.simplify_threshold": 0.5}):
        figure.savefig(path, metadata={"Date": None})


def page() -> str:
    """The page, in Markdown."""
    lines = [
        "# Library of models",
        "",
        "Each of these models is one text of [equations](equations.md): use it by its name, or copy and change it.",
        "",
        "```py",
        'neuralpk.fit("T.csv", Equations(model="effect_compartment"))',
        "```",
        "",
        "The drawings show the outputs at the starting values of the text. Every model is compared with SciPy",
        "([how exact](equations.md#library)). This page is written by `python scripts/draw_library.py`.",
        "",
        *(f"- [{group}](#{_anchor(group)}): `{'`, `'.join(models)}`" for group, models in SHOWN.items()),
        "",
    ]  # fmt: skip
    for group, models in SHOWN.items():
        lines += [f"## {group}", "", f"![Typical courses: {', '.join(models)}](library/{sheet_name(group)})", ""]
        for name in models:
            lines += [f"### {name}", "", "```text", Equations(model=name).text.strip(), "```", ""]
    return "\n".join(lines)


def main() -> None:
    """Write the page and its sheets."""
    (DOCS / "library").mkdir(exist_ok=True)
    for group in SHOWN:
        draw_sheet(group, DOCS / "library" / sheet_name(group))
    (DOCS / "library.md").write_text(page())


if __name__ == "__main__":
    main()
