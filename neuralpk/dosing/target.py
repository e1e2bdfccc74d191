"""Targets and limits of exposure, as texts that people write or as numbers.

A target is a quantity and a range::

    AUC24 400-600          area in 24 hours: the mean over the dosing interval times 24 h
    AUC 200-300            area over the dosing interval
    trough 10 to 15        value at its end
    Cmin > 5               lowest value
    Cmax < 40              highest value; also peak
    average > 5            mean over the interval
    time above 4 > 50 %    share of the interval above 4; without % the length of time
    DVID 2 trough > 30     of the second output of the model

A limit is a target with the probability that it must have: ``trough < 20 with 95 %``.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np

from neuralpk.cohort import FloatArray, Units
from neuralpk.dosing.regimen import time_in
from neuralpk.exposure import ExposureGrid

_NUMBER = r"(\d+(?:\.\d*)?(?:[eE][-+]?\d+)?)"
_QUANTITIES = {
    "AUC_HOURS": re.compile(r"auc\s?" + _NUMBER + r"(?=\s*[<>≤≥]|\s+\d)", re.IGNORECASE),
    "AUC": re.compile(r"auc(?:tau)?(?![\w.])", re.IGNORECASE),
    "CTROUGH": re.compile(r"c?trough\b", re.IGNORECASE),
    "CMIN": re.compile(r"cmin\b", re.IGNORECASE),
    "CMAX": re.compile(r"(?:cmax|peak)\b", re.IGNORECASE),
    "CAVG": re.compile(r"(?:cavg|average|mean)\b", re.IGNORECASE),
    "TABOVE": re.compile(r"time\s+above\s+" + _NUMBER, re.IGNORECASE),
}
_RANGE = re.compile(
    rf"(?:(?P<sign>[<>≤≥])=?\s*(?P<one>{_NUMBER[1:-1]})|(?P<low>{_NUMBER[1:-1]})\s*(?:-|–|to)\s*(?P<high>{_NUMBER[1:-1]}))"
    r"\s*(?P<unit>\S.*)?"
)
_WITH = re.compile(r"\s+with\s+(?:probability\s+)?" + _NUMBER + r"\s*%\s*$", re.IGNORECASE)
_FORMS = "'AUC24 400-600', 'trough > 10', 'Cmax 20 to 30', 'average > 5', 'time above 4 > 50 %', 'DVID 2 trough > 30'"


@dataclass(frozen=True)
class Target:
    """A range of a quantity of exposure over a dosing interval.

    Args:
        quantity: AUC, CTROUGH, CMIN, CMAX, CAVG, TABOVE (length of time above the threshold) or PABOVE (percent of the
            interval).
        low: of the range.
        high: of the range.
        per: of an AUC, the length of time that it is of; None for the dosing interval.
        threshold: of the time above; None for other quantities.
        endpoint: output of the model, counted from 1.
        probability: that a limit must have; None for a target.
        name: as it stands in tables.
    """

    quantity: str
    low: float = -math.inf
    high: float = math.inf
    per: float | None = None
    threshold: float | None = None
    endpoint: int = 1
    probability: float | None = None
    name: str = ""

    @classmethod
    def parse(cls, text: str, units: Units = Units(), limit: bool = False) -> Target:  # noqa: B008  # immutable
        """From a text.

        Args:
            text: as the module describes it.
            units: of the model.
            limit: whether it is a limit, with a probability.

        Raises:
            ValueError: a text that is no target, or not the kind that is asked for; a unit that the quantity has not.
        """
        said = " ".join(text.split())
        with_probability = _WITH.search(said)
        if (with_probability is not None) != limit:
            raise ValueError(
                f"limit: with which probability must {said!r} hold? Write '{said.split(' with ')[0]} with 95 %'"
                if limit
                else f"target: {said!r} has a probability as a limit has; a target is reached as probably as can be"
            )
        rest = said[: with_probability.start()] if with_probability else said
        endpoint = re.match(r"DVID\s+(\d+)\s+", rest, re.IGNORECASE)
        body = rest[endpoint.end() :] if endpoint else rest
        quantity, match = next(
            ((name, found) for name, form in _QUANTITIES.items() if (found := form.match(body))), ("", None)
        )
        bounds = _RANGE.fullmatch(body[match.end() :].strip()) if match else None
        if match is None or bounds is None:
            raise ValueError(f"{'limit' if limit else 'target'}: {said!r} is not understood; write {_FORMS}")
        low, high = (float(bounds[one]) if bounds[one] else None for one in ("low", "high"))
        if bounds["sign"]:
            value = float(bounds["one"])
            low, high = (value, math.inf) if bounds["sign"] in ">≥" else (-math.inf, value)
        assert low is not None and high is not None
        if not low < high:
            raise ValueError(f"target: {said!r} goes from a lower to a higher value")
        per = threshold = None
        if quantity == "AUC_HOURS":
            quantity, per = "AUC", time_in(float(match[1]), "h", units)
        unit = (bounds["unit"] or "").strip()
        if quantity == "TABOVE":
            threshold = float(match[1])
            if unit == "%":
                quantity, unit = "PABOVE", ""
        own = {"AUC": f"{units.time}*{units.value}", "TABOVE": units.time}.get(quantity, units.value)
        if unit and not _same_unit(unit, own):
            raise ValueError(f"target: {quantity} of this model is in {own}, not {unit}")
        probability = float(with_probability[1]) / 100 if with_probability else None
        if probability is not None and not 0.01 <= probability < 1:
            raise ValueError(f"limit: a probability lies between 1 and 100 % and is in percent, not {said!r}")
        k = int(endpoint[1]) if endpoint else 1
        return cls(quantity, low, high, per, threshold, k, probability, said)

    def values(self, grid: ExposureGrid, curve: FloatArray) -> FloatArray:
        """The quantity of curves.

        Args:
            grid: the times of the curves in the interval.
            curve: ``[..., time, endpoint]``.

        Raises:
            ValueError: an endpoint that the model does not have.
        """
        if self.endpoint > curve.shape[-1]:
            raise ValueError(f"target: {self.name!r}: the model has {curve.shape[-1]} outputs (DVID)")
        found = grid.metrics(curve[..., self.endpoint - 1], self.threshold)
        if self.per is not None:
            return found["CAVG"] * self.per
        return found[self.quantity]

    def holds(self, values: FloatArray) -> FloatArray:
        """Whether values lie in the range; NaN does not."""
        return np.asarray((values >= self.low) & (values <= self.high))


def _same_unit(given: str, own: str) -> bool:
    """Whether two units are one: factors in any order before and after the slash, as in mg·h/L and h*mg/L."""

    def parts(unit: str) -> list[list[str]]:
        over, _, under = re.sub(r"\s*[·*]\s*|\s+", "*", re.sub(r"\s*/\s*", "/", unit)).partition("/")
        # of mg/L*h the h stands above
        below, *above = under.split("*")
        return [sorted([*over.split("*"), *above]), [below]]

    return parts(given) == parts(own)
