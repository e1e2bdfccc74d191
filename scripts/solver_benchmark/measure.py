"""One engine on one workload, measured in a separate process, with its first call, memory and failures.

``python measure.py '{"workload": …, "engine": …, …}'`` is that process; `measure` starts it.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from solver_benchmark.workloads import make


class Engine(NamedTuple):
    """A method for a gradient step.

    Args:
        library: the library that has to be installed.
        step: ``module:function`` in this folder; the function takes the workload and the device, and returns the step.
        arguments: other arguments of the function.
    """

    library: str
    step: str
    arguments: dict[str, Any] = {}  # noqa: RUF012  # never changed

    @property
    def peer(self) -> bool:
        """Whether it is a solver of another library, with error control."""
        return self.library not in ("neuralpk", "torch")


_OURS, _DIFFRAX = "neuralpk_engines:gradient_step", "jax_engines:diffrax_step"
ENGINES = {
    "torchdiffeq adjoint": Engine("torchdiffeq", "torch_engines:torchdiffeq", {"adjoint": True}),
    "torchdiffeq backprop": Engine("torchdiffeq", "torch_engines:torchdiffeq", {"adjoint": False}),
    "torchode": Engine("torchode", "torch_engines:torchode"),
    "diffrax Dopri5": Engine("diffrax", _DIFFRAX, {"solver": "Dopri5"}),
    "diffrax Tsit5": Engine("diffrax", _DIFFRAX, {"solver": "Tsit5"}),
    "fixed steps of 1.5 h": Engine("torch", "torch_engines:fixed", {"longest": 1.5}),
    "neuralpk torchdiffeq adjoint": Engine("neuralpk", _OURS, {"engine": "TorchDiffEq", "gradient": "adjoint"}),
    "neuralpk torchdiffeq backprop": Engine("neuralpk", _OURS, {"engine": "TorchDiffEq", "gradient": "backprop"}),
    "neuralpk runge_kutta": Engine("neuralpk", _OURS, {"engine": "RungeKutta"}),
}

_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
_JAX = {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
RESULTS = ("ms", "forward_ms", "max_error", "first_s", "peak_mb", "note")


def measure(
    workload: str,
    device: str,
    n: int,
    engine: str,
    *,
    repeats: int,
    limit: float,
    forward: bool = False,
    reference: Path | None = None,
    **size: int,
) -> dict[str, Any]:
    """Measure a gradient step.

    Args:
        workload: a name in `MAKERS`.
        device: ``cpu`` or ``cuda``.
        n: number of subjects.
        engine: a name in `ENGINES`.
        repeats: number of timed steps, of which the median is taken; two steps before them are not counted.
        limit: seconds that the first step may take.
        forward: also time the solve alone, without preparing its gradient.
        reference: file with the states of the reference.
        size: doses and observations of the workload.

    Returns:
        `RESULTS`: milliseconds per step and, if requested, per solve; largest error; seconds of the first step; peak
        memory of the steps in MB, with compilation, minus the memory before them (libraries, data). If there are no
        results, a note with the reason.
    """
    row: dict[str, Any] = dict.fromkeys(RESULTS)
    if importlib.util.find_spec(ENGINES[engine].library) is None:
        return row | {"note": f"{ENGINES[engine].library} is not installed"}
    task = {"workload": workload, "device": device, "n": n, "engine": engine, "repeats": repeats, "limit": limit}
    task |= {"size": size, "forward": forward, "reference": reference and str(reference)}
    environment = os.environ | _ONE_THREAD | _JAX | {"JAX_PLATFORMS": device}
    command = [sys.executable, __file__, json.dumps(task)]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if process.returncode == 0:
        return row | json.loads(process.stdout.splitlines()[-1])
    if process.returncode == -signal.SIGALRM:
        return row | {"note": past(limit)}
    if process.returncode < 0:
        return row | {"note": f"killed by {signal.Signals(-process.returncode).name}"}
    return row | {"note": (process.stderr.strip().splitlines() or ["failed without a message"])[-1]}


def past(limit: float) -> str:
    """The note of an engine whose first step took too long."""
    return f"> {limit:g} s"


def host_peak() -> int:
    """Peak memory of this process, in bytes. On Linux the one in `resource` includes the parent before a fork."""
    status = Path("/proc/self/status")
    if status.exists():
        return 1024 * next(int(row.split()[1]) for row in status.read_text().splitlines() if row.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _timed(step: Callable[[], Any], repeats: int, limit: float) -> tuple[Any, float, float]:
    """The result of a step, the median of its time in milliseconds, and the time of the first step in seconds."""
    seconds = []
    signal.setitimer(signal.ITIMER_REAL, limit)  # ends the process, even inside compiled code
    for k in range(2 + repeats):
        start = time.perf_counter()
        states = step()
        seconds.append(time.perf_counter() - start)
        if k == 0:
            signal.setitimer(signal.ITIMER_REAL, 0)
        elif sum(seconds[1:]) > limit:
            break
    return states, 1e3 * statistics.median(seconds[2:] or seconds[1:]), seconds[0]


def _run(task: dict[str, Any]) -> dict[str, Any]:
    """Measure in this process."""
    on_host = task["device"] == "cpu"
    if on_host and sys.platform == "linux":
        # the only way to limit every library to one thread; not for a GPU, whose work several threads start
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    engine = ENGINES[task["engine"]]
    name, function = engine.step.split(":")
    module = importlib.import_module(f"solver_benchmark.{name}")
    workload = make(task["workload"], task["n"], **task["size"])
    step = getattr(module, function)(workload, task["device"], **engine.arguments)
    peak = host_peak if on_host else module.device_peak
    before = peak()

    states, ms, first = _timed(step, task["repeats"], task["limit"])
    row = {"ms": ms, "first_s": first, "peak_mb": (peak() - before) / 1e6}
    if task["forward"]:
        _, row["forward_ms"], _ = _timed(functools.partial(step, gradient=False), task["repeats"], task["limit"])
    if task["reference"] is not None:
        expected = np.load(task["reference"])
        row["max_error"] = float(np.abs(np.array(states[: len(expected)].tolist()) - expected).max())
    return row


if __name__ == "__main__":
    print(json.dumps(_run(json.loads(sys.argv[1]))))
