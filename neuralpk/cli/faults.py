"""Faults of a command line, and the one sentence in a message that matters."""

from __future__ import annotations

import re


class UsageError(ValueError):
    """A command line or a configuration that cannot be used; exit code 2."""


_WRAPPED = ("Parser key", "Union subtypes", "Namespace(", "Given value type", "Call to compute_fn")


def sentence(error: BaseException) -> str:
    """What an error says, without what the parser wraps around it."""
    while any(mark in str(error) for mark in _WRAPPED) and (error.__cause__ or error.__context__):
        error = error.__cause__ or error.__context__ or error
    text = str(error) or type(error).__name__
    if isinstance(error, FileNotFoundError) and error.filename is not None:
        return f"there is no file {str(error.filename)!r}"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {str(error.strerror or error).lower()}"
    text = re.sub(r"^Call to compute_fn of link .*? failed: ", "", text, flags=re.DOTALL)
    key = re.search(r'Parser key "([^"]+)"', text)
    wanted = re.findall(r"Expected an? ([^\n]*?)\. Got value: (.*)", text)
    if key and wanted:
        takes = " or ".join(dict.fromkeys(re.sub(r"<class '(?:.*\.)?(\w+)'>", r"\1", kind) for kind, _ in wanted))
        return f"--{key[1]} takes {takes}; got {wanted[0][1].strip()!r}"
    text = re.sub(r"\s*(Given value type:|Namespace\().*", "", text, flags=re.DOTALL)
    text = re.sub(r"\s*Does not validate against any of the Union subtypes.*?Errors:\s*", " ", text, flags=re.DOTALL)
    text = re.sub(r"\n\s*- Expected an? <class [^\n]*", "", text)
    return text.strip().removeprefix("- ")
