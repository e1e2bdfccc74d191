"""Arguments: a command line as names and values, before any of them is looked up."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from neuralpk.cli.faults import UsageError

_SHORT = {"-c": "--config", "-h": "--help"}


@dataclass(frozen=True)
class Argument:
    """``--name value``.

    Args:
        name: without its dashes: ``model.dynamics.hidden``.
        value: as it was typed; None where nothing follows.
        appended: written ``--name+ value``, which adds to a list.
    """

    name: str
    value: str | None
    appended: bool = False


def split(arguments: Sequence[str]) -> list[Argument]:
    """Names and values: ``--name value``, ``--name=value`` and ``--name first second …``, which is a list.

    Raises:
        UsageError: a value without a name.
    """
    found = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        word = _SHORT.get(word, word)
        if not word.startswith("--") or word == "--":
            raise UsageError(f"unexpected {word!r}: options are written --name value")
        name, equals, joined = word[2:].partition("=")
        value: str | None = joined if equals else None
        words = []
        while not equals and rest and not rest[0].startswith("--") and rest[0] not in _SHORT:
            words.append(rest.pop(0))
        if words:
            value = words[0] if len(words) == 1 else _as_list(words)
        found.append(Argument(name.removesuffix("+"), value, name.endswith("+")))
    return found


def _as_list(words: Sequence[str]) -> str:
    """A list in YAML."""
    plain = re.compile(r"[\w.=/~^-][\w.=/~^:-]*(?<!:)")
    return f"[{', '.join(word if plain.fullmatch(word) else json.dumps(word) for word in words)}]"


def value_of(argument: Argument) -> str:
    """The value of an argument.

    Raises:
        UsageError: nothing follows its name.
    """
    if argument.value is None:
        raise UsageError(f"--{argument.name} needs a value")
    return argument.value


def values(arguments: Sequence[Argument], name: str) -> Iterator[str]:
    """Every value that is given under a name."""
    return (value_of(argument) for argument in arguments if argument.name == name)


def without(arguments: Sequence[Argument], *names: str) -> list[Argument]:
    """The arguments of other names."""
    return [argument for argument in arguments if argument.name not in names]


def joined(arguments: Sequence[Argument], name: str, between: str) -> list[Argument]:
    """The arguments with those of a name as one, so that none of them takes the place of another.

    Raises:
        UsageError: nothing follows one of them.
    """
    found = list(values(arguments, name))
    return without(arguments, name) + ([Argument(name, between.join(found))] if found else [])
