"""Machine code of a vector field, of its derivative and of whole steps, for one block of lanes.

No compiler of the system is needed, and the compilation takes so little time that nothing is stored on disk.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numpy.typing import NDArray

from neuralpk.solve.compiled.equations.expressions import Graph
from neuralpk.solve.compiled.equations.implicit_step_code import emit_implicit_pull_step, emit_implicit_step
from neuralpk.solve.compiled.equations.linear_code import emit_linear_equations
from neuralpk.solve.compiled.equations.step_code import emit_pull_step, emit_step
from neuralpk.solve.compiled.equations.value_code import KINDS, TO_KINDS, Result, emit_values
from neuralpk.solve.compiled.steps.lanes import LANES

Array = NDArray[Any]
_LOCK = threading.Lock()
_LARGE = 3_000  # values; the time to compile more of them grows fast with the level of optimisation


@dataclass(frozen=True)
class MachineCode:
    """Addresses of functions on blocks of lanes; blocks and results are ``[…, lane]`` in double precision.

    Args:
        slope: (state, own, shared, out): dy/dt.
        pull: (state, own, shared, cotangent, to_state, to_own, to_shared): the transposed Jacobian times the cotangent;
            it replaces `to_state` and adds to the other two.
        step: a step and the verdict on it (`step_code.emit_step`).
        pull_step: the gradient of a step (`step_code.emit_pull_step`).
        engine: what holds the memory of all.
    """

    slope: int
    pull: int
    step: int
    pull_step: int
    engine: Any = field(repr=False, compare=False)

    def evaluate(self, state: Array, own: Array, shared: Array, cotangent: Array) -> tuple[Array, ...]:
        """Slope and gradients with respect to states, parameters and weights, at one point."""
        pointer = ctypes.POINTER(ctypes.c_double)

        def block(numbers: Array, size: int) -> Array:
            return np.repeat(np.pad(numbers, (0, size - len(numbers)))[:, None], LANES, axis=1)

        weights = np.ascontiguousarray(np.append(shared, 0.0))
        out, to_state = np.zeros((len(state), LANES)), np.zeros((len(state), LANES))
        to_own, to_shared = np.zeros((len(own) + 1, LANES)), np.zeros((len(shared) + 1, LANES))
        given = [block(state, len(state)), block(own, len(own) + 1), weights]
        ctypes.CFUNCTYPE(None, *[pointer] * 4)(self.slope)(*(a.ctypes.data_as(pointer) for a in (*given, out)))
        back = (*given, block(cotangent, len(state)), to_state, to_own, to_shared)
        ctypes.CFUNCTYPE(None, *[pointer] * 7)(self.pull)(*(a.ctypes.data_as(pointer) for a in back))
        return out[:, 0], to_state[:, 0], to_own[: len(own), 0], to_shared[: len(shared), 0]


def _target(level: int) -> Any:
    """The processor; each engine owns one."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    host = llvm.Target.from_default_triple()
    features = llvm.get_host_cpu_features().flatten()
    return host.create_target_machine(cpu=llvm.get_host_cpu_name(), features=features, opt=level)


def _module(graph: Graph, slopes: Sequence[int], own: int, shared: int, implicit: bool) -> ir.Module:
    module, states = ir.Module("equations"), len(slopes)
    inputs = [(kind, k) for kind, size in zip(KINDS, (states, own, shared), strict=True) for k in range(size)]
    emit_values(module, graph, "slope", (*KINDS, "out"), [Result("out", d, a) for d, a in enumerate(slopes)])
    cotangents = [graph.input("cotangent", d) for d in range(states)]
    pulls = graph.pulled_back(slopes, cotangents, [graph.input(*each) for each in inputs])
    results = [Result(f"to_{kind}", k, a, kind != "state") for (kind, k), a in zip(inputs, pulls, strict=True)]
    emit_values(module, graph, "pull", (*KINDS, "cotangent", *TO_KINDS), results)
    if implicit:
        equations = emit_linear_equations(module, graph, slopes, inputs)
        emit_implicit_step(module, states, equations)
        emit_implicit_pull_step(module, states, equations)
    else:
        emit_step(module, states)
        emit_pull_step(module, states)
    return module


def compile_field(graph: Graph, slopes: Sequence[int], own: int, shared: int, implicit: bool = False) -> MachineCode:
    """Compile a vector field, its derivative and the steps of a method.

    Args:
        graph: its values.
        slopes: dy/dt of every state.
        own: number of inputs that differ between subjects.
        shared: number of weights.
        implicit: whether the steps are those of Rodas5P, else those of Tsit5.
    """
    with _LOCK:  # LLVM's tables are those of the process
        code = str(_module(graph, slopes, own, shared, implicit))
        level = 2 if len(graph) < _LARGE else 1
        target = _target(level)
        module = llvm.parse_assembly(code)
        module.triple = target.triple
        module.verify()
        options = llvm.create_pipeline_tuning_options(speed_level=level)
        llvm.create_pass_builder(target, options).getModulePassManager().run(
            module, llvm.create_pass_builder(target, options)
        )
        engine = llvm.create_mcjit_compiler(module, target)
        engine.finalize_object()
        slope, pull, step, pull_step = map(engine.get_function_address, ("slope", "pull", "step", "pull_step"))
        return MachineCode(slope, pull, step, pull_step, engine)
