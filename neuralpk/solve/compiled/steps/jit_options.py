"""Compiler options of the functions inside a kernel.

Only compiled functions call them. These hold the arrays during the call, so that references need not be counted,
except where arrays are made.
"""

from __future__ import annotations

from numba import njit

ALLOCATING = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
ONLY_CALLED = {**ALLOCATING, "_nrt": False}
allocating = njit(nogil=True, error_model="numpy", **ALLOCATING)
inner = njit(nogil=True, error_model="numpy", **ONLY_CALLED)
summing = njit(nogil=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz", "arcp"}, **ONLY_CALLED)
