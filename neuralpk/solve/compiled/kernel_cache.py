"""Compiled kernels kept on disk, in the user's cache.

Beside the package, where Numba would put them, they would outlive its removal, and a folder that is left of a package
hides the next installation of it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba import config, njit

from neuralpk.solve import tableau

# Numba asks only whether the file of a kernel is the one that it compiled, not those of the functions that it calls
_FILES = [*sorted(Path(__file__).parent.rglob("*.py")), Path(tableau.__file__)]
_SOURCE = hashlib.sha256(b"".join(path.read_bytes() for path in _FILES)).hexdigest()[:16]


def kept(**options: Any) -> Callable[[Any], Any]:
    """`numba.njit` with these options, cached under ``$XDG_CACHE_HOME/neuralpk`` (by default ``~/.cache``), or where
    ``NUMBA_CACHE_DIR`` says, in a folder for the kernels as they are written now."""

    def decorate(function: Any) -> Any:
        # Numba reads its setting here, once for each function; those of other libraries are to go on as they are
        before = config.CACHE_DIR
        user = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "neuralpk"
        config.CACHE_DIR = str(Path(before or user) / _SOURCE)
        try:
            return njit(cache=True, **options)(function)
        finally:
            config.CACHE_DIR = before

    return decorate
