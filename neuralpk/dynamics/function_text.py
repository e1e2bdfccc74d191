"""The text of a model that is written as a Python function: the function runs once, on symbols."""

from __future__ import annotations

import inspect
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import count
from typing import Any

from neuralpk.dynamics.equation_text import RESERVED, TIME
from neuralpk.dynamics.network_text import NETWORK
from neuralpk.dynamics.symbols import FunctionError, Symbol, as_text, place, symbol, written
from neuralpk.part import did_you_mean

Start = float | tuple[float, float, float]
"""Starting value of a parameter, alone or with the two ends between which it lies."""
OfParameters = Mapping[str, Any] | Callable[[Any], Mapping[str, Any]]
"""Values by state: numbers, or a function of the parameters that returns them."""
_ATOMS = ("name", "number")
_DEEPEST = 60  # operations within each other, from which on a part of them is a variable


class Names:
    """Symbols by name, as attributes and as items.

    Args:
        what: of which things, for messages.
        known: the names; None for any.
    """

    def __init__(self, what: str, known: Iterable[str] | None = None) -> None:
        self._what, self._known = what, None if known is None else [*known]
        self._read: dict[str, Symbol] = {}

    def __getattr__(self, name: str) -> Symbol:
        if name.startswith("__"):
            raise AttributeError(name)
        if self._known is not None and name not in self._known:
            raise FunctionError(
                f"there is no {self._what} {name!r}{did_you_mean(name, self._known)}; there are "
                f"{', '.join(self._known) or 'none'}; in {place()}"
            )
        return self._read.setdefault(name, Symbol("name", text=name))

    def __getitem__(self, name: str) -> Symbol:
        return self.__getattr__(name)


def text_of_function(
    function: Callable[..., Mapping[str, Any]],
    parameters: Mapping[str, Start],
    outputs: Sequence[str],
    initial: OfParameters | None = None,
    lag: OfParameters | None = None,
    bioavailability: OfParameters | None = None,
    rate: OfParameters | None = None,
    duration: OfParameters | None = None,
) -> str:
    """The text of a model; arguments as for `neuralpk.dynamics.Equations.from_function`.

    Raises:
        FunctionError: what the function does cannot be written as text, with the line in which it stands.
    """
    state, parameter = Names("state"), Names("parameter", parameters)
    slopes, local = _traced(function, (state, parameter, Symbol("name", text=TIME)))
    if not slopes:
        raise FunctionError(f"{_name(function)} returns the slope of each state by its name, and returned none")
    unknown = [name for name in state._read if name not in slopes]
    if unknown:
        raise FunctionError(
            f"{_name(function)} reads state.{unknown[0]}{did_you_mean(unknown[0], [*slopes])}, of which it returns no "
            "slope"
        )
    lines = {f"{name}'": symbol(value) for name, value in slopes.items()}
    of_states = {"{}(0)": initial, "lag({})": lag, "F({})": bioavailability}
    of_states |= {"rate({})": rate, "duration({})": duration}
    for pattern, given in of_states.items():
        values, more = _traced(given, (parameter,)) if callable(given) else (given or {}, {})
        local = more | local
        lines |= {pattern.format(name): symbol(value) for name, value in values.items()}
    taken = {*RESERVED, *slopes, *parameters}
    variables = {name: value for name, value in local.items() if _nameable(name, value, taken)}
    for name in outputs:
        if name not in slopes and name not in variables:
            known = [*slopes, *variables]
            raise FunctionError(f"there is no output {name!r}{did_you_mean(name, known)}; there are {', '.join(known)}")
    return "\n".join(
        [
            f"# {_name(function)}",
            *([declared(parameters)] if parameters else []),
            *_statements(lines, variables, [*outputs], taken),
            f"outputs: {', '.join(outputs)}",
            "",
        ]
    )


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__name__", type(function).__name__)


def declared(parameters: Mapping[str, Start]) -> str:
    """The line that declares some parameters."""
    return "parameters: " + ", ".join(f"{name} = {_start(value)}" for name, value in parameters.items())


def _start(value: Start) -> str:
    if isinstance(value, tuple | list):
        start, low, high = map(as_text, value)
        return f"{start} in ({low}, {high})"
    return as_text(value)


def _traced(function: Callable[..., Any], given: tuple[Any, ...]) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """What a function returns, and its local variables at the end."""
    local: dict[str, Any] = {}
    code = getattr(function, "__code__", None)

    def note(frame: Any, event: str, _: Any) -> None:
        if event == "return" and frame.f_code is code:
            local.update(frame.f_locals)

    wanted = len(inspect.signature(function).parameters)
    before = sys.getprofile()
    sys.setprofile(note)
    try:
        result = function(*given[:wanted])
    finally:
        sys.setprofile(before)
    if not isinstance(result, Mapping):
        raise FunctionError(f"{_name(function)} returns values by state, as in {{'central': …}}, not {result!r}")
    return result, local


def _nameable(name: str, value: Any, taken: set[str]) -> bool:
    """Whether a local variable can be one of the text."""
    return isinstance(value, Symbol) and name not in taken and name.isascii()


class _Expressions:
    """Expressions in an order in which each stands after its parts; those that are the same are one."""

    def __init__(self) -> None:
        self.all: dict[tuple[Any, ...], Symbol] = {}
        self._same: dict[int, Symbol] = {}

    def add(self, value: Symbol) -> Symbol:
        """The expression that stands for this one; its parts are added before it."""
        todo = [value]
        while todo:  # not by recursion: a loop makes long chains
            last = todo[-1]
            missing = [part for part in last.arguments if id(part) not in self._same]
            if missing:
                todo.extend(missing)
                continue
            todo.pop()
            parts = tuple(self._same[id(part)] for part in last.arguments)
            own = id(last) if last.operation == NETWORK else None  # each network is one by itself
            key = (last.operation, last.text, own, *map(id, parts))
            self._same[id(last)] = self.all.setdefault(key, Symbol(last.operation, parts, last.text))
        return self._same[id(value)]


def _statements(
    lines: Mapping[str, Symbol], variables: Mapping[str, Symbol], outputs: Sequence[str], taken: set[str]
) -> list[str]:
    """The lines of the variables, each after those that it reads, and then the others.

    A variable is what the function gave a name, what is read more than once, every network, and a part of what would be
    nested too deeply.
    """
    expressions = _Expressions()
    found = {name: expressions.add(value) for name, value in lines.items()}
    asked = {name: expressions.add(variables[name]) for name in outputs if name in variables}
    order = [*expressions.all.values()]
    read, uses = {id(value) for value in order}, Counter(id(value) for value in found.values())
    uses.update(id(part) for value in order for part in value.arguments)
    names: dict[int, str] = {}
    for name, value in {name: expressions.add(value) for name, value in variables.items()}.items():
        if id(value) in read and value.operation not in _ATOMS:
            names.setdefault(id(value), name)
    automatic = (f"v{k}" for k in count(1) if f"v{k}" not in taken and f"v{k}" not in variables)
    depth: dict[int, int] = {}
    texts = []
    for value in order:
        depth[id(value)] = 1 + max((depth[id(part)] for part in value.arguments), default=0)
        repeated = uses[id(value)] > 1 or value.operation == NETWORK or depth[id(value)] > _DEEPEST
        if repeated and value.operation not in _ATOMS and id(value) not in names:
            names[id(value)] = next(automatic)
        if id(value) in names:
            texts.append(f"{names[id(value)]} = {written(value, names, whole=True)}")
            depth[id(value)] = 1
    # a name of an output that is one more name of its value
    texts += [f"{name} = {written(value, names)}" for name, value in asked.items() if names.get(id(value)) != name]
    return [*texts, *(f"{name} = {written(value, names)}" for name, value in found.items())]
