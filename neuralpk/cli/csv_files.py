"""Tables that commands write."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from neuralpk.atomic_files import replacing


def write_csv(frame: pd.DataFrame, path: Path) -> None:
    """Write a table as a whole or not at all, in a folder that need not exist."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        frame.to_csv(part, index=False)
