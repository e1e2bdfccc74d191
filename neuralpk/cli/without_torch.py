"""Commands on tables alone, which do not wait for the import of torch: check, nca."""

from __future__ import annotations

import typing
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from neuralpk.cli.argument_tokens import Argument
from neuralpk.cli.faults import UsageError
from neuralpk.cli.merged_configuration import Configuration
from neuralpk.cli.signatures import Option, members, options_of_reader


def _function_of(command: str) -> Callable[..., int | None]:
    """The function of a command; one does not wait for what the other imports."""
    function: Callable[..., int | None] = getattr(import_module(f"neuralpk.cli.{command}_command"), command)
    return function


def run(command: str, given: Sequence[Argument]) -> int:
    """Run a command.

    Returns:
        Number of faults that it found.

    Raises:
        UsageError: an option that is missing or does not fit.
    """
    function = _function_of(command)
    options = options_of_reader(function)
    for argument in given:
        if argument.name == "help":
            from neuralpk.cli.help import print_help

            print_help(command, options, argument.value, function)
            return 0
    configuration = Configuration(options)
    for argument in given:
        if argument.name in ("import", "config", "preset"):
            raise UsageError(f"takes no --{argument.name}")
        bare = argument.value is None and argument.name in options and options[argument.name].hint is bool
        configuration.give(Argument(argument.name, "true") if bare else argument)
    values = {name: _as_path(options[name], value) for name, value in configuration.finish().items()}
    return function(**values) or 0


def _as_path(option: Option, value: Any) -> Any:
    """A path for an option that is one."""
    takes_path = any(member is Path or Path in typing.get_args(member) for member in members(option.hint))
    return Path(value) if takes_path and isinstance(value, str) else value
