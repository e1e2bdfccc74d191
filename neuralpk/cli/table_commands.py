"""Commands on tables and on files of models: simulate, reconstruct, estimate, population, bootstrap, import, export."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from jsonargparse import ArgumentParser
from rich.console import Console
from rich.progress import track

from neuralpk.atomic_files import refuse_unwritable, replacing
from neuralpk.bootstrap import bootstrap as fit_replicates
from neuralpk.bootstrap import outcome, summarise
from neuralpk.cli.faults import UsageError, sentence
from neuralpk.cli.merged_configuration import Configuration
from neuralpk.cli.signatures import GIVEN_TO_READ_TABLE, Option, options_of_reader
from neuralpk.cli.stop_signals import leaving_on_sigterm
from neuralpk.cohort import Cohort, Units
from neuralpk.cohort_figures import save_panels
from neuralpk.datamodules import SimulatedDataModule
from neuralpk.individual_estimates import IndividualEstimates, estimate_individuals
from neuralpk.published_population import PublishedPopulation, equations, read_population, write_population
from neuralpk.rxode2 import export_rxode2, import_rxode2
from neuralpk.solve import SolveError
from neuralpk.tables import read_table
from neuralpk.tables.batchwise_writing import write_frames
from neuralpk.task import LatentTask

_PANELS = 15


def simulate(data: SimulatedDataModule, out: Path) -> None:
    """Write a simulated cohort as an event table, part by part: it may be larger than the memory.

    Args:
        data: what to simulate.
        out: CSV or Parquet file to write.
    """
    subjects, size = data.subjects + data.test_subjects, 10_000
    write_frames(track(data.frames(size), "simulate", total=-(-subjects // size), disable=subjects <= size), out)
    print(f"{subjects} subjects written to {out}")


def reconstruct(
    checkpoint: Path,
    table: Path,
    out: Path,
    draws: int = 200,
    map_estimate: bool | None = None,
    unverified: bool = False,
    **reading: Any,
) -> None:
    """Estimate the patients of an event table with a trained model.

    Args:
        checkpoint: checkpoint of a training.
        table: file with the columns ID, TIME, AMT, DV, … of an event table; by default it is read with the covariates
            of the model.
        out: folder for curves.csv (ID, TIME, PRED, IPRED, LO90, HI90) and individuals.csv (every parameter with its
            90 % interval).
        draws: draws from the posterior behind the intervals.
        map_estimate: go on from the encoder to the MAP estimate, through the solver; null for what the model was
            trained with.
        unverified: also read a checkpoint without a sha256.
        reading: how the table is read.
    """
    task = load(checkpoint, unverified)
    print(f"The model was {task.provenance.description}")
    cohort = _read_for(task, table, reading)
    result = task.reconstruct(cohort, draws=draws, map=map_estimate, progress=_progress("reconstruct"))
    _write(result, out)
    _refuse_unsolved(result)


def estimate(population: Path, table: Path, out: Path, draws: int = 200, **reading: Any) -> None:
    """Estimate the patients of an event table by a published population model, without any training.

    Args:
        population: YAML file of the model: dynamics, typical, omega or cv, effects, references, error, error_sd.
        table: file with the columns ID, TIME, AMT, DV, … of an event table; by default it is read with the covariates
            of the effects.
        out: folder for curves.csv and individuals.csv, as of ``reconstruct``, and the figure individuals.png of the
            first patients.
        draws: draws from the posterior behind the intervals.
        reading: how the table is read.
    """
    published = read_population(population)
    reading["covariates"] = reading.get("covariates") or published.covariates
    dynamics = equations(published.dynamics)
    cohort = read_table(table, units=published.units, needed=dynamics.covariates, **reading)
    cohort = dynamics.read_cohort(cohort)
    result = estimate_individuals(published.model(cohort), cohort, draws=draws, progress=_progress("estimate"))
    _write(result, out)
    for path in save_panels(cohort[:_PANELS], result, out):
        print(f"Individual panels: {path}")
    _refuse_unsolved(result)


def population(checkpoint: Path, out: Path, unverified: bool = False) -> None:
    """Write the population of a trained model as a file that ``estimate`` reads.

    Args:
        checkpoint: checkpoint of a training.
        out: YAML file to write: dynamics, typical, omega, effects, references, error, error_sd.
        unverified: also read a checkpoint without a sha256.
    """
    task = load(checkpoint, unverified)
    note = "" if task.status is None else f"Population fit: {task.status.sentence}"
    write_population(PublishedPopulation.from_model(task.model), out, note)
    print(f"Population written to {out}" + (f"\n{note}" if note else ""))


def bootstrap(
    checkpoint: Path,
    table: Path,
    out: Path,
    replicates: int = 200,
    seed: int = 0,
    processes: int | None = None,
    strata: str | None = None,
    unverified: bool = False,
    **reading: Any,
) -> None:
    """Fit a trained model again to patients drawn from its table with replacement, for intervals of the population.

    Args:
        checkpoint: checkpoint of a training by maximum likelihood, without network weights.
        table: event table of the training.
        out: folder for bootstrap.csv (a row for each replicate) and bootstrap_summary.csv (median, standard error and
            95 % interval of every number).
        replicates: how many.
        seed: of the patients that are drawn.
        processes: fit that many replicates at a time; null for the number of CPUs.
        strata: covariate; a replicate has as many patients with each of its values as the table.
        unverified: also read a checkpoint without a sha256.
        reading: how the table is read.
    """
    task = load(checkpoint, unverified)
    cohort = _read_for(task, table, reading, [strata] if strata else [])
    shown = _progress("bootstrap")
    found = fit_replicates(task.model, task.objective, cohort, replicates, seed, processes, strata, shown)
    _write_csv(found, out / "bootstrap.csv")
    _write_csv(summarise(found, task.model), out / "bootstrap_summary.csv")
    print(f"{outcome(found)}: {out / 'bootstrap.csv'}, {out / 'bootstrap_summary.csv'}")


def import_model(model: Path, out: Path) -> None:
    """Write a model that is a function of rxode2 or nlmixr2 as a population file, which ``estimate`` reads.

    Args:
        model: file with the function, in R.
        out: YAML file to write, with the equations, the population and the residual errors.
    """
    imported = import_rxode2(model)
    write_population(imported.population, out, f"from {model.name}")
    for note in imported.notes:
        print(f"- {note}")
    print(f"Population written to {out}")


def export_model(population: Path, out: Path, name: str = "model") -> None:
    """Write a population file as a function for rxode2 and nlmixr2.

    Args:
        population: YAML file of the model.
        out: file to write, in R.
        name: of the function.
    """
    text = export_rxode2(read_population(population), name)
    with replacing(out) as part:
        part.write_text(text, encoding="utf-8")
    print(f"Function {name} written to {out}")


COMMANDS: dict[str, Callable[..., None]] = {
    "simulate": simulate,
    "reconstruct": reconstruct,
    "estimate": estimate,
    "population": population,
    "bootstrap": bootstrap,
    "import": import_model,
    "export": export_model,
}

_WRITTEN = {
    "reconstruct": ("curves.csv", "individuals.csv"),
    "estimate": ("curves.csv", "individuals.csv", "individuals.png"),
    "bootstrap": ("bootstrap.csv", "bootstrap_summary.csv"),
}
"""Files of the commands whose ``--out`` is a folder."""


def load(checkpoint: Path, unverified: bool = False) -> Any:
    """The trained task of a checkpoint, on the CPU.

    Raises:
        FileNotFoundError: no such file.
        neuralpk.checkpoint_files.CheckpointError: no checkpoint; damaged; without a sha256.
        ValueError: a part of a class that is not imported.
    """
    return LatentTask.load_from_checkpoint(checkpoint, map_location="cpu", unverified=unverified)


def options(command: str) -> dict[str, Option]:
    """Options of a command."""
    return options_of_reader(COMMANDS[command])


def run(command: str, configuration: Configuration) -> None:
    """Run a command.

    Raises:
        UsageError: an option that is missing or does not fit; an ``--out`` that cannot be written.
    """
    function, values = COMMANDS[command], configuration.finish()
    parser = ArgumentParser(exit_on_error=False)
    own = inspect.signature(function).parameters
    parser.add_function_arguments(function, skip={name for name in options(command) if name not in own})
    if "reading" in own:
        parser.add_function_arguments(read_table, skip=GIVEN_TO_READ_TABLE)
    try:
        arguments = parser.instantiate_classes(parser.parse_object(values)).as_dict()
    except (ValueError, TypeError) as error:
        raise UsageError(sentence(error)) from error
    out = arguments["out"]
    try:
        for path in [out / name for name in _WRITTEN[command]] if command in _WRITTEN else [out]:
            refuse_unwritable(path)
    except OSError as error:
        raise UsageError(f"--out {sentence(error)}") from error
    with leaving_on_sigterm():
        function(**arguments)


def _read_for(task: Any, table: Path, reading: dict[str, Any], also: Sequence[str] = ()) -> Cohort:
    """An event table with the covariates that a trained task needs, unless others are asked for."""
    needed = task.model.dynamics.covariates
    used = {*task.model.scaling.covariates, *also} - {*needed}
    reading["covariates"] = reading.get("covariates") or sorted(used)
    return read_table(table, units=Units(), needed=needed, **reading)


def _progress(what: str) -> Callable[[Iterable[Any]], Iterable[Any]]:
    """A progress bar over the parts of a cohort, where somebody looks."""
    return lambda parts: track(parts, what, console=Console(stderr=True), disable=not sys.stderr.isatty())


def _write(result: IndividualEstimates, out: Path) -> None:
    _write_csv(result.curves(), out / "curves.csv")
    _write_csv(result.individuals(), out / "individuals.csv")
    print(f"{len(result.ids)} subjects: {out / 'curves.csv'}, {out / 'individuals.csv'}")


def _write_csv(frame: pd.DataFrame, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        frame.to_csv(part, index=False)


def _refuse_unsolved(result: IndividualEstimates) -> None:
    """The last word of a command that could not solve some of the patients; the others have theirs.

    Raises:
        SolveError: which, and why.
    """
    if result.unsolved:
        raise SolveError(f"{'; '.join(result.unsolved[:10])}: no estimates (NaN); those of the others are written")
