"""Commands on tables and on files of models, which run without Lightning where nothing has been trained."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentParser

from neuralpk.atomic_files import refuse_unwritable, replacing
from neuralpk.cli.faults import UsageError, sentence
from neuralpk.cli.merged_configuration import Configuration
from neuralpk.cli.outputs import OVERWRITE, refuse_results
from neuralpk.cli.progress_bar import progress_bar
from neuralpk.cli.signatures import GIVEN_TO_READ_TABLE, Option, options_of_reader, without_reading
from neuralpk.cli.stop_signals import leaving_on_sigterm
from neuralpk.cli.unsolved_patients import refuse_unsolved
from neuralpk.cohort import Units
from neuralpk.estimates_in_parts import WARNINGS, PartwiseEstimates, estimate_in_parts
from neuralpk.exported_model import EXPORTED, export_model
from neuralpk.individual_estimates import OCCASION_TABLE, TABLES, IndividualEstimates
from neuralpk.published_population import write_population
from neuralpk.rxode2 import export_rxode2, import_rxode2
from neuralpk.saved_model import read_model
from neuralpk.tables import read_table

_PANELS = 15
_WARNINGS_SHOWN = 10


def estimate(
    model: Path,
    table: Path,
    out: Path,
    draws: int = 200,
    map_estimate: bool | None = None,
    seed: int = 0,
    part_size: int | None = None,
    processes: int | None = None,
    unverified: bool = False,
    units: list[str] | None = None,
    **reading: Any,
) -> None:
    """Estimate the patients of an event table by a model: one that was trained, or a published population, which needs
    no training.

    Args:
        model: checkpoint of a training, or population file.
        table: file with the columns ID, TIME, AMT, DV, … of an event table; by default it is read with the covariates
            of the model.
        out: folder for curves.csv (ID, TIME, PRED, IPRED, LO90, HI90), individuals.csv (every parameter and eta with
            its 90 % interval), records.csv (DV, PRED, IPRED, IRES, IWRES, TAD, …), exposure.csv (AUC, CMAX, TMAX,
            CMIN), with variability between occasions occasions.csv (every parameter on every occasion), and the figure
            individuals.png of the first patients; with --part_size warnings.txt where there are any.
        draws: draws from the posterior behind the intervals.
        map_estimate: go on from the encoder to the MAP estimate, through the solver; null for wherever there is a
            likelihood.
        seed: of the draws.
        part_size: patients of a part, as in 1000: a Parquet file of any length is read and estimated part by part, and
            the same command goes on where it was stopped; null reads the whole table.
        processes: parts that are estimated at a time; null for the number of CPUs.
        unverified: also read a checkpoint without a sha256.
        units: of time, amount and value of the table; null for those of the model.
        reading: how the table is read.
    """
    if processes is not None and part_size is None:
        raise UsageError("--processes estimates parts of a table side by side: give --part_size, as in 1000")
    saved = read_model(model, unverified)
    print(saved.description)
    given = Units.of(units) if units else None
    if part_size is not None:
        found = estimate_in_parts(
            saved,
            table,
            out,
            part_size,
            processes,
            draws=draws,
            map_estimate=map_estimate,
            seed=seed,
            units=given,
            progress=_progress("estimate"),
            **reading,
        )
        _say(found, out)
        refuse_unsolved(found.unsolved)
        return
    cohort = saved.read_table(table, units=given, **reading)
    result = saved.estimate(cohort, draws=draws, map=map_estimate, seed=seed, progress=_progress("estimate"))
    _write(result, out)
    from neuralpk.cohort_figures import save_panels  # Matplotlib, for which the estimates do not wait

    for path in save_panels(cohort[:_PANELS], result, out):
        print(f"Individual panels: {path}")
    refuse_unsolved(result.unsolved)


def population(model: Path, out: Path, unverified: bool = False) -> None:
    """Write the population of a trained model as a file that ``estimate`` reads.

    Args:
        model: checkpoint of a training, or population file.
        out: YAML file to write: dynamics, typical, omega, effects, references, error, error_sd.
        unverified: also read a checkpoint without a sha256.
    """
    saved = read_model(model, unverified)
    write_population(saved.published(), out, saved.status)
    print(f"Population written to {out}" + (f"\n{saved.status}" if saved.status else ""))


def import_model(function: Path, out: Path) -> None:
    """Write a model that is a function of rxode2 or nlmixr2 as a population file, which ``estimate`` reads.

    Args:
        function: file with the function, in R.
        out: YAML file to write, with the equations, the population and the residual errors.
    """
    imported = import_rxode2(function)
    write_population(imported.population, out, f"from {function.name}")
    for note in imported.notes:
        print(f"- {note}")
    print(f"Population written to {out}")


def export(
    model: Path,
    out: Path,
    to: Literal["rxode2", "safetensors"] | None = None,
    name: str = "model",
    unverified: bool = False,
) -> None:
    """Write a model for other programs: its population as a function for rxode2 and nlmixr2, or the weights of a
    training as safetensors with everything else as JSON and the sha256 of both.

    Args:
        model: checkpoint of a training; for rxode2 also a population file.
        out: file to write, in R; of safetensors a folder, for weights.safetensors, model.json and SHA256SUMS, which the
            other commands read as --model.
        to: rxode2 or safetensors; null for rxode2 where --out ends in .R, else safetensors.
        name: of the function for rxode2.
        unverified: also read a checkpoint without a sha256.
    """
    if _exports_to(to, out) == "rxode2":
        text = export_rxode2(read_model(model, unverified).published(), name)
        with replacing(out) as part:
            part.write_text(text, encoding="utf-8")
        print(f"Function {name} written to {out}")
        return
    paths = export_model(model, out, unverified)
    print(f"Model written: {', '.join(map(str, paths))}")


def _exports_to(to: str | None, out: Path) -> str:
    return to or ("rxode2" if out.suffix.lower() == ".r" else "safetensors")


REGIMENS = "simulate --model"
"""The command ``simulate`` where it is given a model."""

_HERE: dict[str, Callable[..., None]] = {
    "estimate": estimate,
    "reconstruct": estimate,
    "population": population,
    "import": import_model,
    "export": export,
}

_ELSEWHERE = {
    REGIMENS: ("dosing_commands", "simulate_regimens", "REGIMEN_FILES"),
    "simulate": ("cohort_command", "simulate", ""),
    "dose": ("dosing_commands", "dose", "DOSE_FILES"),
    "evaluate": ("evaluation_command", "evaluate", "EVALUATION_FILES"),
    "report": ("report_command", "report", ""),
    "bootstrap": ("bootstrap_command", "bootstrap", "BOOTSTRAP_FILES"),
    "replay": ("replay_command", "replay", "REPLAY_FILES"),
}
"""Module of the commands that need more than the others, and are imported when they are asked for; their functions, and
the files that they write into a folder."""


def function_of(command: str) -> Callable[..., None]:
    """The function of a command."""
    if command in _HERE:
        return _HERE[command]
    module, name, _ = _ELSEWHERE[command]
    function: Callable[..., None] = getattr(import_module(f"neuralpk.cli.{module}"), name)
    return function


def _written(command: str, arguments: Mapping[str, Any]) -> tuple[str, ...]:
    """Files of a command whose ``--out`` is a folder; none of one that writes a file."""
    names: tuple[str, ...] = ()
    if command in ("estimate", "reconstruct"):
        names = (*TABLES, OCCASION_TABLE, WARNINGS, "individuals.png")
    elif command == "export" and _exports_to(arguments["to"], arguments["out"]) == "safetensors":
        names = EXPORTED
    elif command in _ELSEWHERE:
        module, _, files = _ELSEWHERE[command]
        names = getattr(import_module(f"neuralpk.cli.{module}"), files) if files else ()
    return names


def options(command: str) -> dict[str, Option]:
    """Options of a command."""
    return options_of_reader(function_of(command)) | {OVERWRITE.name: OVERWRITE}


def run(command: str, configuration: Configuration) -> None:
    """Run a command.

    Raises:
        UsageError: an option that is missing or does not fit; an ``--out`` that cannot be written.
    """
    function, values = function_of(command), configuration.finish()
    overwrite = bool(values.pop(OVERWRITE.name, False))
    parser = ArgumentParser(exit_on_error=False)
    parser.add_function_arguments(without_reading(function))
    if "reading" in inspect.signature(function).parameters:
        parser.add_function_arguments(read_table, skip=GIVEN_TO_READ_TABLE)
    try:
        arguments = parser.instantiate_classes(parser.parse_object(values)).as_dict()
    except (ValueError, TypeError) as error:
        raise UsageError(sentence(error)) from error
    out = arguments["out"]
    try:
        paths = [out / name for name in _written(command, arguments)] or [out]
        for path in paths:
            refuse_unwritable(path)
    except OSError as error:
        raise UsageError(f"--out {sentence(error)}") from error
    refuse_results(out, paths, overwrite)
    with leaving_on_sigterm():
        function(**arguments)


def _progress(what: str) -> Callable[[Iterable[Any]], Iterable[Any]]:
    """A progress bar over the parts of a cohort, where somebody looks."""
    return partial(progress_bar, what)


def _say(found: PartwiseEstimates, out: Path) -> None:
    for line in found.warnings[:_WARNINGS_SHOWN]:
        print(f"warning: {line}", file=sys.stderr)
    if len(found.warnings) > _WARNINGS_SHOWN:
        print(f"warning: {len(found.warnings) - _WARNINGS_SHOWN} more in {out / WARNINGS}", file=sys.stderr)
    kept = f" ({found.kept} of them from before)" if found.kept else ""
    print(f"{found.subjects} subjects in {found.parts} parts{kept}: {', '.join(map(str, found.paths))}")


def _write(result: IndividualEstimates, out: Path) -> None:
    paths = result.write(out)
    for replaced in {out / OCCASION_TABLE}.difference(paths):  # of results that were to be replaced
        replaced.unlink(missing_ok=True)
    print(f"{len(result.ids)} subjects: {', '.join(map(str, paths))}")
