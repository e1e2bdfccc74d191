"""Expressions as text: in the language of our equations, and in R."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from neuralpk.dynamics.expression import Expression

# how strongly an operation binds, from the weakest
_STRENGTH = {
    "or": 1, "and": 2, "not": 3, "<": 4, "<=": 4, ">": 4, ">=": 4, "==": 4, "!=": 4, "+": 5, "-": 5, "*": 6, "/": 6,
    "negative": 7, "pow": 8,
}  # fmt: skip
_ATOM = 9
_IN_R = {"and": "&&", "or": "||"}


def equation_text(expression: Expression, names: Mapping[str, str] | None = None) -> str:
    """An expression as our equations have it.

    Args:
        expression: operations are those of `neuralpk.dynamics.equation_text`, and ``expit``.
        names: what names are called; those left out stay.
    """

    def call(function: str, parts: tuple[Expression, ...], written: Callable[[Expression], str]) -> Expression | str:
        if function == "expit":
            return _written_out(parts)
        return f"{function}({', '.join(map(written, parts))})"

    return _text(expression, names or {}, {"not": "not "}, call)


def r_text(expression: Expression, names: Mapping[str, str] | None = None) -> str:
    """An expression as R has it.

    Args:
        expression: operations are those of `neuralpk.dynamics.equation_text`.
        names: what names are called; those left out stay.
    """

    def call(function: str, parts: tuple[Expression, ...], written: Callable[[Expression], str]) -> Expression | str:
        if function == "hill":
            x, half, power = parts
            top, bottom = (Expression("pow", (one, power), x.token) for one in (x, half))
            share = Expression("/", (top, Expression("+", (bottom, top), x.token)), x.token)
            return f"ifelse({written(x)} > 0, {written(share)}, 0)"
        return f"{'ifelse' if function == 'where' else function}({', '.join(map(written, parts))})"

    return _text(expression, names or {}, {"not": "!", **_IN_R}, call)


_Call = Callable[[str, tuple[Expression, ...], Callable[[Expression], str]], Expression | str]


def _text(expression: Expression, names: Mapping[str, str], signs: Mapping[str, str], call: _Call) -> str:
    def written(one: Expression, least: int = 0) -> str:
        operation = one.operation
        if operation == "number":
            return one.token.text
        if operation == "name":
            return names.get(one.token.text, one.token.text)
        if operation not in _STRENGTH:
            found = call(operation, one.arguments, written)
            return found if isinstance(found, str) else written(found, least)
        strength = _STRENGTH[operation]
        if operation == "negative":
            text = f"-{written(one.arguments[0], strength)}"
        elif operation == "not":
            # in C, into which rxode2 translates, the sign ! binds more strongly than a comparison
            text = f"{signs['not']}{written(one.arguments[0], _ATOM if signs['not'] == '!' else strength)}"
        elif operation == "pow":
            # its exponent may be a sign or a power, its base neither
            text = f"{written(one.arguments[0], _ATOM)}^{written(one.arguments[1], 7)}"
        else:
            sign = signs.get(operation, operation)
            apart = " " if strength < 6 else ""
            left, right = one.arguments
            # a comparison joins no other comparison
            text = written(left, strength + (strength == 4)) + f"{apart}{sign}{apart}" + written(right, strength + 1)
        return f"({text})" if strength < least else text

    return written(expression)


def _written_out(parts: tuple[Expression, ...]) -> Expression:
    """lo + (hi − lo)/(1 + exp(−x))"""
    x, low, high = parts
    at = x.token

    def of(operation: str, *arguments: Expression) -> Expression:
        return Expression(operation, arguments, at)

    one = Expression("number", (), at._replace(kind="number", text="1"))
    logistic = of("+", one, of("exp", of("negative", x)))
    if low.token.text == "0.0" and high.token.text == "1.0":
        return of("/", one, logistic)
    return of("+", low, of("/", of("-", high, low), logistic))
