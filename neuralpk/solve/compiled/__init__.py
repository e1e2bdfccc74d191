"""Kernels with hand-written gradients: Numba for the CPU, Triton for the GPU.

They are compiled when first used, and then stored on disk. The user's machine needs no compiler.
"""
