"""The block ``ini({…})``: starting values, bounds, fixed numbers and the covariance of the random effects."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from neuralpk.dynamics.expression import Expression, Token
from neuralpk.rxode2.r_syntax import arguments_of, number_text, refusal, string_of, terms_of

_LARGEST = 700.0  # exp of it is a number
_FIX = ("fix", "fixed", "FIX", "FIXED")


def exponential(x: float) -> float:
    """exp(x), infinite where it is too large for a number."""
    return math.exp(x) if x < _LARGEST else math.inf


def expit(x: float, low: float = 0.0, high: float = 1.0) -> float:
    """low + (high − low)/(1 + exp(−x))"""
    return low + (high - low) / (1.0 + exponential(-x))


def _logit(x: float, low: float = 0.0, high: float = 1.0) -> float:
    return math.log((x - low) / (high - x))


@dataclass
class Theta:
    """A population parameter: its value as written, and the interval in which it lies.

    Args:
        token: its name.
        value: on the scale on which it is written.
        low: lower bound.
        high: upper bound.
        fixed: whether it keeps its value.
        inverse_of: the number x where the value is written log(x) or logit(x, …), so that it is not rounded; with the
            function and its further arguments.
        label: text of ``label("…")``.
    """

    token: Token
    value: float
    low: float = -math.inf
    high: float = math.inf
    fixed: bool = False
    inverse_of: tuple[str, tuple[float, ...]] | None = None
    label: str = ""

    @property
    def bounded(self) -> bool:
        """Whether it has a finite bound."""
        return math.isfinite(self.low) or math.isfinite(self.high)

    def exp(self) -> float:
        """exp of the value."""
        if self.inverse_of is not None and self.inverse_of[0] == "log":
            return self.inverse_of[1][0]
        return exponential(self.value)

    def expit(self, low: float, high: float) -> float:
        """expit of the value, between two bounds."""
        if self.inverse_of is not None and self.inverse_of[0] == "logit":
            x, *bounds = self.inverse_of[1]
            if (*bounds, *(0.0, 1.0)[len(bounds) :]) == (low, high):
                return x
        return expit(self.value, low, high)


@dataclass
class Eta:
    """A random effect: its standard deviation, and whether that is fixed."""

    token: Token
    sd: float
    fixed: bool


@dataclass
class InitialValues:
    """All numbers of the block, by name.

    Args:
        thetas: population parameters.
        etas: random effects.
        correlations: of pairs of random effects, those that are not 0.
        blocks: the names of the random effects whose covariances are given together.
        notes: what was not used.
    """

    thetas: dict[str, Theta] = field(default_factory=dict)
    etas: dict[str, Eta] = field(default_factory=dict)
    correlations: dict[tuple[str, str], float] = field(default_factory=dict)
    blocks: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


_FUNCTIONS: dict[str, Callable[..., float]] = {
    "log": math.log,
    "ln": math.log,
    "log10": math.log10,
    "log1p": math.log1p,
    "exp": math.exp,
    "sqrt": math.sqrt,
    "abs": abs,
    "logit": _logit,
    "expit": expit,
}
_OPERATORS: dict[str, Callable[[float, float], float]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
    "pow": math.pow,
}
CONSTANTS = {"Inf": math.inf, "pi": math.pi}


def constant(expression: Expression) -> float:
    """The value of an expression of numbers.

    Raises:
        EquationError: a name or a function that is not known, or no number.
    """
    operation, token = expression.operation, expression.token
    if operation == "number":
        return float(number_text(token))
    if operation == "name" and token.text in CONSTANTS:
        return CONSTANTS[token.text]
    known: Callable[..., float] | None = None
    if operation == "negative":
        return -constant(expression.arguments[0])
    if operation in _OPERATORS:
        known = _OPERATORS[operation]
    elif operation == "call":
        known = _FUNCTIONS.get(token.text)
        what = f"the function {token.text}() in a number"
        if known is None:
            raise refusal(token, what, f"is not read; there are {', '.join(_FUNCTIONS)}")
    if known is None:
        raise token.error(f"a number is expected here, not {token.text!r}")
    try:
        found = known(*(constant(one) for one in expression.arguments))
        if not math.isnan(found) and not isinstance(found, complex):
            return float(found)
    except (ArithmeticError, ValueError, TypeError):
        pass
    raise token.error(f"{token.text} of these numbers is no number")


def read_initial_values(block: Expression) -> InitialValues:
    """The numbers of the block.

    Args:
        block: the argument of ``ini()``.

    Raises:
        EquationError: what is not read, by its name.
    """
    reader = _InitialBlock()
    for statement in block.arguments:
        reader.read(statement)
    return reader.found


class _InitialBlock:
    def __init__(self) -> None:
        self.found = InitialValues()
        self.lines: dict[str, int] = {}
        self.last: Theta | Eta | None = None
        self.block: list[str] = []  # names of the rows of the covariance matrix that is being read

    def read(self, statement: Expression) -> None:
        operation, token = statement.operation, statement.token
        if operation == "<-":
            self._theta(*statement.arguments)
        elif operation == "~":
            self._random_effects(*statement.arguments)
        elif operation == "call" and token.text == "label":
            if self.last is None:
                raise token.error("label() follows the parameter that it describes")
            (text,) = arguments_of(statement, 1)
            if isinstance(self.last, Theta):
                self.last.label = string_of(text)
        elif operation == "call" and token.text == "backTransform":
            pass  # how a report shows the number
        else:
            raise refusal(
                token, f"{token.text!r} in ini()", "is not read: it has lines NAME <- value and NAME ~ variance"
            )

    def _define(self, name: Expression) -> Token:
        if name.operation != "name":
            raise name.token.error("the name of a parameter is expected here")
        if name.token.text in self.lines:
            raise name.token.error(f"{name.token.text} is defined already, in line {self.lines[name.token.text]}")
        self.lines[name.token.text] = name.token.line
        return name.token

    def _theta(self, left: Expression, right: Expression) -> None:
        token = self._define(left)
        right, fixed = _unfixed(right)
        parts, listed = _listed(right)
        if not 1 <= len(parts) <= 3:
            raise right.token.error("a starting value is a number, c(low, value) or c(low, value, high)")
        at = 0 if len(parts) == 1 else 1
        written, inner = _unfixed(parts[at])
        fixed = fixed or listed or inner
        value = constant(written)
        low = constant(parts[0]) if len(parts) > 1 else -math.inf
        high = constant(parts[2]) if len(parts) > 2 else math.inf
        if not math.isfinite(value):
            raise written.token.error(f"{token.text} must be a finite number")
        if not low <= value <= high:
            raise written.token.error(f"{token.text} = {value:g} is not between its bounds {low:g} and {high:g}")
        inverse = None
        if written.operation == "call" and written.token.text in ("log", "ln", "logit"):
            numbers = tuple(constant(one) for one in written.arguments)
            inverse = ("logit" if written.token.text == "logit" else "log", numbers)
        self.last = self.found.thetas[token.text] = Theta(token, value, low, high, fixed, inverse)

    def _random_effects(self, left: Expression, right: Expression) -> None:
        if right.operation in ("|", "||"):
            right, level = right.arguments[0], right.arguments[1].token
            if level.text not in ("id", "ID"):
                what = f"variability between the levels of {level.text!r}"
                raise refusal(level, what, "is not read: random effects differ between subjects (id) only")
        names = [self._define(name) for name in terms_of(left)]
        right, fixed = _unfixed(right)
        scales = []
        while right.operation == "call" and right.token.text in ("sd", "var", "cor", "cov"):
            scales.append(right.token.text)
            (right,) = arguments_of(right, 1)
        right, inner = _unfixed(right)
        parts, listed = _listed(right)
        fixed = fixed or inner or listed
        numbers = []
        for part in parts:
            part, inner = _unfixed(part)
            fixed = fixed or inner
            numbers.append(constant(part))
        rows, triangle = self._triangle([name.text for name in names], len(numbers), right.token)
        self.block = rows
        for name in names:
            variance = numbers[triangle[name.text, name.text]]
            if not 0 <= variance < math.inf:
                raise right.token.error(f"the variance of {name.text} must be 0 or above, not {variance:g}")
            sd = variance if "sd" in scales else math.sqrt(variance)
            self.last = self.found.etas[name.text] = Eta(name, sd, fixed)
        for (a, b), k in triangle.items():
            if a != b and numbers[k] != 0:
                product = self.found.etas[a].sd * self.found.etas[b].sd
                correlation = numbers[k] if "cor" in scales else numbers[k] / product if product else math.inf
                if not -1 < correlation < 1:
                    raise right.token.error(f"no random effects have this covariance of {a} and {b}: {numbers[k]:g}")
                self.found.correlations[b, a] = correlation
        self.found.blocks = [one for one in self.found.blocks if not set(one) <= set(rows)]
        if len(rows) > 1:
            self.found.blocks.append(rows)
            if fixed:
                self.found.notes.append(
                    f"the covariances of {', '.join(rows)} are fixed (line {right.token.line}); their variances stay "
                    "fixed in a fit, the correlations are estimated"
                )

    def _triangle(self, names: list[str], count: int, place: Token) -> tuple[list[str], dict[tuple[str, str], int]]:
        """The rows of the covariance matrix with those of some names, and which number is which of their entries.

        Args:
            names: of the random effects of a line.
            count: how many numbers it has.
            place: of a mistake.

        Raises:
            EquationError: another count than that of the entries.
        """
        if len(names) == 1 and count > 1:  # a row of the matrix, under the rows before it
            rows = [*self.block, *names]
            if count != len(rows):
                above = len(rows) - 1
                raise place.error(f"a row of {count} numbers follows {count - 1} rows; here {above} stand above")
            return rows, {(names[0], other): k for k, other in enumerate(rows)}
        size = len(names) * (len(names) + 1) // 2
        if count != size:
            raise place.error(f"{len(names)} random effects have {size} variances and covariances, not {count}")
        pairs = ((a, b) for k, a in enumerate(names) for b in names[: k + 1])
        return names, {pair: k for k, pair in enumerate(pairs)}


def _unfixed(expression: Expression) -> tuple[Expression, bool]:
    """What stands in fix(…), and whether it does."""
    if expression.operation == "call" and expression.token.text in _FIX:
        if len(expression.arguments) > 1:  # fix(low, value, high)
            inside = Expression("call", expression.arguments, expression.token._replace(text="c"))
            return inside, True
        (inside,) = arguments_of(expression, 1)
        return inside, True
    return expression, False


def _listed(expression: Expression) -> tuple[list[Expression], bool]:
    """The numbers in c(…), or the one number, and whether the word fix follows them."""
    if expression.operation != "call" or expression.token.text != "c":
        return [expression], False
    parts = list(expression.arguments)
    if parts and parts[-1].operation == "name" and parts[-1].token.text in _FIX:
        return parts[:-1], True
    return parts, False
