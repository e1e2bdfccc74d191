"""Kernels for the CPU, compiled by Numba when first used and kept on disk: no compiler on the user's machine."""
