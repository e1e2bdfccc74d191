"""By what a report can be made again: inputs, versions, settings."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from neuralpk.plain_yaml import plain_yaml_text
from neuralpk.report.tables_and_figures import ReportTable
from neuralpk.run_record import machine, sha256_of, versions


def inputs_table(inputs: Mapping[str, Sequence[Path]], anonymise: bool) -> ReportTable:
    """The files that the report is made from, with their sha256.

    Args:
        inputs: files by what they are; none for an object of Python.
        anonymise: leave out the names of the files.
    """
    rows = []
    for what, files in inputs.items():
        rows += [(what, "–" if anonymise else file.name, sha256_of(file)) for file in files]
        if not files:
            rows.append((what, "an object in Python", "–"))
    return ReportTable("Inputs", ("input", "file", "sha256"), rows, texts=3)


def versions_table() -> ReportTable:
    """Versions of Python and of the packages that the numbers come from."""
    rows = [*versions().items(), ("machine", machine())]
    return ReportTable("Versions", ("package", "version"), rows, texts=2)


def settings_text(settings: Any, anonymise: bool) -> str:
    """Settings as YAML.

    Args:
        settings: plain values.
        anonymise: leave out paths, and comments in texts of equations.
    """
    return plain_yaml_text(_without_names(settings) if anonymise else settings).strip()


def _without_names(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_names(inside) for key, inside in value.items()}
    if isinstance(value, list | tuple):
        return [_without_names(inside) for inside in value]
    if isinstance(value, str):
        return "(path)" if re.match(r"(/|~|\\\\|[A-Za-z]:[\\/])", value) else re.sub(r"[ \t]*#[^\n]*", "", value)
    return value
