"""Configuration: presets, files and arguments put together, each value at the option of the class that has it.

The result is what `LightningCLI` reads from one file: plain values, and ``class_path`` with ``init_args`` for every
object. It is complete and checked before the parser sees it.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from neuralpk.cli.argument_tokens import Argument, value_of
from neuralpk.cli.faults import UsageError
from neuralpk.cli.signatures import (
    REQUIRED,
    Option,
    bases,
    concrete,
    entry,
    find,
    item,
    listed,
    members,
    name_of,
    names_for,
    options_of,
    path_of,
    runs_code,
    takes_text,
    words,
)
from neuralpk.part import did_you_mean
from neuralpk.plain_yaml import read_yaml_text

Node = dict[str, Any]
_OLD_NUMBER = re.compile(r"[-+]?\d[\d_]*([:_][\d_:.]+)")  # 1:30 and 1_000, which the parser takes for 90 and 1000
_NODE_KEYS = {"class_path", "init_args", "dict_kwargs"}


@dataclass(frozen=True)
class Source:
    """Who says a value.

    Args:
        file: the file it stands in; empty for the command line.
    """

    file: str = ""

    @property
    def trusted(self) -> bool:
        """Whether it is the user's own word: what a file says imports nothing and names no code; ``--import`` does."""
        return not self.file

    def name(self, path: Sequence[str]) -> str:
        """An option in a message."""
        return f"{self.file}: {'.'.join(path)}" if self.file else f"--{'.'.join(path)}"


@dataclass
class Configuration:
    """The values of all options of a command.

    Args:
        options: of the command, by name.
        values: those given so far.
    """

    options: Mapping[str, Option]
    values: Node = field(default_factory=dict)

    def read(self, path: str | Path, only: Sequence[str] = ()) -> None:
        """Take over what a YAML file says.

        Args:
            path: of the file.
            only: the sections to take; empty for all.

        Raises:
            UsageError: no such file, unreadable, or a value that does not fit.
        """
        content = read_yaml(path)
        if only:
            content = {name: value for name, value in content.items() if name in only}
        self.take(content, Source(str(path)))

    def take(self, content: Mapping[str, Any], source: Source) -> None:
        """Take over the content of a file.

        Raises:
            UsageError: a value that does not fit.
        """
        for name, value in content.items():
            if name != "ckpt_path" or value is not None:  # a saved null would take back what the user gave
                self._set((str(name),), value, source)

    def give(self, argument: Argument) -> None:
        """Take over an argument of the command line.

        Raises:
            UsageError: an option or a value that does not fit.
        """
        self._set(tuple(argument.name.split(".")), value_of(argument), Source(), argument.appended)

    def _set(self, path: tuple[str, ...], value: Any, source: Source, append: bool = False) -> None:
        _Setter(source, append).set(self.values, self.options, path, value, ())

    def finish(self) -> Node:
        """The values, typed.

        Raises:
            UsageError: a required option that is missing.
        """
        _require(self.values, self.options, ())
        return self.values


def read_yaml(path: str | Path) -> Node:
    """The content of a configuration.

    Raises:
        UsageError: no such file, no YAML, or no options by name.
    """
    try:
        content = read_yaml_text(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(f"there is no file {str(path)!r}") from error
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not a text file in UTF-8") from error
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path} must hold options by name (data:, model:, trainer:), not {content!r:.60}")
    return content


@dataclass(frozen=True)
class _Setter:
    """Puts one value where it belongs."""

    source: Source
    append: bool = False

    def set(
        self, node: Node, options: Mapping[str, Option], path: tuple[str, ...], value: Any, done: tuple[str, ...],
        owner: type | None = None, slot: Sequence[type] = (),
    ) -> None:  # fmt: skip
        name, *rest = path
        where = (*done, name)
        if name not in options:
            raise UsageError(self._unknown(name, options, where, owner, slot))
        option = options[name]
        if option.fixed is None:
            node[name] = self._value(option, node.get(name), tuple(rest), value, where)
            return
        inner, group = options_of(option.fixed, option.skipped), node.setdefault(name, {})
        if rest:
            self.set(group, inner, tuple(rest), value, where, option.fixed)
            return
        value = self._plain(value)
        if value is None:
            return
        if not isinstance(value, Mapping):
            raise UsageError(f"{self.source.name(where)} is a group of options, as in --{name}.{next(iter(inner))} …")
        for key, inside in value.items():
            self.set(group, inner, (str(key),), inside, where, option.fixed)

    def _unknown(
        self, name: str, options: Mapping[str, Option], where: tuple[str, ...], owner: type | None, slot: Sequence[type]
    ) -> str:
        said = f"{self.source.name(where)}: {name_of(owner)} has no option {name!r}" if owner is not None else (
            f"there is no option {self.source.name(where)}")  # fmt: skip
        others = sorted({name_of(c) for base in slot for c in concrete(base) if name in options_of(c)})
        hint = did_you_mean(name, list(options))
        if hint:
            return said + hint
        if others:
            said += f"; it belongs to {listed(others)}"
        if not options:
            return said + "; it has none"
        return said + (f"; there are {', '.join(options)}" if len(options) <= 20 else "")

    def _value(self, option: Option, current: Any, rest: tuple[str, ...], value: Any, where: tuple[str, ...]) -> Any:
        """The new value of a slot, or of what lies under it."""
        hint = option.hint
        if rest:
            return self._below(option, current, rest, value, where)
        slot, items, entries = bases(hint), item(hint), entry(hint)
        holds_parts = bool(slot) or any(h is not None and _deep_parts(h) for h in (items, entries))
        if not holds_parts:
            return self._leaf(option, current, value, where)
        value = self._plain(value) if not (isinstance(value, str) and _is_word(value)) else value
        if isinstance(value, str) and value in ("null", "true", "false"):
            value = read_yaml_text(value)
        if value is None or isinstance(value, bool | int | float):
            return self._leaf(option, current, value, where)
        inner = Option(where[-1], items, skipped=option.skipped)
        if items is not None and (self.append or isinstance(value, list)):
            given = value if isinstance(value, list) else [value]
            made = [_Setter(self.source)._value(inner, None, (), one, where) for one in given]
            return (_as_list(current) if self.append else []) + made
        if isinstance(value, Mapping) and "class_path" not in value and "init_args" not in value:
            if entries is not None:
                inner = Option(where[-1], entries)
                return {str(k): self._value(inner, None, (), one, (*where, str(k))) for k, one in value.items()}
            if self.source.file or not slot:
                raise UsageError(
                    f"{self.source.name(where)} takes class_path and init_args ({words(hint)}); got {value!r:.80}"
                )
        if not slot and isinstance(value, str) and takes_text(hint):
            return self._text(value, where)
        if not slot and items is None:
            return self._leaf(option, current, value, where)
        if not slot:  # one object for a list of them
            return [self._value(inner, None, (), value, where)]
        if isinstance(value, str):
            if takes_text(hint) and value not in names_for(slot):
                return self._text(value, where)
            return self._node(slot, current, value, {}, where, option)
        if isinstance(value, Mapping):
            return self._mapping(slot, current, value, where, option)
        return self._leaf(option, current, value, where)

    def _mapping(
        self, slot: Sequence[type], current: Any, value: Mapping[str, Any], where: tuple[str, ...], option: Option
    ) -> Node:
        """An object from its description."""
        unknown = set(value) - _NODE_KEYS
        named = str(value["class_path"]) if "class_path" in value else None
        given = value.get("init_args") or {}
        if named is None and unknown:
            given, unknown = value, set()
        if unknown or not isinstance(given, Mapping):
            raise UsageError(
                f"{self.source.name(where)} takes class_path and init_args, not {sorted(unknown) or given}"
            )
        if value.get("dict_kwargs"):
            given = {**given, **value["dict_kwargs"]}
        return self._node(slot, current, named, given, where, option)

    def _node(
        self, slot: Sequence[type], current: Any, named: str | None, given: Mapping[str, Any],
        where: tuple[str, ...], option: Option,
    ) -> Node:  # fmt: skip
        """``class_path`` and ``init_args``; the options of another class are forgotten."""
        if named is None:
            node = self._current(slot, current, where)
        else:
            cls = find(named, slot, self.source.name(where), self.source.trusted)
            same = isinstance(current, dict) and current.get("class_path") == path_of(cls)
            node = current if same else {"class_path": path_of(cls), "init_args": {}}
        for key, one in given.items():
            self._option(slot, node, (str(key),), one, where, option)
        return node

    def _option(
        self,
        slot: Sequence[type],
        node: Node,
        rest: tuple[str, ...],
        value: Any,
        where: tuple[str, ...],
        option: Option,
    ) -> None:
        cls = find(node["class_path"], slot, self.source.name(where), False)
        self.set(node["init_args"], options_of(cls, option.skipped), rest, value, where, cls, slot)

    def _current(self, slot: Sequence[type], current: Any, where: tuple[str, ...]) -> Node:
        """The object whose options follow: the one named before, or the only class there can be."""
        if isinstance(current, dict) and "class_path" in current:
            current.setdefault("init_args", {})
            return current
        if len(slot) == 1 and slot[0] in list(concrete(slot[0])):
            return {"class_path": path_of(slot[0]), "init_args": {}}
        known = names_for(slot)
        if len(known) == 1:
            return {"class_path": path_of(next(concrete(slot[0]))), "init_args": {}}
        raise UsageError(f"{self.source.name(where)} needs its class first, one of {listed(known)}")

    def _below(self, option: Option, current: Any, rest: tuple[str, ...], value: Any, where: tuple[str, ...]) -> Any:
        """A slot after one of the options under it was set."""
        hint = option.hint
        slot, items, entries = bases(hint), item(hint), entry(hint)
        if isinstance(current, list) and items is not None and bases(items):
            inner = Option(where[-1], items, skipped=option.skipped)
            if not current:
                raise UsageError(f"{self.source.name(where)} needs a class first: --{'.'.join(where)}+ CLASS")
            return [*current[:-1], self._below(inner, current[-1], rest, value, where)]
        if entries is not None and not (isinstance(current, dict) and "class_path" in current):
            known = dict(current) if isinstance(current, dict) else {}
            known[rest[0]] = self._value(
                Option(rest[0], entries), known.get(rest[0]), rest[1:], value, (*where, rest[0])
            )
            return known
        if not slot:
            raise UsageError(f"{self.source.name(where)} takes {words(hint)}; it has no option {rest[0]!r}")
        if rest == ("class_path",):
            return self._node(slot, current, str(value), {}, where, option)
        node = self._current(slot, current, where)
        rest = rest[1:] if rest[0] == "init_args" and len(rest) > 1 else rest
        self._option(slot, node, rest, value, where, option)
        return node

    def _plain(self, value: Any) -> Any:
        """The value that a text on the command line stands for."""
        if self.source.file or not isinstance(value, str):
            return value
        try:
            return read_yaml_text(value)
        except ValueError:
            return value

    def _text(self, value: str, where: tuple[str, ...]) -> str:
        # the parser reads a file where a text could name one, and imports the classes in it
        if not self.source.trusted and (not re.fullmatch(r"[\w -]+", value) or Path(value).exists()):
            raise UsageError(f"{self.source.name(where)} must be a word or a class; got {value!r}")
        return value

    def _leaf(self, option: Option, current: Any, value: Any, where: tuple[str, ...]) -> Any:
        """A plain value of the type of the slot."""
        said = self.source.name(where)
        if not self.source.trusted:
            if runs_code(option.hint) and value is not None:
                raise UsageError(f"{said} takes a function, which a file that was not asked for cannot name")
            if _names_a_class(value):
                raise UsageError(f"{said} takes no class: {words(option.hint)}")
        if self.append:
            added = self._plain(value)
            value = _as_list(current) + (added if isinstance(added, list) else [added])
        if isinstance(value, str) and value in ("None", "none") and type(None) in members(option.hint):
            value = None
        fitted, ok = typed(option.hint, value)
        if not ok:
            default = "" if option.default is REQUIRED else f" (default {shown(option.default)})"
            raise UsageError(f"{said} takes {words(option.hint)}{default}; got {value!r:.120}")
        return fitted


def typed(hint: Any, value: Any) -> tuple[Any, bool]:
    """A value as its annotation wants it, and whether it fits."""
    if isinstance(value, str) and value.strip().startswith(("[", "{")):
        with contextlib.suppress(ValueError):
            value = read_yaml_text(value)
    if not takes_text(hint) and _holds_old_number(value):
        return value, False
    parser = ArgumentParser(exit_on_error=False)
    try:
        parser.add_argument("--value", type=hint)
    except ValueError:  # an annotation that the parser does not know
        return value, True
    try:
        found = parser.parse_object({"value": value}).value
    except Exception:  # whatever the parser says of it is said again in our words
        return value, False
    # paths and durations stay as they were written, so that the configuration can be saved
    return (found if isinstance(found, bool | int | float | str | list | dict | None) else value), True


def _holds_old_number(value: Any) -> bool:
    if isinstance(value, Mapping | list):
        return any(_holds_old_number(one) for one in (value.values() if isinstance(value, Mapping) else value))
    return isinstance(value, str) and _OLD_NUMBER.fullmatch(value) is not None


def shown(default: Any) -> str:
    """A default as it would be typed."""
    if default is None or isinstance(default, bool):
        return {None: "null", True: "true", False: "false"}[default]
    if isinstance(default, str | int | float):
        return str(default) if default != "" else '""'
    if isinstance(default, list | tuple):
        return "[" + ", ".join(shown(one) for one in default) + "]"
    if isinstance(default, Mapping):
        return "{" + ", ".join(f"{name}: {shown(one)}" for name, one in default.items()) + "}"
    return type(default).__name__


def _deep_parts(hint: Any) -> bool:
    return bool(bases(hint)) or any(h is not None and _deep_parts(h) for h in (item(hint), entry(hint)))


def _is_word(text: str) -> bool:
    return bool(re.fullmatch(r"[A-Za-z_][\w.]*", text)) and text not in ("null", "true", "false")


def _as_list(value: Any) -> list[Any]:
    if value is None or isinstance(value, bool):
        return []
    return list(value) if isinstance(value, list) else [value]


def _names_a_class(value: Any) -> bool:
    if isinstance(value, Mapping):
        return "class_path" in value or any(_names_a_class(inside) for inside in value.values())
    return isinstance(value, list) and any(_names_a_class(inside) for inside in value)


def _require(values: Any, options: Mapping[str, Option], done: tuple[str, ...], owner: str = "") -> None:
    """Refuse what lacks a required option."""
    for name, option in options.items():
        where = (*done, name)
        if name not in values:
            if option.default is REQUIRED and option.fixed is None:
                by = f" by {owner}" if owner else ""
                known = names_for(bases(option.hint))
                what = f"one of {listed(known)}" if known else option.description.rstrip(".") or words(option.hint)
                raise UsageError(f"--{'.'.join(where)} is required{by}: {what}")
            if option.fixed is not None:
                _require({}, options_of(option.fixed, option.skipped), where, name_of(option.fixed))
        elif option.fixed is not None:
            _require(values[name], options_of(option.fixed, option.skipped), where, name_of(option.fixed))
        else:
            _require_nodes(values[name], option, where)


def _require_nodes(value: Any, option: Option, where: tuple[str, ...]) -> None:
    if isinstance(value, list):
        for one in value:
            _require_nodes(one, option, where)
    elif isinstance(value, Mapping) and "class_path" in value:
        slots = _all_bases(option.hint)
        cls = find(value["class_path"], slots, "--" + ".".join(where), False)
        _require(value["init_args"], options_of(cls, option.skipped), where, name_of(cls))
    elif isinstance(value, Mapping):
        for name, one in value.items():
            _require_nodes(one, option, (*where, str(name)))


def _all_bases(hint: Any) -> tuple[type, ...]:
    inner = [h for h in (item(hint), entry(hint)) if h is not None]
    return (*bases(hint), *(base for h in inner for base in _all_bases(h)))
