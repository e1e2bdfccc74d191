"""Kernels for the CPU, each with its hand-written gradient: compiled by Numba when first used, and kept on disk."""
