"""Kernels with hand-written gradients, for the CPU by Numba and for the GPU by Triton, compiled when first used and
kept on disk: no compiler on the user's machine."""
