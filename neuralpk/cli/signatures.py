"""Options: the arguments of a constructor or function as the command line offers them."""

from __future__ import annotations

import datetime
import enum
import importlib
import inspect
import pathlib
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, wraps
from typing import Any

from jsonargparse._parameter_resolvers import get_signature_parameters  # follows **options into base classes

from neuralpk.cli.faults import UsageError
from neuralpk.part import class_path, did_you_mean, subclasses
from neuralpk.tables import read_table

REQUIRED = inspect.Parameter.empty
_PLAIN = (bool, int, float, str, bytes, complex, list, dict, tuple, set, object, type(None))
_MODULES_OF_VALUES = ("builtins", "datetime", "pathlib", "typing", "types", "collections.abc", "os")
_MANY = 14  # class names in a message


@dataclass(frozen=True)
class Option:
    """One setting.

    Args:
        name: of the argument.
        hint: its annotation; ``Any`` where there is none.
        default: its default; `REQUIRED` where there is none.
        description: from the docstring.
        fixed: for a group of options, the one class that has them.
        skipped: arguments of the classes of this option that are not given by the user.
    """

    name: str
    hint: Any = Any
    default: Any = REQUIRED
    description: str = ""
    fixed: type | None = None
    skipped: tuple[str, ...] = ()


@cache
def options_of(
    source: Callable[..., Any], skipped: tuple[str, ...] = (), method: str | None = None
) -> dict[str, Option]:
    """Options of a class, a function, or a method of a class."""
    found = {}
    for parameter in get_signature_parameters(source, method):
        if parameter.name not in skipped and parameter.kind not in (
            inspect.Parameter.VAR_POSITIONAL,
            inspect.Parameter.VAR_KEYWORD,
        ):
            hint = Any if parameter.annotation is inspect.Parameter.empty else parameter.annotation
            description = " ".join((parameter.doc or "").split())
            found[parameter.name] = Option(parameter.name, hint, parameter.default, description)
    return found


GIVEN_TO_READ_TABLE: set[str | int] = {"path_or_frame", "units", "needed"}
"""Arguments of `read_table` that a command gives itself."""


def options_of_reader(function: Callable[..., Any]) -> dict[str, Option]:
    """Options of a command; of one with ``**reading`` also those of `read_table`."""
    if "reading" not in inspect.signature(function).parameters:
        return options_of(function)
    return options_of(without_reading(function)) | options_of(read_table, (*map(str, GIVEN_TO_READ_TABLE),))


@cache
def without_reading(function: Callable[..., None]) -> Callable[..., None]:
    """A command without its ``**reading``: jsonargparse would follow the calls that take it, and import whatever their
    modules import for annotations alone, such as Lightning."""
    own = inspect.signature(function)
    if "reading" not in own.parameters:
        return function

    @wraps(function)
    def alone(*arguments: Any, **options: Any) -> None:
        function(*arguments, **options)

    kept = [parameter for name, parameter in own.parameters.items() if name != "reading"]
    alone.__signature__ = own.replace(parameters=kept)  # type: ignore[attr-defined]
    return alone


# ---- annotations


def members(hint: Any) -> tuple[Any, ...]:
    """The alternatives of a union; other annotations alone."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return tuple(part for member in typing.get_args(hint) for part in members(member))
    return (hint,)


def is_part(hint: Any) -> bool:
    """Whether an annotation is a class whose objects are named by ``class_path`` and ``init_args``."""
    return (
        inspect.isclass(hint)
        and hint not in _PLAIN
        and hint.__module__ not in _MODULES_OF_VALUES
        and not hint.__module__.startswith("torch._tensor")
        and not issubclass(hint, enum.Enum | pathlib.PurePath | datetime.timedelta)
        and not typing.is_typeddict(hint)
        and hint.__name__ != "Tensor"
    )


def bases(hint: Any) -> tuple[type, ...]:
    """Classes that an object in this slot may have; empty for a slot of plain values."""
    return tuple(member for member in members(hint) if is_part(member))


def item(hint: Any) -> Any:
    """Annotation of the items, for a list; None for anything else."""
    for member in members(hint):
        if typing.get_origin(member) in (list, tuple, set, Iterable, Sequence) and typing.get_args(member):
            return typing.get_args(member)[0]
    return None


def entry(hint: Any) -> Any:
    """Annotation of the values, for a dictionary; None for anything else."""
    for member in members(hint):
        if typing.get_origin(member) in (dict, Mapping) and len(typing.get_args(member)) == 2:
            return typing.get_args(member)[1]
    return None


def takes_text(hint: Any) -> bool:
    """Whether any text is a value of this slot."""
    return any(member is str or member is Any for member in members(hint))


def runs_code(hint: Any) -> bool:
    """Whether a text in this slot may be read as the path of a function or class."""
    return any(
        member is type or typing.get_origin(member) in (type, Callable) or member is Callable
        for member in members(hint)
    ) or any(runs_code(inner) for inner in (item(hint), entry(hint)) if inner is not None)


def words(hint: Any) -> str:
    """What a slot takes, in words: ``a number or null``."""
    choices = [str(v) for m in members(hint) if typing.get_origin(m) is typing.Literal for v in typing.get_args(m)]
    said = ["one of " + ", ".join(dict.fromkeys(choices))] if choices else []
    for member in members(hint):
        origin, inner = typing.get_origin(member), typing.get_args(member)
        if origin is typing.Literal:
            continue
        if origin in (list, tuple, set, Iterable, Sequence):
            kind = words(inner[0]) if inner else "values"
            said.append("a list of " + _plural(kind))
        elif origin in (dict, Mapping):
            said.append(f"{{name: {_bare(words(inner[1]))}}}" if len(inner) == 2 else "{name: value}")
        elif member in _WORDS:
            said.append(_WORDS[member])
        elif inspect.isclass(member):
            name = name_of(member)
            said.append(f"{'an' if name[0] in 'AEIOU' else 'a'} {name}")
        else:
            said.append("a value")
    said = list(dict.fromkeys(said))
    return " or ".join(sorted(said, key=lambda text: text == "null"))


_WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    type(None): "null",
    Any: "a value",
    pathlib.Path: "a path",
    datetime.timedelta: "a duration",
    dict: "{name: value}",
    list: "a list",
}


def _bare(kind: str) -> str:
    return kind.removeprefix("a ").removeprefix("an ")


def _plural(kind: str) -> str:
    return " or ".join(
        _bare(part) + ("" if part.startswith(("one of", "true", "null", "{")) or part.endswith("s") else "s")
        for part in kind.split(" or ")
    )


# ---- classes


_DATA, _DATA_MODULES = "neuralpk.cohort_data.", "neuralpk.datamodules."


def name_of(cls: type) -> str:
    """Name of a class in a configuration. Data go by the name of their data module, which alone needs Lightning: one
    configuration simulates and trains."""
    return cls.__name__ + ("Module" if cls.__module__.startswith(_DATA) else "")


def concrete(base: type) -> Iterator[type]:
    """Classes that can be named for a slot; of data and their data module the data, where they are enough."""
    every: Iterator[type] = subclasses(base)
    for cls in every:
        # the bases of torch and Lightning are abstract without saying so
        bare = cls is base and cls.__module__.split(".")[0] in ("torch", "lightning") and bool(cls.__subclasses__())
        data = cls.__module__.startswith(_DATA_MODULES) and base.__module__.startswith(_DATA)
        if not (inspect.isabstract(cls) or cls.__name__.startswith("_") or bare or data):
            yield cls


def names_for(slot: Sequence[type]) -> list[str]:
    """Names of the classes that a slot takes."""
    return sorted({name_of(cls) for base in slot for cls in concrete(base)})


def listed(names: Sequence[str]) -> str:
    """Names in a message, the first of them where they are many."""
    more = f", … ({len(names)} in all)" if len(names) > _MANY else ""
    return ", ".join(names[:_MANY]) + more


def find(path: str, slot: Sequence[type], where: str, may_import: bool) -> type:
    """The class of a name.

    Args:
        path: its name, alone or with its module.
        slot: base classes, one of which it must have.
        where: the option, for messages.
        may_import: whether its module may be imported.

    Raises:
        UsageError: no such class; not imported; not of the slot; abstract.
    """
    wanted = " or ".join(map(name_of, slot))
    module, _, last = path.rpartition(".")
    # the later base first: Lightning's ReduceLROnPlateau is meant rather than torch's
    same = [cls for base in reversed(slot) for cls in concrete(base) if name_of(cls) == last]
    ours = f"{module}.".startswith(_DATA_MODULES)  # whoever may name it: it runs nobody else's code
    data = [cls for cls in same if ours and cls.__module__.startswith(_DATA)]
    if data:
        return data[0]
    if not module:
        written = [cls for cls in same if cls.__module__.split(".")[0] not in ("torch", "lightning")]
        if len(written) > 1:
            paths = ", ".join(path_of(cls) for cls in written)
            raise UsageError(f"{where}: {last} is the name of several classes: {paths}; name it with its module")
        if same:
            return same[0]
        known = names_for(slot)
        hint = did_you_mean(last, known)
        raise UsageError(f"{where}: there is no {wanted} {last!r}{hint}; there are {listed(known)}")
    if module not in sys.modules and (may_import or ours):
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise UsageError(f"{where}: {path} cannot be imported ({error})") from error
    if module not in sys.modules:
        raise UsageError(
            f"{where} is a {path}, which is not imported: give --import {module.split('.')[0]} if you trust it"
        )
    cls = getattr(sys.modules[module], last, None)
    if cls is None:
        raise UsageError(f"{where}: {module} has no {last!r}{did_you_mean(last, names_for(slot))}")
    if not (inspect.isclass(cls) and any(issubclass(cls, base) for base in slot)):
        raise UsageError(f"{where} must be a {wanted}; {path} is not")
    if inspect.isabstract(cls):
        raise UsageError(f"{where}: {last} is abstract; name one of {listed(names_for([cls]))}")
    return cls


def path_of(cls: type) -> str:
    """Module and name of a class."""
    return class_path(cls)
