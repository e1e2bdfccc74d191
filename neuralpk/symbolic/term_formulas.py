"""Formulas for a network inside a model's text: curves of pharmacology that do what it has learned."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain, count, product

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from neuralpk.dynamics import Equations
from neuralpk.dynamics.function_text import Start

Array = NDArray[np.float64]

_FEWEST = 10  # places
_NO_BAND = 0.05  # of the range of the curve: half of the band where there is none
_NARROWEST = 0.1  # of the widest place of the band: the least width that counts, as a fixed zero has none
_INSIDE = 0.95  # share of the places at which a formula that fits lies inside the band
_ROUNDING = 1e-6
_STARTS = (0.05, 0.2, 1.0, 5.0)  # of a number on the scale of the input, as shares of its reach
_SHORTEST, _LONGEST = 1e-3, 1e2  # the ends of such a number
_FLATTEST, _STEEPEST = 0.3, 12.0  # the ends of an exponent


@dataclass(frozen=True)
class _Shape:
    """A curve amplitude·g(u; numbers).

    Args:
        name: of the curve.
        text: in {x}, the input, and the names in braces.
        value: g of u and the numbers.
        names: of the amplitude and the numbers; the first number is on the scale of the input, others are exponents.
        bounded: whether the amplitude is the end of the curve.
        signs: whether it is for inputs with both signs; None for all inputs.
    """

    name: str
    text: str
    value: Callable[..., Array]
    names: tuple[str, ...]
    bounded: bool = False
    signs: bool | None = False


def _hill(u: Array, half: float, gamma: float) -> Array:
    power = np.maximum(u, 0.0) ** gamma
    value: Array = power / (half**gamma + power)
    return value


_SHAPES = (
    _Shape("linear", "{SLOPE}*{x}", lambda u: u, ("SLOPE",), signs=None),
    _Shape("Emax", "{EMAX}*{x}/({EC50} + {x})", lambda u, half: u / (half + u), ("EMAX", "EC50"), True),
    _Shape("exponential", "{EMAX}*(1 - exp(-{x}/{SCALE}))", lambda u, s: -np.expm1(-u / s), ("EMAX", "SCALE"), True),
    _Shape("logarithm", "{SLOPE}*log1p({x}/{SCALE})", lambda u, s: np.log1p(u / s), ("SLOPE", "SCALE")),
    _Shape("sigmoid Emax", "{EMAX}*hill({x}, {EC50}, {GAMMA})", _hill, ("EMAX", "EC50", "GAMMA"), True),
    _Shape("tanh", "{EMAX}*tanh({x}/{SCALE})", lambda u, s: np.tanh(u / s), ("EMAX", "SCALE"), True, signs=True),
)


@dataclass(frozen=True)
class TermFormula:
    """A formula in the place of a network.

    Attributes:
        shape: linear, Emax, sigmoid Emax, exponential, logarithm or tanh.
        line: of the model's text, with the formula.
        parameters: its numbers by name, new parameters of the model.
        deviation: root mean square difference from the network over the places, as a share of the range of its output.
        inside: share of the places at which the formula is inside the band.
        equations: the model with the formula in place of the network; its starting values are `parameters`.
    """

    shape: str
    line: str
    parameters: dict[str, float]
    deviation: float
    inside: float
    equations: Equations

    def __str__(self) -> str:
        values = ", ".join(f"{name} = {value:.3g}" for name, value in self.parameters.items())
        return (
            f"{self.shape}: {self.line.strip()} with {values}; {100 * self.deviation:.1f} % from the network, "
            f"{100 * self.inside:.0f} % inside its band"
        )


def find_formulas(
    model: Equations, name: str, x: Array, output: Array, low: Array | None = None, high: Array | None = None
) -> list[TermFormula]:
    """Formulas that follow the output of a network of one input, the best first.

    Linear, Emax, sigmoid Emax, exponential and logarithm (linear and tanh for an input with both signs) are fitted to
    the output by least squares, weighted by the width of the band. With ``zero_at`` the formula is 0 there too,
    otherwise it has a baseline. First come the formulas that lie inside the band at 95 % of the places, those with the
    fewest numbers before others; the rest follows by its deviation.

    Args:
        model: the equations with the network.
        name: of the network (`neuralpk.dynamics.Equations.networks`).
        x: inputs that the data have reached, ``[place]``, as of `neuralpk.cohort_figures.learned_term`.
        output: of the network there, ``[place]``.
        low: lower end of its 90 % band, ``[place]``; None or NaN for a band of 5 % of the range on each side.
        high: upper end.

    Raises:
        ValueError: no network of this name, or one of several inputs; fewer than ten places; an output that is constant
            or no number.
    """
    terms = {term.name: term for term in model.terms() if len(term.size) == 1}
    if name not in terms:
        raise ValueError(f"there is no network {name!r} of one input; there are {', '.join(terms) or 'none'}")
    x, output = np.asarray(x, float), np.asarray(output, float)
    if len(x) < _FEWEST or x.shape != output.shape or not np.isfinite([x, output]).all():
        raise ValueError(f"a formula needs the output at {_FEWEST} places or more, all of them numbers")
    span = float(np.ptp(output))
    if span == 0.0:
        raise ValueError(f"the network {name!r} is constant over these inputs: a number can stand in its place")
    ends = [np.asarray(end, float) for end in (low, high) if end is not None]
    if len(ends) != 2 or not np.isfinite(ends).all():
        ends = [output - _NO_BAND * span, output + _NO_BAND * span]
    zero, high_end = terms[name].zero_at, terms[name].high
    u = x - (zero or 0.0)
    signed = bool(u.min() < -_ROUNDING * np.abs(u).max())
    width = ends[1] - ends[0]
    weight = 1.0 / np.maximum(width, _NARROWEST * width.max())
    found = []
    for shape in _SHAPES:
        if shape.signs not in (None, signed):
            continue
        amplitude, baseline, numbers = _fitted(shape, u, output, weight, zero is None)
        curve = baseline + amplitude * shape.value(u, *numbers)
        room = _ROUNDING * span
        inside = float(((curve >= ends[0] - room) & (curve <= ends[1] + room)).mean())
        deviation = float(np.sqrt(np.square(curve - output).mean())) / span
        names = {one: _free_name(one, name, model.text) for one in ("E0", *shape.names)}
        values = dict(zip(shape.names, (abs(amplitude), *numbers), strict=True))
        parameters = {names[one]: float(f"{value:.4g}") for one, value in values.items()}
        start: dict[str, Start] = dict(parameters)
        most = parameters[names[shape.names[0]]]
        if shape.bounded and zero is not None and amplitude > 0 and math.isfinite(high_end):
            start[names[shape.names[0]]] = (min(most, 0.99 * high_end), 0.0, high_end)
        inner = "{x}" if not zero else f"({{x}} - {zero:g})" if zero > 0 else f"({{x}} + {-zero:g})"
        text = ("" if amplitude >= 0 else "-") + shape.text.format(x=inner, **names)
        if zero is None:
            text = f"{names['E0']} {'+' if amplitude >= 0 else '-'} {text.removeprefix('-')}"
            parameters[names["E0"]] = start_value = float(f"{baseline:.4g}")
            start[names["E0"]] = (start_value, -math.inf, math.inf)
        equations = model.with_formula(name, text, start)
        line = next(one for one in equations.text.splitlines() if one not in model.text.splitlines())
        found.append(TermFormula(shape.name, line, parameters, deviation, inside, equations))
    fits = sorted((one for one in found if one.inside >= _INSIDE), key=lambda one: (len(one.parameters), one.deviation))
    return fits + sorted((one for one in found if one.inside < _INSIDE), key=lambda one: one.deviation)


def _fitted(
    shape: _Shape, u: Array, output: Array, weight: Array, baseline: bool
) -> tuple[float, float, tuple[float, ...]]:
    """Amplitude, baseline and numbers of the least weighted squares, from the best of a grid of starts."""

    def linear(logs: Array) -> tuple[Array, Array]:
        """Amplitude and baseline that are best for these numbers, and the residuals."""
        columns = [shape.value(u, *np.exp(logs)), *([np.ones_like(u)] if baseline else [])]
        design = weight[:, None] * np.stack(columns, axis=1)
        best = np.asarray(np.linalg.lstsq(design, weight * output, rcond=None)[0], np.float64)
        return best, design @ best - weight * output

    count, reach = len(shape.names) - 1, float(np.abs(u).max())
    grid = product(_STARTS, *[(1.0, 3.0)] * (count - 1)) if count else [()]
    starts = [np.log([reach * at[0], *at[1:]] if at else []) for at in grid]
    logs = min(starts, key=lambda at: float(np.square(linear(at)[1]).sum()))
    if count:
        low = np.log([_SHORTEST * reach, *[_FLATTEST] * (count - 1)])
        high = np.log([_LONGEST * reach, *[_STEEPEST] * (count - 1)])
        logs = least_squares(lambda at: linear(at)[1], logs, bounds=(low, high)).x
    best = linear(logs)[0]
    return float(best[0]), float(best[1]) if baseline else 0.0, tuple(float(value) for value in np.exp(logs))


def _free_name(wanted: str, network: str, text: str) -> str:
    """A name that the text does not have."""
    taken = set(re.findall(r"\w+", text))
    suffixes = chain(["", "_" + re.sub(r"[^0-9A-Za-z]", "_", network)], (f"_{k}" for k in count(2)))
    return next(wanted + suffix for suffix in suffixes if wanted + suffix not in taken)
