"""Forms of expressions of thetas, etas and covariates alone: sums, products of a theta with an exponential, logits."""

from __future__ import annotations

import math
from collections.abc import Container
from dataclasses import dataclass, replace
from typing import Literal, TypeGuard

from neuralpk.dynamics.expression import Expression
from neuralpk.rxode2.initial_values import exponential
from neuralpk.rxode2.model_block import EXPIT


@dataclass(frozen=True)
class Number:
    value: float


@dataclass(frozen=True)
class Covariate:
    """(covariate − reference)/divisor"""

    covariate: str
    reference: float
    divisor: float


@dataclass(frozen=True)
class Effect:
    """coefficient·log(c/reference), or coefficient·(c − reference)/divisor. The coefficient is factor·theta, or
    factor·log(theta); without a theta the factor alone."""

    kind: Literal["power", "linear"]
    covariate: str
    reference: float
    divisor: float
    theta: str
    factor: float
    of_logarithm: bool = False


@dataclass(frozen=True)
class Sum:
    """constant + theta + eta + effects"""

    constant: float = 0.0
    thetas: tuple[str, ...] = ()
    etas: tuple[str, ...] = ()
    effects: tuple[Effect, ...] = ()

    def plus(self, other: Sum) -> Sum:
        return Sum(
            self.constant + other.constant,
            self.thetas + other.thetas,
            self.etas + other.etas,
            self.effects + other.effects,
        )


@dataclass(frozen=True)
class Product:
    """factor·theta·exp(sum)"""

    factor: float
    thetas: tuple[str, ...]
    exponent: Sum

    def times(self, other: Product) -> Product:
        return Product(self.factor * other.factor, self.thetas + other.thetas, self.exponent.plus(other.exponent))


@dataclass(frozen=True)
class Logit:
    """low + (high − low)/(1 + exp(−sum))"""

    low: float
    high: float
    exponent: Sum


Form = Number | Covariate | Sum | Product | Logit | None


_MOST = 30  # thetas, etas and effects in one form


def _is_theta(form: Form) -> TypeGuard[Sum]:
    """Whether a form is one theta alone."""
    return isinstance(form, Sum) and form == Sum(thetas=form.thetas) and len(form.thetas) == 1


def _as_sum(form: Form) -> Sum | None:
    if isinstance(form, Number):
        return Sum(form.value)
    if isinstance(form, Covariate):
        return Sum(effects=(Effect("linear", form.covariate, form.reference, form.divisor, "", 1.0),))
    return form if isinstance(form, Sum) else None


def as_product(form: Form) -> Product | None:
    if isinstance(form, Number):
        return Product(form.value, (), Sum())
    if _is_theta(form):
        return Product(1.0, form.thetas, Sum())
    if isinstance(form, Sum) and form == Sum(effects=form.effects) and len(form.effects) == 1:
        (one,) = form.effects
        if one.theta and replace(one, factor=1.0) == Effect("linear", one.covariate, 0.0, one.divisor, one.theta, 1.0):
            power = Effect("power", one.covariate, one.divisor, 1.0, "", 1.0)
            return Product(one.factor, (one.theta,), Sum(effects=(power,)))  # factor·theta·c/divisor
    if isinstance(form, Covariate) and form.reference == 0:
        return Product(1.0, (), Sum(effects=(Effect("power", form.covariate, form.divisor, 1.0, "", 1.0),)))
    return form if isinstance(form, Product) else None


def _negative(form: Sum) -> Sum | None:
    if form.thetas or form.etas:
        return None
    return Sum(-form.constant, effects=tuple(replace(one, factor=-one.factor) for one in form.effects))


def _inverse(form: Form) -> Product | None:
    product = as_product(form)
    exponent = None if product is None or product.thetas or product.factor == 0 else _negative(product.exponent)
    return None if exponent is None or product is None else Product(1 / product.factor, (), exponent)


def _times(a: Form, b: Form) -> Form:
    """The product of two forms."""
    if isinstance(a, Number) and isinstance(b, Number):
        return Number(a.value * b.value)
    for one, other in ((a, b), (b, a)):
        if isinstance(one, Number) and isinstance(other, Covariate) and one.value != 0:
            return replace(other, divisor=other.divisor / one.value)
        effects = _as_sum(other) if isinstance(other, Covariate | Sum) else None
        if effects is None or effects.thetas or effects.etas:
            continue
        if isinstance(one, Number):
            scaled = tuple(replace(effect, factor=effect.factor * one.value) for effect in effects.effects)
            return Sum(effects.constant * one.value, effects=scaled)
        if _is_theta(one) and len(effects.effects) == 1 and not effects.effects[0].theta:
            effect = _without_constant(effects)
            if effect is not None:
                return Sum(effects=(replace(effect, theta=one.thetas[0]),))
    first, second = as_product(a), as_product(b)
    return None if first is None or second is None else first.times(second)


def _without_constant(form: Sum) -> Effect | None:
    """One effect with its constant in the reference: log(c) − log(70) is log(c/70)."""
    (effect,) = form.effects
    if form.constant == 0:
        return effect
    if effect.kind != "power" or effect.factor == 0:
        return None
    reference = effect.reference * math.exp(-form.constant / effect.factor)
    return replace(effect, reference=float(f"{reference:.12g}"))  # exp(log(70)) is 70


def _over(product: Product, value: float) -> Product:
    """The product over a number, which is the reference of a covariate that has none: exp(tv)*WT/70."""
    effects = list(product.exponent.effects)
    for k, effect in enumerate(effects):
        if effect == Effect("power", effect.covariate, 1.0, 1.0, "", 1.0) and value > 0:
            effects[k] = replace(effect, reference=value)
            return replace(product, exponent=replace(product.exponent, effects=(*effects,)))
    return replace(product, factor=product.factor / value)


def _divided(a: Form, b: Form) -> Form:
    if isinstance(b, Number) and b.value != 0:
        if isinstance(a, Number):
            return Number(a.value / b.value)
        if isinstance(a, Covariate):
            return replace(a, divisor=a.divisor * b.value)
        if isinstance(a, Sum) and a.effects and not (a.thetas or a.etas):
            parts = (
                replace(one, divisor=one.divisor * b.value)
                if one.kind == "linear"
                else replace(one, factor=one.factor / b.value)
                for one in a.effects
            )
            return Sum(a.constant / b.value, effects=(*parts,))
    first, second = as_product(a), _inverse(b)
    if isinstance(b, Number) and b.value != 0 and first is not None:
        return _over(first, b.value)
    return None if first is None or second is None else first.times(second)


def _added(a: Form, b: Form, sign: float) -> Form:
    if isinstance(a, Number) and isinstance(b, Number):
        return Number(a.value + sign * b.value)
    if isinstance(a, Covariate) and isinstance(b, Number):
        return replace(a, reference=a.reference - sign * b.value * a.divisor)
    first, second = _as_sum(a), _as_sum(b)
    if second is not None and sign < 0:
        second = _negative(second)
    return None if first is None or second is None else first.plus(second)


def _power(base: Form, exponent: Form) -> Form:
    """A covariate to a number or a theta, or a theta to a covariate, which is exp(log(theta)·c)."""
    if _is_theta(base) and isinstance(exponent, Covariate):
        linear = Effect("linear", exponent.covariate, exponent.reference, exponent.divisor, base.thetas[0], 1.0, True)
        return Product(1.0, (), Sum(effects=(linear,)))
    if isinstance(base, Number) and isinstance(exponent, Number):
        try:
            return Number(math.pow(base.value, exponent.value))
        except (ArithmeticError, ValueError):
            return None
    product = as_product(base)
    if product is None or product.thetas or product.factor != 1 or product.exponent.constant:
        return None
    found = _times(exponent, Sum(effects=product.exponent.effects))
    if product.exponent.thetas or product.exponent.etas or not isinstance(found, Sum):
        return None
    return Product(1.0, (), found)


def _logarithm(form: Form) -> Form:
    if isinstance(form, Number):
        return Number(math.log(form.value)) if form.value > 0 else None
    if isinstance(form, Covariate) and form.reference == 0 and form.divisor > 0:
        return Sum(effects=(Effect("power", form.covariate, form.divisor, 1.0, "", 1.0),))
    return None


def _exponential(form: Form) -> Form:
    if isinstance(form, Number):
        value = exponential(form.value)
        return Number(value) if math.isfinite(value) else None
    total = _as_sum(form)
    return None if total is None else Product(1.0, (), total)


def has_numbers(form: Form) -> bool:
    """Whether a form holds a theta or an eta."""
    total = form.exponent if isinstance(form, Product | Logit) else form
    if not isinstance(total, Sum):
        return False
    natural = form.thetas if isinstance(form, Product) else ()
    return bool(natural or total.thetas or total.etas or any(one.theta for one in total.effects))


class Forms:
    """The forms of the expressions of one model.

    Args:
        thetas: names of population parameters.
        etas: names of random effects.
        covariates: names of covariates.

    Attributes:
        variables: forms of the variables that can occur in an expression, by their keys.
    """

    def __init__(self, thetas: Container[str], etas: Container[str], covariates: Container[str]) -> None:
        self.thetas, self.etas, self.covariates = thetas, etas, covariates
        self.variables: dict[str, Form] = {}

    def of(self, expression: Expression) -> Form:
        """The form of an expression; None for what has none."""
        try:
            form = self._computed(expression)
        except ArithmeticError:
            return None
        total = form.exponent if isinstance(form, Product | Logit) else form
        if isinstance(total, Sum) and len(total.thetas) + len(total.etas) + len(total.effects) > _MOST:
            return None
        return form

    def _computed(self, expression: Expression) -> Form:
        operation, text = expression.operation, expression.token.text
        if operation == "number":
            return Number(float(text))
        if operation == "name":
            if text in self.thetas:
                return Sum(thetas=(text,))
            if text in self.etas:
                return Sum(etas=(text,))
            if text in self.covariates:
                return Covariate(text, 0.0, 1.0)
            return self.variables.get(text)
        parts = [self.of(one) for one in expression.arguments]
        if any(part is None for part in parts):
            return None
        if operation in ("+", "-"):
            return _added(parts[0], parts[1], 1.0 if operation == "+" else -1.0)
        if operation == "negative":
            return _times(Number(-1.0), parts[0])
        if operation == EXPIT:
            total, (low, high) = _as_sum(parts[0]), (one.value for one in parts[1:] if isinstance(one, Number))
            return None if total is None else Logit(low, high, total)
        of_two = {"*": _times, "/": _divided, "pow": _power}
        if operation in of_two:
            return of_two[operation](parts[0], parts[1])
        of_one = {"exp": _exponential, "log": _logarithm}
        return of_one[operation](parts[0]) if operation in of_one else None
