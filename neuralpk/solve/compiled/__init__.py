"""Kernels compiled when first used and kept on disk, for the CPU by Numba and for the GPU by Triton: no compiler on the
user's machine."""
