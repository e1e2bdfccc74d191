"""Compiled kernels stored on disk, in the user's cache folder.

Numba would store them in the folder of the package. That folder would then remain when the package is uninstalled, and
hide the next installation.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba import config, njit

from neuralpk.solve import rodas5p_coefficients, tsit5_coefficients

# Numba compiles a kernel again if its file has changed, but not if only the file of a function that it calls has
_COEFFICIENTS = (rodas5p_coefficients, tsit5_coefficients)
_FILES = [*sorted(Path(__file__).parent.rglob("*.py")), *(Path(str(module.__file__)) for module in _COEFFICIENTS)]
_SOURCE = hashlib.sha256(b"".join(path.read_bytes() for path in _FILES)).hexdigest()[:16]


def folder() -> Path:
    """Where the kernels are kept: a folder for each version of them in ``NUMBA_CACHE_DIR`` if that is set, otherwise in
    ``$XDG_CACHE_HOME/neuralpk`` (by default ``~/.cache/neuralpk``)."""
    user = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "neuralpk"
    return Path(config.CACHE_DIR or user) / _SOURCE


def kept(**options: Any) -> Callable[[Any], Any]:
    """`numba.njit` with these options and with a cache on disk, in `folder`."""

    def decorate(function: Any) -> Any:
        # Numba reads this setting here, once for each function; other libraries must find it unchanged afterwards
        before = config.CACHE_DIR
        config.CACHE_DIR = str(folder())
        try:
            return njit(cache=True, **options)(function)
        finally:
            config.CACHE_DIR = before

    return decorate
