"""A progress bar over the parts of a step of the work."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.progress import track


def progress_bar(what: str, parts: Sequence[Any]) -> Iterable[Any]:
    """The parts, with a bar on the error stream where somebody looks: a file or a pipe gets none.

    Args:
        what: name of the step.
        parts: of the step.
    """
    return track(parts, what, console=Console(stderr=True), disable=not sys.stderr.isatty())
