"""YAML as people mean it: no key twice, no aliases, numbers as they are written everywhere else.

The rules for plain values are those of YAML 1.2 (core schema): ``1e-3`` is a number; ``1:30``, ``1_000``, ``no`` and
``2026-01-31`` are texts, and so is ``010``, which was eight and might be ten.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

_LARGEST = 64 * 1024  # characters: configurations have a few thousand, and the parser takes seconds for a million


class _RefusedError(yaml.MarkedYAMLError):
    """YAML, but not as people mean it."""


class _Loader(yaml.SafeLoader):
    """The safe loader with the rules of this module."""

    yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012  # as in the base class

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            said = f"the alias *{event.anchor} is not read: write the value out"
            raise _RefusedError(problem=said, problem_mark=event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else []:
            name = str(key.value)
            if name in seen:
                raise _RefusedError(problem=f"{name} stands there twice", problem_mark=key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)

    def construct_core_int(self, node: Any) -> int:
        text = str(self.construct_scalar(node))
        return int(text, 0) if text.startswith(("0o", "0x")) else int(text)

    def construct_core_float(self, node: Any) -> float:
        return float(str(self.construct_scalar(node)).lower().replace(".inf", "inf").replace(".nan", "nan"))


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", [*"~nN", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(0|[1-9][0-9]*)|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?((\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.(inf|Inf|INF))|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_core_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_core_float)


def read_yaml_text(text: str) -> Any:
    """The content of a YAML text.

    Raises:
        ValueError: no YAML; a key twice; an alias; too long; nested too deeply.
    """
    if len(text) > _LARGEST:
        raise ValueError(f"has {len(text):,} characters; more than {_LARGEST:,} are not read")
    try:
        return yaml.load(text, _Loader)
    except _RefusedError as error:
        line = "" if error.problem_mark is None else f"line {error.problem_mark.line + 1}: "
        raise ValueError(f"{line}{error.problem}") from error
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f"line {error.problem_mark.line + 1} "
        raise ValueError(f"{line}is not YAML: {error.problem}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"is not YAML: {error}") from error
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error


class _Dumper(yaml.SafeDumper):
    """Texts of several lines, such as equations, stay as they are written; values are written out, without aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None),
)


def plain_yaml_text(content: Any) -> str:
    """A YAML text that `read_yaml_text` reads."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
