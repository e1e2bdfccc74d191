"""Formulas as MathML, which browsers draw without a script."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from markupsafe import Markup, escape

from neuralpk.dynamics.expression import Expression

Symbols = Mapping[str, Markup]
"""How names are drawn that do not stand for themselves."""

_GREEK = {
    "alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "epsilon": "ε", "eta": "η", "theta": "θ", "kappa": "κ",
    "lambda": "λ", "mu": "μ", "sigma": "σ", "tau": "τ", "phi": "φ", "omega": "ω",
}  # fmt: skip
_SIGNS = {"*": "·", "-": "−", "<=": "≤", ">=": "≥", "==": "=", "!=": "≠"}
_OPERATORS = {
    "or": 0, "and": 1, "<": 2, "<=": 2, ">": 2, ">=": 2, "==": 2, "!=": 2, "+": 3, "-": 3, "negative": 4, "*": 4,
}  # fmt: skip
"""How strongly an operator binds that is drawn between its arguments; all else is drawn as one piece."""
_ATOM = 9


def element(name: str, *content: str, **attributes: str) -> Markup:
    """An element; content that is not markup is escaped."""
    own = Markup("").join(Markup(' {}="{}"').format(key, value) for key, value in attributes.items())
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(name), own, Markup("").join(escape(part) for part in content))


def row(*parts: str) -> Markup:
    """Several pieces as one."""
    return element("mrow", *parts)


def sign(text: str) -> Markup:
    """An operator."""
    return element("mo", text)


def words(text: str) -> Markup:
    """Plain words inside a formula."""
    return element("mtext", text)


def number(value: float | str) -> Markup:
    """A number with four digits, its power of ten as such; a text as it is written."""
    text = value if isinstance(value, str) else f"{value:.4g}"
    mantissa, exponential, power = text.lower().replace("-", "−").partition("e")
    if not exponential:
        return element("mn", mantissa)
    ten = element("msup", element("mn", "10"), element("mn", power.replace("+", "").replace("−0", "−").lstrip("0")))
    return ten if mantissa == "1" else row(element("mn", mantissa), sign("·"), ten)


def name(text: str) -> Markup:
    """A name: Greek letters by their names, digits at its end and what follows an underscore as an index."""
    found = re.fullmatch(r"([A-Za-z]+?)_?(\d+|(?<=_)\w+)", text)
    if found is None or not found[1]:
        return element("mi", _GREEK.get(text, text))
    return element("msub", element("mi", _GREEK.get(found[1], found[1])), element("mi", found[2]))


def sub(base: str, index: str) -> Markup:
    """A name with an index."""
    return element("msub", element("mi", base), element("mi", index))


def fraction(top: str, bottom: str) -> Markup:
    """A fraction."""
    return element("mfrac", top, bottom)


def ratio(top: str, bottom: str) -> Markup:
    """A fraction on one line, which brackets fit around."""
    return row(top, sign("/"), bottom)


def matrix(rows: Sequence[Sequence[str]]) -> Markup:
    """A matrix; the page draws its brackets, which need no font of their own."""
    lines = (element("mtr", *(element("mtd", cell) for cell in line)) for line in rows)
    return element("mtable", *lines, **{"class": "matrix"})


def power(base: str, exponent: str) -> Markup:
    """A power."""
    return element("msup", base, exponent)


def brackets(*inside: str) -> Markup:
    """Something in brackets."""
    return row(sign("("), *inside, sign(")"))


def applied(function: str, *arguments: str) -> Markup:
    """A function of arguments, by its name."""
    parts: list[str] = []
    for argument in arguments:
        parts += [sign(","), argument] if parts else [argument]
    return row(element("mi", function), sign("\u2061"), brackets(*parts))


def equation(left: str, right: str) -> Markup:
    """A displayed equation."""
    return element("math", row(left, sign("="), right), display="block")


def slope(state: str) -> Markup:
    """The derivative of a state in time."""
    return fraction(row(element("mi", "d"), state), row(element("mi", "d"), element("mi", "t")))


def draw(expression: Expression, symbols: Symbols) -> Markup:
    """An expression of a model's text."""
    return _drawn(expression, symbols)[0]


def _drawn(expression: Expression, symbols: Symbols) -> tuple[Markup, int]:
    """A piece and how strongly it binds."""
    operation = expression.operation
    if operation == "number":
        return number(expression.token.text), _ATOM
    if operation == "name":
        text = expression.token.text
        return symbols.get(text) or name(text), _ATOM
    arguments = [_drawn(argument, symbols) for argument in expression.arguments]
    pieces = [piece for piece, _ in arguments]
    if operation in _OPERATORS:
        own = _OPERATORS[operation]
        if operation == "negative":
            return row(sign("−"), _bound(*arguments[0], 4)), own
        left, right = _bound(*arguments[0], own), _bound(*arguments[1], own + (operation == "-"))
        # a sum that begins with a minus cannot follow an operator
        right = brackets(pieces[1]) if expression.arguments[1].operation == "negative" else right
        return row(left, sign(_SIGNS.get(operation, operation)), right), own
    if operation == "/":
        return fraction(*pieces), _ATOM
    if operation in ("pow", "^"):
        return power(_bound(*arguments[0], _ATOM), pieces[1]), _ATOM
    if operation == "exp":
        return power(element("mi", "e"), pieces[0]), _ATOM
    if operation == "sqrt":
        return element("msqrt", pieces[0]), _ATOM
    if operation == "abs":
        return row(sign("|"), pieces[0], sign("|")), _ATOM
    if operation == "hill":
        x, half, n = (_bound(*argument, _ATOM) for argument in arguments)
        return fraction(power(x, n), row(power(half, n), sign("+"), power(x, n))), _ATOM
    if operation == "where":
        cases = ((pieces[1], row(words("if "), pieces[0])), (pieces[2], words("otherwise")))
        table = element("mtable", *(element("mtr", *(element("mtd", cell) for cell in case)) for case in cases))
        return row(sign("{"), table), 0
    if expression.options is not None:
        return applied("N", *pieces), _ATOM
    return applied(operation, *pieces), _ATOM


def _bound(piece: Markup, strength: int, needed: int) -> Markup:
    return piece if strength >= needed else brackets(piece)
