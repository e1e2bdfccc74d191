"""Functions of LLVM whose arguments are blocks of numbers ``[…, lane]`` in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir

from neuralpk.solve.compiled.elementary import INTEGER, NUMBER, VECTOR
from neuralpk.solve.compiled.steps.lanes import LANES

_POINTER = NUMBER.as_pointer()


def place(builder: ir.IRBuilder, block: Any, k: int) -> Any:
    return builder.bitcast(builder.gep(block, [ir.Constant(INTEGER, k * LANES)]), VECTOR.as_pointer())


def load(builder: ir.IRBuilder, block: Any, k: int, one_for_all: bool = False) -> Any:
    if not one_for_all:
        return builder.load(place(builder, block, k), align=8)
    number = builder.load(builder.gep(block, [ir.Constant(INTEGER, k)]), align=8)
    first = builder.insert_element(ir.Constant(VECTOR, ir.Undefined), number, ir.Constant(ir.IntType(32), 0))
    mask = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
    return builder.shuffle_vector(first, ir.Constant(VECTOR, ir.Undefined), mask)


def function(module: ir.Module, name: str, arguments: Sequence[str]) -> tuple[ir.IRBuilder, dict[str, Any]]:
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [_POINTER] * len(arguments)), name)
    for argument in function.args:
        argument.add_attribute("noalias")
    return ir.IRBuilder(function.append_basic_block("entry")), dict(zip(arguments, function.args, strict=True))
