"""Time of a solve and its gradient for models that are written as equations: neuralpk and diffrax, in one run.

The loss is the sum of the squares of all samples of all states; its gradient is that in the parameters of every
subject. Each subject has 20 times of its own. Both run on one thread at rtol 1e-5 and atol 1e-6, after the compilation,
in three rounds each; the time is the median of that of the processor. The error is the largest
difference from a solution of neuralpk at rtol 1e-10, as a share of the largest value.

=========  ==================================================================================================
saturable  depot and central, Michaelis-Menten elimination, one oral dose, 24 h
turnover   depot, central, effect compartment and inhibited turnover, 14 oral doses every 12 h
stiff      target-mediated drug disposition, binding of 200 /(nM day), 3 intravenous doses every 14 days
network    a network of 16 hidden units of both states enters the second: translated as every field is, and as a
           perceptron whose matrices multiply blocks of subjects; without diffrax
=========  ==================================================================================================

    pip install -r scripts/requirements-peers.txt
    python scripts/benchmark_equations.py --json rows.json
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from neuralpk import Dose, Subject
from neuralpk.cohort_batch import collate
from neuralpk.dynamics import Dynamics, Equations, Perceptron
from neuralpk.scaling import Scaling
from neuralpk.solve import RungeKutta

Array = NDArray[Any]
Run = Callable[[], tuple[Array, Array]]
RTOL, ATOL, OBSERVATIONS = 1e-5, 1e-6, 20


class Workload(NamedTuple):
    """Equations as text and as a function of a numerical library, doses of every subject, and the last time."""

    text: str
    field: Callable[[Any, Any, Any], Any]  # (library, state, parameters) -> dy/dt
    start: Callable[[Any], Any]  # parameters -> state before the first dose
    state: int
    amount: float
    dosed: tuple[float, ...]
    end: float
    methods: tuple[str, ...] = ("Tsit5",)  # of diffrax


def _saturable(lib: Any, y: Any, p: Any) -> Any:
    c, absorbed = y[1] / p[2], p[3] * y[0]
    return lib.stack([-absorbed, absorbed - p[0] * c / (p[1] + c)])


def _turnover(lib: Any, y: Any, p: Any) -> Any:
    ka, cl, v, ke0, kin, kout, imax, ic50 = p
    c, absorbed = y[1] / v, ka * y[0]
    inhibited = kin * (1 - imax * y[2] / (ic50 + y[2]))
    return lib.stack([-absorbed, absorbed - cl * c, ke0 * (c - y[2]), inhibited - kout * y[3]])


def _stiff(lib: Any, y: Any, p: Any) -> Any:
    cl, v1, q, v2, kon, koff, kint, ksyn, kdeg = p
    c, distributed = y[0] / v1, q * (y[0] / v1 - y[1] / v2)
    bound = kon * c * y[2] - koff * y[3]
    return lib.stack([-cl * c - distributed - v1 * bound, distributed, ksyn - kdeg * y[2] - bound, bound - kint * y[3]])


WORKLOADS = {
    "saturable": Workload(
        """parameters: VMAX = 10, KM = 2, V = 20, KA = 1
        depot' = -KA*depot
        central' = KA*depot - VMAX*(central/V)/(KM + central/V)
        C = central/V
        outputs: C""",
        _saturable,
        lambda p: [0 * p[0], 0 * p[0]],
        0,
        100.0,
        (0.0,),
        24.0,
    ),
    "turnover": Workload(
        """parameters: KA = 1, CL = 1, V = 10, KE0 = 0.3, KIN = 5, KOUT = 0.05, IMAX = 0.9 in (0, 2), IC50 = 2
        depot' = -KA*depot
        central' = KA*depot - CL*C
        effect' = KE0*(C - effect)
        response' = KIN*(1 - IMAX*effect/(IC50 + effect)) - KOUT*response
        response(0) = KIN/KOUT
        C = central/V
        outputs: C, response""",
        _turnover,
        lambda p: [0 * p[0], 0 * p[0], 0 * p[0], p[4] / p[5]],
        0,
        100.0,
        tuple(12.0 * k for k in range(14)),
        168.0,
    ),
    "stiff": Workload(
        Equations(model="tmdd").text.replace("KON = 2 ", "KON = 200 "),
        _stiff,
        lambda p: [0 * p[0], 0 * p[0], p[7] / p[8], 0 * p[0]],
        0,
        100.0,
        (0.0, 14.0, 28.0),
        42.0,
        ("Kvaerno3", "Kvaerno5"),
    ),
}


def cohort(work: Workload, n: int, dtype: type) -> tuple[Array, Array]:
    """Parameters ``[subject, parameter]``, log-normal around the starting values, and times ``[subject, time]``."""
    rng = np.random.default_rng(0)
    typical = np.array(list(Equations(work.text).guess(Scaling()).values()))
    theta = typical * np.exp(0.2 * rng.normal(size=(n, len(typical))))
    return theta.astype(dtype), np.sort(rng.uniform(0.1, work.end, (n, OBSERVATIONS)), axis=1).astype(dtype)


def with_neuralpk(work: Workload, n: int, dtype: type, engine: RungeKutta) -> Run:
    """States and gradient by neuralpk."""
    theta, times = cohort(work, n, dtype)
    own = torch.tensor(theta)[:, None].requires_grad_()
    dynamics = Equations(work.text).to(own.dtype)
    doses = tuple(Dose(at, work.amount, compartment=work.state + 1) for at in work.dosed)
    return _solved(dynamics, own, times, doses, engine)


def _solved(dynamics: Dynamics, own: Tensor, times: Array, doses: tuple[Dose, ...], engine: RungeKutta) -> Run:
    """A solve of all subjects, and its gradient with respect to their parameters `own` and to the weights."""
    unknown = np.full(OBSERVATIONS, np.nan)
    batch = collate([Subject(str(k), at, unknown, doses) for k, at in enumerate(times)], dtype=own.dtype)

    def run() -> tuple[Array, Array]:
        own.grad = None
        dynamics.zero_grad()
        solution = engine.solve(dynamics, own, batch)
        solution.check()
        solution.states.square().sum().backward()
        assert own.grad is not None
        return solution.states.detach().numpy(), own.grad[:, 0].numpy()

    return run


def with_diffrax(work: Workload, n: int, dtype: type, method: str) -> Run:
    """States and gradient by diffrax, restarted at each dose, with the same doses for all subjects."""
    import diffrax
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", True)
    theta, times = cohort(work, n, dtype)
    edges = np.array([*work.dosed, work.end], dtype)
    segment = np.searchsorted(edges[:-1], times, side="right") - 1
    slot = np.arange(OBSERVATIONS) - (segment[:, :, None] > segment[:, None, :]).sum(-1)
    subject = np.arange(n)[:, None].repeat(OBSERVATIONS, 1)
    slots = np.broadcast_to(edges[1:, None], (n, len(edges) - 1, int(slot.max()) + 2)).copy()
    slots[subject, segment, slot] = times
    term, solver = diffrax.ODETerm(lambda t, y, p: work.field(jnp, y, p)), getattr(diffrax, method)()
    # for its implicit methods, the controller that diffrax advises, and a small first step: a step that fails there
    # leaves a gradient that is not a number
    implicit = isinstance(solver, diffrax.AbstractImplicitSolver)
    controller = diffrax.PIDController(rtol=RTOL, atol=ATOL, **({"pcoeff": 0.3, "icoeff": 0.4} if implicit else {}))
    first = 1e-4 if implicit else None

    def one(p: Any, own: Any) -> Any:
        def over(y: Any, given: Any) -> tuple[Any, Any]:
            begin, end, ts = given
            y = y.at[work.state].add(work.amount)
            solution = diffrax.diffeqsolve(
                term, solver, begin, end, first, y, p,
                saveat=diffrax.SaveAt(ts=ts), stepsize_controller=controller, max_steps=4096,
            )  # fmt: skip
            return solution.ys[-1], solution.ys

        return jax.lax.scan(over, jnp.stack(work.start(p)), (edges[:-1], edges[1:], own))[1]

    def loss(p: Any) -> tuple[Any, Any]:
        states = jax.vmap(one)(p, slots)[subject, segment, slot]
        return (states**2).sum(), states

    compiled = jax.jit(jax.value_and_grad(loss, has_aux=True))

    def run() -> tuple[Array, Array]:
        (_, states), gradient = compiled(theta)
        return np.asarray(states), np.asarray(gradient)

    return run


class Network(Dynamics):
    """dy1/dt = −k·y1, dy2/dt = −k·y2 + network(y1, y2), of 16 hidden units."""

    states, parameter_names = ("first", "second"), ("k",)

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.inner, self.outer = (
            nn.Parameter(scale * torch.randn(*shape, generator=draw, dtype=torch.float64))
            for shape, scale in (((16, 2), 1.0), ((1, 16), 0.1))
        )

    def forward(self, t: Tensor, y: Tensor, theta: Tensor) -> Tensor:
        network = torch.tanh(y @ self.inner.T) @ self.outer.T
        return torch.stack([-theta[..., 0] * y[..., 0], -theta[..., 0] * y[..., 1] + network[..., 0]], dim=-1)


class FusedNetwork(Network):
    """The same field as one multilayer perceptron."""

    def perceptron(self, theta: Tensor) -> Perceptron:
        return Perceptron(
            shift=theta.new_zeros((*theta.shape[:-1], 16)),
            weights=(self.inner, nn.functional.pad(self.outer, (0, 0, 1, 0))),
            biases=(theta.new_zeros(2),),
            activation="tanh",
            matrix=-theta[..., None] * torch.eye(2, dtype=theta.dtype),
        )


def with_network(dynamics: Network, n: int, dtype: type, engine: RungeKutta) -> Run:
    """States and gradient with respect to k by neuralpk."""
    rng = np.random.default_rng(0)
    own = torch.tensor((0.2 * np.exp(0.2 * rng.normal(size=(n, 1, 1)))).astype(dtype)).requires_grad_()
    times = np.sort(rng.uniform(0.1, 24.0, (n, OBSERVATIONS)), axis=1)
    return _solved(dynamics.to(own.dtype), own, times, (Dose(0.0, 1.0),), engine)


def _error(found: Array, right: Array) -> float:
    """The largest difference, as a share of the largest value in its column."""
    axes = tuple(range(right.ndim - 1))
    return float((np.abs(found - right).max(axes) / np.abs(right).max(axes)).max())


def compare(name: str, n: int, dtype: type, repeats: int, rounds: int) -> list[dict[str, Any]]:
    """One row for each engine."""
    usual, tight = RungeKutta(RTOL, ATOL), RungeKutta(1e-10, 1e-12, max_evaluations=1_000_000)
    if name == "network":
        exact = with_network(Network(), n, np.float64, tight)()
        fields = {"translated": Network(), "perceptron": FusedNetwork()}
        runs = {f"neuralpk, {kind}": with_network(field, n, dtype, usual) for kind, field in fields.items()}
    else:
        work = WORKLOADS[name]
        exact = with_neuralpk(work, n, np.float64, tight)()
        runs = {"neuralpk": with_neuralpk(work, n, dtype, usual)}
        if importlib.util.find_spec("diffrax"):
            runs |= {f"diffrax {method}": with_diffrax(work, n, dtype, method) for method in work.methods}
        else:
            print("diffrax is not installed: pip install -r scripts/requirements-peers.txt")
    seconds: dict[str, list[float]] = {engine: [] for engine in runs}
    rows = []
    for engine, run in runs.items():
        begin = time.perf_counter()
        states, gradient = run()
        first = time.perf_counter() - begin
        errors = [_error(found, right) for found, right in zip((states, gradient), exact, strict=True)]
        rows.append(
            {
                "workload": name,
                "n": n,
                "dtype": dtype.__name__,
                "engine": engine,
                "first": first,
                "error": errors[0],
                "gradient_error": errors[1],
            }
        )
    for _ in range(rounds):
        for engine, run in runs.items():
            run()  # after the other engine, caches are empty
            for _ in range(repeats):
                begin = time.process_time()  # other work on the machine does not count
                run()
                seconds[engine].append(time.process_time() - begin)
    return [row | {"milliseconds": 1e3 * statistics.median(seconds[row["engine"]])} for row in rows]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [*WORKLOADS, "network"]
    parser.add_argument("--workloads", nargs="+", default=names, choices=names)
    parser.add_argument("--sizes", nargs="+", type=int, default=[50, 1024])
    parser.add_argument("--dtypes", nargs="+", default=["float64"], choices=["float32", "float64"])
    parser.add_argument("--repeats", type=int, default=7, help="in each round")
    parser.add_argument("--rounds", type=int, default=3, help="in which the engines take turns")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    table = Table(
        "workload", "subjects", "precision", "engine", "ms", "first call, s", "error", "error of the gradient"
    )
    rows: list[dict[str, Any]] = []
    for name in options.workloads:
        for dtype in options.dtypes:
            for n in options.sizes:
                found = compare(name, n, getattr(np, dtype), options.repeats, options.rounds)
                rows += found
                for row in found:
                    table.add_row(
                        name, str(n), dtype, row["engine"], f"{row['milliseconds']:.2f}", f"{row['first']:.1f}",
                        f"{row['error']:.0e}", f"{row['gradient_error']:.0e}",
                    )  # fmt: skip
                if options.json:
                    options.json.write_text(json.dumps(rows, indent=1))
    Console().print(table)


if __name__ == "__main__":
    main()
