"""Lines VALUE ~ add(…) + prop(…): the residual errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from neuralpk.dynamics.expression import Expression, Token
from neuralpk.rxode2.initial_values import InitialValues, constant
from neuralpk.rxode2.model_block import Endpoint
from neuralpk.rxode2.r_syntax import arguments_of, refusal, terms_of

_ADDITIVE = ("add", "norm", "dnorm")
_LOG_NORMAL = ("lnorm", "logn", "dlnorm", "dlogn")
_STUDENT = ("t", "dt")
_NUMBERS = {**dict.fromkeys((*_ADDITIVE,), "a"), "prop": "b", "propT": "b", **dict.fromkeys(_LOG_NORMAL, "b")}
_REFUSED = {
    "pow": "an error that grows with a power of the prediction",
    "powT": "an error that grows with a power of the prediction",
    "powF": "an error that grows with a power of the prediction",
    "propF": "an error in proportion to another value",
    "combined1": "sd = a + b·f",
    "boxCox": "a Box-Cox transformation",
    "yeoJohnson": "a Yeo-Johnson transformation",
    "logitNorm": "a logit-normal error",
    "probitNorm": "a probit-normal error",
    "var": "variances instead of standard deviations",
    "ar": "autocorrelation",
    "ll": "a likelihood of one's own",
    "n2ll": "a likelihood of one's own",
}


@dataclass(frozen=True)
class ErrorLine:
    """The residual error of one endpoint.

    Args:
        endpoint: what is measured.
        error: short name of the error model.
        values: its numbers by name.
        fixed: names of those that are fixed.
        name: of the endpoint, where the line ends with | NAME.
        thetas: names in ini().

    Attributes:
        all_fixed: whether it has nothing to estimate.
    """

    endpoint: Endpoint
    error: str
    values: Mapping[str, float]
    fixed: frozenset[str]
    name: str
    thetas: frozenset[str]

    @property
    def all_fixed(self) -> bool:
        return self.fixed == {*self.values} - {"freedom"}


def read_error_line(endpoint: Endpoint, numbers: InitialValues) -> ErrorLine:
    """The residual error of an endpoint.

    Raises:
        EquationError: an error model that is not read, by its name.
    """
    tree, name = endpoint.error, ""
    if tree.operation in ("|", "||"):
        tree, level = tree.arguments
        if level.operation != "name":
            raise level.token.error("the name of an endpoint is expected after |")
        name = level.token.text
    values: dict[str, float] = {}
    fixed: set[str] = set()
    thetas: list[str] = []
    kinds: dict[str, Token] = {}
    for term in terms_of(tree):
        token, kind = term.token, term.token.text
        if term.operation != "call":
            raise token.error("an error such as add(add.sd) is expected here; an assignment is written with <-")
        if kind in _REFUSED:
            raise refusal(token, f"{kind}(): {_REFUSED[kind]}", "is not supported")
        if kind in kinds:
            raise token.error(f"{kind}() stands twice")
        kinds[kind] = token
        if kind == "combined2":
            arguments_of(term, 0)
            continue
        if kind not in _NUMBERS and kind not in _STUDENT:
            raise refusal(token, f"the error {kind}()", "is not read; there are add, prop, lnorm and t")
        letter = _NUMBERS.get(kind, "freedom")
        if letter in values:
            raise token.error(f"{kind}() and another part of this line say the same")
        (argument,) = arguments_of(term, 1)
        values[letter], is_fixed, theta = _value(argument, numbers)
        if is_fixed:
            fixed.add(letter)
        if theta:
            thetas.append(theta)
    error = _model(kinds, values, tree.token)
    if "freedom" in values and "freedom" not in fixed:
        numbers.notes.append(f"the degrees of freedom of {endpoint.token.text} stay at {values['freedom']:g} in a fit")
    values = dict(sorted(values.items()))
    return ErrorLine(endpoint, error, values, frozenset(fixed - {"freedom"}), name, frozenset(thetas))


def _model(kinds: Mapping[str, Token], values: Mapping[str, float], place: Token) -> str:
    """The short name of the error model."""
    log = next((token for kind, token in kinds.items() if kind in _LOG_NORMAL), None)
    student = next((token for kind, token in kinds.items() if kind in _STUDENT), None)
    others = [kind for kind in kinds if kind not in (*_LOG_NORMAL, "combined2")]
    if log is not None:
        if others:
            raise refusal(log, f"{log.text}() together with {others[0]}()", "is not supported")
        return "log_normal"
    if student is not None:
        if not {"a", "b"} <= set(values):
            raise refusal(student, "t() without both add() and prop()", "is not supported")
        return "student"
    if {"a", "b"} <= set(values):
        return "combined"
    if "a" in values:
        return "additive"
    if "b" in values:
        return "proportional"
    raise place.error("an error such as add(add.sd) or prop(prop.sd) is expected here")


def _value(argument: Expression, numbers: InitialValues) -> tuple[float, bool, str]:
    """A standard deviation, whether it is fixed, and its name in ini()."""
    token = argument.token
    if argument.operation == "name" and token.text in numbers.thetas:
        theta = numbers.thetas[token.text]
        if not theta.value > 0:
            raise theta.token.error(f"{token.text} = {theta.value:g} must be above 0, as a standard deviation")
        return theta.value, theta.fixed, token.text
    if argument.operation == "name":
        what = f"{token.text}: a number of the error that is not in ini()"
        raise refusal(token, what, "is not supported")
    value = constant(argument)
    if not value > 0:
        raise token.error("a standard deviation must be above 0")
    return value, True, ""
