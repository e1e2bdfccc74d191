"""Vector fields of any equations: a graph of scalars, compiled to machine code for a block of lanes."""

from neuralpk.solve.compiled.equations.expressions import Graph
from neuralpk.solve.compiled.equations.lane_blocks import Equations, Gradients
from neuralpk.solve.compiled.equations.machine_code import MachineCode, compile_field

__all__ = ["Equations", "Gradients", "Graph", "MachineCode", "compile_field"]
