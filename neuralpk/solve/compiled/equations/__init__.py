"""Vector fields of any equations: a graph of scalars, compiled to machine code for a block of lanes."""

from neuralpk.solve.compiled.equations.expressions import Graph
from neuralpk.solve.compiled.equations.lane_blocks import Equations, Gradients, Work, make_work
from neuralpk.solve.compiled.equations.machine_code import MachineCode, compile_field

__all__ = ["Equations", "Gradients", "Graph", "MachineCode", "Work", "compile_field", "make_work"]
