"""The command ``report``: one HTML file with everything about a model and its data."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from neuralpk.cli.progress_bar import progress_bar
from neuralpk.cli.unsolved_patients import refuse_unsolved
from neuralpk.saved_model import read_model
from neuralpk.tables import read_table


def report(
    model: Path,
    table: Path,
    out: Path,
    title: str = "",
    anonymise: bool = False,
    simulations: int = 500,
    draws: int | None = None,
    map_estimate: bool | None = None,
    seed: int = 0,
    formulas: dict[str, str] | None = None,
    unverified: bool = False,
    **reading: Any,
) -> None:
    """Write one HTML file, which needs nothing from elsewhere: data, model as equations, settings, population, every
    diagnostic with its data, pages of the patients to browse, what was learned, and how to make it again.

    Args:
        model: checkpoint of a training, or population file.
        table: event table.
        out: HTML file to write.
        title: of the report.
        anonymise: name patients by their order in the table, and leave out names of files and the date.
        simulations: number of simulated studies for the checks.
        draws: of each patient for the 90 % intervals; null for 200, of a model with a network or more than 200 patients
            none.
        map_estimate: go on from the encoder to the MAP estimate, through the solver; null for what the model was
            trained with.
        seed: of the draws.
        formulas: expression for a network in the equations by its name, {E: 2*C/(1 + C)}.
        unverified: also read a checkpoint without a sha256.
        reading: how the table is read.
    """
    from neuralpk.report.writing import command_line, write_report  # Lightning, for which other commands do not wait

    saved = read_model(model, unverified)
    print(saved.description)
    own = inspect.signature(report).parameters
    given = {
        "title": title, "simulations": simulations, "draws": draws, "map_estimate": map_estimate, "seed": seed,
        "unverified": unverified,
    }  # fmt: skip
    asked = {name: value for name, value in given.items() if value != own[name].default}
    asked |= {"anonymise": True} if anonymise else {}
    defaults = inspect.signature(read_table).parameters
    as_read = {name: value for name, value in reading.items() if value != defaults[name].default}
    evaluation = write_report(
        saved,
        table,
        out,
        title=title,
        anonymise=anonymise,
        simulations=simulations,
        draws=draws,
        map_estimate=map_estimate,
        seed=seed,
        formulas=formulas,
        command=command_line(model, table, out, asked, as_read, anonymise),
        progress=progress_bar,
        **reading,
    )
    print(f"{evaluation.sentence}\nReport: {out} ({out.stat().st_size / 1e6:.1f} MB)")
    refuse_unsolved(evaluation.unsolved)
