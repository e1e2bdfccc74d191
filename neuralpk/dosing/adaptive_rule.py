"""Adaptive rules: a later dose that depends on a trough, as a text that people write or as numbers."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from neuralpk.cohort import Units

_TEXT = re.compile(
    r"trough\s*(?P<sign>[<>])\s*(?P<limit>\d+(?:\.\d*)?(?:[eE][-+]?\d+)?)\s*(?P<unit>[^\s:]+)?\s*:\s*"
    r"(?:dose\s*[x×*]\s*(?P<factor>\d+(?:\.\d*)?)|(?P<skip>skip))\s*"
    r"(?:,?\s*at most\s+(?P<most>\d+)\s*(?:times|time|x)?)?",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class AdaptiveRule:
    """What is changed where a trough, the value just before a dose, passes a limit.

    Args:
        limit: of the trough, value unit.
        above: whether it is passed from below.
        factor: of the dose that is due and of all later ones; with `skip` of the one that is due alone.
        skip: whether the dose that is due is left out.
        most: how many times in one patient; None for any number.
        name: as it stands in tables.
    """

    limit: float
    above: bool = True
    factor: float = 0.5
    skip: bool = False
    most: int | None = None
    name: str = ""

    @classmethod
    def parse(cls, text: str, units: Units = Units()) -> AdaptiveRule:  # noqa: B008  # immutable
        """From a text: ``trough > 20: dose x 0.5``, ``trough < 5: dose x 2, at most 1 times``, ``trough > 20: skip``.

        Raises:
            ValueError: a text that is no rule, or a unit that is not that of the values.
        """
        found = _TEXT.fullmatch(" ".join(text.split()))
        if found is None:
            raise ValueError(
                f"adapt: {text!r} is no rule; write 'trough > 20: dose x 0.5', 'trough > 20: skip', or "
                "'trough < 5: dose x 2, at most 1 times'"
            )
        if found["unit"] and found["unit"] != units.value:
            raise ValueError(f"adapt: the values of this model are in {units.value}, not {found['unit']}")
        most = int(found["most"]) if found["most"] else None
        skip = found["skip"] is not None
        factor = 0.0 if skip else float(found["factor"])
        return cls(float(found["limit"]), found["sign"] == ">", factor, skip, most, " ".join(text.split()))

    def passed(self, trough: Tensor) -> Tensor:
        """Where the limit is passed, bool."""
        return trough > self.limit if self.above else trough < self.limit

    def apply(self, factor: Tensor, due: range, trough: Tensor, changes: Tensor) -> tuple[Tensor, Tensor]:
        """The factors of all doses after the trough before some of them was seen.

        Args:
            factor: of each dose so far, ``[row, dose]``.
            due: the doses that are given at the time of the trough; several into several compartments.
            trough: before them, ``[row]``.
            changes: how often each row was changed, ``[row]``.
        """
        now = self.passed(trough)
        if self.most is not None:
            now = now & (changes < self.most)
        step = torch.where(now, self.factor, 1.0).to(factor)[:, None]
        dose = torch.arange(factor.shape[1], device=factor.device)
        touched = (dose >= due.start) & (dose < due.stop) if self.skip else dose >= due.start
        return torch.where(touched[None, :], factor * step, factor), changes + now
