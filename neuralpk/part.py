"""Parts: what a model is made of, as objects and as the plain descriptions that configurations and checkpoints hold."""

from __future__ import annotations

import difflib
import inspect
import sys
import typing
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

T = TypeVar("T", bound="Part")
_KEYS = {"class_path", "init_args"}
_OBJECT = "object"  # the one key of the description of what has none


class Part:
    """A piece of a model that can be exchanged: a vector field, an encoder, a residual error, an objective, …

    A part remembers the arguments it was made with, so that a checkpoint can name its class and its options. A class of
    one's own needs nothing for that but this base class: arguments that are plain values (None, bool, int, float, str,
    lists and dictionaries of them) or other parts.

    Attributes:
        arguments: the arguments of the constructor by name, as they were given.
    """

    arguments: Mapping[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Part:  # Self would bind the subclass of a module
        part = super().__new__(cls)
        # a copy is made without arguments and gets those of the original with the rest of its state
        bound = inspect.signature(cls.__init__).bind_partial(part, *args, **kwargs)
        given = dict(list(bound.arguments.items())[1:])
        for name, parameter in inspect.signature(cls.__init__).parameters.items():
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                given |= given.pop(name, {})
        part.__dict__["arguments"] = given
        return part


def class_path(cls: type) -> str:
    """Module and name of a class: ``neuralpk.dynamics.compartments.CompartmentModel``."""
    return f"{cls.__module__}.{cls.__qualname__}"


def describe(value: Any) -> Any:
    """The plain description of a part: ``{"class_path": …, "init_args": {…}}``, and of plain values themselves.

    What has no description (a function, a tensor, an object that is no part) is named by ``{"object": …}``, which
    `make` refuses with the name of what has to be given again.
    """
    if isinstance(value, Part):
        init_args = {name: describe(argument) for name, argument in value.arguments.items()}
        return {"class_path": class_path(type(value)), "init_args": init_args}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {key: describe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [describe(item) for item in value]
    return {_OBJECT: getattr(value, "__qualname__", class_path(type(value)))}


def make(value: Any, base: type[T], name: str) -> T:
    """A part from itself, from its description, or from the name of its class.

    No module is imported: the classes are those that ship with this package or were imported before.

    Args:
        value: a part; ``{"class_path": …, "init_args": {…}}``; or the name of a class, alone where it is unique among
            the subclasses of `base`, or with its module.
        base: what the part has to be.
        name: of the argument, for messages.

    Raises:
        ValueError: a class that is not there, is not a `base` or is abstract; an option that the class does not have;
            a part that has no plain description.
    """
    if isinstance(value, base):
        return value
    if isinstance(value, str):
        value = {"class_path": value}
    if isinstance(value, Mapping) and set(value) == {_OBJECT}:
        raise ValueError(
            f"{name} was made from {value[_OBJECT]!r}, which a checkpoint cannot hold: give the object again, "
            f"as in load_from_checkpoint(path, {name.split('.')[0]}=…)"
        )
    if not (isinstance(value, Mapping) and "class_path" in value and set(value) <= _KEYS):
        raise ValueError(f"{name} must be a {base.__name__}, its name, or class_path with init_args; got {value!r}")
    cls = find_class(str(value["class_path"]), base, name)
    given = value.get("init_args") or {}
    options = list(option_names(cls))
    unknown = [option for option in given if option not in options]
    if unknown:
        hint = did_you_mean(unknown[0], options)
        raise ValueError(f"{name}: {cls.__name__} has no option {unknown[0]!r}{hint}; it has {', '.join(options)}")
    parts = _parts_of(cls)
    return cls(**{option: _made(item, parts.get(option, Part), f"{name}.{option}") for option, item in given.items()})


def _made(value: Any, base: type[Part], name: str) -> Any:
    """An argument of a part from its description."""
    if isinstance(value, Mapping):
        if set(value) == {_OBJECT} or ("class_path" in value and set(value) <= _KEYS):
            return make(value, base, name)
        return {key: _made(item, base, f"{name}.{key}") for key, item in value.items()}
    if isinstance(value, list):
        return [_made(item, base, name) for item in value]
    return value


def find_class(path: str, base: type[T], name: str) -> type[T]:
    """A class that has been imported.

    Args:
        path: its name, with its module or alone.
        base: what it has to be.
        name: of the argument, for messages.

    Raises:
        ValueError: as for `make`.
    """
    module, _, last = path.rpartition(".")
    if not module:
        found = [cls for cls in subclasses(base) if cls.__name__ == last]
        if not found:
            known = sorted(cls.__name__ for cls in subclasses(base) if not inspect.isabstract(cls))
            hint = did_you_mean(last, known)
            raise ValueError(f"{name}: there is no {base.__name__} {last!r}{hint}; there are {', '.join(known)}")
        if len(found) > 1:
            paths = ", ".join(class_path(cls) for cls in found)
            raise ValueError(f"{name}: {last} is the name of several classes: {paths}; name it with its module")
        cls: Any = found[0]
    else:
        cls = getattr(sys.modules.get(module), last, None)
    if cls is None:
        raise ValueError(
            f"{name} is a {path}, which is not imported: import {module} first (--import {module.split('.')[0]} on "
            f"the command line), or give the object, as in load_from_checkpoint(path, {name.split('.')[0]}=…)"
        )
    if not (inspect.isclass(cls) and issubclass(cls, base)):
        raise ValueError(f"{name} must be a {base.__name__}; {path} is none")
    if inspect.isabstract(cls):
        raise ValueError(f"{name}: {path} is abstract; name one of its subclasses")
    return cls


def subclasses(base: type[T]) -> Iterator[type[T]]:
    """A class and all that have been derived from it, each once."""
    seen: dict[type[T], None] = {base: None}
    todo = [base]
    while todo:
        for cls in todo.pop().__subclasses__():
            if cls not in seen:
                seen[cls] = None
                todo.append(cls)
    return iter(seen)


def option_names(cls: type) -> Iterator[str]:
    """Names of the arguments of a constructor; those that it passes on to its base class among them."""
    passed_on = False
    for name, parameter in list(inspect.signature(cls.__init__).parameters.items())[1:]:  # type: ignore[misc]
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            passed_on = True
        elif parameter.kind is not inspect.Parameter.VAR_POSITIONAL:
            yield name
    if passed_on and cls.__base__ is not None:
        yield from option_names(cls.__base__)


def did_you_mean(word: str, known: list[str]) -> str:
    """`` (did you mean 'CL'?)`` for a word that is nearly one of those that are known; empty where none is near."""
    near = difflib.get_close_matches(word, known, 1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _parts_of(cls: type) -> dict[str, type[Part]]:
    """Arguments that take a part, with the class that it has to be."""
    try:
        hints = typing.get_type_hints(cls.__init__)  # type: ignore[misc]
    except (NameError, TypeError):  # an annotation that only a type checker can read
        return {}
    found = {}
    for name, hint in hints.items():
        kinds = [kind for kind in _classes(hint) if issubclass(kind, Part)]
        if kinds:
            found[name] = kinds[0]
    return found


def _classes(hint: Any) -> Iterator[type]:
    """The classes in an annotation: ``list[A] | None`` has list, A and NoneType."""
    if inspect.isclass(hint):
        yield hint
    for argument in typing.get_args(hint):
        yield from _classes(argument)
