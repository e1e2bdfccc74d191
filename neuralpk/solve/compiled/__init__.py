"""Kernels compiled when first used, for the CPU by Numba and for the GPU by Triton, and kept on disk: no compiler on the
user's machine."""
