"""Linear models: `solve` compared with closed forms in NumPy, vectorised over all subjects, on the same data.

Two compartments, 20 observations of each subject at different times, double precision, one thread: an intravenous
bolus, and 28 oral doses every 12 h with an infusion. The script prints the times of the fastest runs, their ratio and
the largest relative difference of the amounts in the central compartment.

With ``--texts``: models of the library written as text, a solve and its gradient, exactly and by steps at rtol 1e-5.

    python scripts/benchmark_linear.py
    python scripts/benchmark_linear.py --texts --subjects 1000
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from neuralpk.cohort import Dose, FloatArray, Subject
from neuralpk.cohort_batch import CohortBatch, collate
from neuralpk.dynamics import CompartmentModel, Dynamics, Equations
from neuralpk.scaling import Scaling
from neuralpk.solve import Auto, Engine, Exact, RungeKutta

TYPICAL = {"CL": 5.0, "V1": 20.0, "Q": 3.0, "V2": 40.0, "KA": 1.3}
DOSE, TAKEN = 100.0, np.arange(28) * 12.0
INFUSED, FROM, TO = 50.0, 30.0, 32.0
TEXTS = (
    "one_compartment", "one_compartment_oral_lag", "three_compartments_oral_lag", "parent_metabolite",
    "enterohepatic_recirculation",
)  # fmt: skip


def rates(theta: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """k21 and the two rates of disposition, each ``[subject, 1]`` (Gibaldi and Perrier 1982, ch. 2)."""
    cl, v1, q, v2 = theta.T[:4, :, None]
    k10, k12, k21 = cl / v1, q / v1, q / v2
    total = k10 + k12 + k21
    fast = (total + np.sqrt(total**2 - 4 * k10 * k21)) / 2
    return k21, fast, k10 * k21 / fast


def bolus(theta: FloatArray, t: FloatArray) -> FloatArray:
    """Amount in the central compartment, ``[subject, time]``, after a dose at time 0."""
    k21, a, b = rates(theta)
    return DOSE / (a - b) * ((a - k21) * np.exp(-a * t) + (k21 - b) * np.exp(-b * t))


def oral(theta: FloatArray, t: FloatArray) -> FloatArray:
    """The same after oral doses at `TAKEN` and an infusion, by superposition."""
    k21, a, b = rates(theta)
    ka = theta[:, 4:]
    of_a, of_b = ka * (k21 - a) / ((ka - a) * (b - a)), ka * (k21 - b) / ((ka - b) * (a - b))
    since = t[:, :, None] - TAKEN
    out = np.zeros_like(t)
    for rate, weight in ((a, of_a), (b, of_b), (ka, -(of_a + of_b))):
        each = np.exp(-rate[..., None] * np.maximum(since, 0.0)) * (since >= 0)
        out += DOSE * weight * each.sum(-1)
    during, after = np.clip(t - FROM, 0, TO - FROM), np.maximum(t - TO, 0)
    for rate, weight in ((a, (a - k21) / (a - b)), (b, (k21 - b) / (a - b))):
        out += INFUSED / (TO - FROM) * weight / rate * -np.expm1(-rate * during) * np.exp(-rate * after)
    return out


def cohort(doses: list[Dose], last: float, subjects: int) -> CohortBatch:
    """Subjects with the same doses and different times."""
    times = np.linspace(0.25, last, 20)
    batch = collate([Subject("1", times, np.full(20, np.nan), tuple(doses))], dtype=torch.float64).repeat(subjects)
    moved = times + np.random.default_rng(0).uniform(-0.1, 0.1, (subjects, 20))
    batch.time = torch.as_tensor(moved)
    return batch


def fastest(run: Callable[[], object], repeats: int) -> float:
    """Milliseconds of the fastest run, after a first run that is not timed."""
    run()
    spent = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        spent.append(time.perf_counter() - start)
    return 1e3 * min(spent)


def with_gradient(engine: Engine, model: Dynamics, theta: torch.Tensor, batch: CohortBatch) -> torch.Tensor:
    """States, after their gradient has been computed too."""
    own = theta.clone().requires_grad_()
    states = engine.solve(model, own[:, None], batch).states
    states.square().sum().backward()
    return states.detach()


def measure_texts(subjects: int, repeats: int) -> list[dict[str, str | float]]:
    """Print and return a row for each text: two doses, 24 h."""
    batch = cohort([Dose(0, DOSE), Dose(12, DOSE)], 23.0, subjects)
    rows: list[dict[str, str | float]] = []
    for name in TEXTS:
        model = Equations(model=name).double()
        typical = torch.tensor([*model.guess(Scaling()).values()], dtype=torch.float64)
        spread = np.random.default_rng(1).standard_normal((subjects, len(typical)))
        theta = typical * torch.exp(0.2 * torch.as_tensor(spread))
        ms = {
            kind: fastest(lambda engine=engine: with_gradient(engine, model, theta, batch), repeats)  # noqa: B023
            for kind, engine in (("exact_ms", Exact()), ("steps_ms", RungeKutta()))
        }
        error = with_gradient(RungeKutta(), model, theta, batch) - with_gradient(Exact(), model, theta, batch)
        rows.append({"text": name, **ms, "error_of_steps": float(error.abs().max() / DOSE)})
        print(f"{name}: exact {ms['exact_ms']:.1f} ms, by steps {ms['steps_ms']:.1f} ms")
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subjects", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path, help="file for the rows")
    parser.add_argument("--texts", action="store_true", help="measure models that are written as text instead")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.texts:
        texts = measure_texts(options.subjects, options.repeats)
        if options.json:
            options.json.write_text(json.dumps(texts, indent=1))
        return
    trains = {
        "bolus": (CompartmentModel(2), [Dose(0, DOSE)], 48.0, bolus),
        "28 oral doses and an infusion": (
            CompartmentModel(2, "first_order"),
            [Dose(0, DOSE, interval=12, additional=27), Dose(FROM, INFUSED, compartment=2, duration=TO - FROM)],
            340.0,
            oral,
        ),
    }
    rows = []
    for name, (model, doses, last, closed) in trains.items():
        batch = cohort(doses, last, options.subjects)
        typical = np.array([TYPICAL[parameter] for parameter in model.parameter_names])
        spread = np.random.default_rng(1).standard_normal((options.subjects, len(typical)))
        values = typical * np.exp(0.3 * spread)
        theta = torch.as_tensor(values)

        def forward() -> torch.Tensor:
            with torch.no_grad():
                return Auto().solve(model, theta[:, None], batch).states  # noqa: B023  # run at once

        def backward() -> torch.Tensor:
            return with_gradient(Auto(), model, theta, batch)  # noqa: B023

        truth = closed(values, batch.time.numpy())
        row = {
            "workload": name,
            "numpy_ms": fastest(lambda: closed(values, batch.time.numpy()), options.repeats),  # noqa: B023
            "solve_ms": fastest(forward, options.repeats),
            "with_gradient_ms": fastest(backward, options.repeats),
            "max_error": float(np.abs(forward()[..., model.central].numpy() / truth - 1).max()),
        }
        rows.append(row)
        print(
            f"{name}: NumPy {row['numpy_ms']:.1f} ms, solve {row['solve_ms']:.1f} ms "
            f"({row['solve_ms'] / row['numpy_ms']:.2f} times), with its gradient {row['with_gradient_ms']:.0f} ms, "
            f"largest relative difference {row['max_error']:.0e}"
        )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
