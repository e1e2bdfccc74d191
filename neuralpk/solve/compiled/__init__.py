"""Kernels compiled for the CPU by Numba, each with its hand-written gradient."""
