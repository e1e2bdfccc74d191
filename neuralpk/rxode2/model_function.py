"""The function around a model: its name, its description, and its blocks ini() and model()."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from neuralpk.cohort import Units
from neuralpk.dynamics.expression import Expression, Token
from neuralpk.rxode2.r_syntax import read_statements, refusal, string_of

_LIBRARIES = ("library", "require", "suppressPackageStartupMessages")
_UNITS = {"time": "time", "dosing": "amount", "dose": "amount", "amount": "amount", "concentration": "value"}
_SAID = ("description", "reference")


@dataclass
class ModelFunction:
    """The parts of a model function.

    Args:
        name: of the function; empty where it has none.
        initial: the argument of ini().
        model: the argument of model().
        said: description and reference.
        units: of time, amount and value, as far as they are said.
        notes: what was not used.
    """

    name: str
    initial: Expression
    model: Expression
    said: dict[str, str] = field(default_factory=dict)
    units: Units = Units()  # noqa: RUF009  # a NamedTuple cannot be changed
    notes: list[str] = field(default_factory=list)


def read_model_function(text: str) -> ModelFunction:
    """The parts of the one model function in a text.

    Args:
        text: in R: ``NAME <- function() {…}``, the function alone, or its body.

    Raises:
        EquationError: no model or several, or another statement beside it.
    """
    statements = [one for one in read_statements(text) if not _is_library(one)]
    if not statements:
        raise Token("end", "", 1, 1, text.split("\n")[0]).error("there is no model: NAME <- function() { ini({…}) … }")
    name = ""
    first = statements[0]
    if first.operation == "<-" and first.arguments[1].operation == "function":
        if first.arguments[0].operation != "name":
            raise first.arguments[0].token.error("the name of a function is expected here")
        name, first = first.arguments[0].token.text, first.arguments[1]
    if first.operation != "function":
        return _body(name, statements, first.token)
    if len(statements) > 1:
        token = statements[1].token
        raise refusal(token, "a second statement", "is not read: a text holds one model function")
    *arguments, body = first.arguments
    if arguments:
        raise refusal(arguments[0].token, "a function with arguments", "is not read: a model has none")
    if body.operation != "block":
        raise body.token.error("'{' is expected here")
    return _body(name, body.arguments, first.token)


def _is_library(statement: Expression) -> bool:
    return statement.operation == "call" and statement.token.text in _LIBRARIES


def _body(name: str, statements: Sequence[Expression], place: Token) -> ModelFunction:
    blocks: dict[str, Expression] = {}
    said: dict[str, Expression] = {}
    for statement in statements:
        token = statement.token
        if statement.operation == "call" and token.text in ("ini", "model"):
            if token.text in blocks:
                raise token.error(f"{token.text}() stands twice")
            if len(statement.arguments) != 1 or statement.arguments[0].operation != "block":
                raise token.error(f"{token.text}() is read as {token.text}({{…}})")
            blocks[token.text] = statement.arguments[0]
        elif statement.operation == "<-" and _is_plain(statement.arguments[1]):
            left = statement.arguments[0]
            if left.operation not in ("name", "$"):
                raise left.token.error("the name of a part of the description is expected here")
            said[left.arguments[-1].token.text if left.operation == "$" else left.token.text] = statement.arguments[1]
        else:
            raise refusal(
                token, f"{token.text!r} in a model function", "is not read: it has texts, ini({…}) and model({…})"
            )
    for needed in ("ini", "model"):
        if needed not in blocks:
            raise place.error(f"the model has no {needed}({{…}})")
    found = ModelFunction(name, blocks["ini"], blocks["model"])
    for key, value in said.items():
        if key in _SAID and value.operation == "string":
            found.said[key] = " ".join(string_of(value).split())
        elif key == "units":
            found.units = _units(value, found.notes)
        else:
            found.notes.append(f"{key} (line {value.token.line}) is not used")
    return found


def _is_plain(value: Expression) -> bool:
    """Whether it is a text, a number, or a list of such."""
    if value.operation == "call" and value.token.text in ("c", "list"):
        return all(_is_plain(one) for one in value.arguments)
    if value.operation in ("named", "negative"):
        return _is_plain(value.arguments[0])
    return value.operation in ("string", "number") or value.token.text in ("TRUE", "FALSE", "NULL", "NA")


def _units(value: Expression, notes: list[str]) -> Units:
    found: dict[str, str] = {}
    for one in value.arguments if value.operation == "call" else ():
        name = one.token.text.strip("'\"")
        if one.operation == "named" and name in _UNITS and one.arguments[0].operation == "string":
            found[_UNITS[name]] = string_of(one.arguments[0])
        else:
            notes.append(f"units {name} (line {one.token.line}) are not used")
    return Units(**found)
