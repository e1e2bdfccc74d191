"""``neuralpk check``: what is in a table, what is wrong with it, and a picture of it; without torch."""

from __future__ import annotations

import json as json_format
from pathlib import Path
from typing import Any

from neuralpk.atomic_files import replacing
from neuralpk.cohort import Units
from neuralpk.table_check import check_table


def check(
    table: Path,
    arm: str | None = None,
    figure: Path | None = None,
    json: bool = False,
    units: list[str] | None = None,
    **reading: Any,
) -> int:
    """Say what is in an event table and what is wrong with it, before any model; the exit code is 1 where a rule is
    broken.

    Args:
        table: file with the columns ID, TIME, AMT, DV, … of an event table.
        arm: column of the arms of the study, for the picture.
        figure: where the picture is drawn; null for TABLE_check.png in the current folder.
        json: print JSON instead of text.
        units: of time, amount and value; times of day are read in that of time.
        reading: how the table is read.

    Returns:
        Number of faults.
    """
    found = check_table(table, arm=arm, units=Units.of(units) if units else Units(), **reading)
    drawn = None
    if found.cohort is not None and found.content["values"]:
        from neuralpk.table_figure import draw  # Matplotlib, for which the findings and --help do not wait

        drawn = figure or Path(f"{table.name.split('.')[0]}_check.png")
        with replacing(drawn) as part:
            draw(found.cohort, found.arms).savefig(part, dpi=130)
    if json:
        print(json_format.dumps(found.plain() | {"figure": None if drawn is None else str(drawn)}, indent=1))
    else:
        print("\n".join(found.lines()))
        if drawn is not None:
            print(f"Picture: {drawn}")
        elif found.cohort is not None:
            print("No picture: the table has no measured value.")
    return len(found.faults)
