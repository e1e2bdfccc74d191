"""Units in the text of a model: what they are, and whether the equations fit them.

A unit is a product of powers of its symbols, which are any words: mg and g are two of them, and nothing is converted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction
from typing import TYPE_CHECKING

from neuralpk.dynamics.expression import Expression, Token

if TYPE_CHECKING:
    from neuralpk.dynamics.model_text import ModelText

Unit = Mapping[str, Fraction]
"""Exponents by symbol; the symbol of a unit that is not known begins with ?."""
NONE: Unit = {}
_SYMBOL = re.compile(r"\s*(?:(?P<word>[^\W\d]\w*|%)|(?P<number>\d+(?:\.\d+)?)|(?P<sign>\*\*|[*/^()-])|(?P<other>\S))")
_SAME = ("+", "-", "min", "max", "<", "<=", ">", ">=", "==", "!=")
_OF_NUMBERS = ("exp", "log", "log10", "log1p", "expm1", "tanh", "sin", "cos")
_LARGEST_EXPONENT = 99


def times(a: Unit, b: Unit, power: Fraction | int = 1) -> Unit:
    """a·b^power."""
    found = dict(a)
    for symbol, exponent in b.items():
        found[symbol] = found.get(symbol, Fraction(0)) + power * exponent
    return {symbol: exponent for symbol, exponent in found.items() if exponent}


def read_unit(token: Token) -> Unit:
    """The unit in brackets: ``[mg/L]``, ``[L/h/kg]``, ``[1/(nM day)]``, ``[10^9/L]``, ``[1]`` for none.

    Symbols side by side are multiplied before a division.

    Raises:
        EquationError: what is no unit.
    """
    return _UnitReader(token).whole()


class _UnitReader:
    def __init__(self, token: Token) -> None:
        self.token, self.at = token, 0
        self.signs = [
            (str(match.lastgroup), match.group(str(match.lastgroup))) for match in _SYMBOL.finditer(token.text[1:-1])
        ]

    def whole(self) -> Unit:
        unit = self.product()
        if self.at < len(self.signs):
            raise self.wrong()
        return unit

    def wrong(self) -> Exception:
        return self.token.error(f"{self.token.text} is no unit; units are written as [mg/L], [1/h] or [L/h/kg^2]")

    def take(self, *texts: str) -> str | None:
        if self.at < len(self.signs) and self.signs[self.at] in [("sign", text) for text in texts]:
            self.at += 1
            return self.signs[self.at - 1][1]
        return None

    def product(self) -> Unit:
        unit = self.row()
        while sign := self.take("*", "/"):
            unit = times(unit, self.row(), 1 if sign == "*" else -1)
        return unit

    def row(self) -> Unit:
        """Symbols side by side."""
        unit = self.power()
        while self.at < len(self.signs) and (self.signs[self.at][0] != "sign" or self.signs[self.at][1] == "("):
            unit = times(unit, self.power())
        return unit

    def power(self) -> Unit:
        if self.take("("):
            base = self.product()
            if not self.take(")"):
                raise self.wrong()
            return times(NONE, base, self.exponent())
        kind, text = self.signs[self.at] if self.at < len(self.signs) else ("other", "")
        self.at += 1
        if kind == "word" or (kind == "number" and text != "1"):
            return times(NONE, {text: Fraction(1)}, self.exponent())
        if text == "1":
            return NONE
        raise self.wrong()

    def exponent(self) -> int:
        if not self.take("^", "**"):
            return 1
        sign = -1 if self.take("-") else 1
        kind, text = self.signs[self.at] if self.at < len(self.signs) else ("other", "")
        self.at += 1
        if kind != "number" or not text.isdigit() or int(text) > _LARGEST_EXPONENT:
            raise self.wrong()
        return sign * int(text)


def written(unit: Unit) -> str:
    """``mg/L``; of a name whose unit is not known its name in quotation marks."""

    def power(symbol: str, exponent: Fraction) -> str:
        name = f"'{symbol[1:]}'" if symbol.startswith("?") else symbol
        return name if exponent == 1 else f"{name}^{exponent}" if exponent.denominator == 1 else f"{name}^({exponent})"

    above = [power(symbol, exponent) for symbol, exponent in unit.items() if exponent > 0]
    below = [power(symbol, -exponent) for symbol, exponent in unit.items() if exponent < 0]
    divisor = below[0] if len(below) == 1 else f"({'*'.join(below)})"
    return ("*".join(above) or "1") + (f"/{divisor}" if below else "")


def check_units(model: ModelText, given: Mapping[str, Token], places: Mapping[str, Token], time: str) -> None:
    """Refuse equations that do not fit the units of their names.

    A name without a unit takes the one that its first equation asks for. A number without a unit has none, except 0,
    which fits all.

    Args:
        model: the equations.
        given: the units in brackets, by name.
        places: of the names on the left sides.
        time: the name of the time.

    Raises:
        EquationError: units that cannot match, with the place.
    """
    units = _Units({name: read_unit(token) for name, token in given.items()})
    clock = units.of_name(time)
    lines: list[tuple[str, Token, Expression, Unit]] = [
        *((name, places[name], one, units.of_name(name)) for name, one in model.variables.items()),
        *((f"{name}'", places[name], one, times(units.of_name(name), clock, -1)) for name, one in model.slopes.items()),
        *((f"{name}(0)", one.token, one, units.of_name(name)) for name, one in model.initial.items()),
        *((f"lag({name})", one.token, one, clock) for name, one in model.lags.items()),
        *((f"F({name})", one.token, one, NONE) for name, one in model.fractions.items()),
        *((f"duration({name})", one.token, one, clock) for name, one in model.durations.items()),
    ]
    lines += [
        (f"rate({name})", one.token, one, times(units.of_name(name), clock, -1)) for name, one in model.rates.items()
    ]
    for what, place, expression, unit in lines:
        found = units.unit(expression)
        if not units.equal(found, unit):
            raise place.error(
                f"{what} is in {units.text(unit)}, and its right side in {units.text(found)}; a number has a unit only "
                "where it is written, as in 70 [kg]"
            )


class _Units:
    """Units of names, and what has followed so far for those that are not known."""

    def __init__(self, given: Mapping[str, Unit]) -> None:
        self.given = given
        self.known: dict[str, Unit] = {}  # of what begins with ?, in terms of others

    def of_name(self, name: str) -> Unit:
        return self.given.get(name, {f"?{name}": Fraction(1)})

    def resolved(self, unit: Unit) -> Unit:
        """With all that is known put in its place."""
        while inside := [symbol for symbol in unit if symbol in self.known]:
            symbol = inside[0]
            exponent = unit[symbol]
            unit = times({one: power for one, power in unit.items() if one != symbol}, self.known[symbol], exponent)
        return unit

    def text(self, unit: Unit) -> str:
        return written(self.resolved(unit)) if self.resolved(unit) else "no unit"

    def equal(self, a: Unit, b: Unit) -> bool:
        """Whether two units can be the same; one that is not known is then known."""
        ratio = self.resolved(times(a, b, -1))
        unknown = next((symbol for symbol in ratio if symbol.startswith("?")), None)
        if unknown is None:
            return not ratio
        rest = {symbol: exponent for symbol, exponent in ratio.items() if symbol != unknown}
        self.known[unknown] = times(NONE, rest, -1 / ratio[unknown])
        return True

    def unit(self, expression: Expression) -> Unit:
        """The unit of an expression.

        Raises:
            EquationError: units inside that cannot match.
        """
        operation, token = expression.operation, expression.token
        if operation == "name":
            return self.of_name(token.text)
        if operation == "number":
            if expression.unit is not None:
                return read_unit(expression.unit)
            return self.any(token) if float(token.text) == 0.0 else NONE
        each = [self.unit(argument) for argument in expression.arguments]
        first, last = each[0], each[-1]
        if operation in ("negative", "abs"):
            return first
        if operation in ("*", "/"):
            return times(first, last, 1 if operation == "*" else -1)
        if operation in _SAME:
            self.need_equal(token, first, last)
            return first if operation in ("+", "-", "min", "max") else NONE
        if operation == "where":
            self.need_equal(token, each[1], each[2])
            return each[1]
        if operation in _OF_NUMBERS:
            self.need_none(token, first, "the argument")
            return NONE
        if operation == "sqrt":
            return times(NONE, first, Fraction(1, 2))
        if operation == "hill":
            self.need_equal(token, first, each[1])
            self.need_none(token, last, "the exponent")
            return NONE
        if operation == "pow":
            return self.power(expression, first, last)
        # and, or, not: of truths; a network may have any unit
        return self.any(token)

    def any(self, token: Token) -> Unit:
        """Whatever fits at this place."""
        return {f"?{token.text} of line {token.line}, column {token.column}": Fraction(1)}

    def power(self, expression: Expression, base: Unit, exponent: Unit) -> Unit:
        token, value = expression.token, _number(expression.arguments[1])
        if value is None:
            self.need_none(token, exponent, "the exponent")
        if not self.resolved(base):
            return NONE
        if value is None or not abs(value) <= _LARGEST_EXPONENT:
            return self.any(token)
        return times(NONE, base, Fraction(value).limit_denominator(1000))

    def need_equal(self, token: Token, a: Unit, b: Unit) -> None:
        if not self.equal(a, b):
            raise token.error(f"units that do not match: {self.text(a)} {token.text} {self.text(b)}")

    def need_none(self, token: Token, unit: Unit, what: str) -> None:
        if not self.equal(unit, NONE):
            raise token.error(f"{what} of {token.text} has no unit, and this one is in {self.text(unit)}")


def _number(expression: Expression) -> float | None:
    """The value of a number with a sign or without; None of all else."""
    if expression.operation == "negative":
        inside = _number(expression.arguments[0])
        return None if inside is None else -inside
    return float(expression.token.text) if expression.operation == "number" else None
