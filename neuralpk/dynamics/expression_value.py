"""The value of an expression: its operations on tensors and on plain numbers."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from neuralpk.dynamics.expression import Expression, Token
from neuralpk.dynamics.linear_form import Number
from neuralpk.dynamics.network_terms import NetworkTerm


def _of_two(
    function: Callable[[Tensor, Tensor], Tensor], of_numbers: Callable[[float, float], float]
) -> Callable[[Number, Number], Number]:
    def call(a: Number, b: Number) -> Number:
        if isinstance(a, Tensor):
            return function(a, as_tensor(b, a))
        return function(as_tensor(a, b), b) if isinstance(b, Tensor) else of_numbers(a, b)

    return call


def as_tensor(value: Number, like: Tensor) -> Tensor:
    """A number as a tensor of the shape of another; a tensor as it is."""
    return value if isinstance(value, Tensor) else torch.full_like(like, value)


def _of_one(function: Callable[[Tensor], Tensor], of_number: Callable[[float], float]) -> Callable[[Number], Number]:
    return lambda x: function(x) if isinstance(x, Tensor) else of_number(x)


def _power(x: Number, n: Number) -> Number:
    if isinstance(x, Tensor) or isinstance(n, Tensor):
        return torch.pow(x, n)  # type: ignore[arg-type]
    if x < 0 and n != int(n):
        raise ValueError("a negative number to a power that is not whole")
    return math.pow(x, n)


_LARGEST_POWER = 80.0  # its exponential is a number in single precision too, as are all derivatives below


def _hill(x: Number, half: Number, n: Number) -> Number:
    """x^n/(half^n + x^n), 0 for x ≤ 0: a small negative x is an error of the solver."""
    like = next((value for value in (x, half, n) if isinstance(value, Tensor)), None)
    if like is None:
        return _power(x, n) / (_power(half, n) + _power(x, n)) if x > 0 else 0.0
    amount, middle = as_tensor(x, like), as_tensor(half, like)
    positive = amount > torch.finfo(amount.dtype).tiny  # below, the derivative of the logarithm is infinite
    power = n * (torch.log(middle) - torch.log(torch.where(positive, amount, 1.0)))
    return torch.where(positive, 1.0 / (1.0 + torch.exp(torch.clamp(power, max=_LARGEST_POWER))), 0.0)


def _where(condition: Number, yes: Number, no: Number) -> Number:
    if not isinstance(condition, Tensor):
        return yes if condition else no
    return torch.where(condition.bool(), as_tensor(yes, condition), as_tensor(no, condition))


def _compared(compare: Callable[[Number, Number], Tensor | bool]) -> Callable[[Number, Number], Number]:
    """A comparison: 1 where it holds and 0 elsewhere, so that its result is a number like all others."""

    def call(a: Number, b: Number) -> Number:
        holds = compare(a, b)
        if not isinstance(holds, Tensor):
            return float(holds)
        return holds.to(next(value.dtype for value in (a, b) if isinstance(value, Tensor)))

    return call


_OPERATIONS: dict[str, Callable[..., Number]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
    "negative": lambda a: -a,
    "pow": _power,
    "exp": _of_one(torch.exp, math.exp),
    "log": _of_one(torch.log, math.log),
    "log10": _of_one(torch.log10, math.log10),
    "log1p": _of_one(torch.log1p, math.log1p),
    "expm1": _of_one(torch.expm1, math.expm1),
    "sqrt": _of_one(torch.sqrt, math.sqrt),
    "abs": _of_one(torch.abs, abs),
    "tanh": _of_one(torch.tanh, math.tanh),
    "sin": _of_one(torch.sin, math.sin),
    "cos": _of_one(torch.cos, math.cos),
    "min": _of_two(torch.minimum, min),
    "max": _of_two(torch.maximum, max),
    "hill": _hill,
    "where": _where,
    "<": _compared(operator.lt),
    "<=": _compared(operator.le),
    ">": _compared(operator.gt),
    ">=": _compared(operator.ge),
    "==": _compared(operator.eq),
    "!=": _compared(operator.ne),
    "and": _compared(lambda a, b: (a != 0) & (b != 0)),
    "or": _compared(lambda a, b: (a != 0) | (b != 0)),
    "not": lambda a: _compared(operator.eq)(a, 0.0),
}


def value_of(expression: Expression, known: Mapping[str, Number], networks: Mapping[Token, NetworkTerm]) -> Number:
    """The value of an expression for the values of its names, with the networks by the place where each stands."""
    if expression.operation == "number":
        return float(expression.token.text)
    if expression.operation == "name":
        return known[expression.token.text]
    arguments = [value_of(argument, known, networks) for argument in expression.arguments]
    if expression.options is not None:
        like = next(argument for argument in arguments if isinstance(argument, Tensor))
        output: Tensor = networks[expression.token](*(as_tensor(argument, like) for argument in arguments))
        return output
    try:
        return _OPERATIONS[expression.operation](*arguments)
    except (ArithmeticError, TypeError, ValueError) as error:
        raise expression.token.error(str(error)) from None
