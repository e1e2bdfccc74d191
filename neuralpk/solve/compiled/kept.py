"""Compiled kernels kept on disk, in the user's cache.

Beside the package, where Numba would put them, they would outlive its removal, and a folder that is left of a package
hides the next installation of it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba import config, njit


def kept(**options: Any) -> Callable[[Any], Any]:
    """`numba.njit` with these options, cached under ``$XDG_CACHE_HOME/neuralpk`` (by default ``~/.cache``), or where
    ``NUMBA_CACHE_DIR`` says."""

    def decorate(function: Any) -> Any:
        # Numba reads its setting here, once for each function; those of other libraries are to go on as they are
        before = config.CACHE_DIR
        config.CACHE_DIR = before or str(Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "neuralpk")
        try:
            return njit(cache=True, **options)(function)
        finally:
            config.CACHE_DIR = before

    return decorate
