"""Entry point: which command, which preset, and everything that can be said without importing torch."""

from __future__ import annotations

import contextlib
import importlib
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NoReturn

import neuralpk
from neuralpk.cli.argument_tokens import Argument, joined, split, values, without
from neuralpk.cli.faults import UsageError, sentence
from neuralpk.cli.presets import MAIN_JOB, PRESETS, preset_path
from neuralpk.part import did_you_mean

if TYPE_CHECKING:
    import lightning as L

    from neuralpk.cli.merged_configuration import Configuration
    from neuralpk.cli.signatures import Option
    from neuralpk.cli.training import NeuralPKCLI

TRAINING = ("fit", "validate", "test", "predict")
WITHOUT_TORCH = ("check", "nca")
COMMANDS = (
    *TRAINING, "check", "nca", "simulate", "dose", "evaluate", "report", "estimate", "reconstruct", "population",
    "bootstrap", "import", "export", "sweep", "replay", "doctor", "warm-up",
)  # fmt: skip

_USAGE = f"""usage: neuralpk COMMAND [--preset NAME | --config FILE] [options]     (COMMAND --help lists them)

  check         what is in a table, and what is wrong with it      TABLE
  nca           AUC, CMAX, half-life, … of a table, without a model  TABLE --out DIR
  fit           train a model; without options the main job, preset {MAIN_JOB}
  validate      measure a checkpoint on the validation subjects    --model FILE
  test          measure a checkpoint on the test subjects          --model FILE
  predict       predictions of a checkpoint                        --model FILE
  simulate      write a simulated cohort, of any size, as a table  --out FILE
    --model     courses of patients under regimens                 --model FILE --regimen TEXT --out DIR
  dose          the dose and interval that reach a target          --model FILE --target TEXT --out DIR …
  evaluate      judge a model on a table: figures, checks, verdict  --model FILE --table FILE --out DIR
  report        one HTML file with everything about a model        --model FILE --table FILE --out FILE
  estimate      curves and parameters of your patients             --model FILE --table FILE --out DIR
  reconstruct   another name of estimate
  population    write the fitted population as a population file   --model FILE --out FILE
  bootstrap     fit again to patients drawn with replacement       --model FILE --table FILE --out DIR
  import        write an rxode2 function as a population file      --function FILE --out FILE
  export        a model as an rxode2 function, or as safetensors   MODEL --out FILE.R | DIR
  sweep         trainings with settings that Optuna chooses        --search OPTION=LOW:HIGH … --out DIR …
  replay        run a training again, and compare its weights      FOLDER --out DIR
  doctor        versions, devices, accuracy of gradients
  warm-up       compile the kernels of the solver before their first use

  --model FILE       a checkpoint of a training, or a population file (pop.yaml)

  --import PACKAGE   use the classes of your package, in every command
  --help NAME        the options of a part or class: model, data, trainer, CompartmentModel, …
  --version          the version

presets: {", ".join(PRESETS)}
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the command ``neuralpk``.

    Raises:
        SystemExit: 2 for a command line that cannot be used, 1 for data and solutions that fail, 130 after Ctrl-C, 143
            after SIGTERM; what is wrong stands on the error stream.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words in (["-h"], ["--help"]):
        print(_USAGE)
    elif words[0] == "--version":
        print(f"neuralpk {neuralpk.__version__}")
    elif words[0] in ("-h", "--help"):  # neuralpk --help CompartmentModel
        execute(["fit", *words])
    else:
        execute(words)


def execute(words: Sequence[str]) -> NeuralPKCLI | None:
    """Run a command.

    Args:
        words: the command and its arguments.

    Returns:
        The finished training, validation, test or prediction; None for the other commands.

    Raises:
        SystemExit: as `main`.
    """
    command, *rest = words
    if command in WITHOUT_TORCH and rest and not rest[0].startswith("-"):
        rest = ["--table", *rest]
    if command == "replay" and rest and not rest[0].startswith("-"):
        rest = ["--run", *rest]
    if command == "export" and rest and not rest[0].startswith("-"):
        rest = ["--model", *rest]
    if command not in COMMANDS:
        hint = did_you_mean(command, list(COMMANDS))
        _stop(f"neuralpk: there is no command {command!r}{hint}; there are {', '.join(COMMANDS)}", 2)
    with _exits(command):
        given = split(rest)
        presets = [preset_path(name) for name in values(given, "preset")]
        for path in values(given, "config"):
            if not Path(path).is_file():
                raise UsageError(f"there is no file {path!r}")
    if command in WITHOUT_TORCH:
        _run_without_torch(command, given)
        return None
    # the first import of torch: everything above has been answered without it
    from neuralpk.solve import SolveError
    from neuralpk.solve.compiled.thread_chunks import leave_torch_one_thread

    leave_torch_one_thread()
    _say_how_tables_are_read()
    with _exits(command, SolveError):
        _import(given)
        return _run(command, without(given, "import", "preset"), presets)


@contextlib.contextmanager
def _exits(command: str, *more: type[Exception]) -> Iterator[None]:
    """Say what is wrong in one line, and exit with its code.

    Args:
        command: that runs inside.
        more: errors of data and solutions besides those of Python.

    Raises:
        SystemExit: 2 for a command line that cannot be used, 1 for data and solutions that fail, 130 after Ctrl-C.
    """
    faults: tuple[type[Exception], ...] = (ValueError, OSError, ImportError, *more)
    try:
        yield
    except UsageError as error:
        _stop(f"neuralpk {command}: {error}", 2)
    except faults as error:
        _stop(f"neuralpk {command}: {sentence(error)}", 1)
    except KeyboardInterrupt:
        _stop(f"neuralpk {command}: stopped", 130)


def _run_without_torch(command: str, given: Sequence[Argument]) -> None:
    """Run a command on a table.

    Raises:
        SystemExit: 2 for options that cannot be used, 1 for a table with faults.
    """
    from neuralpk.cli.without_torch import run

    if command != "check":  # it prints what it has read by itself
        _say_how_tables_are_read()
    with _exits(command):
        faults = run(command, given)
    if faults:
        raise SystemExit(1)


class _Printer(logging.Handler):
    """Prints what is logged."""

    def emit(self, record: logging.LogRecord) -> None:
        print(record.getMessage())


def _say_how_tables_are_read() -> None:
    """Print the notes of tables that are read, and their warnings without the line of code that gave them."""
    from neuralpk.tables import DataWarning

    log = logging.getLogger("neuralpk.tables")
    log.setLevel(logging.INFO)
    if not any(isinstance(handler, _Printer) for handler in log.handlers):
        log.addHandler(_Printer())
        plain = warnings.formatwarning

        def formatted(message: Any, category: type[Warning], *place: Any, **more: Any) -> str:
            ours = category in (UserWarning, DataWarning)
            return f"warning: {message}\n" if ours else plain(message, category, *place, **more)

        warnings.formatwarning = formatted


def _import(given: Sequence[Argument]) -> None:
    """Import the packages of ``--import``, also those of the folder one is in.

    Raises:
        UsageError: no such package, or one that raises.
    """
    for name in values(given, "import"):
        if "" not in sys.path and str(Path.cwd()) not in sys.path:
            sys.path.append(str(Path.cwd()))
        try:
            importlib.import_module(name)
        except Exception as error:  # it is the user's code, which may raise anything
            raise UsageError(f"--import {name}: {type(error).__name__}: {error}") from error


def _run(command: str, given: list[Argument], presets: list[str]) -> NeuralPKCLI | None:
    """Run a command that needs torch."""
    if command in TRAINING:
        return _run_training(command, given, presets)
    if command == "sweep":
        _run_sweep(given, presets)
        return None
    if command in ("doctor", "warm-up"):
        _run_without_options(command, given)
        return None
    from neuralpk.cli import table_commands
    from neuralpk.cli.merged_configuration import Configuration

    if command == "simulate":
        names = [argument.name for argument in given]
        if "model" in names:
            command = table_commands.REGIMENS
        elif "regimen" in names:
            raise UsageError("--regimen needs --model FILE, a checkpoint of a training or a population file")
    if command == "dose":  # the last limit alone would hold
        given = joined(given, "limit", "; ")
    options = table_commands.options(command)
    if _helps(command, options, given, table_commands.function_of(command)):
        return None
    given = _completed(command, options, given)
    configuration = Configuration(options)
    if command == "simulate":
        _read_first(command, configuration, given, presets)
    _take(configuration, given, ("data",))
    table_commands.run(command, configuration)
    return None


def _run_without_options(command: str, given: list[Argument]) -> None:
    """Run a command that looks after the installation."""
    name = command.replace("-", "_")
    function: Callable[[], None] = getattr(importlib.import_module(f"neuralpk.cli.{name}_command"), name)
    if not _helps(command, {}, given, function):
        if given:
            raise UsageError(f"takes no --{given[0].name}")
        function()


def _run_sweep(given: list[Argument], presets: list[str]) -> None:
    """Run trainings, with the options that are not of the sweep itself."""
    from neuralpk.cli import sweep_command
    from neuralpk.cli.merged_configuration import Configuration

    options = sweep_command.options()
    if _helps("sweep", options, given, sweep_command.sweep):
        return
    given = _completed("sweep", options, joined(given, "search", " "))
    configuration = Configuration(options)
    _take(configuration, [argument for argument in given if argument.name in options])

    def fit(settings: list[Argument], callbacks: list[L.Callback]) -> None:
        _run_training("fit", settings, presets, callbacks)

    settings = [argument for argument in given if argument.name not in options]
    sweep_command.run(fit, settings, [Path(path).stem for path in presets], configuration)


def _run_training(
    command: str, given: list[Argument], presets: list[str], callbacks: list[L.Callback] | None = None
) -> NeuralPKCLI | None:
    """Run a command of Lightning's trainer, with callbacks instead of those of every run."""
    from neuralpk.cli import study_options, training
    from neuralpk.cli.merged_configuration import Configuration, Source

    options, short = training.options(command), study_options.options(command)
    if _helps(command, options, given, None, short):
        return None
    if command == "fit" and Argument("structure", "help") in given:
        print(study_options.structures_help())
        return None
    prints = any(argument.name == "print_config" for argument in given)
    given = _completed(command, options, without(given, "print_config"))
    configuration = Configuration(options, training.defaults())
    _read_first(command, configuration, given, presets)
    node, given = study_options.expanded(command, given)
    first = 1 + max((k for k, argument in enumerate(given) if argument.name == "config"), default=-1)
    _take(configuration, given[:first])
    if "data" in node:
        configuration.values.pop("data", None)
    # short options override presets and configurations, and are overridden by the long ones
    configuration.take(node, Source())
    _take(configuration, given[first:])
    return training.run(command, configuration, prints, callbacks)


def _helps(
    command: str,
    options: Mapping[str, Option],
    given: Sequence[Argument],
    function: Callable[..., Any] | None,
    short: Mapping[str, Option] = MappingProxyType({}),
) -> bool:
    """Print the help of a command where it is asked for, and say whether it was."""
    for argument in given:
        if argument.name == "help":
            from neuralpk.cli.help import print_help

            print_help(command, options, argument.value, function, short)
            return True
    return False


def _completed(command: str, options: Mapping[str, Option], given: Sequence[Argument]) -> list[Argument]:
    """Arguments with the names of today, and a bare option that is true or false as true."""
    named = [_of_model(command, options, argument) for argument in given]
    bare = {name for name, option in options.items() if option.hint is bool}
    return [Argument(a.name, "true") if a.value is None and a.name in bare else a for a in named]


def _take(configuration: Configuration, given: Sequence[Argument], only: Sequence[str] = ()) -> None:
    """Arguments and the configurations that they name, in their order.

    Raises:
        UsageError: a value that does not fit; a configuration of a command that takes none.
    """
    for argument in given:
        if argument.name != "config":
            configuration.give(argument)
        elif "data" in configuration.options:
            configuration.read(str(argument.value), only=only)
        else:
            raise UsageError("takes no --config")


def _of_model(command: str, options: Mapping[str, Option], argument: Argument) -> Argument:
    """An argument that names the file of a model, as the command takes it.

    Raises:
        UsageError: an old name of the option.
    """
    measures = command in TRAINING and command != "fit"
    if command == "fit" and argument.name == "checkpoint":
        return Argument("ckpt_path", argument.value)
    if measures and argument.name == "model" and not (argument.value or "").strip().startswith("{"):
        return Argument("ckpt_path", argument.value)
    if argument.name in ("checkpoint", "population") and argument.name not in options:
        if measures or "model" in options:
            raise UsageError(f"--{argument.name} is now --model FILE, a checkpoint of a training or a population file")
    elif command == "import" and argument.name == "model":
        raise UsageError("--model is now --function FILE, the file in R")
    return argument


def _read_first(command: str, configuration: Configuration, given: Sequence[Argument], presets: Sequence[str]) -> None:
    """The presets; where neither a preset nor a configuration is named, the configuration that was saved with the
    checkpoint, so that it is measured on its data, else the main job, whose error is not that of another dynamics."""
    from neuralpk.cli.merged_configuration import read_yaml

    only = ("data",) if command == "simulate" else ()
    names = [argument.name for argument in given]
    if not presets and "config" not in names:
        saved = _config_beside(given)
        if saved is not None:
            configuration.read(saved)
            return
        if not ("table" in names and command == "fit") and (command != "simulate" or "data" not in names):
            presets = [preset_path(MAIN_JOB)]
    for path in presets:
        if command == "simulate" and "table" in (read_yaml(path)["data"].get("init_args") or {}):
            raise UsageError(f"preset {Path(path).stem!r} holds measured data; there is nothing to simulate")
        configuration.read(path, only=only)
    other_dynamics = {"model.dynamics", "structure"} & {*names} and not any(
        name.startswith("model.error") for name in names
    )
    if presets == [preset_path(MAIN_JOB)] and other_dynamics:
        configuration.values.get("model", {}).pop("error", None)


def _config_beside(given: Sequence[Argument]) -> str | None:
    """The configuration in the folder of the run that the checkpoint comes from, where there is one."""
    for path in values(given, "ckpt_path"):
        saved = Path(path).parent.parent / "config.yaml"
        if saved.is_file():
            return str(saved)
    return None


def _stop(message: str, code: int) -> NoReturn:
    print(message, file=sys.stderr)
    raise SystemExit(code)
