"""Machine code of a vector field and of its derivative, for one block of lanes.

Every value of the graph becomes one instruction on eight numbers. No compiler of the system is needed, and the
compilation takes so little time that nothing is stored on disk.
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

from neuralpk.solve.compiled.equations import elementary
from neuralpk.solve.compiled.equations.elementary import FAST, NUMBER, VECTOR, constant
from neuralpk.solve.compiled.equations.expressions import COMPARISONS, Graph, Value
from neuralpk.solve.compiled.equations.lane_memory import function, load, place
from neuralpk.solve.compiled.equations.step_code import emit_pull_step, emit_step
from neuralpk.solve.compiled.steps.lanes import LANES

Array = NDArray[Any]
_LOCK = threading.Lock()
_LARGE = 3_000  # values; the time to compile more of them grows fast with the level of optimisation
KINDS = ("state", "own", "shared")
_ARITHMETIC = {"add": "fadd", "sub": "fsub", "mul": "fmul", "div": "fdiv"}


@dataclass(frozen=True)
class MachineCode:
    """Addresses of functions on blocks of lanes; blocks and results are ``[…, lane]`` in double precision.

    Args:
        slope: (state, own, shared, out): dy/dt.
        pull: (state, own, shared, cotangent, to_state, to_own, to_shared): the transposed Jacobian times the cotangent;
            it replaces `to_state` and adds to the other two.
        step: a step and the verdict on it (`step_code.emit_step`).
        pull_step: the gradient of a step (`step_code.emit_pull_step`).
        engine: what holds the memory of both.
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


class _Emitter:
    """Instructions of the values of a graph."""

    def __init__(self, builder: ir.IRBuilder, graph: Graph, blocks: dict[str, Any]) -> None:
        self.builder, self.graph, self.blocks = builder, graph, blocks
        self.made: dict[int, Any] = {}

    def of(self, a: int) -> Any:
        """A value as numbers."""
        made = self.made[a]
        return self.builder.uitofp(made, VECTOR) if made.type.element != NUMBER else made

    def truth(self, a: int) -> Any:
        """A value as truths."""
        made = self.made[a]
        return made if made.type.element != NUMBER else self.builder.fcmp_unordered("!=", made, constant(0.0))

    def make(self, outputs: Sequence[int]) -> None:
        """The instructions for what the outputs need, in order."""
        for a in self.graph.needed(outputs):
            self.made[a] = self._emit(self.graph.values[a])

    def _emit(self, value: Value) -> Any:
        builder, operation = self.builder, value.operation
        if operation == "constant":
            return constant(value.number)
        if operation == "input":
            return load(builder, self.blocks[value.kind], int(value.number), value.kind == "shared")
        if operation == "where":
            condition, yes, no = value.arguments
            return builder.select(self.truth(condition), self.of(yes), self.of(no))
        if operation in ("and", "not"):
            truths = [self.truth(a) for a in value.arguments]
            return builder.and_(*truths) if operation == "and" else builder.not_(*truths)
        x, *rest = (self.of(a) for a in value.arguments)
        if operation in COMPARISONS:
            return builder.fcmp_ordered({"lt": "<", "le": "<=", "eq": "=="}[operation], x, *rest)
        if operation in _ARITHMETIC:
            return getattr(builder, _ARITHMETIC[operation])(x, *rest, flags=FAST)
        if operation == "neg":
            return builder.fneg(x)
        if operation == "pow":
            return elementary.power(builder, x, *rest)
        if operation in ("sqrt", "abs", "sin", "cos"):
            return elementary.library(builder, {"abs": "fabs"}.get(operation, operation), x)
        return getattr(elementary, operation)(builder, x)


def _module(graph: Graph, slopes: Sequence[int], own: int, shared: int) -> ir.Module:
    module = ir.Module("equations")
    states = len(slopes)
    builder, blocks = function(module, "slope", (*KINDS, "out"))
    emitter = _Emitter(builder, graph, blocks)
    emitter.make(slopes)
    for d, a in enumerate(slopes):
        builder.store(emitter.of(a), place(builder, blocks["out"], d), align=8)
    builder.ret_void()

    cotangents = [graph.input("cotangent", d) for d in range(states)]
    inputs = [
        graph.input(kind, k) for kind, size in zip(KINDS, (states, own, shared), strict=True) for k in range(size)
    ]
    pulls = graph.pulled_back(slopes, cotangents, inputs)
    results = [(kind, k) for kind, size in zip(KINDS, (states, own, shared), strict=True) for k in range(size)]
    builder, blocks = function(module, "pull", (*KINDS, "cotangent", *(f"to_{kind}" for kind in KINDS)))
    emitter = _Emitter(builder, graph, blocks)
    emitter.make(pulls)
    for (kind, k), a in zip(results, pulls, strict=True):
        if kind != "state" and graph.number(a) == 0:
            continue
        at, result = place(builder, blocks[f"to_{kind}"], k), emitter.of(a)
        if kind != "state":
            result = builder.fadd(builder.load(at, align=8), result)
        builder.store(result, at, align=8)
    builder.ret_void()
    emit_step(module, states)
    emit_pull_step(module, states)
    return module


def compile_field(graph: Graph, slopes: Sequence[int], own: int, shared: int) -> MachineCode:
    """Compile a vector field and its derivative.

    Args:
        graph: its values.
        slopes: dy/dt of every state.
        own: number of inputs that differ between subjects.
        shared: number of weights.
    """
    with _LOCK:  # LLVM's tables are those of the process
        code = str(_module(graph, slopes, own, shared))
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
